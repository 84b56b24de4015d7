"""stage=score and stage=mask: the scoring passes that a run reads, and its training table with labels.

A *pass* is one model's scores of one set of rows, stored by `xtf.scoring.store` and shared between runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xtf.config.schema import Config
from xtf.data.ragged import as_table, with_ends, with_row_weights, with_sources
from xtf.runtime.artifacts import write_atomic
from xtf.runtime.run_folder import OutputDir
from xtf.scoring.attributes import LOOKS, sources
from xtf.scoring.masks import row_weighted
from xtf.scoring.store import Load, read_pass, scoring_pass

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from xtf.data.encode import Encoded


class Pass(Enum):
    """Which model reads which rows; the value is the pass's name in a run's manifest."""

    base = "scores"  # the base model on the training rows
    unconditional = "unconditional"  # the base model on the responses alone
    reference = "ref"  # the reference model on the training rows


# Where a column that a method needs comes from, unless it is one of the base model's own.
COLUMNS = {
    "logp_unconditional": (Pass.unconditional, "logp"),
    "ref_logp": (Pass.reference, "logp"),
    "planted": None,  # the truth of planted noise, which no pass brings
}


class Scorer(NamedTuple):
    """A model that can score: what identifies its weights, and the function that loads it."""

    identity: Mapping[str, Any]
    load: Load


def passes_of(config: Config) -> dict[Pass, set[str]]:
    """The score columns that a run reads, by the pass that brings them."""
    wanted: dict[Pass, set[str]] = {}
    own = sources(config.scorer.attributes) if config.method.masked else set()
    for name in sorted(own | config.method.needs):
        source = COLUMNS.get(name, (Pass.base, name))
        if source is not None:
            wanted.setdefault(source[0], set()).add(source[1])
    if config.scorer.top:
        wanted.setdefault(Pass.base, set()).update({"logp", f"top{config.scorer.top}"})
    if config.scorer.attenders:
        wanted.setdefault(Pass.base, set()).update({"ri", f"attenders{config.scorer.attenders}"})
    return {kind: wanted[kind] for kind in Pass if kind in wanted}


def score(
    config: Config,
    rows: Callable[[], Sequence[Encoded]],
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    scorer_of: Callable[[Pass], Scorer],
) -> dict[Pass, Path]:
    """The folders of the passes that a run reads, made unless they are there.

    Args:
        rows: gives the encoded training rows; not called where no pass is read.
        tokenizer: gives the model's tokenizer, likewise.
        scorer_of: the model of a pass; a reference model is trained when this is called.
    """
    found = {}
    for kind, columns in passes_of(config).items():
        encoded = alone(rows(), tokenizer()) if kind is Pass.unconditional else rows()
        also: Iterable[str] = sources(config.scorer.compute) if kind is Pass.base else ()
        scorer = scorer_of(kind)
        found[kind] = scoring_pass(
            OutputDir(Path(config.output_dir)).scores,
            encoded,
            columns,
            also=also,
            config=config,
            tokenizer=tokenizer(),
            model=scorer.identity,
            load=scorer.load,
        )
    return found


def alone(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The responses without their prompts; the first token is predicted from the one that starts or ends texts."""
    from xtf.data.encode import Encoded

    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return [Encoded(row.example_id, [int(start), *row.input_ids[row.prompt_length :]], 1) for row in rows]


def training_table(rows: Callable[[], Sequence[Encoded]], passes: Mapping[Pass, Path]) -> pa.Table:
    """The training rows with every score column that the passes bring, and `end_tokens`, which no pass stores."""
    table = read_pass(passes[Pass.base]) if Pass.base in passes else as_table(rows())
    table = table.drop_columns([name for name in LOOKS if name in table.column_names])
    table = with_ends(table, (row.end_tokens for row in rows()))
    table = with_row_weights(table, [row.weights for row in rows()])
    table = with_sources(table, [row.source or row.example_id for row in rows()])
    for name, source in COLUMNS.items():
        if source is not None and source[0] in passes:
            table = table.append_column(name, read_pass(passes[source[0]])[source[1]])
    return table


def write_mask(config: Config, table: pa.Table, path: Path) -> dict[str, Any]:
    """Write the method's mask of a training table to `path`; returns its statistics. No model is loaded."""
    import pyarrow.parquet as pq

    mask = row_weighted(config.method.mask(table, config.threshold, config.scorer.attributes, config.seed))
    write_atomic(path, functools.partial(pq.write_table, mask.table))
    return mask.stats.to_dict()
