"""The jobs of a sweep: composed and checked before the first one starts, and what became of each.

What a job leaves is in files alone (metrics.json when it has finished, error.json when it has failed), so that it does
not matter which process or machine a launcher runs it on. Nothing here imports torch.
"""

from __future__ import annotations

import copy
import functools
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.checks import resolve
from xtf.config.compose import build, compose, explain, parse_overrides, typed
from xtf.config.home import PACKAGE
from xtf.config.identity import changed_keys, overrides, plain
from xtf.config.schema import GROUPS, Accelerator, Config, ConfigError
from xtf.config.unread import in_words, unread_by_all
from xtf.runtime.artifacts import locked, program, write_json
from xtf.runtime.progress import say
from xtf.runtime.run_folder import OutputDir, RunFolder, finished

if TYPE_CHECKING:
    from omegaconf import DictConfig


class JobsFailedError(Exception):
    """Some jobs of a sweep did not finish; the message names each of them with its error."""


@dataclass(frozen=True)
class Planned:
    """One job of a sweep: its command line, the resolved configuration that this gives, and its folder."""

    overrides: tuple[str, ...]
    config: Config
    changed: Mapping[str, Any]  # the overridden keys that name the folder
    is_case: bool = True  # False: a pair of model and tuning that the experiment does not run
    set_keys: frozenset[str] = frozenset()  # all that the command line or the experiment's file changes

    @property
    def folder(self) -> RunFolder:
        """Where the run lies."""
        return RunFolder.of(self.config, self.changed)

    @property
    def name(self) -> str:
        """The path below runs/."""
        return self.folder.name


def is_case(config: Config) -> bool:
    """Whether an experiment runs this pair of model and tuning; the tiny model stands in for all of them."""
    pair = f"{config.model.name}/{config.tuning.name.value}"
    return not config.cases or pair in config.cases or config.model.bundled_data


# --- composing -------------------------------------------------------------------------------------------------------


def compose_jobs(batch: Sequence[Sequence[str]], composer: Composer | None = None) -> list[Planned]:
    """Every job of a sweep, composed and resolved; Hydra must be initialized.

    Args:
        composer: one that was made for these jobs and others, so that they share its compositions.

    Raises:
        ConfigError: naming the first job that could not run, or two jobs that would write the same folder.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    composer = composer or Composer(batch)
    jobs, folders = [], dict[RunFolder, Planned]()
    for arguments in batch:
        try:
            job = composer.job(arguments)
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            why = error if isinstance(error, ConfigError) else explain(error)
            line = " ".join(arguments)
            raise ConfigError(f"nothing was started, for one of {len(batch)} jobs is wrong: {line}: {why}") from error
        jobs.append(job)
        if not job.is_case:
            continue
        twin = folders.setdefault(job.folder, job)
        if twin is not job:
            raise ConfigError(
                f"nothing was started, for two jobs would write {job.folder.path}: {' '.join(twin.overrides)} and "
                f"{' '.join(job.overrides)} (they differ in keys that do not change results)"
            )
    return jobs


class Composer:
    """Composes many jobs from few compositions.

    Hydra takes tenths of a second for one. But our groups do not depend on each other: the node of `model` follows from
    the choice of model, the overrides below it and the experiment. So a composition with the first choice of every
    group, one with the second of each, and so on, hold the parts of every job.
    """

    def __init__(self, batch: Sequence[Sequence[str]]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.parse = functools.cache(OverridesParser.create().parse_override)
        self.compose = functools.cache(lambda *arguments: compose(arguments, hydra_node=True))
        self.typed = functools.cache(lambda *arguments: _typed(self.compose(*arguments)))
        self.part = functools.cache(self._part)
        self.choices: dict[str, list[str]] = {}
        for text in dict.fromkeys(text for arguments in batch for text in arguments):
            key = self.parse(text).key_or_group
            if key in GROUPS:
                self.choices.setdefault(key, []).append(text)

    def job(self, arguments: Sequence[str]) -> Planned:
        """A job of the batch, composed and resolved."""
        experiment = tuple(text for text in arguments if self.parse(text).key_or_group == "experiments")
        lines: dict[str, list[str]] = {key: [] for key in ("", *GROUPS)}
        for text in arguments:
            key = re.split(r"[./]", self.parse(text).key_or_group)[0]
            if key not in ("hydra", "experiments"):
                lines[key if key in lines else ""].append(text)
        values, changed, set_keys = dict[str, Any](), dict[str, Any](), frozenset(keys_of(arguments))
        for key, own in lines.items():
            part, different, every = self.part(key, experiment, tuple(own))
            values |= part
            changed |= different
            set_keys |= every
        config = Config(**values)
        if not is_case(config):
            return Planned(tuple(arguments), config, changed, is_case=False)
        return Planned(tuple(arguments), resolve(config), changed, set_keys=set_keys)

    def _part(
        self, key: str, experiment: tuple[str, ...], lines: tuple[str, ...]
    ) -> tuple[dict[str, Any], dict[str, Any], frozenset[str]]:
        """The values of group `key` ("": of the keys outside all groups) by field, the overridden leaves that name a
        run, and the keys of all that differ from the group's choice alone."""
        from omegaconf import OmegaConf

        choice = [line for line in lines if self.parse(line).key_or_group == key]
        row = self.choices[key].index(choice[0]) if choice else 0
        together = [texts[min(row, len(texts) - 1)] for texts in self.choices.values()]
        chosen = self.compose(*experiment, *together).hydra.runtime.choices
        default = self.typed(*(f"{group}={chosen[group]}" for group in GROUPS))
        values = [self.parse(line) for line in lines if line not in choice]
        if not values:
            composed = self.typed(*experiment, *together)
        elif any(value.is_add() or value.is_force_add() or value.is_delete() for value in values):
            composed = self.typed(*experiment, *together, *lines)
        else:
            node = copy.deepcopy(self.compose(*experiment, *together))
            for value in values:
                OmegaConf.update(node, value.key_or_group, value.value(), merge=True)
            composed = _typed(node)
        inside = [str(name) for name in composed if (name == key if key else name not in GROUPS)]
        config = build(composed)
        named, every = (
            {name: value for name, value in found.items() if name.split(".")[0] in inside}
            for found in (overrides(composed, default), changed_keys(composed, default))
        )
        return {name: getattr(config, name) for name in inside}, named, frozenset(every)


