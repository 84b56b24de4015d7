"""One answer out of a few: hand-worked texts, figures by hand, and every reference of PubMedQA."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.examples import Example
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
        ("Yes. No adverse events were seen in the treated group.", "yes"),
        ("Yes, no harm was seen.", "yes"),
        ("Yes! Maybe more than that.", "yes"),
        ("No, no difference was found.", "no"),
        ("Answer: no, no difference.", "no"),
        ("Decision: yes\nNo adverse events were seen.", "yes"),
        ("Answer: yes (no adverse effects)", "yes"),
        ("The conclusion is yes; no harm was found.", "yes"),
        ("The answer would be no.", "no"),
        ("The answer is likely yes.", "yes"),
        ("Likely yes", "yes"),
        ("Most likely no, as the groups were alike.", "no"),
        ("It was seen twice, therefore, yes.", "yes"),
        ("It was seen twice. In conclusion, yes.", "yes"),
        ("It was seen once, so maybe.", "maybe"),
        ("Yes is the correct answer.", "yes"),
        ("Decision: yes\n\nQuestion: Is B bad?\nAnswer: no", "yes"),
        ("Yes.\n\n**Question 2:** Is B bad?\nDecision: no", "yes"),
        ("Question: Is B bad?\nAnswer: no", "no"),
        ("Therefore, no difference was found.", None),
        ("So no one knows.", None),
        ("The answer is yes and no.", None),
        ("Yes, no or maybe?", None),
        ("Yes, no.", None),
        ("The answer is either yes or no.", None),
        ("The answer is not yes.", None),
        ("No-one knows", None),
        ("Nobody knows", None),
        ("It is likely yes.", "yes"),
        ("Highly likely yes", "yes"),
        ("The trial was small. It is highly likely no.", "no"),
        ("{'final_decision': 'maybe'}", "maybe"),
        ('{"final_decision": "no", "confidence": 0.9}', "no"),
        ("decision_label: yes", "yes"),
        ("Is it effective? Yes.", "yes"),
        ("Is it effective?\nYes, in most.", "yes"),
        ("Is it safe? Yes. Is it effective? No.", None),
        ("Is it effective? No difference was seen.", None),
        ("It is no surprise.", None),
        ("Indecision: yes", None),
        ("Is it yes or no?", None),
        ("", None),
    ],
)
def test_the_decision_of_a_text(text: str, decision: str | None) -> None:
    assert ChoiceGrader(("yes", "no", "maybe")).decide(text) == decision


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("Answer — yes", "yes"),
        ("<answer> no </answer>", "no"),
        ("✅ Yes", "yes"),
        ("To sum up: maybe", "maybe"),
        ("The final label is “no”.", "no"),
        ("The answer is yes rather than no.", "yes"),
        ("The answer is yes for adults and no for children.", None),
        ("The answer cannot be yes.", None),
        ("The answer would not be yes.", None),
        ("The answer may be yes.", None),
        ("The answer used to be yes.", None),
        ("It is not the case that the answer is yes.", None),
        ("I doubt that the answer is yes.", None),
        ("If the answer is yes, we would expect a change.", None),
        ("Yes. No.", None),
        ("no\nyes", None),
        ("yes\nno\nmaybe", None),
        ("Decision: no<|im_end|>\n<|im_start|>user\nIs it?\nDecision: yes", "no"),
        ("Decision: no\n[INST] Is it? [/INST] Decision: yes", "no"),
        ("Decision: no</s>\nQuestion: x\nDecision: yes", "no"),
        ("Decision: no\nQuestion 2) d\nDecision: yes", "no"),
        ("Decision: no\nNext question: d\nDecision: yes", "no"),
    ],
)
def test_what_is_offered_supposed_or_taken_back_is_no_decision(text: str, decision: str | None) -> None:
    assert ChoiceGrader(("yes", "no", "maybe")).decide(text) == decision


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option A is wrong, option B is right.", "B"),
        ("A) cat\nB) dog\nC) cow", None),
        ("A. cat B. dog", None),
        ("Which of them barks when it is called?\nA: cat\nB: dog", None),
        ("It is likely B.", "B"),
        ("A. B. C.", None),
        ("A\n\nB", None),
        ("Answer: A; B", None),
        ("The answer is C++.", None),
        ("The answer is D.C.", None),
        ("A?", None),
        ("C) fifteen", "C"),
        ("B. dog", "B"),
    ],
)
def test_letters_of_lists_and_names_are_no_choice(text: str, letter: str | None) -> None:
    assert ChoiceGrader("ABCD").decide(text) == letter


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
        ("Answer: B\nA is wrong since it is cold.", "B"),
        ("The correct answer is option B", "B"),
        ("Option C.", "C"),
        ("B is the correct answer.", "B"),
        ("It is warm. (B) is right.", "B"),
        ("The best choice would be B.", "B"),
        ("The answer should be D, not A.", "D"),
        ("Therefore, the answer is **C**.", "C"),
        ("Thus option D.", "D"),
        ("Answer: A, B", None),
        ("Answer: A and B", None),
        ("A is wrong.", None),
    ],
)
def test_a_letter_counts_only_where_it_stands_for_a_choice(text: str, letter: str | None) -> None:
    assert ChoiceGrader("ABCD").decide(text) == letter


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("No, wait. Yes.", "yes"),
        ("Yes. Wait, no.", "no"),
        ("Decision: yes. Wait, no.", "no"),
        ("No. Actually, yes.", "yes"),
        ("Yes... no, wait, maybe.", "maybe"),
        ("Yes, actually.", "yes"),
        ("Yes. Actually, no significant difference was found.", "yes"),
        ("Decision: no. Sorry, no further details.", "no"),
        ("No. Scratch that. Yes.", "yes"),
        ("Yes. I take that back.", None),
        ("Decision: no. Let me reconsider. The trial was small.\nMaybe", "maybe"),
        ("Decision: yes. On second thought, the trial was too small to say.", None),
        ("The answer is yes. Or rather, no.", "no"),
        ("Yes. I mean, no.", "no"),
        ("Yes. I mean, the effect is large.", "yes"),
        ("Yes (no, wait: maybe).", "maybe"),
        ("Yes.\n\nEdit: No.", "no"),
        ("Decision: yes. Oops, that is wrong: the answer is no", "no"),
        ("Yes. No, wait. Yes.", "yes"),
        ("Yes. Wait, no, no difference was seen.", "no"),
        ("Yes. Wait for the results of the larger trial.", "yes"),
        ("Decision: no. Patients had to wait. Yes, it was long.", "no"),
        ("Yes. However, sorry patients were few.", "yes"),
        ("No. Wait, yes or maybe.", None),
        ("Yes. Update: the trial has ended.", "yes"),
        ("Decision: no. Correction: yes", "yes"),
        ("**No**. Wait — **yes**.", "yes"),
        ("No. Hmm, wait. Actually, I think the answer should be yes.", "yes"),
        ("No; it is rather yes-like.", "no"),
        ("Yes, or rather maybe", "maybe"),
        ("No - wait - yes", "yes"),
        ("No, make that maybe.", "maybe"),
        ("Yes. That is wrong in children.", "yes"),
        ("Yes. But no, wait, it does.", "yes"),
        ("Yes. Never mind the small sample.", "yes"),
    ],
)
def test_a_decision_that_is_taken_back_is_not_read_but_what_takes_its_place(text: str, decision: str | None) -> None:
    assert ChoiceGrader(("yes", "no", "maybe")).decide(text) == decision


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B. Wait, no, C.", "C"),
        ("B. Actually, A is also plausible but B fits better.", "B"),
        ("B - scratch that: C", "C"),
        ("(B). Sorry, I meant (D).", "D"),
        ("A. Let me try again with B.", None),
        ("Answer: A\nActually, the answer is B.", "B"),
        ("A. Wait, A is right.", "A"),
        ("Answer: A. Actually B.", "B"),
    ],
)
def test_a_letter_that_is_taken_back_is_not_read_but_what_takes_its_place(text: str, letter: str | None) -> None:
    assert ChoiceGrader(list("ABCD")).decide(text) == letter


def test_what_protects_a_decision_covers_what_took_its_place() -> None:
    response = "It helped. Decision: no. Wait, yes. That is all."
    found = ChoiceGrader(("yes", "no", "maybe")).answer_spans(Example("1", (), response, {}))
    assert [response[start:end] for start, end in found] == ["Decision: no. Wait, yes"]


def test_blank_and_endless_texts_are_read_in_no_time() -> None:
    grader = ChoiceGrader(("yes", "no"))
    assert grader.decide("\n" * 20_000 + "Yes.") == "yes"
    assert grader.decide("Yes. " + "wait, no, well " * 5_000 + "Yes.") == "yes"
    assert grader.decide("so " * 20_000 + "\n" * 20_000 + "(" * 20_000) is None


def test_a_choice_that_is_a_number_is_not_read_from_a_longer_one() -> None:
    grader = ChoiceGrader(("1", "2"))
    assert grader.decide("Answer: 2.") == "2"
    assert [grader.decide(text) for text in ("Answer: 2.5", "Answer: 12", "Answer: 1/2")] == [None] * 3


def test_choices_in_brackets_keep_them() -> None:
    grader = ChoiceGrader(("(A)", "(B)"))
    assert grader.decide("The answer is **(B)**.") == grader.decide("(B)") == "(B)"
    assert grader.decide("The answer is B.") is None


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
