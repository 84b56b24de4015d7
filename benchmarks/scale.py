"""Rows from JSONL to mask.parquet and an export, by number of rows: seconds of each stage, and peak memory.

    python -m benchmarks.scale 10000,100000,1000000

Each number runs in a process of its own, and beside it `datasets.map` of the tokenizer alone over the same file. Scores
are drawn, for no model is measured here: everything else is what `stage=export` does. Memory is that which a process
cannot give back (anonymous pages, above what it has when the libraries are loaded); pages of mapped files, which the
system takes back when it needs memory, are listed as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import xtf.cli  # noqa: F401  # chooses Arrow's allocator, as for every command
from benchmarks.measure import Claim, console, report


def write_rows(path: Path, rows: int) -> None:
    """Word problems, no two alike, of about 90 tokens with their answers."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            apples, pears = number % 97 + 2, number % 89 + 3
            row = {
                "question": f"Basket {number} holds {apples} apples and {pears} pears. How many pieces is that?",
                "answer": f"There are {apples} + {pears} = <<{apples}+{pears}={apples + pears}>>{apples + pears} "
                f"pieces in it.\n#### {apples + pears}",
            }
            file.write(json.dumps(row) + "\n")


class Memory:
    """The most anonymous and resident memory of this process, in MiB, looked at every 20 ms."""

    def __init__(self) -> None:
        self.anonymous = self.resident = 0.0
        self.before = self._now()[0]
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _now(self) -> tuple[float, float]:
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return tuple(int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            anonymous, resident = self._now()
            self.anonymous = max(self.anonymous, anonymous - self.before)
            self.resident = max(self.resident, resident)


def drawn(model: Any, rows: Any, scorer: Any, **_: Any) -> Any:
    """Scores of rows as `xtf.scoring.scorers.score_rows` gives them, drawn."""
    from xtf.data.ragged import Sequences, as_lists, as_table

    flat = Sequences(as_table(rows))
    generator = np.random.default_rng(int(flat.ids[:50].sum()))
    tokens, table = int(flat.responses.sum()), flat.table
    logp = -generator.exponential(1.0, tokens).astype(np.float32)
    values = {"ri": generator.normal(size=tokens), "kn": -np.expm1(logp), "logp": logp, "tr": generator.random(tokens)}
    for name, column in values.items():
        table = table.append_column(name, as_lists(column.astype(np.float32), flat.responses))
    return table


class NoModel:
    """Stands where a model would."""

    device = torch.device("cpu")


def pipeline(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of the stages of an export from a file of rows."""
    import hydra

    from xtf.config.checks import resolve
    from xtf.config.compose import compose, register, to_config
    from xtf.config.home import HOME
    from xtf.pipeline import Pipeline
    from xtf.runtime.run_folder import RunFolder
    from xtf.scoring import scorers, store

    register()
    with hydra.initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        node = compose([f"task.train.path={file}", f"output_dir={folder}", "stage=export", "tuning.examples=null"])
    config = resolve(to_config(node))
    scorers.score_rows = drawn
    store.ShardScorer.model = NoModel()
    store.ShardScorer.tr_table = None
    run = Pipeline(config, {}, RunFolder.of(config, {}))
    seconds = {}

    @contextlib.contextmanager
    def timed(what: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[what] = time.perf_counter() - started

    with timed("token ids"):
        rows = len(run.inputs.encoded)
    with timed("scores"):
        passes = run.score()
    with timed("mask"):
        run.mask(passes)
    with timed("export"):
        from xtf.exports.write import export_run

        export_run(config, run.folder, run.manifest, lambda: run.inputs.encoded, run.inputs.tokenizer)
    return {"rows": rows, **seconds}


def tokenizer_alone(file: Path, folder: Path) -> dict[str, float]:
    """Seconds of `datasets.map` of the tokenizer over questions and answers."""
    import datasets
    from transformers import AutoTokenizer

    from xtf import tiny

    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    datasets.disable_progress_bars()
    started = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder))
    rows.map(
        lambda part: tokenizer([q + a for q, a in zip(part["question"], part["answer"], strict=True)]), batched=True
    )
    return {"rows": len(rows), "datasets.map": time.perf_counter() - started}


WORK = {"pipeline": pipeline, "datasets.map": tokenizer_alone}


def child(what: str, rows: int) -> None:
    """Prints what one process found, as JSON."""
    import datasets  # noqa: F401  # loaded before memory is looked at
    import pytorch_lightning  # noqa: F401
    import transformers  # noqa: F401

    import xtf.pipeline  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, rows)
        memory = Memory()
        with contextlib.redirect_stdout(sys.stderr):
            found = WORK[what](file, Path(folder) / "out")
        memory.ended.set()
        print(json.dumps(found | {"anonymous": memory.anonymous, "resident": memory.resident}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", default="10000,100000")
    parser.add_argument("--child", choices=WORK)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, int(arguments.rows))
        return 0
    counts, found = [int(one) for one in arguments.rows.split(",")], {}
    table = Table(title="Rows from JSONL to mask.parquet and export", title_justify="left")
    for heading in ("rows", "what", "seconds", "MiB", "MiB with mapped files"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for count in counts:
        for what in WORK:
            command = [sys.executable, "-m", "benchmarks.scale", str(count), "--child", what]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[what, count] = one = json.loads(done.stdout.splitlines()[-1])
            seconds = {name: value for name, value in one.items() if name not in ("rows", "anonymous", "resident")}
            parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
            one["seconds"] = sum(seconds.values())
            shown = (f"{count:,}", f"{what} ({parts})", f"{one['seconds']:.1f}")
            table.add_row(*shown, f"{one['anonymous']:,.0f}", f"{one['resident']:,.0f}")
    console.print(table)
    claims = []
    for few, many in pairwise(counts):
        before, after = found["pipeline", few], found["pipeline", many]
        claims.append(
            Claim(
                f"memory, {many:,} rows / {few:,} rows",
                np.array([after["anonymous"] / before["anonymous"]]),
                limit=1.1,
                note=f"{after['anonymous']:,.0f} / {before['anonymous']:,.0f} MiB",
            )
        )
        claims.append(
            Claim(
                f"time, {many:,} rows / {few:,} rows",
                np.array([after["seconds"] / before["seconds"]]),
                limit=1.2 * many / few,
                note=f"{after['seconds']:.1f} / {before['seconds']:.1f} s",
            )
        )
    largest = counts[-1]
    claims.append(
        Claim(
            f"time of {largest:,} rows / datasets.map of the tokenizer",
            np.array([found["pipeline", largest]["seconds"] / found["datasets.map", largest]["seconds"]]),
        )
    )
    return report("scale", claims, {"found": {f"{what}, {count}": one for (what, count), one in found.items()}})


if __name__ == "__main__":
    sys.exit(main())
