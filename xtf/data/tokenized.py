"""Rows that another tool has tokenised and masked: `input_ids` and `labels` -> the token ids that are scored.

What Axolotl prepares, LLaMA-Factory stores at its `tokenized_path` and TRL hands to its trainer. Their labels say which
tokens are trained; prompt and response are read from them, no chat template is:

- the response starts at the first label and ends with the last one; what stands behind it is left out, for no label
  sees it. Tokens in between without a label (another user turn, say) are read and never judged: their weight is 0;
- padding goes, and a row of several packed documents becomes as many examples;
- an end of turn (the template's, or EOS) as the last label, or behind it a line's end, is the end token that
  `threshold.end` is about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from xtf.data.batches import Hashes
from xtf.data.encode import Encoded, EncodeReport
from xtf.data.ragged import IGNORED
from xtf.data.rows import TRAINED, Rows, ids_of, refuse_repeated, row_id
from xtf.data.templates import turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_tokenized(
    tokenizer: PreTrainedTokenizerBase, rows: Rows, max_length: int
) -> tuple[list[Encoded], EncodeReport]:
    """Rows for which `xtf.data.rows.is_tokenized` holds, as `xtf.data.encode.encode` gives those of texts;
    rows longer than `max_length` tokens are cut.

    Raises:
        ValueError: naming rows whose lists are none of whole numbers, differ in length or hold ids that the tokenizer
            has not, or whose labels are neither -100 nor the id at their place; no row has a label.
    """
    vocabulary, ends = len(tokenizer), {turn_end(tokenizer), tokenizer.eos_token_id}
    found: list[Encoded] = []
    truncated, no_room, unlabelled, bad, names = [], [], [], [], Hashes()
    for row, number in zip(rows.rows, rows.numbers, strict=True):
        name = row_id(row, number)
        names.extend([hash(name)])
        try:
            documents = list(_documents(row, vocabulary))
        except ValueError as error:
            bad.append(f"  row {number}: {error}")
            continue
        if not documents:  # no token, or padding alone
            unlabelled.append(name)
        for place, (ids, trained) in enumerate(documents, start=1):
            own = name if len(documents) == 1 else f"{name}#{place}"
            places = np.flatnonzero(trained[1:]) + 1  # nothing precedes the first token, so no label there is learnt
            if not len(places):
                unlabelled.append(own)
                continue
            prompt, last = int(places[0]), int(places[-1]) + 1
            if prompt >= max_length:
                no_room.append(own)
                continue
            if last > max_length:
                truncated.append(own)
            kept = trained[prompt : min(last, max_length)]
            end = next((k for k in (1, 2) if last <= max_length and last - k >= prompt and ids[last - k] in ends), 0)
            weights = None if kept.all() else tuple(kept.astype(float).tolist())
            found.append(Encoded(own, ids[: min(last, max_length)].tolist(), prompt, end, weights, name))
    if bad:
        more = f"\n  ... and {len(bad) - 10} more" if len(bad) > 10 else ""
        listing = "\n".join(bad[:10])
        raise ValueError(f"{rows.source}: {len(bad)} of {len(rows)} rows cannot be used:\n{listing}{more}")
    refuse_repeated(rows.source, names, lambda: map(row_id, rows.rows, rows.numbers))
    if not found:
        raise ValueError(f"{rows.source}: no row has a label within the first {max_length} tokens")
    tokens = sum(len(row.input_ids) for row in found)
    return found, EncodeReport(
        rows=len(found) + len(no_room) + len(unlabelled),
        truncated=tuple(truncated),
        no_room=tuple(no_room),
        tokens=tokens,
        response_tokens=tokens - sum(row.prompt_length for row in found),
        unlabelled=tuple(unlabelled),
    )


def _documents(row: Mapping[str, Any], vocabulary: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The documents of a row, without padding: ids int64 (L,), and which of them are trained, bool (L,)."""
    ids = ids_of(row, "input_ids")

    def beside(name: str, least: int = 0, switches: bool = False) -> np.ndarray:
        values = ids_of(row, name, least=least, switches=switches)
        if len(values) != len(ids):
            raise ValueError(f"{name} has {len(values)} entries, input_ids has {len(ids)}")
        return values

    if len(ids) and ids.max() >= vocabulary:
        raise ValueError(
            f"the id {ids.max()} is none of this tokenizer's {vocabulary}: the rows were tokenised with another one"
        )
    if row.get("labels") is not None:
        labels = beside("labels", IGNORED)
        trained = labels != IGNORED
        if (labels[trained] != ids[trained]).any():
            raise ValueError("a label is neither -100 nor the id at its place (labels must not be shifted)")
    else:
        masks = [beside(name, switches=True) for name in TRAINED if row.get(name) is not None]
        if not masks:
            raise ValueError(f"it does not say what is trained: one of labels, {', '.join(TRAINED)} is needed")
        trained = np.logical_and.reduce([mask != 0 for mask in masks])
    attended = beside("attention_mask", switches=True) if row.get("attention_mask") is not None else np.ones_like(ids)
    there = attended != 0
    for part in np.split(np.flatnonzero(there), np.flatnonzero(_starts(row, ids, attended)[there])[1:]):
        if len(part):
            yield ids[part], trained[part]


def _starts(row: Mapping[str, Any], ids: np.ndarray, attended: np.ndarray) -> np.ndarray:
    """Where documents start in a packed row, bool (L,): as `seq_lengths` (TRL), `position_ids`, or an attention mask
    that numbers them (LLaMA-Factory) say."""
    starts = np.zeros(len(ids), bool)
    starts[:1] = True
    if row.get("seq_lengths") is not None:
        lengths = ids_of(row, "seq_lengths", least=1)
        if lengths.sum() != len(ids):
            raise ValueError(f"seq_lengths add up to {lengths.sum()}, input_ids has {len(ids)}")
        starts[np.cumsum(lengths)[:-1]] = True
    elif row.get("position_ids") is not None:
        positions = ids_of(row, "position_ids")
        if len(positions) != len(ids):
            raise ValueError(f"position_ids has {len(positions)} entries, input_ids has {len(ids)}")
        starts |= positions == 0
    starts[1:] |= attended[1:] != attended[:-1]
    return starts
