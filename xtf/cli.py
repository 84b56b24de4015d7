"""The command line: help, checks before anything heavy is imported, and one Hydra job per composed configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As in any Hydra program, HYDRA_FULL_ERROR=1 asks for tracebacks. Hydra itself is then always told to raise, so that
# `main` can word its errors for users.
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
os.environ["HYDRA_FULL_ERROR"] = "1"

GROUPS = ("model", "task", "scorer", "threshold", "method", "tuning", "trainer", "logger", "experiments")

USAGE = """\
XTF finds which label tokens of a fine-tuning set teach a language model, trains without the rest,
and shows whether that helped.

usage: python run.py [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]

  python run.py                                       tiny bundled model, bundled math data: the whole pipeline
  python run.py model=qwen task=math                  a model of the paper on GSM8K from the hub
  python run.py task.train.path=my.jsonl              own rows
  python run.py -m scorer=none,ri,kn,tr,xtf seed=0,1  a sweep: one run for each combination
  python run.py -m experiments=table2                 a table of the paper
  python run.py experiments=table2 stage=report       its report, also while it is running
  python run.py stage=score                           one stage; earlier artifacts are reused
"""


def choices(root: Path, group: str) -> dict[str, Path]:
    folder = root / group if group == "experiments" else root / "conf" / group
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def help_text(root: Path) -> str:
    """Usage, groups with their choices and defaults, experiments, keys. Reads file names; imports nothing heavy."""
    defaults = {}
    for line in (root / "conf" / "config.yaml").read_text(encoding="utf-8").splitlines():
        group, _, choice = line.strip(" -").partition(": ")
        if group in GROUPS:
            defaults[group] = choice
    out = [USAGE, "groups (the default is marked *):"]
    for group in GROUPS[:-1]:
        names = (f"*{name}" if name == defaults.get(group) else name for name in choices(root, group))
        out.append(f"  {group:10} {', '.join(names)}")
    out.append("\nexperiments (always with -m):")
    for name, path in choices(root, "experiments").items():
        lines = path.read_text(encoding="utf-8").splitlines()
        header = next(
            (line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line), ""
        )
        out.append(f"  {name:16} {header}")
    out.append(
        "\nother keys: stage=all|score|mask|train|evaluate|report|preview|dashboard, seed=N, output_dir=FOLDER, and\n"
        "every key of a group. xtf/config.py lists all of them with types, defaults and meaning;\n"
        "python run.py --cfg job prints the composed configuration without running it."
    )
    return "\n".join(out)


def known_keys() -> set[str]:
    """Every dotted key that the schema knows, inner nodes included."""
    import dataclasses
    import typing

    from xtf.config import Config
    from xtf.methods import METHODS

    found: set[str] = set()

    def visit(cls: Any, prefix: str) -> None:
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            key = f"{prefix}{item.name}"
            found.add(key)
            if dataclasses.is_dataclass(hints[item.name]):
                visit(hints[item.name], f"{key}.")

    visit(Config, "")
    for method in METHODS.values():
        visit(method, "method.")
    return found


def check_overrides(root: Path, arguments: list[str], sweep: bool) -> None:
    """Refuse an unknown group, choice or key, naming the nearest valid one, and a sweep without -m."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from xtf.config import ConfigError, nearest

    keys = known_keys()
    for override in OverridesParser.create().parse_overrides(arguments):
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override() and not sweep:
            raise ConfigError(f"{text} names several runs: put -m before it (python run.py -m {text})")
        if key.split(".")[0].split("/")[0] == "hydra":
            continue
        if key in GROUPS:
            valid = choices(root, key)
            for value in _values(override):
                if value not in valid and not (key == "experiments" and value == "None"):
                    raise ConfigError(
                        f"{key}={value}: there is no such choice{nearest(value, list(valid))} "
                        f"(choices: {', '.join(valid)})"
                    )
        elif not any(key == known or (known in _OPEN and key.startswith(f"{known}.")) for known in keys):
            raise ConfigError(f"{text}: there is no key {key!r}{nearest(key, sorted(keys) + list(GROUPS))}")


_OPEN = {"model.recipes"}  # keys whose children are free names


def _values(override: Any) -> Iterator[str]:
    if override.is_sweep_override():
        yield from (str(value) for value in override.sweep_iterator())
    else:
        yield str(override.value())


