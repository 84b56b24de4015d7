"""Rows -> conversations -> examples with a prompt and a response."""

from __future__ import annotations

import json
import math
import re
import string
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from xtf.config.schema import PlantKind, Turns
from xtf.data.rows import NESTED


class Message(TypedDict):
    """A turn of a conversation; beside role and content what the chat template is handed as it is."""

    role: str  # system, user, assistant or tool
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[float]  # of the loss of an assistant's turn; 0: it is context, and no response to learn
    parts: NotRequired[list[tuple[int, float]]]  # the content's parts: characters and weight of each


BEYOND_TEXT = ("reasoning_content", "tool_calls")  # of a response: only the chat template can write it


@dataclass(frozen=True)
class WeightedSpan:
    """Characters [start, end) of a response whose loss counts `weight` times."""

    start: int
    end: int
    weight: float


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
    weight: float = 1.0  # of the whole response's loss, its end included
    spans: tuple[WeightedSpan, ...] = ()  # parts of the response with a weight of their own, in order
    tools: tuple[Mapping[str, Any], ...] = ()  # definitions, for the chat template
    source: str = ""  # the id of the row, where several examples come from one; "": the example's own
    answer: Message | None = None  # the response's turn, where it holds more than its text (`BEYOND_TEXT`)


class RowError(ValueError):
    """What is wrong with one row; `Task.examples` collects these and names file and row."""


# -- rows to examples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A row as a reader understands it: the conversation, and the reference if it is not the response."""

    messages: Sequence[Message]
    reference: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()


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


def one_of(row: Mapping[str, Any], *names: str) -> str:
    """The one of the named fields that the row has, the first where it has none; RowError if two of them differ."""
    given = [name for name in names if row.get(name) is not None]
    if any(row[name] != row[given[0]] for name in given):
        raise RowError(f"fields {', '.join(given)} hold different answers: leave one")
    if not given:
        raise RowError(f"field '{names[0]}' is missing" + "".join(f" (or {name})" for name in names[1:]))
    return given[0]


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
    """Alpaca's and Dolly's columns: instruction, an input or context that may be empty or missing, output or response;
    earlier turns in `history`."""
    instruction = text_field(row, "instruction")
    more = {name: row[name] for name in ("input", "context") if row.get(name)}
    if len(more) > 1:
        raise RowError("fields 'input' and 'context' stand beside 'instruction': put them together by task.prompt")
    for name, value in more.items():
        if not isinstance(value, str):
            raise RowError(f"field '{name}' must be text, not {type(value).__name__}")
    extra = "".join(more.values())
    answer = text_field(row, one_of(row, "output", "response"))
    last = turns(f"{instruction}\n\n{extra}" if extra.strip() else instruction, answer)
    history = row.get("history") or []
    pairs = isinstance(history, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in history
    )
    if not pairs:
        raise RowError("field 'history' must be a list of pairs, question and answer")
    return [message for question, answer in history for message in turns(question, answer)] + last


ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {
    "human": "user",
    "bot": "assistant",
    "gpt": "assistant",
}
CONVERSATIONS = ("messages", "conversations", "chat_rounds")  # of Hugging Face, ShareGPT, CodeFuse
NUMBERS, SWITCHES = ("weight", "loss_scale"), ("train", "loss")  # how much, and whether, a turn or part is trained
REASONING = ("reasoning_content", "reasoning", "thinking")
# Keys of a turn or a part that would change what is trained, and are not read; others are notes (id, timestamp).
LOST = re.compile(
    r"mask|train|learn|supervis|loss|weight|ignore|\bskip|exclu|label|image|video|audio|prefix|refusal|think|thought|reason|\bcot\b|"
    r"tool|function|call|eot|document",
    re.IGNORECASE,
)
MARKS = re.compile(r"mask|loss|weight|train|learn|supervis", re.IGNORECASE)  # of a row, where they hold numbers
TURN = ("role", "from", "content", "value", "name", "tool_call_id", "tool_calls", "function_call")


