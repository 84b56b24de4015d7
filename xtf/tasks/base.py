"""What every task shares: rows from a file or the hub, examples with a prompt and a response, grades,
metrics.

A task is a *reader* (a dataset's row -> a conversation that ends with the answer to learn) and a *grader* (a
completion -> right, wrong or not gradable). Readers live in one file per task; graders are chosen by name
(`task.grader`), so that own data can use any of them.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

from xtf.config import PlantKind, SourceConfig, TaskConfig, Turns

ID_FIELDS = ("id", "example_id", "task_id", "unique_id", "pubid")
BOOTSTRAP_RESAMPLES = 2000
Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


class Message(TypedDict):
    role: str  # system, user or assistant
    content: str


@dataclass(frozen=True)
class PlantedSpan:
    """Characters [start, end) of a response that `xtf.planting` wrote, and the clean text in their place."""

    start: int
    end: int
    kind: PlantKind
    replaced: str  # empty where text was only added


@dataclass(frozen=True)
class Example:
    """One item: the prompt's turns (the last one is the user's) and the response to learn."""

    example_id: str
    messages: tuple[Message, ...]
    response: str
    row: Mapping[str, Any] = field(repr=False)  # the raw row: what a grader may need beside the response
    planted: tuple[PlantedSpan, ...] = ()  # noise in the response, in order


@dataclass(frozen=True)
class Grade:
    correct: bool | None  # None: no verdict (the judge failed), never counted as wrong
    extracted: str | None  # what the grader took to be the answer; None: it found none
    reason: str


@dataclass(frozen=True)
class Metric:
    """A figure with its 95 % interval; `n` is the number of items behind it."""

    value: float
    low: float
    high: float
    n: int
    interval: str
    unit: str = "share"  # or nats


@dataclass(frozen=True)
class Item:
    """What a grader sees: the example, the model's completion of its prompt, and the text to compare with."""

    example: Example
    completion: str
    reference: str


class Grader(Protocol):
    """Right or wrong. Batches, because some graders run processes or requests side by side."""

    def check(self) -> None:
        """Refuses, before any training, a set-up in which `grade` cannot work (no sandbox, no judge)."""

    def reference(self, example: Example, text: str) -> str:
        """What completions are compared with, read from the reference `text`; ValueError if it has none."""

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """One grade per item, in order."""

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """Figures over all examples; `grades[i]`: those of example i's samples, `references[i]` its key."""

    def system_info(self) -> dict[str, Any]:
        """What the run's record should say about how grading was done."""


class RowError(ValueError):
    """What is wrong with one row; `Task.examples` collects these and names file and row."""


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of one source after `ids`, `exclude_ids` and `limit`.

    `numbers[i]` is the 1-based place of `rows[i]` in the source (the line, for JSONL); `sha256` is over the
    rows kept, as canonical JSON, so that it does not depend on the file's format and changes with every
    filter.
    """

    rows: list[dict[str, Any]]
    numbers: list[int]
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def row_id(row: Mapping[str, Any], number: int) -> str:
    """The row's own id (the first of `ID_FIELDS` that holds a string or an integer), else its row number."""
    for name in ID_FIELDS:
        if isinstance(row.get(name), str | int):
            return str(row[name])
    return str(number)


def load_rows(source: SourceConfig) -> Rows:
    """Reads a JSONL, JSON, CSV or Parquet file (optionally .gz), or a split of a dataset on the hub.

    ValueError for a source that is missing, unreadable, empty or emptied by its filters, and for ids that it
    lacks.
    """
    if source.path:
        name, numbered = source.path, _read_file(Path(source.path).expanduser())
    elif source.hub:
        name, numbered = _hub_name(source), _read_hub(source)
    else:
        raise ValueError(
            "no data given: set task.train.path (or .hub), and task.eval.path (or .hub) likewise"
        )
    if not numbered:
        raise ValueError(f"{name}: no rows in it")
    if source.ids:
        numbered = _keep_ids(numbered, source.ids, name)
    if source.exclude_ids:
        numbered = _drop_ids(numbered, source.exclude_ids, name)
    if source.limit is not None:
        if source.limit < 1:
            raise ValueError(f"limit must be at least 1, not {source.limit}")
        numbered = numbered[: source.limit]
    digest = hashlib.sha256()
    for _, row in numbered:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return Rows([row for _, row in numbered], [number for number, _ in numbered], name, digest.hexdigest())


