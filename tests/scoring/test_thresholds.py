"""Every rule on numbers worked out by hand, and the fast code against slow, obvious code."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from xtf.config.checks import check_threshold
from xtf.config.schema import (
    PRESETS,
    Attribute,
    KNRule,
    KNThreshold,
    RIRule,
    RIThreshold,
    ThresholdConfig,
    TRRule,
    TRThreshold,
)
from xtf.data.ragged import Responses
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.thresholds import fit, histogram, iqr_fences, level_for, multi_otsu, otsu_band, quantiles

RI, KN, TR = Attribute.ri, Attribute.kn, Attribute.tr


def block(attribute, *responses):
    """Scored examples of one attribute from a list of scores each."""
    values = np.concatenate([np.array(response, dtype=np.float32) for response in responses])
    return Responses(np.array([len(response) for response in responses]), {ATTRIBUTES[attribute].source: values})


def dropped(attribute, rule, *responses):
    """0 and 1 per response token, after fitting `rule` to these responses."""
    data = block(attribute, *responses)
    cuts = fit([data], ThresholdConfig("test", **{attribute.value: rule}), [attribute])
    return cuts.drop(ATTRIBUTES[attribute], data).astype(int).tolist()


def log(*probabilities):
    return np.log(probabilities).tolist()


# --- RI: the fence of each response -------------------------------------------------------------------------


def test_the_fence_is_q1_minus_c_times_the_spread():
    # 0 6 7 8 9: Q1 = 6, Q3 = 8, fence 6 - 1 * 2 = 4; with c = 3.5 it is -1
    assert dropped(RI, RIThreshold(), [9, 0, 6, 7, 8]) == [0, 1, 0, 0, 0]
    assert dropped(RI, RIThreshold(c=3.5), [9, 0, 6, 7, 8]) == [0, 0, 0, 0, 0]


def test_a_score_on_the_fence_is_kept():
    # 4 6 7 8 9: Q1 = 6, Q3 = 8, fence 4
    assert dropped(RI, RIThreshold(), [4, 6, 7, 8, 9]) == [0, 0, 0, 0, 0]


def test_each_response_has_its_own_fence():
    assert dropped(RI, RIThreshold(), [9, 0, 6, 7, 8], [109, 100, 106, 107, 108]) == [0, 1, 0, 0, 0] * 2


@pytest.mark.parametrize("response", [[3.5], [2, 2, 2, 2], [1, 5]])
def test_one_token_constant_scores_and_two_tokens_have_no_outlier(response):
    assert sum(dropped(RI, RIThreshold(), response)) == 0


def test_quantiles_are_those_of_numpy():
    generator = np.random.default_rng(0)
    lengths = np.array([1, 2, 3, 4, 5, 50, 7, 1])
    scores = generator.normal(size=lengths.sum()).astype(np.float32)
    rows = np.split(scores.astype(np.float64), np.cumsum(lengths)[:-1])
    for q in (0, 0.25, 0.5, 0.75, 1):
        np.testing.assert_allclose(quantiles(scores, lengths, q), [np.quantile(row, q) for row in rows], rtol=1e-12)
    assert iqr_fences(scores, lengths, 1.0)[0] == scores[0]


# --- KN: the cutoff -----------------------------------------------------------------------------------------


def test_kn_drops_p_above_the_cutoff():
    assert dropped(KN, KNThreshold(), log(0.5, 0.951, 0.949, 0.999)) == [0, 1, 0, 1]
    assert dropped(KN, KNThreshold(pcp=0.9), log(0.5, 0.951, 0.949, 0.999)) == [0, 1, 1, 1]


def test_the_cutoff_tells_probabilities_apart_that_round_to_one():
    near = [-1e-9, -1e-11]  # p = 1 - 1e-9 and 1 - 1e-11: both 1.0 in float32
    assert dropped(KN, KNThreshold(pcp=1 - 1e-10), near) == [0, 1]


# --- TR: Multi-Otsu -----------------------------------------------------------------------------------------

CLUMPS = [0.0, 0.01, 0.02, 0.3, 0.31, 0.5, 0.51, 0.52, 0.7, 0.99, 1.0]


def test_the_second_lowest_of_five_clumps_is_dropped():
    assert dropped(TR, TRThreshold(), CLUMPS) == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("cluster", "places"), [(1, [0, 1, 2]), (4, [8]), (5, [9, 10])])
def test_any_clump_can_be_chosen_also_the_one_that_ends_at_one(cluster, places):
    assert np.flatnonzero(dropped(TR, TRThreshold(cluster=cluster), CLUMPS)).tolist() == places


def test_the_dataset_is_clustered_whole_not_response_by_response():
    assert dropped(TR, TRThreshold(), CLUMPS[:4], CLUMPS[4:]) == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.2, 0.9, 0.2, 0.5], [0, 0, 0, 1]),  # three values, five classes: three clusters, the second is 0.5
        ([0.2, 0.9], [0, 0]),  # the second of two is the highest: no noise
        ([1.0, 1.0, 1.0], [0, 0, 0]),  # one value: nothing to tell apart
        ([0.4], [0]),
    ],
)
def test_fewer_values_than_classes_make_each_value_a_cluster(scores, expected):
    assert dropped(TR, TRThreshold(), scores) == expected


def test_a_cluster_beyond_the_values_there_are_drops_nothing():
    assert dropped(TR, TRThreshold(cluster=3), [0.2, 0.9]) == [0, 0]


def best_split_by_enumeration(counts, classes):
    """The split with the largest variance between classes, by trying all; the first of equals."""
    places = np.arange(len(counts))
    mean = np.average(places, weights=counts)

    def between(starts):
        bounds = [0, *starts, len(counts)]
        runs = [slice(*pair) for pair in pairwise(bounds)]
        if any(counts[run].sum() == 0 for run in runs):
            return -1.0
        return sum(counts[run].sum() * (np.average(places[run], weights=counts[run]) - mean) ** 2 for run in runs)

    return max(combinations(range(1, len(counts)), classes - 1), key=between), between


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_split_is_the_best_of_all_splits(classes):
    generator = np.random.default_rng(classes)
    for _ in range(20):
        counts = generator.integers(0, 30, 14) * (generator.random(14) < 0.8)
        counts[[0, 3, 6, 9, 12]] += 1
        best, between = best_split_by_enumeration(counts, classes)
        assert between(multi_otsu(counts, classes)[1:]) == pytest.approx(between(best))


def test_the_split_is_that_of_scikit_image():
    filters = pytest.importorskip("skimage.filters")
    counts = np.random.default_rng(0).integers(1, 50, 64)
    theirs = filters.threshold_multiotsu(hist=(counts, np.arange(64)), classes=4)
    assert multi_otsu(counts, 4)[1:] == (theirs + 1).tolist()  # theirs is the last bin of a class


def test_histograms_of_parts_add_up():
    tr = np.random.default_rng(0).random(1000).astype(np.float32)
    tr[0] = 1.0
    whole = histogram(tr, 64)
    np.testing.assert_array_equal(whole, histogram(tr[:300], 64) + histogram(tr[300:], 64))
    assert whole.sum() == 1000


def test_a_value_on_an_edge_belongs_to_the_bin_above_it():
    counts = np.array([3, 0, 4, 1])  # bins of 0.25; clusters {0}, {2}, {3}
    band = otsu_band(counts, TRThreshold(classes=3, bins=4))
    assert (band.low, band.high, band.thresholds, band.classes) == (0.5, 0.75, (0.5, 0.75), 3)
    assert dropped(TR, TRThreshold(classes=3, bins=4), [0, 0.25, 0.5, 0.75]) == [0, 1, 0, 0]


def test_tr_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"\[0, 1\]; found 1.5"):
        dropped(TR, TRThreshold(), [0.5, 1.5])


# --- quantiles, shifts, caps --------------------------------------------------------------------------------


def test_quantile_rules_drop_the_lowest_share_of_the_whole_dataset():
    ten = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8, 0.4, 0.6, 0.0]
    for attribute, rule in (
        (RI, RIThreshold(rule=RIRule.quantile, q=0.3)),
        (TR, TRThreshold(rule=TRRule.quantile, q=0.3)),
    ):
        assert dropped(attribute, rule, ten[:4], ten[4:]) == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    # the lowest novelty is the highest probability
    rule = KNThreshold(rule=KNRule.quantile, q=0.5)
    assert dropped(KN, rule, log(0.1, 0.99), log(0.5, 0.8)) == [0, 1, 0, 1]


@pytest.mark.parametrize(("q", "count"), [(0.0, 0), (1.0, 4)])
def test_a_quantile_of_nothing_and_of_all(q, count):
    assert sum(dropped(KN, KNThreshold(rule=KNRule.quantile, q=q), log(0.1, 0.99, 0.5, 0.8))) == count


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0.0, [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        (0.1, [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]),  # one token of ten more: the next highest p
        (-0.1, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        (-0.5, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),  # no fewer than none
    ],
)
def test_a_shift_of_kn_moves_the_cutoff_by_so_many_tokens(shift, expected):
    p = log(0.5, 0.96, 0.94, 0.97, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7)
    assert dropped(KN, KNThreshold(shift=shift), p) == expected


def test_a_shift_of_ri_ranks_distances_to_the_fences_across_responses():
    # fences 4 and 102: above them 6 and 105 come next, 2 and 3 away; below them are 0 and 100, 4 and 2 away
    first, second = [9, 0, 6, 7, 8], [109, 100, 105, 107, 108]
    assert iqr_fences(block(RI, second).columns["ri"], np.array([5]), 1.0)[0] == 102  # Q1 = 105, Q3 = 108
    assert dropped(RI, RIThreshold(shift=0.1), first, second) == [0, 1, 1, 0, 0, 0, 1, 0, 0, 0]
    assert dropped(RI, RIThreshold(shift=-0.1), first, second) == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_a_shift_of_tr_moves_the_upper_edge_of_the_band():
    assert dropped(TR, TRThreshold(shift=1 / 11), CLUMPS) == [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert dropped(TR, TRThreshold(shift=-1 / 11), CLUMPS) == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert dropped(TR, TRThreshold(shift=0.99), CLUMPS) == [0, 0, 0] + [1] * 8  # what lies below stays


def test_equal_scores_fall_on_the_same_side_of_a_shifted_threshold():
    # of the next three, which are tied, none is nearer to one more than all; all are nearer to two more
    p = log(0.99, 0.9, 0.9, 0.9, *[0.1] * 6)
    assert sum(dropped(KN, KNThreshold(shift=0.1), p)) == 1
    assert sum(dropped(KN, KNThreshold(shift=0.2), p)) == 4


@pytest.mark.parametrize(("count", "above"), [(-1, 0), (0, 0), (1, 0), (2, 3), (3, 3), (4, 4), (5, 5), (9, 5)])
def test_the_level_drops_the_nearest_count_that_ties_allow(count, above):
    margins = np.array([2.0, 7.0, 7.0, 7.0, 1.0, -np.inf])
    assert np.count_nonzero(margins > level_for([margins[:3], margins[3:]], count)) == above


def test_of_two_equally_near_counts_the_smaller_is_dropped():
    assert np.count_nonzero(np.array([5.0, 5.0, 1.0]) > level_for([np.array([5.0, 5.0, 1.0])], 1)) == 0


def test_without_a_candidate_no_level_drops_anything():
    assert level_for([np.array([-np.inf, -np.inf])], 1) == math.inf


def test_a_cap_keeps_the_lowest_scores_of_each_response():
    # 0.5 * 5 = 2.5: two of five, those with the highest p; the equal third one comes later and stays
    assert dropped(KN, KNThreshold(cap=0.5), log(0.96, 0.98, 0.97, 0.97, 0.1), log(0.99)) == [0, 1, 1, 0, 0, 0]
    assert dropped(TR, TRThreshold(cap=0.1), CLUMPS) == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert dropped(RI, RIThreshold(cap=0.2), [9, 0, 6, 7, 8]) == [0, 1, 0, 0, 0]
    assert dropped(RI, RIThreshold(cap=0.19), [9, 0, 6, 7, 8]) == [0, 0, 0, 0, 0]


def test_a_cap_is_not_robbed_of_a_token_by_rounding():
    assert sum(dropped(KN, KNThreshold(cap=0.29), log(*[0.99] * 100))) == 29  # 0.29 * 100 = 28.999999999999996


# --- fitting in parts, numbers, ranges ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shift", [0.0, 0.03])
def test_a_dataset_in_parts_gets_the_thresholds_of_the_whole(name, shift):
    generator = np.random.default_rng(0)
    config = PRESETS[name]
    config = replace(config, **{a.value: replace(getattr(config, a.value), shift=shift) for a in Attribute})
    lengths = generator.integers(1, 30, 40)
    n = lengths.sum()
    columns = {
        "ri": generator.normal(size=n).astype(np.float32),
        "logp": -generator.exponential(0.3, n).astype(np.float32),
        "tr": generator.integers(0, 50, n).astype(np.float32) / 50,
    }
    prompts = generator.normal(0.5, 0.4, 60).astype(np.float32)
    whole = Responses(lengths, columns, prompts)
    cut = int(lengths[:15].sum())
    parts = [
        Responses(lengths[:15], {name: values[:cut] for name, values in columns.items()}, prompts[:20]),
        Responses(lengths[15:], {name: values[cut:] for name, values in columns.items()}, prompts[20:]),
    ]
    together, apart = fit([whole], config, list(Attribute)), fit(parts, config, list(Attribute))
    assert together.to_dict() == apart.to_dict()
    for attribute in Attribute:
        expected = together.drop(ATTRIBUTES[attribute], whole)
        np.testing.assert_array_equal(
            expected, np.concatenate([apart.drop(ATTRIBUTES[attribute], part) for part in parts])
        )
        assert expected.any() and not expected.all()


def test_thresholds_are_told_in_the_units_of_the_scores():
    cuts = fit([block(KN, log(0.5, 0.96, 0.94, 0.97))], ThresholdConfig("test"), [KN])
    assert cuts.to_dict() == {"kn": {"rule": "cutoff", "shift": 0.0, "cap": None, "p_above": pytest.approx(0.95)}}
    shifted = ThresholdConfig("test", kn=KNThreshold(shift=0.25))
    # three are dropped; the highest p that is kept is 0.5
    assert fit([block(KN, log(0.5, 0.96, 0.94, 0.97))], shifted, [KN]).to_dict()["kn"]["p_above"] == pytest.approx(0.5)
    quantile = ThresholdConfig("test", ri=RIThreshold(rule=RIRule.quantile, q=0.5))
    assert fit([block(RI, [4, 1, 2, 3])], quantile, [RI]).to_dict()["ri"]["below"] == 3
    band = fit([block(TR, CLUMPS)], ThresholdConfig("test"), [TR]).to_dict()["tr"]
    assert band["classes"] == 5 and len(band["thresholds"]) == 4
    assert 0.02 < band["low"] <= 0.3 and 0.31 < band["high"] <= 0.5


def test_a_threshold_that_is_not_a_number_is_told_as_none():
    nothing = fit([block(TR, [0.5])], ThresholdConfig("test"), [TR]).to_dict()["tr"]
    assert (nothing["low"], nothing["high"], nothing["thresholds"]) == (None, None, [])


@pytest.mark.parametrize(
    ("attribute", "rule", "message"),
    [
        ("ri", RIThreshold(c=-0.1), "threshold.ri.c=-0.1"),
        ("ri", RIThreshold(c=math.nan), "threshold.ri.c=nan"),
        ("ri", RIThreshold(cap=0.0), "threshold.ri.cap=0.0"),
        ("ri", RIThreshold(q=1.5), "threshold.ri.q=1.5"),
        ("kn", KNThreshold(pcp=1.0), "threshold.kn.pcp=1.0"),
        ("kn", KNThreshold(pcp=95.0), "threshold.kn.pcp=95.0"),
        ("kn", KNThreshold(shift=3.0), "threshold.kn.shift=3.0"),
        ("kn", KNThreshold(rule=KNRule.quantile, q=0.9, shift=0.2), r"threshold.kn.q \+ shift"),
        ("tr", TRThreshold(classes=1), "threshold.tr.classes=1"),
        ("tr", TRThreshold(cluster=6), "threshold.tr.cluster=6"),
        ("tr", TRThreshold(cluster=0), "threshold.tr.cluster=0"),
        ("tr", TRThreshold(bins=4), "threshold.tr.bins=4"),
        ("tr", TRThreshold(cap=1.1), "threshold.tr.cap=1.1"),
    ],
)
def test_a_setting_out_of_range_is_refused_with_its_key_and_value(attribute, rule, message):
    with pytest.raises(ValueError, match=message):
        check_threshold(ThresholdConfig("test", **{attribute: rule}))
