"""Grader for one answer out of a few: PubMedQA's decision, or any `task.choices`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from xtf.data.examples import Example, RowError
from xtf.graders.base import Grade, Item, accuracy_metrics, final_part
from xtf.graders.metrics import Metric, bootstrap, wilson

MARKER = r"\b(?:decision|answer|conclusion|verdict|choice|label|option)\b[^.\n]{0,40}?(?:\bis\b|:|=|-)"
OPENING = r"[\s*_(\[\"'`$]*(?:\\boxed\{|\\text\{)*\(?"


class ChoiceGrader:
    """Reads one of `choices` from free text, in this order, taking the last hit of the first rule that hits:

    1. after "decision", "answer", "conclusion", "verdict", "choice", "label" or "option" and "is" or ":";
    2. a line that holds a choice and nothing else;
    3. the first word of the completion.

    A hit must stand by itself: followed by punctuation, the end, or "because", "since", "as"; so "no
    significant difference" and "yes or no" are not read as decisions. Single letters count as capitals only
    ("a" is a word). Everything else is unreadable: wrong for accuracy, and counted as `unreadable`.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        if len(choices) < 2 or len({choice.casefold() for choice in choices}) < len(choices):
            raise ValueError(f"task.choices must be at least two different answers, not {list(choices)}")
        self.choices = tuple(choices)
        longest_first = sorted(choices, key=len, reverse=True)
        one = "|".join(
            re.escape(choice) if len(choice) == 1 else f"(?i:{re.escape(choice)})" for choice in longest_first
        )
        another = rf"\W+(?:(?:or|and)\W+)?(?:{one})\b"
        end = r"(?=\W*$|[ \t]*[.,;:!)\]}\"'*_`\n—-]|\s+(?:because|since|as)\b)"
        alone = rf"(?P<choice>{one})(?!\w)(?!{another}){end}"
        self.rules = (
            re.compile(rf"(?i:{MARKER}){OPENING}{alone}"),
            re.compile(rf"^{OPENING}{alone}\W*$", re.MULTILINE),
            re.compile(rf"\A{OPENING}{alone}"),
        )

    def decide(self, completion: str) -> str | None:
        """The choice that a text settles on, spelled as in `choices`; None if it cannot be read."""
        text = final_part(completion)
        for rule in self.rules:
            hits = [match["choice"] for match in rule.finditer(text)]
            if hits:
                return next(choice for choice in self.choices if choice.casefold() == hits[-1].casefold())
        return None

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        choice = self.decide(text)
        if choice is None:
            raise RowError(f"the reference holds none of {', '.join(self.choices)}: {text[-80:]!r}")
        return choice

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        choice = self.decide(item.completion)
        if choice is None:
            return Grade(False, None, "no decision found")
        right = choice == item.reference
        return Grade(right, choice, "agrees" if right else f"{choice} instead of {item.reference}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """`accuracy_metrics`, `macro_f1`, `majority`: the accuracy of always saying the commonest answer."""
        counts = Counter(references)
        return {
            **accuracy_metrics(grades),
            "macro_f1": self._macro_f1(references, grades),
            "majority": wilson(max(counts.values()), len(references)),
        }

    def _macro_f1(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> Metric:
        """Mean F1 over the choices that occur among the references; an unreadable answer is a miss."""
        labels = sorted(set(references))
        number = {label: place for place, label in enumerate(labels)}
        # table_NRC: per item, how many of its samples with true label r said c; the last c: anything else
        table_NRC = np.zeros((len(references), len(labels), len(labels) + 1))
        for place, (reference, samples) in enumerate(zip(references, grades, strict=True)):
            for grade in samples:
                said = number.get(grade.extracted or "", len(labels))
                table_NRC[place, number[reference], said] += 1 / len(samples)

        def statistic(index: np.ndarray) -> float:
            table_RC = table_NRC[index].sum(axis=0)
            hits = np.diagonal(table_RC)
            total = table_RC.sum(axis=1) + table_RC[:, : len(labels)].sum(axis=0)
            return float(np.mean(np.divide(2 * hits, total, out=np.zeros(len(labels)), where=total > 0)))

        return bootstrap(statistic, len(references))

    def system_info(self) -> dict[str, Any]:
        return {"choices": list(self.choices)}


DECISIONS = ("yes", "no", "maybe")
