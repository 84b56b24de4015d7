"""A pass over several devices, killed and resumed: the same bytes as one process writes."""

from __future__ import annotations

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from xtf import tiny
from xtf.config.identity import digest
from xtf.config.schema import (
    PRESETS,
    Attribute,
    Config,
    ModelConfig,
    ScorerConfig,
    TaskConfig,
    TrainerConfig,
    TRConfig,
    TRVariant,
)
from xtf.data.encode import Encoded
from xtf.data.stored import StoredRows
from xtf.runtime.artifacts import read_json
from xtf.runtime.models import load_model
from xtf.scoring import store as score_store
from xtf.scoring.methods import XTF
from xtf.scoring.passes import Pass, Scorer, training_rows
from xtf.scoring.passes import score as passes_to_score
from xtf.scoring.scorers import context_centre, hidden_states, score_rows, with_context_tr
from xtf.scoring.store import Written, read_pass, scoring_pass

ALONE = TrainerConfig(name="cpu", shard_examples=4, tokens_per_score_batch=200)
TOGETHER = dataclasses.replace(ALONE, name="ddp", strategy="ddp", devices=2)
MODEL = ModelConfig(name="tiny", path="xtf.tiny")
ALL = {"ri", "logp", "tr"}


@pytest.fixture(scope="module")
def rows():
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 60, 18)
    return [
        Encoded(str(number), generator.integers(3, 2048, length).tolist(), int(generator.integers(1, length)))
        for number, length in enumerate(lengths)
    ]


def score(folder, rows, trainer, scorer=None, columns=ALL, load=None):
    scorer = scorer or ScorerConfig("xtf", list(Attribute))
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    load = load or functools.partial(load_model, MODEL, trainer, torch.float32)
    config = Config(scorer=scorer, trainer=trainer, model=MODEL, task=TaskConfig(name="math"))
    return scoring_pass(folder, rows, columns, config=config, model={"name": "tiny"}, load=load, tokenizer=tokenizer)


def shards(folder):
    manifest = read_json(folder / "manifest.json")
    assert manifest["complete"]
    return {name: (folder / name).read_bytes() for name in manifest["shards"]}


class Killed(Exception):
    """In the place of a kill."""


@pytest.fixture
def killed_after(monkeypatch):
    """Ends a pass once so many shards are noted, for the next one to go on."""

    def wait_for(many):
        def note(written, manifest, name):
            original(written, manifest, name)
            if len(manifest["shards"]) == many:
                monkeypatch.setattr(Written, "note", original)
                raise Killed

        original = Written.note
        monkeypatch.setattr(Written, "note", note)

    return wait_for


def test_two_processes_write_the_bytes_of_one_and_their_kill_loses_no_shard(rows, tmp_path, killed_after):
    expected = shards(score(tmp_path / "alone", rows, ALONE))
    assert len(expected) == 5
    killed_after(4)
    with pytest.raises(Killed):
        score(tmp_path / "together", rows, TOGETHER)
    (folder,) = (tmp_path / "together").iterdir()
    begun = Written(folder).load()
    assert not begun["complete"] and len(begun["shards"]) == 4
    times = {name: (folder / name).stat().st_mtime_ns for name in begun["shards"]}
    assert shards(score(tmp_path / "together", rows, ALONE)) == expected, "one process may go on"
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times, "not scored again"


def test_the_manifest_is_written_as_often_for_many_shards_as_for_few(rows, tmp_path, monkeypatch):
    def lengths(trainer):
        writes = []

        def counted(file, value, **how):
            write_json(file, value, **how)
            writes.append(file.stat().st_size)

        monkeypatch.setattr(score_store, "write_json", counted)
        scorer = ScorerConfig("xtf", list(Attribute), tr=TRConfig(TRVariant.contextual))
        folder = score(tmp_path / str(trainer.shard_examples), rows, trainer, scorer)
        assert sorted(file.name for file in folder.iterdir() if file.suffix.startswith(".json")) == [
            "hashes.json",
            "manifest.json",
        ]
        return len(writes)

    write_json = score_store.write_json
    assert lengths(dataclasses.replace(ALONE, shard_examples=2)) == lengths(ALONE)


