"""The micro-batch: given, chosen from the memory that is free, or refused; and that the choice changes no result."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from xtf.config.schema import Config, LoggerConfig, ScorerConfig, TrainerConfig, Tuning, TuningConfig
from xtf.runtime.artifacts import read_json
from xtf.scoring.methods import METHODS, Method
from xtf.training import budget as budgets
from xtf.training.budget import FILE, activation_bytes, microbatch
from xtf.training.packed import PackedLM, enable_packing

TRAINER = TrainerConfig(name="cpu")


def config_of(trainer: TrainerConfig = TRAINER) -> Config:
    return Config(
        trainer=trainer,
        tuning=TuningConfig(name=Tuning.full),
        method=METHODS["normal"](),
        scorer=ScorerConfig(name="none"),
        logger=LoggerConfig(name="csv"),
    )


@pytest.fixture
def model(small_model):
    built = small_model("llama").train()
    enable_packing(built, 64)
    return built


def test_what_is_given_is_taken(model, tmp_path):
    chosen = microbatch(model, config_of(dataclasses.replace(TRAINER, tokens_per_microbatch=17)), 30, tmp_path)
    assert (chosen.tokens, chosen.how) == (17, "given")
    assert not (tmp_path / FILE).exists()


def test_activations_of_a_token_are_those_of_the_graph(model):
    """Against the obvious count: what a longer pass adds to the tensors that autograd saves."""
    per_token, fixed = activation_bytes(PackedLM(model, Method()))
    hidden, inner, layers = 32, 48, 3
    assert layers * 4 * (4 * hidden + 4 * inner) < per_token < layers * 4 * (16 * hidden + 6 * inner)
    assert fixed < 10 * per_token


def test_a_small_model_takes_large_micro_batches_and_a_large_one_no_more_than_its_share(model, tmp_path, monkeypatch):
    assert microbatch(model, config_of(), 30, tmp_path / "small").tokens == budgets.LARGEST
    per_token, _ = activation_bytes(PackedLM(model, Method()))
    monkeypatch.setattr(budgets, "CPU_ACTIVATIONS", 1000 * per_token)
    assert microbatch(model, config_of(), 30, tmp_path / "large").tokens == 1000
    assert microbatch(model, config_of(), 1500, tmp_path / "long").tokens == 1500
    monkeypatch.setattr(budgets, "CPU_ACTIVATIONS", 0)  # a share that is less than a gradient
    gradient = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert microbatch(model, config_of(), 2, tmp_path / "gradient").tokens == int(gradient / per_token) > 2


def test_scarce_memory_makes_them_smaller_and_is_said(model, tmp_path, monkeypatch, capsys):
    per_token, _ = activation_bytes(PackedLM(model, Method()))
    monkeypatch.setattr(budgets, "RESERVE", 0)
    monkeypatch.setattr(budgets, "free_memory", lambda device: 2_000_000 + 3000 * per_token)
    chosen = microbatch(model, config_of(), 30, tmp_path)
    assert 1000 < chosen.tokens < 3000 and chosen.how == "chosen"
    assert f"at most {chosen.tokens:,} tokens: chosen, for 0." in capsys.readouterr().out


def test_too_little_memory_for_the_longest_row_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(budgets, "free_memory", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"for its longest row \(30 tokens\), and 0.0 GB are free: use tuning=lora"):
        microbatch(model, config_of(), 30, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_a_resumed_training_keeps_the_first_choice(model, tmp_path, monkeypatch):
    first = microbatch(model, config_of(), 30, tmp_path)
    assert read_json(tmp_path / FILE)["tokens"] == first.tokens
    monkeypatch.setattr(budgets, "free_memory", lambda device: 0)
    again = microbatch(model, config_of(), 30, tmp_path)
    assert (again.tokens, again.how) == (first.tokens, "resumed")


def test_gradient_checkpointing_is_counted(small_model):
    def counted(checkpointing):
        model = small_model("llama").train()
        enable_packing(model, 64)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with torch.enable_grad():
            return activation_bytes(PackedLM(model, Method()))[0]

    assert counted(True) < counted(False) / 3
