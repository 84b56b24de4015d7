"""Measures of detection against hand-worked cases and slow oracles, their intervals by simulation, the report."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import mannwhitneyu

from xtf import cli
from xtf.config.schema import KNThreshold, PlantKind, ThresholdConfig
from xtf.data.planting import CODES
from xtf.graders.metrics import Metric
from xtf.study import detection
from xtf.study.detection import (
    Detector,
    Finding,
    PlantedTokens,
    auroc,
    average_precision,
    detectors,
    draws_of,
    dropped_instead,
    findings,
    rule_measures,
    score_counts,
    score_measures,
    unseen,
)

ROOT = Path(__file__).parents[2]

# -- measures ------------------------------------------------------------------------------------------------


def test_auroc_and_average_precision_of_a_hand_worked_case():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    noise = np.array([True, False, True, True, False])
    # pairs (noise above clean): 0.9 beats both, 0.7 and 0.6 beat one each: 4 of 6
    assert auroc(*score_counts(score, noise)) == pytest.approx(4 / 6)
    # precision at each noise token, from the top: 1/1, 2/3, 3/4
    assert average_precision(*score_counts(score, noise)) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_ties_count_half_and_are_dropped_together():
    score = np.array([1.0, 1.0, 1.0, 0.0])
    noise = np.array([True, False, False, True])
    # noise at 1.0 ties with both clean ones: 1/2 each; noise at 0.0 loses to both: (0.5 + 0.5 + 0 + 0) / 4
    assert auroc(*score_counts(score, noise)) == pytest.approx(0.25)
    # at 1.0: precision 1/3, recall 1/2; at 0.0: precision 2/4, recall another 1/2
    assert average_precision(*score_counts(score, noise)) == pytest.approx(0.5 * 1 / 3 + 0.5 * 2 / 4)


def test_scores_that_say_nothing_have_auroc_one_half_and_the_share_of_noise_as_precision():
    noise = np.arange(50) < 10
    assert auroc(*score_counts(np.ones(50), noise)) == 0.5
    assert average_precision(*score_counts(np.ones(50), noise)) == pytest.approx(0.2)


def test_measures_without_both_sorts_are_undefined():
    assert math.isnan(auroc(*score_counts(np.arange(3.0), np.zeros(3, bool))))
    assert math.isnan(average_precision(*score_counts(np.arange(3.0), np.zeros(3, bool))))
    with pytest.raises(ValueError, match="0 of 3 tokens"):
        score_measures(np.arange(3.0), np.zeros(3, bool), np.zeros(3, int), draws_of(1))


def slow_auroc(score, noise):
    pairs = [(a > b) + (a == b) / 2 for a in score[noise] for b in score[~noise]]
    return sum(pairs) / len(pairs)


def slow_average_precision(score, noise):
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        dropped = score >= threshold
        reached = (dropped & noise).sum() / noise.sum()
        total += (reached - recall) * (dropped & noise).sum() / dropped.sum()
        recall = reached
    return total


@pytest.mark.parametrize("levels", [3, 20, 10**6])
def test_both_equal_slow_oracles_and_scipy(levels):
    generator = np.random.default_rng(levels)
    for _ in range(20):
        noise = generator.random(80) < 0.3
        score = generator.integers(levels, size=80) + 0.2 * levels * noise
        u = mannwhitneyu(score[noise], score[~noise]).statistic
        assert auroc(*score_counts(score, noise)) == pytest.approx(u / (noise.sum() * (~noise).sum()))
        assert auroc(*score_counts(score, noise)) == pytest.approx(slow_auroc(score, noise))
        assert average_precision(*score_counts(score, noise)) == pytest.approx(slow_average_precision(score, noise))


def test_rule_measures_of_a_hand_worked_case():
    noise = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    dropped = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0], bool)
    found = rule_measures(dropped, noise, np.zeros(10, int), draws_of(1))
    values = {name: metric.value for name, metric in found.items()}
    assert values == pytest.approx(
        {"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "gain": 3 / 4 - 1 / 6, "clean_dropped": 1 / 6}
    )
    # of one response a blind rule drops as large a part of the noise as of the clean tokens, so nothing is subtracted
    assert all((m.low, m.high) == (m.value, m.value) for m in found.values())  # one example: no other draw


def test_gain_of_two_responses_worked_by_hand():
    # 4 tokens, 3 of them noise, both drops hit; 6 tokens, 1 of them noise, the one drop does not hit
    noise = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0], bool)
    dropped = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0], bool)
    text = np.repeat([0, 1], [4, 6])
    hits, false = 2 - (2 * 3 / 4 + 1 * 1 / 6), 1 - (2 * 1 / 4 + 1 * 5 / 6)
    wanted = pytest.approx(hits / 4 - false / 6)
    assert rule_measures(dropped, noise, text, draws_of(2))["gain"].value == wanted
    assert wanted == 5 / 36
    # the responses of one example are still told apart
    assert rule_measures(dropped, noise, 0 * text, draws_of(1), text)["gain"].value == wanted
    assert rule_measures(dropped, noise, 0 * text, draws_of(1))["gain"].value == pytest.approx(2 / 4 - 1 / 6)


def rated(generator, examples=300, tokens=40, plantings=1):
    """Responses whose rate of drops follows their share of noise: (rate [N], noise, example, response)."""
    text = np.repeat(np.arange(examples * plantings), tokens)
    share = generator.uniform(0.05, 0.6, examples * plantings)[text]
    return share, generator.random(len(text)) < share, text % examples, text


@pytest.mark.parametrize("plantings", [1, 3])
def test_a_rule_that_is_blind_within_responses_has_no_gain_though_its_rate_follows_the_noise(plantings):
    generator, draws = np.random.default_rng(3), draws_of(100, 200)
    gains, naive = [], []
    for _ in range(200):
        rate, noise, group, text = rated(generator, 100, 20, plantings)
        found = rule_measures(generator.random(len(noise)) < rate, noise, group, draws, text)
        naive.append(found["recall"].value - found["clean_dropped"].value)
        gains.append(found["gain"])
    values = np.array([gain.value for gain in gains])
    assert np.mean(naive) > 0.05
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(gains))
    assert 0.9 < np.mean([gain.low <= 0 <= gain.high for gain in gains]) < 0.99


def test_the_subtracted_part_is_the_mean_of_blind_masks_with_as_many_drops_in_every_response():
    generator = np.random.default_rng(4)
    rate, noise, group, text = rated(generator, 30, 12)
    dropped = generator.random(len(noise)) < rate
    blind = []
    for _ in range(2000):
        mask = generator.permuted(dropped.reshape(30, 12), axis=1).ravel()
        blind.append((mask & noise).sum() / noise.sum() - (mask & ~noise).sum() / (~noise).sum())
    found = rule_measures(dropped, noise, group, draws_of(30), text)
    raw = found["recall"].value - found["clean_dropped"].value
    assert raw - found["gain"].value == pytest.approx(np.mean(blind), abs=4 * np.std(blind) / math.sqrt(2000))


def test_a_rule_that_knows_the_noise_keeps_a_large_gain():
    _, noise, group, text = rated(np.random.default_rng(3))
    draws = draws_of(300)
    gain = rule_measures(noise, noise, group, draws, text)["gain"]
    assert 0.85 < gain.low < gain.value < gain.high < 1  # 1 - var(share) / (mean (1 - mean)), shares of 5 to 60 %
    assert rule_measures(~noise, noise, group, draws, text)["gain"].value == pytest.approx(-gain.value)
    even = np.tile(np.arange(40) < 10, 300)
    assert rule_measures(even, even, group, draws, text)["gain"].value == pytest.approx(1)


def test_what_is_undefined_is_left_out():
    noise, nothing = np.array([True, False]), np.zeros(2, bool)
    assert set(rule_measures(nothing, noise, np.zeros(2, int), draws_of(1))) == {
        "recall",
        "f1",
        "gain",
        "clean_dropped",
    }
    assert set(rule_measures(~nothing, nothing, np.zeros(2, int), draws_of(1))) == {"clean_dropped"}


# -- intervals -----------------------------------------------------------------------------------------------


def clustered(generator, examples=60, tokens=12, shift=1.0, spread=0.7):
    """Scores with an effect of each example's own; the AUROC over all pairs is Phi(shift / sqrt(2 (1 + spread^2)))."""
    group = np.repeat(np.arange(examples), tokens)
    noise = generator.random(len(group)) < 0.3
    effect = spread * generator.normal(size=examples)
    return generator.normal(size=len(group)) + effect[group] + shift * noise, noise, group


