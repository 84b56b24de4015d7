"""From Hydra's nodes to the typed configuration, and what its errors mean in words; overrides in Hydra's grammar."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from xtf.config.home import HOME, expanded
from xtf.config.identity import before_keys, built_in_methods, leaves, nearest
from xtf.config.schema import GROUPS, METHODS, Config, ConfigError, ModelConfig, attribute_names, threshold_type

# --- composing -------------------------------------------------------------------------------------------------------


def register() -> None:
    """Put the schema into Hydra's store, one node per group and method; conf/*/*.yaml start from these."""
    from hydra.core.config_store import ConfigStore

    os.environ.setdefault("XTF_ROOT", str(HOME))  # which conf/config.yaml puts on the search path, for experiments/
    store = ConfigStore.instance()
    store.store(name="run", group="schema", node=Config)
    for group, cls in _group_types().items():
        store.store(name=group, group="schema", node=cls)
    for name, cls in built_in_methods().items():
        store.store(name=name, group="schema/method", node=cls)
        if not cls.__module__.startswith("xtf."):  # an installed package's, which needs no YAML file
            store.store(name=name, group="method", node=cls)


def _group_types() -> dict[str, type]:
    hints = get_type_hints(Config) | {"threshold": threshold_type()}
    return {group: hints[group] for group in GROUPS if group != "method"}


