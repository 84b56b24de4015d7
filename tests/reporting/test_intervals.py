"""Intervals, corrections, pooling and power, against scipy, hand-worked numbers and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from xtf.reporting.intervals import (
    Components,
    Effect,
    Student,
    components,
    crossed_effect,
    effect,
    family,
    holm,
    items_needed,
    power,
    random_effects,
    resampled_means,
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
    assert ours.draws is not None
    assert ours.draws.std() == pytest.approx(theirs.standard_error, rel=0.03)
    alone = stats.ttest_1samp(values, 0)
    assert ours.student.interval() == pytest.approx(tuple(alone.confidence_interval(0.95)))
    assert ours.student.p_value() == pytest.approx(alone.pvalue)


def test_the_bootstrap_over_seeds_and_items_has_the_variance_worked_out_by_hand() -> None:
    # Row means 1, 3; column means 1, 2, 3; what is left: +1 0 -1 / -1 0 +1. Variances of a draw:
    # 1 / 2 seeds + (2 / 3) / 3 items + (2 / 3) / 6 cells.
    values = np.array([[1.0, 1.0, 1.0], [1.0, 3.0, 5.0]])
    draws = resampled_means(values, 40_000)
    assert draws.mean() == pytest.approx(2.0, abs=0.02)
    assert draws.var() == pytest.approx(1 / 2 + 2 / 9 + 1 / 9, rel=0.02)


def coverage(a: float, b: float, e: float, seeds: int, items: int, repeats: int = 300) -> tuple[float, float]:
    """How often the 95 % intervals of the bootstrap and of Student's t hold the true effect, 0."""
    generator = np.random.default_rng(7)
    held = np.zeros(2)
    for _ in range(repeats):
        values = (
            a * generator.normal(size=(seeds, 1))
            + b * generator.normal(size=(1, items))
            + e * generator.normal(size=(seeds, items))
        )
        bootstrap = np.quantile(resampled_means(values, 500), [0.025, 0.975])
        intervals = bootstrap, crossed_effect(values).interval()
        held += [low <= 0 <= high for low, high in intervals]
    return held[0] / repeats, held[1] / repeats


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    for found in (
        *coverage(a=0.0, b=0.4, e=0.4, seeds=5, items=60),
        *coverage(a=0.05, b=0.4, e=0.4, seeds=5, items=60),
    ):
        assert 0.92 <= found <= 0.99


def test_five_seeds_that_differ_by_more_than_items_make_the_bootstrap_too_short_and_students_t_not() -> None:
    bootstrap, student = coverage(a=0.4, b=0.1, e=0.1, seeds=5, items=60)
    assert 0.76 <= bootstrap <= 0.9
    assert 0.92 <= student <= 0.98


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("a", [0.0, 0.05, 0.13, 0.4])
def test_students_t_holds_the_truth_whatever_differs(seeds: int, a: float) -> None:
    # At 0.13 = sqrt(e / items) the seeds' own part is as large as what they are told from, and most often missed.
    assert coverage(a=a, b=0.1, e=1.0, seeds=seeds, items=60)[1] >= 0.91


def test_students_t_over_seeds_and_items_as_worked_by_hand() -> None:
    # Row means 1, 6; column means 2, 5; what is left: -1 1 / 1 -1. Mean squares 2 * 12.5, 2 * 4.5, 4 / 1: the variance
    # is (25 + 9 - 4) / 4, on 30^2 / (25^2 + 9^2 + 4^2) degrees of freedom.
    found = crossed_effect(np.array([[-1.5, 3.5], [5.5, 6.5]]))
    assert found.value == 3.5
    assert found.student.deviation == pytest.approx((30 / 4) ** 0.5)
    assert found.student.degrees == pytest.approx(900 / (625 + 81 + 16))
    # Row means equal: of two seeds the rest stands for theirs, (4 + 9 - 4) / 4 on 9^2 / (4^2 + 9^2 + 4^2), at least 1.
    alike = crossed_effect(np.array([[1.0, 6.0], [3.0, 4.0]]))
    assert alike.student.deviation == pytest.approx((9 / 4) ** 0.5)
    assert alike.student.degrees == 1
    # Of three seeds it is left out: 3 * 4.5 of the items alone, on one degree of freedom.
    three = crossed_effect(np.array([[1.0, 6.0], [3.0, 4.0], [2.0, 5.0]]))
    assert three.student.deviation == pytest.approx((3 * 4.5 / 6) ** 0.5)
    assert three.student.degrees == pytest.approx(1.0)


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
            Effect(0, 5, 9, shift + generator.normal(size=999), Student(0, 1.0, 4))
            for shift in generator.normal(0, 2.2, 5)
        ]
        for found in family(effects):
            assert (found.sign != 0) == (found.p <= 0.05)
            decided += found.sign != 0
    assert 30 < decided < 270


def test_students_intervals_have_holms_levels_from_their_own_p() -> None:
    generator = np.random.default_rng(5)
    tables = [generator.normal(shift, 1, (4, 50)) for shift in (0.0, 0.1, 0.3, 0.6)]
    found = family([effect(table) for table in tables])
    alone = family([crossed_effect(table) for table in tables])
    assert [one.student for one in found] == [(one.low, one.high) for one in alone]
    assert [one.student_p for one in found] == [one.p for one in alone]
    assert [one.student_p < 0.05 for one in found] == [
        not (low <= 0 <= high) for low, high in (one.student for one in found)
    ]


