"""Generation in planned batches, resuming, and regrading stored completions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from xtf import tiny
from xtf.config.schema import TaskConfig
from xtf.data.examples import Example
from xtf.evaluation import evaluate as evaluation
from xtf.evaluation.decoding import Decoding
from xtf.evaluation.evaluate import Request, cut_into_shares, evaluate, generate, generate_share
from xtf.runtime.artifacts import seal
from xtf.tasks import load_task

GREEDY = Decoding(max_new_tokens=12, samples=1, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.MODEL_DIR)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.5,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config).eval()


def test_greedy_decoding_draws_nothing_beforehand(model, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluation.np.random, "default_rng", lambda seed: pytest.fail("a number was drawn"))
    (done,) = generate_share(model, tokenizer, make_prompts(tokenizer, 1), GREEDY, places=1, seeds=[0])
    assert done[0] == 0


def make_examples(count):
    return [
        Example(
            str(i),
            ({"role": "user", "content": f"What is {i} plus {i}?"},),
            f"#### {2 * i}",
            {"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"},
        )
        for i in range(count)
    ]


def make_prompts(tokenizer, count):
    return [tokenizer(f"What is {'1' * (1 + i % 5)} plus {i}?")["input_ids"] for i in range(count)]


def test_shares_hold_the_longest_prompts_first_and_run_within_the_budget(monkeypatch):
    monkeypatch.setattr(evaluation, "ROUNDS", 1)
    shares = cut_into_shares([3, 9, 5], max_new_tokens=1, samples=1, budget=20)
    assert [(share.items, share.places) for share in shares] == [([(1, 0), (2, 0)], 2), ([(0, 0)], 5)]
    shares = cut_into_shares([50], max_new_tokens=1, samples=2, budget=20)
    assert [(share.items, share.places) for share in shares] == [([(0, 0)], 1), ([(0, 1)], 1)]


def test_every_prompt_and_sample_is_planned_once():
    lengths = [7, 3, 7, 1, 12, 5, 6]
    shares = cut_into_shares(lengths, max_new_tokens=4, samples=3, budget=16)
    flat = [item for share in shares for item in share.items]
    assert sorted(flat) == [(i, k) for i in range(7) for k in range(3)] and len(shares) == 3
    assert all(share.places * (max(lengths[i] for i, _ in share.items) + 4) <= 16 for share in shares)


def texts_of(model, tokenizer, prompts, decoding=GREEDY, stop=(), places=2):
    found = dict(
        generate_share(model, tokenizer, prompts, decoding, places=places, seeds=range(len(prompts)), stop=stop)
    )
    return [found[index] for index in range(len(prompts))]


def slow_greedy(model, prompt, steps, eos):
    """No cache, no padding, one prompt at a time: the oracle."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            best = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if best == eos:
            break
        ids.append(best)
    return ids[len(prompt) :]


def test_a_padded_batch_generates_what_each_prompt_generates_alone(model, tokenizer):
    prompts = make_prompts(tokenizer, 6)
    texts = texts_of(model, tokenizer, prompts)
    for prompt, text in zip(prompts, texts, strict=True):
        expected = slow_greedy(model, prompt, GREEDY.max_new_tokens, tokenizer.eos_token_id)
        assert text == tokenizer.decode(expected, skip_special_tokens=True)