Numbered = list[tuple[int, dict[str, Any]]]


def _read_file(path: Path) -> Numbered:
    if not path.is_file():
        raise ValueError(f"data file not found: {path} (looked for {path.absolute()})")
    suffixes = path.suffixes
    zipped = bool(suffixes) and suffixes[-1] == ".gz"
    kind = (suffixes[-2:-1] if zipped else suffixes[-1:]) or [""]
    readers = {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv, ".parquet": _parse_parquet}
    if kind[0] not in readers:
        raise ValueError(f"{path}: the name must end in {', '.join(readers)}, optionally followed by .gz")
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if zipped else content
        if not content.strip():
            raise ValueError("the file is empty")
        return readers[kind[0]](content)
    except (
        OSError,
        EOFError,
        ValueError,
        csv.Error,
    ) as error:  # ValueError: JSON, Unicode and Arrow errors too
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _parse_jsonl(content: bytes) -> Numbered:
    numbered = []
    for number, line in enumerate(io.StringIO(content.decode("utf-8-sig"), newline=None), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"row {number}: {error}") from error
            numbered.append((number, _object(row, number)))
    return numbered


def _parse_json(content: bytes) -> Numbered:
    """A list of objects, or one object keyed by id, whose rows get their key as `id`."""
    data = json.loads(content.decode("utf-8-sig"))
    if isinstance(data, dict):
        data = [
            {"id": key, **_object(row, number)} for number, (key, row) in enumerate(data.items(), start=1)
        ]
    if not isinstance(data, list):
        raise ValueError(f"a list of objects or an object keyed by id is needed, not {type(data).__name__}")
    return [(number, _object(row, number)) for number, row in enumerate(data, start=1)]


def _parse_csv(content: bytes) -> Numbered:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    numbered = []
    for number, row in enumerate(reader, start=1):
        if None in row:
            raise ValueError(f"row {number}: more values than the header has names")
        numbered.append((number, {name: value for name, value in row.items() if value is not None}))
    return numbered


def _parse_parquet(content: bytes) -> Numbered:
    import pyarrow.parquet

    return list(enumerate(pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist(), start=1))


def _object(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"row {number}: an object with named fields is needed, not {type(row).__name__}")
    return row


def _hub_name(source: SourceConfig) -> str:
    return f"{source.hub}{f'/{source.subset}' if source.subset else ''}[{source.split}]"


def _read_hub(source: SourceConfig) -> Numbered:
    import datasets

    try:
        data = datasets.load_dataset(
            source.hub, name=source.subset, split=source.split, revision=source.revision
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:  # OSError: no connection, no such file
        raise ValueError(
            f"the dataset {_hub_name(source)} is neither in the cache {datasets.config.HF_DATASETS_CACHE} "
            f"nor reachable on the hub ({type(error).__name__}: {error}). Fetch it with "
            f"datasets.load_dataset({source.hub!r}, {source.subset!r}) where there is a network, or give a "
            "file: task.train.path, task.eval.path"
        ) from error
    except ValueError as error:  # an unknown subset or split; the library's message lists the valid ones
        raise ValueError(f"{_hub_name(source)}: {error}") from error
    return list(enumerate((dict(row) for row in data), start=1))


def _id_set(path: str) -> set[str]:
    file = Path(path).expanduser()
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read as a JSON list of ids or an object keyed by id: {error}"
        ) from error
    if not isinstance(data, list | dict) or not data:
        raise ValueError(
            f"{path}: a JSON list of ids or an object keyed by id is needed, with at least one id"
        )
    return {str(key) for key in data}


def _keep_ids(numbered: Numbered, path: str, name: str) -> Numbered:
    wanted = _id_set(path)
    kept = [(number, row) for number, row in numbered if row_id(row, number) in wanted]
    missing = wanted - {row_id(row, number) for number, row in kept}
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(wanted)} ids of {path} are not in it: {_first(missing)}"
        )
    return kept


