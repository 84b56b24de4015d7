"""What the benchmarks work out, where a hand-worked figure can hold it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_runs import scored_table
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from benchmarks import evaluation, measure, pretraining, training
from benchmarks.agreement import agreement
from benchmarks.step import drawn, unmasked
from xtf import tiny
from xtf.config.schema import PRESETS, Attribute, Backward
from xtf.runtime.models import device
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


def test_a_share_is_dropped_by_chance_and_never_the_end_or_the_prompt() -> None:
    rows = 200
    labels = pa.array([[-100] * 10] * rows, pa.list_(pa.int64()))
    table = pa.table({"input_ids": [list(range(1, 11))] * rows, "prompt_length": [3] * rows, "labels": labels})
    assert unmasked(table)["labels"].to_pylist() == [[-100, -100, -100, *range(4, 11)]] * rows
    found = np.array(drawn(table, 0.36)["labels"].to_pylist())
    assert (found[:, :3] == -100).all() and (found[:, -1] == 10).all()
    assert (found[:, 3:-1] == -100).mean() == pytest.approx(0.36, abs=0.04)


def test_the_training_benchmark_asks_for_the_processor_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(training, "fit", lambda model, table, config, *rest, **more: seen.append(config))
    bench = object.__new__(training.Bench)
    bench.model, bench.device, bench.rows = torch.nn.Linear(1, 1), "cpu", 4
    monkeypatch.setattr(bench, "timed", lambda train: train(), raising=False)
    bench.ours(pa.table({}), Backward.labelled)
    assert device(seen[0].trainer) == torch.device("cpu") and seen[0].tuning.backward is Backward.labelled


def test_a_report_names_files_without_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.report("x", [], {"settings": {"data": Path("/home/me/rows.jsonl")}})
    assert json.loads((tmp_path / "x.json").read_text())["settings"] == {"data": "rows.jsonl"}
