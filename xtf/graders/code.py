"""Python programs: a row's tests, a completion's program, and running one against the other in the sandbox."""

from __future__ import annotations

import ast
import io
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xtf.config.schema import SandboxConfig, TaskConfig
from xtf.data.examples import Example, RowError, text_field, text_list
from xtf.graders.base import Grade, Grader, Item, accuracy_metrics, final_part
from xtf.graders.metrics import Metric, bootstrap, pass_at_k
from xtf.graders.sandbox import Sandbox, Trial, check_isolation, isolation_record

DEFINITION = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(?P<name>\w+)[^\n]*", re.MULTILINE)
MAX_PROGRAM = 50_000  # characters of a completion that are looked at
PYTHON_FENCES = ("", "python", "python3", "py")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _quietly(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a parser without its warnings on other people's code, such as "\\d" in a plain string."""
    with warnings.catch_warnings(action="ignore"):
        return function(*args, **kwargs)


def unix_lines(text: str) -> str:
    """Line ends of Windows as those of Unix."""
    return text.replace("\r\n", "\n")


# -- a row's tests -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    """What a row says about testing: tests, the names that they need, trusted helpers, code to continue."""

    tests: str
    names: tuple[str, ...]
    preamble: str
    prompt: str


def suite(row: Mapping[str, Any]) -> Suite:
    """HumanEval's `test` and `entry_point` (and `prompt`), or MBPP's `test_list` and `test_setup_code`."""
    if "test" in row:
        name = text_field(row, "entry_point")
        prompt = text_field(row, "prompt", empty=True) if "canonical_solution" in row else ""
        tests = f"{text_field(row, 'test')}\ncheck({name})\n"
        # the prompt with an empty body: its imports, and helpers that the tests may call
        return Suite(tests, (name,), f"{prompt}\n    pass\n" if prompt else "", prompt)
    if "test_list" in row:
        imports = text_list(row, "test_imports") if row.get("test_imports") else []
        tests = unix_lines("\n".join([*imports, row.get("test_setup_code") or "", *text_list(row, "test_list")]))
        try:
            reference = _quietly(ast.parse, unix_lines(text_field(row, "code"))).body
            used = {node.id for node in ast.walk(_quietly(ast.parse, tests)) if isinstance(node, ast.Name)}
        except SyntaxError as error:
            raise RowError(f"the reference code or its tests are not Python: {error}") from error
        modules = [node for node in reference if isinstance(node, ast.Import | ast.ImportFrom)]
        preamble = "\n".join(ast.unparse(node) for node in modules if used & _bound(node))
        defined = {node.name for node in reference if isinstance(node, DEFINITIONS)}
        return Suite(tests, tuple(sorted(used & defined)), preamble, "")
    raise RowError("has no tests: needs test and entry_point (HumanEval), or test_list (MBPP)")


def _bound(node: ast.Import | ast.ImportFrom) -> set[str]:
    return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}


# -- a completion's program ----------------------------------------------------------------------------------

FENCE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)|\Z)",
    re.MULTILINE | re.DOTALL,
)
TOP_LEVEL = re.compile(r"^(?:def|class|import|from|async|@)", re.MULTILINE)
DEMONSTRATION = re.compile(r"print|main|check|test|(?:exit|quit)\Z")
TEST_RUNNERS = ("unittest", "doctest", "pytest")
RUNS_TESTS = re.compile(
    rf"(?:{'|'.join(TEST_RUNNERS)})\.(?:.+\.)?(?:main|run|debug|testmod|testfile|run_docstring_examples)\b"
)


