"""Every method, task and logger from its rows to the last page, with the bundled model and a few rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest

from xtf import pipeline
from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.identity import overrides
from xtf.config.schema import GROUPS
from xtf.scoring.methods import METHODS

ROOT = Path(__file__).parents[1]
SMALL = [
    "task.train.limit=6",
    "task.eval.limit=2",
    "task.max_new_tokens=4",
    "tuning.max_steps=1",
    "tuning.batch_size=3",
    "preview.examples=2",
]
TASKS = [file.stem for file in sorted((ROOT / "conf/task").glob("*.yaml")) if file.stem != "math"]  # of the methods
MORE = {  # what a choice needs beside its name
    "method=oracle": ["plant.share=0.3"],
    "method=data_augmentation": ["method.factor=2"],
    "task=custom": ["task.source=bundled", "task.bundled=math", "task.grader=exact"],
    "task=finance": ["task.grader=exact", "logger=tensorboard"],
    "task=code": ["task.samples=1", "task.temperature=0", "task.pass_at=[1]", "task.sandbox.allow_unsandboxed=true"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working folder, whose scores and base completions the runs share."""
    return tmp_path_factory.mktemp("every")


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> Iterator[Callable[..., Any]]:
    """Runs a configuration there as run.py does; returns its record."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()

    def call(*arguments: str) -> Any:
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            node = hydra.compose("config", overrides=[*SMALL, *arguments])
            default = hydra.compose("config", overrides=[a for a in arguments if a.split("=")[0] in GROUPS])
        return pipeline.run(resolve(to_config(node)), overrides(node, default))

    yield call


def finished(record: dict[str, Any], folder: Path) -> None:
    """The record has its figures, and the report and the explorer stand beside each other."""
    assert record["metrics"]
    assert record["mask"]["kept_tokens"] > 0
    reports = list((folder / "outputs/reports").rglob("report.html"))
    assert reports
    assert (max(reports, key=lambda file: file.stat().st_mtime).parent / "report.md").exists()


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"given"}))
def test_every_method_runs_to_the_last_page(run: Callable[..., Any], folder: Path, method: str) -> None:
    record = run(f"method={method}", *MORE.get(f"method={method}", []))
    assert record["method"] == method
    finished(record, folder)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_logger_runs_to_the_last_page(run: Callable[..., Any], folder: Path, task: str) -> None:
    """The default logger is csv, finance has tensorboard; wandb, which waits for its server, is tested by itself."""
    record = run(f"task={task}", *MORE.get(f"task={task}", []))
    assert record["task"] == task
    finished(record, folder)


def test_a_given_table_runs_to_the_last_page(run: Callable[..., Any], folder: Path) -> None:
    rows = [{"input_ids": list(range(5, 25 + n)), "labels": [-100] * 8 + list(range(13, 25 + n))} for n in range(6)]
    weighed = [
        {"input_ids": row["input_ids"], "prompt_length": 8, "weights": [0.5] * (len(row["input_ids"]) - 8)}
        for row in rows
    ]
    for name, table in (("labels", rows), ("weights", weighed)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
        record = run("method=given", f"task.train.path={path}", "task.train.limit=null", "seed=2")
        assert record["method"] == "given"
        finished(record, folder)