def compose(overrides: Sequence[str], hydra_node: bool = False) -> DictConfig:
    """`hydra.compose` of conf/config.yaml with the search path that the command line gave; Hydra must be initialized.

    With `hydra_node` the result has Hydra's own settings below `hydra`.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    path = [text for text in given if text.startswith("hydra.searchpath=")]
    return hydra.compose("config", overrides=[*path, *overrides], return_hydra_config=hydra_node)


def typed(node: DictConfig) -> DictConfig:
    """A composed or recorded configuration on the schema: every leaf has its type, those left out their defaults.

    Raises:
        ConfigError: for a method whose class is not to be found.
    """
    schema = copy.copy(_schema(tuple(attribute_names())))
    # As plain values: a node to which a key was added with + would bring it along, unknown as it is.
    values: Any = OmegaConf.to_container(node, resolve=True)
    if not OmegaConf.is_missing(node, "method"):
        schema.method = OmegaConf.structured(_method_class(node.method))
        values["method"].pop("_target_", None)
    if not OmegaConf.is_missing(node, "scorer") and (named := values["scorer"].get("model")) is not None:
        schema.scorer = copy.deepcopy(schema.scorer)  # the cached one stays as it is
        schema.scorer.model = OmegaConf.structured(ModelConfig)
        if not isinstance(named, dict):
            values["scorer"]["model"] = _model_named(named)
    merged = OmegaConf.merge(schema, values)
    assert isinstance(merged, DictConfig)
    kinds: list[Any] = [OmegaConf.get_type(OmegaConf.select(merged, key)) for key in ("method", "scorer.model")]
    for key in place_keys(*kinds):
        if isinstance(path := OmegaConf.select(merged, key), str):
            OmegaConf.update(merged, key, expanded(path))
    return merged


@functools.cache
def place_keys(method: type | None = None, scoring_model: type | None = None) -> list[str]:
    """The dotted keys whose values are files or folders (`xtf.config.schema.place`); of a method, and of the model in
    `scorer.model`, where their classes are given."""
    found = list[str]()
    left: list[tuple[str, Any]] = [("", Config), ("method.", method), ("scorer.model.", scoring_model)]
    while left:
        prefix, kind = left.pop()
        if not dataclasses.is_dataclass(kind):
            continue
        hints = get_type_hints(kind)
        found += [f"{prefix}{item.name}" for item in dataclasses.fields(kind) if "place" in item.metadata]
        left += [(f"{prefix}{name}.", hint) for name, hint in hints.items() if dataclasses.is_dataclass(hint)]
    return found


def _model_named(name: Any) -> Any:
    """A choice of conf/model, for `scorer.model`.

    Raises:
        ConfigError: there is none of that name, or it is no name.
    """
    from hydra.errors import HydraException

    if not isinstance(name, str):
        raise ConfigError(f"scorer.model={name} must be the name of a choice of conf/model, not {type(name).__name__}")
    try:
        return OmegaConf.to_container(compose([f"model={name}"]).model, resolve=True)
    except HydraException as error:  # its message lists the choices
        raise ConfigError(f"scorer.model={name}: {error}") from error


@functools.cache
def _schema(attributes: tuple[str, ...]) -> DictConfig:
    """Of all groups but the method; `attributes` are those that have a threshold when it is asked for."""
    schema = OmegaConf.structured(Config)
    for group, cls in _group_types().items():
        schema[group] = OmegaConf.structured(cls)
    return schema


def _method_class(node: DictConfig) -> type:
    """What `_target_` names, else the built-in method of that name."""
    from hydra.utils import get_class

    built_in, target, name = built_in_methods(), node.get("_target_"), node.get("name")
    if target is None:
        kind = OmegaConf.get_type(node)  # of a choice that starts from a built-in one and has another name
        if name in built_in:
            return built_in[name]
        if kind is None or not dataclasses.is_dataclass(kind):
            raise ConfigError(
                f"method={name} is not built in{nearest(str(name), built_in)} (choices: {', '.join(built_in)}); "
                "a method of your own names its class: _target_: my_package.MyMethod"
            )
        return kind
    try:
        cls: type = get_class(target)
    except Exception as error:  # whatever importing a user's module raises
        raise ConfigError(
            f"method._target_={target}: {_one_line(error)} (its package must be installed or on PYTHONPATH)"
        ) from error
    base = built_in["normal"]
    if not issubclass(cls, base):
        raise ConfigError(f"method._target_={target} must derive from {base.__module__}.{base.__qualname__}")
    if name in built_in and cls is not built_in[name]:
        raise ConfigError(f"method.name={name} is the name of a built-in method ({METHODS}): give {target} another")
    return cls


def to_config(node: DictConfig) -> Config:
    """A composed node, or a run's config.yaml, as the typed configuration.

    Raises:
        ConfigError: for a missing or ill-typed value, or one that a method refuses.
    """
    try:
        return build(typed(node))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error


def build(node: DictConfig) -> Config:
    """The configuration of a node that `typed` gave; raises as `to_config` does."""
    try:
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ConfigError(f"no value for {', '.join(missing)}; set it on the command line as {missing[0]}=...")
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    except ConfigError:
        raise
    except ValueError as error:  # of a method's own check
        raise ConfigError(str(error)) from error
    assert isinstance(config, Config)
    return config


def load_config(node: DictConfig) -> Config:
    """A run's config.yaml, as the typed configuration that it was written from; raises as `to_config` does."""
    node = node.copy()
    for key, value in before_keys(dict(leaves(OmegaConf.to_container(node)))).items():
        OmegaConf.update(node, key, value)
    return to_config(node)


# --- errors in words -------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """One sentence for an exception of Hydra or OmegaConf: the key, what it takes, the nearest valid name."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, name = error.missing_cfg_file.rpartition("/")
        choices = f"there is no such choice{nearest(name, error.options)} (choices: {', '.join(error.options)})"
        return f"{_where(error)}{group}={name}: {choices}"
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OmegaConfBaseException):
        inner = inner.__cause__
    if inner is None or not inner.full_key:
        return _one_line(error)
    key, where, kind = str(inner.full_key), _where(error), inner.object_type
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    if isinstance(inner, ConfigAttributeError | ConfigKeyError):
        known = [item.name for item in dataclasses.fields(kind)] if hints else list(inner.parent_node or ())  # type: ignore[arg-type]  # a dataclass, then
        prefix = key.removesuffix(str(inner.key))
        return f"{where}there is no key {key!r}{nearest(key, [f'{prefix}{name}' for name in known])}"
    hint = hints.get(str(inner.key))
    if hint is None and get_args(inner.ref_type):  # of an element of a list or dict
        hint = get_args(inner.ref_type)[-1]
    if isinstance(inner, ValidationError) and hint is not None:
        has_value = isinstance(inner.value, str | int | float) or "is not Optional" in str(inner.msg)
        shown = f"={override_value(inner.value)}" if has_value else ""
        members = next((part.__members__ for part in (hint, *get_args(hint)) if _is_enum(part)), ())
        near = nearest(str(inner.value), members)
        return f"{where}{key}{shown} is not valid: it must be {_wanted(hint)}{near}"
    return f"{where}{key}: {_one_line(inner)}"


