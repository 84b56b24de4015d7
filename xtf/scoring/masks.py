"""From drop decisions to labels: the union of the attributes (eq. 1), -100 where no loss falls, and the
statistics.

Only this module writes -100. It works on Arrow buffers, one record batch (one score shard) at a time.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from xtf.config.schema import Attribute, ThresholdConfig
from xtf.scoring.thresholds import SOURCE, Scores, fit

log = logging.getLogger(__name__)

IGNORED = -100  # the label that Hugging Face losses skip
CONSTANT = 1e-5  # spread of an example's scores relative to their size, below which they say nothing
MOST = 0.99  # share of examples that must be constant for the attribute to be degenerate


@dataclass(frozen=True)
class MaskStats:
    """What a mask keeps and drops. Shares are of response tokens.

    `overlap` is keyed by the attributes that agree: "ri_kn" is dropped by both, whatever TR says.
    `degenerate` lists {"attribute", "reason"}: scores that carry no information, or a rule that drops nothing
    or more than half. `examples_without_loss` counts those whose every response token is dropped.
    """

    examples: int
    response_tokens: int
    kept_tokens: int
    kept_share: float
    dropped_share: dict[str, float]
    overlap: dict[str, float] = field(default_factory=dict)
    thresholds: dict[str, dict[str, Any]] = field(default_factory=dict)
    degenerate: list[dict[str, str]] = field(default_factory=list)
    examples_without_loss: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Mask:
    """`table`: the scored table with `drop_ri`, `drop_kn`, `drop_tr` list<bool>, as long as the response and for
    the attributes in use, and `labels` list<int32>, as long as input_ids.
    """

    table: pa.Table
    stats: MaskStats


def build_mask(scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[Attribute]) -> Mask:
    """Drops the response tokens that lack any of `attributes`; without attributes all are kept.

    ValueError: a missing column, a score list that is not as long as its response, a score that is not a
    finite number, a threshold out of range, a mask that keeps nothing.
    """
    attributes = [attribute for attribute in Attribute if attribute in attributes]
    batches = _batches(scored)
    blocks = [Scores(batch.responses, {SOURCE[a]: batch.scores(SOURCE[a]) for a in attributes}) for batch in batches]
    cuts = fit(blocks, threshold, attributes)
    tally, masked = _Tally(), []
    for batch, block in zip(batches, blocks, strict=True):
        drops = {attribute.value: cuts.drop(attribute, block) for attribute in attributes}
        keep = ~np.logical_or.reduce([np.zeros(batch.tokens, dtype=bool), *drops.values()])
        tally.add(batch.responses, keep, drops)
        columns = {f"drop_{name}": batch.lists(dropped) for name, dropped in drops.items()}
        masked.append(batch.with_columns({**columns, "labels": batch.labels(keep)}))
    degenerate = _degenerate(blocks, attributes, tally)
    return Mask(pa.Table.from_batches(masked), tally.stats(cuts.to_dict(), degenerate))


def weights_to_labels(scored: pa.Table, weights: Iterable[np.ndarray]) -> Mask:
    """Labels from a static method's weights: one float array per example, in order, each as long as the
    response.

    A token of weight 0 gets -100. Weights other than 0 and 1 are kept in a column `weights`, list<float32>.
    ValueError: lengths that do not fit, a weight that is not finite, weights that are all 0.
    """
    batches = _batches(scored)
    rows = [np.asarray(row, dtype=np.float32) for row in weights]
    if [len(row) for row in rows] != np.concatenate([batch.responses for batch in batches]).tolist():
        raise ValueError("weights must come as one array per example, each as long as the example's response")
    flat = np.concatenate(rows)
    if not np.isfinite(flat).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(flat))} of {len(flat)} weights are not finite numbers")
    fractional = bool(((flat != 0) & (flat != 1)).any())
    tally, masked = _Tally(), []
    for batch, part in zip(batches, np.split(flat, np.cumsum([b.tokens for b in batches])[:-1]), strict=True):
        tally.add(batch.responses, part != 0, {})
        columns = {"weights": batch.lists(part)} if fractional else {}
        masked.append(batch.with_columns({**columns, "labels": batch.labels(part != 0)}))
    return Mask(pa.Table.from_batches(masked), tally.stats({}, []))


# --- Arrow buffers ------------------------------------------------------------------------------------------


class _Batch:
    """A record batch of scored examples seen as flat arrays."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self._ids = self._column("input_ids")
        self._lengths = _lengths(self._ids)
        self._prompts = self._column("prompt_length").to_numpy().astype(np.int64)
        self.responses = self._lengths - self._prompts  # int64 (R,)
        self._refuse((self._prompts < 0) | (self.responses < 0), "prompt_length is not within input_ids")
        self.tokens = int(self.responses.sum())

    def _column(self, name: str) -> pa.Array:
        if name not in self._batch.schema.names:
            raise ValueError(f"the scored table has no column {name!r}; it has {', '.join(self._batch.schema.names)}")
        column = self._batch.column(name)
        if column.null_count:
            raise ValueError(f"column {name!r} holds {column.null_count} nulls")
        return column

    def _refuse(self, rows: np.ndarray, what: str) -> None:
        if rows.any():
            ids = self._column("example_id").filter(pa.array(rows)).to_pylist()
            more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
            raise ValueError(f"{what}: examples {', '.join(map(repr, ids[:10]))}{more}")

    def scores(self, name: str) -> np.ndarray:
        """A score column as a flat array (N,), checked for length and finite values."""
        column = self._column(name)
        self._refuse(_lengths(column) != self.responses, f"{name} is not as long as the response")
        values = column.flatten().to_numpy(zero_copy_only=False)
        broken = np.bincount(self.rows[~np.isfinite(values)], minlength=len(self.responses)) > 0
        self._refuse(broken, f"{name} is not a finite number")
        return values

    @property
    def rows(self) -> np.ndarray:
        """The row number of each response token, (N,)."""
        return np.repeat(np.arange(len(self.responses)), self.responses)

    def lists(self, values: np.ndarray) -> pa.ListArray:
        """One list per response from a flat array (N,)."""
        return _as_lists(values, self.responses)

    def labels(self, keep: np.ndarray) -> pa.ListArray:
        """input_ids where `keep` (N,) says so, -100 on the prompt and on dropped tokens."""
        ids = self._ids.flatten().to_numpy()
        place = np.arange(len(ids)) - np.repeat(np.cumsum(self._lengths) - self._lengths, self._lengths)
        in_response = np.flatnonzero(place >= np.repeat(self._prompts, self._lengths))
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        kept = in_response[keep]
        labels[kept] = ids[kept]
        return _as_lists(labels, self._lengths)

    def with_columns(self, columns: dict[str, pa.Array]) -> pa.RecordBatch:
        """The batch with these columns; those of an earlier mask are replaced."""
        stale = {"labels", "weights", *(f"drop_{attribute.value}" for attribute in Attribute)}
        kept = {name: self._batch.column(name) for name in self._batch.schema.names if name not in stale}
        return pa.RecordBatch.from_pydict({**kept, **columns})


