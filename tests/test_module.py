"""Gradients of the packed, chunked, kept-tokens-only loss against the plain loss of transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from xtf import module as module_file
from xtf.config import Schedule
from xtf.data import Step, TrainingRows, collate
from xtf.methods import METHODS, Method
from xtf.module import PACKED, PackedLM, enable_packing, learning_rate_factor

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen2_tied": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=64)),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    kind, config = MODELS[name]
    model = kind._from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():  # larger than at initialisation, so that attention is not flat
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.float().train()


def table(rows: int = 7, keep: float = 0.6, seed: int = 0, **columns: Any) -> pa.Table:
    random = np.random.default_rng(seed)
    ids = [random.integers(1, VOCABULARY, random.integers(6, 30)).tolist() for _ in range(rows)]
    prompts = [int(random.integers(1, 5)) for _ in range(rows)]
    labels = [
        [token if at >= prompt and random.random() < keep else -100 for at, token in enumerate(row)]
        for row, prompt in zip(ids, prompts, strict=True)
    ]
    return pa.table(
        {"example_id": [f"e{i}" for i in range(rows)], "input_ids": ids, "prompt_length": prompts, "labels": labels}
        | columns
    )


def whole_step(rows: TrainingRows, budget: int = 64) -> Step:
    return collate(rows, np.arange(len(rows)), budget, 0)


def padded(source: pa.Table) -> dict[str, torch.Tensor]:
    """The same rows as an ordinary right-padded batch."""
    ids, labels = source["input_ids"].to_pylist(), source["labels"].to_pylist()
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    difference = math.sqrt(sum(float((ours[k] - theirs[k]).double().square().sum()) for k in theirs))
    return difference / math.sqrt(sum(float(g.double().square().sum()) for g in theirs.values()))


def plain_gradients(model: PreTrainedModel, source: pa.Table) -> tuple[float, dict[str, torch.Tensor]]:
    batch = padded(source)
    kept = int((batch["labels"][:, 1:] != -100).sum())
    loss = model(**batch, use_cache=False, num_items_in_batch=kept).loss
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    return float(loss), found


def packed_gradients(
    model: Any, source: pa.Table, budget: int = 64, method: Method | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    step = whole_step(TrainingRows(source), budget)
    packed, total = PackedLM(model, method or Method()), 0.0
    for micro in step.micro_batches:
        loss = packed(micro)[0] / step.kept_tokens
        loss.backward()
        total += float(loss)
    found = gradients(model)
    model.zero_grad()
    return total, found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packing", [PACKED, "sdpa"])
def test_packed_gradients_equal_those_of_a_padded_batch(name: str, packing: str) -> None:
    model, source = build(name), table()
    loss, theirs = plain_gradients(model, source)
    model.set_attn_implementation(packing)
    found, ours = packed_gradients(model, source)
    assert found == pytest.approx(loss, rel=1e-6)
    assert relative_difference(ours, theirs) < 1e-6
