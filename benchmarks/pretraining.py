"""How much of the machine a pre-training run used: the record of stage=pretrain against a matrix product.

    python -m benchmarks.pretraining outputs/pretrained/tiny-<digest> [--device cuda] [--dtype bfloat16]

On the machine that trained, otherwise idle: pretrain.json holds the tokens per second of training, the peak is measured
now. The figure that a large matrix product reaches is what training could reach at best.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.measure import Claim, report
from xtf.runtime.artifacts import read_json


def training_flops(model: PreTrainedModel, row_tokens: int) -> float:
    """Floating-point operations to train on one token: 6 per weight of a matrix, and causal attention's scores.

    The embedding's look-up costs none; tied to the LM head it counts once. Attention: 6 T D for each layer, as a token
    looks at T / 2 others on average, twice (scores, values), forward and twice backward.
    """
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    config = model.config
    return 6.0 * matrices + 6.0 * config.num_hidden_layers * row_tokens * config.hidden_size


def matmul_peak(place: torch.device, dtype: torch.dtype, repeats: int = 10) -> np.ndarray:
    """Floating-point operations per second of a large matrix product, [repeats]."""
    size = 8192 if place.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=place, dtype=dtype) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        return time.perf_counter() - began

    return 2.0 * size**3 / np.array([seconds() for _ in range(repeats)])


def main() -> int:
    """Prints the three figures, operations for a token, the peak and the share of it that training reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished stage=pretrain; it holds pretrain.json and model/")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="in which it was trained")
    options = parser.parse_args()
    record = read_json(options.folder / "pretrain.json")
    model = AutoModelForCausalLM.from_pretrained(options.folder / "model")
    flops = training_flops(model, record["settings"]["row_tokens"])
    peak = float(matmul_peak(torch.device(options.device), getattr(torch, options.dtype)).max())
    share = record["tokens_per_second"] * flops / peak
    claims = [
        Claim("operations to train on a token, 1e6", np.array([flops / 1e6])),
        Claim("operations per second of a matrix product, 1e9", np.array([peak / 1e9])),
        Claim(
            "share of that peak that training reached",
            np.array([share]),
            note=f"{record['tokens_per_second']:,.0f} tokens/s",
        ),
    ]
    return report("pretraining", claims, {"folder": options.folder.name, "dtype": options.dtype})


if __name__ == "__main__":
    sys.exit(main())
