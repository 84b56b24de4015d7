"""Graders by name: a completion -> right, wrong or not gradable. `xtf.graders.base` says how to write one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xtf.config.identity import nearest
from xtf.config.schema import TaskConfig
from xtf.data.examples import Example
from xtf.graders.base import EXAMPLE, Grade, Grader, Item, checked
from xtf.runtime.imports import import_named, installed

# Each is imported when it is asked for: some bring libraries that take seconds to load.
GRADERS = {
    "exact": "xtf.graders.text.TextGrader",
    "contains": "xtf.graders.text.TextGrader",
    "substring": "xtf.graders.text.TextGrader",
    "number": "xtf.graders.number.NumberGrader",
    "math": "xtf.graders.expression.MathGrader",
    "choice": "xtf.graders.choice.ChoiceGrader",
    "decision": "xtf.graders.choice.ChoiceGrader",
    "code": "xtf.graders.code.CodeGrader",
    "judge": "xtf.graders.judge.JudgeGrader",
}
INSTALLED = installed("xtf.graders", GRADERS)  # of other packages
# Counted up when a grader says something else of a completion than before: finished runs are then graded again.
VERSIONS = (
    dict.fromkeys(("exact", "substring", "judge"), 2)
    | dict.fromkeys(("contains", "code"), 3)
    | dict.fromkeys(("number", "math", "choice", "decision"), 5)
)
OWN_FUNCTION = "python:"
PROTOCOL = ("of", "check", "reference", "grade", "metrics", "system_info")


def load_grader(config: TaskConfig, output_dir: Path) -> Grader:
    """The grader that `task.grader` names: one of `GRADERS`, an own function or an own class.

    Raises:
        ValueError: an unknown name, a class without the methods of `Grader`, or settings that do not fit the grader.
    """
    name = config.grader
    if config.choices and name != "choice" and (name in GRADERS or name.startswith(OWN_FUNCTION)):
        raise ValueError(f"task.choices is read by task.grader=choice only, not by {name}")
    path = "xtf.graders.python.PythonGrader" if name.startswith(OWN_FUNCTION) else (GRADERS | INSTALLED).get(name, name)
    if "." not in path:
        raise ValueError(
            f"unknown task.grader {name!r}{nearest(name, [*GRADERS, *INSTALLED])}: one of "
            f"{', '.join((*GRADERS, *INSTALLED))}, "
            "python:module.function, or a class of yours, module.MyGrader"
        )
    found = import_named(f"task.grader={name}", path, "module.MyGrader")
    missing = [method for method in PROTOCOL if not callable(getattr(found, method, None))]
    if missing:
        raise ValueError(
            f"task.grader={name} has no {', '.join(missing)}: derive it from xtf.graders.base.Grader, which has them "
            "(a plain function is named python:module.function)"
        )
    with asking(name, "of"):
        grader: Grader = found.of(config, output_dir)
    return grader


def graded(name: str, grader: Grader, items: Sequence[Item]) -> list[Grade]:
    """The grades that the grader called `name` gives, one for each item.

    Raises:
        ValueError: a grader of the user's own failed, on which example, or gave something else.
    """
    try:
        grades: Any = grader.grade(items)
        grades = list(grades) if isinstance(grades, Iterable) else grades
    except Exception as error:  # somebody else's code can raise anything
        if name in GRADERS:
            raise
        several = f"one of {len(items)} examples, the first " if len(items) > 1 else EXAMPLE
        named = [note for note in getattr(error, "__notes__", ()) if note.startswith(EXAMPLE)]
        where = named[0] if named else f"{several}{items[0].example.example_id!r}"
        raise ValueError(f"task.grader={name} failed on {where}: {_said(error)}") from error
    return checked(name, grades, items)


@contextmanager
def asking(name: str, method: str) -> Iterator[None]:
    """Around any other method of a grader: what one of the user's own raises is a sentence, as its ValueErrors are.

    Raises:
        ValueError: naming the grader and the method.
    """
    try:
        yield
    except Exception as error:
        if name in GRADERS or isinstance(error, ValueError):
            raise
        raise ValueError(f"task.grader={name} failed in {method}: {_said(error)}") from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if type(error) is ValueError and text else f"{type(error).__name__}: {text}"


def version(name: str) -> int:
    """The version of a value of `task.grader`: of `VERSIONS`, or the attribute `version` of an own grader; else 1."""
    if name in GRADERS:
        return VERSIONS.get(name, 1)
    path = INSTALLED.get(name, name.removeprefix(OWN_FUNCTION))
    found = import_named(f"task.grader={name}", path, "module.MyGrader")
    return int(getattr(found, "version", 1))


def grade(
    grader: str,
    completion: str,
    reference: str,
    choices: Sequence[str] | None = None,
    *,
    row: Mapping[str, Any] | None = None,
) -> Grade:
    """The grade of one completion, as an evaluation would give it: `xtf.grade("number", "It is 1,000.", "1000")`.

    `grader` is a value of `task.grader`, `choices` one of `task.choices`; `row` is for the graders that look into it
    (`code`, whose tests are there, and own ones). `correct` is True, False, or None without a verdict.

    Raises:
        ValueError: an unknown grader, a reference that the grader cannot read, an own grader that fails, or whose
            result is no Grade.
    """
    for what, value in (("completion", completion), ("reference", reference)):
        if not isinstance(value, str):
            raise ValueError(f"the {what} must be text, not {type(value).__name__}")
    if isinstance(choices, str):
        raise ValueError(f"choices must be a list of answers, not the text {choices!r}")
    found = load_grader(TaskConfig(name="custom", grader=grader, choices=list(choices or ())), Path("outputs"))
    with asking(grader, "check"):
        found.check()
    example = Example("1", (), reference, row or {})
    with asking(grader, "reference"):
        key = found.reference(example, reference)
    return graded(grader, found, [Item(example, completion, key)])[0]
