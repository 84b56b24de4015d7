"""The bundled sample: three generated datasets and a tiny base model that was trained here from nothing.

`generate.py` writes the datasets; stage=pretrain (`xtf.pretrain`) trains the model on the text of `corpus.py`, or a
larger one on the wider text of `broad.py`. All of it is seeded.
"""

from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
MODEL_DIR = Path(__file__).parent / "model"
