"""Finished runs read back from their files."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from xtf.config.checks import MASK_SETTINGS
from xtf.config.compose import load_config, override_value
from xtf.config.home import COMMAND
from xtf.config.identity import plain
from xtf.config.schema import Config, ThresholdConfig
from xtf.data.rows import read_file
from xtf.graders.metrics import pass_at_k
from xtf.reporting.intervals import Estimate, difference, mean, ratio
from xtf.runtime.artifacts import check, known_sha256, read_json
from xtf.runtime.run_folder import MADE_AGAIN, RunFolder, checked_mask
from xtf.scoring.masks import threshold_of
from xtf.scoring.methods import METHODS
from xtf.scoring.verdict import Verdict, judge_file

MASK_KEYS = {f"threshold.{name}" for name in MASK_SETTINGS}  # which methods without a mask refuse
# Figures that a run has only if asked for (evaluate.losses), so that runs compare without them.
TEACHER_FORCED = ("loss", "token_accuracy", "calibration_error", "forgetting_loss")
LOSS = "loss"


@dataclass(frozen=True)
class Run:
    """One finished run: its folder and the content of its metrics.json."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.record["seed"])

    @property
    def headline(self) -> str:
        """The metric that answers "how good is it?": accuracy, else pass@1, else the first one recorded."""
        names = list(self.record["metrics"])
        return next((name for name in ("accuracy", "pass@1") if name in names), names[0])

    def is_control(self, control: str) -> bool:
        """Whether it is one of the method `control`, which others are compared with (`is_control`)."""
        return is_control(control, self.record["method"], self.record["scorer"], self.record["overrides"])

    def verdicts(self, metric: str) -> dict[str, float | None]:
        """The fine-tuned model's value for each item, by example id (`item_values`)."""
        return item_values(read_lines(RunFolder(self.folder).generations), metric)

    def losses(self) -> dict[str, float] | None:
        """What each evaluation row adds to `loss`, by example id; None if the run has no losses by row.

        A row's nats over the mean number of response tokens of a row, so that the mean over rows is the loss itself.
        """
        return _each(self.row_losses())

    def row_losses(self) -> dict[str, tuple[int, float]] | None:
        """Response tokens and nats of each evaluation row; None without `evaluate.losses`, and of older runs."""
        return _row_losses(self.folder) if LOSS in self.record["metrics"] else None

    def values(self, metric: str) -> Mapping[str, float | None]:
        """What the mean of a metric that `means` names is taken of: `verdicts`, or of the loss `losses`."""
        return self.losses() or {} if metric == LOSS else self.verdicts(metric)

    def base_values(self, metric: str) -> Mapping[str, float | None] | None:
        """The same of the untouched base model; None if the run did not measure it."""
        if metric != LOSS:
            return self.base_verdicts(metric)
        folder = self._base_folder()
        return None if folder is None else _each(_row_losses(folder))

    def mask_verdict(self) -> dict[str, Any] | None:
        """What its mask is said to be before training (`xtf.scoring.verdict`): `level` in words, `untaught`, the base
        model's nats a token in ids that go wherever they stand, None without log p. None where no attribute drops,
        or the mask is gone.
        """
        folder = RunFolder(self.folder)
        if not folder.mask.is_file():
            return None
        found = judge_file(checked_mask(folder), recorded_threshold(folder), self.record["mask"])
        if found is None:
            return None
        return {"level": found.level.words, "untaught": None if found.untaught is None else found.untaught[0]}

    def base_verdicts(self, metric: str) -> dict[str, float | None] | None:
        """The same of the untouched base model; None if the run did not grade it."""
        base = self.base_generations()
        return None if base is None else item_values(base, metric)

    def base_generations(self) -> list[dict[str, Any]] | None:
        """Completions of the untouched base model; None if the run did not grade it."""
        folder = self._base_folder()
        recorded = self.record["artifacts"]["base_generations"]
        return None if folder is None else read_lines(folder / Path(recorded).name)

    def _base_folder(self) -> Path | None:
        """Where the base model's figures lie; None if the run did not measure it.

        The record names it as seen from where the run was started; it is looked for in <output_dir>/base beside this
        run's <output_dir>/runs, so that a copied or moved output folder can be reported on.
        """
        recorded = self.record["artifacts"]["base_generations"]
        return None if recorded is None else RunFolder(self.folder).output.base / Path(recorded).parent.name


def _row_losses(folder: Path) -> dict[str, tuple[int, float]] | None:
    """Response tokens and nats by row, which `evaluate.losses` left in a folder; None if it did not."""
    file = RunFolder(folder).losses
    rows = read_json(file, MADE_AGAIN).get("rows") if file.is_file() else None
    return None if rows is None else {name: (int(count), float(nats)) for name, (count, nats) in rows.items()}


def _each(rows: Mapping[str, tuple[int, float]] | None) -> dict[str, float] | None:
    if rows is None:
        return None
    tokens = sum(count for count, _ in rows.values()) / len(rows)
    return {name: nats / tokens for name, (_, nats) in rows.items()}


