"""Labels, overlaps and diagnoses on tables small enough to work out by hand."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from xtf.config.schema import (
    PRESETS,
    Attribute,
    KNRule,
    KNThreshold,
    Protect,
    ThresholdConfig,
    ThresholdEnd,
    ThresholdTies,
    TRThreshold,
)
from xtf.data.ragged import Responses, with_ends, with_row_weights
from xtf.scoring.masks import MaskedTokens, build_mask, notes, row_weighted, weights_to_labels

RI, KN, TR = Attribute.ri, Attribute.kn, Attribute.tr
PAPER = PRESETS["paper"]


def table(*rows, **columns):
    """A scored table from (prompt ids, response ids) and score columns, each a list per row."""
    floats = pa.list_(pa.float32())
    return pa.table(
        {
            "example_id": pa.array([f"e{number}" for number in range(len(rows))]),
            "input_ids": pa.array([prompt + response for prompt, response in rows], pa.list_(pa.int32())),
            "prompt_length": pa.array([len(prompt) for prompt, _ in rows], pa.int32()),
            **{name: pa.array(values, floats) for name, values in columns.items()},
        }
    )


ROWS = [([1, 2], [10, 11, 12, 13, 14]), ([3], [15])]
KNOWN, NEW = math.log(0.99), math.log(0.5)
SCORED = table(
    *ROWS,
    ri=[[9, 0, 6, 7, 8], [4]],  # 11 is below the fence
    logp=[[NEW, KNOWN, KNOWN, NEW, NEW], [KNOWN]],  # 11, 12 and 15 are known
    kn=[[0.5, 0.01, 0.01, 0.5, 0.5], [0.01]],
    tr=[[0, 0.3, 0.5, 0.3, 0.8], [1]],  # five values: 11 and 13 are in the second cluster
)


def test_a_token_that_lacks_any_attribute_gets_no_loss():
    masked = build_mask(SCORED, PAPER, [RI, KN, TR]).table
    assert masked.column_names == [*SCORED.column_names, "drop_ri", "drop_kn", "drop_tr", "labels"]
    assert masked["drop_ri"].to_pylist() == [[False, True, False, False, False], [False]]
    assert masked["drop_kn"].to_pylist() == [[False, True, True, False, False], [True]]
    assert masked["drop_tr"].to_pylist() == [[False, True, False, True, False], [False]]
    assert masked["labels"].to_pylist() == [[-100, -100, 10, -100, -100, -100, 14], [-100, -100]]
    assert masked.schema.field("labels").type == pa.list_(pa.int32())
    assert masked.schema.field("drop_ri").type == pa.list_(pa.bool_())
    assert masked.select(SCORED.column_names).equals(SCORED)


def test_shares_and_overlaps_are_of_all_response_tokens():
    stats = build_mask(SCORED, PAPER, [RI, KN, TR]).stats.to_dict()
    assert (stats["examples"], stats["response_tokens"], stats["kept_tokens"]) == (2, 6, 2)
    assert stats["kept_share"] == pytest.approx(2 / 6)
    assert stats["dropped_share"] == pytest.approx({"ri": 1 / 6, "kn": 3 / 6, "tr": 2 / 6, "union": 4 / 6})
    assert stats["overlap"] == pytest.approx({"ri_kn": 1 / 6, "ri_tr": 1 / 6, "kn_tr": 1 / 6, "ri_kn_tr": 1 / 6})
    assert stats["examples_without_loss"] == 1
    assert set(stats["thresholds"]) == {"ri", "kn", "tr"}


def test_only_the_attributes_asked_for_drop_in_their_fixed_order():
    mask = build_mask(SCORED, PAPER, [TR, RI])
    assert mask.table.column_names[-3:] == ["drop_ri", "drop_tr", "labels"]
    assert mask.table["labels"].to_pylist() == [[-100, -100, 10, -100, 12, -100, 14], [-100, 15]]
    assert list(mask.stats.overlap) == ["ri_tr"]


def test_without_attributes_every_response_token_is_kept():
    mask = build_mask(table(*ROWS), PAPER, [])
    assert mask.table["labels"].to_pylist() == [[-100, -100, 10, 11, 12, 13, 14], [-100, 15]]
    assert mask.stats.dropped_share == {"union": 0.0}
    assert mask.stats.degenerate == []


def test_shards_are_masked_as_the_whole_table_is():
    parts = pa.concat_tables([SCORED.slice(0, 1), SCORED.slice(1)])
    assert parts["tr"].num_chunks == 2
    apart, together = (build_mask(scored, PAPER, [RI, KN, TR]) for scored in (parts, SCORED))
    assert apart.table.combine_chunks().equals(together.table.combine_chunks())
    assert apart.stats == together.stats


def test_a_slice_of_a_longer_table_is_read_from_its_own_rows():
    longer = pa.concat_tables([SCORED, SCORED]).combine_chunks()
    assert build_mask(longer.slice(2), PAPER, [RI, KN, TR]).table["labels"].to_pylist() == (
        build_mask(SCORED, PAPER, [RI, KN, TR]).table["labels"].to_pylist()
    )


def test_a_second_mask_replaces_the_first():
    masked = build_mask(SCORED, PAPER, [RI, KN, TR]).table
    assert build_mask(masked, PAPER, [KN]).table.equals(build_mask(SCORED, PAPER, [KN]).table)


# --- soft masks ---------------------------------------------------------------------------------------------


def test_a_dropped_token_keeps_its_label_with_the_weight_asked_for():
    soft = build_mask(SCORED, replace(PAPER, dropped_weight=0.25), [RI, KN, TR])
    hard = build_mask(SCORED, PAPER, [RI, KN, TR])
    assert soft.table["labels"].to_pylist() == [[-100, -100, 10, 11, 12, 13, 14], [-100, 15]]
    assert soft.table["weights"].to_pylist() == [[1, 0.25, 0.25, 0.25, 1], [0.25]]
    assert soft.table["dropped"].to_pylist() == [[False, True, True, True, False], [True]]
    assert soft.table.schema.field("weights").type == pa.list_(pa.float32())
    for name in ("drop_ri", "drop_kn", "drop_tr"):
        assert soft.table[name].equals(hard.table[name])
    assert replace(soft.stats, dropped_weight=0.0) == hard.stats, "the decisions and their figures are the same"
    assert soft.stats.dropped_weight == 0.25
    assert notes(soft.stats.to_dict()) == ["A dropped token trains with weight 0.25."]
    assert notes(hard.stats.to_dict()) == notes({}) == []


def test_what_is_dropped_is_read_back_from_a_soft_mask_as_from_a_hard_one():
    tables = [build_mask(SCORED, replace(PAPER, dropped_weight=w), [RI, KN, TR]).table for w in (0.0, 0.25)]
    hard, soft = (MaskedTokens.from_mask(one) for one in tables)
    assert hard.kept.tolist() == soft.kept.tolist() == [True, False, False, False, True, False]
    flat = [Responses.from_table(one, ["labels"]).columns["dropped"].tolist() for one in tables]
    assert flat[0] == flat[1] == [False, True, True, True, False, True]
    again = build_mask(tables[1], PAPER, [RI, KN, TR]).table
    assert again.equals(tables[0]), "a second mask replaces the first"


def test_a_soft_mask_that_drops_nothing_is_no_weighted_one():
    soft = build_mask(SCORED, replace(PAPER, dropped_weight=0.1), []).table
    assert soft.equals(build_mask(SCORED, PAPER, []).table)


def test_soft_labels_come_in_shards_as_in_the_whole():
    parts = pa.concat_tables([SCORED.slice(0, 1), SCORED.slice(1)])
    soft = replace(PAPER, dropped_weight=0.5)
    apart, together = (build_mask(scored, soft, [RI]).table for scored in (parts, SCORED))
    assert apart.combine_chunks().equals(together.combine_chunks()), "RI drops nothing of the second"


# --- holes that move ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_mask_whose_holes_move_says_what_may_be_dropped_how_probably_and_what_it_then_counts(weight):
    moving = build_mask(SCORED, replace(PAPER, drop_probability=0.5, dropped_weight=weight), [RI, KN, TR])
    hard = build_mask(SCORED, PAPER, [RI, KN, TR])
    table = moving.table
    assert table["labels"].to_pylist() == [[-100, -100, 10, 11, 12, 13, 14], [-100, 15]]
    assert table["dropped"].to_pylist() == [[False, True, True, True, False], [True]]
    assert table["weights"].to_pylist() == [[1, weight, weight, weight, 1], [weight]]
    assert table["drop_probability"].to_pylist() == [0.5, 0.5]
    assert MaskedTokens.from_mask(table).kept.tolist() == MaskedTokens.from_mask(hard.table).kept.tolist()
    assert replace(moving.stats, dropped_weight=0.0, drop_probability=1.0) == hard.stats
    assert notes(moving.stats.to_dict())[-1].startswith("What the mask drops is dropped in an epoch with")
    assert build_mask(table, PAPER, [RI, KN, TR]).table.equals(hard.table), "a second mask replaces the first"


# --- protected tokens ---------------------------------------------------------------------------------------

GUARD = replace(PAPER, protect=Protect.answer)


def guarded(*rows):
    return SCORED.append_column("protected", pa.array(rows, pa.list_(pa.bool_())))


def test_protected_tokens_are_given_back_and_nothing_else_changes():
    scored = guarded([True, True, False, False, False], [False])  # 10, which nothing drops, and 11, which all three do
    mask, hard = build_mask(scored, GUARD, [RI, KN, TR]), build_mask(SCORED, PAPER, [RI, KN, TR])
    assert mask.table["labels"].to_pylist() == [[-100, -100, 10, 11, -100, -100, 14], [-100, -100]]
    assert mask.table["drop_kn"].to_pylist() == [[False, False, True, False, False], [True]]
    stats = mask.stats
    assert (stats.protected_tokens, stats.given_back, stats.examples_unprotected, stats.kept_tokens) == (2, 1, 1, 3)
    assert stats.dropped_share == pytest.approx({"ri": 0, "kn": 2 / 6, "tr": 1 / 6, "union": 3 / 6})
    assert stats.thresholds == hard.stats.thresholds, "fitted with the protected tokens"
    assert notes(stats.to_dict()) == [
        "2 tokens that the grader reads are never dropped; 1 of them would be. In 1 of 2 responses it reads none."
    ]
    unguarded = build_mask(scored, PAPER, [RI, KN, TR])
    assert unguarded.table["labels"].equals(hard.table["labels"]) and unguarded.stats == hard.stats


def test_what_is_protected_counts_whole_in_a_soft_mask_whose_holes_move():
    scored = guarded([False, True, False, False, False], [False])
    table = build_mask(scored, replace(GUARD, dropped_weight=0.1, drop_probability=0.5), [RI, KN, TR]).table
    assert table["dropped"].to_pylist() == [[False, False, True, True, False], [True]]
    assert table["weights"].to_pylist()[0] == pytest.approx([1, 1, 0.1, 0.1, 1])


def test_protection_without_knowing_what_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"threshold\.protect=answer needs to know .*'protected' \(list<bool>"):
        build_mask(SCORED, GUARD, [KN])
    with pytest.raises(ValueError, match="protected is not as long as the response"):
        build_mask(guarded([True], [True]), GUARD, [KN])


def test_weights_of_a_masked_method_leave_what_is_protected_whole():
    scored = guarded([True, True, False, False, False], [True])
    mask = weights_to_labels(scored, [np.array([0.0, 1, 0, 1, 1]), np.array([0.0])], GUARD)
    assert mask.table["labels"].to_pylist() == [[-100, -100, 10, 11, -100, 13, 14], [-100, 15]]
    assert (mask.stats.given_back, mask.stats.kept_tokens) == (2, 5)


# --- degenerate attributes ----------------------------------------------------------------------------------


SCORED_END = replace(PAPER, end=ThresholdEnd.scored)


def reasons(scored, *attributes, threshold=PAPER):
    return {
        (problem["attribute"], problem["reason"])
        for problem in build_mask(scored, threshold, attributes).stats.degenerate
    }


def test_a_rule_that_filters_nothing_and_one_that_filters_more_than_half_are_named():
    scored = table(([1], [2, 3, 4]), ri=[[1, 2, 3]], logp=[[KNOWN, KNOWN, NEW]])
    assert reasons(scored, RI, KN) == {
        ("ri", "its rule filters nothing"),
        ("kn", "its rule filters 66.7 % of the response tokens, more than half"),
    }


def test_an_attribute_that_drops_the_end_of_most_responses_is_named():
    """Five values: TR drops the second cluster, which holds the last token of three responses of four."""
    responses = [([1], [2, 3, 4]), ([1], [5, 6, 4]), ([1], [5, 6, 4]), ([1], [2, 3, 6])]
    values = [[0.0, 0.6, 0.2], [0.8, 1.0, 0.2], [0.8, 1.0, 0.2], [0.0, 0.6, 1.0]]
    known_end = [[NEW, NEW, KNOWN]] * 4  # an end that the model expects is not worth a label
    scored = table(*responses, tr=values, logp=known_end)
    assert build_mask(scored, PAPER, [TR]).table["drop_tr"].to_pylist() == [
        [False, False, True],
        [False, False, True],
        [False, False, True],
        [False, False, False],
    ]
    named = reasons(scored, TR, KN, threshold=SCORED_END)
    assert [attribute for attribute, reason in named if "last token of" in reason] == ["tr"]
    assert any("75 % of the responses" in reason for _, reason in named)
    assert not any("last token of" in reason for _, reason in reasons(scored, TR, KN)), "an end that is kept is taught"


@pytest.mark.parametrize(
    ("values", "constant"),
    [
        ([-5.0, -5.0 + 1e-6, -5.0], True),  # rounding, as in the released RI
        ([0.0, 0.0, 0.0], True),
        ([1e-3, 1e-3 + 1e-9, 1e-3], True),  # 1 / T: small numbers, smaller differences
        ([1e-3, 2e-3, 1e-3], False),
        ([-5.0, -5.1, -5.0], False),
    ],
)
def test_scores_that_are_constant_but_for_rounding_are_named(values, constant):
    scored = table(([1], [2, 3, 4]), ([1], [5]), ri=[values, [7.0]])  # one token alone proves nothing
    found = {reason for _, reason in reasons(scored, RI)}
    assert ("its scores are (nearly) constant within 100 % of the responses" in found) == constant


def test_degenerate_attributes_and_examples_without_loss_are_logged(caplog):
    with caplog.at_level(logging.WARNING, "xtf"):
        build_mask(SCORED, PAPER, [RI, KN, TR])
        build_mask(table(([1], [2, 3]), ri=[[4, 4]]), PAPER, [RI])
    assert "1 of 2 examples keep no token" in caplog.text
    assert "degenerate attribute ri: its rule filters nothing" in caplog.text


def test_an_attribute_that_does_its_work_is_not_named():
    scored = table(([1], list(range(10, 20))), logp=[[KNOWN, *[NEW - place for place in range(9)]]])
    assert reasons(scored, KN) == set()


# --- the end token, which is not the dataset's ----------------------------------------------------------------

# TR by token: 10 0.0, 2 (the end) 0.3, 13 0.7, 11, 12 and 14 0.9. The third response was cut off: it has no end.
ENDED = with_ends(
    table(
        ([1], [10, 11, 12, 2]),
        ([1], [10, 13, 2]),
        ([1], [10, 14]),
        tr=[[0.0, 0.9, 0.9, 0.3], [0.0, 0.7, 0.3], [0.0, 0.9]],
        ri=[[6, 7, 8, 0], [5, 5, 5], [1, 2]],
        logp=[[NEW, NEW, NEW, KNOWN], [KNOWN, KNOWN, KNOWN], [NEW, NEW]],
    ),
    [1, 1, 0],
)


def test_the_appended_end_is_no_part_of_what_is_fitted_dropped_and_counted():
    # Of the data's values 0, 0.7, 0.9 the second cluster is 0.7; with the end's 0.3 it would be 0.3.
    mask = build_mask(ENDED, PAPER, [TR])
    assert mask.table["drop_tr"].to_pylist() == [[False] * 4, [False, True, False], [False] * 2]
    assert mask.table["labels"].to_pylist() == [[-100, 10, 11, 12, 2], [-100, 10, -100, 2], [-100, 10, 14]]
    found = mask.stats
    assert (found.response_tokens, found.end_tokens, found.kept_tokens) == (7, 2, 6)
    assert found.dropped_share == pytest.approx({"tr": 1 / 7, "union": 1 / 7})
    assert mask.table["end_tokens"].to_pylist() == [1, 1, 0]


def test_the_end_is_judged_like_the_others_where_that_is_asked_for():
    mask = build_mask(ENDED, SCORED_END, [TR])
    assert mask.table["drop_tr"].to_pylist() == [[False, False, False, True], [False, False, True], [False] * 2]
    assert (mask.stats.response_tokens, mask.stats.end_tokens) == (9, 0)
    assert mask.stats.dropped_share["tr"] == pytest.approx(2 / 9)
    assert any("last token of 67 % of the responses" in problem["reason"] for problem in mask.stats.degenerate)
    without = ENDED.drop(["end_tokens"])
    assert build_mask(without, PAPER, [TR]).table["labels"].equals(mask.table["labels"]), "no end is known of"


def test_the_fence_of_a_response_leaves_the_end_out():
    # 6 7 8 0: Q1 = 4.5, Q3 = 7.25, fence 1.75, which the end's 0 is below. Without it 6.5 - 1 = 5.5 drops nothing.
    assert build_mask(ENDED, SCORED_END, [RI]).table["drop_ri"].to_pylist()[0] == [False, False, False, True]
    assert build_mask(ENDED, PAPER, [RI]).stats.dropped_share["ri"] == 0.0


def test_an_example_that_keeps_its_end_alone_is_without_loss_of_its_own():
    mask = build_mask(ENDED, PAPER, [KN])
    assert mask.table["labels"].to_pylist() == [[-100, 10, 11, 12, 2], [-100, -100, -100, 2], [-100, 10, 14]]
    assert mask.stats.examples_without_loss == 1
    only = with_ends(table(([1], [2]), ([1], [5, 2]), logp=[[KNOWN], [NEW, KNOWN]], ri=[[1], [1, 2]]), [1, 1])
    assert build_mask(only, PAPER, [RI, KN]).table["labels"].to_pylist() == [[-100, 2], [-100, 5, 2]]
    known = with_ends(table(([1], [5, 2]), logp=[[KNOWN, KNOWN]]), [1])
    with pytest.raises(ValueError, match="keeps none of 1 response tokens"):
        build_mask(known, PAPER, [KN])
    with pytest.raises(ValueError, match="no response tokens but appended ends"):
        build_mask(only.slice(0, 1), PAPER, [KN])


def test_shares_and_caps_are_of_the_tokens_without_the_end():
    scored = with_ends(table(([1], [*range(10, 19), 2]), logp=[[KNOWN] * 10]), [1])
    half = ThresholdConfig("test", kn=KNThreshold(cap=0.5))  # of nine tokens four, of ten five
    assert build_mask(scored, half, [KN]).table["drop_kn"].to_pylist() == [[True] * 4 + [False] * 6]
    quarter = ThresholdConfig("test", kn=KNThreshold(rule=KNRule.quantile, q=0.2))
    ranked = with_ends(table(([1], [*range(10, 20), 2]), logp=[[-1 - place for place in range(10)] + [-0.5]]), [1])
    assert build_mask(ranked, quarter, [KN]).table["drop_kn"].to_pylist() == [[True] * 2 + [False] * 9]


def test_an_end_longer_than_its_response_is_refused():
    with pytest.raises(ValueError, match="end_tokens is not within the response: examples 'e1'"):
        build_mask(with_ends(ENDED.drop(["end_tokens"]), [1, 4, 0]), PAPER, [TR])


# --- weights of other methods -------------------------------------------------------------------------------


def test_weights_of_zero_become_ignored_labels():
    mask = weights_to_labels(SCORED, [np.array([1, 0, 1, 1, 0]), np.array([1])])
    assert mask.table["labels"].to_pylist() == [[-100, -100, 10, -100, 12, 13, -100], [-100, 15]]
    assert "weights" not in mask.table.column_names
    assert mask.stats.kept_share == pytest.approx(4 / 6)
    assert mask.stats.dropped_share == {"union": pytest.approx(2 / 6)}


def test_weights_between_zero_and_one_are_kept_beside_the_labels():
    shards = pa.concat_tables([SCORED.slice(0, 1), SCORED.slice(1)])
    masked = weights_to_labels(shards, [np.array([0.5, 0, 1, 1, 2]), np.array([1])]).table
    assert masked["weights"].to_pylist() == [[0.5, 0, 1, 1, 2], [1]]
    assert masked["labels"].to_pylist() == [[-100, -100, 10, -100, 12, 13, 14], [-100, 15]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([np.ones(5)], "one array per example"),
        ([np.ones(4), np.ones(2)], "one array per example"),
        ([np.array([1, 1, np.nan, 1, 1]), np.ones(1)], "1 of 6 weights are not finite"),
        ([np.zeros(5), np.zeros(1)], "keeps none of 6 response tokens"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        weights_to_labels(SCORED, weights)


# --- bad tables ---------------------------------------------------------------------------------------------


def test_a_mask_that_keeps_nothing_is_refused_and_says_who_dropped_it():
    scored = table(([1], [2, 3]), logp=[[KNOWN, KNOWN]])
    with pytest.raises(ValueError, match=r"keeps none of 2 response tokens \(dropped by kn 100.0%\)"):
        build_mask(scored, PAPER, [KN])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_a_number_names_its_example(bad):
    scored = table(*ROWS, ri=[[9, 0, 6, 7, 8], [bad]])
    with pytest.raises(ValueError, match="ri is not a finite number: examples 'e1'"):
        build_mask(scored, PAPER, [RI])


def test_scores_that_do_not_match_their_response_name_the_example():
    message = r"ri is not as long as the response \(4 entries, wanted 5 in the first\): examples 'e0'"
    with pytest.raises(ValueError, match=message):
        build_mask(table(*ROWS, ri=[[9, 0, 6, 7], [4]]), PAPER, [RI])


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="no column 'logp'; it has example_id"):
        build_mask(table(*ROWS), PAPER, [KN])


def test_null_scores_are_refused():
    for nothing in ([[9, 0, 6, 7, 8], None], [[9, None, 6, 7, 8], [4]]):
        with pytest.raises(ValueError, match="ri"):
            build_mask(table(*ROWS, ri=nothing), PAPER, [RI])


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="no response tokens"):
        build_mask(SCORED.slice(0, 0), PAPER, [KN])


def test_a_prompt_longer_than_its_example_is_refused():
    broken = SCORED.set_column(2, "prompt_length", pa.array([2, 3], pa.int32()))
    with pytest.raises(ValueError, match="prompt_length is not within input_ids: examples 'e1'"):
        build_mask(broken, PAPER, [KN])


def test_a_threshold_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"threshold.kn.pcp=1.5"):
        build_mask(SCORED, ThresholdConfig("test", kn=KNThreshold(pcp=1.5)), [KN])


def test_the_released_threshold_caps_each_response():
    """Against the comparisons of the authors' code, written down token by token; scores tie often."""
    random = np.random.default_rng(0)
    rows = [([1], random.integers(2, 90, size).tolist()) for size in (1, 7, 19, 20, 40, 101)]
    logp = [
        np.log(random.integers(90, 100, len(row[1])) / 100 + random.integers(0, 3, len(row[1])) / 999) for row in rows
    ]
    tr = [random.integers(0, 40, len(row[1])) / 40 for row in rows]
    ri = [random.standard_cauchy(len(row[1])).round(1) for row in rows]
    scored = table(*rows, logp=logp, tr=tr, ri=ri, prompt_tr=[[0.3] for _ in rows])
    mask = build_mask(scored, PRESETS["released"], [RI, KN, TR])
    low = mask.stats.thresholds["tr"]["thresholds"][0]
    for row, found in zip(zip(ri, logp, tr, strict=True), mask.table.to_pylist(), strict=True):
        scores, p, relevance = (np.array(part, np.float32) for part in row)
        n = len(scores)
        q1, q3 = np.percentile(scores, [25, 75])
        fence = q1 - 1.5 * (q3 - q1)
        if np.mean(scores < fence) > 0.05:
            fence = sorted(scores)[int(n * 0.05)]
        for name, drops in [
            ("drop_ri", [score < fence for score in scores]),
            ("drop_kn", [one > np.log(0.95) and one > sorted(p)[int(n * (1 - 0.1))] for one in p]),
            ("drop_tr", [one < low and one < sorted(relevance)[int(n * 0.05)] for one in relevance]),
        ]:
            assert found[name] == drops, (name, n)
    assert all(0 < mask.stats.dropped_share[name] <= 0.1 for name in (RI, KN, TR))
    assert mask.stats.thresholds["tr"]["cap"] == 0.05


