"""From drop decisions to labels: the union of the attributes (eq. 1), -100 where no loss falls, and the
statistics.

Only this module writes -100. It works on Arrow buffers, one record batch (one score shard) at a time.

The end token of a response is ours: `xtf.data.encode` appends it so that a model learns to stop, the dataset has no
such token, and the paper and its released code score the dataset's tokens only. A table's column `end_tokens` says
how many such tokens a response has (none where it was cut off). With `threshold.end=kept` thresholds are fitted
without them, no attribute drops them and no share counts them; `threshold.end=scored` judges them like the others,
as earlier versions did: TR, which decides by token id, may then drop the end of every response.

What the rows themselves do not train (weight 0 in `ROW_WEIGHTS`: a turn with `train: false`, a label of -100 that
another tool has set) is never judged: no threshold is fitted to it, no attribute drops it and no share counts it.

What is dropped need not lose its label whole. With `threshold.dropped_weight` above 0 its loss counts with that weight:
the labels are those of all response tokens then, the column `weights` says what each counts, and the column `dropped`
what the mask decided. With `threshold.drop_probability` below 1 it is dropped in some epochs and kept in the others:
the column `drop_probability` says how probably, and `weights` what the token counts in an epoch that drops it; training
draws (`xtf.data.steps.TrainingRows.in_epoch`).

With `threshold.protect=answer` the tokens that a column `protected` names are never dropped. Thresholds are fitted with
them all the same, so that they, and the drops elsewhere, are those of a mask that protects nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from xtf.config.identity import from_plain
from xtf.config.schema import Protect, ThresholdConfig, ThresholdEnd, TRFit, threshold_type
from xtf.data.batches import Again, Batches
from xtf.data.provenance import provenance
from xtf.data.ragged import IGNORED, PROMPT_TR, ROW_WEIGHTS, Responses, Sequences, as_lists
from xtf.scoring.attributes import ATTRIBUTES, TokenAttribute, pick
from xtf.scoring.thresholds import Cuts, fit

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

CONSTANT = 1e-5  # spread of an example's scores relative to their size, below which they say nothing
MOST = 0.99  # share of examples that must be constant for the attribute to be degenerate


@dataclass(frozen=True)
class MaskStats:
    """What a mask keeps and drops. Shares are of response tokens.

    Response tokens are those of the data: `end_tokens`, which are appended to them and which thresholds with `end=kept`
    leave alone, count neither as response nor as kept tokens, and an example that keeps nothing else is without loss.
    With `end=scored`, for methods that read no thresholds and in records of earlier versions `end_tokens` is 0 and all
    tokens of a response count.

    `overlap` is keyed by the attributes that agree: "ri_kn" is dropped by both, whatever TR says.
    `degenerate` lists {"attribute", "reason"}: scores that carry no information, or a rule that drops nothing
    or more than half. `examples_without_loss` counts those whose every response token is dropped. `dropped_weight` is
    what the loss of a dropped token counts, 0 where it is left out, and `drop_probability` in how many epochs it is
    dropped at all; no other figure depends on them. `protected_tokens` are never dropped, `given_back` of them would be
    if they were not protected; `examples_unprotected` have none. `untrained_tokens` have the weight 0 in the rows
    themselves and count in no other figure.
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
    end_tokens: int = 0
    dropped_weight: float = 0.0
    drop_probability: float = 1.0
    protected_tokens: int = 0
    given_back: int = 0
    examples_unprotected: int = 0
    untrained_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the record."""
        return asdict(self)


@dataclass(frozen=True)
class Mask:
    """`table`: the scored table with `drop_ri`, `drop_kn`, `drop_tr` list<bool>, as long as the response and for
    the attributes in use, and `labels` list<int32>, as long as input_ids. Where weights other than 0 and 1 occur, also
    `weights` list<float32>, as long as the response, and `dropped` list<bool> where dropped tokens have one of them;
    where they are dropped in some epochs only, also `drop_probability` float32.
    """

    table: pa.Table
    stats: MaskStats

    @property
    def batches(self) -> Batches:
        """The table a record batch at a time."""
        return Batches.of(self.table)


def build_mask(scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[str]) -> Mask:
    """Drops the response tokens that lack any of `attributes`; without attributes all are kept.

    `scored` may have the column `end_tokens`: the tokens that it names are kept unless `threshold.end` is `scored`.

    Raises:
        ValueError: an unknown attribute, a missing column, a score list that is not as long as its response, a score
            that is not a finite number, a threshold out of range, a mask that keeps nothing.
    """
    found = StreamedMask(Batches.of(scored), threshold, attributes)
    return Mask(found.batches.table(), found.stats)


class StreamedMask:
    """`build_mask` a record batch at a time: memory is that of a batch, however many rows there are.

    batches: those of the masked table. They may be gone through several times, each time with the same result.
    """

    def __init__(self, scored: Batches, threshold: ThresholdConfig, attributes: Sequence[str]) -> None:
        self.scored, self.threshold, self.used = scored, threshold, pick(attributes)
        self.columns = list(dict.fromkeys(attribute.source for attribute in self.used))
        blocks = Again(lambda: (part.block for part in self._parts()))
        self.cuts = fit(blocks, threshold, [attribute.name for attribute in self.used])
        soft = bool(threshold.dropped_weight) or threshold.drop_probability < 1
        # Only a mask that drops something has the columns that say what a dropped token counts.
        some = soft and any(part.drop(self.cuts, self.used).any() for part in self._parts())
        self.form = _Form.of(threshold if some else ThresholdConfig())
        self.batches = Batches(self._masked)
        self._stats: MaskStats | None = None

    @property
    def stats(self) -> MaskStats:
        """Known when the batches have been gone through."""
        assert self._stats is not None
        return self._stats

    def _parts(self) -> Iterator[_Part]:
        for batch in self.scored:
            yield _Part(Sequences(batch), self.threshold, self.columns)

    def _masked(self) -> Iterator[pa.RecordBatch]:
        """
        Raises:
            ValueError: behind the last batch, for no response tokens, or none that are kept.
        """
        tally = _Tally()
        for part in self._parts():
            block = part.block
            drops = {attribute.name: self.cuts.drop(attribute, block) for attribute in self.used}
            guarded = _protected(part.rows, self.threshold)[part.judged]
            tally.protect(block, guarded, np.logical_or.reduce([np.zeros(block.tokens, dtype=bool), *drops.values()]))
            drops = {name: drop & ~guarded for name, drop in drops.items()}
            keep = ~np.logical_or.reduce([np.zeros(block.tokens, dtype=bool), *drops.values()])
            tally.add(block, keep, drops, _ends_alone(part.rows, self.threshold))
            spread = {name: _spread(drop, part.judged, False) for name, drop in drops.items()}
            more = {a.drops: as_lists(spread[a.name], part.rows.responses) for a in self.used}
            yield self.form.batch(part.rows, _spread(keep, part.judged, True).astype(np.float32), more)
        if not tally.tokens:
            raise ValueError(
                "the scored table holds no response tokens but appended ends and what the rows do not train"
            )
        degenerate = _degenerate(self.used, tally, self.threshold)
        self._stats = tally.stats(self.cuts.to_dict(), degenerate, self.threshold)


class WeighedMask:
    """Rows that bring the weight of every response token in a column `weights`, as a masked table, a record batch at a
    time: as `weights_to_labels` makes it of a method's.

    batches: those of the masked table; stats: known when they have been gone through.
    """

    def __init__(self, rows: Batches) -> None:
        self.rows = rows
        self.form = _Form.of(ThresholdConfig(), any(not np.isin(own, (0, 1)).all() for _, own in self._weights()))
        self.batches = Batches(self._masked)
        self._stats: MaskStats | None = None

    @property
    def stats(self) -> MaskStats:
        """Known when the batches have been gone through."""
        assert self._stats is not None
        return self._stats

    def _weights(self) -> Iterator[tuple[Sequences, np.ndarray]]:
        for batch in self.rows:
            part = Sequences(batch)
            yield part, part.of_responses("weights")

    def _masked(self) -> Iterator[pa.RecordBatch]:
        """
        Raises:
            ValueError: behind the last batch, where nothing is trained.
        """
        tally = _Tally()
        for part, own in self._weights():
            tally.add(Responses(part.responses, {}), own != 0, {}, 0)
            yield self.form.batch(part, own, {})
        if not tally.kept:
            raise ValueError("every label is -100, or every weight 0: there is nothing to train on")
        self._stats = tally.stats({}, [], None)


class _Part:
    """A record batch of the scored table, and its tokens that thresholds judge."""

    def __init__(self, rows: Sequences, threshold: ThresholdConfig, columns: Sequence[str]) -> None:
        self.rows, self.threshold = rows, threshold
        self.judged = ~_left_alone(rows, threshold)  # bool (N,)
        found = {name: _finite(rows, name) for name in columns}
        self.block = Responses(rows.responses, found, rows.prompt_tr).select(self.judged)

    def drop(self, cuts: Cuts, used: Sequence[TokenAttribute]) -> np.ndarray:
        """Which of the block's tokens are dropped, bool."""
        drops = [cuts.drop(attribute, self.block) for attribute in used]
        dropped: np.ndarray = np.logical_or.reduce([np.zeros(self.block.tokens, bool), *drops])
        return dropped & ~_protected(self.rows, self.threshold)[self.judged]