def extract_program(completion: str, names: Sequence[str], prompt: str = "") -> str | None:
    """The Python program that a completion stands for; None if there is no code in it.

    A completion is, in this order: fenced blocks of which one defines one of `names` (all blocks up to the
    last such one are taken); a continuation of `prompt`, if it starts with an indented line; a program in
    bare text; a continuation whose first indentation was lost. Text after the last line that compiles is left
    out, and so is what only demonstrates: asserts, prints, calls of the function itself, of a
    test runner or of `exit`, `if __name__ == "__main__"`.
    """
    text = final_part(completion)[:MAX_PROGRAM]
    blocks = [match["code"] for match in FENCE.finditer(text) if match["language"].lower() in PYTHON_FENCES]
    whole = [leading_program(textwrap.dedent(block)) for block in blocks]
    defining = [place for place, block in enumerate(whole) if _defines(block, names)]
    if defining:
        return _finish("\n".join(whole[: defining[-1] + 1]), names, prompt)
    opening = re.compile(rf"\s*(?:async\s+)?def\s+(?:{'|'.join(map(re.escape, names))})\b")
    for bare in map(leading_program, (textwrap.dedent(text), text.lstrip())):
        if names and opening.match(bare):  # and not a continuation, even if it was indented
            return _finish(bare, names, prompt)
    body = next((block for block in blocks if block.strip()), text)
    if prompt and body.lstrip("\n").startswith((" ", "\t")) and (found := _continuation(body, names, prompt)):
        return found
    for start in (0, *(match.start() for match in TOP_LEVEL.finditer(text))):
        bare = leading_program(text[start:])
        if _defines(bare, names):
            return _finish(bare, names, prompt)
    return _continuation(body, names, prompt) if prompt else None


def leading_program(text: str, prefix: str = "") -> str:
    """The first lines of `text`, as many as compile after `prefix`; "" if none do."""
    lines, offset = io.StringIO(text).readlines(), prefix.count("\n")
    while lines:
        try:
            _quietly(compile, prefix + "".join(lines), "<program>", "exec", dont_inherit=True)
        except SyntaxError as error:
            lines = lines[: max(0, min(len(lines), (error.lineno or 1) - offset) - 1)]
        except (ValueError, RecursionError, MemoryError):  # a null byte, nesting too deep for the parser
            return ""
        else:
            return "".join(lines)
    return ""


def _defines(text: str, names: Sequence[str]) -> bool:
    return any(isinstance(node, DEFINITIONS) and node.name in names for node in _quietly(ast.parse, text).body)


def _finish(text: str, names: Sequence[str], prompt: str) -> str:
    """A program that stands by itself, with the prompt's imports and helpers before it."""
    start = f"{prompt}\n    pass\n" if prompt else ""
    return _without_demonstration(start + text, names)


def _continuation(body: str, names: Sequence[str], prompt: str) -> str | None:
    """`prompt` + `body`, with the indentation that keeps most of the body; None if nothing of it compiles."""
    variants = [body, f"    {body.lstrip()}", textwrap.indent(textwrap.dedent(body), "    ")]
    kept = [leading_program(variant, prompt) for variant in variants]
    best = max(kept, key=lambda text: len(text.split()))  # the first among equals
    if not best.strip():
        return None
    nodes = _quietly(ast.parse, prompt + best).body
    # a base model goes on and writes the function anew: the first one is its answer
    first = next((place for place, node in enumerate(nodes) if isinstance(node, DEFINITIONS) and node.name in names), 0)
    again = [node for node in nodes[first + 1 :] if isinstance(node, DEFINITIONS) and node.name in names]
    source = prompt + best if not again else ast.unparse(ast.Module([n for n in nodes if n not in again], []))
    return _without_demonstration(source, names)


