'''Small Python functions in the row format of HumanEval.

Each row: {"task_id", "prompt", "canonical_solution", "test", "entry_point"}; the prompt, the canonical
solution and the test, followed by `check(entry_point)`, run. Example:

    prompt              def count_numbers(numbers: list[int]) -> int:
                            """Count the numbers greater than 7.

                            >>> count_numbers([3, 9, 12])
                            2
                            """
    canonical_solution      return sum(1 for n in numbers if n > 7)

A row's behaviour is a triple (kind, constants, wording of the condition); no two rows share one.
'''

import random
import re
from dataclasses import dataclass
from itertools import product
from string import ascii_lowercase
from typing import Any

from xtf.data.words import TEXT_WORDS, pick

# Share of rows that carry each kind of planted token noise; the kinds are drawn independently.
NOISE = {"opening": 0.30, "comments": 0.25, "temporary": 0.20}

OPENINGS = (
    "# Here is the implementation.",
    "# This function solves the task described above.",
    "# Sure, let's write the code step by step.",
    "# TODO: clean this up later",
)
COMMENTS = ("# go over the input", "# this is the important part", "# do the actual work here", "# simple and readable")

NUMBERS = "numbers: list[int]"
WORDS = "words: list[str]"


@dataclass(frozen=True)
class Function:
    """A function before noise: one parameter (with its type) and one expression that it returns."""

    name: str
    parameter: str
    returns: str
    doc: str
    expression: str

    def signature(self) -> str:
        return f"def {self.name}({self.parameter}) -> {self.returns}:"


CONDITIONS = {
    "greater than {a}": "n > {a}",
    "less than {a}": "n < {a}",
    "at least {a}": "n >= {a}",
    "at most {a}": "n <= {a}",
    "divisible by {a}": "n % {a} == 0",
    "not divisible by {a}": "n % {a} != 0",
    "not equal to {a}": "n != {a}",
}
SELECTIONS = {
    ("count_numbers", "int", "Count the numbers {c}."): "sum(1 for n in numbers if {x})",
    ("keep_numbers", "list[int]", "Keep only the numbers {c}."): "[n for n in numbers if {x}]",
    ("sum_numbers", "int", "Add up the numbers {c}."): "sum(n for n in numbers if {x})",
    ("any_number", "bool", "Tell whether any number is {c}."): "any({x} for n in numbers)",
    ("all_numbers", "bool", "Tell whether every number is {c}."): "all({x} for n in numbers)",
    ("find_positions", "list[int]", "List the indexes of numbers {c}."): ("[i for i, n in enumerate(numbers) if {x}]"),
}
MAPPINGS = {
    ("add_to_each", "Add {a} to every number."): "[n + {a} for n in numbers]",
    ("subtract_from_each", "Subtract {a} from every number."): "[n - {a} for n in numbers]",
    ("multiply_each", "Multiply every number by {a}."): "[n * {a} for n in numbers]",
    ("remainders", "Give the remainder of every number modulo {a}."): "[n % {a} for n in numbers]",
    ("limit_each", "Limit every number to at most {a}."): "[min(n, {a}) for n in numbers]",
}
SLICES = {
    ("first_numbers", "Return the first {a} numbers."): "numbers[:{a}]",
    ("skip_numbers", "Return the list without its first {a} numbers."): "numbers[{a}:]",
    ("every_number", "Return every number whose index is a multiple of {a}."): "numbers[::{a}]",
}
FORMULAS = {
    ("scale_and_shift", "Multiply x by {a} and add {b}."): "x * {a} + {b}",
    ("shift_and_scale", "Add {a} to x and multiply the result by {b}."): "(x + {a}) * {b}",
    ("scale_and_lower", "Multiply x by {a} and subtract {b}."): "x * {a} - {b}",
    ("inside_range", "Tell whether x is between {a} and {a}{b}, both included."): "{a} <= x <= {a}{b}",
}
# A letter, or two that stand in several of the words.
PAIRS = [a + b for a, b in product(ascii_lowercase, repeat=2) if sum(a + b in word for word in TEXT_WORDS) > 1]
LETTERS = [*"abcdefgilmnoprstuw", *PAIRS]
TEXTS = {
    ("count_letter", "text: str", "int", 'Count how often "{w}" occurs in the text.'): 'text.count("{w}")',
    ("remove_letter", "text: str", "str", 'Remove every "{w}" from the text.'): 'text.replace("{w}", "")',
    ("starts_with", WORDS, "list[str]", 'Keep the words that start with "{w}".'): (
        '[w for w in words if w.startswith("{w}")]'
    ),
    ("ends_with", WORDS, "list[str]", 'Keep the words that end with "{w}".'): (
        '[w for w in words if w.endswith("{w}")]'
    ),
    ("has_letter", WORDS, "int", 'Count the words that contain "{w}".'): ('sum(1 for w in words if "{w}" in w)'),
    ("text_before", "text: str", "str", 'Return what stands before the first "{w}" in the text.'): (
        'text.split("{w}")[0]'
    ),
    ("text_after", "text: str", "str", 'Return what stands after the last "{w}" in the text.'): (
        'text.split("{w}")[-1]'
    ),
    ("word_positions", WORDS, "list[int]", 'List the indexes of words that contain "{w}".'): (
        '[i for i, w in enumerate(words) if "{w}" in w]'
    ),
    ("join_words", WORDS, "str", 'Join the words with "{w}" between them.'): '"{w}".join(words)',
}
LENGTHS = {
    ("longer_words", WORDS, "list[str]", "Keep the words longer than {a} letters."): (
        "[w for w in words if len(w) > {a}]"
    ),
    ("shorter_words", WORDS, "list[str]", "Keep the words shorter than {a} letters."): (
        "[w for w in words if len(w) < {a}]"
    ),
    ("repeat_text", "text: str", "str", "Repeat the text {a} times."): "text * {a}",
    ("first_letters", "text: str", "str", "Return the first {a} letters of the text."): "text[:{a}]",
    ("drop_letters", "text: str", "str", "Drop the first {a} letters of the text."): "text[{a}:]",
    ("last_letters", "text: str", "str", "Return the last {a} letters of the text."): "text[-{a}:]",
}


