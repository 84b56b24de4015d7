"""XTF's command line: `python run.py model=qwen task=math`. `python run.py --help` lists everything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
os.environ.setdefault("XTF_ROOT", str(ROOT))

from xtf import cli  # noqa: E402 - after XTF_ROOT, which conf/config.yaml reads

if __name__ == "__main__":
    sys.exit(cli.main(ROOT))
