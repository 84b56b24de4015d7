"""Where training curves go beside train_log.csv: TensorBoard or Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from xtf.config import Config, plain

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def make_loggers(config: Config, folder: Path) -> list[Logger]:
    """Lightning loggers for `config.logger`; the CSV log is written by training itself, whatever is chosen here."""
    if config.logger.name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        return [TensorBoardLogger(save_dir=folder, name="", version="tensorboard")]
    if config.logger.name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        return [
            WandbLogger(
                project=config.logger.project, entity=config.logger.entity, save_dir=str(folder),
                name="/".join(folder.parts[-6:]), group=config.experiment, job_type="train",
                tags=[config.model.name, config.task.name, config.method.name, config.scorer.name,
                      config.threshold.name, *config.logger.tags],
                mode=wandb_mode(config), config=plain(config), reinit="finish_previous",
            )
        ]  # fmt: skip
    return []


def wandb_mode(config: Config) -> str:
    """`logger.mode`, else $WANDB_MODE, else online where a key is configured, else offline: never a prompt."""
    if config.logger.mode is not None:
        return config.logger.mode
    if "WANDB_MODE" in os.environ:
        return os.environ["WANDB_MODE"]
    import wandb

    return "online" if wandb.api.api_key else "offline"