def _drop_ids(numbered: Numbered, path: str, name: str) -> Numbered:
    unwanted = _id_set(path)
    kept = [(number, row) for number, row in numbered if row_id(row, number) not in unwanted]
    if len(kept) == len(numbered):
        raise ValueError(f"{name}: none of the {len(unwanted)} ids of {path} is in it: {_first(unwanted)}")
    if not kept:
        raise ValueError(f"{name}: leaving out the ids of {path} leaves no row")
    return kept


def _first(values: Iterable[str], count: int = 5) -> str:
    ordered = sorted(values)
    return ", ".join(repr(value) for value in ordered[:count]) + (", ..." if len(ordered) > count else "")


# -- rows to examples ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """A row as a reader understands it: the conversation, and the reference if it is not the response."""

    messages: Sequence[Message]
    reference: str | None = None


def text_field(row: Mapping[str, Any], *names: str, empty: bool = False) -> str:
    """The first of the named fields that the row has; RowError if it has none, or one that is not text."""
    for name in names:
        if name in row and row[name] is not None:
            value = row[name]
            if not isinstance(value, str):
                raise RowError(f"field '{name}' must be text, not {type(value).__name__}")
            if not empty and not value.strip():
                raise RowError(f"field '{name}' is empty")
            return value
    raise RowError(f"field '{names[0]}' is missing" + (f" (or {', '.join(names[1:])})" if names[1:] else ""))


def text_list(row: Mapping[str, Any], name: str) -> list[str]:
    """A field that holds a list of texts; RowError if it does not."""
    value = row.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise RowError(f"field '{name}' must be a list of texts")
    return value


def turns(prompt: str, response: str) -> list[Message]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def instruction_turns(row: Mapping[str, Any]) -> list[Message]:
    """Alpaca's columns: instruction, an input that may be empty or missing, output."""
    instruction, extra = text_field(row, "instruction"), row.get("input") or ""
    if not isinstance(extra, str):
        raise RowError(f"field 'input' must be text, not {type(extra).__name__}")
    return turns(f"{instruction}\n\n{extra}" if extra.strip() else instruction, text_field(row, "output"))


ROLES = {name: name for name in ("system", "user", "assistant")} | {
    "human": "user",
    "bot": "assistant",
    "gpt": "assistant",
}


