"""Graders that compare texts."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from xtf.data.examples import Example, RowError
from xtf.graders.base import Grade, Item, accuracy_metrics, final_part
from xtf.graders.metrics import Metric


def normal(text: str) -> str:
    """Unicode composed (NFC), runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextGrader:
    """`exact`: the same text; `contains`: the reference occurs in it, in any case. Both up to white space."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        if not normal(text):
            raise RowError("the reference is empty")
        return normal(text)

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        said = normal(final_part(item.completion))
        if not said:
            return Grade(False, None, "empty")
        right = said == item.reference
        if self.rule == "contains":
            right = item.reference.casefold() in said.casefold()
        return Grade(right, said, f"{self.rule}: {'yes' if right else 'no'}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}
