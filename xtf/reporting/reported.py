"""The numbers that the paper reports, beside ours."""

from __future__ import annotations

import csv
import functools
import io
from importlib.resources import files

from xtf.reporting.cells import SETTING, Cell, cell_of
from xtf.reporting.runs import Run
from xtf.runtime.run_folder import RunFolder


@functools.cache
def table() -> list[dict[str, str]]:
    """The lines of reported.csv."""
    numbers = (files("xtf.reporting") / "reported.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(numbers)))


def reported_share(run: Run, metric: str) -> float | None:
    """What the paper reports for the settings of this run, as a share; None if it reports no such number."""
    number = reported_percent(cell_of(run.folder.parent, [run]), metric)
    return float(number) / 100 if number and " " not in number else None


def reported_percent(cell: Cell, metric: str, base: bool = False) -> str:
    """What the paper reports for a cell with finished runs, or for its base model, in per cent.

    The difference from base where only that is given; empty where there is nothing, or the runs did not use the task's
    own data, so that the paper's number is about something else.
    """
    run = next(iter(cell.runs.values()))
    if any(key.startswith(("task.", "model.")) for key in run.record["overrides"]):
        return ""
    key = ("task", "model", "tuning", "setting", "metric")
    values = {tuple(line[part] for part in key): line["value"] for line in reversed(table())}
    for name in ["base"] if base else _published_names(cell):
        if (*cell.case, name, metric) in values:
            return values[*cell.case, name, metric]
        if (*cell.case, name, f"{metric} minus base") in values:
            return f"{float(values[*cell.case, name, f'{metric} minus base']):+g} over base"
    return ""


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


def reported_of_mask(folder: RunFolder, number: str, setting: str, metric: str) -> str:
    """What the table or figure `number` of the paper reports for a run that has no overrides of its own; else empty."""
    task, model, _ = folder.case
    key = {"table": number, "task": task, "model": model, "setting": setting, "metric": metric}
    lines = () if folder.overridden else table()
    return next((line["value"] for line in lines if key.items() <= line.items()), "")
