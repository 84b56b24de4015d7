"""Finance: FiQA, open questions on money, answered freely; graded by a judge model.

    {"instruction": "Offer your thoughts or opinion on ...",
     "input": "What is considered a business expense ...?", "output": "The IRS Guidance ..."}

Source: https://huggingface.co/datasets/hiyouga/fiqa.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.data.examples import Reading, RowError, chat, instruction_turns, text_field, turns


def read(row: Mapping[str, Any]) -> Reading:
    """FiQA's rows, question and answer, and conversations."""
    if "instruction" in row:
        return Reading(instruction_turns(row))
    if "question" in row:
        return Reading(turns(text_field(row, "question"), text_field(row, "answer")))
    if (found := chat(row)) is not None:
        return found
    raise RowError("needs instruction, input and output, or question and answer, or messages")
