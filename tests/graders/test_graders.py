"""Graders by name, a grader of one's own, and accuracy out of grades."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import xtf
from xtf.config.identity import digest, grader_identity, plain
from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.examples import Example
from xtf.data.rows import load_rows
from xtf.graders import GRADERS, PROTOCOL, VERSIONS
from xtf.graders.base import Grade, Grader, accuracy_metrics
from xtf.runtime.imports import import_named
from xtf.tasks import Task, load_task


def own(**settings: object) -> Task:
    return load_task(TaskConfig(**{"name": "custom", "grader": "exact"} | settings))  # type: ignore[arg-type]


def test_unknown_graders_and_settings_that_a_grader_ignores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown task\.grader 'exakt'"):
        own(grader="exakt")
    with pytest.raises(ValueError, match=r"task\.choices is read by task\.grader=choice only"):
        own(grader="exact", choices=["a", "b"])
    with pytest.raises(ValueError, match="at least two different answers"):
        own(grader="choice", choices=["a", "A"])
    with pytest.raises(ValueError, match=r"pass@5 needs task\.samples >= 5, not 1"):
        own(grader="code", pass_at=[1, 5])
    with pytest.raises(ValueError, match=r"unknown task\.grader 'numbr'; did you mean 'number'\?"):
        own(grader="numbr")


def test_every_grader_of_the_registry_is_a_class_with_the_whole_protocol() -> None:
    for name, path in GRADERS.items():
        grader = import_named(name, path, "")
        assert issubclass(grader, Grader)
        assert all(callable(getattr(grader, method)) for method in PROTOCOL)


HEADINGS = [
    *("### Question\n", "Question 2\n", "Q2. ", "Problem 2. ", "**Question 2**\n", "**Question 2** ", "### Problem\n"),
    *("Example 2: ", "Exercise: ", "Human\n", "Input: ", "Question：", "<｜User｜>", "[/INST]", "### Question 2 - "),
    *("Question #2\n", "<question>", "[User]", "Problem\r\n", "<|assistant|>", "Another question:", "Context: "),
]


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_made_up_next_question_is_not_read_however_its_heading_ends(heading: str) -> None:
    number = f"#### 7\n\n{heading}Tom has 3 cats.\n#### 12"
    assert xtf.grade("number", number, "7").correct is True
    assert xtf.grade("decision", f"yes\n{heading}Is it?\n### Answer\nno", "yes").correct is True
    assert xtf.grade("choice", f"Answer: B\n\n{heading}Which?\nAnswer: C", "B", ["A", "B", "C"]).correct is True
    assert (
        xtf.grade("math", number.replace("#### 7", "\\boxed{x}").replace("#### 12", "\\boxed{y}"), "x").correct is True
    )


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Each costs 5.\n\n**Example:** 2 of them cost 10.\n\nSo 3 cost 15.", "15"),
        ("### Problem\nTom has 3.\n### Solution\n#### 12", "12"),
        ("Let me restate.\n### Problem\nTom has 3.\n### Solution\n#### 12", "12"),
        ("\n\nQuestion: 3?\n#### 7\n\nQuestion 2\n#### 12", "7"),
        ("<|assistant|>7\n<|user|>12", "7"),
        ("It has 3 parts, and that is the\nproblem. In all 5", "5"),
        ("It has 3 parts, and that is no\nquestion\nof 5", "5"),
        ("We know P = 4.\nQ - 5 = 3", "3"),
        ("We know 4.\nQ.E.D. It is 9", "9"),
        ("It is 4, as in\nExample 2.5 and 7", "7"),
        ("It is 4.\nProblem 2 asks for more, 7", "7"),
    ],
)
def test_a_heading_that_begins_an_answer_or_a_word_at_the_start_of_a_line_ends_none(text: str, number: str) -> None:
    assert xtf.grade("number", text, number).correct is True


TOY = """
from xtf.graders.base import Grade, Grader, final_part

