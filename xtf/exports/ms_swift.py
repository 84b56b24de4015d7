"""ms-swift: ids and a loss scale for each token as JSON lines, and a plugin that hands them to its template."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import ClassVar

import numpy as np

from xtf.data.ragged import flat
from xtf.exports.base import MaskedRows, Trainer, TrainingRecipe, scheduler, training_settings

PLUGIN = '''\
"""Reads train.jsonl for ms-swift: every token with the scale of its loss, and nothing of a template around them."""

from pathlib import Path

from swift.dataset import DatasetMeta, RowPreprocessor, register_dataset
from swift.template import TemplateMeta, register_template


class Tokens(RowPreprocessor):
    def preprocess(self, row):
        tokens = {"token_ids": row["token_ids"], "loss_scale": row["loss_scale"]}
        return {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": tokens}]}


# Without a suffix: ms-swift would give the labels of one back that the mask has dropped.
register_template(TemplateMeta("xtf_tokens", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=[]))
register_dataset(
    DatasetMeta(
        dataset_name="xtf_masked",
        dataset_path=str(Path(__file__).resolve().parent / "train.jsonl"),
        preprocess_func=Tokens(),
    )
)
'''


class MsSwift(Trainer):
    """`swift sft`, of which a template's context may be token ids, each with a scale of its loss."""

    name = "ms_swift"
    title = "ms-swift"
    weights = True
    packages = ("ms-swift", "transformers", "datasets", "peft")
    columns = (
        "`train.jsonl`: `token_ids`, and `loss_scale` as long: 0 where no loss falls, else the token's weight; the "
        "loss is their weighted sum by the number of tokens with a scale above 0"
    )
    note = (
        "The template `xtf_tokens` of plugin.py adds nothing to the rows; with another one ms-swift puts its own marks "
        "around them. Where it says that several model types fit, add `--model_type`, e.g. qwen2. "
        "`is_binary_loss_scale` must stay false where a scale is neither 0 nor 1."
    )
    tried_with: ClassVar = {"ms-swift": "4.6.0", "transformers": "5.19.0"}
    tried = (
        "2026-11-27: the first loss is the one computed by hand, 2.61965, and "
        "1.15254 with dropped tokens at weight 0.3 (`make interop`, on a CPU)"
    )

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """train.jsonl, plugin.py, train.sh."""
        weighted = "loss_weights" in rows.table.column_names
        with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
            for row in (row for batch in rows.table.to_batches() for row in batch.to_pylist()):
                scale = row["loss_weights"] if weighted else [float(label != -100) for label in row["labels"]]
                file.write(json.dumps({"token_ids": row["input_ids"], "loss_scale": scale}) + "\n")
        (folder / "plugin.py").write_text(PLUGIN, encoding="utf-8")
        arguments = _arguments(recipe, binary=not weighted or _binary(rows))
        lines = [
            "#!/bin/sh",
            "swift sft \\",
            *(f"  --{key} {shlex.quote(value)} \\" for key, value in arguments.items()),
        ]
        (folder / "train.sh").write_text("\n".join(lines).removesuffix(" \\") + "\n", encoding="utf-8")

    def command(self, recipe: TrainingRecipe) -> str:
        """plugin.py is named relative to the folder."""
        return "sh train.sh"


def _binary(rows: MaskedRows) -> bool:
    return all(np.isin(flat(chunk)[0], (0, 1)).all() for chunk in rows.table["loss_weights"].chunks)


def _arguments(recipe: TrainingRecipe, *, binary: bool) -> dict[str, str]:
    tuning = recipe.tuning
    arguments = training_settings(recipe) | {
        "model": recipe.model,
        **({"model_revision": recipe.revision} if recipe.revision else {}),
        "tuner_type": "lora" if recipe.lora else "full",
        "external_plugins": "plugin.py",
        "template": "xtf_tokens",
        "dataset": "xtf_masked",
        "split_dataset_ratio": 0,
        "strict": True,
        "is_binary_loss_scale": binary,
        "max_length": recipe.max_length,
        "truncation_strategy": "delete",  # none is: max_length fits the longest row
        "packing": False,
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": scheduler(tuning),
        "warmup_ratio": tuning.warmup_ratio,
        "gradient_checkpointing": tuning.gradient_checkpointing,
        "torch_dtype": "float32",
        "fp16": False,  # ms-swift sets it beside weights in float32, and then refuses bf16
    }
    if recipe.lora:
        arguments |= {"lora_rank": tuning.lora.r, "lora_alpha": tuning.lora.alpha, "lora_dropout": tuning.lora.dropout}
        arguments["target_modules"] = " ".join(recipe.lora_targets)
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in arguments.items()}
