"""Figures with error bars, where rounding puts a limit on the wrong side of its value."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

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
    figures.answers({"clean": [(*row, 0.5)]}, {})
    figures.foretold({"clean": [("xtf", 0.2, *row[1:], True)]}, 0.1, 0.05, "known before")


def test_differences_that_are_all_the_same_fraction_can_be_drawn() -> None:
    value, low, high = constant_effect()
    assert (low, high) == pytest.approx((VALUE, VALUE))
    figures.effects({"clean": [("xtf", value, low, high)]})


def test_bars_reach_from_the_value_to_its_limits() -> None:
    bars = figures._whiskers(np.array([0.5, 0.2]), np.array([0.4, 0.2 + 1e-16]), np.array([0.7, 0.3]))
    np.testing.assert_allclose(bars, [[0.1, 0.0], [0.2, 0.1]], atol=1e-15)
    np.testing.assert_allclose(figures._whiskers(0.5, 0.25, 1.0), [[0.25], [0.5]])


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_masks_that_the_limit_is_wrong_of_are_named_and_no_others() -> None:
    dots = [("a", 0.2, 0.9, 0.8, 1.0, True), ("b", 0.0, 0.3, 0.2, 0.4, True), ("c", 0.3, 0.0, 0.0, 0.0, False)]
    drawn = figures.foretold({"one": [*dots, ("d", 0.0, 0.0, 0.0, 0.0, False)]}, 0.1, 0.05, "known before")
    assert texts(drawn) == ["b", "c"]


def test_arms_that_a_panel_lacks_are_said_not_to_have_been_run() -> None:
    drawn = figures.answers({"a": [("xtf", 0.5, 0.4, 0.6, 0.1)], "b": []}, {"a": (0.2, 0.3)})
    assert [[text.get_text() for text in axis.texts] for axis in drawn.axes] == [[], ["not run"] * 2]
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == ["untrained", "xtf"]
    assert figures.captioned(drawn, "word " * 60).get_supxlabel().count("\n") == 2


def test_a_figure_that_a_full_disk_cuts_short_is_named_and_leaves_the_old_one(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    (tmp_path / "loss.png").write_bytes(b"before")
    with full_disk(), pytest.raises(OSError, match=r"loss\.png'$"):
        figures.save(figures.loss_curve([1, 2], [2.0, 1.0]), tmp_path, "loss")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("loss.png", b"before")]