def test_no_difference_at_all_has_p_one() -> None:
    found = effect(np.zeros((3, 20)))
    assert (found.interval(), found.p_value()) == ((0.0, 0.0), 1.0)
    assert family([found])[0].sign == 0


def test_random_effects_as_worked_by_hand() -> None:
    # Q = 2, scale 2 - 2 / 2 = 1, tau^2 = 1; weights 1 / 2, q = 1; t of one degree of freedom is 12.706
    apart = random_effects([1.0, 3.0], [1.0, 1.0])
    assert (apart.value, apart.tau) == pytest.approx((2.0, 1.0))
    assert (apart.low, apart.high) == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-3)
    # centre 1 / 2, Q = 1 = k - 1: tau^2 = 0; variance 3 / 4, q = 1
    alike = random_effects([0.0, 2.0], [1.0, 3.0])
    assert (alike.value, alike.tau) == pytest.approx((0.5, 0.0))
    assert alike.high - alike.value == pytest.approx(12.706 * 0.75**0.5, abs=1e-3)
    # tasks that agree better than their variances allow: q = 0 counts as 1, so the interval does not shrink to nothing
    same = random_effects([2.0, 2.0, 2.0], [3.0, 3.0, 3.0])
    assert (same.low, same.high) == pytest.approx((2 - 4.3027, 2 + 4.3027), abs=1e-3)
    with pytest.raises(ValueError, match="two tasks"):
        random_effects([1.0], [1.0])
    with pytest.raises(ValueError, match="positive variances"):
        random_effects([1.0, 2.0], [1.0, 0.0])


@pytest.mark.parametrize("tau", [0.0, 1.0, 5.0])
def test_three_tasks_are_enough_for_the_pooled_interval_to_hold_the_truth(tau: float) -> None:
    generator = np.random.default_rng(7)
    variances = np.array([0.5, 1.0, 2.0])
    held = 0
    for _ in range(1000):
        drawn = generator.normal(10, tau, 3) + generator.normal(0, np.sqrt(variances))
        pooled = random_effects(drawn.tolist(), variances.tolist())
        held += pooled.low <= 10 <= pooled.high
    assert held >= 930  # 95 %, less three standard errors of a simulation of 1,000


def test_variance_components_as_worked_by_hand() -> None:
    # Row means 0.5, 3.5 with variance 4.5; column means 1, 3 with 2; what is left is +-0.5, so 4 / 4 over 1.
    found = components(np.array([[0.0, 1.0], [2.0, 5.0]]))
    assert (found.seeds, found.items, found.rest) == pytest.approx((4.5 - 1 / 2, 2 - 1 / 2, 1.0))
    assert found.variance(2, 3) == pytest.approx(4 / 2 + 1.5 / 3 + 1 / 6)
    with pytest.raises(ValueError, match="two seeds and two items, not 1"):
        components(np.zeros((1, 5)))


@pytest.mark.parametrize(
    ("parts", "seeds"),
    [(Components(1e-4, 0.04, 0.2), 3), (Components(4e-4, 0.04, 0.2), 5), (Components(0.0, 0.0, 0.2), 3)],
)
def test_the_study_that_is_asked_for_finds_the_gain_four_times_in_five(parts: Components, seeds: int) -> None:
    gain = 0.05
    items = items_needed(parts, gain, seeds)
    assert items is not None
    generator = np.random.default_rng(1)
    found = 0
    for _ in range(500):
        table = (
            gain
            + generator.normal(0, parts.seeds**0.5, (seeds, 1))
            + generator.normal(0, parts.items**0.5, (1, items))
            + generator.normal(0, parts.rest**0.5, (seeds, items))
        )
        found += crossed_effect(table).interval()[0] > 0
    assert found / 500 == pytest.approx(0.8, abs=0.05)
    assert power(parts, gain, seeds, int(items / 1.3)) < 0.8


def test_with_many_seeds_the_power_is_that_of_the_normal_approximation() -> None:
    parts = Components(seeds=1e-4, items=0.04, rest=0.2)
    known = stats.norm.sf(1.96 - 0.03 / parts.variance(100, 400) ** 0.5)
    assert 0.5 < known < 0.95
    assert power(parts, 0.03, 100, 400) == pytest.approx(known, abs=0.02)


def test_the_smallest_study_uses_the_items_at_hand_before_more_seeds() -> None:
    parts = Components(seeds=1e-4, items=0.04, rest=0.2)
    seeds, items = smallest_study(parts, 0.05, most_items=600)
    assert (seeds, items <= 600) == (4, True)
    before = items_needed(parts, 0.05, seeds - 1)
    assert before is not None
    assert before > 600
    assert items_needed(parts, 0.05, 2) is None  # two seeds say too little of their spread, whatever the items
    # 0.0001 / 5 alone is more than the variance that a gain of 0.001 allows
    assert items_needed(parts, 0.001, seeds=5) is None
    assert smallest_study(parts, 0.05, most_items=50)[1] > 50
    with pytest.raises(ValueError, match="study of 100 seeds"):
        smallest_study(Components(0.01, 0.0, 0.0), 0.01, most_items=100)
    with pytest.raises(ValueError, match="gain=0"):
        items_needed(parts, 0, 2)
