"""TRL's SFTTrainer: Parquet with three columns, SFTConfig as YAML, and a script that runs."""

from __future__ import annotations

from pathlib import Path

from xtf.exports.base import Recipe, Rows, Trainer, plain_lora, write_yaml
from xtf.exports.hf import training_arguments


class TRL(Trainer):
    """`trl.SFTTrainer`, which takes rows that have `input_ids` and `labels` as they are."""

    name = "trl"
    title = "TRL's SFTTrainer"
    packages = ("trl", "transformers", "accelerate", "datasets", "peft")
    columns = "`train.parquet`: `input_ids` list<int32>, `attention_mask` list<int8>, `labels` list<int32>"
    note = (
        "`max_length` is set, for TRL's own default of 1,024 cuts longer rows without a word. To pack, set `packing: "
        "true` with `packing_strategy: bfd`, which keeps documents apart (`max_length` is then the bin: a multiple of "
        "what it is); `wrapped` lets them see each other. `completion_only_loss` has no effect on these rows, and "
        "`assistant_only_loss: true` is refused."
    )
    tried = (
        "TRL 1.16.0, 2026-11-25: the first loss is the one computed by hand to 1e-3, plain and packed with bfd "
        "(tests/exports)"
    )

    def write(self, rows: Rows, recipe: Recipe, folder: Path) -> None:
        """train.parquet, training.yaml, train.py."""
        import pyarrow.parquet as pq

        pq.write_table(rows.table, folder / "train.parquet")
        arguments = training_arguments(recipe) | {"max_length": recipe.max_length, "packing": False}
        write_yaml(folder / "training.yaml", arguments, "trl.SFTConfig")
        (folder / "train.py").write_text(_script(recipe), encoding="utf-8")

    def command(self, recipe: Recipe) -> str:
        """One device; accelerate launches it on several."""
        return "python train.py"


def _script(recipe: Recipe) -> str:
    where = f"{recipe.model!r}, revision={recipe.revision!r}" if recipe.revision else f"{recipe.model!r}"
    imports = "from peft import LoraConfig\n" if recipe.lora else ""
    adapters = f", peft_config=LoraConfig(**{plain_lora(recipe)!r})" if recipe.lora else ""
    return f'''\
"""Trains on the masked rows: python train.py"""

from datasets import load_dataset
{imports}from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from trl import SFTConfig, SFTTrainer

(arguments,) = HfArgumentParser(SFTConfig).parse_yaml_file("training.yaml")
tokenizer = AutoTokenizer.from_pretrained({where})
model = AutoModelForCausalLM.from_pretrained({where}, dtype="float32")
rows = load_dataset("parquet", data_files="train.parquet", split="train")
trainer = SFTTrainer(model, arguments, train_dataset=rows, processing_class=tokenizer{adapters})
trainer.train()
trainer.save_model()
'''
