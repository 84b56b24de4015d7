"""Examples -> token ids with an exact prompt/response boundary.

Only this file decides where a prompt ends.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from xtf.data.examples import BEYOND_TEXT, REASONING, Example, Message
from xtf.data.rows import first_few
from xtf.data.templates import (
    CLOSED,
    CLOSES,
    DEFAULT,
    OPENED,
    OPENS,
    Chat,
    Template,
    each_in_time,
    first_marker,
    name_of,
    render,
    special_text,
    template_of,
    textual,
)

log = logging.getLogger(__name__)

PLAIN_TURN = "### {role}:\n{content}\n\n"  # prompt of a tokenizer without a chat template, one per turn
PLAIN_CUE = "### Assistant:\n"
ENCODE_BATCH = 1024  # examples handed to the tokenizer at once
MARK = "q7x{}x7q"  # put behind a part of a conversation, to see whether a template writes it
ANCHORS = ("", "\n", "\n.")  # text that a response may be tokenised behind, see `continuation_anchor`


@dataclass(frozen=True)
class Encoded:
    """Prompt and response as one sequence; the response ids are ``input_ids[prompt_length:]``."""

    example_id: str
    input_ids: list[int]
    prompt_length: int
    end_tokens: int = 0  # at the end of the response, put there by `encode`: the dataset has no such token
    weights: tuple[float, ...] | None = None  # of each response token's loss, as the row says; None: 1 each
    source: str = ""  # the id of the row, where several examples come from one


@dataclass(frozen=True)
class EncodeReport:
    """What encoding did to the rows: nothing is shortened or left out without standing here."""

    rows: int  # examples that came in
    truncated: tuple[str, ...]  # ids of examples whose response lost its end to `max_length`
    no_room: tuple[str, ...]  # ids of examples left out: the prompt alone fills `max_length`
    tokens: int
    response_tokens: int
    template: tuple[str, ...] = ()  # what is unusual about the chat template, and what is done about it
    special_text: tuple[str, ...] = ()  # ids of examples whose response holds the text of a special token, as text
    unlabelled: tuple[str, ...] = ()  # ids of tokenised rows left out: they have no label


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_length: int, chat: Chat = DEFAULT
) -> tuple[list[Encoded], EncodeReport]:
    """Token ids of every example, in memory; see `Encoder`."""
    encoder = Encoder(tokenizer, max_length, chat)
    encoded = [row for batch in encoder.batches(examples) for row in batch]
    return encoded, encoder.report()


class Encoder:
    """Token ids of examples, prompt and response tokenised apart so that the boundary is exact.

    The response ends with the token that ends a turn in the chat template (`xtf.data.templates`), else with the
    tokenizer's EOS; generation stops there. `max_length` may cut it off. Special tokens that a response spells out are
    text.

    Raises:
        ValueError: no token ends an answer; the template is unusual, and `task.template_checks=refuse`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, chat: Chat = DEFAULT) -> None:
        self.tokenizer, self.max_length, self.chat = tokenizer, max_length, chat
        self.template = template_of(tokenizer, chat)
        if self.template.end is None:
            raise ValueError(f"{name_of(tokenizer)} has no EOS token, so no answer could end; set one")
        self.rows = self.tokens = self.response_tokens = 0
        self.spelt: list[str] = []
        self.truncated: list[str] = []
        self.no_room: list[str] = []

    def batches(self, examples: Iterable[Example]) -> Iterator[list[Encoded]]:
        """The encoded rows, some at a time, in order.

        Raises:
            ValueError: the chat template refuses a conversation, or drops a part of it.
        """
        stream = iter(examples)
        while batch := list(islice(stream, ENCODE_BATCH)):
            yield self._encoded(batch)

    def _encoded(self, batch: Sequence[Example]) -> list[Encoded]:
        tokenizer, template, chat, max_length = self.tokenizer, self.template, self.chat, self.max_length
        special, encoded = special_text(tokenizer), []

        def written_by_template(example: Example) -> tuple[str, str, int]:
            head = render_prompt(tokenizer, example, chat)
            return head, _response(tokenizer, example, head, template, chat), _end(tokenizer, example, template, chat)

        heads, texts, ends = zip(*each_in_time(tokenizer, written_by_template, _named(batch)), strict=True)
        prompts = _prompt_ids(tokenizer, heads)
        written = {place for place, example in enumerate(batch) if example.answer is not None}
        responses = _response_ids(tokenizer, texts, written)
        for example, prompt, response, text, end in zip(batch, prompts, responses, texts, ends, strict=True):
            if special and example.answer is None and special.search(text):
                self.spelt.append(example.example_id)
            if len(prompt) >= max_length:
                self.no_room.append(example.example_id)
                continue
            input_ids = [*prompt, *response, end]
            if len(input_ids) > max_length:
                self.truncated.append(example.example_id)
            whole = len(input_ids) <= max_length
            weights = _weights(tokenizer, example, text, len(response))
            if weights is not None:
                weights = weights[: max_length - len(prompt)]
            name, source = example.example_id, example.source or example.example_id
            encoded.append(Encoded(name, input_ids[:max_length], len(prompt), int(whole), weights, source))
        self.rows += len(batch)
        lengths = [len(one.input_ids) for one in encoded]
        self.tokens += sum(lengths)
        self.response_tokens += sum(lengths) - sum(one.prompt_length for one in encoded)
        return encoded

    def report(self) -> EncodeReport:
        """What was done to the rows so far.

        Raises:
            ValueError: no example has room for a single response token.
        """
        if not self.tokens:
            raise ValueError(
                f"none of the {self.rows} examples has room for a response within model.max_length={self.max_length} "
                "tokens"
                if self.rows
                else "there are no examples to encode"
            )
        if self.spelt:
            log.warning(
                "%d responses spell out special tokens of %s, which are encoded as text: %s",
                len(self.spelt), name_of(self.tokenizer), first_few(self.spelt),
            )  # fmt: skip
        return EncodeReport(
            self.rows,
            tuple(self.truncated),
            tuple(self.no_room),
            self.tokens,
            self.response_tokens,
            self.template.findings,
            tuple(self.spelt),
        )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, chat: Chat = DEFAULT) -> list[int]:
    """Token ids of the prompt with the cue for the assistant's turn: what generation starts from."""
    return encode_prompts(tokenizer, [example], chat)[0]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], chat: Chat = DEFAULT
) -> list[list[int]]:
    """Token ids of every prompt, with the cue for the assistant's turn."""
    heads = each_in_time(tokenizer, lambda example: render_prompt(tokenizer, example, chat), _named(examples))
    return _prompt_ids(tokenizer, heads)


