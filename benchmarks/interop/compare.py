"""Does a trainer that was installed apart compute the loss of an export that is computed by hand?

    python -m benchmarks.interop.compare llamafactory PYTHON     # PYTHON: the interpreter with that trainer
    python -m benchmarks.interop.compare axolotl PYTHON
    python -m benchmarks.interop.compare ms_swift PYTHON
    python -m benchmarks.interop.compare megatron PYTHON
    python -m benchmarks.interop.compare ms_swift PYTHON threshold.dropped_weight=0.3    # fractional weights
    python -m benchmarks.interop.compare trl PYTHON --bf16       # also hf; the trainer computes in bfloat16

Scores and masks 24 bundled rows with the tiny model, exports them, lets the trainer take one step over all of them,
and compares the loss that it logs first with sum over kept tokens / kept tokens in float32, to 1e-3; with --bf16, which
sets `bf16: true` in the exported configuration, to 1e-2. Exits with 1 if they differ.
Tokens with a weight count as one each in the divisor, and with their weight in the sum, as in ms-swift.
Of Megatron-Bridge (megatron_step.py) every document must also read, learn and count exactly the tokens of the mask.
`make interop` builds the environments (environment.sh) and runs this in each.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from transformers import AutoModelForCausalLM

from xtf import tiny

ROWS = 24
SHOWN = ("torch", "transformers", "datasets", "peft", "accelerate")
PACKAGES = {
    "hf": [],
    "trl": ["trl"],
    "llamafactory": ["llamafactory"],
    "axolotl": ["axolotl"],
    "ms_swift": ["ms-swift"],
    "megatron": ["megatron-bridge", "megatron-core"],
}
# Axolotl has no key for the `use_cpu` without which transformers refuses bf16 where there is no GPU.
AXOLOTL_BF16 = """
import runpy, sys
import transformers.training_args
transformers.training_args.is_torch_bf16_gpu_available = lambda: True
sys.argv = ["axolotl", "axolotl.yaml"]
runpy.run_module("axolotl.cli.train", run_name="__main__")
"""
ONE_STEP: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-6}


def by_hand(mask: Path) -> float:
    """Sum of the kept tokens' losses, each by its weight if it has one, over their number; a row at a time."""
    model = AutoModelForCausalLM.from_pretrained(tiny.MODEL_DIR, dtype=torch.float32).eval()
    total, kept = 0.0, 0
    for row in pq.read_table(mask).to_pylist():
        weights = row.get("weights", [1.0] * len(row["labels"]))  # of the response
        weights = [0.0] * (len(row["labels"]) - len(weights)) + weights
        with torch.no_grad():
            logp = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, (label, weight) in enumerate(zip(row["labels"], weights, strict=True)):
            if label != -100 and place:
                total, kept = total - weight * logp[place - 1, label].item(), kept + 1
    return total / kept


def exported(to: str, overrides: list[str], folder: Path) -> tuple[Path, Path]:
    """The folder of the export, and the mask it was made from."""
    command = [sys.executable, "run.py", "stage=export", f"export.to={to}", f"task.train.limit={ROWS}", *overrides]
    subprocess.run([*command, f"output_dir={folder}"], check=True)
    (place,) = folder.glob(f"exports/*/{to}")
    (mask,) = folder.rglob("mask.parquet")
    return place, mask


def with_yaml(file: Path, **changes: Any) -> None:
    """The exported configuration, for one step on a CPU."""
    settings = yaml.safe_load(file.read_text()) | ONE_STEP | changes
    file.write_text(yaml.safe_dump(settings))


