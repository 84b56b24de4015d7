"""The report after a sweep: of each experiment that it belongs to, or of its own jobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xtf.config.identity import digest
from xtf.config.schema import Stage
from xtf.reporting.archived import SUFFIX
from xtf.reporting.mask_report import has_results
from xtf.reporting.sweep_report import jobs_report, sweep_report
from xtf.runtime.progress import say
from xtf.runtime.run_folder import OutputDir, run_folders
from xtf.study.detection import detection_report
from xtf.sweeps.jobs import Planned, entry


def write_reports(jobs: Sequence[Planned]) -> None:
    """After a sweep: the report of each experiment that it belongs to; of jobs that belong to none, their own."""
    aside = (Stage.plan, Stage.dashboard, Stage.pretrain)  # of which no run is made
    found: dict[tuple[str, str | None], list[Planned]] = {}
    for job in jobs:
        if job.is_case and job.config.stage not in aside:
            found.setdefault((job.config.output_dir, job.config.experiment), []).append(job)
    for (place, experiment), some in sorted(found.items(), key=str):
        output = OutputDir(Path(place))
        try:
            files = _own_report(some, output) if experiment is None else experiment_report(experiment, output)
        except ValueError as error:  # every job failed: there is nothing to report yet
            say(f"no report: {error}")
            continue
        for file in files:
            if file.suffix in (".csv", ".md", ".html"):
                say(f"report: {file}")


def _own_report(jobs: Sequence[Planned], output: OutputDir) -> list[Path]:
    folders = {output.runs / job.name: job for job in sorted(jobs, key=lambda job: job.name)}
    listed = {folder.parent: entry(job) for folder, job in folders.items()}
    name = f"sweep-{digest([job.name for job in folders.values()], 8)}"
    return jobs_report(name, list(folders), listed, output.reports)


def experiment_report(experiment: str, output: OutputDir, archive: Path | None = None) -> list[Path]:
    """The report that the runs of an experiment call for: of trained models, of masks, or of masks with planted noise
    against that truth (`xtf.study.detection`).

    Args:
        archive: a folder of stored runs (`xtf.study.archive`) or findings, which is then read instead of `output`.

    Raises:
        ValueError: no run was found, or none has finished.
    """
    if not _of_planted_masks(experiment, output, archive):
        return sweep_report(experiment, output.runs, output.reports, archive=archive)
    return detection_report(experiment, output.runs, output.reports, archive)


def _of_planted_masks(experiment: str, output: OutputDir, archive: Path | None) -> bool:
    """Whether the runs stop at masks and plant noise; of an archive, whether it holds findings instead of runs."""
    if archive is not None:
        return (archive / f"{experiment}.csv").is_file() and not (archive / f"{experiment}{SUFFIX}").is_file()
    folders = run_folders(output.runs, experiment)
    planted = any(folder.recorded.get("plant", {}).get("share") for folder in folders)
    return planted and not has_results([folder.path for folder in folders], [])
