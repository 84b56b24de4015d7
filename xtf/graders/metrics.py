"""Figures over graded items with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 2000


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval; `n` is the number of items behind it."""

    value: float
    low: float
    high: float
    n: int
    interval: str
    unit: str = "share"  # or nats


def wilson(successes: int, n: int) -> Metric:
    """A proportion and its Wilson score interval, which keeps its level for small n and near 0 and 1."""
    assert 0 <= successes <= n and n > 0, (successes, n)
    from scipy import stats  # takes seconds to import; processes that only compare answers go without

    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return Metric(successes / n, float(interval.low), float(interval.high), n, "wilson")


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, over: str = "items") -> Metric:
    """A statistic of item indices with its percentile interval over resamples of the items (fixed seed)."""
    # Not scipy.stats.bootstrap: it refuses a single item, and from the same draws it takes quantiles at
    # 0.025000000000000022, so that the last digits of recorded intervals would change.
    assert n > 0
    generator = np.random.default_rng(0)
    draws = [statistic(generator.integers(n, size=n)) for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(float(statistic(np.arange(n))), float(low), float(high), n, f"bootstrap over {over}")


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate from n >= k samples of the chance that one of k passes: 1 - C(n - c, k) / C(n, k)."""
    assert 0 <= correct <= n and 1 <= k <= n, (n, correct, k)
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)
