"""The bundled sample: three generated datasets and a tiny base model that was trained here from nothing.

How both were made: `xtf.pretraining`.
"""

from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
MODEL_DIR = Path(__file__).parent / "model"
HELD_OUT = DATA_DIR / "held_out.jsonl"  # text like that of pre-training, which the model has not read
