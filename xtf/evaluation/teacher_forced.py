"""Teacher-forced figures of a model: what it expects of texts that are given, without generating anything.

- `loss`: mean negative log-likelihood of the reference responses, nats per response token.
- `token_accuracy`: share of their tokens that the model holds for the most likely ones.
- `calibration_error`: expected calibration error of those next-token predictions, sum over bins of
  n_b / n |accuracy_b - confidence_b|, in 15 bins of equal width by the confidence, the probability of the most
  likely token (Guo et al. 2017, arXiv 1706.04599). Chance alone makes it a little larger than 0.
- `forgetting_loss`: nats per token of held-out text like that of pre-training.

All are ratios of sums over rows; intervals are bootstraps over rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtf.config.identity import digest
from xtf.config.schema import Config
from xtf.data.ragged import as_table
from xtf.data.rows import read_field
from xtf.graders.metrics import BOOTSTRAP_RESAMPLES, Metric, bootstrap
from xtf.runtime.artifacts import intact, read_json, write_json
from xtf.runtime.progress import bar, stopwatch
from xtf.runtime.run_folder import RunFolder, forgetting_source
from xtf.scoring.masks import weights_to_labels
from xtf.scoring.methods import Method
from xtf.tiny import HELD_OUT

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.encode import Encoded

BINS = 15


@dataclass(frozen=True)
class Predictions:
    """Sums over the response tokens of each of R rows, float64."""

    tokens: np.ndarray  # [R]
    nll: np.ndarray  # [R] nats
    bins: np.ndarray  # [R, BINS, 3] by confidence: tokens, sum of confidences, right predictions


def predict(
    model: PreTrainedModel, rows: Sequence[Encoded], *, budget: int, progress: Callable[[int], None] | None = None
) -> Predictions:
    """The model's predictions of every response token of `rows`, given all tokens before it.

    Args:
        budget: tokens of one forward pass; the rows are packed.
        progress: told the number of tokens of each pass.

    Raises:
        ValueError: a model that cannot read packed rows (see `xtf.training.packed.enable_packing`).
    """
    import torch
    from lightning_fabric.utilities import move_data_to_device

    from xtf.data.steps import TrainingRows, collate
    from xtf.training.packed import PackedLM, check_positions, enable_packing

    every = [np.ones(len(row.input_ids) - row.prompt_length, np.float32) for row in rows]
    data = TrainingRows(weights_to_labels(as_table(rows), every).table)
    tokens, nll, bins = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros((len(rows), BINS, 3))
    original = model.config._attn_implementation
    check_positions(model, data)
    _, packs = enable_packing(model, int(data.needed.max()))
    packed = PackedLM(model, Method()).eval()
    try:
        with torch.inference_mode():
            for micro in collate(data, np.arange(len(rows)), budget if packs else 0, 0).micro_batches:
                micro = move_data_to_device(micro, model.device)
                hidden = packed.hidden(micro)
                for start in range(0, len(hidden), packed.chunk):
                    part = slice(start, start + packed.chunk)
                    logp = packed.logits(hidden[part]).float().log_softmax(-1)
                    targets, where = micro.targets[part], micro.rows[part].cpu().numpy()
                    best, guess = logp.max(-1)
                    confidence = best.exp().double().cpu().numpy()
                    right = (guess == targets).double().cpu().numpy()
                    np.add.at(tokens, where, 1)
                    np.add.at(nll, where, -logp.gather(1, targets[:, None])[:, 0].double().cpu().numpy())
                    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
                    np.add.at(bins, (where, place), np.stack([np.ones_like(right), confidence, right], axis=1))
                if progress is not None:
                    progress(micro.input_ids.shape[1])
    finally:
        model.set_attn_implementation(original)
    return Predictions(tokens, nll, bins)


def per_token(sums: np.ndarray, found: Predictions) -> Metric:
    """Sums over the tokens of each row [R] as a mean over tokens, with the interval over rows."""
    return bootstrap(lambda rows: float(sums[rows].sum() / found.tokens[rows].sum()), len(sums), over="rows")


def mean_loss(found: Predictions) -> Metric:
    """Nats per token with the interval over rows."""
    return dataclasses.replace(per_token(found.nll, found), unit="nats")


def response_figures(found: Predictions) -> dict[str, Metric]:
    """`loss`, `token_accuracy` and `calibration_error` with their intervals over rows."""
    right = found.bins[:, :, 2].sum(axis=1)
    return {
        "loss": mean_loss(found),
        "token_accuracy": per_token(right, found),
        "calibration_error": calibration_error(found.bins),
    }


def calibration_error(bins: np.ndarray) -> Metric:
    """Expected calibration error, sum over bins of |right - confidence| / tokens, with an interval over rows.

    Chance alone parts the bins of a calibrated model, so the error is biased upwards, and that of resampled rows still
    more: their percentiles can lie above the error itself. Two errors differ by no more than the sum over bins of
    |difference of gaps|, so the 95 % quantile of that sum over resamples on either side holds the true error in 95 %
    of cases or more.

    Args:
        bins: [R, BINS, 3] sums of each row: tokens, confidences, right predictions.
    """
    gaps = _gaps(bins.sum(axis=0))
    generator, rows = np.random.default_rng(0), len(bins)
    draws = (bins[generator.integers(rows, size=rows)].sum(axis=0) for _ in range(BOOTSTRAP_RESAMPLES))
    reach = float(np.quantile([np.abs(_gaps(drawn) - gaps).sum() for drawn in draws], 0.95))
    value = float(np.abs(gaps).sum())
    return Metric(value, max(0.0, value - reach), value + reach, rows, "bootstrap of the bins over rows")


def _gaps(bins: np.ndarray) -> np.ndarray:
    """(right - confidence) / tokens, bin by bin, from [BINS, 3] sums."""
    found: np.ndarray = (bins[:, 2] - bins[:, 1]) / bins[:, 0].sum()
    return found


def teacher_forced_figures(
    config: Config,
    name: str,
    folder: Path,
    model: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Callable[[], Sequence[Encoded]],
    load: Callable[[], PreTrainedModel],
) -> dict[str, Any]:
    """The figures of `evaluate.losses`, kept in `folder`/losses.json.

    Args:
        name: of the model, for the progress bar.
        model: what identifies it and the evaluation rows.
        rows: gives the encoded evaluation rows, where the figures are not there yet; so does `load` the model.
    """
    source = forgetting_source(config)
    file, key = RunFolder(folder).losses, digest([model, source])
    entry = read_json(file) if intact(file) else {}
    if entry.get("key") != key:
        held_out = held_out_rows(config, tokenizer)
        given = rows()
        tokens = sum(len(row.input_ids) - 1 for row in (*given, *held_out))
        with stopwatch() as seconds, bar(f"losses of the {name} model", tokens) as progress:
            from xtf.training.budget import LARGEST

            budget = config.trainer.tokens_per_microbatch or LARGEST
            found = predict(load(), given, budget=budget, progress=progress)
            metrics = response_figures(found)
            if held_out:
                metrics["forgetting_loss"] = mean_loss(predict(load(), held_out, budget=budget, progress=progress))
        figures = {name: dataclasses.asdict(metric) for name, metric in metrics.items()}
        entry = {"key": key, "seconds": round(seconds(), 3), "metrics": figures, "rows": _by_row(given, found)}
        write_json(file, entry, sealed=True)
    measured: dict[str, Any] = entry["metrics"]
    return measured


def _by_row(rows: Sequence[Encoded], found: Predictions) -> dict[str, tuple[int, float]]:
    """Response tokens of each row and the nats that they cost, by example id, for differences that pair rows."""
    sums = zip(found.tokens, found.nll, strict=True)
    return {row.example_id: (int(tokens), round(float(nll), 5)) for row, (tokens, nll) in zip(rows, sums, strict=True)}


def held_out_rows(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The rows of the text whose loss shows forgetting; none without one.

    Raises:
        ValueError: a text that cannot be read, or is too short.
    """
    path = HELD_OUT if forgetting_source(config) == "bundled" else config.evaluate.forgetting
    texts = [] if path is None else read_field(Path(path), "text", "evaluate.forgetting")
    return text_rows(tokenizer, texts, config.model.max_length) if texts else []


def text_rows(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> list[Encoded]:
    """Texts of pre-training as rows whose every token behind the first is predicted; cut at `max_length`."""
    from xtf.data.encode import Encoded

    rows = [
        Encoded(str(number), ids[:max_length], 1)
        for number, ids in enumerate(tokenizer(list(texts), verbose=False)["input_ids"])
    ]
    for row in rows:
        if len(row.input_ids) < 2:
            raise ValueError(f"text {row.example_id} of evaluate.forgetting has fewer than two tokens: leave it out")
    return rows
