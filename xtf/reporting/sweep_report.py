"""The report of many runs: one table over settings and seeds, with what is missing left visible.

A *cell* is a setting (method, scorer, threshold and other overrides) of one task, model and tuning; its runs differ in
nothing but the seed. Differences are taken within a task, model and tuning, against plain fine-tuning and against the
random mask of the same scorer and threshold, over the seeds that both have finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Group
from rich.text import Text

from xtf.reporting.cells import CASE, Cell, cells_in, experiment_folders, find_cells, label_cells, names_of, sweep_title
from xtf.reporting.intervals import Estimate
from xtf.reporting.mask_report import has_results, mask_report
from xtf.reporting.pages import Picture, compared, counted, estimated, percent, picture, render_page, seconds, write_csv
from xtf.reporting.reported import reported_percent
from xtf.reporting.runs import (
    LOSS,
    arm_mean,
    base_mean,
    control_runs,
    is_control,
    means,
    over_base,
    over_control,
    recorded,
)
from xtf.runtime.progress import console
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.verdict import Level

CONTROLS = ("normal", "random")
BASE = "base model"
WORDS = ("", *(level.words for level in Level))  # of a mask without a verdict first


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
    reason: str = ""  # what decides it
    runs: Mapping[int, Path] = field(default_factory=dict)  # folders by seed


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
    if archive is not None:
        return cells_report(name, find_cells(name, runs_root, archive), out_dir)
    return jobs_report(name, *experiment_folders(name, runs_root), out_dir, own_name=True)


def jobs_report(
    name: str,
    folders: Sequence[Path],
    listed: Mapping[Path, Mapping[str, Any]],
    out_dir: Path,
    *,
    own_name: bool = False,
) -> list[Path]:
    """The same of the jobs of one sweep, which belongs to no experiment.

    Args:
        folders: where its runs lie, finished or not.
        listed: what it says of them, by their parent folders (`xtf.sweeps.jobs.entry`).
        own_name: whether `name` is one that a person gave, for the title.

    Raises:
        ValueError: none has finished.
    """
    trained = has_results(folders, [job["stage"] for job in listed.values()])
    cells = cells_in(folders, listed, trained)
    title = None if own_name else sweep_title(cells, trained)
    return (cells_report if trained else mask_report)(name, cells, out_dir, title)


def cells_report(name: str, cells: Sequence[Cell], out_dir: Path, title: str | None = None) -> list[Path]:
    """Writes the report of these cells and prints its table; `title` is by default the name and what there is.

    Raises:
        ValueError: no run has finished.
    """
    from xtf.reporting import figures  # Matplotlib, which a stage that reports nothing goes without

    labels, usual = label_cells(cells)
    rows = _rows(cells, labels)
    if not any(row.estimate for row in rows):
        raise ValueError(f"none of the {len(cells)} settings found has a finished run")
    further = _further(cells, labels)
    first, names = names_of(labels)
    names[BASE] = BASE
    tables, drawn = [], []
    for place, (case, metric) in enumerate(dict.fromkeys((row.case, row.metric) for row in rows)):
        part = [row for row in rows if (row.case, row.metric) == (case, metric)]
        table = _table(part, first, names, out_dir)
        bars = [(names[row.label], row.estimate) for row in part if row.estimate]
        figure = figures.accuracy(
            [(label, found.value, found.low, found.high) for label, found in bars], bars[0][1].unit
        )
        drawn.append(picture(figure, out_dir, f"{name}-{place}", table.title))
        tables.append(replace(table, picture=drawn[-1]))
    for case in dict.fromkeys(row.case for row in rows):
        if shares := _bars([row for row in rows if row.case == case]):
            stem = f"{name}-{'-'.join(case)}-pass_at_k"
            drawn.append(picture(figures.pass_at(shares), out_dir, stem, f"{' · '.join(case)}: pass@k"))
    answers, verdicts = _answers(rows, names), _verdicts(rows, names)
    worst = [level.name for level in Level if any(row.verdict == level.words for row in rows)]
    console.print(console_tables(tables, [*verdicts, *answers], usual))
    finished = sum(len(cell.runs) for cell in cells)
    context = {
        "title": title or f"{name}: {counted(len(cells), 'setting')}, {counted(finished, 'finished run')}",
        "verdicts": verdicts,
        "level": worst[-1] if worst else "",
        "answers": answers,
        "usual": usual,
        "tables": tables,
        "figures": drawn[len(tables) :],
        "further": [_further_table(case, further, first, names) for case in dict.fromkeys(one.case for one in further)],
        "commands": list(dict.fromkeys(str(run.record["command"]) for cell in cells for run in cell.runs.values())),
        "unfinished": [
            {"folder": str(folder), "why": RunFolder(folder).state()} for cell in cells for folder in cell.unfinished
        ],
    }
    lines = [*map(_csv_line, rows), *map(_further_line, further)]
    written = [write_csv(out_dir / f"{name}.csv", COLUMNS, lines), *(file for one in drawn for file in one.files)]
    return written + render_page("sweep", context, out_dir, name)


@dataclass(frozen=True)
class Shown:
    """A case's table of one metric as it is shown: on pages, and without its last columns on the console."""

    title: str
    first: str  # heading of the settings
    names: Mapping[str, str]  # of settings by label, without what the heading says
    rows: Sequence[TableRow]
    controls: Sequence[str]  # with something to compare
    reports: Mapping[str, Mapping[int, str]]  # of the runs behind a row, seen from the page
    picture: Picture | None = None

    @property
    def loss(self) -> bool:
        """Whether the metric is the loss."""
        return self.rows[0].metric == LOSS

    @property
    def unit(self) -> str:
        """Of differences."""
        return "nats a token" if self.loss else "percentage points"

    def any(self, name: str) -> bool:
        """Whether some row says something there."""
        return any(getattr(row, name) for row in self.rows)


