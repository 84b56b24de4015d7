"""Equivalent expressions: hand-worked pairs, and every reference of MATH-500."""

from __future__ import annotations

import re
import signal
import sys
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
        ("The answer is 2 1/2.", "2 1/2"),
        ("it makes 3 + 4", None),
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
    ("x^2 + 2x + 1", "(x+1)^2", True),
    ("4", r"4\sqrt(2)", False),
    (r"4\sqrt{2}", r"4\sqrt(2)", True),
    ("3t", "3", False),
    ("3", "3t", False),
    (r"1-\frac{1}{\text{e}}", "1-1/e", True),
    (r"1-\frac{1}{\mathrm{e}}", "1-e^{-1}", True),
    ("1/3", "0.333333", False),
    ("1/3", "0.333333333333", True),
    ("10^{-20}", r"2 \cdot 10^{-20}", False),
    (r"\frac{x}{2^{99}}", r"\frac{x}{2^{98}}", False),
    (r"\{2^{-99},1\}", r"\{2^{-98},1\}", False),
    ("1.5e-3", "0.0015", True),
    ("0.0015", "1.5e-3", True),
    ("2 1/2", "2.5", True),
    ("2 1/2", "0.5", False),
    (r"2\frac{1}{2}", "5/2", True),
    ("1.2 million", "1200000", True),
    ("3.14...", "3.14", False),
    ("3.14", "3.14...", False),
    ("3.14...", "3.14...", True),
    ("3.14", "3.14.", True),
    ("3 x 10^5", "300000", True),
    ("300000", "3×10⁵", True),
    ("1.5 x 10^{-3}", "0.0015", True),
    ("3 x 10^5", "3x", False),
    ("1\u2007000", "1000", True),
    ("1 000", "1000", True),
    ("1'000", "1000", True),
    ("-3", "minus 3", True),
    (r"50\%", "50", True),
    ("0.5", r"50\%", False),
    ("10 cm", "10 m", False),
    ("10 cm", r"10 \text{ centimeters}", True),
    (r"10 \text{ cm}", "10", True),
    ("10", "10 cm", True),
    (r"864 \mbox{ inches}^2", r"864 \mbox{ inches}^3", False),
    (r"864 \mbox{ inches}^2", "864", True),
    (r"864 \mbox{ inches}^2", "864 square inches", True),
    (r"5 \text{ m/s}", "5 meters per second", True),
    (r"5 \text{ m/s}", "5 km/h", False),
    ("10 m", r"10\text{ m}", True),
    (r"5\text{ apples}", "5", True),
    ("3 apples", "3", True),
    ("x^2+1=0", "x^2+2=0", False),
    ("x=5", "5", True),
    ("5", "x=5", True),
    ("y = 2x+1", "y=1+2x", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2.0\end{pmatrix}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", False),
    ("1, 2, 3", "3, 2, 1", True),
    ("1,2", r"1 \text{ and } 2", True),
    (r"\frac{\sqrt{3}}{2}", r"\frac{3}{2\sqrt{3}}", True),
    ("1{,}000", "1000", True),
    (r"11,\! 111,\! 111,\! 100", "11111111100", True),
    ("6 - 5i", "-5i+6", True),
    ("7!", "5040", True),
    (r"2\sqrt{3}+\frac{1}{\text{e}}", r"2\sqrt{3}", False),
    ("12", "1 2", False),
    ("7", "3 4", False),
    ("34", "3 4", False),
    ("3, 4", "3 4", False),
    (r"x \in [-2,7]", "[-2,7]", True),
    ("(3,4]", "(3,4]", True),
    ("1.2.3", "0.36", False),
    (r"\$32", "32", True),
    ("3:00 p.m.", "3", False),
    (r"\text{even}", "odd", False),
    ("100000000001", "100000000002", False),
    ("1.00000000001", "1.00000000002", False),
    (r"\log_2 8", "3", True),
    (r"2^{\frac12}", r"\sqrt2", True),
    (r"\frac{1}{2}\text{ or }\frac13", r"\frac12", False),
    (r"\pi", "3.14159265358979", True),
    (r"\pi", "3.1416", False),
    (r"1\,000", "1000", True),
    (r"7 \text{ hours}", "7", True),
    ("5 minutes", "300 seconds", False),
    (r"\infty", "infinity", True),
    (r"2 \pi", "2 pi", True),
    ("x+y", "x+", False),
    ("10^{6}", "1000000", True),
    (r"-\frac{1}{2}", "-1/2", True),
    ("0", "0.0", True),
    ("0", "10^{-30}", False),
    ("9^{99}", "9^{98}", False),
    (r"1\frac12", "3/2", True),
    ("2 3/2", "3.5", False),
    ("(2,3)", r"\{2,3\}", False),
    (r"\{2,3\}", "3, 2", True),
    (r"\$5", "5 cents", False),
    (r"\$5", r"\text{5 dollars}", True),
    ("€5", r"\$5", False),
    (r"e^{i\pi}", "-1", True),
    ("|3+4i|", "5", True),
    ("3+4i", "3-4i", False),
    (r"\emptyset", r"\varnothing", True),
    (r"3\frac{1}{2}x", r"\frac{7}{2}x", True),
    ("7", r"\approx 7", True),
    ("-7", "–7", True),
    ("7", "7'", False),
    # ratios: parts in proportion; of two parts, their quotient
    ("3:4", r"\frac{3}{4}", True),
    ("3:4", "0.75", True),
    (r"\frac{3}{4}", "3:4", True),
    ("3:4", "6:8", True),
    ("3 : 4", "3:4", True),
    ("3:4", "4:3", False),
    ("3:4", r"\frac{4}{3}", False),
    ("1.5:2", "3:4", True),
    ("1:2:3", "2:4:6", True),
    ("1:2:3", r"\frac{1}{6}", False),
    ("1:2:3", "1:2", False),
    ("3:4:5", "3:4:6", False),
    ("0:4", "0:5", True),
    ("3:0", "3", False),
    (r"\frac{1}{16}", "1:16", True),
    # times: as written
    ("3:40", r"\frac{3}{40}", False),
    ("3:40", "0.075", False),
    ("3:40", "6:80", False),
    ("3:40", "03:40", True),
    ("3:40", "3:40 p.m.", True),
    ("3:40 a.m.", "3:40 p.m.", False),
    (r"3:40\text{ p.m.}", "3:40 PM", True),
    ("3:40 p.m.", "3:50 p.m.", False),
    ("1:30:00", "1:30", False),
]


