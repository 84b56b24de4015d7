"""The attributes of a token, a row each: all that the program knows, says and shows of one stands in its row.

A token that lacks an attribute is noise. Scorers, thresholds, masks, reports, figures, the explorer and the dashboards
read this table. A further attribute is its row here, a field for its threshold in
`xtf.config.schema.ThresholdConfig`, and, unless its score is worked out from token ids and what the pass brings anyway
(`derive`), the code in `xtf.scoring.scorers` that brings it; `register` does the first two for a program of one's own,
and for an installed package that names one as an entry point (docs/extending.md).
Nothing here imports torch, matplotlib or pyarrow.

Colours are those of Okabe and Ito, which readers with any of the common kinds of colour blindness can tell apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from xtf.config.identity import nearest
from xtf.config.schema import (
    FURTHER_THRESHOLDS,
    Attribute,
    QuantileThreshold,
    ScorerConfig,
    ThresholdConfig,
    TRVariant,
    attribute_names,
    threshold_type,
)
from xtf.runtime.imports import installed_objects

if TYPE_CHECKING:
    from xtf.data.ragged import Sequences

log = logging.getLogger(__name__)

OTHER = "#7A7A7A"  # the colour of what no attribute dropped, but the method
SEVERAL = "#444444"  # and of what several did
# Columns of a pass that only the explorer reads (`scorer.top`, `scorer.attenders`), k numbers for each response token:
# the ids that the base model gives most probability, and that; where in the response those stand that attend most to
# the token, and the attention, mean over heads, 0 where there are fewer than k.
LOOKS = ("top_id", "top_p", "from_at", "from_share")


class Brought(StrEnum):
    """What a score is worked out from: what the scoring pass has to bring."""

    attention = "attention"  # that a token receives in one layer of the forward pass; the column `ri`
    logp = "logp"  # log-probability of the token, from the forward pass; the column `logp`
    embeddings = "embeddings"  # the embedding matrix and token counts, without a forward pass; the column `tr`
    hidden = "hidden"  # the hidden state of the token within its row; for `tr` of variant=contextual, in place of these


Derive = Callable[["Sequences", Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class TokenAttribute:
    """One attribute.

    name: in `scorer.attributes`, of its settings (`threshold.<name>`), of its column of scores, and of its drops
    (`drop_<name>`). source: the column that its threshold reads. noise: -1 if low values of the source speak for noise,
    1 if high ones do. needs: what the scoring pass must bring. derive: rows and the columns brought -> its scores,
    float32, one per response token; None: the pass itself brings the column of its name.

    title, explanation: its name in words and a sentence on it. axis: its scores in words. reason: why it dropped a
    token, with {score} and {p} for the token's. mark: one letter, for text without colour. line: CSS kind of underline.
    """

    name: str
    source: str
    noise: int
    title: str
    explanation: str
    axis: str
    reason: str
    colour: str
    mark: str
    line: str = "solid"
    needs: frozenset[Brought] = frozenset()
    derive: Derive | None = None

    @property
    def label(self) -> str:
        """RI."""
        return self.name.upper()

    @property
    def drops(self) -> str:
        """The column that says which tokens it drops."""
        return f"drop_{self.name}"


def _novelty(rows: Sequences, brought: Mapping[str, np.ndarray]) -> np.ndarray:
    """KN = 1 - p (eq. 3)."""
    novelty: np.ndarray = -np.expm1(brought["logp"])
    return novelty


ATTRIBUTES: dict[str, TokenAttribute] = {
    attribute.name: attribute
    for attribute in (
        TokenAttribute(
            name="ri",
            source="ri",
            noise=-1,
            title="Reasoning importance",
            explanation="does the rest of the text lean on this token?",
            axis="attention received, log",
            reason="the text that follows attends to it too little ({score})",
            colour="#0072B2",
            mark="R",
            line="solid",
            needs=frozenset({Brought.attention}),
        ),
        TokenAttribute(
            name="kn",
            source="logp",
            noise=1,
            title="Knowledge novelty",
            explanation="does the base model not know it yet?",
            axis="1 - p",
            reason="the base model already gives it {p}",
            colour="#D55E00",
            mark="K",
            line="dotted",
            needs=frozenset({Brought.logp}),
            derive=_novelty,
        ),
        TokenAttribute(
            name="tr",
            source="tr",
            noise=-1,
            title="Task relevance",
            explanation="is it near the task's domain?",
            axis="nearness to the task's centre",
            reason="its task relevance ({score}) is in the cluster of noise",
            colour="#009E73",
            mark="T",
            line="dashed",
            needs=frozenset({Brought.embeddings}),
        ),
    )
}
PAPER = tuple(attribute.value for attribute in Attribute)  # what scorer=xtf uses


def pick(names: Iterable[str]) -> list[TokenAttribute]:
    """The attributes of these names, each once, in the table's order.

    Raises:
        ValueError: a name that the table lacks.
    """
    wanted = {str(name) for name in names}
    if unknown := sorted(wanted - ATTRIBUTES.keys()):
        raise ValueError(
            f"unknown attribute {unknown[0]!r}{nearest(unknown[0], list(ATTRIBUTES))}; known are "
            f"{', '.join(ATTRIBUTES)}"
        )
    return [attribute for name, attribute in ATTRIBUTES.items() if name in wanted]


def computed(scorer: ScorerConfig) -> list[TokenAttribute]:
    """The attributes to score: those that may drop a token, and those asked for beside them."""
    return pick([*scorer.attributes, *scorer.compute])


def brought(attributes: Iterable[TokenAttribute], scorer: ScorerConfig) -> set[Brought]:
    """What a scoring pass must bring for `attributes`."""
    needs = {need for attribute in attributes for need in attribute.needs}
    if scorer.tr.variant is TRVariant.contextual and Brought.embeddings in needs:
        needs = needs - {Brought.embeddings} | {Brought.hidden}
    return needs


def sources(names: Iterable[str]) -> set[str]:
    """The columns that the thresholds of the named attributes read."""
    return {attribute.source for attribute in pick(names)}


# --- attributes of one's own, and their thresholds -----------------------------------------------------------


def register(attribute: TokenAttribute, settings: type[Any] = QuantileThreshold) -> None:
    """Adds an attribute to the table and its settings, a dataclass, to the configuration as `threshold.<name>`.

    A program that uses the library calls this before anything else; an attribute that is here to stay is a row of the
    table above and a field of `ThresholdConfig`.

    Raises:
        ValueError: there is an attribute of that name or mark, or the name is not of letters and digits.
    """
    if not attribute.name.isalnum():  # scorer=ri_kn has two of them
        raise ValueError(f"the name of an attribute has letters and digits only, not {attribute.name!r}")
    if attribute.name in ATTRIBUTES or attribute.mark in {one.mark for one in ATTRIBUTES.values()}:
        raise ValueError(f"there is an attribute {attribute.name!r} or one with the mark {attribute.mark!r} already")
    ATTRIBUTES[attribute.name] = attribute
    if attribute.name not in attribute_names():
        FURTHER_THRESHOLDS[attribute.name] = settings


def register_installed() -> None:
    """Registers what installed packages name as entry points `xtf.attributes`, each with a `QuantileThreshold`; what
    cannot be is left out with a warning."""
    for name, attribute in installed_objects("xtf.attributes", TokenAttribute, ATTRIBUTES).items():
        try:
            if attribute.name != name:
                raise ValueError(f"it calls itself {attribute.name!r}")
            register(attribute)
        except ValueError as error:
            log.warning("xtf.attributes=%s is left out: %s", name, error)


def rule_of(config: ThresholdConfig, attribute: TokenAttribute) -> Any:
    """The attribute's settings; its defaults where `config` was made before the attribute was registered."""
    return getattr(config, attribute.name, None) or FURTHER_THRESHOLDS[attribute.name]()


def with_rule(config: ThresholdConfig, attribute: TokenAttribute, rule: Any) -> ThresholdConfig:
    """`config` with other settings for one attribute."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    if attribute.name not in values:
        config = threshold_type()(**values)
    return replace(config, **{attribute.name: rule})
