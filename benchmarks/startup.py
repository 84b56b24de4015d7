"""How long a user waits: for the help, and from a command to its first training step.

    python -m benchmarks.startup [--repeats 5]

The tiny model on the bundled math data. Scores and mask are made first, as in any run but the first of a setting; then
`python run.py seed=N` is started for a new seed and killed after its first step, that is, when train_log.csv has a
line. Seconds on the wall clock, process start and imports included.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import Claim, report

ROOT = Path(__file__).parents[1]


def run(*arguments: str, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(ROOT / "run.py"), *arguments], cwd=cwd, stdout=subprocess.DEVNULL)


def wait(process: subprocess.Popen[bytes]) -> None:
    if process.wait() != 0:
        raise subprocess.CalledProcessError(process.returncode, process.args)


def seconds_of_help(folder: Path) -> float:
    started = time.perf_counter()
    wait(run("--help", cwd=folder))
    return time.perf_counter() - started


def seconds_to_first_step(folder: Path, seed: int) -> float:
    started = time.perf_counter()
    process = run(f"seed={seed}", "evaluate.base=false", cwd=folder)
    try:
        while not any(
            log.read_bytes().count(b"\n") > 1 for log in folder.glob(f"outputs/runs/*/*/*/*/*/seed{seed}/train_log.csv")
        ):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} before it trained")
            time.sleep(0.01)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wait(run("stage=mask", cwd=folder))
        found = {
            "--help": ([seconds_of_help(folder) for _ in range(options.repeats)], 1.2),
            "start to first training step": (
                [seconds_to_first_step(folder, seed) for seed in range(1, options.repeats + 1)],
                12.0,
            ),
        }
    claims = [Claim(f"seconds, {what}", np.array(times), limit) for what, (times, limit) in found.items()]
    return report("startup", claims, {"repeats": options.repeats})


if __name__ == "__main__":
    sys.exit(main())
