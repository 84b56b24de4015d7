"""Examples -> token ids with an exact prompt/response boundary.

Only this file decides where a prompt ends.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from xtf.data.examples import Example

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
    end_tokens: int = 0  # at the end of the response, put there by `encode`: the dataset has no such token


@dataclass(frozen=True)
class EncodeReport:
    """What encoding did to the rows: nothing is shortened or left out without standing here."""

    rows: int  # examples that came in
    truncated: tuple[str, ...]  # ids of examples whose response lost its end to `max_length`
    no_room: tuple[str, ...]  # ids of examples left out: the prompt alone fills `max_length`
    tokens: int
    response_tokens: int


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
            whole = len(input_ids) <= max_length
            encoded.append(Encoded(example.example_id, input_ids[:max_length], len(prompt), int(whole)))
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
    """Token ids of every prompt, with the cue for the assistant's turn."""
    texts = [render_prompt(tokenizer, example) for example in examples]
    prompts = _ids(tokenizer, texts)
    if tokenizer.chat_template is None and _adds_bos(tokenizer):
        return [[tokenizer.bos_token_id, *ids] for ids in prompts]
    return prompts


def render_prompt(tokenizer: PreTrainedTokenizerBase, example: Example) -> str:
    """The prompt as text: by the tokenizer's chat template, or `PLAIN_TURN` per turn and `PLAIN_CUE`."""
    messages = example.messages
    if tokenizer.chat_template is None:
        texts = [PLAIN_TURN.format(role=m["role"].capitalize(), content=m["content"]) for m in messages]
        return "".join([*texts, PLAIN_CUE])
    turns = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
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
    raise ValueError(f"{_name(tokenizer)} does not give back the text that it tokenised; use a lossless one")


def _response_ids(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[list[int]]:
    anchor = continuation_anchor(tokenizer)
    start = _ids(tokenizer, [anchor])[0]
    rows = _ids(tokenizer, [anchor + response for response in responses])
    for ids, response in zip(rows, responses, strict=True):
        if ids[: len(start)] != start:
            raise ValueError(f"{_name(tokenizer)} merges {response[:40]!r} with the text before it")
    return [ids[len(start) :] for ids in rows]


def response_offsets(tokenizer: PreTrainedTokenizerBase, responses: Sequence[str]) -> list[np.ndarray]:
    """Characters [start, end) of each response that its tokens stand for, int64 [tokens, 2], EOS left out.

    The tokens are those of `encode`. Blanks that a tokenizer leaves out of its offsets count to the token
    behind them; the tokens of a character that takes several all have that character.

    Raises:
        ValueError: the tokenizer knows no offsets (a slow one), or they do not cover the text.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{_name(tokenizer)} gives no character offsets; a fast tokenizer is needed here")
    anchor = continuation_anchor(tokenizer)
    skipped = len(_ids(tokenizer, [anchor])[0])
    texts = [anchor + response for response in responses]
    found = tokenizer(texts, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    rows = []
    for response, mapping in zip(responses, found["offset_mapping"], strict=True):
        offsets = np.array(mapping[skipped:], np.int64).reshape(-1, 2) - len(anchor)
        ends = np.maximum.accumulate(offsets[:, 1])
        offsets[:, 0] = np.minimum(offsets[:, 0], np.concatenate([[0], ends[:-1]]))
        if len(ends) and ends[-1] != len(response):
            raise ValueError(f"the offsets of {_name(tokenizer)} end at {ends[-1]} of {response[:40]!r}")
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


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


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


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills positions which nothing attends to: the pad token's, else the EOS token's."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts beside EOS at which an answer is over: the next turn's heading, where no chat template marks
    turns."""
    return [PLAIN_TURN.split("{role}")[0] + "User:"] if tokenizer.chat_template is None else []
