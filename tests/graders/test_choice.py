"""One answer out of a few: hand-worked texts, figures by hand, and every reference of PubMedQA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.rows import load_rows
from xtf.graders.base import Grade
from xtf.graders.choice import ChoiceGrader
from xtf.tasks import load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")


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
    task, folder = load_task(TaskConfig(name="medical", grader="decision")), SHARED / "pubmedqa"
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