def test_text_after_a_stop_string_is_cut_and_not_generated(model, tokenizer):
    decoding = Decoding(max_new_tokens=64, samples=1, temperature=0.0, top_p=1.0, seed=0)
    prompts = make_prompts(tokenizer, 1)
    (text,) = texts_of(model, tokenizer, prompts, decoding)
    mark = text[len(text) // 4]
    read = []
    hook = model.register_forward_pre_hook(lambda *_: read.append(1))
    try:
        (cut,) = texts_of(model, tokenizer, prompts, decoding, (mark,))
    finally:
        hook.remove()
    assert cut == text.split(mark, 1)[0] != text
    assert len(read) < 64


def test_a_sample_depends_on_its_own_seed_alone(model, tokenizer):
    decoding = Decoding(max_new_tokens=12, samples=1, temperature=1.0, top_p=0.9, seed=0)
    prompts = make_prompts(tokenizer, 6)
    together = texts_of(model, tokenizer, prompts, decoding, places=6)
    assert texts_of(model, tokenizer, prompts, decoding, places=2) == together
    same_prompt = texts_of(model, tokenizer, [prompts[0]] * 6, decoding, places=6)
    assert same_prompt[0] == together[0] and len(set(same_prompt)) > 1


class Killed(Exception):
    pass


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_killed_generation_goes_on_and_ends_with_the_same_completions(
    model, tokenizer, tmp_path, monkeypatch, temperature
):
    monkeypatch.setattr(evaluation, "ROUNDS", 2)
    decoding = Decoding(max_new_tokens=8, samples=2 if temperature else 1, temperature=temperature, top_p=0.9, seed=3)
    examples, prompts = make_examples(9), make_prompts(tokenizer, 9)
    budget = 3 * (max(map(len, prompts)) + 8)
    request = Request(tokenizer, examples, prompts, decoding, budget, tmp_path / "whole")
    whole = generate(lambda: model, request)

    ended = 0

    def kill(_):
        nonlocal ended
        ended += 1
        if ended == 8:  # two of the second share
            raise Killed

    folder = tmp_path / "killed"
    request = replace(request, folder=folder)
    with pytest.raises(Killed):
        generate(lambda: model, replace(request, progress=kill))
    assert len((folder / "generations.partial.jsonl").read_text().splitlines()) == 6
    with (folder / "generations.partial.jsonl").open("a") as handle:
        handle.write('{"example_id": "8", "sam')  # a line that the kill cut off
    assert generate(lambda: model, request) == whole


def test_stored_completions_are_regraded_without_a_model(model, tokenizer, tmp_path):
    examples, prompts = make_examples(4), make_prompts(tokenizer, 4)

    def no_model():
        raise AssertionError("the model was loaded")

    def grade(load, grader):
        task = load_task(TaskConfig(name="math", grader=grader))
        return evaluate(load, Request(tokenizer, examples, prompts, GREEDY, 10_000, tmp_path), task, {})

    first = grade(lambda: model, "number")
    assert first["metrics"]["accuracy"]["n"] == 4
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {
        "example_id",
        "sample",
        "prompt",
        "completion",
        "extracted",
        "reference",
        "correct",
        "reason",
    }
    lines[2]["completion"] = "so the answer is #### 4"
    (tmp_path / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seal(tmp_path / "generations.jsonl")
    again = grade(no_model, "number")
    assert again["metrics"]["accuracy"]["value"] == first["metrics"]["accuracy"]["value"] + 0.25
    assert not (tmp_path / "generations.partial.jsonl").exists()


def test_other_prompts_are_generated_anew(model, tokenizer, tmp_path):
    task = load_task(TaskConfig(name="math", grader="number"))
    for count in (3, 4):
        prompts = make_prompts(tokenizer, count)
        request = Request(tokenizer, make_examples(count), prompts, GREEDY, 10_000, tmp_path)
        evaluate(lambda: model, request, task, {})
    assert len((tmp_path / "generations.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("bit", [1, 128])
def test_damage_to_what_partial_completions_belong_to_is_named_and_they_are_made_anew(
    model, tokenizer, tmp_path, capsys, bit
):
    task, marker = load_task(TaskConfig(name="math", grader="number")), tmp_path / "generations.partial.key"
    request = Request(tokenizer, make_examples(3), make_prompts(tokenizer, 3), GREEDY, 10_000, tmp_path)

    def killed():
        raise Killed

    with pytest.raises(Killed):
        evaluate(killed, request, task, {})
    content = marker.read_bytes()
    marker.write_bytes(bytes([content[0] ^ bit]) + content[1:])
    assert evaluate(lambda: model, request, task, {})["metrics"]["accuracy"]["n"] == 3
    assert "generations.partial.key is damaged" in " ".join(capsys.readouterr().out.split())
