"""The command line: help, checks before anything heavy is imported, and one Hydra job per composed configuration."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from xtf.config.home import COMMAND, CONF, EXPERIMENTS, HOME, PACKAGE, in_repository
from xtf.runtime.interrupt import interruptible

# As in any Hydra program, HYDRA_FULL_ERROR=1 asks for tracebacks. Hydra itself is then always told to raise, so that
# `main` can word its errors for users.
TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
os.environ["HYDRA_FULL_ERROR"] = "1"
# Of mimalloc, Arrow's default, a process that writes Parquet keeps three to four times what Arrow uses. It is read
# when Arrow is loaded; only the wheels for Linux are sure to bring jemalloc.
if sys.platform == "linux":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
# conf/hydra/launcher/joblib.yaml has the name of the plugin's own schema, and is meant to be checked against it.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/joblib' is validated", UserWarning)
# What the extra `run` brings, as it is imported.
RUN = (
    "hydra", "matplotlib", "math_verify", "omegaconf", "peft", "psutil", "pytorch_lightning", "scipy", "tensorboard",
    "wandb",
)  # fmt: skip

# In a wheel, where that is.
SCHEMA = PACKAGE / "config" / "schema.py" if HOME == PACKAGE else "xtf/config/schema.py"

USAGE = f"""\
XTF finds which label tokens of a fine-tuning set teach a language model, trains without the rest,
and shows whether that helped.

usage: {COMMAND} [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]

  {COMMAND}                                       tiny bundled model, bundled math data: the whole pipeline
  {COMMAND} model=qwen task=math                  a model of the paper on GSM8K from the hub
  {COMMAND} task.train.path=my.jsonl              own rows
  {COMMAND} -m scorer=none,ri,kn,tr,xtf seed=0,1  a sweep: one run for each combination
  {COMMAND} -m experiments=NAME                   a table or figure of the paper: one of the experiments below
  {COMMAND} -m experiments=NAME stage=plan        what that would cost
  {COMMAND} experiments=NAME stage=report         its report, also while it is running
  {COMMAND} stage=preview preview.format=text     every token and its reason, in the terminal (html: a page)
  {COMMAND} stage=preview scorer.top=5            with what the model would rather have said (attenders=10: who attends)
  {COMMAND} stage=preview preview.against=RUN     where two masks differ: the folder of another run
  {COMMAND} stage=export export.to=trl            the masked rows for TRL, Axolotl, ... with a configuration
  {COMMAND} stage=score                           one stage; earlier artifacts are reused
  {COMMAND} probe=true task.train.path=my.jsonl   what would be dropped, a short pilot, how large a study must be
  {COMMAND} --config-dir my/conf model=mine       choices of your own ({in_repository("docs/extending.md")})