class SameLength(Grader):
    def __init__(self, choices, folder):
        self.choices, self.folder = choices, folder

    @classmethod
    def of(cls, config, output_dir):
        return cls(config.choices, output_dir)

    def verdict(self, item):
        said = final_part(item.completion).strip()
        return Grade(len(said) == len(item.reference), said, f"{len(said)} characters")

class Shares(Grader):
    def verdict(self, item):
        return Grade(0.5, "x", "half right")

class Numpy(Grader):
    def verdict(self, item):
        import numpy
        return Grade(numpy.bool_(item.completion == item.reference), item.completion, "")

class One(Grader):
    def verdict(self, item):
        return Grade(int(item.completion == item.reference), item.completion, "")

class Fails(Grader):
    def reference(self, example, text):
        return {"four": text}[text]

    def verdict(self, item):
        return Grade([True][len(item.completion) - 4], "", "")

    def answer_spans(self, example):
        return 1 / 0

class Together(Fails):
    def grade(self, items):
        return [{"four": Grade(True, "", "")}[item.completion] for item in items]

class Half:
    def grade(self, items):
        return []

NOT_A_CLASS = 3
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_grader.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("toy_grader", None)


@pytest.mark.usefixtures("toy")
def test_a_grader_of_ones_own_is_one_file_and_gets_the_task_and_the_output_folder(tmp_path: Path) -> None:
    task = load_task(TaskConfig(name="mine", grader="toy_grader.SameLength", choices=["a", "b"]), "kept/here")
    assert vars(task.grader) == {"choices": ["a", "b"], "folder": Path("kept/here")}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"question": "q", "answer": "four"}]))
    (example,) = task.examples(load_rows(SourceConfig(path=str(path))), training=False)
    grades = task.grade([(example, "five"), (example, "<think>five</think>six")])
    assert grades == [Grade(True, "five", "4 characters"), Grade(False, "six", "3 characters")]
    assert task.metrics([example, example], [[grade] for grade in grades])["accuracy"].value == 0.5
    assert task.system_info() == {"grader": "toy_grader.SameLength"}
    assert xtf.grade("toy_grader.SameLength", "three", "seven").correct is True


@pytest.mark.usefixtures("toy")
def test_what_a_grader_of_ones_own_raises_is_a_sentence_that_names_it_and_the_row() -> None:
    first, second = (
        Example(name, ({"role": "user", "content": "q"},), "four", {"question": "q", "answer": "four"}) for name in "ab"
    )
    answers = [(first, "four"), (second, "fourteen")]
    with pytest.raises(
        ValueError, match=r"^task\.grader=toy_grader\.Fails failed on example 'b': IndexError: list index"
    ):
        own(grader="toy_grader.Fails").grade(answers)
    with pytest.raises(ValueError, match=r"Together failed on one of 2 examples, the first 'a': KeyError: 'fourteen'$"):
        own(grader="toy_grader.Together").grade(answers)
    with pytest.raises(ValueError, match=r"^task\.grader=toy_grader\.Fails failed in answer_spans: ZeroDivisionError"):
        own(grader="toy_grader.Fails").answer_spans(first)
    with pytest.raises(ValueError, match=r"^task\.grader=toy_grader\.Fails failed in reference: KeyError: 'five'$"):
        xtf.grade("toy_grader.Fails", "four", "five")


@pytest.mark.usefixtures("toy")
def test_a_grader_with_a_line_in_the_registry_has_a_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRADERS, "same_length", "toy_grader.SameLength")
    assert xtf.grade("same_length", "three", "seven").correct is True
    with pytest.raises(ValueError, match=r"task\.choices is read by task\.grader=choice only, not by same_length"):
        xtf.grade("same_length", "three", "seven", choices=["a", "b"])


