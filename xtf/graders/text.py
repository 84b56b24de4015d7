"""Graders that compare texts."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example, RowError
from xtf.graders.base import Grade, Grader, Item, final_part

UNSPACED = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")  # scripts that write no blank between words; and wide ones

SIGNS = "+-#.$€£¥₹@&/%\\^~°"  # what belongs to the word beside it, as brackets, quotes and commas do not
NUMBER_FIRST = re.compile(r"[$€£¥₹]?\d")


def normal(text: str) -> str:
    """Unicode composed (NFC), runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextGrader(Grader):
    """`exact`: the same text. `contains`: the reference occurs in it as whole words. `substring`: it occurs anywhere.

    All up to white space; the last two in any case, but for `contains` a single letter counts in its own case only
    ("A" is not the article), a number not as a part of another one (5 is not in 1.5, 15 or -5), and nothing as a
    part of a compound or of a name with signs ("no" is not in "no-one", ".net" not in "asp.net", "C++" not in "C++11").
    """

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
        match self.rule:
            case "exact":
                right = said == item.reference
            case "contains":
                right = has_words(said, item.reference)
            case _:
                right = item.reference.casefold() in said.casefold()
        return Grade(right, said, f"{self.rule}: {'yes' if right else 'no'}")


def has_words(text: str, words: str) -> bool:
    """Whether `words` occur in `text` with nothing attached to them."""
    text, words = text.replace("−", "-"), words.replace("−", "-")
    if len(words) > 1 or not words.isalpha():
        text, words = text.casefold(), words.casefold()
    before = "" if _unspaced(words[0]) else r"(?<!\w)(?<!\w-)"
    after = "" if _unspaced(words[-1]) else r"(?!-?\w)(?!['’]t\b)"
    if words[0] in SIGNS:
        before = rf"(?<!\w)(?<!{re.escape(words[0])})"
    if words[-1] in SIGNS:
        after = rf"(?!\w)(?!{re.escape(words[-1])})"
    if NUMBER_FIRST.match(words):
        before = r"(?<!\w)(?<![-−.])(?<!\d[,:/'’])"
    if words[-1].isdigit():
        after = r"(?!\w)(?![.,:/'’-]\d)(?! \d{3}(?!\d))"
    if len(words) == 1 and words.isalpha():
        after += r"(?![+#])"  # C++ is not C
    return re.search(f"{before}{re.escape(words)}{after}", text) is not None


def _unspaced(letter: str) -> bool:
    """Whether words are not told apart at this letter: it is no letter, or one of a script without blanks."""
    wide = unicodedata.east_asian_width(letter) in "WF"
    return not letter.isalnum() or wide or unicodedata.name(letter, "").startswith(UNSPACED)
