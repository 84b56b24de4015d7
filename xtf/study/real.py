"""The analysis that experiments/study_real.md announces, from the runs of experiment `study_real`.

    python -m xtf.study.real                                          # outputs/ -> outputs/reports/study_real
    python -m xtf.study.real --source experiments/results --to X      # the same from the stored runs

The outcome is the loss on the reference responses of the evaluation rows, nats a token, row by row; accuracy and
unreadable answers stand beside it. Readings go by Student's t with seeds and rows both drawn at random, at Holm's
levels within a hypothesis. What has not been run is named.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from xtf.graders.metrics import wilson
from xtf.reporting import figures
from xtf.reporting.cells import Cell, NoRuns, find_cells
from xtf.reporting.intervals import Comparison, Effect, Estimate, family, mean
from xtf.reporting.pages import Section, estimated, percent, picture, render_sections, seconds, with_interval, write_csv
from xtf.scoring.verdict import Level
from xtf.study.arms import Answer, Arm, Study, answer, hypotheses_section, interval_text, report_command, shown

EXPERIMENT = "study_real"
RATES = "study_real_rates"  # normal and xtf at other learning rates
PAPER = "study_real_paper"  # with the paper's rate, epochs and schedule
RATE = "tuning.learning_rate"
# Settings of xtf that hypotheses S4 and S5 name -> what they are called on the page.
SAFER = {
    "xtf threshold.protect=answer": "answer tokens kept",
    "xtf scorer.tr.variant=contextual": "TR in context",
    "xtf threshold.dropped_weight=0.1": "dropped at 0.1",
    "xtf threshold.dropped_weight=0.3": "dropped at 0.3",
    "xtf threshold.drop_probability=0.5": "moving holes",
}
# The same of all arms; the others are described alone.
CALLED = SAFER | {
    "xtf threshold.dropped_weight=0.3 threshold.protect=answer": "dropped at 0.3, answer kept",
    "xtf threshold.end=scored": "end token judged",
    "xtf scorer.tr.variant=contextual threshold.protect=answer": "TR in context, answer kept",
    "tr": "TR alone",
    "ri": "RI alone",
    "kn": "KN alone",
    "ri_kn": "RI and KN, no TR",
    "prift": "PriFT",
    "random scorer=ri_kn": "random, RI and KN's size",
}
# The verdict's limits were set with what became of these (xtf/scoring/verdict.py); the other masks test them.
LIMITS_SET_WITH = ("xtf", "xtf threshold.protect=answer", "xtf scorer.tr.variant=contextual")
LIMITS_SET_ON = ("math", "medical")
HARM = 0.05  # nats a token over normal, or
UNREADABLE = 0.1  # as much more of the answers: written down before the test's cells came
NAMES = {"smollm2_135m": "SmolLM2-135M", "qwen2_5_coder_0_5b": "Qwen2.5-Coder-0.5B"}  # in figures
DATA = {"math": "GSM8K", "medical": "PubMedQA", "code": "MBPP"}  # what study_real_rows.py makes rows of, by task
TEXT = (
    "Nats a token on the reference responses of the evaluation rows, so that less is better; differences are paired by "
    "seed and row. The reading goes by Student's t, seeds and rows both drawn at random; the interval of the effect is "
    "the bootstrap's. Both are at Holm's levels within a hypothesis."
)

CAPTION = (
    "What the reference responses of the test rows cost, minus plain fine-tuning on all labels: dots to the right "
    "learnt less. Thick bars: 95 % intervals (Student's t, seeds and rows both drawn, Holm's levels within a panel). "
    "Dashed: plain fine-tuning; dotted: the untrained model. Each panel has its own scale."
)
ANSWERS_CAPTION = (
    "The answers to the test rows, means over seeds. Black dots: right, thick bars their 95 % intervals (bootstrap "
    "over seeds and rows; none for the untrained model). Hollow dots: answers that the grader cannot read."
)
RULE_CAPTION = (
    "Each dot is a mask. To the right: what is known before training, how much the base model would have had to learn "
    "in token ids that are dropped in 90 % of their places. Upwards: what the mask cost over plain fine-tuning; thin "
    "bars are 95 % intervals. Shaded: harm. Dashed: the limit that a rule set on one half of the masks; masks that it "
    "is wrong of are named."
)


def hypotheses(study: Study, task: str, rates: Study | None = None) -> list[Answer]:
    """S1 to S8 of experiments/study_real.md; `rates` has also the runs at other learning rates."""

    def versus(name: str, control: str) -> tuple[str, Effect | None]:
        return f"{called(name)} - {control}", study.minus(task, 0.0, name, control, losses=True)

    def ask(name: str, claim: str, wanted: Sequence[tuple[str, Effect | None]], read: Any) -> Answer:
        return answer(name, claim, wanted, read, unit="nats", by_student=True)

    run = study.names(task, 0.0)
    safer = [name for name in SAFER if name in run]
    named = [called(name) for name in safer]
    forgetting = study.figure("forgetting_loss", (1.0, Arm(task, 0.0, "kn")), (-1.0, Arm(task, 0.0, "normal")))

    def better(signs: Sequence[int]) -> str:
        found = [name for name, sign in zip(named, signs, strict=True) if sign < 0]
        return f"supported by {', '.join(found)}" if found else "refuted"

    return [
        ask(
            "S1",
            "XTF as published is no worse than normal",
            [versus("xtf", "normal")],
            lambda s: "refuted" if s[0] > 0 else "not refuted",
        ),
        ask(
            "S2",
            "what is dropped matters, not how much",
            [versus("xtf", "random")],
            lambda s: "supported" if s[0] else "refuted",
        ),
        ask(
            "S3",
            "TR carries the harm, RI does none",
            [versus(name, "normal") for name in ("xtf", "tr", "ri")],
            lambda s: "refuted" if s[2] > 0 or (s[0] > 0 and s[1] <= 0) else "supported" if s[1] > 0 else "undecided",
        ),
        *[
            ask("S4", "a mask can be made that does less harm than XTF's", [versus(n, "xtf") for n in safer], better),
            ask("S5", "and is better than normal", [versus(name, "normal") for name in safer], better),
        ]
        * bool(safer),
        ask(
            "S6",
            "the harm shrinks with drift: it grows with the learning rate",
            [("xtf - normal, slope for three times the rate", rates_slope(rates, task) if rates else None)],
            lambda s: "supported" if s[0] > 0 else "refuted",
        ),
        ask(
            "S7",
            "PriFT and KN cannot both be right",
            [versus(name, "normal") for name in ("prift", "kn")],
            lambda s: "supported" if 1 in s else "refuted",
        ),
        ask(
            "S8",
            "KN lessens forgetting",
            [("forgetting loss, kn - normal", forgetting)],
            lambda s: "supported" if s[0] < 0 else "refuted",
        ),
    ]


def rates_run(rates: Study, task: str) -> list[float]:
    """The learning rates at which both normal and xtf were run with a seed that they share, ascending."""
    prefix = f"normal {RATE}="
    there = (name.removeprefix(prefix) for name in rates.names(task, 0.0) if name.startswith(prefix))
    found = (float(rate) for rate in there if " " not in rate)
    return sorted(rate for rate in found if rates.shared_seeds([_at(rate, "normal", task), _at(rate, "xtf", task)]))


def _at(rate: float, method: str, task: str) -> Arm:
    return Arm(task, 0.0, f"{method} {RATE}={rate}")


def rates_slope(rates: Study, task: str) -> Effect | None:
    """The least-squares slope of (xtf - normal) over the logarithm of the rate to base 3; None with fewer than two."""
    run = rates_run(rates, task)
    if len(run) < 2:
        return None
    logs = np.log(run) / np.log(3)
    weights = (logs - logs.mean()) / ((logs - logs.mean()) ** 2).sum()
    parts = zip((("xtf", 1), ("normal", -1)) * len(run), np.repeat(weights, 2), np.repeat(run, 2), strict=True)
    return rates.combination(*((sign * w, _at(rate, name, task)) for (name, sign), w, rate in parts), losses=True)


def called(name: str) -> str:
    """An arm's name as people read it."""
    return CALLED.get(name, name)