def chat(row: Mapping[str, Any]) -> Reading | None:
    """The conversation in one of `CONVERSATIONS` that is not null, with the row's tools; None without.

    Raises:
        RowError: see `conversation` and `tool_definitions`.
    """
    names = [name for name in CONVERSATIONS if row.get(name) is not None]
    if not names:
        return None
    if any(row[name] != row[names[0]] for name in names):
        raise RowError(f"fields {', '.join(names)} hold different conversations: leave one")
    found = with_system(row, conversation(row[names[0]], names[0]))
    for name in ("response", "completion", "output"):  # a whole pair beside the turns; a prompt alone repeats the first
        said = row.get(name)
        pair = any(isinstance(row.get(asked), str) for asked in ("prompt", "instruction", "query"))
        if pair and isinstance(said, str) and found and found[-1]["content"].strip() != said.strip():
            raise RowError(f"fields {names[0]}, {name} hold different answers: leave one")
    return Reading(found, tools=tool_definitions(row))


def with_system(row: Mapping[str, Any], turns: list[Message]) -> list[Message]:
    """The turns behind what rows say in a field `system` or `system_prompt`; RowError if the turns begin otherwise."""
    system = next((text_field(row, name) for name in ("system", "system_prompt") if row.get(name)), "")
    if not system.strip():
        return turns
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"].strip() == system.strip():
            return turns
        raise RowError("the system message beside the turns is not that of the first turn: leave one")
    return [{"role": "system", "content": system}, *turns]


NOT_READ = {  # fields of rows of texts that would change what is trained
    "belongs to the assistant's turn (messages)": (
        *NUMBERS,
        *SWITCHES,
        *("loss_weight", "weights", "sample_weight", "sample_weights", "example_weight", "token_weight"),
        *("train_on_inputs", "train_on_turn", "train_on_turns", "trainable", "calculate_loss", "compute_loss"),
        *REASONING,
    ),
    "goes with input_ids only": ("labels", "loss_mask", "loss_weights", "attention_mask", "position_ids"),
    "is not read: only texts are": ("image", "images", "video", "videos", "audio", "audios"),
    "is not read: preference pairs are no rows to fine-tune on": ("chosen", "rejected"),
    "is not read: the chat template is not handed it (task.think closes a thought)": (
        "chat_template_kwargs",
        "enable_thinking",
        "documents",
    ),
}


def refuse_lost(row: Mapping[str, Any]) -> None:
    """RowError for a field that would be lost, though it says what is trained; not for a null or empty one."""
    for why, names in NOT_READ.items():
        for name in names:
            if (value := row.get(name)) is not None and not (isinstance(value, str | list | dict) and not value):
                raise RowError(f"field '{name}' {why}")
    for name, value in row.items():  # of turns or tokens
        marks = isinstance(value, list | tuple) and value and all(isinstance(one, bool | int | float) for one in value)
        if marks and MARKS.search(str(name)):
            raise RowError(f"field '{name}' is not read: marks belong to the turns (messages) or go with input_ids")
    for name in ("label", "kto_tag"):
        if row.get(name) is False:
            raise RowError(f"field '{name}' is false, which marks an answer that is not wanted: leave the row out")


def texts_of(turns: Sequence[Message]) -> None:
    """RowError for a text that cannot be written as UTF-8 (half of a surrogate pair)."""
    for place, turn in enumerate(turns, 1):
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"turn {place} holds half a character, {turn['content'][error.start]!r}: mend its text"
            ) from error