def started(to: str, place: Path, rows: int, *, bf16: bool) -> list[str]:
    """What the trainer's interpreter is given, after the exported configuration has been narrowed to one step."""
    if to in ("hf", "trl"):
        with_yaml(place / "training.yaml", use_cpu=True, bf16=bf16, gradient_accumulation_steps=rows)
        return ["train.py"]
    if to == "llamafactory":
        with_yaml(place / "llamafactory.yaml", use_cpu=True, bf16=bf16, gradient_accumulation_steps=rows)
        return ["-m", "llamafactory.cli", "train", "llamafactory.yaml"]
    if to == "axolotl":
        with_yaml(place / "axolotl.yaml", bf16=bf16, tf32=False, micro_batch_size=rows)
        return ["-c", AXOLOTL_BF16] if bf16 else ["-m", "axolotl.cli.train", "axolotl.yaml"]
    text = (place / "train.sh").read_text().replace("\\\n", " ")
    exported = shlex.split(text, comments=True)[2:]  # behind "swift sft"
    changes = {key: str(value) for key, value in ONE_STEP.items()} | {"bf16": str(bf16).lower()}
    changes |= {"model_type": "qwen2", "use_cpu": "true", "gradient_accumulation_steps": str(rows)}
    pairs = dict(zip([one.removeprefix("--") for one in exported[::2]], exported[1::2], strict=True)) | changes
    return ["-m", "swift.cli.sft", *(part for key, value in pairs.items() for part in (f"--{key}", value))]


def first_loss(to: str, place: Path, python: str, *, bf16: bool) -> float:
    """What the trainer logs for a step over all rows."""
    command = started(to, place, json.loads((place / "export.json").read_text())["rows"], bf16=bf16)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true", "AXOLOTL_DO_NOT_TRACK": "1"}
    subprocess.run([python, *command], cwd=place, check=True, env=offline)
    states = sorted((place / "output").rglob("trainer_state.json"))
    return float(json.loads(states[-1].read_text())["log_history"][0]["loss"])


def megatron_loss(place: Path, mask: Path, python: str) -> float:
    """Megatron's loss of all packs.

    Raises:
        ValueError: a document is not what the mask says, or one is lacking.
    """
    script = Path(__file__).with_name("megatron_step.py")
    command = [python, str(script), str(place), str(tiny.MODEL_DIR)]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=place, check=True, env=env, stdout=subprocess.PIPE, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    wanted = [
        (row["input_ids"][:-1], row["input_ids"][1:], [int(label != -100) for label in row["labels"][1:]])
        for row in pq.read_table(mask).to_pylist()
    ]
    found = [(one["tokens"], one["labels"], one["loss_mask"]) for one in said["documents"]]
    if sorted(found) != sorted(one for one in wanted if any(one[2])):
        raise ValueError(f"Megatron-Bridge makes other documents of {place} than the mask has")
    print(f"megatron: {len(found)} documents as masked; the loss behind a step is {said['after']:.5f}")
    return float(said["loss"])


def versions(to: str, python: str) -> str:
    """What is installed beside the trainer, as one line."""
    names = [*PACKAGES[to], *SHOWN]
    code = f"from importlib.metadata import version; print(*[f'{{n}} {{version(n)}}' for n in {names!r}], sep=', ')"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", choices=sorted(PACKAGES))
    parser.add_argument("python")
    parser.add_argument("--bf16", action="store_true", help="the trainer computes in bfloat16")
    parser.add_argument("overrides", nargs="*", help="of the run that is exported")
    arguments = parser.parse_intermixed_args()
    if arguments.bf16 and arguments.to == "megatron":
        parser.error("Megatron's own loop does not run here, and megatron_step.py computes in float32")
    with tempfile.TemporaryDirectory() as folder:
        place, mask = exported(arguments.to, arguments.overrides, Path(folder).resolve())
        wanted = by_hand(mask)
        if arguments.to == "megatron":
            found = megatron_loss(place, mask, arguments.python)
        else:
            found = first_loss(arguments.to, place, arguments.python, bf16=arguments.bf16)
    print(f"{datetime.date.today()} {versions(arguments.to, arguments.python)}")
    said = " in bfloat16" if arguments.bf16 else ""
    print(f"{arguments.to}: first loss{said} {found:.5f}, by hand {wanted:.5f}, apart by {found / wanted - 1:+.1e}")
    return int(abs(found - wanted) > (1e-2 if arguments.bf16 else 1e-3) * wanted)


if __name__ == "__main__":
    sys.exit(main())
