"""Tasks by name: a dataset's rows -> examples, and completions -> grades.

A task is a *reader* (a dataset's row -> a conversation that ends with the answer to learn) and a *grader* (a
completion -> right, wrong or not gradable). Readers live here, one file per dataset, found by the task's name: a new
task is `xtf/tasks/<name>.py` with a function `read(row) -> Reading` and `conf/task/<name>.yaml`. Graders are chosen
by name (`task.grader`), so that own data can use any of them.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.identity import nearest
from xtf.config.schema import ConfigError, TaskConfig, Turns
from xtf.data.examples import (
    Example,
    Message,
    NotedRow,
    Reading,
    RowError,
    example_of,
    fields_of,
    refuse_lost,
    render,
    split_turns,
    texts_of,
    tool_definitions,
    whole,
    with_system,
)
from xtf.data.rows import NESTED, Rows, frame_rows, plain_row, plain_rows, refuse_repeated, row_id
from xtf.graders import GRADERS, asking, graded, load_grader
from xtf.graders.base import Grade, Grader, Item
from xtf.graders.metrics import Metric
from xtf.runtime.imports import import_named, installed

Reader = Callable[[Mapping[str, Any]], Reading]

WRONG = "I do not know."  # where no other row has another answer
LISTED = 10  # rows that cannot be used, in a message


@dataclass(frozen=True)
class Task:
    """Rows -> examples, and completions -> grades and metrics."""

    config: TaskConfig
    read: Reader
    grader: Grader

    def check(self, examples: Sequence[Example] = ()) -> None:
        """Refuses a set-up in which grading cannot work; call it before training, with the evaluation's `examples`.

        A grader of the user's own is tried on the first of them: on its response, on that of another one, which is
        wrong, and on nothing at all.

        Raises:
            ValueError: what is missing, or what the user's grader did.
        """
        with asking(self.config.grader, "check"):
            self.grader.check()
        if not examples or self.config.grader in GRADERS:
            return
        example, right = examples[0], self._answer(examples[0])
        wrong = next((said for other in examples if (said := self._answer(other)) != right), WRONG)
        verdicts = {}
        for what, completion in {"its own": right, "a wrong": wrong, "an empty": ""}.items():
            try:
                verdicts[what] = self.grade([(example, completion)])[0].correct
            except ValueError as error:
                raise ValueError(
                    f"{error} (the first row, tried with {what} answer before anything is trained)"
                ) from error
        if list(verdicts.values()) == [True, None, None]:
            raise ValueError(
                f"task.grader={self.config.grader} has no verdict (None) on a wrong and on an empty answer to the "
                "first row: return False where an answer is wrong, and None only where grading failed"
            )

    def _answer(self, example: Example) -> str:
        return example.response or self.reference(example)

    def examples(self, rows: Rows, *, training: bool = True) -> list[Example]:
        """Every row as one example (several with `turns=all`), in order.

        For training a response is needed; for evaluation (`training=False`) a key that the grader can read.
        ValueError that counts and lists the rows that cannot be used: none is dropped.
        """
        return list(self.iterate(rows, training=training))

    def iterate(self, rows: Rows, *, training: bool = True) -> Iterator[Example]:
        """`examples` one at a time; what is wrong with any of the rows is raised behind the last."""
        from xtf.data.batches import Hashes

        bad: list[str] = []
        count, ids = 0, Hashes()
        for row, number in zip(rows.rows, rows.numbers, strict=True):
            try:
                found = self._examples_of(row, number, training)
                if not training:
                    for example in found:
                        self.reference(example)
            except (ValueError, OverflowError, RecursionError) as error:
                count += 1
                if len(bad) < LISTED:
                    bad.append(f"  row {number}: {NESTED if isinstance(error, RecursionError) else error}")
            else:
                ids.extend(hash(example.example_id) for example in found)
                yield from found
        if bad:
            listing = "\n".join(bad + ([f"  ... and {count - LISTED} more"] if count > LISTED else []))
            raise ValueError(
                f"{rows.source}: {count} of {len(rows)} rows cannot be used:\n{listing}\n"
                "Mend them, or leave them out"
                + (" by id (task.train.exclude_ids, task.eval.exclude_ids)." if rows.sha256 else ".")
            )

        def again() -> Iterator[str]:
            for row, number in zip(rows.rows, rows.numbers, strict=True):
                yield from (example.example_id for example in self._examples_of(row, number, training))

        refuse_repeated(rows.source, ids, again)

    def _examples_of(self, row: Mapping[str, Any], number: int, training: bool) -> list[Example]:
        reading = self._reading(row, training)
        conversation = list(reading.messages)
        if self.config.system:
            if conversation and conversation[0]["role"] == "system":
                raise RowError("the row has a system message of its own, and task.system is set too: unset one")
            conversation.insert(0, {"role": "system", "content": self.config.system})
        texts_of(conversation)
        pairs = split_turns(conversation, self.config.turns, training)
        name = row_id(row, number)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise RowError(f"the id {name!r} holds half a character, {name[error.start]!r}: mend it") from error
        names = [name] if len(pairs) == 1 else [f"{name}#{turn}" for turn in range(1, len(pairs) + 1)]
        return [example_of(each, name, pair, row, reading.tools) for each, pair in zip(names, pairs, strict=True)]

    def _reading(self, row: Mapping[str, Any], training: bool) -> Reading:
        if self.config.prompt is None:
            return self.read(row)
        prompt: Message = {"role": "user", "content": render(self.config.prompt, row)}
        turns = [prompt]
        if self.config.response is not None:
            turns.append({"role": "assistant", "content": render(self.config.response, row)})
        elif training:
            raise RowError("task.prompt is set, task.response is not: both are needed to train")
        templates = (self.config.prompt, self.config.response or "", self.config.reference or "")
        named = set().union(*map(fields_of, templates))
        left = {name: value for name, value in row.items() if name not in named}
        refuse_lost(left)
        return Reading(with_system(left, turns), tools=tool_definitions(left))

    def reference(self, example: Example) -> str:
        """The key that completions of this example are compared with.

        Raises:
            ValueError: the row holds none.
        """
        if self.config.reference is not None:
            text = render(self.config.reference, example.row)
        else:
            stated = self._reading(example.row, training=False).reference
            text = example.response if stated is None else stated
        with asking(self.config.grader, "reference"):
            return self.grader.reference(example, text)

    def grade(self, items: Sequence[tuple[Example, str]]) -> list[Grade]:
        """One grade per (example, completion), in order.

        Raises:
            ValueError: a grader of the user's own failed, or gave something else.
        """
        known = [Item(example, text, self.reference(example)) for example, text in items]
        return graded(self.config.grader, self.grader, known)

    @property
    def names_answers(self) -> bool:
        """Whether the grader says which part of a response it reads."""
        names = getattr(self.grader, "names_answers", None)
        return names is not None and bool(names())

    def check_names_answers(self) -> None:
        """Refuses `threshold.protect=answer` where the grader does not say what it reads.

        Raises:
            ConfigError: with the graders that do.
        """
        if not self.names_answers:
            raise ConfigError(
                f"threshold.protect=answer keeps what the grader reads, and task.grader={self.config.grader} does not "
                "say what that is (number, math, choice, decision, code and own ones with answer_spans do): unset it"
            )

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """Characters [start, end) of an example's response that the grader reads; see `Grader.answer_spans`."""
        with asking(self.config.grader, "answer_spans"):
            return self.grader.answer_spans(example)

    def metrics(self, examples: Sequence[Example], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """Figures over all examples; `grades[i]` are the grades of the samples for `examples[i]`."""
        references = [self.reference(example) for example in examples]
        with asking(self.config.grader, "metrics"):
            return self.grader.metrics(references, grades)

    def system_info(self) -> dict[str, Any]:
        """What the run's record says about how grading was done."""
        with asking(self.config.grader, "system_info"):
            return {"grader": self.config.grader, **self.grader.system_info()}


def load_task(config: TaskConfig, output_dir: str = "outputs") -> Task:
    """The reader and the grader that the config asks for.

    `output_dir` is where a judge's verdicts are kept, unless the config says otherwise.

    Raises:
        ValueError: an unknown reader or grader, or settings that do not fit them.
    """
    return Task(config, load_reader(config), load_grader(config, Path(output_dir)))


def as_rows(items: Any) -> list[Mapping[str, Any] | Example]:
    """Own data as a list in memory: mappings or examples, a `datasets.Dataset`, also a streaming one, which is read to
    its end, or a pandas DataFrame.

    Raises:
        ValueError: a DatasetDict or something else that is no rows.
    """
    import datasets

    if isinstance(items, Mapping):
        raise ValueError(f"one set of rows is needed, not several ({', '.join(map(str, items))}): give one of them")
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise ValueError(f"rows are needed (mappings, a Dataset or a DataFrame), not {type(items).__name__}")
    given: list[Mapping[str, Any] | Example]
    if isinstance(items, datasets.Dataset):
        given = [*plain_rows(items.with_format("arrow")[:])]
    elif isinstance(items, datasets.IterableDataset):
        given = list(items.with_format(None))
    elif hasattr(items, "iterrows"):  # a pandas DataFrame
        given = [*frame_rows(items)]
    else:
        given = list(items)
    if others := [place for place, item in enumerate(given, 1) if not isinstance(item, Mapping | Example)]:
        raise ValueError(f"row {others[0]} is a {type(given[others[0] - 1]).__name__}, not a mapping of fields")
    return [*given]


def as_examples(items: Any, turns: Turns = Turns.last) -> list[Example]:
    """What `as_rows` takes as training examples: the forms that the command line reads from files (`xtf.tasks.custom`).

    A row's id is the first of its fields `xtf.data.rows.ID_FIELDS`, else its number from 1.

    Raises:
        ValueError: as `as_rows`; naming the rows that cannot be used.
    """
    given = as_rows(items)
    own = {}
    for number, item in enumerate(given, start=1):
        try:
            if not isinstance(item, Example):
                own[number] = plain_row(item)
        except RecursionError as error:
            raise ValueError(f"row {number}: {NESTED}") from error
    task = load_task(TaskConfig(name="custom", grader="exact", turns=turns))
    rows = Rows([*own.values()], [*own], "the examples given", "")
    read = itertools.groupby(task.examples(rows), key=lambda example: id(example.row))
    return [example for item in given for example in ([item] if isinstance(item, Example) else next(read)[1])]


def load_reader(config: TaskConfig) -> Reader:
    """`read` of the file in `xtf/tasks/` that `task.reader` or else the task's name names, or an own function: by its
    dotted path, or the name that an installed package gives it.

    A task with a name of its own and no reader of its own is read as own data, by `custom`.

    Raises:
        ValueError: an unknown `task.reader`, or one beside `task.prompt`, which reads rows too.
    """
    if config.reader is not None and config.prompt is not None:
        raise ValueError(
            f"task.reader={config.reader} and task.prompt both say how a row is read: unset one (task.reader=null)"
        )
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    others = installed("xtf.tasks", known)
    path = others.get(config.reader or config.name, config.reader)
    if path is not None and "." in path:
        key = f"task.reader={config.reader or config.name}"
        return _own_reader(path, import_named(key, path, "a file of xtf/tasks or module.function"))
    if config.reader is not None and config.reader not in known:
        raise ValueError(
            f"unknown task.reader {config.reader!r}{nearest(config.reader, [*known, *others])}: one of "
            f"{', '.join([*known, *others])}, or a function of yours, module.function"
        )
    name = config.reader or (config.name if config.name in known else "custom")
    reader: Reader = importlib.import_module(f"{__name__}.{name}").read

    def read(row: Mapping[str, Any]) -> Reading:
        refuse_lost(row)
        noted = NotedRow(row)
        return whole(noted, reader(noted))

    return read


def _own_reader(path: str, function: Callable[..., Any]) -> Reader:
    """`function`, with what goes wrong in it told as what is wrong with the row."""

    def read(row: Mapping[str, Any]) -> Reading:
        try:
            reading = function(row)
        except RowError:
            raise
        except Exception as error:  # somebody else's code can raise anything; the row's number is what helps
            raise RowError(f"{path}: {error!r}") from error
        if not isinstance(reading, Reading):
            raise RowError(f"{path} must return an xtf.data.examples.Reading, not {type(reading).__name__}")
        return reading

    return read
