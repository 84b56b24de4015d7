"""Ctrl-C at any point: within seconds exit status 130 and the command that goes on; twice quickly as well."""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commands
import psutil
import pytest

ROOT = Path(__file__).parents[1]
SMALL = ["task.train.limit=200", "task.eval.limit=200", "task.sandbox.workers=1"]
MARK = "AT THE POINT"


@dataclass(frozen=True)
class At:
    """A function of a module, or a method of a class ("module:class"), that prints a mark as it is called, so that the
    signal comes there and not by the clock."""

    owner: str
    name: str

    def watch(self) -> None:
        owner = pkgutil.resolve_name(self.owner)
        original = getattr(owner, self.name)

        @functools.wraps(original)  # Lightning reads its signature
        def function(*args: Any, **kwargs: Any) -> Any:
            os.write(1, f"{MARK}\n".encode())
            return original(*args, **kwargs)

        setattr(owner, self.name, function)


# Before torch is there, in a new interpreter.
IMPORTS = f"""
import sys
from xtf.cli import main
print("{MARK}", flush=True)
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Started:
    pid: int
    said: Callable[[], str]
    end: Callable[[], tuple[int | None, str]]  # waits: its exit status, and all that it said


def started(folder: Path, point: At | None, *arguments: str) -> Started:
    """A run that has reached the point; with None, one that is importing what it needs."""
    log = folder / "log"
    if point is not None:
        command = commands.start([*SMALL, *arguments], folder, log, prepare=point.watch)
        return Started(command.pid, log.read_text, lambda: (command.finish(60).returncode, log.read_text()))
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", IMPORTS, *SMALL, *arguments],
            cwd=folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Started(process.pid, log.read_text, lambda: (process.wait(60), log.read_text()))


def at_the_point(folder: Path, point: At | None, *arguments: str) -> Started:
    """The same, once it has reached the point."""
    run = started(folder, point, *arguments)
    deadline = time.monotonic() + 300
    while not (folder / "log").exists() or MARK not in run.said():
        assert Path(f"/proc/{run.pid}").exists() and time.monotonic() < deadline, run.said()
        time.sleep(0.02)
    return run


def interrupt(folder: Path, point: At | None, *arguments: str, times: int = 1, wait: float = 0.0) -> str:
    """Starts a run, presses Ctrl-C `wait` seconds after it has reached the point; its output."""
    run = at_the_point(folder, point, *arguments)
    time.sleep(wait)
    start = time.monotonic()
    for _ in range(times):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.02)
    status, said = run.end()
    took = time.monotonic() - start
    assert status == 130, said
    assert took < 3.0 + LATE, (took, said)
    found = re.search(r"interrupted; this command goes on from here: (.*)", said)
    assert found and shlex.split(found[1])[-len(arguments) :] == list(arguments), said
    assert said.count("interrupted;") == 1
    assert "Traceback" not in said, said
    return said


LATE = 3.0  # seconds that a busy machine may add
POINTS: dict[str, tuple[At | None, float, list[str]]] = {
    "imports": (None, 0.5, []),
    "encoding": (At("xtf.inputs", "load_rows"), 0.0, []),
    "scoring": (At("xtf.scoring.scorers", "score_rows"), 0.3, []),
    "training": (At("xtf.training.module:TokenFilteredLM", "training_step"), 0.3, ["evaluate.base=false"]),
    "generation": (At("xtf.evaluation.evaluate", "generate_share"), 0.3, []),
    "sandbox": (At("xtf.graders.sandbox:Sandbox", "run"), 0.3, ["task=code", "task.max_new_tokens=8"]),
}


@pytest.mark.parametrize(("name", "times"), [*((name, 1) for name in POINTS), ("imports", 2), ("training", 2)])
def test_ctrl_c_ends_with_130_and_what_to_run(tmp_path: Path, name: str, times: int) -> None:
    point, wait, arguments = POINTS[name]
    interrupt(tmp_path, point, *arguments, "output_dir=out", times=times, wait=wait)


def workers(folder: Path) -> set[int]:
    """The processes that train on a device each, started from this folder."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"xtf.training.device_process" in words and (process / "cwd").readlink() == folder:
                found.add(int(process.name))
    return found


def until(what: Callable[[], object], seconds: float) -> bool:
    """Whether it comes true in time."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(what())


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)])
def test_one_sentence_ends_the_training_on_every_device(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """A signal to the program alone, or as a terminal or a batch system sends it, to every process of the job."""
    run = started(
        tmp_path,
        At("xtf.pipeline", "train"),
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "evaluate.base=false", "output_dir=out"),
    )
    assert until(lambda: list(tmp_path.glob("out/**/train_log.csv")), 600), run.said()
    assert len(workers(tmp_path)) >= 2
    own = psutil.Process(run.pid)
    started_by_it = own.children(recursive=True)
    start = time.monotonic()
    for process in [own, *(started_by_it if to_all else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    status, said = run.end()
    assert status == 128 + number and time.monotonic() - start < 3.0 + LATE, said
    assert until(lambda: not workers(tmp_path), 3.0 + LATE), workers(tmp_path)
    left = psutil.wait_procs(started_by_it, timeout=1)[1]
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in left), left  # which nobody has asked for yet
    words = "interrupted" if number == signal.SIGINT else "stopped by SIGTERM"
    assert said.count(f"{words}; this command goes on from here: ") == 1, said
    assert "Traceback" not in said and "Signal" not in said, said


def test_a_training_that_a_batch_system_ends_does_not_look_finished(tmp_path: Path) -> None:
    point, _, arguments = POINTS["training"]
    run = at_the_point(tmp_path, point, *arguments, "output_dir=out")
    os.kill(run.pid, signal.SIGTERM)
    status, said = run.end()
    assert status == 128 + signal.SIGTERM, said
    assert said.count("stopped by SIGTERM; this command goes on from here: ") == 1
    assert "Traceback" not in said


def test_what_does_not_listen_is_ended(tmp_path: Path) -> None:
    """A library that catches the interrupt and goes on, or that is busy outside of Python."""
    deaf = """
import time
from xtf.runtime.interrupt import interruptible
with interruptible("python run.py"):
    while True:
        try:
            print("AT THE POINT", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            pass
"""
    process = subprocess.Popen(
        [sys.executable, "-c", deaf],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130 and "interrupted; this command goes on from here: python run.py" in said


def test_the_first_imports_are_interrupted_without_a_traceback() -> None:
    """And no other import of note comes before Ctrl-C is heard: those of typing and of enums take tens of ms."""
    code = """
import _signal, os, sys
_signal.signal(_signal.SIGINT, _signal.default_int_handler)  # which a shell's background job would not have
class Finder:
    def find_spec(self, name, path, target=None):
        if name in ("typing", "enum", "xtf.cli"):
            os.kill(os.getpid(), _signal.SIGINT)
sys.meta_path.insert(0, Finder())
from xtf.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr.startswith("interrupted;") and "Traceback" not in done.stderr
