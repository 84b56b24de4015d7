"""Rows from every kind of file and from the hub, their ids and their hash."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from xtf.config.schema import SourceConfig
from xtf.data.rows import load_rows

ROWS = [
    {"id": "a", "question": "1+1?", "answer": "2"},
    {"id": "b", "question": "Größe 🙂?", "answer": "3\n4"},
]


def write(folder: Path, name: str, content: str | bytes) -> SourceConfig:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return SourceConfig(path=str(path))


def write_rows(folder: Path, rows: list[dict]) -> SourceConfig:
    return write(folder, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_jsonl_json_csv_and_parquet_hold_the_same_rows_and_the_same_hash(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), parquet)
    sources = [
        write(tmp_path, "rows.jsonl", lines),
        write(tmp_path, "rows.jsonl.gz", gzip.compress(lines.encode())),
        write(tmp_path, "bom.jsonl", b"\xef\xbb\xbf" + lines.encode()),
        write(tmp_path, "rows.json", json.dumps(ROWS)),
        write(tmp_path, "keyed.json", json.dumps({row["id"]: row for row in ROWS})),
        write(tmp_path, "rows.csv", 'id,question,answer\na,1+1?,2\nb,Größe 🙂?,"3\n4"\n'),
        SourceConfig(path=str(parquet)),
    ]
    loaded = [load_rows(source) for source in sources]
    assert all(rows.rows == ROWS for rows in loaded)
    assert len({rows.sha256 for rows in loaded}) == 1


def test_rows_of_an_object_get_their_key_as_id(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path, "rows.json", '{"17": {"question": "q"}}'))
    assert rows.rows == [{"id": "17", "question": "q"}]


def test_a_line_separator_inside_a_string_does_not_split_a_row(tmp_path: Path) -> None:
    source = write(tmp_path, "rows.jsonl", json.dumps({"question": "a\u2028b\x85c"}, ensure_ascii=False))
    assert load_rows(source).rows == [{"question": "a\u2028b\x85c"}]


def test_ids_and_excluded_ids_and_limit_choose_rows_and_change_the_hash(tmp_path: Path) -> None:
    rows = [{"id": n, "question": "q", "answer": str(n)} for n in range(6)]
    source = write_rows(tmp_path, rows)
    listed, keyed = tmp_path / "list.json", tmp_path / "keyed.json"
    listed.write_text("[1, 3, 5]")
    keyed.write_text('{"1": "yes", "3": "no"}')
    kept = load_rows(replace(source, ids=str(listed)))
    assert [row["id"] for row in kept] == [1, 3, 5] and kept.numbers == [2, 4, 6]
    rest = load_rows(replace(source, ids=str(listed), exclude_ids=str(keyed)))
    assert [row["id"] for row in rest] == [5]
    assert [row["id"] for row in load_rows(replace(source, exclude_ids=str(keyed), limit=2))] == [0, 2]
    assert len({kept.sha256, rest.sha256, load_rows(source).sha256}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", "", "file is empty"),
        ("rows.jsonl", " \n\n", "file is empty"),
        ("rows.json", "[]", "no rows"),
        ("rows.csv", "question,answer\n", "no rows"),
        ("rows.jsonl", '{"a": 1}\n{"a": \n', "row 2: Expecting value"),
        ("rows.jsonl", '{"a": 1}\n[1]\n', "row 2: an object with named fields"),
        ("rows.json", '"text"', "a list of objects or an object keyed by id"),
        ("rows.jsonl", b'{"a": "\xff"}', "can't decode byte 0xff"),
        ("rows.csv", "a,b\n1,2,3\n", "row 1: more values than"),
        ("rows.parquet", "not parquet", "cannot be read"),
        ("rows.jsonl.gz", "not gzip", "cannot be read"),
        ("rows.txt", "a", "must end in .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        load_rows(write(tmp_path, name, content))
    assert name in str(raised.value)


def test_a_missing_file_and_a_missing_source_say_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data file not found: .*none\.jsonl"):
        load_rows(SourceConfig(path=str(tmp_path / "none.jsonl")))
    with pytest.raises(ValueError, match=r"task\.train\.path"):
        load_rows(SourceConfig())


def test_ids_that_the_rows_lack_are_an_error(tmp_path: Path) -> None:
    source = write_rows(tmp_path, ROWS)
    (tmp_path / "ids.json").write_text('["a", "zz"]')
    with pytest.raises(ValueError, match=r"1 of 2 ids .* not in it: 'zz'"):
        load_rows(replace(source, ids=str(tmp_path / "ids.json")))
    (tmp_path / "ids.json").write_text('["zz"]')
    with pytest.raises(ValueError, match="none of the 1 ids"):
        load_rows(replace(source, exclude_ids=str(tmp_path / "ids.json")))
    (tmp_path / "ids.json").write_text("3")
    with pytest.raises(ValueError, match="JSON list of ids"):
        load_rows(replace(source, ids=str(tmp_path / "ids.json")))


def test_a_hub_dataset_that_is_not_there_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ValueError, match=r"neither in the cache .* nor reachable.*openai/gsm8k.*task\.train\.path"):
        load_rows(SourceConfig(hub="openai/gsm8k", subset="main"))


def test_a_hub_dataset_is_read_through_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def load(path: str, **settings: object) -> datasets.Dataset:
        asked.append((path, settings))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = load_rows(SourceConfig(hub="a/b", subset="c", split="test", revision="main", limit=1))
    assert rows.rows == ROWS[:1] and rows.source == "a/b/c[test]"
    assert asked == [("a/b", {"name": "c", "split": "test", "revision": "main"})]
