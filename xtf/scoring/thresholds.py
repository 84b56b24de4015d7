"""From scores to drop decisions: the IQR fence for RI, the cutoff for KN, Multi-Otsu for TR; NumPy only.

Every rule turns a token's score into a *margin*: how far it lies on the wrong side of its threshold. A token
is dropped if its margin is above the *level*, which is 0. Shifts and quantiles move the level, and caps take
the largest margins first, so all rules share that part. Scores are the columns of `Responses`: flat arrays of N
response tokens with the response lengths beside them. Which column a rule reads, and which direction of it is noise,
stands in `xtf.scoring.attributes`.

The rules are equations 5 to 7 of arXiv 2602.14536. There they judge the dataset's tokens only; the end token that we
append to a response is none of them, so `xtf.scoring.masks` leaves it out of what is fitted and dropped here unless
`threshold.end=scored`. That holds for `released` too: the authors' code appends no end token.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xtf.config.checks import check_threshold
from xtf.config.schema import KNRule, RIRule, ThresholdConfig, ThresholdTies, TRFit, TRRule, TRThreshold
from xtf.data.batches import Again
from xtf.data.ragged import PROMPT_TR, Responses
from xtf.scoring.attributes import ATTRIBUTES, TokenAttribute, pick, rule_of

log = logging.getLogger(__name__)

# --- the rules ----------------------------------------------------------------------------------------------


def quantiles(scores: np.ndarray, lengths: np.ndarray, q: float) -> np.ndarray:
    """The q-quantile of each example's scores, linearly interpolated as `np.quantile` does; float64 (R,).

    What stands for an example without scores means nothing.
    """
    if not len(scores):
        return np.full(len(lengths), np.nan)
    ordered = scores[Responses(lengths, {}).order(scores)].astype(np.float64)
    starts = np.cumsum(lengths) - lengths
    place = q * (lengths - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, lengths - 1)
    last = len(ordered) - 1
    low, high = ordered[np.minimum(starts + below, last)], ordered[np.minimum(starts + above, last)]
    return low + (high - low) * (place - below)


def iqr_fences(scores: np.ndarray, lengths: np.ndarray, c: float) -> np.ndarray:
    """Q1 - c (Q3 - Q1) of each example's scores (eq. 5); float64 (R,). Equal scores are their own fence."""
    q1, q3 = (quantiles(scores, lengths, q) for q in (0.25, 0.75))
    return q1 - c * (q3 - q1)


def histogram(tr: np.ndarray, bins: int, within: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Counts of TR over equal bins of a range, int64 (bins,); those of blocks add up to the dataset's."""
    return np.histogram(tr, bins=bins, range=within)[0]


def multi_otsu(counts: np.ndarray, classes: int) -> list[int]:
    """Splits a histogram into `classes` runs of bins with the largest variance between them; the bins where
    runs start.

    Exact, by dynamic programming over the first j occupied bins in k runs: O(classes * bins^2). The
    enumeration in scikit-image finds the same splits, but in time that grows with bins^(classes - 1): 3.5 s
    for 256 bins and 5 classes, and 17 times that for each doubling. There must be at least `classes` occupied
    bins. Of equally good splits the earlier one wins.
    """
    occupied = np.flatnonzero(counts)
    assert 1 <= classes <= len(occupied), (classes, len(occupied))
    weights = counts[occupied].astype(np.float64)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * (occupied - np.average(occupied, weights=weights)))])
    first, end = np.triu_indices(len(mass), k=1)
    gain = np.full((len(mass), len(mass)), -np.inf)  # [i, j]: of one run of the occupied bins i .. j - 1
    gain[first, end] = (moment[end] - moment[first]) ** 2 / (mass[end] - mass[first])
    best, came_from = gain[0], []
    for _ in range(classes - 1):
        total = best[:, None] + gain
        came_from.append(total.argmax(0))
        best = total.max(0)
    starts = [len(occupied)]
    for previous in reversed(came_from):
        starts.append(int(previous[starts[-1]]))
    return [0, *(int(occupied[start]) for start in starts[:0:-1])]