def _named(examples: Sequence[Example]) -> list[tuple[str, Example]]:
    return [(f"example {example.example_id}", example) for example in examples]


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    prompts = _ids(tokenizer, texts)
    if tokenizer.chat_template is None and _adds_bos(tokenizer):
        return [[tokenizer.bos_token_id, *ids] for ids in prompts]
    return prompts


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: Example, chat: Chat = DEFAULT) -> str:
    """The prompt as text: by the tokenizer's chat template, or `PLAIN_TURN` per turn and `PLAIN_CUE`.

    Raises:
        ValueError: the template refuses the conversation, or drops a part of it.
    """
    messages = example.messages
    if tokenizer.chat_template is None:
        if example.tools or any(m["role"] == "tool" or any(k in m for k in BEYOND_TEXT) for m in messages):
            raise ValueError(
                f"example {example.example_id} has tools or reasoning, which only a chat template can write, and "
                f"{name_of(tokenizer)} has none"
            )
        texts = [PLAIN_TURN.format(role=m["role"].capitalize(), content=m["content"]) for m in messages]
        return "".join([*texts, PLAIN_CUE])
    template = template_of(tokenizer, chat)
    text = _rendered(tokenizer, messages, example, chat) + template.cue + template.closing
    for message in messages:
        said = message["content"]
        if message["role"] == "assistant":
            said = CLOSES.split(said)[-1]  # a template may leave out old thoughts
        if said.strip() not in text:
            raise _dropped(tokenizer, example, f"the {message['role']} message")
        if "reasoning_content" in message and not any(name in str(tokenizer.chat_template) for name in REASONING):
            raise _dropped(tokenizer, example, "reasoning_content")  # a template that knows it may leave out old ones
    _check_dropped(tokenizer, messages, example, chat, cue=True)
    return text


