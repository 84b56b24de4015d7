"""Readers and graders by name, and rows to examples."""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from pathlib import Path

import pytest
import yaml

import xtf.tasks
from xtf.config.schema import SourceConfig, TaskConfig, Turns
from xtf.data.examples import Example, RowError, render
from xtf.data.rows import load_rows
from xtf.tasks import Task, as_examples, load_task

CONF = Path(__file__).parents[2] / "conf" / "task"
ROWS = [{"id": "a", "question": "1+1?", "answer": "2"}, {"id": "b", "question": "Größe 🙂?", "answer": "3\n4"}]


def own(**settings: object) -> Task:
    return load_task(TaskConfig(**{"name": "custom", "grader": "exact"} | settings))  # type: ignore[arg-type]


def write_rows(folder: Path, rows: list[dict]) -> SourceConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path))


def test_every_unusable_row_is_listed_with_its_number_and_none_is_dropped(tmp_path: Path) -> None:
    rows = [ROWS[0], {"question": "q"}, {"question": "q", "answer": "  "}, {"question": "q", "answer": None}, {"x": 1}]
    with pytest.raises(ValueError) as raised:
        own().examples(load_rows(write_rows(tmp_path, rows)))
    text = str(raised.value)
    assert "rows.jsonl: 4 of 5 rows" in text
    assert "row 2: field 'answer' is missing" in text
    assert "row 3: field 'answer' is empty" in text
    assert "row 4: field 'answer' is missing" in text
    assert "row 5: no known columns in (x)" in text


def test_the_list_of_unusable_rows_is_counted_in_full_and_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)25 of 25 rows.*\.\.\. and 15 more"):
        own().examples(load_rows(write_rows(tmp_path, [{"question": "q"}] * 25)))


def test_two_rows_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 ids occur more than once: 'a'"):
        own().examples(load_rows(write_rows(tmp_path, [ROWS[0], ROWS[0]])))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"prompt": "p", "completion": "r"},
        {"question": "p", "answer": "r"},
        {"question": "p", "response": "r"},
        {"query": "p", "response": "r"},
        {"problem": "p", "solution": "r"},
        {"instruction": "p", "input": "", "output": "r"},
        {"instruction": "p", "context": "", "response": "r"},
        {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]},
        {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}]},
        {
            "chat_rounds": [
                {"role": "system", "content": ""},
                {"role": "human", "content": "p"},
                {"role": "bot", "content": "r"},
            ]
        },
    ],
)
def test_usual_columns_need_no_setting(tmp_path: Path, row: dict) -> None:
    (example,) = own().examples(load_rows(write_rows(tmp_path, [row])))
    assert example.messages == ({"role": "user", "content": "p"},)
    assert (example.response, example.example_id, example.row) == ("r", "1", row)


def test_a_context_belongs_to_its_instruction_and_two_answers_or_contexts_are_refused(tmp_path: Path) -> None:
    def prompt(row: dict) -> str:
        (example,) = own().examples(load_rows(write_rows(tmp_path, [row])))
        return example.messages[0]["content"]

    assert prompt({"instruction": "p", "context": "c", "response": "r"}) == "p\n\nc"
    assert prompt({"instruction": "p", "output": "r", "response": "r"}) == "p"
    for row, problem in (
        ({"instruction": "p", "output": "r", "response": "s"}, "fields output, response hold different answers"),
        ({"question": "p", "answer": "r", "response": "s"}, "fields answer, response hold different answers"),
        ({"instruction": "p", "input": "i", "context": "c", "output": "r"}, "'input' and 'context' stand beside"),
        ({"instruction": "p"}, r"field 'output' is missing \(or response\)"),
        ({"problem": "p", "answer": "4"}, "field 'solution' is missing"),
    ):
        with pytest.raises(ValueError, match=problem):
            prompt(row)


def test_own_columns_are_reached_by_templates(tmp_path: Path) -> None:
    row = {"title": "T", "context": {"contexts": ["one", "two"]}, "label": 3}
    task = own(prompt="{title}: {context[contexts]}", response="It is {label}.", reference="{label}")
    (example,) = task.examples(load_rows(write_rows(tmp_path, [row])))
    assert example.messages[0]["content"] == "T: one\ntwo" and example.response == "It is 3."
    assert task.reference(example) == "3"
    with pytest.raises(ValueError, match="row 1: field 'title' is missing"):
        task.examples(load_rows(write_rows(tmp_path, [{"label": 3}])))
    with pytest.raises(RowError, match="null"):
        render("{a}", {"a": None})


