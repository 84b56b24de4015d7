"""Mathematics: GSM8K (a number) and MATH, MATH-500, NuminaMath (an expression).

    {"question": "Janet's ducks lay 16 eggs per day. ...", "answer": "... 9 * 2 = $<<9*2=18>>18\\n#### 18"}
    {"problem": "Convert the point $(0,3)$ ...", "solution": "... $\\boxed{(3, \\frac{\\pi}{2})}.$"}

Sources: https://github.com/openai/grade-school-math, https://huggingface.co/datasets/HuggingFaceH4/MATH-500,
https://huggingface.co/datasets/AI-MO/NuminaMath-CoT.

Run as a program (`python -m xtf.tasks.math`) this module is the process in which expressions are compared:
SymPy can run for ever on a hostile expression, and only killing a process stops it at a fixed time.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import xtf
from xtf.tasks.base import (
    Example,
    Grade,
    Item,
    Metric,
    Reading,
    RowError,
    accuracy_metrics,
    chat,
    final_part,
    text_field,
    turns,
)

EQUIVALENCE_SECONDS = 10  # of CPU time per pair of expressions: a busy machine must not change a verdict
EQUIVALENCE_MEMORY = 4 * 2**30  # bytes of address space for the comparing process
MAX_NUMBER = 200  # characters; a model that repeats one digit has not given a number
MAX_EXPRESSION = 2000  # characters; a longer "answer" is not one


def read(row: Mapping[str, Any]) -> Reading:
    """GSM8K rows (question, answer) and MATH rows (problem, solution, and the bare answer if it is there)."""
    if "question" in row:
        return Reading(turns(text_field(row, "question"), text_field(row, "answer")))
    if "problem" in row:
        reference = text_field(row, "answer") if isinstance(row.get("answer"), str) else None
        return Reading(turns(text_field(row, "problem"), text_field(row, "solution", "answer")), reference)
    if (conversation := chat(row)) is not None:
        return Reading(conversation)
    raise RowError("needs question and answer (GSM8K), problem and solution (MATH), or messages")


# -- finding the answer in a text ----------------------------------------------------------------------------

SIGN = r"(?<![\w)\]}.,])[-−–]"  # not the minus of "10-5" nor the dash of "5–10"
CURRENCY = r"(?:\\?[$€£¥]\s*)"
DIGITS = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
LATEX_FRACTION = r"\\[dt]?frac\s*\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}"
NUMBER = re.compile(
    rf"(?P<sign>{SIGN})?\s*{CURRENCY}?(?P<inner>(?<=[$€£¥])[-−–])?"
    rf"(?:{LATEX_FRACTION}|(?P<digits>{DIGITS})(?:\s*/\s*(?P<over>\d+(?:\.\d+)?)(?![\d/]))?)"
)
ANNOTATION = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator notes
HASHES = re.compile(r"####(?!#)[ \t]*(?P<rest>[^\n]*)")
NUMBERED_HEADING = re.compile(r"\**\d+[.)]\s+\S")
ANSWER_IS = re.compile(r"\banswer\b[^.\n\d]{0,60}?(?:\bis\b|:|=)[\s*:$]*(?=(?P<rest>[^\n]*))", re.IGNORECASE)
NEXT_TURN = re.compile(
    r"\n\s*(?:<\|\w+\|>|(?:question|q|problem|user|human|instruction)\s*\d*\s*:)", re.IGNORECASE
)


def boxed(text: str) -> str | None:
    """The content of the last complete `\\boxed{...}` (or `\\fbox`), braces balanced; None without one."""
    for match in reversed(list(re.finditer(r"\\f?box(?:ed)?\s*\{", text))):
        depth = 1
        for place in range(match.end(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0) if text[place - 1] != "\\" else 0
            if depth == 0:
                return text[match.end() : place].strip()
    return None


def _sentence(text: str) -> str:
    return re.split(r"[.!?](?=\s|$)", text, maxsplit=1)[0]


def _is_heading(match: re.Match[str]) -> bool:
    """Whether a `####` line is Markdown ("#### 2. Add the parts", a text under it), not GSM8K's answer."""
    return bool(NUMBERED_HEADING.match(match["rest"]) and match.string[match.end() :].strip())


