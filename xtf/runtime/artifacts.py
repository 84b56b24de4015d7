"""Files that other people rely on: written whole or not at all, hashed, and locked while someone writes them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xtf.config.home import COMMAND, HOME


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary)`, flush it to disk and rename it to `path`: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN is refused: it is not JSON, and a record must be readable everywhere."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a folder's files with their names (hidden files left out)."""
    if path.is_dir():
        total = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
            total.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return total.hexdigest()
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def known_sha256(file: Path) -> str:
    """`sha256` of a file, computed once in a process for each size and time of its last change."""
    status = file.stat()
    return _known_sha256(file, status.st_size, status.st_mtime_ns)


@functools.cache
def _known_sha256(file: Path, size: int, modified: int) -> str:
    return sha256(file)


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Hold `folder` for this process; a second one waits and says so. A killed holder frees it at once."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is writing {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def git_commit() -> str | None:
    """The commit that the program is at, with "+changes" if tracked files differ; None if it runs from a wheel.

    A wheel may lie in an environment inside a checkout of something else, whose commit says nothing of the program.
    """
    if not (HOME / ".git").exists():
        return None
    command = ["git", "-C", str(HOME), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git on this machine: the record says None
        return None
    return done.stdout.strip() or None


def versions(*more: str) -> dict[str, str]:
    """Versions of what can change a result, and of `more` packages."""
    names = (
        "xtf",
        "torch",
        "transformers",
        "pytorch-lightning",
        "peft",
        "tokenizers",
        "datasets",
        "numpy",
        "math-verify",
        "hydra-core",
    )
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (*names, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def command() -> str:
    """The command line as typed (the interpreter's path left out), of this process or of its sweep."""
    name = Path(sys.argv[0]).name
    program = COMMAND.split() if name == "run.py" else ["python", name]
    return os.environ.get("XTF_COMMAND") or shlex.join([*program, *sys.argv[1:]])
