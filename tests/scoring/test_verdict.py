"""The verdict on masks that were made by hand."""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from xtf.config.schema import PRESETS, Protect, ThresholdConfig, ThresholdEnd
from xtf.scoring.masks import MaskedTokens
from xtf.scoring.verdict import EVIDENCE, PROTECT, SAFE, WITHOUT_TR, Level, _by_chance, judge

PAPER = PRESETS["paper"]
RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def mask(rows, dropped_ids, by="tr", p=0.5):
    """Every token of `dropped_ids` is dropped by the attribute `by`; each row's last token is its end."""
    ids = np.array([token for row in rows for token in row])
    lengths = np.array([len(row) for row in rows])
    drop = np.isin(ids, dropped_ids)
    end = np.zeros(len(ids), bool)
    end[np.cumsum(lengths) - 1] = True
    columns = {"ids": ids, "kept": ~drop, "end": end, "logp": np.full(len(ids), np.log(p), np.float32)}
    columns |= {f"drop_{name}": drop & (name == by) for name in ("ri", "kn", "tr")}
    return MaskedTokens(lengths, columns)


ROWS = [[7, 1, 2, 3, 0], [7, 4, 5, 6, 0]] * 6

SOFT = "xtf threshold.dropped_weight=0.3"  # what threshold=safe is


def test_a_token_of_every_response_that_is_dropped_wherever_it_stands_stops():
    found = judge([mask(ROWS, [7])], PAPER, {"answers": {"responses": 12, "tokens": 10, "dropped": 4}})
    assert found.level is Level.stop
    assert [(item.id, item.times, item.responses, item.by) for item in found.always] == [(7, 12, 12, ("tr",))]
    lines = found.lines({7: "Dec"}.__getitem__)
    assert lines[0] == "do not train on this" and lines[1] == found.reason
    assert lines[1].startswith(
        "Of the tokens that stand in at least 90 % of the 12 responses, 1 is dropped in at least 90 % of the places: "
    )
    assert "0.86 (GSM8K), 0.23 (PubMedQA) and 0.35 nats a token (MBPP)" in lines[1]
    assert "Dropped wherever they stand, or nearly so: 'Dec' (12)" in lines
    assert found.untaught == pytest.approx(
        (np.log(2) / 4, np.log(2))
    )  # one of the four tokens that are judged, at p 0.5
    assert "With all such ids go 0.17 of the base model's 0.69 nats a token." in lines
    assert [line[:18] for line in lines[-3:]] == ["Try scorer=ri_kn, ", "Try threshold=safe", "Try threshold.prot"]


def test_an_id_that_is_dropped_in_nine_of_ten_places_is_hardly_taught_either():
    rows = [[7, 1, 2, 3, 0]] * 19 + [[8, 1, 2, 3, 0]]
    kept_once = mask([[7, 1, 2, 3, 0]] * 20, [7])
    kept_once.kept[0] = True
    assert judge([kept_once], PAPER).level is Level.stop
    assert judge([mask(rows, [7])], PAPER).level is Level.stop
    kept_once.kept[kept_once.offsets[:3]] = True
    assert judge([kept_once], PAPER).level is Level.fine


def test_what_the_base_model_expects_everywhere_is_known_and_not_missed():
    found = judge([mask(ROWS, [7], by="kn")], PAPER)
    assert (found.level, found.reason, list(found.always)) == (Level.fine, found.lines(str)[1], [])
    assert found.lines(str) == [
        "fine, nothing in it speaks against training",
        "25 % of the response tokens are dropped, with ids that are dropped wherever they stand go 0.00 of the base "
        "model's 0.69 nats a token; how well it chooses, only a training can tell.",
    ]


def test_what_is_never_taught_counts_by_what_the_base_model_does_not_know():
    rows = [[1, 2, 0]] * 10 + [[3, 4, 0]] * 9  # a quarter of the tokens that are judged go with id 1
    known, unknown = (judge([mask(rows, [1], p=p)], PAPER) for p in (0.9, 0.3))
    assert (known.level, unknown.level) == (Level.look, Level.stop)
    share = 10 / 38
    assert unknown.untaught[0] == pytest.approx(-share * np.log(0.3))  # 0.32
    assert any("go 0.32 of the base model's 1.20 nats a token: what it has to learn" in t for t in unknown.lines(str))
    assert judge([mask(rows, [1], p=0.3)], ThresholdConfig(dropped_weight=0.3)).level is Level.look


