"""Encoded rows in a file that is mapped into memory: what the stages of a run read, however many there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa
import pyarrow.compute as pc

from xtf.data.batches import spooled
from xtf.data.encode import Encoded

SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "prompt_length": pa.int32(),
        "end_tokens": pa.int8(),
        "weights": pa.list_(pa.float64()),
        "source": pa.string(),
    }
)


class StoredRows(Sequence[Encoded]):
    """The rows of `table`, whose columns are the fields of `Encoded`, each made when it is asked for."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def write(cls, rows: Iterable[Sequence[Encoded]], folder: Path) -> StoredRows:
        """The rows, which come some at a time, in a file in `folder` that goes with them."""
        return cls(spooled(map(record_batch, rows), folder))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Encoded]:
        for batch in self.table.to_reader():
            yield from _rows(batch)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            found = [
                row for batch in self.table.slice(start, max(0, stop - start)).to_batches() for row in _rows(batch)
            ]
            return found[::step] if step > 0 else [self[place] for place in range(start, stop, step)]
        place = range(len(self))[index]
        return self[place : place + 1][0]

    @property
    def weighted(self) -> bool:
        """Whether any row has weights of its own."""
        return bool(self.table["weights"].null_count < len(self))

    @property
    def sources(self) -> bool:
        """Whether any example is made of a row with another id."""
        return not bool(pc.all(pc.equal(self.table["source"], self.table["example_id"])).as_py())


def record_batch(rows: Sequence[Encoded]) -> pa.RecordBatch:
    """The rows as a record batch of `SCHEMA`."""
    return pa.RecordBatch.from_pydict({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, SCHEMA)


def _rows(batch: pa.RecordBatch) -> Iterator[Encoded]:
    ids, weights = batch.column("input_ids"), batch.column("weights")
    offsets, flat = ids.offsets.to_numpy(), ids.values.to_numpy()
    small = (batch.column(name).to_pylist() for name in ("example_id", "prompt_length", "end_tokens", "source"))
    for place, (name, prompt, ends, source) in enumerate(zip(*small, strict=True)):
        own = weights[place].as_py() if weights.null_count < len(weights) else None
        tokens = flat[offsets[place] : offsets[place + 1]].tolist()
        yield Encoded(name, tokens, prompt, ends, None if own is None else tuple(own), source)


def tokens_in(rows: Sequence[Encoded], part: range) -> int:
    """Tokens of the rows at these places, which follow each other."""
    if isinstance(rows, StoredRows):
        return int(pc.sum(pc.list_value_length(rows.table["input_ids"].slice(part.start, len(part)))).as_py() or 0)
    return sum(len(row.input_ids) for row in rows[part.start : part.stop])
