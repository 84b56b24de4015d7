"""Intervals, corrections, pooling and power, against scipy, hand-worked numbers and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xtf.results import resampled_means
from xtf.statistics import (
    Components,
    Effect,
    components,
    effect,
    family,
    holm,
    items_needed,
    random_effects,
    seed_effect,
    smallest_study,
)


def test_with_one_seed_the_interval_is_scipys_percentile_bootstrap_over_items() -> None:
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], p=[0.1, 0.6, 0.3], size=150)
    ours = effect(values[None])
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1)
    assert ours.interval() == pytest.approx(
        (theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.008
    )
    assert ours.deviation == pytest.approx(theirs.standard_error, rel=0.03)


def test_the_bootstrap_over_seeds_and_items_has_the_variance_worked_out_by_hand() -> None:
    # Row means 1, 3; column means 1, 2, 3; what is left: +1 0 -1 / -1 0 +1. Variances of a draw:
    # 1 / 2 seeds + (2 / 3) / 3 items + (2 / 3) / 6 cells.
    values = np.array([[1.0, 1.0, 1.0], [1.0, 3.0, 5.0]])
    draws = resampled_means(values, 40_000)
    assert draws.mean() == pytest.approx(2.0, abs=0.02)
    assert draws.var() == pytest.approx(1 / 2 + 2 / 9 + 1 / 9, rel=0.02)


def coverage(a: float, b: float, e: float, seeds: int, items: int, repeats: int = 300) -> float:
    """How often the 95 % bootstrap interval holds the true effect, 0, given the spreads of the three parts."""
    generator = np.random.default_rng(7)
    held = 0
    for _ in range(repeats):
        values = (
            a * generator.normal(size=(seeds, 1))
            + b * generator.normal(size=(1, items))
            + e * generator.normal(size=(seeds, items))
        )
        low, high = np.quantile(resampled_means(values, 500), [0.025, 0.975])
        held += low <= 0 <= high
    return held / repeats


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.92 <= coverage(a=0.0, b=0.4, e=0.4, seeds=5, items=60) <= 0.99
    assert 0.92 <= coverage(a=0.05, b=0.4, e=0.4, seeds=5, items=60) <= 0.99


def test_five_seeds_that_differ_by_more_than_items_make_intervals_too_short() -> None:
    # The docstring of xtf.statistics.effect says so: sqrt(4 / 5) of the width, and no t quantile.
    assert 0.76 <= coverage(a=0.4, b=0.1, e=0.1, seeds=5, items=60) <= 0.9


def test_a_figure_of_whole_runs_has_students_interval_over_seeds() -> None:
    values = np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    found, theirs = seed_effect(values), stats.ttest_1samp(values, 0)
    assert found.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.p_value() == pytest.approx(theirs.pvalue)
    alone = seed_effect(values[:1])
    assert alone.interval() == (-np.inf, np.inf)
    assert alone.p_value() == 1.0


def test_holm_steps_down_as_worked_by_hand() -> None:
    found = holm([0.01, 0.04, 0.03, 0.005])
    # 0.005 <= 0.05 / 4, 0.01 <= 0.05 / 3, 0.03 > 0.05 / 2: it and 0.04 are held against that.
    assert [p for p, _ in found] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [alpha for _, alpha in found] == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])


def test_an_interval_leaves_out_zero_exactly_where_holm_rejects() -> None:
    generator = np.random.default_rng(2)
    decided = 0
    for _ in range(60):
        effects = [
            Effect(0, 5, 9, shift + generator.normal(size=999), 1.0) for shift in generator.normal(0, 2.2, 5)
        ]
        for found in family(effects):
            assert (found.sign != 0) == (found.p <= 0.05)
            decided += found.sign != 0
    assert 30 < decided < 270


def test_no_difference_at_all_has_p_one() -> None:
    found = effect(np.zeros((3, 20)))
    assert (found.interval(), found.p_value()) == ((0.0, 0.0), 1.0)
    assert family([found])[0].sign == 0


def test_random_effects_as_worked_by_hand() -> None:
    apart = random_effects([1.0, 3.0], [1.0, 1.0])  # Q = 2, scale 2 - 2 / 2 = 1, tau^2 = 1; weights 1 / 2
    assert (apart.value, apart.tau) == pytest.approx((2.0, 1.0))
    assert (apart.low, apart.high) == pytest.approx((2 - 1.96, 2 + 1.96), abs=1e-3)
    alike = random_effects([0.0, 2.0], [1.0, 3.0])  # centre 1 / 2, Q = 1 = k - 1: tau^2 = 0; variance 3 / 4
    assert (alike.value, alike.tau) == pytest.approx((0.5, 0.0))
    assert alike.high - alike.value == pytest.approx(1.96 * 0.75**0.5, abs=1e-3)
    with pytest.raises(ValueError, match="two tasks"):
        random_effects([1.0], [1.0])


def test_variance_components_as_worked_by_hand() -> None:
    # Row means 0.5, 3.5 with variance 4.5; column means 1, 3 with 2; what is left is +-0.5, so 4 / 4 over 1.
    found = components(np.array([[0.0, 1.0], [2.0, 5.0]]))
    assert (found.seeds, found.items, found.rest) == pytest.approx((4.5 - 1 / 2, 2 - 1 / 2, 1.0))
    assert found.variance(2, 3) == pytest.approx(4 / 2 + 1.5 / 3 + 1 / 6)
    with pytest.raises(ValueError, match="two seeds and two items, not 1"):
        components(np.zeros((1, 5)))


def test_the_study_that_the_power_formula_asks_for_finds_the_gain_four_times_in_five() -> None:
    parts, gain = Components(seeds=1e-4, items=0.04, rest=0.2), 0.05
    items = items_needed(parts, gain, seeds=2)
    assert items == 522  # (0.04 + 0.1) / ((0.05 / 2.8016)^2 - 0.0001 / 2)
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(500):
        table = (
            gain
            + generator.normal(0, 1e-2, (2, 1))
            + generator.normal(0, 0.2, (1, items))
            + generator.normal(0, 0.2**0.5, (2, items))
        )
        found += abs(table.mean()) > 1.96 * parts.variance(2, items) ** 0.5
    assert found / 500 == pytest.approx(0.8, abs=0.05)


def test_the_smallest_study_uses_the_items_at_hand_before_more_seeds() -> None:
    parts = Components(seeds=1e-4, items=0.04, rest=0.2)
    assert smallest_study(parts, 0.05, most_items=600) == (2, 522)
    seeds, items = smallest_study(parts, 0.05, most_items=300)
    assert seeds > 2
    assert items <= 300
    assert items_needed(parts, 0.05, seeds - 1) > 300
    assert items_needed(parts, 0.001, seeds=5) is None  # 0.0001 / 5 alone is more than 0.001 allows
    with pytest.raises(ValueError, match="study of 100 seeds"):
        smallest_study(Components(0.01, 0.0, 0.0), 0.01, most_items=100)
    with pytest.raises(ValueError, match="gain=0"):
        items_needed(parts, 0, 2)
