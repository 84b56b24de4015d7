"""transformers' Trainer: Parquet with three columns, TrainingArguments as YAML, and a script that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xtf.exports.base import Recipe, Rows, Trainer, plain_lora, scheduler, write_yaml


class HuggingFace(Trainer):
    """`transformers.Trainer` with `DataCollatorForSeq2Seq`, which pads labels with -100."""

    name = "hf"
    title = "transformers' Trainer"
    packages = ("transformers", "accelerate", "datasets", "peft")
    columns = "`train.parquet`: `input_ids` list<int32>, `attention_mask` list<int8>, `labels` list<int32>"
    note = (
        "Nothing is packed: every row is a row of the batch, padded. The loss is divided by the labels of the whole "
        "optimizer step, so any split of it into batches and accumulation gives the same."
    )
    tried = (
        "transformers 5.23.0, 2026-11-25: the first loss is the one computed by hand to 1e-3, batch and "
        "accumulation varied (tests/exports)"
    )

    def write(self, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """train.parquet, training.yaml, train.py."""
        import pyarrow.parquet as pq

        pq.write_table(rows.table, folder / "train.parquet")
        write_yaml(folder / "training.yaml", training_arguments(recipe), "transformers.TrainingArguments")
        (folder / "train.py").write_text(_script(recipe), encoding="utf-8")

    def command(self, recipe: Recipe) -> str:
        """One device; torchrun or accelerate launch it on several."""
        return "python train.py"


def training_arguments(recipe: Recipe) -> dict[str, Any]:
    """The recipe as transformers' `TrainingArguments`, for one device."""
    tuning = recipe.tuning
    found = {
        "output_dir": "output",
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": tuning.batch_size,
        "learning_rate": tuning.learning_rate,
        "lr_scheduler_type": scheduler(tuning),
        "warmup_steps": tuning.warmup_ratio,  # below 1: a share of the steps
        "optim": "adamw_torch",
        "adam_beta1": tuning.betas[0],
        "adam_beta2": tuning.betas[1],
        "weight_decay": tuning.weight_decay,
        "max_grad_norm": tuning.max_grad_norm,
        "gradient_checkpointing": tuning.gradient_checkpointing,
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "logging_steps": 1,
    }
    return found if tuning.max_steps is None else {**found, "max_steps": tuning.max_steps}


def _script(recipe: Recipe) -> str:
    where = f"{recipe.model!r}, revision={recipe.revision!r}" if recipe.revision else f"{recipe.model!r}"
    adapters = f"model = get_peft_model(model, LoraConfig(**{plain_lora(recipe)!r}))\n" if recipe.lora else ""
    imports = "from peft import LoraConfig, get_peft_model\n" if recipe.lora else ""
    return f'''\
"""Trains on the masked rows: python train.py"""

from datasets import load_dataset
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, HfArgumentParser
from transformers import Trainer, TrainingArguments

(arguments,) = HfArgumentParser(TrainingArguments).parse_yaml_file("training.yaml")
tokenizer = AutoTokenizer.from_pretrained({where})
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained({where}, dtype="float32")
{adapters}rows = load_dataset("parquet", data_files="train.parquet", split="train")
trainer = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100), rows)
trainer.train()
trainer.save_model()
tokenizer.save_pretrained(arguments.output_dir)
'''
