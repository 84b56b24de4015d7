"""docs/map.md: a line for every file, and no line for a file that is gone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def entries() -> Iterator[str]:
    """The paths of the map, from the root: a line that is not indented names a room or a path of its own."""
    room = ""
    for line in (ROOT / "docs" / "map.md").read_text(encoding="utf-8").split("```")[1].splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if not line.startswith(" "):
            room = name
        yield (room + name) if line.startswith(" ") else name


def has_code(file: Path) -> bool:
    """Whether a file holds more than a docstring; a room's own line stands for one that does not."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_every_file_of_the_package_has_a_line_of_the_map() -> None:
    files = [*(ROOT / "xtf").rglob("*.py"), *(ROOT / "hydra_plugins").glob("*.py"), ROOT / "run.py"]
    wanted = {file.relative_to(ROOT).as_posix() for file in files if has_code(file)}
    assert len(wanted) > 80
    assert wanted - set(entries()) == set()


def test_no_line_of_the_map_names_what_is_gone_or_twice() -> None:
    found = list(entries())
    assert [path for path in found if not (ROOT / path).exists()] == []
    files = [path for path in found if not path.endswith("/")]
    assert sorted(files) == sorted(set(files))
