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
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

from xtf.data.examples import Example, RowError
from xtf.data.numbers import BLANKS, DASHES, SCALES, SUPERSCRIPTS, TEN, TIMES, show
from xtf.graders.base import Grade, Grader, Item, answer_parts, final_offset
from xtf.graders.number import HASHES, boxed, final_number, located_number, marked_answer, stated_answer
from xtf.runtime.interrupt import deaf_children, ended

EQUIVALENCE_SECONDS = 10  # of CPU time per pair of expressions: a busy machine must not change a verdict
EQUIVALENCE_MEMORY = 4 * 2**30  # bytes of address space for the comparing process
MAX_EXPRESSION = 2000  # characters; a longer "answer" is not one


STOP = re.compile(r"(?:(?<!\.)|(?<=\.{3}))\.\Z")  # of a sentence; those of an ellipsis belong to what it stands for
FORMULA = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


# -- expressions ---------------------------------------------------------------------------------------------


def final_expression(completion: str) -> str | None:
    """What the completion marks as its answer, else its last formula, else its last number."""
    for part in answer_parts(completion):
        if (stated := stated_answer(part)) is not None:
            return stated.strip("$ ")
    first = answer_parts(completion, marked=False)[0]
    formulas = FORMULA.findall(first)
    if formulas:
        return next(part for part in formulas[-1] if part).strip()
    value = final_number(first)
    return None if value is None else show(value)


def bare(expression: str) -> str:
    """An expression without what only sets its look: \\left, spaces, \\text{}, dollar signs, a final stop."""
    expression = MIXED_NUMBER.sub(_mixed, GROUPED.sub(_ungrouped, expression))  # before blanks go: 2 1/2 is not 21/2,
    expression = re.sub(r"(?<=\d)(?:[\s~]|\\[,;: ])+(?=\d)", "&", expression)  # and 3 4 not 34
    text = re.sub(r"\\(?:left|right|displaystyle|,|;|!|:)|[\s$]|\\ ", "", expression)
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\\[dt]frac", r"\\frac", STOP.sub("", text)).casefold()


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
            with deaf_children():  # Ctrl-C reaches all of a terminal's processes: these end with their input
                process = subprocess.run(
                    [sys.executable, "-m", "xtf.graders.expression", str(self.seconds)],
                    input="".join(json.dumps(pair) + "\n" for pair in pairs[len(verdicts) :]),
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
                    text=True,
                    check=False,
                )
            ready, *lines = process.stdout.splitlines() or [""]
            if ready != "ready":
                raise ValueError(
                    "task.grader=math: the process that compares expressions did not start (its error is above); "
                    "install its package anew: pip install 'math-verify[antlr4_13_2]'"
                )
            verdicts += [(verdict, reason) for verdict, reason in map(json.loads, lines)]
            if process.returncode:  # ended over the pair after the last answer; go on with the next one
                late = process.returncode == -signal.SIGXCPU
                why = f"not shown equal within {self.seconds} s" if late else f"its process {ended(process.returncode)}"
                verdicts.append((False, why))
        return verdicts


