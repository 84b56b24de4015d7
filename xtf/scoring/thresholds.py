"""From scores to drop decisions: the IQR fence for RI, the cutoff for KN, Multi-Otsu for TR; NumPy only.

Every rule turns a token's score into a *margin*: how far it lies on the wrong side of its threshold. A token
is dropped if its margin is above the *level*, which is 0. Shifts and quantiles move the level, and caps take
the largest margins first, so all rules share that part. Scores are flat arrays of N response tokens with the
response `lengths` beside them.

The rules are equations 5 to 7 of arXiv 2602.14536.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xtf.config.schema import Attribute, KNRule, KNThreshold, RIRule, RIThreshold, ThresholdConfig, TRRule, TRThreshold

PRESETS = {
    "paper": ThresholdConfig(name="paper"),
    "released": ThresholdConfig(
        name="released",
        ri=RIThreshold(c=1.5, cap=0.05),
        kn=KNThreshold(cap=0.1),
        tr=TRThreshold(cluster=1, cap=0.05),
    ),
    "quantile": ThresholdConfig(
        name="quantile",
        ri=RIThreshold(rule=RIRule.quantile),
        kn=KNThreshold(rule=KNRule.quantile),
        tr=TRThreshold(rule=TRRule.quantile),
    ),
}

SOURCE = {Attribute.ri: "ri", Attribute.kn: "logp", Attribute.tr: "tr"}  # the column that a rule reads


def check(config: ThresholdConfig) -> None:
    """ValueError for a setting that is out of range, with its key and its value."""
    for attribute in Attribute:
        rule = getattr(config, attribute.value)
        key = f"threshold.{attribute.value}"
        _require(0 <= rule.q <= 1, f"{key}.q", rule.q, "a share from 0 to 1")
        _require(
            rule.cap is None or 0 < rule.cap <= 1,
            f"{key}.cap",
            rule.cap,
            "a share above 0, at most 1, or null",
        )
        _require(-1 < rule.shift < 1, f"{key}.shift", rule.shift, "a share between -1 and 1")
        if rule.rule.value == "quantile":
            _require(0 <= rule.q + rule.shift <= 1, f"{key}.q + shift", rule.q + rule.shift, "a share from 0 to 1")
    _require(0 <= config.ri.c < math.inf, "threshold.ri.c", config.ri.c, "a number of at least 0")
    _require(0 < config.kn.pcp < 1, "threshold.kn.pcp", config.kn.pcp, "a probability between 0 and 1")
    tr = config.tr
    _require(2 <= tr.classes <= 16, "threshold.tr.classes", tr.classes, "from 2 to 16")
    _require(1 <= tr.cluster <= tr.classes, "threshold.tr.cluster", tr.cluster, f"from 1 to classes ({tr.classes})")
    _require(tr.classes <= tr.bins <= 4096, "threshold.tr.bins", tr.bins, f"from classes ({tr.classes}) to 4096")


def _require(holds: bool, key: str, value: Any, valid: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value} is out of range: it must be {valid}")


# --- the rules ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """A block of examples: response lengths, int64 (R,), and flat columns (N,) named `ri`, `logp`, `tr`."""

    lengths: np.ndarray
    columns: dict[str, np.ndarray]


def quantiles(scores: np.ndarray, lengths: np.ndarray, q: float) -> np.ndarray:
    """The q-quantile of each example's scores, linearly interpolated as `np.quantile` does; float64 (R,)."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ordered = scores[np.lexsort((scores, rows))].astype(np.float64)
    starts = np.cumsum(lengths) - lengths
    place = q * (lengths - 1)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, lengths - 1)
    low, high = ordered[starts + below], ordered[starts + above]
    return low + (high - low) * (place - below)


def iqr_fences(scores: np.ndarray, lengths: np.ndarray, c: float) -> np.ndarray:
    """Q1 - c (Q3 - Q1) of each example's scores (eq. 5); float64 (R,). Equal scores are their own fence."""
    q1, q3 = (quantiles(scores, lengths, q) for q in (0.25, 0.75))
    return q1 - c * (q3 - q1)


def histogram(tr: np.ndarray, bins: int) -> np.ndarray:
    """Counts of TR over equal bins of [0, 1], int64 (bins,); those of blocks add up to the dataset's."""
    return np.histogram(tr, bins=bins, range=(0.0, 1.0))[0]


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


def otsu_band(counts: np.ndarray, config: TRThreshold) -> Band:
    """The `cluster`-th lowest of `classes` clusters (eq. 7), from the histogram of the dataset's TR.

    With fewer occupied bins than classes each bin is a cluster of its own. If that leaves fewer than two
    clusters, or fewer than `cluster`, the band is empty.
    """
    edges = np.linspace(0.0, 1.0, len(counts) + 1)
    edges[-1] = np.nextafter(1.0, 2.0)  # the last bin includes 1
    classes = min(config.classes, int(np.count_nonzero(counts)))
    starts = multi_otsu(counts, classes)
    thresholds = tuple(float(edges[start]) for start in starts[1:])
    if classes < 2 or config.cluster > classes:
        return Band(math.inf, math.inf, thresholds, classes)
    bounds = [0.0, *thresholds, float(edges[-1])]
    return Band(bounds[config.cluster - 1], bounds[config.cluster], thresholds, classes)


