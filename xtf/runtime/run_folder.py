"""Where a run lies and what lies in it."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtf.config.identity import digest
from xtf.config.schema import Config
from xtf.runtime.artifacts import command, read_json, write_json


def run_folder(config: Config, changed: Mapping[str, Any]) -> Path:
    """runs/<task>/<model>/<tuning>/<method>/<scorer>-<threshold>[-<hash of other overrides>]/seed<k>, relative."""
    last = f"{config.scorer.name}-{config.threshold.name}"
    if changed:
        last += f"-{digest(changed, 8)}"
    parts = ("runs", config.task.name, config.model.name, config.tuning.name.value, config.method.name, last)
    return Path(*parts, f"seed{config.seed}")


ERROR_FILE = "error.json"  # in a run's folder: why its last attempt failed; gone as soon as it is tried again


def job_name(config: Config, changed: Mapping[str, Any]) -> str:
    return run_folder(config, changed).relative_to("runs").as_posix()


# --- what a sweep consists of, for its report ------------------------------------------------------------------------


def jobs_file(output: Path, experiment: str) -> Path:
    return output / "sweeps" / f"{experiment}.json"


# --- failures --------------------------------------------------------------------------------------------------------


def record_error(folder: Path, error: Exception) -> None:
    """Leave `folder`/error.json, from which the process that started the sweep learns of the failure."""
    write_json(
        folder / ERROR_FILE,
        {
            "error": str(error) or repr(error),
            "type": type(error).__name__,
            "traceback": "".join(traceback.format_exception(error)),
            "command": command(),
        },
    )


def failure(folder: Path) -> str | None:
    """Why the last attempt at the run in `folder` failed; None if it did not."""
    file = folder / ERROR_FILE
    if not file.exists():
        return None
    found = read_json(file)
    return f"{found['type']}: {found['error']}"
