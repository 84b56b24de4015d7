"""Where conf/ and experiments/ lie, in the repository and in a wheel, and how the program was started."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In the repository they stand beside the package, in a wheel inside it.
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
STARTS = {"xtf": "xtf", "xtf.exe": "xtf", "run.py": "python run.py", "xtf/__main__.py": "python -m xtf"}


def _command() -> str:
    """How this process was started, or the sweep whose job it runs; the library's user is told what there is here."""
    program, typed = Path(sys.argv[0]), os.environ.get("XTF_COMMAND", "")
    for name, command in STARTS.items():
        if typed.startswith(f"{command} ") or (not typed and program.parts[-name.count("/") - 1 :] == Path(name).parts):
            return command
    return "xtf" if HOME == PACKAGE else "python run.py"


def in_repository(path: str) -> str:
    """A file of the repository that no wheel has, for a message."""
    return f"{path} in the repository" if HOME == PACKAGE else path


def expanded(path: str) -> str:
    """A path with the home folder in the place of `~` at its beginning; anything else, ids on the hub too, as it is."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path would write ./model as model, and fail on ~nobody


COMMAND = _command()  # as messages and pages name it
EXPERIMENTS = HOME / "experiments"
CONF = HOME / "conf"
