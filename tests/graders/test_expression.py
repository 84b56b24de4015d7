"""Equivalent expressions: hand-worked pairs, and every reference of MATH-500."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

import xtf
from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.examples import Example
from xtf.data.rows import load_rows
from xtf.graders.base import Item
from xtf.graders.expression import Equivalence, MathGrader, final_expression
from xtf.tasks import load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        (r"Hence \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("The answer is $x^2$.", "x^2"),
        ("We get $a$, then $b+1$ at last", "b+1"),
        (r"so \(c\) follows", "c"),
        ("it makes 12 in all", "12"),
        ("no idea", None),
    ],
)
def test_the_final_expression_of_a_text(text: str, expression: str | None) -> None:
    assert final_expression(text) == expression


PAIRS = [
    (r"\frac{1}{2}", "0.5", True),
    (r"\frac{1}{2}", r"\dfrac12", True),
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"x^2 + 2x + 1", r"(x+1)^2", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)", True),
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{(C)}", r"\text{C}", True),
    (r"90^\circ", "90", True),
    (r"5.4 \text{ cents}", "5.4", True),
    (r"\frac{1}{2}", r"\frac{1}{3}", False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(\pi/2, 3)", False),
    ("p - q", "q - p", False),
    (r"\text{Evelyn}", "Evan", False),
    ("52_8", "52_9", False),
    ("52_8", "52_{8}", True),
    (".0000672", ".0000673", False),
    ("(1,2)", "[1,2]", False),
]


def test_equivalent_expressions() -> None:
    items = [
        Item(Example("1", (), reference, {}), rf"So \boxed{{{answer}}}", reference) for reference, answer, _ in PAIRS
    ]
    assert [result.correct for result in MathGrader().grade(items)] == [right for _, _, right in PAIRS]


def test_a_comparison_that_does_not_end_stops_at_the_limit_and_the_next_one_works() -> None:
    equivalence = Equivalence(workers=1, seconds=2)
    hostile = r"9^{9^{9^{9}}}"
    (stopped, _), (right, _) = equivalence.compare([("1", hostile + "+1"), ("2", "1+1")])
    assert (stopped, right) == (False, True)
    grades = MathGrader(equivalence).grade(
        [Item(Example("1", (), "7", {}), rf"\boxed{{{'(' * 500}x{')' * 500}^{{{hostile}}}}}", "7")]
    )
    assert grades[0].correct is False


def test_expressions_can_be_compared_from_any_thread() -> None:
    results: list[list[tuple[bool, str]]] = []
    thread = threading.Thread(target=lambda: results.append(Equivalence(workers=2).compare([("1/2", "0.5")] * 3)))
    thread.start()
    thread.join()
    assert results == [[(True, "equivalent")] * 3]


def test_an_answer_as_long_as_an_essay_is_no_answer() -> None:
    assert xtf.grade("math", rf"\boxed{{{'7+' * 2000}0}}", "7").reason == "longer than 2000 characters"


# Changing the last digit of these references changes a unit's exponent, which math-verify does not compare.
UNITS = {"test/geometry/473.json", "test/prealgebra/1114.json"}


@needs_data
def test_all_math500_references_grade_as_right_and_changed_ones_as_wrong() -> None:
    math500 = load_task(TaskConfig(name="math500", grader="math"))
    rows = load_rows(SourceConfig(path=str(SHARED / "math500" / "math500_test.json")))
    examples = math500.examples(rows, training=False)
    assert len(examples) == 500
    keys = [math500.reference(example) for example in examples]
    solutions = math500.grade([(example, example.response) for example in examples])
    assert all(result.correct for result in solutions)
    changed = []
    for place, (example, key) in enumerate(zip(examples, keys, strict=True)):
        digits = list(re.finditer(r"\d", key))
        other = keys[place - 1]
        if digits:
            at = digits[-1].start()
            other = f"{key[:at]}{(int(key[at]) + 1) % 10}{key[at + 1 :]}"
        changed.append((example, rf"\boxed{{{other}}}"))
    results = math500.grade(changed)
    passed = {example.example_id for (example, _), result in zip(changed, results, strict=True) if result.correct}
    assert passed == UNITS


@needs_data
def test_math_verify_itself_agrees_with_every_fourth_math500_reference() -> None:
    rows = load_rows(SourceConfig(path=str(SHARED / "math500" / "math500_test.json")))
    verdicts = Equivalence().compare([(row["answer"], row["answer"]) for row in rows.rows[::4]])
    assert all(right for right, _ in verdicts)
