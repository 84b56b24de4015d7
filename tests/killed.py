"""Runs a program until it is about to write a given file for the n-th time, and kills it there.

    python tests/killed.py PATTERN N PROGRAM [ARGUMENT ...]

PATTERN is a regular expression, searched in the path that is opened for writing or that a file is renamed to. Watching
the files from outside would miss a stage that is over in a blink, or not, as the machine pleases.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import sys
from pathlib import Path


def written(event: str, arguments: tuple[object, ...]) -> str | None:
    """The path that the operation behind an audit event writes."""
    if event == "open" and isinstance(arguments[0], str) and set(str(arguments[1])) & set("wax+"):
        return arguments[0]
    if event == "os.rename":
        return os.fsdecode(arguments[1])  # type: ignore[arg-type]
    return None


def main() -> None:
    pattern, left = re.compile(sys.argv[1]), int(sys.argv[2])

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        path = written(event, arguments)
        if path is not None and pattern.search(path):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    sys.argv = sys.argv[3:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