def all_functions() -> list[Function]:
    """Every function of the families above, in a fixed order; each has its own (docstring, expression)."""
    functions = []
    for ((name, returns, doc), body), (condition, test), a in product(
        SELECTIONS.items(), CONDITIONS.items(), range(2, 26, 2)
    ):
        c, x = condition.format(a=a), test.format(a=a)
        functions.append(Function(name, NUMBERS, returns, doc.format(c=c), body.format(x=x)))
    lists = [*product(MAPPINGS.items(), range(2, 20)), *product(SLICES.items(), range(2, 6))]
    for ((name, doc), body), a in lists:
        functions.append(Function(name, NUMBERS, "list[int]", doc.format(a=a), body.format(a=a)))
    for ((name, doc), body), a, b in product(FORMULAS.items(), range(2, 10), range(2, 10)):
        returns = "bool" if name == "inside_range" else "int"
        functions.append(Function(name, "x: int", returns, doc.format(a=a, b=b), body.format(a=a, b=b)))
    for ((name, parameter, returns, doc), body), w in product(TEXTS.items(), LETTERS):
        functions.append(Function(name, parameter, returns, doc.format(w=w), body.format(w=w)))
    for ((name, parameter, returns, doc), body), a in product(LENGTHS.items(), range(2, 9)):
        functions.append(Function(name, parameter, returns, doc.format(a=a), body.format(a=a)))
    return functions


def sample_input(rng: random.Random, function: Function) -> Any:
    """An argument for `function`; half of it shows a wrong constant: numbers beside the right one, words with it."""
    constants = [int(digits) for digits in re.findall(r"\d+", function.expression)]
    letters = re.search(r'"(\w+)"', function.expression)
    holding = [word for word in TEXT_WORDS if letters and letters[1] in word]

    def word() -> str:
        return pick(rng, holding if holding and rng.random() < 0.5 else TEXT_WORDS)

    def number() -> int:
        if constants and rng.random() < 0.5:
            return max(0, pick(rng, constants) + rng.randint(-1, 1))
        return rng.randint(0, 30)

    if function.parameter == NUMBERS:
        return [number() for _ in range(rng.randint(1, 6))]
    if function.parameter == WORDS:
        return [word() for _ in range(rng.randint(3, 5))]
    return number() if function.parameter == "x: int" else word() + word()


def solution_body(rng: random.Random, function: Function) -> str:
    """The indented body with, in a share of rows, needless comments or a needless temporary variable."""
    kinds = {kind for kind, share in NOISE.items() if rng.random() < share}
    lines = [f"return {function.expression}"]
    if "temporary" in kinds:
        lines = [f"result = {function.expression}", "return result"]
    if "comments" in kinds:
        lines.insert(0, pick(rng, COMMENTS))
    if "opening" in kinds:
        lines.insert(0, pick(rng, OPENINGS))
    return "".join(f"    {line}\n" for line in lines)


def code_row(rng: random.Random, function: Function, number: int) -> dict[str, str]:
    """The row of `function`; expected values come from running its expression on random inputs."""
    name = function.name
    namespace: dict[str, Any] = {}
    exec(f"{function.signature()}\n    return {function.expression}\n", namespace)
    inputs = [sample_input(rng, function) for _ in range(11)]
    example, checks = inputs[0], inputs[1:]
    asserts = "".join(f"    assert candidate({x!r}) == {namespace[name](x)!r}\n" for x in checks)
    return {
        "task_id": f"Tiny/{number}",
        "prompt": (
            f'{function.signature()}\n    """{function.doc}\n\n'
            f'    >>> {name}({example!r})\n    {namespace[name](example)!r}\n    """\n'
        ),
        "canonical_solution": solution_body(rng, function),
        "test": f"def check(candidate):\n{asserts}",
        "entry_point": name,
    }
