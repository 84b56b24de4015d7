"""The bundled sample: three generated datasets and a tiny base model that was trained here from nothing.

`generate.py` writes the datasets, `pretrain.py` trains the model on the text of `corpus.py`. Both are seeded.
"""

from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
MODEL_DIR = Path(__file__).parent / "model"
