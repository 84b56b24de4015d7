"""Thresholds that are fitted to questions and answers, as the authors' code does, against slow and obvious code."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest

from xtf.config.schema import PRESETS, Attribute, ThresholdConfig, TRFit, TRThreshold
from xtf.data.ragged import with_ends
from xtf.scoring.masks import build_mask
from xtf.scoring.thresholds import otsu_band

TR = Attribute.tr
ALL = ThresholdConfig("test", tr=TRThreshold(classes=3, cluster=1, bins=16, fit=TRFit.released))


def table(*rows, ends=None):
    """A scored table of (TR of the prompt, TR of the response) pairs."""
    floats = pa.list_(pa.float32())
    found = pa.table(
        {
            "example_id": pa.array([f"e{number}" for number in range(len(rows))]),
            "input_ids": pa.array([[1] * (len(prompt) + len(own)) for prompt, own in rows], pa.list_(pa.int32())),
            "prompt_length": pa.array([len(prompt) for prompt, _ in rows], pa.int32()),
            "tr": pa.array([own for _, own in rows], floats),
            "prompt_tr": pa.array([prompt for prompt, _ in rows], floats),
        }
    )
    return found if ends is None else with_ends(found, ends)


def by_enumeration(values, classes, bins):
    """The thresholds as the authors' library defines them: the split of the histogram, over the values' own range, with
    the largest variance between classes; each is the centre of the last bin of a class."""
    counts, edges = np.histogram(values, bins)
    centres, total = (edges[:-1] + edges[1:]) / 2, counts.sum()
    best = (-1.0, ())
    for cuts in combinations(range(bins - 1), classes - 1):
        between = 0.0
        for start, stop in zip((0, *(cut + 1 for cut in cuts)), (*(cut + 1 for cut in cuts), bins), strict=True):
            mass = counts[start:stop].sum() / total
            if mass:
                between += mass * (np.average(centres[start:stop], weights=counts[start:stop])) ** 2
        if between > best[0] + 1e-12:
            best = between, cuts
    return [centres[cut] for cut in best[1]]


@pytest.mark.parametrize("seed", range(5))
def test_the_split_of_questions_and_answers_is_that_of_the_authors_library(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 30, (12, 2))
    # questions reach beyond the answers' range, as words that no answer has do
    rows = [
        (random.normal(0.4, 0.35, questions).round(2).tolist(), random.beta(4, 2, answers).round(2).tolist())
        for questions, answers in sizes
    ]
    mask = build_mask(table(*rows), ALL, [TR])
    every = np.concatenate([np.concatenate(row) for row in rows]).astype(np.float32).astype(np.float64)
    expected = by_enumeration(every, 3, 16)
    np.testing.assert_allclose(mask.stats.thresholds["tr"]["thresholds"], expected, rtol=1e-12)
    for (_, own), drops in zip(rows, mask.table["drop_tr"].to_pylist(), strict=True):
        assert drops == [score < expected[0] for score in np.float32(own)]


@pytest.mark.parametrize("seed", range(3))
def test_the_released_preset_cuts_where_scikit_image_does(seed):
    filters = pytest.importorskip("skimage.filters", reason="the authors' code calls scikit-image")
    values = np.random.default_rng(seed).normal([0.1, 0.4, 0.8], 0.08, (400, 3)).ravel()
    counts, _ = np.histogram(values, 256)
    band = otsu_band(counts, PRESETS["released"].tr, (values.min(), values.max()))
    np.testing.assert_allclose(band.thresholds, filters.threshold_multiotsu(values, classes=5), rtol=1e-12)


def test_what_questions_say_decides_what_goes_from_answers():
    answers = [0.5, 0.52, 0.9, 1.0]
    alone = replace(ALL, tr=replace(ALL.tr, fit=TRFit.responses))
    far = table(([-3.0, -2.9, -3.0, 0.5], answers))
    assert build_mask(far, ALL, [TR]).table["drop_tr"].to_pylist() == [[False] * 4], "the lowest are the question's"
    assert build_mask(far, alone, [TR]).table["drop_tr"].to_pylist() == [[True, True, False, False]]


def test_the_appended_end_counts_in_no_histogram():
    rows = ([0.5, 0.5, 0.9], [0.5, 0.9, 0.7, 0.0])
    kept = build_mask(table(rows, ends=[1]), ALL, [TR])
    without = build_mask(table((rows[0], rows[1][:-1]), ends=[0]), ALL, [TR])
    assert kept.stats.thresholds == without.stats.thresholds
    assert kept.table["drop_tr"].to_pylist() == [[*without.table["drop_tr"].to_pylist()[0], False]]


def test_shards_and_a_second_mask_are_fitted_alike():
    rows = [([0.1, 0.9, 0.2], [0.3, 0.95]), ([1.4], [0.2, 0.6, 0.61])]
    whole = build_mask(table(*rows), ALL, [TR])
    shards = build_mask(pa.concat_tables([table(row) for row in rows]), ALL, [TR])
    assert shards.stats.thresholds == whole.stats.thresholds == build_mask(whole.table, ALL, [TR]).stats.thresholds


def test_scores_without_those_of_the_prompts_are_refused_with_both_remedies():
    old = table(([0.1], [0.2, 0.5])).drop_columns("prompt_tr")
    with pytest.raises(
        ValueError, match=r"no column 'prompt_tr': score the rows again .* threshold\.tr\.fit=responses"
    ):
        build_mask(old, PRESETS["released"], [TR])
    assert build_mask(old, PRESETS["paper"], [TR]).stats.response_tokens == 2
    short = table(([0.1, 0.2], [0.2, 0.5])).set_column(4, "prompt_tr", pa.array([[0.1]], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="prompt_tr is not as long as the prompt"):
        build_mask(short, PRESETS["released"], [TR])