class MathGrader(Grader):
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

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """What the response marks as its answer ("\\boxed{2}"), else its last formula or number."""
        first = final_offset(example.response)
        for part in answer_parts(example.response):
            if (marked := marked_answer(part)) is not None:
                return [(first + marked.start, first + marked.end)]
        unmarked = answer_parts(example.response, marked=False)[0]
        if formulas := list(FORMULA.finditer(unmarked)):
            return [(first + formulas[-1].start(), first + formulas[-1].end())]
        found = located_number(unmarked, strict=False)
        return [] if found is None else [(first + found[1], first + found[2])]

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        answers = [final_expression(item.completion) for item in items]
        open_pairs = {
            (item.reference, answer)
            for item, answer in zip(items, answers, strict=True)
            if answer and len(answer) <= MAX_EXPRESSION and bare(answer) != bare(item.reference)
        }
        pairs = sorted(open_pairs)
        verdicts = dict(zip(pairs, self.equivalence.compare(pairs), strict=True)) if pairs else {}
        return [self._grade(item.reference, answer, verdicts) for item, answer in zip(items, answers, strict=True)]

    def _grade(self, reference: str, answer: str | None, verdicts: Mapping[tuple[str, str], tuple[bool, str]]) -> Grade:
        if not answer:
            return Grade(False, None, "no answer found")
        if len(answer) > MAX_EXPRESSION:
            return Grade(False, answer[:MAX_EXPRESSION], f"longer than {MAX_EXPRESSION} characters")
        if bare(answer) == bare(reference):
            return Grade(True, answer, "equal as written")
        verdict, reason = verdicts[reference, answer]
        return Grade(verdict, answer, reason)

    def system_info(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"math_verify": version("math-verify"), "seconds_per_item": self.equivalence.seconds}


