"""What `make torture` tries for as long as it is told to; a line of figures each, and exit status 1 if any is bad.

    python tests/torture.py [--kills 20] [--damage 20] [--programs 50] [--values 500] [--fuzz 20]

`--fuzz` are seconds for each target of tests/fuzz.py.

It prints its seed; `--seed N` does the same again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import commands

from xtf.config.schema import SandboxConfig
from xtf.graders.sandbox import HEADER, Sandbox, Trial

ROOT = Path(__file__).parents[1]

SMALL = ["task.train.limit=48", "task.eval.limit=12", "task.max_new_tokens=16", "trainer.shard_examples=16"]
SMALL += ["trainer.checkpoint_every=1", "trainer.tokens_per_eval_batch=100", "tuning.epochs=1", "tuning.batch_size=8"]
WRITES = 90  # files that such a run writes, about: the last place for a kill
TIMELESS = ("timing", "command", "git_commit", "free_gb", "how")


# -- runs -------------------------------------------------------------------------------------------------------------


def run(folder: Path, kill_at: int | None = None) -> commands.Done:
    """A small run of the bundled model in `folder`, killed as it is about to write its n-th file."""
    return commands.run(SMALL, folder, prepare=None if kill_at is None else commands.Kill("outputs/", kill_at).watch)


def record(folder: Path) -> Any:
    """metrics.json without what may differ between two equal runs."""

    def timeless(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: timeless(part) for key, part in value.items() if "second" not in key and key not in TIMELESS}

    (file,) = folder.glob("outputs/runs/math/tiny/full/xtf/*/seed0/metrics.json")
    return timeless(json.loads(file.read_text(encoding="utf-8")))


def kills(count: int, rng: random.Random, whole: Path, scratch: Path) -> Counter[str]:
    """Runs that are killed once or more often before they may finish."""
    found: Counter[str] = Counter(kills=0, runs=0, different=0)
    while found["kills"] < count:
        folder = scratch / "killed"
        folder.mkdir()
        while run(folder, rng.randint(1, WRITES)).returncode == -signal.SIGKILL:
            found["kills"] += 1
            if rng.random() < 0.5:
                break
        done = run(folder)
        same = done.returncode == 0 and record(folder) == record(whole) and not list(folder.rglob(".*.tmp"))
        found["runs"] += 1
        found["different"] += not same
        if not same:
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        shutil.rmtree(folder)
    return found


def damage(count: int, rng: random.Random, whole: Path, scratch: Path) -> Counter[str]:
    """A flipped bit, a cut or an empty file among the artifacts of a finished run, or of one that was killed."""
    found: Counter[str] = Counter(damaged=0, same=0, refused=0, different=0)
    for _ in range(count):
        folder = scratch / "damaged"
        if rng.random() < 0.5:
            shutil.copytree(whole, folder)
        else:
            folder.mkdir()
            run(folder, rng.randint(20, WRITES))
        files = [file for file in sorted((folder / "outputs").rglob("*")) if file.is_file() and file.stat().st_size]
        file = rng.choice([file for file in files if "reports" not in file.parts])
        content = bytearray(file.read_bytes())
        kind = rng.choice(["flip", "flip", "flip", "cut", "empty"])
        if kind == "flip":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content if kind == "flip" else content[: rng.randrange(len(content)) if kind == "cut" else 0])
        done = run(folder)
        said = done.stdout + done.stderr
        if done.returncode == 0 and record(folder) == record(whole):
            outcome = "same"
        elif done.returncode in (1, 2) and "Traceback" not in said and file.name in said:
            outcome = "refused"
        else:
            outcome = "different"
            print(
                f"{kind} in {file.relative_to(folder)}, exit status {done.returncode}: {said[-2000:]}", file=sys.stderr
            )
        found["damaged"] += 1
        found[outcome] += 1
        shutil.rmtree(folder)
    return found


# -- the sandbox ------------------------------------------------------------------------------------------------------

ATTACKS = (  # statements of a hostile program, to be put together at random; none of them computes the answer
    "import os, sys, builtins, gc, json, struct, socket, signal, threading, ctypes",
    "os._exit(0)",
    "sys.exit(0)",
    "[os.write(fd, blob) for fd in range(64) if not err(lambda: os.fstat(fd))]",
    "[os.close(fd) for fd in range(64) if not err(lambda: os.close(fd))]",
    "builtins.AssertionError = builtins.Exception",
    "[g.clear() for g in gc.get_objects() if type(g) is dict and 'passed' in g]",
    "os.kill(1, signal.SIGKILL)",
    "os.kill(os.getppid(), signal.SIGTERM)",
    "threading.Thread(target=os._exit, args=(0,)).start()",
    "os.fork()",
    "ctypes.string_at(0)",
    "sys.setrecursionlimit(10**9)",
    "raise StopIteration",
    "raise BaseException(blob)",
    "sys.stdout.write(json.dumps({'passed': True, 'reason': 'all tests passed'}))",
    "open('/proc/self/mem', 'rb+').write(blob)",
    "print('x' * 10**6)",
    "f.__code__ = (lambda x: blob).__code__",
)
ANSWERS = (
    "None",
    "True",
    "blob",
    "S()",
    "S",
    "exec",
    "(i for i in ())",
    "float('nan')",
    "f",
    "[f]",
    "{f: f}",
    "'\\ud800'",
)
HEAD = """
def err(call):
    try: call()
    except BaseException as error: return error
