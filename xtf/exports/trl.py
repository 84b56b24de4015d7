"""TRL's SFTTrainer: Parquet with three columns, SFTConfig as YAML, and a script that runs."""

from __future__ import annotations

from typing import Any, ClassVar

from xtf.exports.base import TrainingRecipe
from xtf.exports.hf import HuggingFace, lora_config


class TRL(HuggingFace):
    """`trl.SFTTrainer`, which takes rows that have `input_ids` and `labels` as they are."""

    name = "trl"
    title = "TRL's SFTTrainer"
    packages = ("trl", "transformers", "accelerate", "datasets", "peft")
    note = (
        "`max_length` is set, for TRL's own default of 1,024 cuts longer rows without a word. To pack, set `packing: "
        "true` with `packing_strategy: bfd`, which keeps documents apart (`max_length` is then the bin: a multiple of "
        "what it is); `wrapped` lets them see each other. `completion_only_loss` has no effect on these rows, and "
        "`assistant_only_loss: true` is refused."
    )
    tried_with: ClassVar = {"trl": "1.16.0"}
    tried = "2026-11-25: the first loss is the one computed by hand to 1e-3, plain and packed with bfd (tests/exports)"

    arguments_class = "trl.SFTConfig"

    def arguments(self, recipe: TrainingRecipe) -> dict[str, Any]:
        """SFTConfig has all of TrainingArguments."""
        return super().arguments(recipe) | {"max_length": recipe.max_length, "packing": False}

    def script(self, recipe: TrainingRecipe) -> str:
        """train.py."""
        imports = "from peft import LoraConfig\n" if recipe.lora else ""
        adapters = f", peft_config={lora_config(recipe)}" if recipe.lora else ""
        return f'''\
"""Trains on the masked rows: python train.py"""

from datasets import load_dataset
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

(arguments,) = HfArgumentParser(SFTConfig).parse_yaml_file("training.yaml")
tokenizer = AutoTokenizer.from_pretrained({recipe.pretrained_tokenizer})
model = AutoModelForCausalLM.from_pretrained({recipe.pretrained}, dtype="float32")
rows = load_dataset("parquet", data_files="train.parquet", split="train")
trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer{adapters})
trainer.train()
trainer.save_model()
'''
