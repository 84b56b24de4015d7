"""One reader of rows, for files, side files and rows in memory: what it reads, and what it refuses by name."""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xtf.config.schema import SourceConfig, TaskConfig, Turns
from xtf.data.augment import augment
from xtf.data.rows import _HubSource, load_rows, open_file, read_field, read_file, read_saved
from xtf.tasks import Task, as_examples, as_rows, load_task


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def task(**settings: Any) -> Task:
    return load_task(TaskConfig(name="custom", grader="exact", **settings))


def read(path: Path, **settings: Any) -> list[Any]:
    return task(**settings).examples(load_rows(SourceConfig(path=str(path))))


# -- files ------------------------------------------------------------------------------------------------------------


def test_marks_and_blanks_that_editors_leave_change_nothing(tmp_path: Path) -> None:
    rows = [{"question": "One\u2028two?", "answer": "2"}, {"question": "Next\x85line?", "answer": "3"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    plain = written(tmp_path, "plain.jsonl", "\n".join(lines) + "\n")
    edited = written(tmp_path, "edited.jsonl", "\ufeff" + "\r\n\r\n".join(lines) + "\r\n \r\n")
    assert [row for _, row in read_file(plain)] == [row for _, row in read_file(edited)] == rows
    assert [number for number, _ in read_file(edited)] == [1, 3]  # as an editor counts lines


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "question,answer\nWhat?,Yes.\n".encode("utf-16"),
            r"a\.csv: cannot be read: it is UTF-16: save it as",
        ),
        ("a.jsonl", b'{"q": "ok"}\n{"q": "na\xefve"}\n', r"line 2 is not UTF-8 \(byte 0xef; it may be Windows-1252\)"),
        ("a.csv", "question;answer\nWhat?;Yes.\n", r"its one column is 'question;answer': is it separated by ';'\?"),
        ("a.csv", "question\tanswer\nWhat?\tYes.\n", r"is it separated by '\\t'\?"),
        ("a.csv", " \n\n", "the file is empty"),
        ("a.csv", "q,a\n1,2\n3,na\xef\n".encode("latin-1"), r"line 3 is not UTF-8 \(byte 0xef"),
        ("a.csv", '"question";"answer"\n"What?";"Yes."\n', "is it separated by ';'"),
        ("a.csv", '"question"\t"answer"\r"What?"\t"Yes."\r', r"is it separated by '\\t'"),
        ("a.csv", 'q,a\n"one\nmore",2\n"What?,Yes.\nAnd?,No.\n', "row that begins on line 4: .*: close each quote"),
        ("a.csv", '"question,answer\nWhat?,Yes.\n', "row that begins on line 1: .*: close each quote"),
        ("a.csv", "question,answer\n".encode("utf-16-le"), "it is UTF-16: save it as UTF-8"),
        ("a.jsonl", '{"q": 1}\n'.encode("utf-16-be"), "it is UTF-16: save it as UTF-8"),
        ("a.json", '[{"q": 1}]'.encode("utf-32"), "it is UTF-32: save it as UTF-8"),
        ("a.jsonl", '{"q": 1}\n'.encode("utf-32-be"), "it is UTF-32: save it as UTF-8"),
        ("a.csv", "answer,answer\n1,2\n", "the header names 'answer' twice"),
        ("a.csv", "question,answer\n1,2,3\n", r"row 1: more values than the header has names \(question, answer\)"),
        ("a.jsonl", '{"q": 1}\n{"q": 1, "q": 2}\n', "row 2: the key 'q' occurs twice"),
        ("a.jsonl", '{"q": {"r": 1, "r": 2}}\n', "row 1: the key 'r' occurs twice"),
        ("a.jsonl", '{"q": NaN}\n', "row 1: NaN is no number"),
        ("a.json", '[{"q": -Infinity}]', "-Infinity is no number"),
        ("a.jsonl", '{"q": 1.5}\n{"q": -1e999}\n', "row 2: -1e999 is no number"),
        ("a.jsonl", '{"q": "x \\ud83d"}\n', r"row 1: \\ud83d is half of a character"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", "\n \n", "the file is empty"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_with_the_remedy(tmp_path, name, content, message) -> None:
    with pytest.raises(ValueError, match=message):
        read_file(written(tmp_path, name, content))


def test_a_gap_in_a_data_frame_is_null_and_its_neighbours_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    columns = {
        "n": [1.0, math.nan, 3.0],
        "x": [0.5, math.nan, 2.0],
        "whole": [1.0, 2.0, 3.0],
        "vast": [1e300, math.nan, 2.0],
    }
    rows = [
        {"n": 1, "x": 0.5, "whole": 1.0, "vast": 1e300},
        {"n": None, "x": None, "whole": 2.0, "vast": None},
        {"n": 3, "x": 2.0, "whole": 3.0, "vast": 2.0},
    ]
    pq.write_table(pa.table(columns), path)
    hub = _HubSource(datasets.Dataset.from_dict(columns))
    found = [[row for _, row in read_file(path)], list(hub.at(range(3)))]
    for each in found:
        assert each == rows
        assert [type(value) for value in each[0].values()] == [int, float, float, float]
    assert list(hub.at(np.array([0, 2]))) == [rows[0], rows[2]]


def test_a_damaged_parquet_file_is_refused_by_its_name_wherever_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["one", "two", "three"], "n": [1, 2, 3]}), path, compression="none")
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            list(load_rows(SourceConfig(path=str(path))))
        except ValueError as error:
            assert "rows.parquet" in str(error)
            refused += 1
    assert refused > len(whole) // 20  # many a bit is of statistics that nobody reads, or of a text


