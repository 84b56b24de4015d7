"""Rows that another tool has tokenised and masked: read, scored and masked where that tool trains, and nowhere else."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re

import datasets
import hydra
import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import xtf
from xtf import tiny
from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.schema import ConfigError, KNThreshold, SourceConfig, ThresholdConfig
from xtf.data.ragged import IGNORED
from xtf.data.rows import Rows, load_rows
from xtf.data.tokenized import encode_tokenized

MODEL = str(tiny.MODEL_DIR)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def encoded(tokenizer, *rows, max_length=100):
    return encode_tokenized(tokenizer, Rows(list(rows), list(range(1, len(rows) + 1)), "here", ""), max_length)


def row(ids, trained, **more):
    labels = [token if place in trained else IGNORED for place, token in enumerate(ids)]
    return {"input_ids": ids, "labels": labels, **more}


def test_the_response_is_what_lies_between_the_first_and_the_last_label(tokenizer):
    end = tokenizer.eos_token_id
    turns = row([7, 8, 9, 10, 11, 12, end, 13], {2, 3, 6})
    (found,), report = encoded(tokenizer, turns)
    assert (found.input_ids, found.prompt_length, found.end_tokens) == ([7, 8, 9, 10, 11, 12, end], 2, 1)
    assert found.weights == (1, 1, 0, 0, 1)
    assert (report.rows, report.tokens, report.response_tokens) == (1, 7, 5)
    (whole,), _ = encoded(tokenizer, row([7, 8, 9], {0, 1, 2}, id="mine"))  # nothing precedes the first token
    assert (whole.example_id, whole.prompt_length, whole.end_tokens, whole.weights) == ("mine", 1, 0, None)
    (lined,), _ = encoded(tokenizer, row([7, 8, end, 9], {1, 2, 3}))  # a template's line end behind its end of turn
    assert lined.end_tokens == 2


def test_an_id_that_two_rows_have_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"^here: 1 ids occur more than once: 'a'$"):
        encoded(tokenizer, row([7, 8], {1}, id="a"), row([7, 9], {1}, id="a"))


def test_padding_goes_and_packed_documents_are_examples_of_their_own(tokenizer):
    padded = row([5, 5, 7, 8, 9], {3, 4}, attention_mask=[0, 0, 1, 1, 1])
    (found,), _ = encoded(tokenizer, padded)
    assert (found.input_ids, found.prompt_length) == ([7, 8, 9], 1)
    ids, trained = [7, 8, 9, 7, 10, 11, 5], {1, 2, 4, 5}
    for packed in (
        {"position_ids": [0, 1, 2, 0, 1, 2, 0], "attention_mask": [1, 1, 1, 1, 1, 1, 0]},
        {"seq_lengths": [3, 3, 1]},
        {"attention_mask": [1, 1, 1, 2, 2, 2, 0]},
    ):
        rows, report = encoded(tokenizer, row(ids, trained, **packed))
        assert [one.input_ids for one in rows] == [[7, 8, 9], [7, 10, 11]]
        assert [one.example_id for one in rows] == ["1#1", "1#2"]
        assert report.unlabelled == (("1#3",) if "seq_lengths" in packed else ())


def test_trls_masks_say_what_is_trained(tokenizer):
    both = {"input_ids": [7, 8, 9, 10], "completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 1, 0, 1]}
    (found,), _ = encoded(tokenizer, both)
    assert (found.prompt_length, found.weights) == (1, (1, 0, 1))
    switches = {name: np.array(marks, bool) for name, marks in both.items() if name != "input_ids"}
    assert encoded(tokenizer, {"input_ids": np.array(both["input_ids"], np.uint16), **switches})[0] == [found]


def test_long_rows_are_cut_and_rows_without_a_label_are_left_out_and_both_are_told(tokenizer):
    rows = [row([7] * 6, {1, 5}), row([7] * 6, {5}), row([7] * 6, set()), row([7] * 3, {0}), row([], ())]
    found, report = encoded(tokenizer, *rows, max_length=5)
    assert [one.input_ids for one in found] == [[7] * 5]
    assert (report.truncated, report.no_room, report.unlabelled) == (("1",), ("2",), ("3", "4", "5"))
    with pytest.raises(ValueError, match="here: no row has a label within the first 5 tokens"):
        encoded(tokenizer, rows[2], max_length=5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"input_ids": [7, 8], "labels": [8, -100]}, "row 2: a label is neither -100 nor the id at its place"),
        ({"input_ids": [7, 8], "labels": [7]}, "row 2: labels has 1 entries, input_ids has 2"),
        ({"input_ids": [7, 10**6], "labels": [7, -100]}, r"row 2: the id 1000000 is none of this tokenizer's \d+"),
        ({"input_ids": [7, 8]}, "row 2: it does not say what is trained: one of labels, completion_mask"),
        ({"input_ids": [7, 8], "labels": [7, 8], "seq_lengths": [3]}, "row 2: seq_lengths add up to 3"),
        *(
            (
                {"input_ids": ids, "labels": [7, 8]},
                "row 2: input_ids must be a list of whole .*, not (int|NoneType|dict)",
            )
            for ids in (5, None, {})
        ),
        *(
            ({"input_ids": ids, "labels": [7, 8]}, f"row 2: input_ids must be a flat list .*; it holds {kind}")
            for ids, kind in (
                ([7, None], "NoneType"),
                ([7, 8.2], "float"),
                (["7", "8"], "str"),
                ([True, False], "bool"),
                ([[7], [8]], "list"),
                (np.ones((2, 2), int), "list"),
                (np.array([7.0, 8.0]), "float"),
            )
        ),
        ({"input_ids": [7, 10**30], "labels": [7, 8]}, r"row 2: input_ids holds 1e\+30, which is not from 0"),
        ({"input_ids": [7, -1], "labels": [7, 8]}, "row 2: input_ids holds -1, which is not from 0"),
        ({"input_ids": [7, 8], "labels": [7, 2**70]}, "row 2: labels holds 1.18059e"),
        ({"input_ids": [7, 8], "labels": [7, -99999]}, "row 2: labels holds -99999, which is not from -100"),
        ({"input_ids": [7, 8], "labels": [7.0, 8.0]}, "row 2: labels must be a flat list"),
        ({"input_ids": [7, 8], "completion_mask": ["0", "1"]}, "row 2: completion_mask must be a flat list"),
        ({"input_ids": [7, 8, 9], "labels": [7, 8, 9], "seq_lengths": [-1, 4]}, "row 2: seq_lengths holds -1"),
        ({"input_ids": [7, 8, 9], "labels": [7, 8, 9], "seq_lengths": [3, 0]}, "row 2: seq_lengths holds 0, .* from 1"),
        ({"input_ids": [7, 8], "labels": [7, 8], "position_ids": [0, None]}, "row 2: position_ids must be a flat list"),
        ({"prompt": "Hi", "response": "Hello"}, "row 2: input_ids must be a list of whole numbers, not NoneType"),
    ],
)
def test_rows_that_cannot_be_are_refused_with_their_number(tokenizer, bad, message):
    with pytest.raises(ValueError, match=message):
        encoded(tokenizer, row([7, 8], {1}), bad)


def saved(folder, rows):
    datasets.Dataset.from_list(rows).save_to_disk(folder)
    return folder


def test_folders_of_save_to_disk_are_read_also_as_axolotl_and_llama_factory_lay_them(tmp_path):
    rows = [row([7, 8, 9], {1, 2}), row([7, 10, 11], {2})]
    read = [load_rows(SourceConfig(path=str(saved(tmp_path / "plain", rows)))).rows]
    saved(tmp_path / "prepared" / "0123abcd", rows)
    read.append(load_rows(SourceConfig(path=str(tmp_path / "prepared"))).rows)
    datasets.DatasetDict(train=datasets.Dataset.from_list(rows)).save_to_disk(tmp_path / "tokenized")
    read.append(load_rows(SourceConfig(path=str(tmp_path / "tokenized"))).rows)
    assert [list(one) for one in read] == [rows] * 3
    saved(tmp_path / "prepared" / "second", rows)
    with pytest.raises(ValueError, match=r"several datasets \(0123abcd, second\): name one of them"):
        load_rows(SourceConfig(path=str(tmp_path / "prepared")))
    with pytest.raises(ValueError, match=r"no split 'test' but train: set task.train.split"):
        load_rows(SourceConfig(path=str(tmp_path / "tokenized"), split="test"))
    for name, content in (("state.json", "{}"), ("state.json", '{"_data_files": 3}'), ("dataset_info.json", "[]")):
        folder = saved(tmp_path / f"other {name} {len(content)}", rows)
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=r"other .*: cannot be read"):
            load_rows(SourceConfig(path=str(folder)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="the folder holds no dataset that save_to_disk wrote"):
        load_rows(SourceConfig(path=str(tmp_path / "empty")))


@pytest.fixture(scope="module")
def conversation(tokenizer):
    """Two answers of one conversation, the user's turn between them without labels; and a plain row."""
    ids, trained = [], set()
    for text, train in (("What is 2 + 3?", False), ("2 + 3 = 5\n#### 5", True), ("And 1 + 1?", False), ("2", True)):
        part = [*tokenizer(text, add_special_tokens=False)["input_ids"], *[tokenizer.eos_token_id] * train]
        trained |= set(range(len(ids), len(ids) + len(part))) if train else set()
        ids += part
    return [row(ids, trained), row(ids[: max(trained)], trained)]


