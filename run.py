"""XTF's command line: `python run.py model=qwen task=math`. `python run.py --help` lists everything."""

from __future__ import annotations

import sys

from xtf.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
