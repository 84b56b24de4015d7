"""PubMedQA's rows in every shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xtf.config.schema import SourceConfig, TaskConfig
from xtf.data.examples import Example
from xtf.data.rows import load_rows
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


def test_a_question_with_an_answer_is_read_and_its_decision_found(tmp_path: Path) -> None:
    (example,) = examples_of(medical(), tmp_path, {"question": "Is it safe?", "answer": "Yes. No harm in 40 patients."})
    assert example.messages[0]["content"] == "Is it safe?"
    assert medical().reference(example) == "yes"


def test_a_row_with_an_unknown_decision_or_without_contexts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row 1: field 'final_decision' must be yes, no or maybe, not 'perhaps'"):
        examples_of(medical(), tmp_path, {**HUB_ROW, "final_decision": "perhaps"})
    with pytest.raises(ValueError, match="row 1: field 'context'"):
        examples_of(medical(), tmp_path, {**HUB_ROW, "context": {}})


@needs_data
def test_the_500_training_rows_and_the_500_test_rows_are_disjoint() -> None:
    folder = SHARED / "pubmedqa"
    path, ids = str(folder / "ori_pqal.json"), str(folder / "test_ground_truth.json")
    train, test = (load_rows(SourceConfig(path=path, exclude_ids=ids)), load_rows(SourceConfig(path=path, ids=ids)))
    assert len(train) == len(test) == 500
    assert not {row["id"] for row in train} & {row["id"] for row in test}
