"""Where a run lies, what lies in it and beside it, and when it is finished. The only file that knows.

<output_dir>/scores/<key>/           one scoring pass, shared by every run that needs the same scores
<output_dir>/base/<key>/             the untouched model's completions, shared likewise
<output_dir>/references/<key>/       a reference model, shared likewise
<output_dir>/pretrained/<name>/      a base model made from nothing
<output_dir>/runs/<task>/<model>/<tuning>/<method>/<scorer>-<threshold>[-<hash of other overrides>]/seed<k>/
                                     one run; metrics.json is written last
<output_dir>/sweeps/<experiment>.json  the jobs that the sweeps of an experiment consist of
<output_dir>/exports/<run, with dashes>/<trainer>/  its masked rows for another trainer
<output_dir>/reports/                what people read
"""

from __future__ import annotations

import functools
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.identity import (
    before_keys,
    differing_keys,
    digest,
    grader_identity,
    identity,
    plain,
    side_files,
    to_yaml,
)
from xtf.config.schema import Config, ConfigError, Stage
from xtf.runtime.artifacts import (
    DamagedError,
    check,
    command,
    intact,
    known_sha256,
    read_entry,
    read_json,
    sha256,
    with_digest,
    write_atomic,
    write_json,
)
from xtf.runtime.models import BUNDLED
from xtf.runtime.progress import say

PARTS = ("task", "model", "tuning", "method", "setting", "seed")  # of a run folder's path below runs/
MADE_AGAIN = "run the command of its run again, which makes it anew"
OVERRIDDEN = re.compile(r"-[0-9a-f]{8}$")  # the end of a setting's name that has overrides of its own


