"""transformers' Trainer: Parquet with three columns, TrainingArguments as YAML, and a script that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from xtf.exports.base import ROW_GROUP, MaskedRows, Trainer, TrainingRecipe, scheduler, training_settings, write_yaml


class HuggingFace(Trainer):
    """`transformers.Trainer` with `DataCollatorForSeq2Seq`, which pads labels with -100."""

    name = "hf"
    title = "transformers' Trainer"
    takes_tokenizer = True
    packages: ClassVar[tuple[str, ...]] = ("transformers", "accelerate", "datasets", "peft")
    note = (
        "Nothing is packed: every row is a row of the batch, padded. The loss is divided by the labels of the whole "
        "optimizer step, so any split of it into batches and accumulation gives the same."
    )
    tried_with: ClassVar = {"transformers": "5.23.0"}
    tried = (
        "2026-11-25: the first loss is the one computed by hand to 1e-3, batch and accumulation varied (tests/exports)"
    )

    arguments_class = "transformers.TrainingArguments"

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """train.parquet, training.yaml, train.py."""
        pq.write_table(rows.table, folder / "train.parquet", row_group_size=ROW_GROUP)
        write_yaml(folder / "training.yaml", self.arguments(recipe), self.arguments_class)
        (folder / "train.py").write_text(self.script(recipe), encoding="utf-8")

    def command(self, recipe: TrainingRecipe) -> str:
        """One device; torchrun or accelerate launch it on several."""
        return "python train.py"

    def arguments(self, recipe: TrainingRecipe) -> dict[str, Any]:
        """The recipe as `arguments_class` takes it."""
        return training_settings(recipe) | {
            "num_train_epochs": recipe.epochs,
            "per_device_train_batch_size": 1,
            "lr_scheduler_type": scheduler(recipe.tuning),
            "warmup_steps": recipe.tuning.warmup_ratio,  # below 1: a share of the steps
            "optim": "adamw_torch",
            "gradient_checkpointing": recipe.tuning.gradient_checkpointing,
        }

    def script(self, recipe: TrainingRecipe) -> str:
        """train.py."""
        adapters = f"model = get_peft_model(model, {lora_config(recipe)})\n" if recipe.lora else ""
        imports = "from peft import LoraConfig, get_peft_model\n" if recipe.lora else ""
        return f'''\
"""Trains on the masked rows: python train.py"""

from datasets import load_dataset
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, HfArgumentParser
from transformers import Trainer, TrainingArguments

(arguments,) = HfArgumentParser(TrainingArguments).parse_yaml_file("training.yaml")
tokenizer = AutoTokenizer.from_pretrained({recipe.pretrained_tokenizer})
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained({recipe.pretrained}, dtype="float32")
{adapters}rows = load_dataset("parquet", data_files="train.parquet", split="train")
trainer = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100), rows)
trainer.train()
trainer.save_model()
tokenizer.save_pretrained(arguments.output_dir)
'''


def lora_config(recipe: TrainingRecipe) -> str:
    """The adapters' settings as source: a `peft.LoraConfig`."""
    lora = recipe.tuning.lora
    return (
        f"LoraConfig(r={lora.r}, lora_alpha={lora.alpha}, lora_dropout={lora.dropout}, "
        f"target_modules={list(recipe.lora_targets)!r}, task_type='CAUSAL_LM')"
    )