def _left_alone(rows: Sequences, threshold: ThresholdConfig) -> np.ndarray:
    """The response tokens that no threshold judges, bool (N,)."""
    return rows.untrained | rows.ends if threshold.end is ThresholdEnd.kept else rows.untrained


def _ends_alone(rows: Sequences, threshold: ThresholdConfig | None) -> int:
    """How many trained tokens are left alone because they are an appended end."""
    alone = threshold is not None and threshold.end is ThresholdEnd.kept
    return int(np.count_nonzero(rows.ends & ~rows.untrained)) if alone else 0


def _protected(rows: Sequences, threshold: ThresholdConfig) -> np.ndarray:
    """The response tokens that are never dropped, bool (N,)."""
    if threshold.protect is Protect.none:
        return np.zeros(int(rows.responses.sum()), bool)
    if "protected" not in rows.table.schema.names:
        raise ValueError(
            "threshold.protect=answer needs to know what the task's grader reads, and the scored table has no column "
            "'protected' (list<bool>, as long as the response, true for what is never to be dropped): add it, or unset "
            "the setting"
        )
    return rows.of_responses("protected").astype(bool)


def _spread(values: np.ndarray, which: np.ndarray, otherwise: bool) -> np.ndarray:
    """`values` at the tokens that `which`, bool (N,), names, `otherwise` at the others; bool (N,)."""
    spread = np.full(len(which), otherwise)
    spread[which] = values
    return spread


