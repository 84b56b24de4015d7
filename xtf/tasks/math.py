"""Mathematics: GSM8K, graded by the final number; and rows of MATH's shape, whose answer is an expression.

    {"question": "Janet's ducks lay 16 eggs per day. ...", "answer": "... 9 * 2 = $<<9*2=18>>18\\n#### 18"}
    {"problem": "Convert the point $(0,3)$ ...", "solution": "... $\\boxed{(3, \\frac{\\pi}{2})}.$"}

Sources: https://github.com/openai/grade-school-math (hub: openai/gsm8k),
https://huggingface.co/datasets/AI-MO/NuminaMath-CoT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.data.examples import Reading, RowError, chat, text_field, turns


def read(row: Mapping[str, Any]) -> Reading:
    """GSM8K rows (question, answer) and MATH rows (problem, solution, and the bare answer if it is there)."""
    if "question" in row:
        return Reading(turns(text_field(row, "question"), text_field(row, "answer")))
    if "problem" in row:
        reference = text_field(row, "answer") if isinstance(row.get("answer"), str) else None
        return Reading(turns(text_field(row, "problem"), text_field(row, "solution", "answer")), reference)
    if (found := chat(row)) is not None:
        return found
    raise RowError("needs question and answer (GSM8K), problem and solution (MATH), or messages")