@dataclass(frozen=True)
class Band:
    """The TR cluster to drop: low <= TR < high. `thresholds` are the edges between the `classes` clusters."""

    low: float
    high: float
    thresholds: tuple[float, ...]
    classes: int


def otsu_band(counts: np.ndarray, config: TRThreshold, within: tuple[float, float] = (0.0, 1.0)) -> Band:
    """The `cluster`-th lowest of `classes` clusters (eq. 7), from the histogram of the dataset's TR over a range.

    With fewer occupied bins than classes each bin is a cluster of its own. If that makes `cluster` the highest one, or
    leaves fewer, the band is empty: what lies nearest to the task is no noise.
    """
    if not counts.any():  # no token is judged
        return Band(math.inf, math.inf, (), 0)
    edges = np.linspace(*within, len(counts) + 1)
    edges[-1] = np.nextafter(within[1], np.inf)  # the last bin includes it
    classes = min(config.classes, int(np.count_nonzero(counts)))
    starts = multi_otsu(counts, classes)
    if config.fit is TRFit.released:
        last = [int(np.flatnonzero(counts[:start])[-1]) for start in starts[1:]]
        thresholds = tuple(float(edges[place] + edges[place + 1]) / 2 for place in last)
    else:
        thresholds = tuple(float(edges[start]) for start in starts[1:])
    if config.cluster >= classes < config.classes or classes < 2:
        log.warning(
            "TR takes only %d values that a histogram of %d bins tells apart, so there is no cluster %d below the "
            "highest: TR drops nothing", classes, len(counts), config.cluster,
        )  # fmt: skip
        return Band(math.inf, math.inf, thresholds, classes)
    bounds = [float(edges[0]), *thresholds, float(edges[-1])]
    return Band(bounds[config.cluster - 1], bounds[config.cluster], thresholds, classes)


