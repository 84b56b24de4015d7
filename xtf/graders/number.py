"""The final number of a text, compared exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from xtf.data.examples import Example, RowError
from xtf.data.numbers import numbers, show
from xtf.graders.base import Grade, Item, accuracy_metrics, final_part
from xtf.graders.metrics import Metric

ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator notes
HASHES = re.compile(r"####(?!#)[ \t]*(?P<rest>[^\n]*)")
NUMBERED_HEADING = re.compile(r"\**\d+[.)]\s+\S")
ANSWER_IS = re.compile(r"\banswer\b[^.\n\d]{0,60}?(?:\bis\b|:|=)[\s*:$]*(?=(?P<rest>[^\n]*))", re.IGNORECASE)
NEXT_TURN = re.compile(r"\n\s*(?:<\|\w+\|>|(?:question|q|problem|user|human|instruction)\s*\d*\s*:)", re.IGNORECASE)


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` (or `\\fbox`), braces balanced; None without one."""
    for match in reversed(list(re.finditer(r"\\f?box(?:ed)?\s*\{", text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if depth == 0:
                return text[match.end() : place].strip()
    return None


def _sentence(text: str) -> str:
    return re.split(r"[.!?](?=\s|$)", text, maxsplit=1)[0]


def _is_heading(match: re.Match[str]) -> bool:
    """Whether a `####` line is Markdown ("#### 2. Add the parts", a text under it), not GSM8K's answer."""
    return bool(NUMBERED_HEADING.match(match["rest"]) and match.string[match.end() :].strip())


def stated_answer(text: str) -> str | None:
    """What the text marks as its answer: the last `\\boxed{}`, else `#### x`, else "the answer is x"."""
    if (content := boxed(text)) is not None:
        return content
    hashes = [match["rest"] for match in HASHES.finditer(text) if not _is_heading(match)]
    if hashes and hashes[-1].strip():
        return _sentence(hashes[-1]).strip()
    stated = [_sentence(match["rest"]).strip() for match in ANSWER_IS.finditer(text)]
    return next((answer for answer in reversed(stated) if answer), None)


def final_number(completion: str) -> Fraction | None:
    """The number that a completion ends up with, or None.

    In this order: the number in what the text marks as its answer (`stated_answer`; after its last "=" if it
    has one), then the last number of the text. What follows a made-up next question is not looked at, if an
    answer stands before it.
    """
    text = ANNOTATION.sub("", final_part(completion))
    cut = NEXT_TURN.search(text)
    parts = [text[: cut.start()], text] if cut and text[: cut.start()].strip() else [text]
    for part in parts:
        stated = stated_answer(part)
        if stated is not None:
            found = numbers(stated.rsplit("=", 1)[-1]) or numbers(stated)
            if found:
                return found[0]
    for part in parts:
        if found := numbers(part):
            return found[-1]
    return None


class NumberGrader:
    """The final number, compared exactly (1,000 = 1000.0 = $1,000; 50% counts as 50; 1/2 = 0.5)."""

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        value = final_number(text)
        if value is None:
            raise RowError("the reference holds no number")
        return show(value)

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        value = final_number(item.completion)
        if value is None:
            return Grade(False, None, "no number found")
        right = show(value) == item.reference
        return Grade(right, show(value), "equal" if right else f"{show(value)} is not {item.reference}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}
