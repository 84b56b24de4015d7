"""The library: score examples and mask their noise tokens, for any trainer that reads `labels`.

    scored = xtf.score(model, tokenizer, examples)
    masked = xtf.mask(scored, threshold="paper")

Nothing of Hydra or Lightning is needed: the result is a `datasets.Dataset` that a Hugging Face or TRL trainer
takes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import pyarrow as pa
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtf.config.schema import Attribute, ScorerConfig, ThresholdConfig
from xtf.data.encode import encode
from xtf.data.examples import Example, as_examples
from xtf.scoring.masks import build_mask
from xtf.scoring.scorers import computed, count_tokens, score_rows, tr_table
from xtf.scoring.thresholds import PRESETS

log = logging.getLogger(__name__)

SHARD = 4096  # examples scored at once


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Mapping[str, Any] | Example],
    *,
    scorer: str | ScorerConfig = "xtf",
    max_length: int = 2048,
    tokens_per_batch: int = 16384,
    domain_words: Sequence[str] = (),
) -> datasets.Dataset:
    """Scores every response token of `examples` with the base model, where it is and in its precision.

    `examples` are {"prompt", "response"} or {"messages"}, optionally with an "id"; prompts go through the
    tokenizer's chat template. `scorer` is "xtf" (RI, KN and TR), one of them, or a pair such as "kn_tr"; a
    `ScorerConfig` sets variants. `max_length` is in tokens: longer responses are cut, examples whose prompt
    leaves no room are left out; both are logged. `tokens_per_batch`, padding included, bounds memory.
    `domain_words` are for the released TR.

    Returns one row per example: `example_id`, `input_ids`, `prompt_length`, and per response token `ri`,
    `kn`, `tr` and `logp`, those that were asked for (see `xtf.scoring.scorers.score_rows`). ValueError for input that
    cannot be scored.
    """
    config = scorer if isinstance(scorer, ScorerConfig) else _scorer(scorer)
    rows, report = encode(tokenizer, as_examples(examples), max_length)
    for what, ids in (("cut to", report.truncated), ("left out, without room within", report.no_room)):
        if ids:
            named = ", ".join(ids[:10])
            log.warning("%d of %d examples %s max_length=%d: %s", len(ids), report.rows, what, max_length, named)
    table = None
    if Attribute.tr in computed(config):
        counts = count_tokens(rows)
        table = tr_table(
            model,
            counts,
            config,
            domain_words=domain_words,
            tokenizer=tokenizer,
            tokens_per_batch=tokens_per_batch,
        )
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    shards = [
        score_rows(
            model,
            rows[start : start + SHARD],
            config,
            tr=table,
            tokens_per_batch=tokens_per_batch,
            pad_id=pad_id,
        )
        for start in range(0, len(rows), SHARD)
    ]
    return datasets.Dataset(pa.concat_tables(shards))


def mask(
    scored: datasets.Dataset,
    threshold: str | ThresholdConfig = "paper",
    attributes: Sequence[str | Attribute] | None = None,
) -> datasets.Dataset:
    """Adds `drop_ri`, `drop_kn`, `drop_tr` (per response token) and `labels` (per token; -100: no loss) to
    `scored`.

    `threshold` is "paper", "released", "quantile" or a `ThresholdConfig`. `attributes` may drop tokens; by
    default all that were scored. What is dropped by which attribute, and attributes that tell nothing, are
    logged. ValueError: an unknown name, a threshold out of range, an attribute that was not scored, a mask
    that keeps nothing.
    """
    if isinstance(threshold, str):
        if threshold not in PRESETS:
            raise ValueError(f"threshold={threshold!r}: known are {', '.join(PRESETS)}, or give a ThresholdConfig")
        threshold = PRESETS[threshold]
    if attributes is None:
        attributes = [attribute for attribute in Attribute if attribute.value in scored.column_names]
    table = scored.with_format("arrow")[:].replace_schema_metadata(None)
    masked = build_mask(table, threshold, [_attribute(name) for name in attributes])
    shares = ", ".join(f"{name} {share:.1%}" for name, share in masked.stats.dropped_share.items())
    log.info("dropped of %d response tokens: %s", masked.stats.response_tokens, shares)
    return datasets.Dataset(masked.table)


def _scorer(name: str) -> ScorerConfig:
    return ScorerConfig(
        name=name,
        attributes=list(Attribute) if name == "xtf" else [_attribute(part) for part in name.split("_")],
    )


def _attribute(name: str | Attribute) -> Attribute:
    try:
        return Attribute(name)
    except ValueError as error:
        raise ValueError(f"unknown attribute {name!r}: known are ri, kn and tr; all three are scorer='xtf'") from error
