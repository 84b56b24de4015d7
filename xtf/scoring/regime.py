"""How well the base model already predicts the responses: the regime in which a fine-tuning set finds it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtf.scoring.store import pass_batches, pass_columns

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


def regime(logp: Iterable[pa.Array]) -> Regime:
    """The figures from the column `logp`, list<float32>, one list a response, given in blocks.

    Raises:
        ValueError: there are no response tokens.
    """
    tokens, total, sure, unlikely = 0, 0.0, 0, 0
    for lists in logp:
        values = lists.flatten().to_numpy(zero_copy_only=False)
        tokens, total = tokens + len(values), total + float(values.sum(dtype=np.float64))
        sure += int(np.count_nonzero(values > math.log(SURE)))
        unlikely += int(np.count_nonzero(values < math.log(UNLIKELY)))
    if not tokens:
        raise ValueError("there are no response tokens to take the regime of")
    return Regime(tokens=tokens, loss=-total / tokens, sure=sure / tokens, unlikely=unlikely / tokens)


def regime_of(folder: Path) -> Regime | None:
    """The figures of a stored scoring pass; None if it holds no `logp` (a pass for RI or TR alone)."""
    if "logp" not in pass_columns(folder):
        return None
    return regime(batch.column("logp") for batch in pass_batches(folder, ["logp"]))
