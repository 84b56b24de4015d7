"""Gradients of the packed, chunked, kept-tokens-only loss against the plain loss of transformers."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from xtf.config.schema import Backward, Schedule
from xtf.data.ragged import ROW_WEIGHTS
from xtf.data.steps import Step, StepLoader, TrainingRows, collate
from xtf.scoring.methods import METHODS, Method
from xtf.training import packed as module_file
from xtf.training.module import learning_rate_factor
from xtf.training.packed import PACKED, PackedLM, enable_packing

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "qwen2_tied": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=64)),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(3)
    kind, config = MODELS[name]
    model = kind._from_config(config, attn_implementation="sdpa")
    for parameter in model.parameters():  # larger than at initialisation, so that attention is not flat
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.float().train()


def table(rows: int = 7, keep: float = 0.6, seed: int = 0, **columns: Any) -> pa.Table:
    random = np.random.default_rng(seed)
    ids = [random.integers(1, VOCABULARY, random.integers(6, 30)).tolist() for _ in range(rows)]
    prompts = [int(random.integers(1, 5)) for _ in range(rows)]
    labels = [
        [token if at >= prompt and random.random() < keep else -100 for at, token in enumerate(row)]
        for row, prompt in zip(ids, prompts, strict=True)
    ]
    return pa.table(
        {"example_id": [f"e{i}" for i in range(rows)], "input_ids": ids, "prompt_length": prompts, "labels": labels}
        | columns
    )


def whole_step(rows: TrainingRows, budget: int = 64) -> Step:
    return collate(rows, np.arange(len(rows)), budget, 0)


def padded(source: pa.Table) -> dict[str, torch.Tensor]:
    """The same rows as an ordinary right-padded batch."""
    ids, labels = source["input_ids"].to_pylist(), source["labels"].to_pylist()
    width = max(map(len, ids))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
        "labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels]),
    }


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    difference = math.sqrt(sum(float((ours[k] - theirs[k]).double().square().sum()) for k in theirs))
    return difference / math.sqrt(sum(float(g.double().square().sum()) for g in theirs.values()))


def plain_gradients(model: PreTrainedModel, source: pa.Table) -> tuple[float, dict[str, torch.Tensor]]:
    batch = padded(source)
    kept = int((batch["labels"][:, 1:] != -100).sum())
    loss = model(**batch, use_cache=False, num_items_in_batch=kept).loss
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    return float(loss.detach()), found


def packed_gradients(
    model: Any, source: pa.Table, budget: int = 64, method: Method | None = None
) -> tuple[float, dict[str, torch.Tensor]]:
    method = method or Method()
    step = whole_step(TrainingRows(source, sorted(method.needs)), budget)
    packed, total = PackedLM(model, method), 0.0
    for micro in step.micro_batches:
        loss = packed(micro)[0] / step.kept_tokens
        loss.backward()
        total += float(loss.detach())
    found = gradients(model)
    model.zero_grad()
    return total, found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packing", [PACKED, "sdpa"])
def test_packed_gradients_equal_those_of_a_padded_batch(name: str, packing: str) -> None:
    model, source = build(name), table()
    loss, theirs = plain_gradients(model, source)
    model.set_attn_implementation(packing)
    found, ours = packed_gradients(model, source)
    assert found == pytest.approx(loss, rel=1e-6)
    assert relative_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_the_last_layer_ends_at_the_tokens_that_predict(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = build(name), table()
    model.set_attn_implementation(PACKED)
    layer, seen = model.get_decoder().layers[-1], []
    if not module_file.behind_last_attention(model):
        pytest.skip(f"the last layer of {name} has a form that is not known")
    handle = layer.mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    _, ours = packed_gradients(model, source)
    handle.remove()
    micros = whole_step(TrainingRows(source), 64).micro_batches
    assert seen == [len(micro.predictors) for micro in micros]
    assert sum(seen) < sum(micro.input_ids.shape[1] for micro in micros)
    monkeypatch.setattr(module_file, "ROW_WISE", ())
    assert module_file.behind_last_attention(model) == ()
    _, everywhere = packed_gradients(model, source)
    assert relative_difference(ours, everywhere) < 1e-6


def test_a_layer_that_is_computed_again_is_computed_whole() -> None:
    name = next(iter(MODELS))
    model, source = build(name), table()
    _, theirs = plain_gradients(model, source)
    model.set_attn_implementation(PACKED)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, ours = packed_gradients(model.train(), source)
    assert relative_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_chunked_logits_leave_the_gradient_as_it_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = build(name), table()
    _, theirs = plain_gradients(model, source)
    model.set_attn_implementation(PACKED)
    monkeypatch.setattr(module_file, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    _, ours = packed_gradients(model, source)
    assert relative_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("packing", [PACKED, "sdpa"])
def test_filling_a_row_up_to_a_fixed_length_leaves_the_gradient_as_it_is(packing: str) -> None:
    model, source = build("qwen2"), table()
    _, theirs = plain_gradients(model, source)
    model.set_attn_implementation(packing)
    settings = {"batch_size": len(source), "epochs": 1, "seed": 0, "budget": 64, "fill_with": 0}
    step = next(iter(StepLoader(TrainingRows(source), **settings)))
    for micro in step.micro_batches:
        assert micro.input_ids.shape == (1, 64)
        (PackedLM(model, Method())(micro)[0] / step.kept_tokens).backward()
    assert relative_difference(gradients(model), theirs) < 1e-6


def with_padding_ids(source: pa.Table) -> pa.Table:
    """The rows with the padding's id as their second token: an embedding does not learn it, an LM head does."""
    ids = [[row[0], 0, *row[2:]] for row in source["input_ids"].to_pylist()]
    labels = [[*row[:1], 0, *row[2:]] for row in source["labels"].to_pylist()]
    return source.set_column(1, "input_ids", pa.array(ids)).set_column(3, "labels", pa.array(labels))


