"""How well the base model already predicts the responses: the regime in which a fine-tuning set finds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtf.scoring.store import read_pass

if TYPE_CHECKING:
    import pyarrow as pa

SURE, UNLIKELY = 0.95, 0.1  # p of a token


@dataclass(frozen=True)
class Regime:
    """Figures over all response tokens of a scored table, the token that ends each response included."""

    tokens: int
    loss: float  # mean -log p, in nats a token
    sure: float  # share of the tokens with p > SURE
    unlikely: float  # share of the tokens with p < UNLIKELY

    def __str__(self) -> str:
        return (
            f"base model on the responses: {self.loss:.2f} nats a token, {self.sure:.0%} of {self.tokens:,} tokens "
            f"with p > {SURE}, {self.unlikely:.0%} with p < {UNLIKELY}"
        )


def regime(logp: pa.ChunkedArray) -> Regime:
    """The figures from the column `logp`, list<float32>, one list a response.

    Raises:
        ValueError: there are no response tokens.
    """
    values = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in logp.chunks] or [[]])
    if not len(values):
        raise ValueError("there are no response tokens to take the regime of")
    return Regime(
        tokens=len(values),
        loss=float(-values.mean(dtype=np.float64)),
        sure=float((values > math.log(SURE)).mean()),
        unlikely=float((values < math.log(UNLIKELY)).mean()),
    )


def regime_of(folder: Path) -> Regime | None:
    """The figures of a stored scoring pass; None if it holds no `logp` (a pass for RI or TR alone)."""
    table = read_pass(folder)
    return regime(table["logp"]) if "logp" in table.column_names else None
