"""How many tokens one forward and backward pass takes: `trainer.tokens_per_microbatch`, or chosen from free memory.

The choice changes no result beyond the order of summation: the loss is a sum over the optimizer step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from lightning_fabric.utilities import move_data_to_device
from peft import PeftModel
from transformers import PreTrainedModel

from xtf.config.schema import Config
from xtf.data.steps import pack_documents
from xtf.runtime.artifacts import intact, read_json, write_json
from xtf.runtime.memory import free_memory
from xtf.runtime.models import precision
from xtf.runtime.progress import say
from xtf.scoring.methods import Method
from xtf.training.packed import PackedLM

LARGEST = 8192  # tokens; a GPU is no faster with more
# On a CPU a pass is as fast with few tokens as with many but for the gradient, which each one writes for every weight:
# activations take no more than this, or than a gradient does, where rows allow. (One pass in the place of three takes
# 7 % off a step of SmolLM2-135M, in the place of four a quarter off one of a model of 0.5B.)
CPU_ACTIVATIONS = 512 * 2**20
MARGIN = 1.15  # of what is counted: the backward pass holds a layer's gradients beside the activations
RESERVE = 256 * 2**20  # bytes left to others
SAMPLES = 32, 96  # tokens of the passes in which activations are counted
FILE = "checkpoints/microbatch.json"


@dataclass(frozen=True)
class Budget:
    """Tokens of a micro-batch, and why: `given`, `chosen` from the free memory, or `resumed` with an earlier choice."""

    tokens: int
    how: str
    free_gb: float | None = None  # when it was chosen, with the weights in memory; 1e9 bytes
    activation_mb_per_token: float | None = None


def microbatch(model: PreTrainedModel | PeftModel, config: Config, longest: int, run_dir: Path) -> Budget:
    """The budget of a training, said in a line where it was chosen.

    A killed run goes on with the choice that it began with, so that it ends with the same numbers. With several devices
    each would have to choose alike, so they take `LARGEST`.

    Args:
        model: ready to be trained packed, on its device.
        longest: tokens of the longest row, which is never split.

    Raises:
        ValueError: there is not enough memory for the longest row.
    """
    given, file = config.trainer.tokens_per_microbatch, run_dir / FILE
    if given is not None:
        return Budget(given, "given")
    if config.trainer.world_size > 1:
        return Budget(LARGEST, "fixed: several devices")
    if intact(file):
        return replace(Budget(**read_json(file)), how="resumed")
    packed = PackedLM(model, Method())
    device, vocabulary = packed.base.device, packed.config.vocab_size
    per_token, fixed = activation_bytes(packed, autocast=precision(config.trainer) == "bf16-mixed")
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    head = packed.base.get_output_embeddings().weight
    # Beside the weights: gradients and AdamW's two averages; the head's gradient of a chunk before it is added.
    fixed += 12 * trained + RESERVE + (4 * head.numel() if head.requires_grad else 0)
    free = free_memory(device)

    def need(tokens: int) -> float:
        logits = 3 * 4 * min(tokens, packed.chunk) * vocabulary
        return fixed + tokens * MARGIN * per_token + logits

    if need(longest) > free:
        raise ValueError(
            f"training needs about {need(longest) / 1e9:.1f} GB beside the weights for its longest row ({longest:,} "
            f"tokens), and {free / 1e9:.1f} GB are free: use tuning=lora or tuning.gradient_checkpointing=true, or "
            "lower model.max_length"
        )
    tokens = LARGEST if device.type == "cuda" else tokens_on_cpu(trained, per_token)
    while tokens > longest and need(tokens) > free:
        tokens = tokens * 3 // 4
    budget = Budget(max(tokens, longest), "chosen", round(free / 1e9, 2), round(per_token / 1e6, 3))
    say(
        f"micro-batches of at most {budget.tokens:,} tokens: chosen, for {free / 1e9:.1f} GB are free and a token's "
        f"activations take {per_token / 1e6:.2g} MB (trainer.tokens_per_microbatch=N sets another)"
    )
    write_json(file, asdict(budget), sealed=True)
    return budget


def tokens_on_cpu(trained: int, per_token: float) -> int:
    """Tokens of a micro-batch where memory is not short: of a model with `trained` weights, of whose activations a
    token takes `per_token` bytes."""
    return min(LARGEST, int(max(CPU_ACTIVATIONS, 4 * trained) / per_token))


def activation_bytes(packed: PackedLM, autocast: bool = False) -> tuple[float, float]:
    """Bytes that a forward pass leaves for the backward pass, for each token and whatever the tokens.

    Counted on two short documents, so that copies of weights, which autocast makes, are told from activations.
    """
    short, long = (_held(packed, length, autocast) for length in SAMPLES)
    per_token = (long - short) / (SAMPLES[1] - SAMPLES[0])
    return per_token, max(0.0, short - SAMPLES[0] * per_token)


def _held(packed: PackedLM, length: int, autocast: bool) -> int:
    held: dict[int, int] = {}  # a storage's address -> its bytes; all live until the pass is over
    weights = {parameter.untyped_storage().data_ptr() for parameter in packed.parameters()}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = packed.base.device
    micro = move_data_to_device(pack_documents([torch.arange(length) % packed.config.vocab_size]), device)
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
    ):
        hidden = packed.hidden(micro)  # alive until the count is read, and with it the storages
        total = sum(held.values())
    del hidden
    return total
