"""Axolotl: Parquet that it knows for tokenized (it wants attention_mask too), and its YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq

from xtf.exports.base import ROW_GROUP, MaskedRows, Trainer, TrainingRecipe, scheduler, training_settings, write_yaml


class Axolotl(Trainer):
    """`axolotl train`."""

    name = "axolotl"
    title = "Axolotl"
    takes_tokenizer = True
    packages = ("axolotl", "transformers", "datasets", "peft")
    note = (
        "Rows count as tokenized only with all three columns and an empty `type:`. `sequence_len` fits the longest "
        "row, for Axolotl leaves longer ones out. `sample_packing: true` keeps documents apart only with an attention "
        "kernel that does (flash attention): set `flash_attention: true` with it, and a larger `sequence_len`. "
        "The loss of a micro-batch is the mean over its own kept tokens, and accumulated micro-batches count alike "
        "however many they keep (Axolotl 0.19); so `micro_batch_size` is a whole step here. Where memory wants "
        "accumulation, tokens of rows that keep few weigh more than in the run."
    )
    tried_with: ClassVar = {"axolotl": "0.19.0", "transformers": "5.16.1"}
    tried = (
        "2026-11-27: the first loss is the one computed by hand, 2.61965 (`make interop`, on a CPU), also with "
        "`tokenizer_config` and `special_tokens`"
    )

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """train.parquet, axolotl.yaml."""
        pq.write_table(rows.table, folder / "train.parquet", row_group_size=ROW_GROUP)
        write_yaml(folder / "axolotl.yaml", _settings(recipe), "axolotl train axolotl.yaml")

    def command(self, recipe: TrainingRecipe) -> str:
        """The configuration names the data relative to the folder."""
        return "axolotl train axolotl.yaml"


def _settings(recipe: TrainingRecipe) -> dict[str, Any]:
    tuning = recipe.tuning
    settings = training_settings(recipe) | {
        "base_model": recipe.model,
        **({"revision_of_model": recipe.revision} if recipe.revision else {}),
        **({"tokenizer_config": recipe.tokenizer} if recipe.tokenizer else {}),
        **({"special_tokens": {"pad_token": recipe.pad_token}} if recipe.pad_token else {}),  # else none
        "datasets": [{"path": "train.parquet", "ds_type": "parquet", "type": None}],
        "dataset_prepared_path": "prepared",
        "val_set_size": 0,
        "sequence_len": recipe.max_length,
        "sample_packing": False,
        "pad_to_sequence_len": False,
        "num_epochs": recipe.epochs,
        "gradient_accumulation_steps": 1,
        "micro_batch_size": tuning.batch_size,
        "lr_scheduler": scheduler(tuning),
        "warmup_ratio": tuning.warmup_ratio,
        "optimizer": "adamw_torch",
        "gradient_checkpointing": tuning.gradient_checkpointing,
    }
    if recipe.lora:
        settings |= {
            "adapter": "lora",
            "lora_r": tuning.lora.r,
            "lora_alpha": tuning.lora.alpha,
            "lora_dropout": tuning.lora.dropout,
            "lora_target_modules": list(recipe.lora_targets),
        }
    return settings
