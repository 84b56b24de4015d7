"""Python programs: HumanEval, MBPP and CodeExercise; graded by running the tests in the sandbox.

    {"task_id": "HumanEval/0", "prompt": "def has_close_elements(...):\\n    ...",
     "canonical_solution": "    for ...", "test": "def check(candidate):\\n    ...",
     "entry_point": "has_close_elements"}
    {"task_id": 2, "text": "Write a function to find ...", "code": "def similar_elements(...)...",
     "test_list": ["assert similar_elements(...) == ..."], "test_setup_code": ""}
    {"id": 27219, "chat_rounds": [{"role": "human", "content": "..."}, {"role": "bot", "content": "..."}]}

Sources: https://github.com/openai/human-eval,
https://github.com/google-research/google-research/tree/master/mbpp,
https://huggingface.co/datasets/codefuse-ai/CodeExercise-Python-27k (training only: it has no tests).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.data.examples import Reading, RowError, chat, text_field, text_list, turns
from xtf.graders.code import unix_lines


def read(row: Mapping[str, Any]) -> Reading:
    """HumanEval's and MBPP's rows, and conversations (CodeExercise)."""
    if "canonical_solution" in row or "entry_point" in row:
        prompt = "Complete the following Python function.\n\n" + text_field(row, "prompt")
        return Reading(turns(prompt, text_field(row, "canonical_solution")))
    if "test_list" in row:
        tests = "\n".join(text_list(row, "test_list"))
        prompt = f"{text_field(row, 'text', 'prompt')}\nYour code should pass these tests:\n{tests}"
        return Reading(turns(unix_lines(prompt), unix_lines(text_field(row, "code"))))
    if (found := chat(row)) is not None:
        return found
    raise RowError(
        "needs prompt, canonical_solution, test, entry_point (HumanEval), or text, code, test_list (MBPP), or messages"
    )
