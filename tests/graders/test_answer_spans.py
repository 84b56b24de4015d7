"""What of a response a grader reads, against texts in which it is marked by hand: [[...]] is a span."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example
from xtf.graders import load_grader


def spans_in(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without its marks, and the spans that they enclose."""
    text, spans = "", []
    for part in re.split(r"(\[\[.*?\]\])", marked, flags=re.DOTALL):
        if part.startswith("[["):
            spans.append((len(text), len(text) + len(part) - 4))
            part = part[2:-2]
        text += part
    return text, spans


def check(grader: str, marked: str, row: dict[str, Any] | None = None, **config: Any) -> None:
    text, spans = spans_in(marked)
    found = load_grader(TaskConfig(name="custom", grader=grader, **config), Path("outputs"))
    assert found.names_answers()
    assert found.answer_spans(Example("1", (), text, row or {})) == spans, [text[a:b] for a, b in spans]


@pytest.mark.parametrize(
    "marked",
    [
        "Sales fell by <<48/2=24>>24 in May.\n[[#### 72]]",
        "He pays 3 * 4 = <<3*4=12>>12.\n[[#### $1,200]] dollars",
        "So x = 3 and y = 4: [[\\boxed{12}]]. Done.",
        "The [[answer is 3 + 4 = 7]] apples, not 9.",
        "First 3, then 4, in all [[7]] apples.",
        "<<1+1=2>>2 of <<2+2=4>>[[4]] are left.",
        "<think>it is 5</think>  We get [[#### 8]]",
        "[[#### 8]]\nQuestion: what is 3 + 4?\n#### 7",
        "No number here.",
        "It is 3 + 4.",
    ],
)
def test_the_final_number_with_its_mark(marked: str) -> None:
    check("number", marked)


@pytest.mark.parametrize(
    "marked",
    [
        "It rose in all groups.\n\n[[Decision: yes]]",
        "We found no difference, [[so the answer is maybe]].",
        "Some text.\n[[No]].",
        "  [[yes]], as the trial shows.",
        "Decision: no. On reflection, [[the decision is: yes]]",
        "It was large. [[Yes is the correct]] answer.",
        "<think>maybe</think>\n[[Answer: no]]\nQuestion: is it? Answer: yes",
        "Nothing is settled.",
    ],
)
def test_the_decision_with_the_words_that_lead_to_it(marked: str) -> None:
    text, spans = spans_in(marked)
    grader = load_grader(TaskConfig(name="custom", grader="decision"), Path("outputs"))
    (found,) = grader.answer_spans(Example("1", (), text, {})) or [None]
    if not spans:
        assert found is None
        return
    # A rule may begin within the marked words ("the answer is"), never behind them, and ends with them.
    assert found[1] == spans[0][1] and spans[0][0] <= found[0] < found[1], text[found[0] : found[1]]
    assert grader.decide(text) == grader.decide(text[found[0] : found[1]]), "what is kept alone is read alike"


def test_other_choices_and_expressions() -> None:
    check("choice", "I think of B first, but [[Answer: C]]", choices=["A", "B", "C"])
    check("math", "We have $r = 3$. [[\\boxed{\\frac{\\pi}{2}}]].")
    check("math", "So $a = 2$ and [[$b = \\sqrt{2}$]] follow.")
    check("math", "There are [[12]] ways.")


def test_the_first_line_of_a_function() -> None:
    fenced = "Here it is:\n```python\n[[def area(r: float) -> float:]]\n    def half(x):\n        return x\n```"
    check("code", fenced)
    check("code", "[[class Box:]]\n    pass\n\n[[async def run(box):]]\n    return box\n")
    tests = {"text": "Area.", "code": "def area(r):\n    return r\n", "test_list": ["assert area(1) == 1"]}
    check("code", "def helper(r):\n    return r\n[[def area(r):]]\n    return helper(r)\n", tests)
    human = {"prompt": "def area(r):\n", "entry_point": "area", "canonical_solution": "    return r", "test": "x"}
    check("code", "    return r\n", human)


def test_graders_that_do_not_say_what_they_read() -> None:
    for name in ("exact", "contains", "substring", "judge"):
        config = TaskConfig(name="custom", grader=name)
        config.judge.base_url, config.judge.model = "http://localhost:1/v1", "m"
        grader = load_grader(config, Path("outputs"))
        assert not grader.names_answers()


def test_a_function_of_the_users_says_it_with_an_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_grader")

    def grade(completion: str, reference: str, row: dict[str, Any]) -> bool:
        return completion == reference

    module.grade = grade  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_grader", module)
    name = "python:own_grader.grade"
    assert not load_grader(TaskConfig(name="custom", grader=name), Path("outputs")).names_answers()
    grade.answer_spans = lambda response, row: [(0, row["length"])]  # type: ignore[attr-defined]
    check(name, "[[abc]] def", {"length": 3})
