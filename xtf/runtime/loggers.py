"""Where runs are mirrored beside their files: TensorBoard or Weights & Biases.

On Weights & Biases a run is one W&B run, whichever stages it does, so that its loss stands beside its accuracy: the
values of every optimizer step, live; histograms of the scores; shares and coloured examples of the mask; completions
with verdicts; and in its summary every figure of the finished run. Its name is that of the run's folder, its group the
experiment, or else task, model and method.

What a later process adds (`stage=train` after `stage=score`, a killed run that goes on) has the same id: online it
goes on in the same W&B run. Offline each process leaves a folder, which `wandb sync` joins; that is said.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from xtf.config.identity import plain
from xtf.config.schema import Config, ConfigError, WandbMode
from xtf.runtime.artifacts import DamagedError, read_entry, with_digest, write_json
from xtf.runtime.progress import say
from xtf.runtime.run_folder import RunFolder

if TYPE_CHECKING:
    import wandb
    from pytorch_lightning.loggers import Logger

STEP = "trainer/global_step"  # Lightning's name for the optimizer step, against which W&B plots curves


@contextlib.contextmanager
def training_loggers(config: Config, folder: RunFolder) -> Iterator[list[Logger]]:
    """Lightning loggers for `config.logger`; train_log.csv is written by training itself, whatever is chosen."""
    if config.logger.name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        yield [TensorBoardLogger(save_dir=folder.path, name="", version="tensorboard")]
    elif config.logger.name == "wandb" and os.environ.get("RANK", "0") == "0":
        from pytorch_lightning.loggers import WandbLogger

        with whole_run(config, folder):
            yield [WandbLogger(experiment=wandb_run())]
    else:
        yield []


@dataclass
class _Job:
    """What this process works at, and its W&B run as soon as there is something to tell it."""

    config: Config
    folder: RunFolder
    run: wandb.Run | None = None


_jobs: list[_Job] = []  # the one at work, if any


@contextlib.contextmanager
def whole_run(config: Config, folder: RunFolder) -> Iterator[None]:
    """Inside, `wandb_run` gives one and the same W&B run, which ends with the outermost block."""
    if _jobs:
        yield
        return
    _jobs.append(_Job(config, folder))
    try:
        yield
    finally:
        job = _jobs.pop()
        if job.run is not None:
            job.run.finish()


def wandb_run() -> wandb.Run:
    """The W&B run of the job at work (`whole_run`), begun unless it is. Its files lie in the run's folder, in wandb/.

    A server that cannot be reached within `logger.timeout_seconds` is no error: the run is then written offline,
    and `wandb sync` uploads it. A connection lost later only delays the upload; what has not arrived
    `logger.timeout_seconds` after the end stays on disk for `wandb sync` too.
    """
    import wandb

    job = _jobs[-1]
    if job.run is not None:
        return job.run
    config, folder = job.config, job.folder
    mode, (known, resumed) = wandb_mode(config), _run_id(folder)
    wait = config.logger.timeout_seconds
    chosen = {group: getattr(config, group).name for group in ("task", "model", "method", "scorer", "threshold")}
    settings: dict[str, Any] = {
        "project": config.logger.project,
        "entity": config.logger.entity,
        "dir": str(folder.path.resolve()),  # W&B's service may have another working folder
        "name": folder.name,
        "group": config.experiment or "/".join(chosen[group] for group in ("task", "model", "method")),
        "job_type": "fine-tuning",
        "id": known,
        "resume": "allow",
        "tags": list(dict.fromkeys([*chosen.values(), *config.logger.tags])),
        "config": chosen | {"tuning": config.tuning.name.value, "seed": config.seed, "settings": plain(config)},
        "reinit": "finish_previous",
        "settings": wandb.Settings(init_timeout=wait, finish_timeout=wait),
    }
    try:
        session = wandb.init(mode=mode, **settings)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        say(f"W&B could not be reached ({reason}); the run is stored offline, on its own, for `wandb sync` to upload")
        # W&B's service holds the first id to be in use
        session = wandb.init(mode="offline", **settings | {"id": _new_run_id(folder)})
    else:
        if resumed and mode == "offline":
            say(
                f"W&B run {known} goes on offline in a further folder; all of them become one run, in their order, by "
                f"`wandb sync {folder.path}/wandb/offline-run-*-{known}` (versions that have the option: with --append)"
            )
    session.define_metric(STEP)
    session.define_metric("*", step_metric=STEP, step_sync=True)
    job.run = session
    return session


def _run_id(folder: RunFolder) -> tuple[str, bool]:
    """The id of a run's W&B run, and whether it has been begun before; a damaged one is gone, which is said."""
    if folder.wandb.exists():
        try:
            return read_entry(folder.wandb, "what follows goes to a new W&B run", id=str)["id"], True
        except DamagedError as error:
            say(str(error))
    return _new_run_id(folder), False


def _new_run_id(folder: RunFolder) -> str:
    made = secrets.token_hex(4)
    write_json(folder.wandb, with_digest({"id": made}))
    return made


def wandb_mode(config: Config) -> Literal["online", "offline", "disabled"]:
    """`logger.mode`, else $WANDB_MODE, else online where a key is configured, else offline: never a prompt.

    Raises:
        ConfigError: $WANDB_MODE is none that W&B has.
    """
    import wandb

    if config.logger.mode is not None:
        return config.logger.mode.value
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    if mode not in WandbMode.__members__:
        raise ConfigError(f"WANDB_MODE={mode} is not known; it is {', '.join(WandbMode)}")
    return cast("Literal['online', 'offline', 'disabled']", mode)
