"""Ctrl-C at any point: within seconds exit status 130 and the command that goes on; twice quickly as well."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Prints a mark as soon as a stage is at work, so that the signal comes there and not by the clock.
AT = """
import sys
name, attribute, *sys.argv = sys.argv[1:]
import functools, importlib
def patched(original):
    @functools.wraps(original)  # Lightning reads its signature
    def function(*args, **kwargs):
        print("AT THE POINT", flush=True)
        return original(*args, **kwargs)
    return function
module, _, kind = name.partition(":")
def hook():
    owner = importlib.import_module(module)
    owner = getattr(owner, kind) if kind else owner
    setattr(owner, attribute, patched(getattr(owner, attribute)))
if module:
    hook()
else:
    print("AT THE POINT", flush=True)
from xtf.cli import main
sys.exit(main(sys.argv))
"""
SMALL = ["task.train.limit=200", "task.eval.limit=200", "task.sandbox.workers=1"]


def at_the_point(folder: Path, point: tuple[str, str], *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """Starts a run and waits until it has reached the point; the process, and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT, *point, *SMALL, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if "AT THE POINT" in line:
            break
    assert process.poll() is None, said
    return process, said


def interrupt(folder: Path, point: tuple[str, str], *arguments: str, times: int = 1, wait: float = 0.0) -> str:
    """Starts a run, presses Ctrl-C `wait` seconds after it has reached the point; its output."""
    process, said = at_the_point(folder, point, *arguments)
    time.sleep(wait)
    start = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    said += process.communicate(timeout=60)[0]
    took = time.monotonic() - start
    assert process.returncode == 130, said
    assert took < 3.0 + LATE, (took, said)
    found = re.search(r"interrupted; this command goes on from here: (.*)", said)
    assert found and shlex.split(found[1])[-len(arguments) :] == list(arguments), said
    assert said.count("interrupted;") == 1
    assert "Traceback" not in said, said
    return said


LATE = 3.0  # seconds that a busy machine may add
POINTS = {
    "imports": (("", ""), 0.5, []),
    "encoding": (("xtf.inputs", "load_rows"), 0.0, []),
    "scoring": (("xtf.scoring.scorers", "score_rows"), 0.3, []),
    "training": (("xtf.training.module:TokenFilteredLM", "training_step"), 0.3, ["evaluate.base=false"]),
    "generation": (("xtf.evaluation.evaluate", "generate_share"), 0.3, []),
    "sandbox": (("xtf.graders.sandbox:Sandbox", "run"), 0.3, ["task=code", "task.max_new_tokens=8"]),
}


@pytest.mark.parametrize(("name", "times"), [*((name, 1) for name in POINTS), ("imports", 2), ("training", 2)])
def test_ctrl_c_ends_with_130_and_what_to_run(tmp_path: Path, name: str, times: int) -> None:
    point, wait, arguments = POINTS[name]
    interrupt(tmp_path, point, *arguments, "output_dir=out", times=times, wait=wait)


def test_a_training_that_a_batch_system_ends_does_not_look_finished(tmp_path: Path) -> None:
    point, _, arguments = POINTS["training"]
    process, _ = at_the_point(tmp_path, point, *arguments, "output_dir=out")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM; the same command goes on" in said
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