def _rendered(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], example: Example, chat: Chat, cue: bool = True
) -> str:
    try:
        return render(tokenizer, turns, chat, example.tools, cue=cue)
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {name_of(tokenizer)} refuses example {example.example_id}: {error}"
        ) from error


def _check_dropped(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Message], example: Example, chat: Chat, *, cue: bool
) -> None:
    """ValueError if the template drops a part of the turns or tools.

    That a part's text stands in what is rendered says little: it may stand there for another part. So the template has
    to write them once more with a mark at the end of each, for the first conversation of each shape (what `render`
    calls so, and which parts it has).
    """
    parts: list[str] = []

    def marked(part: str, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            return value
        parts.append(part)
        mark = MARK.format(len(parts) - 1)
        return value + mark if isinstance(value, str) else mark

    others = _mapped_turns(turns, marked, thoughts=not cue)
    tools = tuple(_mapped_tool(tool, marked) for tool in example.tools)
    shape = (str(tokenizer.chat_template), chat, cue, *((turn["role"], *turn) for turn in turns), *parts)
    whole = _whole.setdefault(tokenizer, set())
    if shape in whole:
        return
    text = _rendered(tokenizer, others, replace(example, tools=tools), chat, cue)
    for number, part in enumerate(parts):
        if MARK.format(number) not in text:
            raise _dropped(tokenizer, example, part)
    whole.add(shape)


_whole: WeakKeyDictionary[PreTrainedTokenizerBase, set[Hashable]] = WeakKeyDictionary()  # shapes that lose nothing


def _mapped_turns(
    turns: Sequence[Message], change: Callable[[str, Any], Any], *, thoughts: bool = False
) -> list[Message]:
    """The turns with `change(its name, its value)` for each part that a template must not drop.

    Of thoughts that is, if `thoughts`, the last turn's alone.
    """
    mapped = []
    for turn in turns:
        new = turn.copy()
        new["content"] = change(f"the {turn['role']} message", turn["content"])
        if thoughts and turn is turns[-1] and "reasoning_content" in turn:
            new["reasoning_content"] = change("reasoning_content", turn["reasoning_content"])
        if "tool_calls" in turn:
            new["tool_calls"] = [
                call | {"function": _mapped_call(call["function"], change)} for call in turn["tool_calls"]
            ]
        mapped.append(new)
    return mapped


def _mapped_call(function: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    name = change("tool_calls", function["name"])
    arguments = {
        key: change(f"the argument {key!r} of tool_calls", value) for key, value in function["arguments"].items()
    }
    return {**function, "name": name, "arguments": arguments}


def _mapped_tool(tool: Mapping[str, Any], change: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Its name, description and the names of its parameters; the rest a template may write in words of its own."""
    if isinstance(own := tool.get("function"), Mapping):
        return {**tool, "function": _mapped_tool(own, change)}
    mapped = dict(tool)
    for key, part in (("name", "tools"), ("description", "the description of tools")):
        if isinstance(tool.get(key), str):
            mapped[key] = change(part, tool[key])
    parameters = tool.get("parameters")
    if isinstance(parameters, Mapping) and isinstance(properties := parameters.get("properties"), Mapping):
        names = {name: change(f"the parameter {name!r} of tools", name) for name in properties}
        mapped["parameters"] = {**parameters, "properties": {names[name]: own for name, own in properties.items()}}
    return mapped


def _dropped(tokenizer: PreTrainedTokenizerBase, example: Example, what: str) -> ValueError:
    system = what == "the system message"
    return ValueError(
        f"the chat template of {name_of(tokenizer)} drops {what} of example {example.example_id}"
        + ("; unset task.system or write it into the prompt" if system else "; leave the row out, or write it as text")
    )


def _response(tokenizer: PreTrainedTokenizerBase, example: Example, prompt: str, template: Template, chat: Chat) -> str:
    """The text behind the prompt: the response itself, or what the template makes of reasoning and tool calls.

    Raises:
        ValueError: the template drops a part of it, or does not write it behind its generation prompt; a thought of the
            response's own where the prompt has closed one, or has opened one with another tag.
    """
    if example.answer is None:
        own, opened = OPENS.match(example.response), OPENED.search(prompt)
        if own is None:
            return example.response
        if CLOSED.search(prompt):
            raise ValueError(
                f"the response of example {example.example_id} opens a thought, and the prompt has closed one before "
                "it: use task.think=open, or leave the row out"
            )
        if opened and opened[1] != own[1]:
            raise ValueError(
                f"the response of example {example.example_id} opens its thought with <{own[1]}>, and the prompt has "
                f"opened it with <{opened[1]}>: write it so"
            )
        return example.response[own.end() :] if opened else example.response
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the response of example {example.example_id} has tool calls or reasoning, which only a chat template can "
            f"write, and {name_of(tokenizer)} has none"
        )
    turns = [*example.messages, example.answer]
    whole = _rendered(tokenizer, turns, example, chat, cue=False)
    if not whole.startswith(prompt):
        raise ValueError(
            f"the chat template of {name_of(tokenizer)} does not write the response of example {example.example_id}, "
            "which has tool calls or reasoning, behind its generation prompt" + " (task.think)" * bool(template.closing)
        )
    text = whole[len(prompt) :]
    texts = {"content": example.response, "reasoning_content": example.answer.get("reasoning_content", "")}
    for what, part in texts.items():
        if part.strip() not in text:
            raise _dropped(tokenizer, example, what)
    _check_dropped(tokenizer, turns, example, chat, cue=False)
    special, spelt = special_text(tokenizer), list[str]()
    _mapped_turns([example.answer], lambda _, value: spelt.append(str(value)), thoughts=True)
    if special and any(special.search(part) for part in spelt):
        raise ValueError(
            f"example {example.example_id}: a response with tool calls or reasoning spells out a special token; leave "
            "the row out"
        )
    end = _marker(tokenizer, _end(tokenizer, example, template, chat))
    return text[: -len(end)] if (text := text.rstrip()).endswith(end) else text


def _end(tokenizer: PreTrainedTokenizerBase, example: Example, template: Template, chat: Chat) -> int:
    """The id that ends the response; behind tool calls it may be another one than behind text."""
    assert template.end is not None
    if example.answer is None or "tool_calls" not in example.answer:
        return template.end
    turns = [*example.messages, example.answer]
    whole, more = (
        _rendered(tokenizer, some, example, chat, cue=False)
        for some in (turns, [*turns, Message(role="tool", content="7354")])
    )
    if whole.rstrip().endswith(_marker(tokenizer, template.end)) or not more.startswith(whole):
        return template.end
    following = first_marker(tokenizer, more[len(whole) :])
    return template.end if following is None else following


def _marker(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.added_tokens_decoder[token].content) if token in tokenizer.added_tokens_decoder else ""


def _weights(tokenizer: PreTrainedTokenizerBase, example: Example, text: str, tokens: int) -> tuple[float, ...] | None:
    """w of each response token and of its end, None where all are 1. A token counts as the least of its characters.

    Raises:
        ValueError: marked parts in a response that the chat template writes, or a tokenizer that tells no characters.
    """
    if not example.spans:
        return None if example.weight == 1 else (example.weight,) * (tokens + 1)
    if text != example.response:
        raise ValueError(
            f"example {example.example_id} marks parts of a response with reasoning or tool calls, whose text the chat "
            "template writes; mark the whole turn"
        )
    of_characters = np.ones(len(text))
    for span in example.spans:
        of_characters[span.start : span.end] = span.weight
    (offsets,) = response_offsets(tokenizer, [text])
    found = [min(of_characters[start:end], default=1.0) * example.weight for start, end in offsets.tolist()]
    return (*map(float, found), example.weight)


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of response ids as it stands behind a prompt, without special tokens; the inverse of `encode`.

    `tokenizer.decode` alone loses a leading space with SentencePiece-style tokenizers.
    """
    anchor = _ids(tokenizer, [continuation_anchor(tokenizer)])[0]
    return _decode(tokenizer, [*anchor, *ids])[len(_decode(tokenizer, anchor)) :]


@functools.lru_cache(maxsize=8)
def continuation_anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text to tokenise a response behind, so that it gets the ids which it has behind a prompt.

    SentencePiece-style tokenizers put a space before the first word of a text. A response is not the start
    of a text, so it is tokenised behind an anchor whose ids are then cut off. Byte-level ones need none.
    """
    behind_newline = _ids(tokenizer, ["\n"])[0]
    for anchor in ANCHORS:
        start, whole = _ids(tokenizer, [anchor, anchor + "a"])
        if whole[: len(start)] != start:
            continue
        continued = _decode(tokenizer, behind_newline + whole[len(start) :])
        if continued == _decode(tokenizer, behind_newline) + "a":
            return anchor
    raise ValueError(f"{name_of(tokenizer)} does not give back the text that it tokenised; use a lossless one")


def _response_ids(
    tokenizer: PreTrainedTokenizerBase, responses: Sequence[str], written: Collection[int] = ()
) -> list[list[int]]:
    """Ids of the responses; special tokens that they spell out are text, but for those `written` by the template."""
    anchor = continuation_anchor(tokenizer)
    start, special = _ids(tokenizer, [anchor])[0], special_text(tokenizer)
    rows = _ids(tokenizer, [anchor + response for response in responses])
    for place, response in enumerate(responses):
        if place not in written and special and special.search(response):
            rows[place] = _ids(textual(tokenizer), [anchor + response], split_special_tokens=True)[0]
    for ids, response in zip(rows, responses, strict=True):
        if ids[: len(start)] != start:
            raise ValueError(f"{name_of(tokenizer)} merges {response[:40]!r} with the text before it")
    return [ids[len(start) :] for ids in rows]


def response_offsets(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[np.ndarray]:
    """Characters [start, end) of each response that its tokens stand for, int64 [tokens, 2], EOS left out.

    The tokens are those of `encode`. Blanks that a tokenizer leaves out of its offsets count to the token
    behind them; the tokens of a character that takes several all have that character.

    Raises:
        ValueError: the tokenizer knows no offsets (a slow one), or they do not cover the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{name_of(tokenizer)} gives no character offsets; a fast tokenizer is needed here")
    anchor = continuation_anchor(tokenizer)
    skipped = len(_ids(tokenizer, [anchor])[0])
    texts = [anchor + response for response in responses]
    special, rows = special_text(tokenizer), []
    for response, text in zip(responses, texts, strict=True):
        as_text = bool(special and special.search(response))
        found = (textual(tokenizer) if as_text else tokenizer)(
            text, add_special_tokens=False, verbose=False, return_offsets_mapping=True, split_special_tokens=as_text
        )
        mapping = found["offset_mapping"]
        offsets = np.array(mapping[skipped:], np.int64).reshape(-1, 2) - len(anchor)
        ends = np.maximum.accumulate(offsets[:, 1])
        offsets[:, 0] = np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]]))
        if len(ends) and ends[-1] != len(response):
            raise ValueError(f"the offsets of {name_of(tokenizer)} end at {ends[-1]} of {response[:40]!r}")
        rows.append(offsets)
    return rows