def chat(row: Mapping[str, Any]) -> list[Message] | None:
    """The conversation in `messages`, `conversations` (ShareGPT), `chat_rounds` (CodeFuse); None without."""
    name = next((name for name in ("messages", "conversations", "chat_rounds") if name in row), None)
    if name is None:
        return None
    if not isinstance(row[name], list) or not all(isinstance(turn, Mapping) for turn in row[name]):
        raise RowError(f"field '{name}' must be a list of turns with role and content")
    conversation: list[Message] = []
    for place, turn in enumerate(row[name], start=1):
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if role not in ROLES:
            raise RowError(
                f"field '{name}': turn {place} has the role {role!r}; known are {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise RowError(f"field '{name}': turn {place} has no text content")
        if ROLES[role] != "system" or content.strip():
            conversation.append({"role": ROLES[role], "content": content})
    return conversation


class _RowFormatter(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if value is None:
            raise RowError("a field of the template is null")
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            value = "\n".join(value)
        return str(format(value, format_spec))


def render(template: str, row: Mapping[str, Any]) -> str:
    """Fills a template ("{question}"); lists of strings are joined by newlines. RowError: no such field."""
    try:
        return _RowFormatter().vformat(template, (), row)
    except KeyError as error:
        raise RowError(f"field {error} is missing (template {template!r})") from error
    except (IndexError, AttributeError, ValueError) as error:
        raise RowError(f"template {template!r}: {error}") from error


def split_turns(
    conversation: Sequence[Message], keep: Turns, training: bool
) -> list[tuple[tuple[Message, ...], str]]:
    """(prompt turns, response) pairs of a conversation; RowError if an answer has no question or no text."""
    if not conversation:
        raise RowError("the conversation is empty")
    if not training and conversation[-1]["role"] == "user":
        return [
            (tuple(conversation), "")
        ]  # nothing to learn from, but a reference elsewhere in the row may grade it
    if conversation[-1]["role"] != "assistant":
        raise RowError("the conversation does not end with the assistant's turn")
    places = [place for place, message in enumerate(conversation) if message["role"] == "assistant"]
    pairs = []
    for place in places if keep is Turns.all else places[-1:]:
        prompt, response = tuple(conversation[:place]), conversation[place]["content"]
        if not prompt or prompt[-1]["role"] != "user":
            raise RowError(f"turn {place + 1} answers no user turn")
        if not prompt[-1]["content"].strip():
            raise RowError("the prompt is empty")
        if training and not response.strip():
            raise RowError("the response is empty")
        pairs.append((prompt, response))
    return pairs


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
        doubled = [
            key for key, count in Counter(example.example_id for example in examples).items() if count > 1
        ]
        if doubled:
            raise ValueError(f"{rows.source}: {len(doubled)} ids occur more than once: {_first(doubled)}")
        return examples

    def _examples_of(self, row: Mapping[str, Any], number: int, training: bool) -> list[Example]:
        conversation = list(self._reading(row, training).messages)
        if self.config.system:
            if conversation and conversation[0]["role"] == "system":
                raise RowError(
                    "the row has a system message of its own, and task.system is set too: unset one"
                )
            conversation.insert(0, {"role": "system", "content": self.config.system})
        pairs = split_turns(conversation, self.config.turns, training)
        name = row_id(row, number)
        names = [name] if len(pairs) == 1 else [f"{name}#{turn}" for turn in range(1, len(pairs) + 1)]
        return [
            Example(name, prompt, response, row)
            for name, (prompt, response) in zip(names, pairs, strict=True)
        ]

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
    return Task(config, readers.get(config.name, custom.read), custom.load_grader(config, Path(output_dir)))


def final_part(completion: str) -> str:
    """What a reasoning model says after its `</think>`; the whole completion for any other model."""
    tail = completion.rpartition("</think>")[2]
    return tail if tail.strip() else completion


# -- figures with intervals ----------------------------------------------------------------------------------


def wilson(successes: int, n: int) -> Metric:
    """A proportion and its Wilson score interval, which keeps its level for small n and near 0 and 1."""
    assert 0 <= successes <= n and n > 0, (successes, n)
    share, spread = successes / n, Z_95**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    # the bounds at 0 and n successes are exactly 0 and 1; rounding must not put them inside
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Metric(share, low, high, n, "wilson")


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, over: str = "items") -> Metric:
    """A statistic of item indices with its percentile interval over resamples of the items (fixed seed)."""
    assert n > 0
    generator = np.random.default_rng(0)
    draws = [statistic(generator.integers(n, size=n)) for _ in range(BOOTSTRAP_RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Metric(float(statistic(np.arange(n))), float(low), float(high), n, f"bootstrap over {over}")


def accuracy_metrics(grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
    """`accuracy` over the graded items, the share of completions without a readable answer, and without a
    verdict.

    With several samples per item an item counts with its mean, and the interval is a bootstrap over items.
    """
    flat = [grade for samples in grades for grade in samples]
    verdicts = [[bool(grade.correct) for grade in samples if grade.correct is not None] for samples in grades]
    graded = [samples for samples in verdicts if samples]
    if not graded:
        reasons = Counter(grade.reason for grade in flat).most_common(1)
        raise RuntimeError(
            f"none of {len(flat)} completions could be graded: {reasons[0][0] if reasons else 'none given'}"
        )
    if all(len(samples) == 1 for samples in graded):
        accuracy = wilson(sum(samples[0] for samples in graded), len(graded))
    else:
        means = np.array([np.mean(samples) for samples in graded])
        accuracy = bootstrap(lambda index: float(means[index].mean()), len(means))
    unreadable = sum(grade.extracted is None and grade.correct is not None for grade in flat)
    ungraded = sum(grade.correct is None for grade in flat)
    return {
        "accuracy": accuracy,
        "unreadable": wilson(unreadable, len(flat)),
        "ungraded": wilson(ungraded, len(flat)),
    }
