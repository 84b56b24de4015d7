"""Mathematics: GSM8K (a number) and MATH, MATH-500, NuminaMath (an expression).

    {"question": "Janet's ducks lay 16 eggs per day. ...", "answer": "... 9 * 2 = $<<9*2=18>>18\\n#### 18"}
    {"problem": "Convert the point $(0,3)$ ...", "solution": "... $\\boxed{(3, \\frac{\\pi}{2})}.$"}

Sources: https://github.com/openai/grade-school-math, https://huggingface.co/datasets/HuggingFaceH4/MATH-500,
https://huggingface.co/datasets/AI-MO/NuminaMath-CoT.

Run as a program (`python -m xtf.tasks.math`) this module is the process in which expressions are compared:
SymPy can run for ever on a hostile expression, and only killing a process stops it at a fixed time.
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
    if (conversation := chat(row)) is not None:
        return Reading(conversation)
    raise RowError("needs question and answer (GSM8K), problem and solution (MATH), or messages")
