"""Final numbers: hand-worked texts, and every reference of GSM8K."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

import xtf
from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.numbers import INSIDE, INSIDE_WORDS, TAG, _inside, show
from xtf.data.rows import load_rows
from xtf.graders.base import Grade
from xtf.graders.number import boxed, final_number
from xtf.tasks import load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 4 * 2 = <<4*2=8>>8.\n#### 8", "8"),
        ("#### 1,234,567", "1234567"),
        ("#### -12", "-12"),
        ("#### $-12.50", "-12.5"),
        ("#### -$12.50", "-12.5"),
        ("####   $ 18 dollars", "18"),
        ("#### 18. I checked it 3 times.", "18"),
        ("#### 18\n\nI hope this helps, all 5 of you.", "18"),
        ("#### 50%", "50"),
        ("#### 3/4", "0.75"),
        ("#### .5", "0.5"),
        ("#### 5.0", "5"),
        ("#### 12 - 5 = 7", "7"),
        ("#### 1. Read the task\nSome words 4\n#### 2. Add\nThe answer is 9.", "9"),
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1{,}000}", "1000"),
        (r"\boxed{1\,000}", "1000"),
        (r"\boxed{\$1,000}", "1000"),
        (r"\boxed{-\frac{1}{3}}", "-1/3"),
        (r"\boxed{x = 18 \text{ of } 20}", "18"),
        (r"first \boxed{1}, then \boxed{2} and 3", "2"),
        (r"\boxed{5} is right, 7 is not", "5"),
        ("The answer is 18.", "18"),
        ("The answer is: **18** apples out of 20.", "18"),
        ("The final answer to the question is therefore $3.50. Bye 9", "3.5"),
        ("Answer:\n18", "18"),
        ("The answer is 5. No, wait, the answer is 6. I have 10 fingers.", "6"),
        ("She has 3 + 4 = 7 apples", "7"),
        ("It was 10-5", "5"),
        ("a range of 5–10", "10"),
        ("down to −3 degrees", "-3"),
        ("He has 1,000 and 2,500.75 left", "2500.75"),
        ("The answer is 7.\n\nQuestion: Tom has 3 cats and 9 dogs?\n#### 12", "7"),
        ("7 in all\nQ: and 3 more?", "7"),
        ("<think>maybe 3, or #### 4</think>It is 5.", "5"),
        ("<think>maybe 3</think>", "3"),
        ("9" * 5000, None),
        ("12 and then " + "9" * 5000, "12"),
        ("The answer is 2 1/2 hours.", "2.5"),
        (r"The answer is $2\frac{1}{2}$.", "2.5"),
        (r"The answer is $3 \times 10^5$.", "300000"),
        ("The answer is 1 000.", "1000"),
        ("The answer is minus 3.", "-3"),
        ("The answer is 1.2 million dollars.", "1200000"),
        ("#### 10^6", "1000000"),
        ("It was 1.5e-3", "0.0015"),
        ("The answer is **18** (eighteen).", "18"),
        ("The answer is 18, because 20 - 2 = 18.", "18"),
        ("In 2019, 5 were left", "5"),
        ("The answer is 3 + 4.", None),
        ("She has 12 - 5", None),
        ("5 apples + 3 apples", None),
        ("It is 10 to the power of 6", None),
        ("The answer is 3 hours 20 minutes.", None),
        ("The answer is 5 feet, 6 inches.", None),
        ("The answer is 3 million 200 thousand.", None),
        (r"\boxed{(3, 4)}", None),
        ("The answer is 2, 3 and 5.", None),
        ("The answer is 5 or 6.", None),
        ("The answer is 5 to 6.", None),
        ("The answer is 12,34.", None),
        ("The answer is 1.234.567", None),
        ("The answer is 3:30.", None),
        ("It was on 12/25/2020", None),
        ("It is 2-1/2", None),
        (r"\boxed{\frac{\sqrt{2}}{2}}", None),
        ("The answer is 10^{n}. I have 10 fingers.", None),
        ("eighteen", None),
        ("", None),
        ("#### ", None),
    ],
)
def test_the_final_number_of_a_text(text: str, number: str | None) -> None:
    value = final_number(text)
    assert (None if value is None else show(value)) == number


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 3x.",
        "#### 3n",
        "#### x - 5",
        "#### x^2+1",
        "#### P/2",
        r"\boxed{3i}",
        r"\boxed{3\alpha}",
        r"\boxed{\pi/3}",
        r"\boxed{\log_2 8}",
        r"\boxed{\sqrt[3]{8}}",
        r"\boxed{\pm 5}",
        r"\boxed{|-5|}",
        r"\boxed{5 \pmod 7}",
        r"\boxed{5\le x\le7}",
        r"\boxed{(-\infty, 5)}",
        r"\boxed{3.14\ldots}",
        "#### 3.14...",
        r"\boxed{5!}",
        r"\boxed{18}^2",
        r"-\boxed{18}",
        r"\boxed{\text{eighteen}} or 5",
        "The answer is not 5.",
        "The answer is half of 10.",
        "The answer is the square root of 16.",
        "The answer is twice 7",
        "The answer is 4 factorial.",
        "The answer is one hundred 5.",
        "The answer is < 5",
        "It lies between 5 and 7",
        "The answer is x = 5 or x = -5.",
        "#### x=5, y=6",
        "#### (a) 5 (b) 6",
        "#### Option 2: 15",
        "#### 5 | 6",
        "#### 5;6",
        "#### 12h30",
        "#### 5 kg 300 g",
        "#### 6 ft. 2 in.",
        "#### $3 and 50¢",
        "#### 2 dozen and 3",
        "#### 45° 30'",
        "#### May 5, 2020",
        "#### v1.2.3",
        "#### 1.5•10^x",
        "#### 12٫5",
        "H2O and A4",
        "It is 1.5 x 10-3",
        r"\boxed{1.2} million",
        "1\u2e31000",
    ],
)
def test_a_number_inside_something_larger_is_not_read(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is $1.5M.", "1500000"),
        ("The answer is \u20115.", "-5"),
        ("The answer is \uff0d5.", "-5"),
        ("ANSWER - 18", "18"),
        ("The answer is _5_.", "5"),
        ("<answer>5</answer>", "5"),
        ("> 5", "5"),
        ("答案是5个", "5"),
        ("USD5 in all", "5"),
        ("It is 5m² of H2O", "5"),
        (r"\boxed{\cfrac{7}{2}}", "3.5"),
        (r"\boxed{5\,\text{cm}}", "5"),
        (r"\boxed{x \approx 3.5}", "3.5"),
        ("#### 1.5•10^3", "1500"),
        ("#### 5 a day", "5"),
        ("#### 7 dozen eggs", "7"),
        ("#### 18 (not 20)", "18"),
    ],
)
def test_what_stands_beside_a_number_and_changes_nothing(text: str, number: str) -> None:
    value = final_number(text)
    assert value is not None and show(value) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18. Wait, no, it's 20.", "20"),
        ("The answer is 18, no wait, 20.", "20"),
        ("#### 18\nSorry, 20", "20"),
        ("The answer is 18. Wait, 3 of them were red.", "18"),
        ("The answer is 18. Actually, he had 3 sisters, but that changes nothing.", "18"),
        ("The answer is 18. Let me reconsider: each has 3, so 21.", "21"),
        ("The answer is 18. Scratch that.", None),
        ("The answer is 18. Actually, it should be $-20.", "-20"),
        ("The answer is 18. Correction: 1,800 dollars.", "1800"),
        ("The answer is 18, or rather, 20.", "20"),
        ("\\boxed{18}. Wait, the answer is 20.", "20"),
        ("The answer is 18. I mean, that is what 3 times 6 gives.", "18"),
        ("#### 18", "18"),
        ("The answer is 18. Wait, -5.", "-5"),
        ("The answer is 18. Actually 18.", "18"),
        ("The answer is 18. Wait, let me check: 9*2=18. Yes.", "18"),
        ("The answer is 18 minutes. Sorry, 20 minutes.", "20"),
        ("It is 18. Wait, no, 20.", "20"),
        ("The answer is 18. Rather, 3/4.", "3/4"),
    ],
)
def test_a_number_that_is_taken_back_is_not_read_but_what_takes_its_place(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Fraction(number))


def test_endless_answers_are_read_in_time_that_grows_with_their_length() -> None:
    for text in (
        "so if the answer is ",
        "the answer - ",
        "Jan 5, 2020 ",
        "a=b, ",
        "a 1: ",
        "the answer is 5. wait, ",
        "sorry, no, 7 x ",
    ):
        start = time.process_time()
        final_number(text * 2000)
        assert time.process_time() - start < 3


def test_what_is_looked_up_before_a_number_hides_nothing_that_makes_it_a_part_of_something() -> None:
    pieces = re.findall(
        r"\S+|\s",
        "5 a) } { ( $ \\ \\frac{ \\sqrt[3]{ \\text{ ^ _ = < > <= ≠ % %_of_the x π \\pi ± * / · − – - . , : | ½ "
        "of the and half HALF third not isn't twice thrice exactly between log sin( twenty million percent sqrt _{ \n",
    )
    random = Random(0)
    for _ in range(20_000):
        before = "".join(random.choices(pieces, k=random.randint(1, 6))).replace("%_", "% ")[-60:]
        without = TAG.sub("", before)
        expected = bool(INSIDE.search(without) or INSIDE_WORDS.search(without))
        assert _inside(before, 1) == expected, before


def test_a_number_is_compared_by_value_and_the_grade_says_what_was_read() -> None:
    assert xtf.grade("number", "about $1000.00 in all", "#### 1,000") == Grade(True, "1000", "equal")
    assert xtf.grade("number", "#### -3", "#### 3") == Grade(False, "-3", "-3 is not 3")
    assert xtf.grade("number", "", "#### 100") == Grade(False, None, "no number found")
    assert xtf.grade("number", "3 + 4", "#### 7") == Grade(False, None, "its number cannot be read whole")


@pytest.mark.parametrize(
    ("reference", "value"),
    [
        ("2 1/2", "2.5"),
        ("1.5e-3", "0.0015"),
        ("1.2 million", "1200000"),
        ("10^6", "1000000"),
        ("1 000", "1000"),
        ("1'000", "1000"),
        ("minus 3", "-3"),
        ("2½", "2.5"),
    ],
)
def test_a_key_is_read_whole(reference: str, value: str) -> None:
    assert xtf.grade("number", value, reference).correct is True
    part = re.findall(r"\d+", reference)[-1]
    assert xtf.grade("number", part, reference).correct is False


@pytest.mark.parametrize(
    "reference",
    [
        *("2 5/2", "10^n", "3 + 4", "5-10", "5 to 10", "1.234.567", "12,34", "3:30", "2, 3, 5", "3 hours 20 minutes"),
        *("7k", "3 dozen", "3 score", "1.2 M", "three and 1/2", "10 raised to 6", "It takes 2 & 1/2 hours"),
        "1.5 x 10-3",
    ],
)
def test_a_key_that_is_not_read_whole_is_refused(reference: str) -> None:
    with pytest.raises(ValueError, match="does not end with one number that can be read whole"):
        xtf.grade("number", "5", reference)
    with pytest.raises(ValueError, match="the reference holds no number"):
        xtf.grade("number", "5", "five")


@needs_data
def test_all_gsm8k_references_grade_as_right_and_changed_by_one_as_wrong() -> None:
    number = load_task(TaskConfig(name="math", grader="number"))
    rows = load_rows(SourceConfig(path=str(SHARED / "gsm8k" / "test.jsonl")))
    examples = number.examples(rows, training=False)
    assert len(examples) == 1319
    keys = [Fraction(number.reference(example)) for example in examples]
    assert keys == [Fraction(e.response.rsplit("#### ", 1)[1].replace(",", "")) for e in examples]
    right = number.grade([(example, example.response) for example in examples])
    assert all(result.correct for result in right)
    for change in (1, -1):
        changed = [
            (example, f"{example.response.rsplit('####', 1)[0]}#### {key + change}")
            for example, key in zip(examples, keys, strict=True)
        ]
        assert not any(result.correct for result in number.grade(changed))
    bare = [(example, f"{key.numerator:,}") for example, key in zip(examples, keys, strict=True)]
    assert all(result.correct for result in number.grade(bare))


def test_boxes_that_are_not_closed_are_read_in_time_that_grows_with_their_length() -> None:
    start = time.process_time()
    assert boxed(r"\boxed{" * 20_000) is None
    assert time.process_time() - start < 1


def test_boxed_content_has_its_braces_balanced() -> None:
    assert boxed(r"\boxed{\frac{1}{2}} and \boxed{\{1, 2\}}") == r"\{1, 2\}"
    assert boxed(r"\fbox{x}") == "x"
    assert boxed(r"\boxed{a \boxed{b} c}") == "b"
    assert boxed(r"\boxed{1} } \boxed{2} \boxed{3") == "2"
    assert boxed(r"\boxed{\frac{1}{2}") is None
    assert boxed("none") is None
