"""Grader for one answer out of a few: PubMedQA's decision, or any `task.choices`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from xtf.config.schema import TaskConfig
from xtf.data.examples import Example, RowError
from xtf.graders.base import (
    INSTEAD,
    TAKEN_FIRMLY,
    TAKES_BACK,
    Grade,
    Grader,
    Item,
    accuracy_metrics,
    answer_parts,
    final_offset,
)
from xtf.graders.metrics import Metric, bootstrap, wilson

DECISIONS = ("yes", "no", "maybe")
IS = r"(?:\b(?:is|was|be|seems|remains)\b|[:=–—→-])"
MARKER = rf"(?<![^\W_])(?:decision|answer|conclusion|verdict|choice|label|option)(?![^\W_])[^.\n]{{0,40}}?{IS}"
TAG = r"<(?:final[_ ]?)?(?:answer|decision|label|choice)>"
THEREFORE = (
    r"\b(?:therefore|thus|hence|so|consequently|accordingly|overall|finally|ultimately"
    r"|in (?:conclusion|summary|short|sum)|to (?:conclude|sum up))\b(?:\s?:)?"
)
# Before a marker, or at its end, what takes back what it says: "if the answer is yes", "the answer cannot be yes".
SUPPOSED = re.compile(
    r"\b(?:if|whether|unless|suppose|assuming|doubt|deny|imagine|as though|is it true"
    r"|not (?:the case|true|certain|clear|sure))(?:\sthat)?\s+(?:(?:the|my|our|this|a|correct|right|final)\s+){0,3}\Z"
    r"|\bis\s+(?:the|your)\s+(?:(?:final|correct)\s+)?\Z",
    re.IGNORECASE,
)
TAKEN_BACK = re.compile(
    r"(?:\bnot|n['’]t|\bcannot|\bnever|\bmay|\bmight|\bcould|\bcan|\bused to|\bunlikely to)\s+(?:be\b)?\W*\Z",
    re.IGNORECASE,
)
HEDGE = (
    r"(?:(?:(?:most|more|very|highly|quite|fairly|rather|almost|extremely)\s{1,3})?(?:likely|probably|clearly|definitely|certainly|simply|therefore|thus|again)\b"
    r"[\s,:]{0,3}+){0,3}+"
)
IT_IS = (  # where nothing else settles it: "It is likely yes.", "Is it effective? Yes."
    r"(?:^|(?<=[.!?;,]\s))(?:it|this|that)(?:['’]s|\s(?:is|was|seems|would be|must be|appears to be))\s"
)
NOUN = r"(?:(?:the\s)?(?:option|choice|letter|answer)\b\s{0,3}+:?\s{0,3}+)?+"
CORRECT = (
    r"[*_`\"')\]}]*\s+(?:is|was|would be|should be|seems|must be)\s+"
    r"(?:clearly\s+|probably\s+|most likely\s+)?(?:the\s+)?"
    r"(?:(?:most\s+)?(?:correct|right|best|likely|appropriate|accurate)\b|(?:final\s+)?(?:answer|choice)\b)"
)
IS_CORRECT = re.compile(CORRECT, re.IGNORECASE)
# What may follow a choice that stands by itself: the end, punctuation, or a reason.
STANDS = re.compile(
    r"(?!\w|[-/'’]\w|[.,:]\d|[+#]|\.[A-Za-z]\.)(?:[^\w?]*\Z|[ \t]*[.,;:!)\]}\"'*_`\n(—–”’»<-]"
    r"|\s+(?:because|since|as|given|due|for|rather than|instead of|over|and not|not)\b)",
    re.IGNORECASE,
)
CONNECTION = re.compile(r"[*_`\"')\]}]*[ \t]*(?:[/|,;&]|,?[ \t]*(?:and/or|or|and|nor)\b)[*_`\"'(\[{\s]*", re.IGNORECASE)
NEXT_IN_LIST = re.compile(r"[*_`\"')\]}]*[ \t]*(?:[/|,;.&]|\Z|(?:or|and|nor)\b|\n)", re.IGNORECASE)


class ChoiceGrader(Grader):
    """Reads one of `choices` from free text, in this order, taking the last hit of the first rule that hits:

    1. after "decision", "answer", "conclusion", "verdict", "choice", "label" or "option" and "is" (was, would be) or
       ":"; after "therefore", "so", "in conclusion" or the like; before "is the correct answer" or the like;
    2. a line that holds a choice and nothing else;
    3. the first word of the completion;
    4. after "it is" or the like, or a question that the text asks itself; all such must agree.

    Before it may stand "option", or "likely", "probably" or the like. A hit must stand by itself: followed by
    punctuation, the end, or a reason ("because"), and not be one of several that are offered; so "no significant
    difference" and "yes or no" are not read as decisions, "yes, no harm" and "no, no difference" are. What follows a
    made-up next question is not read if there is an answer before it. What is taken back ("No, wait. Yes.", "B. Scratch
    that: C") is not read, but what takes its place. Single letters count as capitals only ("a" is a word). Everything
    else is unreadable: wrong for accuracy, and counted as `unreadable`.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        if len(choices) < 2 or len({choice.strip().casefold() for choice in choices} - {""}) < len(choices):
            raise ValueError(f"task.choices must be at least two different answers, none empty, not {list(choices)}")
        self.choices = tuple(choices)
        longest_first = sorted(choices, key=len, reverse=True)
        one = "|".join(
            re.escape(choice) if len(choice) == 1 else f"(?i:{re.escape(choice)})" for choice in longest_first
        )
        # what may precede a choice: marks that no choice begins with; bounded and possessive, as texts can be endless
        marks = re.escape(
            "".join(mark for mark in "*_([\"'`$,“‘«<>✅❌✔✗✓✘☑➡→" if not any(c.startswith(mark) for c in choices))
        )
        opening = rf"[\s{marks}]{{0,20}}+(?:\\(?:boxed|text|textbf|mathrm|mathbf)\{{[\s{marks}]{{0,3}}+){{0,3}}+"
        start = rf"{opening}(?i:{HEDGE})(?i:{NOUN}){opening}"
        asked = r"|\?" if all(len(choice) > 1 for choice in choices) else ""  # "Which? A) cat B) dog" is a list
        self.one = re.compile(one)
        self.elsewhere = re.compile(
            rf"(?i:\b(?:and|but)\s+)(?P<choice>{one})(?i:\s+(?:for|in|with|at|when|if|among)\b)"
        )
        self.rules = (
            re.compile(
                rf"(?i:{MARKER}|{TAG}|{THEREFORE}){start}(?P<choice>{one})"
                rf"|(?:^|(?<=[.!?;,]\s)){start}(?P<correct>{one})(?=(?i:{CORRECT}))",
                re.MULTILINE,
            ),
            re.compile(rf"^{start}(?P<choice>{one})(?=\W*$)", re.MULTILINE),
            re.compile(rf"\A{start}(?P<choice>{one})"),
            re.compile(rf"(?i:{IT_IS}{asked}){start}(?P<choice>{one})", re.MULTILINE),
        )
        self.instead = re.compile(
            rf"(?i:{TAKES_BACK}{INSTEAD}){start}(?P<choice>{one})(?=[ \t]+or\b|{STANDS.pattern})", re.MULTILINE
        )

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> ChoiceGrader:
        return cls(DECISIONS if config.grader == "decision" else config.choices)

    def decide(self, completion: str) -> str | None:
        """The choice that a text settles on, spelled as in `choices`; None if it cannot be read."""
        found = self._settled(completion)
        return None if found is None else found[0]

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """The choice that the response settles on, with the words that led to it ("Decision: yes")."""
        found = self._settled(example.response)
        return [] if found is None else [found[1:]]

    def _settled(self, completion: str) -> tuple[str, int, int] | None:
        """The choice, and where what was read begins and ends."""
        for part in answer_parts(completion):
            text = part.strip()
            if (read := self._first(text)) is None:
                continue
            if (read := self._last(text, read)) is None:
                return None
            first = final_offset(completion) + len(part) - len(part.lstrip())
            return read[0], first + read[1], first + read[2]
        return None

    def _last(self, text: str, read: tuple[str, int, int]) -> tuple[str, int, int] | None:
        """What is left of a choice that was read, when all that takes it back has been read too."""
        said, start, end = read
        while instead := self.instead.search(text, end):
            other = self._hit(instead, text)
            if other is None:
                return None
            said, end = other, instead.end()
        firmly = TAKEN_FIRMLY.search(text, end)
        if firmly is None:
            return said, start, end
        rest = text[firmly.end() :]
        found = self._first(rest)
        last = None if found is None else self._last(rest, found)
        return None if last is None else (last[0], start, firmly.end() + last[2])

    def _first(self, text: str) -> tuple[str, int, int] | None:
        """The choice that the rules read, and where it begins and ends."""
        for rule in self.rules:
            hits = [(said, match) for match in rule.finditer(text) if (said := self._hit(match, text)) is not None]
            if hits and rule is not self.rules[0] and self._offered(hits, text):
                return None
            if rule is self.rules[-1] and len({said for said, _ in hits}) > 1:
                return None
            if hits:
                said, match = hits[-1]
                start, end = match.span()
                if match.groupdict().get("correct") and (behind := IS_CORRECT.match(text, end)):
                    end = behind.end()
                return said, start + len(text[start:end]) - len(text[start:end].lstrip()), end
        return None

    def _hit(self, match: re.Match[str], text: str) -> str | None:
        """The choice of a match, unless it is part of something larger or one of several that are offered."""
        correct = match.groupdict().get("correct")
        said = self._named(correct or match["choice"])
        end = match.end("correct" if correct else "choice")
        if not correct and not STANDS.match(text, end):
            return None
        marker = text[match.start() : match.start("correct" if correct else "choice")]
        if TAKEN_BACK.search(marker) or (
            marker.strip() and SUPPOSED.search(text[max(0, match.start() - 60) : match.start()])
        ):
            return None
        sentence = re.split(r"[.!?\n]", text[end : end + 200], maxsplit=1)[0]
        if (other := self.elsewhere.search(sentence)) and self._named(other["choice"]) != said:
            return None
        if connection := CONNECTION.match(text, end):
            other = self.one.match(text, connection.end())
            # after a comma it may begin a sentence: "yes, no harm"
            firm = connection[0].strip(" \t*_`\"'()[]{}") not in (",", ";")
            if other and self._named(other[0]) != said and (firm or NEXT_IN_LIST.match(text, other.end())):
                return None
        return said

    def _offered(self, hits: Sequence[tuple[str, re.Match[str]]], text: str) -> bool:
        """Whether the hits list what may be chosen: "yes" and "no" in neighbouring lines, "Yes. No.", "A) B)"."""
        for (said, match), (next_said, next_match) in pairwise(hits):
            between = text[match.end("choice") : next_match.start("choice")]
            if said != next_said and not re.search(r"\w", between):
                return True
        said, match = hits[0]
        if len(hits) > 1 or match.start("choice") > 20:
            return False
        rest = text[match.end("choice") :]
        follows = re.match(r"\W*[.!]\s+", rest)
        if (
            follows
            and (other := self.one.match(rest, follows.end()))
            and re.match(r"\W*(?:[.!?\n]|\Z)", rest[other.end() :])
        ):
            return self._named(other[0]) != said
        place = self.choices.index(said)
        if len(said) > 1 or not rest or place + 1 == len(self.choices):
            return False
        following = re.escape(self.choices[place + 1] + rest[0])  # "A) cat B) dog"
        return rest[0] in ").:" and re.search(rf"(?:\A|\s)\(?{following}", rest) is not None

    def _named(self, said: str) -> str:
        return next(choice for choice in self.choices if choice.casefold() == said.casefold())

    def reference(self, example: Example, text: str) -> str:
        choice = self.decide(text)
        if choice is None:
            raise RowError(f"the reference holds none of {', '.join(self.choices)}: {text[-80:]!r}")
        return choice

    def verdict(self, item: Item) -> Grade:
        choice = self.decide(item.completion)
        if choice is None:
            return Grade(False, None, "no decision found")
        right = choice == item.reference
        return Grade(right, choice, "agrees" if right else f"{choice} instead of {item.reference}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """`accuracy_metrics`, `macro_f1`, `majority`: the accuracy of always saying the commonest answer."""
        counts = Counter(references)
        return {
            **accuracy_metrics(grades),
            "macro_f1": self._macro_f1(references, grades),
            "majority": wilson(max(counts.values()), len(references)),
        }

    def _macro_f1(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> Metric:
        """Mean F1 over the choices that occur among the references; an unreadable answer is a miss."""
        labels = sorted(set(references))
        number = {label: place for place, label in enumerate(labels)}
        # table_NRC: per item, how many of its samples with true label r said c; the last c: anything else
        table_NRC = np.zeros((len(references), len(labels), len(labels) + 1))
        for place, (reference, samples) in enumerate(zip(references, grades, strict=True)):
            for grade in samples:
                said = number.get(grade.extracted or "", len(labels))
                table_NRC[place, number[reference], said] += 1 / len(samples)

        def statistic(index: np.ndarray) -> float:
            table_RC = table_NRC[index].sum(axis=0)
            hits = np.diagonal(table_RC)
            total = table_RC.sum(axis=1) + table_RC[:, : len(labels)].sum(axis=0)
            return float(np.mean(np.divide(2 * hits, total, out=np.zeros(len(labels)), where=total > 0)))

        return bootstrap(statistic, len(references))

    def system_info(self) -> dict[str, Any]:
        return {"choices": list(self.choices)}
