"""Teacher-forced figures against a slow row-by-row oracle and numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xtf.config.schema import Config, EvaluateConfig, ModelConfig, TaskConfig
from xtf.evaluation.stage import Items, check_evaluation
from xtf.evaluation.teacher_forced import (
    BINS,
    Predictions,
    calibration_error,
    mean_loss,
    predict,
    response_figures,
    text_rows,
)
from xtf.pretraining.corpus import documents, held_out
from xtf.runtime.models import load_tokenizer
from xtf.tasks import load_task


@pytest.mark.parametrize("name", ["qwen2", "mistral"])
def test_sums_equal_those_of_each_row_alone(small_model, random_rows, name) -> None:
    model = small_model(name)
    attention = model.config._attn_implementation
    found = predict(model, random_rows, budget=50)
    assert model.config._attn_implementation == attention
    for number, row in enumerate(random_rows):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0].double()
        nll, bins = 0.0, np.zeros((BINS, 3))
        for place in range(row.prompt_length, len(row.input_ids)):
            p = logits[place - 1].softmax(-1)
            nll -= float(p[row.input_ids[place]].log())
            confidence = float(p.max())
            right = int(p.argmax()) == row.input_ids[place]
            bins[int(confidence * BINS)] += [1, confidence, right]
        assert found.tokens[number] == len(row.input_ids) - row.prompt_length
        assert found.nll[number] == pytest.approx(nll, rel=1e-4)
        assert found.bins[number] == pytest.approx(bins, abs=1e-4)


def test_the_calibration_error_weighs_gaps_by_their_tokens() -> None:
    bins = np.zeros((BINS, 3))
    bins[3] = [2, 0.5, 0]  # confidence 0.25, none right: gap 0.25 for 2 tokens of 10
    bins[13] = [8, 7.2, 6]  # confidence 0.9, accuracy 0.75: gap 0.15 for 8
    found = calibration_error(bins[None])
    assert found.value == pytest.approx(0.25 * 0.2 + 0.15 * 0.8)
    assert (found.low, found.high) == (found.value, found.value)  # one row is drawn again and again


@pytest.mark.parametrize("gap", [0.0, 0.03, 0.1])
def test_the_interval_of_the_calibration_error_covers_also_where_there_is_no_error(gap: float, monkeypatch) -> None:
    """Rows of 40 tokens; each row is off by its own draw, all by `gap` towards 0.5."""
    monkeypatch.setattr("xtf.evaluation.teacher_forced.BOOTSTRAP_RESAMPLES", 200)
    generator = np.random.default_rng(7)

    def drawn(rows: int) -> np.ndarray:
        p = generator.beta(0.6, 0.6, size=(rows, 40))
        chance = p + gap * np.where(p > 0.5, -1, 1) + 0.03 * generator.normal(size=(rows, 1))
        right = generator.random(p.shape) < chance
        bins = np.zeros((rows, BINS, 3))
        places = (np.arange(rows)[:, None], np.minimum((p * BINS).astype(int), BINS - 1))
        for column, values in enumerate([np.ones_like(p), p, right]):
            np.add.at(bins[:, :, column], places, values)
        return bins

    total = drawn(20_000).sum(axis=0)
    truth = np.abs(total[:, 2] - total[:, 1]).sum() / total[:, 0].sum()
    found = [calibration_error(drawn(40)) for _ in range(100)]
    assert np.mean([error.low <= truth <= error.high for error in found]) >= 0.95
    assert all(error.low <= error.value <= error.high for error in found)


def made(tokens: list[int], nll: list[float]) -> Predictions:
    bins = np.zeros((len(tokens), BINS, 3))
    bins[:, 7, 0], bins[:, 7, 1] = tokens, 0.5 * np.array(tokens)
    bins[0, 7, 2] = tokens[0]  # the first row is all right, the others all wrong
    return Predictions(np.array(tokens, float), np.array(nll), bins)


def test_figures_are_per_token_not_per_row() -> None:
    figures = response_figures(made([1, 3], [1.0, 6.0]))
    assert figures["loss"].value == pytest.approx(7 / 4)
    assert figures["loss"].unit == "nats"
    assert figures["token_accuracy"].value == pytest.approx(1 / 4)
    assert figures["calibration_error"].value == pytest.approx(0.25)
    assert (figures["loss"].low, figures["loss"].high) == (1.0, 2.0)  # a draw may hold one row twice
    assert (figures["loss"].n, figures["loss"].interval) == (2, "bootstrap over rows")


def test_the_interval_is_that_of_rows_drawn_anew() -> None:
    generator = np.random.default_rng(3)
    tokens = generator.integers(1, 30, 80)
    nll = tokens * generator.gamma(2.0, 1.0, 80)
    found = mean_loss(made(tokens.tolist(), nll.tolist()))
    # Delta method for a ratio of means: the spread of the residuals, by the mean number of tokens.
    residual = nll - found.value * tokens
    half = 1.96 * residual.std(ddof=1) / np.sqrt(80) / tokens.mean()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)


def test_held_out_text_is_not_pretraining_text_and_every_token_but_the_first_is_predicted() -> None:
    texts = held_out(30)
    assert texts == held_out(30)
    for seed in range(4):  # of the tiny model's training text, tokenizer sample, validation text and late mix
        stream = documents(seed)
        seen = {next(stream) for _ in range(3000)}
        assert sum(text in seen for text in texts) <= 1  # some one-line documents exist only in so many ways
    tokenizer = load_tokenizer(ModelConfig(name="tiny", path="xtf.tiny"))
    rows = text_rows(tokenizer, texts, 64)
    assert all(row.prompt_length == 1 and 1 < len(row.input_ids) <= 64 for row in rows)
    with pytest.raises(ValueError, match=r"text 1 of evaluate\.forgetting has fewer than two tokens"):
        text_rows(tokenizer, ["a plain text", "a"], 64)


def test_the_text_for_forgetting_is_read_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "a plain text"}\n{"body": "another"}\n')
    for name in ("check_context", "Items.responses"):
        monkeypatch.setattr(f"xtf.evaluation.stage.{name}", lambda *_: [])
    config = Config(
        model=ModelConfig(name="tiny", path="xtf.tiny"),
        evaluate=EvaluateConfig(base=False, losses=True, forgetting=str(texts)),
    )
    items = Items(load_task(TaskConfig(name="custom", grader="exact")), load_tokenizer(config.model), [], "")
    with pytest.raises(ValueError, match=r"texts\.jsonl, row 2: evaluate\.forgetting needs a text 'text'"):
        check_evaluation(config, lambda: items)
    texts.write_text('{"text": "a plain text"}\n')
    check_evaluation(config, lambda: items)