@pytest.mark.usefixtures("toy")
def test_a_grader_of_ones_own_is_tried_on_one_row_before_training() -> None:
    example = Example("1", ({"role": "user", "content": "q"},), "four", {"question": "q", "answer": "four"})
    own(grader="toy_grader.SameLength").check([example])
    with pytest.raises(ValueError, match=r"must return one Grade .* True, False or None, not .*correct=0\.5"):
        own(grader="toy_grader.Shares").check([example])


@pytest.mark.usefixtures("toy")
def test_numpys_truth_is_pythons_and_a_number_is_none_wherever_an_own_class_grades() -> None:
    example = Example("1", ({"role": "user", "content": "q"},), "four", {"question": "q", "answer": "four"})
    task = own(grader="toy_grader.Numpy")
    task.check([example])
    grades = [*task.grade([(example, "four"), (example, "")]), xtf.grade("toy_grader.Numpy", "a", "a")]
    assert [type(grade.correct) for grade in grades] == [bool] * 3
    assert [grade.correct for grade in grades] == [True, False, True]
    with pytest.raises(ValueError, match=r"task\.grader=toy_grader\.One must return one Grade .*correct=1"):
        xtf.grade("toy_grader.One", "a", "a")


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy_grader.Nothing", r"task\.grader=toy_grader\.Nothing: .*Give module\.MyGrader"),
        ("no_such_toy.Grader", r"No module named 'no_such_toy'.*PYTHONPATH"),
        ("toy_grader.NOT_A_CLASS", r"NOT_A_CLASS is a int\. Give module\.MyGrader"),
        ("toy_grader.Half", r"has no of, check, reference, metrics, system_info: derive it from xtf\.graders\.base"),
    ],
)
def test_what_is_not_a_grader_is_refused_with_the_remedy(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own(grader=name)


def test_a_library_that_only_compares_answers_needs_no_torch() -> None:
    code = "import sys, xtf; print(xtf.grade('number', 'It is 1,000.', '1000').correct, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True False\n"


RIGHT, WRONG, UNREAD, FAILED = (
    Grade(True, "a", ""),
    Grade(False, "b", ""),
    Grade(False, None, ""),
    Grade(None, "c", "down"),
)


def test_accuracy_leaves_failed_verdicts_out_and_counts_them() -> None:
    metrics = accuracy_metrics([[RIGHT], [WRONG], [UNREAD], [FAILED], [RIGHT]])
    assert (metrics["accuracy"].value, metrics["accuracy"].n) == (0.5, 4)
    assert metrics["unreadable"].value == 0.2 and metrics["ungraded"].value == 0.2


def test_several_samples_count_as_one_item_with_a_bootstrap_over_items() -> None:
    accuracy = accuracy_metrics([[RIGHT, WRONG], [RIGHT, RIGHT], [FAILED, WRONG]])["accuracy"]
    assert (accuracy.value, accuracy.n, accuracy.interval) == (0.5, 3, "bootstrap over items")


def test_no_verdict_at_all_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ValueError, match=r"task\.grader: none of 2 completions could be graded: down; mend that"):
        accuracy_metrics([[FAILED], [FAILED]])


@pytest.mark.usefixtures("toy")
def test_a_new_version_of_a_grader_is_another_identity_and_the_first_is_that_of_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def identity(grader: str) -> str:
        task = TaskConfig(name="mine", grader=grader)
        return grader_identity(SimpleNamespace(task=task))  # type: ignore[arg-type]

    task = TaskConfig(name="mine", grader="judge")
    sandbox = plain(task.sandbox)
    del sandbox["bubblewrap"]  # it came later, and decides no verdict
    before = digest(["judge", task.choices, task.reference, task.judge, sandbox])
    monkeypatch.setitem(VERSIONS, "judge", 1)
    assert identity("judge") == before
    monkeypatch.setitem(VERSIONS, "judge", 2)
    assert identity("judge") != before
    first = identity("toy_grader.SameLength")
    monkeypatch.setattr(sys.modules["toy_grader"].SameLength, "version", 2)
    assert identity("toy_grader.SameLength") != first
    assert identity("no_such_toy.Grader")  # it is refused where it is loaded
