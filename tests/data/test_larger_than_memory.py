"""Rows, token ids, scores and masks a batch at a time: the same as in memory, whatever the size of a batch."""

from __future__ import annotations

import contextlib
import gzip
import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from xtf import tiny
from xtf.config.schema import PRESETS, Attribute, Protect, SourceConfig, TaskConfig, ThresholdConfig, TuningConfig
from xtf.data import batches
from xtf.data.batches import Batches, Growing, Hashes, parquet_batches, spooled, write_parquet
from xtf.data.encode import Encoder, encode
from xtf.data.ragged import Lists, as_lists
from xtf.data.rows import load_rows, plain_rows, read_file
from xtf.data.steps import TrainingRows
from xtf.data.stored import StoredRows, tokens_in
from xtf.exports.base import MaskedRows
from xtf.exports.megatron import packed
from xtf.scoring.masks import StreamedMask, build_mask
from xtf.scoring.methods import METHODS
from xtf.tasks import load_task
from xtf.training.datamodule import MaskedDataModule

# --- rows ---------------------------------------------------------------------------------------------------


def test_lines_are_read_anew_each_time_and_from_any_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\r\n{"id": 2, "t": "a\xe2\x80\xa8b"}\r{"id": 3}\n \n{"id": 4}')
    rows = load_rows(SourceConfig(path=str(path)))
    expected = [{"id": 1}, {"id": 2, "t": "a\u2028b"}, {"id": 3}, {"id": 4}]
    assert [list(rows), list(rows)] == [expected, expected]
    assert list(rows.numbers) == [1, 3, 4, 6]  # as an editor counts lines
    assert (rows.rows[2], rows.rows[-1], list(rows.rows[1:3])) == (expected[2], expected[3], expected[1:3])
    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(path.read_bytes())
    assert load_rows(SourceConfig(path=f"{path}.gz")).sha256 == rows.sha256


def test_any_rows_of_many_lines_are_found(tmp_path):
    """More lines than stand between two known places, blank ones among them, each read whole from the file's blocks."""
    path, expected = tmp_path / "rows.jsonl", [{"id": place, "t": "x" * (place % 700)} for place in range(5000)]
    written = "".join(json.dumps(row) + "\n" * (1 + (row["id"] % 7 == 0)) for row in expected)
    path.write_text(written)
    rows = load_rows(SourceConfig(path=str(path)))
    assert list(rows) == expected and len(written) > 1 << 20
    lines = written.split("\n")
    assert all(json.loads(lines[number - 1]) == row for row, number in zip(expected, rows.numbers, strict=True))
    assert [rows.rows[place] for place in (0, 1023, 1024, 4999, 2)] == [
        expected[place] for place in (0, 1023, 1024, 4999, 2)
    ]
    assert list(rows.rows[900:4500:100]) == expected[900:4500:100]
    (tmp_path / "ids.json").write_text(json.dumps([1500, 3, 4800]))
    some = load_rows(SourceConfig(path=str(path), ids=str(tmp_path / "ids.json")))
    assert [row["id"] for row in some] == [3, 1500, 4800]
    assert list(some.numbers) == [rows.numbers[place] for place in (3, 1500, 4800)]
    both = zip(rows, rows, strict=True)  # two readers at different places
    next(iter(rows))
    assert all(one == other for one, other in both)


@pytest.mark.parametrize("held", [1, 3, 1000])
def test_hashes_that_repeat_are_found_however_few_are_held(held, monkeypatch):
    monkeypatch.setattr(batches, "HASHES_HELD", held)
    values = [*np.random.default_rng(0).integers(-40, 40, 50).tolist(), 2**63 - 1, -(2**63), 2**63 - 1]
    found = Hashes()
    for value in values:
        found.extend([value])
    assert found.repeated() == {value for value in values if values.count(value) > 1}
    assert Hashes().repeated() == set()


def test_a_file_that_changes_under_its_reader_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    rows = load_rows(SourceConfig(path=str(path)))
    with path.open("a") as file:
        file.write('{"a": 3}\n')
    with pytest.raises(ValueError, match="changed while it was read"):
        list(rows)