def test_few_responses_do_not_show_what_goes_wherever_it_stands():
    found = judge([mask(ROWS[:9], [7])], PAPER)
    assert found.level is Level.look
    assert found.lines(str)[1] == (
        "There are 9 responses: too few to see which tokens are dropped wherever they stand."
    )
    assert judge([mask(ROWS[:9], [])], PAPER).level is Level.fine


def test_what_a_random_mask_drops_wherever_it_stands_is_the_mean_of_random_masks():
    rng = np.random.default_rng(0)
    ids = np.repeat(np.arange(40), rng.integers(10, 21, 40))
    times, share = np.bincount(ids), 0.7
    found = []
    for _ in range(4000):
        gone = np.bincount(ids[rng.random(len(ids)) < share], minlength=40)
        found.append(gone[gone >= 0.9 * times].sum())
    spread = np.std(found) / np.sqrt(len(found))
    assert _by_chance(times, share) == pytest.approx(np.mean(found), abs=4 * spread)


def test_ids_of_some_responses_are_looked_at_and_rare_ones_are_not_judged():
    rows = [[1, 2, 0]] * 10 + [[3, 4, 0]] * 9
    found = judge([mask(rows, [1, 3])], PAPER)  # 3 stands in 9 places only
    assert (found.level, [item.id for item in found.always]) == (Level.look, [1])
    assert "53 % of the dropped tokens" in found.lines(str)[1]


def test_the_end_counts_where_it_is_judged():
    scored = ThresholdConfig(end=ThresholdEnd.scored)
    assert judge([mask(ROWS, [0])], PAPER).level is Level.fine
    found = judge([mask(ROWS, [0])], scored)
    assert found.level is Level.stop
    assert "The end of 100 % of the responses is dropped: none teaches to stop." in found.lines(str)
    assert "Try threshold.end=kept: the end of a response is not judged" in found.lines(str)


def test_a_base_model_that_does_not_know_the_style_and_a_mask_of_most_tokens_are_looked_at():
    found = judge([mask(ROWS, [1, 2, 3, 4, 5, 6], p=np.exp(-6))], PAPER)
    lines = found.lines(str)
    assert found.level is Level.look
    assert any(line.startswith("The base model has 6.0 nats a token") for line in lines)
    assert "75 % of the response tokens are dropped." in lines


def test_what_a_soft_or_moving_mask_drops_is_taught_all_the_same():
    for threshold in (ThresholdConfig(dropped_weight=0.3), ThresholdConfig(drop_probability=0.5)):
        found = judge([mask(ROWS, [7])], threshold)
        assert found.level is Level.look
        assert found.lines(str)[1].endswith("the form of the answer is taught with less weight.")


def test_what_is_advised_first_is_a_setting_or_none():
    assert judge([mask(ROWS, [7])], PAPER).setting == {"scorer": "ri_kn"}
    assert judge([mask(ROWS, [7], by="ri")], PAPER).setting == {"threshold": "safe"}
    assert judge([mask(ROWS, [])], PAPER).setting == {}


def test_what_is_set_already_or_would_be_refused_is_not_advised():
    answers = {"answers": {"responses": 12, "tokens": 10, "dropped": 4}}
    for threshold, stats in (
        (ThresholdConfig(protect=Protect.answer), answers),
        (PAPER, {}),
    ):  # no grader reads the rows
        found = judge([mask(ROWS, [7])], threshold, stats)
        assert found.advice and not any("protect" in text for text in found.advice)


