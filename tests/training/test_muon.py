"""Muon: its updates are nearly orthogonal, as large as AdamW's, and those of PyTorch's own in float32."""

from __future__ import annotations

import pytest
import torch

from xtf.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_every_singular_value_of_an_update_is_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_steps_are_those_of_pytorch_up_to_its_bfloat16() -> None:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(16, 40)) for _ in range(2)]
    weights[1].data.copy_(weights[0])
    ours = Muon([weights[0]], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon([weights[1]], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = weights[0].detach().clone()
    for _ in range(5):
        gradient = torch.randn(16, 40)
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (weights[0] - start).norm()
    assert (weights[0] - weights[1]).norm() < 0.05 * moved
