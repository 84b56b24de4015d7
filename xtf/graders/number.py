"""The final number of a text, compared exactly."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from xtf.data.examples import Example, RowError
from xtf.data.numbers import BLANKS, DASHES, MAX_NUMBER, OUTSIDE, SCALE, Numeral, numerals, show
from xtf.graders.base import INSTEAD, TAKES_BACK, Grade, Grader, Item, answer_parts, final_offset

ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator notes
BOX, BRACE = re.compile(r"\\f?box(?:ed)?\s*\{"), re.compile(r"(?<!\\)[{}]")
HASHES = re.compile(r"####(?!#)[ \t]*(?P<rest>[^\n]*)")
NUMBERED_HEADING = re.compile(r"\**\d+[.)]\s+\S")
ANSWER_IS = re.compile(
    r"\banswer\b[^.\n\d]{0,60}?(?:\bis\b|:|=|\s[-–—](?=\s))[\s*:]*(?=(?P<rest>[^\n]{0,2000}))", re.IGNORECASE
)
# Between two numbers, what makes them one expression, list, ratio, time or date, so that neither is the answer.
OPERATOR = rf"[{DASHES}+*×·•∙⋅÷/^±]|\\(?:times|cdot|div|pm)\b|\b(?:times|plus|minus|divided by|multiplied by)\b"
JOINED = re.compile(
    rf"[\t~${BLANKS}]*|x|[^\w\s=<>≈→⇒]{{1,3}}"
    r"|[ \t]+(?::|&|x|or|over|(?:raised )?to the(?: power(?: of)?)?|raised to|dozens?(?:,?[ \t]+and)?)[ \t]+"
    rf"|(?:[ \t~$]*[^\W\d]+){{0,3}}[ \t~$]*(?:{OPERATOR})[ \t~$(]*",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(  # but for the stop of a unit between two numbers: "6 ft. 2 in.", and behind an ellipsis
    r"(?<=\.{3})(?=\s|$)|(?<!\.\.)[.!?](?=\s|$)(?!(?:"
    + "|".join(rf"(?<=\b{unit}\.)" for unit in ["ft", "yd", "mi", "hr", "hrs", "min", "lb", "lbs", "gal"])
    + r")\s+\d)"
)
SEVERAL = re.compile(  # (a) 5 (b) 6; x = 5 or y = 6; an interval without end; "Option 2: 15"
    r"\([a-z]\)[^()]*\([a-z]\)|\b[A-Za-z]\w{0,20}\s{0,5}=[^=]{0,200}(?:[,;]|\b(?:and|or)\b)[\s$\\]*(?:quad|text)?[\s{}$]*[A-Za-z]\w{0,20}\s{0,5}="
    r"|∞|\\infty|\binfinity\b|\b[A-Za-z]+[ \t]+\d+:[ \t]+[^\n]*\d"
)
RANGE = re.compile(rf"[{DASHES}]|[ \t]+to[ \t]+")
SCALED = re.compile(SCALE, re.IGNORECASE)
BY_TWELVES = re.compile(r"[ \t-]*(?:dozens?|score)\b", re.IGNORECASE)  # "3 dozen": 36, or 3 where dozens are asked for
LIST = re.compile(r"(?:[ \t,;&|()\[\]$]|∞|\\infty|\\[{}]|\\text\{|\}|\b(?:and|or)\b)*")
UNIT = (
    r"(?:hours?|hrs?|h|minutes?|mins?|feet|foot|ft|yards?|yds?|miles?|mi|pounds?|lbs?|tons?|tonnes?|stones?|years?|yrs?"
    r"|months?|weeks?|days?|dollars?|bucks|euros?|degrees?|kilometers?|kilometres?|km|meters?|metres?|m|centimeters?"
    r"|centimetres?|cm|kilograms?|kilos?|kg|grams?|g|gallons?|gal|quarts?|qt|pints?|pt|cups?|liters?|litres?|l|dozens?"
    r"|quarters?|dimes?|nickels?)\.?"
)
SMALL_UNIT = (
    r"(?:minutes?|mins?|seconds?|secs?|s|inch(?:es)?|in|feet|foot|ft|yards?|yds?|ounces?|oz|pounds?|lbs?|months?|weeks?"
    r"|days?|hours?|hrs?|cents?|pence|meters?|metres?|m|centimeters?|centimetres?|cm|millimeters?|millimetres?|mm|grams?|g"
    r"|quarts?|qt|pints?|pt|cups?|tablespoons?|teaspoons?|milliliters?|millilitres?|ml|dimes?|nickels?|pennies|penny)"
)
COMPOUND = re.compile(rf"[ \t]*{UNIT}(?:,|,?[ \t]+and)?[ \t]*", re.IGNORECASE)
SMALLER = re.compile(rf"[ \t]*(?:{SMALL_UNIT}\b|[¢'′\"″])", re.IGNORECASE)
CENTS = re.compile(r"[ \t]*(?:cents?\b|¢)", re.IGNORECASE)
TAKEN_BACK = re.compile(TAKES_BACK + INSTEAD, re.IGNORECASE | re.MULTILINE)
CLAUSE_ENDS = re.compile(
    r"(?:[ \t]*(?:[^\W\d]+|[%°¢])){0,2}[*_)}$]{0,4}[ \t]*(?:[.!?;,](?!\d)|\n|\Z)"
)  # but for a unit
ANOTHER_SCALE = re.compile(r"(?:,|,?[ \t]+and)?[ \t]+")


@dataclass(frozen=True)
class Marked:
    """Where a text marks its answer: [start, end) with the mark, of which [first, last) is the content."""

    start: int
    first: int
    last: int
    end: int


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` (or `\\fbox`), braces balanced; None without one."""
    found = _boxed(text)
    return None if found is None else text[found.first : found.last].strip()


