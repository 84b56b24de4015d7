"""Rows of tokens laid end to end: the one flat form in which scores, masks, methods, training and pages see a table.

A table has a row for each example: `input_ids`, of which the first `prompt_length` are the prompt and the rest the
response, and list columns beside them. `Sequences` is such a table seen as flat arrays; `Responses` is what is left
when only response tokens matter. Nothing is copied that Arrow can lend.

Shapes, as suffixes of names where several meet: R rows, L tokens of whole sequences, N response tokens.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute

if TYPE_CHECKING:
    import datasets

IGNORED = -100  # the label that Hugging Face losses skip


class Row(Protocol):
    """What a row must have; `xtf.data.encode.Encoded` does."""

    @property
    def example_id(self) -> str:
        """Names it in messages."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Prompt and response."""

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""


def as_table(rows: Sequence[Row]) -> pa.Table:
    """The columns `example_id` string, `input_ids` list<int32> and `prompt_length` int32 of encoded rows."""
    lengths = np.array([len(row.input_ids) for row in rows], np.int64)
    ids = np.fromiter(chain.from_iterable(row.input_ids for row in rows), np.int32, int(lengths.sum()))
    return pa.table(
        {
            "example_id": pa.array([row.example_id for row in rows], pa.string()),
            "input_ids": as_lists(ids, lengths),
            "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
        }
    )


def as_arrow(rows: datasets.Dataset | pa.Table) -> pa.Table:
    """A table of either library as one of Arrow.

    Raises:
        ValueError: as `check_dataset`.
    """
    if isinstance(rows, pa.Table):
        return rows
    check_dataset(rows)
    table: pa.Table = rows.with_format("arrow")[:]
    return table


def check_dataset(rows: Any) -> None:
    """Raises:
    ValueError: the rows are no `datasets.Dataset`.
    """
    import datasets

    if not isinstance(rows, datasets.Dataset):
        raise ValueError(
            f"a datasets.Dataset is needed, not {type(rows).__name__}: one split of a DatasetDict, "
            "rows.select(range(3)) instead of rows[:3], Dataset.from_pandas, Dataset.from_list, or Dataset(table) of "
            "an Arrow table"
        )


def with_ends(table: pa.Table, end_tokens: Iterable[int]) -> pa.Table:
    """The table with the column `end_tokens` int8 behind `prompt_length`: a number for each row, of the tokens at the
    end of its response that encoding appended."""
    place = table.column_names.index("prompt_length") + 1
    return table.add_column(place, "end_tokens", pa.array(end_tokens, pa.int8()))


SOURCE = "source_id"  # column: the id of the row that an example was made of, where several were made of one
PROMPT_TR = "prompt_tr"  # column: TR of each token of the prompt, list<float32>; see `threshold.tr.fit`
ROW_WEIGHTS = "row_weights"  # column: w of each response token as the row itself says (weight, train, loss, ...)


def with_sources(table: pa.Table, sources: Sequence[str]) -> pa.Table:
    """The table with the column `SOURCE`, unless every example is a source of its own."""
    if list(sources) == table["example_id"].to_pylist():
        return table
    return table.append_column(SOURCE, pa.array(sources, pa.string()))


def with_row_weights(table: pa.Table, weights: Sequence[Sequence[float] | None]) -> pa.Table:
    """The table with the column `ROW_WEIGHTS` list<float32>, as long as the responses, unless every row has None."""
    if not any(row is not None for row in weights):
        return table
    return table.append_column(ROW_WEIGHTS, row_weights(table, weights))


def sources_of(table: pa.Table) -> pa.ChunkedArray:
    """Of each row, the id of the example that it was made of."""
    return table[SOURCE if SOURCE in table.column_names else "example_id"]


def row_weights(table: pa.Table, weights: Sequence[Sequence[float] | None]) -> pa.ListArray:
    """The weights of each row's response tokens, list<float32>; 1 where a row has None."""
    lengths = pa.compute.list_value_length(table["input_ids"]).to_numpy() - table["prompt_length"].to_numpy()
    rows = [np.ones(n) if row is None else np.asarray(row) for row, n in zip(weights, lengths, strict=True)]
    return as_lists(np.concatenate(rows).astype(np.float32), lengths)


# --- lists end to end ---------------------------------------------------------------------------------------


