"""Figures with error bars, where rounding puts a limit on the wrong side of its value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from xtf.graders.metrics import Metric
from xtf.reporting import figures
from xtf.reporting.intervals import effect

VALUE = 1 / 3
LIMITS = [(VALUE, VALUE), (np.nextafter(VALUE, 1), VALUE), (VALUE, np.nextafter(VALUE, 0))]  # low, high


def constant_effect() -> tuple[float, float, float]:
    found = effect(np.full((2, 100), VALUE))
    return found.value, *found.interval()


@pytest.mark.parametrize(("low", "high"), LIMITS)
def test_a_limit_a_hair_beyond_its_value_makes_a_bar_without_length(low: float, high: float) -> None:
    row = ("xtf", VALUE, low, high)
    figures.accuracy([row])
    figures.pass_at({"pass@1": {"xtf": row[1:]}})
    figures.effects({"clean": [row]})
    figures.against_tokens({"clean": [("xtf", 1e4, *row[1:])]})
    figures.deciles({"alone": [(1, *row[1:]), (2, 0.5, 0.4, 0.6)]}, {})
    figures.detection({"math": {"KN": [(0.3, Metric(VALUE, low, high, 9, ""))]}})


def test_differences_that_are_all_the_same_fraction_can_be_drawn() -> None:
    value, low, high = constant_effect()
    assert (low, high) == pytest.approx((VALUE, VALUE))
    figures.effects({"clean": [("xtf", value, low, high)]})


def test_bars_reach_from_the_value_to_its_limits() -> None:
    bars = figures._whiskers(np.array([0.5, 0.2]), np.array([0.4, 0.2 + 1e-16]), np.array([0.7, 0.3]))
    np.testing.assert_allclose(bars, [[0.1, 0.0], [0.2, 0.1]], atol=1e-15)
    np.testing.assert_allclose(figures._whiskers(0.5, 0.25, 1.0), [[0.25], [0.5]])


def test_a_figure_that_a_full_disk_cuts_short_is_named_and_leaves_the_old_one(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    (tmp_path / "loss.png").write_bytes(b"before")
    with full_disk(), pytest.raises(OSError, match=r"loss\.png'$"):
        figures.save(figures.loss_curve([1, 2], [2.0, 1.0]), tmp_path, "loss")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("loss.png", b"before")]
