"""What a composed configuration must satisfy before anything is loaded; what depends on several groups is filled in."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from xtf.config.identity import plain
from xtf.config.schema import (
    Backend,
    CheckpointChoice,
    Config,
    ConfigError,
    ModelConfig,
    Optimizer,
    PlantKind,
    Recipe,
    SourceConfig,
    TaskConfig,
    Tuning,
)


def _check_ranges(part: Any, prefix: str) -> None:
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{key}.")
        elif "range" in item.metadata and value is not None:
            low, high = item.metadata["range"]
            if not low <= value <= high:  # also refuses NaN
                bounds = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
                raise ConfigError(f"{key}={value} is out of range: it must be {bounds}")


def resolve(config: Config) -> Config:
    """Fill in what depends on several groups: table 3's hyper-parameters, and which rows the task reads.

    Checks ranges and combinations on the way; raises ConfigError naming the key and the remedy.
    """
    from xtf.scoring import thresholds

    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{item.name}.")
    try:
        thresholds.check(config.threshold)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model, task, tuning = config.model, config.task, config.tuning

    recipe = model.recipes.get(tuning.name.value)
    wanted = ("epochs", "learning_rate", "batch_size")
    if recipe is None and any(getattr(tuning, key) is None for key in wanted):
        have = ", ".join(sorted(model.recipes)) or "none"
        raise ConfigError(
            f"model {model.name} has no recipe for tuning={tuning.name.value} (it has: {have}); "
            "give tuning.epochs, tuning.learning_rate and tuning.batch_size"
        )
    if recipe is not None:
        rate = recipe.learning_rate_by_task.get(task.name, recipe.learning_rate)
        tuning = dataclasses.replace(
            tuning,
            examples=_given(tuning.examples, recipe.examples),
            epochs=_given(tuning.epochs, recipe.epochs),
            learning_rate=_given(tuning.learning_rate, rate),
            batch_size=_given(tuning.batch_size, recipe.batch_size),
        )
    shape = recipe or Recipe()
    tuning = dataclasses.replace(
        tuning,
        schedule=_given(tuning.schedule, shape.schedule),
        warmup_ratio=_given(tuning.warmup_ratio, shape.warmup_ratio),
    )
    if tuning.checkpoint is CheckpointChoice.best and not tuning.validation_fraction:
        raise ConfigError("tuning.checkpoint=best needs a validation split: set tuning.validation_fraction, e.g. 0.1")

    train = _source(task, "train", model)
    if train.limit is None and tuning.examples is not None:
        train = dataclasses.replace(train, limit=tuning.examples)
    if model.bundled_data and task.eval.path is None and task.bundled_grader and task.judge.base_url is None:
        task = dataclasses.replace(task, grader=task.bundled_grader)
    max_new = min(task.max_new_tokens, model.max_new_tokens or task.max_new_tokens)
    task = dataclasses.replace(task, train=train, eval=_source(task, "eval", model), max_new_tokens=max_new)

    if task.samples > 1 and task.temperature == 0:
        raise ConfigError(
            f"task.samples={task.samples} with task.temperature=0 gives {task.samples} equal completions; "
            "set task.temperature, e.g. 0.8, or task.samples=1"
        )
    if max(task.pass_at, default=1) > task.samples:
        raise ConfigError(f"task.pass_at={task.pass_at} needs task.samples >= {max(task.pass_at)}, not {task.samples}")
    plant = config.plant
    if plant.share and (not plant.kinds or len(set(plant.kinds)) < len(plant.kinds)):
        raise ConfigError(
            f"plant.kinds={plain(plant.kinds)} must name one or more different kinds: "
            + ", ".join(kind.value for kind in PlantKind)
        )
    config.method.check(config)
    if config.evaluate.backend is Backend.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "evaluate.backend=vllm needs vLLM, which is not installed: pip install 'xtf[vllm]' (Linux with a GPU), "
            "or leave evaluate.backend=hf"
        )
    if config.preview.format not in ("html", "text"):
        raise ConfigError(f"preview.format={config.preview.format} is not known; it is html or text")
    if config.archive is not None:
        raise ConfigError(f"archive={config.archive} is read by stage=report experiments=NAME only")
    forgetting = config.evaluate.forgetting
    if forgetting is not None and not config.evaluate.losses:
        raise ConfigError(f"evaluate.forgetting={forgetting} is read with evaluate.losses=true only")
    if forgetting is not None and not Path(forgetting).is_file():
        raise ConfigError(f"evaluate.forgetting={forgetting}: there is no such file")
    if tuning.optimizer is Optimizer.muon and (tuning.name is Tuning.lora or config.trainer.strategy == "fsdp"):
        raise ConfigError("tuning.optimizer=muon works on whole matrices: use tuning=full, and not trainer=fsdp")
    if config.trainer.strategy == "auto" and config.trainer.devices > 1:
        raise ConfigError(f"trainer.devices={config.trainer.devices} needs trainer=ddp or trainer=fsdp")
    return dataclasses.replace(config, task=task, tuning=tuning)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _source(task: TaskConfig, which: str, model: ModelConfig) -> SourceConfig:
    """The rows for `which` ("train" or "eval"): a given path, else the tiny model's bundled sample, else the hub."""
    source: SourceConfig = getattr(task, which)
    if source.path is not None:
        if not Path(source.path).exists():
            raise ConfigError(f"task.{which}.path={source.path}: there is no such file (working folder: {Path.cwd()})")
        return source
    if model.bundled_data:
        if task.bundled is None:
            raise ConfigError(
                f"there is no bundled sample for task={task.name}, so model={model.name} needs task.{which}.path"
            )
        from xtf.tiny import DATA_DIR

        return dataclasses.replace(source, path=str(DATA_DIR / f"{task.bundled}_{which}.jsonl"))
    if source.hub is None:
        raise ConfigError(f"task={task.name} has no rows: give task.{which}.path=FILE or task.{which}.hub=DATASET_ID")
    return source
