"""Muon (Jordan et al. 2024): momentum whose every update of a matrix is made nearly orthogonal.

`torch.optim.Muon` does that in bfloat16 on every device. On a CPU without instructions for bfloat16 this takes ten
times as long as in float32, longer than the whole forward and backward pass of a small model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in the reference implementation
ITERATIONS = 5


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix like `matrix` [M, N] with singular values near 1, between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    dtype = torch.bfloat16 if matrix.is_cuda else torch.float32
    x = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal and scaled to the size of AdamW's updates; decoupled weight decay.

    The scale 0.2 sqrt(max(M, N)) lets one learning rate serve both (Liu et al. 2025, arXiv 2502.16982).
    """

    def __init__(self, parameters: Any, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(average, group["momentum"]))
                rate = group["lr"]
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-rate * 0.2 * max(parameter.shape) ** 0.5)
        return loss
