"""Intervals and pass@k."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from xtf.graders.metrics import bootstrap, pass_at_k, wilson


def test_wilson_agrees_with_its_published_example_and_with_scipy() -> None:
    from scipy.stats import binomtest

    for n, k in [(10, 0), (10, 5), (10, 10), (1319, 1), (1319, 700)]:
        interval = binomtest(k, n).proportion_ci(method="wilson")
        metric = wilson(k, n)
        assert (metric.low, metric.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
        assert 0 <= metric.low <= metric.value <= metric.high <= 1
    # Newcombe 1998, table I, 15 of 148
    assert (wilson(15, 148).low, wilson(15, 148).high) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says_and_repeats() -> None:
    values = np.random.default_rng(1).normal(size=400)
    metric = bootstrap(lambda index: float(values[index].mean()), 400)
    half = 1.96 * values.std() / 20
    assert metric.value == pytest.approx(values.mean())
    assert (metric.high - metric.low) / 2 == pytest.approx(half, rel=0.1)
    assert metric == bootstrap(lambda index: float(values[index].mean()), 400)


def test_bootstrap_of_three_items_equals_all_resamples_counted() -> None:
    values = np.array([0.0, 0.3, 1.0])
    every = [np.mean(values[list(index)]) for index in product(range(3), repeat=3)]
    metric = bootstrap(lambda index: float(values[index].mean()), 3)
    expected = np.quantile(every, [0.025, 0.975], method="inverted_cdf")  # 1 of 27 resamples is all zeros: 3.7 %
    assert (metric.low, metric.high) == pytest.approx(expected) == (0.0, 1.0)


@pytest.mark.parametrize("n", range(1, 11))
def test_pass_at_k_equals_the_share_of_all_subsets_with_a_pass(n: int) -> None:
    for correct in range(n + 1):
        samples = [place < correct for place in range(n)]
        for k in range(1, n + 1):
            subsets = list(combinations(samples, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)