"""


def choices(group: str) -> dict[str, Path]:
    """The YAML files of a group that came with the program, by name."""
    folder = EXPERIMENTS if group == "experiments" else CONF / group
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def help_text() -> str:
    """Usage, and groups with their choices and defaults. Reads the names of files; imports nothing heavy."""
    out = [USAGE, "groups (the default is marked *):"]
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        group, _, default = line.removeprefix("  - ").partition(": ")
        if default and group.isidentifier() and line.startswith("  - "):
            names = (f"*{name}" if name == default else name for name in choices(group))
            out.append(f"  {group:11} {', '.join(names)}")
    out.append(
        "\nother keys: stage=all|score|mask|train|evaluate|report|preview|export|plan|dashboard|pretrain,\n"
        f"seed=N, and every key of a group. {SCHEMA} lists all of them with types, defaults and meaning,\n"
        f"{in_repository('experiments/README.md')} the experiments;\n"
        f"{COMMAND} --cfg job prints the composed configuration without running it."
    )
    return "\n".join(out)


def check_arguments(arguments: list[str], sweep: bool) -> None:
    """Refuse what Hydra would not say clearly: values without the quotes that they need, a sweep without -m."""
    from xtf.config.compose import check_numbers, check_texts, parse_overrides, quoted
    from xtf.config.schema import GROUPS, ConfigError

    overrides = parse_overrides(arguments)
    check_texts(overrides)
    check_numbers(overrides)
    for override in overrides:
        key, text = override.key_or_group, override.input_line
        if override.is_sweep_override() and not sweep:
            literal = quoted(key, text.partition("=")[2])
            raise ConfigError(
                f"{text} names several runs: put -m before it ({COMMAND} -m {text}), or for one run with this as "
                f"a single value write {literal}"
            )
        group = key in (*GROUPS, "experiments", "cases") or key.startswith("hydra/")
        if group and not override.is_sweep_override() and not isinstance(override.value(), str | list):
            where = "experiments/" if key == "experiments" else f"conf/{key}"
            raise ConfigError(f"{text}: a choice is the name of a file in {where}; leave {key}=... out for the default")
        if key == "hydra/launcher":
            _check_launcher(str(override.value()))


def _check_launcher(name: str) -> None:
    from xtf.config.schema import ConfigError

    plugin, extra = {"joblib": ("hydra_joblib_launcher", "sweep"), "slurm": ("hydra_submitit_launcher", "slurm")}.get(
        name, ("", "")
    )
    if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
        raise ConfigError(f"hydra/launcher={name} needs the extra {extra!r}: pip install 'xtf[{extra}]'")


def with_search_path(arguments: list[str]) -> list[str]:
    """hydra.searchpath=[...] adds to the search path: experiments/ stays on it, and so do the YAML files of installed
    packages (entry points `xtf.conf`)."""
    from xtf.config.compose import override_value, parse_overrides
    from xtf.runtime.imports import installed

    key = "hydra.searchpath="
    entries = [f"pkg://{package}" for package in installed("xtf.conf").values()]
    for argument in arguments:
        if argument.startswith(key):
            given = parse_overrides([argument])[0].value()
            entries += given if isinstance(given, list) else [given]
    if not entries:
        return arguments
    rest = [argument for argument in arguments if not argument.startswith(key)]
    # Beside the other overrides: Hydra's parser takes none before and behind a flag.
    place = next((at for at, one in enumerate(rest) if not one.startswith("-") and "=" in one), len(rest))
    return [*rest[:place], f"{key}{override_value([f'file://{HOME}', *entries])}", *rest[place:]]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    typed = list(sys.argv[1:] if argv is None else argv)
    try:
        with interruptible(shlex.join([*COMMAND.split(), *typed])) as farewell:
            return _main(typed)
    except KeyboardInterrupt:
        return farewell.status


def _main(typed: list[str]) -> int:
    arguments = typed
    if any(flag in arguments for flag in ("-h", "--help")):
        print(help_text())
        return 0

    if missing := [name for name in RUN if find_spec(name) is None]:
        print(
            f"error: the command line needs more than the library, here {', '.join(missing)}: pip install 'xtf[run]'",
            file=sys.stderr,
        )
        return 2

    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from xtf.config.compose import explain, number_too_long, register, with_home
    from xtf.config.schema import ConfigError
    from xtf.runtime.artifacts import program
    from xtf.sweeps.jobs import JobsFailedError

    try:
        register()
        arguments = with_home(arguments)
        sweep = any(flag in arguments for flag in ("-m", "--multirun"))
        plain = [a for a in arguments if not a.startswith("-") and "=" in a]
        check_arguments(plain, sweep)
        arguments = with_search_path(arguments)
        if sweep:
            # What jobs in other processes have to know: the command as typed, which program that was, where it lies.
            os.environ["XTF_COMMAND"] = shlex.join([*COMMAND.split(), *typed])
            os.environ["XTF_PROGRAM"] = program()
            paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            os.environ["PYTHONPATH"] = os.pathsep.join(paths)
            # Flags first: Hydra's parser takes no overrides before and behind a flag.
            rest = [a for a in arguments if a not in ("-m", "--multirun")]
            arguments = ["--multirun", *rest]
        sys.argv = [str(HOME / "run.py"), *arguments]
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}\n({COMMAND} --help lists groups and keys)", file=sys.stderr)
        return 2
    except (JobsFailedError, ValueError, OSError, OverflowError) as error:  # a wrong value, a missing or broken file
        if said := number_too_long(error, typed):
            print(f"error: {said}", file=sys.stderr)
            return 2
        if isinstance(error, OverflowError):
            raise
        if TRACEBACKS and not isinstance(error, JobsFailedError):
            raise
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return 1
    return 0


def run_job(node: Any) -> None:
    """One run, in the process where a launcher calls this.

    In a sweep every error goes to the run's error.json, so that the rest runs; else `main` words what users can mend,
    and a fault of ours is raised as it is.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from xtf.config.checks import check_names, resolve
    from xtf.config.compose import build, typed
    from xtf.config.identity import changed_keys, overrides
    from xtf.config.schema import ConfigError, Stage
    from xtf.config.unread import in_words, unread_alone
    from xtf.runtime.nodes import StoppedError
    from xtf.runtime.progress import say
    from xtf.runtime.run_folder import OutputDir, RunFolder
    from xtf.sweeps.jobs import Planned, check_program, claim_device, keys_of
    from xtf.sweeps.slurm import sent_again

    hydra_node = HydraConfig.get()
    sweep = hydra_node.mode == RunMode.MULTIRUN
    if str(node.stage.name) == "report" and node.experiment and not sweep:
        _report(str(node.experiment), str(node.output_dir), node.archive)
        return
    if not sweep and hydra_node.sweeper.get("params"):
        name = hydra_node.runtime.choices["experiments"]
        raise ConfigError(f"experiments={name} is a sweep: run it as {COMMAND} -m experiments={name}")
    node = typed(node)
    default = typed(_default(hydra_node.runtime.choices))
    changed = overrides(node, default)
    composed = build(node)
    check_names(composed)  # before the folder is named: an error is written there
    folder = RunFolder.of(composed, changed)
    try:
        config = resolve(composed)
        if config.stage is Stage.plan:
            from xtf.sweeps.plan import show_plan

            config = dataclasses.replace(config, stage=Stage.all)
            if config.probe:
                from xtf.study.probe import pilot_jobs

                show_plan([Planned((), job, named) for job, named in pilot_jobs(config, changed)])
            else:
                show_plan([Planned((), config, changed)])
            return
        folder.error.unlink(missing_ok=True)
        if sweep:
            check_program()
        set_here = {*keys_of(hydra_node.overrides.task), *changed_keys(node, default)}  # an experiment's file sets some
        if not sweep:
            told = unread_alone(composed, config, set_here)
            if told:
                say(in_words(told))
        if "joblib" in hydra_node.launcher["_target_"]:
            claim_device(config)
        if config.probe:
            from xtf.study.probe import probe

            probe(config, changed)
        elif config.stage is Stage.dashboard:
            from xtf.reporting.published import create_dashboards

            for place in create_dashboards(config, OutputDir(Path(config.output_dir)).reports):
                say(f"dashboard: {place}")
        elif config.stage is Stage.pretrain:
            from xtf.pretraining.pretrain import pretrain

            say(f"base model: {pretrain(config)}")
        else:
            if "xtf.pipeline" not in sys.modules:  # as in a sweep's later jobs
                say("loading libraries")
            from xtf.pipeline import run

            run(config, changed, alone=not sweep)
    except Exception as error:
        if not sweep:
            raise
        if sent_again(error):  # the attempt has not failed, and there is no result to wait for yet
            raise SystemExit(255) from error
        if not isinstance(error, StoppedError):
            folder.record_error(error)
        print(f"error: {folder.path}: {error}", file=sys.stderr)


def _report(experiment: str, output: str, archive: str | None) -> None:
    from xtf.config.checks import check_name, check_output_dir
    from xtf.config.schema import ConfigError
    from xtf.runtime.run_folder import OutputDir
    from xtf.sweeps.reports import experiment_report

    check_name("experiment", experiment)
    check_output_dir(output)
    try:
        stored = None if archive is None else Path(archive)
        files = experiment_report(experiment, OutputDir(Path(output)), archive=stored)
    except ValueError as error:  # no run of it yet, or none that has finished
        raise ConfigError(str(error)) from error
    for file in files:
        if file.suffix in (".csv", ".md", ".html"):
            print(f"report: {file}")


def _default(chosen: Any) -> Any:
    """The configuration of the same choices with nothing overridden, against which a run's overrides are named."""
    from xtf.config.compose import compose, override_value
    from xtf.config.schema import GROUPS

    return compose([f"{group}={override_value(chosen[group])}" for group in GROUPS])
