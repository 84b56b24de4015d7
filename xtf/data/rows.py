"""Rows from a file, the hub or memory, with their numbers and a hash of what they hold."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.schema import SourceConfig

if TYPE_CHECKING:
    import pyarrow as pa

ID_FIELDS = ("id", "example_id", "task_id", "unique_id", "pubid")
TRAINED = ("completion_mask", "assistant_masks")  # TRL's in the place of labels; both count


@dataclass(frozen=True)
class Rows:
    """The rows of one source after `ids`, `exclude_ids` and `limit`.

    `numbers[i]` is the 1-based place of `rows[i]` in the source (the line, for JSONL); `sha256` is over the
    rows kept, as canonical JSON, so that it does not depend on the file's format and changes with every
    filter.
    """

    rows: list[dict[str, Any]]
    numbers: list[int]
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def is_tokenized(row: Mapping[str, Any]) -> bool:
    """Whether a row holds token ids and says which of them are trained (`xtf.data.tokenized`)."""
    return "input_ids" in row and any(name in row for name in ("labels", *TRAINED))


def row_id(row: Mapping[str, Any], number: int) -> str:
    """The row's own id (the first of `ID_FIELDS` that holds a string or an integer), else its row number."""
    for name in ID_FIELDS:
        if isinstance(row.get(name), str | int):
            return str(row[name])
    return str(number)


def load_rows(source: SourceConfig) -> Rows:
    """Reads a JSONL, JSON, CSV or Parquet file (optionally .gz), a folder that `datasets` saved (`save_to_disk`), or a
    split of a dataset on the hub.

    Raises:
        ValueError: the source is missing, unreadable, empty or emptied by its filters, or lacks ids that are named.
    """
    if source.path:
        path = Path(source.path).expanduser()
        name, numbered = source.path, read_saved(path, source.split) if path.is_dir() else read_file(path)
    elif source.hub:
        name, numbered = _hub_name(source), _read_hub(source)
    else:
        raise ValueError("no data given: set task.train.path (or .hub), and task.eval.path (or .hub) likewise")
    if not numbered:
        raise ValueError(f"{name}: no rows in it")
    if source.ids:
        numbered = _keep_ids(numbered, source.ids, name)
    if source.exclude_ids:
        numbered = _drop_ids(numbered, source.exclude_ids, name)
    if source.limit is not None:
        if source.limit < 1:
            raise ValueError(f"limit must be at least 1, not {source.limit}")
        numbered = numbered[: source.limit]
    digest = hashlib.sha256()
    for _, row in numbered:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return Rows([row for _, row in numbered], [number for number, _ in numbered], name, digest.hexdigest())


Numbered = list[tuple[int, dict[str, Any]]]  # each row with its 1-based place: the line of a JSONL file


def read_file(path: Path) -> Numbered:
    """The rows of a JSONL, JSON, CSV or Parquet file, optionally .gz: the one reader of every file that holds rows.

    Blank lines are passed over; a byte order mark and any line ends are fine, and U+2028 within a text is text.

    Raises:
        ValueError: with file and row, for a file that is missing, empty, not UTF-8 or not what its name says; for a row
            with a key twice, with NaN or infinity, or with text that is no Unicode.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ValueError(f"data file not found: {path} (looked for {path.absolute()})")
    suffixes = path.suffixes
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    readers = {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv, ".parquet": _parse_parquet}
    if kind[0] not in readers:
        raise ValueError(f"{path}: the name must end in {', '.join(readers)}, optionally followed by .gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if zipped else content
        if not content.strip():
            raise ValueError("the file is empty")
        return readers[kind[0]](content)
    except (OSError, EOFError, ValueError, RecursionError, csv.Error) as error:  # ValueError: JSON and Arrow errors too
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{path}: cannot be read: {reason}") from error


def read_saved(folder: Path, split: str) -> Numbered:
    """The rows of a folder that `save_to_disk` wrote, of its `split` where it has several; also of the one such folder
    within `folder`, as Axolotl prepares it.

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
    data = datasets.load_from_disk(str(inner[0]))
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ValueError(f"{folder}: it has no split {split!r} but {', '.join(data)}: set task.train.split")
        data = data[split]
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


def _text(content: bytes) -> str:
    """The content as text.

    Raises:
        ValueError: it is not UTF-8; names what it may be.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16: save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"line {line} is not UTF-8 (byte 0x{content[error.start]:02x}; it may be Windows-1252): save it as UTF-8"
        ) from error


def _json(text: str) -> Any:
    """JSON, strictly: no key twice in an object, no NaN or infinity, no half of a surrogate pair."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"the key {twice!r} occurs twice in one object")
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number that can be used; write null, or leave the row out")

    found = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    if "\\u" in text:
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            lone = error.object[error.start]
            raise ValueError(f"\\u{ord(lone):04x} is half of a character (a lone surrogate): mend the text") from error
    return found