@pytest.mark.parametrize(
    "template",
    [
        "{q.__class__}",
        "{q[0].__class__.__mro__}",
        "{q!r:>100000000000}",
        "{n:.1000000000f}",
        "{q:{n}}",
        "{q[a]}",
        "{",
        "{}",
        "{big:c}",
        "{big:.2f}",
        "{none!s}",
        "{list!r}",
        "{yes}",
        "{nan!s}",
    ],
)
def test_a_template_reads_fields_only_and_no_width_of_any_size(template: str) -> None:
    with pytest.raises(RowError):
        row = {"q": "what", "n": 10**11, "big": 10**400, "none": None, "list": [{"a": 1}], "yes": True, "nan": math.nan}
        render(template, row)


def test_a_template_reads_a_field_whose_name_has_dots(tmp_path: Path) -> None:
    assert render("{a.b}|{c[0]}|{n:>4.1f}", {"a.b": "x", "c": ["y"], "n": 2}) == "x|y| 2.0"
    assert render("{c}|{c!s}|{a!r}", {"a": "x", "c": ["y", "z"]}) == "y\nz|y\nz|'x'"


def test_training_needs_a_response_and_evaluation_needs_a_readable_key(tmp_path: Path) -> None:
    task = own(grader="number", prompt="{q}", reference="{gold}")
    rows = load_rows(write_rows(tmp_path, [{"q": "1+1?", "gold": "2"}]))
    (example,) = task.examples(rows, training=False)
    assert (example.response, task.reference(example)) == ("", "2")
    with pytest.raises(ValueError, match=r"task\.response is not"):
        task.examples(rows)
    with pytest.raises(ValueError, match="row 1: the reference holds no number"):
        task.examples(load_rows(write_rows(tmp_path, [{"q": "1+1?", "gold": "two"}])), training=False)


CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "ciao"},
]


def test_the_last_or_every_assistant_turn_is_trained(tmp_path: Path) -> None:
    rows = load_rows(write_rows(tmp_path, [{"id": "x", "messages": CHAT}]))
    (last,) = own().examples(rows)
    assert (last.example_id, last.messages, last.response) == ("x", tuple(CHAT[:3]), "ciao")
    both = own(turns=Turns.all).examples(rows)
    assert [(e.example_id, len(e.messages), e.response) for e in both] == [("x#1", 1, "hi"), ("x#2", 3, "ciao")]


