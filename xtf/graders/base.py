"""What every grader shares: items, grades, and the answer part of a completion."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xtf.data.examples import Example
from xtf.graders.metrics import Metric, bootstrap, wilson


@dataclass(frozen=True)
class Grade:
    correct: bool | None  # None: no verdict (the judge failed), never counted as wrong
    extracted: str | None  # what the grader took to be the answer; None: it found none
    reason: str


@dataclass(frozen=True)
class Item:
    """What a grader sees: the example, the model's completion of its prompt, and the text to compare with."""

    example: Example
    completion: str
    reference: str


class Grader(Protocol):
    """Right or wrong. Batches, because some graders run processes or requests side by side."""

    def check(self) -> None:
        """Refuses, before any training, a set-up in which `grade` cannot work (no sandbox, no judge)."""

    def reference(self, example: Example, text: str) -> str:
        """What completions are compared with, read from the reference `text`; ValueError if it has none."""

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """One grade per item, in order."""

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """Figures over all examples; `grades[i]`: those of example i's samples, `references[i]` its key."""

    def system_info(self) -> dict[str, Any]:
        """What the run's record should say about how grading was done."""


def final_part(completion: str) -> str:
    """What a reasoning model says after its `</think>`; the whole completion for any other model."""
    tail = completion.rpartition("</think>")[2]
    return tail if tail.strip() else completion


def accuracy_metrics(grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
    """`accuracy` over the graded items, the share of completions without a readable answer, and without a
    verdict.

    With several samples per item an item counts with its mean, and the interval is a bootstrap over items.
    """
    flat = [grade for samples in grades for grade in samples]
    verdicts = [[bool(grade.correct) for grade in samples if grade.correct is not None] for samples in grades]
    graded = [samples for samples in verdicts if samples]
    if not graded:
        reasons = Counter(grade.reason for grade in flat).most_common(1)
        raise RuntimeError(
            f"none of {len(flat)} completions could be graded: {reasons[0][0] if reasons else 'none given'}"
        )
    if all(len(samples) == 1 for samples in graded):
        accuracy = wilson(sum(samples[0] for samples in graded), len(graded))
    else:
        means = np.array([np.mean(samples) for samples in graded])
        accuracy = bootstrap(lambda index: float(means[index].mean()), len(means))
    unreadable = sum(grade.extracted is None and grade.correct is not None for grade in flat)
    ungraded = sum(grade.correct is None for grade in flat)
    return {
        "accuracy": accuracy,
        "unreadable": wilson(unreadable, len(flat)),
        "ungraded": wilson(ungraded, len(flat)),
    }
