"""What a scored or masked dataset says of itself: in its description, and in a column, which files and the hub keep.

`datasets` keeps a description in memory and in `save_to_disk`, and drops it, like all metadata of a schema but the
columns' types, from a Parquet file, from what `push_to_hub` writes and when it is loaded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xtf.config.identity import plain
from xtf.data.ragged import check_dataset
from xtf.runtime.models import named_tokenizer

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

KEY = b"xtf"  # of an Arrow schema's metadata
COLUMN = "provenance"
SHARED = 1000  # rows that share the memory of one chunk of the column


def recorded(table: pa.Table, said: Mapping[str, Any]) -> datasets.Dataset:
    """The table as a dataset that says `said` of itself, in its description and in a last column, string.

    The column's rows share a few kB of memory, however many there are, and are one entry of a dictionary in a Parquet
    file.
    """
    import datasets
    import pyarrow as pa

    text = json.dumps({"xtf": plain(said)}, ensure_ascii=False)
    chunk = pa.array([text] * min(SHARED, table.num_rows), pa.string())
    whole, rest = divmod(table.num_rows, SHARED)
    column = pa.chunked_array([chunk] * whole + [chunk.slice(0, rest)], pa.string())
    return datasets.Dataset(table.append_column(COLUMN, column), info=datasets.DatasetInfo(description=text))


def in_schema(said: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The same as metadata of an Arrow schema, which a Parquet file keeps."""
    return {KEY: json.dumps(plain(said), ensure_ascii=False).encode()}


def provenance(rows: datasets.Dataset | pa.Table) -> dict[str, Any]:
    """What scored or masked rows say of themselves: `model`, `tokenizer` (a digest of its ids), `template` (a digest of
    the chat template), `scorer`, `versions`; once masked also `threshold`, `cuts`, `dropped_share`, `degenerate`,
    `verdict` and `rule`.

    It is read from the column `provenance`, which `to_parquet`, `to_json`, `to_pandas` and `push_to_hub` keep and what
    loads them gives back; where that was removed from the description, which filter, shuffle, map and `save_to_disk`
    keep. Of datasets that were concatenated: what all of their rows say. A run's mask.parquet has its model, scorer,
    method and threshold in its schema, so the table that pyarrow reads of it says them. {} where nothing is recorded.
    """
    found = records(rows)
    same = {key for key in found[0] if all(one.get(key) == found[0][key] for one in found)} if found else set()
    return {key: value for key, value in found[0].items() if key in same} if found else {}


def records(rows: datasets.Dataset | pa.Table) -> list[dict[str, Any]]:
    """What was recorded, each once; {} among them where some rows say nothing. [] where nothing is recorded.

    Raises:
        ValueError: the rows are no table.
    """
    import pyarrow as pa

    if not isinstance(rows, pa.Table):
        check_dataset(rows)
    if COLUMN in rows.column_names:
        if isinstance(rows, pa.Table):
            parts = rows.select([COLUMN]).to_batches()
        else:
            parts = rows.select_columns(COLUMN).with_format("arrow").iter(SHARED)
        values = {value: None for part in parts for value in part[COLUMN].unique().to_pylist()}
        found = [_read(value) for value in values]
        return found if any(found) else []  # a column of somebody else's
    if isinstance(rows, pa.Table):
        said = (rows.schema.metadata or {}).get(KEY)
        return [] if said is None else [json.loads(said)]
    found = [_read(line) for line in (rows.info.description or "").split("\n\n")]
    return found if all(found) else []  # a description of somebody else's


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What tells tokenizers apart: a digest of the ids that they give to tokens."""
    entries = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def check_tokenizer(rows: datasets.Dataset | pa.Table, tokenizer: PreTrainedTokenizerBase | None) -> bool:
    """Whether all of the rows say that `tokenizer` is the one that they were scored with.

    Raises:
        ValueError: they say another one, or several.
    """
    said = records(rows)
    found = {str(one["tokenizer"]) for one in said if "tokenizer" in one}
    if len(found) > 1:
        raise ValueError(
            f"the rows were scored with {len(found)} tokenizers ({', '.join(sorted(found))}): take each set apart"
        )
    if tokenizer is not None and found and found != {own := tokenizer_digest(tokenizer)}:
        raise ValueError(
            f"the rows were scored with another tokenizer ({found.pop()}) than {tokenizer.name_or_path or 'this one'} "
            f"({own}): give the one of the scores"
        )
    return bool(said) and all("tokenizer" in one for one in said)


def tokenizer_of(rows: datasets.Dataset | pa.Table, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """What the rows are read with: the tokenizer that is `given`, else, loaded, the one that they say scored them.

    Raises:
        ValueError: the rows say another one, several, or none that can be loaded.
    """
    if given is None:
        said = records(rows)
        names = [name for one in said if (name := one.get("tokenizer_name"))]
        if not check_tokenizer(rows, None) or not names:
            raise ValueError("the rows do not say from where their tokenizer can be loaded: give it, as `tokenizer`")
        what = f"the tokenizer that these rows were scored with, {names[0]},"
        given = named_tokenizer(names[0], what=what, remedy=": give it, as `tokenizer`")
    check_tokenizer(rows, given)
    return given


def _read(text: Any) -> dict[str, Any]:
    try:
        said = json.loads(text)["xtf"]
    except (ValueError, KeyError, TypeError):
        return {}
    return said if isinstance(said, dict) else {}
