"""Where conf/ and experiments/ lie, and what the program is called there: in the repository, and in a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# In the repository they stand beside the package, in a wheel inside it.
HOME = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
COMMAND = "xtf" if HOME == PACKAGE else "python run.py"  # as messages and pages name it
EXPERIMENTS = HOME / "experiments"
CONF = HOME / "conf"
