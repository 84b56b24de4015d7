"""From last hidden states to logits, as the architecture has it; and a model without what wraps it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Of PEFT's `init_lora_weights`: these change no weight of the base model, as PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do.
LEAVES_BASE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def logits_of(model: PreTrainedModel, hidden_nD: Tensor) -> Tensor:
    """LM head with the scaling and soft-capping that the architecture puts behind it, (n, D) -> (n, V)."""
    config: Any = model.config.get_text_config()
    logits_nV: Tensor = model.get_output_embeddings()(hidden_nD)
    if scale := getattr(config, "logit_scale", None):
        logits_nV = logits_nV * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits_nV = logits_nV / scaling
    if cap := getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None):
        logits_nV = cap * (logits_nV / cap).tanh()
    return logits_nV


def decoder_of(model: PreTrainedModel) -> Any:
    """What makes last hidden states from token ids: all but the head."""
    return model.base_model if model.base_model is not model else model.model


def unwrapped(model: Any) -> PreTrainedModel:
    """The model of transformers within torch.compile, DataParallel, DistributedDataParallel and PEFT.

    A PEFT adapter that changes the model's own layers, such as LoRA, stays in effect; `base_of` switches it off.

    Raises:
        ValueError: there is none, one that has an encoder, or an adapter that adds to the prompt.
    """
    from transformers import PreTrainedModel

    kind = type(model).__name__
    while not isinstance(model, PreTrainedModel):
        if _has_adapters(model):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    f"{kind} with {model.active_peft_config.peft_type.value} puts tokens of its own before every "
                    "text, which cannot be scored; score the base model, or merge a LoRA adapter"
                )
            model = model.get_base_model()
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        elif type(model).__name__ in ("DataParallel", "DistributedDataParallel"):
            model = model.module
        else:
            raise ValueError(f"a causal language model of transformers is needed, not {kind}")
    if model.config.is_encoder_decoder:
        raise ValueError(
            f"a causal language model of transformers is needed, not {type(model).__name__}, which reads the prompt "
            "with an encoder"
        )
    return model


def _has_adapters(model: Any) -> bool:
    """Whether it is PEFT's wrapper; nobody has made one where PEFT has not been imported."""
    return "peft" in sys.modules and isinstance(model, sys.modules["peft"].PeftModel)


@contextmanager
def base_of(model: Any) -> Iterator[PreTrainedModel]:
    """The base model within `model`: unwrapped, and inside the block with its adapters switched off and nothing of it
    compiled.

    Behind the block they are on, off or merged as before, and what was trainable or frozen is so. A part that
    torch.compile has replaced (`model.compile()`, `model.forward`, `model.model`) runs as it was written meanwhile: a
    graph has no place for the attention that scoring puts into it.

    Raises:
        ValueError: as `unwrapped`; an adapter that has changed the base model's own weights.
    """
    import torch

    base, outer = unwrapped(model), model
    _check(base)
    trainable = [(parameter, parameter.requires_grad) for parameter in base.parameters()]
    with ExitStack() as stack:
        stack.callback(lambda: _restore(trainable))
        layers = _adapter_layers(base)
        off = [layer for layer in layers if layer.disable_adapters]
        merged = [(layer, list(layer.merged_adapters)) for layer in layers if getattr(layer, "merged_adapters", ())]
        stack.callback(lambda: [layer.enable_adapters(False) for layer in off])
        stack.callback(lambda: [layer.merge(adapter_names=names) for layer, names in merged if not layer.merged])
        if "torch._dynamo" in sys.modules:  # else nobody has compiled anything
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        while outer is not base:
            if _has_adapters(outer):
                stack.enter_context(outer.disable_adapter())
                _say_off(outer.active_adapters)
                outer = outer.get_base_model()
            else:
                outer = outer._orig_mod if hasattr(outer, "_orig_mod") else outer.module
        if injected := [layer for layer in _adapter_layers(base) if not layer.disable_adapters]:
            stack.callback(lambda: [layer.enable_adapters(True) for layer in injected])
            _say_off(sorted({name for layer in injected for name in layer.active_adapters}))
            for layer in injected:
                layer.enable_adapters(False)
        yield base


