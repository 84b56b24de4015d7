"""Mathematical expressions, compared in processes of their own.

Run as a program (`python -m xtf.graders.expression`) this module is the process in which expressions are compared:
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
from pathlib import Path
from typing import Any

import xtf
from xtf.data.examples import Example, RowError
from xtf.data.numbers import numbers, show
from xtf.graders.base import Grade, Item, accuracy_metrics, final_part
from xtf.graders.metrics import Metric
from xtf.graders.number import HASHES, NEXT_TURN, boxed, stated_answer

EQUIVALENCE_SECONDS = 10  # of CPU time per pair of expressions: a busy machine must not change a verdict
EQUIVALENCE_MEMORY = 4 * 2**30  # bytes of address space for the comparing process
MAX_EXPRESSION = 2000  # characters; a longer "answer" is not one


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
                [sys.executable, "-m", "xtf.graders.expression", str(self.seconds)],
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
            raise ValueError("task.grader=math needs the package math-verify: pip install 'math-verify[antlr4_13_2]'")

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
        return [self._grade(item.reference, answer, verdicts) for item, answer in zip(items, answers, strict=True)]

    def _grade(self, reference: str, answer: str | None, verdicts: Mapping[tuple[str, str], tuple[bool, str]]) -> Grade:
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
    gold, found = (parse(f"${text.strip().strip('$')}$", targets, parsing_timeout=None) for text in (reference, answer))
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
        except Exception as error:  # hostile text can make a parser raise anything; it was not shown to be equal
            result = False, f"cannot be compared with {reference}: {type(error).__name__}"
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
