"""Which runs an experiment has, in cells of runs that differ in nothing but the seed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.identity import leaves
from xtf.reporting.archived import SUFFIX, read_archive
from xtf.reporting.pages import counted
from xtf.reporting.runs import Run, check_together, load_run
from xtf.runtime.run_folder import OutputDir, RunFolder, run_folders

CASE = ("task", "model", "tuning")
SETTING = ("method", "scorer", "threshold")
UNKNOWN = "overrides"  # of a cell without a run: its folder has a hash of them alone


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but the seed: the finished ones, and the folders of those that are not."""

    case: tuple[str, ...]
    setting: Mapping[str, str]  # method, scorer, threshold and overridden keys
    runs: Mapping[int, Run]  # by seed
    unfinished: Sequence[Path]

    @property
    def folders(self) -> list[Path]:
        """Of all its runs."""
        return [*(run.folder for run in self.runs.values()), *self.unfinished]


# -- which runs ---------------------------------------------------------------------------------------------


class NoRuns(ValueError):
    """An experiment of which there is no run."""


def find_cells(experiment: str, runs_root: Path, archive: Path | None = None) -> list[Cell]:
    """The cells of an experiment, in the order of their folders.

    With `archive`, a folder of `xtf.study.archive` files, it is read from there.

    Raises:
        NoRuns: there is none.
    """
    if archive is None:
        return cells_in(*experiment_folders(experiment, runs_root))
    file = archive / f"{experiment}{SUFFIX}"
    if not file.is_file():
        raise NoRuns(f"no run of experiment {experiment!r} in {archive}: there is no {file.name}")
    return _cells(((run.folder, run) for run in read_archive(file)), {})


def cells_in(folders: Iterable[Path], listed: Mapping[Path, Mapping[str, Any]], trained: bool = True) -> list[Cell]:
    """The cells of these run folders, in their order.

    Args:
        listed: what a sweep says of its jobs, by the parent of their folders.
        trained: False for what is known before training: results that the folders may have are not read.

    Raises:
        ValueError: a record does not belong to the mask or the completions beside it.
    """
    return _cells(((folder, run_or_folder(folder) if trained else folder) for folder in folders), listed)


def _cells(found: Iterable[tuple[Path, Path | Run]], listed: Mapping[Path, Mapping[str, Any]]) -> list[Cell]:
    parents: dict[Path, list[Path | Run]] = defaultdict(list)
    for folder, run in found:
        parents[folder.parent].append(run)
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


# -- what they are called -----------------------------------------------------------------------------------


def label_cells(cells: Sequence[Cell]) -> tuple[list[str], str]:
    """What tells each cell from the others of its case, and in a sentence what holds unless a label says otherwise.

    A label names the keys that are not the same in all cells of some case; what differs between cases alone, as the
    paths of their rows, tells no setting from another. The method is named first, of the others no value that more than
    half of the cells have.
    """
    known = [cell for cell in cells if UNKNOWN not in cell.setting]
    keys = dict.fromkeys(key for cell in known for key in cell.setting)
    values: dict[tuple[Any, ...], set[Any]] = {}
    for cell in known:
        for key in keys:
            values.setdefault((cell.case, key), set()).add(cell.setting.get(key))
    telling = [key for key in keys if any(len(values[cell.case, key]) > 1 for cell in known)] or ["method"]
    usual = {}
    for key in telling[1:] if telling[0] == "method" else telling if len(telling) > 1 else []:
        value, times = Counter(cell.setting.get(key) for cell in known).most_common(1)[0]
        if value is not None and 2 * times > len(known):
            usual[key] = value
    labels: list[str] = []
    hidden: dict[str, str] = {}
    for cell in cells:
        whole = [key for key in telling if key in cell.setting]
        shown = [key for key in whole if cell.setting[key] != usual.get(key)]
        if UNKNOWN in cell.setting:
            shown = [*SETTING, UNKNOWN]
        elif shown:
            hidden |= {key: usual[key] for key in whole if key not in shown}
        labels.append(" ".join(f"{key}={cell.setting[key]}" for key in shown or whole) or _usual(cell, telling))
    said = ", ".join(f"{key}={value}" for key, value in hidden.items())
    return labels, said and f"Where a setting does not say otherwise: {said}."


def _usual(cell: Cell, keys: Sequence[str]) -> str:
    """What a cell that overrides nothing has for these keys, which others override, as its configuration says."""
    folder = next((found for found in map(RunFolder, cell.folders) if found.config.exists()), None)
    values = {} if folder is None else dict(leaves(folder.recorded))
    return " ".join(f"{key}={values[key]}" for key in keys if key in values) or "nothing overridden"


def names_of(labels: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The heading of settings, and their names by label: a key that begins all of them is the heading instead."""
    settings = dict.fromkeys(labels)
    keys = {label.partition("=")[0] for label in settings}
    first = keys.pop() if len(keys) == 1 and all("=" in label for label in settings) else ""
    return first or "setting", {label: label.removeprefix(f"{first}=") for label in settings}


def sweep_title(cells: Sequence[Cell], trained: bool) -> str:
    """What a sweep without a name went over, and how many runs it has, of which `trained` wants the finished ones."""
    cases = [{cell.case[part]: 0 for cell in cells} for part in range(len(CASE))]
    apart = [name for name, values in zip(CASE, cases, strict=True) if len(values) > 1]
    values: dict[str, set[Any]] = {}
    for key in {key for cell in cells for key in cell.setting} - {UNKNOWN}:
        values[key] = {cell.setting.get(key) for cell in cells}
    keys = [*apart, *sorted(key for key, found in values.items() if len(found) > 1)]
    keys += ["seed"] * (len({folder.name for cell in cells for folder in cell.folders}) > 1)
    over = f"{', '.join(keys[:-1])} and {keys[-1]}" if len(keys) > 1 else "".join(keys)
    number = sum(len(cell.runs if trained else cell.folders) for cell in cells)
    runs = counted(number, "finished run" if trained else "run")
    return f"{', '.join(cases[1])} on {', '.join(cases[0])}: {f'a sweep over {over}, ' if over else ''}{runs}"