def sweep_arguments(root: Path, arguments: list[str]) -> list[str]:
    """What a sweep adds to its command line.

    The grid of experiments=NAME, less the keys that the command line sets: Hydra would run the product of both. And
    for a sweep over scorers, the attributes of all its jobs, so that one scoring pass serves them.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    parser = OverridesParser.create()
    given = {override.key_or_group for override in parser.parse_overrides(arguments)}
    added = []
    for override in parser.parse_overrides([a for a in arguments if a.startswith("experiments=")]):
        grid = OmegaConf.load(choices(root, "experiments")[str(override.value())]).hydra.sweeper.params
        added += [f"{key}={value}" for key, value in grid.items() if key not in given]
        added.append("hydra.sweeper.params=null")
    scorers = [o for o in parser.parse_overrides(arguments + added) if o.key_or_group == "scorer"]
    if scorers and scorers[0].is_sweep_override() and "scorer.compute" not in given:
        files = choices(root, "scorer")
        union = {a for name in _values(scorers[0]) for a in OmegaConf.load(files[name]).attributes}
        added.append(f"scorer.compute=[{','.join(sorted(union))}]")
    return added


def main(root: Path, argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(flag in arguments for flag in ("-h", "--help")):
        print(help_text(root))
        return 0

    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from xtf.config import ConfigError, register

    failed: list[tuple[str, Exception]] = []

    @hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="config")
    def job(node: Any) -> None:
        _run_job(node, failed)

    try:
        register()
        sweep = any(flag in arguments for flag in ("-m", "--multirun"))
        plain = [a for a in arguments if not a.startswith("-") and "=" in a]
        check_overrides(root, plain, sweep)
        if sweep:
            # Flags first: Hydra's parser takes no overrides before and behind a flag.
            rest = [a for a in arguments if a not in ("-m", "--multirun")]
            arguments = ["--multirun", *rest, *sweep_arguments(root, plain)]
        sys.argv = [str(root / "run.py"), *arguments]
        job()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}\n(python run.py --help lists groups and keys)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for name, problem in failed:
        print(f"error: {name}: {problem}" if sweep else f"error: {problem}", file=sys.stderr)
    if failed and sweep:
        print(f"{len(failed)} runs failed; the same command runs what is missing", file=sys.stderr)
    return max((2 if isinstance(problem, ConfigError) else 1 for _, problem in failed), default=0)


def _run_job(node: Any, failed: list[tuple[str, Exception]]) -> None:
    """One run. What users can mend goes to `failed`, so that the rest of a sweep runs; a fault of ours is raised."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from xtf.config import ConfigError, overrides, resolve, run_folder, to_config

    hydra_node = HydraConfig.get()
    if str(node.stage.name) == "report" and node.experiment and hydra_node.mode == RunMode.RUN:
        from xtf.sweeps import sweep_report

        output = Path(node.output_dir)
        try:
            files = sweep_report(node.experiment, output / "runs", output / "reports")
        except ValueError as error:  # no run of it yet, or none that has finished
            raise ConfigError(str(error)) from error
        for file in files:
            print(f"report: {file}")
        return
    if hydra_node.mode == RunMode.RUN and hydra_node.sweeper.get("params"):
        name = hydra_node.runtime.choices["experiments"]
        raise ConfigError(f"experiments={name} is a sweep: run it as python run.py -m experiments={name}")
    changed = overrides(node, _default(hydra_node.runtime.choices))
    try:
        composed = to_config(node)
    except ValueError as error:  # a method that refuses its settings
        raise ConfigError(str(error)) from error
    name = str(run_folder(composed, changed)).removeprefix("runs/")
    case = f"{composed.model.name}/{composed.tuning.name.value}"
    if composed.cases and case not in composed.cases and not composed.model.bundled_data:
        print(f"{name}: skipped, {case} is not one of the experiment's cases")
        return
    try:
        config = resolve(composed)
        from xtf.pipeline import run

        run(config, changed)
    except (ValueError, OSError) as error:  # a wrong value, a missing or broken file
        if TRACEBACKS:
            raise
        failed.append((name, error))


def _default(chosen: Any) -> Any:
    """The configuration of the same choices with nothing overridden, against which a run's overrides are named."""
    import hydra

    groups = [g for g in GROUPS if g != "experiments" and chosen.get(g)]
    return hydra.compose("config", overrides=[f"{group}={chosen[group]}" for group in groups])
