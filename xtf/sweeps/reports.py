"""The report of each experiment that a sweep belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xtf.config.schema import Stage
from xtf.reporting.sweep_report import sweep_report
from xtf.sweeps.jobs import Planned


def write_reports(jobs: Sequence[Planned]) -> None:
    """After a sweep: the report of each experiment that it belongs to."""
    from xtf.runtime.progress import say

    stages = (Stage.all, Stage.evaluate, Stage.mask, Stage.score)
    found = {(job.config.output_dir, job.config.experiment) for job in jobs if job.config.stage in stages}
    for output, experiment in sorted(found, key=str):
        if experiment is None:
            continue
        try:
            files = experiment_report(experiment, Path(output) / "runs", Path(output) / "reports")
        except ValueError as error:  # every job failed: there is nothing to report yet
            say(f"no report: {error}")
            continue
        for file in files:
            if file.suffix in (".csv", ".md", ".html"):
                say(f"report: {file}")


def experiment_report(experiment: str, runs_root: Path, out_dir: Path, archive: Path | None = None) -> list[Path]:
    """The report of an experiment: of trained models, or of masks against a known truth (`xtf.study.detection`).

    ValueError: no run was found, or none has finished.
    """
    if experiment != "planted":
        return sweep_report(experiment, runs_root, out_dir, archive=archive)
    from xtf.study.detection import detection_report

    return detection_report(experiment, runs_root, out_dir, archive)
