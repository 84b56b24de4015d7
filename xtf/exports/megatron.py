"""Megatron-Bridge and NeMo: packed Parquet with the documents' starts, its dataset, and a script that fine-tunes."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xtf.data.batches import write_parquet
from xtf.data.ragged import IGNORED, Lists, as_lists
from xtf.exports.base import MaskedRows, Trainer, TrainingRecipe, scheduler

PACKS_AT_ONCE = 256  # that are in memory
FILE = "train.idx.parquet"  # the ending by which Megatron-Bridge knows packed Parquet
# Its names (CanonicalLoRA, whose adapters of q, k, v, gate and up are apart) by those of transformers.
MODULES = {
    "q_proj": "linear_q",
    "k_proj": "linear_k",
    "v_proj": "linear_v",
    "o_proj": "linear_proj",
    "gate_proj": "linear_fc1_gate",
    "up_proj": "linear_fc1_up",
    "down_proj": "linear_fc2",
}


class Megatron(Trainer):
    """Megatron-Bridge's offline packed data (`GPTSFTPackedParquetDataset`)."""

    name = "megatron"
    title = "Megatron-Bridge"
    takes_tokenizer = True
    packages = ("megatron-bridge", "megatron-core")
    columns = (
        f"`{FILE}`: `input_ids` list<int32> of several documents end to end, `seq_start_id` list<int32>, where each "
        "starts, and `loss_mask` list<int8>, which stands at the token that *predicts*: 1 at place t where the token "
        "at t + 1 carries loss"
    )
    note = (
        "The script sets all that is read of the run, loads the weights from the model's own folder, and leaves a "
        "checkpoint and beside it `iter_*/hf`, a folder of transformers, in `output/`. To train in a recipe of "
        "Megatron-Bridge instead, for another parallelism, say: `cfg.dataset = dataset.masked_rows()`. "
        "Documents are kept apart by `seq_start_id`. Offline packed data wants a micro-batch of 1, `pad_seq_to_mult` "
        "of 1, and bfloat16, for its attention. A step holds packs, not rows: `global_batch_size` is as many as hold "
        "about the run's rows, and must be a multiple of the devices that share it. Keep "
        "`calculate_per_token_loss=True` and `average_in_collective=False`: otherwise the "
        "loss of a step is the mean of its packs' means, and tokens of packs that keep few weigh more. The mask is "
        "0 or 1 (the collator makes integers of it). A label right behind the tokenizer's EOS within a row does not "
        "count: the collator takes it for padding."
    )
    tried_with: ClassVar = {"megatron-bridge": "0.6.2", "megatron-core": "0.19.2"}
    tried = (
        "2026-11-26: its data set and collator read, learn and count "
        "every document as masked, and the first loss is the one computed by hand, 2.61965 (`make interop`, on a CPU, "
        "so with Megatron-Core's own attention instead of Transformer Engine's). `finetune.py` is not run to its end: "
        "its loop needs a GPU. What is run (2026-11-27): its configuration is built by Megatron-Bridge's classes and "
        "passes their checks, with stand-ins for Transformer Engine"
    )

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """train.idx.parquet, dataset.py, finetune.py."""
        write_parquet(packed(rows, recipe.max_length), folder / FILE)
        packs = pq.read_metadata(folder / FILE).num_rows
        (folder / "dataset.py").write_text(_script(recipe), encoding="utf-8")
        step = max(1, round(recipe.tuning.batch_size * packs / rows.table.num_rows))
        (folder / "finetune.py").write_text(_training(recipe, step), encoding="utf-8")

    def command(self, recipe: TrainingRecipe) -> str:
        """On as many GPUs as torchrun is told."""
        return "torchrun --nproc-per-node=1 finetune.py"


def packed(rows: MaskedRows, length: int) -> Iterator[pa.RecordBatch]:
    """Rows packed into at most `length` tokens, longest first; the mask moved to the predicting token."""
    from xtf.data.steps import pack

    every_ids, every_labels = (Lists(rows.table[name]) for name in ("input_ids", "labels"))
    groups = pack(array("q", rows.lengths.tobytes()), length)
    for first in range(0, len(groups), PACKS_AT_ONCE):
        some = groups[first : first + PACKS_AT_ONCE]
        ids = [[every_ids[index] for index in group] for group in some]
        masks = [np.append(every_labels[index][1:] != IGNORED, False) for group in some for index in group]
        starts = [np.cumsum([0, *map(len, group)])[:-1] for group in ids]
        tokens = np.array([sum(map(len, group)) for group in ids])
        columns = {
            "input_ids": as_lists(np.concatenate([document for group in ids for document in group]), tokens),
            "loss_mask": as_lists(np.concatenate(masks).astype(np.int8), tokens),
            "seq_start_id": as_lists(np.concatenate(starts).astype(np.int32), np.array([len(group) for group in some])),
        }
        yield pa.RecordBatch.from_pydict(columns)