def tool_definitions(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The row's `tools`: a list of objects, or the same as JSON.

    Raises:
        RowError: something else, or the older `functions`.
    """
    if row.get("functions"):
        raise RowError("field 'functions' is not read: write the definitions as 'tools'")
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools, "field 'tools'")
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("field 'tools' must be a list of definitions")
    return tuple(_without_nulls(tool) for tool in tools)


def conversation(turns: Any, name: str) -> list[Message]:
    """Turns with `role` and `content` (or `from` and `value`) as messages; parts of text are joined.

    `weight`, `loss_scale` (numbers), `train` and `loss` (true or false) say how much an assistant's turn, or a part of
    its content, is trained. Reasoning, tool calls and tools' turns are kept for the chat template.

    Raises:
        RowError: turns that are not of this form, or that hold what would be lost.
    """
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowError(f"field '{name}' must be a list of turns with role and content")
    found: list[Message] = []
    for place, turn in enumerate(turns, start=1):
        where = f"field '{name}': turn {place}"
        role = turn.get("role", turn.get("from"))
        if role not in ROLES:
            raise RowError(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
        message = _message(turn, ROLES[role], where)
        if message["role"] == "tool" and not (found and (found[-1]["role"] == "tool" or "tool_calls" in found[-1])):
            raise RowError(f"{where} is a tool's answer, and no turn with tool_calls precedes it")
        if message["role"] != "system" or message["content"].strip():
            found.append(message)
    return found


def _message(turn: Mapping[str, Any], role: str, where: str) -> Message:
    assistant = role == "assistant"
    if turn.get("function_call"):
        raise RowError(f"{where} has 'function_call', which is not read: write it as 'tool_calls'")
    calls = _tool_calls(turn["tool_calls"], where) if turn.get("tool_calls") else None
    content, parts = _content(turn.get("content", turn.get("value")), assistant, where, empty=calls is not None)
    _refuse_lost_marks(turn, (*TURN, *NUMBERS, *SWITCHES, *REASONING), where)
    message: Message = {"role": role, "content": content}
    reasoning = [key for key in REASONING if turn.get(key)]
    if reasoning:
        if len(reasoning) > 1 or not isinstance(turn[reasoning[0]], str):
            raise RowError(f"{where} must have its reasoning as one text, not as {', '.join(reasoning)}")
        message["reasoning_content"] = turn[reasoning[0]]
    if calls is not None:
        message["tool_calls"] = calls
    if not assistant and (calls is not None or reasoning):
        raise RowError(
            f"{where} has {(['tool_calls'] if calls else reasoning)[0]!r}, which only assistants' turns have"
        )
    if turn.get("name"):
        message["name"] = str(turn["name"])
    if role == "tool" and turn.get("tool_call_id"):
        message["tool_call_id"] = str(turn["tool_call_id"])
    if (weight := _weight(turn, assistant, where)) is not None:
        message["weight"] = weight
    if parts is not None:
        message["parts"] = parts
    return message


def _content(content: Any, assistant: bool, where: str, empty: bool) -> tuple[str, list[tuple[int, float]] | None]:
    """A turn's text, and its parts where one of them has a weight; `empty`: there may be none."""
    if content is None and empty:
        return "", None
    if not isinstance(content, list | tuple):
        if not isinstance(content, str):
            raise RowError(f"{where} has no text content")
        return content, None
    parts: list[tuple[int, float]] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowError(f"{where} has a part of type {kind!r}; only parts of text are read")
        _refuse_lost_marks(part, ("type", "text", *NUMBERS, *SWITCHES), f"{where} has a part that")
        weight = _weight(part, assistant, f"{where} has a part that")
        parts.append((len(text), 1.0 if weight is None else weight))
    return "".join(part["text"] for part in content), parts if any(weight != 1 for _, weight in parts) else None


def _refuse_lost_marks(marked: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key, value in marked.items():
        if key not in known and value not in (None, "") and value != [] and LOST.search(str(key)):
            raise RowError(
                f"{where} has {key!r}, which is not read (how much is trained: {', '.join((*NUMBERS, *SWITCHES))})"
            )


def _weight(marked: Mapping[str, Any], assistant: bool, where: str) -> float | None:
    """What the marks of a turn or a part say, which must agree; None without marks."""
    said = {key: marked[key] for key in (*NUMBERS, *SWITCHES) if marked.get(key) is not None}
    for key, value in said.items():
        number = isinstance(value, bool | int | float) and 0 <= value <= sys.float_info.max
        if not number or (key in SWITCHES and value not in (0, 1)):
            wanted = "true or false" if key in SWITCHES else "a number from 0 (not trained)"
            raise RowError(f"{where} has {key}={value!r}; it must be {wanted}")
        if value and not assistant:
            raise RowError(f"{where} has {key}={value!r}; only assistants' turns can be trained")
    numbers = {float(said[key]) for key in NUMBERS if key in said}
    if len(numbers) > 1 or len({bool(value) for value in said.values()}) > 1:
        raise RowError(f"{where} has marks that disagree: {said}")
    return None if not said else max(numbers, default=float(all(said.values())))


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls with their arguments as objects: templates write them as JSON, and would write JSON text as a string."""
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise RowError(f"{where}: 'tool_calls' must be a list of calls")
    found = []
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"{where} has a tool call without a function's name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", f"{where}: the arguments of the call of {function['name']}")
        if not isinstance(arguments, Mapping | None):
            raise RowError(f"{where}: the arguments of the call of {function['name']} must be an object")
        own = {"name": function["name"], "arguments": _without_nulls(arguments or {})}
        found.append({"type": "function", **({"id": call["id"]} if call.get("id") else {}), "function": own})
    return found


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = NESTED if isinstance(error, RecursionError) else error
        raise RowError(f"{what} cannot be read as JSON: {reason}") from error


def _without_nulls(value: Any) -> Any:
    """Without the null fields that Parquet gives every object for the fields of the others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list | tuple) else value


class _RowFormatter(string.Formatter):
    """Reads fields, and what lies in them by [key]: no attributes, no widths of any size."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        if field_name in kwargs:  # also a column whose name has dots or brackets
            return kwargs[field_name], field_name
        if re.search(r"^[^\[]*\.|\]\.", field_name):
            raise RowError(
                f"{{{field_name}}}: a template reads fields, and parts of them as in {{a[b]}}; no attributes"
            )
        return super().get_field(field_name, args, kwargs)

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if value is None:
            raise RowError("a field of the template is null")
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"a field of the template is {value}")
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise RowError(f"a field of the template is {type(value).__name__}, not text or a number")
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> str:
        if any(len(number) > 3 for number in re.findall(r"\d+", format_spec)):
            raise RowError(f"a format of the template, {format_spec[:20]!r}, is wider than 999 characters")
        return str(format(value, format_spec))


def render(template: str, row: Mapping[str, Any]) -> str:
    """Fills a template ("{question}"); lists of strings are joined by newlines. RowError: no such field."""
    try:
        return _RowFormatter().vformat(template, (), row)
    except KeyError as error:
        raise RowError(f"field {error} is missing (template {template!r})") from error
    except (IndexError, TypeError, ValueError, OverflowError) as error:
        raise RowError(f"template {template!r}: {error}") from error


@dataclass(frozen=True)
class Pair:
    """A prompt and the turn that answers it; without an answer the prompt is to be graded by a reference elsewhere."""

    prompt: tuple[Message, ...]
    answer: Message


def split_turns(conversation: Sequence[Message], keep: Turns, training: bool) -> list[Pair]:
    """The prompts and answers of a conversation; RowError if an answer has no question or no text."""
    if not conversation:
        raise RowError("the conversation is empty")
    if not training and conversation[-1]["role"] in ASKING:
        # nothing to learn from, but a reference elsewhere in the row may grade it
        return [Pair(tuple(_context(message) for message in conversation), {"role": "assistant", "content": ""})]
    if conversation[-1]["role"] != "assistant":
        raise RowError("the conversation does not end with the assistant's turn")
    places = [place for place, message in enumerate(conversation) if message["role"] == "assistant"]
    trained = [place for place in places if _trained(conversation[place])]
    if training and keep is Turns.last and places[-1] not in trained:
        raise RowError("the last turn, which is the response, is marked not to be trained")
    if training and not trained:
        raise RowError("every assistant's turn is marked not to be trained")
    pairs = []
    for place in (trained or places) if keep is Turns.all else places[-1:]:
        prompt, answer = tuple(_context(message) for message in conversation[:place]), conversation[place]
        if not prompt or prompt[-1]["role"] not in ASKING:
            raise RowError(f"turn {place + 1} answers no user turn")
        if not prompt[-1]["content"].strip() and prompt[-1]["role"] == "user":
            raise RowError("the prompt is empty")
        if training and not answer["content"].strip() and "tool_calls" not in answer:
            raise RowError("the response is empty")
        pairs.append(Pair(prompt, answer))
    return pairs


ASKING = ("user", "tool")  # roles that an answer may follow


def _context(message: Message) -> Message:
    """The message without its marks, which concern its training only."""
    rest: Message = {**message}
    rest.pop("weight", None)
    rest.pop("parts", None)
    return rest


def _trained(message: Message) -> bool:
    """Whether any of an assistant's turn is trained."""
    return message.get("weight", 1.0) > 0 and any(w > 0 for size, w in message.get("parts", [(1, 1.0)]) if size)


def example_of(
    name: str, source: str, pair: Pair, row: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...] = ()
) -> Example:
    """A prompt and its answer as an example; `source` is the id of the row."""
    spans, start = [], 0
    for size, weight in pair.answer.get("parts", ()):
        if size and weight != 1:
            spans.append(WeightedSpan(start, start + size, weight))
        start += size
    return Example(
        name,
        pair.prompt,
        pair.answer["content"],
        row,
        weight=pair.answer.get("weight", 1.0),
        spans=tuple(spans),
        tools=tools,
        source=source,
        answer=_context(pair.answer) if any(key in pair.answer for key in BEYOND_TEXT) else None,
    )
