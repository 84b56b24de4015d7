"""Scores by another model: a pass over its own tokens, carried over to those of the model that is trained.

Both tokenizers split the same responses, so a score is carried by the characters that a token covers. Log p and the
attention that a token receives add up over tokens: each is split evenly over the token's characters, and a token of the
other tokenizer has the sum of its characters', so that the sum over a response stays what it was. TR is no amount but a
nearness: a token has the mean of its characters'. Where the bytes of one character are several tokens, they share it.
The appended end of a response takes the score of the other end. Worked examples: `tests/scoring/test_carried.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xtf.config.identity import digest
from xtf.config.schema import Scale, ScorerConfig
from xtf.data.ragged import Responses, as_lists, as_table, places
from xtf.runtime.artifacts import intact, locked, read_json, sha256, versions, write_atomic, write_json
from xtf.runtime.progress import say, stopwatch
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.store import pass_batches, rows_digest, shards_intact

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.data.examples import Example

CARRIED = ("ri", "logp", "tr")  # what a pass stores and can be carried; kn follows from logp


# --- one response -------------------------------------------------------------------------------------------


def carry(values: np.ndarray, of: np.ndarray, to: np.ndarray, *, adds_up: bool) -> np.ndarray:
    """Scores of a response's tokens for the tokens of another tokenizer, float64 (M,).

    Args:
        values: (N,).
        of, to: characters [start, end) of each token, int64 (N, 2) and (M, 2), as `response_offsets` gives them.
        adds_up: split over characters and summed; else their mean.

    Raises:
        ValueError: a token covers no character, or one that none of the others covers.
    """
    if np.array_equal(of, to):
        return values.astype(np.float64)
    sizes, wanted = of[:, 1] - of[:, 0], to[:, 1] - to[:, 0]
    if (sizes < 1).any() or (wanted < 1).any():
        raise ValueError("a token covers no character")
    length = int(max(of[:, 1].max(initial=0), to[:, 1].max(initial=0)))
    at, there = places(of[:, 0], sizes), places(to[:, 0], wanted)  # characters, token by token
    covered, shared = np.bincount(at, minlength=length), np.bincount(there, minlength=length)
    if not covered[there].all():
        raise ValueError(f"character {int(there[covered[there] == 0][0])} lies in no token that was scored")
    starts = np.cumsum(wanted) - wanted
    if adds_up:
        of_characters = np.bincount(at, np.repeat(values / sizes, sizes), length) / np.maximum(shared, 1)
        return np.add.reduceat(of_characters[there], starts) if len(to) else np.zeros(0)
    of_characters = np.bincount(at, np.repeat(values.astype(np.float64), sizes), length) / np.maximum(covered, 1)
    return np.add.reduceat(of_characters[there], starts) / wanted if len(to) else np.zeros(0)


def carried_scores(
    scores: Mapping[str, np.ndarray], of: np.ndarray, to: np.ndarray, ends: tuple[int, int], ri: Scale
) -> dict[str, np.ndarray]:
    """Every column of a response's scores, (N,), for the tokens of another tokenizer, float32 (M,).

    Args:
        of, to: as for `carry`, without appended ends.
        ends: how many appended ends (0 or 1) each of the two has behind that.
        ri: whether RI is the attention or its logarithm, in which nothing adds up.

    Raises:
        ValueError: see `carry`; an end to be scored where the other response was cut off.
    """
    if ends[1] > ends[0]:
        raise ValueError("its end was cut off before it was scored")
    found = {}
    for name, values in scores.items():
        text, end = values[: len(of)], values[len(of) :]
        if name == "ri" and ri is Scale.log:
            carried = np.log(carry(np.exp(text.astype(np.float64)), of, to, adds_up=True))
        else:
            carried = carry(text.astype(np.float64), of, to, adds_up=name != "tr")
        found[name] = np.concatenate([carried, end[: ends[1]]]).astype(np.float32)
    return found


# --- a stored pass ------------------------------------------------------------------------------------------


def carried_pass(
    store: Path,
    rows: Sequence[Encoded],
    *,
    scored: Path,
    scored_rows: Sequence[Encoded],
    examples: Callable[[], Iterable[Example]],
    tokenizer: PreTrainedTokenizerBase,
    scored_tokenizer: PreTrainedTokenizerBase,
    columns: Set[str],
    scorer: ScorerConfig,
    shard_examples: int,
) -> Path:
    """The folder of `scored`, a complete pass over `scored_rows`, carried over to `rows`; made unless it is there.

    It is a pass like others. If both tokenizers give all rows the same ids, it is `scored` itself. What else the
    scorer's own runs have added to `scored` is left out.

    Args:
        columns: that are read of it.
        examples: gives the examples of both kinds of rows, in their order.

    Raises:
        ValueError: an attribute without a rule, or a row that cannot be carried over; naming it.
    """
    source = read_json(scored / "manifest.json")
    if source["identity"]["tokens"] == (tokens := rows_digest(rows)):
        return scored
    if unknown := columns - set(CARRIED):
        raise ValueError(f"scorer.model: there is no rule to carry {', '.join(sorted(unknown))} over to other tokens")
    identity = {"carried": source["identity"], "tokens": tokens, "version": 1}
    names = [name for name in source["columns"] if name in CARRIED]
    folder = store / f"{digest(identity)}-{'_'.join(names)}"
    file = folder / "manifest.json"
    if intact(file) and (found := read_json(file))["complete"] and shards_intact(folder, found):
        return folder
    import pyarrow.parquet as pq

    with locked(folder, say), stopwatch() as seconds:
        manifest: dict[str, Any] = {"complete": False, "columns": names, "identity": identity, "shards": {}}
        manifest |= {"shard_examples": shard_examples, "versions": versions()}
        carried = _carried(rows, scored, scored_rows, examples(), tokenizer, scored_tokenizer, scorer.ri.scale)
        for start in range(0, len(rows), shard_examples):
            part = rows[start : start + shard_examples]
            table = _table(part, [next(carried) for _ in part])
            name = f"{start // shard_examples:05d}.parquet"
            write_atomic(folder / name, functools.partial(pq.write_table, table))
            manifest["shards"][name] = {"sha256": sha256(folder / name), "examples": len(part)}
        manifest |= {"complete": True, "tokens": source["tokens"], "seconds": source["seconds"] + seconds()}
        write_json(file, manifest, sealed=True)
    return folder


def _table(rows: Sequence[Encoded], scores: Sequence[Mapping[str, np.ndarray]]) -> pa.Table:
    table = as_table(rows)
    responses = np.array([len(row.input_ids) - row.prompt_length for row in rows], np.int64)
    for name in (*ATTRIBUTES, "logp"):
        if name in scores[0]:
            table = table.append_column(name, as_lists(np.concatenate([one[name] for one in scores]), responses))
    return table


def _carried(
    rows: Sequence[Encoded],
    scored: Path,
    scored_rows: Sequence[Encoded],
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    scored_tokenizer: PreTrainedTokenizerBase,
    ri: Scale,
) -> Iterator[dict[str, np.ndarray]]:
    """The scores of each row, in order."""
    others, given = zip(scored_rows, _scores(scored), strict=True), iter(examples)
    for row in rows:
        example = next(one for one in given if one.example_id == row.example_id)
        other, scores = next((pair for pair in others if pair[0].example_id == row.example_id), (None, {}))
        if other is None:
            raise ValueError(
                f"scorer.model: example {row.example_id} has no room in the scorer's model.max_length; raise it"
            )
        try:
            of, to = (_spans(*each, example) for each in ((scored_tokenizer, other), (tokenizer, row)))
            found = carried_scores(scores, of, to, (other.end_tokens, row.end_tokens), ri)
        except ValueError as error:
            raise ValueError(
                f"scorer.model: the scores of example {row.example_id} cannot be carried over: {error}"
            ) from error
        if "logp" in found:
            found["kn"] = -np.expm1(found["logp"])
        yield found


def _scores(folder: Path) -> Iterator[dict[str, np.ndarray]]:
    """The columns of `CARRIED` of each row of a pass."""
    for batch in pass_batches(folder):
        names = [name for name in CARRIED if name in batch.schema.names]
        found = Responses.from_table(batch, names)
        parts = {name: np.split(found.columns[name], found.offsets[1:-1]) for name in names}
        for place in range(batch.num_rows):
            yield {name: parts[name][place] for name in names}


def _spans(tokenizer: PreTrainedTokenizerBase, row: Encoded, example: Example) -> np.ndarray:
    """Characters of each token of a row's response, int64 (N, 2), its appended end left out."""
    from xtf.data.encode import response_offsets

    (found,) = response_offsets(tokenizer, [example.response])
    tokens = len(row.input_ids) - row.prompt_length - row.end_tokens
    if example.answer is not None or (row.end_tokens and len(found) != tokens) or len(found) < tokens:
        raise ValueError(
            "its response is written by the chat template (tool calls, reasoning, a thought of its own), so its "
            "tokens cover no characters of it"
        )
    return found[:tokens]