def test_the_parts_of_a_parquet_file_are_read_as_the_whole(tmp_path):
    table = pa.table(
        {
            "n": pa.array([1.0, float("nan")] * 900, pa.float64()),  # whole numbers with gaps
            "x": pa.array([None] * 1500 + [0.5] * 300, pa.float64()),
            "late": pa.array([float("nan"), 2.0] + [3.0] * 1798, pa.float32()),  # its only gap is in the first part
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=700)
    rows = [row for _, row in read_file(tmp_path / "rows.parquet")]
    assert rows == plain_rows(table)
    assert all(isinstance(row["late"], int | None) for row in rows)
    some = load_rows(SourceConfig(path=str(tmp_path / "rows.parquet"), limit=1200))
    assert list(some) == rows[:1200] and some.rows[1100] == rows[1100]


# --- token ids ----------------------------------------------------------------------------------------------


def test_stored_rows_are_the_encoded_ones(tmp_path):
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It is so.", "weight": 0.5}]
    written = [{"messages": messages}, {"prompt": "What is 1 + 1?", "response": "It is 2."}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, written)))
    task = load_task(TaskConfig(name="custom", grader="exact"))
    examples = task.examples(load_rows(SourceConfig(path=str(tmp_path / "rows.jsonl"))))
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    expected, report = encode(tokenizer, examples, 512)
    encoder = Encoder(tokenizer, 512)
    parts = [part for example in examples for part in encoder.batches([example])]  # six record batches
    stored = StoredRows.write(parts, tmp_path / "spool")
    assert list(stored) == list(stored) == expected and encoder.report() == report
    assert (stored[1:5], stored[-1], stored[::-2]) == (expected[1:5], expected[-1], expected[::-2])
    for part in (range(6), range(1, 4), range(2, 2)):
        assert tokens_in(stored, part) == tokens_in(expected, part)
    assert tokens_in(expected, range(1, 3)) == len(expected[1].input_ids) + len(expected[2].input_ids)
    assert stored.weighted and not stored.sources
    assert not list((tmp_path / "spool").iterdir()), "the file has no name"


# --- masks --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored():
    generator = np.random.default_rng(0)
    prompts, responses = generator.integers(1, 6, 60), generator.integers(2, 30, 60)
    n = int(responses.sum())
    columns = {
        "ri": generator.normal(size=n).astype(np.float32),
        "logp": -generator.exponential(0.3, n).astype(np.float32),
        "tr": generator.integers(0, 50, n).astype(np.float32) / 50,
        "protected": generator.random(n) < 0.1,
    }
    whole = generator.integers(0, 90, int((prompts + responses).sum())).astype(np.int32)
    return pa.table(
        {
            "example_id": [f"e{i}" for i in range(60)],
            "input_ids": as_lists(whole, prompts + responses),
            "prompt_length": pa.array(prompts, pa.int32()),
            "end_tokens": pa.array([1] * 59 + [0], pa.int8()),
            **{name: as_lists(values, responses) for name, values in columns.items()},
            "prompt_tr": as_lists(generator.integers(0, 50, int(prompts.sum())).astype(np.float32) / 50, prompts),
            "row_weights": as_lists(generator.choice([0, 0.5, 1], n).astype(np.float32), responses),
        }
    )


def in_batches(table, size):
    return Batches(lambda: (batch for batch in table.combine_chunks().to_batches(size)))


SOFT = {"soft": {"dropped_weight": 0.3}, "moving": {"drop_probability": 0.5}, "guarded": {"protect": Protect.answer}}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", [*PRESETS, *SOFT, "shifted"])
def test_a_mask_in_batches_is_the_mask_in_memory(scored, name, size):
    threshold = replace(PRESETS.get(name, PRESETS["paper"]), **SOFT.get(name, {}))
    if name == "shifted":
        moved = {a.value: replace(getattr(threshold, a.value), shift=0.03) for a in Attribute}
        threshold = replace(threshold, **moved)
    expected = build_mask(scored, threshold, list(Attribute))
    found = StreamedMask(in_batches(scored, size), threshold, list(Attribute))
    table = pa.Table.from_batches(list(found.batches))
    assert table.combine_chunks() == expected.table.combine_chunks()
    assert found.stats == expected.stats
    assert 0 < expected.stats.kept_share < 1


