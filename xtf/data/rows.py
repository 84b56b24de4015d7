"""Rows from a file, the hub or memory, with their numbers and a hash of what they hold."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import tempfile
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias, cast, overload

import numpy as np

from xtf.config.schema import SourceConfig
from xtf.runtime.artifacts import naming

if TYPE_CHECKING:
    import pyarrow as pa

    from xtf.data.batches import Hashes

ID_FIELDS = ("id", "example_id", "task_id", "unique_id", "pubid")
TRAINED = ("completion_mask", "assistant_masks")  # TRL's in the place of labels; both count


@dataclass(frozen=True)
class Rows:
    """The rows of one source after `ids`, `exclude_ids` and `limit`.

    Those of a JSONL or Parquet file and of the hub are read anew each time that they are gone through, so that they
    need not fit into memory.

    `numbers[i]` is the 1-based place of `rows[i]` in the source (the line, for JSONL); `sha256` is over the
    rows kept, as canonical JSON, so that it does not depend on the file's format and changes with every
    filter.
    """

    rows: Sequence[dict[str, Any]]
    numbers: Sequence[int]
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def is_tokenized(row: Mapping[str, Any]) -> bool:
    """Whether a row holds token ids and says which of them are trained (`xtf.data.tokenized`)."""
    return "input_ids" in row and any(name in row for name in ("labels", *TRAINED))


def ids_of(row: Mapping[str, Any], name: str, *, least: int = 0, switches: bool = False) -> np.ndarray:
    """A field of a tokenised row, int64 (L,): a flat list of whole numbers from `least`; `switches`: or true and false.

    Raises:
        ValueError: the row has no such field, or it holds something else, which would become numbers in silence.
    """
    values: Any = row.get(name)
    if hasattr(values, "tolist"):  # of numpy, of torch
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list of whole numbers, not {type(values).__name__}")
    for kind in set(map(type, values)):
        if not issubclass(kind, int | np.integer) or (issubclass(kind, bool) and not switches):
            raise ValueError(f"{name} must be a flat list of whole numbers; it holds {kind.__name__}")
    for bound in (min(values), max(values)) if values else ():
        if not least <= bound < 2**31:
            raise ValueError(f"{name} holds {int(bound):.6g}, which is not from {least} to {2**31 - 1}")
    return np.array(values, np.int64)


def row_id(row: Mapping[str, Any], number: int) -> str:
    """The row's own id (the first of `ID_FIELDS` that holds a string or a whole number), else its row number."""
    for name in ID_FIELDS:
        value = row.get(name)
        if isinstance(value, float) and value.is_integer():  # a gap in a column of whole numbers makes them floats
            value = int(value)
        if isinstance(value, str | int):
            return str(value)
    return str(number)


def load_rows(source: SourceConfig) -> Rows:
    """Reads a JSONL, JSON, CSV or Parquet file (optionally .gz), a folder that `datasets` saved (`save_to_disk`), or a
    split of a dataset on the hub.

    Raises:
        ValueError: the source is missing, unreadable, empty or emptied by its filters, or lacks ids that are named.
    """
    if source.path:
        path = Path(source.path).expanduser()
        name, found = source.path, _ListedSource(read_saved(path, source.split)) if path.is_dir() else open_file(path)
    elif source.hub:
        name, found = _hub_name(source), _HubSource(_load_hub(source))
    else:
        raise ValueError("no data given: set task.train.path (or .hub), and task.eval.path (or .hub) likewise")
    if not len(found.numbers):
        raise ValueError(f"{name}: no rows in it")
    places: Places = range(len(found.numbers))
    if source.ids:
        places = _keep_ids(found, places, source.ids, name)
    if source.exclude_ids:
        places = _drop_ids(found, places, source.exclude_ids, name)
    if source.limit is not None:
        if source.limit < 1:
            raise ValueError(f"limit must be at least 1, not {source.limit}")
        places = places[: source.limit]
    digest, numbers = hashlib.sha256(), _at(found.numbers, places)
    for row, number in zip(found.at(places), numbers, strict=True):
        try:
            canonical = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
        except RecursionError as error:
            raise ValueError(f"{name}: row {number}: {NESTED}") from error
        digest.update(canonical.encode() + b"\n")
    own = numbers if isinstance(numbers, range) else array("q", numbers.tobytes())
    return Rows(SourceRows(found, places), own, name, digest.hexdigest())