def test_attributes_judge_the_tokens_that_are_trained_and_no_others(tokenizer, conversation):
    scored = xtf.score("xtf.tiny", None, conversation, progress=False)
    everything = ThresholdConfig("all", kn=KNThreshold(pcp=1e-9))  # whatever is judged is dropped
    trained = sum(label != IGNORED for one in conversation for label in one["labels"])
    with pytest.raises(ValueError, match=rf"the mask keeps none of {trained - 1} response tokens"):
        xtf.mask(scored, everything, ["kn"])  # one end is known: the second row stops before its own
    masked = xtf.mask(scored, "quantile")
    for found, given in zip(masked, conversation, strict=True):
        kept = [place for place, label in enumerate(found["labels"]) if label != IGNORED]
        assert kept and {place for place, label in enumerate(given["labels"]) if label != IGNORED} >= set(kept)
        outside = [label == IGNORED for label in given["labels"]][found["prompt_length"] :]
        for name in ("drop_ri", "drop_kn", "drop_tr"):
            assert not any(drop and out for drop, out in zip(found[name], outside, strict=False))


def test_the_explorer_tells_apart_what_the_rows_do_not_train(tokenizer, conversation, tmp_path):
    masked = xtf.mask(xtf.score("xtf.tiny", tokenizer, conversation, progress=False), "quantile")
    page = xtf.preview(masked, tokenizer, tmp_path / "page.html", threshold="quantile").read_text()
    meta, arrays = (
        gzip.decompress(base64.b64decode(re.search(rf'id="{name}"[^>]*>([^<]+)<', page)[1]))
        for name in ("meta", "arrays")
    )
    meta = json.loads(meta)
    assert meta["live"]  # sliders work: what the rows leave out is no decision of a method

    def column(name):
        (found,) = (one for one in meta["columns"] if one["name"] == name)
        return np.frombuffer(arrays, found["type"], found["length"], found["start"])

    out = [
        label == IGNORED for one, found in zip(conversation, masked, strict=True)
        for label in one["labels"][found["prompt_length"] : len(found["input_ids"])]
    ]  # fmt: skip
    assert any(out) and (column("untrained") == out).all() and not (column("judged")[np.array(out)]).any()
    assert "0.0 % of" not in console_text(masked, tokenizer)


