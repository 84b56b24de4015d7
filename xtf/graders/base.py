"""What a grader is, and what all graders share: items, grades, the answer part of a completion, accuracy.

An own grader is one class in one file, chosen by `task.grader=my_module.MyGrader`, or by a short name once it is
listed in `xtf.graders.GRADERS`. `verdict` is all that it must have; every other method has a default (see `Grader`):

    class SameLength(Grader):
        def verdict(self, item: Item) -> Grade:
            said = final_part(item.completion).strip()
            return Grade(len(said) == len(item.reference), said, f"{len(said)} characters")

Order of calls: `of(config, output_dir)`, `check()` and `reference()` of every evaluation row before any training;
`grade()` on the completions; `metrics()` on the grades. A single `function(completion, reference, row)` will do where
none of this is needed: `task.grader=python:my_module.function`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example, RowError
from xtf.graders.metrics import Metric, bootstrap, wilson

EXAMPLE = "example "  # how a note begins that says on which one a grader failed


@dataclass(frozen=True)
class Grade:
    """What a grader makes of one completion."""

    correct: bool | None  # None: no verdict (the judge failed), never counted as wrong
    extracted: str | None  # what the grader took to be the answer; None: it found none
    reason: str


def checked(grader: str, grades: Any, items: Sequence[Item]) -> list[Grade]:
    """What a grader gave for the items, with NumPy's True and False as Python's.

    Raises:
        ValueError: it is not one `Grade` for each, right, wrong or without a verdict.
    """
    wanted = f"task.grader={grader} must return one Grade for each item, whose `correct` is True, False or None, not"
    if not isinstance(grades, list) or len(grades) != len(items):
        raise ValueError(f"{wanted} {f'{len(grades)} for {len(items)}' if isinstance(grades, list) else repr(grades)}")
    plain = [
        replace(grade, correct=bool(grade.correct))
        if isinstance(grade, Grade) and isinstance(grade.correct, np.bool_)
        else grade
        for grade in grades
    ]
    for item, one in zip(items, plain, strict=True):
        if not isinstance(one, Grade) or not isinstance(one.correct, bool | None):
            raise ValueError(f"{wanted} {one!r} ({EXAMPLE}{item.example.example_id!r})")
    return plain


@dataclass(frozen=True)
class Item:
    """What a grader sees: the example, the model's completion of its prompt, and the text to compare with."""

    example: Example
    completion: str
    reference: str


class Grader:
    """Right or wrong. Batches, because some graders run processes or requests side by side."""

    version: ClassVar[int] = 1  # count it up when the grader says something else: finished runs are then graded again

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> Self:
        """The grader for a task; `output_dir` is for what it keeps on disk.

        Raises:
            ValueError: settings that do not fit.
        """
        return cls()

    def check(self) -> None:
        """Refuses, before any training, a set-up in which `grade` cannot work (no sandbox, no judge).

        Raises:
            ValueError: with what is missing and the remedy.
        """

    def reference(self, example: Example, text: str) -> str:
        """What completions are compared with, read from the reference `text`.

        Raises:
            ValueError: the text holds no key that this grader can read, whole.
        """
        if not text.strip():
            raise RowError("the reference is empty")
        return text

    def verdict(self, item: Item) -> Grade:
        """The grade of one item."""
        raise NotImplementedError(f"{type(self).__name__} needs verdict(item), or grade(items)")

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """One grade per item, in order; what `verdict` raises has a note that names the example."""
        grades = []
        for item in items:
            try:
                grades.append(self.verdict(item))
            except Exception as error:
                error.add_note(f"{EXAMPLE}{item.example.example_id!r}")
                raise
        return grades

    def names_answers(self) -> bool:
        """Whether `answer_spans` says what `grade` reads, so that `threshold.protect=answer` can keep it."""
        return type(self).answer_spans is not Grader.answer_spans

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """Characters [start, end) of the example's response in which `grade` finds the answer: with the words that mark
        it, without which it would not be found; none where it finds none."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it reads")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """Figures over all examples; `grades[i]`: those of example i's samples, `references[i]` its key."""
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        """What the run's record should say about how grading was done."""
        return {}


def final_part(completion: str) -> str:
    """What a reasoning model says after its `</think>`; the whole completion for any other model."""
    tail = completion.rpartition("</think>")[2]
    return tail if tail.strip() else completion


def final_offset(completion: str) -> int:
    """Where `final_part` begins, and with it each of `answer_parts`."""
    return len(completion) - len(final_part(completion))


_MARKS = (  # of a turn's or a text's end, as chat templates write them
    r"<[|｜](?:im_(?:start|end)|end(?:oftext|_of_text|▁of▁sentence)?|eo[tm]_id|start_header_id|user|assistant|system)[|｜]>"
    r"|</s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>"
)
_OPENED = r"\n[\s*#>_\[]{0,20}+"
_COUNT = r"(?:[^\S\n]*[#(]?\d{1,4}\)?)?[*_]{0,3}[^\S\n]*"


def _heading(words: str) -> str:
    """A line that such a word opens ("Question 2:"). Where no colon follows, a number, a capital or Markdown must show
    that it is a heading and no part of a sentence ("### Question", "Problem 2. Tom ...")."""
    shown = rf"(?:(?<=[*#>_\[<])|(?<=[*#>][^\S\n])|(?-i:(?=[A-Z]))|(?=(?:{words})[^\S\n]*\d))"
    kind = r"(?:(?:next|new|another|follow-?up|practice|similar|bonus)[^\S\n])?"
    ends = rf"{_COUNT}(?:$|\.(?=\s|\Z)|(?<=\s)[-–—](?=\s)|(?<=\*\*)|(?<=__))"
    return rf"{_OPENED}<?(?:{kind}(?:{words}){_COUNT}[:：)\]>]|{shown}{kind}(?:{words}){ends})"


