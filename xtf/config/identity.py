"""What names a run: its result-determining keys, as plain values and as hashes."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf

from xtf.config.schema import Config


def plain(value: Any) -> Any:
    """Dataclasses and enums as plain containers, for YAML, JSON and hashing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


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


def nearest(word: str, choices: Iterator[str] | list[str]) -> str:
    """', did you mean X?' or the empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


# Keys that change neither what is learnt nor what is measured, so they do not name a run folder.
_NEUTRAL = (
    "stage",
    "seed",
    "output_dir",
    "experiment",
    "archive",
    "probe",
    "pilot.",
    "cases",
    "logger.",
    "preview.",
    "evaluate.base",
    "evaluate.vllm_memory",
    "evaluate.losses",
    "evaluate.forgetting",
    "scorer.compute",
    "pretrain.",
    "trainer.name",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.strategy",
    "trainer.tokens_per_",
    "trainer.checkpoint_every",
    "trainer.shard_examples",
    "task.grader",
    "task.judge.",
    "task.sandbox.",
    "task.size.",
    "task.bundled_grader",
    "model.shape.",
    "plan.",
)


def identity(config: Config) -> dict[str, Any]:
    """The result-determining keys of a resolved configuration. Data files count by content, which the run records."""
    skip = (*_NEUTRAL, "task.train.path", "task.eval.path")
    return {key: value for key, value in leaves(plain(config)) if not key.startswith(skip)}


def differing_keys(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """The result-determining keys in which a recorded `identity` and `config` differ.

    A key that the record does not have was unknown to the version that wrote it, which then did what is the key's
    default now.
    """
    now = plain(identity(config))
    before = {**dict(_defaults(config, "")), **recorded}
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
    """A digest of what decides a completion's verdict."""
    task = config.task
    return digest([task.grader, task.choices, task.reference, task.judge, task.sandbox])


def overrides(node: DictConfig, default: DictConfig) -> dict[str, Any]:
    """The result-determining keys in which `node` differs from `default`, the same choices with nothing overridden."""

    def flat(part: DictConfig) -> dict[str, Any]:
        return dict(leaves(OmegaConf.to_container(part, resolve=True, enum_to_str=True)))

    base = flat(default)
    return {
        key: value
        for key, value in flat(node).items()
        if not key.startswith(_NEUTRAL) and (key not in base or base[key] != value)
    }