def load_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        ValueError: it has not finished (metrics.json is written last).
    """
    file = RunFolder(folder).metrics
    if not file.is_file():
        raise ValueError(f"{folder} holds no finished run: it has no metrics.json. Run its command again to finish it.")
    return Run(folder, read_json(file, MADE_AGAIN))


def check_together(record: Mapping[str, Any], folder: RunFolder) -> None:
    """Refuse a record beside a mask or completions that are damaged or that it was not made of; what was deleted is not
    missed, and records of earlier versions do not say what they were made of.

    Raises:
        ValueError: naming the file.
    """
    for name, file in belonging(folder).items():
        if not file.exists():
            continue
        if file == folder.mask:
            checked_mask(folder)
        else:
            check(file, MADE_AGAIN)
        if record.get("hashes", {}).get(name) not in (None, known_sha256(file)):
            raise ValueError(
                f"{folder.metrics} and {file} do not belong together: the record was made of another {file.name}; run "
                "the same command with stage=evaluate"
            )


def belonging(folder: RunFolder) -> dict[str, Path]:
    """The files whose hashes a record holds, by their name in it."""
    return {"mask": folder.mask, "generations": folder.generations}


def recorded_config(folder: RunFolder) -> Config:
    """The configuration that a run was started with."""
    node = OmegaConf.create(dict(folder.recorded))
    assert isinstance(node, DictConfig)
    return load_config(node)


def recorded_threshold(folder: RunFolder) -> ThresholdConfig:
    """The threshold that a run's mask says it was made with, that of its configuration where there is none."""
    own = recorded_config(folder).threshold
    return threshold_of(pq.read_schema(checked_mask(folder)).empty_table(), own) if folder.mask.exists() else own


def is_control(control: str, method: str, scorer: str, overridden: Container[str]) -> bool:
    """Whether runs of a method and scorer, with these keys overridden, are those of the method `control`: XTF without a
    scorer drops nothing, which is plain fine-tuning."""
    unmasked = method == "xtf" and scorer == "none" and "scorer.attributes" not in overridden
    return method == control or (control == "normal" and unmasked)


def control_runs(runs: Sequence[Run], others: Iterable[Run], control: str) -> dict[int, Run]:
    """Those of `others`, runs that are of the `control` (`is_control`), that compare with the `runs` of one setting, by
    seed.

    They share data and settings with all of `runs`; scorer and threshold only where the control's mask takes its
    size from them. With the run of its own seed each shares the base model's figures too, as runs that were graded
    differently do not compare. Of several with one seed the first counts.
    """
    found: dict[int, Run] = {}
    for other in others:
        if all(
            _settings(run, control) == _settings(other, control)
            and (run.seed != other.seed or _base_figures(run) == _base_figures(other))
            for run in runs
        ):
            found.setdefault(other.seed, other)
    return found


def _settings(run: Run, control: str) -> Any:
    """What a run must share with one of the method `control`, whatever their seeds."""
    record, masked = run.record, METHODS[control].masked
    aside = re.compile(r"method\.(?!match$)" if masked else r"(method|scorer|threshold)\.")
    overrides = {key: value for key, value in record["overrides"].items() if not aside.match(key)}
    hashes = [record["data"][name]["sha256"] for name in ("train", "eval")]
    return overrides, hashes, (record["scorer"], record["threshold"]) if masked else None


def _base_figures(run: Run) -> Any:
    """The base model's, which differ between seeds where completions are sampled."""
    base = run.record["base_metrics"]
    return base and {name: metric for name, metric in base.items() if name not in TEACHER_FORCED}


