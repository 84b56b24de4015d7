"""Small random models and rows, and the real inputs that stand beside the repository."""

from __future__ import annotations

import contextlib
import gc
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import commands
import hydra
import numpy as np
import pytest
import torch
from transformers import (
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

from xtf.config.compose import register
from xtf.data.encode import Encoded

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"

WINDOW = 7  # tokens that a sliding-window layer sees
CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen2_window": (  # full attention below, a window on top
        Qwen2Config,
        Qwen2ForCausalLM,
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 8}),
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}),
}


# Files of long tests, which begin first: what begins last is waited for by a processor that has nothing else to do.
LONG = (
    "test_nodes", "test_end_to_end", "test_jobs", "test_probe", "test_damage", "test_every_choice", "test_interrupt",
    "test_wheel",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What the imports have left is not looked through again for what nobody holds: that is a fifth of composing."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def composing() -> Iterator[None]:
    """Hydra with the project's configuration, for `hydra.compose`."""
    register()
    patch = pytest.MonkeyPatch()
    patch.setenv("XTF_ROOT", str(ROOT))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
    patch.undo()


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Inside the block that it gives, no file of this process grows beyond 4 KiB: to a writer that is a full disk."""

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports get empty files for their pictures, which cost more than a small run."""
    monkeypatch.setattr("xtf.reporting.figures.save", commands.blank)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and tokenizers."""
    if not SHARED.is_dir():
        pytest.skip(f"the real inputs are not here: {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def small_model() -> Callable[..., PreTrainedModel]:
    """Builds a random three-layer model of a class in `CLASSES`, with grouped queries and sharp attention."""

    def build(name: str, vocab_size: int = 97, **changes: object) -> PreTrainedModel:
        config_class, model_class, settings = CLASSES[name]
        torch.manual_seed(0)
        sizes = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,  # the usual 0.02 would leave attention and predictions almost uniform
        }
        return model_class(config_class(**sizes | settings | changes)).eval()

    return build


@pytest.fixture(scope="session")
def random_rows() -> list[Encoded]:
    """Twelve rows of 2 to 40 random tokens (ids below 97), with prompts of every relative length."""
    generator = np.random.default_rng(0)
    rows = []
    for number, length in enumerate([2, 40, 3, 17, 5, 29, 11, 40, 8, 23, 2, 13]):
        ids = generator.integers(0, 97, length).tolist()
        rows.append(Encoded(f"row-{number}", ids, int(generator.integers(1, length))))
    return rows
