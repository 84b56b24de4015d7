"""Scores carried over from one tokenizer's tokens to another's: hand-worked numbers, a stored pass, a whole run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from xtf import tiny
from xtf.config.checks import resolve
from xtf.config.compose import compose, to_config
from xtf.config.schema import ConfigError, Scale
from xtf.pipeline import Pipeline
from xtf.runtime.artifacts import read_json
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.carried import carried_scores, carry


def spans(*bounds):
    return np.array(bounds, np.int64).reshape(-1, 2)


def test_log_p_is_split_over_characters_and_summed():
    # "abcdef": abc|def for the one, ab|cd|e|f for the other
    found = carry(np.array([-3.0, -6.0]), spans((0, 3), (3, 6)), spans((0, 2), (2, 4), (4, 5), (5, 6)), adds_up=True)
    np.testing.assert_allclose(found, [-2, -1 - 2, -2, -2])
    assert found.sum() == -9, "the response is as likely as it was"


def test_nearness_is_the_mean_of_the_characters():
    found = carry(np.array([0.2, 0.8]), spans((0, 3), (3, 6)), spans((0, 2), (2, 4), (4, 6)), adds_up=False)
    np.testing.assert_allclose(found, [0.2, 0.5, 0.8])


def test_tokens_of_one_character_share_it():
    # one character of two tokens (its bytes) becomes one token, and back
    two, one = spans((0, 1), (0, 1), (1, 2)), spans((0, 1), (1, 2))
    np.testing.assert_allclose(carry(np.array([-1.0, -2.0, -4.0]), two, one, adds_up=True), [-3, -4])
    np.testing.assert_allclose(carry(np.array([-3.0, -4.0]), one, two, adds_up=True), [-1.5, -1.5, -4])
    np.testing.assert_allclose(carry(np.array([0.2, 0.4, 0.9]), two, one, adds_up=False), [0.3, 0.9])


def test_equal_tokens_keep_their_scores_to_the_bit():
    values = np.array([-0.1, -0.2, -0.3], np.float32)
    same = spans((0, 3), (3, 4), (4, 9))
    np.testing.assert_array_equal(carry(values, same, same, adds_up=True), values.astype(np.float64))


def test_what_was_not_scored_is_refused():
    with pytest.raises(ValueError, match="character 3 lies in no token"):
        carry(np.array([-1.0]), spans((0, 3)), spans((0, 2), (2, 4)), adds_up=True)
    with pytest.raises(ValueError, match="covers no character"):
        carry(np.array([-1.0, -1.0]), spans((0, 3), (3, 3)), spans((0, 3)), adds_up=True)
    with pytest.raises(ValueError, match="cut off before"):
        carried_scores({"tr": np.array([0.5])}, spans((0, 1)), spans((0, 1)), (0, 1), Scale.log)


@pytest.mark.parametrize("scale", Scale)
def test_attention_adds_up_on_its_own_scale_and_the_end_keeps_its_score(scale):
    attention = np.array([0.3, 0.1, 0.7])  # two tokens and the end
    ri = np.log(attention) if scale is Scale.log else attention
    scores = {"ri": ri, "logp": np.array([-3.0, -1.0, -0.5])}
    found = carried_scores(scores, spans((0, 3), (3, 4)), spans((0, 1), (1, 4)), (1, 1), scale)
    wanted = np.array([0.1, 0.3, 0.7])
    np.testing.assert_allclose(found["ri"], np.log(wanted) if scale is Scale.log else wanted, rtol=1e-6)
    np.testing.assert_allclose(found["logp"], [-1, -3, -0.5])
    cut = carried_scores(scores, spans((0, 3), (3, 4)), spans((0, 1), (1, 4)), (1, 0), scale)
    assert len(cut["logp"]) == 2
    assert cut["ri"].dtype == np.float32


# --- a whole run --------------------------------------------------------------------------------------------


@pytest.fixture
def spaced(tmp_path):
    """The tiny model with a tokenizer of its own that splits every character."""
    folder = tmp_path / "spaced"
    shutil.copytree(tiny.MODEL_DIR, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []  # the vocabulary stays, of which only single bytes are used
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.usefixtures("composing")
def test_another_model_scores_for_the_one_that_is_trained(spaced, tmp_path):
    common = ["stage=mask", f"output_dir={tmp_path / 'out'}", "task.train.limit=6", "model.max_length=1024"]

    def run(*more, path=None, trained=None):
        config = resolve(to_config(compose([*common, *more])))
        if trained is not None:
            config = replace(config, model=replace(config.model, path=str(trained)))
        if path is not None:
            other = replace(config.scorer.model, path=str(path))
            config = replace(config, scorer=replace(config.scorer, model=other))
        changed = {"more": more, "path": path and path.name, "trained": trained and trained.name}
        folder = RunFolder.of(config, changed)
        Pipeline(config, changed, folder).stages()
        return pq.read_table(folder.mask), read_json(folder.manifest)

    own, _ = run()
    same, record = run("scorer.model=tiny")
    assert same == own, "the same tokens: its scores are taken as they are"
    assert record["scored_by"]["carried"] is False
    carried, record = run("scorer.model=tiny", path=spaced)
    assert record["scored_by"]["carried"] is True and "regime" not in record
    assert carried["input_ids"] == own["input_ids"] and carried["labels"] != own["labels"]
    logp = [carried["logp"].combine_chunks().flatten(), own["logp"].combine_chunks().flatten()]
    assert len(logp[0]) == len(logp[1]) and logp[0] != logp[1]

    run("scorer.top=2", trained=spaced)  # a run of the scorer's own adds what has no rule to its pass
    again, _ = run("scorer.model=tiny", "threshold.kn.pcp=0.9", path=spaced)
    assert again["logp"] == carried["logp"] and again["tr"] == carried["tr"]
    with pytest.raises(ValueError, match="no rule to carry top2"):
        run("scorer.model=tiny", "scorer.top=2", path=spaced)


@pytest.mark.usefixtures("composing")
def test_a_scorer_that_nothing_asks_for_is_refused():
    for more in ("scorer=none", "method=normal"):
        with pytest.raises(ConfigError, match="has none"):
            resolve(to_config(compose(["scorer.model=tiny", more])))
    with pytest.raises(ConfigError, match=r"scorer\.model=tinny"):
        to_config(compose(["scorer.model=tinny"]))