def test_an_embedding_that_is_the_head_too_keeps_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, source = build("qwen2_tied"), with_padding_ids(table())
    assert model.get_input_embeddings().padding_idx == 0
    _, theirs = plain_gradients(model, source)
    model.set_attn_implementation(PACKED)
    dense = torch.ops.aten.embedding_dense_backward
    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", None)  # the head's gradient takes it in
    _, ours = packed_gradients(model, source)
    assert relative_difference(ours, theirs) < 1e-6
    # States that are not used for the loss have a gradient of their own.
    monkeypatch.setattr(torch.ops.aten, "embedding_dense_backward", dense)
    found = []
    for tied in (True, False):
        if not tied:
            monkeypatch.setattr(PackedLM, "_with_tied_embedding", lambda self: contextlib.nullcontext())
        packed = PackedLM(model, Method())
        for micro in whole_step(TrainingRows(source)).micro_batches:
            packed.hidden(micro).square().sum().backward()
        found.append(gradients(model))
        model.zero_grad()
    assert relative_difference(*found) < 1e-6
    assert "forward" not in vars(model.get_input_embeddings())


def test_gradient_checkpointing_leaves_the_gradient_as_it_is() -> None:
    model, source = build("qwen2"), table()
    _, theirs = plain_gradients(model, source)
    model.set_attn_implementation(PACKED)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, ours = packed_gradients(model, source)
    assert relative_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_gradients_equal_those_of_a_padded_batch(targets: list[str]) -> None:
    source = table()
    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    _, theirs = plain_gradients(model, source)
    assert all("lora" in name for name in theirs)
    model.get_base_model().set_attn_implementation(PACKED)
    _, ours = packed_gradients(model, source)
    assert relative_difference(ours, theirs) < 1e-6


SCALED: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "soft_capped": (
        Gemma2ForCausalLM,
        Gemma2Config(**SHAPE, query_pre_attn_scalar=8, final_logit_softcapping=3.0, attn_implementation="eager"),
    ),
    "divided": (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=4.0)),
}


@pytest.mark.parametrize("name", SCALED)
def test_scaled_and_soft_capped_logits_keep_their_gradient(name: str) -> None:
    torch.manual_seed(0)
    kind, config = SCALED[name]
    model, source = kind(config).train(), table()
    loss, theirs = plain_gradients(model, source)
    enable_packing(model, longest=30)
    found, ours = packed_gradients(model, source)
    assert found == pytest.approx(loss, rel=1e-6)
    assert relative_difference(ours, theirs) < 1e-6


def test_packing_is_chosen_only_where_documents_fit_the_sliding_window() -> None:
    assert enable_packing(build("mistral"), longest=64) == (PACKED, True)
    assert enable_packing(build("mistral"), longest=65) == ("sdpa", True)
    eager = build("llama")
    eager.set_attn_implementation("eager")
    assert enable_packing(eager, longest=30) == ("eager", True)


