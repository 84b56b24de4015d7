"""The library: score examples and mask their noise tokens, for any trainer that reads `labels`.

    scored = xtf.score(model, tokenizer, examples)
    masked = xtf.mask(scored, threshold="paper")
    xtf.export(masked, to="trl", folder="for-trl")

Nothing of Hydra or Lightning is needed: the result is a `datasets.Dataset` that a Hugging Face or TRL trainer
takes.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from enum import Enum
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import xtf.scoring.methods  # noqa: F401  # what installed packages add is there before the rest is imported
from xtf.config.checks import check_ranges
from xtf.config.identity import digest, nearest
from xtf.config.schema import (
    PRESETS,
    Accelerator,
    Attribute,
    EmptyRows,
    ExportConfig,
    ModelConfig,
    Schedule,
    ScorerConfig,
    TemplateChecks,
    Think,
    ThresholdConfig,
    ThresholdEnd,
    TrainerConfig,
    Tuning,
    TuningConfig,
    Turns,
)
from xtf.data.encode import encode, pad_id
from xtf.data.examples import Example
from xtf.data.provenance import COLUMN, check_tokenizer, provenance, recorded, records, tokenizer_digest
from xtf.data.ragged import Sequences, check_dataset, with_ends, with_row_weights, with_sources
from xtf.data.rows import Rows, is_tokenized
from xtf.data.templates import Chat
from xtf.data.tokenized import encode_tokenized
from xtf.exports import TRAINERS
from xtf.exports.base import tokenizer_state
from xtf.exports.write import export_table, read_export
from xtf.graders import grade
from xtf.runtime.artifacts import versions
from xtf.runtime.heads import base_of, is_quantised, unwrapped
from xtf.runtime.models import inference_dtype, load_model, load_tokenizer, location, named_tokenizer
from xtf.runtime.progress import bar
from xtf.scoring.attributes import ATTRIBUTES, PAPER, Brought, brought, computed, pick
from xtf.scoring.masks import MaskedTokens, build_mask, notes, row_weighted
from xtf.scoring.scorers import (
    HIDDEN,
    context_centre,
    count_tokens,
    hidden_states,
    score_rows,
    tr_table,
    with_context_tr,
)
from xtf.scoring.verdict import judge
from xtf.tasks import as_examples, as_rows

__all__ = ["export", "grade", "mask", "provenance", "score"]

log = logging.getLogger(__name__)

SHARD = 4096  # examples scored at once
UNKNOWN_RULE = "the rows do not say by which rule: their column `provenance` is gone"


def score(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    examples: Iterable[Mapping[str, Any] | Example],
    *,
    scorer: str | ScorerConfig = "xtf",
    max_length: int = 2048,
    tokens_per_batch: int = 16384,
    domain_words: Sequence[str] = (),
    turns: str = "last",
    think: str = "open",
    date: str = Chat.date,
    template_checks: str = "warn",
    progress: bool = True,
) -> datasets.Dataset:
    """Scores every response token of `examples` with the base model, where it is and in its precision.

    `model` is a causal language model of transformers, also quantised, compiled, in DataParallel or with a `device_map`
    that puts layers on disk. Adapters (LoRA, by PEFT or the model's own `load_adapter`) are switched off meanwhile,
    which is logged: the base model says what is noise. Or `model` is a folder, a GGUF file or an id on the hub: it is
    loaded, on a GPU in bfloat16 if there is one, and let go afterwards. `tokenizer` is the model's own if None.

    `examples` are rows of the forms that the command line reads from files, {"prompt", "response"}, {"prompt",
    "completion"}, {"messages"} and so on (`xtf.tasks.custom`), or a `datasets.Dataset` or DataFrame of them, optionally
    with an "id". Prompts go through the tokenizer's chat template. Rows that another tool has tokenised and masked
    (`input_ids` with `labels`, or TRL's masks) are taken as they are: only tokens that it trains are judged
    (`xtf.data.tokenized`). `scorer` is "xtf" (RI, KN and TR), one of them, or a
    pair such as "kn_tr"; a `ScorerConfig` sets variants. `max_length` is in tokens: longer responses are cut, examples
    whose prompt leaves no room are left out; both are logged. `tokens_per_batch`, padding included, bounds memory.
    `domain_words` are for the released TR. `turns` (last, all) says which of the assistant's turns become examples, as
    `task.turns` does. `think` (open, close), `date` and `template_checks` (warn, refuse) say what
    becomes of unusual chat templates (`xtf.data.templates`). `progress` shows a bar, or a line every half minute where
    there is no terminal.

    Returns one row per example: `example_id`, `input_ids`, `prompt_length`, `end_tokens` (1 where the response ends
    with the template's end of a turn, or the tokenizer's EOS, which is appended here, 0 where `max_length` cut it off),
    and per response token `ri`, `kn`, `tr` and `logp`, those that were asked for (see
    `xtf.scoring.scorers.score_rows`), `prompt_tr` per prompt token beside `tr` (which threshold="released" reads), and
    `row_weights` where rows weigh their turns or leave tokens untrained.
    The column `provenance`, string, says which model, tokenizer and chat template made the scores, in files too.

    Raises:
        ValueError: input that cannot be scored.
    """
    chat = Chat(
        _one_of(Think, "think", think), _date(date), _one_of(TemplateChecks, "template_checks", template_checks)
    )
    kept = _one_of(Turns, "turns", turns)
    for name, value in (("max_length", max_length), ("tokens_per_batch", tokens_per_batch)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}={value!r}: it must be a whole number, at least 1")
    own = ModelConfig(name="given", path=str(model if isinstance(model, str | Path) else unwrapped(model).name_or_path))
    if tokenizer is None:
        if not own.path:
            raise ValueError("this model does not say where it was loaded from: give its tokenizer")
        tokenizer = load_tokenizer(own)
    elif not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"tokenizer must be one of transformers (AutoTokenizer.from_pretrained), not {type(tokenizer).__name__}"
        )
    if isinstance(model, str | Path):
        on_gpu = torch.cuda.is_available()
        trainer = TrainerConfig(name="given", accelerator=Accelerator.gpu if on_gpu else Accelerator.cpu)
        try:
            return score(
                load_model(own, trainer, inference_dtype(trainer)),
                tokenizer,
                examples,
                scorer=scorer,
                max_length=max_length,
                tokens_per_batch=tokens_per_batch,
                domain_words=domain_words,
                turns=turns,
                think=think,
                date=date,
                template_checks=template_checks,
                progress=progress,
            )
        finally:
            if on_gpu:
                torch.cuda.empty_cache()
    config = scorer if isinstance(scorer, ScorerConfig) else _scorer(scorer)
    given = as_rows(examples)
    if given and all(isinstance(row, Mapping) and is_tokenized(row) for row in given):
        if kept is Turns.all:
            raise ValueError("turns='all' is for conversations: the labels of these rows say which turns are trained")
        if asked := chat.asked():
            raise ValueError(
                f"{', '.join(asked)} is for a chat template, and rows of token ids go through none: leave it out, or "
                "give the texts"
            )
        known = Rows([dict(row) for row in given], list(range(1, len(given) + 1)), "the examples given", "")  # type: ignore[arg-type]  # mappings all
        rows, report = encode_tokenized(tokenizer, known, max_length)
    else:
        rows, report = encode(tokenizer, as_examples(given, kept), max_length, chat)
    for what, ids in (
        (f"cut to max_length={max_length}", report.truncated),
        (f"left out, without room within max_length={max_length}", report.no_room),
        ("left out, without a label", report.unlabelled),
    ):
        if ids:
            log.warning("%d of %d examples %s: %s", len(ids), report.rows, what, ", ".join(ids[:10]))
    needs = brought(computed(config), config)
    with base_of(model) as base, ExitStack() as stack:
        if is_quantised(base):
            log.warning(
                "%s is quantised: its log p are not those of the full weights (8 bits were off by a mean of 0.14 nats "
                "a token, 4 bits by 0.6; 2 %% and 9 %% of the tokens then fall on the other side of the paper's cuts)",
                base.name_or_path or type(base).__name__,
            )
        table = None
        if Brought.embeddings in needs:
            counts = count_tokens(rows)
            table = tr_table(
                base,
                counts,
                config,
                domain_words=domain_words,
                tokenizer=tokenizer,
                tokens_per_batch=tokens_per_batch,
                prompts=True,
            )
        forward = progress and not needs <= {Brought.embeddings}
        done = stack.enter_context(bar("scoring", report.tokens)) if forward else None
        shards = [
            score_rows(
                base,
                rows[start : start + SHARD],
                config,
                tr=table,
                prompts=table is not None,
                tokens_per_batch=tokens_per_batch,
                pad_id=pad_id(tokenizer),
                progress=done,
            )
            for start in range(0, len(rows), SHARD)
        ]
        said = {
            "model": base.name_or_path,
            "model_commit": getattr(base.config, "_commit_hash", None),
            "dtype": str(base.dtype),
            "tokenizer": tokenizer_digest(tokenizer),
            "tokenizer_name": tokenizer.name_or_path,
            "template": digest(str(tokenizer.chat_template)),
            "scorer": config,
            "max_length": max_length,
            "versions": {name: found for name, found in versions().items() if name in ("xtf", "torch", "transformers")},
        }
    if HIDDEN in shards[0].column_names:
        centre = context_centre(lambda: (hidden_states(shard) for shard in shards))
        shards = [with_context_tr(shard, centre) for shard in shards]
    scored = with_ends(pa.concat_tables(shards), (row.end_tokens for row in rows))
    scored = with_sources(scored, [row.source or row.example_id for row in rows])
    return recorded(with_row_weights(scored, [row.weights for row in rows]), said)


E = TypeVar("E", bound=Enum)


def _one_of(kind: type[E], name: str, value: E | str) -> E:
    try:
        return kind(value)
    except ValueError:
        known = [str(one.value) for one in kind]
        raise ValueError(f"{name}={value!r}{nearest(str(value), known)}: known are {', '.join(known)}") from None


def _date(value: str) -> str:
    try:
        datetime.date.fromisoformat(value)
    except (ValueError, TypeError):
        raise ValueError(f"date={value!r}: it must be a day like 2026-01-31") from None
    return value


def mask(
    scored: datasets.Dataset,
    threshold: str | ThresholdConfig = "paper",
    attributes: Sequence[str | Attribute] | None = None,
    *,
    eos_token_id: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> datasets.Dataset:
    """Adds `drop_ri`, `drop_kn`, `drop_tr` (per response token) and `labels` (per token; -100: no loss) to
    `scored`.

    `threshold` is "paper", "released", "safe", "quantile" or a `ThresholdConfig`. `attributes` may drop tokens; by
    default all that were scored. What is dropped by which attribute, and attributes that tell nothing, are
    logged. With a `dropped_weight` in the threshold they keep their labels: `weights` says what each token counts, and
    `dropped` which are meant. A `drop_probability` below 1 is for the training of the command line: other trainers do
    not draw anew in each epoch.

    Weights of the rows' own (`row_weights`) are multiplied into labels and a column `weights`.

    The end token that `score` appended to a response is not the data's: it is neither judged nor counted, and always
    kept, unless the threshold has `end=ThresholdEnd.scored`. Scores of earlier versions lack the column `end_tokens`
    that says which it is; for them give the tokenizer's `eos_token_id`, with which a response that was not cut ends.

    With a `tokenizer` the scores are checked to be its. `provenance` of the result says by which rule it was masked.

    Raises:
        ValueError: scores of another tokenizer, or of several; an unknown name, a threshold out of range, an attribute
            that was not scored, a mask that keeps nothing, a table without `end_tokens` and no `eos_token_id` where the
            end is to be kept.
    """
    _check_rows(scored)
    if not check_tokenizer(scored, tokenizer) and tokenizer is not None:
        log.warning("not all rows say which tokenizer they were scored with: it is not checked")
    if isinstance(threshold, str):
        if threshold not in PRESETS:
            raise ValueError(f"threshold={threshold!r}: known are {', '.join(PRESETS)}, or give a ThresholdConfig")
        threshold = PRESETS[threshold]
    if attributes is None:
        attributes = [name for name in ATTRIBUTES if name in scored.column_names]
    table = _bare(scored)
    if "end_tokens" not in table.column_names:
        if eos_token_id is not None:
            table = with_ends(table, Sequences(table).ending_with(eos_token_id))
        elif threshold.end is ThresholdEnd.kept:
            raise ValueError(
                "the scored table has no column 'end_tokens', so the end token that scoring appended to a response is "
                "not known: give eos_token_id=tokenizer.eos_token_id, or a threshold with end=ThresholdEnd.scored to "
                "judge it like the data's tokens"
            )
    masked = row_weighted(build_mask(table, threshold, attributes))
    shares = ", ".join(f"{name} {share:.1%}" for name, share in masked.stats.dropped_share.items())
    log.info("dropped of %d response tokens: %s", masked.stats.response_tokens, shares)
    by = ", ".join(masked.stats.thresholds) or "none"
    verdict = judge([MaskedTokens.from_mask(masked.table)], threshold, masked.stats.to_dict())
    rule = [
        f"threshold={threshold.name}, end={threshold.end.value}, attributes: {by}",
        *(f"{name}: {values}" for name, values in masked.stats.thresholds.items()),
        f"dropped of {masked.stats.response_tokens:,} response tokens: {shares}",
        *notes(masked.stats.to_dict()),
    ]
    made = {
        "threshold": threshold,
        "attributes": list(masked.stats.thresholds),
        "cuts": masked.stats.thresholds,
        "dropped_share": masked.stats.dropped_share,
        "degenerate": masked.stats.degenerate,
        "verdict": verdict.level.words,
        "rule": rule,
    }
    return recorded(masked.table, {**provenance(scored), **made})


def _check_rows(rows: Any) -> None:
    check_dataset(rows)
    if not len(rows):
        raise ValueError("there are no rows")


def _bare(rows: datasets.Dataset) -> pa.Table:
    """The rows without what they say of themselves."""
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)
    return table.drop_columns(COLUMN) if COLUMN in table.column_names else table


def export(
    masked: datasets.Dataset,
    to: str,
    folder: str | Path,
    *,
    model: str | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    empty_rows: str | EmptyRows = "drop",
    max_length: int | None = None,
    tuning: TuningConfig | None = None,
    seed: int = 0,
    bf16: bool = False,
) -> Path:
    """Writes `masked` for another trainer: its data, a configuration, README.md and export.json; returns `folder`.

    Args:
        to: hf, trl, axolotl, llamafactory, ms_swift or megatron.
        folder: a new one, an empty one, or one that holds this very export.
        model: what the configuration names, a folder or an id on the hub; by default the model that scored, where it
            was loaded from one. Of a GGUF file the folder that it is unpacked into is named.
        tokenizer: checked to be the one that the rows were scored with; by default that of `model`. Another one than
            that is saved with the export and named in the configuration, or README.md says that it cannot be.
        empty_rows: "drop" leaves out rows without any label, "keep" keeps them; both are counted.
        max_length: tokens that the configuration allows, by default the longest row's.
        tuning: hyper-parameters, all of them; by default those of transformers' TrainingArguments.

    Raises:
        ValueError: an unknown trainer; no mask; labels that do not belong to their input_ids; fractional weights that
            the trainer does not read; lengths that it would cut; another tokenizer; a folder that holds another export.
    """
    if to not in TRAINERS:
        raise ValueError(f"to={to!r} is not known{nearest(to, TRAINERS)}: known are {', '.join(TRAINERS)}")
    empty = _one_of(EmptyRows, "empty_rows", empty_rows)
    _check_rows(masked)
    said = provenance(masked)
    named = str(getattr(model, "name_or_path", model) or said.get("model") or "")
    if not named:
        raise ValueError("the configuration has to name a model: give model=, a folder or an id on the hub")
    named = location(ModelConfig(name="given", path=named))
    own = tokenizer is None
    if tokenizer is None:
        remedy = ": give model=, a folder or an id on the hub"
        what = f"the tokenizer of {named}{'' if model else ', the model that scored these rows,'}"
        tokenizer = named_tokenizer(named, revision, what=what, remedy=remedy)
    checked = check_tokenizer(masked, tokenizer)
    if not checked:
        log.warning("not all rows say which tokenizer they were scored with: only the range of their ids is checked")
    base = _place(named)
    if not own and base == _place(tokenizer.name_or_path):
        own = tokenizer_state(tokenizer) == tokenizer_state(named_tokenizer(named, revision))
    tuning = tuning or TuningConfig(
        name=Tuning.full, epochs=3, learning_rate=5e-5, batch_size=8, schedule=Schedule.linear, warmup_ratio=0.0
    )
    if None in (tuning.epochs, tuning.learning_rate, tuning.batch_size, tuning.schedule, tuning.warmup_ratio):
        raise ValueError("tuning leaves epochs, learning_rate, batch_size, schedule or warmup_ratio open: give all")
    settings = ExportConfig(to, empty, max_length)
    check_ranges(settings, "export.")
    rule = _rules(masked)
    if not checked:
        rule.append("not all rows say which tokenizer they were scored with: it was not checked")
    place = export_table(
        _bare(masked),
        settings,
        Path(folder).expanduser(),
        tokenizer=tokenizer,
        own_tokenizer=own,
        model=base,
        revision=revision,
        tuning=tuning,
        epochs=tuning.epochs or 0,
        seed=seed,
        bf16=bf16,
        about={"rule": rule, "sources": {}},
    )
    said = read_export(place)
    for line in said["not_carried"]:
        log.warning("not in the export's configuration: %s", line)
    for line in said.get("other_versions", []):
        log.warning(line)
    return place


def _place(name: str) -> str:
    """A folder's whole path; an id on the hub as it is."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _rules(masked: datasets.Dataset) -> list[str]:
    """By which rule each part of the rows was masked, in lines."""
    rules = [one.get("rule") or [UNKNOWN_RULE] for one in records(masked)] or [[UNKNOWN_RULE]]
    if len(rules) == 1:
        return list(rules[0])
    return [f"part {part} of {len(rules)}: {line}" for part, rule in enumerate(rules, start=1) for line in rule]


def _scorer(name: str) -> ScorerConfig:
    try:
        attributes = list(PAPER) if name == "xtf" else [attribute.name for attribute in pick(name.split("_"))]
    except ValueError as error:
        raise ValueError(f"scorer={name!r}: {error}; scorer='xtf' are {', '.join(PAPER)}") from error
    return ScorerConfig(name=name, attributes=attributes)
