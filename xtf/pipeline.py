"""A run from its configuration to its report: the stages in order, each skipped if its artifact is there.

    stage     what it leaves                                   where that is written
    score     scores/<key>/, one folder per pass               xtf.scoring.passes, store, scorers
    mask      mask.parquet                                     xtf.scoring.methods, masks, thresholds
    export    exports/<run>/<trainer>/, after mask             xtf.exports
    train     model/, train_log.csv                            xtf.training.device_process, fit, module
    evaluate  generations.jsonl, the base model's in base/     xtf.evaluation.stage
    report    metrics.json, reports/<run>/                     xtf.reporting.record, run_report, explorer

`xtf.runtime.run_folder` says where each of them lies, and when a run is finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xtf.config.schema import Config, ConfigError, Stage
from xtf.evaluation.stage import Which, check_evaluation, evaluate_model
from xtf.exports.write import export_run
from xtf.inputs import Inputs
from xtf.reporting.explorer import compared_mask, explore_run, show_preview, show_verdict
from xtf.reporting.published import note_published, publish_stages
from xtf.reporting.record import write_record
from xtf.reporting.run_report import mask_table, run_report, show_report
from xtf.reporting.runs import advised, beside, check_together, named
from xtf.runtime.artifacts import intact, locked, read_json, sha256
from xtf.runtime.loggers import wandb_mode, whole_run
from xtf.runtime.models import check_folder, device
from xtf.runtime.nodes import together
from xtf.runtime.progress import console, say, stage, stopwatch
from xtf.runtime.run_folder import Manifest, RunFolder, finished, mask_intact
from xtf.scoring.passes import Pass, score, training_rows, write_mask
from xtf.scoring.regime import Regime, regime
from xtf.scoring.store import pass_columns
from xtf.scoring.verdict import judge_file
from xtf.training.device_process import take_part, train

ORDER = (Stage.score, Stage.mask, Stage.train, Stage.evaluate, Stage.report)


def run(config: Config, changed: Mapping[str, Any], *, alone: bool = True) -> dict[str, Any] | None:
    """Run the stages that `config.stage` asks for; returns the finished run's record, None after an earlier stage and
    on every node of several but the first.

    Args:
        config: resolved (`xtf.config.checks.resolve`).
        changed: the overridden keys that name the run's folder (`xtf.config.identity.overrides`).
        alone: whether it is no job of a sweep, whose table at the end compares its runs.

    Raises:
        ValueError: something that the user can mend; the message says what.
    """
    folder = RunFolder.of(config, changed)
    with together(config, folder.name) as nodes:
        if nodes is not None and nodes.place.rank:
            take_part(config, nodes)
            return None
        return _run(config, changed, folder, alone)


def _run(config: Config, changed: Mapping[str, Any], folder: RunFolder, alone: bool) -> dict[str, Any] | None:
    with locked(folder.path, say), whole_run(config, folder):
        pipeline = Pipeline(config, changed, folder)
        whole = finished(config, folder, Stage.all)
        if config.stage is Stage.train and folder.model.exists() and not intact(folder.model):
            whole = False
        if config.stage is Stage.report and not whole:
            raise ConfigError(
                f"there is no finished run in {folder.path}: run the same command without stage=report first"
            )
        record: dict[str, Any] | None
        if whole and config.stage in (Stage.all, Stage.train, Stage.report):
            if config.stage is not Stage.report:
                say(f"already done: {folder.metrics} (delete the folder to run it again)")
            record = read_json(folder.metrics)
            if gone := [file for file in (folder.mask, folder.generations) if not file.exists()]:
                told = f"{gone[0]} is gone, which a report shows; delete metrics.json beside it to make both again"
                if config.stage is Stage.report:
                    raise ConfigError(told)
                say(told)
                return record
            check_together(record, folder)
        else:
            record = pipeline.stages()
        explorer = None if record is None else pipeline.explorer()
        pages = [] if record is None else run_report(folder.path, folder.reports)
        publish_stages(config, folder, pipeline.manifest, lambda: pipeline.inputs.tokenizer)  # the report as well
        if record is not None and explorer is not None:
            show_report(folder, pages, explorer, answer=alone)
        return record


class Pipeline:
    """One run at work."""

    def __init__(self, config: Config, changed: Mapping[str, Any], folder: RunFolder) -> None:
        self.config, self.changed, self.folder = config, changed, folder
        self.manifest = Manifest(folder)
        self.manifest.begin(config)
        self.inputs = Inputs(config, self.manifest)

    def stages(self) -> dict[str, Any] | None:
        """All stages up to the one asked for; returns the record if that is the last one."""
        config = self.config
        check_folder(config.model)  # files that cannot be read are refused before anything else
        if config.preview.against is not None:
            compared_mask(config.preview.against)
        wanted = Stage.mask if config.stage in (Stage.preview, Stage.export) else config.stage
        last = ORDER.index(wanted) if wanted in ORDER else len(ORDER) - 1
        if last >= ORDER.index(Stage.train):
            # Whatever could make the end of a long run fail is tried at its beginning.
            device(config.trainer)
            if config.logger.name == "wandb":
                wandb_mode(config)
            check_evaluation(config, lambda: self.inputs.items)
        ahead = self.ahead(last)
        ahead("score")
        passes = self.score()
        if last == ORDER.index(Stage.score):
            for path in passes.values():
                say(f"scores: {path}")
            if (figures := self.manifest.content.get("regime")) is not None:
                say(str(Regime(**figures)))
            if not passes:
                say(f"method={config.method.name} with scorer={config.scorer.name} needs no scores")
            return None
        ahead("mask")
        self.mask(passes)
        self.judge()
        if config.stage is Stage.preview:
            show_preview(config, self.folder, self.explorer, lambda: self.inputs.tokenizer)
        if config.stage is Stage.export:
            export_run(config, self.folder, self.manifest, lambda: self.inputs.encoded, self.inputs.tokenizer)
        if last == ORDER.index(Stage.mask):
            console.print(mask_table(self.manifest.stages["mask"]["stats"]))
            say(f"mask: {self.folder.mask}")
            return None
        if config.evaluate.base and last >= ORDER.index(Stage.evaluate):
            ahead("evaluate the base model")
            self.evaluate(Which.base)
        ahead("train")
        self.train()
        if last == ORDER.index(Stage.train):
            say(f"model: {self.folder.model}")
            return None
        ahead("evaluate")
        self.evaluate(Which.tuned)
        ahead("report")
        return write_record(config, self.changed, self.folder, self.manifest)

    def ahead(self, last: int) -> Callable[[str], None]:
        """What names each stage up to the `last` of `ORDER` as it begins, on the console and in its bars."""
        evaluated = last >= ORDER.index(Stage.evaluate)  # which ends with the report
        names = [each.value for each in (ORDER if evaluated else ORDER[: last + 1])]
        if self.config.evaluate.base and evaluated:
            names.insert(2, "evaluate the base model")
        return lambda name: stage(names.index(name) + 1, len(names), name)

    def score(self) -> dict[Pass, Path]:
        """The scoring passes that the run reads, made unless they are there."""
        inputs = self.inputs
        passes = score(
            self.config, lambda: inputs.encoded, lambda: inputs.tokenizer, inputs.scorer, inputs.scored_by_another
        )
        took = sum(read_json(path / "manifest.json")["seconds"] for path in set(passes.values()))
        own = self.config.scorer.model is None  # else they are another model's figures
        if own and Pass.base in passes and "logp" in pass_columns(passes[Pass.base]):
            scored = training_rows(lambda: inputs.encoded, {Pass.base: passes[Pass.base]})
            self.manifest.note(regime=dataclasses.asdict(regime(scored)))
        self.manifest.done("score", took, paths={kind.value: str(path) for kind, path in passes.items()})
        return passes

    def mask(self, passes: Mapping[Pass, Path]) -> None:
        """Write mask.parquet from stored scores; no model is loaded."""
        target = self.folder.mask
        if mask_intact(self.folder, self.manifest.stages):
            return
        with stopwatch() as seconds:
            stats = write_mask(self.config, self.inputs.table(passes), target) | self.inputs.answers(target)
        self.manifest.done("mask", seconds(), sha256=sha256(target), stats=stats)

    def judge(self) -> None:
        """Say whether to train with the mask, and note it."""
        stats = self.manifest.stages["mask"]["stats"]
        found = judge_file(self.folder.mask, self.config.threshold, stats)
        if found is not None:
            more = advised(named(self.config, self.changed), found, **beside(self.config))
            show_verdict(found, self.inputs.tokenizer, more)
            stats |= {"verdict": found.level.words, "verdict_reason": found.reason}
            self.manifest.save()

    def train(self) -> None:
        """Fine-tune on mask.parquet and write model/; goes on from the last checkpoint of a killed run."""
        evaluate = self.config.evaluate  # completions that are there are graded again without their model
        enough = self.folder.generations.exists() and not (evaluate.losses or evaluate.general)
        enough = enough and self.config.stage is not Stage.train and intact(self.folder.generations)
        if "train" in self.manifest.stages and (enough or intact(self.folder.model)):
            return
        self.inputs.free_memory()  # training needs it, and must start from untouched weights
        with stopwatch() as seconds:
            record = train(self.config, self.folder)
        self.manifest.done("train", seconds(), record=record)
        if self.config.logger.name == "wandb":
            note_published(self.config, self.manifest, "train")  # it was logged live

    def evaluate(self, which: Which) -> None:
        """Generate and grade with the untouched model, shared between runs, or with this run's."""
        inputs = self.inputs
        trained = self.manifest.stages["train"]["record"] if which is Which.tuned else None
        entry = evaluate_model(
            which, self.config, self.folder, inputs.items, trained, inputs.base_model, inputs.free_memory
        )
        self.manifest.done(which.value, **entry)

    def explorer(self) -> Path:
        """The page that shows which tokens train and why the others were dropped."""
        return explore_run(self.config, self.changed, self.folder, self.manifest, lambda: self.inputs.tokenizer)