# -- side files -------------------------------------------------------------------------------------------------------


def test_side_files_are_read_as_the_main_file_is(tmp_path: Path) -> None:
    texts = written(tmp_path, "texts.jsonl", '\ufeff{"text": "a\u2028b"}\r\n\r\n{"text": "c"}\r\n')
    assert read_field(texts, "text", "evaluate.forgetting") == ["a\u2028b", "c"]
    with pytest.raises(ValueError, match=r"texts\.jsonl, row 1: evaluate\.forgetting needs a text 'body'"):
        read_field(texts, "body", "evaluate.forgetting")
    examples = as_examples([{"id": "x", "prompt": "2+2?", "response": "4"}])
    more = written(tmp_path, "more.jsonl", '{"example_id": "x", "prompt": "Two\u2028and two?"}\n\n')
    assert augment(examples, 2, more)[1].messages[-1]["content"] == "Two\u2028and two?"
    wrong = written(tmp_path, "wrong.csv", "example_id,prompt\nx,Hi\ny,Hi\n")
    with pytest.raises(ValueError, match=r"wrong\.csv, row 2: wanted the `example_id` of a training example"):
        augment(examples, 2, wrong)
    ids = written(tmp_path, "ids.json", '\ufeff["1"]'.encode())
    rows = written(tmp_path, "rows.jsonl", '{"id": 1, "a": "b"}\n{"id": 2, "a": "c"}\n')
    assert len(load_rows(SourceConfig(path=str(rows), ids=str(ids)))) == 1
    both = written(tmp_path, "both.json", '["2", "1"]')
    assert len(load_rows(SourceConfig(path=str(rows), exclude_ids=str(ids)))) == 1
    with pytest.raises(ValueError, match=r"leaving out the ids of .*both\.json leaves no row"):
        load_rows(SourceConfig(path=str(rows), ids=str(ids), exclude_ids=str(both)))
    misspelt = written(tmp_path, "misspelt.json", '["1", "l2"]')
    with pytest.raises(ValueError, match=r"1 of 2 ids of .*misspelt\.json are not in it: 'l2'"):
        load_rows(SourceConfig(path=str(rows), exclude_ids=str(misspelt)))


def test_a_saved_set_is_not_read_as_another_split_than_it_is(tmp_path: Path) -> None:
    for name, split in (("own", None), ("test", "test")):
        datasets.Dataset.from_dict({"a": ["b"]}, split=split and datasets.NamedSplit(split)).save_to_disk(
            tmp_path / name
        )
    for name, split in (("own", "train"), ("own", "test"), ("test", "train"), ("test", "test")):
        assert len(read_saved(tmp_path / name, split)) == 1
    with pytest.raises(ValueError, match="it is the split 'test', not 'validation'"):
        read_saved(tmp_path / "test", "validation")
    with pytest.raises(ValueError, match=r"it has no splits, not 'train\[:3\]'"):
        read_saved(tmp_path / "own", "train[:3]")


# -- templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [({"text": "yes"}, "dict, not text"), (b"yes", "bytes, not text"), ([{"a": 1}], "list, not text"), (None, "null"),
     (math.inf, "inf")],
)  # fmt: skip
def test_what_is_no_text_does_not_become_text_through_a_template(value: Any, message: str) -> None:
    found = load_task(TaskConfig(name="custom", grader="exact", prompt="{q}", response="{a}"))
    from xtf.data.rows import Rows

    with pytest.raises(ValueError, match=rf"row 1: .*a field of the template is {message}"):
        found.examples(Rows([{"q": "Is it?", "a": value}], [1], "rows", ""))


# -- conversations ----------------------------------------------------------------------------------------------------

