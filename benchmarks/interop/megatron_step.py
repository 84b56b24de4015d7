"""A step of Megatron over an export, on a CPU: run by benchmarks.interop.compare in Megatron-Bridge's environment.

    python megatron_step.py FOLDER MODEL

Builds the dataset that FOLDER/dataset.py configures by Megatron-Bridge's own builder, collates every pack by its own
`collate_fn`, and computes Megatron-Bridge's own loss of each with Megatron-Core's GPTModel, which has the weights of
MODEL (Qwen2's layout). Prints as JSON the loss of all packs (sum by number of tokens, as with
`calculate_per_token_loss`), the loss behind a step of gradient descent, and for each document the ids that it reads and
those that it learns.

What needs a GPU to be installed is gone around: Megatron-Bridge's packages are entered without their `__init__`, which
import Transformer Engine; and Megatron-Core's own attention stands in for the one that takes `cu_seqlens`, with the
mask that they describe (positions are relative in RoPE).
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig
from transformers import AutoModelForCausalLM


def enter_without_init() -> None:
    """Stand-ins for packages whose `__init__` import Transformer Engine; their modules are the real ones."""
    core = importlib.util.find_spec("megatron.core")
    assert core is not None and core.origin is not None
    above = Path(core.origin).parents[1]
    for name in ("", ".models", ".models.hf_pretrained", ".data", ".data.builders"):
        package = types.ModuleType("megatron.bridge" + name)
        package.__path__ = [str(above.joinpath("bridge", *name.split(".")[1:]))]
        sys.modules[package.__name__] = package
    from megatron.bridge.data.builders import gpt_sft

    sys.modules["megatron.bridge.data.builders"].GPTSFTDatasetConfig = gpt_sft.GPTSFTDatasetConfig  # type: ignore[attr-defined]


def packs(folder: Path, model: str) -> list[dict[str, Any]]:
    """The batches, of a pack each, that Megatron-Bridge makes of the export."""
    from megatron.bridge.data.builders.gpt_sft import GPTSFTDatasetBuilder
    from megatron.bridge.training.tokenizers.config import TokenizerConfig
    from megatron.bridge.training.tokenizers.tokenizer import build_tokenizer

    config = runpy.run_path(str(folder / "dataset.py"))["masked_rows"]()
    config.finalize()
    tokenizer = build_tokenizer(TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=model))
    train, *_ = GPTSFTDatasetBuilder(config=config, tokenizer=tokenizer).build()
    return [train.collate_fn([train[place]]) for place in range(len(train))]


def megatron_model(folder: str, length: int) -> GPTModel:
    """Megatron-Core's GPTModel with a Qwen2 model's weights."""
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = source.config
    heads, groups = own.num_attention_heads, own.num_key_value_heads
    config = TransformerConfig(
        num_layers=own.num_hidden_layers,
        hidden_size=own.hidden_size,
        ffn_hidden_size=own.intermediate_size,
        num_attention_heads=heads,
        num_query_groups=groups,
        normalization="RMSNorm",
        layernorm_epsilon=own.rms_norm_eps,
        activation_func=torch.nn.functional.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        bias_dropout_fusion=False,
    )
    model = GPTModel(
        config,
        get_gpt_layer_local_spec(normalization="RMSNorm"),
        vocab_size=own.vocab_size,
        max_sequence_length=length,
        position_embedding_type="rope",
        rotary_base=own.rope_parameters["rope_theta"],
        share_embeddings_and_output_weights=own.tie_word_embeddings,
    )
    there = source.state_dict()

    def grouped(layer: str, kind: str) -> torch.Tensor:
        """Query, key and value interleaved by group."""
        size = own.hidden_size // heads
        parts = [
            there[f"{layer}.self_attn.{name}_proj.{kind}"].view(groups, count * size, -1)
            for name, count in (("q", heads // groups), ("k", 1), ("v", 1))
        ]
        found = torch.cat(parts, dim=1).flatten(0, 1)
        return found.squeeze(-1) if kind == "bias" else found

    weights = {
        "embedding.word_embeddings.weight": there["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": there["model.norm.weight"],
    }
    if not own.tie_word_embeddings:
        weights["output_layer.weight"] = there["lm_head.weight"]
    for number in range(own.num_hidden_layers):
        old, new = f"model.layers.{number}", f"decoder.layers.{number}"
        gate, up = (there[f"{old}.mlp.{name}_proj.weight"] for name in ("gate", "up"))
        weights |= {
            f"{new}.input_layernorm.weight": there[f"{old}.input_layernorm.weight"],
            f"{new}.self_attention.linear_qkv.weight": grouped(old, "weight"),
            f"{new}.self_attention.linear_qkv.bias": grouped(old, "bias"),
            f"{new}.self_attention.linear_proj.weight": there[f"{old}.self_attn.o_proj.weight"],
            f"{new}.pre_mlp_layernorm.weight": there[f"{old}.post_attention_layernorm.weight"],
            f"{new}.mlp.linear_fc1.weight": torch.cat([gate, up]),
            f"{new}.mlp.linear_fc2.weight": there[f"{old}.mlp.down_proj.weight"],
        }
    report = model.load_state_dict(weights, strict=False)
    lacking = [name for name in report.missing_keys if "_extra_state" not in name and name != "output_layer.weight"]
    assert not lacking and not report.unexpected_keys, (lacking, report.unexpected_keys)
    return model


def mean_loss(model: GPTModel, batches: list[dict[str, Any]]) -> torch.Tensor:
    """Sum over the tokens of all packs that the mask counts, by their number."""
    from megatron.bridge.training.losses import masked_next_token_loss

    total, tokens = torch.zeros(()), 0
    for batch in batches:
        document = torch.bucketize(torch.arange(batch["tokens"].shape[1]), batch["cu_seqlens_q"][0, 1:], right=True)
        hidden = ~(document[:, None] == document[None, :]).tril()[None, None]
        losses = model(batch["tokens"], batch["position_ids"], hidden, labels=batch["labels"])
        loss, counted, _ = masked_next_token_loss(batch["loss_mask"], losses)
        total, tokens = total + loss, tokens + int(counted)
    return total / tokens


def documents(batches: list[dict[str, Any]]) -> list[dict[str, list[int]]]:
    """What each document reads, what it is to predict at each place, and where that counts."""
    found = []
    for batch in batches:
        starts = batch["cu_seqlens_q"][0].tolist()
        for start, end in itertools.pairwise(starts):
            parts = {name: batch[name][0, start:end].tolist() for name in ("tokens", "labels", "loss_mask")}
            if any(parts["loss_mask"]):
                found.append(parts)
    return found


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    enter_without_init()
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core puts the frequencies of RoPE
    tensor_parallel.random.initialize_rng_tracker(inference_rng_tracker=True)  # the other one asks for a GPU
    batches = packs(folder, name)
    model = megatron_model(name, max(batch["tokens"].shape[1] for batch in batches))
    before = mean_loss(model, batches)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        after = mean_loss(model, batches)
    print(json.dumps({"loss": before.item(), "after": after.item(), "documents": documents(batches)}))


if __name__ == "__main__":
    main()
