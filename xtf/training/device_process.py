"""Training of one run: in this process, or in one process per device of each node that torch's launcher starts as

python -m xtf.training.device_process RUN_FOLDER
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.compose import load_config
from xtf.config.home import PACKAGE
from xtf.config.schema import Config, Tuning
from xtf.runtime import nodes
from xtf.runtime.artifacts import read_json, write_json
from xtf.runtime.interrupt import deaf_children, end_with
from xtf.runtime.loggers import training_loggers
from xtf.runtime.models import inference_dtype, load_model, load_tokenizer
from xtf.runtime.pace import announce, measured
from xtf.runtime.progress import stopwatch
from xtf.runtime.run_folder import RunFolder

STARTED_BY = "XTF_STARTED_BY"  # the process whose end is that of its training

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train(config: Config, folder: RunFolder) -> dict[str, Any]:
    """Fine-tune on the folder's mask.parquet and write its model/; returns the training record.

    Raises:
        ValueError: what the user can mend, or that the processes failed (their error stands above).
    """
    announce_training(config, folder)
    if config.trainer.world_size == 1:
        with stopwatch() as seconds:
            trained = train_here(config, folder)
        measured(config, trained["tokens"], seconds())
        return trained
    if config.trainer.nodes > 1:
        _train_on_nodes(config, folder)
    else:
        process = _start(config, folder.path, "--standalone")
        try:
            failed = process.wait()
        finally:
            nodes.stop(process)
        if failed:
            raise ValueError(f"training on {config.trainer.devices} devices failed; its error stands above")
    record: dict[str, Any] = read_json(folder.train_record, "run the same command again")
    return record


def _train_on_nodes(config: Config, folder: RunFolder) -> None:
    """Node 0's part; the others do theirs in `take_part`."""
    found = nodes.current(config)
    port = nodes.free_port()
    found.call(folder.path, port, {file.name: file for file in (folder.config, folder.mask)})
    found.watch(_start(config, folder.path, *_rendezvous(found, port)))


def take_part(config: Config, found: nodes.Nodes) -> None:
    """On every node but the first: train whenever node 0 does, until the run has ended there.

    Raises:
        ValueError: the run has failed, or node 0 has gone.
    """
    found.serve(lambda folder, port: _start(config, folder, *_rendezvous(found, port)))


def _rendezvous(found: nodes.Nodes, port: int) -> list[str]:
    where = [f"--master-addr={found.place.address}", f"--master-port={port}"]
    return [f"--nnodes={found.count}", f"--node-rank={found.place.rank}", *where]


def _start(config: Config, folder: Path, *how: str) -> subprocess.Popen[bytes]:
    """Torch's launcher, with a process for each device of this machine."""
    launch = ["-m", "torch.distributed.run", *how, f"--nproc-per-node={config.trainer.devices}"]
    module = ["-m", "xtf.training.device_process", str(folder)]
    # The same program, where another one is installed beside the checkout that run.py lies in.
    paths = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {STARTED_BY: str(os.getpid()), "PYTHONPATH": paths}
    with deaf_children():  # signals are this process's: the launcher would tell of them in a block of its own
        return subprocess.Popen([sys.executable, *launch, *module], env=environment, start_new_session=True)


def announce_training(config: Config, folder: RunFolder) -> None:
    """Say how many tokens are ahead, prompts included, and about how long they take."""
    from xtf.data.batches import parquet_batches

    tuning = config.tuning
    count, every = 0, 0
    for batch in parquet_batches([folder.mask], ["input_ids"]):
        count, every = count + batch.num_rows, every + len(batch.column(0).flatten())
    rows = count * (tuning.epochs or 1) * config.method.epochs_factor
    if tuning.max_steps is not None:
        rows = min(rows, tuning.max_steps * (tuning.batch_size or 1))
    tokens = round(every / count * rows)
    announce(config, "training", tokens, tokens)


def train_here(config: Config, folder: RunFolder) -> dict[str, Any]:
    """The same in this process, which is one of several under ddp and fsdp."""
    import torch

    from xtf.data.encode import pad_id
    from xtf.training.fit import fit

    # Full tuning keeps float32 master weights; LoRA's frozen base does not change, so it needs no more than inference.
    dtype = torch.float32 if config.tuning.name is Tuning.full else inference_dtype(config.trainer)
    tokenizer = load_tokenizer(config.model)
    # Of several, every process loads into main memory, and the strategy moves it to the process's own.
    place = "cpu" if config.trainer.world_size > 1 else None
    model = load_model(config.model, config.trainer, dtype, place=place)
    stop_at_turn_end(model, tokenizer)
    with training_loggers(config, folder) as loggers:
        return fit(
            model, folder.mask, config, folder.path, pad_id=pad_id(tokenizer), loggers=loggers, tokenizer=tokenizer
        )


def stop_at_turn_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the generation settings that are saved with the model name the token that ends its answers."""
    from xtf.data.templates import turn_end

    settings, end = model.generation_config, turn_end(tokenizer)
    if settings is None or end is None:
        return
    known = settings.eos_token_id
    stops = known if isinstance(known, list) else [] if known is None else [known]
    if end not in stops:
        settings.eos_token_id = [*stops, end] if stops else end


def main(folder: RunFolder) -> None:
    """What torch's launcher starts on each device."""
    end_with(int(os.environ[STARTED_BY]))
    from omegaconf import DictConfig, OmegaConf

    node = OmegaConf.load(folder.config)
    assert isinstance(node, DictConfig)
    record = train_here(load_config(node), folder)
    if int(os.environ.get("RANK", "0")) == 0:
        write_json(folder.train_record, record, sealed=True)


if __name__ == "__main__":
    main(RunFolder(Path(sys.argv[1])))
