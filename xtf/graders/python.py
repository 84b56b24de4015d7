"""The user's own function as a grader."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from xtf.data.examples import Example
from xtf.graders.base import Grade, Item, accuracy_metrics
from xtf.graders.metrics import Metric


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
            raise RuntimeError(f"{self.path} failed on example {item.example.example_id!r}: {error!r}") from error
        if isinstance(verdict, Grade):
            return verdict
        if verdict is None or isinstance(verdict, bool):
            return Grade(verdict, item.completion, self.path)
        raise TypeError(f"{self.path} must return True, False, None or a Grade, not {verdict!r}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}
