"""What a model's size says before it is loaded: its shape, its number of weights, how fast its tokens go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtf.config.schema import Config, ConfigError, ModelConfig, ModelShape
from xtf.runtime import gguf
from xtf.runtime.models import json_object, location

FORWARD = 1 / 3  # of the cost of a trained token: a forward pass without the backward pass, which costs two
ON_GPU, ON_CPU = 10_000.0, 30.0  # tokens trained in a second, of a model of 1e9 parameters (PlanConfig)


def tokens_per_second(config: Config, weights: float, here: bool = False) -> float:
    """Tokens that one device is said to train in a second, of a model with so many weights.

    Where `plan.tokens_per_second` says nothing, of a GPU, for which large runs are planned, unless the run is `here`.
    """
    stated = config.plan.tokens_per_second
    if stated is None:
        stated = ON_CPU if here and config.trainer.accelerator == "cpu" else ON_GPU
    return stated * 1e9 / weights


def shape_of(model: ModelConfig) -> ModelShape:
    """The model's shape from its config.json in a folder or in the hub's cache, else as `model.shape` states it.

    Raises:
        ConfigError: neither is there, or it is that of another architecture than the plan counts.
        ValueError: config.json is no JSON object.
    """
    file = model_file(model, "config.json")
    if file is not None:
        try:
            return read_shape(json_object(file))
        except ConfigError as error:
            raise ConfigError(f"model={model.name}, {file}: {error}") from error
    if not model.shape.layers:
        raise ConfigError(
            f"stage=plan needs the shape of model={model.name}: {model.path} has no config.json on this machine; "
            "fetch it (hf download) or state model.shape (xtf/config/schema.py, ModelShape)"
        )
    return model.shape


def model_file(model: ModelConfig, name: str) -> Path | None:
    """A file of the model's folder or of the hub's cache; None if it is not on this machine."""
    from huggingface_hub import try_to_load_from_cache

    if gguf.is_gguf(model.path) and not gguf.is_unpacked(model.path):
        return None
    folder = Path(location(model))
    if folder.is_dir():
        return folder / name if (folder / name).exists() else None
    found = try_to_load_from_cache(model.path, name, revision=model.revision)
    return Path(found) if isinstance(found, str) else None


def read_shape(config: dict[str, Any]) -> ModelShape:
    """The shape that a transformers config.json describes.

    Raises:
        ConfigError: it is not one of a decoder with gated feed-forward layers (GPT-2, say, names its sizes otherwise).
    """
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    found = {key: config.get(key) for key in sizes}
    found |= {key: config.get(key) or 1 for key in ("num_key_value_heads", "head_dim")}  # these two may be left out
    if wrong := [key for key, size in found.items() if not isinstance(size, int) or size < 1]:
        raise ConfigError(
            "stage=plan counts decoders with gated feed-forward layers, whose config.json gives whole numbers for "
            f"{', '.join(wrong)}; this one does not"
        )
    family = config.get("model_type")
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=config.get("head_dim") or 0,
        vocabulary=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        bias=config.get("attention_bias", family == "qwen2"),
        qk_norm=family == "qwen3",
    )


def widths(shape: ModelShape) -> tuple[int, int]:
    """Width of the queries, and of the keys or the values."""
    head = shape.head_dim or shape.hidden // shape.heads
    return shape.heads * head, shape.kv_heads * head


def parameters(shape: ModelShape) -> int:
    """Number of weights of the model."""
    query, key = widths(shape)
    hidden = shape.hidden
    attention = 2 * hidden * query + 2 * hidden * key + (query + 2 * key) * shape.bias
    norms = 2 * hidden + 2 * (query // shape.heads) * shape.qk_norm
    layer = attention + 3 * hidden * shape.intermediate + norms
    return shape.vocabulary * hidden * (1 if shape.tied else 2) + shape.layers * layer + hidden


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Weights of a LoRA adapter on PEFT's default targets for these architectures, the query and value projections."""
    query, key = widths(shape)
    return shape.layers * rank * (2 * shape.hidden + query + key)