def test_equivalent_expressions() -> None:
    items = [
        Item(Example("1", (), reference, {}), rf"So \boxed{{{answer}}}", reference) for reference, answer, _ in PAIRS
    ]
    grades = MathGrader().grade(items)
    wrong = [(*pair, grade.reason) for pair, grade in zip(PAIRS, grades, strict=True) if grade.correct is not pair[2]]
    assert wrong == []


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


def test_a_comparison_that_cannot_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ValueError, match=r"task\.grader=math: .* did not start .*pip install 'math-verify"):
        Equivalence(workers=1).compare([("1/2", "0.5")])


def test_a_comparison_that_something_else_than_its_time_ended_says_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ready\nkill -KILL $$\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    found = Equivalence(workers=1).compare([("1/2", "0.5")])
    assert found == [(False, "its process was ended by SIGKILL (out of memory?)")]


def test_the_comparing_process_does_not_hear_the_ctrl_c_of_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    says = "import json, signal\nprint('ready')\nprint(json.dumps([True, sorted(signal.pthread_sigmask(0, ()))]))\n"
    python.write_text(f"#!{sys.executable}\n{says}")  # dash would unblock them
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    ((_, blocked),) = Equivalence(workers=1).compare([("1/2", "0.5")])
    assert signal.SIGINT in blocked


def test_an_answer_as_long_as_an_essay_is_no_answer() -> None:
    assert xtf.grade("math", rf"\boxed{{{'7+' * 2000}0}}", "7").reason == "longer than 2000 characters"


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
    assert [example.example_id for (example, _), result in zip(changed, results, strict=True) if result.correct] == []


@needs_data
def test_math_verify_itself_agrees_with_every_fourth_math500_reference() -> None:
    rows = load_rows(SourceConfig(path=str(SHARED / "math500" / "math500_test.json")))
    verdicts = Equivalence().compare([(row["answer"], row["answer"]) for row in rows.rows[::4]])
    assert all(right for right, _ in verdicts)