_Q = rf"{_OPENED}q(?:\d{{0,4}}\s*[:：)]|\d{{1,4}}(?:\.(?=\s)|$))"  # "Q2.", not "Q - 5", "Q.E.D."
NEXT_TURN = re.compile(
    rf"{_heading('question|problem|user|human|instruction')}|{_Q}|{_OPENED}<[|｜][^<>|｜\n]{{1,40}}[|｜]>|{_MARKS}",
    re.IGNORECASE | re.MULTILINE,
)
NEXT_EXAMPLE = re.compile(_heading("example|exercise|context|input"), re.IGNORECASE | re.MULTILINE)


def answer_parts(completion: str, *, marked: bool = True) -> list[str]:
    """Where to look for the answer, in order: what precedes a made-up next question, and only then the whole text.

    For an answer that is `marked`, what precedes "Example 2:", "Context:" or the like comes before both. A worked
    solution may have such a line in its middle, so that its last number need not stand before it.
    """
    text = final_part(completion)
    cuts = [match.start() for pattern in (NEXT_EXAMPLE, NEXT_TURN)[not marked :] if (match := _behind(pattern, text))]
    return [*(text[:cut] for cut in sorted(set(cuts))), text]


def _behind(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first match that has something before it."""
    return pattern.search(text, len(text) - len(text.lstrip()) + 1)


# What takes back what was said before it, at the beginning of a clause: "No, wait. Yes.", "18. Sorry, 20."
_AGAIN = (
    r"wait(?: a (?:minute|second|moment|bit))?|hold on|hang on|actually|correction|rather|oops|sorry|apologies"
    r"|my (?:mistake|bad|apologies)|never ?mind|i mean(?:t(?: to say)?)?|make (?:that|it)|let me rephrase(?: that)?"
    r"|(?:edit|update|revised|corrected)(?=\s*:)|(?:that|this|it)(?:['’]s| is| was) (?:wrong|incorrect|a mistake)"
)
_FIRMLY = (
    r"(?:scratch|strike|cancel) that|i take (?:that|it) back|i(?:['’]ve| have)? changed? my mind|on second thoughts?"
    r"|let me (?:reconsider|rethink|think again|start over|try again|correct (?:that|myself|this))"
)
_LEADS = (
    r"(?:it|that|this|(?:the|my) (?:(?:correct|final|right|actual|real) )?(?:answer|decision|choice|result|total))"
    r"(?:['’]s|\s(?:is|was|(?:should|must|would|has to) be|should have been))(?: (?:actually|really|in fact))?"
    r"|(?:i|we) (?:think|believe|should have said)(?: that)?|to|no|nope|oh|hmm+|well|ok(?:ay)?|so|but|then|it"
)
_BLANK = r"[\s,.;:!?…*_~()\"'–—-]"
TAKES_BACK = (
    rf"(?:(?:^|[.,;:!?…(\n*_~–—]|\s-(?=\s)){_BLANK}{{0,8}}|\b(?:oh|no|nope|but|or|well)\b{_BLANK}{{1,4}})"
    rf"(?:(?:oh|no|nope|hmm+|well|but|or|ah|er|uh|um)\b{_BLANK}{{1,4}}){{0,3}}(?:(?P<firmly>{_FIRMLY})|{_AGAIN})\b"
)
INSTEAD = rf"(?:{_BLANK}{{1,6}}(?:{_FIRMLY}|{_AGAIN}|{_LEADS})\b){{0,6}}{_BLANK}{{0,6}}"  # between it and what is meant
TAKEN_FIRMLY = re.compile(TAKES_BACK.replace(f"|{_AGAIN}", ""), re.IGNORECASE | re.MULTILINE)


def accuracy_metrics(grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
    """`accuracy` over the graded items, the share of completions without a readable answer, and without a
    verdict.

    With several samples per item an item counts with its mean, and the interval is a bootstrap over items.

    Raises:
        ValueError: there is no verdict on any of them (a server that is down, say).
    """
    flat = [grade for samples in grades for grade in samples]
    verdicts = [[bool(grade.correct) for grade in samples if grade.correct is not None] for samples in grades]
    graded = [samples for samples in verdicts if samples]
    if not graded:
        reasons = Counter(grade.reason for grade in flat).most_common(1)
        reason = reasons[0][0] if reasons else "none given"
        raise ValueError(
            f"task.grader: none of {len(flat)} completions could be graded: {reason}; "
            "mend that, and start the same command again"
        )
    if all(len(samples) == 1 for samples in graded):
        accuracy = wilson(sum(samples[0] for samples in graded), len(graded))
    else:
        means = np.array([np.mean(samples) for samples in graded])
        accuracy = bootstrap(lambda index: float(means[index].mean()), len(means))
    unreadable = sum(grade.extracted is None and grade.correct is not None for grade in flat)
    ungraded = sum(grade.correct is None for grade in flat)
    return {"accuracy": accuracy, "unreadable": wilson(unreadable, len(flat)), "ungraded": wilson(ungraded, len(flat))}