def threshold_of(masked: datasets.Dataset | pa.Table, otherwise: ThresholdConfig) -> ThresholdConfig:
    """By which threshold rows say that they were masked; `otherwise` where they say none, which an earlier version did
    not fit to prompts whose TR the rows lack.

    Raises:
        ValueError: a setting that this version does not know.
    """
    said = provenance(masked).get("threshold")
    if said is not None:
        return from_plain(threshold_type(), said)
    return (
        otherwise
        if PROMPT_TR in masked.column_names
        else replace(otherwise, tr=replace(otherwise.tr, fit=TRFit.responses))
    )


def weights_to_labels(
    scored: pa.Table, weights: Iterable[np.ndarray], threshold: ThresholdConfig | None = None
) -> Mask:
    """Labels from a static method's weights: one float array per example, in order, each as long as the response.

    `threshold` is that of a method which follows a mask's number of drops: the statistics then count what the mask's
    do, and what it drops counts as little or as much. A token of weight 0 gets -100. Weights other than 0 and 1 are
    kept in a column `weights`, list<float32>.

    Raises:
        ValueError: lengths that do not fit, a weight that is not finite, weights that are all 0.
    """
    parts = _parts(scored)
    rows = [np.asarray(row, dtype=np.float32) for row in weights]
    if [len(row) for row in rows] != np.concatenate([part.responses for part in parts]).tolist():
        raise ValueError("weights must come as one array per example, each as long as the example's response")
    every = np.concatenate(rows)
    if not np.isfinite(every).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(every))} of {len(every)} weights are not finite numbers")
    tally, own, start = _Tally(), [], 0
    for part in parts:
        block = Responses(part.responses, {})
        own.append(every[start : start + block.tokens])
        start += block.tokens
        which = ~part.untrained if threshold is None else ~_left_alone(part, threshold)
        counted = block.select(which)
        if threshold is not None:
            guarded = _protected(part, threshold)
            tally.protect(counted, guarded[which], own[-1][which] == 0)
            own[-1] = np.where(guarded & (own[-1] == 0), np.float32(1), own[-1])
        tally.add(counted, own[-1][which] != 0, {}, _ends_alone(part, threshold))
    return Mask(_weighed(parts, own, threshold), tally.stats({}, [], threshold))


