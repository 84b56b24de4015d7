"""Continuous batching against transformers' `generate`, one prompt at a time; nucleus sampling against its rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList, Phi3Config, Phi3ForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from xtf import tiny
from xtf.data.encode import encode_prompt
from xtf.data.examples import Example
from xtf.evaluation import generation
from xtf.evaluation.generation import complete, draw


def alone(model, prompt, steps, stops):
    """What `generate` makes of one prompt, without the token that ends it."""
    with torch.inference_mode():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=steps,
            eos_token_id=list(stops),
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    return ids[:-1] if ids[-1] in stops else ids


@pytest.fixture(scope="module")
def prompts():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 97, length).tolist() for length in (5, 1, 9, 3, 9, 2, 7, 12, 1, 4, 6)]


@pytest.mark.parametrize("name", ["qwen2", "qwen2_window", "llama", "mistral"])
def test_completions_equal_generate_token_by_token(small_model, prompts, monkeypatch, name):
    monkeypatch.setattr(generation, "SPARE", 5)  # laid out afresh many times
    model, stops = small_model(name), range(0, 97, 16)
    expected = [alone(model, prompt, 23, stops) for prompt in prompts]
    lengths = set(map(len, expected))
    assert len(lengths) > 3 and max(lengths) == 23, "rows must end at different times, and one run on"
    for places in (1, 3, 11):
        found = dict(complete(model, prompts, places=places, max_new_tokens=23, stops=stops))
        assert [found[index] for index in range(len(prompts))] == expected


def test_rows_that_pass_longropes_limit_do_not_change_their_neighbours(prompts):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 9.0, 27.0],
            "original_max_position_embeddings": 16, "factor": 4.0}  # fmt: skip
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters=rope,
    )  # fmt: skip
    model = Phi3ForCausalLM(config).eval()
    for parameter in model.parameters():  # larger than at initialisation, so that positions matter
        if parameter.ndim >= 2:
            torch.nn.init.normal_(parameter, std=0.3)
    generator = np.random.default_rng(1)
    prompts = [*prompts, *(generator.integers(0, 97, length).tolist() for length in (15, 16, 17, 30))]
    for steps in (1, 6, 23):  # the longest of 12, and so some or all, pass the limit of 16
        expected = [alone(model, prompt, steps, [96]) for prompt in prompts]
        found = dict(complete(model, prompts, places=5, max_new_tokens=steps, stops=[96]))
        assert [found[index] for index in range(len(prompts))] == expected, steps


def test_the_bundled_model_answers_as_with_generate():
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    texts = [
        "Ann has 3 apples and buys 4 more. How many apples does she have?",
        "2 + 2?",
        "Of 38 eggs, 11 are damaged. The good ones go into bags that hold 9 each. How many bags are filled?",
    ]
    examples = [Example(text, ({"role": "user", "content": text},), "", {}) for text in texts]
    prompts = [encode_prompt(tokenizer, example) for example in examples]
    stops = [tokenizer.eos_token_id]
    found = dict(complete(model, prompts, places=2, max_new_tokens=60, stops=stops))
    assert [found[index] for index in range(3)] == [alone(model, p, 60, stops) for p in prompts]


def test_a_completion_that_is_over_makes_room_at_once(small_model, prompts):
    model = small_model("llama")
    found = dict(complete(model, prompts, places=2, max_new_tokens=9, stops=(), over=lambda new: len(new) == 4))
    assert [found[index] for index in range(len(prompts))] == [alone(model, p, 4, ()) for p in prompts]


def test_places_bound_the_rows_of_a_step(small_model, prompts):
    model, rows = small_model("llama"), []
    model.register_forward_pre_hook(lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True)
    found = list(complete(model, prompts, places=3, max_new_tokens=5, stops=range(0, 97, 9)))
    assert len(found) == len(prompts) and max(rows) == 3


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 0.8), (1.7, 0.95), (1.0, 0.01)])
def test_evenly_spread_numbers_draw_tokens_in_proportion_to_transformers_probabilities(temperature, top_p):
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 50)
    rules = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    expected = rules(torch.empty(1, 0), logits.clone())[0].softmax(-1)
    count = 20_000
    uniform = (torch.arange(count) + 0.5) / count
    drawn = draw(logits.expand(count, -1), uniform, temperature, top_p)
    shares = torch.bincount(drawn, minlength=50) / count
    torch.testing.assert_close(shares, expected, atol=1 / count, rtol=0)


def test_the_ends_of_the_unit_interval_draw_the_likeliest_and_the_least_likely_token_of_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2, -1)  # the nucleus of 0.9 is {0, 1, 2}
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logits, ends, temperature=1.0, top_p=0.9).tolist() == [0, 2]