def _batches(scored: pa.Table) -> list[_Batch]:
    batches = [_Batch(batch) for batch in scored.to_batches() if batch.num_rows]
    if not sum(batch.tokens for batch in batches):
        raise ValueError("the scored table holds no response tokens")
    return batches


def _lengths(column: pa.Array) -> np.ndarray:
    return column.value_lengths().to_numpy().astype(np.int64)


def _as_lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


# --- statistics ---------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Counts over batches. `dropped` is keyed by every set of attributes ("ri", "ri_kn", ...) that agree."""

    examples: int = 0
    tokens: int = 0
    kept: int = 0
    without_loss: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    ends_dropped: Counter[str] = field(default_factory=Counter)  # responses whose last token is dropped

    def add(self, responses: np.ndarray, keep: np.ndarray, drops: dict[str, np.ndarray]) -> None:
        rows = np.repeat(np.arange(len(responses)), responses)
        self.examples += len(responses)
        self.tokens += len(keep)
        self.kept += int(np.count_nonzero(keep))
        self.without_loss += int(np.count_nonzero(np.bincount(rows[keep], minlength=len(responses)) == 0))
        ends = np.cumsum(responses)[responses > 0] - 1
        for name, drop in drops.items():
            self.ends_dropped[name] += int(np.count_nonzero(drop[ends]))
        for size in range(1, len(drops) + 1):
            for names in combinations(drops, size):
                together = np.logical_and.reduce([drops[name] for name in names])
                self.dropped["_".join(names)] += int(np.count_nonzero(together))

    def stats(self, thresholds: dict[str, dict[str, Any]], degenerate: list[dict[str, str]]) -> MaskStats:
        """ValueError if nothing is kept: training on it would be training on nothing."""
        for problem in degenerate:
            log.warning("degenerate attribute %s: %s", problem["attribute"], problem["reason"])
        shares = {names: count / self.tokens for names, count in self.dropped.items()}
        if self.kept == 0:
            by = ", ".join(f"{names} {share:.1%}" for names, share in shares.items() if "_" not in names)
            raise ValueError(
                f"the mask keeps none of {self.tokens} response tokens" + (f" (dropped by {by})" if by else "")
            )
        if self.without_loss:
            log.warning("%d of %d examples keep no token and teach nothing", self.without_loss, self.examples)
        return MaskStats(
            examples=self.examples,
            response_tokens=self.tokens,
            kept_tokens=self.kept,
            kept_share=self.kept / self.tokens,
            dropped_share={
                **{names: share for names, share in shares.items() if "_" not in names},
                "union": 1 - self.kept / self.tokens,
            },
            overlap={names: share for names, share in shares.items() if "_" in names},
            thresholds=thresholds,
            degenerate=degenerate,
            examples_without_loss=self.without_loss,
        )