@dataclass(frozen=True)
class Row:
    """An arm's means over its seeds, and its loss minus that of the controls."""

    arm: Arm
    loss: float
    accuracy: Estimate
    unreadable: float
    forgetting: float | None
    kept_share: float
    minus: Mapping[str, Comparison]  # by control
    training_seconds: float


def arm_rows(study: Study, task: str) -> list[Row]:
    """The arms of a task, the lowest loss first; differences to a control are one family of comparisons."""
    names = study.names(task, 0.0)
    minus: dict[str, dict[str, Comparison]] = defaultdict(dict)
    for control in ("normal", "random"):
        effects = {name: study.minus(task, 0.0, name, control, losses=True) for name in names if name != control}
        there = {name: found for name, found in effects.items() if found is not None}
        for name, compared in zip(there, family(list(there.values())), strict=True):
            minus[name][control] = compared
    rows = []
    for name in names:
        runs = list(study.runs[arm := Arm(task, 0.0, name)].values())

        def average(values: Sequence[float]) -> float:
            return sum(values) / len(values)

        metrics = [run.record["metrics"] for run in runs]
        forgetting = [found["forgetting_loss"]["value"] for found in metrics if "forgetting_loss" in found]
        rows.append(
            Row(
                arm,
                average([found["loss"]["value"] for found in metrics]),
                mean([study.verdicts(arm, run.seed) for run in runs]),
                average([found["unreadable"]["value"] for found in metrics]),
                average(forgetting) if forgetting else None,
                average([run.record["mask"]["kept_share"] for run in runs]),
                minus[name],
                average([run.record["timing"]["train"] for run in runs]),
            )
        )
    return sorted(rows, key=lambda row: row.loss)


