"""The library as a Hugging Face or TRL user calls it."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from xtf import api
from xtf.config.schema import (
    Attribute,
    KNRule,
    KNThreshold,
    RIConfig,
    Scale,
    ScorerConfig,
    ThresholdConfig,
    ThresholdEnd,
)

EXAMPLES = [
    {"prompt": "how many apples ?", "response": "two apples and three apples are five apples"},
    {"messages": [{"role": "user", "content": "and pears ?"}, {"role": "assistant", "content": "seven"}]},
    {"id": "mine", "prompt": "and now ?", "response": "now we stop"},
]


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and a few merges, with a chat template."""
    bytes_only = Tokenizer(models.BPE())
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet)
    bytes_only.train_from_iterator([str(example) for example in EXAMPLES], trainer)
    template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, eos_token="<eos>", chat_template=template)


@pytest.fixture
def model(small_model, tokenizer):
    return small_model("qwen2", len(tokenizer))


def test_examples_are_scored_and_masked_in_order(model, tokenizer):
    scored = api.score(model, tokenizer, EXAMPLES)
    assert isinstance(scored, datasets.Dataset)
    assert scored.column_names == ["example_id", "input_ids", "prompt_length", "end_tokens", "ri", "kn", "tr", "logp"]
    assert scored["example_id"][:] == ["1", "2", "mine"]
    for row in scored:
        assert len(row["ri"]) == len(row["kn"]) == len(row["tr"]) == len(row["input_ids"]) - row["prompt_length"]
    masked = api.mask(scored, threshold="quantile")
    assert masked.column_names[-4:] == ["drop_ri", "drop_kn", "drop_tr", "labels"]
    for row in masked:
        response = row["input_ids"][row["prompt_length"] :]
        dropped = np.any([row["drop_ri"], row["drop_kn"], row["drop_tr"]], axis=0)
        expected = [-100 if drop else token for token, drop in zip(response, dropped, strict=True)]
        assert row["labels"] == [-100] * row["prompt_length"] + expected


def test_a_scorer_by_name_scores_only_what_it_names(model, tokenizer):
    assert api.score(model, tokenizer, EXAMPLES, scorer="tr").column_names[4:] == ["tr"]
    assert api.score(model, tokenizer, EXAMPLES, scorer="ri_tr").column_names[4:] == ["ri", "tr"]


def test_a_scorer_configuration_sets_variants(model, tokenizer):
    raw = ScorerConfig("mine", [Attribute.ri], ri=RIConfig(scale=Scale.raw))
    ri = api.score(model, tokenizer, EXAMPLES, scorer=raw)["ri"]
    np.testing.assert_allclose(
        np.log(np.concatenate(ri)), np.concatenate(api.score(model, tokenizer, EXAMPLES, scorer="ri")["ri"]), rtol=1e-5
    )


def test_many_examples_are_scored_in_shards_like_one(model, tokenizer, monkeypatch):
    whole = api.score(model, tokenizer, EXAMPLES)
    monkeypatch.setattr(api, "SHARD", 2)
    shards = api.score(model, tokenizer, EXAMPLES)
    assert shards["example_id"][:] == whole["example_id"][:]
    for name in ("ri", "kn", "tr"):
        np.testing.assert_allclose(np.concatenate(shards[name]), np.concatenate(whole[name]), atol=1e-5)


def test_only_scored_attributes_drop_by_default(model, tokenizer):
    masked = api.mask(api.score(model, tokenizer, EXAMPLES, scorer="kn_tr"), threshold="quantile")
    assert masked.column_names[-3:] == ["drop_kn", "drop_tr", "labels"]


def test_attributes_and_thresholds_can_be_chosen(model, tokenizer):
    scored = api.score(model, tokenizer, EXAMPLES)
    loose = api.mask(scored, ThresholdConfig("mine", kn=KNThreshold(pcp=0.2)), attributes=["kn"])
    for row in loose:
        assert row["drop_kn"] == [logp > np.log(0.2) for logp in row["logp"][:-1]] + [False]  # the end is not judged
    assert "drop_ri" not in loose.column_names


