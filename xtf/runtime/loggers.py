"""Where runs are mirrored beside their files: TensorBoard or Weights & Biases.

On Weights & Biases each stage of a run is a W&B run of its own, so that curves, shares and results can be told apart:

    job type    holds
    score       histograms of the scores
    mask        kept and dropped shares, a sample of coloured examples
    train       the values of every optimizer step, live; one W&B run more if a killed training goes on
    evaluate    completions with verdicts, and in its summary every figure of the finished run

The stages of one run share name (the run's folder), group (the experiment), tags and configuration.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from xtf.config.identity import plain
from xtf.config.schema import Config, ConfigError, WandbMode
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

        with start_run(config, folder, "train") as session:
            yield [WandbLogger(experiment=session)]
    else:
        yield []


def start_run(config: Config, folder: RunFolder, stage: str) -> wandb.Run:
    """The W&B run of one stage, to be used as a context. Its files lie in `folder`/wandb.

    A server that cannot be reached within `logger.timeout_seconds` is no error: the run is then written offline,
    and `wandb sync` uploads it. A connection lost later only delays the upload; what has not arrived
    `logger.timeout_seconds` after the end stays on disk for `wandb sync` too.
    """
    import wandb

    wait = config.logger.timeout_seconds
    chosen = {group: getattr(config, group).name for group in ("task", "model", "method", "scorer", "threshold")}
    settings: dict[str, Any] = {
        "project": config.logger.project,
        "entity": config.logger.entity,
        "dir": str(folder.path.resolve()),  # W&B's service may have another working folder
        "name": folder.name,
        "group": config.experiment,
        "job_type": stage,
        "tags": [*chosen.values(), *config.logger.tags],
        "config": chosen | {"tuning": config.tuning.name.value, "seed": config.seed, "settings": plain(config)},
        "reinit": "finish_previous",
        "settings": wandb.Settings(init_timeout=wait, finish_timeout=wait),
    }
    try:
        session = wandb.init(mode=wandb_mode(config), **settings)
    except (wandb.errors.CommError, wandb.errors.AuthenticationError) as error:
        reason = str(error).splitlines()[0]
        say(f"W&B could not be reached ({reason}); the run is stored offline, `wandb sync` uploads it")
        session = wandb.init(mode="offline", **settings)
    if stage == "train":
        session.define_metric(STEP)
        session.define_metric("*", step_metric=STEP, step_sync=True)
    return session


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
