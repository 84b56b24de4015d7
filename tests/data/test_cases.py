"""Every small input of ../shared/cases that once went wrong: it is read as its README says, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import xtf
from xtf import tiny
from xtf.config.schema import (
    ModelConfig,
    Schedule,
    SourceConfig,
    TaskConfig,
    ThresholdConfig,
    Tuning,
    TuningConfig,
    Turns,
)
from xtf.data.augment import augment
from xtf.data.encode import encode
from xtf.data.examples import Example
from xtf.data.rows import load_rows, read_field
from xtf.runtime.models import load_tokenizer
from xtf.scoring.methods import METHODS
from xtf.tasks import load_task
from xtf.training.datamodule import MaskedDataModule

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"the small inputs are not at {CASES}")
TEMPLATES = {"prompt": "{question}", "response": "{answer}"}

READ: dict[str, tuple[dict[str, Any], list[str]]] = {  # the settings, and the responses
    "weights.jsonl": ({"turns": Turns.all}, ["GOOD"]),
    "reasoning.jsonl": ({}, ["5"]),
    "tools.jsonl": ({}, ["Hello"]),
    "tool.jsonl": ({}, ["It is sunny."]),
    "parts.jsonl": ({}, ["Hello"]),
    "nullmsg.jsonl": ({}, ["f"]),
    "decision.jsonl": (
        {"name": "medical", "grader": "decision"},
        ["Yes. No adverse events were seen in 40 patients.", "No, no difference was found between arms.",
         "Decision: maybe\n\nNo clear trend."],
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nan.jsonl": (TEMPLATES, "row 1: NaN is no number"),
    "nan.parquet": (TEMPLATES, "row 2: .*a field of the template is null"),
    "dict.jsonl": (TEMPLATES, "row 1: .*dict, not text"),
    "lossfalse.jsonl": ({"turns": Turns.all}, "row 1: every assistant's turn is marked not to be trained"),
    "dup_keys.jsonl": ({}, "row 1: the key 'answer' occurs twice"),
    "surrogate.jsonl": ({}, r"surrogate\.jsonl: .*row 1: .*half of a character"),
    "utf16.csv": ({}, r"utf16\.csv: .*UTF-16: save it as UTF-8"),
    "semicolon.csv": ({}, "'question;answer': is it separated by ';'"),
}
SIDE = {"para_u2028.jsonl", "para_blank.jsonl", "texts_u2028.jsonl"}
GIVEN = {
    "given_shifted.jsonl": "the label at .* is .*, the token there is",
    "given_leftpad.jsonl": "row 1: attention_mask is not 1 throughout: padding and packed documents are not read",
    "given_bigid.jsonl": "token id 99999 lies outside the model's vocabulary",
    "given_allmasked.jsonl": "every label is -100",
}
GRADERS: dict[str, dict[str, Any]] = {
    "choice_abcd.jsonl": {"grader": "choice", "choices": ["A", "B", "C", "D"]},
    "contains.jsonl": {"grader": "contains"},
    "decision.jsonl": {"grader": "decision"},
    "math.jsonl": {"grader": "math"},
    "number.jsonl": {"grader": "number"},
}


def examples(file: Path, **settings: Any) -> list[Example]:
    task = load_task(TaskConfig(**{"name": "custom", "grader": "exact"} | settings))
    found = task.examples(load_rows(SourceConfig(path=str(file))))
    assert all(task.reference(example) for example in found)
    return found


def test_no_file_is_left_out() -> None:
    assert {path.name for path in (CASES / "data").iterdir()} == READ.keys() | REFUSED.keys() | SIDE
    assert {path.name for path in (CASES / "given").iterdir()} == GIVEN.keys()
    assert {path.name for path in (CASES / "graders").iterdir()} == GRADERS.keys()


@pytest.mark.parametrize("name", READ)
def test_what_can_be_honoured_is_read(name: str) -> None:
    settings, responses = READ[name]
    assert [example.response for example in examples(CASES / "data" / name, **settings)] == responses


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_is_refused_by_name_and_row(name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        examples(CASES / "data" / name, **settings)


@pytest.mark.parametrize(("name", "lost"), [("reasoning.jsonl", "reasoning_content"), ("tools.jsonl", "tools")])
def test_what_the_chat_template_does_not_know_is_refused_by_name(name: str, lost: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(name="tiny", path=str(tiny.MODEL_DIR)))
    with pytest.raises(ValueError, match=lost):
        encode(tokenizer, examples(CASES / "data" / name), 256)


def test_side_files_are_read_as_the_main_file_is() -> None:
    assert len(read_field(CASES / "data" / "texts_u2028.jsonl", "text", "evaluate.forgetting")) == 4
    made = [Example(str(number), ({"role": "user", "content": "q"},), "a", {}) for number in range(1, 19)]
    for name in ("para_u2028.jsonl", "para_blank.jsonl"):
        assert len(augment(made, 2, CASES / "data" / name)) == 36


@pytest.mark.parametrize("name", GIVEN)
def test_tables_that_would_be_trained_otherwise_than_they_say_are_refused(name: str, small_model: Any) -> None:
    with pytest.raises(ValueError, match=GIVEN[name]):
        method, rows = METHODS["given"](), load_rows(SourceConfig(path=str(CASES / "given" / name)))
        table = pa.Table.from_batches(method.own_table(rows))
        tuning = TuningConfig(Tuning.full, 1, 1, 0.1, 2, schedule=Schedule.constant, warmup_ratio=0.0)
        mask = method.mask(table, ThresholdConfig(), (), 0)
        MaskedDataModule(mask.table, tuning, seed=0).prepare(small_model("qwen2", 1000))


@pytest.mark.parametrize("name", GRADERS)
def test_graders_give_the_verdict_that_is_wanted(name: str) -> None:
    for line in (CASES / "graders" / name).read_text().splitlines():
        case = json.loads(line)
        grade = xtf.grade(completion=case["completion"], reference=case["reference"], **GRADERS[name])
        assert grade.correct is case["want"], case