def test_a_filtered_and_shuffled_dataset_is_masked_row_by_row(model, tokenizer):
    scored = api.score(model, tokenizer, EXAMPLES)
    some = scored.shuffle(seed=1).filter(lambda row: row["example_id"] != "1")
    masked = api.mask(some, threshold="quantile", attributes=["kn"])
    assert masked["example_id"][:] == some["example_id"][:]
    assert masked["input_ids"][:] == some["input_ids"][:]


def test_the_end_that_scoring_appends_is_kept_unless_it_is_to_be_judged(model, tokenizer):
    scored = api.score(model, tokenizer, EXAMPLES, scorer="kn")
    assert scored["end_tokens"][:] == [1, 1, 1]
    half = ThresholdConfig("mine", kn=KNThreshold(rule=KNRule.quantile, q=0.5))
    for row in api.mask(scored, half):
        assert row["labels"][-1] == row["input_ids"][-1] == tokenizer.eos_token_id
    everything = ThresholdConfig("mine", end=ThresholdEnd.scored, kn=KNThreshold(pcp=0.2))
    judged = api.mask(scored, everything)
    assert judged["drop_kn"][:] == [[logp > np.log(0.2) for logp in row] for row in scored["logp"][:]]


def test_scores_of_earlier_versions_need_the_end_token_to_keep_it(model, tokenizer):
    scored = api.score(model, tokenizer, EXAMPLES, scorer="kn")
    earlier, rule = scored.remove_columns("end_tokens"), ThresholdConfig("mine", kn=KNThreshold(pcp=0.2))
    with pytest.raises(ValueError, match=r"give eos_token_id=tokenizer\.eos_token_id"):
        api.mask(earlier, rule)
    found = api.mask(earlier, rule, eos_token_id=tokenizer.eos_token_id)
    assert found["labels"][:] == api.mask(scored, rule)["labels"][:]
    assert found["end_tokens"][:] == [1, 1, 1]
    as_before = replace(rule, end=ThresholdEnd.scored)
    assert api.mask(earlier, as_before)["labels"][:] == api.mask(scored, as_before)["labels"][:]


def test_a_response_that_was_cut_off_has_no_end(model, tokenizer):
    whole = api.score(model, tokenizer, EXAMPLES, scorer="kn")
    longest = max(len(ids) for ids in whole["input_ids"])
    cut = api.score(model, tokenizer, EXAMPLES, scorer="kn", max_length=longest - 1)
    assert cut["end_tokens"][:] == [int(len(ids) < longest) for ids in whole["input_ids"]]


def test_what_max_length_does_to_examples_is_logged(model, tokenizer, caplog):
    prompts = api.score(model, tokenizer, EXAMPLES, scorer="kn")["prompt_length"][:]
    longest = max(prompts)
    assert prompts.index(longest) == 1
    with caplog.at_level(logging.WARNING, "xtf"):
        scored = api.score(model, tokenizer, EXAMPLES, scorer="kn", max_length=longest)
    assert scored["example_id"][:] == ["1", "mine"]
    assert f"1 of 3 examples left out, without room within max_length={longest}: 2" in caplog.text
    assert f"of 3 examples cut to max_length={longest}" in caplog.text


def test_unknown_names_are_refused_with_the_known_ones(model, tokenizer):
    with pytest.raises(ValueError, match="scorer='ri_kx': unknown attribute 'kx'; did you mean 'kn'"):
        api.score(model, tokenizer, EXAMPLES, scorer="ri_kx")
    scored = api.score(model, tokenizer, EXAMPLES, scorer="kn")
    with pytest.raises(ValueError, match="known are paper, released, quantile"):
        api.mask(scored, threshold="papre")
    with pytest.raises(ValueError, match="no column 'ri'"):
        api.mask(scored, attributes=["ri"])


def test_the_library_imports_neither_hydra_nor_lightning():
    code = "import sys, xtf.api; print([name for name in sys.modules if 'hydra' in name or 'lightning' in name])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
