"""Which runs an experiment has, in cells of runs that differ in nothing but the seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.reporting.archived import SUFFIX, read_archive
from xtf.reporting.runs import Run, check_together, load_run
from xtf.runtime.run_folder import OutputDir, RunFolder, run_folders

CASE = ("task", "model", "tuning")
SETTING = ("method", "scorer", "threshold")


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed: the finished ones, and the folders of those that are not."""

    case: tuple[str, ...]
    setting: Mapping[str, str]  # method, scorer, threshold and overridden keys
    runs: Mapping[int, Run]  # by seed
    unfinished: Sequence[Path]


# -- which runs ---------------------------------------------------------------------------------------------


class NoRuns(ValueError):
    """An experiment of which there is no run."""


def find_cells(experiment: str, runs_root: Path, archive: Path | None = None) -> list[Cell]:
    """The cells of an experiment, in the order of their folders.

    With `archive`, a folder of `xtf.study.archive` files, it is read from there.

    Raises:
        NoRuns: there is none.
    """
    parents: dict[Path, list[Path | Run]] = defaultdict(list)
    listed: dict[Path, Mapping[str, Any]] = {}
    if archive is not None:
        file = archive / f"{experiment}{SUFFIX}"
        if not file.is_file():
            raise NoRuns(f"no run of experiment {experiment!r} in {archive}: there is no {file.name}")
        for run in read_archive(file):
            parents[run.folder.parent].append(run)
    else:
        folders, listed = experiment_folders(experiment, runs_root)
        for folder in folders:
            parents[folder.parent].append(run_or_folder(folder))
    return [cell_of(parent, seeds, listed.get(parent)) for parent, seeds in parents.items()]


def run_or_folder(folder: Path) -> Run | Path:
    """The run of a folder, or the folder itself where it has not finished.

    Raises:
        ValueError: its record does not belong to the mask or the completions beside it.
    """
    if not RunFolder(folder).has_results:
        return folder
    run = load_run(folder)
    check_together(run.record, RunFolder(folder))
    return run


def experiment_folders(name: str, runs_root: Path) -> tuple[list[Path], dict[Path, Mapping[str, Any]]]:
    """The run folders of an experiment, those that its sweeps have yet to make included, and what the listed ones are.

    The first are in order; the second are by parent folder, that of a cell.

    Raises:
        NoRuns: there is none.
    """
    output = OutputDir(runs_root.parent)
    jobs = {output.path / folder: job for folder, job in output.listed_jobs(name).items()}
    found = {folder.path for folder in run_folders(runs_root, name)}
    if not found and not any(RunFolder(folder).config.exists() for folder in jobs):
        raise NoRuns(f"no run of experiment {name!r} under {runs_root}: run it first")
    return sorted(found | jobs.keys()), {folder.parent: job for folder, job in jobs.items()}


def cell_of(parent: Path, found: Sequence[Path | Run], listed: Mapping[str, Any] | None = None) -> Cell:
    """A cell from finished runs and the folders of unfinished ones; `listed`: what its sweep says of it."""
    runs = [each for each in found if isinstance(each, Run)]
    unfinished = [each for each in found if isinstance(each, Path)]
    said = runs[0].record if runs else listed
    if said is not None:
        setting = {key: said[key] for key in SETTING} | dict(said["overrides"])
        case = [said[key] for key in CASE]
    else:  # the folder says it: <task>/<model>/<tuning>/<method>/<scorer>-<threshold>[-<overrides>]
        folder = RunFolder(parent / "seed0")
        setting, case = folder.setting, list(folder.case)
    texts = {key: str(value) for key, value in setting.items()}
    return Cell(tuple(case), texts, {run.seed: run for run in runs}, unfinished)
