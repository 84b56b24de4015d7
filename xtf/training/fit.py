"""Fine-tuning on a masked table: Lightning's Trainer around `xtf.training.module`; resumable, written atomically."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from xtf.config.schema import CheckpointChoice, Config, ScorerConfig, TrainerConfig, Tuning, TuningConfig
from xtf.data.encode import Encoded
from xtf.data.ragged import ROW_WEIGHTS, SOURCE, Responses, sources_of
from xtf.data.steps import Step
from xtf.runtime.artifacts import check, intact, naming, read_json, seal, write_atomic, write_json
from xtf.runtime.memory import return_freed_memory
from xtf.runtime.models import precision
from xtf.runtime.progress import bar, console, say
from xtf.runtime.train_log import add_to_log, read_log, write_log
from xtf.scoring.masks import row_weighted, weights_to_labels
from xtf.scoring.methods import Method
from xtf.scoring.scorers import score_rows
from xtf.training.budget import LARGEST, microbatch
from xtf.training.datamodule import MaskedDataModule
from xtf.training.module import TokenFilteredLM

LOG = "train_log.csv"
LAST = "checkpoints/last.ckpt"
BEST = "checkpoints/best.ckpt"
SMALL = 2**28  # bytes of weights
MODEL_PREFIX = "packed.model."  # of parameter names within the LightningModule
RECORD = "training.json"  # in the model's folder, which is complete when it is renamed into place


def fit(
    model: PreTrainedModel,
    table: pa.Table | Path,
    config: Config,
    run_dir: Path,
    *,
    pad_id: int,
    loggers: Sequence[Logger],
    tokenizer: PreTrainedTokenizerBase | None = None,
    shuffle: bool = True,
) -> dict[str, Any]:
    """Fine-tune `model` (changed in place) on a masked table and write `run_dir`/model; returns the
    training record.

    A run that was killed goes on from `run_dir`/checkpoints and ends with the same weights; a finished one
    returns its record at once. `run_dir`/train_log.csv has a line per optimizer step.

    Args:
        table: what `xtf.data.steps.TrainingRows` describes, or a mask.parquet of it, which need not fit into memory.
        config: resolved (`xtf.config.checks.resolve`): what tuning leaves to the model's recipe is filled in.
        pad_id: fills packed rows up where `config.trainer.compile` wants one shape; nothing attends to it.
        tokenizer: saved beside the weights, so that the folder loads by itself.
        shuffle: each epoch anew; otherwise rows are trained in the table's order.

    Raises:
        NonFiniteLoss: the loss or a gradient is not finite; the last checkpoint is as it was.
        ValueError: nothing to train on, or a model that cannot be trained packed.
    """
    finished = run_dir / "model" / RECORD
    if finished.exists() and intact(finished.parent):
        record: dict[str, Any] = read_json(finished)
        return record
    if config.method.in_parts:
        table = pq.read_table(table) if isinstance(table, Path) else table
        parts = config.method.parts(sources_of(table).to_pylist())
        return _fit_parts(model, table, parts, config, run_dir, pad_id=pad_id, loggers=loggers, tokenizer=tokenizer)
    tuning, method = config.tuning, config.method
    data = MaskedDataModule(table, tuning, seed=config.seed, method=method, shuffle=shuffle, folder=run_dir)
    original = model.config._attn_implementation
    packs = data.prepare(model, config.trainer.compile)
    if not packs:
        say(f"{type(model).__name__} is trained with one document a row: packed, one would reach into the next")
    progress = Progress(run_dir, config.trainer.checkpoint_every)
    with _quiet():
        trainer = _trainer(config, run_dir, loggers, progress)
    trainable = _trainable(model, tuning, config.seed)
    budget = microbatch(trainable, config, data.longest, run_dir)
    # Small models have memory enough, and mapping their activations anew in each step takes a third of its time.
    if budget.tokens < LARGEST and model.device.type == "cpu" and model.get_memory_footprint() > SMALL:
        return_freed_memory()
    if packs:
        data.tokens_per_microbatch = budget.tokens
    data.fill_with = pad_id if config.trainer.compile else None
    module = TokenFilteredLM(trainable, method, tuning, seed=config.seed)
    if config.trainer.compile:
        model.get_decoder().compile(dynamic=False)
    last, best = run_dir / LAST, run_dir / BEST
    resumes = intact(last) and (not best.exists() or intact(best))
    with _quiet(), bar("training", data.steps().tokens()) as advance:
        progress.advance = advance
        try:
            trainer.fit(module, datamodule=data, ckpt_path=last if resumes else None, weights_only=True)
        except SIGTERMException as error:  # Lightning's exit status for it is 0
            say("stopped by SIGTERM; the same command goes on from the last checkpoint")
            raise SystemExit(128 + signal.SIGTERM) from error
        except SystemExit as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt from error
            raise  # submitit's, whose job is sent again
    if trainer.is_global_zero:
        write_log(run_dir / LOG, progress.lines, sealed=True)
    if tuning.checkpoint is CheckpointChoice.best:
        check(best, "run the same command again, which trains anew")
        state = torch.load(best, map_location=module.device, weights_only=True)["state_dict"]
        module.load_state_dict(state, strict=False)
    model.set_attn_implementation(original)
    record = _record(config, module, data, progress.lines) | {"microbatch": asdict(budget)}
    state = trainer.strategy.lightning_module_state_dict()  # whole on the first device only, under fsdp
    if trainer.is_global_zero:
        weights = {name.removeprefix(MODEL_PREFIX): value for name, value in state.items()}
        _save(module.packed.model, weights, run_dir / "model", record, tokenizer)
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    trainer.strategy.barrier("model saved")
    return record


def _fit_parts(
    model: PreTrainedModel,
    table: pa.Table,
    parts: Sequence[np.ndarray],
    config: Config,
    run_dir: Path,
    *,
    pad_id: int,
    **more: Any,
) -> dict[str, Any]:
    """`fit` on one part of the rows after the other, each cleaned by the model as the parts before left it."""
    method = config.method
    if config.tuning.name is not Tuning.full or config.trainer.world_size > 1:
        raise ValueError(
            f"method={method.name} needs tuning=full on one device: its reference is the model in training"
        )
    parts_dir = run_dir / "parts"
    records: list[dict[str, Any]] = []
    log: list[dict[str, Any]] = []
    for number, rows in enumerate(parts):
        folder = parts_dir / str(number)
        part = table.take(rows)
        if (folder / "model").exists() and not intact(folder / LOG):  # which the whole log is made of
            shutil.rmtree(folder / "model")
        if (folder / "model" / RECORD).exists() and intact(folder / "model"):
            trained = type(model).from_pretrained(folder / "model", dtype=torch.float32)
            model.load_state_dict(trained.state_dict())
        elif number > 0:
            part = _cleaned(model, part, method, config.trainer.tokens_per_score_batch, pad_id)
        plain = replace(config, method=Method())
        records.append(fit(model, part, plain, folder, pad_id=pad_id, **more))
        steps = log[-1]["step"] if log else 0
        log += [row | {"step": row["step"] + steps} for row in read_log(folder / LOG)]
    write_log(run_dir / LOG, log, sealed=True)
    record = records[-1] | {
        name: sum(one[name] for one in records) for name in ("steps", "examples", "tokens", "kept_tokens")
    }
    of_a_part = ("examples", "tokens", "kept_tokens", "gradient_cosine")
    record["parts"] = [{name: one[name] for name in of_a_part if name in one} for one in records]
    write_json(folder / "model" / RECORD, record)
    seal(folder / "model", run_dir / "model")
    (folder / "model").rename(run_dir / "model")
    shutil.rmtree(parts_dir)
    return record


def _cleaned(model: PreTrainedModel, part: pa.Table, method: Method, budget: int, pad_id: int) -> pa.Table:
    """The part's table with the labels that its method's rule leaves, `model` being the reference."""
    columns = [part[name].to_pylist() for name in ("example_id", "input_ids", "prompt_length")]
    rows = [Encoded(*row) for row in zip(*columns, strict=True)]
    scored = score_rows(model, rows, ScorerConfig(name="none"), logp=True, tokens_per_batch=budget, pad_id=pad_id)
    both = scored.rename_columns({"logp": "ref_logp"}).append_column("logp", part["logp"])
    for name in ("end_tokens", SOURCE, ROW_WEIGHTS):
        if name in part.column_names:
            both = both.append_column(name, part[name])
    scores = Responses.from_table(both, ("logp", "ref_logp"))
    return row_weighted(weights_to_labels(both, np.split(method.clean(scores), scores.offsets[1:-1]))).table


# -- before training -----------------------------------------------------------------------------------------


def _trainable(model: PreTrainedModel, tuning: TuningConfig, seed: int) -> PreTrainedModel | PeftModel:
    """The model with float32 weights to train: all of them, or a LoRA adapter's beside frozen ones."""
    if tuning.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    if tuning.name is Tuning.full:
        return model.float().requires_grad_(True)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=tuning.lora.r,
        lora_alpha=tuning.lora.alpha,
        lora_dropout=tuning.lora.dropout,
        target_modules=list(tuning.lora.target_modules) or None,
    )
    torch.manual_seed(seed)  # of the adapter's random half
    return get_peft_model(model, lora)


