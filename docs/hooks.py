"""What mkdocs is to do beside its pages: the table of every configuration key, made from xtf/config/schema.py.

`mkdocs.yml` names this file; `make docs` builds the site.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

from xtf.config import schema
from xtf.scoring.methods import METHODS

HEAD = """# Every configuration key

Made from `xtf/config/schema.py` when this site is built. `python run.py KEY=VALUE` sets a key, a file in `conf/GROUP/`
those of its group; `python run.py --cfg job` prints the configuration that a command composes. *needed*: there is no
default, a choice of the group gives the value.
"""


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: the generated page among the others."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "configuration.md", content=configuration()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: what a page links to outside docs/ is a path in the repository, which the site does not hold."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]+\)", r"`\1`", markdown)


def configuration() -> str:
    """The page of every key, in Markdown."""
    parts = [HEAD]
    hints = get_type_hints(schema.Config)
    kinds = {name: schema.threshold_type() if name == "threshold" else hints[name] for name in hints}
    plain = [name for name, kind in kinds.items() if not dataclasses.is_dataclass(kind) and name != "method"]
    parts.append(_section("Top level", schema.Config, plain, ""))
    for name, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            parts.append(_section(f"`{name}`", kind, None, f"{name}."))
    parts.append("## `method`\n\nWhat each method does: [Methods](methods.md).\n")
    for name, kind in METHODS.items():
        own = [field.name for field in dataclasses.fields(kind) if field.name != "name"]
        if own:
            parts.append(_section(f"`method={name}`", kind, own, "method.", level=3))
    return "\n".join(parts)


def _section(title: str, kind: type, only: list[str] | None, prefix: str, level: int = 2) -> str:
    rows = ["| " + " | ".join([f"`{key}`", *rest]) + " |" for key, *rest in keys(kind, only, prefix)]
    said = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"{'#' * level} {title}", "", said, "", *table, ""])


def keys(kind: type, only: list[str] | None = None, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every key of a dataclass, those of dataclasses within it included."""
    hints, said = get_type_hints(kind), comments(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if only is not None and field.name not in only:
            continue
        if dataclasses.is_dataclass(hint):
            yield from keys(hint, None, f"{prefix}{field.name}.")  # type: ignore[arg-type]  # a class, not an instance
            continue
        yield f"{prefix}{field.name}", _type(hint), _default(field), said.get(field.name) or _doc(field.name, hint)


@functools.cache
def comments(kind: type) -> dict[str, str]:
    """What the comments beside or above each field of a dataclass say, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        source = inspect.getsource(base)
        texts = {
            token.start[0]: (token.string.lstrip("# ").strip(), token.line.lstrip().startswith("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        (tree,) = ast.parse(source).body
        for node in tree.body:  # type: ignore[attr-defined]  # a class has a body
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            above, line = [], node.lineno - 1
            while line in texts and texts[line][1]:
                above.insert(0, texts[line][0])
                line -= 1
            beside = [texts[at][0] for at in range(node.lineno, (node.end_lineno or 0) + 1) if at in texts]
            if said := " ".join([*above, *beside]):
                found[node.target.id] = said.replace("|", "\\|")
    return found


def _type(hint: Any) -> str:
    parts = [part for part in get_args(hint) if part is not type(None)]
    if len(parts) == 1 and type(None) in get_args(hint):
        return f"{_type(parts[0])}, or null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(f"`{name}`" for name in hint.__members__)
    if parts:
        return f"{hint.__origin__.__name__} of {_type(parts[-1])}"
    names = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    return names.get(hint, f"`{getattr(hint, '__name__', hint)}`")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
    if value == schema.MISSING:
        return "*needed*"
    if isinstance(value, enum.Enum):
        value = value.name
    if value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return "`" + str(value).replace("|", "\\|").replace("\n", "\\n") + "`"


def _doc(name: str, hint: Any) -> str:
    """What is known of a key without a comment: an enum's own docstring."""
    if name == "name":
        return "of the choice, as folders and reports show it"
    kinds = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, enum.Enum)]
    return " ".join((kinds[0].__doc__ or "").split()) if kinds else ""