# --- fitting and applying -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cuts:
    """Thresholds fitted to a dataset: with `drop`, all that is needed to mask any part of it."""

    config: ThresholdConfig
    levels: dict[str, float]  # by attribute
    band: Band | None  # of TR; None unless its rule is multi_otsu

    def margins(self, attribute: TokenAttribute, block: Responses) -> np.ndarray:
        """How far each score is on the wrong side of its threshold, float64 (N,); -inf: never dropped."""
        rule = rule_of(self.config, attribute)
        scores = block.columns[attribute.source].astype(np.float64)
        if rule.rule is KNRule.cutoff:  # p > pcp in log space; high p is low novelty
            return scores - math.log(rule.pcp)
        if rule.rule is RIRule.iqr:
            return np.repeat(iqr_fences(scores, block.lengths, rule.c), block.lengths) - scores
        if rule.rule is TRRule.multi_otsu:
            assert self.band is not None
            return np.where(scores >= self.band.low, self.band.high - scores, -np.inf)
        return attribute.noise * scores

    def drop(self, attribute: TokenAttribute, block: Responses) -> np.ndarray:
        """Which response tokens the attribute drops; bool (N,)."""
        margins = self.margins(attribute, block)
        dropped = margins > self.levels[attribute.name]
        cap = rule_of(self.config, attribute).cap
        if cap is None:
            return dropped
        if self.config.ties is ThresholdTies.none:
            return dropped & (margins > _limits(block, margins, cap, of_the_highest=attribute.noise > 0))
        return _capped(block, dropped, margins, cap)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The thresholds in numbers, in the units of the scores; None: there is none that drops some."""
        return {name: self._describe(ATTRIBUTES[name]) for name in self.levels}

    def _describe(self, attribute: TokenAttribute) -> dict[str, Any]:
        rule, level = rule_of(self.config, attribute), self.levels[attribute.name]
        found: dict[str, Any] = {"rule": rule.rule.value, "shift": rule.shift, "cap": rule.cap}
        if attribute.source == "logp":
            found["p_above"] = _finite(math.exp(level) * (rule.pcp if rule.rule is KNRule.cutoff else 1.0))
        elif rule.rule is RIRule.iqr:
            found |= {"c": rule.c, "below_fence_by": _finite(level)}
        elif rule.rule is TRRule.multi_otsu:
            assert self.band is not None
            found |= {
                "classes": self.band.classes,
                "thresholds": list(self.band.thresholds),
                "low": _finite(self.band.low),
                "high": _finite(self.band.high - level),
            }
        else:
            found["below" if attribute.noise < 0 else "above"] = _finite(attribute.noise * level)
        return found


def in_words(attribute: TokenAttribute, config: ThresholdConfig) -> str:
    """An attribute's rule in a sentence."""
    rule = rule_of(config, attribute)
    if rule.rule is KNRule.cutoff:
        when = f"its p under the base model is above {rule.pcp:g}"
    elif rule.rule is RIRule.iqr:
        when = f"its score lies more than {rule.c:g} interquartile ranges below the first quartile of its response"
    elif rule.rule is TRRule.multi_otsu:
        of = ", of prompts and responses" if rule.fit is TRFit.released else ""
        when = f"its score is in cluster {rule.cluster}, from below, of {rule.classes} (Multi-Otsu{of})"
    else:
        when = f"it is among the {rule.q:.1%} of all response tokens that speak most for noise"
    shift = f", moved to drop {abs(rule.shift):.1%} {'more' if rule.shift > 0 else 'less'} of all" if rule.shift else ""
    cap = f"; at most {rule.cap:.0%} of a response" if rule.cap is not None else ""
    return f"Dropped when {when}{shift}{cap}."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fit(blocks: Iterable[Responses], config: ThresholdConfig, attributes: Sequence[str]) -> Cuts:
    """Fits the thresholds of `attributes` to a dataset given in blocks, whose columns are those that they read.

    The blocks are gone through several times, and no more than one is held.

    The rules of the paper need no more than one histogram. A quantile or a shift ranks the margins of all
    tokens: it moves the level to where the number dropped is nearest to the share asked for. Tokens with
    equal margins fall on the same side, so the share is met up to ties (for TR: up to the tokens of one
    vocabulary entry); of two equally near levels the one that drops less is taken. Caps come after that.
    """
    check_threshold(config)
    rows, band = pick(attributes), None
    for attribute in rows:
        if rule_of(config, attribute).rule is TRRule.multi_otsu:
            band = _fitted_band(blocks, attribute.source, config.tr)
    cuts = Cuts(config, {attribute.name: 0.0 for attribute in rows}, band)
    for attribute in rows:
        rule = rule_of(config, attribute)
        if rule.rule.value != "quantile" and rule.shift == 0:
            continue
        margins = Again(functools.partial(_margins, cuts, attribute, blocks))
        tokens, above = 0, 0
        for part in margins:
            tokens, above = tokens + len(part), above + int(np.count_nonzero(part > 0))
        share = rule.q if rule.rule.value == "quantile" else above / max(1, tokens)
        cuts.levels[attribute.name] = level_for(margins, round((share + rule.shift) * tokens))
    return cuts


def _fitted_band(blocks: Iterable[Responses], column: str, config: TRThreshold) -> Band:
    if config.fit is TRFit.responses:
        return otsu_band(sum_histograms(blocks, column, config.bins), config)
    every = Again(lambda: (_with_prompts(block, column) for block in blocks))
    low = min((float(tr.min(initial=math.inf)) for tr in every), default=math.inf)
    high = max((float(tr.max(initial=-math.inf)) for tr in every), default=-math.inf)
    if low > high:  # no token at all
        return otsu_band(np.zeros(config.bins, np.int64), config)
    counts = np.sum([histogram(tr, config.bins, (low, high)) for tr in every], axis=0)
    return otsu_band(counts, config, (low, high))


def _with_prompts(block: Responses, column: str) -> np.ndarray:
    """TR of a block's prompts and of its judged tokens, float64."""
    if block.prompt_tr is None:
        raise ValueError(
            "threshold.tr.fit=released is fitted to the prompts too, and the scored table has no column "
            f"{PROMPT_TR!r}: score the rows again (those of an earlier version lack it, and those of "
            "scorer.tr.variant=contextual), or set threshold.tr.fit=responses"
        )
    return np.concatenate([block.prompt_tr, block.columns[column]]).astype(np.float64)


def _margins(cuts: Cuts, attribute: TokenAttribute, blocks: Iterable[Responses]) -> Iterator[np.ndarray]:
    return (cuts.margins(attribute, block) for block in blocks)