def _table(rows: Sequence[TableRow], first: str, names: Mapping[str, str], out_dir: Path) -> Shown:
    reports = {}
    for row in rows:
        there = {seed: RunFolder(folder).reports / "report.html" for seed, folder in row.runs.items()}
        reports[row.label] = {
            seed: file.relative_to(out_dir).as_posix()
            for seed, file in there.items()
            if file.is_relative_to(out_dir) and file.is_file()
        }
    return Shown(
        title=f"{' · '.join(rows[0].case)}: {_words(rows[0].metric)}",
        first=first,
        names=names,
        rows=rows,
        controls=[one for one in ("base", *CONTROLS) if any(_told(row.differences.get(one)) for row in rows)],
        reports=reports,
    )


def _told(found: Estimate | str | None) -> bool:
    return isinstance(found, Estimate)


def _words(metric: str) -> str:
    return "loss, nats a token" if metric == LOSS else metric


def console_tables(tables: Sequence[Shown], answers: Sequence[str], usual: str) -> Group:
    """What a sweep shows at its end: a table for each case and metric, with the figures of its report.

    Names have a line of their own and intervals one below their values where the console is too narrow for both, so
    that 80 columns hold every table.
    """
    lines: list[Text] = []
    for shown in tables:
        heads = ["mean", *(f"over {control}" for control in shown.controls)]
        cells = [
            [estimated(row.estimate), *(compared(row.differences.get(one, "")) for one in shown.controls)]
            for row in shown.rows
        ]
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        apart = sum(widths) + 2 * len(widths) > console.width
        if apart:
            parts = [[text.partition(" [")[::2] for text in row] for row in cells]
            widths = [
                max(max(len(value), len(rest) + 1) for value, rest in column) for column in zip(*parts, strict=True)
            ]
            widths = [max(width, len(head)) for width, head in zip(widths, heads, strict=True)]

        def aligned(texts: Sequence[str], widths: Sequence[int] = widths) -> str:
            return "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))

        lines += [Text(""), Text(f"{shown.title}, 95 % intervals; differences in {shown.unit}", style="italic")]
        lines += [Text(shown.first), Text(aligned(heads))]
        for row, texts in zip(shown.rows, cells, strict=True):
            said = [counted(len(row.runs), "seed")] if row.runs else []
            said += [f"{percent(row.kept)} kept"] * (row.kept is not None)
            said += [f"{seconds(row.took)} of training" if row.took is not None else "", row.note]
            about = ", ".join(filter(None, said))
            lines.append(Text.assemble((shown.names[row.label], "bold"), f": {about}" if about else ""))
            if not row.estimate:
                continue
            if apart:
                halves = [text.partition(" [") for text in texts]
                lines.append(Text(aligned([value for value, _, _ in halves])))
                lines.append(Text(aligned([f"[{rest}" if rest else "" for _, _, rest in halves])))
            else:
                lines.append(Text(aligned(texts)))
    said = ([usual] if usual else []) + list(answers)
    return Group(*lines, Text(""), *(Text(sentence) for sentence in said))


