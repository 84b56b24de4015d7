"""Decisions, choices, free text and own graders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.examples import Example
from xtf.data.rows import load_rows
from xtf.graders.base import Grade, Item
from xtf.graders.choice import ChoiceGrader
from xtf.tasks import Task, load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")

HUB_ROW = {
    "pubid": 7,
    "question": "Does it help?",
    "context": {"contexts": ["First part.", "Second part."], "labels": ["A", "B"]},
    "long_answer": "It helped most.",
    "final_decision": "yes",
}


def medical() -> Task:
    return load_task(TaskConfig(name="medical", grader="decision"))


def examples_of(task: Task, folder: Path, *rows: dict, training: bool = True) -> list[Example]:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return task.examples(load_rows(SourceConfig(path=str(path))), training=training)


def test_pubmedqa_rows_of_the_hub_and_of_the_original_file_give_the_same_example(tmp_path: Path) -> None:
    original = {
        "id": "7",
        "QUESTION": "Does it help?",
        "CONTEXTS": ["First part.", "Second part."],
        "LONG_ANSWER": "It helped most.",
        "final_decision": "yes",
    }
    (hub,), (file,) = (examples_of(medical(), tmp_path, row) for row in (HUB_ROW, original))
    assert hub.messages == file.messages and hub.example_id == file.example_id == "7"
    assert hub.messages[0]["content"] == (
        "First part.\nSecond part.\n\nQuestion: Does it help?\nAnswer with the reason, then yes, no or maybe."
    )
    assert hub.response == file.response == "It helped most.\n\nDecision: yes"
    assert medical().reference(hub) == "yes"


def test_instruction_rows_join_instruction_and_input(tmp_path: Path) -> None:
    row = {"instruction": "Decide.", "input": "Is it so?", "output": "It is.\nAnswer: No."}
    (example,) = examples_of(medical(), tmp_path, row)
    assert example.messages[0]["content"] == "Decide.\n\nIs it so?"
    assert medical().reference(example) == "no"


def test_a_row_with_an_unknown_decision_or_without_contexts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1: field 'final_decision' must be yes, no or maybe, not 'perhaps'"):
        examples_of(medical(), tmp_path, {**HUB_ROW, "final_decision": "perhaps"})
    with pytest.raises(ValueError, match="row 1: field 'context'"):
        examples_of(medical(), tmp_path, {**HUB_ROW, "context": {}})


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("It helped.\n\nDecision: yes", "yes"),
        ("It helped.\n\nDecision: **No**.", "no"),
        ("The answer is maybe, because the data are few.", "maybe"),
        ("The answer is yes because it helped.", "yes"),
        ("Yes, it did.", "yes"),
        ("no", "no"),
        ("NO.", "no"),
        ("No significant difference was found.", None),
        ("There was no difference, and no harm.", None),
        ("We found none.\nmaybe\n", "maybe"),
        ("Final answer: (yes)", "yes"),
        (r"The answer is \boxed{no}.", "no"),
        ("Answer with yes, no or maybe.", None),
        ("The answer is yes or no.", None),
        ("Decision: yes/no/maybe", None),
        ("The answer is not clear.", None),
        ("The answer is no longer known.", None),
        ("Decision: no. Wait. Decision: yes.", "yes"),
        ("<think>Decision: no</think>Decision: yes", "yes"),
        ("Nobody knows", None),
        ("", None),
    ],
)
def test_the_decision_of_a_text(text: str, decision: str | None) -> None:
    assert ChoiceGrader(("yes", "no", "maybe")).decide(text) == decision


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (B).", "B"),
        ("B", "B"),
        ("C. Because of the light", "C"),
        ("Answer: A", "A"),
        ("a good question", None),
        ("A good question", None),
        ("The answer is a matter of taste.", None),
    ],
)
def test_a_letter_counts_only_where_it_stands_for_a_choice(text: str, letter: str | None) -> None:
    assert ChoiceGrader("ABCD").decide(text) == letter


def test_a_longer_choice_wins_over_its_beginning() -> None:
    grader = ChoiceGrader(("positive", "very positive"))
    assert grader.decide("Label: very positive") == "very positive"
    assert grader.decide("Label: Positive.") == "positive"


def test_macro_f1_and_the_majority_baseline_by_hand() -> None:
    # said:      yes  yes  no   none
    # label:     yes  no   no   maybe   F1: yes 2/3, no 2/3, maybe 0
    grades = [
        Grade(said == label, said, "") for said, label in (("yes", "yes"), ("yes", "no"), ("no", "no"), (None, "maybe"))
    ]
    metrics = ChoiceGrader(("yes", "no", "maybe")).metrics(["yes", "no", "no", "maybe"], [[grade] for grade in grades])
    assert metrics["accuracy"].value == 0.5
    assert metrics["macro_f1"].value == pytest.approx(4 / 9)
    assert metrics["majority"].value == 0.5
    assert metrics["unreadable"].value == 0.25
    assert metrics["macro_f1"].low <= 4 / 9 <= metrics["macro_f1"].high


def test_macro_f1_agrees_with_scikit_style_counting_on_random_answers() -> None:
    generator = np.random.default_rng(0)
    labels = list(generator.choice(["yes", "no", "maybe"], 200, p=[0.6, 0.3, 0.1]))
    said = list(generator.choice(["yes", "no", "maybe"], 200))
    scores = []
    for label in ("yes", "no", "maybe"):
        hits = sum(a == b == label for a, b in zip(labels, said, strict=True))
        precision, recall = hits / said.count(label), hits / labels.count(label)
        scores.append(2 * precision * recall / (precision + recall))
    grades = [[Grade(a == b, b, "")] for a, b in zip(labels, said, strict=True)]
    metric = ChoiceGrader(("yes", "no", "maybe")).metrics(labels, grades)["macro_f1"]
    assert metric.value == pytest.approx(np.mean(scores))


@needs_data
def test_all_pubmedqa_references_grade_as_right_and_other_decisions_as_wrong() -> None:
    task, folder = medical(), SHARED / "pubmedqa"
    source = SourceConfig(path=str(folder / "ori_pqal.json"), ids=str(folder / "test_ground_truth.json"))
    examples = task.examples(load_rows(source), training=False)
    truth = json.loads((folder / "test_ground_truth.json").read_text())
    assert {example.example_id: task.reference(example) for example in examples} == truth
    assert all(grade.correct for grade in task.grade([(example, example.response) for example in examples]))
    other = {"yes": "no", "no": "maybe", "maybe": "yes"}
    for form in ("{}", "Decision: {}", "{}, because of the results.", "It was seen.\nThe answer is {}."):
        right = [(example, form.format(truth[example.example_id])) for example in examples]
        wrong = [(example, form.format(other[truth[example.example_id]])) for example in examples]
        assert all(grade.correct for grade in task.grade(right))
        assert not any(grade.correct for grade in task.grade(wrong))
    silent = [(example, example.response.split("\n\nDecision:")[0]) for example in examples]
    metrics = task.metrics(examples, [[grade] for grade in task.grade(silent)])
    assert metrics["majority"].value == pytest.approx(0.552)  # the published majority baseline of the test set


@needs_data
def test_the_500_training_rows_and_the_500_test_rows_are_disjoint() -> None:
    folder = SHARED / "pubmedqa"
    path, ids = str(folder / "ori_pqal.json"), str(folder / "test_ground_truth.json")
    train, test = (
        load_rows(SourceConfig(path=path, exclude_ids=ids)),
        load_rows(SourceConfig(path=path, ids=ids)),
    )
    assert len(train) == len(test) == 500
    assert not {row["id"] for row in train} & {row["id"] for row in test}


def grade_text(grader: str, reference: str, completion: str) -> Grade:
    chosen = load_task(TaskConfig(name="custom", grader=grader)).grader
    (grade,) = chosen.grade(
        [
            Item(
                Example("e1", (), reference, {"k": 1}),
                completion,
                chosen.reference(Example("e1", (), "", {}), reference),
            )
        ]
    )
    return grade


def test_exact_ignores_white_space_and_unicode_composition_and_nothing_else() -> None:
    assert grade_text("exact", "Zu\u0308rich  See", " Z\u00fcrich See\n").correct is True
    assert grade_text("exact", "Zürich", "zürich").correct is False
    assert grade_text("exact", "Zürich", " ") == Grade(False, None, "empty")


def test_contains_looks_for_the_reference_in_any_case() -> None:
    assert grade_text("contains", "Zürich", "It is in ZÜRICH.").correct is True
    assert grade_text("contains", "Zürich", "It is in Bern.").correct is False
    with pytest.raises(ValueError, match="reference is empty"):
        grade_text("contains", " ", "anything")


def test_an_own_function_grades_with_the_row_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_grader.py").write_text(
        "def same(completion, reference, row):\n"
        "    if completion == 'skip': return None\n"
        "    if completion == 'boom': raise KeyError(reference)\n"
        "    if completion == 'bad': return 1\n"
        "    return completion == reference * row['k']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert grade_text("python:own_grader.same", "ab", "ab").correct is True
    assert grade_text("python:own_grader.same", "ab", "b").correct is False
    assert grade_text("python:own_grader.same", "ab", "skip").correct is None
    with pytest.raises(TypeError, match="must return True, False, None or a Grade, not 1"):
        grade_text("python:own_grader.same", "ab", "bad")
    with pytest.raises(RuntimeError, match=r"own_grader\.same failed on example 'e1'"):
        grade_text("python:own_grader.same", "ab", "boom")
    for path in ("own_grader.none", "no_such_module.f", "plain"):
        with pytest.raises(ValueError, match=r"Give python:module\.function"):
            grade_text(f"python:{path}", "", "")
    sys.modules.pop("own_grader")