NESTED = "it is nested too deeply"  # what a RecursionError over a row says
LONGEST_LINE = 64 << 20  # bytes of a JSONL row, characters of a line of CSV: some 16 million tokens
LARGEST_WHOLE = 1 << 30  # bytes, unpacked, of a file that is read whole; rows in memory take several times as much
MOST_PACKED = 200  # times that a .gz of rows may grow: texts shrink to a third, copies of one row to some hundredth
# What damaged or foreign content makes the readers of its format raise, beside Arrow's own: JSON and text a ValueError,
# a cut .gz an EOFError or zlib.error, a date beyond Python's years an OverflowError.
READ_ERRORS = (OSError, EOFError, ValueError, RecursionError, OverflowError, csv.Error, zlib.error)
CHUNK = 1 << 20  # bytes that are looked through for lines at a time
LINES = 1024  # rows of a JSONL file from one whose place is known to the next

# Ascending 0-based places of rows, or their numbers: a range where they are all, so that a row takes no memory.
Places: TypeAlias = "range | np.ndarray"


def _at(numbers: Places, places: Places) -> Places:
    """The numbers at these places."""
    if isinstance(places, range):
        return numbers[places.start : places.stop : places.step]
    return places + numbers.start if isinstance(numbers, range) else numbers[places]


# -- sources: rows that are read when they are needed ----------------------------------------------------------------


class Source(Protocol):
    """Where rows are. `numbers`: the 1-based place of each in the file."""

    numbers: Places

    def at(self, places: Places) -> Iterator[dict[str, Any]]:
        """The rows at 0-based places, which ascend."""


