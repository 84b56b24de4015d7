"""Rows from every kind of file, rows to examples, and the figures that come out of grades."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml

from xtf.config.schema import SourceConfig, TaskConfig, Turns
from xtf.data.examples import RowError, render
from xtf.data.rows import load_rows
from xtf.graders.base import Grade, accuracy_metrics
from xtf.graders.metrics import bootstrap, wilson
from xtf.tasks import Task, load_task

CONF = Path(__file__).parents[2] / "conf" / "task"
ROWS = [
    {"id": "a", "question": "1+1?", "answer": "2"},
    {"id": "b", "question": "Größe 🙂?", "answer": "3\n4"},
]


def own(**settings: object) -> Task:
    return load_task(TaskConfig(**{"name": "custom", "grader": "exact"} | settings))  # type: ignore[arg-type]


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


def test_every_unusable_row_is_listed_with_its_number_and_none_is_dropped(tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        {"question": "q"},
        {"question": "q", "answer": "  "},
        {"question": "q", "answer": None},
        {"x": 1},
    ]
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
        {"instruction": "p", "input": "", "output": "r"},
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
    assert [(e.example_id, len(e.messages), e.response) for e in both] == [
        ("x#1", 1, "hi"),
        ("x#2", 3, "ciao"),
    ]


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
        ([{"role": "tool", "content": "x"}, CHAT[1]], "turn 1 has the role 'tool'"),
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
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerow(row)
    for source in (write_rows(tmp_path, [row]), SourceConfig(path=str(path))):
        (example,) = own().examples(load_rows(source))
        assert example.messages[0]["content"] == text and example.response == text[::-1]


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_task_file_names_itself_and_a_grader_that_loads(name: str) -> None:
    settings = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert settings.pop("defaults") == ["/schema/task@_here_"]
    assert settings["name"] == name
    for key in ("train", "eval"):
        if key in settings:
            settings[key] = SourceConfig(**settings[key])
    load_task(TaskConfig(**settings))


def test_unknown_graders_and_settings_that_a_grader_ignores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown task\.grader 'exakt'"):
        own(grader="exakt")
    with pytest.raises(ValueError, match=r"task\.choices is read by task\.grader=choice only"):
        own(grader="exact", choices=["a", "b"])
    with pytest.raises(ValueError, match="at least two different answers"):
        own(grader="choice", choices=["a", "A"])
    with pytest.raises(ValueError, match=r"pass@5 needs task\.samples >= 5, not 1"):
        own(grader="code", pass_at=[1, 5])


def test_wilson_agrees_with_its_published_example_and_with_scipy() -> None:
    from scipy.stats import binomtest

    for n, k in [(10, 0), (10, 5), (10, 10), (1319, 1), (1319, 700)]:
        interval = binomtest(k, n).proportion_ci(method="wilson")
        metric = wilson(k, n)
        assert (metric.low, metric.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
    # Newcombe 1998, table I, 15 of 148
    assert (wilson(15, 148).low, wilson(15, 148).high) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says_and_repeats() -> None:
    values = np.random.default_rng(1).normal(size=400)
    metric = bootstrap(lambda index: float(values[index].mean()), 400)
    half = 1.96 * values.std() / 20
    assert metric.value == pytest.approx(values.mean())
    assert (metric.high - metric.low) / 2 == pytest.approx(half, rel=0.1)
    assert metric == bootstrap(lambda index: float(values[index].mean()), 400)


def test_bootstrap_of_three_items_equals_all_resamples_counted() -> None:
    values = np.array([0.0, 0.3, 1.0])
    every = [np.mean(values[list(index)]) for index in product(range(3), repeat=3)]
    metric = bootstrap(lambda index: float(values[index].mean()), 3)
    expected = np.quantile(every, [0.025, 0.975], method="inverted_cdf")  # 1 of 27 resamples is all zeros: 3.7 %
    assert (metric.low, metric.high) == pytest.approx(expected) == (0.0, 1.0)


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
    with pytest.raises(RuntimeError, match="none of 2 completions could be graded: down"):
        accuracy_metrics([[FAILED], [FAILED]])
