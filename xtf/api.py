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

from xtf.config.schema import PRESETS, Attribute, ScorerConfig, ThresholdConfig, ThresholdEnd
from xtf.data.encode import encode, pad_id
from xtf.data.examples import Example
from xtf.data.ragged import Sequences, with_ends
from xtf.graders import grade
from xtf.scoring.attributes import ATTRIBUTES, PAPER, Brought, brought, computed, pick
from xtf.scoring.masks import build_mask
from xtf.scoring.scorers import count_tokens, score_rows, tr_table
from xtf.tasks import as_examples

__all__ = ["grade", "mask", "score"]

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

    `examples` are rows of the forms that the command line reads from files, {"prompt", "response"}, {"prompt",
    "completion"}, {"messages"} and so on (`xtf.tasks.custom`), or a `datasets.Dataset` or DataFrame of them, optionally
    with an "id". Prompts go through the tokenizer's chat template. `scorer` is "xtf" (RI, KN and TR), one of them, or a
    pair such as "kn_tr"; a `ScorerConfig` sets variants. `max_length` is in tokens: longer responses are cut, examples
    whose prompt leaves no room are left out; both are logged. `tokens_per_batch`, padding included, bounds memory.
    `domain_words` are for the released TR.

    Returns one row per example: `example_id`, `input_ids`, `prompt_length`, `end_tokens` (1 where the response ends
    with the tokenizer's EOS, which is appended here, 0 where `max_length` cut it off), and per response token `ri`,
    `kn`, `tr` and `logp`, those that were asked for (see `xtf.scoring.scorers.score_rows`).

    Raises:
        ValueError: input that cannot be scored.
    """
    config = scorer if isinstance(scorer, ScorerConfig) else _scorer(scorer)
    rows, report = encode(tokenizer, as_examples(examples), max_length)
    for what, ids in (("cut to", report.truncated), ("left out, without room within", report.no_room)):
        if ids:
            named = ", ".join(ids[:10])
            log.warning("%d of %d examples %s max_length=%d: %s", len(ids), report.rows, what, max_length, named)
    table = None
    if Brought.embeddings in brought(computed(config)):
        counts = count_tokens(rows)
        table = tr_table(
            model,
            counts,
            config,
            domain_words=domain_words,
            tokenizer=tokenizer,
            tokens_per_batch=tokens_per_batch,
        )
    shards = [
        score_rows(
            model,
            rows[start : start + SHARD],
            config,
            tr=table,
            tokens_per_batch=tokens_per_batch,
            pad_id=pad_id(tokenizer),
        )
        for start in range(0, len(rows), SHARD)
    ]
    return datasets.Dataset(with_ends(pa.concat_tables(shards), (row.end_tokens for row in rows)))


def mask(
    scored: datasets.Dataset,
    threshold: str | ThresholdConfig = "paper",
    attributes: Sequence[str | Attribute] | None = None,
    *,
    eos_token_id: int | None = None,
) -> datasets.Dataset:
    """Adds `drop_ri`, `drop_kn`, `drop_tr` (per response token) and `labels` (per token; -100: no loss) to
    `scored`.

    `threshold` is "paper", "released", "quantile" or a `ThresholdConfig`. `attributes` may drop tokens; by
    default all that were scored. What is dropped by which attribute, and attributes that tell nothing, are
    logged.

    The end token that `score` appended to a response is not the data's: it is neither judged nor counted, and always
    kept, unless the threshold has `end=ThresholdEnd.scored`. Scores of earlier versions lack the column `end_tokens`
    that says which it is; for them give the tokenizer's `eos_token_id`, with which a response that was not cut ends.

    Raises:
        ValueError: an unknown name, a threshold out of range, an attribute that was not scored, a mask that keeps
            nothing, a table without `end_tokens` and no `eos_token_id` where the end is to be kept.
    """
    if isinstance(threshold, str):
        if threshold not in PRESETS:
            raise ValueError(f"threshold={threshold!r}: known are {', '.join(PRESETS)}, or give a ThresholdConfig")
        threshold = PRESETS[threshold]
    if attributes is None:
        attributes = [name for name in ATTRIBUTES if name in scored.column_names]
    table = scored.with_format("arrow")[:].replace_schema_metadata(None)
    if "end_tokens" not in table.column_names:
        if eos_token_id is not None:
            table = with_ends(table, Sequences(table).ending_with(eos_token_id))
        elif threshold.end is ThresholdEnd.kept:
            raise ValueError(
                "the scored table has no column 'end_tokens', so the end token that scoring appended to a response is "
                "not known: give eos_token_id=tokenizer.eos_token_id, or a threshold with end=ThresholdEnd.scored to "
                "judge it like the data's tokens"
            )
    masked = build_mask(table, threshold, attributes)
    shares = ", ".join(f"{name} {share:.1%}" for name, share in masked.stats.dropped_share.items())
    log.info("dropped of %d response tokens: %s", masked.stats.response_tokens, shares)
    return datasets.Dataset(masked.table)


def _scorer(name: str) -> ScorerConfig:
    try:
        attributes = list(PAPER) if name == "xtf" else [attribute.name for attribute in pick(name.split("_"))]
    except ValueError as error:
        raise ValueError(f"scorer={name!r}: {error}; scorer='xtf' are {', '.join(PAPER)}") from error
    return ScorerConfig(name=name, attributes=attributes)
