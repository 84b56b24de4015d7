"""The user's own function as a grader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import xtf


def test_an_own_function_grades_with_the_row_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_grader.py").write_text(
        "def same(completion, reference, row):\n"
        "    if completion == 'skip': return None\n"
        "    if completion == 'boom': raise KeyError(reference)\n"
        "    if completion == 'bad': return 1\n"
        "    return completion == reference * row['k']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert xtf.grade("python:own_grader.same", "ab", "ab", row={"k": 1}).correct is True
    assert xtf.grade("python:own_grader.same", "b", "ab", row={"k": 1}).correct is False
    assert xtf.grade("python:own_grader.same", "skip", "ab", row={"k": 1}).correct is None
    with pytest.raises(TypeError, match="must return True, False, None or a Grade, not 1"):
        xtf.grade("python:own_grader.same", "bad", "ab", row={"k": 1})
    with pytest.raises(RuntimeError, match=r"own_grader\.same failed on example '1'"):
        xtf.grade("python:own_grader.same", "boom", "ab", row={"k": 1})
    for path in ("own_grader.none", "no_such_module.f", "plain"):
        with pytest.raises(ValueError, match=r"Give python:module\.function"):
            xtf.grade(f"python:{path}", "", "", row={"k": 1})
    sys.modules.pop("own_grader")
