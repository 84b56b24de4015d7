"""The numbers that the paper reports, beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from xtf.reporting.cells import SETTING, Cell, _cell
from xtf.reporting.runs import Run

# -- the paper's numbers ------------------------------------------------------------------------------------


def reported_share(run: Run, metric: str) -> float | None:
    """What the paper reports for the settings of this run, as a share; None if it reports no such number."""
    cell = _cell(run.folder.parent, [run])
    number = _reported(_reported_table(None), cell.case, metric, _published_names(cell)) if _as_published(run) else ""
    return float(number) / 100 if number and " " not in number else None


def _reported_table(path: Path | None) -> list[dict[str, str]]:
    numbers = (path or files("xtf.reporting") / "reported.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(numbers)))


def _as_published(run: Run) -> bool:
    """Whether the run used the task's own data, so that the paper's number is about the same thing."""
    return not any(key.startswith(("task.", "model.")) for key in run.record["overrides"])


def _published_names(cell: Cell) -> list[str]:
    """How the paper's tables may call a setting, most specific first; none if they have no such setting."""
    extra = {key: value for key, value in cell.setting.items() if key not in SETTING}
    if cell.setting["method"] != "xtf":
        return [] if extra else [cell.setting["method"]]
    shifts = {name: float(extra.pop(f"threshold.{name}.shift", 0)) for name in ("ri", "kn", "tr")}
    if extra or cell.setting["threshold"] != "paper":
        return []
    if any(shifts.values()):
        return ["shift " + " ".join(f"{name}={100 * shift:+.0f}%" for name, shift in shifts.items())]
    scorer = "ri_kn_tr" if cell.setting["scorer"] == "xtf" else cell.setting["scorer"]
    ablation = f"scorer={scorer.replace('_', '+')}"
    return ["xtf", ablation] if scorer == "ri_kn_tr" else [ablation]


def _reported(table: Sequence[Mapping[str, str]], case: tuple[str, ...], metric: str, names: Sequence[str]) -> str:
    """What the paper reports, in per cent; the difference from base where only that is given."""
    key = ("task", "model", "tuning", "setting", "metric")
    values = {tuple(line[part] for part in key): line["value"] for line in reversed(table)}
    for name in names:
        if (*case, name, metric) in values:
            return values[*case, name, metric]
        if (*case, name, f"{metric} minus base") in values:
            return f"{float(values[*case, name, f'{metric} minus base']):+g} over base"
    return ""
