"""Own data: rows with a prompt and a response in usual columns. Every task without a file of its own is read so.

    {"question": "...", "answer": "..."}
    {"prompt": "...", "response": "..."} (or completion; each may be a list of turns)
    {"instruction": "...", "input": "...", "output": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}

Other columns: `task.prompt="{title}: {body}" task.response="{label}"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xtf.data.examples import (
    Message,
    Reading,
    RowError,
    chat,
    conversation,
    instruction_turns,
    text_field,
    tool_definitions,
)


def read(row: Mapping[str, Any]) -> Reading:
    """A row in any of the forms above."""
    if (found := chat(row)) is not None:
        return found
    if "instruction" in row:
        return Reading(instruction_turns(row))
    for prompt, responses in (("prompt", ("response", "completion")), ("question", ("answer",))):
        if row.get(prompt) is not None:
            asked = _asked(row, prompt)
            tools = tool_definitions(row) if isinstance(row[prompt], list | tuple) else ()
            return Reading(asked + _answered(row, responses), tools=tools)
    raise RowError(
        f"no known columns in ({', '.join(map(str, row))}): name yours with "
        "task.prompt='{your_column}' and task.response='{your_column}'"
    )


def _asked(row: Mapping[str, Any], name: str) -> list[Message]:
    """A prompt: a text, or a list of turns as TRL has it."""
    if isinstance(row[name], list | tuple):
        return conversation(row[name], name)
    return [{"role": "user", "content": text_field(row, name)}]


def _answered(row: Mapping[str, Any], names: Sequence[str]) -> list[Message]:
    name = next((name for name in names if row.get(name) is not None), names[0])
    if isinstance(row.get(name), list | tuple):
        return conversation(row[name], name)
    return [{"role": "assistant", "content": text_field(row, *names)}]
