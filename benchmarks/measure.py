"""Timing things against each other on a machine that may not be quiet: alternating repeats, ratios, spread."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
console = Console(width=110)


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat: on the wall clock, and of CPU time, which other processes disturb less."""

    wall: np.ndarray
    cpu: np.ndarray


def alternate(subjects: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Times]:
    """Runs the subjects in turn, once to warm up and then `repeats` times."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in subjects}
    for repeat in range(repeats + 1):
        for name, run in subjects.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: Times(*np.array(pairs).T) for name, pairs in seconds.items()}


@dataclass(frozen=True)
class Claim:
    """A figure that was measured, nearly always a ratio, and what is promised of it.

    `ratios` are of repeats that ran next to each other. The promise is broken only by more than the noise: if even the
    better quartile of the ratios is on the wrong side of `limit`. None promises nothing.
    """

    what: str
    ratios: np.ndarray
    limit: float | None = None
    aim: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    def broken(self) -> bool:
        if self.limit is None:
            return False
        if self.at_least:
            return bool(np.quantile(self.ratios, 0.75) < self.limit)
        return bool(np.quantile(self.ratios, 0.25) > self.limit)

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "median": self.median,
            "ratios": self.ratios.tolist(),
            "limit": self.limit,
            "aim": self.aim,
            "at_least": self.at_least,
            "broken": self.broken(),
            "note": self.note,
        }


def profile(what: str, run: Callable[[], Any], rows: int = 12) -> None:
    """Prints the operations that take most of the CPU time of one call of `run`, each without what it calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    table = Table(title=f"{what}: {total / 1e6:.1f} s", title_justify="left")
    for heading in ("operation", "share", "calls"):
        table.add_column(heading, justify="left" if heading == "operation" else "right")
    for event in events[:rows]:
        table.add_row(event.key, f"{event.self_cpu_time_total / total:.1%}", f"{event.count:,}")
    console.print(table)


def report(name: str, claims: Sequence[Claim], details: Mapping[str, Any]) -> int:
    """Prints the table, writes results/<name>.json, and returns the exit status: 1 if a promise is broken."""
    table = Table(title=name, title_justify="left")
    for heading in ("figure", "median", "quartiles", "promised", "aim", "", "note"):
        table.add_column(heading, justify="left" if heading in ("figure", "note", "") else "right")
    for claim in claims:
        low, high = np.quantile(claim.ratios, [0.25, 0.75])
        sign = ">=" if claim.at_least else "<="
        table.add_row(
            claim.what,
            f"{claim.median:.3g}",
            f"{low:.3g} - {high:.3g}" if len(claim.ratios) > 1 else "",
            "" if claim.limit is None else f"{sign} {claim.limit:g}",
            "" if claim.aim is None else f"{sign} {claim.aim:g}",
            "" if claim.limit is None else "broken" if claim.broken() else "kept",
            claim.note,
        )
    console.print(table)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    record = {"machine": machine(), "claims": [claim.to_dict() for claim in claims], **details}
    # of a file that was given its name, and no folder of this machine
    file.write_text(json.dumps(record, indent=1, default=lambda path: path.name) + "\n", encoding="utf-8")
    console.print(f"written to {file}")
    return int(any(claim.broken() for claim in claims))


def machine() -> dict[str, Any]:
    """Where, when and with what the figures were taken."""
    return {
        "command": " ".join(["python -m", Path(sys.argv[0]).stem, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "pyarrow")},
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
