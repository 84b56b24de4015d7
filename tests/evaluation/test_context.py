"""Evaluation prompts that do not fit the model's positions: counted, and refused before any training."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import GPT2Config, Qwen2Config

from xtf.config.schema import ModelConfig
from xtf.evaluation.stage import check_context

ROPE = Qwen2Config(
    vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=40,
)  # fmt: skip
LEARNED = GPT2Config(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=40)


@pytest.fixture
def check(tmp_path):
    def check(shape, lengths, new=16):
        shape.save_pretrained(tmp_path)
        config = SimpleNamespace(
            model=ModelConfig(name="mine", path=str(tmp_path)), task=SimpleNamespace(max_new_tokens=new)
        )
        examples = [SimpleNamespace(example_id=f"row {number}") for number in range(len(lengths))]
        check_context(config, SimpleNamespace(prompts=[[0] * length for length in lengths], examples=examples))

    return check


def test_prompts_that_leave_no_room_for_an_answer_are_counted_and_refused(check):
    with pytest.raises(
        ValueError, match=r"2 of 3 evaluation prompts .* 40 tokens .* longest has 90: .*'row 0', 'row 2'"
    ):
        check(ROPE, [40, 10, 90])


def test_prompts_that_leave_little_room_are_counted_and_said(check, capsys):
    check(ROPE, [39, 10, 25])
    assert "2 of 3 evaluation prompts leave less than task.max_new_tokens=16" in capsys.readouterr().out
    check(ROPE, [24, 10])
    assert not capsys.readouterr().out


def test_where_positions_are_learned_the_longest_answer_must_fit(check):
    check(LEARNED, [25, 10])
    with pytest.raises(ValueError, match=r"1 of 2 evaluation prompts .* answer of 16 tokens \(task.max_new_tokens\)"):
        check(LEARNED, [26, 10])
