"""Response tokens of a scored or masked table as flat arrays, and token ids as readable text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

ATTRIBUTES = ("ri", "kn", "tr")
IGNORED = -100


@dataclass(frozen=True)
class ResponseTokens:
    """All response tokens end to end; n of them in e examples.

    ids int64 [n]; kept bool [n] (the token carries loss); offsets int64 [e + 1], example i is offsets[i]:offsets[i + 1];
    scores: ri, kn, tr, logp as far as the table has them, float32 [n]; dropped: bool [n] per attribute that may drop.
    """

    ids: np.ndarray
    kept: np.ndarray
    offsets: np.ndarray
    scores: Mapping[str, np.ndarray]
    dropped: Mapping[str, np.ndarray]


def response_tokens(masked: pa.Table) -> ResponseTokens:
    """Flattens a masked table (the columns of mask.parquet); ValueError for one without labels."""
    if "labels" not in masked.column_names:
        raise ValueError(f"a masked table is needed (xtf.mask adds drop_* and labels), not one with {masked.column_names}")
    ids, lengths = _flat(masked, "input_ids")
    prompts = masked["prompt_length"].to_numpy().astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(ids)) - np.repeat(starts, lengths)
    response = place >= np.repeat(prompts, lengths)
    labels, _ = _flat(masked, "labels")
    return ResponseTokens(
        ids[response].astype(np.int64),
        (labels != IGNORED)[response],
        np.concatenate([[0], np.cumsum(lengths - prompts)]),
        {name: _flat(masked, name)[0] for name in (*ATTRIBUTES, "logp") if name in masked.column_names},
        {name: _flat(masked, f"drop_{name}")[0] for name in ATTRIBUTES if f"drop_{name}" in masked.column_names},
    )


def _flat(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the length of each list."""
    lists = table[column].combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False), lists.value_lengths().to_numpy().astype(np.int64)


def visible(text: str) -> str:
    """Text with its blanks and control characters shown, for tables and one-line lists."""
    marks = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) or "(empty)"
