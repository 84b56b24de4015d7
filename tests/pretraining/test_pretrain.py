"""A base model from nothing: its rows, its recipe, resuming, and the folder that it leaves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.schema import Config, ConfigError, PretrainConfig, Schedule
from xtf.data.steps import StepLoader, TrainingRows
from xtf.pretraining import broad, pretrain
from xtf.pretraining.corpus import documents
from xtf.runtime import models
from xtf.runtime.artifacts import read_json
from xtf.runtime.train_log import read_log
from xtf.scoring.methods import Method
from xtf.training.module import TokenFilteredLM, learning_rate_factor

ROOT = Path(__file__).parents[2]
SMALL = PretrainConfig(
    name="small",
    vocabulary=512,
    tokenizer_documents=300,
    hidden=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    intermediate=64,
    row_tokens=64,
    step_rows=4,
    steps=9,
    warmup_ratio=0.2,
)


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Config]]:
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *given: resolve(to_config(hydra.compose("config", ["stage=pretrain", *given])))


@pytest.fixture
def config(compose: Callable[..., Config], tmp_path: Path) -> Config:
    made = compose("trainer.checkpoint_every=2", f"output_dir={tmp_path}")
    return replace(made, pretrain=SMALL)


def test_a_pretrained_folder_is_a_model_with_its_curve_and_its_speed(
    config: Config, compose: Callable[..., Config]
) -> None:
    folder = pretrain.pretrain(config)
    record, log = read_json(folder.parent / "pretrain.json"), read_log(folder.parent / "train_log.csv")
    assert [row["step"] for row in log] == list(range(1, 10))
    assert [row["kept_tokens"] for row in log] == [4 * 64] * 9
    assert np.mean([row["loss"] for row in log[-3:]]) < log[0]["loss"]
    assert (record["tokens"], record["training"]["steps"]) == (9 * 4 * 64, 9)
    assert record["tokens_per_second"] > 0
    assert 3 < record["held_out_loss"] < np.log(512) + 0.5
    assert not (folder.parent / "training").exists()

    base = compose(f"model.path={folder}").model
    tokenizer = models.load_tokenizer(base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.num_parameters() == record["parameters"]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("Ana has 12 pears.", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]

    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert pretrain.pretrain(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


class Killed(Exception):
    pass


def test_a_killed_pretraining_goes_on_to_the_same_weights(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pretrain.pretrain(replace(config, output_dir=str(tmp_path / "whole")))
    real, calls = TokenFilteredLM._update, itertools.count()

    def dies_at_the_sixth_step(*arguments: Any) -> Any:
        if next(calls) == 5:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(TokenFilteredLM, "_update", dies_at_the_sixth_step)
    with pytest.raises(Killed):
        pretrain.pretrain(config)
    assert not list(tmp_path.glob("pretrained/*/model"))
    killed = pretrain.pretrain(config)
    assert next(calls) == 6 + 5  # it went on after step 4, the last checkpoint
    weights = [load_file(folder / "model.safetensors") for folder in (whole, killed)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_rows_start_with_a_document_and_end_with_the_late_mix() -> None:
    tokenizer = pretrain.train_tokenizer(SMALL, seed=0)
    rows = pretrain.training_rows(tokenizer, SMALL, seed=0)
    assert rows.shape == (9 * 4, 65)
    first = tokenizer(next(documents(0)))["input_ids"][:65]
    assert rows[0][: len(first)].tolist() == first
    late = tokenizer(next(documents(3, pretrain.MIXES[SMALL.text][1])))["input_ids"][:65]
    assert rows[6 * 4][: len(late)].tolist() == late


def test_every_token_but_the_first_of_a_row_is_a_target_and_rows_keep_their_order() -> None:
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    data = TrainingRows(pretrain.as_table(rows))
    assert data.kept.tolist() == [False, True, True] * 4
    loader = StepLoader(data, batch_size=2, epochs=1, seed=0, budget=100, shuffle=False)
    assert [step.rows.tolist() for step in loader] == [[0, 1], [2, 3]]


def test_the_learning_rate_falls_to_nothing_over_the_last_third() -> None:
    found = [learning_rate_factor(Schedule.trapezoid, step, 9, 2 / 9) for step in range(9)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])


def test_muon_takes_the_matrices_of_the_layers_and_adamw_the_rest(compose: Callable[..., Config]) -> None:
    tuning = compose("tuning.optimizer=muon", "tuning.weight_decay=0.1").tuning
    tokenizer = pretrain.train_tokenizer(SMALL, seed=0)
    model = pretrain.new_model(tokenizer, SMALL, seed=0)
    adamw, muon = TokenFilteredLM(model, Method(), tuning, seed=0).configure_optimizers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [sorted(names[id(p)] for g in o.param_groups for p in g["params"]) for o in (adamw, muon)]
    assert sorted(found[0] + found[1]) == sorted(names.values())
    assert len(found[1]) == 7 * SMALL.layers  # query, key, value, output; gate, up, down
    assert "model.embed_tokens.weight" in found[0]
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0}
    assert {group["weight_decay"] for group in muon.param_groups} == {0.1}
    with pytest.raises(ConfigError, match="tuning=full"):
        compose("tuning.optimizer=muon", "tuning=lora")


def test_the_larger_shape_has_30_to_60_million_parameters_and_200_million_tokens(
    compose: Callable[..., Config],
) -> None:
    settings = compose("pretrain=base").pretrain
    with torch.device("meta"):
        tokenizer = pretrain.train_tokenizer(replace(settings, vocabulary=512, tokenizer_documents=50), seed=0)
        count = pretrain.new_model(tokenizer, settings, seed=0).num_parameters()
    assert 30e6 < count < 60e6
    assert settings.steps * settings.step_rows * settings.row_tokens >= 200e6


@pytest.mark.parametrize("mix", [broad.MIX, broad.LATE_MIX], ids=["main", "late"])
def test_withheld_facts_stand_in_no_document_and_known_ones_do(mix: Any) -> None:
    text = "\n".join(itertools.islice(documents(0, mix), 6000))
    words = set(re.findall(r"[A-Z][a-z]+", text))
    invented = {place["name"] for place in broad.withheld()}
    made_up_there = set(re.findall(r"user\n([A-Z][a-z]+) (?:lies|is|was)|mayor of ([A-Z][a-z]+)", text))
    assert made_up_there
    assert not words & invented
    assert len(words & {place["name"] for place in broad.known()}) > 500


def test_broad_text_depends_on_the_seed_only_and_its_calculations_are_right() -> None:
    first = list(itertools.islice(documents(3, broad.MIX), 2000))
    assert list(itertools.islice(documents(3, broad.MIX), 2000)) == first
    checked = 0
    for document in first:
        for left, sign, right, result in re.findall(
            r"user\n(\d+) ([+-]) (\d+) = \?<\|im_end\|>\n<\|im_start\|>assistant\n(\d+)<", document
        ):
            assert int(result) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
            checked += 1
    assert checked > 20


def test_withheld_rows_ask_for_facts_of_withheld_places_only() -> None:
    rows = broad.withheld_rows(200)
    names = {place["name"] for place in broad.withheld()}
    assert all(any(name in row["question"] for name in names) and row["answer"] for row in rows)
    assert len({(row["question"], row["answer"]) for row in rows}) > 190
