"""Arms of a study, contrasts between them, and what these say about a hypothesis.

An *arm* is a method at a share of planted noise, on one task; its runs differ in the seed alone. Every comparison is a
*contrast*, a weighted sum of arms, taken seed by seed and item by item over the seeds that all of them have finished;
the comparisons of one question have Holm's intervals.
"""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xtf.config.checks import MASK_SETTINGS
from xtf.config.identity import leaves, plain
from xtf.config.schema import PRESETS
from xtf.reporting.cells import Cell
from xtf.reporting.intervals import Comparison, Effect, Values, effect, family, matrix, seed_effect
from xtf.reporting.pages import Section
from xtf.reporting.runs import Run

SHARE, DECILE, INVERT = "plant.share", "method.decile", "method.invert"


class Arm(NamedTuple):
    """A method on a task, at a share of planted noise."""

    task: str
    share: float  # planted noise
    name: str


def chosen_settings(run: Run) -> dict[str, Any]:
    """What was chosen for a run beside task, method and seed. The scorer of xtf is part of the method; that of another
    method is a choice too, since it gives the size of a random mask."""
    record = run.record
    chosen = {key: record[key] for key in ("model", "tuning", "threshold")}
    chosen |= _written_out(record["threshold"])
    if record["method"] != "xtf":
        chosen["scorer"] = record["scorer"]
    return chosen | record["overrides"]


@functools.cache
def _written_out(threshold: str) -> dict[str, Any]:
    """A threshold that drops what the paper's does, and says more of what a dropped token counts, as the paper's with
    these settings: `threshold=safe` and `threshold.dropped_weight=0.3` are one arm. {} for any other."""
    paper, found = (
        dict(leaves(plain(PRESETS[name]))) for name in ("paper", threshold if threshold in PRESETS else "paper")
    )
    more = {f"threshold.{key}": value for key, value in found.items() if key != "name" and value != paper[key]}
    ours = all(key.removeprefix("threshold.") in MASK_SETTINGS for key in more)
    return {"threshold": "paper"} | more if more and ours else {}


def common_settings(runs: Sequence[Run]) -> set[str]:
    """Keys that are set alike in all runs of a task; how noise is planted, in all that have some."""
    found = [chosen_settings(run) for run in runs]
    noisy = [each for each in found if each.get(SHARE)]
    scored = [each for each in found if "scorer" in each]
    keys = {key for each in found for key in each} - {SHARE, DECILE, INVERT}

    def among(key: str) -> list[dict[str, Any]]:
        return noisy if key.startswith("plant.") else scored if key == "scorer" else found

    return {key for key in keys if len({str(each.get(key)) for each in among(key)}) == 1}


def arm_of(run: Run, common: Collection[str]) -> Arm:
    """Which arm a run belongs to; settings that are not `common` to the study's runs stand in the name, but for the
    paper's own scorer."""
    record = run.record
    chosen = {key: value for key, value in chosen_settings(run).items() if key not in common}
    if chosen.get("scorer") == "xtf":
        del chosen["scorer"]
    share = float(chosen.pop(SHARE, 0.0))
    name = record["method"]
    if name == "xtf" and record["scorer"] != "xtf":
        name = record["scorer"]
    if name == "decile":
        name = decile_name(int(chosen.pop(DECILE, 1)), bool(chosen.pop(INVERT, False)))
    return Arm(record["task"], share, " ".join([name, *(f"{key}={value}" for key, value in chosen.items())]))


def decile_name(number: int, left_out: bool) -> str:
    """The arm that trains on one decile of base probability alone, or on all but it."""
    return f"all but decile {number}" if left_out else f"decile {number}"


class Study:
    """The finished runs by arm and seed, and effects between arms.

    Raises:
        ValueError: two runs have the same arm and seed.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.runs: dict[Arm, dict[int, Run]] = {}
        by_task: dict[str, list[Run]] = {}
        for cell in cells:
            for run in cell.runs.values():
                by_task.setdefault(run.record["task"], []).append(run)
        for runs in by_task.values():
            common = common_settings(runs)
            for run in runs:
                self._add(arm_of(run, common), run)
        self.unfinished = [str(folder) for cell in cells for folder in cell.unfinished]

    def _add(self, arm: Arm, run: Run) -> None:
        known = self.runs.setdefault(arm, {}).setdefault(run.seed, run)
        if known is not run and known.folder != run.folder:
            raise ValueError(
                f"two runs of {arm.name} on {arm.task} with seed {run.seed}: {known.folder} and {run.folder}"
            )

    @property
    def tasks(self) -> list[str]:
        """The task with the most arms first."""
        arms = Counter(arm.task for arm in self.runs)
        return sorted(arms, key=lambda task: (-arms[task], task))

    def shares(self, task: str) -> list[float]:
        """The shares of planted noise that a task's arms have, ascending."""
        return sorted({arm.share for arm in self.runs if arm.task == task})

    def names(self, task: str, share: float) -> list[str]:
        """Arms of a task and share, the deciles left out."""
        found = [arm.name for arm in self.runs if (arm.task, arm.share) == (task, share)]
        return [name for name in found if "decile" not in name]

    def base(self, task: str) -> dict[str, float]:
        """Figures of the model before training, by metric; `headline` is that of the runs. Empty if none was taken."""
        for runs in (runs for arm, runs in self.runs.items() if arm.task == task):
            for run in runs.values():
                if graded := run.record.get("base_metrics"):
                    found = {name: float(metric["value"]) for name, metric in graded.items()}
                    return found | {"headline": found[run.headline]}
        return {}

    @functools.cache  # noqa: B019 - a study lives as long as the process
    def verdicts(self, arm: Arm, seed: int) -> Values:
        """The run's headline metric by item."""
        run = self.runs[arm][seed]
        return run.verdicts(run.headline)

    def shared_seeds(self, arms: Sequence[Arm]) -> list[int]:
        """Seeds that all of the arms have finished, ascending."""
        return sorted(set.intersection(*(set(self.runs.get(arm, ())) for arm in arms)))

    @functools.cache  # noqa: B019
    def losses(self, arm: Arm, seed: int) -> Values | None:
        """What each evaluation row adds to the run's loss, nats per token; None if it was not measured."""
        return self.runs[arm][seed].losses()

    @functools.cache  # noqa: B019
    def combination(self, *parts: tuple[float, Arm], losses: bool = False) -> Effect | None:
        """The weighted sum of arms' verdicts, paired by seed and item; None if they share no seed.

        With `losses`, of the losses of their evaluation rows; None if a run has none.
        """
        arms = [arm for _, arm in parts]
        shared = self.shared_seeds(arms)
        measure = self.losses if losses else self.verdicts
        by_run = [measure(arm, seed) for arm in arms for seed in shared]
        found = [values for values in by_run if values is not None]
        if not shared or len(found) < len(by_run):
            return None
        values = matrix(found)
        by_arm = values.reshape(len(arms), len(shared), -1)
        return effect(np.tensordot([weight for weight, _ in parts], by_arm, axes=1))

    def minus(self, task: str, share: float, name: str, control: str, losses: bool = False) -> Effect | None:
        """One arm minus another at the same share of noise."""
        return self.combination((1.0, Arm(task, share, name)), (-1.0, Arm(task, share, control)), losses=losses)

    def figure(self, figure: str, *parts: tuple[float, Arm]) -> Effect | None:
        """The same for a figure that a run has as a whole, such as `loss`; None if a run lacks it."""
        arms = [arm for _, arm in parts]
        runs = [[self.runs[arm][seed] for seed in self.shared_seeds(arms)] for arm in arms]
        if not runs[0] or any(figure not in run.record["metrics"] for row in runs for run in row):
            return None
        values = np.array([[run.record["metrics"][figure]["value"] for run in row] for row in runs])
        return seed_effect(np.array([weight for weight, _ in parts]) @ values)