def _boxed(text: str) -> Marked | None:
    """The box that begins last among those that are closed."""
    boxes = {match.end() - 1: match.start() for match in BOX.finditer(text)}
    opened: list[int] = []
    found: Marked | None = None
    for brace in BRACE.finditer(text) if boxes else ():
        if brace[0] == "{":
            opened.append(brace.start())
            continue
        first = opened.pop() if opened else -1
        if first in boxes and (found is None or boxes[first] > found.start):
            found = Marked(boxes[first], first + 1, brace.start(), brace.end())
    return found


def _sentence(text: str) -> str:
    return SENTENCE_END.split(text, maxsplit=1)[0]


def _is_heading(match: re.Match[str]) -> bool:
    """Whether a `####` line is Markdown ("#### 2. Add the parts", a text under it), not GSM8K's answer."""
    return bool(NUMBERED_HEADING.match(match["rest"]) and match.string[match.end() :].strip())


def stated_answer(text: str) -> str | None:
    """What the text marks as its answer: the last `\\boxed{}`, else `#### x`, else "the answer is x"."""
    found = marked_answer(text)
    return None if found is None else text[found.first : found.last].strip()


def marked_answer(text: str) -> Marked | None:
    """Where `stated_answer` stands."""
    if (found := _boxed(text)) is not None:
        return found
    hashes = [match for match in HASHES.finditer(text) if not _is_heading(match)]
    if hashes and hashes[-1]["rest"].strip():
        return _of_sentence(hashes[-1])
    stated = (_of_sentence(match) for match in reversed(list(ANSWER_IS.finditer(text))))
    return next((one for one in stated if text[one.first : one.last].strip()), None)


def _of_sentence(match: re.Match[str]) -> Marked:
    """The mark, and the first sentence of what follows."""
    first = match.start("rest")
    last = first + len(_sentence(match["rest"]))
    return Marked(match.start(), first, last, last)


def final_number(completion: str) -> Fraction | None:
    """The number that a completion ends up with, or None.

    In this order: the number in what the text marks as its answer (`stated_answer`; after its last "=" if it
    has one), then the last number of the text. What follows a made-up next question is not looked at, if an
    answer stands before it. None, too, for a number that is not read whole, and for one of several that belong
    together ("3 + 4", "2, 3 and 5", "3 hours 20 minutes").
    """
    return _final(completion, strict=False)


def _final(completion: str, *, strict: bool) -> Fraction | None:
    """`final_number`; the last number of a text may be the end of a range ("5-10") unless `strict`."""
    found = located_number(completion, strict=strict)
    if found is None or (strict and BY_TWELVES.match(_without_notes(completion)[0], found[2])):
        return None
    return found[0]


