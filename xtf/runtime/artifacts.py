"""Files that other people rely on: written whole or not at all, hashed, and locked while someone writes them.

What is read back later is *sealed*: its SHA-256 stands in `hashes.json` beside it, a list of the last two, newest last,
beside the table's own digest: damage to the table must not be taken for damage to the files. It is written before the
file is renamed into place, so that after a kill in between the old file is still known.
Where no table can lie (one line of many, files that threads write at once, a folder for somebody else's program), an
entry has its own digest (`with_digest`).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xtf.config.home import COMMAND, HOME, PACKAGE
from xtf.config.identity import digest
from xtf.runtime.progress import say

HASHES = "hashes.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITTEN = ("failed writing file", "iostream error", "unexpected pos")  # all that PyTorch says of a full disk


class DamagedError(ValueError):
    """An artifact that is not as it was written; the message names the file and what to do."""


class FullDiskError(OSError):
    """A full disk, with the path that was to be written."""


def write_atomic(path: Path, write: Callable[[Path], object], *, sealed: bool = False) -> None:
    """Call `write(temporary)`, flush it to disk and rename it to `path`: a reader sees the old file or the new one.

    Args:
        sealed: note its hash first, for `check` and `intact`.

    Raises:
        OSError: it cannot be written; a full disk is told with the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with naming(path):
            write(temporary)
            with temporary.open("rb+") as handle:
                os.fsync(handle.fileno())
        if sealed:
            seal(temporary, path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """This process's name for what will be renamed to `path`; what killed processes left under theirs is deleted."""
    own = f"{platform.node()}-"
    for stale in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(own)}*.tmp"):
        if not running(stale.name.removesuffix(".tmp").rpartition("-")[2]):
            _delete(stale)
    return path.with_name(f".{path.name}.{own}{os.getpid()}.tmp")


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def running(process: int | str) -> bool:
    """Whether a process of this number is there."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever a library makes of a full disk becomes an OSError that names `path`, unless one is named already."""
    try:
        yield
    except FullDiskError:
        raise
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        full = code in FULL or any(os.strerror(number) in str(error) for number in FULL)
        if full or (isinstance(error, RuntimeError) and any(words in str(error) for words in NOT_WRITTEN)):
            raise FullDiskError(code or errno.ENOSPC, os.strerror(code or errno.ENOSPC), str(path)) from error
        raise


def write_json(path: Path, value: Any, *, sealed: bool = False) -> None:
    """Write `value` as JSON, atomically. NaN is refused: it is not JSON, and a record must be readable everywhere."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), sealed=sealed)


def read_json(path: Path, remedy: str | None = None) -> Any:
    """The content of a JSON file; with a `remedy`, of a sealed one, which is checked first.

    Raises:
        DamagedError: it is not as it was written, or no JSON.
    """
    if remedy is not None:
        check(path, remedy)
    return _parsed(path, remedy or "delete it")


def _parsed(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged: it is no JSON ({error}); {remedy}") from error


def with_digest(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry, of JSON's types, with its own digest."""
    return {**entry, "digest": digest(entry)}


def without_digest(found: Any, **needed: type) -> dict[str, Any]:
    """The entry that `with_digest` was given, after a check; earlier versions gave it none.

    Args:
        needed: what it has, by the type of its value.

    Raises:
        ValueError: it is not as it was written, or lacks something.
    """
    entry = dict(found) if isinstance(found, dict) else {}
    if entry.pop("digest", None) not in (None, digest(entry)):
        raise ValueError("it is not as it was written")
    if lacking := [name for name, kind in needed.items() if not isinstance(entry.get(name), kind)]:
        raise ValueError(f"it does not say {' and '.join(lacking)}")
    if not isinstance(found, dict):
        raise ValueError("it is no object of JSON")
    return entry


def read_entry(path: Path, remedy: str, **needed: type) -> dict[str, Any]:
    """A JSON file that holds an entry with its own digest; see `without_digest`.

    Raises:
        DamagedError: it is not as it was written, or of another program.
    """
    found = _parsed(path, remedy)
    try:
        return without_digest(found, **needed)
    except ValueError as error:
        raise DamagedError(f"{path} is damaged, or another program's: {error}; {remedy}") from error


