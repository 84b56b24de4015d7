"""The report of many runs: one table over settings and seeds, with what is missing left visible.

A *cell* is a setting (method, scorer, threshold and other overrides) of one task, model and tuning; its runs differ in
nothing but the seed. Differences are taken within a task, model and tuning, against plain fine-tuning and against the
random mask of the same scorer and threshold, over the seeds that both have finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from xtf.reporting.cells import CASE, SETTING, Cell, cell_of, experiment_folders, find_cells
from xtf.reporting.intervals import Estimate, difference
from xtf.reporting.mask_report import has_results, mask_report
from xtf.reporting.pages import counted, estimated, percent, picture, points, render_page, seconds, write_csv
from xtf.reporting.reported import reported_percent
from xtf.reporting.runs import Run, arm_mean, base_mean, by_item, control_runs, is_control, load_run, over_base
from xtf.runtime.progress import console
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.verdict import Level

CONTROLS = ("normal", "random")
BASE = "base model"
WORDS = ("", *(level.words for level in Level))  # of a mask without a verdict first
UNKNOWN = "overrides"  # of a cell without a run: its folder has a hash of them alone


@dataclass(frozen=True)
class TableRow:
    """One line of the table: a setting of a case, or the base model, and one metric."""

    case: tuple[str, ...]
    label: str
    metric: str
    estimate: Estimate | None  # None: no finished run
    differences: Mapping[str, Estimate | str]  # by "base", "normal", "random"; a reason where there is none
    kept: float | None  # mean share of response tokens that train
    reported: str
    note: str
    mark: str = ""  # "best" or "second", where the intervals part
    took: float | None = None  # mean seconds of training
    verdict: str = ""  # on the mask; the worst of the seeds

    @property
    def seeds(self) -> str:
        """How many runs stand behind the mean; the base model is not trained, so it has none."""
        return "" if self.label == BASE else str(self.estimate.seeds if self.estimate else 0)


def sweep_report(name: str, runs_root: Path, out_dir: Path, archive: Path | None = None) -> list[Path]:
    """Writes <name>.csv, .md, .html and figures for the experiment of that name, and prints its table; returns their
    paths.

    Runs that did not finish are listed, not skipped.

    Args:
        runs_root: <output_dir>/runs.
        archive: see `find_cells`.

    Raises:
        ValueError: no run was found, or none has finished.
    """
    if archive is None:
        folders, listed = experiment_folders(name, runs_root)
        if not has_results(folders, [job["stage"] for job in listed.values()]):
            return mask_report(name, folders, out_dir)
    return cells_report(name, find_cells(name, runs_root, archive), out_dir)


def jobs_report(name: str, folders: Sequence[Path], stages: Sequence[str], out_dir: Path) -> list[Path]:
    """The same of the jobs of one sweep, which belongs to no experiment.

    Args:
        folders: where its runs lie, finished or not.
        stages: what it asked of them.

    Raises:
        ValueError: none has finished.
    """
    if not has_results(folders, stages):
        return mask_report(name, folders, out_dir)
    parents: dict[Path, list[Path | Run]] = {}
    for folder in folders:
        found = load_run(folder) if RunFolder(folder).has_results else folder
        parents.setdefault(folder.parent, []).append(found)
    return cells_report(name, [cell_of(parent, found) for parent, found in parents.items()], out_dir)


def cells_report(name: str, cells: Sequence[Cell], out_dir: Path) -> list[Path]:
    """Writes the report of these cells and prints its table.

    Raises:
        ValueError: no run has finished.
    """
    from xtf.reporting import figures  # Matplotlib, which a stage that reports nothing goes without

    rows = _rows(cells)
    if not any(row.estimate for row in rows):
        raise ValueError(f"none of the {len(cells)} settings found has a finished run")
    written = [write_csv(out_dir / f"{name}.csv", COLUMNS, map(_csv_line, rows))]
    tables = []
    for place, (case, metric) in enumerate(dict.fromkeys((row.case, row.metric) for row in rows)):
        part = [row for row in rows if (row.case, row.metric) == (case, metric)]
        drawn = [(row.label, row.estimate) for row in part if row.estimate]
        figure = figures.accuracy([(label, found.value, found.low, found.high) for label, found in drawn])
        title = f"{' · '.join(case)}: {metric}"
        shown = picture(figure, out_dir, f"{name}-{place}", title)
        written += shown.files
        tables.append((title, part, shown))
    figures_of_k = []
    for case in dict.fromkeys(row.case for row in rows):
        bars = _bars([row for row in rows if row.case == case])
        if bars:
            stem = f"{name}-{'-'.join(case)}-pass_at_k"
            shown = picture(figures.pass_at(bars), out_dir, stem, f"{' · '.join(case)}: pass@k")
            written += shown.files
            figures_of_k.append(shown)
    finished = sum(len(cell.runs) for cell in cells)
    console.print(console_tables(rows))
    context = {
        "title": f"{name}: {counted(len(cells), 'setting')}, {counted(finished, 'finished run')}",
        "answers": [*_answers(rows), *_verdicts(rows)],
        "tables": tables,
        "figures": figures_of_k,
        "unfinished": [
            {"folder": str(folder), "why": RunFolder(folder).state()} for cell in cells for folder in cell.unfinished
        ],
    }
    return written + render_page("sweep", context, out_dir, name)


def console_tables(rows: Sequence[TableRow]) -> Group:
    """What a sweep shows at its end: a table for each case and metric, with the figures of its report."""
    tables = []
    for case, metric in dict.fromkeys((row.case, row.metric) for row in rows):
        title = f"{' · '.join(case)}: {metric}, 95 % intervals; differences in points"
        shown = [row for row in rows if (row.case, row.metric) == (case, metric)]
        # A key that alone tells all settings is the column's name, which leaves 80 columns for the figures.
        pairs = [row.label.split("=") for row in shown if row.label != BASE]
        key = pairs[0][0] if pairs and all(len(pair) == 2 and pair[0] == pairs[0][0] for pair in pairs) else ""
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(key or "setting", overflow="fold", no_wrap=bool(key))
        for name in ("mean", "over base", "over normal", "over random", "kept", "training", "seeds"):
            table.add_column(name, justify="right")
        for row in shown:
            said = [row.differences.get(name, "") for name in ("base", *CONTROLS)]
            table.add_row(
                row.label.removeprefix(f"{key}=") if key else row.label,
                estimated(row.estimate) if row.estimate else row.note or "-",
                *(found if isinstance(found, str) else points(found) for found in said),
                "" if row.kept is None else percent(row.kept),
                "" if row.took is None else seconds(row.took),
                row.seeds,
            )
        tables.append(table)
    return Group(*tables, *(Text(sentence) for sentence in (*_answers(rows), *_verdicts(rows))))


def _verdicts(rows: Sequence[TableRow]) -> list[str]:
    """What was said of the settings' masks before training, case by case: one sentence for each, the worst first."""
    said = []
    for case in dict.fromkeys(row.case for row in rows):
        found: dict[str, list[str]] = {}
        for row in rows:
            if row.case == case and row.verdict:
                found.setdefault(row.verdict, []).append(row.label)
        for words in sorted(found, key=WORDS.index, reverse=True):
            labels = ", ".join(dict.fromkeys(found[words]))
            said.append(f"The verdict on the mask, {' · '.join(case)}: {words} ({labels}).")
    return said


