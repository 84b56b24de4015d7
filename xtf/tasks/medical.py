"""Medicine: PubMedQA, a question on an abstract, answered with a reason and then yes, no or maybe.

    {"pubid": 21645374, "question": "Do mitochondria play a role in ...?",
     "context": {"contexts": ["...", "..."]}, "long_answer": "Results depicted ...", "final_decision": "yes"}

Sources: https://github.com/pubmedqa/pubmedqa (ori_pqal.json: the same fields in capitals),
https://huggingface.co/datasets/qiaojin/PubMedQA, and rewritten copies with instruction, input, output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.data.examples import Reading, RowError, chat, instruction_turns, text_field, turns
from xtf.graders.choice import DECISIONS


def read(row: Mapping[str, Any]) -> Reading:
    """PubMedQA's rows as published, rewritten ones, questions with an answer, and conversations."""
    if "final_decision" in row:
        question = text_field(row, "question", "QUESTION")
        decision = text_field(row, "final_decision").strip().lower()
        if decision not in DECISIONS:
            raise RowError(f"field 'final_decision' must be yes, no or maybe, not {decision!r}")
        prompt = "\n".join(_contexts(row)) + f"\n\nQuestion: {question}\nAnswer with the reason, then yes, no or maybe."
        response = f"{text_field(row, 'long_answer', 'LONG_ANSWER')}\n\nDecision: {decision}"
        return Reading(turns(prompt, response), reference=decision)
    if "instruction" in row:
        return Reading(instruction_turns(row))
    if (found := chat(row)) is not None:
        return found
    if "question" in row and "answer" in row:
        return Reading(turns(text_field(row, "question"), text_field(row, "answer")))
    raise RowError(
        "needs question, context, long_answer and final_decision (PubMedQA), instruction and output, or question and "
        "answer"
    )


def _contexts(row: Mapping[str, Any]) -> list[str]:
    context = row.get("context", row.get("CONTEXTS"))
    contexts = context.get("contexts") if isinstance(context, Mapping) else context
    if isinstance(contexts, str):
        contexts = [contexts]
    if not isinstance(contexts, list) or not contexts or not all(isinstance(part, str) for part in contexts):
        raise RowError("field 'context' (or CONTEXTS) must hold the abstract's paragraphs, as a list of texts")
    return contexts
