"""Own data: rows with a prompt and a response in usual columns, or any columns through templates; and the
graders.

    {"question": "...", "answer": "..."}
    {"prompt": "...", "response": "..."} (or completion)
    {"instruction": "...", "input": "...", "output": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}

Other columns: `task.prompt="{title}: {body}" task.response="{label}"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.data.examples import Reading, RowError, chat, instruction_turns, text_field, turns


def read(row: Mapping[str, Any]) -> Reading:
    if (conversation := chat(row)) is not None:
        return Reading(conversation)
    if "instruction" in row:
        return Reading(instruction_turns(row))
    for prompt, responses in (("prompt", ("response", "completion")), ("question", ("answer",))):
        if prompt in row:
            return Reading(turns(text_field(row, prompt), text_field(row, *responses)))
    raise RowError(
        f"no known columns in ({', '.join(map(str, row))}): name yours with "
        "task.prompt='{your_column}' and task.response='{your_column}'"
    )