def _degenerate(blocks: Sequence[Scores], attributes: Sequence[Attribute], tally: _Tally) -> list[dict[str, str]]:
    found = []
    for attribute in attributes:
        constant = _constant_share(blocks, SOURCE[attribute])
        share = tally.dropped[attribute.value] / tally.tokens
        if constant >= MOST:
            found.append((attribute, f"its scores are (nearly) constant within {constant:.0%} of the responses"))
        if share == 0:
            found.append((attribute, "its rule filters nothing"))
        if share > 0.5:
            found.append((attribute, f"its rule filters {share:.1%} of the response tokens, more than half"))
        ends = tally.ends_dropped[attribute.value] / tally.examples
        # KN drops an end that the base model expects anyway; the others drop it whether it does or not.
        if ends > 0.5 and attribute is not Attribute.kn:
            found.append(
                (
                    attribute,
                    f"its rule filters the last token of {ends:.0%} of the responses, where the end-of-text token "
                    "stands: the model is not taught to stop",
                )
            )
    return [{"attribute": attribute.value, "reason": reason} for attribute, reason in found]


def _constant_share(blocks: Sequence[Scores], column: str) -> float:
    """The share of responses of two tokens and more whose scores all agree to a relative `CONSTANT`."""
    constant = judged = 0
    for block in blocks:
        values, lengths = block.columns[column], block.lengths
        starts = (np.cumsum(lengths) - lengths)[lengths > 0]
        low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        several = lengths[lengths > 0] > 1
        size = np.maximum(np.abs(low), np.abs(high))
        constant += int(np.count_nonzero(several & (high - low <= CONSTANT * size)))
        judged += int(np.count_nonzero(several))
    return constant / judged if judged else 0.0