def _trainer(config: Config, run_dir: Path, loggers: Sequence[Logger], progress: Callback) -> pl.Trainer:
    # Several processes are torch's launcher's; one alone asks no other cluster: Lightning refuses a job of Slurm that
    # has more tasks than devices.
    environment = TorchElasticEnvironment if TorchElasticEnvironment.detect() else LightningEnvironment
    return pl.Trainer(
        accelerator=config.trainer.accelerator,
        devices=config.trainer.devices,
        num_nodes=config.trainer.nodes,
        strategy=_strategy(config.trainer),
        precision=precision(config.trainer),  # type: ignore[arg-type]  # of two literals
        max_epochs=1,  # the loader runs through all epochs, so that a run resumes at any step alike
        logger=list(loggers) or False,
        log_every_n_steps=config.logger.every,
        callbacks=[progress],
        plugins=[AtomicCheckpointIO(), environment()],
        default_root_dir=run_dir,
        enable_checkpointing=False,
        limit_val_batches=0,  # the module validates itself: after each pass over the rows, and at the end
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _strategy(trainer: TrainerConfig) -> Any:
    if trainer.strategy == "fsdp":  # PyTorch's second FSDP; Lightning's strategy of that name is the first
        return ModelParallelStrategy(trainer.world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return trainer.strategy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes on devices and stopping stay out of the output; its warnings do not."""
    logger = logging.getLogger("pytorch_lightning")
    before = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with PyTorch 2.13
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*`srun` command.*")  # it looks for a checkpoint of Slurm's as well
        try:
            yield
        finally:
            logger.setLevel(before)


# -- while training ------------------------------------------------------------------------------------------


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints written straight to disk under a temporary name, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        assert storage_options is None
        write_atomic(Path(path), lambda temporary: torch.save(checkpoint, temporary), sealed=True)


class Progress(Callback):
    """After each step: a line in train_log.csv, the progress bar, and now and then a checkpoint."""

    def __init__(self, run_dir: Path, checkpoint_every: int) -> None:
        self.run_dir, self.checkpoint_every = run_dir, checkpoint_every
        self.advance: Callable[[int], None] = lambda tokens: None  # of the progress bar
        self.lines: list[dict[str, Any]] = []  # of the log so far; a resumed run goes on from its checkpoint's

    def state_dict(self) -> dict[str, Any]:
        return {"lines": self.lines}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.lines = list(state_dict["lines"])

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TokenFilteredLM)
        done = module.loader.next
        if (first := trainer.strategy.broadcast(done)) != done:
            raise ValueError(
                f"process {trainer.global_rank} would go on from step {done} and the first one from {first}: they do "
                f"not see the same checkpoint in {self.run_dir / LAST}; give an output_dir that all of them share"
            )
        self.advance(module.loader.tokens(done))
        if done and not self.lines:  # a checkpoint of an earlier version
            self.lines = [row for row in read_log(self.run_dir / LOG) if row["step"] <= done]
        if trainer.is_global_zero:
            write_log(self.run_dir / LOG, self.lines)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Step, batch_idx: int
    ) -> None:
        assert isinstance(module, TokenFilteredLM)
        done = batch.index + 1
        self.lines.append(outputs["record"])
        if trainer.is_global_zero:
            add_to_log(self.run_dir / LOG, outputs["record"])
        if module.best_step == done:
            trainer.save_checkpoint(self.run_dir / BEST, weights_only=True)
        if done % self.checkpoint_every == 0 and done < len(module.loader):
            trainer.save_checkpoint(self.run_dir / LAST)
        self.advance(batch.tokens)


# -- after training ------------------------------------------------------------------------------------------


def _record(
    config: Config, module: TokenFilteredLM, data: MaskedDataModule, log: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    tuning, loader = config.tuning, module.loader
    assert tuning.schedule is not None
    best = tuning.checkpoint is CheckpointChoice.best
    return {
        "steps": len(loader),
        "epochs": len(loader) / loader.steps_per_epoch,
        "examples": len(loader.data),
        "tokens": sum(row["tokens"] for row in log),
        "kept_tokens": sum(row["kept_tokens"] for row in log),
        "final_loss": log[-1]["loss"],
        "validation_loss": module.best_loss if module.best_step else None,
        "checkpoint": f"best: step {module.best_step}" if best else "last",
        "loss_curve_file": LOG,
        "learning_rate": tuning.learning_rate,
        "schedule": tuning.schedule.value,
        "batch_size": tuning.batch_size,
        "divisor": tuning.divisor.value,
        "backward": tuning.backward.value,
        **({} if module.gradient_cosine is None else {"gradient_cosine": module.gradient_cosine}),
        "precision": precision(config.trainer),
        "attention": data.attention,
        "compiled": config.trainer.compile,
        "devices": config.trainer.devices,
        "trained_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }


def _save(
    model: PreTrainedModel | PeftModel,
    weights: dict[str, torch.Tensor],
    folder: Path,
    record: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Write model (or adapter), tokenizer and record as one folder, renamed into place when complete."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    for stale in (temporary, folder):
        shutil.rmtree(stale, ignore_errors=True)
    if not console.is_terminal:
        transformers_logging.disable_progress_bar()
    # A tied weight has two names in a state; the model's own list has it once.
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    weights = {name: value for name, value in weights.items() if name in names}
    try:
        with naming(folder):
            model.save_pretrained(str(temporary), state_dict=weights)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        write_json(temporary / RECORD, record)
        seal(temporary, folder)
        temporary.rename(folder)
    finally:  # half of a model would keep a full disk full
        shutil.rmtree(temporary, ignore_errors=True)
