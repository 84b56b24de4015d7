"""Rows from a file or the hub, with their numbers and a hash of what they hold."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.schema import SourceConfig

ID_FIELDS = ("id", "example_id", "task_id", "unique_id", "pubid")


# -- rows ----------------------------------------------------------------------------------------------------


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


def row_id(row: Mapping[str, Any], number: int) -> str:
    """The row's own id (the first of `ID_FIELDS` that holds a string or an integer), else its row number."""
    for name in ID_FIELDS:
        if isinstance(row.get(name), str | int):
            return str(row[name])
    return str(number)


def load_rows(source: SourceConfig) -> Rows:
    """Reads a JSONL, JSON, CSV or Parquet file (optionally .gz), or a split of a dataset on the hub.

    ValueError for a source that is missing, unreadable, empty or emptied by its filters, and for ids that it
    lacks.
    """
    if source.path:
        name, numbered = source.path, _read_file(Path(source.path).expanduser())
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


Numbered = list[tuple[int, dict[str, Any]]]


def _read_file(path: Path) -> Numbered:
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
    except (
        OSError,
        EOFError,
        ValueError,
        csv.Error,
    ) as error:  # ValueError: JSON, Unicode and Arrow errors too
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _parse_jsonl(content: bytes) -> Numbered:
    numbered = []
    for number, line in enumerate(io.StringIO(content.decode("utf-8-sig"), newline=None), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"row {number}: {error}") from error
            numbered.append((number, _object(row, number)))
    return numbered


def _parse_json(content: bytes) -> Numbered:
    """A list of objects, or one object keyed by id, whose rows get their key as `id`."""
    data = json.loads(content.decode("utf-8-sig"))
    if isinstance(data, dict):
        data = [{"id": key, **_object(row, number)} for number, (key, row) in enumerate(data.items(), start=1)]
    if not isinstance(data, list):
        raise ValueError(f"a list of objects or an object keyed by id is needed, not {type(data).__name__}")
    return [(number, _object(row, number)) for number, row in enumerate(data, start=1)]


def _parse_csv(content: bytes) -> Numbered:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    numbered = []
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise ValueError(f"row {number}: more values than the header has names")
        numbered.append((number, {name: value for name, value in row.items() if value is not None}))
    return numbered


def _parse_parquet(content: bytes) -> Numbered:
    import pyarrow.parquet

    return list(enumerate(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(), start=1))


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
        data = json.loads(file.read_text(encoding="utf-8"))
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
        raise ValueError(f"{name}: {len(missing)} of {len(wanted)} ids of {path} are not in it: {_first(missing)}")
    return kept


def _drop_ids(numbered: Numbered, path: str, name: str) -> Numbered:
    unwanted = _id_set(path)
    kept = [(number, row) for number, row in numbered if row_id(row, number) not in unwanted]
    if len(kept) == len(numbered):
        raise ValueError(f"{name}: none of the {len(unwanted)} ids of {path} is in it: {_first(unwanted)}")
    if not kept:
        raise ValueError(f"{name}: leaving out the ids of {path} leaves no row")
    return kept


def _first(values: Iterable[str], count: int = 5) -> str:
    ordered = sorted(values)
    return ", ".join(repr(value) for value in ordered[:count]) + (", ..." if len(ordered) > count else "")
