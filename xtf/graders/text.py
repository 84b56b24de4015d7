"""Graders that compare texts."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example, RowError
from xtf.graders.base import Grade, Grader, Item, final_part


def normal(text: str) -> str:
    """Unicode composed (NFC), runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextGrader(Grader):
    """`exact`: the same text; `contains`: the reference occurs in it, in any case. Both up to white space."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> TextGrader:
        return cls(config.grader)

    def reference(self, example: Example, text: str) -> str:
        if not normal(text):
            raise RowError("the reference is empty")
        return normal(text)

    def verdict(self, item: Item) -> Grade:
        said = normal(final_part(item.completion))
        if not said:
            return Grade(False, None, "empty")
        right = said == item.reference
        if self.rule == "contains":
            right = item.reference.casefold() in said.casefold()
        return Grade(right, said, f"{self.rule}: {'yes' if right else 'no'}")
