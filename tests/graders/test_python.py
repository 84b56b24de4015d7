"""The user's own function as a grader."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import xtf
from xtf.config.schema import TaskConfig
from xtf.data.examples import Example
from xtf.graders.base import Grade
from xtf.tasks import load_task


def test_an_own_function_grades_with_the_row_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_grader.py").write_text(
        "import numpy\n"
        "from xtf.graders.base import Grade\n"
        "def same(completion, reference, row):\n"
        "    if completion == 'skip': return None\n"
        "    if completion == 'boom': raise KeyError(reference)\n"
        "    if completion == 'bad': return 1\n"
        "    if completion == 'numpy': return numpy.bool_(True)\n"
        "    if completion == 'grade': return Grade(numpy.bool_(False), 'x', 'why')\n"
        "    if completion == 'share': return Grade(0.5, 'x', 'why')\n"
        "    return completion == reference * row['k']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert xtf.grade("python:own_grader.same", "ab", "ab", row={"k": 1}).correct is True
    assert xtf.grade("python:own_grader.same", "b", "ab", row={"k": 1}).correct is False
    assert xtf.grade("python:own_grader.same", "skip", "ab", row={"k": 1}).correct is None
    assert xtf.grade("python:own_grader.same", "numpy", "ab", row={"k": 1}).correct is True
    assert xtf.grade("python:own_grader.same", "grade", "ab", row={"k": 1}) == Grade(False, "x", "why")
    with pytest.raises(
        ValueError, match=r"must return one Grade for each item, .* not Grade\(correct=0\.5.* \(example '1'\)"
    ):
        xtf.grade("python:own_grader.same", "share", "ab", row={"k": 1})
    with pytest.raises(ValueError, match="must return True, False, None or a Grade, not 1"):
        xtf.grade("python:own_grader.same", "bad", "ab", row={"k": 1})
    with pytest.raises(ValueError, match=r"own_grader\.same failed on example '1': KeyError: 'ab'"):
        xtf.grade("python:own_grader.same", "boom", "ab", row={"k": 1})
    for path in ("own_grader.none", "no_such_module.f", "plain"):
        with pytest.raises(ValueError, match=r"Give python:module\.function"):
            xtf.grade(f"python:{path}", "", "", row={"k": 1})
    sys.modules.pop("own_grader")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return 1.0",
            r"must return True, False, None or a Grade, not 1\.0 \(the first row, tried with its own answer",
        ),
        (
            "return completion.strip() == reference or 0",
            r"must return True, False, None or a Grade, not 0 \(the first row, tried with a wrong answer before",
        ),
        (
            "return completion.split()[0] == reference",
            r"'e7': IndexError: .* \(the first row, tried with an empty answer",
        ),
        (
            "return completion == reference or None",
            r"no verdict \(None\) on a wrong and on an empty answer .* return False",
        ),
        ("return row['none']", r"^task\.grader=python:tried\.f failed on example 'e7': KeyError: 'none' \(the"),
    ],
)
def test_an_own_function_is_tried_on_one_row_before_training(
    body: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tried.py").write_text(f"def f(completion, reference, row):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = load_task(TaskConfig(name="custom", grader="python:tried.f"))
    with pytest.raises(ValueError, match=message):
        task.check([Example("e7", ({"role": "user", "content": "q"},), "four", {"question": "q", "answer": "four"})])
    sys.modules.pop("tried")