def test_intervals_equal_a_slow_bootstrap_over_whole_examples(monkeypatch):
    score, noise, group = clustered(np.random.default_rng(1), examples=8, tokens=10)
    draws = draws_of(8, 80)
    found = score_measures(score, noise, group, draws)
    for name, slow in (("auroc", slow_auroc), ("average_precision", slow_average_precision)):
        values = []
        for counts in draws.astype(int):
            take = np.concatenate([np.flatnonzero(group == g) for g in np.repeat(np.arange(8), counts)])
            values.append(slow(score[take], noise[take]))
        assert found[name].value == pytest.approx(slow(score, noise))
        limits = np.quantile(values, [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(limits, abs=1e-5)


def ranked(kind, tokens=400, examples=100):
    """Scores of many more tokens than bins: (score, noise, group)."""
    generator = np.random.default_rng(5)
    group = np.repeat(np.arange(examples), tokens)
    share, shift, spread = {
        "rare and apart": (0.004, 50, 0.7),
        "rare and the wrong way round": (0.004, -50, 0.7),
        "rare and near": (0.004, 2, 0.7),
        "rare": (0.02, 1, 0.7),
        "as common as clean": (0.5, 0.5, 0.7),
        "the rule": (0.98, 1, 0.7),
        "of few levels": (0.02, 1, 0.0),
    }[kind]
    noise = generator.random(len(group)) < share * generator.uniform(0.2, 1.8, examples)[group]
    score = generator.normal(size=len(group)) + spread * generator.normal(size=examples)[group]
    score += shift * noise
    return (np.round(score) if kind == "of few levels" else score), noise, group


@pytest.mark.parametrize(
    "kind",
    [
        "rare and apart",
        "rare and the wrong way round",
        "rare and near",
        "rare",
        "as common as clean",
        "the rule",
        "of few levels",
    ],
)
def test_bins_do_not_move_the_intervals_whatever_the_share_of_noise(kind):
    score, noise, group = ranked(kind)
    draws = draws_of(100, 60)
    found = score_measures(score, noise, group, draws)
    values = []
    for counts in draws.astype(int):
        take = np.repeat(np.arange(len(score)), counts[group])
        values.append(
            (auroc(*score_counts(score[take], noise[take])), average_precision(*score_counts(score[take], noise[take])))
        )
    for name, exact in zip(("auroc", "average_precision"), np.transpose(values), strict=True):
        limits = np.quantile(exact, [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(limits, abs=0.002), name
        assert 0 <= found[name].low <= found[name].value <= found[name].high <= 1
    if "apart" in kind:
        assert [(one.low, one.value, one.high) for one in found.values()] == [(1, 1, 1)] * 2


def test_intervals_cover_the_true_auroc_and_the_true_recall():
    generator = np.random.default_rng(0)
    draws = draws_of(60, 200)
    truth = 0.5 * (1 + math.erf(1.0 / math.sqrt(2 * (1 + 0.7**2)) / math.sqrt(2)))
    recall_truth = 0.5 * (1 - math.erf((1.5 - 1.0) / math.sqrt(1 + 0.7**2) / math.sqrt(2)))
    covered = np.zeros(2)
    tries = 300
    for _ in range(tries):
        score, noise, group = clustered(generator)
        ranked = score_measures(score, noise, group, draws)["auroc"]
        recall = rule_measures(score > 1.5, noise, group, draws)["recall"]
        covered += (ranked.low <= truth <= ranked.high, recall.low <= recall_truth <= recall.high)
    assert (covered / tries > 0.90).all(), covered / tries
    assert (covered / tries < 0.99).all(), covered / tries


# -- detectors -----------------------------------------------------------------------------------------------


def scored(**columns):
    return pa.table(
        {
            "example_id": ["a", "b"],
            "input_ids": [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9]],
            "prompt_length": pa.array([1, 1], pa.int32()),
            **columns,
        }
    )


def logs(*rows):
    return [[math.log(p) for p in row] for row in rows]


def test_each_detector_scores_noise_higher_and_drops_by_its_own_rule():
    table = scored(
        ri=[[0.0, 0.0, 0.0, -9.0], [0.0, 0.1, 0.2, 0.3]],
        logp=logs([0.99, 0.5, 0.05, 0.2], [0.3, 0.97, 0.96, 0.4]),
        ref_logp=logs([0.99, 0.9, 0.5, 0.2], [0.9, 0.98, 0.96, 0.1]),
        tr=[[0.1, 0.3, 0.5, 0.7], [0.9, 0.9, 0.9, 0.9]],
    )
    found = detectors(table, ThresholdConfig(name="paper", kn=KNThreshold(pcp=0.95)), seed=0)
    assert found["RI"].dropped.tolist() == [False, False, False, True] + [False] * 4
    assert found["KN"].dropped.tolist() == [True, False, False, False, False, True, True, False]
    assert found["TR"].dropped.tolist() == [False, True] + [False] * 6  # the second smallest of five clusters
    assert found["RI or KN or TR"].dropped.tolist() == [True, True, False, True, False, True, True, False]
    assert found["RI or KN"].score is None
    np.testing.assert_allclose(found["RI"].score, [0, 0, 0, 9, 0, -0.1, -0.2, -0.3], atol=1e-6)
    assert np.argmax(found["KN"].score) == 0
    assert np.argmax(found["high loss (low p)"].score) == 2
    assert found["ProFit (p at most 0.1)"].dropped.tolist() == [False, False, True] + [False] * 5
    # as many tokens of each example as the union drops: three of the first, two of the second
    for name in ("random", "low loss", "high loss (low p)"):
        assert found[name].dropped.reshape(2, 4).sum(1).tolist() == [3, 2], name
    assert found["low loss"].dropped.tolist() == [True, True, False, True, False, True, True, False]
    # gains of the reference model, in nats: 0, 0.59, 2.3, 0, 1.1, 0.01, 0, -1.4; five of eight are kept
    assert found["token cleaning"].dropped.tolist() == [False, False, False, True, False, False, True, True]


def test_columns_that_are_not_there_bring_no_detector():
    found = detectors(
        scored(logp=logs([0.99, 0.5, 0.05, 0.2], [0.3, 0.97, 0.96, 0.4])), ThresholdConfig(name="paper"), 0
    )
    assert set(found) == {"KN", "random", "low loss", "high loss (low p)", "ProFit (p at most 0.1)"}


# -- findings ------------------------------------------------------------------------------------------------


def cell(planted, dropped, score=None, tokens=None):
    planted = np.asarray(planted, np.int8)
    count = len(planted)
    detector = Detector(None if score is None else np.asarray(score, float), np.asarray(dropped, bool))
    ids = np.arange(count) if tokens is None else np.asarray(tokens)
    one = np.zeros(count, int)
    return PlantedTokens("case", 0.3, 0.3, planted, one, one, ids, {"KN": detector}, None)


def test_other_kinds_and_straddling_tokens_take_no_part():
    corrupted, formatting = CODES[PlantKind.corrupted], CODES[PlantKind.formatting]
    one = cell([corrupted, corrupted, formatting, -corrupted, 0, 0], [1, 0, 1, 1, 1, 0])
    by_kind = {finding.kind: finding for finding in findings(one)}
    assert set(by_kind) == {"any kind", "corrupted", "formatting"}
    assert (by_kind["corrupted"].noise_tokens, by_kind["corrupted"].clean_tokens) == (2, 2)
    assert by_kind["corrupted"].measures["precision"].value == 1 / 2
    assert by_kind["corrupted"].measures["recall"].value == 1 / 2
    assert by_kind["any kind"].measures["recall"].value == pytest.approx(2 / 3)


def test_without_noise_only_the_dropped_share_of_clean_tokens_is_reported():
    (finding,) = findings(cell([0, 0, 0, 0], [1, 0, 0, 0], score=[1, 2, 3, 4]))
    assert {name: metric.value for name, metric in finding.measures.items()} == {"clean_dropped": 0.25}


def test_what_was_dropped_instead_is_counted_by_token():
    noise = CODES[PlantKind.redundant]
    found = dropped_instead(cell([0, 0, 0, noise, 0, -noise], [1, 1, 0, 1, 1, 0], tokens=[7, 7, 7, 7, 3, 3]), "KN")
    assert found.total == 4
    assert found.shares == {"redundant": 0.25, "straddling": 0.0, "clean": 0.75}
    assert list(found.clean) == [(7, 2, 3), (3, 1, 1)]


def test_the_report_says_in_words_which_kinds_no_attribute_sees():
    def finding(kind, detector, low, high, gain):
        rank = Metric((low + high) / 2, low, high, 9, "")
        return Finding(
            "math",
            0.3,
            kind,
            detector,
            5,
            5,
            10,
            0.5,
            {"auroc": rank, "gain": Metric(gain, gain - 0.1, gain + 0.1, 9, "")},
        )

    rows = [
        finding("corrupted", "RI", 0.4, 0.6, 0.0),
        finding("corrupted", "KN", 0.1, 0.2, -0.3),
        finding("redundant", "RI", 0.4, 0.6, 0.0),
        finding("redundant", "KN", 0.7, 0.8, 0.2),
    ]
    assert unseen(rows) == [
        "math, corrupted: not what any of the three attributes can see (RI AUROC 0.50 with a gain of +0.00, "
        "KN AUROC 0.15 with a gain of -0.30); by KN it looks more worth keeping than clean tokens.",
        "math, redundant: seen by KN AUROC 0.75 with a gain of +0.20.",
    ]


# -- the report ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """The sweep over a few rows with and without noise, and its report."""
    folder = tmp_path_factory.mktemp("planted")
    sweep = ["-m", "experiments=planted", "task=math", "plant.share=0,0.3", "plant.seed=0", "task.train.limit=20"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XTF_ROOT", str(ROOT))
        for arguments in (sweep, ["stage=report", "experiments=planted"]):
            assert cli.main(arguments) == 0
    return folder / "outputs"


@pytest.fixture
def masks(reported, tmp_path):
    """Folders of finished masks like that of the sweep's planted run: one for each of some changed settings.

    `rows` is the hash of the clean rows and `file` where they came from.
    """
    from omegaconf import OmegaConf

    from xtf.runtime.artifacts import read_json, write_json

    (like,) = [
        file.parent for file in reported.rglob("mask.parquet") if "planting" in read_json(file.parent / "manifest.json")
    ]

    def make(*changes):
        folders = []
        for number, change in enumerate(changes):
            folder = tmp_path / str(number)
            folder.mkdir()
            config, manifest = OmegaConf.load(like / "config.yaml"), read_json(like / "manifest.json")
            for key, value in change.items():
                if key == "rows":
                    manifest["data"]["train"]["sha256"] = value
                elif key == "file":
                    config.task.train.path, manifest["data"]["train"]["source"] = value, Path(value).name
                else:
                    OmegaConf.update(config, key, value)
            OmegaConf.save(config, folder / "config.yaml")
            write_json(folder / "manifest.json", manifest)
            (folder / "mask.parquet").symlink_to(like / "mask.parquet")
            folders.append(folder)
        return folders

    return make


PLAIN = "math, 20 rows of math_train.jsonl, tiny"


@pytest.mark.parametrize(
    ("changes", "cases"),
    [
        ([{}], [""]),
        ([{}, {"plant.seed": 1}, {"seed": 3}], [""]),  # nothing that the masks' distribution depends on
        ([{}, {"file": "/elsewhere/math_train.jsonl"}], [""]),  # the same rows
        ([{}, {"threshold.name": "quantile"}], ["", ", threshold=quantile"]),
        ([{}, {"threshold.kn.pcp": 0.9}], [", threshold.kn.pcp=0.9", ", threshold.kn.pcp=0.95"]),
        (
            [{"plant.kinds": ["corrupted"]}, {"plant.kinds": ["corrupted", "redundant"]}],
            [", plant.kinds=[corrupted,redundant]", ", plant.kinds=[corrupted]"],
        ),
        (
            [{}, {"scorer.ri.layer": 0}, {"scorer.ri.layer": 0, "plant.seed": 1}],
            [", scorer.ri.layer=-1", ", scorer.ri.layer=0"],
        ),
        ([{"model.path": "a/model"}, {"model.path": "b/model"}], [", model.path=a/model", ", model.path=b/model"]),
        (
            [{"task.train.limit": 20}, {"task.train.limit": 30, "rows": "0123456789"}],
            [", task.train.limit=20, rows=", ", task.train.limit=30, rows=01234567"],
        ),
    ],
)
def test_masks_are_pooled_only_if_nothing_but_the_seed_of_the_planting_differs(masks, changes, cases):
    found = [planted.case for planted in detection.read_planted(masks(*changes))]
    assert len(found) == len(cases)
    for case, wanted in zip(found, cases, strict=True):
        assert case.startswith(PLAIN + wanted) if wanted.endswith("=") else case == PLAIN + wanted


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        (["gsm8k/train.jsonl"], ["train.jsonl"]),
        (["data/gsm8k/train.jsonl", "data/svamp/train.jsonl"], ["gsm8k/train.jsonl", "svamp/train.jsonl"]),
        (["/one/data/train.jsonl", "/two/data/train.jsonl"], ["one/data/train.jsonl", "two/data/train.jsonl"]),
        (["train.jsonl", "/data/other.jsonl", "old/train.jsonl"], ["old/train.jsonl", "other.jsonl", "train.jsonl"]),
    ],
)
def test_files_of_one_name_are_told_apart_by_the_folders_above_them(masks, files, sources):
    settings = detection.read_planted(masks(*({"file": file, "rows": file} for file in files)))
    assert [planted.case for planted in settings] == [f"math, 20 rows of {source}, tiny" for source in sources]


def test_a_file_that_has_changed_is_told_apart_by_its_rows(masks):
    settings = detection.read_planted(masks({"rows": "0123456789"}, {"rows": "abcdefghij"}, {"rows": "abcdefghij"}))
    assert [planted.case for planted in settings] == [f"{PLAIN}, rows=01234567", f"{PLAIN}, rows=abcdefgh"]


def test_several_plantings_are_pooled_by_example_and_their_responses_are_told_apart(masks):
    folders = masks({}, {"plant.seed": 1})
    ((one,), (two,)) = (detection.read_planted(part) for part in (folders[:1], folders))
    np.testing.assert_array_equal(two.group, np.tile(one.group, 2))
    np.testing.assert_array_equal(two.text, np.concatenate([one.group, one.group + 20]))
    assert len(two.codes) == 2 * len(one.codes)


def test_a_method_joins_the_panel_of_its_case_unless_several_do():
    def row(case, detector):
        return Finding(case, 0.3, "any kind", detector, 5, 5, 10, 0.5, {"auroc": Metric(0.6, 0.5, 0.7, 9, "")})

    rows = [row("a", "KN"), row("a, method=m", "token cleaning")]
    assert {case: list(found) for case, found in detection._curves(rows, "any kind").items()} == {
        "a": ["KN", "token cleaning"]
    }
    rows = [row("a", "KN"), *(row(f"a, method=m, method.k={k}", "token cleaning") for k in (1, 2))]
    assert [list(found) for found in detection._curves(rows, "any kind").values()] == [
        ["KN"],
        ["token cleaning"],
        ["token cleaning"],
    ]


def test_a_sweep_leaves_the_truth_beside_the_scores(reported):
    import pyarrow.parquet as pq

    from xtf.runtime.artifacts import read_json

    masks = sorted(reported.rglob("mask.parquet"))
    tables = [pq.read_table(mask) for mask in masks]
    assert sorted("planted" in table.column_names for table in tables) == [False, True]
    for table in tables:
        if "planted" not in table.column_names:
            continue
        assert table["planted"].type == pa.list_(pa.int8())
        assert table["planted"].combine_chunks().value_lengths().equals(table["ri"].combine_chunks().value_lengths())
    reports = [read_json(mask.parent / "manifest.json").get("planting") for mask in masks]
    assert [report["asked"] for report in reports if report] == [0.3]


def test_the_report_has_every_detector_kind_and_share_and_a_figure_per_kind(reported):
    with (reported / "reports" / "planted.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {row["share"] for row in rows} == {"0.0", "0.3"}
    kinds = {"any kind", *(kind.value for kind in PlantKind)}
    assert {row["kind"] for row in rows if row["share"] == "0.3"} == kinds
    assert {"RI", "KN", "TR", "RI or KN or TR", "random", "low loss"} <= {row["detector"] for row in rows}
    for row in rows:
        if row["auroc"]:
            assert 0 <= float(row["auroc_low"]) <= float(row["auroc"]) <= float(row["auroc_high"]) <= 1
    for kind in kinds:
        for suffix in ("png", "svg"):
            assert (reported / "reports" / "figures" / f"planted-{kind.replace(' ', '_')}.{suffix}").stat().st_size
    for suffix in ("md", "html"):
        text = (reported / "reports" / f"planted.{suffix}").read_text()
        assert "Which noise the attributes see" in text
        assert "What was dropped instead" in text


def test_the_report_can_be_made_again_from_its_csv_alone(reported, tmp_path):
    first = reported / "reports"
    detection.detection_report("planted", tmp_path / "no runs", tmp_path / "again", archive=first)
    assert (tmp_path / "again/planted.csv").read_text() == (first / "planted.csv").read_text()
    for suffix in ("md", "html"):
        old, new = ((folder / f"planted.{suffix}").read_text() for folder in (first, tmp_path / "again"))
        assert "What was dropped instead" not in new
        if suffix == "md":
            assert old[old.index("## Which noise") : old.index("## What was dropped")].strip() in new
    with pytest.raises(ValueError, match=r"there is no planted\.csv"):
        detection.detection_report("planted", tmp_path, tmp_path, archive=tmp_path)


def test_an_experiment_without_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of the 0 runs"):
        detection.detection_report("planted", tmp_path, tmp_path)