def number_too_long(error: BaseException, arguments: Sequence[str]) -> str | None:
    """One sentence for what OmegaConf and Python raise of a number in a YAML file that no float holds: the file and the
    line, where they are below a folder that the arguments name; None for any other error."""
    text = str(error)
    if "int_max_str_digits" not in text and not (isinstance(error, OverflowError) and "full_key" in text):
        return None
    flags = r"(?:--config-dir|-cd|--config-path|-cp)[ =](\S+)|file://([^],'\"]+)"
    folders = [Path(one or other) for one, other in re.findall(flags, " ".join(arguments))]
    for file in (file for folder in folders for file in sorted(folder.rglob("*.yaml"))):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if found := re.search(r"\d{309,}", line):
                return f"{file}, line {number}: a number of {len(found[0])} digits is larger than any float"
    return "a YAML file holds a number that is larger than any float"


def _where(error: BaseException) -> str:
    """'conf file: ' if Hydra says that the error is in one, but not of config.yaml: that is what overrides go into."""
    found = re.match(r"In '([^']+)'", str(error))
    return f"{found[1]}.yaml: " if found and found[1] not in ("config", "hydra/config") else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n    full_key")[0].split()) or type(error).__name__


def _wanted(hint: Any) -> str:
    """What a field of the type `hint` takes, in words."""
    parts = get_args(hint)
    if type(None) in parts:
        return f"{_wanted(parts[0])}, or null"
    if _is_enum(hint):
        return f"one of {', '.join(hint.__members__)}"
    if get_origin(hint) is list:
        return f"a list whose every entry is {_wanted(parts[0])}"
    if get_origin(hint) is dict:
        return f"{{name: value, ...}} with {_wanted(parts[1])} for each value"
    if dataclasses.is_dataclass(hint):
        return f"{{key: value, ...}} with the keys {', '.join(item.name for item in dataclasses.fields(hint))}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(hint, str(hint))


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


# --- overrides in Hydra's grammar ------------------------------------------------------------------------------------


def override_value(value: Any) -> str:
    """A value in Hydra's override grammar: quoted where it would be read as anything else."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(override_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{override_value(key)}:{override_value(item)}" for key, item in value.items()) + "}"
    text = str(value)
    if not isinstance(value, str) or _reads_as_itself(text):
        return text
    quote = "'" if '"' in text and "'" not in text else '"'
    # Backslashes are themselves but before a quote. `$` with a brace would be an interpolation.
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda m: m[1] * 2 + m[2].replace(quote, "\\" + quote), text)
    return quote + escaped.replace("${", "\\${") + quote


def _reads_as_itself(text: str) -> bool:
    if not re.fullmatch(r"[A-Za-z0-9_./:@+-]{1,1000}", text):  # a longer one may have more digits than Python reads
        return False
    return bool(parse_overrides([f"key={text}"])[0].value() == text)


def parse_overrides(arguments: Sequence[str]) -> list[Any]:
    """Hydra's override for each argument.

    Raises:
        ConfigError: with the quoting that works, for a value that Hydra's grammar cannot read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    overrides = []
    for argument in arguments:
        try:
            override = parser.parse_override(argument)
            if not override.is_sweep_override():
                override.value()  # functions are called here
        except HydraException as error:
            raise ConfigError(f"{argument}: {_remedy(argument) or _one_line(error)}") from error
        except ValueError as error:  # of `int`
            key = argument.partition("=")[0]
            raise ConfigError(f"{key} is out of range: Python reads no whole number of so many digits") from error
        overrides.append(override)
    return overrides


