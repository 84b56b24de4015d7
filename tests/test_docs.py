"""The documentation: every configuration key has its meaning, and the notebook runs from top to bottom."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from xtf.config.schema import Config
from xtf.scoring.methods import METHODS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """The rows of the generated page: type, default and meaning by key."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    lines = [line for line in hooks.configuration().splitlines() if line.startswith("| `")]
    cells = [line.replace("\\|", "/").strip("| ").split(" | ") for line in lines]
    return {key.strip("`"): rest for key, *rest in cells}


def test_every_key_has_type_default_and_meaning(table: dict[str, list[str]]) -> None:
    assert [key for key, rest in table.items() if len(rest) != 3 or not all(rest)] == []
    hints = get_type_hints(Config)
    wanted = {name for name in hints if not dataclasses.is_dataclass(hints[name])} - {"method"}
    for group in ("model", "task", "scorer", "threshold", "tuning", "trainer", "logger"):
        wanted |= {
            f"{group}.{one.name}"
            for one in dataclasses.fields(hints[group])
            if not dataclasses.is_dataclass(get_type_hints(hints[group])[one.name])
        }
    wanted |= {f"method.{one.name}" for kind in METHODS.values() for one in dataclasses.fields(kind)} - {"method.name"}
    assert wanted - set(table) == set()


def test_types_and_defaults_are_the_schemas(table: dict[str, list[str]]) -> None:
    assert table["task.train.limit"][:2] == ["whole number, or null", "`null`"]
    assert table["threshold.kn.pcp"][:2] == ["number", "`0.95`"]
    assert table["trainer.compile"][:2] == ["true, false", "`false`"]
    assert table["tuning.schedule"][0].startswith("`constant`, `linear`")
    assert table["task.grader"][:2] == ["text", "*needed*"] and table["task.grader"][2].startswith("exact, contains, ")


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    cells = json.loads((ROOT / "docs" / "first.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "threshold=paper" in done.stdout and "this mask: " in done.stdout and "Masked rows for TRL" in done.stdout
    assert (tmp_path / "preview.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_what_a_page_outside_the_site_leads_to_is_there(page: str) -> None:
    """The site's own pages are checked as it is built."""
    text = (ROOT / page).read_text(encoding="utf-8")
    places = [place for place in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in place]
    named = re.findall(r"`((?:xtf|conf|docs|tests|experiments)/[\w./]+)`", text)
    there = [place.partition("#")[0] for place in (*places, *named) if "NAME" not in place]
    assert there and [place for place in there if not (ROOT / place).exists()] == []


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(built, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "configuration" / "index.html").read_text(encoding="utf-8")
    assert "threshold.kn.pcp" in page
    assert "domain_words" in (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
