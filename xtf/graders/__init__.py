"""Graders by name: a completion -> right, wrong or not gradable."""

from __future__ import annotations

from pathlib import Path

from xtf.config.schema import TaskConfig
from xtf.graders.base import Grader
from xtf.graders.python import PythonGrader
from xtf.graders.text import TextGrader

GRADERS = ("number", "math", "exact", "contains", "choice", "decision", "code", "judge")


def load_grader(config: TaskConfig, output_dir: Path) -> Grader:
    """The grader that `task.grader` names; ValueError for an unknown one, or for settings that do not fit."""
    from xtf.graders import choice, code, expression, judge, number

    if config.choices and config.grader != "choice":
        raise ValueError(f"task.choices is read by task.grader=choice only, not by {config.grader}")
    match config.grader:
        case "number":
            return number.NumberGrader()
        case "math":
            return expression.MathGrader()
        case "exact" | "contains":
            return TextGrader(config.grader)
        case "choice":
            return choice.ChoiceGrader(config.choices)
        case "decision":
            return choice.ChoiceGrader(choice.DECISIONS)
        case "code":
            return code.CodeGrader(config.sandbox, config.pass_at, config.samples)
        case "judge":
            return judge.JudgeGrader(config.judge, Path(config.judge.cache or output_dir / "judge"))
    if config.grader.startswith("python:"):
        return PythonGrader(config.grader.removeprefix("python:"))
    raise ValueError(f"unknown task.grader {config.grader!r}: one of {', '.join(GRADERS)}, python:module.function")
