"""The record of a finished run: metrics.json, the mark of a finished run, and scalars.csv beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xtf.config.identity import plain
from xtf.config.schema import Config
from xtf.reporting.published import write_scalars
from xtf.reporting.runs import Run, belonging
from xtf.runtime.artifacts import command, git_commit, sha256, versions, write_json
from xtf.runtime.models import fingerprint
from xtf.runtime.run_folder import Manifest, RunFolder

SCHEMA = 1  # of metrics.json
TIMED = ("score", "reference", "mask", "evaluate_base", "train", "evaluate")


def write_record(config: Config, changed: Mapping[str, Any], folder: RunFolder, manifest: Manifest) -> dict[str, Any]:
    """Write both from what the stages left; returns the content of metrics.json.

    Args:
        changed: the overridden keys that name the folder (`xtf.config.identity.overrides`).
    """
    stages = manifest.stages
    base = stages.get("evaluate_base", {})
    record = {
        "schema": SCHEMA,
        "task": config.task.name,
        "model": config.model.name,
        "tuning": config.tuning.name.value,
        "method": config.method.name,
        "scorer": config.scorer.name,
        "threshold": config.threshold.name,
        "seed": config.seed,
        "experiment": config.experiment,
        "overrides": plain(dict(changed)),
        "metrics": stages["evaluate"]["metrics"],
        "base_metrics": base.get("metrics"),
        "grading": stages["evaluate"]["grading"],
        "mask": stages["mask"]["stats"],
        "training": stages["train"]["record"],
        "encoding": manifest.content.get("encoding"),
        "weights": fingerprint(config.model),
        "regime": manifest.content.get("regime"),
        **({"planting": manifest.content["planting"]} if config.plant.share else {}),
        "data": manifest.data,
        "timing": {name: stages[name]["seconds"] for name in TIMED if name in stages},
        "hashes": {name: sha256(file) for name, file in belonging(folder).items()},
        "artifacts": {
            **stages["score"]["paths"],
            "mask": str(folder.mask),
            "model": str(folder.model),
            "generations": stages["evaluate"]["path"],
            "base_generations": base.get("path"),
            "train_log": str(folder.train_log),
            "config": str(folder.config),
            "metrics": str(folder.metrics),
        },
        "command": command(),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    write_scalars(Run(folder.path, record))
    write_json(folder.metrics, record, sealed=True)
    return record
