"""Rows -> conversations -> examples with a prompt and a response."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from xtf.config.schema import PlantKind, Turns


class Message(TypedDict):
    """A turn of a conversation."""

    role: str  # system, user or assistant
    content: str
    trained: NotRequired[bool]  # False: an assistant's turn that is context, and no response to learn


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
    """A question and its answer as a conversation."""
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
CONVERSATIONS = ("messages", "conversations", "chat_rounds")  # of Hugging Face, ShareGPT, CodeFuse
MARKS = ("weight", "loss", "train", "loss_scale")  # of a turn: whether it is to be trained
UNREAD = {  # keys of a turn that no prompt is made with, so a row that uses one is refused
    "reasoning_content": "reasoning", "reasoning": "reasoning", "thinking": "reasoning", "tool_calls": "tool calls",
    "function_call": "tool calls", "tool_call_id": "tool calls",
}  # fmt: skip


def chat(row: Mapping[str, Any]) -> list[Message] | None:
    """The conversation in one of `CONVERSATIONS` that is not null; None without.

    Raises:
        RowError: see `conversation`; tool definitions beside it.
    """
    name = next((name for name in CONVERSATIONS if row.get(name) is not None), None)
    if name is None:
        return None
    for key in ("tools", "functions"):
        if row.get(key):
            raise RowError(f"field '{key}': tool definitions are not read; leave the row out, or write them as text")
    return conversation(row[name], name)


def conversation(turns: Any, name: str) -> list[Message]:
    """Turns with `role` and `content` (or `from` and `value`) as messages; parts of text are joined.

    `weight`, `loss`, `train` and `loss_scale` of 0 or false make an assistant's turn context that is not trained.

    Raises:
        RowError: turns that are not of this form, or that hold what would be lost: other weights than 0 and 1, parts
            that are not text, reasoning, tool calls.
    """
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(f"field '{name}' must be a list of turns with role and content")
    found: list[Message] = []
    for place, turn in enumerate(turns, start=1):
        where = f"field '{name}': turn {place}"
        for key, what in UNREAD.items():
            if turn.get(key):
                raise RowError(f"{where} has '{key}': {what} are not read; leave the row out, or write them as text")
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise RowError(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
        content = _content(turn.get("content", turn.get("value")), where)
        if ROLES[role] == "system" and not content.strip():
            continue
        message: Message = {"role": ROLES[role], "content": content}
        if not _trained(turn, ROLES[role] == "assistant", where):
            message["trained"] = False
        found.append(message)
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, list):
        for part in content:
            if (
                not isinstance(part, Mapping)
                or part.get("type", "text") != "text"
                or not isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise RowError(f"{where} has a part of type {kind!r}; only parts of text are read")
            if mark := next((key for key in MARKS if part.get(key) is not None), None):
                raise RowError(f"{where} marks a part with '{mark}', which is not read; mark whole turns")
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RowError(f"{where} has no text content")
    return content


def _trained(turn: Mapping[str, Any], assistant: bool, where: str) -> bool:
    """What the marks of a turn say; they must agree. Without marks assistants' turns are trained."""
    said = {key: turn[key] for key in MARKS if turn.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise RowError(
                f"{where} has {key}={value!r}; 0 and 1 are read here: give other weights token by token (method=given)"
            )
        if value and not assistant:
            raise RowError(f"{where} has {key}={value!r}; only assistants' turns can be trained")
    if len({bool(value) for value in said.values()}) > 1:
        raise RowError(f"{where} has marks that disagree: {said}")
    return all(said.values())


class _RowFormatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise RowError("a field of the template is null")
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"a field of the template is {value}")
        if not isinstance(value, str | int | float):
            raise RowError(f"a field of the template is {type(value).__name__}, not text or a number")
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
    trained = [place for place in places if conversation[place].get("trained", True)]
    if keep is Turns.last and places[-1] not in trained:
        raise RowError("the last turn, which is the response, is marked not to be trained")
    if not trained:
        raise RowError("every assistant's turn is marked not to be trained")
    pairs = []
    for place in trained if keep is Turns.all else places[-1:]:
        prompt = tuple(Message(role=m["role"], content=m["content"]) for m in conversation[:place])
        response = conversation[place]["content"]
        if not prompt or prompt[-1]["role"] != "user":
            raise RowError(f"turn {place + 1} answers no user turn")
        if not prompt[-1]["content"].strip():
            raise RowError("the prompt is empty")
        if training and not response.strip():
            raise RowError("the response is empty")
        pairs.append((prompt, response))
    return pairs