def _weighed(parts: Sequence[Sequences], weights: Sequence[np.ndarray], threshold: ThresholdConfig | None) -> pa.Table:
    """The table with `labels` and, where they do not tell it all, `weights`, `dropped` and `drop_probability`.

    Args:
        weights: float32 (N,) for each part; 0: the token is dropped.
        threshold: says what a dropped token counts and when; None: nothing.
    """
    some = threshold if threshold is not None and any((own == 0).any() for own in weights) else ThresholdConfig()
    form = _Form.of(some, fractional=any(((own != 0) & (own != 1)).any() for own in weights))
    return pa.Table.from_batches([form.batch(rows, own, {}) for rows, own in zip(parts, weights, strict=True)])


@dataclass(frozen=True)
class _Form:
    """Which columns a masked table has: the same in all of its batches."""

    soft: float  # what a dropped token counts
    chance: float  # with which it is dropped in an epoch
    fractional: bool  # weights other than 0 and 1 occur

    @classmethod
    def of(cls, threshold: ThresholdConfig, fractional: bool = False) -> _Form:
        soft, chance = threshold.dropped_weight, threshold.drop_probability
        return cls(soft, chance, fractional or bool(soft) or chance < 1)

    def batch(self, rows: Sequences, own: np.ndarray, more: Mapping[str, pa.Array]) -> pa.RecordBatch:
        """The rows with `more` columns and those of the mask; `own` float32 (N,), 0: the token is dropped."""
        columns, moving = dict(more), self.chance < 1
        counts = np.where(own == 0, np.float32(self.soft), own)
        if self.fractional:
            columns["weights"] = as_lists(counts, rows.responses)
        if self.soft or moving:
            columns["dropped"] = as_lists(own == 0, rows.responses)
        if moving:
            columns["drop_probability"] = pa.array(np.full(len(rows.lengths), self.chance, np.float32))
        return _with_columns(rows, {**columns, "labels": _labels(rows, (counts != 0) | moving)})


def row_weighted(mask: Mask) -> Mask:
    """The mask with every token's weight multiplied by that of its row (`ROW_WEIGHTS`), where rows have any.

    The statistics stay those of the method's own mask, which leaves out what rows do not train; `untrained_tokens`
    counts that.

    Raises:
        ValueError: nothing is left to train on.
    """
    if ROW_WEIGHTS not in mask.table.column_names:
        return mask
    batches, untrained = weighted_by_row(Batches.of(mask.table))
    return Mask(batches.table(), replace(mask.stats, untrained_tokens=untrained))


def weighted_by_row(masked: Batches) -> tuple[Batches, int]:
    """The batches of a masked table with the weights of their rows, as `row_weighted`, and the tokens that these leave
    untrained; it goes through them once before.

    Raises:
        ValueError: nothing is left to train on.
    """
    untrained, some, fractional = 0, False, False
    for rows, given, _, weights in _row_weights(masked):
        moving = "drop_probability" in rows.table.schema.names  # a token of weight 0 may count in another epoch
        untrained += int(np.count_nonzero(given == 0))
        some = some or moving or bool(weights.any())
        fractional = fractional or moving or not np.isin(weights, (0, 1)).all()
    if not some:
        raise ValueError("the rows' own weights leave none of the tokens that the mask keeps")

    def batches() -> Iterator[pa.RecordBatch]:
        for rows, given, kept, weights in _row_weights(masked):
            names = rows.table.schema.names
            moving = "drop_probability" in names
            told = ("dropped", "drop_probability", *(attribute.drops for attribute in ATTRIBUTES.values()))
            columns = {name: rows.table.column(name) for name in told if name in names}
            if fractional:
                columns["weights"] = as_lists(weights, rows.responses)
            columns["labels"] = _labels(rows, kept & (given != 0) if moving else weights != 0)
            yield _with_columns(rows, columns)

    return Batches(batches), untrained


