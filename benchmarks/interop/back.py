"""Is a set that a trainer has tokenised and masked itself scored and masked where that trainer trains, and only there?

    python -m benchmarks.interop.back llamafactory PYTHON     # PYTHON: the interpreter with that trainer
    python -m benchmarks.interop.back axolotl PYTHON

Lets the trainer prepare 24 bundled rows with the tiny model's tokenizer, masks the folder by stage=mask, and compares
the labels. Prints how many tokens the trainer trains and which share each attribute calls noise; exits with 1 where a
label of the mask is none of the trainer's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from xtf import tiny
from xtf.config.schema import SourceConfig
from xtf.data.ragged import IGNORED
from xtf.data.rows import load_rows

ROWS = 24


def prepared(to: str, folder: Path, python: str) -> Path:
    """The folder in which the trainer leaves the rows."""
    rows = [json.loads(line) for line in (tiny.DATA_DIR / "math_train.jsonl").read_text().splitlines()[:ROWS]]
    (folder / "rows.json").write_text(json.dumps([{key: row[key] for key in ("question", "answer")} for row in rows]))
    if to == "llamafactory":
        columns = {"prompt": "question", "response": "answer"}
        (folder / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "rows.json", "columns": columns}}))
        settings = {
            "model_name_or_path": str(tiny.MODEL_DIR), "stage": "sft", "do_train": True, "finetuning_type": "full",
            "dataset": "mine", "dataset_dir": ".", "template": "default", "cutoff_len": 512, "output_dir": "output",
            "tokenized_path": "tokenized", "use_cpu": True, "max_steps": 1, "save_strategy": "no",
        }  # fmt: skip
        command, place = ["-m", "llamafactory.cli", "train", "config.yaml"], folder / "tokenized"
    else:
        format_ = {"field_instruction": "question", "field_output": "answer", "format": "Question: {instruction}\n"}
        settings = {
            "base_model": str(tiny.MODEL_DIR), "sequence_len": 512, "micro_batch_size": 1, "num_epochs": 1,
            "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "output_dir": "output", "use_cpu": True,
            "bf16": False, "tf32": False, "dataset_prepared_path": "prepared", "val_set_size": 0,
            "datasets": [{"path": "rows.json", "ds_type": "json", "type": format_}],
        }  # fmt: skip
        command, place = ["-m", "axolotl.cli.preprocess", "config.yaml"], folder / "prepared"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true", "AXOLOTL_DO_NOT_TRACK": "1"}
    subprocess.run([python, *command], cwd=folder, check=True, env=offline)
    return place


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", choices=("llamafactory", "axolotl"))
    parser.add_argument("python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        place = prepared(arguments.to, folder, arguments.python)
        given = {"task": "custom", "stage": "mask", "task.train.path": place, "output_dir": folder / "out"}
        subprocess.run([sys.executable, "run.py", *(f"{key}={value}" for key, value in given.items())], check=True)
        (mask,) = folder.rglob("mask.parquet")
        masked, theirs = pq.read_table(mask).to_pylist(), load_rows(SourceConfig(path=str(place))).rows
    trained = sum(label != IGNORED for row in theirs for label in row["labels"])
    kept = sum(label != IGNORED for row in masked for label in row["labels"])
    known = len(masked) == len(theirs) and all(
        label in (IGNORED, own)
        for row, other in zip(masked, theirs, strict=True)
        for label, own in zip(row["labels"], other["labels"], strict=False)
    )
    shares = {
        name: sum(drop for row in masked for drop in row[f"drop_{name}"]) / trained for name in ("ri", "kn", "tr")
    }
    said = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    print(f"{arguments.to}: {len(theirs)} rows, {trained} tokens trained; noise by {said}; {kept} labels are left")
    return int(not known)


if __name__ == "__main__":
    sys.exit(main())