def test_a_cap_takes_the_earlier_of_equal_scores_unless_ties_stay():
    scored = table(([1], list(range(10, 30))), logp=[[KNOWN] * 20])
    capped = ThresholdConfig("test", kn=KNThreshold(cap=0.1))
    assert build_mask(scored, capped, [KN]).table["drop_kn"].to_pylist() == [[True] * 2 + [False] * 18]
    whole = replace(capped, ties=ThresholdTies.none)
    assert build_mask(scored, whole, [KN]).table["drop_kn"].to_pylist() == [[False] * 20]


def test_a_band_of_any_cluster_can_be_dropped():
    mask = build_mask(SCORED, ThresholdConfig("test", tr=TRThreshold(cluster=5)), [TR])
    assert mask.table["drop_tr"].to_pylist() == [[False] * 5, [True]]


def test_what_the_rows_do_not_train_is_neither_fitted_dropped_nor_counted():
    # KN would drop three tokens and TR the 0.5 of the second, which is not trained.
    given = with_row_weights(
        table(
            ([1], [10, 11, 12, 13]),
            ([1], [10, 14]),
            tr=[[0.0, 0.5, 0.9, 0.9], [0.0, 0.9]],
            logp=[[KNOWN, KNOWN, NEW, NEW], [KNOWN, NEW]],
        ),
        [[1, 0, 1, 1], None],
    )
    mask = row_weighted(build_mask(given, PAPER, [KN]))
    assert mask.table["drop_kn"].to_pylist() == [[True, False, False, False], [True, False]]
    assert mask.table["labels"].to_pylist() == [[-100, -100, -100, 12, 13], [-100, -100, 14]]
    found = mask.stats
    assert (found.response_tokens, found.kept_tokens, found.untrained_tokens) == (5, 3, 1)
    assert found.dropped_share == pytest.approx({"kn": 2 / 5, "union": 2 / 5})
    whole = build_mask(given.drop(["row_weights"]), PAPER, [TR]).table["drop_tr"].to_pylist()
    assert whole[0] == [False, True, False, False]
    assert not build_mask(given, PAPER, [TR]).table["drop_tr"].to_pylist()[0][1]