def test_a_system_message_comes_first_and_is_never_doubled(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    (example,) = own(system="Be brief.").examples(load_rows(write_rows(tmp_path, [{"messages": CHAT}])))
    assert example.messages[0] == system and len(example.messages) == 4
    rows = load_rows(write_rows(tmp_path, [{"messages": [system, *CHAT]}]))
    assert own().examples(rows)[0].messages[0] == system
    with pytest.raises(ValueError, match="system message of its own"):
        own(system="Be long.").examples(rows)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "conversation is empty"),
        (CHAT[:3], "does not end with the assistant"),
        (CHAT[1:2], "answers no user turn"),
        ([CHAT[0], CHAT[1], CHAT[3]], "answers no user turn"),
        ([CHAT[0], {"role": "assistant", "content": ""}], "response is empty"),
        ([{"role": "user", "content": " "}, CHAT[1]], "prompt is empty"),
        ([{"role": "tool", "content": "x"}, CHAT[1]], "turn 1 is a tool's answer, and no turn with tool_calls"),
        ([{"role": "bard", "content": "x"}, CHAT[1]], "turn 1 has the role 'bard'"),
        ([CHAT[0], {"role": "assistant", "content": None}], "turn 2 has no text"),
        (["hello"], "must be a list of turns"),
        ("hello", "must be a list of turns"),
    ],
)
def test_a_conversation_that_cannot_be_trained_says_why(tmp_path: Path, messages: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        own().examples(load_rows(write_rows(tmp_path, [{"messages": messages}])))


def test_long_rows_and_unicode_come_through_unchanged(tmp_path: Path) -> None:
    text = "".join(map(chr, random.Random(0).choices([*range(32, 0xD800), *range(0x1F300, 0x1F600)], k=100_000)))
    row = {"prompt": text, "response": text[::-1]}
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerow(row)
    for source in (write_rows(tmp_path, [row]), SourceConfig(path=str(path))):
        (example,) = own().examples(load_rows(source))
        assert example.messages[0]["content"] == text and example.response == text[::-1]


TOY = """
from xtf.data.examples import Reading, text_field, turns

def read(row):
    return Reading(turns(text_field(row, "q"), text_field(row, "a")), reference=row["key"])

def wrong(row):
    return row["q"]
"""


def test_a_task_is_found_as_a_file_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    monkeypatch.setattr(xtf.tasks, "__path__", [*xtf.tasks.__path__, str(tmp_path)])
    rows = load_rows(write_rows(tmp_path, [{"q": "1+1?", "a": "It is 2.", "key": "2"}]))
    for settings in ({"name": "toy"}, {"name": "another", "reader": "toy"}):
        (example,) = own(**settings).examples(rows)
        assert (example.messages[0]["content"], example.response) == ("1+1?", "It is 2.")
        assert own(**settings).reference(example) == "2"
    with pytest.raises(ValueError, match=r"row 1: no known columns"):
        own(name="another").examples(rows)  # a name without a file: own data
    sys.modules.pop("xtf.tasks.toy")


def test_a_reader_can_be_a_function_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_task.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = load_rows(write_rows(tmp_path, [{"q": "1+1?", "a": "It is 2.", "key": "2"}, {"q": "2+2?", "a": "It is 4."}]))
    task = own(reader="toy_task.read")
    assert task.read(rows.rows[0]).reference == "2"
    with pytest.raises(ValueError, match=r"1 of 2 rows cannot be used:\n  row 2: toy_task\.read: KeyError\('key'\)"):
        task.examples(rows)
    with pytest.raises(
        ValueError, match=r"row 1: toy_task\.wrong must return an xtf\.data\.examples\.Reading, not str"
    ):
        own(reader="toy_task.wrong").examples(rows)
    sys.modules.pop("toy_task")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reader": "meth"}, r"unknown task\.reader 'meth'; did you mean 'math'\?: one of code, custom, finance, "),
        ({"reader": "no_such_task.read"}, r"task\.reader=no_such_task\.read: No module named 'no_such_task'"),
        ({"reader": "json.none"}, r"task\.reader=json\.none: .*has no attribute 'none'.*module\.function"),
        ({"reader": "json.decoder"}, r"json\.decoder is a module"),
        ({"reader": "math", "prompt": "{q}"}, r"task\.reader=math and task\.prompt both say .*unset one"),
    ],
)
def test_a_reader_that_cannot_be_used_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own(**settings)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_task_file_names_itself_and_a_grader_that_loads(name: str) -> None:
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert settings.pop("defaults") == ["/schema/task@_here_"]
    assert settings["name"] == name
    for key in ("train", "eval"):
        if key in settings:
            settings[key] = SourceConfig(**settings[key])
    load_task(TaskConfig(**settings))


