"""Architectures that differ in their attention, positions or heads: scored and packed exactly, or refused by cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from xtf.config.schema import ScorerConfig
from xtf.data.encode import Encoded
from xtf.data.ragged import as_table
from xtf.data.steps import TrainingRows, collate
from xtf.evaluation.generation import TooLong, complete
from xtf.runtime.heads import position_table, rope_limit, unwrapped
from xtf.scoring.masks import weights_to_labels
from xtf.scoring.methods import Method
from xtf.scoring.scorers import count_tokens, score_rows, tr_table
from xtf.training.packed import PackedLM, check_positions, enable_packing

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16, "factor": 4.0,
}  # fmt: skip
# class, its configuration, what is its own; whether its attention can be seen (RI), and documents share a row
CLASSES: dict[str, tuple[str, str, dict[str, Any], bool, bool]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}, True, True),
    "longrope": ("Phi3ForCausalLM", "Phi3Config", {"rope_parameters": LONGROPE, "max_position_embeddings": 64,
                                                   "original_max_position_embeddings": 16}, True, True),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 3.0}, True, True),
    "cohere": ("CohereForCausalLM", "CohereConfig", {}, True, True),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", "RecurrentGemmaConfig", {"head_dim": 8}, False, False),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", {}, False, False),
    "nemotron": ("NemotronForCausalLM", "NemotronConfig", {}, False, False),
    "llama4": ("Llama4ForCausalLM", "Llama4TextConfig", {"head_dim": 8, "num_local_experts": 2,
               "intermediate_size_mlp": 48, "attention_chunk_size": 8, "no_rope_layers": [1, 0]}, False, False),
    "doge": ("DogeForCausalLM", "DogeConfig", {}, False, False),
    "gpt_oss": ("GptOssForCausalLM", "GptOssConfig", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
                "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}, False, False),
    "opt": ("OPTForCausalLM", "OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
            True, True),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"n_layer": 2, "n_head": 4}, False, False),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}, True, True),
}  # fmt: skip


def build(name: str) -> PreTrainedModel:
    kind, config, own, _, _ = CLASSES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**{**SIZES, **own})).eval()
    for parameter in model.parameters():  # larger than at initialisation, so that attention is not flat
        if parameter.ndim >= 2:
            parameter.data.mul_(4)
    return model


@pytest.fixture(scope="module")
def rows() -> list[Encoded]:
    random = np.random.default_rng(0)
    lengths = [20, 5, 33, 12, 16, 18]
    return [
        Encoded(f"r{number}", random.integers(3, 97, length).tolist(), int(random.integers(1, length)))
        for number, length in enumerate(lengths)
    ]


def slowly(model: PreTrainedModel, row: Encoded) -> torch.Tensor:
    """log p of the row's tokens behind the first, from the model's own logits on the row alone."""
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("name", CLASSES)
def test_log_probabilities_are_those_of_each_row_alone(name: str, rows: list[Encoded]) -> None:
    model = build(name)
    own = [slowly(model, row)[row.prompt_length - 1 :] for row in rows]
    table = score_rows(model, rows, ScorerConfig(name="kn", attributes=["kn"]), tokens_per_batch=150)
    for found, wanted in zip(table["logp"].to_pylist(), own, strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(slowly(model, rows[0])[rows[0].prompt_length - 1 :], own[0])  # it is as it was


@pytest.mark.parametrize("name", CLASSES)
def test_attention_that_cannot_be_seen_is_refused_with_its_cause(name: str, rows: list[Encoded]) -> None:
    model, scorer = build(name), ScorerConfig(name="ri", attributes=["ri"])
    if CLASSES[name][3]:
        together = score_rows(model, rows, scorer, tokens_per_batch=150)["ri"].to_pylist()
        alone = score_rows(model, rows, scorer, tokens_per_batch=1)["ri"].to_pylist()
        for some, one in zip(together, alone, strict=True):
            assert some == pytest.approx(one, abs=1e-4)
    else:
        with pytest.raises(
            ValueError, match=r"does not (show its attention \(|send layer 1 through).*without RI"
        ) as error:
            score_rows(model, rows, scorer)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CLASSES)
def test_training_has_the_loss_of_each_row_alone(name: str, rows: list[Encoded]) -> None:
    model = build(name)
    wanted = [-slowly(model, row) for row in rows]
    whole = [Encoded(row.example_id, row.input_ids, 1) for row in rows]
    weights = [np.ones(len(row.input_ids) - 1, np.float32) for row in whole]
    data = TrainingRows(weights_to_labels(as_table(whole), weights).table)
    check_positions(model, data)
    _, packs = enable_packing(model, longest=33)
    assert packs == CLASSES[name][4]
    packed = PackedLM(model, Method()).eval()
    found = {}
    for micro in collate(data, np.arange(len(rows)), 80 if packs else 0, 0).micro_batches:
        losses = packed.losses(micro)
        found |= {int(row): losses[micro.rows == row] for row in micro.rows.unique()}
    for number, own in enumerate(wanted):
        torch.testing.assert_close(found[number], own, rtol=1e-4, atol=5e-5)


# -- positions -----------------------------------------------------------------------------------------------


def test_positions_have_an_end_only_where_they_are_learned() -> None:
    assert {name: position_table(build(name)) for name in ("gpt2", "opt", "llama", "bloom")} == {
        "gpt2": 64, "opt": 64, "llama": None, "bloom": None,
    }  # fmt: skip
    assert [rope_limit(build(name)) for name in ("longrope", "llama")] == [16, None]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_row_beyond_the_positions_is_refused_with_its_id(name: str) -> None:
    model, long = build(name), Encoded("far", [5] * 70, 3)
    with pytest.raises(ValueError, match=r"has positions for 64 tokens; longer are the: examples 'far'"):
        score_rows(model, [Encoded("near", [5] * 60, 3), long], ScorerConfig(name="kn", attributes=["kn"]))
    data = TrainingRows(weights_to_labels(as_table([long]), [np.ones(67, np.float32)]).table)
    with pytest.raises(ValueError, match=r"positions for 64 tokens; longer are the examples 'far': .*max_length=64"):
        check_positions(model, data)


FIXED = {
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {"rotary_dim": 4, "n_positions": 64}),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", {"rotary_dim": 4, "n_positions": 64}),
    "ctrl": ("CTRLLMHeadModel", "CTRLConfig", {"dff": 48, "n_positions": 64}),
    "mpt": ("MptForCausalLM", "MptConfig", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "dynamic": ("LlamaForCausalLM", "LlamaConfig", {"max_position_embeddings": 64, "hidden_size": 32,
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_positions_that_are_made_once_end_too(name: str) -> None:
    kind, config, own = FIXED[name]
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48} if name == "dynamic" else {}
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes, **own)).eval()
    near, far = Encoded("near", list(range(5, 64)), 3), Encoded("far", [5] * 110, 3)
    scorer = ScorerConfig(name="kn", attributes=["kn"])
    with pytest.raises(ValueError, match=r"has positions for 64 tokens; longer are the: examples 'far'"):
        score_rows(model, [near, far], scorer)
    data = TrainingRows(weights_to_labels(as_table([far]), [np.ones(107, np.float32)]).table)
    with pytest.raises(ValueError, match=r"positions for 64 tokens; longer are the examples 'far': .*max_length=64"):
        check_positions(model, data)
    found = score_rows(model, [near, Encoded("short", [7, 9, 4], 1)], scorer)["logp"].to_pylist()[0]
    torch.testing.assert_close(torch.tensor(found), slowly(model, near)[2:], rtol=1e-4, atol=2e-5)


def test_an_idle_place_does_not_run_off_the_positions() -> None:
    """One prompt ends at once and its place stays idle while the others go on to the last position."""
    model = build("gpt2")
    prompts = [[3] * 40, *([4 + n] * 20 for n in range(8))]

    def slow(prompt: list[int], count: int) -> list[int]:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    first = slow(prompts[0], 1)[0]
    found = dict(complete(model, prompts, places=9, max_new_tokens=24, stops={first}))
    for index, prompt in enumerate(prompts):
        wanted = slow(prompt, 24)
        assert found[index] == (wanted[: wanted.index(first)] if first in wanted else wanted)
    with pytest.raises(TooLong, match="positions for 64 tokens") as error:
        list(complete(model, prompts, places=2, max_new_tokens=30, stops=set()))
    assert error.value.prompts == [0]


# -- wrappers ------------------------------------------------------------------------------------------------


def scores(model: Any, rows: list[Encoded]) -> list[list[float]]:
    return score_rows(model, rows, ScorerConfig(name="ri_kn", attributes=["ri", "kn"]))["logp"].to_pylist()


def test_wrapped_models_are_scored_as_what_they_wrap(rows: list[Encoded]) -> None:
    plain = scores(build("llama"), rows)
    assert scores(torch.nn.DataParallel(build("llama")), rows) == plain
    assert scores(torch.compile(build("llama")), rows) == plain
    adapted = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    assert scores(adapted, rows) == plain  # an untrained adapter changes nothing
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.5)
    trained = scores(adapted, rows)
    assert trained != plain
    for found, wanted in zip(trained, scores(adapted.merge_and_unload(), rows), strict=True):
        assert found == pytest.approx(wanted, abs=1e-3)


def test_a_quantised_model_is_scored_with_its_own_numbers(rows: list[Encoded]) -> None:
    model = torch.ao.quantization.quantize_dynamic(build("llama"), {torch.nn.Linear}, dtype=torch.qint8)
    own = [slowly(model, row)[row.prompt_length - 1 :] for row in rows]
    for found, wanted in zip(scores(model, rows), own, strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, rtol=1e-2, atol=0.3)  # the scale follows the batch


def test_tr_of_a_quantised_embedding_is_that_of_the_rows_that_it_unpacks() -> None:
    model, plain = build("llama"), build("llama")
    weight = plain.get_input_embeddings().weight.detach()
    scale, middle = weight.abs().amax(1).double() / 120, torch.full((len(weight),), 128.0, dtype=torch.float64)
    packed = torch.ao.nn.quantized.Embedding(*weight.shape)
    packed.set_weight(torch.quantize_per_channel(weight, scale, middle, 0, torch.quint8))
    model.set_input_embeddings(packed)
    plain.get_input_embeddings().weight.data = packed.weight().dequantize()
    counts = count_tokens([Encoded("a", list(range(40)), 3), Encoded("b", [5, 9, 3, 3, 7], 2)])
    scorer = ScorerConfig(name="tr", attributes=["tr"])
    found, wanted = (tr_table(one, counts, scorer).lookup(np.arange(3, 40)) for one in (model, plain))
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert len(set(found.tolist())) > 30


def test_what_is_no_causal_language_model_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="a causal language model of transformers is needed, not Linear"):
        unwrapped(torch.nn.Linear(2, 2))
    prompted = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING puts tokens of its own before every text"):
        unwrapped(prompted)


def test_a_model_that_is_not_causal_is_refused_for_that_cause(rows: list[Encoded]) -> None:
    small = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    bert = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **small
    )
    xlnet = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=4, d_inner=48, **small)
    t5 = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **small
    )
    for model in (transformers.BertLMHeadModel(bert), transformers.XLNetLMHeadModel(xlnet)):
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.mul_(4)
        for attribute in ("kn", "ri"):
            with pytest.raises(ValueError, match=f"{type(model).__name__} is not causal"):
                score_rows(model.eval(), rows, ScorerConfig(name=attribute, attributes=[attribute]))
    with pytest.raises(ValueError, match="is needed, not T5ForConditionalGeneration, which reads the prompt with"):
        unwrapped(transformers.T5ForConditionalGeneration(t5))
