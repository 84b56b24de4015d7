"""The prompt/response boundary, on real rows and real tokenizers, and the packing of optimizer steps."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xtf.data.augment import augment
from xtf.data.encode import decode_response, encode, encode_prompt, stop_strings, tokens_within
from xtf.data.examples import Example
from xtf.data.steps import StepLoader, TrainingRows, collate, epoch_order, pack
from xtf.tasks import as_examples

SHARED = Path(__file__).parents[3] / "shared"
ENDS = {"qwen2.5": "<|im_end|>", "phi-3": "<|end|>"}  # of a turn in their templates
TOKENIZERS = [*ENDS]
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="../shared (real data and tokenizers) is not here")


def tokenizer_of(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name)


def gsm8k() -> list[Example]:
    with (SHARED / "data/gsm8k/train.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    return as_examples({"prompt": row["question"], "response": row["answer"]} for row in rows)


def one(prompt: str = "What is 2+2?", response: str = "4", **turns: Any) -> Example:
    return as_examples([{"prompt": prompt, "response": response} | turns])[0]


# -- encoding ------------------------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", TOKENIZERS)
def test_response_ids_decode_to_the_response_on_all_of_gsm8k(name: str) -> None:
    tokenizer, examples = tokenizer_of(name), gsm8k()
    encoded, report = encode(tokenizer, examples, 2048)
    assert len(encoded) == report.rows == 7473
    assert (report.truncated, report.no_room) == ((), ())
    responses = [row.input_ids[row.prompt_length :] for row in encoded]
    assert {ids[-1] for ids in responses} == set(tokenizer.convert_tokens_to_ids([ENDS[name]]))
    assert tokenizer.batch_decode([ids[:-1] for ids in responses]) == [example.response for example in examples]
    for example, row in list(zip(examples, encoded, strict=True))[::100]:
        assert row.input_ids[: row.prompt_length] == encode_prompt(tokenizer, example)
        assert decode_response(tokenizer, row.input_ids[row.prompt_length :]) == example.response


@needs_shared
@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("response", [" lead", "  two", "\nnew", "\n\nx", "(x", "4"])
def test_blanks_at_the_start_of_a_response_survive(name: str, response: str) -> None:
    tokenizer = tokenizer_of(name)
    (row,), _ = encode(tokenizer, [one(response=response)], 99)
    assert decode_response(tokenizer, row.input_ids[row.prompt_length :]) == response


@needs_shared
def test_a_response_is_tokenised_as_it_follows_on_the_prompt() -> None:
    tokenizer = tokenizer_of("phi-3")
    (row,), _ = encode(tokenizer, [one(response="Hello")], 99)
    # Not "▁Hello": no blank stands between the prompt's line break and the response.
    assert tokenizer.convert_ids_to_tokens(row.input_ids[row.prompt_length :]) == ["Hello", "<|end|>"]
    together = tokenizer("\nHello", add_special_tokens=False)["input_ids"]
    assert together[-1] == row.input_ids[row.prompt_length]


@needs_shared
def test_a_chat_template_writes_bos_once() -> None:
    tokenizer = tokenizer_of("phi-3")
    ids = encode_prompt(tokenizer, one())
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


@needs_shared
def test_without_a_chat_template_turns_are_plain_text() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer.chat_template = None
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    text = tokenizer.decode(encode_prompt(tokenizer, as_examples([{"messages": turns}])[0]))
    assert text == "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\n"
    assert stop_strings(tokenizer) == ["### User:"]
    assert stop_strings(tokenizer_of("qwen2.5")) == []


@needs_shared
def test_long_rows_are_cut_or_left_out_and_both_are_reported() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    prompt = len(encode_prompt(tokenizer, one()))
    items = [{"id": name, "prompt": "What is 2+2?", "response": text} for name, text in [("a", "4"), ("b", "It is 4.")]]
    items.append({"id": "c", "prompt": "What is 2+2, would you say?", "response": "4"})
    encoded, report = encode(tokenizer, as_examples(items), prompt + 2)
    assert [(row.example_id, len(row.input_ids) - row.prompt_length) for row in encoded] == [("a", 2), ("b", 2)]
    assert (report.truncated, report.no_room, report.rows) == (("b",), ("c",), 3)
    assert (report.tokens, report.response_tokens) == (2 * prompt + 4, 4)
    assert encoded[1].input_ids[-1] != tokenizer.eos_token_id


@needs_shared
def test_nothing_left_and_missing_eos_are_refused() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    with pytest.raises(ValueError, match="none of the 1 examples has room"):
        encode(tokenizer, [one()], 5)
    with pytest.raises(ValueError, match="no examples"):
        encode(tokenizer, [], 5)
    tokenizer.eos_token = None
    encode(tokenizer, [one()], 99)  # the template ends its turns with a token of its own
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no EOS token"):
        encode(tokenizer, [one()], 99)


@needs_shared
@needs_shared
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_within_spans_are_those_whose_text_touches_them(name: str) -> None:
    tokenizer = tokenizer_of(name)
    examples = [
        Example("a", one().messages, "It rose (p = 0.03).\n\nDecision: yes", {}),
        Example("b", one().messages, " ünï #### 1,024 kg", {}),
        Example("c", one().messages, "long " * 60 + "#### 7", {}),
    ]
    rows, _ = encode(tokenizer, examples, 60)

    def spans(example: Example) -> list[tuple[int, int]]:
        start = max(example.response.find("Decision"), example.response.find("####"))
        return [(start, start + len({"a": "Decision: yes", "b": "#### 1,024", "c": "#### 7"}[example.example_id]))]

    found = tokens_within(tokenizer, examples, rows, spans)
    assert [row.end_tokens for row in rows] == [1, 1, 0]
    assert not any(found[2]), "the answer was cut off"
    for example, row, within in zip(examples[:2], rows, found, strict=False):
        response = row.input_ids[row.prompt_length :]
        assert len(within) == len(response) and not within[-1], "the appended end is not the data's"
        chosen = [token for token, inside in zip(response, within, strict=True) if inside]
        text = decode_response(tokenizer, chosen).strip()
        assert text == {"a": "Decision: yes", "b": "#### 1,024"}[example.example_id]
    with pytest.raises(ValueError, match=r"example a: \[0, 99\) does not lie in its response of 34 characters"):
        tokens_within(tokenizer, examples, rows, lambda example: [(0, 99)])


@needs_shared
def test_a_template_that_drops_the_system_message_is_refused() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    example = as_examples([{"id": "x", "messages": [*turns, {"role": "assistant", "content": "Hello"}]}])[0]
    encode_prompt(tokenizer_of("qwen2.5"), example)
    with pytest.raises(ValueError, match="drops the system message of example x"):
        encode_prompt(tokenizer_of("phi-3"), example)


def test_dictionaries_become_examples() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    first, second = as_examples([{"prompt": "Hi", "response": "Hello"}, {"id": 7, "messages": turns}])
    assert (first.example_id, second.example_id) == ("1", "7")
    assert first.messages == second.messages == ({"role": "user", "content": "Hi"},)
    assert first.response == second.response == "Hello"


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"question": "Hi"}, r"row 1: field 'answer' is missing"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "does not end with the assistant's turn"),
        ({"prompt": "Hi", "response": ""}, "'response' is empty"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, "answers no user turn"),
    ],
)
def test_other_dictionaries_are_refused(item: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        as_examples([item])


def test_augmentation_adds_prompts_with_the_same_response(tmp_path: Path) -> None:
    examples = as_examples([{"prompt": "2+2?", "response": "4"}, {"prompt": "1+1?", "response": "2"}])
    grown = augment(examples, 3)
    assert [example.example_id for example in grown] == ["1", "1/1", "1/2", "2", "2/1", "2/2"]
    assert [example.response for example in grown] == ["4"] * 3 + ["2"] * 3
    assert len({example.messages[-1]["content"] for example in grown}) == 6
    file = tmp_path / "more.jsonl"
    file.write_text('{"example_id": "2", "prompt": "One and one?"}\n')
    assert [example.messages[-1]["content"] for example in augment(examples, 3, file)] == [
        "2+2?",
        "1+1?",
        "One and one?",
    ]


def test_augmentation_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    examples = [one()]
    with pytest.raises(ValueError, match=r"method\.factor=9"):
        augment(examples, 9)
    file = tmp_path / "more.jsonl"
    file.write_text('{"example_id": "x", "prompt": "?"}\n')
    with pytest.raises(ValueError, match=r"more\.jsonl, row 1"):
        augment(examples, 2, file)


# -- packing -------------------------------------------------------------------------------------------------


def test_best_fit_fills_the_tightest_bin() -> None:
    assert pack([3, 7, 2, 6], 10) == [[1, 0], [3, 2]]
    assert pack([12, 3], 10) == [[0], [1]], "a document longer than the budget has a bin to itself"
    assert pack([], 10) == []


def test_bins_come_in_multiples_of_the_devices_and_share_the_load() -> None:
    bins = pack([5, 5, 5, 5, 2, 2], 100, multiple=2)
    assert [sum([5, 5, 5, 5, 2, 2][index] for index in one) for one in bins] == [12, 12]
    assert pack([5], 100, multiple=2) == [[0], []]
    assert len(pack([6, 6, 6], 10, multiple=2)) == 4


@pytest.mark.parametrize("multiple", [1, 2, 3])
def test_packing_loses_and_repeats_nothing(multiple: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 120, 300).tolist()
    bins = pack(lengths, 256, multiple)
    assert sorted(index for one in bins for index in one) == list(range(300))
    assert max(sum(lengths[index] for index in one) for one in bins) <= 256
    assert len(bins) % multiple == 0


@needs_shared
def test_packing_fills_97_percent_of_the_budget_on_gsm8k_lengths() -> None:
    encoded, _ = encode(tokenizer_of("qwen2.5"), gsm8k()[:2048], 2048)
    lengths = [len(row.input_ids) for row in encoded]
    for budget in (1024, 2048, 8192):
        bins = pack(lengths, budget)
        assert sum(lengths) / (len(bins) * budget) > 0.97, "the last, partly filled bin included"


def rows_of(*rows: tuple[list[int], int, list[int]], **columns: Any) -> pa.Table:
    ids, prompts, labels = zip(*rows, strict=True)
    names = [f"e{index}" for index in range(len(rows))]
    return pa.table({"example_id": names, "input_ids": ids, "prompt_length": prompts, "labels": labels} | columns)


def test_a_step_holds_shifted_targets_and_leaves_out_the_tail() -> None:
    table = rows_of(
        ([1, 2, 3, 4, 5], 2, [-100, -100, 3, -100, -100]), ([6, 7, 8], 1, [-100, 7, 8]), ([9, 10], 1, [-100, -100])
    )
    step = collate(TrainingRows(table), np.array([0, 1, 2]), 100, 0)
    (micro,) = step.micro_batches
    # Document one: [1, 2] predicts 3; two: [6, 7] predict 7 and 8; three teaches nothing.
    assert micro.input_ids.tolist() == [[1, 2, 6, 7]]
    assert micro.position_ids.tolist() == [[0, 1, 0, 1]]
    assert micro.document_lengths == (2, 2)
    assert micro.predictors.tolist() == [1, 2, 3]
    assert micro.targets.tolist() == [3, 7, 8]
    assert micro.rows.tolist() == [0, 1, 1]
    assert (step.kept_tokens, step.response_tokens, step.tokens) == (3, 6, 10)


def test_the_first_token_of_a_document_is_never_a_target() -> None:
    step = collate(TrainingRows(rows_of(([1, 2], 0, [1, 2]), ([3, 4], 0, [3, 4]))), np.array([0, 1]), 100, 0)
    (micro,) = step.micro_batches
    assert micro.targets.tolist() == [2, 4]
    assert step.kept_tokens == 2


def test_weights_and_score_columns_travel_with_their_tokens() -> None:
    lists = pa.list_(pa.float32())
    table = rows_of(
        ([1, 2, 3, 4], 2, [-100, -100, 3, 4]),
        ([5, 6, 7], 1, [-100, 6, 7]),
        weights=pa.array([[0.5, 2.0], [0.0, -1.0]], lists),
        logp=pa.array([[-1.0, -2.0], [-3.0, -4.0]], lists),
    )
    step = collate(TrainingRows(table, ["logp"]), np.array([0, 1]), 100, 0)
    (micro,) = step.micro_batches
    assert micro.targets.tolist() == [3, 4, 7], "a weight of zero is no target"
    assert micro.weights.tolist() == [0.5, 2.0, -1.0]
    assert micro.columns["logp"].tolist() == [-1.0, -2.0, -4.0]
    assert step.kept_tokens == 2, "what is unlearnt does not count in the divisor"


def test_columns_of_a_wrong_length_are_refused_by_name() -> None:
    table = rows_of(([1, 2, 3], 1, [-100, 2, 3]), ([1, 2, 3], 1, [-100, 2]))
    message = r"labels is not as long as the sequence \(2 entries, wanted 3 in the first\): examples 'e1'"
    with pytest.raises(ValueError, match=message):
        TrainingRows(table)
    with pytest.raises(ValueError, match=r"lacks the columns \['labels'\]"):
        TrainingRows(table.drop(["labels"]))


# -- holes that move -----------------------------------------------------------------------------------------


def moving_rows(rows: int = 40, weight: float = 0.25, probability: float = 0.5) -> pa.Table:
    """Four response tokens a row, of which the second and the last may be dropped."""
    dropped = [False, True, False, True]
    return rows_of(
        *[([9, 1, 2, 3, 4], 1, [-100, 1, 2, 3, 4])] * rows,
        weights=pa.array([[weight if one else 1.0 for one in dropped]] * rows, pa.list_(pa.float32())),
        dropped=pa.array([dropped] * rows),
        drop_probability=pa.array([probability] * rows, pa.float32()),
    )


def drawn(example_id: str, seed: int, epoch: int) -> list[float]:
    """The weights of an example's response in an epoch, from the definition."""
    digest = hashlib.sha256(example_id.encode()).digest()
    words = [int.from_bytes(digest[place : place + 4], "little") for place in range(0, 32, 4)]
    draws = np.random.default_rng([seed, 2**31 + 2, epoch, *words]).random(5)[1:]
    return [0.25 if dropped and draw < 0.5 else 1.0 for dropped, draw in zip([0, 1, 0, 1], draws, strict=True)]


