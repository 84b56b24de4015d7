"""Where training curves go beside train_log.csv: TensorBoard or Weights & Biases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from xtf.config import Config, ConfigError, plain

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


def make_loggers(config: Config, folder: Path) -> list[Logger]:
    """Lightning loggers for `config.logger`; the CSV log is written by training itself, whatever is chosen here."""
    if config.logger.name == "tensorboard":
        from pytorch_lightning.loggers import TensorBoardLogger

        return [TensorBoardLogger(save_dir=folder, name="", version="tensorboard")]
    if config.logger.name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        return [
            WandbLogger(
                project=config.logger.project, entity=config.logger.entity, save_dir=str(folder),
                name="/".join(folder.parts[-6:]), group=config.experiment, job_type="train",
                tags=[config.model.name, config.task.name, config.method.name, config.scorer.name,
                      config.threshold.name, *config.logger.tags],
                mode=wandb_mode(config), config=plain(config), reinit="finish_previous",
            )
        ]  # fmt: skip
    return []


def wandb_mode(config: Config) -> Literal["online", "offline", "disabled"]:
    """`logger.mode`, else $WANDB_MODE, else online where a key is configured, else offline: never a prompt."""
    import wandb

    mode = (
        config.logger.mode or os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    )
    if mode not in ("online", "offline", "disabled"):
        raise ConfigError(f"logger.mode={mode} is not known; it is online, offline or disabled")
    return cast("Literal['online', 'offline', 'disabled']", mode)