# -- the hypotheses ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of arms, in words and as found; its unit is points of accuracy, or nats."""

    label: str
    found: Comparison
    unit: str = "points"


@dataclass(frozen=True)
class Answer:
    """What the runs say about one hypothesis: supported, refuted, undecided, not all run, or not run."""

    name: str
    claim: str
    reading: str
    contrasts: Sequence[Contrast] = ()
    missing: Sequence[str] = field(default_factory=list)


Wanted = Sequence[tuple[str, Effect | None]]


def answer(
    name: str,
    claim: str,
    wanted: Wanted,
    read: Callable[[list[int]], str],
    unit: str = "points",
    by_student: bool = False,
) -> Answer:
    """Reads the signs of the comparisons that were run; `read` is given them in order and only if all were.

    The signs are the bootstrap's, or those of Student's t.
    """
    missing = [label for label, found in wanted if found is None]
    there = [(label, found) for label, found in wanted if found is not None]
    compared = family([found for _, found in there])
    contrasts = [Contrast(label, found, unit) for (label, _), found in zip(there, compared, strict=True)]
    unread = "not all run" if contrasts else "not run"
    reading = (
        unread if missing else read([one.found.student_sign if by_student else one.found.sign for one in contrasts])
    )
    return Answer(name, claim, reading, contrasts, missing)


def shown(value: float, low: float, high: float, unit: str = "points") -> str:
    """+3.2 [-0.4, +6.9], in percentage points or in nats."""
    return f"{_number(value, unit)} {interval_text(low, high, unit)}"


def interval_text(low: float, high: float, unit: str = "points") -> str:
    """[-0.4, +6.9], in percentage points or in nats."""
    return f"[{_number(low, unit)}, {_number(high, unit)}]"


def _number(value: float, unit: str) -> str:
    return f"{100 * value:+.1f}" if unit == "points" else f"{value:+.3f}"


def p_text(p: float) -> str:
    """0.0312, or < 0.0001."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def hypotheses_section(task: str, answers: Sequence[Answer], text: Sequence[str]) -> Section:
    """A table with a line for each comparison of each hypothesis, bootstrap beside Student's t."""
    rows = []
    for each in answers:
        for one in each.contrasts:
            found, claim = one.found, [each.name, each.claim, one.label]
            bootstrap = [shown(found.value, found.low, found.high, one.unit), p_text(found.p)]
            student = [interval_text(*found.student, one.unit), p_text(found.student_p)]
            rows.append([*claim, *bootstrap, *student, f"{found.effect.seeds}", each.reading])
        if each.missing:
            without = "not run: " + "; ".join(each.missing)
            rows.append([each.name, each.claim, without, "-", "-", "-", "-", "0", each.reading])
    columns = ["", "hypothesis", "comparison", "effect", "p (Holm)", "Student's t", "its p (Holm)", "seeds", "reading"]
    return Section(f"{task}: the hypotheses", text, columns, rows)


def report_command(report: Callable[[Path, Path], Sequence[Path]], plan: str, archives: str, name: str) -> None:
    """The command line of a study's analysis.

    Args:
        report: makes the pages from a source in a folder.
        plan, archives: where the study was written down, and where its runs are stored.
        name: of the folder in outputs/reports/.
    """
    parser = argparse.ArgumentParser(description=f"The analysis of {plan}.")
    source = f"an output folder, or a folder of archives such as {archives} (default: %(default)s)"
    parser.add_argument("--source", type=Path, default=Path("outputs"), help=source)
    parser.add_argument("--to", type=Path, default=Path("outputs/reports") / name, help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        files = report(arguments.source, arguments.to)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    for file in files:
        print(f"report: {file}")