PART = {"type": "text"}
ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "Hello"},
        {"prompt": "Hi", "completion": "Hello"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"prompt": [ASKED], "response": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"messages": [ASKED, ANSWERED]},
        {"messages": None, "prompt": "Hi", "response": "Hello"},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                ANSWERED,
            ]
        },
        {"messages": [ASKED, ANSWERED | {"weight": 1, "train": True, "tool_calls": None}], "tools": []},
    ],
)
def test_the_library_and_the_command_line_read_the_same_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    path = written(tmp_path, "rows.jsonl", json.dumps(row))
    for (example,) in (as_examples([row]), read(path)):
        assert (example.messages, example.response) == (({"role": "user", "content": "Hi"},), "Hello")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [ASKED | {"reasoning_content": "hm"}, ANSWERED]}, "turn 1 has 'reasoning_content', which only"),
        ({"messages": [ASKED, ANSWERED | {"reasoning": "a", "thinking": "b"}]}, "its reasoning as one text"),
        ({"messages": [ASKED, ANSWERED | {"content": None, "tool_calls": [{}]}, ANSWERED]}, "a function's name"),
        ({"messages": [ASKED, ANSWERED | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "the arguments of the call of f cannot be read as JSON"),
        ({"messages": [ASKED, ANSWERED | {"function_call": {"name": "f"}}]}, "write it as 'tool_calls'"),
        ({"messages": [ASKED, {"role": "tool", "content": "sunny"}, ANSWERED]}, "turn 2 is a tool's answer"),
        ({"messages": [ASKED, ANSWERED], "tools": ["x"]}, "field 'tools' must be a list of definitions"),
        ({"messages": [ASKED, ANSWERED], "tools": "[" * 100_000}, "'tools' cannot be read .*nested too deeply"),
        ({"messages": [ASKED, ANSWERED], "functions": [{"name": "x"}]}, "write the definitions as 'tools'"),
        ({"messages": [ASKED, ANSWERED | {"weight": -0.5}]}, "weight=-0.5; it must be a number from 0"),
        ({"messages": [ASKED, ANSWERED | {"weight": 10**400}]}, "10+; it must be a number from 0"),
        ({"messages": [ASKED, ANSWERED | {"loss": 0.5}]}, "loss=0.5; it must be true or false"),
        ({"messages": [ASKED, ANSWERED | {"weight": 0.5, "loss_scale": 2}]}, "marks that disagree"),
        ({"messages": [ASKED, ANSWERED | {"loss": False}]}, "the last turn, which is the response, is marked not"),
        ({"messages": [ASKED, ANSWERED | {"loss": False, "train": True}]}, "marks that disagree"),
        ({"messages": [ASKED | {"train": True}, ANSWERED]}, "turn 1 has train=True; only assistants' turns"),
        ({"messages": [ASKED | {"content": [{"type": "image"}]}, ANSWERED]}, "part of type 'image'"),
        ({"messages": [ASKED, ANSWERED | {"content": [PART | {"text": "a", "train": False}]}]},
         "the last turn, which is the response, is marked not"),
        ({"messages": [ASKED | {"content": [PART | {"text": "a", "train": True}]}, ANSWERED]}, "only assistants'"),
        ({"prompt": "Hi", "response": None}, "field 'response' is missing"),
        ({"messages": None}, "no known columns"),
    ],
)  # fmt: skip
def test_what_would_be_lost_is_refused_by_name_in_both(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = written(tmp_path, "rows.jsonl", json.dumps(row))
    for reader in (lambda: as_examples([row]), lambda: read(path)):
        with pytest.raises(ValueError, match=f"row 1: .*({message})"):
            reader()


def test_what_is_nested_too_deeply_is_a_row_that_cannot_be_used() -> None:
    deep: dict[str, Any] = {}
    for _ in range(600):
        deep = {"a": [deep]}
    with pytest.raises(ValueError, match="row 2: it is nested too deeply"):
        as_examples([{"prompt": "Hi", "response": "Hello"}, {"messages": [ASKED, ANSWERED], "tools": [deep]}])


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}, {"train": 0}, {"loss_scale": 0.0}])
def test_a_turn_that_is_marked_is_context_and_no_response(tmp_path: Path, mark: dict[str, Any]) -> None:
    row = {"messages": [ASKED, {"role": "assistant", "content": "BAD"} | mark, ASKED, ANSWERED]}
    (example,) = read(written(tmp_path, "rows.jsonl", json.dumps(row)), turns=Turns.all)
    assert example.response == "Hello"
    assert [turn["content"] for turn in example.messages] == ["Hi", "BAD", "Hi"]
    assert all(set(turn) == {"role", "content"} for turn in example.messages)


# -- rows in memory ---------------------------------------------------------------------------------------------------


def test_sets_in_memory_that_are_no_rows_are_refused_in_a_sentence() -> None:
    rows = datasets.Dataset.from_list([{"prompt": "Hi", "response": "Hello"}])
    with pytest.raises(ValueError, match=r"not several \(train, test\): give one of them"):
        as_examples(datasets.DatasetDict({"train": rows, "test": rows}))
    with pytest.raises(ValueError, match=r"rows are needed .* not str"):
        as_examples("rows.jsonl")
    with pytest.raises(ValueError, match="row 2 is a str, not a mapping"):
        as_examples([{"prompt": "Hi", "response": "Hello"}, "Hi"])


