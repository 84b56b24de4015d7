"""The analysis that experiments/history/study.md announces, from the runs of its sweeps.

    python -m xtf.study                                      # outputs/ -> outputs/reports/study
    python -m xtf.study --source experiments/history/results --to X  # the same from the stored runs

Arms and contrasts are those of `xtf.study.arms`, with the bootstrap of `xtf.reporting.intervals`. What has not been run
is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from xtf.reporting import figures
from xtf.reporting.cells import Cell, NoRuns, find_cells
from xtf.reporting.intervals import Comparison, Effect, Estimate, Pooled, family, mean, random_effects
from xtf.reporting.pages import Picture, Section, estimated, percent, picture, render_sections, seconds, write_csv
from xtf.reporting.runs import TEACHER_FORCED
from xtf.study.arms import (
    Answer,
    Arm,
    Study,
    answer,
    decile_name,
    hypotheses_section,
    interval_text,
    report_command,
    shown,
)

STUDY = ("study_methods", "study_attributes", "study_deciles", "study_oracle")
CONTROLS = ("normal", "random")
DECILES = range(1, 11)
NOISY = 0.3  # the share of planted noise that the hypotheses name


def hypotheses(study: Study, task: str) -> list[Answer]:
    """H1 to H7 of experiments/history/study.md, each with the one analysis that stands there."""

    def versus(name: str, control: str, share: float = 0.0) -> tuple[str, Effect | None]:
        return f"{name} - {control}, noise {share:.0%}", study.minus(task, share, name, control)

    def forgetting(name: str) -> tuple[str, Effect | None]:
        parts = ((1.0, Arm(task, 0.0, name)), (-1.0, Arm(task, 0.0, "normal")))
        return f"forgetting loss, {name} - normal", study.figure("forgetting_loss", *parts)

    def slope(left_out: bool) -> Effect | None:
        centred = np.arange(10) - 4.5
        weights = (centred / (centred**2).sum()).tolist()
        arms = [Arm(task, 0.0, decile_name(number, left_out)) for number in DECILES]
        return study.combination(*zip(weights, arms, strict=True))

    noisier = study.combination(
        (1.0, Arm(task, NOISY, "xtf")),
        (-1.0, Arm(task, NOISY, "normal")),
        (-1.0, Arm(task, 0.0, "xtf")),
        (1.0, Arm(task, 0.0, "normal")),
    )
    return [
        answer(
            "H1",
            "XTF helps on data as they are",
            [versus("xtf", "normal")],
            lambda s: {1: "supported", 0: "undecided", -1: "refuted"}[s[0]],
        ),
        answer(
            "H2",
            "XTF helps more, the more noise there is",
            [(f"(xtf - normal at {NOISY:.0%}) - (xtf - normal at 0%)", noisier)],
            lambda s: {1: "supported", 0: "no support", -1: "refuted"}[s[0]],
        ),
        answer(
            "H3",
            "which tokens are dropped matters, not just how many",
            [versus(n, "random", share) for share in (0.0, NOISY) for n in ("xtf", "low_loss", "high_loss")],
            lambda s: "supported" if any(s) else "refuted",
        ),
        answer(
            "H4",
            "one attribute carries the effect of the union",
            [versus(n, "normal") for n in ("xtf", "ri", "kn", "tr")],
            lambda s: "supported" if s[0] and s[0] in s[1:] else "refuted",
        ),
        answer(
            "H5",
            "tokens of low base probability teach, those of high probability do not",
            [
                ("slope of accuracy over deciles, one alone, per decile", slope(False)),
                ("slope of accuracy over deciles, one left out, per decile", slope(True)),
            ],
            lambda s: "supported" if s == [-1, 1] else "refuted",
        ),
        answer(
            "H6",
            "dropping what the base model knows preserves it",
            [forgetting(n) for n in ("xtf", "kn")],
            lambda s: "refuted" if 1 in s else "supported" if s == [-1, -1] else "undecided",
            unit="nats",
        ),
        answer(
            "H7",
            "a reference model finds planted noise where the base model cannot",
            [versus(n, "normal", NOISY) for n in ("slm", "token_cleaning")],
            lambda s: "supported" if 1 in s else "refuted" if s == [-1, -1] else "undecided",
        ),
    ]


# -- every arm ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmRow:
    """Means over an arm's seeds. `figures` has the teacher-forced ones, Student's interval over the seeds."""

    arm: Arm
    accuracy: Estimate
    unreadable: float  # share of the answers in which none was found
    kept_tokens: float  # supervised, over all epochs
    steps: float
    figures: Mapping[str, Effect | None]
    scoring_seconds: float  # scores and reference model
    training_seconds: float


def arm_row(study: Study, arm: Arm) -> ArmRow:
    """The means of an arm's finished runs; seconds are medians."""
    runs = list(study.runs[arm].values())

    def average(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    timing = [run.record["timing"] for run in runs]
    return ArmRow(
        arm,
        mean([study.verdicts(arm, run.seed) for run in runs]),
        average([run.record["metrics"]["unreadable"]["value"] for run in runs]),
        average([run.record["training"]["kept_tokens"] for run in runs]),
        average([run.record["training"]["steps"] for run in runs]),
        {name: study.figure(name, (1.0, arm)) for name in TEACHER_FORCED},
        median(entry.get("score", 0.0) + entry.get("reference", 0.0) for entry in timing),
        median(entry["train"] for entry in timing),
    )


def against_controls(study: Study, task: str, share: float) -> dict[str, list[tuple[Arm, Comparison]]]:
    """Every arm minus each control, by control: one family of comparisons each."""
    found = {}
    for control in CONTROLS:
        names = [name for name in study.names(task, share) if name != control]
        effects = {name: study.minus(task, share, name, control) for name in names}
        there = {name: one for name, one in effects.items() if one is not None}
        compared = family(list(there.values()))
        found[control] = [(Arm(task, share, name), one) for name, one in zip(there, compared, strict=True)]
    return found


class PooledRow(NamedTuple):
    """An arm minus a control over several tasks; `pooled` is None where a task shows no spread at all."""

    share: float
    arm: str
    control: str
    tasks: tuple[str, ...]
    pooled: Pooled | None


def over_tasks(study: Study) -> list[PooledRow]:
    """The mixed view: an arm minus a control, pooled over the tasks that have both, where they are two or more.

    Limits end at the 100 points that a difference of shares cannot pass.
    """
    rows = []
    for share in sorted({arm.share for arm in study.runs}):
        for control in CONTROLS:
            for name in dict.fromkeys(n for task in study.tasks for n in study.names(task, share)):
                pairs = {task: study.minus(task, share, name, control) for task in study.tasks}
                there = {task: one for task, one in pairs.items() if one is not None}
                if name == control or len(there) < 2:
                    continue
                variances = [one.student.deviation**2 for one in there.values()]
                pooled = None
                if all(variances):
                    pooled = random_effects([one.value for one in there.values()], variances)
                    pooled = replace(pooled, low=max(-1.0, pooled.low), high=min(1.0, pooled.high))
                rows.append(PooledRow(share, name, control, tuple(there), pooled))
    return rows


# -- the report ---------------------------------------------------------------------------------------------


def load(source: Path) -> tuple[Study, list[str]]:
    """The study from an output folder (it has runs/) or a folder of archives, and which sweeps have no run there.

    Raises:
        ValueError: none has.
    """
    archive = None if (source / "runs").is_dir() else source
    cells: list[Cell] = []
    missing = []
    for name in STUDY:
        try:
            cells += find_cells(name, source / "runs", archive)
        except NoRuns as error:
            missing.append(str(error))
    study = Study(cells)
    if not study.runs:
        raise ValueError(f"no run of the study under {source}: " + "; ".join(missing or ["none has finished"]))
    return study, missing


def study_report(source: Path, out_dir: Path) -> list[Path]:
    """Writes study.md, study.html, comparisons.csv, arms.csv, tasks.csv (of several tasks) and figures; their paths.

    Raises:
        ValueError: there is no finished run of the study in `source` (see `load`).
    """
    study, missing = load(source)
    rows = {arm: arm_row(study, arm) for arm in study.runs}
    answers = {task: hypotheses(study, task) for task in study.tasks}
    versus = {task: {s: against_controls(study, task, s) for s in study.shares(task)} for task in study.tasks}
    pooled = over_tasks(study)
    sections: list[Section] = []
    for task in study.tasks:
        here = [row for arm, row in rows.items() if arm.task == task and "decile" not in arm.name]
        sections += [
            hypotheses_section(task, answers[task], [HOLM_TEXT, PLANNED_TEXT, STUDENT_TEXT]),
            _effects_section(study, task, versus[task], rows, out_dir),
            _tokens_section(study, task, here, out_dir),
            _losses_section(task, here, study.base(task)),
            _cost_section(task, here),
            *_deciles_sections(study, task, rows, out_dir),
        ]
    sections.append(_tasks_section(pooled, versus, out_dir))
    lacking = missing + [f"not finished: {folder}" for folder in study.unfinished]
    if lacking:
        sections.append(Section("What is missing", lacking))
    compared = [line for task in study.tasks for line in _csv_lines(task, answers[task], versus[task])]
    written = [write_csv(out_dir / "comparisons.csv", COMPARISON_COLUMNS, compared)]
    if pooled:
        written.append(write_csv(out_dir / "tasks.csv", POOLED_COLUMNS, map(_pooled_line, pooled)))
    written.append(write_csv(out_dir / "arms.csv", ARM_COLUMNS, map(_arm_line, rows.values())))
    count = sum(len(runs) for runs in study.runs.values())
    return written + render_sections(f"The study: {count} finished runs", sections, out_dir, "study")


DECILES_TEXT = (
    "Decile 1 holds the tenth of the training tokens that the base model found least likely. Points with 95 % "
    "intervals over seeds and items; the lines are normal fine-tuning on all tokens and the untrained model."
)
HOLM_TEXT = (
    "Differences in points of accuracy, paired by seed and item, bootstrap over both. Each interval is at its own "
    "level by Holm: one that leaves out zero decides, with 5 % error over all comparisons of the question."
)
STUDENT_TEXT = (
    "Where seeds differ more than items do, few of them make the bootstrap too short. Student's t, seeds and items "
    "both drawn at random and with Holm's levels of its own, is not: do not build on what it does not confirm."
)
PLANNED_TEXT = (
    "Readings go by the bootstrap, as planned, and are those of a whole hypothesis. Forgetting is in nats, by "
    "Student's t over the seeds alone."
)

ORACLE_TEXT = (
    "`oracle` drops the planted tokens, those that are planted in part included. It is no part of the plan: it was "
    "added after the first results, to show what a filter of labels could reach."
)


Versus = Mapping[float, Mapping[str, Sequence[tuple[Arm, Comparison]]]]  # by share of noise and control


def _effects_section(study: Study, task: str, versus: Versus, rows: Mapping[Arm, ArmRow], out_dir: Path) -> Section:
    lines = []
    for share, found in versus.items():
        columns = {control: dict(pairs) for control, pairs in found.items()}
        for arm in dict.fromkeys(arm for pairs in columns.values() for arm in pairs):
            cells = [columns[control].get(arm) for control in CONTROLS]
            said = [(shown(one.value, one.low, one.high), interval_text(*one.student)) if one else "" for one in cells]
            texts = [text for each in said for text in each or ("", "")]
            seeds = "/".join(str(n) for n in dict.fromkeys(one.effect.seeds for one in cells if one is not None))
            lines.append([f"{share:.0%}", arm.name, *texts, seeds])
    text = [HOLM_TEXT + " Here a question is one control at one share of noise.", STUDENT_TEXT]
    return Section(
        f"{task}: every method against normal and random",
        text + [ORACLE_TEXT] * any(line[1] == "oracle" for line in lines),
        ["noise", "method", "minus normal", "Student's t", "minus random", "Student's t", "seeds"],
        lines,
        _effects_pictures(task, versus, rows, study.base(task), out_dir),
    )


def _effects_pictures(
    task: str, versus: Versus, rows: Mapping[Arm, ArmRow], base: Mapping[str, float], out_dir: Path
) -> list[Picture]:
    """Each method minus normal, a panel for each share of noise at which there is one."""
    against = {share: found["normal"] for share, found in versus.items() if found["normal"]}
    if not against:
        return []
    normals = {share: rows.get(Arm(task, share, "normal")) for share in versus}
    untrained = {
        f"noise {share:.0%}": base["headline"] - normal.accuracy.value
        for share, normal in normals.items()
        if normal is not None and base
    }
    panels = {f"noise {share:.0%}": found for share, found in against.items()}
    return [_minus_normal(panels, out_dir, f"{task}-effects", "Each method minus normal", untrained)]


def _minus_normal(
    panels: Mapping[str, Sequence[tuple[Arm, Comparison]]],
    out_dir: Path,
    name: str,
    title: str,
    untrained: Mapping[str, float] | None = None,
) -> Picture:
    values = {
        panel: [(arm.name, one.value, one.low, one.high) for arm, one in found] for panel, found in panels.items()
    }
    student = {panel: {arm.name: one.student for arm, one in found} for panel, found in panels.items()}
    return picture(figures.effects(values, "normal", untrained, student), out_dir, name, title)


def _tokens_section(study: Study, task: str, rows: Sequence[ArmRow], out_dir: Path) -> Section:
    lines = [
        [
            *_arm_texts(row),
            estimated(row.accuracy),
            percent(row.unreadable),
            f"{row.kept_tokens:,.0f}",
            f"{row.steps:,.0f}",
            str(row.accuracy.seeds),
        ]
        for row in rows
    ]
    panels = {}
    for share in study.shares(task):
        dots = [(row.arm.name, row.kept_tokens, row.accuracy) for row in rows if row.arm.share == share]
        if dots:
            panels[f"noise {share:.0%}"] = [(name, x, found.value, found.low, found.high) for name, x, found in dots]
    text = (
        "All methods take the same optimizer steps over the same rows; the tokens that carry loss differ. "
        "`random` drops as many tokens as `xtf`, example by example. Unreadable: answers in which none was found."
    )
    columns = ["noise", "method", "accuracy", "unreadable", "supervised tokens", "steps", "seeds"]
    title = "Accuracy against supervised tokens"
    drawn = [picture(figures.against_tokens(panels), out_dir, f"{task}-tokens", title)] if panels else []
    return Section(f"{task}: equal steps, unequal supervised tokens", [text], columns, lines, drawn)


def _arm_texts(row: ArmRow) -> tuple[str, str]:
    return f"{row.arm.share:.0%}", row.arm.name


def _losses_section(task: str, rows: Sequence[ArmRow], base: Mapping[str, float]) -> Section:
    def text(name: str, value: float | None, interval: Sequence[float] = ()) -> str:
        if value is None:
            return "-"
        scale, digits, found = (1, 3, f"{value:.3f}") if name.endswith("loss") else (100, 1, percent(value))
        limits = ", ".join(f"{scale * limit:.{digits}f}" for limit in interval)
        return f"{found} [{limits}]" if limits else found

    def figure(row: ArmRow, name: str) -> str:
        found = row.figures[name]
        return "-" if found is None else text(name, found.value, found.interval() if found.seeds > 1 else ())

    untrained = ["", "untrained", *(text(name, base.get(name)) for name in TEACHER_FORCED)]
    lines = [[*_arm_texts(row), *(figure(row, name) for name in TEACHER_FORCED)] for row in rows]
    explained = (
        "Loss in nats per token on the clean evaluation responses, and on held-out text of the pre-training mix "
        "(forgetting); calibration error of next-token predictions. Means with Student's interval over seeds."
    )
    return Section(
        f"{task}: loss, calibration, forgetting",
        [explained],
        ["noise", "method", "loss", "token accuracy", "calibration error", "forgetting loss"],
        [untrained] * bool(base) + lines,
    )


def _cost_section(task: str, rows: Sequence[ArmRow]) -> Section:
    text = (
        "Median seconds over seeds. Scoring is done once for all runs that share the scores, and includes training "
        "the reference model where a method has one; times of a busy machine are rough."
    )
    lines = []
    for row in rows:
        scoring, training = row.scoring_seconds, row.training_seconds
        lines.append([*_arm_texts(row), seconds(scoring), seconds(training), percent(scoring / training)])
    columns = ["noise", "method", "scoring", "training", "scoring / training"]
    return Section(f"{task}: cost of choosing tokens", [text], columns, lines)


def _deciles_sections(study: Study, task: str, rows: Mapping[Arm, ArmRow], out_dir: Path) -> list[Section]:
    """The section on deciles of base probability; none where no decile was run."""
    curves = {}
    for title, left_out in (("one decile alone", False), ("all but one", True)):
        arms = {number: Arm(task, 0.0, decile_name(number, left_out)) for number in DECILES}
        found = {number: rows[arm].accuracy for number, arm in arms.items() if arm in study.runs}
        if found:
            curves[title] = [(number, one.value, one.low, one.high) for number, one in found.items()]
    if not curves:
        return []
    normal, base = rows.get(Arm(task, 0.0, "normal")), study.base(task)
    references = {} if normal is None else {"all tokens": normal.accuracy.value}
    references |= {"untrained": base["headline"]} if base else {}
    figure, title = figures.deciles(curves, references), "Accuracy by decile of base probability"
    drawn = picture(figure, out_dir, f"{task}-deciles", title)
    return [Section(f"{task}: deciles of base probability", [DECILES_TEXT], pictures=[drawn])]


def _tasks_section(rows: Sequence[PooledRow], versus: Mapping[str, Versus], out_dir: Path) -> Section:
    text = (
        "Random-effects means of the differences in points, each task weighing by what is known of it (DerSimonian and "
        "Laird); tau is their standard deviation between tasks. The 95 % intervals are Knapp and Hartung's, which for "
        "two or three tasks are wide: that is how little so few say about the next one."
    )
    spreadless = sorted({f"{row.arm} - {row.control}, noise {row.share:.0%}" for row in rows if row.pooled is None})
    lines = []
    for row in rows:
        mean_text, tau = "-", "-"
        if row.pooled is not None:
            mean_text = shown(row.pooled.value, row.pooled.low, row.pooled.high)
            tau = f"{100 * row.pooled.tau:.1f}"
        lines.append([f"{row.share:.0%}", row.arm, row.control, mean_text, tau, ", ".join(row.tasks)])
    clean = {task: found for task, by_share in versus.items() if (found := by_share.get(0.0, {}).get("normal"))}
    title = "Each method minus normal, no noise planted"
    return Section(
        "Over tasks",
        [text if rows else "One task was run, so there is nothing to pool."]
        + [f"Not pooled, for every item came out alike in a task: {'; '.join(spreadless)}."] * bool(spreadless),
        ["noise", "method", "minus", "pooled", "tau", "tasks"] if rows else [],
        lines,
        [_minus_normal(clean, out_dir, "tasks-effects", title)] if len(clean) > 1 else [],
    )


# -- the tables as CSV files ---------------------------------------------------------------------------------

_STUDENT = ("student_low", "student_high", "student_p_holm", "standard_error")
COMPARISON_COLUMNS = (
    *("question", "task", "share", "arm", "control", "unit", "value", "low", "high", "level", "p_holm"),
    *(*_STUDENT, "seeds", "items"),
)
ARM_COLUMNS = (
    *("task", "share", "arm", "accuracy", "low", "high", "seeds", "items", "unreadable", "supervised_tokens", "steps"),
    *(*TEACHER_FORCED, "scoring_seconds", "training_seconds"),
)
POOLED_COLUMNS = ("share", "arm", "control", "tasks", "value", "low", "high", "tau")


def _csv_lines(task: str, answers: Sequence[Answer], versus: Versus) -> list[list[Any]]:
    """The comparisons of a task under `COMPARISON_COLUMNS`: those of the hypotheses, then all."""
    lines = [
        [answer.name, task, "", one.label, "", *_numbers(one.found, one.unit)]
        for answer in answers
        for one in answer.contrasts
    ]
    return lines + [
        ["all", task, share, arm.name, control, *_numbers(one, "points")]
        for share, found in versus.items()
        for control, pairs in found.items()
        for arm, one in pairs
    ]


def _numbers(found: Comparison, unit: str) -> list[Any]:
    """A comparison in the columns from `unit` on."""
    effect, bootstrap = found.effect, [found.value, found.low, found.high, 1 - found.alpha, found.p]
    student = [*found.student, found.student_p, effect.student.deviation]
    return ["share" if unit == "points" else unit, *bootstrap, *student, effect.seeds, effect.items]


def _pooled_line(row: PooledRow) -> list[Any]:
    found = row.pooled
    numbers = [None] * 4 if found is None else [found.value, found.low, found.high, found.tau]
    return [row.share, row.arm, row.control, " ".join(row.tasks), *numbers]


def _arm_line(row: ArmRow) -> list[Any]:
    found = row.accuracy
    accuracy = [found.value, found.low, found.high, found.seeds, found.items]
    losses = [None if one is None else one.value for one in row.figures.values()]
    counts = [row.unreadable, row.kept_tokens, row.steps]
    return [*row.arm, *accuracy, *counts, *losses, row.scoring_seconds, row.training_seconds]


def main() -> None:
    """The command line, `python -m xtf.study`."""
    report_command(study_report, "experiments/history/study.md", "experiments/history/results", "study")


if __name__ == "__main__":
    main()
