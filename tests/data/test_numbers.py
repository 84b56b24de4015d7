"""Numbers in a text."""

from __future__ import annotations

from fractions import Fraction

from xtf.data.numbers import numbers, show


def test_numbers_are_exact_and_division_by_zero_is_no_number() -> None:
    assert numbers("0.1 2/3 1/0 10,00 1,000,0") == [
        Fraction(1, 10),
        Fraction(2, 3),
        Fraction(10),
        Fraction(0),
        Fraction(1000),
        Fraction(0),
    ]


def test_shown_numbers_are_short_and_exact() -> None:
    assert [show(Fraction(text)) for text in ("18", "-1/2", "0.125", "1/3", "-1000000", "0.00012345678901234567")] == [
        "18",
        "-0.5",
        "0.125",
        "1/3",
        "-1000000",
        "0.00012345678901234567",
    ]