def test_lines_of_shards_that_are_damaged_or_of_another_manifest_cost_their_shards_alone(
    rows, tmp_path, killed_after, capsys
):
    expected = shards(score(tmp_path / "alone", rows, ALONE))
    killed_after(4)
    with pytest.raises(Killed):
        score(tmp_path / "killed", rows, ALONE)
    (folder,) = (tmp_path / "killed").iterdir()
    lines = (folder / "manifest.partial.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    other = lines[1].replace(Written(folder).load()["shards"]["00001.parquet"]["sha256"].encode(), b"0" * 64)
    (folder / "manifest.partial.jsonl").write_bytes(lines[0] + other + lines[2] + lines[3][:40])  # no whole last line
    begun = Written(folder).load()
    assert list(begun["shards"]) == ["00000.parquet", "00002.parquet"]
    assert "2 of its lines are not as they were written" in " ".join(capsys.readouterr().out.split())
    first = (folder / "00000.parquet").stat().st_mtime_ns
    assert shards(score(tmp_path / "killed", rows, ALONE)) == expected
    assert (folder / "00000.parquet").stat().st_mtime_ns == first
    # As if an earlier version had gone on with other shards, or the kill had come before the lines were taken away.
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.partial.jsonl").write_bytes(b"".join(lines))
    assert Written(folder).load() == manifest


def test_a_complete_pass_whose_broken_shards_are_scored_again_is_complete_when_all_of_them_are(
    rows, tmp_path, killed_after
):
    folder = score(tmp_path, rows, ALONE)
    expected = shards(folder)
    for name in ("00001.parquet", "00003.parquet"):
        (folder / name).unlink()
    killed_after(4)
    with pytest.raises(Killed):
        score(tmp_path, rows, ALONE)
    assert shards(score(tmp_path, rows, ALONE)) == expected


def test_contextual_tr_is_of_the_whole_pass_and_a_kill_while_it_is_worked_out_changes_nothing(
    rows, tmp_path, monkeypatch
):
    contextual = ScorerConfig("xtf", list(Attribute), tr=TRConfig(TRVariant.contextual))
    folder = score(tmp_path / "whole", rows, ALONE, contextual)
    expected = shards(folder)
    table = read_pass(folder)
    assert table.column_names == ["example_id", "input_ids", "prompt_length", "ri", "kn", "logp", "tr"]
    values = np.concatenate(table["tr"].to_numpy())
    assert (values.min(), values.max()) == (0, 1), "of all shards together"
    model, scorer = load_model(MODEL, ALONE, torch.float32), dataclasses.replace(contextual, attributes=[Attribute.tr])
    at_once = score_rows(model, rows, scorer, tokens_per_batch=200)
    at_once = with_context_tr(at_once, context_centre(lambda: iter([hidden_states(at_once)])))
    np.testing.assert_allclose(values, np.concatenate(at_once["tr"].to_numpy()), atol=2e-3)

    done = []

    def killed(path, write):
        if path.suffix == ".parquet":
            done.append(path)
            if len(done) == 5 + 3:  # five shards with hidden states, then the third of those with TR
                raise Killed
        write_atomic(path, write)

    write_atomic = score_store.write_atomic
    monkeypatch.setattr(score_store, "write_atomic", killed)
    with pytest.raises(Killed):
        score(tmp_path / "killed", rows, ALONE, contextual)
    monkeypatch.undo()
    assert shards(score(tmp_path / "killed", rows, ALONE, contextual)) == expected
    assert score(tmp_path / "killed", rows, ALONE) != score(tmp_path / "killed", rows, ALONE, contextual)


def test_tr_of_the_prompts_is_of_the_same_scale_and_takes_no_forward_pass(rows, tmp_path):
    def load():
        model = load_model(MODEL, ALONE, torch.float32)
        model.forward = model.model.forward = None  # cannot be called
        return model

    found = read_pass(score(tmp_path, rows, ALONE, columns={"prompt_tr"}, load=load))
    assert found.column_names == ["example_id", "input_ids", "prompt_length", "prompt_tr"]
    embeddings = load_model(MODEL, ALONE, torch.float32).get_input_embeddings().weight.detach().double().numpy()
    every = np.concatenate([row.input_ids for row in rows])
    centre = embeddings[every].mean(0)
    size = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(centre)
    distance = 1 - embeddings @ centre / size
    of_responses = distance[np.concatenate([row.input_ids[row.prompt_length :] for row in rows])]
    for row, values in zip(rows, found["prompt_tr"].to_pylist(), strict=True):
        expected = (of_responses.max() - distance[row.input_ids[: row.prompt_length]]) / np.ptp(of_responses)
        np.testing.assert_allclose(values, expected, atol=1e-5)
    assert min(min(values) for values in found["prompt_tr"].to_pylist() if values) < 0, "farther than any response"


def test_the_released_threshold_adds_to_an_earlier_versions_scores_what_they_lack(rows, tmp_path):
    released = Config(
        scorer=ScorerConfig("xtf", list(Attribute)),
        threshold=PRESETS["released"],
        method=XTF(),
        trainer=ALONE,
        model=MODEL,
        task=TaskConfig(name="math"),
        output_dir=str(tmp_path),
    )
    tokenizer, load = AutoTokenizer.from_pretrained(tiny.MODEL_DIR), functools.partial(load_model, MODEL, ALONE)
    scorer = Scorer({"name": "tiny"}, lambda: load(torch.float32))

    def passes(config):
        return passes_to_score(config, lambda: rows, lambda: tokenizer, lambda _: scorer, None)

    old = score(tmp_path / "scores", rows, ALONE)  # as a version without prompt_tr made it
    paper = dataclasses.replace(released, threshold=PRESETS["paper"])
    assert passes(paper) == {Pass.base: old}
    found = passes(released)
    assert found[Pass.base] == old and found[Pass.prompts] != old
    stored = StoredRows.write([rows], tmp_path)
    table = training_rows(lambda: stored, found).table()
    assert table["example_id"].to_pylist() == [row.example_id for row in rows]
    assert [len(values) for values in table["prompt_tr"].to_pylist()] == [row.prompt_length for row in rows]
    shutil.rmtree(tmp_path / "scores")
    anew = passes(released)
    assert anew[Pass.base] == anew[Pass.prompts], "one pass brings all"
    assert training_rows(lambda: stored, anew).table().equals(table)


def test_the_digest_of_the_tokens_is_that_of_any_value(rows):
    plainly = digest([(row.example_id, row.input_ids, row.prompt_length) for row in rows], 64)
    assert score_store.rows_digest(rows) == plainly