def study_report(source: Path, out_dir: Path) -> list[Path]:
    """Writes study_real.md, study_real.html, arms.csv and figures; returns their paths.

    Args:
        source: an output folder (it has runs/), or a folder of archives.

    Raises:
        NoRuns: there is no run of the experiment.
    """
    stored = None if (source / "runs").is_dir() else source
    cells = find_cells(EXPERIMENT, source / "runs", stored)

    def beside(experiment: str) -> list[Cell]:
        try:
            return find_cells(experiment, source / "runs", stored)
        except NoRuns:  # the page then has no section of it, or says that it was not run
            return []

    more, recipe = beside(RATES), beside(PAPER)
    by_model: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_model[cell.case[1]].append(cell)
    sections: list[Section] = []
    lines = []
    masks: list[Judged] = []
    for model, found in by_model.items():
        study = Study(found)
        rates = Study([*found, *(cell for cell in more if cell.case[1] == model)])
        rows = {task: arm_rows(study, task) for task in study.tasks}
        sections.append(_model_section(model, study, rows, out_dir))
        for task in study.tasks:
            sections.append(_arms_section(model, task, study, rows[task]))
            sections.append(hypotheses_section(f"{model}, {task}", hypotheses(study, task, rates), [TEXT]))
            if len(rates_run(rates, task)) > 1:
                sections.append(_rates_section(model, task, rates))
            lines += [_csv_line(model, study, row) for row in rows[task]]
        paper = Study([cell for cell in recipe if cell.case[1] == model])
        for task in paper.tasks:
            sections.append(_arms_section(model, f"{task}, the paper's recipe", paper, arm_rows(paper, task)))
        masks += (own := judged_masks(model, study, rows))
        sections.append(_verdict_section(model, own))
        if study.unfinished:
            sections.append(Section(f"{model}: not finished", study.unfinished))
    if rule := _rule_section(masks, out_dir):
        sections.append(rule)
    written = [write_csv(out_dir / "arms.csv", COLUMNS, lines)]
    count = sum(len(cell.runs) for cell in (*cells, *more, *recipe))
    title = f"The study on models that were really pre-trained: {count} finished runs"
    return written + render_sections(title, sections, out_dir, EXPERIMENT)