def console_text(masked, tokenizer):
    from rich.console import Console

    from xtf.reporting.explorer import preview_text

    console = Console(record=True, width=200, file=io.StringIO())
    console.print(preview_text(masked, tokenizer))
    return console.export_text()


def config(*arguments):
    return to_config(hydra.compose("config", overrides=list(arguments)))


@pytest.mark.usefixtures("composing")
def test_a_run_scores_and_masks_what_another_tool_prepared(conversation, tmp_path):
    from xtf.pipeline import run
    from xtf.runtime.run_folder import RunFolder

    saved(tmp_path / "prepared" / "0123", conversation)
    changed = {"task.train.path": str(tmp_path / "prepared")}
    given = [f"{key}={value}" for key, value in changed.items()]
    made = resolve(config("task=custom", "stage=mask", "threshold=quantile", f"output_dir={tmp_path / 'out'}", *given))
    run(made, changed)
    mask = pq.read_table(RunFolder.of(made, changed).mask)
    assert mask["input_ids"].to_pylist() == [one["input_ids"] for one in conversation]
    for labels, one in zip(mask["labels"].to_pylist(), conversation, strict=True):
        assert all(label in (IGNORED, own) for label, own in zip(labels, one["labels"], strict=True))
    with pytest.raises(ConfigError, match=r"holds token ids .*, and plant.share=0.3 works on texts"):
        planted = config("task=custom", "stage=mask", "plant.share=0.3", f"output_dir={tmp_path / 'b'}", *given)
        run(resolve(planted), changed | {"plant.share": 0.3})
