"""Training in one process: called by the pipeline, or started once per device:

python -m xtf.training.device_process RUN_FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from xtf.config.schema import Config, Tuning
from xtf.runtime.artifacts import write_json


def train(config: Config, folder: Path) -> dict[str, Any]:
    """Fine-tune on `folder`/mask.parquet; returns the training record. Every rank calls this under ddp and fsdp."""
    import pyarrow.parquet as pq
    import torch

    from xtf.runtime.loggers import training_loggers
    from xtf.runtime.models import inference_dtype, load_model, load_tokenizer
    from xtf.training.fit import fit

    # Full tuning keeps float32 master weights; LoRA's frozen base does not change, so it needs no more than inference.
    dtype = torch.float32 if config.tuning.name is Tuning.full else inference_dtype(config.trainer)
    tokenizer = load_tokenizer(config.model)
    # With several devices every process loads into main memory, and the strategy moves it to the process's own.
    place = "cpu" if config.trainer.devices > 1 else None
    model = load_model(config.model, config.trainer, dtype, place=place)
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    table = pq.read_table(folder / "mask.parquet")
    with training_loggers(config, folder) as loggers:
        return fit(model, table, config, folder, pad_id=pad_id, loggers=loggers, tokenizer=tokenizer)


def main(folder: Path) -> None:
    from omegaconf import DictConfig, OmegaConf

    from xtf.config.compose import load_config

    node = OmegaConf.load(folder / "config.yaml")
    assert isinstance(node, DictConfig)
    record = train(load_config(node), folder)
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(folder / "train.json", record)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