def _model_section(model: str, study: Study, rows: Mapping[str, Sequence[Row]], out_dir: Path) -> Section:
    panels = {
        task: [(called(row.arm.name), one.value, *one.student) for row in found if (one := row.minus.get("normal"))]
        for task, found in rows.items()
    }
    named = {task: DATA.get(task, task) if model != "tiny" else task for task in rows}
    untrained = {
        named[task]: study.base(task)["loss"] - row.loss
        for task, found in rows.items()
        for row in found
        if row.arm.name == "normal" and "loss" in study.base(task)
    }
    there = {named[task]: found for task, found in panels.items() if found}
    drawn = figures.effects(there, "normal", untrained, unit="nats a token")
    text = (
        "Each method's loss on the reference responses of the evaluation rows minus that of normal fine-tuning: dots "
        "to the right of the dashed line learnt the task's responses less well. Bars are Student's t, seeds and rows "
        "both drawn at random, at Holm's levels within a task; panels have scales of their own."
    )
    short = f"{model}: loss minus normal fine-tuning's, by method, for {', '.join(there)}"
    counts = sorted({len(runs) for runs in study.runs.values()})
    seeds = f"Seeds per method: {', '.join(map(str, counts))}."
    alone = " With one seed an interval is over rows alone and says nothing of other orders of the training rows."
    pictures = []
    if there:
        caption = f"{NAMES.get(model, model)}. {CAPTION} {seeds}"
        pictures.append(picture(figures.captioned(drawn, caption), out_dir, f"{model}-losses", short))
        bases = {named[task]: base for task in panels if (base := study.base(task))}
        shares = figures.answers(
            {named[task]: _answers(rows[task]) for task in panels if panels[task]},
            {name: (base["headline"], base["unreadable"]) for name, base in bases.items()},
        )
        short = f"{model}: answers that are right and unreadable, by method, for {', '.join(there)}"
        caption = f"{NAMES.get(model, model)}. {ANSWERS_CAPTION}"
        pictures.append(picture(figures.captioned(shares, caption), out_dir, f"{model}-answers", short))
    return Section(f"{model}: each method minus normal", [text, seeds + alone * (1 in counts)], pictures=pictures)


def _answers(rows: Sequence[Row]) -> list[tuple[str, float, float, float, float]]:
    """Of each arm what is right, with its interval, and unreadable."""
    return [
        (called(row.arm.name), row.accuracy.value, row.accuracy.low, row.accuracy.high, row.unreadable) for row in rows
    ]


def _arms_section(model: str, where: str, study: Study, rows: Sequence[Row]) -> Section:
    base = study.base(rows[0].arm.task)
    lines = [
        [
            called(row.arm.name),
            f"{row.loss:.3f}",
            *(text for control in ("normal", "random") for text in _minus_texts(row.minus.get(control))),
            estimated(row.accuracy),
            percent(row.unreadable),
            "-" if row.forgetting is None else f"{row.forgetting:.3f}",
            percent(row.kept_share),
            seconds(row.training_seconds),
            str(row.accuracy.seeds),
        ]
        for row in rows
    ]
    if base:
        untrained = ["untrained", f"{base['loss']:.3f}", *[""] * 4, percent(base["headline"])]
        forgetting = "-" if "forgetting_loss" not in base else f"{base['forgetting_loss']:.3f}"
        lines.append([*untrained, percent(base["unreadable"]), forgetting, "", "", ""])
    columns = ["method", "loss", "minus normal", "Student's t", "minus random", "Student's t"]
    columns += ["accuracy", "unreadable", "forgetting loss", "kept", "training", "seeds"]
    return Section(f"{model}, {where}: every method", [TEXT], columns, lines)