def stated_answer(text: str) -> str | None:
    """What the text marks as its answer: the last `\\boxed{}`, else `#### x`, else "the answer is x"."""
    if (content := boxed(text)) is not None:
        return content
    hashes = [match["rest"] for match in HASHES.finditer(text) if not _is_heading(match)]
    if hashes and hashes[-1].strip():
        return _sentence(hashes[-1]).strip()
    stated = [_sentence(match["rest"]).strip() for match in ANSWER_IS.finditer(text)]
    return next((answer for answer in reversed(stated) if answer), None)


def numbers(text: str) -> list[Fraction]:
    """Every number in a text, exactly: signs, separators, currency, decimals, a/b and \\frac{a}{b}."""
    found = []
    for match in NUMBER.finditer(text):
        if len(match[0]) > MAX_NUMBER:
            continue
        if match["top"]:
            top, bottom = Fraction(match["top"]), Fraction(match["bottom"])
        else:
            top = Fraction(re.sub(r"[^\d.]", "", match["digits"]))
            bottom = Fraction(match["over"] or 1)
        if bottom != 0:
            found.append(-top / bottom if match["sign"] or match["inner"] else top / bottom)
    return found


def final_number(completion: str) -> Fraction | None:
    """The number that a completion ends up with, or None.

    In this order: the number in what the text marks as its answer (`stated_answer`; after its last "=" if it
    has one), then the last number of the text. What follows a made-up next question is not looked at, if an
    answer stands before it.
    """
    text = ANNOTATION.sub("", final_part(completion))
    cut = NEXT_TURN.search(text)
    parts = [text[: cut.start()], text] if cut and text[: cut.start()].strip() else [text]
    for part in parts:
        stated = stated_answer(part)
        if stated is not None:
            found = numbers(stated.rsplit("=", 1)[-1]) or numbers(stated)
            if found:
                return found[0]
    for part in parts:
        if found := numbers(part):
            return found[-1]
    return None


def show(value: Fraction) -> str:
    """A number as people write it, exactly: 18, -0.5, 1/3."""
    for places in range(MAX_NUMBER):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            sign, whole, rest = (
                "-" * (value < 0),
                digits[: len(digits) - places],
                digits[len(digits) - places :],
            )
            return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"
    return str(value)


class NumberGrader:
    """The final number, compared exactly (1,000 = 1000.0 = $1,000; 50% counts as 50; 1/2 = 0.5)."""

    def check(self) -> None:
        pass

    def reference(self, example: Example, text: str) -> str:
        value = final_number(text)
        if value is None:
            raise RowError("the reference holds no number")
        return show(value)

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        return [self._grade(item) for item in items]

    def _grade(self, item: Item) -> Grade:
        value = final_number(item.completion)
        if value is None:
            return Grade(False, None, "no number found")
        right = show(value) == item.reference
        return Grade(right, show(value), "equal" if right else f"{show(value)} is not {item.reference}")

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        return {}


# -- expressions ---------------------------------------------------------------------------------------------


def final_expression(completion: str) -> str | None:
    """What the completion marks as its answer, else its last formula, else its last number."""
    text = final_part(completion)
    cut = NEXT_TURN.search(text)
    head = text[: cut.start()] if cut else ""
    for part in (head, text):
        if (stated := stated_answer(part)) is not None:
            return stated.rstrip("$ ")  # "The answer is $x$": the first sign went with the marker
    formulas = re.findall(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", head or text, re.DOTALL)
    if formulas:
        return next(part for part in formulas[-1] if part).strip()
    found = numbers(head or text)
    return show(found[-1]) if found else None


def plain(expression: str) -> str:
    """An expression without what only sets its look: \\left, spaces, \\text{}, dollar signs, a final stop."""
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:)|[\s$]|\\ ", "", expression)
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\[dt]frac", r"\\frac", text).rstrip(".").casefold()


