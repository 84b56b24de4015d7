"""Own data: rows with a prompt and a response in usual columns. Every task without a file of its own is read so.

    {"question": "...", "answer": "..."} (or response), {"query": "...", "response": "..."} (or answer)
    {"problem": "...", "solution": "..."}
    {"prompt": "...", "response": "..."} (or completion; each may be a list of turns)
    {"instruction": "...", "input": "...", "output": "..."} (or context, response)
    {"messages": [{"role": "user", "content": "..."}, ...]}

Other columns: `task.prompt="{title}: {body}" task.response="{label}"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xtf.data.examples import (
    PAIRS,
    Message,
    Reading,
    RowError,
    chat,
    conversation,
    instruction_turns,
    one_of,
    text_field,
)


def read(row: Mapping[str, Any]) -> Reading:
    """A row in any of the forms above."""
    if (found := chat(row)) is not None:
        return found
    if "instruction" in row:
        return Reading(instruction_turns(row))
    for prompt, responses in PAIRS.items():
        if row.get(prompt) is not None:
            return Reading(_asked(row, prompt) + _answered(row, responses))
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
    name = one_of(row, *names)
    if isinstance(row[name], list | tuple):
        return conversation(row[name], name)
    return [{"role": "assistant", "content": text_field(row, name)}]