def positions(lengths: np.ndarray) -> np.ndarray:
    """0 .. n-1 for each n, end to end: [2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def places(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start .. start+n-1 for each row, end to end."""
    return np.repeat(starts, lengths) + positions(lengths)


def flat(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the length of each list, int64 (R,)."""
    if isinstance(column, pa.ChunkedArray):  # combining a single chunk would copy it
        lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    else:
        lists = column
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lists.flatten().to_numpy(zero_copy_only=False), lengths


def as_lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """One list per row from values end to end; at most 2^31 - 1 values, as Arrow counts them."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


class Lists:
    """The lists of a column of many chunks, each where it lies: `take` copies the column first, whatever is taken."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.chunks = [(chunk.offsets.to_numpy(), chunk.values.to_numpy()) for chunk in column.chunks]
        self.starts = list(accumulate((len(chunk) for chunk in column.chunks), initial=0))

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = bisect_right(self.starts, row) - 1
        offsets, values = self.chunks[chunk]
        place = row - self.starts[chunk]
        found: np.ndarray = values[offsets[place] : offsets[place + 1]]
        return found


# --- response tokens ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Responses:
    """The response tokens of R examples end to end, N in all.

    lengths: response tokens of each example, int64 (R,); columns: values by name, each (N,); prompt_tr: TR of the
    tokens of all prompts end to end, float32, where it is known.
    """

    lengths: np.ndarray
    columns: Mapping[str, np.ndarray]
    prompt_tr: np.ndarray | None = None

    @classmethod
    def from_table(cls, table: pa.Table, names: Iterable[str]) -> Responses:
        """The columns `names` of a scored or masked table; `labels` becomes `dropped`, true where a label is -100, or
        where the column of that name says so, as the labels of dropped tokens may count for something; `end` is true
        for the tokens that `Sequences.ends` names.

        Raises:
            ValueError: a column is missing, holds nulls or is not as long as the response.
        """
        rows = Sequences(table)
        columns = {}
        for name in sorted(names):
            if name == "labels":
                columns["dropped"] = rows.dropped
            else:
                columns[name] = rows.ends if name == "end" else rows.of_responses(name)
        return cls(rows.responses, columns)

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Example i owns `offsets[i]:offsets[i + 1]`; int64 (R + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def tokens(self) -> int:
        """How many tokens there are."""
        return int(self.offsets[-1])

    @property
    def example(self) -> np.ndarray:
        """The number of the example that each token belongs to, int64 (N,)."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def select(self, which: np.ndarray) -> Self:
        """Only the tokens that `which`, bool (N,), names; every example stays, with fewer tokens or none."""
        if which.all():
            return self
        columns = {name: values[which] for name, values in self.columns.items()}
        return type(self)(self.count(which), columns, self.prompt_tr)

    def only(self, *names: str) -> Responses:
        """The same tokens with these columns."""
        return Responses(self.lengths, {name: self.columns[name] for name in names}, self.prompt_tr)

    def count(self, which: np.ndarray) -> np.ndarray:
        """How many tokens of each example `which`, bool (N,), names; int64 (R,)."""
        return np.bincount(self.example[which], minlength=len(self.lengths))

    def order(self, values: np.ndarray) -> np.ndarray:
        """The places of the tokens by value within each example, int64 (N,); ties go by position."""
        return np.lexsort((values, self.example))

    def rank(self, values: np.ndarray) -> np.ndarray:
        """Rank of each token's value within its example, int64 (N,): 0 is the lowest; ties go by position."""
        rank = np.empty(self.tokens, np.int64)
        rank[self.order(values)] = positions(self.lengths)
        return rank


# --- whole rows ---------------------------------------------------------------------------------------------


class Sequences:
    """A table, or a record batch of one, as flat arrays.

    ids: (L,), of the type that the table has; lengths, prompts, responses: tokens of each row, of its prompt and of
    its response, int64 (R,).

    Raises:
        ValueError: `input_ids` or `prompt_length` is missing or holds nulls, or a prompt is longer than its row.
    """

    def __init__(self, table: pa.Table | pa.RecordBatch) -> None:
        self.table = table
        self.ids, self.lengths = flat(self._column("input_ids"))
        self.prompts = self._column("prompt_length").to_numpy().astype(np.int64)
        self.responses = self.lengths - self.prompts
        self.refuse((self.prompts < 0) | (self.responses < 0), "prompt_length is not within input_ids")

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """Row i owns `offsets[i]:offsets[i + 1]` of the ids; int64 (R + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def in_response(self) -> np.ndarray:
        """Which tokens belong to a response, bool (L,)."""
        return positions(self.lengths) >= np.repeat(self.prompts, self.lengths)

    @property
    def response_ids(self) -> np.ndarray:
        """The ids of all response tokens, (N,)."""
        return self.ids[self.in_response]

    @property
    def ends(self) -> np.ndarray:
        """Which response tokens are no part of the data but appended when it was encoded, bool (N,): the last
        `end_tokens` of each response, int8 (R,); none where the table has no such column.

        Raises:
            ValueError: more of them than the response has tokens.
        """
        if "end_tokens" not in self.table.schema.names:
            return np.zeros(int(self.responses.sum()), dtype=bool)
        count = self._column("end_tokens").to_numpy().astype(np.int64)
        self.refuse((count < 0) | (count > self.responses), "end_tokens is not within the response")
        return positions(self.responses) >= np.repeat(self.responses - count, self.responses)

    @property
    def untrained(self) -> np.ndarray:
        """Which response tokens the rows themselves do not train, bool (N,): those of weight 0 in `ROW_WEIGHTS`."""
        if ROW_WEIGHTS not in self.table.schema.names:
            return np.zeros(int(self.responses.sum()), dtype=bool)
        return self.of_responses(ROW_WEIGHTS) == 0

    @property
    def dropped(self) -> np.ndarray:
        """Which response tokens a masked table drops, bool (N,): those that its column `dropped`, list<bool>, names, or
        where it has none those without a label."""
        if "dropped" in self.table.schema.names:
            return self.of_responses("dropped").astype(bool)
        ignored: np.ndarray = self.of_sequences("labels")[self.in_response] == IGNORED
        return ignored

    def ending_with(self, token: int) -> np.ndarray:
        """1 for each row whose response ends with `token`, else 0; int8 (R,)."""
        ends = np.zeros(len(self.lengths), np.int8)
        some = self.responses > 0
        ends[some] = self.ids[self.offsets[1:][some] - 1] == token
        return ends

    def of_responses(self, name: str) -> np.ndarray:
        """A list column that has a value for each response token, (N,).

        Raises:
            ValueError: as for `Responses.from_table`.
        """
        return self._values(name, self.responses, "response")

    @property
    def prompt_tr(self) -> np.ndarray | None:
        """The column `PROMPT_TR` end to end; None where the table has none.

        Raises:
            ValueError: it is not as long as the prompts.
        """
        return self._values(PROMPT_TR, self.prompts, "prompt") if PROMPT_TR in self.table.schema.names else None

    def of_sequences(self, name: str) -> np.ndarray:
        """A list column that has a value for each token, (L,).

        Raises:
            ValueError: as for `Responses.from_table`.
        """
        return self._values(name, self.lengths, "sequence")

    def refuse(self, which: np.ndarray, what: str) -> None:
        """ValueError with `what` and the examples that `which`, bool (R,), names, if it names any."""
        if which.any():
            raise ValueError(f"{what}: examples {self.named(which)}")

    def named(self, which: np.ndarray) -> str:
        """The ids, at most ten, of the examples that `which`, bool (R,), names; row numbers where there are no ids."""
        numbers = np.flatnonzero(which)
        ids = (
            self.table["example_id"].take(pa.array(numbers[:10])).to_pylist()
            if "example_id" in self.table.schema.names
            else numbers[:10].tolist()
        )
        return ", ".join(map(repr, ids)) + (f" and {len(numbers) - 10} more" if len(numbers) > 10 else "")

    def _values(self, name: str, lengths: np.ndarray, of: str) -> np.ndarray:
        values, own = flat(self._column(name))
        if (other := own != lengths).any():
            row = int(np.argmax(other))
            self.refuse(
                other, f"{name} is not as long as the {of} ({own[row]} entries, wanted {lengths[row]} in the first)"
            )
        return values

    def _column(self, name: str) -> pa.Array | pa.ChunkedArray:
        names = self.table.schema.names
        if name not in names:
            raise ValueError(f"the table has no column {name!r}; it has {', '.join(names)}")
        column = self.table.column(name)
        if column.null_count:
            raise ValueError(f"column {name!r} holds {column.null_count} nulls")
        return column
