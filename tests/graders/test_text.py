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
