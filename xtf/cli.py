"""The command line: help, checks before anything heavy is imported, and one Hydra job per composed configuration."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As in any Hydra program, HYDRA_FULL_ERROR=1 asks for tracebacks. Hydra itself is then always told to raise, so that
# `main` can word its errors for users.
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
os.environ["HYDRA_FULL_ERROR"] = "1"
# conf/hydra/launcher/joblib.yaml has the name of the plugin's own schema, and is meant to be checked against it.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/joblib' is validated", UserWarning)

GROUPS = ("model", "task", "scorer", "threshold", "method", "tuning", "trainer", "logger", "pretrain", "experiments")

USAGE = """\
XTF finds which label tokens of a fine-tuning set teach a language model, trains without the rest,
and shows whether that helped.

usage: python run.py [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]

  python run.py                                       tiny bundled model, bundled math data: the whole pipeline
  python run.py model=qwen task=math                  a model of the paper on GSM8K from the hub
  python run.py task.train.path=my.jsonl              own rows
  python run.py -m scorer=none,ri,kn,tr,xtf seed=0,1  a sweep: one run for each combination
  python run.py -m experiments=table2                 a table of the paper
  python run.py -m experiments=table2 stage=plan      what that would cost
  python run.py experiments=table2 stage=report       its report, also while it is running
  python run.py stage=score                           one stage; earlier artifacts are reused
  python run.py probe=true task.train.path=my.jsonl   what would be dropped, a short pilot, how large a study must be
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
        header = next((line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line), "")
        out.append(f"  {name:16} {header}")
    out.append(
        "\nother keys: stage=all|score|mask|train|evaluate|report|preview|plan|dashboard|pretrain, seed=N,\n"
        "and every key of a group. xtf/config/schema.py lists all of them with types, defaults and meaning;\n"
        "python run.py --cfg job prints the composed configuration without running it."
    )
    return "\n".join(out)


def known_keys() -> set[str]:
    """Every dotted key that the schema knows, inner nodes included."""
    import dataclasses
    import typing

    from xtf.config.schema import Config
    from xtf.scoring.methods import METHODS

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

    from xtf.config.identity import nearest
    from xtf.config.schema import ConfigError

    keys = known_keys()
    for override in OverridesParser.create().parse_overrides(arguments):
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override() and not sweep:
            raise ConfigError(f"{text} names several runs: put -m before it (python run.py -m {text})")
        if key == "hydra/launcher":
            _check_launcher(str(override.value()))
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


def _check_launcher(name: str) -> None:
    from importlib.util import find_spec

    from xtf.config.schema import ConfigError

    plugin, extra = {
        "joblib": ("hydra_joblib_launcher", "sweep"),
        "slurm": ("hydra_submitit_launcher", "slurm"),
    }.get(name, ("", ""))
    if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
        raise ConfigError(f"hydra/launcher={name} needs the extra {extra!r}: pip install 'xtf[{extra}]'")


_OPEN = {"model.recipes"}  # keys whose children are free names


def _values(override: Any) -> Iterator[str]:
    if override.is_sweep_override():
        yield from (str(value) for value in override.sweep_iterator())
    else:
        yield str(override.value())