class Equivalence:
    """`math-verify` in processes of its own; the kernel ends one that takes too long over a pair."""

    def __init__(self, workers: int = 2, seconds: int = EQUIVALENCE_SECONDS) -> None:
        self.workers, self.seconds = workers, seconds

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[bool, str]]:
        """For each (reference, answer) pair, whether it was shown to be equivalent, and how that went."""
        shares = [pairs[first :: self.workers] for first in range(self.workers)]
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = list(pool.map(self._compare, shares))
        return [verdicts[place % self.workers][place // self.workers] for place in range(len(pairs))]

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[bool, str]]:
        verdicts: list[tuple[bool, str]] = []
        while len(verdicts) < len(pairs):
            process = subprocess.run(
                [sys.executable, "-m", "xtf.tasks.math", str(self.seconds)],
                input="".join(json.dumps(pair) + "\n" for pair in pairs[len(verdicts) :]),
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(Path(xtf.__file__).parents[1])},
                text=True,
                check=False,
            )
            ready, *lines = process.stdout.splitlines() or [""]
            if ready != "ready":
                raise RuntimeError("the process that compares expressions did not start (its error is above)")
            verdicts += [(verdict, reason) for verdict, reason in map(json.loads, lines)]
            if process.returncode:  # ended over the pair after the last answer; go on with the next one
                verdicts.append((False, f"not shown equal within {self.seconds} s"))
        return verdicts


class MathGrader:
    """Equivalent expressions: equal as written, or shown equal by `math-verify` within the time limit."""

    def __init__(self, equivalence: Equivalence | None = None) -> None:
        self.equivalence = equivalence or Equivalence()

    def check(self) -> None:
        from importlib.util import find_spec

        if find_spec("math_verify") is None:
            raise ValueError(
                "task.grader=math needs the package math-verify: pip install 'math-verify[antlr4_13_2]'"
            )

    def reference(self, example: Example, text: str) -> str:
        """The answer itself, or the one that a whole solution states."""
        content = boxed(text)
        if content is None and HASHES.search(text):
            content = stated_answer(text)
        if content is None and (len(text) > MAX_EXPRESSION or "\n" in text.strip()):
            raise RowError("the reference has no \\boxed{} answer")
        return (text if content is None else content).strip()

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        answers = [final_expression(item.completion) for item in items]
        open_pairs = {
            (item.reference, answer)
            for item, answer in zip(items, answers, strict=True)
            if answer and len(answer) <= MAX_EXPRESSION and plain(answer) != plain(item.reference)
        }
        pairs = sorted(open_pairs)
        verdicts = dict(zip(pairs, self.equivalence.compare(pairs), strict=True)) if pairs else {}
        return [
            self._grade(item.reference, answer, verdicts) for item, answer in zip(items, answers, strict=True)
        ]

    def _grade(
        self, reference: str, answer: str | None, verdicts: Mapping[tuple[str, str], tuple[bool, str]]
    ) -> Grade:
        if not answer:
            return Grade(False, None, "no answer found")
        if len(answer) > MAX_EXPRESSION:
            return Grade(False, answer[:MAX_EXPRESSION], f"longer than {MAX_EXPRESSION} characters")
        if plain(answer) == plain(reference):
            return Grade(True, answer, "equal as written")
        verdict, reason = verdicts[reference, answer]
        return Grade(verdict, answer, reason)

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        return accuracy_metrics(grades)

    def system_info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"math_verify": version("math-verify"), "seconds_per_item": self.equivalence.seconds}


NUMERAL_BASE = re.compile(r"\d_\{?(\d+)\}?$")


def equivalent(reference: str, answer: str) -> bool:
    """`math-verify`'s judgement, without its own time limit (see `Equivalence`).

    Stricter than its defaults in two places: decimals must agree to 12 places, not 6, and two numerals that
    both name their base must name the same one (it ignores subscripts).
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    bases = [NUMERAL_BASE.search(plain(text)) for text in (reference, answer)]
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False
    targets = (LatexExtractionConfig(), ExprExtractionConfig())
    gold, found = (
        parse(f"${text.strip().strip('$')}$", targets, parsing_timeout=None) for text in (reference, answer)
    )
    return bool(verify(gold, found, float_rounding=12, timeout_seconds=None))


def _serve(seconds: int) -> None:
    """Answers pairs, one JSON line each, until the input ends; the kernel ends it when a pair takes too long."""
    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns that its own time limit is off
    resource.setrlimit(resource.RLIMIT_AS, (EQUIVALENCE_MEMORY, EQUIVALENCE_MEMORY))
    equivalent("1", "1")  # imports
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is not an answer
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        reference, answer = json.loads(line)
        deadline = math.ceil(time.process_time()) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (deadline, resource.RLIM_INFINITY))
        try:
            verdict = equivalent(reference, answer)
            result = verdict, "equivalent" if verdict else f"not equivalent to {reference}"
        except (
            Exception
        ) as error:  # hostile text can make a parser raise anything; it was not shown to be equal
            result = False, f"cannot be compared with {reference}: {type(error).__name__}"
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
