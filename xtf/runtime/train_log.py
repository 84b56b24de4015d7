"""A training's train_log.csv: a line for every optimizer step, which survives a kill and is read by every report."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtf.runtime.artifacts import check, naming, write_atomic

INTEGERS = ("step", "epoch", "kept_tokens", "tokens")
COLUMNS = (
    *("step", "epoch", "loss", "kept_tokens", "tokens", "tokens_per_second", "learning_rate", "grad_norm"),
    "validation_loss",
)


def write_log(path: Path, rows: Sequence[Mapping[str, Any]], *, sealed: bool = False) -> None:
    """Write the whole file anew."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)

    write_atomic(path, write, sealed=sealed)


def add_to_log(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line."""
    with naming(path), path.open("a", newline="") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)


def read_log(path: Path, *, finished: bool = False) -> list[dict[str, Any]]:
    """The lines as numbers; None where a step has no value. A line cut off by a kill is left out.

    Raises:
        DamagedError: the log of a `finished` training is not as it was written.
    """
    if not path.exists():
        return []
    if finished:
        check(path, "delete it to report without the loss curve")
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if None not in line.values()]
    return [
        {name: None if value == "" else (int if name in INTEGERS else float)(value) for name, value in line.items()}
        for line in lines
    ]
