"""XTF's command line: `python run.py model=qwen task=math`. `python run.py --help` lists everything."""

from __future__ import annotations

import sys

from xtf import cli

if __name__ == "__main__":
    sys.exit(cli.main())
