"""The command line as a program: `python -m xtf`, `xtf`, `python run.py`."""

import os
import signal
import sys
from typing import Any, NoReturn


def main() -> int:
    """`xtf.cli.main`, with a Ctrl-C during the imports before it ending as later ones do: status 130, no traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or somebody's own
        signal.signal(signal.SIGINT, _end)
    from xtf import cli

    return cli.main()


def _end(*_: Any) -> NoReturn:
    os.write(2, b"interrupted; nothing was begun: the same command starts it\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
