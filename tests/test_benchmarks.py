"""What the benchmarks work out, where a hand-worked figure can hold it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made_runs import scored_table
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks import evaluation, pretraining
from benchmarks.agreement import agreement
from xtf import tiny
from xtf.config.schema import PRESETS, Attribute
from xtf.scoring.masks import MaskedTokens, build_mask


def test_training_costs_six_operations_a_weight_and_those_of_attention() -> None:
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    layer = 32 * (32 + 16 + 16 + 32) + 3 * 32 * 64
    found = pretraining.training_flops(Qwen2ForCausalLM(config), 64)
    assert found == 6 * (512 * 32 + 2 * layer) + 6 * 2 * 64 * 32


def test_the_peak_is_operations_by_seconds() -> None:
    found = pretraining.matmul_peak(torch.device("cpu"), torch.float32, repeats=2)
    assert found.shape == (2,)
    assert (np.isfinite(found) & (found > 1e6)).all()


def test_all_ways_to_generate_give_the_same_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype=torch.float32).eval()
    rows = evaluation.read_rows(evaluation.BUNDLED, 4, tokenizer, new=8)
    wanted = evaluation.loop(model, rows, 8)
    assert [len(ids) for ids in wanted] == [row.length for row in rows]
    assert evaluation.ours(model, rows, 8, budget=4096) == wanted
    assert evaluation.generate_batch(model, rows) == wanted


def test_two_masks_of_the_same_tokens_are_compared_and_others_refused() -> None:
    paper = PRESETS["paper"]
    stricter = dataclasses.replace(paper, kn=dataclasses.replace(paper.kn, pcp=0.5))
    table = scored_table(12)
    first, second = (
        MaskedTokens.from_mask(build_mask(table, threshold, list(Attribute)).table) for threshold in (paper, stricter)
    )
    lines = {
        name: (one, other, alike, kappa, rank) for name, one, other, alike, kappa, rank in agreement(first, second)
    }
    assert lines["TR"][2:] == ("100.0 %", "1.00", "1.00") and lines["KN"][4] == "1.00"
    inner = ~first.columns["end"]
    p = np.exp(first.scores["logp"][inner].astype(np.float64))
    alike = 1 - np.mean((p > 0.5) & (p <= 0.95))
    assert lines["KN"][:3] == tuple(f"{100 * share:.1f} %" for share in (np.mean(p > 0.95), np.mean(p > 0.5), alike))
    with pytest.raises(ValueError, match="of different tokens"):
        agreement(first, MaskedTokens.from_mask(build_mask(scored_table(11), paper, list(Attribute)).table))
