"""What each attribute drops as its threshold moves: the curves of the report and the sliders of the explorer.

Nothing is approximated: every position of a slider is a threshold setting that was fitted and applied by the
code that makes masks. Because each rule only ever drops more as its setting moves one way, one number per
token, the first position that drops it, holds the outcome at all positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xtf.config.schema import KNRule, RIRule, ThresholdConfig
from xtf.data.ragged import Responses
from xtf.scoring.attributes import TokenAttribute, rule_of, with_rule
from xtf.scoring.thresholds import fit

NEVER = 255  # "first position that drops this token" of a token that none drops


@dataclass(frozen=True)
class Sweep:
    """One attribute over a range of settings, from the one that drops least to the one that drops most.

    setting: its key ("threshold.kn.pcp"); values: the settings; chosen: the place of the one in use;
    cuts: each setting's thresholds in numbers (`Cuts.to_dict`); first: uint8 (N,), the place of the first
    setting that drops the token, `NEVER` if none does.
    """

    setting: str
    values: tuple[float, ...]
    chosen: int
    cuts: tuple[dict[str, Any], ...]
    first: np.ndarray

    def dropped(self, place: int) -> np.ndarray:
        """Which tokens the setting `values[place]` drops; bool (N,)."""
        return self.first <= place

    def shares(self) -> np.ndarray:
        """Share of the tokens that each setting drops, float64 (len(values),)."""
        counts = np.bincount(self.first, minlength=NEVER + 1)
        return np.cumsum(counts)[: len(self.values)] / len(self.first)


def sweep(attribute: TokenAttribute, config: ThresholdConfig, dataset: Responses, shown: Responses) -> Sweep:
    """Fits every setting of the attribute's slider to `dataset` and applies it to `shown`, a part of it."""
    name, values = settings(attribute, config)
    rule = rule_of(config, attribute)
    dataset, _ = _ordered(dataset, attribute)
    shown, order = _ordered(shown, attribute)
    first = np.full(len(order), NEVER, dtype=np.uint8)
    cuts = []
    for place, value in enumerate(values):
        moved = with_rule(config, attribute, replace(rule, **{name: value}))
        fitted = fit([dataset], moved, [attribute.name])
        dropped = fitted.drop(attribute, shown)
        assert dropped[first != NEVER].all(), f"{attribute.name}: {name}={value} keeps what an earlier setting drops"
        first[dropped & (first == NEVER)] = place
        cuts.append(fitted.to_dict()[attribute.name])
    in_place = np.empty_like(first)
    in_place[order] = first
    chosen = values.index(getattr(rule, name))
    return Sweep(f"threshold.{attribute.name}.{name}", tuple(values), chosen, tuple(cuts), in_place)


def _ordered(block: Responses, attribute: TokenAttribute) -> tuple[Responses, np.ndarray]:
    """The block with each example's tokens by score, ties in order, and where each came from.

    Every threshold sorts the scores of an example; sorting what is sorted costs next to nothing.
    """
    values = block.columns[attribute.source]
    order = block.order(values)
    return Responses(block.lengths, {attribute.source: values[order]}, block.prompt_tr), order


def settings(attribute: TokenAttribute, config: ThresholdConfig) -> tuple[str, list[float]]:
    """The setting that an attribute's rule turns on, and the values to try, the one in use among them."""
    rule = rule_of(config, attribute)
    name, values, descending = _range(rule)
    values = sorted({*values, getattr(rule, name)}, reverse=descending)
    assert len(values) < NEVER
    return name, values


def _range(rule: Any) -> tuple[str, Sequence[float], bool]:
    if rule.rule.value == "quantile":
        return "q", [q for q in _steps(0.0, 0.6, 0.01) if 0 <= q + rule.shift <= 1], False
    if rule.rule is RIRule.iqr and not rule.shift:
        return "c", _steps(0.0, 3.0, 0.1), True
    if rule.rule is KNRule.cutoff:
        return "pcp", [*_steps(0.5, 0.8, 0.01), *_steps(0.8, 0.995, 0.005), 0.999, 0.9999], True
    # TR's clusters have no knob of one direction. Nor has RI's c beside a shift, which ranks tokens by their distance
    # from the fence of their example: another c gives another order.
    return "shift", _steps(-0.2, 0.2, 0.01), False


def _steps(start: float, stop: float, step: float) -> list[float]:
    return [round(start + place * step, 6) for place in range(round((stop - start) / step) + 1)]