@dataclass(frozen=True)
class SourceRows(Sequence[dict[str, Any]]):
    """Rows of a source, read each time that they are asked for."""

    source: Source
    places: Places

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.source.at(self.places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> SourceRows: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | SourceRows:
        if isinstance(index, slice):
            return SourceRows(self.source, self.places[index])
        place = int(self.places[index])
        return next(self.source.at(range(place, place + 1)))


class _ListedSource:
    """Rows that are in memory: of JSON and CSV, which cannot be read from the middle."""

    def __init__(self, numbered: Numbered) -> None:
        self.rows = [row for _, row in numbered]
        self.numbers: Places = np.array([number for number, _ in numbered], np.int64)

    def at(self, places: Places) -> Iterator[dict[str, Any]]:
        return (self.rows[place] for place in places)


class _LineSource:
    """The lines of a JSONL file, of which no more is kept than where one of `LINES` starts; .gz is unpacked into a
    nameless file.

    Raises:
        ValueError: the file is empty, or UTF-16; when rows are read: what is wrong with one, or that the file changed.
    """

    def __init__(self, path: Path, zipped: bool) -> None:
        self.path = path
        self.file: BinaryIO
        if zipped:
            self.file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # open as long as the rows are
            with naming(Path(tempfile.gettempdir())), gzip.open(path) as packed:
                most = max(LARGEST_WHOLE, MOST_PACKED * path.stat().st_size)
                while chunk := packed.read(CHUNK):
                    self.file.write(chunk)
                    if self.file.tell() > most:
                        raise ValueError(f"it grows to more than {MOST_PACKED} times its size: unpack it yourself")
                self.file.flush()
        else:
            self.file = path.open("rb")
        rows, gaps = 0, array("q")  # the numbers of blank lines
        self.starts: list[tuple[int, int]] = []  # of rows 0, LINES, 2 LINES, ...: place in the file, number
        for number, start, line in self._lines(0, 1):
            if start == 0:
                _refuse_wide(line)
            if not line.strip():
                gaps.append(number)
                continue
            if rows % LINES == 0:
                self.starts.append((start, number))
            rows += 1
        if not rows:
            raise ValueError("the file is empty")
        self.numbers: Places = range(1, rows + 1)
        if len(gaps) and gaps[0] <= rows:
            self.numbers = np.delete(np.arange(1, rows + len(gaps) + 1), np.array(gaps) - 1)
        self.changed = self._changed()

    def _lines(self, start: int, number: int) -> Iterator[tuple[int, int, bytes]]:
        """Number, place and content of the lines from one on."""
        for at, line in _lines(self.file, start, number):
            yield number, at, line.removeprefix(codecs.BOM_UTF8) if at == 0 else line
            number += 1

    def _changed(self) -> tuple[int, int]:
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def _at(self, places: Places) -> Iterator[tuple[int, bytes]]:
        """Number and content of the lines at these places."""
        following, number, line = -LINES, 0, b""  # the row that comes next: none yet
        for place in places:
            if not following <= place < following + LINES:
                following = int(place - place % LINES)
                lines = self._lines(*self.starts[place // LINES])
            while following <= place:
                number, _, line = next(lines)
                following += bool(line.strip())
            yield number, line

    def at(self, places: Places) -> Iterator[dict[str, Any]]:
        if self._changed() != self.changed:
            raise ValueError(f"{self.path} changed while it was read: start again")
        for number, line in self._at(places):
            try:
                row = _json(_text(line, number))
            except (ValueError, RecursionError) as error:
                reason = NESTED if isinstance(error, RecursionError) else error
                where = "" if isinstance(error, NotUTF8) else f"row {number}: "
                raise ValueError(f"{self.path}: cannot be read: {where}{reason}") from error
            if not isinstance(row, dict):
                _object(row, number, f"{self.path}: cannot be read: ")
            yield row


def _lines(file: BinaryIO, start: int, number: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from the one on that starts at `start` and has this number: where each starts, and what it
    holds without its end, which is a line feed, a carriage return or both.

    Raises:
        ValueError: one is longer than `LONGEST_LINE`; no more than that of it has been read.
    """
    place, rest = start, b""
    while chunk := os.pread(file.fileno(), CHUNK, place):
        place += len(chunk)
        lines = (rest + chunk).splitlines(keepends=True)
        # The last one may go on in the next chunk, and so may its end.
        rest = lines.pop() if not lines[-1].endswith(b"\n") else b""
        for line in lines:
            yield start, line.rstrip(b"\r\n")
            start, number = start + len(line), number + 1
        if len(rest) > LONGEST_LINE:
            raise ValueError(
                f"line {number} is longer than {LONGEST_LINE >> 20} MiB, which no row is: each line is one row's "
                "JSON object (one JSON document of all rows belongs into a file whose name ends in .json)"
            )
    if rest:
        yield start, rest.rstrip(b"\r\n")


@contextmanager
def reading_arrow(path: Path) -> Iterator[None]:
    """Raises what Arrow raises for a damaged file as a ValueError with the file."""
    import pyarrow as pa

    try:
        yield
    except (*READ_ERRORS, pa.ArrowException) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


class _ParquetSource:
    """The rows of a Parquet file, read some at a time, in the way of `plain_rows`.

    Raises:
        ValueError: the file is no Parquet, or damaged, which may show when rows are read.
    """

    def __init__(self, path: Path, file: Path | io.BytesIO) -> None:
        self.path = path
        with reading_arrow(path):
            self._open(file)

    def _open(self, file: Path | io.BytesIO) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(file)
        schema = self.file.schema_arrow
        if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise ValueError(f"the column {twice[0]!r} is there twice")
        self.numbers: Places = range(1, self.file.metadata.num_rows + 1)
        floating = [field.name for field in schema if pa.types.is_floating(field.type)]
        self.whole = [name for name in floating if self._whole_numbers(name)]

    def _whole_numbers(self, name: str) -> bool:
        """Whether a column of floats holds whole numbers which gaps have made so."""
        import pyarrow as pa

        from xtf.data.batches import by_group

        gaps, some = False, False
        for batch in by_group(self.file, [name]):
            column, gap, whole = _gaps(pa.chunked_array([batch.column(0)]))
            gaps, some = gaps or gap, some or len(column) > column.null_count
            if not whole:
                return False
        return gaps and some

    def at(self, places: Places) -> Iterator[dict[str, Any]]:
        with reading_arrow(self.path):  # what happens to whoever goes through the rows does not pass through here
            yield from self._at(places)

    def _at(self, places: Places) -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        from xtf.data.batches import by_group

        start, following = 0, 0
        for batch in by_group(self.file):
            if following == len(places):
                return
            until = bisect_left(places, start + batch.num_rows)
            part = batch.take(pa.array(np.asarray(places[following:until], np.int64) - start))
            following, start = until, start + batch.num_rows
            yield from plain_rows(pa.Table.from_batches([part]), self.whole)
        if following < len(places):
            raise ValueError(f"it holds {start} rows where its footer says {len(self.numbers)}")


class _HubSource:
    """A dataset of the hub, which `datasets` maps into memory, in the way of `plain_rows`."""

    def __init__(self, data: Any) -> None:
        self.table: pa.Table = data.with_format("arrow")[:]
        self.numbers: Places = range(1, len(data) + 1)
        self.whole = _whole_columns(self.table)

    def at(self, places: Places) -> Iterator[dict[str, Any]]:
        for start, some in itertools.groupby(map(int, places), key=lambda place: place - place % LINES):
            yield from plain_rows(self.table.slice(start, LINES).take([place - start for place in some]), self.whole)


class _Whole(io.RawIOBase):
    """The content of a file that is read whole, unpacked if it is `zipped`, and no more of it than fits into memory.

    Raises:
        ValueError: it is larger than `LARGEST_WHOLE`; no more than that has been read.
    """

    def __init__(self, path: Path, zipped: bool) -> None:
        self.file: BinaryIO = cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb")  # noqa: SIM115
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self.taken += size
        if self.taken > LARGEST_WHOLE:
            raise ValueError(
                f"it is larger than {LARGEST_WHOLE >> 20} MiB (unpacked), and is read whole: save the rows as JSONL, "
                "or as Parquet without .gz"
            )
        return int(size)

    def close(self) -> None:
        self.file.close()
        super().close()


def _whole(path: Path, zipped: bool = False) -> io.BufferedReader:
    return io.BufferedReader(_Whole(path, zipped))


Numbered = list[tuple[int, dict[str, Any]]]  # each row with its 1-based place: the line of a JSONL file


def read_file(path: Path) -> Numbered:
    """All rows of a file, in memory; see `open_file`."""
    found = open_file(path)
    return list(zip(map(int, found.numbers), found.at(range(len(found.numbers))), strict=True))


def open_file(path: Path) -> Source:
    """The rows of a JSONL, JSON, CSV or Parquet file, optionally .gz: the one reader of every file that holds rows.

    Blank lines are passed over; a byte order mark and any line ends are fine, and U+2028 within a text is text.

    Raises:
        ValueError: with file and row, for a file that is missing, empty, not UTF-8 or not what its name says; for a row
            with a key twice, with NaN or infinity, or with text that is no Unicode (of JSONL, when the row is read).
    """
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"data file not found: {path} (looked for {path.absolute()})")
    suffixes = path.suffixes
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    known = (".jsonl", ".json", ".csv", ".parquet")
    if kind[0] not in known:
        raise ValueError(f"{path}: the name must end in {', '.join(known)}, optionally followed by .gz")
    try:
        if kind[0] == ".jsonl":
            return _LineSource(path, zipped)
        if not path.stat().st_size:
            raise ValueError("the file is empty")
        packed: Path | io.BytesIO = path
        if kind[0] == ".csv":
            return _ListedSource(_parse_csv(path, zipped))
        if zipped or kind[0] != ".parquet":
            with _whole(path, zipped) as file:
                content = file.read()
            if not content or content.isspace():
                raise ValueError("the file is empty")
            if kind[0] == ".json":
                return _ListedSource(_parse_json(content))
            packed = io.BytesIO(content)
    except READ_ERRORS as error:
        reason = NESTED if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: cannot be read: {reason}") from error
    return _ParquetSource(path, packed)


def read_saved(folder: Path, split: str) -> Numbered:
    """The rows of a folder that `save_to_disk` wrote, of its `split` where it has several; also of the one such folder
    within `folder`, as Axolotl prepares it. A set that says of no split that it is its own is read whole for any.

    Raises:
        ValueError: there is none, or several; no such split.
    """
    import datasets

    marks = ("dataset_dict.json", "state.json")

    def is_saved(place: Path) -> bool:
        return any((place / mark).is_file() for mark in marks)

    inner = [folder] if is_saved(folder) else sorted(place for place in folder.iterdir() if is_saved(place))
    if len(inner) != 1:
        names = ", ".join(place.name for place in inner)
        what = f"several datasets ({names}): name one of them" if inner else "no dataset that save_to_disk wrote"
        raise ValueError(f"{folder}: the folder holds {what}")
    try:
        with reading_arrow(inner[0]):
            data = datasets.load_from_disk(str(inner[0]))
    except (LookupError, TypeError, AttributeError) as error:  # of `datasets`, for a JSON file of other content
        raise ValueError(
            f"{inner[0]}: cannot be read: its JSON files are not those of save_to_disk ({error!r})"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{folder}: it has no split {split!r} but {', '.join(data)}: set task.train.split")
        data = data[split]
    elif split != SourceConfig.split and ("[" in split or str(data.split or split) != split):
        what = f"is the split {str(data.split)!r}" if data.split else "has no splits"
        raise ValueError(f"{folder}: it {what}, not {split!r}: set its split to {SourceConfig.split} to read it whole")
    with reading_arrow(inner[0]):
        return list(enumerate(plain_rows(data.with_format("arrow")[:]), start=1))


def read_field(path: Path, name: str, what: str) -> list[str]:
    """The text field `name` of every row of a file.

    Raises:
        ValueError: as `read_file`, and for a row without that text; `what` says what the file is for.
    """
    found = []
    for number, row in read_file(path):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{path}, row {number}: {what} needs a text {name!r}; the row has {', '.join(row)}")
        found.append(row[name])
    return found


class NotUTF8(ValueError):
    """Bytes that are no text in UTF-8."""


def _text(content: bytes, first_line: int = 1) -> str:
    """The content, which begins on line `first_line`, as text.

    Raises:
        ValueError: it is not UTF-8; names what it may be.
    """
    _refuse_wide(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        raise NotUTF8(
            f"line {line} is not UTF-8 (byte 0x{content[error.start]:02x}; it may be Windows-1252): save it as UTF-8"
        ) from error


def _refuse_wide(content: bytes) -> None:
    """ValueError for a text that begins as UTF-16 or UTF-32 does, with a byte order mark or without."""
    head = content[:4]
    zeros = head.count(0)
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or (zeros == 3 and len(head) == 4):
        raise ValueError("it is UTF-32: save it as UTF-8")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 0 < zeros < len(head):
        raise ValueError("it is UTF-16: save it as UTF-8")


def _json(text: str) -> Any:
    """JSON, strictly: no key twice in an object, no NaN or infinity, no half of a surrogate pair."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r} occurs twice in one object")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name[:40]} is no number that can be used; write null, or leave the row out")

    def number(literal: str) -> float:
        return found if math.isfinite(found := float(literal)) else refuse(literal)

    found = json.loads(text, object_pairs_hook=once, parse_constant=refuse, parse_float=number)
    if "\\u" in text:
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            lone = error.object[error.start]
            raise ValueError(f"\\u{ord(lone):04x} is half of a character (a lone surrogate): mend the text") from error
    return found


def _parse_json(content: bytes) -> Numbered:
    """A list of objects, or one object keyed by id, whose rows get their key as `id`."""
    data = _json(_text(content))
    if isinstance(data, dict):
        data = [{"id": key, **_object(row, number)} for number, (key, row) in enumerate(data.items(), start=1)]
    if not isinstance(data, list):
        raise ValueError(f"a list of objects or an object keyed by id is needed, not {type(data).__name__}")
    return [(number, _object(row, number)) for number, row in enumerate(data, start=1)]


def _parse_csv(path: Path, zipped: bool) -> Numbered:
    with _whole(path, zipped) as file:
        _refuse_wide(file.peek(4))
        try:
            return _csv_rows(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        except UnicodeDecodeError:  # of a chunk: which line is it?
            with _whole(path, zipped) as again:
                for number, line in enumerate(again, start=1):
                    _text(line, number)
            raise


def _csv_rows(file: io.TextIOWrapper) -> Numbered:
    def lines() -> Iterator[str]:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE)
            if len(line) == LONGEST_LINE:
                raise ValueError(f"line {number} is longer than {LONGEST_LINE >> 20} MiB, which no row is")
            if not line:
                return
            if number == 1:
                _refuse_separator(line)
            yield line

    csv.field_size_limit(LONGEST_LINE)
    reader = csv.DictReader(lines(), strict=True)
    numbered, start = [], 1
    try:
        header = reader.fieldnames or []
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise ValueError(f"the header names {twice[0]!r} twice")
        start = reader.line_num + 1
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise ValueError(f"row {number}: more values than the header has names ({', '.join(header)})")
            numbered.append((number, {name: value for name, value in row.items() if value is not None}))
            start = reader.line_num + 1
    except csv.Error as error:
        remedy = "close each quote, and double those within a value"
        raise ValueError(f"the row that begins on line {start}: {error}: {remedy}") from error
    if not numbered and not "".join(header).strip():
        raise ValueError("the file is empty")
    return numbered


def _refuse_separator(line: str) -> None:
    """ValueError for the first line of a CSV that has one column, in which another separator than a comma stands."""
    names = next(csv.reader([line]), [])
    separator = next((one for one in ";\t|" if len(names) == 1 and one in names[0]), None)
    if separator is not None:
        raise ValueError(
            f"its one column is {line.strip()!r}: is it separated by {separator!r}? Values are separated by commas"
        )


EXACT = 2.0**53  # floats below it hold every whole number


def plain_rows(table: pa.Table, whole: Iterable[str] | None = None) -> list[dict[str, Any]]:
    """The rows of an Arrow table.

    NaN, which data frames write for a gap, becomes null; whole numbers that a gap has made floats become whole again.

    Args:
        whole: the columns of such whole numbers, where the table is a part of a larger one; None: they are found.
    """
    import pyarrow as pa

    known = set(_whole_columns(table) if whole is None else whole)
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column, _, _ = _gaps(table[field.name])
            table = table.set_column(place, field.name, column.cast(pa.int64()) if field.name in known else column)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def frame_rows(frame: Any) -> list[dict[str, Any]]:
    """The rows of a pandas DataFrame, in the way of `plain_rows`, whatever the types within a column.

    Raises:
        ValueError: a column is there twice.
    """
    if twice := [name for name, count in Counter(frame.columns).items() if count > 1]:
        raise ValueError(f"the column {twice[0]!r} is there twice")
    columns = {}
    for name in frame.columns:
        gaps = frame[name].isna().tolist()
        values = [None if gap else plain(value) for value, gap in zip(frame[name].tolist(), gaps, strict=True)]
        there = [value for value in values if value is not None]
        if any(gaps) and all(isinstance(value, float) and value.is_integer() and abs(value) < EXACT for value in there):
            values = [None if value is None else int(value) for value in values]
        columns[name] = values
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def plain(value: Any) -> Any:
    """Lists and numbers of Python for those of numpy, at any depth."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in memory as one of a file: NaN is null, and see `plain`."""
    found: dict[str, Any] = plain(row)
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in found.items()}


def _whole_columns(table: pa.Table) -> list[str]:
    """The columns of floats that hold whole numbers which gaps have made so."""
    import pyarrow as pa

    floating = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    found = {name: _gaps(table[name]) for name in floating}
    return [name for name, (column, gaps, whole) in found.items() if gaps and whole and column.null_count < len(column)]


def _gaps(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, bool, bool]:
    """A column of floats with null for NaN, whether it has nulls, and whether all that is there is whole."""
    import pyarrow.compute as pc

    column = pc.if_else(pc.is_nan(column), None, column)
    there = column.drop_null()
    whole = pc.all(pc.and_(pc.less(pc.abs(there), EXACT), pc.equal(there, pc.floor(there)))).as_py()
    return column, len(there) < len(column), whole is not False


def _object(row: Any, number: int, where: str = "") -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}row {number}: an object with named fields is needed, not {type(row).__name__}")
    return row


