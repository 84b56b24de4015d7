"""Every number in a text, exactly."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_NUMBER = 200  # characters; a model that repeats one digit has not given a number


# -- finding the answer in a text ----------------------------------------------------------------------------

SIGN = r"(?<![\w)\]}.,])[-−–]"  # not the minus of "10-5" nor the dash of "5–10"
CURRENCY = r"(?:\\?[$€£¥]\s*)"
DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
LATEX_FRACTION = r"\\[dt]?frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
NUMBER = re.compile(
    rf"(?P<sign>{SIGN})?\s*{CURRENCY}?(?P<inner>(?<=[$€£¥])[-−–])?"
    rf"(?:{LATEX_FRACTION}|(?P<digits>{DIGITS})(?:\s*/\s*(?P<over>\d+(?:\.\d+)?)(?![\d/]))?)"
)


def numbers(text: str) -> list[Fraction]:
    """Every number in a text, exactly: signs, separators, currency, decimals, a/b and \\frac{a}{b}."""
    found = []
    for match in NUMBER.finditer(text):
        if len(match[0]) > MAX_NUMBER:
            continue
        if match["top"]:
            top, bottom = Fraction(match["top"]), Fraction(match["bottom"])
        else:
            top = Fraction(re.sub(r"[^\d.]", "", match["digits"]))
            bottom = Fraction(match["over"] or 1)
        if bottom != 0:
            found.append(-top / bottom if match["sign"] or match["inner"] else top / bottom)
    return found


def show(value: Fraction) -> str:
    """A number as people write it, exactly: 18, -0.5, 1/3."""
    for places in range(MAX_NUMBER):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            sign, whole, rest = (
                "-" * (value < 0),
                digits[: len(digits) - places],
                digits[len(digits) - places :],
            )
            return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"
    return str(value)
