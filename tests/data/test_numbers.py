"""Numbers in a text."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from xtf.data import numbers as numbers_module
from xtf.data.numbers import numbers, numerals, show


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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234,567.89", "1234567.89"),
        ("12 345", "12345"),
        ("12\u00a0345", "12345"),
        ("12\u202f345", "12345"),
        ("12'345", "12345"),
        ("12’345", "12345"),
        (r"12\,345", "12345"),
        ("12{,}345", "12345"),
        ("3 1/4", "3.25"),
        ("3 and 1/4", "3.25"),
        (r"3\frac{1}{4}", "3.25"),
        (r"3 \dfrac14", "3.25"),
        ("3¼", "3.25"),
        ("3 ¼", "3.25"),
        ("3 and a half", "3.5"),
        ("7 and two thirds", "23/3"),
        ("¾", "0.75"),
        ("10^4", "10000"),
        ("10^{-2}", "0.01"),
        ("10⁻²", "0.01"),
        ("2**5", "32"),
        ("-2^2", "-4"),
        ("2.5e4", "25000"),
        ("2.5E−4", "0.00025"),
        ("1e3.", "1000"),
        ("4 × 10^3", "4000"),
        (r"4 \cdot 10^{-3}", "0.004"),
        ("4*10**3", "4000"),
        ("4 x 10³", "4000"),
        ("2.5 million", "2500000"),
        ("2.5-million", "2500000"),
        (r"2.5 \text{ billion}", "2500000000"),
        ("3 hundred thousand", "300000"),
        ("1 and a half million", "1500000"),
        ("$7k", "7000"),
        ("€2bn", "2000000000"),
        ("$1.2 bn", "1200000000"),
        ("$1.2 M", "1200000"),
        ("$5 K", "5000"),
        ("€1.2 Mio.", "1200000"),
        ("Rs.500", "500"),
        ("USD 3 m", "3000000"),
        ("$5 T-shirts", "5"),
        ("300 M&Ms", "300"),
        ("1.5 T", "1.5"),
        ("10mm", "10"),
        ("**1.2** million", "1200000"),
        ("12\u2007345", "12345"),
        ("12\u2002345", "12345"),
        ("12\u02bc345", "12345"),
        ("neg 8", "-8"),
        ("neg. 8", "-8"),
        ("\u20128", "-8"),
        ("100 and put half away", "100"),
        ("on the second one and 85 then", "85"),
        ("minus 8", "-8"),
        ("negative 8", "-8"),
        ("It is minus 8", "-8"),
        ("it fell to - 8", "-8"),
        ("−8", "-8"),
        ("$-8", "-8"),
        ("-$8", "-8"),
        ("1/2,000", "0.0005"),
        ("90^\\circ", "90"),
        ("the 5^{th}", "5"),
        ("18 to the nearest unit", "18"),
    ],
)
def test_a_number_is_read_whole_in_every_way_to_write_it(text: str, value: str) -> None:
    assert [show(number) for number in numbers(text)] == [value]


@pytest.mark.parametrize(
    "text",
    [
        "3 5/4",  # neither 4.25 nor 3
        "1/0",
        "10^{n}",
        "10^999999999",
        "9^9^9",
        "(-2)^2",
        r"3\sqrt{2}",
        r"3\pi",
        "3√2",
        r"\frac{\sqrt{3}}{2}",
        "3 squared",
        "3 hundredths",
        "2 thirds",
        "7k",
        r"0.\overline{3}",
        "10 to the power of six",
        "10 to the sixth",
        "10 to the minus six",
        "1.2 M",
        "1.2 B",
        "50 K",
        "1.2 Mio",
        "1.2 mil",
        "1.2 million and a half",
        "5 and seven eighths",
        "three and 1/2",
        "two and 3/4 hours",
        "0.3 recurring",
        "0.3\u0305",
        "1 half",
        "No.5",
        "1.5 x 10-3",
        "1.5 E3",
        "5 degrees below zero",
    ],
)
def test_what_is_not_read_whole_has_no_value(text: str) -> None:
    assert numerals(text) and numbers(text) == []


def test_exponents_of_names_and_items_of_a_list_are_no_numbers_of_their_own() -> None:
    assert numbers("25 cm^2 and x_1 and m^{3}") == [25]
    assert numbers("This is left:\n- 5 apples\n- 6 pears") == [5, 6]


def test_a_minus_between_two_numbers_takes_away() -> None:
    assert numbers("12 - 5 = 7") == [12, 5, 7]
    assert numbers("10-5 and 5–10") == [10, 5, 5, 10]
    assert [numeral.value for numeral in numerals("12 apples minus 5")] == [12, None]


def test_a_million_digits_and_letters_are_read_in_no_time() -> None:
    assert numbers("1," * 50_000 + "a" * 100_000 + " 7")[-1] == 7


def test_what_is_looked_up_first_changes_nothing_that_is_found():
    """The short ways before three patterns, against the patterns alone, on texts put together at random."""
    draw = random.Random(0)
    parts = [
        *" \t\n.,;:!?-−+*/·×÷^_=<>≤≥≠()[]{}$%\\|'’\"√±∓∛π∞½xmA4",
        "\\frac",
        "\\pi",
        "\\cdot",
        "\\sqrt",
        "cm^2",
        "<b>",
    ]
    parts += [
        "half of ",
        "twice ",
        "not ",
        "isn't ",
        "n’t ",
        "between 3 and ",
        "% of the ",
        "twenty-",
        "log ",
        "12",
        " 7",
    ]
    for _ in range(40_000):
        text = "".join(draw.choices(parts, k=draw.randint(0, 6)))
        for sign in (1, -1, None):
            bare = numbers_module.TAG.sub("", text)
            found = numbers_module.INSIDE.search(bare) or numbers_module.INSIDE_WORDS.search(bare)
            found = found or (sign == -1 and numbers_module.MAGNITUDE.search(bare))
            assert numbers_module._inside(text, sign) == bool(found), (text, sign)
        assert numbers_module._of_a_name(text) == bool(numbers_module.PART_OF_A_NAME.search(text)), text
        assert numbers_module._goes_on(text, 0) == bool(numbers_module.OUTSIDE.match(text, 0)), text
