"""stage=score and stage=mask: the scoring passes that a run reads, and its training table with labels.

A *pass* is one model's scores of one set of rows, stored by `xtf.scoring.store` and shared between runs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xtf.config.checks import by_id, fitted_to_prompts
from xtf.config.schema import Attribute, Config
from xtf.data.batches import ROWS_AT_ONCE, Batches, write_parquet
from xtf.data.provenance import in_schema
from xtf.data.ragged import PROMPT_TR, ROW_WEIGHTS, SOURCE, row_weights, with_ends
from xtf.runtime.artifacts import write_atomic
from xtf.runtime.run_folder import OutputDir
from xtf.scoring.attributes import LOOKS, sources
from xtf.scoring.masks import weighted_by_row
from xtf.scoring.store import Load, pass_batches, pass_columns, scoring_pass

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.data.stored import StoredRows


class Pass(Enum):
    """Which model reads which rows; the value is the pass's name in a run's manifest."""

    base = "scores"  # the base model on the training rows
    unconditional = "unconditional"  # the base model on the responses alone
    reference = "ref"  # the reference model on the training rows
    # TR of the training rows' prompts: of the base pass, or where an earlier version made that, a pass of its own, for
    # which the model is loaded but not run.
    prompts = "prompts"


# Where a column that a method needs comes from, unless it is one of the base model's own.
COLUMNS = {
    "logp_unconditional": (Pass.unconditional, "logp"),
    "ref_logp": (Pass.reference, "logp"),
    PROMPT_TR: (Pass.prompts, PROMPT_TR),
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
    if Attribute.tr in own and fitted_to_prompts(config.threshold.tr):
        own.add(PROMPT_TR)
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
    another: Callable[[set[str], Iterable[str]], Path],
) -> dict[Pass, Path]:
    """The folders of the passes that a run reads, made unless they are there.

    Args:
        rows: gives the encoded training rows; not called where no pass is read.
        tokenizer: gives the model's tokenizer, likewise.
        scorer_of: the model of a pass; a reference model is trained when this is called.
        another: makes the pass of `scorer.model` with these columns, and further ones; not called where none is set.
    """
    found: dict[Pass, Path] = {}
    for kind, columns in passes_of(config).items():
        also: Iterable[str] = sources(config.scorer.compute) if kind is Pass.base else ()
        if kind is Pass.base and config.scorer.model is not None:
            found[kind] = another(columns, also)
            continue
        if kind is Pass.base and Attribute.tr in columns | set(also) and by_id(config.scorer.tr):
            also = {*also, PROMPT_TR}
        encoded = alone(rows(), tokenizer()) if kind is Pass.unconditional else rows()
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


def training_rows(rows: Callable[[], StoredRows], passes: Mapping[Pass, Path]) -> Batches:
    """The training rows with every score column that the passes bring, and `end_tokens`, which no pass stores."""
    return Batches(functools.partial(_training_batches, rows(), dict(passes)))


def _training_batches(rows: StoredRows, passes: Mapping[Pass, Path]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    if Pass.base in passes:
        names = [name for name in pass_columns(passes[Pass.base]) if name not in (*LOOKS, PROMPT_TR)]
        tables: Iterator[pa.RecordBatch] = pass_batches(passes[Pass.base], names)
    else:
        tables = iter(rows.table.select(["example_id", "input_ids", "prompt_length"]).to_batches(ROWS_AT_ONCE))
    others = {
        name: _Parts(pass_batches(passes[source[0]], [source[1]]))
        for name, source in COLUMNS.items()
        if source is not None and source[0] in passes
    }
    own, start = rows.table, 0
    weighted, sources = rows.weighted, rows.sources
    for batch in tables:
        part = own.slice(start, batch.num_rows).combine_chunks()
        start += batch.num_rows
        table = with_ends(pa.Table.from_batches([batch]), part["end_tokens"].combine_chunks())
        if weighted:
            table = table.append_column(ROW_WEIGHTS, row_weights(table, part["weights"].to_pylist()))
        if sources:
            table = table.append_column(SOURCE, part["source"])
        for name, parts in others.items():
            table = table.append_column(name, parts.take(batch.num_rows))
        yield table.combine_chunks().to_batches()[0]


class _Parts:
    """The first column of record batches, taken in parts of any length."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.batches = batches
        self.rest: list[pa.Array] = []

    def take(self, rows: int) -> pa.Array:
        """The next `rows` values."""
        import pyarrow as pa

        while sum(map(len, self.rest)) < rows:
            self.rest.append(next(self.batches).column(0))
        whole = pa.concat_arrays(self.rest)
        self.rest = [whole.slice(rows)]
        return whole.slice(0, rows)


def write_mask(config: Config, rows: Batches, path: Path) -> dict[str, Any]:
    """Write the method's mask of training rows to `path`; returns its statistics. No model is loaded."""
    masked = config.method.stream(rows, config.threshold, config.scorer.attributes, config.seed)
    batches, more = masked.batches, {}
    if ROW_WEIGHTS in next(iter(rows)).schema.names:
        batches, more["untrained_tokens"] = weighted_by_row(batches)
    said = {"model": config.model.path, "scorer": config.scorer, "method": config.method.name}
    metadata = in_schema(said | {"threshold": config.threshold})
    write_atomic(path, lambda temporary: write_parquet(batches, temporary, metadata))
    return masked.stats.to_dict() | more