@pytest.mark.parametrize("method", ["normal", "xtf", "random", "double_epochs"])
@pytest.mark.parametrize("size", [7, 1000])
def test_a_method_gives_the_same_rows_in_batches_and_in_memory(scored, method, size):
    rule, threshold = METHODS[method](), PRESETS["paper"]
    expected = rule.mask(scored, threshold, list(Attribute), 3)
    found = rule.stream(in_batches(scored, size), threshold, list(Attribute), 3)
    assert pa.Table.from_batches(list(found.batches)).combine_chunks() == expected.table.combine_chunks()
    assert found.stats == expected.stats


def test_a_mask_without_tokens_is_refused_in_batches_too(scored):
    ends = scored.set_column(3, "end_tokens", pa.array(np.diff(scored["ri"].combine_chunks().offsets), pa.int8()))
    with pytest.raises(ValueError, match="no response tokens but appended ends"):
        list(StreamedMask(in_batches(ends, 5), ThresholdConfig("test"), list(Attribute)).batches)


def test_batches_are_written_and_mapped_as_they_are(scored, tmp_path):
    batches = in_batches(scored, 7)
    write_parquet(batches, tmp_path / "rows.parquet")
    assert Batches(lambda: parquet_batches([tmp_path / "rows.parquet"])).table().to_pydict() == scored.to_pydict()
    assert spooled(batches, tmp_path / "here") == scored
    numbers = pa.array(range(60))
    assert batches.with_column("n", numbers).table()["n"].combine_chunks() == numbers
    with pytest.raises(ValueError, match="no rows"):
        write_parquet(iter(()), tmp_path / "none.parquet")


def test_values_grow_in_a_file_and_are_mapped_from_it(tmp_path):
    file = Growing(tmp_path / "here")
    for part in ([1, 2], [], [3]):
        file.extend(np.array(part, np.int16))
    found = file.whole()
    assert found.tolist() == [1, 2, 3] and found.dtype == np.int16
    assert not list((tmp_path / "here").iterdir()), "the file has no name"
    assert Growing().whole().tolist() == []


def test_many_batches_make_fewer_row_groups_but_few_are_written_as_they_come(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "GROUP_BYTES", 4000)
    written = in_batches(scored, 1)
    groups = {}
    for limit in (60, 20):
        monkeypatch.setattr(batches, "GROUPS", limit)
        write_parquet(written, tmp_path / f"{limit}.parquet", {b"said": b"so"})
        with pq.ParquetFile(tmp_path / f"{limit}.parquet") as file:
            groups[limit] = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
            assert file.read().to_pydict() == scored.to_pydict() and file.schema_arrow.metadata == {b"said": b"so"}
    assert groups[60] == [1] * 60
    assert groups[20][:20] == [1] * 20 and min(groups[20][20:-1]) >= 2 and len(groups[20]) < 45


def test_of_many_batches_several_are_mapped_as_one(scored, tmp_path, monkeypatch):
    written = in_batches(scored, 1)
    monkeypatch.setattr(batches, "GROUPS", 20)
    monkeypatch.setattr(batches, "MAPPED_BYTES", 4000)
    found = spooled(written, tmp_path)
    sizes = [len(chunk) for chunk in found["input_ids"].chunks]
    assert sizes[:20] == [1] * 20 and min(sizes[20:-1]) >= 2 and found == scored


def test_batches_are_put_into_a_row_group_without_being_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "GROUPS", 0)
    monkeypatch.setattr(batches, "GROUP_BYTES", 2**30)
    values = np.random.default_rng(0).integers(0, 2**62, (8, 8, 10_000))
    parts = [pa.RecordBatch.from_pydict({str(n): column for n, column in enumerate(part)}) for part in values]
    with counted_pool() as counted:
        write_parquet(parts, tmp_path / "rows.parquet")
    assert pq.read_metadata(tmp_path / "rows.parquet").num_row_groups == 1
    assert counted.max_memory() < values.nbytes


