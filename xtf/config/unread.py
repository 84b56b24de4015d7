"""Keys that a user set and that nothing reads, because of what another key says.

They are told, not refused, so that one command line does for several methods, stages and machines.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from xtf import tiny
from xtf.config.home import COMMAND
from xtf.config.schema import (
    GRADERS,
    WANDB_KEYS,
    Backend,
    Backward,
    Config,
    Engine,
    KNRule,
    RIRule,
    RIVariant,
    Stage,
    ThresholdConfig,
    TRRule,
    TRVariant,
    Tuning,
    attribute_names,
)

PLAN_SIZES = ("train_rows", "eval_rows", "prompt")  # of task.size; `response` also says how long an evaluation takes


def _judged(config: Config, name: str) -> bool:
    """Whether an attribute may drop a token."""
    masked = config.method.masked or config.stage in (Stage.score, Stage.preview)
    return masked and name in config.scorer.attributes


def _scored(config: Config, name: str) -> bool:
    return _judged(config, name) or name in config.scorer.compute


def _capped(threshold: ThresholdConfig) -> bool:
    return any(getattr(threshold, name).cap is not None for name in attribute_names())


def _wandb(config: Config) -> bool:
    return config.logger.name == "wandb" or config.stage is Stage.dashboard


def _rules(config: Config) -> list[tuple[str, bool, str]]:
    """(start of keys, whether they are read, what keeps them from it)."""
    threshold, scorer, task, stage = config.threshold, config.scorer, config.task, config.stage
    backend, wandb, path = config.evaluate.backend, _wandb(config), config.model.path
    chosen = f"method={config.method.name} with scorer={scorer.name}"
    quantile = {"ri": RIRule.quantile, "kn": KNRule.quantile, "tr": TRRule.quantile}
    own = {"ri": ("c",), "kn": ("pcp",), "tr": ("classes", "cluster", "bins", "fit")}
    rules = [
        (f"threshold.{name}.", _judged(config, name), f"{chosen} drops nothing by it") for name in attribute_names()
    ]
    for name, other in quantile.items():
        rule = getattr(threshold, name).rule
        said = f"threshold.{name}.rule={rule.value}"
        rules.append((f"threshold.{name}.q", rule is other, said))
        rules += [(f"threshold.{name}.{key}", rule is not other, said) for key in own[name]]
    for which, source in (("train", task.train), ("eval", task.eval)):
        said = f"task.{which}.path names the rows"
        rules += [(f"task.{which}.{key}", source.path is None, said) for key in ("hub", "subset", "revision")]
        one_file = source.path is not None and not Path(source.path).is_dir()
        rules.append((f"task.{which}.split", not one_file, f"task.{which}.path is one file"))
    hub = not (config.model.bundled_data or path.endswith(".gguf") or Path(path).exists())
    shaped = path == tiny.__name__ or (Path(path) / "config.json").is_file()
    fewer = task.train.limit is not None and task.train.limit < (config.tuning.examples or 0)
    given = getattr(config.method, "reference", None)
    bundled = any(source.path and Path(source.path).parent == tiny.DATA_DIR for source in (task.train, task.eval))
    own_grader = task.grader not in pkgutil.resolve_name(GRADERS)  # may read what it likes
    return [
        *rules,
        ("threshold.ties", _capped(threshold), "no threshold has a cap"),
        ("scorer.ri.", _scored(config, "ri") or scorer.attenders > 0, "nothing scores RI"),
        ("scorer.ri.layer", scorer.ri.variant is RIVariant.received, "scorer.ri.variant=released"),
        ("scorer.tr.", _scored(config, "tr"), "nothing scores TR"),
        ("task.bundled", bundled, "no bundled sample is read"),
        ("task.bundled_grader", task.grader == task.bundled_grader, f"task.grader={task.grader} grades"),
        *((f"task.size.{key}", stage is Stage.plan, "only stage=plan counts with it") for key in PLAN_SIZES),
        ("task.domain_words", scorer.tr.variant is TRVariant.released, f"scorer.tr.variant={scorer.tr.variant.value}"),
        ("task.top_p", task.temperature > 0, "task.temperature=0 decodes greedily"),
        ("task.pass_at", own_grader or task.grader == "code", f"task.grader={task.grader} has no pass@k"),
        ("task.sandbox.", own_grader or task.grader == "code", f"task.grader={task.grader} runs no programs"),
        ("task.judge.", own_grader or task.grader == "judge", f"task.grader={task.grader} asks no judge"),
        ("model.shape.", not shaped, "model.path has a config.json"),
        ("tuning.examples", not fewer, f"task.train.limit={task.train.limit} is smaller"),
        ("model.revision", hub, "model.path is on this machine"),
        ("tuning.lora.", config.tuning.name is Tuning.lora, "tuning=full trains no adapter"),
        (
            "tuning.backward",
            config.method.name != "normal" or config.tuning.backward is not Backward.kept,
            "method=normal drops no token",
        ),
        ("trainer.node_timeout_seconds", config.trainer.nodes > 1, "trainer.nodes=1"),
        ("ray.timeout_seconds", config.trainer.engine is Engine.ray, f"trainer.engine={config.trainer.engine.value}"),
        ("method.warmup", given is None, f"method.reference={given} is the reference model"),
        ("evaluate.vllm_memory", backend is Backend.vllm, f"evaluate.backend={backend.value}"),
        ("evaluate.general_limit", bool(config.evaluate.general), "evaluate.general is empty"),
        ("plant.kinds", config.plant.share > 0, "plant.share=0"),
        ("plant.seed", config.plant.share > 0, "plant.share=0"),
        ("pilot.", config.probe, "probe=false"),
        ("export.", stage is Stage.export, f"stage={stage.value} exports nothing"),
        ("preview.format", stage is Stage.preview, f"stage={stage.value} shows no preview"),
        ("pretrain.", stage is Stage.pretrain, f"stage={stage.value} pre-trains nothing"),
        ("plan.device_memory_gb", stage is Stage.plan, f"stage={stage.value} plans nothing"),
        *((f"logger.{key}", wandb, f"logger={config.logger.name}") for key in WANDB_KEYS),
    ]


def unread(config: Config, keys: Iterable[str]) -> dict[str, str]:
    """Of the dotted `keys` those that nothing reads in this (resolved) configuration, and why."""
    rules, found = _rules(config), dict[str, str]()
    for key in keys:
        why = next((why for start, reads, why in rules if key.startswith(start) and not reads), None)
        if why is not None:
            found[key] = why
    return found


def unread_alone(composed: Config, config: Config, keys: Iterable[str]) -> dict[str, str]:
    """The same of a run that is no job of a sweep, with what `resolve` has capped of the `composed` configuration."""
    keys, before, now = set(keys), composed.task, config.task
    found = unread(config, keys)
    if "task.max_new_tokens" in keys and before.max_new_tokens > now.max_new_tokens:
        found["task.max_new_tokens"] = f"model.max_new_tokens={config.model.max_new_tokens} caps it"
    if "task.train.limit" in keys and (before.train.limit or 0) > (now.train.limit or 0):
        found["task.train.limit"] = f"tuning.examples={config.tuning.examples} is smaller"
    if "cases" in keys:
        found["cases"] = f"they are those of a sweep: {COMMAND} -m experiments=NAME"
    return found


def unread_by_all(jobs: Iterable[tuple[Config, Iterable[str]]]) -> dict[str, str]:
    """The same of several configurations, each with the keys that were set for it: what none of them reads.

    A line or an experiment that does for several methods sets what some of them do not read.
    """
    found, read = dict[str, str](), set[str]()
    for config, keys in jobs:
        told = unread(config, own := set(keys))
        found = told | found
        read |= own - told.keys()
    return {key: why for key, why in found.items() if key not in read}


def in_words(told: Mapping[str, str]) -> str:
    """One sentence on keys that nothing reads."""
    return "set, but read by nothing here: " + "; ".join(f"{key} ({why})" for key, why in sorted(told.items()))
