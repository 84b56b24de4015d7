"""Tables that are read a record batch at a time, so that their rows need not fit into memory."""

from __future__ import annotations

import itertools
import mmap
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xtf.runtime.artifacts import naming

ROWS_AT_ONCE = 1024  # of a Parquet file
GROUPS = 128  # batches of a file that are written as they come
GROUP_BYTES = 4 * 2**20  # in memory, of later row groups of a Parquet file
MAPPED_BYTES = 2**20  # of later batches of a mapped file
HASHES_HELD = 8192  # 8 bytes each

T = TypeVar("T")


@dataclass(frozen=True)
class Again(Generic[T]):
    """What `read` gives, anew as often as it is gone through."""

    read: Callable[[], Iterable[T]]

    def __iter__(self) -> Iterator[T]:
        return iter(self.read())


class Batches(Again[pa.RecordBatch]):
    """A table as record batches; those without rows are left out."""

    @classmethod
    def of(cls, table: pa.Table) -> Batches:
        """A table that is in memory, or mapped into it."""
        return cls(table.to_reader)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return (batch for batch in super().__iter__() if batch.num_rows)

    def with_column(self, name: str, column: pa.Array) -> Batches:
        """The same with a further column, a value for each row."""

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self:
                yield batch.append_column(name, column.slice(start, batch.num_rows))
                start += batch.num_rows

        return Batches(batches)

    def where(self, which: np.ndarray) -> Batches:
        """The rows that `which`, bool (R,), names."""

        def batches() -> Iterator[pa.RecordBatch]:
            start = 0
            for batch in self:
                yield batch.filter(pa.array(which[start : start + batch.num_rows]))
                start += batch.num_rows

        return Batches(batches)

    def table(self) -> pa.Table:
        """All of it in memory.

        Raises:
            ValueError: there is no batch.
        """
        return pa.Table.from_batches(list(self))


def parquet_batches(files: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of Parquet files one after the other, at most `ROWS_AT_ONCE` in a batch."""
    for file in files:
        with pq.ParquetFile(file) as opened:
            yield from by_group(opened, columns)


def by_group(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, at most `ROWS_AT_ONCE` in a batch; no more than a row group is held.

    `iter_batches` over several groups keeps those that it has read until it is at the end.
    """
    for group in range(file.num_row_groups):
        yield from file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns)


def write_parquet(batches: Iterable[pa.RecordBatch], path: Path, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write batches of one schema as they come; `metadata` of the table are kept in the file.

    Each is a row group, but for those beyond `GROUPS`, of which several make one of at least `GROUP_BYTES`: what the
    writer holds of each group until the end, some 11 KB for a mask, would add up.

    Raises:
        ValueError: there is none.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"{path}: there are no rows to write")
    schema = first.schema.with_metadata({**(first.schema.metadata or {}), **(metadata or {})})
    with pq.ParquetWriter(path, schema) as writer:
        for table in _groups(itertools.chain([first], rest), GROUP_BYTES):
            writer.write_table(table, table.num_rows)
    pa.default_memory_pool().release_unused()


def _groups(batches: Iterator[pa.RecordBatch], least: int) -> Iterator[pa.Table]:
    """The first `GROUPS` batches one by one, later ones together until they have `least` bytes."""
    held: list[pa.RecordBatch] = []
    for number, batch in enumerate(batches):
        held.append(batch)
        if number < GROUPS or sum(one.nbytes for one in held) >= least:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


class Hashes:
    """64-bit hashes, held in a file without a name (`TMPDIR`), mapped into memory when it is asked which repeat."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # goes with the object
        self.held = array("q")

    def extend(self, hashes: Iterable[int]) -> None:
        """Add some."""
        self.held.extend(hashes)
        if len(self.held) >= HASHES_HELD:
            self._let_go()

    def _let_go(self) -> None:
        with naming(Path(tempfile.gettempdir())):
            self.held.tofile(self.file)
            self.file.flush()
        self.held = array("q")

    def repeated(self) -> set[int]:
        """Those that were added more than once."""
        self._let_go()
        found: set[int] = set()
        if not self.file.tell():
            return found
        every = np.memmap(self.file, np.int64, "r+")
        every.sort()
        for start in range(0, len(every), HASHES_HELD):
            part = every[start : start + HASHES_HELD + 1]
            found.update(part[1:][part[1:] == part[:-1]].tolist())
        return found


class Growing:
    """Values of one type, end to end in a file in `folder` that has no name; by default in that of `TMPDIR`.

    Raises:
        OSError: the disk is full; with the folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir())
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  # goes with the object
        self.type = np.dtype(np.int64)

    def extend(self, values: np.ndarray) -> None:
        """Add some, (N,)."""
        self.type = values.dtype
        with naming(self.folder):
            self.file.write(np.ascontiguousarray(values).data)

    def whole(self) -> np.ndarray:
        """All of them, mapped into memory; there are no more to come."""
        with naming(self.folder), self.file:
            self.file.flush()
            if not self.file.tell():
                return np.zeros(0, self.type)
            return np.frombuffer(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ), self.type)


def spooled(batches: Iterable[pa.RecordBatch], folder: Path) -> pa.Table:
    """The batches, of one schema, as a table mapped from a file in `folder` that has no name: it goes with the table.

    What is mapped are pages of a file, which the system takes back when it needs memory. Of each batch Arrow holds some
    3 KB, so that those beyond `GROUPS` are put together, to at least `MAPPED_BYTES`.

    Raises:
        OSError: the disk is full; with the folder.
        ValueError: there is no batch.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("there are no rows")
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder), tempfile.TemporaryFile(dir=folder) as file:
        with pa.ipc.new_file(file, first.schema) as writer:
            for table in _groups(itertools.chain([first], rest), MAPPED_BYTES):
                writer.write_table(table.combine_chunks())
        file.flush()
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pa.default_memory_pool().release_unused()
    return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()
