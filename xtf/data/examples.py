"""Rows -> conversations -> examples with a prompt and a response."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from xtf.config.schema import PlantKind, Turns


def as_examples(items: Iterable[Mapping[str, Any] | Example]) -> Iterator[Example]:
    """`{"prompt", "response"}` or `{"messages"}` dicts -> examples; the id is "id", else the position.

    ``prompt`` is a text or a list of turns; the last of ``messages`` is the assistant's turn, the response.
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


class Message(TypedDict):
    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class PlantedSpan:
    """Characters [start, end) of a response that `xtf.data.planting` wrote, and the clean text in their place."""

    start: int
    end: int
    kind: PlantKind
    replaced: str  # empty where text was only added


@dataclass(frozen=True)
class Example:
    """One item: the prompt's turns (the last one is the user's) and the response to learn."""

    example_id: str
    messages: tuple[Message, ...]
    response: str
    row: Mapping[str, Any] = field(repr=False)  # the raw row: what a grader may need beside the response
    planted: tuple[PlantedSpan, ...] = ()  # noise in the response, in order


class RowError(ValueError):
    """What is wrong with one row; `Task.examples` collects these and names file and row."""


# -- rows to examples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A row as a reader understands it: the conversation, and the reference if it is not the response."""

    messages: Sequence[Message]
    reference: str | None = None


def text_field(row: Mapping[str, Any], *names: str, empty: bool = False) -> str:
    """The first of the named fields that the row has; RowError if it has none, or one that is not text."""
    for name in names:
        if name in row and row[name] is not None:
            value = row[name]
            if not isinstance(value, str):
                raise RowError(f"field '{name}' must be text, not {type(value).__name__}")
            if not empty and not value.strip():
                raise RowError(f"field '{name}' is empty")
            return value
    raise RowError(f"field '{names[0]}' is missing" + (f" (or {', '.join(names[1:])})" if names[1:] else ""))


def text_list(row: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a list of texts; RowError if it does not."""
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise RowError(f"field '{name}' must be a list of texts")
    return value


def turns(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def instruction_turns(row: Mapping[str, Any]) -> list[Message]:
    """Alpaca's columns: instruction, an input that may be empty or missing, output."""
    instruction, extra = text_field(row, "instruction"), row.get("input") or ""
    if not isinstance(extra, str):
        raise RowError(f"field 'input' must be text, not {type(extra).__name__}")
    return turns(f"{instruction}\n\n{extra}" if extra.strip() else instruction, text_field(row, "output"))


ROLES = {name: name for name in ("system", "user", "assistant")} | {
    "human": "user",
    "bot": "assistant",
    "gpt": "assistant",
}


def chat(row: Mapping[str, Any]) -> list[Message] | None:
    """The conversation in `messages`, `conversations` (ShareGPT), `chat_rounds` (CodeFuse); None without."""
    name = next((name for name in ("messages", "conversations", "chat_rounds") if name in row), None)
    if name is None:
        return None
    if not isinstance(row[name], list) or not all(isinstance(turn, Mapping) for turn in row[name]):
        raise RowError(f"field '{name}' must be a list of turns with role and content")
    conversation: list[Message] = []
    for place, turn in enumerate(row[name], start=1):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES:
            raise RowError(f"field '{name}': turn {place} has the role {role!r}; known are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise RowError(f"field '{name}': turn {place} has no text content")
        if ROLES[role] != "system" or content.strip():
            conversation.append({"role": ROLES[role], "content": content})
    return conversation


class _RowFormatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise RowError("a field of the template is null")
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        return str(format(value, format_spec))


def render(template: str, row: Mapping[str, Any]) -> str:
    """Fills a template ("{question}"); lists of strings are joined by newlines. RowError: no such field."""
    try:
        return _RowFormatter().vformat(template, (), row)
    except KeyError as error:
        raise RowError(f"field {error} is missing (template {template!r})") from error
    except (IndexError, AttributeError, ValueError) as error:
        raise RowError(f"template {template!r}: {error}") from error


def split_turns(conversation: Sequence[Message], keep: Turns, training: bool) -> list[tuple[tuple[Message, ...], str]]:
    """(prompt turns, response) pairs of a conversation; RowError if an answer has no question or no text."""
    if not conversation:
        raise RowError("the conversation is empty")
    if not training and conversation[-1]["role"] == "user":
        return [(tuple(conversation), "")]  # nothing to learn from, but a reference elsewhere in the row may grade it
    if conversation[-1]["role"] != "assistant":
        raise RowError("the conversation does not end with the assistant's turn")
    places = [place for place, message in enumerate(conversation) if message["role"] == "assistant"]
    pairs = []
    for place in places if keep is Turns.all else places[-1:]:
        prompt, response = tuple(conversation[:place]), conversation[place]["content"]
        if not prompt or prompt[-1]["role"] != "user":
            raise RowError(f"turn {place + 1} answers no user turn")
        if not prompt[-1]["content"].strip():
            raise RowError("the prompt is empty")
        if training and not response.strip():
            raise RowError("the response is empty")
        pairs.append((prompt, response))
    return pairs