PAIR = {"prompt": "q", "response": "a"}
TALK = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "mark",
    ["mask", "training", "trainable", "loss_weight", "lossMask", "label", "is_masked", "unmasked", "images", "think"],
)
def test_a_mark_of_a_turn_or_part_that_is_not_read_is_refused_and_a_note_is_not(mark: str) -> None:
    marked = [TALK[0], {**TALK[1], mark: 1}]
    with pytest.raises(ValueError, match=f"row 1: field 'messages': turn 2 has '{mark}', which is not read"):
        as_examples([{"messages": marked}])
    part = {"type": "text", "text": "a", mark: 1}
    with pytest.raises(ValueError, match=f"a part that has '{mark}', which is not read"):
        as_examples([{"messages": [TALK[0], {"role": "assistant", "content": [part]}]}])
    noted = {**TALK[1], mark: None, "id": 7, "timestamp": "today", "score": 0.5, "constraints": "short"}
    assert as_examples([{"messages": [TALK[0], noted]}])[0].response == "a"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weight": 0.5}, "'weight' belongs to the assistant's turn"),
        ({"train": False}, "'train' belongs to the assistant's turn"),
        ({"reasoning": "since"}, "'reasoning' belongs to the assistant's turn"),
        ({"loss_mask": [0]}, "'loss_mask' goes with input_ids only"),
        ({"mask": [0, 1]}, "'mask' is not read: marks belong to the turns"),
        ({"token_weights": [0.5]}, "'token_weights' is not read: marks belong to the turns"),
        ({"calculate_loss": 0}, "'calculate_loss' belongs to the assistant's turn"),
        ({"ignore": True}, "'ignore' is not read: marks belong to the assistant's turn"),
        ({"skip": 1}, "'skip' is not read: marks"),
        ({"skip": "0"}, "'skip' is not read: marks"),
        ({"exclude_from_training": "True"}, "'exclude_from_training' is not read: marks"),
        ({"train_weight": 0.5}, "'train_weight' is not read: marks"),
        ({"mask_prompt": False}, "'mask_prompt' is not read: marks"),
        ({"input_ids": [1, 2]}, "'input_ids' is read with labels only"),
        ({"images": ["x"]}, "'images' is not read: only texts are"),
        ({"rejected": "b"}, "'rejected' is not read: preference pairs"),
        ({"label": False}, "'label' is false"),
        ({"enable_thinking": False}, "'enable_thinking' is not read"),
        ({"tools": "x"}, "'tools' cannot be read as JSON"),
        ({"tools": [{"type": "function", "function": "x"}]}, "number 1 has no function's name"),
        ({"question": "q", "answer": "b"}, "fields prompt, answer hold different answers"),
        ({"query": "another", "completion": "a", "answer": "a"}, "fields prompt, query hold different prompts"),
        ({"instruction": "another"}, "fields instruction, prompt hold different prompts"),
        ({"passage": "p"}, "'passage' stands beside 'prompt'"),
        ({"id": "a\ud83d"}, "the id .* holds half a character"),
        ({"context": "c"}, r"'context' stands beside 'prompt' .* task.prompt='{context} {prompt}'"),
        ({"completion": "b"}, "response, completion hold different answers"),
        ({"system": 5}, "'system' must be text"),
        ({"response": "a\ud800"}, "turn 2 holds half a character"),
    ],
)
def test_a_field_that_would_be_lost_is_refused_by_name(extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        as_examples([PAIR | extra])
    nothing = dict.fromkeys(extra.keys() - {"response"})
    assert as_examples([PAIR | nothing])[0].response == "a"


def test_system_prompts_and_histories_beside_the_turns_come_before_them() -> None:
    system = {"role": "system", "content": "s"}
    assert as_examples([{"system": "s", "messages": TALK}])[0].messages == (system, TALK[0])
    assert as_examples([{"system_prompt": "s", **PAIR}])[0].messages == (system, TALK[0])
    assert as_examples([{"system": "s", "messages": [system, *TALK]}])[0].messages == (system, TALK[0])
    alpaca = {"instruction": "q", "output": "a", "system": "s", "history": [["q", "a"], ["q", "a"]]}
    assert as_examples([alpaca])[0].messages == (system, *TALK, *TALK, TALK[0])
    with pytest.raises(ValueError, match="not that of the first turn"):
        as_examples([{"system": "t", "messages": [system, *TALK]}])
    assert as_examples([{"system_message": "s", "system": "s", **PAIR}])[0].messages == (system, TALK[0])
    with pytest.raises(ValueError, match="fields system, system_prompt hold different system messages"):
        as_examples([{"system": "s", "system_prompt": "t", **PAIR}])
    with pytest.raises(ValueError, match="'history' must be a list of pairs"):
        as_examples([alpaca | {"history": ["q"]}])
    with pytest.raises(ValueError, match="fields messages, response hold different answers: leave one"):
        as_examples([{"messages": TALK, "prompt": "q", "response": "another"}])
    same = {"messages": TALK, "prompt": "q", "response": TALK[1]["content"], "masked_words": ["a"], "weight_class": "b"}
    assert as_examples([same])[0].response == TALK[1]["content"]
    with pytest.raises(ValueError, match="hold different conversations"):
        as_examples([{"messages": TALK, "conversations": TALK + TALK}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": TALK, "question": "q", "answer": "b"}, "fields messages, answer hold different answers"),
        ({"messages": TALK, "question": "p", "answer": "a"}, "fields messages, question hold different prompts"),
        ({"messages": TALK, "prompt": TALK[:1], "completion": [TALK[1] | {"content": "b"}]}, "different answers"),
        ({"messages": TALK, "context": "c"}, "'context' stands beside 'messages' and would be left out: put it in$"),
        ({"messages": [TALK[0], TALK[1] | {"value": "b"}]}, "turn 2 has a content and a value that differ"),
        ({"messages": [TALK[0], TALK[1] | {"from": "human"}]}, "turn 2 has the roles 'assistant' and 'human'"),
        ({"messages": [TALK[0] | {"role": ["user"]}, TALK[1]]}, r"turn 1 has the role \['user'\]"),
        ({"messages": [TALK[0], TALK[1] | {"channel": "analysis"}, TALK[1]]}, "turn 2 is of the channel 'analysis'"),
    ],
)
def test_turns_and_what_stands_beside_them_say_one_thing(row: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"(?m)row 1: .*{message}"):
        as_examples([row])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK, "question": " q\n", "answer": "a", "context": "q", "prompt": "of the whole set"},
        {"messages": [], "prompt": "q", "response": "a"},
        {"instruction": None, "output": None, "prompt": "q", "response": "a"},
        {"messages": [{"role": None, "from": "human", "value": "q"}, TALK[1] | {"value": None, "channel": "final"}]},
        {"question": "q", "answer": "a", "weight_kg": 70, "train_size": 3, "num_masks": 1, "skips": "x"},
    ],
)
def test_null_fields_repetitions_and_data_lose_nothing(row: dict) -> None:
    (example,) = as_examples([row])
    assert (example.messages, example.response) == ((TALK[0],), "a")