def _without_demonstration(source: str, names: Sequence[str]) -> str:
    module = _quietly(ast.parse, source)
    origins = {
        alias.asname or alias.name.partition(".")[0]: _origin(node, alias)
        for node in ast.walk(module)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    kept = []
    for node in module.body:
        if not _demonstrates(node, names, origins):
            kept.append(node)
        if isinstance(node, DEFINITIONS) and node.name not in names and _runs_tests(node, origins):
            origins[node.name] = f"{TEST_RUNNERS[0]}.main"
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            made = _dotted(node.value, origins)
            if _runs_tests(node.value, origins):
                made = f"{TEST_RUNNERS[0]}.main"  # what comes of a run that is left out
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            origins |= dict.fromkeys(bound, made) if made.partition(".")[0] in TEST_RUNNERS else {}
    return source if len(kept) == len(module.body) else ast.unparse(ast.Module(kept, []))


def _origin(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    """What an import binds: `unittest.main` for `go` in `from unittest import main as go`."""
    if isinstance(node, ast.ImportFrom):
        return f"{node.module}.{alias.name}"
    return alias.name if alias.asname else alias.name.partition(".")[0]


def _dotted(node: ast.expr, origins: Mapping[str, str]) -> str:
    """What an expression leads through: `unittest.TestRunner.run` for `ut.TestRunner().run(suite)`; "" for no name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute | ast.Call):
        parts[:0] = [node.attr] if isinstance(node, ast.Attribute) else []
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return ".".join([origins.get(node.id, node.id), *parts]) if isinstance(node, ast.Name) else ""


def _runs_tests(node: ast.AST, origins: Mapping[str, str]) -> bool:
    parts = (part for part in ast.walk(node) if isinstance(part, ast.Name | ast.Attribute | ast.Call))
    return any(RUNS_TESTS.match(_dotted(part, origins)) for part in parts)


def _demonstrates(node: ast.stmt, names: Sequence[str], origins: Mapping[str, str]) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.If):
        own = any(isinstance(part, ast.Name) and part.id == "__name__" for part in ast.walk(node.test))
        return own or _runs_tests(node.test, origins)
    if isinstance(node, ast.Try | ast.With):
        inner = node.body if isinstance(node, ast.With) else [*node.body, *node.orelse, *node.finalbody]
        return all(_demonstrates(part, names, origins) for part in inner)
    if isinstance(node, ast.Raise):
        return node.exc is not None and _dotted(node.exc, origins) == "SystemExit"
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return node.value is not None and _runs_tests(node.value, origins)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        called = node.value.func
        if isinstance(called, ast.Name) and (called.id in names or DEMONSTRATION.match(called.id)):
            return True
        dotted = _dotted(called, origins)
        return dotted in ("sys.exit", "os._exit") or dotted.partition(".")[0] in TEST_RUNNERS
    return False


# -- grading -------------------------------------------------------------------------------------------------


class CodeGrader(Grader):
    """Runs a completion's program against its row's tests in the sandbox."""

    def __init__(self, sandbox: SandboxConfig, pass_at: Sequence[int], samples: int) -> None:
        self.sandbox, self.pass_at, self.samples = sandbox, sorted(set(pass_at)), samples
        if not pass_at or self.pass_at[0] < 1:
            raise ValueError(f"task.pass_at must be one or more numbers from 1 up, not {list(pass_at)}")
        if self.pass_at[-1] > samples:
            raise ValueError(f"pass@{self.pass_at[-1]} needs task.samples >= {self.pass_at[-1]}, not {samples}")

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> CodeGrader:
        return cls(config.sandbox, config.pass_at, config.samples)

    def check(self) -> None:
        check_isolation(self.sandbox)

    def reference(self, example: Example, text: str) -> str:
        return suite(example.row).tests

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        suites = [suite(item.example.row) for item in items]
        programs = [
            extract_program(item.completion, tests.names, tests.prompt)
            for item, tests in zip(items, suites, strict=True)
        ]
        trials = [
            Trial(source, tests.tests, tests.names, tests.preamble)
            for source, tests in zip(programs, suites, strict=True)
            if source is not None
        ]
        distinct = list(dict.fromkeys(trials))  # samples of one prompt are often the same
        with Sandbox(self.sandbox) as sandbox:
            outcomes = dict(zip(distinct, sandbox.run(distinct), strict=True))
        results = iter(trials)
        return [
            Grade(False, None, "no code found")
            if source is None
            else Grade((outcome := outcomes[next(results)]).passed, source, outcome.reason)
            for source in programs
        ]

    def answer_spans(self, example: Example) -> list[tuple[int, int]]:
        """The first line of every function and class that the row's tests need; without tests, of all of them that
        stand at the margin. None where the response only continues the prompt, in which that line is."""
        try:
            names = suite(example.row).names
        except RowError:
            names = ()
        found = DEFINITION.finditer(example.response)
        return [match.span() for match in found if not names or match["name"] in names]

    def metrics(self, references: Sequence[str], grades: Sequence[Sequence[Grade]]) -> dict[str, Metric]:
        """`pass@k` for each k asked for; with one sample per problem its pass@1 is a proportion (Wilson)."""
        figures = accuracy_metrics(grades)
        single = figures.pop("accuracy")
        counts = [(len(samples), sum(bool(grade.correct) for grade in samples)) for samples in grades]
        for k in reversed(self.pass_at):
            chances = np.array([pass_at_k(n, correct, k) for n, correct in counts])
            metric = bootstrap(lambda index: float(chances[index].mean()), len(chances), "problems")  # noqa: B023
            figures = {f"pass@{k}": single if single.interval == "wilson" else metric, **figures}
        return figures

    def system_info(self) -> dict[str, Any]:
        return isolation_record(self.sandbox)