def sum_histograms(blocks: Iterable[Responses], column: str, bins: int) -> np.ndarray:
    """The dataset's TR histogram.

    Raises:
        ValueError: a TR outside [0, 1].
    """
    total = np.zeros(bins, dtype=np.int64)
    for block in blocks:
        tr = block.columns[column]
        outside = (tr < 0) | (tr > 1)
        if outside.any():
            raise ValueError(f"{column} must lie in [0, 1]; found {tr[outside][0]}")
        total += histogram(tr, bins)
    return total


def level_for(margins: Iterable[np.ndarray], count: int) -> float:
    """The level above which the number of margins is nearest to `count`; fewer of two equally near.

    The margins, float64, are given in blocks and gone through several times; no more than a block is held.
    """
    sizes = [(np.count_nonzero(part > -np.inf), part.max(initial=-np.inf)) for part in margins]
    n, highest = sum(size for size, _ in sizes), max((high for _, high in sizes), default=-math.inf)
    if n == 0 or count <= 0:
        return math.inf if n == 0 else float(highest)
    if count >= n:
        return -math.inf
    tied = _largest(margins, int(count))  # it and its equals are all dropped or all kept
    without, with_them, next_lower = 0, 0, -math.inf
    for part in margins:
        without += int(np.count_nonzero(part > tied))
        with_them += int(np.count_nonzero(part >= tied))
        next_lower = max(next_lower, float(part[part < tied].max(initial=-np.inf)))
    return tied if count - without <= with_them - count else next_lower


def _largest(values: Iterable[np.ndarray], count: int) -> float:
    """The `count`-th largest of float64 values in blocks, by counting their leading bits, 16 more in each pass."""
    leading = np.uint64(0)
    for shift in (48, 32, 16, 0):
        counts = np.zeros(2**16, np.int64)
        for part in values:
            keys = _ordered(part) >> np.uint64(shift)
            keys = keys[keys >> np.uint64(16) == leading] if shift < 48 else keys
            counts += np.bincount((keys & np.uint64(0xFFFF)).astype(np.int64), minlength=2**16)
        from_above = np.cumsum(counts[::-1])
        place = int(np.searchsorted(from_above, count))
        count -= int(from_above[place] - counts[::-1][place])
        leading = leading << np.uint64(16) | np.uint64(2**16 - 1 - place)
    bits = leading ^ (np.uint64(2**63) if leading >> np.uint64(63) else ~np.uint64(0))
    return float(np.array([bits]).view(np.float64)[0])


def _ordered(values: np.ndarray) -> np.ndarray:
    """uint64 keys in the order of float64 values; both zeros have one."""
    bits = (values.astype(np.float64) + 0.0).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(2**63))


def _limits(block: Responses, margins: np.ndarray, cap: float, of_the_highest: bool) -> np.ndarray:
    """The margin that a drop must exceed where no tie at the cap is dropped, float64 (N,).

    The authors' code compares with one of the sorted scores of a response of n tokens: the score at int(cap * n) where
    low scores are dropped, that at int((1 - cap) * n) where high ones are.
    """
    ordered = margins[block.order(margins)]  # ascending within each response; low scores have the high margins
    n = block.lengths
    place = (n * (1 - cap)).astype(np.int64) if of_the_highest else n - 1 - (n * cap).astype(np.int64)
    last = np.minimum(block.offsets[:-1] + np.clip(place, 0, np.maximum(n - 1, 0)), max(len(ordered) - 1, 0))
    return np.repeat(ordered[last], n) if len(ordered) else ordered


def _capped(block: Responses, dropped: np.ndarray, margins: np.ndarray, cap: float) -> np.ndarray:
    """Leaves at most floor(cap * n) drops to a response of n tokens: largest margins, then earlier tokens."""
    candidates = block.select(dropped)
    allowed = np.floor(cap * block.lengths + 1e-9).astype(np.int64)  # 0.29 * 100 is 28.999...
    most = candidates.rank(-margins[dropped]) < allowed[candidates.example]
    left = np.zeros_like(dropped)
    left[np.flatnonzero(dropped)[most]] = True
    return left