def located_number(completion: str, *, strict: bool) -> tuple[Fraction, int, int] | None:
    """The final number, and where what was read begins and ends: at the mark, if it has one."""
    parts = [_without_notes(part) for part in answer_parts(completion)]
    first = final_offset(completion)
    for part, places in parts:
        if (marked := marked_answer(part)) is None:
            continue
        stated = part[marked.first : marked.last].strip()
        if SEVERAL.search(stated) or _worked_on(part, marked):
            return None
        inside = part.index(stated, marked.first)
        for skipped in (stated.rfind("=") + 1, 0):
            if found := numerals(stated[skipped:]):
                value = _first(stated[skipped:], found)
                end = marked.end if marked.end > marked.last else inside + skipped + found[0].end
                value, end = _instead(part, value, end)
                return None if value is None else (value, first + places[marked.start], first + places[end - 1] + 1)
        if marked.end > marked.last:  # an empty box, or words: no other number of the text is what it stands for
            return None
    for part, places in map(_without_notes, answer_parts(completion, marked=False)):
        if found := numerals(part):
            *before, last = found
            if before and (_list(part, found) or _joined(part, before[-1], last, ranges=strict)):
                return None
            if last.value is None:
                return None
            return last.value, first + places[last.start], first + places[last.end - 1] + 1
    return None


def _instead(text: str, value: Fraction | None, end: int) -> tuple[Fraction | None, int]:
    """The number of a marked answer that ends at `end`, or where that is taken back what takes its place, and where
    that ends: "The answer is 18. Wait, no, it's 20." """
    place = end
    while again := TAKEN_BACK.search(text, place):
        start, place = again.span()
        behind = (one for one in numerals(text[start : place + MAX_NUMBER]) if start + one.end > place)
        number = next(behind, None)
        if number is not None and start + number.start <= place + 4 and CLAUSE_ENDS.match(text, start + number.end):
            value, end = number.value, start + number.end
            place = end
        elif again["firmly"]:
            found = located_number(text[place:], strict=False)
            return (None, end) if found is None else (found[0], place + found[2])
    return value, end


def _worked_on(text: str, marked: Marked) -> bool:
    """Whether a box is only a part of the answer: -\\boxed{18}, \\boxed{18}^2, \\boxed{5!}."""
    if marked.end == marked.last:
        return False
    factorial = text[marked.first : marked.last].rstrip().endswith("!")
    goes_on = OUTSIDE.match(text, marked.end) or SCALED.match(text, marked.end)
    return factorial or bool(goes_on) or text[: marked.start].endswith(tuple("-−–+*/^"))


def _without_notes(text: str) -> tuple[str, Sequence[int]]:
    """The text without GSM8K's calculator notes, and the place of each of its characters in the whole."""
    if "<<" not in text:
        return text, range(len(text))
    noted = {place for match in ANNOTATION.finditer(text) for place in range(*match.span())}
    places = [place for place in range(len(text)) if place not in noted]
    return "".join(text[place] for place in places), places


def _first(content: str, found: list[Numeral]) -> Fraction | None:
    """The first number of what is marked as the answer ("18 of the 20"), unless it is part of something larger."""
    if len(found) > 1 and (_list(content, found) or _joined(content, found[0], found[1], ranges=True)):
        return None
    return found[0].value


def _list(text: str, found: list[Numeral]) -> bool:
    """Whether there is nothing on a line but numbers and what separates them."""
    for numeral in reversed(found):
        text = text[: numeral.start] + text[numeral.end :]
    return LIST.fullmatch(text) is not None


def _joined(text: str, first: Numeral, second: Numeral, *, ranges: bool) -> bool:
    """Whether two neighbouring numbers stand for something together; a range does if `ranges`."""
    between = text[first.end : second.start]
    if len(between) > 80:
        return False
    plain = "/" not in text[first.start : first.end] + text[second.start : second.end]
    if RANGE.fullmatch(between) and plain:
        return ranges
    if COMPOUND.fullmatch(between) and SMALLER.match(text, second.end):
        return True
    money = "$" in text[first.start : first.end] and CENTS.match(text, second.end)
    if (first.scaled or money) and ANOTHER_SCALE.fullmatch(between):
        return True
    return bool(JOINED.fullmatch(between))


class NumberGrader(Grader):
    """The final number, compared exactly (1,000 = 1000.0 = $1,000; 50% counts as 50; 1/2 = 0.5)."""

    def reference(self, example: Example, text: str) -> str:
        value = _final(text, strict=True)
        if value is None:
            found = numerals(text)
            if not found:
                raise RowError("the reference holds no number")
            raise RowError(f"the reference does not end with one number that can be read whole: {text.strip()[-80:]!r}")
        return show(value)

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """The final number with what marks it ("#### 18")."""
        found = located_number(example.response, strict=False)
        return [] if found is None else [found[1:]]

    def verdict(self, item: Item) -> Grade:
        value = final_number(item.completion)
        if value is None:
            found = numerals(item.completion)
            return Grade(False, None, "its number cannot be read whole" if found else "no number found")
        right = show(value) == item.reference
        return Grade(right, show(value), "equal" if right else f"{show(value)} is not {item.reference}")