def test_each_epoch_draws_what_is_dropped_by_seed_example_and_position() -> None:
    rows = TrainingRows(moving_rows())
    in_response = rows.in_response
    for seed, epoch in [(0, 0), (0, 1), (7, 0)]:
        found = rows.in_epoch(seed, epoch).weights[in_response].reshape(40, 4)
        assert found.tolist() == [drawn(f"e{row}", seed, epoch) for row in range(40)]
    assert rows.weights[15:20].tolist() == [1, 1, 0.625, 1, 0.625], "on average: (0.25 + 1) / 2"
    few = TrainingRows(moving_rows().take(pa.array([30, 5])))
    assert (few.in_epoch(7, 3).weights[5:] == rows.in_epoch(7, 3).weights[25:30]).all(), "other rows change nothing"
    still = TrainingRows(moving_rows().drop(["drop_probability"]))
    assert still.in_epoch(0, 0) is still


def test_tokens_that_the_mask_keeps_have_their_weight_in_every_epoch() -> None:
    table = moving_rows(20)
    weights = pa.array([[0.7, 0.25, 1.0, 0.25]] * 20, pa.list_(pa.float32()))
    rows = TrainingRows(table.set_column(table.column_names.index("weights"), "weights", weights))
    assert {*rows.weights[rows.in_response].reshape(20, 4)[:, 0].tolist()} == {np.float32(0.7)}
    assert {*rows.in_epoch(0, 0).weights[rows.in_response].reshape(20, 4)[:, 0].tolist()} == {np.float32(0.7)}