NUMERAL_BASE = re.compile(r"\d_\{?(\d+)\}?$")
RELATIVE_TOLERANCE = Fraction(5, 10**12)  # of a decimal against an exact value: 12 digits
ELLIPSIS = re.compile(r"\\(?:[lcdv]?dots[cbmio]?)\b|\.\.\.|…")  # what it stands for is not written
GROUPED = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:(?:\\[,;: ]|['’ʼ~" + BLANKS + r"])\d{3})+(?!\d)")  # 1 000
SCIENTIFIC = re.compile(rf"(?<=\d){TIMES}10(?:{TEN})", re.IGNORECASE)  # 3 x 10^5
MIXED_NUMBER = re.compile(r"(?<![\d.,/])(\d+)[ ~]+(\d+)\s*/\s*(\d+)(?![\d/])")
MIXED_FACTOR = re.compile(r"(?<![\d.}])(\d+)\s*\\[dt]?frac\{(\d+)\}\{(\d+)\}(?=\s*[A-Za-z(\\])")  # 3\frac{1}{2}x
RATIO = re.compile(r"\d+(?:\.\d+)?(?:\s*(?::|\\colon\b|\\mathbin\{:\}|\{:\}|∶)\s*\d+(?:\.\d+)?)+")  # 3:4, 1:2:3
CLOCK = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?")  # what may be a time of day, or a duration
HALF_OF_DAY = re.compile(r"(?<=:\d\d)[\s~]*(?:\\[a-z]+\s*\{\s*)?([ap])\.?\s*m\b\.?\s*\}?", re.IGNORECASE)
MONEY = {"\\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "₹": "rupee"}
BRACKETS = re.compile(
    r"(?:\\left)?\s*(?:(?P<set>\\\{)[^{}]*,[^{}]*|[(\[][^()\[\]]*,[^()\[\]]*)[)\]}]", re.DOTALL
)  # of the whole
TEXT = r"\\(?:text|mbox|textrm|textbf|textit|mathrm|mathit|operatorname)"
UNIT = re.compile(  # at the end: \text{ inches}^2, inches, ^\circ
    rf"(?P<value>.*?[^\s~,;])[\s~]*(?:\\[,;:! ][\s~]*)*(?:{TEXT}\s*\{{(?P<text>[^{{}}]*)\}}"
    r"|(?<=[\d)}])(?:\s+|(?=[a-z]{2}))(?P<word>[A-Za-z][A-Za-z ./]*[A-Za-z.])"
    r"|\^\s*\{?\s*(?P<degree>\\circ|°)\s*\}?|(?P<sign>°))"
    r"(?P<power>\s*\^\s*\{?\s*[23]\s*\}?|[²³])?\s*\.?",
    re.DOTALL,
)
LETTER_UNIT = re.compile(r"(?P<value>.*\d)\s*(?P<word>[A-Za-z])")
UNITS = {
    alias: unit
    for unit, names in {
        "mm": "mm millimeter millimetre",
        "cm": "cm centimeter centimetre",
        "m": "m meter metre",
        "km": "km kilometer kilometre",
        "in": "in inch inches",
        "ft": "ft foot feet",
        "yd": "yd yard",
        "mi": "mi mile",
        "mg": "mg milligram",
        "g": "g gram gramme",
        "kg": "kg kilogram kilo",
        "lb": "lb lbs pound",
        "oz": "oz ounce",
        "ton": "ton tonne",
        "s": "s sec second",
        "min": "min minute",
        "h": "h hr hour",
        "day": "day",
        "week": "week",
        "month": "month",
        "year": "yr year",
        "ml": "ml milliliter millilitre",
        "l": "l liter litre",
        "gal": "gal gallon",
        "dollar": "dollar usd",
        "euro": "euro eur",
        "pound sterling": "gbp",
        "yen": "yen jpy",
        "rupee": "rupee inr",
        "cent": "cent",
        "degree": "degree deg",
        "radian": "radian rad",
    }.items()
    for name in names.split()
    for alias in (name, f"{name}s")
} | {"mph": "mi/h", "kmph": "km/h", "kph": "km/h", "mps": "m/s"}


def tidy(text: str) -> str:
    r"""An answer as people write it in LaTeX that a parser reads whole: pi/2 -> \pi/2, 1.5e-3 -> 1.5 \cdot 10^{-3}."""
    text = STOP.sub("", re.sub(r"\\[()\[\]]|(?<!\\)\$|\\!\s*", "", text).strip())
    text = text.translate(dict.fromkeys(map(ord, DASHES), "-")).replace(r"\varnothing", r"\emptyset")
    if whole := re.fullmatch(rf"{TEXT}\s*\{{([^{{}}]*\d[^{{}}]*)\}}", text):
        text = whole[1].strip()
    text = re.sub(r"^(?:\\(?:approx|sim)\b|≈)\s*", "", text)
    text = re.sub(rf"{TEXT}\s*\{{\s*(e|i|pi)\s*\}}", r"\1", text)  # upright constants
    text = re.sub(r"(?<![\\A-Za-z])(pi|theta|alpha|beta|infinity)(?![A-Za-z])", r"\\\1", text).replace("π", r"\pi")
    text = text.replace(r"\infinity", r"\infty").replace("∞", r"\infty").replace("√", r"\sqrt")
    text = re.sub(r"\\?\bsqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"^(?:minus|negative)\s+(?=[\d\\])", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<![\\A-Za-z\d.])((?:\d+\.?\d*|\.\d+))[eE]([-+−]?\d+)(?![\d.])", r"\1 \\cdot 10^{\2}", text)
    text = SCIENTIFIC.sub(_scientific, text)
    text = re.sub(rf"(?<=\d)[\s~]*(?:{TEXT}\s*\{{\s*)?({'|'.join(SCALES)})s?\b\}}?", _scaled, text)
    text = MIXED_NUMBER.sub(_mixed, GROUPED.sub(_ungrouped, text))
    text = re.sub(r"\\[dt]?frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = MIXED_FACTOR.sub(_mixed_factor, text)
    return re.sub(r"\\?%$|\\?\s*percent$", "", text).strip()


def _mixed_factor(match: re.Match[str]) -> str:
    whole, top, bottom = map(int, match.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if 0 < top < bottom else match[0]


def _mixed(match: re.Match[str]) -> str:
    proper = int(match[2]) < int(match[3])
    return rf"{match[1]}\frac{{{match[2]}}}{{{match[3]}}}" if proper else match[0]


def _scientific(match: re.Match[str]) -> str:
    return rf" \cdot 10^{{{next(filter(None, match.groups())).translate(SUPERSCRIPTS)}}}"


def _scaled(match: re.Match[str]) -> str:
    return rf" \cdot {SCALES[match[1].lower()]}"


def _ungrouped(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match[0])


def split_unit(text: str) -> tuple[str, str | None]:
    """A value and the words after it, the latter as a known unit ("cm^2") or as they are; None without any."""
    if money := re.fullmatch(r"(-?)\s*(\\\$|[€£¥₹])\s*(.*)", text, re.DOTALL):
        return money[1] + money[3], MONEY[money[2]]
    match = UNIT.fullmatch(text)
    if match is None:
        return text, None
    word = match["text"] or match["word"] or ("degree" if match["degree"] or match["sign"] else "")
    if match["word"] and len(match["word"]) < 3 and unit_name(word) is None:
        return text, None  # a product of variables, as likely as not
    return match["value"], word + re.sub(r"[^\d²³]", "", match["power"] or "").translate({0xB2: "2", 0xB3: "3"})


def unit_name(words: str) -> str | None:
    """The one name of a unit of measure, "cm^2" or "mi/h"; None for other words."""
    words = re.sub(r"\\[,;:! ]|[~.\s]+", " ", words).strip().casefold()
    words = UNITS.get(words, words)
    if words in MONEY.values():
        return words
    over = [part.strip() for part in re.split(r"/|\bper\b", words)]
    names = []
    for part in over:
        found = re.fullmatch(r"(?:(sq|square)\s+|(cu|cubic)\s+)?([a-z]+)\s*(?:(squared)|(cubed)|\^?([23]))?", part)
        if found is None or found[3] not in UNITS:
            return None
        power = 2 if found[1] or found[4] else 3 if found[2] or found[5] else int(found[6] or 1)
        names.append(UNITS[found[3]] + (f"^{power}" if power > 1 else ""))
    return "/".join(names)


def same_units(reference: str, answer: str) -> tuple[str, str] | None:
    """The two values without their units; None if both name a unit of measure, and not the same one."""
    (gold, wanted), (found, said) = split_unit(reference), split_unit(answer)
    if wanted is not None and said is None and (letter := LETTER_UNIT.fullmatch(answer)):
        found, said = (letter["value"], letter["word"]) if unit_name(letter["word"]) else (found, said)
    if said is not None and wanted is None and (letter := LETTER_UNIT.fullmatch(reference)):
        gold, wanted = (letter["value"], letter["word"]) if unit_name(letter["word"]) else (gold, wanted)
    names = [None if unit is None else unit_name(unit) for unit in (wanted, said)]
    return None if all(names) and names[0] != names[1] else (gold, found)


def ratio(text: str) -> list[Fraction] | None:
    """The parts of a ratio of numbers, at least two; None for anything else."""
    if RATIO.fullmatch(text.strip()) is None:
        return None
    return [Fraction(part) for part in re.findall(r"\d+(?:\.\d+)?", text)]


def same_ratio(reference: str, answer: str) -> bool | tuple[str, str]:
    """Whether two texts, one of which at least is a ratio, are the same; or what is to be compared instead.

    Ratios are the same if their parts are in proportion, and one of two parts is its quotient. A key that a clock may
    show ("3:40") is no ratio: it is the same only where it is written alike.
    """
    gold, found = ratio(reference), ratio(answer)
    if CLOCK.fullmatch(reference.strip()):
        return gold == found and CLOCK.fullmatch(answer.strip()) is not None
    if gold is not None and found is not None:
        if len(gold) != len(found) or not any(gold) or not any(found):
            return False
        return all(a * sum(found) == b * sum(gold) for a, b in zip(gold, found, strict=True))
    if len(gold or found or ()) != 2:
        return False
    return _quotient(reference, gold), _quotient(answer, found)


def _quotient(text: str, parts: Sequence[Fraction] | None) -> str:
    return text if parts is None else rf"\frac{{{show(parts[0])}}}{{{show(parts[1])}}}"


def parsed(text: str) -> Any:
    """The SymPy object of the whole of an expression.

    Raises:
        ValueError: there is none (or what the parser raises).
    """
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex

    if (
        ELLIPSIS.search(text)
        or re.search(r"\d['′]\s*\Z", text)
        or re.search(r"\d\.\d*\.|(?<![_\d])\d+[\s~]+\.?\d", text)
    ):
        raise ValueError(f"{text} is not one expression")
    # its own removal of units also removes the rest of an expression that ends with a brace
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    latex = normalize_latex(text, config=config)
    return latex2sympy(
        latex, is_real=not should_treat_as_complex(latex), convert_degrees=False, normalization_config=None
    )


def equivalent(reference: str, answer: str) -> bool:
    """`math-verify`'s judgement of two expressions that both parse as a whole, in the same unit.

    Without its own time limit (see `Equivalence`), and stricter than its defaults: numbers are compared by relative
    distance (`close`), two numerals that both name their base must name the same one (it ignores subscripts), and
    two equations that it cannot solve are not the same. Raises what its parser raises.
    """
    import sympy
    from math_verify import grader

    bases = [NUMERAL_BASE.search(bare(text)) for text in (reference, answer)]
    if bases[0] and bases[1] and bases[0][1] != bases[1][1]:
        return False
    values = same_units(tidy(reference), tidy(answer))
    if values is None:
        return False
    halves = [HALF_OF_DAY.search(text) for text in (reference, answer)]
    if halves[0] and halves[1] and halves[0][1].lower() != halves[1][1].lower():
        return False
    values = HALF_OF_DAY.sub("", values[0]), HALF_OF_DAY.sub("", values[1])
    if any(ratio(value) is not None for value in values):
        compared = same_ratio(*values)
        if isinstance(compared, bool):
            return compared
        values = compared
    brackets = [BRACKETS.fullmatch(value.strip()) for value in values]
    if brackets[0] and brackets[1] and bool(brackets[0]["set"]) != bool(brackets[1]["set"]):
        return False
    gold, found = (parsed(value) for value in values)
    if {symbol.name for one in (gold, found) for symbol in getattr(one, "free_symbols", ())} == {"i"} and all(
        isinstance(one, sympy.Expr) for one in (gold, found)
    ):
        gold, found = (
            one.subs(dict.fromkeys(one.free_symbols, sympy.I)).doit().expand(complex=True) for one in (gold, found)
        )
    solve_and_compare = grader.sympy_solve_and_compare
    # called for numbers at any depth of sets, tuples and relations; this process does nothing else
    grader.sympy_numeric_eq = close
    grader.sympy_solve_and_compare = lambda a, b, *precision: (
        bool(grader.solve(a, a.free_symbols)) and solve_and_compare(a, b, *precision)
    )
    try:
        return bool(grader.verify(gold, found, timeout_seconds=None))
    finally:
        grader.sympy_solve_and_compare = solve_and_compare


def close(a: Any, b: Any, *_: int) -> bool:
    """Whether two constants, or matrices of them, are the same number.

    Exact ones must be equal; where a decimal is involved it must agree to `RELATIVE_TOLERANCE`. False for
    expressions with variables, which are left to symbolic comparison.
    """
    import sympy

    if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr) or isinstance(b, sympy.MatrixBase | sympy.MatrixExpr):
        a, b = a.doit(), b.doit()
        return a.shape == b.shape and all(close(x, y) for x, y in zip(a.flat(), b.flat(), strict=True))
    a, b = a.doit(), b.doit()
    if a == b:
        return True
    if a.free_symbols or b.free_symbols or not (a.is_finite and b.is_finite):
        return False
    size = max(abs(sympy.N(a, 30)), abs(sympy.N(b, 30)))
    distance = abs(sympy.N(a - b, 30))
    if not size.is_comparable or not distance.is_comparable:
        return False
    if a.has(sympy.Float) or b.has(sympy.Float):
        return bool(distance <= sympy.Rational(RELATIVE_TOLERANCE) * size)
    return bool(distance <= size * sympy.Rational(1, 10**25)) and sympy.simplify(a - b) == 0


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