def named(config: Config, changed: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of how a run is set, of a run that has none yet."""
    choices = {
        key: value["name"] for key, value in plain(config).items() if isinstance(value, dict) and "name" in value
    }
    return {**choices, "seed": config.seed, "overrides": plain(dict(changed))}


def command_line(record: Mapping[str, Any], **changes: Any) -> str:
    """The command that makes the run of a record, or with `changes` one like it; quoted for a shell.

    Another method has other settings: those of the record's own are left out then, and those of a mask if it has none.
    """
    keys = ("model", "task", "tuning", "method", "scorer", "threshold", "seed")
    other = changes.get("method", record["method"]) != record["method"]
    kept = {k: v for k, v in record["overrides"].items() if not (other and k.startswith("method."))}
    if other and not METHODS[changes["method"]].masked:
        kept = {k: v for k, v in kept.items() if k not in MASK_KEYS}
    settings = {key: record[key] for key in keys} | kept | changes
    return shlex.join([*COMMAND.split(), *(f"{key}={override_value(value)}" for key, value in settings.items())])


def advised(record: Mapping[str, Any], verdict: Verdict, **changes: Any) -> list[str]:
    """The line with the command that judges, before any training, what a verdict on the record's mask advises first."""
    if not verdict.setting:
        return []
    command = command_line(record, **changes, **verdict.setting, stage="preview")
    return [f"To see that mask judged before it is trained with: {command}"]


def settings_of(overridden: Mapping[str, Any]) -> list[str]:
    """Changed keys as they are given on the command line."""
    return [f"{key}={override_value(value)}" for key, value in overridden.items()]


def beside(config: Config) -> dict[str, Any]:
    """What a command needs beside the keys that name a run, to find that one's artifacts and measure as much as it."""
    own = {"output_dir": config.output_dir}
    own |= {f"evaluate.{name}": getattr(config.evaluate, name) for name in ("losses", "forgetting", "general")}
    usual = {"output_dir": Config.output_dir, "evaluate.losses": False, "evaluate.forgetting": None}
    return {key: value for key, value in own.items() if value != usual.get(key, [])}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file that a run has left.

    Raises:
        ValueError: it is not as it was written, or cannot be read; the message names file and row.
    """
    check(path, MADE_AGAIN)
    return [row for _, row in read_file(path)]


def item_values(generations: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float | None]:
    """Each item's share of right samples, or its unbiased pass@k; None without a verdict.

    Raises:
        ValueError: the metric is not a mean over items, or an item has fewer than k samples.
    """
    samples: dict[str, list[bool | None]] = defaultdict(list)
    for line in generations:
        samples[line["example_id"]].append(line["correct"])
    if not by_item(metric):
        raise ValueError(f"{metric!r} cannot be compared item by item; accuracy and pass@k can")
    if metric == "accuracy":
        graded = {key: [value for value in found if value is not None] for key, found in samples.items()}
        return {key: sum(values) / len(values) if values else None for key, values in graded.items()}
    k = int(metric.removeprefix("pass@"))
    if (fewest := min(map(len, samples.values()), default=k)) < k:
        raise ValueError(f"pass@{k} needs at least {k} samples per item, not {fewest}")
    return {key: pass_at_k(len(found), sum(value is True for value in found), k) for key, found in samples.items()}


def by_item(metric: str) -> bool:
    """Whether a metric is a mean over items, so that seeds are pooled and runs compared item by item."""
    return metric == "accuracy" or metric.startswith("pass@")


def means(runs: Sequence[Run]) -> list[str]:
    """The metrics of all `runs` that are means over items, or over rows as the loss is: those that are compared."""
    names = [name for name in runs[0].record["metrics"] if by_item(name)]
    return [*names, LOSS] if all(run.row_losses() for run in runs) else names


def arm_mean(runs: Sequence[Run], metric: str) -> Estimate:
    """The fine-tuned models' mean, of runs that differ in nothing but the seed; of one run its recorded figure."""
    if metric != LOSS:
        return mean([run.verdicts(metric) for run in runs])
    if len(runs) == 1:
        return recorded(runs[0].record["metrics"][LOSS])
    rows = [run.row_losses() or {} for run in runs]
    tokens, nats = ([{name: pair[at] for name, pair in each.items()} for each in rows] for at in (0, 1))
    return ratio(nats, tokens, unit_of(LOSS))


def over_base(runs: Sequence[Run], metric: str) -> Estimate | None:
    """Each run minus the base model as the run measured it; None if none did."""
    pairs = [(run.values(metric), base) for run in runs if (base := run.base_values(metric)) is not None]
    return difference([tuned for tuned, _ in pairs], [base for _, base in pairs], unit_of(metric)) if pairs else None


def over_control(runs: Sequence[Run], control: Mapping[int, Run], metric: str) -> Estimate | None:
    """Each run minus the `control` of its seed, over the seeds that both have; None if there is none."""
    shared = [run for run in runs if run.seed in control]
    if metric == LOSS:
        shared = [run for run in shared if control[run.seed].row_losses()]
    if not shared:
        return None
    treated = [run.values(metric) for run in shared]
    return difference(treated, [control[run.seed].values(metric) for run in shared], unit_of(metric))


def base_mean(runs: Sequence[Run], metric: str) -> Estimate | None:
    """The base model's mean; greedy completions are the same for all seeds and count once. None: not measured."""
    if metric == LOSS:  # no completions, so no seed
        figures = (run.record["base_metrics"] for run in runs)
        return next((recorded(found[LOSS]) for found in figures if found and LOSS in found), None)
    distinct = {run.record["artifacts"]["base_generations"]: run for run in runs}.values()
    values = [base for run in distinct if (base := run.base_verdicts(metric)) is not None]
    return mean(values) if values else None


def unit_of(metric: str) -> str:
    """Of a metric that `means` names."""
    return "nats" if metric == LOSS else "share"


def recorded(figure: Mapping[str, Any]) -> Estimate:
    """A figure of one run, as its record has it."""
    value, low, high = (float(figure[key]) for key in ("value", "low", "high"))
    return Estimate(value, low, high, 1, int(figure["n"]), figure["interval"], figure.get("unit", "share"))
