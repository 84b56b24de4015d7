"""Own data: rows with a prompt and a response in usual columns, or any columns through templates; and the
graders.

    {"question": "...", "answer": "..."}
    {"prompt": "...", "response": "..."} (or completion)
    {"instruction": "...", "input": "...", "output": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}

Other columns: `task.prompt="{title}: {body}" task.response="{label}"`.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xtf.config import TaskConfig
from xtf.tasks.base import (
    Example,
    Grade,
    Grader,
    Item,
    Metric,
    Reading,
    RowError,
    accuracy_metrics,
    chat,
    final_part,
    instruction_turns,
    text_field,
    turns,
)

GRADERS = ("number", "math", "exact", "contains", "choice", "decision", "code", "judge")


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


def load_grader(config: TaskConfig, output_dir: Path) -> Grader:
    """The grader that `task.grader` names; ValueError for an unknown one, or for settings that do not fit."""
    from xtf.tasks import choice, code, judge, math, medical

    if config.choices and config.grader != "choice":
        raise ValueError(f"task.choices is read by task.grader=choice only, not by {config.grader}")
    match config.grader:
        case "number":
            return math.NumberGrader()
        case "math":
            return math.MathGrader()
        case "exact" | "contains":
            return TextGrader(config.grader)
        case "choice":
            return choice.ChoiceGrader(config.choices)
        case "decision":
            return choice.ChoiceGrader(medical.DECISIONS)
        case "code":
            return code.CodeGrader(config.sandbox, config.pass_at, config.samples)
        case "judge":
            return judge.JudgeGrader(config.judge, Path(config.judge.cache or output_dir / "judge"))
    if config.grader.startswith("python:"):
        return PythonGrader(config.grader.removeprefix("python:"))
    raise ValueError(
        f"unknown task.grader {config.grader!r}: one of {', '.join(GRADERS)}, python:module.function"
    )


def normal(text: str) -> str:
    """Unicode composed (NFC), runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


class TextGrader:
    """`exact`: the same text; `contains`: the reference occurs in it, in any case. Both up to white space."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        if not normal(text):
            raise RowError("the reference is empty")
        return normal(text)

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        said = normal(final_part(item.completion))
        if not said:
            return Grade(False, None, "empty")
        right = said == item.reference
        if self.rule == "contains":
            right = item.reference.casefold() in said.casefold()
        return Grade(right, said, f"{self.rule}: {'yes' if right else 'no'}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}


class PythonGrader:
    """The user's own function(completion, reference, row) -> bool, None (no verdict) or Grade."""

    def __init__(self, path: str) -> None:
        module, _, name = path.rpartition(".")
        try:
            self.function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"task.grader=python:{path}: {error}. Give python:module.function, with the module on "
                "PYTHONPATH or installed"
            ) from error
        self.path = path

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        return text

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        try:
            verdict = self.function(item.completion, item.reference, dict(item.example.row))
        except Exception as error:
            raise RuntimeError(
                f"{self.path} failed on example {item.example.example_id!r}: {error!r}"
            ) from error
        if isinstance(verdict, Grade):
            return verdict
        if verdict is None or isinstance(verdict, bool):
            return Grade(verdict, item.completion, self.path)
        raise TypeError(f"{self.path} must return True, False, None or a Grade, not {verdict!r}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}
