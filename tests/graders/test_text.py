"""Texts that are the same, or that hold the reference."""

from __future__ import annotations

import pytest

import xtf
from xtf.graders.base import Grade


def test_exact_ignores_white_space_and_unicode_composition_and_nothing_else() -> None:
    assert xtf.grade("exact", " Z\u00fcrich See\n", "Zu\u0308rich  See").correct is True
    assert xtf.grade("exact", "zürich", "Zürich").correct is False
    assert xtf.grade("exact", " ", "Zürich") == Grade(False, None, "empty")


def test_contains_looks_for_the_reference_in_any_case() -> None:
    assert xtf.grade("contains", "It is in ZÜRICH.", "Zürich").correct is True
    assert xtf.grade("contains", "It is in Bern.", "Zürich").correct is False
    with pytest.raises(ValueError, match="reference is empty"):
        xtf.grade("contains", "anything", " ")


@pytest.mark.parametrize(
    ("reference", "completion", "whole", "anywhere"),
    [
        ("no", "Normal findings, nothing unusual.", False, True),
        ("no", "It is: NO.", True, True),
        ("5", "She has 15 pens.", False, True),
        ("5", "She has 1.5 pens.", False, True),
        ("5", "It fell to -5.", False, True),
        ("5", "She has 5. He has none.", True, True),
        ("1,000", "In all 1,000 pens", True, True),
        ("000", "In all 1,000 pens", False, True),
        ("A", "The answer is B: apples", False, True),
        ("A", "a good question", False, True),
        ("A", "It is (A).", True, True),
        ("New York", "It is in new york, I think", True, True),
        ("(b)", "It is(b)or so", True, True),
        ("北京", "我在北京。", True, True),
        ("Bern", "It is in Zürich.", False, False),
        ("C", "I write C++ and C#.", False, True),
        ("C++", "I write C++.", True, True),
        ("5", "In all 5 000 pens", False, True),
        ("-5", "It fell to −5.", True, False),
        ("-5", "It is 10-5.", False, True),
        (".net", "I read asp.net.", False, True),
        (".NET", "I write .NET.", True, True),
        ("C++", "I write C++11.", False, True),
        ("C+", "I write C++.", False, True),
        ("no", "No-one knows.", False, True),
        ("one", "No-one knows.", False, True),
        ("no", "No - it is not.", True, True),
        ("can", "It can't be.", False, True),
        ("John", "It is John's.", True, True),
        ("$5", "It is -$5.", False, True),
        ("$5", "It is $5, not more.", True, True),
        ("5%", "It is 15%.", False, True),
        ("U.S.", "In the U.S.A. it is", False, True),
        ("Yes.", "Yes. It is.", True, True),
        ("“no”", "He said“no”then", True, True),
    ],
)
def test_contains_looks_for_whole_words_and_substring_for_any(
    reference: str, completion: str, whole: bool, anywhere: bool
) -> None:
    assert xtf.grade("contains", completion, reference).correct is whole
    assert xtf.grade("substring", completion, reference).correct is anywhere