def _script(recipe: TrainingRecipe) -> str:
    return f'''\
"""The masked rows as a dataset of Megatron-Bridge: cfg.dataset = dataset.masked_rows()"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from megatron.bridge.data.builders import GPTSFTDatasetConfig
from megatron.bridge.data.packing import PackedSequenceSpecs

HERE = Path(__file__).resolve().parent


def masked_rows():
    return GPTSFTDatasetConfig(
        seq_length={recipe.max_length},
        dataset_root=HERE,
        seed={recipe.seed},
        do_validation=False,
        do_test=False,
        enable_offline_packing=True,
        offline_packing_specs=PackedSequenceSpecs(
            packed_sequence_size={recipe.max_length},
            packed_train_data_path=HERE / "{FILE}",
            packed_metadata_path=HERE / "metadata.jsonl",  # only read with pad_cu_seqlens
        ),
    )
'''


def _training(recipe: TrainingRecipe, step: int) -> str:
    """finetune.py; `step` packs hold about the rows of a step of the run."""
    tuning = recipe.tuning
    length = f"train_iters={tuning.max_steps}" if tuning.max_steps is not None else f"num_epochs={recipe.epochs}"
    folder = f"{recipe.model!r}" if Path(recipe.model).is_dir() else f"snapshot_download({recipe.pretrained})"
    warmup = f"\n        lr_warmup_fraction={tuning.warmup_ratio}," if tuning.warmup_ratio else ""
    tokenizer = f"str(HERE / {recipe.tokenizer!r})" if recipe.tokenizer else "MODEL"
    download = "" if Path(recipe.model).is_dir() else "from huggingface_hub import snapshot_download\n"
    targets = [MODULES.get(name, name) for name in recipe.lora_targets]
    lora = (
        f"""
    peft=CanonicalLoRA(
        target_modules={targets!r}, dim={tuning.lora.r}, alpha={tuning.lora.alpha}, dropout={tuning.lora.dropout}
    ),"""
        if recipe.lora
        else ""
    )
    return f'''\
"""Fine-tunes on the masked rows with Megatron-Bridge: torchrun --nproc-per-node=GPUS finetune.py"""

from dataset import HERE, masked_rows
{download}from megatron.bridge import AutoBridge
{"from megatron.bridge.peft.canonical_lora import CanonicalLoRA" + chr(10) if recipe.lora else ""}\
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.bridge.training.finetune import finetune
from megatron.bridge.training.gpt_step import forward_step
from megatron.core.distributed import DistributedDataParallelConfig

MODEL = {folder}

model = AutoBridge.from_hf_pretrained(MODEL).to_megatron_provider(load_weights=False)
model.seq_length = {recipe.max_length}
model.calculate_per_token_loss = True  # a step is divided by its kept tokens
config = ConfigContainer(
    model=model,
    dataset=masked_rows(),
    tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model={tokenizer}),
    train=TrainingConfig({length}, global_batch_size={step}, micro_batch_size=1),
    validation=ValidationConfig(eval_iters=0),
    optimizer=OptimizerConfig(
        optimizer="adam",
        lr={tuning.learning_rate},
        min_lr=0.0,
        adam_beta1={tuning.betas[0]},
        adam_beta2={tuning.betas[1]},
        weight_decay={tuning.weight_decay},
        clip_grad={tuning.max_grad_norm},
        bf16=True,
        use_distributed_optimizer=True,
    ),
    scheduler=SchedulerConfig(
        lr_decay_style="{scheduler(tuning).removesuffix("_with_warmup")}",
        start_weight_decay={tuning.weight_decay},
        end_weight_decay={tuning.weight_decay},{warmup}
    ),
    ddp=DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, average_in_collective=False
    ),
    checkpoint=CheckpointConfig(
        pretrained_checkpoint=MODEL, save=str(HERE / "output"), ckpt_format="torch_dist", also_save_hf_checkpoint=True
    ),
    logger=LoggerConfig(log_interval=1),
    rng=RNGConfig(seed={recipe.seed}),
    mixed_precision="bf16_mixed",{lora}
)

if __name__ == "__main__":
    finetune(config, forward_step)
'''
