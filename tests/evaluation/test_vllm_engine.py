"""The vLLM backend against a stand-in of vLLM's interface: what it is asked, and that completions come out alike."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from test_evaluate import GREEDY, make_examples, make_prompts
from transformers import AutoModelForCausalLM, AutoTokenizer

from xtf import tiny
from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.schema import Config, ConfigError
from xtf.evaluation.decoding import Decoding
from xtf.evaluation.evaluate import Request, generate
from xtf.evaluation.vllm_engine import VLLMEngine

STAND_IN = '''
"""As much of vLLM's interface as is used: greedy decoding with transformers, one prompt at a time."""
from dataclasses import dataclass

calls = []


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list | None
    stop_token_ids: list


@dataclass
class Output:
    token_ids: tuple


@dataclass
class Answer:
    outputs: list


class LLM:
    def __init__(self, *, model, dtype, max_model_len, gpu_memory_utilization, revision=None, **lora):
        from transformers import AutoModelForCausalLM
        calls.append({"model": model, "dtype": dtype, "max_model_len": max_model_len,
                      "gpu_memory_utilization": gpu_memory_utilization, **lora})
        self.model = AutoModelForCausalLM.from_pretrained(model)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        import torch
        assert len(prompts) == len(sampling_params) and use_tqdm is False
        calls.append([sampling_params, lora_request])
        answers = []
        for prompt, params in zip(prompts, sampling_params):
            assert set(prompt) == {"prompt_token_ids"} and type(prompt["prompt_token_ids"]) is list
            ids, new = list(prompt["prompt_token_ids"]), []
            while len(new) < params.max_tokens and (not new or new[-1] not in params.stop_token_ids):
                with torch.no_grad():
                    new.append(int(self.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
            answers.append(Answer([Output(tuple(new))]))
        return answers
'''
LORA = """
from dataclasses import dataclass


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str
"""


ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Config]]:
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *more: resolve(to_config(hydra.compose("config", ["evaluate.backend=vllm", *more])))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in as the module `vllm`; its `calls` holds what it was asked."""
    lora = tmp_path / "site" / "vllm" / "lora"
    lora.mkdir(parents=True)
    (lora.parent / "__init__.py").write_text(STAND_IN)
    (lora / "__init__.py").touch()
    (lora / "request.py").write_text(LORA)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    import vllm

    yield vllm
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


def test_where_vllm_is_not_installed_the_configuration_is_refused(compose: Any) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    with pytest.raises(ConfigError, match=r"needs vLLM, which is not installed: pip install 'xtf\[vllm\]'"):
        compose()


def test_completions_are_those_of_the_other_backend(compose: Any, stand_in: Any, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype="float32")
    examples, prompts = make_examples(5), make_prompts(tokenizer, 5)
    config = compose("task.max_new_tokens=12")
    longest = max(map(len, prompts))
    both = [
        generate(load, Request(tokenizer, examples, prompts, GREEDY, 100, tmp_path / name, ["3"]))
        for name, load in (("hf", lambda: model), ("vllm", lambda: VLLMEngine(config, longest)))
    ]
    assert both[0] == both[1]
    assert stand_in.calls[0] == {
        "model": str(tiny.MODEL_DIR),
        "dtype": "float32",
        "max_model_len": longest + 12,
        "gpu_memory_utilization": 0.8,
    }


def test_it_is_asked_with_the_sampling_settings_and_a_seed_for_each_completion(
    compose: Any, stand_in: Any, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    config = compose()
    decoding = Decoding(max_new_tokens=3, samples=2, temperature=0.7, top_p=0.9, seed=5)
    examples, prompts = make_examples(3), make_prompts(tokenizer, 3)

    def seeds(decoding: Decoding, name: str, budget: int) -> set[int]:
        stand_in.calls.clear()
        request = Request(tokenizer, examples, prompts, decoding, budget, tmp_path / name, ["<|im_start|>"])
        generate(lambda: VLLMEngine(config, 40), request)
        asked = [params for call in stand_in.calls[1:] for params in call[0]]
        assert {(p.max_tokens, p.temperature, p.top_p, tuple(p.stop)) for p in asked} == {
            (3, 0.7, 0.9, ("<|im_start|>",))
        }
        assert {tuple(p.stop_token_ids) for p in asked} == {(tokenizer.eos_token_id,)}
        assert len({p.seed for p in asked}) == len(asked) == 6
        return {p.seed for p in asked}

    first = seeds(decoding, "first", 10_000)
    assert seeds(decoding, "smaller batches", 50) == first
    assert not seeds(replace(decoding, seed=6), "other seed", 10_000) & first


def test_an_adapter_is_served_on_its_base_model(compose: Any, stand_in: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 12}')
    config = compose()
    engine = VLLMEngine(config, 40, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    engine.complete(tokenizer, [[5, 6]], GREEDY, (), [1])
    loaded, (_, adapter) = stand_in.calls
    assert loaded["model"] == str(tiny.MODEL_DIR)
    assert (loaded["enable_lora"], loaded["max_lora_rank"]) == (True, 16)
    assert adapter.lora_path == str(tmp_path)