class S(str):
    __eq__ = __ne__ = __lt__ = __gt__ = __bool__ = __contains__ = lambda *a: True
    __hash__ = lambda s: 2
    __len__ = __index__ = __int__ = lambda s: 2
blob = {blob!r}
"""
TESTS = "result = f(1)\nassert type(result) is int\nassert result == 2\nassert f(40) == 41"
CATCHING = f"try:\n    f(1)\nexcept Exception:\n    pass\nelse:\n    {TESTS.replace(chr(10), chr(10) + ' ' * 4)}"


def programs(count: int, rng: random.Random) -> Counter[str]:
    """Programs put together of attacks; none computes x + 1 or raises: one that passes has forged its verdict."""
    trials = []
    for _ in range(count):
        blob = rng.choice([rng.randbytes(40), HEADER.pack(1, bytes(16), 40) + b'{"passed": true, "reason": ""}'])
        chosen = rng.choices([*ATTACKS[1:], f"os.kill(os.getpid(), {rng.randint(1, 64)})"], k=rng.randint(1, 4))
        body = "\n".join(f"    err(lambda: exec({line!r}, globals()))" for line in chosen[1:])
        program = f"{ATTACKS[0]}\n{HEAD.format(blob=blob)}\ndef f(x):\n{body}\n    return {rng.choice(ANSWERS)}\n"
        if rng.random() < 0.5:
            program += f"err(lambda: exec({chosen[0]!r}, globals()))\n"
        trials.append(Trial(program, rng.choice([TESTS, CATCHING]), ("f",)))
    with Sandbox(SandboxConfig(wall_seconds=10.0, cpu_seconds=1, memory_mb=512, workers=1)) as box:
        outcomes = box.run(trials)
        after = box.run([Trial("def f(x): return x + 1", TESTS, ("f",))])
    forged = sum(outcome.passed for outcome in outcomes)
    return Counter(programs=count, forged=forged, right_program_failed_after=int(not after[0].passed))


# -- readers and settings ----------------------------------------------------------------------------------------------


def any_value(count: int) -> Counter[str]:
    """tests/config/test_any_value.py with more examples."""
    test = [sys.executable, "-m", "pytest", "-q", "-x", str(ROOT / "tests/config/test_any_value.py")]
    done = subprocess.run(
        test, env={**os.environ, "XTF_EXAMPLES": str(count)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    return Counter(values=count, failed=int(done.returncode != 0))


def fuzz(seconds: int, rng: random.Random) -> Counter[str]:
    """tests/fuzz.py, each target for so long; it ends at the first input on which a promise does not hold."""
    found: Counter[str] = Counter()
    for target in ("files", "templates", "values", "frames", "replies"):
        command = [sys.executable, str(ROOT / "tests/fuzz.py"), target, str(seconds), "--seed"]
        command.append(str(rng.randrange(1, 2**31)))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        found[f"{target} fuzzed"] = int(tried[1]) if tried else 0
        found["failed"] += done.returncode != 0
        if done.returncode:
            print(done.stderr[-4000:], file=sys.stderr)
    return found


BAD = ("different", "forged", "failed", "right_program_failed_after")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("kills", 20), ("damage", 20), ("programs", 50), ("values", 500), ("fuzz", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    print(f"seed {chosen.seed}", flush=True)
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        scratch, whole = Path(folder), Path(folder) / "whole"
        whole.mkdir()
        if chosen.kills or chosen.damage:
            done = run(whole)
            assert done.returncode == 0, done.stdout + done.stderr
        for name, call in (
            ("kills", lambda rng: kills(chosen.kills, rng, whole, scratch)),
            ("damage", lambda rng: damage(chosen.damage, rng, whole, scratch)),
            ("programs", lambda rng: programs(chosen.programs, rng)),
            ("values", lambda rng: any_value(chosen.values)),
            ("fuzz", lambda rng: fuzz(chosen.fuzz, rng)),
        ):
            if not getattr(chosen, name):
                continue
            start = time.monotonic()
            found = call(random.Random(f"{chosen.seed} {name}"))
            figures = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in found.items())
            print(f"{name}: {figures} ({time.monotonic() - start:,.0f} s)", flush=True)
            bad += sum(found[key] for key in BAD)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