# --- fitting and applying -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cuts:
    """Thresholds fitted to a dataset: with `drop`, all that is needed to mask any part of it."""

    config: ThresholdConfig
    levels: dict[Attribute, float]
    band: Band | None  # of TR; None unless its rule is multi_otsu

    def margins(self, attribute: Attribute, block: Scores) -> np.ndarray:
        """How far each score is on the wrong side of its threshold, float64 (N,); -inf: never dropped."""
        rule = getattr(self.config, attribute.value)
        scores = block.columns[SOURCE[attribute]].astype(np.float64)
        if attribute is Attribute.kn:  # p > pcp in log space; high p is low novelty
            return scores - math.log(rule.pcp) if rule.rule is KNRule.cutoff else scores
        if rule.rule is RIRule.iqr:
            return np.repeat(iqr_fences(scores, block.lengths, rule.c), block.lengths) - scores
        if rule.rule is TRRule.multi_otsu:
            assert self.band is not None
            return np.where(scores >= self.band.low, self.band.high - scores, -np.inf)
        return -scores

    def drop(self, attribute: Attribute, block: Scores) -> np.ndarray:
        """Which response tokens the attribute drops; bool (N,)."""
        margins = self.margins(attribute, block)
        dropped = margins > self.levels[attribute]
        cap = getattr(self.config, attribute.value).cap
        return dropped if cap is None else _capped(dropped, margins, block.lengths, cap)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The thresholds in numbers, in the units of the scores; None: there is none that drops some."""
        return {attribute.value: self._describe(attribute) for attribute in self.levels}

    def _describe(self, attribute: Attribute) -> dict[str, Any]:
        rule, level = getattr(self.config, attribute.value), self.levels[attribute]
        found: dict[str, Any] = {"rule": rule.rule.value, "shift": rule.shift, "cap": rule.cap}
        if attribute is Attribute.kn:
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
            found["below"] = _finite(-level)
        return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def fit(blocks: Sequence[Scores], config: ThresholdConfig, attributes: Sequence[Attribute]) -> Cuts:
    """Fits the thresholds of `attributes` to a dataset given in blocks.

    The rules of the paper need no more than one histogram. A quantile or a shift ranks the margins of all
    tokens: it moves the level to where the number dropped is nearest to the share asked for. Tokens with
    equal margins fall on the same side, so the share is met up to ties (for TR: up to the tokens of one
    vocabulary entry); of two equally near levels the one that drops less is taken. Caps come after that.
    """
    check(config)
    band = None
    if Attribute.tr in attributes and config.tr.rule is TRRule.multi_otsu:
        band = otsu_band(sum_histograms(blocks, config.tr.bins), config.tr)
    cuts = Cuts(config, dict.fromkeys(attributes, 0.0), band)
    for attribute in attributes:
        rule = getattr(config, attribute.value)
        if rule.rule.value != "quantile" and rule.shift == 0:
            continue
        margins = np.concatenate([cuts.margins(attribute, block) for block in blocks])
        share = rule.q if rule.rule.value == "quantile" else np.count_nonzero(margins > 0) / len(margins)
        cuts.levels[attribute] = level_for(margins, round((share + rule.shift) * len(margins)))
    return cuts


def sum_histograms(blocks: Sequence[Scores], bins: int) -> np.ndarray:
    """The dataset's TR histogram; ValueError for a TR outside [0, 1]."""
    total = np.zeros(bins, dtype=np.int64)
    for block in blocks:
        tr = block.columns["tr"]
        outside = (tr < 0) | (tr > 1)
        if outside.any():
            raise ValueError(f"tr must lie in [0, 1]; found {tr[outside][0]}")
        total += histogram(tr, bins)
    return total


def level_for(margins: np.ndarray, count: int) -> float:
    """The level above which the number of margins is nearest to `count`; fewer of two equally near."""
    ranked = np.sort(margins[margins > -np.inf])  # ascending
    n = len(ranked)
    if n == 0 or count <= 0:
        return math.inf if n == 0 else float(ranked[-1])
    if count >= n:
        return -math.inf
    tied = ranked[n - count]  # the count-th largest; it and its equals are all dropped or all kept
    below, up_to = np.searchsorted(ranked, tied, "left"), np.searchsorted(ranked, tied, "right")
    without, with_them = n - int(up_to), n - int(below)
    if count - without <= with_them - count:
        return float(tied)
    return float(ranked[below - 1]) if below > 0 else -math.inf


def _capped(dropped: np.ndarray, margins: np.ndarray, lengths: np.ndarray, cap: float) -> np.ndarray:
    """Leaves at most floor(cap * n) drops to a response of n tokens: largest margins, then earlier tokens."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    candidates = np.flatnonzero(dropped)
    ordered = candidates[np.lexsort((candidates, -margins[candidates], rows[candidates]))]
    per_row = np.bincount(rows[candidates], minlength=len(lengths))
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    allowed = np.floor(cap * lengths + 1e-9).astype(np.int64)  # 0.29 * 100 is 28.999...
    kept = np.zeros_like(dropped)
    kept[ordered[rank < allowed[rows[ordered]]]] = True
    return kept
