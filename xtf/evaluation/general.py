"""General ability, to see what fine-tuning made a model forget: tasks of `lm-eval` (extra `general`) on a model folder.

A task is a name that `lm-eval` knows (`hellaswag`, fetched from the hub), or `hellaswag:<file>` for HellaSwag's
validation set as a local text file (optionally .bz2) with six lines per item: context, label, four endings.
Source of that format: https://github.com/klosax/hellaswag_text_data.
"""

from __future__ import annotations

import bz2
import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xtf.config.identity import general_file
from xtf.config.schema import Config
from xtf.graders.metrics import Metric, wilson
from xtf.runtime.artifacts import check_model, intact, known_sha256, read_json, write_json
from xtf.runtime.models import device, location

Z_95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
PROPORTIONS = ("acc", "acc_norm", "exact_match")


def check_general(tasks: Sequence[str]) -> None:
    """Refuses, before any training, tasks that cannot run: no `lm-eval`, an unknown name, a file that is not right."""
    if not tasks:
        return
    if find_spec("lm_eval") is None:
        raise ValueError("evaluate.general needs the extra `general`: pip install 'xtf[general]'")
    files = [file for task in tasks if (file := general_file(task)) is not None]
    for file in files:
        hellaswag_items(Path(file))
    if len(files) > 1:
        raise ValueError(f"evaluate.general names {len(files)} files, whose figures would have one name: give one")
    named = [task for task in tasks if general_file(task) is None]
    if named:
        from lm_eval.tasks import TaskManager

        unknown = sorted(set(named) - set(TaskManager().all_tasks))
        if unknown:
            raise ValueError(f"evaluate.general: lm-eval knows no task {', '.join(unknown)}")


def hellaswag_items(path: Path) -> list[dict[str, Any]]:
    """The items of a HellaSwag text file as {"query", "choices", "label"}; ValueError if it is not one."""
    if not path.is_file():
        raise ValueError(f"evaluate.general: no such file: {path}")
    content = path.read_bytes()
    lines = (bz2.decompress(content) if path.suffix == ".bz2" else content).decode("utf-8").rstrip("\n").split("\n")
    if len(lines) % 6 or not all(label in "0123" for label in lines[1::6]):
        raise ValueError(f"{path}: needs six lines per item (context, label 0-3, four endings), has {len(lines)} lines")
    return [
        {
            "query": _clean(lines[start]),
            "choices": [_clean(ending) for ending in lines[start + 2 : start + 6]],
            "label": int(lines[start + 1]),
        }
        for start in range(0, len(lines), 6)
    ]


def _clean(text: str) -> str:
    """Without the mark-up that WikiHow left in the texts, as every HellaSwag evaluation does."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def evaluate_general(
    model: str,
    tasks: Sequence[str],
    *,
    revision: str = "main",
    device: str = "cpu",
    batch_size: int = 8,
    limit: int | None = None,
) -> dict[str, Metric]:
    """Runs `lm-eval` on a model (hub id or folder; a PEFT adapter's folder brings its base model along).

    Returns "general/<task>/<figure>" -> Metric; with `limit`, on the first items of each task only.
    """
    from lm_eval import simple_evaluate

    arguments: dict[str, Any] = {"pretrained": model, "revision": revision}
    adapter = Path(model) / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        arguments = {"pretrained": base, "peft": model, "revision": revision}
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            task if (file := general_file(task)) is None else _local_task(Path(file), Path(folder)) for task in tasks
        ]
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=chosen,
            device=device,
            batch_size=batch_size,
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
        )
    assert results is not None  # None on the other ranks of a distributed run only
    return {
        f"general/{task}/{name}": metric
        for task, figures in results["results"].items()
        for name, metric in _metrics(figures, results["n-samples"].get(task, {}).get("effective", 0)).items()
    }


def general_figures(config: Config, tuned: Path | None, folder: Path) -> dict[str, Any]:
    """Figures of `evaluate.general`, to see what fine-tuning made the model forget; kept in `folder`/general.json.

    Args:
        tuned: the folder of the fine-tuned model; None: the base model.
    """
    model, limit, file = config.model, config.evaluate.general_limit, folder / "general.json"
    figures: dict[str, Any] = read_json(file) if intact(file) else {}
    named = {task: general_file(task) for task in config.evaluate.general}
    # A file counts by its content, for the base model's figures outlast the run's.
    what = {task: f"{task}@{known_sha256(Path(file))}" if file else task for task, file in named.items()}
    names = {task: f"{what[task]}[:{limit or ''}]" for task in named}
    for task, name in names.items():
        if name not in figures:
            if tuned is not None:
                check_model(tuned)
            found = evaluate_general(
                location(model) if tuned is None else str(tuned),
                [task],
                revision=model.revision or "main",
                device=str(device(config.trainer)),
                limit=limit,
            )
            figures[name] = {key: dataclasses.asdict(metric) for key, metric in found.items()}
            write_json(file, figures, sealed=True)
    return {key: metric for name in names.values() for key, metric in figures[name].items()}


def _local_task(path: Path, folder: Path) -> dict[str, Any]:
    rows = folder / "hellaswag.jsonl"
    rows.write_text("".join(json.dumps(item) + "\n" for item in hellaswag_items(path)), encoding="utf-8")
    return {
        "task": "hellaswag_file",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(rows)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{label}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }


def _metrics(figures: Mapping[str, Any], n: int) -> dict[str, Metric]:
    """Wilson intervals for shares of right answers; for other figures the normal one from lm-eval's standard error."""
    metrics = {}
    for key, value in figures.items():
        name, _, kind = key.partition(",")
        if not isinstance(value, int | float) or not kind or name.endswith("_stderr"):
            continue
        error = figures.get(f"{name}_stderr,{kind}")
        if name in PROPORTIONS and n:
            metrics[name] = wilson(round(value * n), n)
        elif isinstance(error, int | float):
            metrics[name] = Metric(value, value - Z_95 * error, value + Z_95 * error, n, "normal")
    return metrics