TOOL = {"type": "function", "function": {"name": "f"}}
READERS = {
    "math": {"question": "q", "answer": "#### 18"},
    "finance": {"instruction": "q", "input": "", "output": "a"},
    "medical": {"question": "q", "answer": "yes"},
    "custom": {"instruction": "q", "output": "a"},
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_keeps_what_stands_beside_its_pair_or_refuses_it(tmp_path: Path, name: str) -> None:
    def read(**more: object) -> Example:
        (example,) = own(name=name).examples(load_rows(write_rows(tmp_path, [READERS[name] | more])))
        return example

    found = read(system="s", tools=[TOOL])
    assert [turn["role"] for turn in found.messages] == ["system", "user"] and found.tools == (TOOL,)
    assert read(messages=[], query=None).messages == found.messages[1:]
    same = [TALK[0], {"role": "assistant", "content": found.response}]
    assert read(messages=same).messages == found.messages[1:]
    if name in ("math", "finance"):  # the others read the turns where there are some
        for turns in ([*same, *same], [same[0], same[1] | {"weight": 0}], [{"role": "system", "content": "s"}, *same]):
            with pytest.raises(ValueError, match="messages hold different conversations"):
                read(messages=turns)
    with pytest.raises(ValueError, match=r"'passage' stands beside .* and would be left out: put it in"):
        read(passage="CTX")
    if name in ("math", "medical"):
        with pytest.raises(ValueError, match=r"'context' .*prompt='{context} {question}' task\.response='{answer}'"):
            read(context="CTX")
    merged = dict.fromkeys(("instruction", "question", "problem", "answer", "output", "final_decision", "test_list"))
    (found,) = own(name=name).examples(load_rows(write_rows(tmp_path, [merged | {"messages": same}])))
    assert found.messages == (TALK[0],)


def test_templates_lose_no_mark_of_the_row_that_they_do_not_name(tmp_path: Path) -> None:
    def read(**more: object) -> Example:
        task = own(prompt="{question}", response="{answer}", reference="{label}")
        (example,) = task.examples(
            load_rows(write_rows(tmp_path, [{"question": "q", "answer": "a", "label": 1} | more]))
        )
        return example

    for name, mark in {
        "weight": 0,
        "train": False,
        "images": ["x"],
        "labels": [1],
        "reasoning_content": "since",
    }.items():
        with pytest.raises(ValueError, match=f"row 1: field '{name}'"):
            read(**{name: mark})
    found = read(system="s", tools=[TOOL], label=False, context="another column")
    assert found.messages == ({"role": "system", "content": "s"}, TALK[0]) and found.tools == (TOOL,)
    named = own(prompt="{system}: {weight}", response="{images[0]}")
    (found,) = named.examples(load_rows(write_rows(tmp_path, [{"system": "s", "weight": 7.0, "images": ["x"]}])))
    assert (found.messages[0]["content"], found.response) == ("s: 7", "x")


def test_a_mark_to_train_a_turn_that_is_context_names_the_setting() -> None:
    marked = [TALK[0], TALK[1] | {"train": True, "weight": 2.0}, *TALK]
    part = [TALK[0], TALK[1] | {"content": [{"type": "text", "text": "a", "train": True}]}, *TALK]
    for turns in (marked, part):
        with pytest.raises(ValueError, match=r"turn 2 is marked to be trained, .* set task\.turns=all"):
            as_examples([{"messages": turns}])
    made, first, second, last = as_examples([*as_examples([PAIR]), {"messages": marked}, PAIR], Turns.all)
    assert [one.weight for one in (made, first, second, last)] == [1, 2, 1, 1]
    assert (first.example_id, second.example_id, last.example_id) == ("2#1", "2#2", "3")


def test_whole_numbers_that_a_gap_made_floats_are_written_as_such(tmp_path: Path) -> None:
    assert render("{a}|{b[n]}|{a:.1f}|{c}|{d}", {"a": 2.0, "b": {"n": -3.0}, "c": 0.5, "d": 1e300}) == (
        "2|-3|2.0|0.5|1e+300"
    )
    with pytest.raises(RowError, match="bool, not text"):
        render("{a}", {"a": True})
    rows = load_rows(write_rows(tmp_path, [{"id": 7.0, **PAIR}, {"id": None, **PAIR}]))
    assert [example.example_id for example in own().examples(rows)] == ["7", "2"]