@contextlib.contextmanager
def counted_pool():
    """A memory pool that counts what Arrow allocates meanwhile."""
    usual = pa.default_memory_pool()
    counted = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(counted)
    try:
        yield counted
    finally:
        pa.set_memory_pool(usual)


def test_a_parquet_file_is_read_without_keeping_what_was_read(tmp_path):
    def most(groups):
        values = pa.array(np.random.default_rng(0).random(100_000))
        path = tmp_path / f"{groups}.parquet"
        write_parquet((pa.RecordBatch.from_pydict({"x": values}) for _ in range(groups)), path)
        before = pa.total_allocated_bytes()
        return max(pa.total_allocated_bytes() - before for _ in parquet_batches([path]))

    assert most(40) < 2 * most(2)


def test_a_full_disk_is_told_with_the_folder_of_a_file_without_a_name(scored, tmp_path, monkeypatch, full_disk):
    monkeypatch.setattr(batches.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with full_disk(), pytest.raises(OSError, match=rf"'{tmp_path / 'here'}'$"):
        spooled(in_batches(scored, 7), tmp_path / "here")
    with full_disk(), pytest.raises(OSError, match=rf"'{tmp_path / 'tmp'}'$"):
        Hashes().extend(range(100_000))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as rows:
        rows.writelines('{"a": 1}\n' for _ in range(10_000))
    with full_disk(), pytest.raises(ValueError, match=rf"rows\.jsonl\.gz: cannot be read: .*'{tmp_path / 'tmp'}'$"):
        read_file(tmp_path / "rows.jsonl.gz")


# --- training and packs -------------------------------------------------------------------------------------


ARRAYS = [
    "input_ids",
    "labels",
    "weights",
    "in_response",
    "kept",
    "idle",
    "offsets",
    "lengths",
    "prompt_lengths",
    "needed",
]


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", ["paper", *SOFT])
def test_training_rows_in_batches_are_those_of_the_whole(scored, name, size, tmp_path):
    threshold = replace(PRESETS["paper"], **SOFT.get(name, {}))
    masked = build_mask(scored, threshold, list(Attribute)).table
    whole = TrainingRows(masked.combine_chunks(), ["logp"])
    parts = TrainingRows(in_batches(masked, size), ["logp"], folder=tmp_path)
    for one, other in ((whole, parts), (whole.in_epoch(3, 1), parts.in_epoch(3, 1))):
        assert all(np.array_equal(getattr(one, array), getattr(other, array)) for array in ARRAYS)
        assert np.array_equal(one.columns["logp"], other.columns["logp"]) and one.example_ids == other.example_ids
    assert whole.moving is (name == "moving") and not list(tmp_path.iterdir())


def test_training_holds_no_tokens_of_a_mask_in_memory(scored, tmp_path):
    masked = build_mask(scored, PRESETS["paper"], list(Attribute)).table

    def most(times):
        path = tmp_path / f"{times}.parquet"
        write_parquet((batch for _ in range(times) for batch in masked.to_batches()), path)
        recipe = {"batch_size": 8, "epochs": 1, "learning_rate": 1e-4, "schedule": "constant", "warmup_ratio": 0}
        tracemalloc.start()
        data = MaskedDataModule(path, TuningConfig("t", validation_fraction=0.3, **recipe), seed=0, folder=tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, data.training.lengths.sum()

    (few, _), (many, tokens) = most(10), most(30)
    assert many - few < 6 * tokens, "bytes a token, and 19 tokens a row"


def test_packs_are_made_without_copying_all_rows(tmp_path):
    generator = np.random.default_rng(0)

    def part():
        lengths = generator.integers(20, 60, 300)
        return pa.RecordBatch.from_pydict(
            {
                name: as_lists(generator.integers(0, 99, lengths.sum()).astype(np.int32), lengths)
                for name in ("input_ids", "labels")
            }
        )

    table = spooled((part() for _ in range(100)), tmp_path)
    assert all(Lists(table["labels"])[row].tolist() == table["labels"][row].as_py() for row in (0, 299, 300, 29_999))
    with counted_pool() as counted:
        next(packed(MaskedRows(table, 1, 0), 64))
    assert counted.max_memory() < table["labels"].nbytes / 4