def _parse_jsonl(content: bytes) -> Numbered:
    numbered = []
    for number, line in enumerate(io.StringIO(_text(content), newline=None), start=1):
        if line.strip():
            try:
                row = _json(line)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            numbered.append((number, _object(row, number)))
    return numbered


def _parse_json(content: bytes) -> Numbered:
    """A list of objects, or one object keyed by id, whose rows get their key as `id`."""
    data = _json(_text(content))
    if isinstance(data, dict):
        data = [{"id": key, **_object(row, number)} for number, (key, row) in enumerate(data.items(), start=1)]
    if not isinstance(data, list):
        raise ValueError(f"a list of objects or an object keyed by id is needed, not {type(data).__name__}")
    return [(number, _object(row, number)) for number, row in enumerate(data, start=1)]


def _parse_csv(content: bytes) -> Numbered:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(_text(content), newline=""), strict=True)
    header = reader.fieldnames or []
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise ValueError(f"the header names {twice[0]!r} twice")
    separator = next((one for one in ";\t|" if len(header) == 1 and one in header[0]), None)
    if separator is not None:
        raise ValueError(
            f"its one column is {header[0]!r}: is it separated by {separator!r}? Values are separated by commas"
        )
    numbered = []
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise ValueError(f"row {number}: more values than the header has names ({', '.join(header)})")
        numbered.append((number, {name: value for name, value in row.items() if value is not None}))
    return numbered


def _parse_parquet(content: bytes) -> Numbered:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(content))
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise ValueError(f"the column {twice[0]!r} is there twice")
    return list(enumerate(plain_rows(table), start=1))


def plain_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of an Arrow table.

    NaN, which data frames write for a gap, becomes null; whole numbers that a gap has made floats become whole again.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for place, field in enumerate(table.schema):
        if not pa.types.is_floating(field.type):
            continue
        column = pc.if_else(pc.is_nan(table[field.name]), None, table[field.name])
        there = column.drop_null()
        gaps = len(there) < len(column)
        if gaps and len(there) and pc.all(pc.and_(pc.is_finite(there), pc.equal(there, pc.floor(there)))).as_py():
            column = column.cast(pa.int64())
        table = table.set_column(place, field.name, column)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def _object(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number}: an object with named fields is needed, not {type(row).__name__}")
    return row


def _hub_name(source: SourceConfig) -> str:
    return f"{source.hub}{f'/{source.subset}' if source.subset else ''}[{source.split}]"


def _read_hub(source: SourceConfig) -> Numbered:
    import datasets

    try:
        data = datasets.load_dataset(source.hub, name=source.subset, split=source.split, revision=source.revision)
    except (OSError, datasets.exceptions.DatasetsError) as error:  # OSError: no connection, no such file
        raise ValueError(
            f"the dataset {_hub_name(source)} is neither in the cache {datasets.config.HF_DATASETS_CACHE} "
            f"nor reachable on the hub ({type(error).__name__}: {error}). Fetch it with "
            f"datasets.load_dataset({source.hub!r}, {source.subset!r}) where there is a network, or give a "
            "file: task.train.path, task.eval.path"
        ) from error
    except ValueError as error:  # an unknown subset or split; the library's message lists the valid ones
        raise ValueError(f"{_hub_name(source)}: {error}") from error
    return list(enumerate((dict(row) for row in data), start=1))


def _id_set(path: str) -> set[str]:
    file = Path(path).expanduser()
    try:
        data = _json(_text(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON list of ids or an object keyed by id: {error}") from error
    if not isinstance(data, list | dict) or not data:
        raise ValueError(f"{path}: a JSON list of ids or an object keyed by id is needed, with at least one id")
    return {str(key) for key in data}


def _keep_ids(numbered: Numbered, path: str, name: str) -> Numbered:
    wanted = _id_set(path)
    kept = [(number, row) for number, row in numbered if row_id(row, number) in wanted]
    missing = wanted - {row_id(row, number) for number, row in kept}
    if missing:
        raise ValueError(f"{name}: {len(missing)} of {len(wanted)} ids of {path} are not in it: {first_few(missing)}")
    return kept


def _drop_ids(numbered: Numbered, path: str, name: str) -> Numbered:
    unwanted = _id_set(path)
    kept = [(number, row) for number, row in numbered if row_id(row, number) not in unwanted]
    if len(kept) == len(numbered):
        raise ValueError(f"{name}: none of the {len(unwanted)} ids of {path} is in it: {first_few(unwanted)}")
    if not kept:
        raise ValueError(f"{name}: leaving out the ids of {path} leaves no row")
    return kept


def first_few(values: Iterable[str], count: int = 5) -> str:
    """A few of the values, sorted, for a message."""
    ordered = sorted(values)
    return ", ".join(repr(value) for value in ordered[:count]) + (", ..." if len(ordered) > count else "")
