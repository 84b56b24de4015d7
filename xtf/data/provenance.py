"""What a scored or masked dataset says of itself, which lies in its description, beside what others wrote there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xtf.config.identity import plain

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

KEY = b"xtf"  # of an Arrow schema's metadata


def described(said: Mapping[str, Any]) -> datasets.DatasetInfo:
    """What a dataset says of itself: kept when it is filtered, shuffled, mapped or stored by `save_to_disk`."""
    import datasets

    return datasets.DatasetInfo(description=json.dumps({"xtf": plain(said)}, ensure_ascii=False))


def in_schema(said: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The same as metadata of an Arrow schema, which a Parquet file keeps."""
    return {KEY: json.dumps(plain(said), ensure_ascii=False).encode()}


def provenance(rows: datasets.Dataset | pa.Table) -> dict[str, Any]:
    """What scored or masked rows say of themselves: `model`, `tokenizer` (a digest of its ids), `template` (a digest of
    the chat template), `scorer`, `versions`; once masked also `threshold`, `cuts`, `dropped_share`, `degenerate`,
    `verdict` and `rule`.

    It lies in the dataset's description, which filter, shuffle, map and `save_to_disk` keep; a Parquet file and the hub
    do not. Of datasets that were concatenated: what all of them say. A run's mask.parquet has its model, scorer, method
    and threshold in its schema, so the table that pyarrow reads of it says them. {} where nothing is recorded.
    """
    found = records(rows)
    same = {key for key in found[0] if all(one.get(key) == found[0][key] for one in found)} if found else set()
    return {key: value for key, value in found[0].items() if key in same} if found else {}


def records(rows: datasets.Dataset | pa.Table) -> list[dict[str, Any]]:
    """What `described` recorded of each dataset that was concatenated, or `in_schema` of a table; of others nothing."""
    import pyarrow as pa

    if isinstance(rows, pa.Table):
        said = (rows.schema.metadata or {}).get(KEY)
        return [] if said is None else [json.loads(said)]
    found: list[dict[str, Any]] = []
    for line in (rows.info.description or "").split("\n\n"):
        try:
            found.append(json.loads(line)["xtf"])
        except (ValueError, KeyError, TypeError):  # a description of somebody else's
            return []
    return found