def _row_weights(masked: Batches) -> Iterator[tuple[Sequences, np.ndarray, np.ndarray, np.ndarray]]:
    """Each batch, and of its response tokens (N,) the rows' weights, whether the mask keeps them, and what both say."""
    for batch in masked:
        rows = Sequences(batch)
        given = rows.of_responses(ROW_WEIGHTS)
        kept = rows.of_sequences("labels")[rows.in_response] != IGNORED
        own = rows.of_responses("weights") if "weights" in batch.schema.names else kept
        yield rows, given, kept, (given * own * kept).astype(np.float32)


# --- Arrow buffers ------------------------------------------------------------------------------------------


def _parts(scored: pa.Table) -> list[Sequences]:
    """The table's record batches.

    Raises:
        ValueError: they hold no response token.
    """
    parts = [Sequences(batch) for batch in scored.to_batches() if batch.num_rows]
    if not sum(int(part.responses.sum()) for part in parts):
        raise ValueError("the scored table holds no response tokens")
    return parts


def _finite(rows: Sequences, name: str) -> np.ndarray:
    """A score column (N,), checked for length and finite values."""
    values = rows.of_responses(name)
    example = Responses(rows.responses, {}).example
    broken = np.bincount(example[~np.isfinite(values)], minlength=len(rows.responses)) > 0
    rows.refuse(broken, f"{name} is not a finite number")
    return values


def _labels(rows: Sequences, keep: np.ndarray) -> pa.ListArray:
    """input_ids where `keep` (N,) says so, -100 on the prompt and on dropped tokens."""
    labels = np.full(len(rows.ids), IGNORED, dtype=np.int32)
    kept = np.flatnonzero(rows.in_response)[keep]
    labels[kept] = rows.ids[kept]
    return as_lists(labels, rows.lengths)


def _with_columns(rows: Sequences, columns: dict[str, pa.Array]) -> pa.RecordBatch:
    """The batch with these columns; those of an earlier mask are replaced."""
    stale = {
        "labels",
        "weights",
        "dropped",
        "drop_probability",
        *(attribute.drops for attribute in ATTRIBUTES.values()),
    }
    kept = {name: rows.table.column(name) for name in rows.table.schema.names if name not in stale}
    return pa.RecordBatch.from_pydict({**kept, **columns})


# --- a mask read back ---------------------------------------------------------------------------------------