def _check(base: PreTrainedModel) -> None:
    """ValueError for a model without an LM head, with an adapter that has changed its weights, or whose weights are
    nowhere: what a `device_map` has put on disk or into main memory comes when its module is called."""
    if not callable(base.get_output_embeddings()):
        raise ValueError(f"{type(base).__name__} has no LM head: load the model with AutoModelForCausalLM")
    for adapter, settings in getattr(base, "peft_config", {}).items():
        bias, start = (getattr(settings, key, None) for key in ("bias", "init_lora_weights"))
        if bias not in (None, "none", False):
            changed = f"has trained biases of the base model (bias={bias})"
        elif start not in LEAVES_BASE:
            changed = f"has started from weights that it took out of the base model (init_lora_weights={start})"
        else:
            continue
        raise ValueError(
            f"the adapter {adapter} {changed}, so that the base model is not there any more: score the base model "
            "before it is tuned"
        )
    for place, module in base.named_modules():
        for name, parameter in module.named_parameters(place, recurse=False):
            if parameter.is_meta and not hasattr(module, "_hf_hook"):
                raise ValueError(
                    f"the weights of {type(base).__name__} are not in memory ({name} is on the device meta, and "
                    "nothing loads it from elsewhere): load the model with from_pretrained"
                )


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its token ids: its own device, or that on which it computes if its weights lie elsewhere."""
    import torch

    if model.device.type != "meta":
        return model.device
    with torch.no_grad():
        return model.get_input_embeddings()(torch.zeros(1, 1, dtype=torch.long)).device


def _restore(trainable: list[tuple[Any, bool]]) -> None:
    for parameter, before in trainable:
        if parameter.requires_grad != before:
            parameter.requires_grad_(before)


def _adapter_layers(base: PreTrainedModel) -> list[Any]:
    """Layers and modules that PEFT put into the model; nobody has where PEFT has not been imported."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return []
    kinds = (tuners.BaseTunerLayer, sys.modules["peft.utils.other"].AuxiliaryTrainingWrapper)
    return [layer for layer in base.modules() if isinstance(layer, kinds)]


def is_quantised(model: PreTrainedModel) -> bool:
    """Whether any of a model's weights has fewer bits than it was trained with: by transformers, torch or torchao."""
    if getattr(model, "is_quantized", False):
        return True
    kinds = {type(module).__module__ for module in model.modules()} | {type(p).__module__ for p in model.parameters()}
    return any(kind.startswith(("torchao.", "bitsandbytes.", "torch.ao.nn.quantized")) for kind in kinds)


def _say_off(adapters: Sequence[str]) -> None:
    log.warning(
        "the adapter %s is switched off while scoring: the base model says what is noise (to score the tuned model, "
        "merge the adapter into it)",
        ", ".join(adapters),
    )


def position_table(model: PreTrainedModel) -> int | None:
    """How many positions a model has; None where they have no end.

    Those of its table, learned (GPT-2) or made once (GPT-J, CTRL), or of its bias (MPT). With dynamic RoPE those before
    which the frequencies do not depend on the longest row that the model has read so far.
    """
    import torch

    config: Any = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return getattr(config, "max_seq_len", None)
    if "dynamic" in _rope_types(config):
        return int(limit)
    own = model.get_input_embeddings()
    tables = {
        name: part.num_embeddings
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Embedding) and part is not own
    }
    tables |= {name: len(part) for name, part in model.named_buffers() if part.ndim > 1}
    for name, size in tables.items():
        last = name.rpartition(".")[2]
        if limit <= size <= limit + 2 and ("pos" in last or last == "wpe"):  # OPT's has two rows more than positions
            return int(limit)
    return None


def _rope_types(config: Any) -> dict[Any, dict[str, Any]]:
    """The settings of RoPE by their type: a model may have several."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    every = rope.values() if rope and all(isinstance(part, dict) for part in rope.values()) else [rope]
    return {one.get("rope_type", one.get("type")): one for one in every}


def rope_limit(model: PreTrainedModel) -> int | None:
    """Tokens beyond which longrope takes other frequencies, for all rows of a batch: shorter and longer ones must not
    be computed together. None for a model without longrope."""
    config: Any = model.config.get_text_config()
    if (longrope := _rope_types(config).get("longrope")) is None:
        return None
    name = "original_max_position_embeddings"
    return int(longrope.get(name) or getattr(config, name, None) or config.max_position_embeddings)