def tokens_within(
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    rows: Sequence[Encoded],
    spans: Callable[[Example], Sequence[tuple[int, int]]],
) -> list[list[bool]]:
    """Which response tokens of each row hold a character of the spans [start, end) that `spans` gives of its example's
    response. The appended end holds none.

    Raises:
        ValueError: a span that does not lie in the response, and what `response_offsets` raises.
    """
    by_id = {example.example_id: example for example in examples}
    own = [by_id[row.example_id] for row in rows]
    found = []
    offsets = response_offsets(tokenizer, [example.response for example in own])
    for row, example, places in zip(rows, own, offsets, strict=True):
        within = np.zeros(len(row.input_ids) - row.prompt_length, bool)
        if row.end_tokens and len(places) + row.end_tokens != len(within):
            raise ValueError(
                f"example {example.example_id}: its response is written by the chat template (tool calls, reasoning, a "
                "thought of its own), so no place in it can be found; leave the row out"
            )
        for start, end in spans(example):
            if not 0 <= start <= end <= len(example.response):
                raise ValueError(
                    f"example {example.example_id}: [{start}, {end}) does not lie in its response of "
                    f"{len(example.response)} characters"
                )
            touched = (places[:, 0] < end) & (places[:, 1] > start)
            within[: len(touched)] |= touched[: len(within)]
        found.append(within.tolist())
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **more: bool) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False, **more)["input_ids"]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself starts a text with BOS (a chat template writes it as text instead)."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills positions which nothing attends to: the pad token's, else the EOS token's."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts beside EOS at which an answer is over: the next turn's heading, where no chat template marks
    turns."""
    return [PLAIN_TURN.split("{role}")[0] + "User:"] if tokenizer.chat_template is None else []