def test_a_model_that_carries_state_between_documents_reads_one_a_row() -> None:
    model = build("llama")
    model.model.layers[0].register_forward_hook(lambda layer, inputs, output: output.cumsum(dim=1))
    assert enable_packing(model, longest=30) == ("sdpa", False)


def test_unknown_scaling_of_the_logits_is_refused() -> None:
    model = build("llama")
    model.register_forward_hook(lambda model, inputs, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(ValueError, match="cannot be trained here: its logits are not what its LM head"):
        enable_packing(model, longest=30)


def test_float_weights_multiply_the_loss_of_their_tokens() -> None:
    model, source = build("llama"), table(keep=1.0)
    lengths = [
        len(row) - prompt
        for row, prompt in zip(source["input_ids"].to_pylist(), source["prompt_length"].to_pylist(), strict=True)
    ]
    weights = [np.random.default_rng(5).uniform(-1, 2, length).astype(np.float32).tolist() for length in lengths]
    batch = padded(source)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    expected = sum(
        weight * losses[row, prompt + at - 1]
        for row, (prompt, part) in enumerate(zip(source["prompt_length"].to_pylist(), weights, strict=True))
        for at, weight in enumerate(part)
    )
    model.set_attn_implementation(PACKED)
    weighted = source.append_column("weights", pa.array(weights, pa.list_(pa.float32())))
    found = sum(PackedLM(model, Method())(micro)[0] for micro in whole_step(TrainingRows(weighted)).micro_batches)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_device_without_a_document_does_the_work_with_zero_gradient() -> None:
    model = build("qwen2_tied")
    model.set_attn_implementation(PACKED)
    rows = TrainingRows(table(rows=1))
    share = collate(rows, np.arange(1), 64, 0, rank=1, devices=2)
    loss = PackedLM(model, Method())(share.micro_batches[0])[0]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# -- online methods ------------------------------------------------------------------------------------------


def oracle(model: PreTrainedModel, source: pa.Table) -> list[dict[str, torch.Tensor]]:
    """Per example, one forward pass each: log p, entropy and prompt attention of the response tokens."""
    model.set_attn_implementation("eager")
    found = []
    for ids, prompt in zip(source["input_ids"].to_pylist(), source["prompt_length"].to_pylist(), strict=True):
        output = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
        logits = output.logits[0, prompt - 1 : -1].detach()
        top = logits.topk(20).values.softmax(-1)
        found.append(
            {
                "logp": logits.log_softmax(-1)[torch.arange(len(logits)), torch.tensor(ids[prompt:])],
                "entropy": -(top * top.log()).sum(-1),
                "attention": output.attentions[-1][0, :, prompt:, :prompt].sum(-1).mean(0).detach(),
            }
        )
    model.set_attn_implementation(PACKED)
    return found


def online_weights(name: str, source: pa.Table, model: PreTrainedModel) -> torch.Tensor:
    """w of all tokens of the step, in the order of the table's rows."""
    method = METHODS[name]()
    rows = TrainingRows(source, sorted(method.needs), own_queries=method.prompt_attention)
    step = whole_step(rows, budget=10_000)
    (micro,) = step.micro_batches
    weights = PackedLM(model, method).train()(micro)[2]
    return weights[torch.argsort(micro.rows, stable=True)]


def stored(column: list[torch.Tensor]) -> pa.Array:
    return pa.array([values.tolist() for values in column], pa.list_(pa.float32()))


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_pointwise_methods_weigh_by_the_current_model(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "LOGITS_AT_ONCE", chunk * VOCABULARY)
    model, source = build("llama"), table(keep=1.0)
    seen = oracle(model, source)
    p = torch.cat([one["logp"] for one in seen]).exp()
    entropy = torch.cat([one["entropy"] for one in seen])
    torch.testing.assert_close(online_weights("dft", source, model), p, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(online_weights("eaft", source, model), entropy / 3, rtol=1e-4, atol=1e-6)
    assert torch.equal(online_weights("profit", source, model), (p > 0.1).float())


def test_slm_and_sstoken_choose_by_the_current_model() -> None:
    model, source = build("llama"), table(keep=1.0)
    seen = oracle(model, source)
    random = torch.Generator().manual_seed(1)
    reference = [torch.rand(len(one["logp"]), generator=random).log() for one in seen]

    excess = torch.cat([ref - one["logp"] for ref, one in zip(reference, seen, strict=True)])
    found = online_weights("slm", source.append_column("ref_logp", stored(reference)), model)
    assert found.nonzero()[:, 0].tolist() == sorted(
        excess.argsort(descending=True)[: round(0.6 * len(excess))].tolist()
    )

    found = online_weights("sstoken", source.append_column("logp", stored(reference)), model)
    for one, old, weights in zip(seen, reference, found.split([len(one["logp"]) for one in seen]), strict=True):
        gain = one["logp"] - old
        score = 0.5 * (gain - gain.min()) / (gain.max() - gain.min()) + 0.5 * one["attention"]
        best = score.argsort(descending=True)[: math.ceil(0.6 * len(score) - 1e-9)]
        assert weights.nonzero()[:, 0].tolist() == sorted(best.tolist())


@pytest.mark.parametrize("name", ["dft", "slm"])
def test_online_weights_carry_no_gradient_of_their_own(name: str) -> None:
    model, source = build("llama"), table(keep=1.0)
    source = source.append_column("ref_logp", stored([one["logp"] / 2 for one in oracle(model, source)]))
    weights = online_weights(name, source, model)
    _, ours = packed_gradients(model, source, budget=10_000, method=METHODS[name]())
    lengths = [len(row) for row in source["ref_logp"].to_pylist()]
    fixed = source.append_column("weights", stored(list(weights.split(lengths))))
    step = whole_step(TrainingRows(fixed), 10_000)
    (PackedLM(model, Method())(step.micro_batches[0])[0] / sum(lengths)).backward()
    assert relative_difference(ours, gradients(model)) < 1e-6


# -- schedule ------------------------------------------------------------------------------------------------


def test_schedules_warm_up_and_decay() -> None:
    def factors(schedule: Schedule) -> list[float]:
        return [learning_rate_factor(schedule, step, 10, 0.2) for step in range(10)]

    assert factors(Schedule.constant) == [0.5] + [1.0] * 9
    assert factors(Schedule.linear) == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert factors(Schedule.cosine)[6] == pytest.approx(0.5)
    assert learning_rate_factor(Schedule.linear, 0, 10, 0.0) == 1


# -- tuning.backward ------------------------------------------------------------------------------------

NORMED_KEYS = (Qwen3ForCausalLM, Qwen3Config(**SHAPE))  # a norm stands between projection and attention


FILTERED = [Backward.kept, Backward.labelled]


def hand_masked_gradients(
    model: PreTrainedModel, source: pa.Table, backward: Backward = Backward.kept
) -> dict[str, torch.Tensor]:
    """transformers' own loss, document by document, with hooks that take the gradient from keys and values of response
    tokens that predict a dropped one; `labelled`: of the prompt too."""
    kept = sum(label != -100 for row in source["labels"].to_pylist() for label in row)
    for ids, prompt, labels in zip(
        *(source[name].to_pylist() for name in ("input_ids", "prompt_length", "labels")), strict=True
    ):
        learnt = torch.ones(len(ids), 1)
        for place in range(prompt if backward is Backward.kept else 0, len(ids) - 1):
            learnt[place] = float(labels[place + 1] != -100)

        def masked(module: Any, args: Any, output: torch.Tensor, learnt: torch.Tensor = learnt) -> None:
            if output.requires_grad:  # not before the first adapter
                output.register_hook(lambda grad: grad * learnt.view(1, -1, *[1] * (grad.ndim - 2)))

        handles = []
        for layer in model.get_decoder().layers:
            keys = getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj)
            handles += [part.register_forward_hook(masked) for part in (keys, layer.self_attn.v_proj)]
        tensors = {"input_ids": torch.tensor([ids]), "labels": torch.tensor([labels])}
        model(**tensors, use_cache=False, num_items_in_batch=kept).loss.backward()
        for handle in handles:
            handle.remove()
    found = gradients(model)
    model.zero_grad()
    return found


def filtered_gradients(
    model: Any, source: pa.Table, backward: Backward = Backward.kept, budget: int = 64
) -> tuple[float, dict[str, torch.Tensor]]:
    step, total = whole_step(TrainingRows(source), budget), 0.0
    packed = PackedLM(model, Method())
    for micro in step.micro_batches:
        with packed.filtered(micro, backward):
            loss = packed(micro)[0] / step.kept_tokens
            loss.backward()
        total += float(loss.detach())
    found = gradients(model)
    model.zero_grad()
    return total, found


@pytest.mark.parametrize("backward", FILTERED)
@pytest.mark.parametrize("name", [*MODELS, "qwen3", "unknown_parts", "computed_again"])
def test_some_places_alone_are_gone_through_backward(
    name: str, backward: Backward, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "qwen3", NORMED_KEYS)
    model, source = build(name if name in MODELS else "qwen2"), table()
    theirs = hand_masked_gradients(model, source, backward)
    exact_loss, exact = plain_gradients(model, source)
    model.set_attn_implementation(PACKED)
    if name == "unknown_parts":
        monkeypatch.setattr(module_file, "ROW_WISE", ())
    if name == "computed_again":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, ours = filtered_gradients(model, source, backward)
    assert loss == pytest.approx(exact_loss, rel=1e-6), "the forward pass is what it was"
    assert relative_difference(ours, theirs) < 1e-6
    assert relative_difference(ours, exact) > 0.01
    # Behind the block all is as before.
    assert not any("forward" in part.__dict__ for part in model.modules())
    assert relative_difference(packed_gradients(model, source)[1], exact) < 1e-6


@pytest.mark.parametrize("backward", FILTERED)
def test_some_places_alone_with_an_adapter(backward: Backward) -> None:
    source = table()
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    model = get_peft_model(build("llama"), LoraConfig(**settings))
    theirs = hand_masked_gradients(model, source, backward)
    assert all("lora" in name for name in theirs)
    model.get_base_model().set_attn_implementation(PACKED)
    assert relative_difference(filtered_gradients(model, source, backward)[1], theirs) < 1e-6


def test_kept_places_alone_in_mixed_precision() -> None:
    model, source = build("qwen2"), table()
    theirs = hand_masked_gradients(model, source)
    model.set_attn_implementation(PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        _, ours = filtered_gradients(model, source)
    assert relative_difference(ours, theirs) < 0.05


def test_the_backward_pass_holds_and_computes_the_chosen_places_only() -> None:
    model, source = build("llama"), table(keep=0.3)
    model.set_attn_implementation(PACKED)
    (micro,) = whole_step(TrainingRows(source), 10_000).micro_batches
    tokens, idle = micro.input_ids.shape[1], len(micro.idle)
    assert idle > tokens / 3
    packed, rows, held = PackedLM(model, Method()), [], []
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    activation = model.get_decoder().layers[0].mlp.act_fn
    activation.register_full_backward_hook(lambda module, into, out: rows.append(out[0].shape[1]))
    for backward in Backward:
        seen: dict[int, int] = {}

        def note(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with packed.filtered(micro, backward):
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                hidden = packed.hidden(micro)
            held.append(sum(seen.values()))
            hidden.sum().backward()
    assert rows == [tokens, tokens - idle, len(micro.predictors)]
    assert held[1] < 0.95 * held[0] and held[2] < 0.9 * held[1]


def test_what_counts_as_dropped() -> None:
    #        place:   0    1    2    3    4    5    6    7    8
    ids = [[11, 12, 13, 14, 15, 16, 17, 18, 19]]
    labels = [[-100, -100, -100, -100, 15, -100, 17, -100, -100]]
    weights = [[1.0, 1.0, 1.0, 1.0, 0.3, 1.0, 1.0]]
    source = pa.table({"example_id": ["a"], "input_ids": ids, "prompt_length": [2], "labels": labels})
    (micro,) = whole_step(TrainingRows(source)).micro_batches
    assert micro.predictors.tolist() == [3, 5]
    # 2 predicts 13's successor 14, dropped; 4 predicts 16, dropped; 1 is the prompt's; 6 and 7 are not computed.
    assert micro.idle.tolist() == [2, 4]
    (micro,) = whole_step(TrainingRows(source.append_column("weights", pa.array(weights)))).micro_batches
    assert micro.idle.tolist() == [2, 4], "a label's weight of 0.3 is none of a dropped token"
    own = pa.array([[1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]], pa.list_(pa.float32()))
    (micro,) = whole_step(TrainingRows(source.append_column(ROW_WEIGHTS, own))).micro_batches
    assert micro.idle.tolist() == [4], "what the row itself does not train is none of the mask's"
