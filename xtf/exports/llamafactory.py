"""LLaMA-Factory: a `save_to_disk` folder with three columns, and its YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from xtf.exports.base import MaskedRows, Trainer, TrainingRecipe, scheduler, training_settings, write_yaml


class LlamaFactory(Trainer):
    """`llamafactory-cli train`, whose `tokenized_path` reads a folder that `save_to_disk` wrote."""

    name = "llamafactory"
    title = "LLaMA-Factory"
    packages = ("llamafactory", "transformers", "datasets", "peft")
    columns = (
        "`data/`: `DatasetDict(train=...)` as `save_to_disk` writes it, with `input_ids` list<int32>, "
        "`attention_mask` list<int8>, `labels` list<int32>"
    )
    note = (
        "`dataset: identity` has to be set though it is not read: the rows come from `tokenized_path`. `cutoff_len` "
        "does not touch tokenized rows; leave `packing` off, which would not either."
    )
    tried_with: ClassVar = {"llamafactory": "0.9.5", "transformers": "5.6.0"}
    tried = "2026-11-26: the first loss is the one computed by hand, 2.61965 (`make interop`, on a CPU)"

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """data/, llamafactory.yaml."""
        import datasets

        datasets.DatasetDict(train=datasets.Dataset(rows.table)).save_to_disk(folder / "data")
        write_yaml(folder / "llamafactory.yaml", _settings(recipe), "llamafactory-cli train llamafactory.yaml")

    def command(self, recipe: TrainingRecipe) -> str:
        """The configuration names the data relative to the folder."""
        return "llamafactory-cli train llamafactory.yaml"


def _settings(recipe: TrainingRecipe) -> dict[str, Any]:
    tuning = recipe.tuning
    settings = training_settings(recipe) | {
        "model_name_or_path": recipe.model,
        **({"model_revision": recipe.revision} if recipe.revision else {}),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora" if recipe.lora else "full",
        "dataset": "identity",
        "tokenized_path": "data",
        "cutoff_len": recipe.max_length,
        "packing": False,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": scheduler(tuning),
        "warmup_ratio": tuning.warmup_ratio,
        "optim": "adamw_torch",
        "disable_gradient_checkpointing": not tuning.gradient_checkpointing,
    }
    if recipe.lora:
        settings |= {
            "lora_rank": tuning.lora.r,
            "lora_alpha": tuning.lora.alpha,
            "lora_dropout": tuning.lora.dropout,
            "lora_target": ",".join(recipe.lora_targets),
        }
    return settings
