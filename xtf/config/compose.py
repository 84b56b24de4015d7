"""Hydra's store of the schema, and composed nodes as typed configurations."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import types
from collections.abc import Mapping
from dataclasses import field
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf

from xtf.config.identity import plain
from xtf.config.schema import GROUPS, Config, ConfigError

# --- composing, checking, resolving ----------------------------------------------------------------------------------


@functools.cache
def _writable(cls: Any) -> Any:
    """A twin of a frozen dataclass that Hydra can merge into: OmegaConf makes every node of a frozen type read-only."""
    hints = get_type_hints(cls)
    parts: list[Any] = []
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            twin: Any = _writable(hint)  # type: ignore[arg-type]  # a nested dataclass; its default is either MISSING or its own defaults
            default = field(default=MISSING) if item.default is MISSING else field(default_factory=twin)
            parts.append((item.name, twin, default))
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            twins = types.GenericAlias(dict, (str, _writable(get_args(hint)[1])))
            parts.append((item.name, twins, field(default_factory=dict)))
        elif item.default_factory is not dataclasses.MISSING:
            parts.append((item.name, hint, field(default_factory=item.default_factory)))
        else:
            parts.append((item.name, hint, field(default=item.default)))
    twin = dataclasses.make_dataclass(cls.__name__, parts)
    # Launchers with processes of their own send the schema there: it has to pickle by reference (see __getattr__).
    twin.__module__, twin.__qualname__ = (
        __name__,
        f"writable {cls.__module__.replace('.', '/')} {cls.__qualname__}",
    )
    return twin


def __getattr__(name: str) -> Any:
    """The twin of a dataclass by its qualified name, which is what unpickling asks this module for."""
    kind, *path = name.split(" ")
    if kind != "writable":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _writable(getattr(importlib.import_module(path[0].replace("/", ".")), path[1]))


def _schema(value: Any) -> DictConfig:
    """A structured node for a dataclass, or for an instance of one with its values as the defaults."""
    if isinstance(value, type):
        return OmegaConf.structured(_writable(value))
    node = OmegaConf.merge(OmegaConf.structured(_writable(type(value))), plain(value))  # type: ignore[arg-type]
    assert isinstance(node, DictConfig)
    return node


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    """The frozen dataclass `cls` from a container whose leaves OmegaConf has type-checked."""
    hints, arguments = get_type_hints(cls), {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            value = {key: _build(get_args(hint)[1], part) for key, part in value.items()}
        arguments[name] = value
    return cls(**arguments)


def register() -> None:
    """Put the schema into Hydra's store, one node per group; conf/*/*.yaml start from these."""
    from hydra.core.config_store import ConfigStore

    from xtf.scoring import thresholds
    from xtf.scoring.methods import METHODS

    store = ConfigStore.instance()
    store.store(name="run", group="schema", node=_schema(Config))
    for group, cls in GROUPS.items():
        store.store(name=group, group="schema", node=_schema(cls))
    for name, preset in thresholds.PRESETS.items():
        store.store(name=name, group="schema/threshold", node=_schema(preset))
    for name, method in METHODS.items():
        store.store(name=name, group="schema/method", node=_schema(method))


def to_config(node: DictConfig) -> Config:
    """The composed node as typed, frozen dataclasses. Raises ConfigError on a missing or ill-typed value."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise ConfigError(f"no value for {', '.join(missing)}; set it on the command line as {missing[0]}=...")
    from xtf.scoring.methods import METHODS

    values: Any = OmegaConf.to_container(node, resolve=True)
    values["method"] = _build(METHODS[values["method"]["name"]], values["method"])
    return _build(Config, values)


def load_config(node: DictConfig) -> Config:
    """A run's config.yaml, as the typed configuration that it was written from."""
    from xtf.scoring.methods import METHODS

    schema = _schema(Config)
    for group, cls in GROUPS.items():
        schema[group] = _schema(cls)
    schema.method = _schema(METHODS[node.method.name])
    merged = OmegaConf.merge(schema, node)
    assert isinstance(merged, DictConfig)
    return to_config(merged)