def test_a_data_frame_is_read_row_by_row() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["Hi", "Hi"], "response": ["Hello", None]})
    with pytest.raises(ValueError, match="1 of 2 rows cannot be used:\n  row 2: field 'response' is missing"):
        as_examples(frame)
    assert [example.example_id for example in as_examples(frame[:1])] == ["1"]
    mixed = pandas.DataFrame(
        {"prompt": ["Hi", "Hi"], "response": ["Hello", 2], "n": [1.0, None], "x": [[1], np.ones(1)]}
    )
    with pytest.raises(
        ValueError, match="1 of 2 rows cannot be used:\n  row 2: field 'response' must be text, not int"
    ):
        as_examples(mixed)
    assert dict(as_examples(mixed[:1])[0].row) == {"prompt": "Hi", "response": "Hello", "n": 1.0, "x": [1]}
    assert as_rows(mixed)[1] == {"prompt": "Hi", "response": 2, "n": None, "x": [1.0]}
    assert [type(row["n"]) for row in as_rows(mixed)] == [int, type(None)]
    turns = [[ASKED, ANSWERED], [ASKED | {"content": [PART | {"text": "Hi"}]}, ANSWERED]]
    assert len(as_examples(pandas.DataFrame({"messages": turns}))) == 2
    with pytest.raises(ValueError, match="the column 'prompt' is there twice"):
        as_rows(pandas.concat([frame, frame], axis=1))


def test_numbers_and_lists_of_numpy_are_read_as_those_of_python() -> None:
    talk = np.array([ASKED, ANSWERED | {"weight": np.float32(0.5)}], dtype=object)
    (example,) = as_examples([{"messages": talk, "prompt": math.nan, "id": np.int64(3)}])
    assert (example.messages, example.weight, example.example_id) == ((ASKED,), 0.5, "3")
    with pytest.raises(ValueError, match="row 1: field 'response' is missing"):
        as_examples([{"prompt": "Hi", "response": math.nan}])


def test_examples_pass_through_beside_rows() -> None:
    (made,) = as_examples([{"id": "made", "prompt": "a", "response": "b"}])
    assert as_examples([made, {"prompt": "Hi", "response": "Hello"}])[0] is made


def test_a_hugging_face_set_is_read_row_by_row() -> None:
    rows = [{"messages": [ASKED, ANSWERED]}, {"messages": [ASKED, ANSWERED | {"weight": 1.0}]}]
    first, second = as_examples(datasets.Dataset.from_list(rows))
    assert first.messages == second.messages == (ASKED,)


def test_lines_are_found_however_the_file_is_cut_for_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    texts = ["one", "two\u2028and", "drei\u00e4", "four", "five", ""]
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() for text in texts]
    file.write_bytes(b"\n".join([lines[0] + b"\r", lines[1], b"", lines[2] + b"\r" + lines[3] + b"\r\r", *lines[4:]]))
    for size in range(1, 80):
        monkeypatch.setattr("xtf.data.rows.CHUNK", size)
        found = open_file(file)
        assert found.numbers.tolist() == [1, 2, 4, 5, 7, 8]
        assert [row["text"] for row in found.at(np.arange(6))] == texts


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_line_of_a_gigabyte_is_refused_without_reading_it_whole(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b'{"text": "one"}\n')
    os.truncate(file, 2**30)  # the second line is zeros, which take no place on the disk
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"{name}: cannot be read: line 2 is longer than 64 MiB"):
            open_file(file)
        assert tracemalloc.get_traced_memory()[1] < 256 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.json.gz", "rows.csv.gz", "rows.parquet.gz"])
def test_a_file_that_is_read_whole_has_a_largest_size_which_counts_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("xtf.data.rows.LARGEST_WHOLE", 3 << 20)
    content = b"text\n" + b"words of a row\n" * (5 << 16)
    file = written(tmp_path, name, gzip.compress(content, 1) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match=rf"{name}: cannot be read: it is larger than 3 MiB .* save the rows as JSONL"):
        open_file(file)


def test_a_bomb_of_lines_and_a_full_disk_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtf.data.rows.LARGEST_WHOLE", 3 << 20)
    bomb = written(tmp_path, "rows.jsonl.gz", gzip.compress(b"\n" * (5 << 20)))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be read: it grows to more than 200 times its size"):
        open_file(bomb)
    monkeypatch.setattr("xtf.data.rows.tempfile.TemporaryFile", functools.partial(Path("/dev/full").open, "wb", 0))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: cannot be read: .*No space left on device: '/"):
        open_file(bomb)