def _rates_section(model: str, task: str, rates: Study) -> Section:
    run = rates_run(rates, task)
    differences = [
        rates.combination((1.0, _at(rate, "xtf", task)), (-1.0, _at(rate, "normal", task)), losses=True) for rate in run
    ]
    compared = iter(family([found for found in differences if found is not None]))
    lines = []
    for rate, difference in zip(run, differences, strict=True):
        seeds = rates.shared_seeds([_at(rate, "normal", task), _at(rate, "xtf", task)])
        metrics = [
            [rates.runs[_at(rate, method, task)][seed].record["metrics"] for seed in seeds]
            for method in ("normal", "xtf")
        ]
        losses = [f"{sum(one['loss']['value'] for one in found) / len(seeds):.3f}" for found in metrics]
        unreadable = [percent(sum(one["unreadable"]["value"] for one in found) / len(seeds)) for found in metrics]
        minus = _minus_texts(next(compared) if difference is not None else None)
        lines.append([f"{rate:g}", *losses, *minus, *unreadable, str(len(seeds))])
    columns = ["rate", "normal", "xtf", "xtf - normal", "Student's t", "normal unreadable", "xtf unreadable", "seeds"]
    return Section(f"{model}, {task}: normal and xtf at several learning rates", [TEXT], columns, lines)


@dataclass(frozen=True)
class Judged:
    """A mask, what was said of it before any training, and what became of it.

    name: of model, data and arm; untaught: the base model's nats a token in ids that are dropped wherever they stand,
    or nearly so, None where log p is not scored; minus: loss over normal's, nats a token; tests: the limits of the
    verdict were set without it.
    """

    model: str
    task: str
    row: Row
    name: str
    level: str
    untaught: float | None
    minus: float
    harm: bool
    tests: bool


def judged_masks(model: str, study: Study, rows: Mapping[str, Sequence[Row]]) -> list[Judged]:
    """The masks of a model that have something said of them and a normal training beside them."""
    masks = []
    for task, found in rows.items():
        unreadable = {row.arm.name: row.unreadable for row in found}
        for row in found:
            said = next(iter(study.runs[row.arm].values())).mask_verdict()
            if said is None or (minus := row.minus.get("normal")) is None:
                continue
            harm = minus.value >= HARM or row.unreadable - unreadable["normal"] >= UNREADABLE
            tests = task not in LIMITS_SET_ON or row.arm.name not in LIMITS_SET_WITH
            name = f"{model} {DATA.get(task, task)} {row.arm.name}"
            masks.append(Judged(model, task, row, name, said["level"], said["untaught"], minus.value, harm, tests))
    return masks


def _verdict_section(model: str, masks: Sequence[Judged]) -> Section:
    """What is said of each mask before training beside what became of it, and how often that was right."""
    lines, right = [], list[bool]()
    for mask in masks:
        if mask.tests and mask.level != Level.look.words:
            right.append(mask.harm == (mask.level == Level.stop.words))
        untaught = "-" if mask.untaught is None else f"{mask.untaught:.2f}"
        became = [f"{mask.minus:+.3f}", percent(mask.row.unreadable), _became(mask.harm)]
        known = "test" if mask.tests else "set with it"
        lines.append([mask.task, called(mask.row.arm.name), mask.level, untaught, *became, known])
    text = [
        "What is said of a mask before any training, from the mask alone, beside what came of it. Untaught: the base "
        "model's nats a token in ids that are dropped wherever they stand, or nearly so. Harm: a loss that is "
        f"{HARM} nats or more over normal's, or {100 * UNREADABLE:.0f} points more of the answers unreadable. The "
        "limits were set with what became of some masks; the others test them."
    ]
    if right:
        text.append(
            f"Of the masks of the test, {len(right)} were called '{Level.fine.words}' or '{Level.stop.words}'; that "
            f"was right of {_share(right)}. '{Level.look.words.capitalize()}' says neither."
        )
    columns = ["task", "mask", "said before training", "untaught", "minus normal", "unreadable", "became", ""]
    return Section(f"{model}: the verdict put to the test", text, columns, lines)


def fitted_limit(masks: Sequence[Judged]) -> float:
    """The limit of `untaught` from which on a mask is said to harm that is wrong of the fewest of `masks`: the middle
    of the widest gap of those between two masks that are."""
    there = sorted((mask.untaught, mask.harm) for mask in masks if mask.untaught is not None)
    values = sorted({value for value, _ in there})

    def score(gap: tuple[float, float]) -> tuple[int, float]:
        wrong = sum(harm != (value >= gap[1]) for value, harm in there)
        return -wrong, gap[1] - gap[0]

    below, above = max(itertools.pairwise(values), key=score)
    return (below + above) / 2