def test_draws_come_as_often_as_asked_for() -> None:
    rows = TrainingRows(moving_rows(2000, 0.0, 0.3))
    share = np.mean([(rows.in_epoch(0, epoch).weights.reshape(-1, 5)[:, [2, 4]] == 0).mean() for epoch in range(5)])
    assert share == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 20000))


def test_a_token_that_is_dropped_in_an_epoch_is_no_target_of_its_steps() -> None:
    data = TrainingRows(moving_rows(6, 0.0))
    made = StepLoader(data, batch_size=3, epochs=3, seed=1, budget=10)
    steps = list(made)
    for step in steps:
        expected = {
            row: [
                t for t, weight in zip([1, 2, 3, 4], drawn(f"e{row}", 1, step.index // 2), strict=True) if weight == 1
            ]
            for row in step.rows
        }
        found: dict[int, list[int]] = {}
        for micro in step.micro_batches:
            assert (micro.weights == 1).all()
            for row, target in zip(micro.rows.tolist(), micro.targets.tolist(), strict=True):
                found.setdefault(row, []).append(target)
        assert found == expected
        assert step.kept_tokens == sum(map(len, expected.values()))
    for index in (5, 0, 3):  # a step is a function of its index, in whatever order steps are made
        again = made.step(index)
        assert [m.targets.tolist() for m in again.micro_batches] == [
            m.targets.tolist() for m in steps[index].micro_batches
        ]


# -- order ---------------------------------------------------------------------------------------------------


def loader(**changes: Any) -> StepLoader:
    data = TrainingRows(rows_of(*[([1, 2, 3], 1, [-100, 2, 3])] * 10))
    return StepLoader(data, **({"batch_size": 4, "epochs": 2, "seed": 0, "budget": 100} | changes))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, other = epoch_order(10, 0, 0).tolist(), epoch_order(10, 1, 0).tolist()
    assert epoch_order(10, 0, 0).tolist() == first != other
    orders = {tuple(epoch_order(10, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_the_rows_of_an_epoch_are_put_in_order_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    generator = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or generator(seed))
    assert loader(seed=77).tokens(5) == 54
    assert made == [[77, 1]]


def test_every_epoch_visits_every_row_once() -> None:
    steps = list(loader())
    assert [len(step.rows) for step in steps] == [4, 4, 2, 4, 4, 2]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate([step.rows for step in epoch])) == list(range(10))
    assert [step.index for step in loader(max_steps=4)] == [0, 1, 2, 3]


def test_a_loader_goes_on_where_its_state_says() -> None:
    whole = [step.rows.tolist() for step in loader()]
    first = loader()
    begun = [next(steps).rows.tolist() for steps in [iter(first)] for _ in range(4)]
    second = loader()
    second.load_state_dict(first.state_dict() | {"next": 4})
    assert begun + [step.rows.tolist() for step in second] == whole
    assert second.tokens(4) == 3 * 14
    assert second.tokens() == 3 * 20


def test_devices_share_a_step_between_them() -> None:
    alone = next(iter(loader()))
    shares = [next(iter(loader(rank=rank, devices=2))) for rank in (0, 1)]
    assert all(share.kept_tokens == alone.kept_tokens for share in shares)
    seen = [row for share in shares for micro in share.micro_batches for row in micro.rows.tolist()]
    assert sorted(seen) == sorted(row for micro in alone.micro_batches for row in micro.rows.tolist())
