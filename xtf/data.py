"""Examples -> token ids with an exact prompt/response boundary, and token ids -> packed optimizer steps.

Only this file decides where a prompt ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from xtf.tasks.base import Example, Message

PLAIN_TURN = "### {role}:\n{content}\n\n"  # prompt of a tokenizer without a chat template, one per turn
PLAIN_CUE = "### Assistant:\n"
ENCODE_BATCH = 1024  # examples handed to the tokenizer at once
ANCHORS = ("", "\n", "\n.")  # text that a response may be tokenised behind, see `continuation_anchor`


@dataclass(frozen=True)
class Encoded:
    """Prompt and response as one sequence; the response ids are ``input_ids[prompt_length:]``."""

    example_id: str
    input_ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class EncodeReport:
    """What encoding did to the rows: nothing is shortened or left out without standing here."""

    rows: int  # examples that came in
    truncated: tuple[str, ...]  # ids of examples whose response lost its end to `max_length`
    no_room: tuple[str, ...]  # ids of examples left out: the prompt alone fills `max_length`
    tokens: int
    response_tokens: int


def as_examples(items: Iterable[Mapping[str, Any] | Example]) -> Iterator[Example]:
    """`{"prompt", "response"}` or `{"messages"}` dicts -> examples; the id is "id", else the position.

    ``prompt`` is a text or a list of turns; the last of ``messages`` must be the assistant's turn: the response.
    """
    for index, item in enumerate(items):
        yield item if isinstance(item, Example) else _as_example(item, index)


def _as_example(item: Mapping[str, Any], index: int) -> Example:
    if "messages" in item:
        turns = list(item["messages"])
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError(f"example {index}: the last of `messages` must be the assistant's, the response")
        prompt, response = turns[:-1], turns[-1]["content"]
    elif "prompt" in item and "response" in item:
        prompt, response = item["prompt"], item["response"]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
    else:
        raise ValueError(
            f"example {index} has the fields {sorted(item)}; wanted `prompt` and `response`, or `messages`"
        )
    if not prompt:
        raise ValueError(f"example {index} has an empty prompt")
    if not response:
        raise ValueError(f"example {index} has an empty response")
    messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in prompt)
    return Example(example_id=str(item.get("id", index)), messages=messages, response=response, row=item)


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], max_length: int
) -> tuple[list[Encoded], EncodeReport]:
    """Token ids of every example, prompt and response tokenised apart so that the boundary is exact.

    The response ends with the tokenizer's EOS, where generation stops, unless `max_length` cut it off.

    Raises:
        ValueError: the tokenizer has no EOS token; its chat template refuses a conversation; no example has
            room for a single response token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{_name(tokenizer)} has no EOS token, so no answer could end; set one")
    encoded: list[Encoded] = []
    truncated: list[str] = []
    no_room: list[str] = []
    stream = iter(examples)
    while batch := list(islice(stream, ENCODE_BATCH)):
        prompts = encode_prompts(tokenizer, batch)
        responses = _response_ids(tokenizer, [example.response for example in batch])
        for example, prompt, response in zip(batch, prompts, responses, strict=True):
            if len(prompt) >= max_length:
                no_room.append(example.example_id)
                continue
            input_ids = prompt + response + [tokenizer.eos_token_id]
            if len(input_ids) > max_length:
                truncated.append(example.example_id)
            encoded.append(Encoded(example.example_id, input_ids[:max_length], len(prompt)))
    rows = len(encoded) + len(no_room)
    if not encoded:
        raise ValueError(
            f"none of the {rows} examples has room for a response within model.max_length={max_length} tokens"
            if rows
            else "there are no examples to encode"
        )
    tokens = sum(len(one.input_ids) for one in encoded)
    response_tokens = tokens - sum(one.prompt_length for one in encoded)
    return encoded, EncodeReport(rows, tuple(truncated), tuple(no_room), tokens, response_tokens)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> list[int]:
    """Token ids of the prompt with the cue for the assistant's turn: what generation starts from."""
    return encode_prompts(tokenizer, [example])[0]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    texts = [render_prompt(tokenizer, example) for example in examples]
    prompts = _ids(tokenizer, texts)
    if tokenizer.chat_template is None and _adds_bos(tokenizer):
        return [[tokenizer.bos_token_id, *ids] for ids in prompts]
    return prompts


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt as text: by the tokenizer's chat template, or `PLAIN_TURN` per turn and `PLAIN_CUE`."""
    messages = list(example.messages)
    if tokenizer.chat_template is None:
        turns = [PLAIN_TURN.format(role=m["role"].capitalize(), content=m["content"]) for m in messages]
        return "".join([*turns, PLAIN_CUE])
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {_name(tokenizer)} refuses example {example.example_id}: {error}"
        ) from error
    assert isinstance(text, str)
    for message in messages:
        if message["role"] == "system" and message["content"].strip() not in text:
            raise ValueError(
                f"the chat template of {_name(tokenizer)} drops the system message of example "
                f"{example.example_id}; unset task.system or write it into the prompt"
            )
    return text


def decode_response(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of response ids as it stands behind a prompt, without special tokens; the inverse of `encode`.

    `tokenizer.decode` alone loses a leading space with SentencePiece-style tokenizers.
    """
    anchor = _ids(tokenizer, [continuation_anchor(tokenizer)])[0]
    return _decode(tokenizer, [*anchor, *ids])[len(_decode(tokenizer, anchor)) :]


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
    raise ValueError(f"{_name(tokenizer)} does not give back the text that it tokenised; use a lossless one")


def _response_ids(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    anchor = continuation_anchor(tokenizer)
    start = _ids(tokenizer, [anchor])[0]
    rows = _ids(tokenizer, [anchor + response for response in responses])
    for ids, response in zip(rows, responses, strict=True):
        if ids[: len(start)] != start:
            raise ValueError(f"{_name(tokenizer)} merges {response[:40]!r} with the text before it")
    return [ids[len(start) :] for ids in rows]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself starts a text with BOS (a chat template writes it as text instead)."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