def with_home(arguments: Sequence[str]) -> list[str]:
    """Arguments whose files and folders begin with the home folder where `~/` was typed: shells do not write it out
    behind `key=`, Hydra's grammar does not know it, and Hydra itself makes folders below output_dir."""
    keys = {key for method in built_in_methods().values() for key in place_keys(method, ModelConfig)}
    home, found = expanded("~"), []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if key.lstrip("+") in keys:
            value = re.sub(r"""(?<![^,["'])~(?=/)""", lambda _: home, value)
        found.append(f"{key}{sign}{value}")
    return found


TEXTS = (str, str | None, list[str])  # types of a key that takes texts


def check_texts(overrides: Sequence[Any]) -> None:
    """Refuse a value that is no text to Hydra where one is wanted, alone or in a list or a sweep, if it would come out
    otherwise than it was typed.

    A revision of 1e5, say, which Hydra reads as the number 100000.0.
    """
    for override in overrides:
        key, typed_in = override.key_or_group, (override.input_line or "").partition("=")[2]
        hint, value = _hint(key), None if override.is_sweep_override() else override.value()
        if override.is_choice_sweep():
            values, entries = override.value().list, _entries(typed_in)
        elif isinstance(value, list):
            values, entries = value, _entries(typed_in.strip()[1:-1])
        else:
            values, entries = [value], [typed_in]
        if hint not in TEXTS or isinstance(value, list) != (hint == list[str]) or len(values) != len(entries):
            continue
        numbers = [isinstance(one, int | float) for one in values]  # true and false among them
        for one, text, number in zip(values, entries, numbers, strict=True):
            if number and str(one) != text:
                texts = [override_value(word) if no else word for word, no in zip(entries, numbers, strict=True)]
                joined = ",".join(texts)
                literal = shlex.quote(f"{key}={f'[{joined}]' if isinstance(value, list) else joined}")
                raise ConfigError(f"{key}={typed_in} is read as {one!r}; to give the text, write {literal}")


def check_numbers(overrides: Sequence[Any]) -> None:
    """Refuse whole numbers beyond any float, of which OmegaConf makes an OverflowError where it wants a float."""
    for override in overrides:
        key = override.key_or_group
        if _hint(key) not in TEXTS and any(
            abs(number) > sys.float_info.max for number in _whole_numbers(override.value())
        ):
            raise ConfigError(f"{key} is out of range: it is, or holds, a number that is larger than any float")


def _whole_numbers(value: Any) -> Iterator[int]:
    """Those of an override's value, also of the list that a sweep goes through."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        yield from _whole_numbers(list(value.values()))
    else:
        for entry in value if isinstance(value, list) else getattr(value, "list", None) or ():
            yield from _whole_numbers(entry)


_ENTRY = re.compile(r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,"'])+""")


def _entries(text: str) -> list[str]:
    """The entries of a list of texts and numbers, as they are typed."""
    return [found.strip() for found in _ENTRY.findall(text)]


def _hint(key: str) -> Any:
    """The type that the schema, or any built-in method, has at this dotted key."""
    hint: Any = Config
    for part in key.split("."):
        if hint is Any:  # the method
            known = (get_type_hints(cls) for cls in built_in_methods().values())
            hint = next((hints[part] for hints in known if part in hints), None) if key.startswith("method.") else None
        else:
            hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def _remedy(argument: str) -> str | None:
    """How to write `argument` so that its value is taken literally; None if its key is what is wrong."""
    found = re.fullmatch(r"(\+{0,2}[\w./@-]+)=(.*)", argument, re.DOTALL)
    if found is None or not found[1].isascii():
        return None
    return f"Hydra cannot read this value without quotes; write {quoted(found[1], found[2])}"


def quoted(key: str, text: str) -> str:
    """`key=text` for a shell, with the text taken literally by Hydra."""
    value = override_value(text).replace("\\${", "${")  # as it was typed: an interpolation stays one
    return shlex.quote(f"{key}={value}") if value != text else f"{key}={text}"
