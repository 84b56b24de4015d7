"""The command line as a program: `python -m xtf`, `xtf`, `python run.py`."""

from __future__ import annotations

import _signal  # what `signal` wraps in enums, of which the import takes longer than all that is before `main`
import os
import sys

TYPE_CHECKING = False  # as in xtf/__init__.py
if TYPE_CHECKING:
    from typing import Any, NoReturn


def main() -> int:
    """`xtf.cli.main`, with a Ctrl-C during the imports before it ending as later ones do: status 130, no traceback."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # else it is ignored, or somebody's own
        _signal.signal(_signal.SIGINT, _end)
    from xtf import cli

    return cli.main()


def _end(*_: Any) -> NoReturn:
    os.write(2, b"interrupted; nothing was begun: the same command starts it\n")
    os._exit(128 + _signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
