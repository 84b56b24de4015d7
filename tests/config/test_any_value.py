"""Any value for any key of the schema is taken as given, or refused in one sentence that names the key, in seconds."""

from __future__ import annotations

import functools
import math
import os
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from xtf.cli import check_arguments
from xtf.config.checks import check_ranges, resolve
from xtf.config.compose import explain, override_value, register, to_config
from xtf.config.identity import built_in_methods, leaves, plain
from xtf.config.schema import ConfigError
from xtf.runtime.run_folder import RunFolder

pytest.importorskip("hypothesis", reason="the extra `test` brings it")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("XTF_EXAMPLES", "40"))
ODD = (
    "",
    " ",
    ".",
    "..",
    "../up",
    "/abs",
    "a/b",
    "a\\b",
    "a\nb",
    "\x00",
    "nan",
    "1e400",
    "-1",
    "null",
    "${seed}",
    "é" * 300,
    "9" * 5000,
)
ANY: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**30), max_value=10**30),
    st.sampled_from([10**9, 10**18, 2**63, -(2**63), 10**308, 10**400, -(10**400), 10**4299]),
    st.sampled_from([5e-324, 1e-308, 1e-9, 1e9, 1e300, 1.7e308]),
    st.floats(),
    st.sampled_from(ODD),
    st.text(string.printable, max_size=30),
    st.text(max_size=10),
    st.lists(st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5)), max_size=3),
    st.dictionaries(st.sampled_from(["a", "full", "tiny", "../x"]), st.one_of(st.integers(), st.floats()), max_size=2),
)


@pytest.fixture(scope="module", autouse=True)
def composing() -> Iterator[None]:
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTF_ROOT", str(ROOT))
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            yield


def keys() -> list[tuple[str, str]]:
    """Every dotted key of the schema, with the method that has it."""
    register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XTF_ROOT", str(ROOT))
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            found = [(key, "xtf") for key, _ in leaves(plain(to_config(hydra.compose("config"))))]
            for name in built_in_methods():
                config = to_config(hydra.compose("config", overrides=[f"method={name}"]))
                found += [(f"method.{key}", name) for key, _ in leaves(plain(config.method))]
    return sorted(set(found))


KEYS = keys()


SECONDS = 10.0  # of this process, to be told or to begin; most take hundredths


def at(config: Any, key: str) -> Any:
    """The plain value at a dotted key."""
    return functools.reduce(lambda part, name: part[name], key.split("."), plain(config))


def written(value: Any) -> Any:
    """One form for what YAML writes in several ways: 3, 3.0 and "3"."""
    if isinstance(value, list):
        return [written(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): written(entry) for key, entry in value.items()}
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return number if math.isfinite(number) else str(value)


@given(st.sampled_from(KEYS), ANY)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=EXAMPLES < 1000)
def test_any_value_is_taken_or_refused_in_one_sentence(chosen: tuple[str, str], value: Any) -> None:
    key, method = chosen
    argument, began = f"{key}={override_value(value)}", time.process_time()
    try:
        check_arguments([argument], sweep=False)
        composed = to_config(hydra.compose("config", overrides=[f"method={method}", argument]))
        config = resolve(composed)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        said = explain(error) if not isinstance(error, ConfigError) else str(error)
        assert said.strip() and "\n" not in said.replace(repr(value), "").replace(str(value), "").strip(), said
        assert any(part in said for part in (key, key.split(".")[-1], key.split(".")[0])), (argument, said)
        return
    finally:
        assert time.process_time() - began < SECONDS
    taken = at(composed, key)
    if not isinstance(taken, bool):  # of which YAML has many words
        assert written(taken) == written(value)
    if taken not in (None, ""):  # what is left open is filled in
        assert at(config, key) == taken or key == "task.max_new_tokens"  # the command line says what caps it
    check_ranges(config)
    folder = RunFolder.of(config, {key: value}).path
    output = Path(config.output_dir)
    assert folder.is_relative_to(output) and ".." not in folder.relative_to(output).parts
    assert len(folder.relative_to(output).parts) == 7


def test_every_number_of_the_schema_has_a_range() -> None:
    """NaN and infinity are refused everywhere; that a number has no bounds at all is stated by nobody here."""
    import dataclasses
    import typing

    from xtf.config.schema import Config, threshold_type

    def numbers(kind: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            hint = hints[item.name]
            for part in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(part):
                    yield from numbers(part, f"{prefix}{item.name}.")
                elif part in (int, float):
                    yield f"{prefix}{item.name}", item

    groups = [*numbers(Config, ""), *numbers(threshold_type(), "threshold.")]
    for name, kind in built_in_methods().items():
        groups += numbers(kind, f"{name}: method.")
    without = [key for key, item in groups if "range" not in item.metadata]
    assert not without, without
    assert len(groups) > 80


@pytest.mark.parametrize("group", ["model", "cases", "experiments", "hydra/launcher"])
@pytest.mark.parametrize("value", ["null", "3", "{a:1}"])
def test_what_is_no_name_is_refused_as_a_choice(group: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{group}={value}: a choice is the name of a file in "):
        check_arguments([f"{group}={value}"], sweep=False)
