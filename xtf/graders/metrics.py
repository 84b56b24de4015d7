"""Figures over graded items with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BOOTSTRAP_RESAMPLES = 2000
Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval; `n` is the number of items behind it."""

    value: float
    low: float
    high: float
    n: int
    interval: str
    unit: str = "share"  # or nats


# -- figures with intervals ----------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Metric:
    """A proportion and its Wilson score interval, which keeps its level for small n and near 0 and 1."""
    assert 0 <= successes <= n and n > 0, (successes, n)
    share, spread = successes / n, Z_95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    # the bounds at 0 and n successes are exactly 0 and 1; rounding must not put them inside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Metric(share, low, high, n, "wilson")


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, over: str = "items") -> Metric:
    """A statistic of item indices with its percentile interval over resamples of the items (fixed seed)."""
    assert n > 0
    generator = np.random.default_rng(0)
    draws = [statistic(generator.integers(n, size=n)) for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(float(statistic(np.arange(n))), float(low), float(high), n, f"bootstrap over {over}")