def _verdicts(rows: Sequence[TableRow], named: Mapping[str, str]) -> list[str]:
    """What was said of the settings' masks before training, case by case: each level with its settings, the worst
    first, and what decides it, for the first of them."""
    said = []
    for case in dict.fromkeys(row.case for row in rows):
        found: dict[str, dict[str, str]] = {}  # what decides it, by setting
        for row in rows:
            if row.case == case and row.verdict:
                found.setdefault(row.verdict, {})[named[row.label]] = row.reason
        for words in sorted(found, key=WORDS.index, reverse=True):
            first, why = next(iter(found[words].items()))
            sentence = f"The verdict on the mask, {' · '.join(case)}: {words} ({', '.join(found[words])})."
            of = f"{first}: " if len(found[words]) > 1 else ""
            said.append(f"{sentence} {of}{why}" if why else sentence)
    return said


def _bars(rows: Sequence[TableRow]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """By metric and label the mean with its interval, where a case has several pass@k (figure 5); else nothing."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in rows:
        if row.metric.startswith("pass@") and row.estimate:
            each = row.estimate
            found.setdefault(row.metric, {})[row.label] = (each.value, each.low, each.high)
    return found if len(found) > 1 else {}


# -- the table ----------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell], named: Sequence[str]) -> list[TableRow]:
    """Case by case: the base model, then every setting of the sweep, those that this case lacks included."""
    labels = dict(zip(map(id, cells), named, strict=True))
    seeds = sorted({seed for cell in cells for seed in cell.runs})
    rows = []
    for case in dict.fromkeys(cell.case for cell in cells):
        here = [cell for cell in cells if cell.case == case]
        finished = [cell for cell in here if cell.runs]
        if not finished:
            rows += [_empty(case, labels[id(cell)], "-", "no finished run") for cell in here]
            continue
        for metric in means([run for cell in finished for run in cell.runs.values()]):
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
        return _empty(cell.case, BASE, metric, "not measured (evaluate.base=false)")
    return TableRow(cell.case, BASE, metric, base, {}, None, reported_percent(cell, metric, base=True), "")


def _row(cell: Cell, label: str, metric: str, peers: Sequence[Cell], seeds: Sequence[int]) -> TableRow:
    runs = list(cell.runs.values())
    differences: dict[str, Estimate | str] = {}
    base = over_base(runs, metric)
    if base is not None:
        differences["base"] = base
    for name in CONTROLS:
        differences[name] = _against(cell, peers, name, metric)
    number = reported_percent(cell, metric)
    times = [took for run in runs if (took := run.record["timing"].get("train")) is not None]
    masks = [run.record["mask"] for run in runs]
    worst = max(masks, key=lambda stats: WORDS.index(stats.get("verdict", "")))
    return TableRow(
        cell.case,
        label,
        metric,
        arm_mean(runs, metric),
        differences,
        fmean(stats["kept_share"] for stats in masks),
        number,
        _shortfall(cell, seeds),
        took=fmean(times) if times else None,
        verdict=worst.get("verdict", ""),
        reason=worst.get("verdict_reason", ""),  # records of earlier versions do not say
        runs={seed: run.folder for seed, run in cell.runs.items()},
    )


def _shortfall(cell: Cell, seeds: Sequence[int]) -> str:
    """What keeps a cell from having every seed of the sweep; empty if nothing does."""
    reasons = Counter(
        "failed" if RunFolder(folder).failure() else RunFolder(folder).state() for folder in cell.unfinished
    )
    said = [f"{counted(number, 'run')} {why}" for why, number in reasons.items()]
    missing = [str(seed) for seed in seeds if seed not in cell.runs]
    if missing and cell.runs:
        said.append(f"without seed {', '.join(missing)}")
    return "; ".join(said)


def _is_control(cell: Cell, name: str) -> bool:
    return is_control(name, cell.setting["method"], cell.setting["scorer"], cell.setting)


def _against(cell: Cell, peers: Sequence[Cell], name: str, metric: str) -> Estimate | str:
    """Minus the control `name`, or why not; empty for the control itself."""
    if _is_control(cell, name):
        return ""
    others = [run for peer in peers if _is_control(peer, name) for run in peer.runs.values()]
    runs = [cell.runs[seed] for seed in sorted(cell.runs)]
    control = control_runs(runs, others, name)
    return over_control(runs, control, metric) or ("no shared seed" if control else "no run")


def _mark_best(rows: list[TableRow]) -> list[TableRow]:
    """Marks the best mean, and after it the second, as far as their intervals part from all worse means'."""

    def height(row: TableRow, limit: str) -> float:  # of a loss the lowest is best
        value = float(getattr(row.estimate, limit))
        return -value if row.metric == LOSS else value

    near, far = ("high", "low") if rows and rows[0].metric == LOSS else ("low", "high")
    order = sorted((row for row in rows if row.estimate), key=lambda row: -height(row, "value"))
    marks: dict[int, str] = {}
    for place, mark in enumerate(("best", "second")):
        below = order[place + 1 :]
        if not below or not all(height(order[place], near) > height(row, far) for row in below):
            break
        marks[id(order[place])] = mark
    return [replace(row, mark=marks.get(id(row), "")) for row in rows]


NAMED = 6  # settings that a sentence names


def _answers(rows: Sequence[TableRow], named: Mapping[str, str]) -> list[str]:
    """Which settings differ from each control beyond chance, metric by metric and control by control."""
    said = []
    cases = list(dict.fromkeys(row.case for row in rows))
    apart = [part for part in range(len(CASE)) if len({case[part] for case in cases}) > 1]

    def listed(found: Sequence[TableRow]) -> str:
        names = [
            " ".join([named[row.label], *(["on"] if apart else []), *(row.case[k] for k in apart)]) for row in found
        ]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f" ({', '.join(names[:NAMED])}{more})" if names else ""

    for metric in dict.fromkeys(row.metric for row in rows if row.estimate):
        for control in ("base", *CONTROLS):
            signs = [
                (found.sign, row)
                for row in rows
                if row.metric == metric and isinstance(found := row.differences.get(control), Estimate)
            ]
            if not signs:
                if control != "base":
                    said.append(f"{metric}: nothing can be said against {control}, of which there is no such run.")
                continue
            better, worse = ([row for sign, row in signs if sign == wanted] for wanted in (1, -1))
            said.append(
                f"{metric} against {control}: of {counted(len(signs), 'comparison')}, {len(better)} better"
                f"{listed(better)} and {len(worse)} worse{listed(worse)} with an interval that leaves out zero; "
                f"{len(signs) - len(better) - len(worse)} undecided."
            )
    return said


# -- what is no mean over items -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Further:
    """A figure that a run has as a whole, of a setting or of the base model: the mean over its seeds.

    With one seed it is as recorded, with its interval; of several `low` and `high` are None.
    """

    case: tuple[str, ...]
    label: str
    metric: str
    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int
    unit: str

    @property
    def text(self) -> str:
        """As it stands in the table: intervals are in the runs' own reports."""
        return f"{self.value:.3f} nats" if self.unit == "nats" else percent(self.value)


def _further(cells: Sequence[Cell], labels: Sequence[str]) -> list[Further]:
    """Forgetting, general ability, unreadable answers and the like; what is 0 everywhere in a case is left out."""
    found: list[Further] = []
    for case in dict.fromkeys(cell.case for cell in cells):
        here = [(label, cell) for label, cell in zip(labels, cells, strict=True) if cell.case == case and cell.runs]
        if not here:
            continue
        runs = [run for _, cell in here for run in cell.runs.values()]
        compared_elsewhere = means(runs)
        base: Mapping[str, Any] = next(filter(None, (run.record["base_metrics"] for run in runs)), {})
        parts: list[tuple[str, list[Mapping[str, Any]]]] = [(BASE, [base])]
        parts += [(label, [run.record["metrics"] for run in cell.runs.values()]) for label, cell in here]
        case_rows = [
            _pooled(case, label, metric, [recorded(record[metric]) for record in records])
            for label, records in parts
            for metric in records[0]
            if metric not in compared_elsewhere and all(metric in record for record in records)
        ]
        told = {one.metric for one in case_rows if one.value}
        found += [one for one in case_rows if one.metric in told]
    return found


def _pooled(case: tuple[str, ...], label: str, metric: str, each: Sequence[Estimate]) -> Further:
    first, value = each[0], fmean(one.value for one in each)
    low, high = (first.low, first.high) if len(each) == 1 else (None, None)
    return Further(case, label, metric, value, low, high, len(each), first.items, first.unit)


def _further_table(
    case: tuple[str, ...], further: Sequence[Further], first: str, names: Mapping[str, str]
) -> dict[str, Any]:
    here = {(one.label, one.metric): one.text for one in further if one.case == case}
    labels, metrics = (list(dict.fromkeys(key[part] for key in here)) for part in (0, 1))
    rows = [[names[label], *(here.get((label, metric), "-") for metric in metrics)] for label in labels]
    return {"title": f"{' · '.join(case)}: further figures", "columns": [first, *metrics], "rows": rows}


# -- files --------------------------------------------------------------------------------------------------


DIFFERENCES = [f"{name}_{part}" for name in ("base", *CONTROLS) for part in ("difference", "low", "high", "seeds")]
NUMBERS = ("unit", "value", "low", "high", "seeds", "items")
LAST = ("kept_share", "training_seconds", "verdict", "mark", "reported_percent", "note")
COLUMNS = (*CASE, "setting", "metric", *NUMBERS, *DIFFERENCES, *LAST)


def _csv_line(row: TableRow) -> list[Any]:
    """A row of the tables under `COLUMNS`; figures and differences as shares, of a loss in nats."""
    found = row.estimate
    values: list[Any] = [None] * len(NUMBERS)
    if found:
        values = [found.unit, found.value, found.low, found.high, found.seeds, found.items]
    for name in ("base", *CONTROLS):
        each = row.differences.get(name)
        values += [each.value, each.low, each.high, each.seeds] if isinstance(each, Estimate) else [None] * 4
    last = [row.kept, row.took, row.verdict, row.mark, row.reported, row.note]
    return [*row.case, row.label, row.metric, *values, *last]


def _further_line(one: Further) -> list[Any]:
    values = [one.unit, one.value, one.low, one.high, one.seeds, one.items]
    return [*one.case, one.label, one.metric, *values, *[None] * (len(DIFFERENCES) + len(LAST))]