def _rule_section(masks: Sequence[Judged], out_dir: Path) -> Section | None:
    """One limit, fitted on the half of the masks that their names draw and tested on the other half; None where a
    half has not both kinds of mask to set a limit between."""
    drawn = [mask for mask in masks if mask.untaught is not None]
    halves: tuple[list[Judged], list[Judged]] = ([], [])
    for mask in drawn:
        halves[sha256(mask.name.encode()).digest()[0] >> 7].append(mask)
    fit, test = halves
    if not test or len({mask.untaught for mask in fit}) < 2 or len({mask.harm for mask in fit}) < 2:
        return None
    limit = fitted_limit(fit)
    lines, right = [], defaultdict[str, list[bool]](list)
    for half, found in (("fit", fit), ("test", test)):
        for mask in sorted(found, key=lambda mask: -(mask.untaught or 0.0)):
            says = (mask.untaught or 0.0) >= limit
            for count in (half, f"{half}, {_became(mask.harm)}"):
                right[count].append(says == mask.harm)
            said = [f"{mask.untaught:.2f}", _became(says)]
            lines.append([half, mask.name, *said, f"{mask.minus:+.3f}", _became(mask.harm)])
    text = [
        "The verdict has several limits, set by hand; here is one, found by a rule. The masks of all models and data "
        "sets are halved by the first bit of the SHA-256 of their names. The one half fits the limit on what is "
        "untaught with the fewest wrong calls of harm: "
        f"{limit:.2f} nats a token, right of {_share(right['fit'])}. On the other half it is "
        f"right of {_share(right['test'])}: of those that harm {_share(right['test, harm'])}, of those that do not "
        f"{_share(right['test, no harm'])}."
    ]
    columns = ["half", "mask", "untaught", "said", "minus normal", "became"]
    dots = defaultdict[str, list[Any]](list)
    for mask in drawn:
        data, arm = DATA.get(mask.task, mask.task), called(mask.row.arm.name)
        of = f"{NAMES.get(mask.model, mask.model)}, {data}"
        dots[of].append((arm, mask.untaught, mask.minus, *mask.row.minus["normal"].student, mask.harm))
    figure = figures.foretold(dots, limit, HARM, "the base's nats a token in ids dropped wherever they stand")
    title = "What became of masks against what was known of them before training"
    drawing = picture(figures.captioned(figure, RULE_CAPTION), out_dir, "foretold", title)
    return Section(
        "A limit fitted on one half of the masks, tested on the other", text, columns, lines, pictures=[drawing]
    )


def _became(harm: bool) -> str:
    return "harm" if harm else "no harm"


def _share(right: Sequence[bool]) -> str:
    """`7 of 9: 78 % [45, 94]`, by Wilson."""
    if not right:
        return "none of none"
    return f"{sum(right)} of {len(right)}: {with_interval(vars(wilson(sum(right), len(right))))}"


def _minus_texts(found: Comparison | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return shown(found.value, found.low, found.high, "nats"), interval_text(*found.student, "nats")


COLUMNS = (
    *("model", "task", "arm", "seeds", "items", "loss", "accuracy", "unreadable", "forgetting_loss", "kept_share"),
    *(
        f"minus_{control}{part}"
        for control in ("normal", "random")
        for part in ("", "_low", "_high", "_student_low", "_student_high")
    ),
)


def _csv_line(model: str, study: Study, row: Row) -> list[Any]:
    found = row.accuracy
    means = [row.loss, found.value, row.unreadable, row.forgetting, row.kept_share]
    differences: list[float | None] = []
    for control in ("normal", "random"):
        one = row.minus.get(control)
        differences += [None] * 5 if one is None else [one.value, one.low, one.high, *one.student]
    return [model, row.arm.task, row.arm.name, found.seeds, found.items, *means, *differences]


def main() -> None:
    """The command line, `python -m xtf.study.real`."""
    report_command(study_report, "experiments/study_real.md", "experiments/results", "study_real")


if __name__ == "__main__":
    main()
