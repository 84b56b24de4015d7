"""The packed model, its LightningModule, and training with it."""
