"""Command lines in processes of their own that begin with everything imported.

Importing torch, transformers and Lightning costs more than most runs of the bundled model. So a server of
`multiprocessing`, one for each process of pytest, imports them once, and every command is forked from it: a process
with its own exit status, folder, environment and signals, which can be killed like any other. What only a new
interpreter can show (what is imported, and when; the installed wheel) still starts one. Drawing the pictures of a
report costs as much again, so these commands leave empty files in their place, unless a test looks at them.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
WARM = [
    *("xtf.cli", "xtf.pipeline", "xtf.study.probe", "xtf.sweeps.plan", "xtf.sweeps.reports"),
    *("xtf.data.encode", "xtf.data.tokenized", "xtf.scoring.scorers", "xtf.training.fit", "xtf.evaluation.generation"),
    *("xtf.graders.number", "xtf.tasks.math"),
    *("hydra._internal.hydra", "hydra.core.plugins", "peft", "transformers.models.qwen2.modeling_qwen2"),
    *("transformers.models.auto.modeling_auto", "transformers.models.qwen2.tokenization_qwen2"),
]
FORKS.set_forkserver_preload(WARM)
SECONDS = 600.0  # that a command may take on a busy machine


@dataclass(frozen=True)
class Kill:
    """A kill as the process is about to write a path that matches `pattern`, for the `time`-th time.

    Watching the files from outside would miss a stage that is over in a blink, or not, as the machine pleases.
    """

    pattern: str
    time: int = 1

    def watch(self) -> None:
        """From now on in this process."""
        left = self.time

        def see(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            path = written(event, arguments)
            if path is not None and re.search(self.pattern, path):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(see)


def written(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that the operation behind an audit event writes."""
    if event == "open" and isinstance(arguments[0], str) and set(str(arguments[1])) & set("wax+"):
        return arguments[0]
    if event == "os.rename":
        return os.fsdecode(arguments[1])
    return None


@dataclass(frozen=True)
class Done:
    returncode: int  # minus the signal's number where one ended it
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Command:
    """One at work."""

    process: BaseProcess
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def finish(self, seconds: float = SECONDS) -> Done:
        """Waits for its end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"it took longer than {seconds:g} s: {self.out.read_text()}{self.err.read_text()}")
        return Done(self.process.exitcode, self.out.read_text(), self.err.read_text())


def start(
    arguments: Sequence[str],
    folder: Path,
    out: Path,
    err: Path | None = None,
    *,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> Command:
    """`python run.py ARGUMENTS` in `folder`, its output appended to `out` and `err` (also `out` if None).

    `prepare` is called in its process first: what pickle takes, a method of a frozen dataclass, say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    err = err or out
    process = FORKS.Process(target=_main, args=(list(arguments), folder, out, err, environment or {}, prepare))
    process.start()
    return Command(process, out, err)


def run(arguments: Sequence[str], folder: Path, **how: Any) -> Done:
    """The same to its end."""
    with tempfile.TemporaryDirectory() as files:
        return start(arguments, folder, Path(files, "out"), Path(files, "err"), **how).finish()


def blank(_: object, folder: Path, name: str) -> dict[str, Path]:
    """In the place of `xtf.reporting.figures.save`: empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("png", "svg")}
    for path in paths.values():
        path.write_bytes(b"")
    return paths


def _main(
    arguments: list[str],
    folder: Path,
    out: Path,
    err: Path,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    for number, file in ((1, out), (2, err)):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    os.setsid()  # a signal to its group reaches what it started, and not the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    os.chdir(folder)
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    from xtf import cli
    from xtf.reporting import figures
    from xtf.runtime.progress import console

    cli.TRACEBACKS = False  # HYDRA_FULL_ERROR is not the user's here: importing xtf.cli in the tests has set it
    figures.save = blank  # type: ignore[assignment]
    if "COLUMNS" in environment:  # which the console has read when it was made
        console.width = int(environment["COLUMNS"])
    if prepare is not None:
        prepare()
    sys.exit(cli.main(arguments))