def _bars(rows: Sequence[TableRow]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By metric and label the mean with its interval, where a case has several pass@k (figure 5); else nothing."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        if row.metric.startswith("pass@") and row.estimate:
            each = row.estimate
            found.setdefault(row.metric, {})[row.label] = (each.value, each.low, each.high)
    return found if len(found) > 1 else {}


def _labels(cells: Sequence[Cell]) -> list[str]:
    """What tells each cell from the others of its case: the keys that are not the same in all cells of some case.

    What differs between cases alone, as the paths of their rows, tells no setting from another.
    """
    known = [cell for cell in cells if UNKNOWN not in cell.setting]
    keys = dict.fromkeys(key for cell in known for key in cell.setting)
    values: dict[tuple[Any, ...], set[Any]] = {}
    for cell in known:
        for key in keys:
            values.setdefault((cell.case, key), set()).add(cell.setting.get(key))
    telling = [key for key in keys if any(len(values[cell.case, key]) > 1 for cell in known)] or ["method"]
    labels = []
    for cell in cells:
        shown = (*SETTING, UNKNOWN) if UNKNOWN in cell.setting else [key for key in telling if key in cell.setting]
        labels.append(" ".join(f"{key}={cell.setting[key]}" for key in shown) or "nothing overridden")
    return labels


# -- the table ----------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell]) -> list[TableRow]:
    """Case by case: the base model, then every setting of the sweep, those that this case lacks included."""
    labels = dict(zip(map(id, cells), _labels(cells), strict=True))
    seeds = sorted({seed for cell in cells for seed in cell.runs})
    rows = []
    for case in dict.fromkeys(cell.case for cell in cells):
        here = [cell for cell in cells if cell.case == case]
        finished = [cell for cell in here if cell.runs]
        if not finished:
            rows += [_empty(case, labels[id(cell)], "-", "no finished run") for cell in here]
            continue
        record = next(iter(finished[0].runs.values())).record
        metrics = [name for name in record["metrics"] if by_item(name)]
        for metric in metrics:
            part = [_base_row(finished[0], metric)]
            for label in dict.fromkeys(labels.values()):
                cell = next((cell for cell in here if labels[id(cell)] == label), None)
                if cell is None:
                    part.append(_empty(case, label, metric, "no run"))
                elif not cell.runs:
                    part.append(_empty(case, label, metric, _shortfall(cell, seeds)))
                else:
                    part.append(_row(cell, label, metric, finished, seeds))
            rows += _mark_best(part)
    return rows


def _empty(case: tuple[str, ...], label: str, metric: str, note: str) -> TableRow:
    return TableRow(case, label, metric, None, {}, None, "", note)


def _base_row(cell: Cell, metric: str) -> TableRow:
    base = base_mean(list(cell.runs.values()), metric)
    if base is None:
        return _empty(cell.case, BASE, metric, "not graded (evaluate.base=false)")
    return TableRow(cell.case, BASE, metric, base, {}, None, reported_percent(cell, metric, base=True), "")


def _row(cell: Cell, label: str, metric: str, peers: Sequence[Cell], seeds: Sequence[int]) -> TableRow:
    runs = list(cell.runs.values())
    differences: dict[str, Estimate | str] = {}
    base = over_base(runs, metric)
    if base is not None:
        differences["base"] = base
    for name in CONTROLS:
        differences[name] = _against(cell, peers, name, metric)
    kept = sum(run.record["mask"]["kept_share"] for run in runs) / len(runs)
    number = reported_percent(cell, metric)
    times = [took for run in runs if (took := run.record["timing"].get("train")) is not None]
    return TableRow(
        cell.case,
        label,
        metric,
        arm_mean(runs, metric),
        differences,
        kept,
        number,
        _shortfall(cell, seeds),
        took=fmean(times) if times else None,
        verdict=max((str(run.record["mask"].get("verdict", "")) for run in runs), key=WORDS.index),
    )


def _shortfall(cell: Cell, seeds: Sequence[int]) -> str:
    """What keeps a cell from having every seed of the sweep; empty if nothing does."""
    reasons = Counter(
        "failed" if RunFolder(folder).failure() else RunFolder(folder).state() for folder in cell.unfinished
    )
    said = [f"{counted(number, 'run')} {why}" for why, number in reasons.items()]
    missing = [str(seed) for seed in seeds if seed not in cell.runs]
    if missing and cell.runs:
        said.append(f"no seed {', '.join(missing)}")
    return "; ".join(said)


def _is_control(cell: Cell, name: str) -> bool:
    return is_control(name, cell.setting["method"], cell.setting["scorer"], cell.setting)


def _against(cell: Cell, peers: Sequence[Cell], name: str, metric: str) -> Estimate | str:
    """Minus the control `name`, or why not; empty for the control itself."""
    if _is_control(cell, name):
        return ""
    others = [run for peer in peers if _is_control(peer, name) for run in peer.runs.values()]
    control = control_runs(list(cell.runs.values()), others, name)
    shared = sorted(cell.runs.keys() & control.keys())
    if not shared:
        return "no shared seed" if control else "no run"
    return difference(*([side[seed].verdicts(metric) for seed in shared] for side in (cell.runs, control)))


def _mark_best(rows: list[TableRow]) -> list[TableRow]:
    """Marks the highest mean, and below it the second, as far as their intervals lie above all lower means'."""
    order = sorted((row for row in rows if row.estimate), key=lambda row: -row.estimate.value)  # type: ignore[union-attr]
    marks: dict[int, str] = {}
    for place, mark in enumerate(("best", "second")):
        if len(order) < place + 2:
            break
        own, below = order[place].estimate, [row.estimate for row in order[place + 1 :]]
        if own is None or not all(other is not None and own.low > other.high for other in below):
            break
        marks[id(order[place])] = mark
    return [replace(row, mark=marks.get(id(row), "")) for row in rows]


def _answers(rows: Sequence[TableRow]) -> list[str]:
    """How many settings differ from each control beyond chance, control by control."""
    said = []
    for control in ("base", *CONTROLS):
        found = [row.differences[control] for row in rows if isinstance(row.differences.get(control), Estimate)]
        estimates = [each for each in found if isinstance(each, Estimate)]
        if not estimates:
            if control != "base":
                said.append(f"Nothing can be said against {control}: this sweep has no such run.")
            continue
        better = sum(each.low > 0 for each in estimates)
        worse = sum(each.high < 0 for each in estimates)
        said.append(
            f"Against {control}: of {counted(len(estimates), 'comparison')}, {better} better and {worse} "
            f"worse with an interval that leaves out zero; {len(estimates) - better - worse} undecided."
        )
    return said


# -- files --------------------------------------------------------------------------------------------------


DIFFERENCES = [f"{name}_{part}" for name in ("base", *CONTROLS) for part in ("difference", "low", "high", "seeds")]
NUMBERS = ("value", "low", "high", "seeds", "items")
LAST = ("kept_share", "training_seconds", "verdict", "mark", "reported_percent", "note")
COLUMNS = (*CASE, "setting", "metric", *NUMBERS, *DIFFERENCES, *LAST)


def _csv_line(row: TableRow) -> list[Any]:
    """A row of the tables under `COLUMNS`; figures as shares, differences likewise."""
    found = row.estimate
    values: list[Any] = [found.value, found.low, found.high, found.seeds, found.items] if found else [None] * 5
    for name in ("base", *CONTROLS):
        each = row.differences.get(name)
        values += [each.value, each.low, each.high, each.seeds] if isinstance(each, Estimate) else [None] * 4
    last = [row.kept, row.took, row.verdict, row.mark, row.reported, row.note]
    return [*row.case, row.label, row.metric, *values, *last]