def _hub_name(source: SourceConfig) -> str:
    return f"{source.hub}{f'/{source.subset}' if source.subset else ''}[{source.split}]"


def _load_hub(source: SourceConfig) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.hub, name=source.subset, split=source.split, revision=source.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:  # OSError: no connection, no such file
        raise ValueError(
            f"the dataset {_hub_name(source)} is neither in the cache {datasets.config.HF_DATASETS_CACHE} "
            f"nor reachable on the hub ({type(error).__name__}: {error}). Fetch it with "
            f"datasets.load_dataset({source.hub!r}, {source.subset!r}) where there is a network, or give a "
            "file: task.train.path, task.eval.path"
        ) from error
    except ValueError as error:  # an unknown subset or split; the library's message lists the valid ones
        raise ValueError(f"{_hub_name(source)}: {error}") from error


def _id_set(path: str) -> set[str]:
    file = Path(path).expanduser()
    try:
        with _whole(file) as content:
            data = _json(_text(content.read()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON list of ids or an object keyed by id: {error}") from error
    if not isinstance(data, list | dict) or not data:
        raise ValueError(f"{path}: a JSON list of ids or an object keyed by id is needed, with at least one id")
    return {str(key) for key in data}


def _keep_ids(found: Source, places: Places, path: str, name: str) -> np.ndarray:
    wanted = _id_set(path)
    ids = _ids(found, places)
    missing = wanted - set(ids)
    if missing:
        raise ValueError(f"{name}: {len(missing)} of {len(wanted)} ids of {path} are not in it: {first_few(missing)}")
    return np.asarray(places)[[one in wanted for one in ids]]


def _drop_ids(found: Source, places: Places, path: str, name: str) -> np.ndarray:
    unwanted = _id_set(path)
    ids = _ids(found, places)
    missing = unwanted - set(ids)
    if missing and len(places) < len(found.numbers):  # `ids` may have left them out
        missing -= set(_ids(found, range(len(found.numbers))))
    if missing:
        raise ValueError(f"{name}: {len(missing)} of {len(unwanted)} ids of {path} are not in it: {first_few(missing)}")
    kept = np.asarray(places)[[one not in unwanted for one in ids]]
    if not len(kept):
        raise ValueError(f"{name}: leaving out the ids of {path} leaves no row")
    return kept


def _ids(found: Source, places: Places) -> list[str]:
    numbers = _at(found.numbers, places)
    return [row_id(row, int(number)) for row, number in zip(found.at(places), numbers, strict=True)]


def refuse_repeated(source: str, hashes: Hashes, again: Callable[[], Iterable[str]]) -> None:
    """Refuse ids that several rows have.

    Args:
        hashes: of all ids.
        again: gives all ids once more; it is called only where hashes agree.

    Raises:
        ValueError: naming them.
    """
    if suspects := hashes.repeated():
        counts = Counter(name for name in again() if hash(name) in suspects)
        if doubled := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"{source}: {len(doubled)} ids occur more than once: {first_few(doubled)}")


def first_few(values: Iterable[str], count: int = 5) -> str:
    """A few of the values, sorted, for a message."""
    ordered = sorted(values)
    return ", ".join(repr(value) for value in ordered[:count]) + (", ..." if len(ordered) > count else "")
