"""How well the base model already predicts the responses: the regime in which a fine-tuning set finds it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xtf.data.ragged import ROW_WEIGHTS, flat

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
            f"base model on the responses: {self.loss:.2f} nats a token, {100 * self.sure:.0f} % of {self.tokens:,} "
            f"tokens with p > {SURE}, {100 * self.unlikely:.0f} % with p < {UNLIKELY}"
        )


def regime(scored: Iterable[pa.RecordBatch]) -> Regime:
    """The figures from batches with the column `logp`, list<float32>, one list a response.

    Tokens that the rows themselves do not train (weight 0 in `ROW_WEIGHTS`) are left out.

    Raises:
        ValueError: there are no response tokens.
    """
    tokens, total, sure, unlikely = 0, 0.0, 0, 0
    for batch in scored:
        values = flat(batch.column("logp"))[0]
        if ROW_WEIGHTS in batch.schema.names:
            values = values[flat(batch.column(ROW_WEIGHTS))[0] != 0]
        tokens, total = tokens + len(values), total + float(values.sum(dtype=np.float64))
        sure += int(np.count_nonzero(values > math.log(SURE)))
        unlikely += int(np.count_nonzero(values < math.log(UNLIKELY)))
    if not tokens:
        raise ValueError("there are no response tokens to take the regime of")
    return Regime(tokens=tokens, loss=-total / tokens, sure=sure / tokens, unlikely=unlikely / tokens)
