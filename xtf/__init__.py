"""XTF: find which label tokens of a fine-tuning set teach a language model, and train without the rest."""

__version__ = "0.1.0"
