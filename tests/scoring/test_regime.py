"""The regime figures, worked by hand."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest

from xtf.scoring.regime import regime


def scored(logp, **more):
    return pa.table({"logp": pa.array(logp, pa.list_(pa.float32())), **more})


def test_figures_worked_by_hand():
    parts = [scored([[math.log(0.96), math.log(0.5)], [math.log(0.05)]]), scored([[math.log(0.94)]])]
    found = regime(pa.concat_tables(parts).to_batches())
    assert (found.tokens, found.sure, found.unlikely) == (4, 0.25, 0.25)
    assert found.loss == pytest.approx(-math.log(0.96 * 0.5 * 0.05 * 0.94) / 4, rel=1e-6)
    assert str(found) == (
        "base model on the responses: 0.95 nats a token, 25 % of 4 tokens with p > 0.95, 25 % with p < 0.1"
    )


def test_tokens_that_rows_do_not_train_are_left_out():
    weights = pa.array([[1.0, 0.0], [0.5]], pa.list_(pa.float32()))
    found = regime(scored([[math.log(0.96), -9.0], [math.log(0.5)]], row_weights=weights).to_batches())
    assert (found.tokens, found.sure, found.unlikely) == (2, 0.5, 0.0)


def test_no_response_tokens_are_refused():
    with pytest.raises(ValueError, match="no response tokens"):
        regime(scored([[]]).to_batches())
