"""The user's own function as a grader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example
from xtf.graders.base import Grade, Grader, Item
from xtf.runtime.imports import import_named


class PythonGrader(Grader):
    """The user's own function(completion, reference, row) -> bool, None (no verdict) or Grade.

    It may have an attribute `answer_spans`, a function(response, row) that says what it reads (`Grader.answer_spans`).
    """

    def __init__(self, path: str) -> None:
        form = "python:module.function"
        self.function: Callable[..., Any] = import_named(f"task.grader=python:{path}", path, form)
        self.path = path

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> PythonGrader:
        return cls(config.grader.removeprefix("python:"))

    def reference(self, example: Example, text: str) -> str:
        return text

    def names_answers(self) -> bool:
        return callable(getattr(self.function, "answer_spans", None))

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """What `function.answer_spans(response, row)` gives."""
        spans = self.function.answer_spans(example.response, dict(example.row))  # type: ignore[attr-defined]
        return [(int(start), int(end)) for start, end in spans]

    def verdict(self, item: Item) -> Grade:
        verdict = self.function(item.completion, item.reference, dict(item.example.row))
        if not isinstance(verdict, bool | np.bool_ | Grade | None):
            raise ValueError(f"{self.path} must return True, False, None or a Grade, not {verdict!r}")
        return verdict if isinstance(verdict, Grade) else Grade(verdict, item.completion, self.path)  # type: ignore[arg-type]
