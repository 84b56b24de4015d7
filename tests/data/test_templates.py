"""Chat templates as they are: what ends an answer, what opens it, and that nothing a row says is dropped in silence."""

from __future__ import annotations

import datetime
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xtf.config.schema import TaskConfig, TemplateChecks, Think
from xtf.data.encode import decode_response, encode, encode_prompt, encode_prompts, response_offsets
from xtf.data.templates import DEFAULT, Chat, template_of, turn_end
from xtf.tasks import as_examples
from xtf.training.device_process import stop_at_turn_end

SHARED = Path(__file__).parents[3] / "shared"
SPECIAL = ["<eos>", "<s>", "<|user|>", "<|assistant|>", "<|observation|>", "<|system|>", "<|end|>"]
TURN = "<|{{m.role}}|>\n{{m.content}}"
LOOP = "{% for m in messages %}" + TURN + "<|end|>\n{% endfor %}"
CUE = "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
TEMPLATES = {
    "plain": LOOP.replace("<|end|>", "<eos>") + CUE,
    "own end": LOOP + CUE,
    "next turn": "<s>{% for m in messages %}" + TURN + "{% endfor %}" + CUE,  # like GLM-4.5
    "thinking": "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{m.content}}{% else %}<|assistant|>"
    "{{m.content.split('</think>')[-1]}}<eos>{% endif %}{% endfor %}"  # like DeepSeek-R1-Distill
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
    "switch": LOOP.replace("<|end|>", "<eos>")
    + "{% if add_generation_prompt %}<|assistant|>\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}",  # like Qwen3
    "no cue": LOOP.replace("<|end|>", "<eos>"),
    "always a cue": "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{m.content}}<|assistant|>\n{% else %}"
    "{{m.content}}<eos>{% endif %}{% endfor %}",
    "dated": "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}"
    "{% set day = '26 Jul 2024' %}{% endif %}{{day}}\n" + LOOP.replace("<|end|>", "<eos>") + CUE,  # like Llama 3
    "no end": "{% for m in messages %}### {{m.role}}: {{m.content}}\n{% endfor %}{% if add_generation_prompt %}"
    "### assistant: {% endif %}",
    "tools": "{% if tools %}{{tools | tojson}}{% endif %}{% for m in messages %}<|{{m.role}}|>\n"
    "{% if m.reasoning_content %}<think>\n{{m.reasoning_content}}\n</think>\n{% endif %}{{m.content}}"
    "{% for call in m.tool_calls or [] %}<call>{{call.function | tojson}}{% endfor %}<eos>\n{% endfor %}" + CUE,
}


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    """A byte-level tokenizer of few merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["the answer is here, the question was there"] * 5, trainer)
    return tokenizer


@pytest.fixture
def tokenizer(backend: Tokenizer) -> Any:
    """Gives the tokenizer with a template of `TEMPLATES`."""

    def with_template(name: str) -> PreTrainedTokenizerBase:
        found = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<s>")
        found.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
        found.chat_template = TEMPLATES[name]
        return found

    return with_template


def texts(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], chat: Chat = DEFAULT) -> tuple[str, str]:
    """The encoded prompt and response as text, special tokens and all."""
    (row_,), _ = encode(tokenizer, as_examples([row]), 999, chat)
    return tokenizer.decode(row_.input_ids[: row_.prompt_length]), tokenizer.decode(
        row_.input_ids[row_.prompt_length :]
    )


ROW = {"prompt": "Why?", "response": "So."}


@pytest.mark.parametrize(
    ("name", "prompt", "response", "finding"),
    [
        ("plain", "<|user|>\nWhy?<eos>\n<|assistant|>\n", "So.<eos>", None),
        ("always a cue", "<|user|>Why?<|assistant|>\n", "So.<eos>", None),
        ("own end", "<|user|>\nWhy?<|end|>\n<|assistant|>\n", "So.<|end|>", "ends with <|end|>, not with EOS (<eos>)"),
        ("next turn", "<s><|user|>\nWhy?<|assistant|>\n", "So.<|user|>", "the <|user|> of the next turn"),
        ("thinking", "<|user|>Why?<|assistant|><think>\n", "So.<eos>", "opens <think>; responses are trained within"),
        ("switch", "<|user|>\nWhy?<eos>\n<|assistant|>\n", "So.<eos>", None),
        ("no cue", "<|user|>\nWhy?<eos>\n<|assistant|>\n", "So.<eos>", "ignores add_generation_prompt"),
        (
            "dated",
            "26 Jul 2024\n<|user|>\nWhy?<eos>\n<|assistant|>\n",
            "So.<eos>",
            "writes today's date: 2024-07-26 stands there",
        ),
        ("no end", "### user: Why?\n### assistant: ", "So.<eos>", "no token of its own ends an answer"),
    ],
)
def test_a_template_is_followed_and_what_is_unusual_is_said_once_or_refused(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, name: str, prompt: str, response: str, finding: str | None
) -> None:
    own = tokenizer(name)
    with caplog.at_level(logging.WARNING):
        assert texts(own, ROW) == (prompt, response)
        assert texts(own, ROW) == (prompt, response)
    assert len(caplog.messages) == (finding is not None)
    if finding is None:
        assert texts(own, ROW, Chat(checks=TemplateChecks.refuse)) == (prompt, response)
        return
    assert finding in caplog.text
    assert finding in encode(own, as_examples([ROW]), 99)[1].template[0]
    with pytest.raises(ValueError, match=r"the chat template of .* \(task.template_checks=refuse\)"):
        encode(own, as_examples([ROW]), 99, Chat(checks=TemplateChecks.refuse))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            LOOP + "{% if add_generation_prompt %}<|system|>\n{% endif %}",
            r"writes '<|assistant|>\\n' where .* '<|system|>",
        ),
        ("{% for m in messages %}<|{{m.role}}|>\n{{m.content | tojson}}<|end|>\n{% endfor %}" + CUE, "writes '\"'"),
        (LOOP + "{% if add_generation_prompt %}<|assistant|>\n<seed:think>{% endif %}", "has '<seed:think>'"),
    ],
)
def test_a_heading_other_than_the_generation_prompt_is_said(tokenizer: Any, template: str, said: str) -> None:
    own = tokenizer("plain")
    own.chat_template = template
    findings = encode(own, as_examples([ROW]), 99)[1].template
    assert any("before an answer it writes" in one and re.search(said, one) for one in findings), findings


@pytest.mark.parametrize(
    ("change", "dropped"),
    [("{{messages[-1].content}}", "user"), (LOOP.replace("m.content", "m.content | replace('a', 'o')"), "assistant")],
)
def test_a_template_that_drops_or_rewrites_a_turn_is_refused(tokenizer: Any, change: str, dropped: str) -> None:
    own = tokenizer("plain")
    own.chat_template = change + CUE
    turns = [("user", "Who?"), ("assistant", "<think>So</think>Alan"), ("user", "Why?"), ("assistant", "So.")]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    with pytest.raises(ValueError, match=f"drops the {dropped} message of example 1"):
        texts(own, row)
    own.chat_template = LOOP.replace("m.content", "m.content.split('</think>')[-1]") + CUE
    assert "Alan" in texts(own, row)[0]


def test_generation_stops_where_the_template_ends_an_answer(tokenizer: Any) -> None:
    for name, end in [("plain", "<eos>"), ("own end", "<|end|>"), ("next turn", "<|user|>"), ("no end", "<eos>")]:
        own = tokenizer(name)
        assert own.convert_ids_to_tokens(turn_end(own)) == end


def test_the_saved_generation_settings_name_the_end_of_an_answer(tokenizer: Any) -> None:
    own = tokenizer("own end")
    end, eos = turn_end(own), own.eos_token_id
    for known, wanted in [(None, end), (eos, [eos, end]), ([eos, end], [eos, end])]:
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=known))
        stop_at_turn_end(model, own)  # type: ignore[arg-type]
        assert model.generation_config.eos_token_id == wanted


def test_an_opened_thought_is_closed_or_continued(tokenizer: Any) -> None:
    own, close = tokenizer("thinking"), Chat(Think.close)
    assert texts(own, ROW, close) == ("<|user|>Why?<|assistant|><think>\n\n</think>\n\n", "So.<eos>")
    thought = {"prompt": "Why?", "response": "<think>\nHm.\n</think>\nSo."}
    # The prompt has written <think> already.
    assert texts(own, thought)[1] == "Hm.\n</think>\nSo.<eos>"
    with pytest.raises(ValueError, match="example 1 opens a thought, and the prompt has closed one"):
        texts(own, thought, close)
    assert template_of(tokenizer("plain"), close).findings[-1] == (
        "its generation prompt opens no thought, so that task.think=close closes none"
    )
    # A template that can be told not to think is told so.
    assert texts(tokenizer("switch"), ROW, close)[0].endswith("<|assistant|>\n<think>\n\n</think>\n\n")


def test_a_thought_is_opened_once_with_one_tag_and_not_behind_a_closed_one(tokenizer: Any) -> None:
    close = Chat(Think.close)
    blank = {"prompt": "Why?", "response": "\n<think>\nHm\n</think>\nSo"}
    other = {"prompt": "Why?", "response": "<thinking>Hm</thinking>So"}
    assert texts(tokenizer("thinking"), blank)[1] == "Hm\n</think>\nSo<eos>"
    for name in ("thinking", "switch"):
        with pytest.raises(ValueError, match="example 1 opens a thought, and the prompt has closed one"):
            texts(tokenizer(name), blank, close)
    with pytest.raises(
        ValueError, match="opens its thought with <thinking>, and the prompt has opened it with <think>"
    ):
        texts(tokenizer("thinking"), other)
    assert texts(tokenizer("switch"), blank)[1] == blank["response"] + "<eos>"


def test_the_day_changes_no_token(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tokenizer("dated")
    before = encode_prompt(own, as_examples([ROW])[0])

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(2031, 5, 6)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    assert "06 May 2031" in own.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert encode_prompt(own, as_examples([ROW])[0]) == before
    other = own.decode(encode_prompt(own, as_examples([ROW])[0], Chat(date="2025-01-02")))
    assert other.startswith("02 Jan 2025")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{{ strftime_now ('%d %b %Y') }}", "it writes today's date: 2024-07-26 stands there"),
        ("{% set now = strftime_now %}{{ now('%d') }}", "in a form that task.date does not reach"),
        ("{{ strftime_now('%d' ~ ' (%b') }}", "in a form that task.date does not reach"),
        ("{% if strftime_now is not defined %}{% endif %}", None),
    ],
)
def test_every_use_of_the_day_is_set_or_said(tokenizer: Any, written: str, said: str | None) -> None:
    own = tokenizer("plain")
    own.chat_template = written + TEMPLATES["plain"]
    findings = template_of(own).findings
    assert said in findings[0] if said else not findings, findings


def test_the_settings_of_a_task_are_those_of_its_template() -> None:
    task = TaskConfig(think=Think.close, date="2025-01-02", template_checks=TemplateChecks.refuse)
    assert Chat.of(task) == Chat(Think.close, "2025-01-02", TemplateChecks.refuse)
    assert Chat.of(TaskConfig()) == Chat()


# -- special tokens ------------------------------------------------------------------------------------------


def named(name: str, tokenizer: Any) -> PreTrainedTokenizerBase:
    if name in TEMPLATES:
        return tokenizer(name)
    if not SHARED.exists():
        pytest.skip("../shared (real tokenizers) is not here")
    return AutoTokenizer.from_pretrained(SHARED / "tokenizers" / name)


@pytest.mark.parametrize("name", ["plain", "qwen2.5", "phi-3"])
def test_a_special_token_that_a_response_spells_out_is_text(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    own = named(name, tokenizer)
    special = next(token for token in ("<|im_end|>", "<|end|>") if token in own.get_vocab())
    response = f"It is {special} that ends\na turn{special}"
    rows, report = encode(own, as_examples([{"prompt": "Which?", "response": response}, ROW]), 999)
    ids = rows[0].input_ids[rows[0].prompt_length : -1]
    assert not set(ids) & set(own.all_special_ids)
    assert decode_response(own, ids) == response
    assert report.special_text == ("1",)
    assert "1 responses spell out special tokens" in caplog.text
    (offsets,) = response_offsets(own, [response])
    assert len(offsets) == len(ids)


def test_the_end_of_a_turn_is_text_in_a_response_though_the_tokenizer_does_not_call_it_special(backend: Any) -> None:
    own = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    own.add_tokens([AddedToken(token, special=False) for token in ("<|fin|>", "<think>", "<|idle|>")])
    own.chat_template = LOOP.replace("<|end|>", "<|fin|>") + CUE
    response = "<think>a <|fin|> b<|idle|>"
    (row, _), report = encode(own, as_examples([{"prompt": "Which?", "response": response}, ROW]), 999)
    ids, fin = row.input_ids[row.prompt_length :], own.convert_tokens_to_ids("<|fin|>")
    assert [at for at, token in enumerate(ids) if token == fin] == [len(ids) - 1]
    assert set(own.convert_tokens_to_ids(["<think>", "<|idle|>"])) < set(ids)  # only what the template writes is text
    assert decode_response(own, ids[:-1]) == response
    assert report.special_text == ("1",)
    assert len(response_offsets(own, [response])[0]) == len(ids) - 1


# -- tools and reasoning -------------------------------------------------------------------------------------

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"place": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TOOLED = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ],
    "tools": [TOOL],
}
CALLED = {"messages": TOOLED["messages"][:2], "tools": [TOOL]}
THOUGHT = {"messages": [ROW_TURN := {"role": "user", "content": "2+3?"},
                        {"role": "assistant", "reasoning_content": "2, then 3", "content": "5"}]}  # fmt: skip


def test_tools_calls_and_reasoning_go_through_the_template(tokenizer: Any) -> None:
    own = tokenizer("tools")
    prompt, response = texts(own, TOOLED)
    assert prompt.startswith('[{"type": "function", "function": {"name": "weather"')
    assert '<call>{"name": "weather", "arguments": {"place": "Rome"}}<eos>\n<|tool|>\nsunny<eos>' in prompt
    assert response == "It is sunny.<eos>"
    assert texts(own, CALLED)[1] == '<call>{"name": "weather", "arguments": {"place": "Rome"}}<eos>'
    assert texts(own, THOUGHT)[1] == "<think>\n2, then 3\n</think>\n5<eos>"


def test_a_real_template_writes_calls_and_tools() -> None:
    own = named("qwen2.5", None)
    prompt, response = texts(own, TOOLED)
    assert "<tools>" in prompt
    assert "<tool_response>\nsunny\n</tool_response>" in prompt
    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call><|im_end|>'
    assert response == "It is sunny.<|im_end|>"
    assert texts(own, CALLED)[1].lstrip("\n") == call
    assert call in prompt


@pytest.mark.parametrize(
    ("name", "row", "what"),
    [
        ("plain", {**TOOLED, "messages": [ROW_TURN, {"role": "assistant", "content": "5"}]}, "drops tools"),
        ("plain", {"messages": TOOLED["messages"]}, "drops tool_calls"),
        ("plain", CALLED, "drops tools"),
        ("plain", {"messages": CALLED["messages"]}, "drops tool_calls"),
        ("plain", THOUGHT, "drops reasoning_content"),
        ("thinking", THOUGHT, "does not write the response .* behind its generation prompt"),
    ],
)
def test_what_a_template_does_not_know_is_refused_by_name(
    tokenizer: Any, name: str, row: dict[str, Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        texts(tokenizer(name), row)


SAID_TWICE = {
    "tools": {
        "messages": [{"role": "user", "content": "Please search the web"}, {"role": "assistant", "content": "Ok"}],
        "tools": [{"type": "function", "function": {"name": "search", "parameters": {}}}],
    },
    "tool_calls": {
        "messages": [
            {"role": "user", "content": "What is the weather in Rome? Use search."},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "search", "arguments": {}}}]},
            {"role": "tool", "content": "Rome"},
            {"role": "assistant", "content": "It is sunny."},
        ]
    },
    "the system message": {
        "messages": [
            {"role": "system", "content": "Answer"},
            {"role": "user", "content": "Answer this: 2+2"},
            {"role": "assistant", "content": "4"},
        ]
    },
}


@pytest.mark.parametrize("what", SAID_TWICE)
def test_a_dropped_part_whose_text_stands_elsewhere_is_refused(tokenizer: Any, what: str) -> None:
    own = tokenizer("plain")
    own.chat_template = LOOP.replace("messages", "messages if m.role in ('user', 'assistant', 'tool')") + CUE
    with pytest.raises(ValueError, match=f"drops {what} of example 1"):
        texts(own, SAID_TWICE[what])
    assert texts(tokenizer("tools"), SAID_TWICE[what])
    if what == "tool_calls":
        own.chat_template = LOOP.replace("messages", "messages if m.role != 'tool'") + CUE
        row = {"messages": [*SAID_TWICE[what]["messages"][:3], {"role": "assistant", "content": "So."}]}
        with pytest.raises(ValueError, match=r"drops (tool_calls|the tool message)"):
            texts(own, row)


CALLS = "{% for call in m.tool_calls or [] %}{{call.function.name}}{% endfor %}"
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}}


@pytest.mark.parametrize(
    ("template", "what"),
    [
        (
            "{{tools | map(attribute='function.name') | join}}" + LOOP.replace("<|end|>", CALLS),
            "parameter 'place' of tools",
        ),
        ("{{tools}}" + LOOP.replace("<|end|>", CALLS), "argument 'place' of tool_calls"),
        ("{{tools}}" + LOOP.replace("<|end|>", "{{m.tool_calls if loop.last}}"), None),
    ],
)
def test_arguments_and_parameters_count_as_parts_of_calls_and_tools(
    tokenizer: Any, template: str, what: str | None
) -> None:
    own = tokenizer("plain")
    own.chat_template = template + CUE
    row = {**CALLED, "tools": [{"type": "function", "function": {"name": "weather", "parameters": PLACE}}]}
    if what is None:
        assert "Rome" in texts(own, row)[1]
        return
    with pytest.raises(ValueError, match=f"drops the {what} of example 1"):
        texts(own, row)


def test_without_a_template_tools_and_reasoning_are_refused(tokenizer: Any) -> None:
    own = tokenizer("plain")
    own.chat_template = None
    for row in (TOOLED, CALLED, THOUGHT):
        with pytest.raises(ValueError, match="only a chat template can write"):
            texts(own, row)


def test_a_call_ends_where_the_tools_turn_begins(tokenizer: Any) -> None:
    own = tokenizer("next turn")
    own.chat_template = (
        "{% for m in messages %}<|{{'observation' if m.role == 'tool' else m.role}}|>\n{{m.content}}"
        "{% for call in m.tool_calls or [] %}<call>{{call.function.name}} {{call.function.arguments.values() | join}}"
        "{% endfor %}{% endfor %}" + CUE
    )
    assert texts(own, {"messages": CALLED["messages"]})[1] == "<call>weather Rome<|observation|>"
    assert texts(own, ROW)[1] == "So.<|user|>"


# -- weights -------------------------------------------------------------------------------------------------


def weights(tokenizer: PreTrainedTokenizerBase, content: Any, **marks: Any) -> Any:
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": content, **marks}]
    (row,), _ = encode(tokenizer, as_examples([{"messages": turns}]), 999)
    found = None if row.weights is None else [round(weight, 3) for weight in row.weights]
    return [tokenizer.decode([one]) for one in row.input_ids[row.prompt_length :]], found


def test_a_turns_weight_is_that_of_all_its_tokens(tokenizer: Any) -> None:
    own = tokenizer("plain")
    assert weights(own, "ab")[1] is None
    assert weights(own, "ab", weight=1, train=True)[1] is None
    assert weights(own, "ab", weight=0.5) == (["a", "b", "<eos>"], [0.5, 0.5, 0.5])


def test_marked_parts_of_a_response_have_their_weight(tokenizer: Any) -> None:
    own = tokenizer("plain")
    parts = [{"type": "text", "text": "xy"}, {"type": "text", "text": "z", "train": False}, {"text": "w", "weight": 2}]
    assert weights(own, parts) == (["x", "y", "z", "w", "<eos>"], [1, 1, 0, 2, 1])
    assert weights(own, parts, loss_scale=0.5) == (["x", "y", "z", "w", "<eos>"], [0.5, 0.5, 0, 1, 0.5])
    # A token that holds characters of both counts as the least of them.
    tokens, found = weights(own, [{"text": "th", "weight": 0.25}, {"text": "e"}])
    assert (tokens, found) == (["the", "<eos>"], [0.25, 1])


def test_weights_are_cut_with_their_tokens(tokenizer: Any) -> None:
    own = tokenizer("plain")
    examples = as_examples([{"messages": [ROW_TURN, {"role": "assistant", "content": "abcdef", "weight": 0.5}]}])
    room = len(encode_prompt(own, examples[0])) + 3
    (row,), _ = encode(own, examples, room)
    assert row.weights == (0.5,) * 3
    assert (len(row.input_ids), row.end_tokens) == (room, 0)


def test_a_template_that_cannot_be_tried_says_so(tokenizer: Any) -> None:
    own = tokenizer("plain")
    own.chat_template = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + LOOP
    assert "could not be tried out (one turn only)" in template_of(own).findings[0]


def test_a_template_that_does_not_end_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xtf.data.templates.LIMIT_SECONDS", 0.2)
    monkeypatch.setattr("xtf.data.templates.LOOK_SECONDS", 0.1)
    loop = "{% for i in range(90000) %}"
    own = tokenizer("plain")
    own.chat_template = loop * 3 + "{% endfor %}" * 3
    with pytest.raises(ValueError, match=r"the chat template of .* does not end"):
        template_of(own)


SAID = [{"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    ("condition", "row"),
    [
        ("messages[0].role == 'system'", {"messages": [{"role": "system", "content": "Short."}]}),
        ("tools", {"messages": [], "tools": [{"name": "look"}]}),
        ("messages | length > 3", {"messages": [], "more": 3}),
        ("'odd' in messages[0].content", {"messages": [{"role": "user", "content": "odd"}, *SAID], "more": 0}),
    ],
)
def test_a_template_that_does_not_end_for_one_row_is_refused_with_the_row(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, condition: str, row: dict[str, Any]
) -> None:
    monkeypatch.setattr("xtf.data.templates.LIMIT_SECONDS", 0.5)
    monkeypatch.setattr("xtf.data.templates.LOOK_SECONDS", 0.1)
    own = tokenizer("plain")
    busy = "{% for i in range(90000) %}{% for j in range(400) %}{% endfor %}{% endfor %}"  # for some seconds
    own.chat_template = "{% if " + condition + " %}" + busy + "{% endif %}" + LOOP + CUE
    turns = [{"role": "user", "content": "Why?"}, *SAID]
    row = {"id": "endless", **row, "messages": row["messages"] + turns * row.get("more", 1)}
    examples = as_examples([{"id": "usual", "messages": turns}, row])
    template_of(own)
    with pytest.raises(ValueError, match=r"does not end: example endless takes it more than 0.5 s; give another"):
        encode(own, examples, 99) if condition == "tools" else encode_prompts(own, examples)


def test_a_template_that_writes_at_random_is_refused(tokenizer: Any) -> None:
    own = tokenizer("plain")
    own.chat_template = "{{ ['a', 'b'] | random }}" + LOOP
    with pytest.raises(ValueError, match="draws what it writes by lot"):
        template_of(own)


def test_whatever_a_template_stumbles_over_is_a_finding(tokenizer: Any) -> None:
    own = tokenizer("plain")
    for source in (
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[7].content }}",
        "{{ 'a' * 10**15 }}",
    ):
        own.chat_template = source
        assert "could not be tried out" in template_of(own).findings[0]