class Place:
    """A file or folder within another, by its name there: `folder.mask` is `folder.path / "mask.parquet"`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, within: OutputDir | RunFolder, kind: type) -> Path:
        return within.path / self.name


@dataclass(frozen=True)
class OutputDir:
    """An output folder and what is shared between the runs in it."""

    path: Path

    runs = Place("runs")  # one folder a run
    scores = Place("scores")  # scoring passes
    base = Place("base")  # completions of untouched models
    references = Place("references")  # reference models
    pretrained = Place("pretrained")  # base models made from nothing
    reports = Place("reports")  # what people read
    exports = Place("exports")  # masked rows for other trainers
    devices = Place(".devices")  # locks of the devices that worker processes have claimed

    def jobs_file(self, experiment: str) -> Path:
        """The list of the jobs that the sweeps of an experiment consist of."""
        return self.path / "sweeps" / f"{experiment}.json"

    def listed_jobs(self, experiment: str) -> dict[str, dict[str, Any]]:
        """What it says of each job, by its folder in the output folder; {} without one."""
        file = self.jobs_file(experiment)
        found: dict[str, dict[str, Any]] = {}
        if file.exists():
            found = read_json(file, "delete it; jobs that will be run again are listed again")
        return found


@dataclass(frozen=True, order=True)
class RunFolder:
    """The folder of one run, by its path."""

    path: Path

    config = Place("config.yaml")  # the resolved configuration
    manifest = Place("manifest.json")  # what each stage left; see `Manifest`
    mask = Place("mask.parquet")  # the training table: token ids, scores, labels
    model = Place("model")  # the fine-tuned model, or its adapter
    train_log = Place("train_log.csv")  # a line for every optimizer step
    train_record = Place("train.json")  # left by the processes of a training on several devices
    generations = Place("generations.jsonl")  # completions of the fine-tuned model with their grades
    losses = Place("losses.json")  # what the reference responses cost it, row by row (evaluate.losses)
    scalars = Place("scalars.csv")  # the figures of metrics.json under their documented names
    metrics = Place("metrics.json")  # written last: a run that has it has finished
    wandb = Place("wandb.json")  # the id of its W&B run
    error = Place("error.json")  # why the last attempt failed; gone as soon as the run is tried again

    @classmethod
    def of(cls, config: Config, changed: Mapping[str, Any]) -> RunFolder:
        """Where a run lies; `changed`: the overridden keys that name it (`xtf.config.identity.overrides`)."""
        setting = f"{config.scorer.name}-{config.threshold.name}" + (f"-{digest(changed, 8)}" if changed else "")
        parts = (config.task.name, config.model.name, config.tuning.name.value, config.method.name, setting)
        return cls(OutputDir(Path(config.output_dir)).runs.joinpath(*parts, f"seed{config.seed}"))

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """`PARTS` of the path: task, model, tuning, method, setting, seed."""
        return self.path.absolute().parts[-len(PARTS) :]

    @property
    def name(self) -> str:
        """The path below runs/, which tells a run from all others of an output folder."""
        return "/".join(self.parts)

    @property
    def case(self) -> tuple[str, str, str]:
        """Task, model and tuning."""
        task, model, tuning, *_ = self.parts
        return task, model, tuning

    @property
    def setting(self) -> dict[str, str]:
        """What the path says of method, scorer, threshold and further overrides, for a run that has no record yet."""
        method, name = self.parts[3:5]
        return dict(zip(("scorer", "threshold", "overrides"), name.split("-", 2), strict=False)) | {"method": method}

    @property
    def overridden(self) -> bool:
        """Whether the run has overrides beside its choices of scorer, threshold and so on."""
        return OVERRIDDEN.search(self.parts[4]) is not None

    @property
    def output(self) -> OutputDir:
        """The output folder that it lies in, wherever that has been copied or moved to."""
        return OutputDir(self.path.absolute().parents[len(PARTS)])

    @property
    def reports(self) -> Path:
        """Where people find what they read about this run."""
        return self.output.reports / "-".join(self.parts)

    def export(self, trainer: str) -> Path:
        """Where the masked rows lie for another trainer."""
        return self.output.exports / "-".join(self.parts) / trainer

    def seeds(self) -> list[RunFolder]:
        """The finished runs that differ in nothing but the seed, this one among them if it has finished."""
        return [RunFolder(file.parent) for file in sorted(self.path.parent.glob("seed*/metrics.json"))]

    def of_method(self, method: str) -> list[RunFolder]:
        """The finished runs of a method on the same task, model and tuning."""
        return [RunFolder(file.parent) for file in sorted(self.path.parents[2].glob(f"{method}/*/seed*/metrics.json"))]

    # -- what became of it ---------------------------------------------------------------------------------------

    def write_config(self, config: Config) -> None:
        """Leave config.yaml."""
        text = to_yaml(config)
        write_atomic(self.config, lambda path: path.write_text(text, encoding="utf-8"), sealed=True)

    @property
    def recorded(self) -> Mapping[str, Any]:
        """The run's config.yaml as plain values."""
        import yaml

        check(self.config, "run its command again, which writes it anew")
        found: Mapping[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return found

    @property
    def has_results(self) -> bool:
        """Whether the run has been trained and graded."""
        return self.metrics.is_file()

    def record_error(self, error: Exception) -> None:
        """Leave error.json, from which the process that started a sweep learns of the failure."""
        write_json(
            self.error,
            with_digest(
                {
                    "error": str(error) or repr(error),
                    "type": type(error).__name__,
                    "traceback": "".join(traceback.format_exception(error)),
                    "command": command(),
                }
            ),
        )

    def failure(self) -> str | None:
        """Why the last attempt failed; None if it did not. Damage to error.json stands in the place of what it said."""
        if not self.error.exists():
            return None
        try:
            found = read_entry(self.error, "the run's own command tries it again", type=str, error=str)
        except DamagedError as error:
            return f"why is not known: {error}"
        return f"{found['type']}: {found['error']}"

    def state(self) -> str:
        """Why a run has not finished, in words."""
        return self.failure() or ("not finished" if self.config.exists() else "not begun")


def run_folders(root: Path, experiment: str | None = None) -> list[RunFolder]:
    """The run folders at or below `root`, finished or not, in order; those of one experiment if it is named."""
    found = [RunFolder(path) for path in sorted(file.parent for file in root.rglob("config.yaml"))]
    return [folder for folder in found if experiment is None or folder.recorded["experiment"] == experiment]


# -- what a run has done --------------------------------------------------------------------------------------------


class Manifest:
    """A run's manifest.json: its configuration, data, and what each stage left."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {"stages": {}}
        if folder.manifest.exists():
            remedy = f"what the run has done is not known; delete {folder.path} to run it again"
            self.content = read_json(folder.manifest, remedy)

    @property
    def stages(self) -> dict[str, Any]:
        """What each done stage left, by name."""
        found: dict[str, Any] = self.content["stages"]
        return found

    @property
    def data(self) -> dict[str, Any]:
        """Source and hash of the training and evaluation rows, by `train` and `eval`."""
        found: dict[str, Any] = self.content.setdefault("data", {})
        return found

    @property
    def files(self) -> dict[str, str]:
        """Hashes of the files beside the rows' own, by key; an earlier version noted none."""
        found: dict[str, str] = self.content.get("files", {})
        return found

    def save(self) -> None:
        """Write manifest.json."""
        write_json(self.folder.manifest, self.content, sealed=True)

    def note(self, **entries: Any) -> None:
        """Add what a stage found out beside its artifact."""
        self.content |= entries
        self.save()

    def done(self, stage: str, seconds: float, **entry: Any) -> None:
        """A stage has left its artifact."""
        self.stages[stage] = {"seconds": round(seconds, 3), **entry}
        self.save()

    def begin(self, config: Config) -> None:
        """Take the folder for `config` and leave config.yaml there: it holds one configuration, and edited group files
        must not mix with the results of the old ones.

        A finished run of an earlier version, which did not know a key or had another rule of the method, stands as it
        is; that is said.

        Raises:
            ConfigError: the folder holds a run of another configuration.
            ValueError: a data file has changed since the run was made.
        """
        now = plain(identity(config))
        before = self.content.setdefault("config", now)
        keys = differing_keys(before, config)
        older = {key: value for key, value in before_keys(before).items() if key in keys}
        if older and len(older) == len(keys) and finished(config, self.folder, Stage.all):
            did = ", ".join(f"{key}={value}" for key, value in older.items())
            say(f"{self.folder.path} was made by an earlier version, with {did}: delete it to make it anew")
        elif keys:
            was = before_keys(before) | before
            listing = ", ".join(f"{key}: {was.get(key)} -> {now.get(key)}" for key in keys[:5])
            raise ConfigError(
                f"{self.folder.path} holds a run of another configuration ({listing}); "
                "delete that folder or choose another output_dir"
            )
        if "train" not in self.stages:
            self.content["method_version"] = config.method.version
            self.save()
        elif self.content.get("method_version", 1) != config.method.version:
            say(
                f"{self.folder.path} was trained by an earlier version, which had another rule of "
                f"method={config.method.name}: delete it to make it anew"
            )
        if changed := self.changed_data(config):
            raise ValueError(
                f"{changed[0]} has changed since {self.folder.path} was made; "
                "delete that folder or choose another output_dir"
            )
        if files := side_files(config):
            self.note(files={key: known_sha256(path) for key, path in files.items()} | self.files)
        self.folder.write_config(config)

    def note_rows(self, which: str, entry: Mapping[str, Any]) -> None:
        """Note where the `train` or `eval` rows came from.

        Raises:
            ValueError: the run was begun with other rows.
        """
        before = self.data.setdefault(which, dict(entry))
        # An earlier version noted the file's own hash for method=given.
        if before["sha256"] not in (entry["sha256"], entry.get("file_sha256")):
            raise ValueError(
                f"the {which} rows ({entry['source']}) have changed since {self.folder.path} was begun; "
                "delete that folder or choose another output_dir"
            )
        self.data[which] = {**entry, **before}  # with what an earlier version did not note
        self.save()

    def changed_data(self, config: Config) -> list[str]:
        """The keys of data files whose content is no longer what the run was made with."""
        changed = []
        for which, entry in self.data.items():
            path = getattr(config.task, which).path
            if path and entry.get("file_sha256") not in (None, known_sha256(Path(path))):
                changed.append(f"task.{which}.path={path}")
        for key, path in side_files(config).items():
            if self.files.get(key) not in (None, known_sha256(path)):
                changed.append(f"{key}={path}")
        return changed


def forgetting_source(config: Config) -> str:
    """What identifies the text whose loss shows forgetting: a file's hash, `bundled` or `none`."""
    path = config.evaluate.forgetting
    if path is not None:
        return sha256(Path(path))
    return "bundled" if config.model.path == BUNDLED else "none"


def finished(config: Config, folder: RunFolder, stage: Stage | None = None) -> bool:
    """Whether nothing is left to do for `stage` (default: `config.stage`): what it leaves is there, made with this
    configuration, of this data, graded as `config` asks, and with every figure that it asks for.

    Stages that make something anew each time (evaluate, report, preview, plan, ...) are never finished.
    """
    stage = stage or config.stage
    if not folder.manifest.exists():
        return False
    manifest = Manifest(folder)
    recorded = manifest.content.get("config", {})
    if set(differing_keys(recorded, config)) - before_keys(recorded).keys():
        return False  # the run itself refuses, and says what differs
    if manifest.changed_data(config):
        return False
    done = manifest.stages
    match stage:
        case Stage.all:
            graded = [done.get("evaluate", {}), *([done.get("evaluate_base", {})] if config.evaluate.base else [])]
            whole = folder.has_results and intact(folder.metrics) and _base_intact(config, folder, done)
            # What was deleted since, to save room, is not missed; what is there must be as it was written.
            whole = whole and all(
                not file.exists() or good()
                for file, good in (
                    (folder.generations, lambda: intact(folder.generations)),
                    (folder.mask, lambda: mask_intact(folder, done)),
                    (folder.losses, lambda: not config.evaluate.losses or intact(folder.losses)),
                )
            )
            return whole and all(_graded(entry, config) for entry in graded)
        case Stage.train:
            return "train" in done and intact(folder.model)
        case Stage.mask:
            return mask_intact(folder, done)
        case Stage.score:
            paths = done.get("score", {}).get("paths", {})
            return bool(paths) and all((Path(path) / "manifest.json").exists() for path in paths.values())
    return False


def mask_intact(folder: RunFolder, done: Mapping[str, Any]) -> bool:
    """Whether mask.parquet is there and what the manifest says; that it is damaged is said, once."""
    entry, file = done.get("mask"), folder.mask
    if entry is None or not file.exists():
        return False
    if known_sha256(file) == entry["sha256"]:
        return True
    _say_damaged(file, file.resolve())
    return False


def checked_mask(folder: RunFolder) -> Path:
    """mask.parquet of a run, for a report to read.

    Raises:
        DamagedError: it is missing, or not what the manifest says.
    """
    file, entry = folder.mask, Manifest(folder).stages.get("mask")
    if not file.is_file():
        raise DamagedError(f"{file} is missing: {MADE_AGAIN}")
    if entry is None or known_sha256(file) != entry["sha256"]:
        raise DamagedError(f"{file} is damaged, not as it was written: {MADE_AGAIN}")
    return file


@functools.cache
def _say_damaged(file: Path, _place: Path) -> None:
    say(f"{file} is damaged, not as it was written: it is made again")


def _base_intact(config: Config, folder: RunFolder, done: Mapping[str, Any]) -> bool:
    """Whether what a report reads of the base model, if it lies beside the run, is as it was written."""
    path = Path(done.get("evaluate_base", {}).get("path", ""))
    base = RunFolder(folder.output.base / path.parent.name)
    files = [base.path / path.name, *([base.losses] if config.evaluate.losses else [])]
    return all(not file.is_file() or intact(file) for file in files)


def _graded(entry: Mapping[str, Any], config: Config) -> bool:
    """Whether a model was graded as `config` asks; losses on the text that it names."""
    if entry.get("grader") != grader_identity(config):
        return False
    return not config.evaluate.losses or entry.get("forgetting") == forgetting_source(config)
