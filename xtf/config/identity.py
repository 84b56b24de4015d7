"""What names a run: its result-determining keys, as plain values and as hashes."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from xtf.config.home import expanded
from xtf.config.schema import (
    GRADER_VERSION,
    METHODS,
    Attribute,
    Config,
    Protect,
    ThresholdEnd,
    ThresholdTies,
    TRFit,
    TRVariant,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig

T = TypeVar("T")
LOCAL = "hellaswag:"  # how an entry of evaluate.general begins that names a file


def plain(value: Any) -> Any:
    """Dataclasses and enums as plain containers, for YAML, JSON and hashing.

    A method that is not built in says in a configuration which class it is (`_target_`), so that it can be read back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Config) and not isinstance(value.method, str):  # "???": none yet
            kind = type(value.method)
            if built_in_methods().get(value.method.name) is not kind:
                found["method"] = {"_target_": f"{kind.__module__}.{kind.__qualname__}"} | found["method"]
        return found
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of the schema whose `plain` gave `values`; what they leave out has its default.

    Raises:
        ValueError: a field or a value that this version does not know.
    """
    hints = get_type_hints(kind)
    if unknown := set(values) - set(hints):
        raise ValueError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    found = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = from_plain(hint, value)
        elif isinstance(hint, type) and issubclass(hint, Enum):
            value = hint(value)
        found[name] = value
    return kind(**found)


def built_in_methods() -> dict[str, type]:
    """The classes of the methods in conf/method, by name."""
    module, _, name = METHODS.rpartition(".")
    found: dict[str, type] = getattr(importlib.import_module(module), name)
    return found


def to_yaml(config: Any) -> str:
    """A configuration as config.yaml holds it."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(plain(config))


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a plain configuration; lists count as leaves."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from leaves(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def digest(value: Any, length: int = 12) -> str:
    """A short, stable hash of anything that `plain` can express."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def nearest(word: str, choices: Iterable[str]) -> str:
    """', did you mean X?' or the empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


# Keys, or how they begin, that change neither what is learnt nor what is measured, so they name no run folder; and why.
_NEUTRAL = {
    "stage": "what of a run is made now",
    "seed": "a folder of its own within the run's",
    "output_dir": "where everything lies",
    "experiment": "the name under which runs are reported together",
    "archive": "where stored runs are read from",
    "probe": "another command: a pilot instead of one run",
    "pilot.": "of the pilot",
    "cases": "which runs a sweep has",
    "logger.": "where a run is mirrored",
    "preview.": "how much of a mask is shown",
    "export.": "a folder of its own for each trainer, with a hash of its settings",
    "evaluate.base": "the base model's figures are kept apart and added to the record",
    "evaluate.vllm_memory": "how much memory is taken",
    "evaluate.losses": "more figures for the same record",
    "evaluate.forgetting": "the text of one of these figures, which the record names",
    "scorer.compute": "more columns of the same pass, for later runs",
    "scorer.top": "the same, for the explorer",
    "scorer.attenders": "the same",
    "pretrain.": "of stage=pretrain, whose model has a folder of its own",
    "trainer.name": "a name",
    "trainer.accelerator": "the device; rounding apart the results are the same",
    "trainer.devices": "how many share the same steps",
    "trainer.nodes": "how many machines share the same steps",
    "trainer.node_timeout_seconds": "how long they wait for each other",
    "trainer.strategy": "how they share them",
    "trainer.engine": "who scores which rows",
    "ray.": "where that is",
    "trainer.tokens_per_": "how much is computed at once, of the same sums",
    "trainer.checkpoint_every": "how much a kill can cost",
    "trainer.shard_examples": "how much a kill can cost",
    "task.grader": "the stored completions are graded again, where the record says how they were graded",
    "task.judge.": "the same",
    "task.sandbox.": "the same",
    "task.size.": "of stage=plan",
    "task.bundled_grader": "the grader of a bundled sample",
    "task.template_checks": "whether something unusual is warned of or refused",
    "model.shape.": "of stage=plan",
    "plan.": "of stage=plan",
}


# These decide the mask where it protects what the grader reads.
_GRADER = ("task.grader", "task.bundled_grader")


