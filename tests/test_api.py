"""The library as a Hugging Face or TRL user calls it."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from xtf import api
from xtf.config.identity import digest
from xtf.config.schema import (
    Attribute,
    KNRule,
    KNThreshold,
    RIConfig,
    Scale,
    ScorerConfig,
    ThresholdConfig,
    ThresholdEnd,
    TRConfig,
    TRVariant,
)
from xtf.data.provenance import provenance, recorded, tokenizer_digest

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
    names = [
        "example_id",
        "input_ids",
        "prompt_length",
        "end_tokens",
        "ri",
        "kn",
        "tr",
        "logp",
        "prompt_tr",
        "provenance",
    ]
    assert scored.column_names == names
    assert scored["example_id"][:] == ["1", "2", "mine"]
    for row in scored:
        assert len(row["ri"]) == len(row["kn"]) == len(row["tr"]) == len(row["input_ids"]) - row["prompt_length"]
    masked = api.mask(scored, threshold="quantile")
    assert masked.column_names[-5:] == ["drop_ri", "drop_kn", "drop_tr", "labels", "provenance"]
    for row in masked:
        response = row["input_ids"][row["prompt_length"] :]
        dropped = np.any([row["drop_ri"], row["drop_kn"], row["drop_tr"]], axis=0)
        expected = [-100 if drop else token for token, drop in zip(response, dropped, strict=True)]
        assert row["labels"] == [-100] * row["prompt_length"] + expected


def test_a_scorer_by_name_scores_only_what_it_names(model, tokenizer):
    assert api.score(model, tokenizer, EXAMPLES, scorer="tr").column_names[4:] == ["tr", "prompt_tr", "provenance"]
    names = api.score(model, tokenizer, EXAMPLES, scorer="ri_tr").column_names[4:]
    assert names == ["ri", "tr", "prompt_tr", "provenance"]


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


def test_a_streaming_dataset_is_read_like_one_in_memory(model, tokenizer):
    rows = [row for row in EXAMPLES if "prompt" in row]
    whole = api.score(model, tokenizer, rows, scorer="kn", progress=False)
    streamed = datasets.IterableDataset.from_generator(lambda: iter(rows)).with_format("numpy")
    assert api.score(model, tokenizer, streamed, scorer="kn", progress=False)["logp"][:] == whole["logp"][:]
    with pytest.raises(ValueError, match="one set of rows is needed, not several"):
        api.score(model, tokenizer, datasets.IterableDatasetDict(train=streamed))


def test_every_turn_of_a_conversation_can_be_scored(model, tokenizer):
    asked, answered = {"role": "user", "content": "and now ?"}, {"role": "assistant", "content": "now we stop"}
    talk = [{"messages": [asked, answered | {"weight": 2.0}, asked, answered]}]
    scored = api.score(model, tokenizer, talk, scorer="kn", turns="all", progress=False)
    assert scored["example_id"][:] == ["1#1", "1#2"] and scored[0]["row_weights"][0] == 2.0
    assert scored["source_id"][:] == ["1", "1"]  # so that a validation split does not part them
    assert api.mask(scored, attributes=["kn"])["source_id"][:] == ["1", "1"]
    with pytest.raises(ValueError, match=r"turns='every'.*known are last, all"):
        api.score(model, tokenizer, talk, turns="every")
    with pytest.raises(ValueError, match="turns='all' is for conversations"):
        api.score(model, tokenizer, [{"input_ids": [1, 2], "labels": [-100, 2]}], turns="all")
    for name, value in {"think": "close", "date": "2026-01-31", "template_checks": "refuse"}.items():
        with pytest.raises(
            ValueError, match=f"^{name}={value} is for a chat template, and rows of token ids go through"
        ):
            api.score(model, tokenizer, [{"input_ids": [1, 2], "labels": [-100, 2]}], **{name: value})


def test_only_scored_attributes_drop_by_default(model, tokenizer):
    masked = api.mask(api.score(model, tokenizer, EXAMPLES, scorer="kn_tr"), threshold="quantile")
    assert masked.column_names[-4:] == ["drop_kn", "drop_tr", "labels", "provenance"]


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
    with pytest.raises(ValueError, match="known are paper, released, safe, quantile"):
        api.mask(scored, threshold="papre")
    with pytest.raises(ValueError, match="no column 'ri'"):
        api.mask(scored, attributes=["ri"])


# -- models as people have them ----------------------------------------------------------------------------------


def adapted(model, **settings):
    from peft import LoraConfig, get_peft_model

    found = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings))
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    return found


def logp(model, tokenizer):
    return api.score(model, tokenizer, EXAMPLES, scorer="kn", progress=False)["logp"][:]


def test_adapters_are_off_while_the_base_is_scored_and_on_again_behind_it(small_model, tokenizer, caplog):
    base = logp(small_model("qwen2", len(tokenizer)), tokenizer)
    tuned = adapted(small_model("qwen2", len(tokenizer)))
    ids = torch.arange(5, 15)[None]
    before = tuned(ids).logits
    with caplog.at_level(logging.WARNING, "xtf"):
        assert logp(tuned, tokenizer) == base
    assert caplog.text.count("the adapter default is switched off while scoring: the base model says") == 1
    torch.testing.assert_close(tuned(ids).logits, before)
    assert {name for name, one in tuned.named_parameters() if one.requires_grad} == {
        name for name, _ in tuned.named_parameters() if "lora_" in name
    }
    assert logp(torch.compile(tuned), tokenizer) == base
    assert logp(tuned.merge_and_unload(), tokenizer) != base


@pytest.mark.parametrize("part", ["in place", "forward", "decoder"])
def test_a_model_that_is_compiled_in_part_is_scored_as_it_was_written(small_model, tokenizer, part):
    written = api.score(small_model("qwen2", len(tokenizer)), tokenizer, EXAMPLES, progress=False)
    model = small_model("qwen2", len(tokenizer))
    if part == "in place":
        model.compile(backend="eager")
    elif part == "forward":
        model.forward = torch.compile(model.forward, backend="eager")
    else:
        model.model = torch.compile(model.model, backend="eager")
    scored = api.score(model, tokenizer, EXAMPLES, progress=False)
    assert all(scored[name][:] == written[name][:] for name in ("ri", "kn", "tr", "logp"))


def test_an_adapter_of_the_models_own_is_off_too(small_model, tokenizer, tmp_path):
    base = logp(small_model("qwen2", len(tokenizer)), tokenizer)
    adapted(small_model("qwen2", len(tokenizer))).save_pretrained(tmp_path)
    model = small_model("qwen2", len(tokenizer))
    model.load_adapter(str(tmp_path))
    ids = torch.arange(5, 15)[None]
    before = model(ids).logits
    assert logp(model, tokenizer) == base
    torch.testing.assert_close(model(ids).logits, before)


def test_layers_that_peft_put_in_without_a_wrapper_are_off_too(small_model, tokenizer, caplog):
    base = logp(small_model("qwen2", len(tokenizer)), tokenizer)
    tuned = adapted(small_model("qwen2", len(tokenizer))).get_base_model()  # the wrapper is left behind
    ids = torch.arange(5, 15)[None]
    before = tuned(ids).logits
    assert logp(tuned, tokenizer) == base
    torch.testing.assert_close(tuned(ids).logits, before)


def test_an_adapter_with_biases_of_the_base_model_is_refused(small_model, tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(small_model("qwen2", len(tokenizer)), LoraConfig(target_modules=["q_proj"], bias="all"))
    with pytest.raises(ValueError, match="has trained biases of the base model"):
        logp(model, tokenizer)


def test_an_adapter_that_starts_from_the_base_models_weights_is_refused(small_model, tokenizer):
    for start in ("pissa", "olora"):
        model = adapted(small_model("qwen2", len(tokenizer)), init_lora_weights=start)
        with pytest.raises(ValueError, match=rf"took out of the base model \(init_lora_weights={start}\)"):
            logp(model, tokenizer)
    logp(adapted(small_model("qwen2", len(tokenizer)), init_lora_weights="gaussian"), tokenizer)


def test_adapters_that_are_merged_or_off_are_so_behind_scoring(small_model, tokenizer, tmp_path):
    base, ids = logp(small_model("qwen2", len(tokenizer)), tokenizer), torch.arange(5, 15)[None]
    tuned = adapted(small_model("qwen2", len(tokenizer)))
    tuned.save_pretrained(tmp_path)
    tuned.merge_adapter()
    before = tuned(ids).logits
    for found, wanted in zip(logp(tuned, tokenizer), base, strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert tuned.base_model.model.model.layers[0].self_attn.q_proj.merged
    torch.testing.assert_close(tuned(ids).logits, before)
    own = small_model("qwen2", len(tokenizer))
    own.load_adapter(str(tmp_path))
    own.disable_adapters()
    before = own(ids).logits
    assert logp(own, tokenizer) == base
    assert torch.equal(own(ids).logits, before)


def test_models_that_cannot_be_run_are_refused_in_a_sentence(small_model, tokenizer):
    with pytest.raises(ValueError, match="Qwen2Model has no LM head: load the model with AutoModelForCausalLM"):
        logp(small_model("qwen2", len(tokenizer)).model, tokenizer)
    with pytest.raises(ValueError, match=r"are not in memory .* is on the device meta"):
        logp(small_model("qwen2", len(tokenizer)).to("meta"), tokenizer)
    damaged = small_model("qwen2", len(tokenizer))
    damaged.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="computes NaN or infinity from a few tokens: its weights are damaged"):
        api.score(damaged, tokenizer, EXAMPLES, progress=False)
    mixed = small_model("qwen2", len(tokenizer))
    mixed.model.layers[0].double()
    with pytest.raises(ValueError, match="cannot be run on a few tokens: "):
        api.score(mixed, tokenizer, EXAMPLES, progress=False)


@pytest.mark.parametrize("place", ["a layer on disk", "all on disk", "all in main memory"])
def test_a_model_whose_weights_lie_elsewhere_is_scored_like_one_in_memory(small_model, tokenizer, tmp_path, place):
    accelerate = pytest.importorskip("accelerate")
    released = ScorerConfig("x", [Attribute.tr], tr=TRConfig(variant=TRVariant.released))
    whole, model = (small_model("qwen2", len(tokenizer)) for _ in range(2))
    if place == "a layer on disk":
        near = ["embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb"]
        parts = {f"model.{part}": "cpu" for part in near} | {"model.layers.2": "disk", "lm_head": "cpu"}
        accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=tmp_path)
    elif place == "all on disk":
        accelerate.disk_offload(model, tmp_path, "cpu")
    else:
        accelerate.cpu_offload(model, "cpu")
    assert any(one.is_meta for one in model.parameters())
    for scorer in ("xtf", released):
        found, wanted = (
            api.score(one, tokenizer, EXAMPLES, scorer=scorer, domain_words=["apples"], progress=False)
            for one in (model, whole)
        )
        assert all(
            found[name][:] == wanted[name][:] for name in ("ri", "kn", "tr", "logp") if name in wanted.column_names
        )
    assert any(one.is_meta for one in model.parameters())


def test_a_model_that_torch_quantised_is_warned_of(model, tokenizer, caplog):
    small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with caplog.at_level(logging.WARNING, "xtf"):
        api.score(small, tokenizer, EXAMPLES, scorer="kn", progress=False)
    assert "is quantised" in caplog.text


def test_every_submodule_is_in_the_mode_in_which_it_was(model, tokenizer):
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    api.score(model, tokenizer, EXAMPLES, progress=False)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="the model has layers 0 to 2"):
        api.score(model, tokenizer, EXAMPLES, scorer=ScorerConfig("x", [Attribute.ri], ri=RIConfig(layer=7)))
    assert [module.training for module in model.modules()] == modes


def test_a_model_by_its_name_is_loaded_and_let_go(monkeypatch):
    from xtf import tiny

    known, load = [], api.load_model

    def loaded(*arguments):
        model = load(*arguments)
        known.append(weakref.ref(model))
        return model

    monkeypatch.setattr(api, "load_model", loaded)
    rows = [{"prompt": "What is 2 + 3?", "response": "2 + 3 = 5"}]
    scored = api.score(tiny.MODEL_DIR, None, rows)
    gc.collect()
    assert [one() for one in known] == [None]
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype=torch.float32)
    assert api.score(model, None, rows)["logp"][:] == scored["logp"][:]
    with pytest.raises(ValueError, match=r"model\.path=/no/such/model cannot be loaded: there is no such folder"):
        api.score("/no/such/model", None, rows)
    nameless = AutoModelForCausalLM.from_config(model.config)
    nameless.name_or_path = ""
    with pytest.raises(ValueError, match="does not say where it was loaded from: give its tokenizer"):
        api.score(nameless, None, rows)


def test_a_quantised_model_is_warned_of(model, tokenizer, caplog):
    model.is_quantized = True
    with caplog.at_level(logging.WARNING, "xtf"):
        api.score(model, tokenizer, EXAMPLES, scorer="kn")
    assert "is quantised: its log p are not those of the full weights" in caplog.text


def test_progress_is_told_in_tokens(model, tokenizer, monkeypatch):
    told = []

    @contextlib.contextmanager
    def bar(what, tokens):
        told.append((what, tokens))
        yield lambda done: told.append(done)

    monkeypatch.setattr(api, "bar", bar)
    scored = api.score(model, tokenizer, EXAMPLES)
    tokens = sum(map(len, scored["input_ids"]))
    assert told[0] == ("scoring", tokens) and sum(told[1:]) == tokens
    told.clear()
    api.score(model, tokenizer, EXAMPLES, progress=False)
    api.score(model, tokenizer, EXAMPLES, scorer="tr")  # reads embeddings, passes nothing
    assert told == []


# -- where scores come from --------------------------------------------------------------------------------------


def test_scores_and_masks_say_what_made_them_also_when_stored(model, tokenizer, tmp_path):
    scored = api.score(model, tokenizer, EXAMPLES)
    masked = api.mask(scored, "quantile", tokenizer=tokenizer)
    masked.shuffle(seed=1).filter(lambda row: row["example_id"] != "1").save_to_disk(tmp_path / "set")
    found = api.provenance(datasets.load_from_disk(tmp_path / "set"))
    assert found == api.provenance(masked)
    assert found["tokenizer"] == tokenizer_digest(tokenizer)
    assert found["template"] == digest(tokenizer.chat_template)
    assert found["scorer"]["attributes"] == ["ri", "kn", "tr"] and found["max_length"] == 2048
    assert found["threshold"]["name"] == "quantile" and set(found["cuts"]) == {"ri", "kn", "tr"}
    assert found["dropped_share"]["union"] > 0
    assert found["versions"]["xtf"] and found["verdict"] in ("fine", "look closer", "do not train on this")
    known = api.mask(scored, ThresholdConfig("all", kn=KNThreshold(pcp=1 - 1e-9)), ["kn"])
    assert api.provenance(known)["degenerate"] == [{"attribute": "kn", "reason": "its rule filters nothing"}]
    assert api.provenance(datasets.Dataset.from_dict({"a": [1]})) == {}


def test_scores_of_another_tokenizer_are_refused(model, tokenizer, small_model, tmp_path):
    scored = api.score(model, tokenizer, EXAMPLES)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<another>"])
    with pytest.raises(ValueError, match=r"the rows were scored with another tokenizer .* give the one of the scores"):
        api.mask(scored, tokenizer=other)
    theirs = api.score(small_model("qwen2", len(other)), other, EXAMPLES)
    both = datasets.concatenate_datasets([scored, theirs])
    with pytest.raises(ValueError, match=r"the rows were scored with 2 tokenizers .* take each set apart"):
        api.mask(both)
    assert api.mask(both.select(range(3)), "quantile", tokenizer=tokenizer)["labels"][:]  # only ours are left
    masked = datasets.concatenate_datasets([api.mask(scored, "quantile"), api.mask(theirs, "quantile")])
    with pytest.raises(ValueError, match=r"the rows were scored with 2 tokenizers .* take each set apart"):
        api.export(masked, "hf", tmp_path / "both", model="somewhere", tokenizer=tokenizer)


def pushed(rows, folder, monkeypatch):
    """What `push_to_hub` would commit, as a folder."""

    class Hub:
        def __init__(self, **_):
            pass

        def repo_info(self, name, **_):
            return SimpleNamespace(id=name, sha="main")

        def preupload_lfs_files(self, additions, **_):
            self.keep(additions)

        def create_commit(self, _, operations, **__):
            self.keep(one for one in operations if one.path_in_repo.endswith(".md"))

        def keep(self, additions):
            for one in additions:
                place = folder / one.path_in_repo
                place.parent.mkdir(parents=True, exist_ok=True)
                with one.as_file() as file:
                    place.write_bytes(file.read())

    monkeypatch.setattr("datasets.arrow_dataset.HfApi", Hub)
    monkeypatch.setattr("datasets.arrow_dataset.HfFileSystem", lambda **_: None)
    monkeypatch.setattr(
        "datasets.arrow_dataset.DirFileSystem", lambda **_: DirFileSystem(str(folder), LocalFileSystem())
    )
    rows.push_to_hub("me/masked", num_shards=2)
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("way", ["parquet", "json", "pandas", "push"])
def test_what_made_rows_survives_files_and_the_hub(model, tokenizer, tmp_path, monkeypatch, way):
    def stored(rows, name):
        file = str(tmp_path / f"{name}.{way}")
        if way == "pandas":
            return datasets.Dataset.from_pandas(rows.to_pandas())
        if way == "push":
            return pushed(rows, tmp_path / name, monkeypatch)
        getattr(rows, f"to_{way}")(file)
        return datasets.load_dataset(way, data_files=file, split="train", cache_dir=str(tmp_path / "cache"))

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<another>"])
    scored = api.score(model, tokenizer, EXAMPLES)
    again = stored(scored, "scored")
    assert api.provenance(again) == api.provenance(scored) != {}
    with pytest.raises(ValueError, match="were scored with another tokenizer"):
        api.mask(again, "quantile", tokenizer=other)
    masked = api.mask(again, "quantile", tokenizer=tokenizer)
    assert masked["labels"][:] == api.mask(scored, "quantile")["labels"][:]
    again = stored(masked, "masked").train_test_split(test_size=1, seed=0)["train"]
    assert api.provenance(again) == api.provenance(masked)
    with pytest.raises(ValueError, match="were scored with another tokenizer"):
        api.export(again, "hf", tmp_path / "export", model="somewhere", tokenizer=other)


def test_rows_that_say_nothing_are_warned_of_and_the_rule_of_each_part_is_named(tmp_path, caplog):
    from xtf import tiny

    rows = [{"prompt": "What is 2 + 3?", "response": "2 + 3 = 5\n#### 5"}] * 3
    scored = api.score(tiny.MODEL_DIR, None, rows, progress=False)
    masked = api.mask(scored, "quantile"), api.mask(scored, "paper")
    both = datasets.concatenate_datasets(masked)
    assert api.provenance(both)["tokenizer"] == api.provenance(scored)["tokenizer"]
    assert "threshold" not in api.provenance(both)
    folder = api.export(both, "hf", tmp_path / "both")
    readme = (folder / "README.md").read_text()
    assert "- part 1 of 2: threshold=quantile" in readme and "- part 2 of 2: threshold=paper" in readme
    silent = datasets.concatenate_datasets(
        [masked[0], datasets.Dataset(masked[1].data.table).remove_columns("provenance")]
    )
    with caplog.at_level(logging.WARNING, "xtf"):
        folder = api.export(silent, "hf", tmp_path / "silent", model=str(tiny.MODEL_DIR))
    assert "not all rows say which tokenizer they were scored with" in caplog.text
    assert "- part 2 of 2: the rows do not say by which rule" in (folder / "README.md").read_text()


def test_a_hundred_thousand_rows_take_no_memory_to_say_what_made_them():
    table, before = pa.table({"a": np.arange(100_000)}), pa.total_allocated_bytes()
    found = recorded(table, {"model": "m" * 2000})  # 200 MB as text
    assert pa.total_allocated_bytes() - before < 10e6
    assert provenance(found.select(range(0, 100_000, 7))) == {"model": "m" * 2000}


def test_the_library_imports_neither_hydra_nor_lightning():
    code = "import sys, xtf.api; print([name for name in sys.modules if 'hydra' in name or 'lightning' in name])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"think": "opne"}, "think='opne'; did you mean 'open'\\?: known are open, close"),
        ({"template_checks": "maybe"}, "template_checks='maybe'.*: known are warn, refuse"),
        ({"date": "yesterday"}, "date='yesterday': it must be a day like 2026-01-31"),
        ({"max_length": "12"}, "max_length='12': it must be a whole number"),
        ({"max_length": 0}, "max_length=0: it must be a whole number, at least 1"),
        ({"tokens_per_batch": 1.5}, "tokens_per_batch=1.5: it must be a whole number"),
        ({"tokenizer": "gpt2"}, "tokenizer must be one of transformers .*, not str"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_name(model, tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        api.score(**{"model": model, "tokenizer": tokenizer, "examples": EXAMPLES, **arguments})


def test_what_is_graded_must_be_text_and_choices_a_list():
    with pytest.raises(ValueError, match="the completion must be text, not NoneType"):
        api.grade("number", None, "5")
    with pytest.raises(ValueError, match="the reference must be text, not int"):
        api.grade("number", "5", 5)
    with pytest.raises(ValueError, match="choices must be a list of answers, not the text 'AB'"):
        api.grade("choice", "A", "A", "AB")