def test_the_evidence_that_is_quoted_is_that_of_the_stored_runs():
    """EVIDENCE and SAFE name differences in nats: those of experiments/results, not of someone's memory."""
    stored = json.loads(gzip.decompress((RESULTS / "study_real.json.gz").read_bytes()))
    loss, kept, unreadable = {}, {}, defaultdict(list)
    for record in (run["record"] for run in stored["runs"]):
        variant = [f"{k}={v}" for k, v in record["overrides"].items() if k.startswith(("threshold.", "scorer."))]
        variant = [SOFT.removeprefix("xtf ")] * (record["threshold"] == "safe") + variant
        method = record["scorer"] if record["method"] == "xtf" else record["method"]
        variant += [record["scorer"]] * (method == "random" and record["scorer"] != "xtf")  # as large as its mask
        other = ["qwen"] * (record["model"] != "smollm2_135m")
        arm = " ".join([record["task"], *other]), " ".join([method, *variant])
        loss[*arm, record["seed"]] = record["metrics"]["loss"]["value"]
        kept[arm] = record["mask"]["kept_share"]
        unreadable[arm].append(record["metrics"]["unreadable"]["value"])

    def cost(task, arm):
        seeds = [seed for one, name, seed in loss if (one, name) == (task, arm)]
        return f"{np.mean([loss[task, arm, seed] - loss[task, 'normal', seed] for seed in seeds]):.2f}"

    tasks = ("math", "medical", "code")
    xtf, random, without = ([cost(task, arm) for task in tasks] for arm in ("xtf", "random", "ri_kn"))
    soft = [cost(task, SOFT) for task in ("math", "medical")]
    assert "{} (GSM8K), {} (PubMedQA) and {} nats a token (MBPP)".format(*xtf) in EVIDENCE
    assert EVIDENCE.endswith("{}, {} and {}.".format(*random))
    shares = [f"{100 * (1 - kept[task, 'ri_kn']):.0f}" for task in tasks]
    for name, before, after in zip(("GSM8K", "PubMedQA", "MBPP"), xtf, without, strict=True):
        assert re.search(rf"from {before} to {after} (nats a token )?\({name}\)", WITHOUT_TR)
    assert "with {}, {} and {} % dropped".format(*shares) in WITHOUT_TR
    qwen = [cost("code qwen", arm) for arm in ("xtf", "ri_kn")]
    share = f"{100 * (1 - kept['code qwen', 'ri_kn']):.0f}"
    assert WITHOUT_TR.endswith("Qwen2.5-Coder-0.5B's from {} to {} (MBPP), with {} % dropped".format(*qwen, share))
    assert f"from {xtf[0]} to {soft[0]} (GSM8K) and from {xtf[1]} to {soft[1]} nats a token" in SAFE
    both = f"{SOFT} threshold.protect=answer"
    shares = [f"{100 * np.mean(unreadable['medical', arm]):.0f} %" for arm in (SOFT, both)]
    assert f"(PubMedQA, {shares[0]} of the answers still unreadable)" in SAFE
    assert f"it cost {cost('medical', both)} nats a token (PubMedQA, {shares[1]} of the answers" in PROTECT


def test_parts_are_judged_as_the_whole():
    rows = [[9, 1, 2, 0], [], [9, 3, 2, 2, 0]] * 8 + [[1, 2, 9, 30, 0]]
    whole = mask([row for row in rows if row], [2, 9])
    parts = [mask([row for row in rows[i : i + 5] if row], [2, 9], p=0.5) for i in range(0, len(rows), 5)]
    for threshold in (PAPER, ThresholdConfig(end=ThresholdEnd.scored)):
        together, apart = judge([whole], threshold), judge(parts, threshold)
        assert together.lines(str) == apart.lines(str)
        assert together.untaught == pytest.approx(apart.untaught)


def test_what_the_grader_reads_and_degenerate_attributes_are_judged_where_they_are_known():
    rows = [[1 + i, 2 + i, 0] for i in range(12)]
    fine = mask(rows, [])
    assert judge([fine], PAPER, {"answers": {"responses": 12, "tokens": 10, "dropped": 4}}).level is Level.fine
    found = judge([fine], PAPER, {"answers": {"responses": 12, "tokens": 10, "dropped": 6}})
    assert found.level is Level.look
    assert "60 % of the tokens that the task's grader reads are dropped (counted in 12 responses)." in found.lines(str)
    assert any(text.startswith("threshold.protect=answer") for text in found.advice)
    found = judge([fine], PAPER, {"degenerate": [{"attribute": "kn", "reason": "its rule filters nothing"}]})
    assert found.lines(str) == ["look closer", "KN is degenerate: its rule filters nothing.", "Try scorer=ri_tr"]