def _neutral(protect: Any) -> tuple[str, ...]:
    """`_NEUTRAL` under a value of `threshold.protect`, plain."""
    return tuple(key for key in _NEUTRAL if protect != Protect.answer.value or key not in _GRADER)


def identity(config: Config) -> dict[str, Any]:
    """The result-determining keys of a resolved configuration. Data files count by content, which the run records."""
    skip = (*_neutral(config.threshold.protect.value), "task.train.path", "task.eval.path")
    return {key: value for key, value in leaves(plain(config)) if not key.startswith(skip)}


def side_files(config: Config) -> dict[str, Path]:
    """The files beside the rows' own that say which rows are read, what the method makes of them and what general
    ability is measured on, by key."""
    named = {"method.path": getattr(config.method, "path", None)}
    for place, task in enumerate(config.evaluate.general):
        named[f"evaluate.general[{place}]"] = general_file(task)
    for which, source in (("train", config.task.train), ("eval", config.task.eval)):
        named |= {f"task.{which}.ids": source.ids, f"task.{which}.exclude_ids": source.exclude_ids}
    return {key: Path(path) for key, path in named.items() if isinstance(path, str)}


def general_file(task: str) -> str | None:
    """The file that an entry of `evaluate.general` names; None for a task that lm-eval knows."""
    return expanded(task.removeprefix(LOCAL)) if task.startswith(LOCAL) else None


# What versions that did not know a key did, where that is not the key's default now.
_BEFORE = {
    "threshold.end": ThresholdEnd.scored.value,
    "threshold.ties": ThresholdTies.earlier.value,
    "threshold.tr.fit": TRFit.responses.value,
}


def before_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a record did that lacks some of these keys, by dotted key; `values` are the record's leaves."""
    return {key: value for key, value in _BEFORE.items() if key not in values}


def differing_keys(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """The result-determining keys in which a recorded `identity` and `config` differ.

    A key that the record does not have was unknown to the version that wrote it, which then did what is the key's
    default now, or what `before_keys` says.
    """
    now = plain(identity(config))
    before = {**dict(_defaults(config, "")), **before_keys(recorded), **recorded}
    judged = config.scorer.attributes if config.method.masked else []
    unread = [*(_BEFORE if not judged else ()), *(["threshold.tr.fit"] if Attribute.tr not in judged else ())]
    now |= {key: before[key] for key in unread}
    if config.scorer.tr.variant is not TRVariant.released:  # no domain word is read
        now["task.domain_words"] = before["task.domain_words"]
    return sorted(key for key in recorded.keys() | now.keys() if before.get(key) != now.get(key))


def _defaults(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every leaf below a dataclass that has one."""
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from _defaults(value, f"{key}.")
        elif item.default_factory is not dataclasses.MISSING:
            yield from leaves(plain(item.default_factory()), key)
        elif item.default is not dataclasses.MISSING:
            yield key, plain(item.default)


def grader_identity(config: Config) -> str:
    """A digest of what decides a completion's verdict; version 1 of a grader has the digest of the time
    before versions."""
    task = config.task
    sandbox = {key: value for key, value in plain(task.sandbox).items() if key != "bubblewrap"}  # a wall, no limit
    settings = [task.grader, task.choices, task.reference, task.judge, sandbox]
    try:
        version = pkgutil.resolve_name(GRADER_VERSION)(task.grader)
    except ValueError:  # no such grader: refused where it is loaded
        version = 1
    return digest(settings if version == 1 else [*settings, version])


def overrides(node: DictConfig, default: DictConfig) -> dict[str, Any]:
    """The result-determining keys in which `node` differs from `default`, the same choices with nothing overridden.

    Both as `xtf.config.compose.compose` or `typed` gives them.
    """
    neutral = _neutral(_flat(node).get("threshold.protect"))
    return {key: value for key, value in changed_keys(node, default).items() if not key.startswith(neutral)}


def changed_keys(node: DictConfig, default: DictConfig) -> dict[str, Any]:
    """All keys in which the two differ."""
    base = _flat(default)
    return {key: value for key, value in _flat(node).items() if key not in base or base[key] != value}


def _flat(node: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return dict(leaves(OmegaConf.to_container(node, resolve=True, enum_to_str=True)))
