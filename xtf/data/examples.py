"""Rows -> conversations -> examples with a prompt and a response."""

from __future__ import annotations

import json
import math
import re
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

from xtf.config.schema import PlantKind, Turns
from xtf.data.rows import EXACT, NESTED


class Message(TypedDict):
    """A turn of a conversation; beside role and content what the chat template is handed as it is."""

    role: str  # system, user, assistant or tool
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    weight: NotRequired[float]  # of the loss of an assistant's turn; 0: it is context, and no response to learn
    parts: NotRequired[list[tuple[int, float | None]]]  # the content's parts: characters of each, and weight if marked


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


class NotedRow(Mapping[str, Any]):
    """A row without its null fields, which merged files give every row for those of the others; `noted`: the fields
    that were read, in order."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.fields = _without_null_fields(row)
        self.noted: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        value = self.fields[name]
        self.noted[name] = None
        return value

    def __contains__(self, name: object) -> bool:  # who asks whether it is there has not read it
        return name in self.fields

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)

    def left(self) -> dict[str, Any]:
        """The fields that nobody has read."""
        return {name: value for name, value in self.fields.items() if name not in self.noted}


def _without_null_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def one_of(row: Mapping[str, Any], *names: str, what: str = "answers") -> str:
    """The one of the named fields that the row has, the first where it has none; RowError if two of them differ."""
    given = [name for name in names if row.get(name) is not None]
    if any(row[name] != row[given[0]] for name in given[1:]):
        raise RowError(f"fields {', '.join(given)} hold different {what}: leave one")
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


def _words(stems: str) -> re.Pattern[str]:
    """Finds names of which a word begins with a stem: `mask` in is_masked and lossMask; no `train` in constraints."""
    return re.compile(rf"(?:\b|_|(?<=[a-z0-9])(?=[A-Z]))(?i:is|no|non|not|un|dont|do)?(?i:{stems})")


# Keys of a turn or a part that would change what is trained, and are not read; others are notes (id, timestamp).
LOST = _words(
    "mask|train|learn|supervis|loss|weight|ignore|skip|exclu|label|image|video|audio|prefix|refusal|think|thought|reason|"
    r"cot\b|tool|function|call|eot|document"
)
MARKS = _words("mask|loss|weight|train|learn|supervis")  # of a row, where they hold numbers
# Of a row, where they hold true or false; and where they hold one number, for others (weight_kg, train_size) are data.
ROW_SWITCHES = _words("mask|loss|weight|train|learn|supervis|ignore|skip|exclu")
ROW_NUMBERS = _words(
    r"(?:mask(?:ed|ing)?|loss|supervised?)(?:\b|_)|(?:ignored?|skip(?:ped)?|exclu(?:de|ded)|train(?:ed|able)?)\b|"
    r"(?:train|training|sample|example|row|item|instance|data|turn|token)_?weights?\b"
)
TURN = ("role", "from", "content", "value", "name", "tool_call_id", "tool_calls", "function_call")


def chat(row: Mapping[str, Any]) -> Reading | None:
    """The conversation in one of `CONVERSATIONS` that is not null, with the row's tools; None without.

    Raises:
        RowError: see `conversation` and `tool_definitions`.
    """
    given = [name for name in CONVERSATIONS if row.get(name) is not None]
    names = [name for name in given if row[name] or not isinstance(row[name], list | tuple)]
    if given and not names and not any(prompt in row for prompt in PAIRS):
        raise RowError("the conversation is empty")
    if not names:
        return None
    found = conversation(row[one_of(row, *names, what="conversations")], names[0])
    return Reading(with_system(row, found), tools=tool_definitions(row))


SYSTEMS = ("system", "system_prompt", "system_message")


def with_system(row: Mapping[str, Any], turns: Sequence[Message]) -> list[Message]:
    """The turns behind what the row says in `SYSTEMS`; RowError if these differ, or the turns begin otherwise."""
    said = {name: row[name] for name in SYSTEMS if row.get(name)}
    system = text_field(said, one_of(said, *said, what="system messages"), empty=True) if said else ""
    if not system.strip():
        return list(turns)
    if turns and turns[0]["role"] == "system":
        if turns[0]["content"].strip() == system.strip():
            return list(turns)
        raise RowError("the system message beside the turns is not that of the first turn: leave one")
    return [{"role": "system", "content": system}, *turns]


PAIRS = {  # columns of a prompt, and those of its response
    "prompt": ("response", "completion"),
    "question": ("answer", "response"),
    "query": ("response", "answer"),
    "problem": ("solution",),
    "instruction": ("output", "response", "completion"),
}
BESIDE = ("context", "contexts", "passage", "input", "history")  # columns of what belongs to a prompt


def whole(row: NotedRow, reading: Reading) -> Reading:
    """The reading of a row with the row's system message and tools, where its reader has left them.

    Raises:
        RowError: the reader has left what belongs to the prompt, or other turns, or another prompt with its answer.
    """
    left, first = row.left(), next(iter(row.noted), "")
    messages = with_system(left, reading.messages)
    bare = [_bare(message) for message in messages if message["role"] != "system"]
    texts = [message["content"] for message in bare]
    for name in BESIDE:
        value = left.get(name)
        if value and not (isinstance(value, str) and any(_spaced(value) in text for text in texts)):
            answers = [answer for answer in PAIRS.get(first, ()) if answer in row.noted]
            put = f"such as by task.prompt='{{{name}}} {{{first}}}' task.response='{{{answers[0]}}}'" if answers else ""
            raise RowError(
                f"field '{name}' stands beside '{first}' and would be left out: put it in{', ' * bool(put)}{put}"
            )
    for name in CONVERSATIONS:
        if not left.get(name):
            continue
        others = [_bare(message) for message in conversation(left[name], name)]
        with_own = bool(others) and others[0]["role"] == "system"
        if others != ([_bare(message) for message in messages] if with_own else bare):
            raise RowError(f"fields {first}, {name} hold different conversations: leave one")
    for prompt, columns in PAIRS.items():
        for answer in columns:
            asked, said = _texts(row.fields, prompt), _texts(row.fields, answer)
            if not asked or not said:
                continue
            if said[-1] not in (texts[-1:] or [""]) + [_spaced(reading.reference or "")]:
                raise RowError(f"fields {first}, {answer} hold different answers: leave one")
            if not all(any(one in text for text in texts) for one in asked):
                raise RowError(f"fields {first}, {prompt} hold different prompts: leave one")
    return replace(reading, messages=messages, tools=reading.tools or tool_definitions(left))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _bare(message: Message) -> Message:
    """The message to compare: white space does not count."""
    bare: Message = {**message}
    bare["content"] = _spaced(message["content"])
    return bare


def _texts(fields: Mapping[str, Any], name: str) -> list[str]:
    """What a prompt's or a response's field says: a text, or turns; empty for anything else."""
    value = fields.get(name)
    if isinstance(value, str):
        return [text] if (text := _spaced(value)) else []
    turns = isinstance(value, list | tuple) and all(isinstance(turn, Mapping) for turn in value)
    return [_spaced(m["content"]) for m in conversation(value, name) if m["role"] != "system"] if turns else []


NOT_READ = {  # fields of rows of texts that would change what is trained
    "belongs to the assistant's turn (messages)": (
        *NUMBERS,
        *SWITCHES,
        *("loss_weight", "weights", "sample_weight", "sample_weights", "example_weight", "token_weight"),
        *("train_on_inputs", "train_on_turn", "train_on_turns", "trainable", "calculate_loss", "compute_loss"),
        *REASONING,
    ),
    "is read with labels only, and not beside texts": ("input_ids",),
    "goes with input_ids only": ("labels", "loss_mask", "loss_weights", "attention_mask", "position_ids"),
    "is not read: only texts are": ("image", "images", "video", "videos", "audio", "audios"),
    "is not read: preference pairs are no rows to fine-tune on": ("chosen", "rejected"),
    "is not read: the chat template is not handed it (task.think closes a thought)": (
        "chat_template_kwargs",
        "enable_thinking",
        "documents",
    ),
}


def _scalar_marks(value: Any) -> re.Pattern[str] | None:
    """The names under which a value would be a mark of the whole row; a CSV holds its switches and numbers as texts."""
    if isinstance(value, bool) or (isinstance(value, str) and re.fullmatch(r"(?i)\s*(true|false)\s*", value)):
        return ROW_SWITCHES
    number = isinstance(value, int | float) or (isinstance(value, str) and re.fullmatch(r"\s*-?[\d.]+\s*", value))
    return ROW_NUMBERS if number else None


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
        if (pattern := _scalar_marks(value)) and pattern.search(str(name)):
            raise RowError(f"field '{name}' is not read: marks belong to the assistant's turn (messages)")
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
    tools: Any = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _parsed(tools, "field 'tools'")
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("field 'tools' must be a list of definitions")
    for place, tool in enumerate(tools, start=1):
        function = tool.get("function") or tool
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"field 'tools' must be a list of definitions: number {place} has no function's name")
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
    for place, given in enumerate(turns, start=1):
        where, turn = f"field '{name}': turn {place}", _without_null_fields(given)
        roles = [turn[key] for key in ("role", "from") if key in turn] or [None]
        for role in roles:
            if not isinstance(role, str) or role not in ROLES:
                raise RowError(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
        if len({ROLES[role] for role in roles}) > 1:
            raise RowError(f"{where} has the roles {' and '.join(map(repr, roles))}: leave one")
        message = _message(turn, ROLES[roles[0]], where)
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
    if "content" in turn and "value" in turn and turn["content"] != turn["value"]:
        raise RowError(f"{where} has a content and a value that differ: leave one")
    content, parts = _content(turn.get("content", turn.get("value")), assistant, where, empty=calls is not None)
    if assistant and turn.get("channel", "final") not in ("", "final"):
        raise RowError(
            f"{where} is of the channel {turn['channel']!r} and would be trained as an answer: write thoughts as the "
            "'reasoning_content' of the turn that they lead to, calls as its 'tool_calls'"
        )
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


def _content(
    content: Any, assistant: bool, where: str, empty: bool
) -> tuple[str, list[tuple[int, float | None]] | None]:
    """A turn's text, and its parts where one of them is marked; `empty`: there may be none."""
    if content is None and empty:
        return "", None
    if not isinstance(content, list | tuple):
        if not isinstance(content, str):
            raise RowError(f"{where} has no text content")
        return content, None
    parts: list[tuple[int, float | None]] = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RowError(f"{where} has a part of type {kind!r}; only parts of text are read")
        _refuse_lost_marks(part, ("type", "text", *NUMBERS, *SWITCHES), f"{where} has a part that")
        parts.append((len(text), _weight(part, assistant, f"{where} has a part that")))
    marked = any(weight is not None for _, weight in parts)
    return "".join(part["text"] for part in content), parts if marked else None


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
        if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
            value = int(value)  # a gap in a column of whole numbers makes them floats
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


def fields_of(template: str) -> set[str]:
    """The fields that a template names; ValueError if it is none."""
    names = [name for _, name, _, _ in string.Formatter().parse(template) if name]
    return {*names, *(name.split("[")[0] for name in names)}


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
    wanted = [place + 1 for place in places[:-1] if _wanted(conversation[place])]
    if training and keep is Turns.last and wanted:
        raise RowError(
            f"turn {wanted[0]} is marked to be trained, and only the last one is: set task.turns=all (turns='all' of "
            "xtf.score)"
        )
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
    return message.get("weight", 1.0) > 0 and any(w != 0 for size, w in message.get("parts", [(1, None)]) if size)


def _wanted(message: Message) -> bool:
    """Whether a mark says that some of an assistant's turn is trained."""
    return _trained(message) and ("weight" in message or any(w for size, w in message.get("parts", ()) if size))


def example_of(
    name: str, source: str, pair: Pair, row: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...] = ()
) -> Example:
    """A prompt and its answer as an example; `source` is the id of the row."""
    spans, start = [], 0
    for size, weight in pair.answer.get("parts", ()):
        if size and weight is not None and weight != 1:
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