def sweep_arguments(root: Path, arguments: list[str]) -> list[str]:
    """What a sweep adds to its command line.

    The grid of experiments=NAME, less the keys that the command line sets: Hydra would run the product of both. And
    for a sweep over scorers or methods, the attributes of all its jobs, so that one scoring pass serves them.
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
    swept = {o.key_or_group: o for o in parser.parse_overrides(arguments + added) if o.is_sweep_override()}
    if swept.keys() & {"scorer", "method"} and "scorer.compute" not in given:
        chosen = [o for o in parser.parse_overrides(arguments + added) if o.key_or_group == "scorer"]
        files = choices(root, "scorer")
        names = [name for override in chosen for name in _values(override)] or ["xtf"]
        union = {a for name in names for a in OmegaConf.load(files[name]).attributes}
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

    from xtf.config.compose import register
    from xtf.config.schema import ConfigError
    from xtf.sweeps.jobs import JobsFailedError

    try:
        register()
        sweep = any(flag in arguments for flag in ("-m", "--multirun"))
        plain = [a for a in arguments if not a.startswith("-") and "=" in a]
        check_overrides(root, plain, sweep)
        if sweep:
            # What jobs in other processes have to know: the command as it was typed, and where xtf lies.
            os.environ["XTF_COMMAND"] = shlex.join(["python", "run.py", *arguments])
            paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            # Flags first: Hydra's parser takes no overrides before and behind a flag.
            rest = [a for a in arguments if a not in ("-m", "--multirun")]
            arguments = ["--multirun", *rest, *sweep_arguments(root, plain)]
        sys.argv = [str(root / "run.py"), *arguments]
        hydra.main(version_base="1.3", config_path=str(root / "conf"), config_name="config")(run_job)()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {error}\n(python run.py --help lists groups and keys)", file=sys.stderr)
        return 2
    except (JobFailedError, JobsFailedError) as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


class JobFailedError(Exception):
    """The one job of a command line failed for a reason that its user can mend."""


def run_job(node: Any) -> None:
    """One run, in the process where a launcher calls this.

    In a sweep every error goes to the run's error.json, so that the rest runs; else what users can mend is worded, and
    a fault of ours is raised as it is.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from xtf.config.checks import resolve
    from xtf.config.compose import to_config
    from xtf.config.identity import overrides
    from xtf.config.schema import ConfigError, Stage
    from xtf.runtime.run_folder import RunFolder
    from xtf.sweeps.jobs import Planned, claim_device

    hydra_node = HydraConfig.get()
    sweep = hydra_node.mode == RunMode.MULTIRUN
    if str(node.stage.name) == "report" and node.experiment and not sweep:
        _report(str(node.experiment), Path(node.output_dir), node.archive)
        return
    if not sweep and hydra_node.sweeper.get("params"):
        name = hydra_node.runtime.choices["experiments"]
        raise ConfigError(f"experiments={name} is a sweep: run it as python run.py -m experiments={name}")
    changed = overrides(node, _default(hydra_node.runtime.choices))
    try:
        composed = to_config(node)
    except ValueError as error:  # a method that refuses its settings
        raise ConfigError(str(error)) from error
    folder = RunFolder.of(composed, changed)
    if composed.stage is Stage.plan:
        from xtf.sweeps.plan import show_plan

        config = resolve(dataclasses.replace(composed, stage=Stage.all))
        if config.probe:
            from xtf.study.probe import pilot_jobs

            show_plan([Planned((), job, named) for job, named in pilot_jobs(config, changed)])
        else:
            show_plan([Planned((), config, changed)])
        return
    folder.error.unlink(missing_ok=True)
    try:
        config = resolve(composed)
        if "joblib" in hydra_node.launcher["_target_"]:
            claim_device(config)
        if config.probe:
            from xtf.study.probe import probe

            probe(config, changed)
        else:
            from xtf.pipeline import run

            run(config, changed)
    except Exception as error:
        if sweep:
            folder.record_error(error)
            print(f"error: {folder.path}: {error}", file=sys.stderr)
        elif TRACEBACKS or isinstance(error, ConfigError) or not isinstance(error, (ValueError, OSError)):
            raise
        else:  # a wrong value, a missing or broken file
            raise JobFailedError(str(error)) from error


def _report(experiment: str, output: Path, archive: str | None) -> None:
    from xtf.config.schema import ConfigError
    from xtf.runtime.run_folder import OutputDir
    from xtf.sweeps.reports import experiment_report

    try:
        stored = None if archive is None else Path(archive)
        files = experiment_report(experiment, OutputDir(output), archive=stored)
    except ValueError as error:  # no run of it yet, or none that has finished
        raise ConfigError(str(error)) from error
    for file in files:
        print(f"report: {file}")


def _default(chosen: Any) -> Any:
    """The configuration of the same choices with nothing overridden, against which a run's overrides are named."""
    import hydra

    groups = [g for g in GROUPS if g != "experiments" and chosen.get(g)]
    return hydra.compose("config", overrides=[f"{group}={chosen[group]}" for group in groups])
