"""Tasks by name: a dataset's rows -> examples, and completions -> grades.

A task is a *reader* (a dataset's row -> a conversation that ends with the answer to learn) and a *grader* (a
completion -> right, wrong or not gradable). Readers live here, one file per dataset; graders are chosen by name
(`task.grader`), so that own data can use any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example, Message, Reading, RowError, render, split_turns
from xtf.data.rows import Rows, _first, row_id
from xtf.graders import load_grader
from xtf.graders.base import Grade, Grader, Item
from xtf.graders.metrics import Metric


@dataclass(frozen=True)
class Task:
    """Rows -> examples, and completions -> grades and metrics."""

    config: TaskConfig
    read: Callable[[Mapping[str, Any]], Reading]
    grader: Grader

    def check(self) -> None:
        """Refuses a set-up in which grading cannot work; call it before training."""
        self.grader.check()

    def examples(self, rows: Rows, *, training: bool = True) -> list[Example]:
        """Every row as one example (several with `turns=all`), in order.

        For training a response is needed; for evaluation (`training=False`) a key that the grader can read.
        ValueError that counts and lists the rows that cannot be used: none is dropped.
        """
        examples: list[Example] = []
        bad: list[str] = []
        for row, number in zip(rows.rows, rows.numbers, strict=True):
            try:
                found = self._examples_of(row, number, training)
                if not training:
                    for example in found:
                        self.reference(example)
            except (RowError, ValueError) as error:
                bad.append(f"  row {number}: {error}")
            else:
                examples.extend(found)
        if bad:
            listing = "\n".join(bad[:10] + ([f"  ... and {len(bad) - 10} more"] if len(bad) > 10 else []))
            raise ValueError(
                f"{rows.source}: {len(bad)} of {len(rows)} rows cannot be used:\n{listing}\n"
                "Mend them, or leave them out by id (task.train.exclude_ids, task.eval.exclude_ids)."
            )
        doubled = [key for key, count in Counter(example.example_id for example in examples).items() if count > 1]
        if doubled:
            raise ValueError(f"{rows.source}: {len(doubled)} ids occur more than once: {_first(doubled)}")
        return examples

    def _examples_of(self, row: Mapping[str, Any], number: int, training: bool) -> list[Example]:
        conversation = list(self._reading(row, training).messages)
        if self.config.system:
            if conversation and conversation[0]["role"] == "system":
                raise RowError("the row has a system message of its own, and task.system is set too: unset one")
            conversation.insert(0, {"role": "system", "content": self.config.system})
        pairs = split_turns(conversation, self.config.turns, training)
        name = row_id(row, number)
        names = [name] if len(pairs) == 1 else [f"{name}#{turn}" for turn in range(1, len(pairs) + 1)]
        return [Example(name, prompt, response, row) for name, (prompt, response) in zip(names, pairs, strict=True)]

    def _reading(self, row: Mapping[str, Any], training: bool) -> Reading:
        if self.config.prompt is None:
            return self.read(row)
        prompt: Message = {"role": "user", "content": render(self.config.prompt, row)}
        if self.config.response is None and not training:
            return Reading([prompt])
        if self.config.response is None:
            raise RowError("task.prompt is set, task.response is not: both are needed to train")
        return Reading([prompt, {"role": "assistant", "content": render(self.config.response, row)}])

    def _reference_text(self, example: Example) -> str:
        if self.config.reference is not None:
            return render(self.config.reference, example.row)
        reading = self._reading(example.row, training=False)
        return example.response if reading.reference is None else reading.reference

    def reference(self, example: Example) -> str:
        """The key that completions of this example are compared with; ValueError if the row holds none."""
        return self.grader.reference(example, self._reference_text(example))

    def grade(self, items: Sequence[tuple[Example, str]]) -> list[Grade]:
        """One grade per (example, completion), in order."""
        return self.grader.grade([Item(example, text, self.reference(example)) for example, text in items])

    def metrics(self, examples: Sequence[Example], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """Figures over all examples; `grades[i]` are the grades of the samples for `examples[i]`."""
        return self.grader.metrics([self.reference(example) for example in examples], grades)

    def system_info(self) -> dict[str, Any]:
        return {"grader": self.config.grader, **self.grader.system_info()}


def load_task(config: TaskConfig, output_dir: str = "outputs") -> Task:
    """The reader for the task's name (own names read own data) and the grader that the config asks for.

    `output_dir` is where a judge's verdicts are kept, unless the config says otherwise.
    """
    from xtf.tasks import code, custom, finance, math, medical

    readers = {
        "math": math.read,
        "math500": math.read,
        "code": code.read,
        "medical": medical.read,
        "finance": finance.read,
    }
    return Task(config, readers.get(config.name, custom.read), load_grader(config, Path(output_dir)))