class MaskedTokens(Responses):
    """The response tokens of a masked table: those of `Responses`, and what the mask says of them.

    ids int64 (N,); kept bool (N,), the mask does not drop the token; scores: the columns that attributes and
    their thresholds read, float32 (N,), as far as the table has them; dropped: bool (N,) per attribute that may drop.
    """

    @classmethod
    def from_mask(cls, masked: pa.Table) -> MaskedTokens:
        """The columns of mask.parquet.

        Raises:
            ValueError: a table without labels.
        """
        if "labels" not in masked.column_names:
            raise ValueError(
                f"a masked table is needed (xtf.mask adds drop_* and labels), not one with {masked.column_names}"
            )
        rows = Sequences(masked)
        in_response = rows.in_response
        columns = {"ids": rows.ids[in_response].astype(np.int64)}
        columns["kept"] = ~rows.dropped
        names = [*ATTRIBUTES, "logp", *(attribute.drops for attribute in ATTRIBUTES.values())]
        columns |= {name: rows.of_responses(name) for name in names if name in masked.column_names}
        columns |= {"end": rows.ends, "untrained": rows.untrained}
        if "protected" in masked.column_names:
            columns["protected"] = rows.of_responses("protected").astype(bool)
        return cls(rows.responses, columns, rows.prompt_tr)

    def judged(self, threshold: ThresholdConfig) -> np.ndarray:
        """Which tokens the thresholds judge and shares count, bool (N,): all but those that the rows do not train and
        the end that `threshold` keeps."""
        trained = ~self.untrained
        return trained & ~self.columns["end"] if threshold.end is ThresholdEnd.kept else trained

    @property
    def by_attributes(self) -> bool:
        """Whether the labels are what the attributes leave, as a mask's are; another method may drop any token."""
        union = np.logical_or.reduce([np.zeros(self.tokens, bool), *self.dropped.values()])
        return bool(self.dropped) and bool((self.kept == ~union)[~self.untrained].all())

    def counted(self, threshold: ThresholdConfig) -> np.ndarray:
        """Which tokens an example's share is of, bool (N,): those that thresholds judge, of other methods all that the
        rows train."""
        return self.judged(threshold) if self.by_attributes else ~self.untrained

    def protected(self, threshold: ThresholdConfig) -> np.ndarray:
        """Which tokens `threshold` never drops, bool (N,), whatever the attributes say."""
        none = np.zeros(self.tokens, bool)
        return none if threshold.protect is Protect.none else self.columns.get("protected", none)

    @property
    def untrained(self) -> np.ndarray:
        """Which tokens the rows themselves do not train, bool (N,)."""
        return self.columns.get("untrained", np.zeros(self.tokens, bool))

    @property
    def ids(self) -> np.ndarray:
        """Token ids of the responses."""
        return self.columns["ids"]

    @property
    def kept(self) -> np.ndarray:
        """Whether each is kept; what is not counts nothing in the loss, or `threshold.dropped_weight`."""
        return self.columns["kept"]

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """The score columns that the table has, by name."""
        return {name: self.columns[name] for name in (*ATTRIBUTES, "logp") if name in self.columns}

    @property
    def dropped(self) -> dict[str, np.ndarray]:
        """What each attribute in use drops, by its name."""
        return {name: self.columns[a.drops] for name, a in ATTRIBUTES.items() if a.drops in self.columns}


# --- in words -----------------------------------------------------------------------------------------------


def effect(threshold: ThresholdConfig) -> str:
    """What a dropped token does in training: "nothing", unless the threshold says otherwise."""
    weight, probability = threshold.dropped_weight, threshold.drop_probability
    found = f"with weight {weight:g}" if weight else "nothing"
    return found if probability == 1 else f"{found} in an epoch that drops them, each with probability {probability:g}"


def notes(stats: Mapping[str, Any]) -> list[str]:
    """What is to be said of a mask beside its shares, in sentences; `stats` as `MaskStats.to_dict` gives them, or an
    earlier version did."""
    found = []
    if weight := stats.get("dropped_weight"):
        found.append(f"A dropped token trains with weight {weight:g}.")
    if protected := stats.get("protected_tokens"):
        without = stats["examples_unprotected"]
        found.append(
            f"{protected:,} tokens that the grader reads are never dropped; {stats['given_back']:,} of them would be"
            + (f". In {without:,} of {stats['examples']:,} responses it reads none." if without else ".")
        )
    if (probability := stats.get("drop_probability", 1)) < 1:
        found.append(f"What the mask drops is dropped in an epoch with probability {probability:g}, else kept.")
    return found


