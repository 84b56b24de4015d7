"""`python -m xtf`: the command line (`xtf.cli`)."""

import sys

from xtf.cli import main

if __name__ == "__main__":
    sys.exit(main())