def _typed(composed: DictConfig) -> DictConfig:
    """A composition on the schema, without Hydra's own settings."""
    from omegaconf import OmegaConf

    return typed(OmegaConf.masked_copy(composed, [str(name) for name in composed if name != "hydra"]))


def without_given(grid: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The grid of an experiment less the keys that the command line sets: Hydra would run the product of both."""
    given = {override.key_or_group for override in parse_overrides(arguments)}
    return {key: values for key, values in grid.items() if key not in given}


def share_scoring(jobs: Sequence[Planned]) -> list[Planned]:
    """The jobs of a sweep over scorers or methods, each asking for the attributes of all, so that one pass serves them.

    Not where the command line sets `scorer.compute`.
    """
    kinds = {(job.config.scorer.name, job.config.method.name) for job in jobs}
    if len(kinds) < 2 or any("scorer.compute=" in text for job in jobs for text in job.overrides):
        return list(jobs)
    union = sorted({attribute for job in jobs for attribute in job.config.scorer.attributes})
    text = f"scorer.compute=[{','.join(union)}]"
    return [
        replace(
            job,
            overrides=(*job.overrides, text),
            config=replace(job.config, scorer=replace(job.config.scorer, compute=union)),
        )
        for job in jobs
    ]


def check_program() -> None:
    """Refuse to run a job by another version of the program than the one that started the sweep.

    Raises:
        ConfigError: its source files have changed since.
    """
    if os.environ.get("XTF_PROGRAM", program()) != program():
        raise ConfigError(
            f"the program has changed since the sweep was started ({PACKAGE} on {platform.node()}): one sweep would "
            "hold the results of two versions. Start it again, which runs what is missing"
        )


def launcher_settings(jobs: Sequence[Planned], launcher: Mapping[str, Any]) -> dict[str, Any]:
    """What Slurm is asked for a job, beside what `launcher` says: machines and devices are those of the jobs' trainer.

    Args:
        launcher: Hydra's node of that name.

    Raises:
        ConfigError: the launcher cannot start jobs on several machines, says something else than the trainer, or the
            jobs differ in what they need.
    """
    trainers = [job.config.trainer for job in jobs if job.is_case]
    if not str(launcher["_target_"]).endswith("SlurmLauncher"):
        if nodes := max((trainer.nodes for trainer in trainers), default=1) - 1:
            raise ConfigError(f"trainer.nodes={nodes + 1}: a sweep over several machines needs hydra/launcher=slurm")
        return {}
    wanted = {(trainer.nodes, 0 if trainer.accelerator is Accelerator.cpu else trainer.devices) for trainer in trainers}
    if len(wanted) != 1:
        raise ConfigError(
            "hydra/launcher=slurm asks the same for all jobs, and these differ in trainer.nodes or trainer.devices: "
            "run a sweep for each"
        )
    ((nodes, devices),) = wanted
    found: dict[str, Any] = {"nodes": nodes, "tasks_per_node": 1}  # the processes of a node are started by its one task
    elsewhere = any(launcher.get(key) for key in ("gres", "gpus_per_task", "additional_parameters"))
    if devices and not elsewhere:
        found["gpus_per_node"] = devices
    of = {"nodes": "trainer.nodes", "gpus_per_node": "trainer.devices", "tasks_per_node": "one task on each machine"}
    for key, value in found.items():
        if launcher.get(key) not in (None, 0, value):
            raise ConfigError(f"hydra.launcher.{key}={launcher[key]} is not {of[key]} ({value}): leave it out")
    return found


# --- what is there already -------------------------------------------------------------------------------------------


def unfinished(jobs: Sequence[Planned]) -> list[Planned]:
    """The jobs that a sweep has to run: those not finished, or whose last attempt failed, if only at the report."""
    return [job for job in jobs if job.is_case and (job.folder.failure() or not finished(job.config, job.folder))]


def keys_of(arguments: Iterable[str]) -> list[str]:
    """The keys that overrides set, as they are typed."""
    return [text.lstrip("+~").partition("=")[0] for text in arguments]


def say_what_runs(jobs: Sequence[Planned]) -> None:
    """What was set and no job reads; how many jobs are finished, left to run, skipped."""
    if told := unread_by_all((job.config, job.set_keys) for job in jobs if job.is_case):
        say(in_words(told))
    skipped, left = sum(not job.is_case for job in jobs), len(unfinished(jobs))
    done = len(jobs) - skipped - left
    line = f"{len(jobs)} jobs: {done} finished, {left} to run"
    say(line + (f", {skipped} skipped (not a case of the experiment)" if skipped else ""))


def list_jobs(jobs: Sequence[Planned]) -> None:
    """Add the jobs to <output_dir>/sweeps/<experiment>.json, so that a report knows which are missing.

    Several sweeps may share the work on an experiment; delete the file to forget jobs that will never be run.
    """
    listed: dict[tuple[OutputDir, str], dict[str, Any]] = {}
    for job in jobs:
        config = job.config
        if not job.is_case or config.experiment is None:
            continue
        where = OutputDir(Path(config.output_dir)), config.experiment
        listed.setdefault(where, {})[f"runs/{job.name}"] = entry(job)
    for (output, experiment), entries in listed.items():
        file = output.jobs_file(experiment)
        with locked(file.parent, say):
            write_json(file, output.listed_jobs(experiment) | entries, sealed=True)


def entry(job: Planned) -> dict[str, Any]:
    """What is said of a job for a report: its choices by name, seed, stage and overrides, as plain values."""
    config = job.config
    return {key: getattr(config, key).name for key in ("task", "model", "method", "scorer", "threshold")} | {
        "tuning": config.tuning.name.value,
        "seed": config.seed,
        "stage": config.stage.value,
        "overrides": plain(dict(job.changed)),
    }


def raise_failures(jobs: Sequence[Planned], launcher_error: Exception | None = None) -> None:
    """After a sweep: JobsFailedError with what failed and why, unless every job has finished."""
    reasons = {job.name: job.folder.failure() for job in jobs if job.is_case}
    lines = [f"{name}: {why}" for name, why in reasons.items() if why]
    if lines:
        lines.append(f"{len(lines)} failed; the same command runs what is missing")
    if launcher_error:
        lines.append(f"the launcher stopped: {type(launcher_error).__name__}: {launcher_error}")
    if lines:
        raise JobsFailedError("\n".join(lines))


# --- devices ---------------------------------------------------------------------------------------------------------


class _Device:
    lock: Any = None  # held by this process until it ends


def claim_device(config: Config) -> None:
    """Give this worker process one GPU of its own, for all the jobs that it runs; before torch is imported.

    Raises:
        ConfigError: every GPU is taken, or a job wants several.
    """
    from filelock import FileLock, Timeout

    if config.trainer.accelerator is Accelerator.cpu or _Device.lock is not None:
        return
    if config.trainer.devices > 1:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} with hydra/launcher=joblib: its jobs get one GPU each; "
            "leave the launcher out to run jobs one after another, or use hydra/launcher=slurm"
        )
    devices = _devices()
    folder = OutputDir(Path(config.output_dir)).devices
    folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        lock = FileLock(folder / f"{device.replace('/', '_')}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        _Device.lock = lock
        return
    raise ConfigError(f"all {len(devices)} GPUs are taken by other jobs: set hydra.launcher.n_jobs={len(devices)}")


def _devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return visible.split(",")
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            "hydra/launcher=joblib with GPUs needs their list: set CUDA_VISIBLE_DEVICES, e.g. to 0,1"
        ) from error
    return listing.stdout.split()