# --- statistics ---------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Counts over batches. `dropped` is keyed by every set of attributes ("ri", "ri_kn", ...) that agree."""

    examples: int = 0
    tokens: int = 0
    kept: int = 0
    without_loss: int = 0
    protected: int = 0
    given_back: int = 0
    unprotected: int = 0  # examples
    ends: int = 0  # left alone, counted nowhere else
    dropped: Counter[str] = field(default_factory=Counter)
    ends_dropped: Counter[str] = field(default_factory=Counter)  # responses whose last token is dropped
    constant: Counter[str] = field(default_factory=Counter)  # responses of several tokens with one score, by column
    several: int = 0  # responses of several tokens

    def add(self, block: Responses, keep: np.ndarray, drops: dict[str, np.ndarray], left_alone: int) -> None:
        """Tokens (N,) that are judged, beside so many appended ends that are not."""
        responses = block.lengths
        self.ends += left_alone
        self.examples += len(responses)
        self.tokens += len(keep)
        self.kept += int(np.count_nonzero(keep))
        self.without_loss += int(np.count_nonzero(block.count(keep) == 0))
        self.several += int(np.count_nonzero(responses > 1))
        for name, values in block.columns.items():
            self.constant[name] += _constant(values, block)
        ends = block.offsets[1:][responses > 0] - 1
        for name, drop in drops.items():
            self.ends_dropped[name] += int(np.count_nonzero(drop[ends]))
        for size in range(1, len(drops) + 1):
            for names in combinations(drops, size):
                together = np.logical_and.reduce([drops[name] for name in names])
                self.dropped["_".join(names)] += int(np.count_nonzero(together))

    def protect(self, block: Responses, guarded: np.ndarray, drop: np.ndarray) -> None:
        """Tokens (N,) that are never dropped, and those that would be."""
        self.protected += int(np.count_nonzero(guarded))
        self.given_back += int(np.count_nonzero(guarded & drop))
        self.unprotected += int(np.count_nonzero(block.count(guarded) == 0))

    def stats(
        self,
        thresholds: dict[str, dict[str, Any]],
        degenerate: list[dict[str, str]],
        threshold: ThresholdConfig | None = None,
    ) -> MaskStats:
        """The statistics.

        Raises:
            ValueError: nothing is kept; training on it would be training on nothing.
        """
        for problem in degenerate:
            log.warning("degenerate attribute %s: %s", problem["attribute"], problem["reason"])
        shares = {names: count / self.tokens for names, count in self.dropped.items()}
        if self.kept == 0:
            by = ", ".join(f"{names} {share:.1%}" for names, share in shares.items() if "_" not in names)
            raise ValueError(
                f"the mask keeps none of {self.tokens} response tokens" + (f" (dropped by {by})" if by else "")
            )
        threshold = threshold or ThresholdConfig()
        if self.without_loss and not threshold.dropped_weight and threshold.drop_probability == 1:
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
            end_tokens=self.ends,
            dropped_weight=threshold.dropped_weight,
            drop_probability=threshold.drop_probability,
            protected_tokens=self.protected,
            given_back=self.given_back,
            examples_unprotected=self.unprotected if threshold.protect is not Protect.none else 0,
        )


def _degenerate(
    attributes: Sequence[TokenAttribute], tally: _Tally, threshold: ThresholdConfig
) -> list[dict[str, str]]:
    found = []
    for attribute in attributes:
        constant = tally.constant[attribute.source] / tally.several if tally.several else 0.0
        share = tally.dropped[attribute.name] / tally.tokens
        if constant >= MOST:
            found.append(
                (attribute, f"its scores are (nearly) constant within {100 * constant:.0f} % of the responses")
            )
        if share == 0:
            found.append((attribute, "its rule filters nothing"))
        if share > 0.5:
            found.append((attribute, f"its rule filters {100 * share:.1f} % of the response tokens, more than half"))
        ends = tally.ends_dropped[attribute.name] / tally.examples
        # KN drops an end that the base model expects anyway; the others drop it whether it does or not.
        if threshold.end is ThresholdEnd.scored and ends > 0.5 and attribute.source != "logp":
            found.append(
                (
                    attribute,
                    f"its rule filters the last token of {100 * ends:.0f} % of the responses, where the end-of-text "
                    "token stands: the model is not taught to stop",
                )
            )
    return [{"attribute": attribute.name, "reason": reason} for attribute, reason in found]


def _constant(values: np.ndarray, block: Responses) -> int:
    """How many responses of two tokens and more have `values` (N,) that all agree to a relative `CONSTANT`."""
    lengths = block.lengths[block.lengths > 0]
    if not len(lengths):
        return 0
    starts = block.offsets[:-1][block.lengths > 0]
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    size = np.maximum(np.abs(low), np.abs(high))
    return int(np.count_nonzero((lengths > 1) & (high - low <= CONSTANT * size)))