# -- hashes of what is read back ------------------------------------------------------------------------------------


def seal(path: Path, place: Path | None = None) -> None:
    """Note the hash of a file, or of every file of a folder but hidden ones, that is about to be renamed to `place`."""
    place = place or path
    table = _table(place.parent)
    before = {name: table.pop(name) for name in _sealed_names(table, place.name)}
    for name, file in _files(path, place.name).items():
        new = sha256(file)
        table[name] = [*(old for old in before.get(name, [])[-1:] if old != new), new]
    write_json(place.parent / HASHES, with_digest(table))


def check(path: Path, remedy: str) -> None:
    """Refuse a sealed file or folder that is not as it was written.

    One without a hash, of an earlier version, passes; that is said once.

    Raises:
        DamagedError: naming the file, with the `remedy`.
    """
    table = _table(path.parent)
    names = _sealed_names(table, path.name)
    if not names:
        _say_unsealed(path)
    for name in names:
        file = path.parent / name
        if not file.is_file():
            raise DamagedError(f"{file} is missing: {remedy}")
        found = known_sha256(file)
        # Looked up anew: a run beside this one may just have written both.
        if found not in table[name] and found not in _table(path.parent).get(name, []):
            raise DamagedError(f"{file} is damaged, not as it was written: {remedy}")


def intact(path: Path) -> bool:
    """Whether a file or folder is there and as it was written; that it is damaged is said. For what is made again."""
    if not path.exists():
        return False
    try:
        check(path, "it is made again")
    except DamagedError as error:
        say(str(error))
        return False
    return True


def check_model(folder: Path) -> None:
    """Refuse a model that this program wrote and that is not as it was written, before it is used; others pass.

    Raises:
        DamagedError: naming the file, and what to do.
    """
    try:
        ours = bool(_sealed_names(_table(folder.parent), folder.name))
    except DamagedError as error:  # perhaps a file of that name of somebody else's, so no reason to refuse the model
        say(f"{folder} is not checked, for {error}")
        return
    if ours:
        check(
            folder, "run the command that made it with stage=train, which makes it again, or copy it if you changed it"
        )


def part_intact(folder: Path, name: str) -> bool:
    """Whether one file of a sealed folder is as it was written; True for one without a hash, of an earlier version."""
    known = _table(folder.parent).get(f"{folder.name}/{name}")
    return known is None or known_sha256(folder / name) in known


@functools.cache
def _say_unsealed(path: Path) -> None:
    if not _say_unsealed.cache_info().currsize:
        say(f"{path} has no stored hash (a version before wrote it): such files are taken as they are")


def _files(path: Path, name: str) -> dict[str, Path]:
    if not path.is_dir():
        return {name: path}
    return {f"{name}/{file.relative_to(path).as_posix()}": file for file in _visible(path)}


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _sealed_names(table: dict[str, list[str]], name: str) -> list[str]:
    return [known for known in table if known == name or known.startswith(f"{name}/")]


def _table(folder: Path) -> dict[str, list[str]]:
    file = folder / HASHES
    if not file.exists():
        return {}
    remedy = "delete it, and the files beside it are taken as they are"
    found = read_entry(file, remedy)
    if not all(isinstance(entry, list) for entry in found.values()):
        raise DamagedError(f"{file} is damaged: {remedy}")
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file, or of a folder's files with their names (hidden files left out)."""
    if path.is_dir():
        total = hashlib.sha256()
        for file in _visible(path):
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
    """Hold `folder` for this process; a second one waits and says so. A killed holder frees it at once.

    What killed ones left half-written is deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is writing {folder}; waiting for it")
        lock.acquire()
    try:
        for stale in list(folder.rglob(".*.tmp")):
            _delete(stale)
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


@functools.cache
def program() -> str:
    """A digest of the program's own source files, as they were when this process first asked."""
    total = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        total.update(f"{file.relative_to(PACKAGE).as_posix()}\0{sha256(file)}\n".encode())
    return total.hexdigest()[:12]


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
