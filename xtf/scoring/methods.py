"""Every method's rule for w_t, the weight of a response token in loss = sum(w l) / Z; one dataclass each.

A *static* method computes its weights from a scored table before training (`weights`); an *online* one
computes them from the model in training, within the training step (`online_weights`). A method's fields are
the keys of its YAML file, their defaults the only ones. Nothing here imports torch: the online rules use
the methods of the tensors that they are given.

Notation: p_t is the probability of the response token t, l_t = -log p_t, and `logp` the stored log p_t
under the base model; arrays are flat over all response tokens of the table, in its order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from xtf.config.checks import check_ranges
from xtf.config.schema import Config, ConfigError, Protect, ThresholdConfig, ThresholdEnd, place, within
from xtf.data.augment import augment
from xtf.data.batches import ROWS_AT_ONCE, Batches, Hashes
from xtf.data.provenance import COLUMN
from xtf.data.ragged import IGNORED, PROMPT_TR, ROW_WEIGHTS, SOURCE, Responses
from xtf.data.rows import ID_FIELDS, Rows, ids_of, refuse_repeated, row_id
from xtf.runtime.imports import installed_classes
from xtf.scoring.attributes import ATTRIBUTES, LOOKS, register_installed
from xtf.scoring.masks import Mask, StreamedMask, WeighedMask, build_mask, weights_to_labels

if TYPE_CHECKING:
    import torch

    from xtf.data.examples import Example


@dataclass(frozen=True)
class OnlineTokens:
    """What an online rule sees of N response tokens of a packed micro-batch, all without gradient.

    A `pointwise` rule is given them in chunks, an `over_step` one those of the whole optimizer step, on all devices.
    """

    logp: torch.Tensor  # [N] float32, log p_t under the model in training
    weights: torch.Tensor  # [N] float32, the stored ones
    stored: Mapping[str, torch.Tensor]  # the score columns that the method needs, each [N]
    example: torch.Tensor  # [N] int64; tokens of one example are adjacent
    progress: float  # share of the training steps done, 0 at the first and 1 at the last
    entropy: torch.Tensor | None = None  # [N] nats, of the `entropy_top` most likely tokens, renormalised
    prompt_attention: torch.Tensor | None = None  # [N] share of the token's own attention that goes to the prompt


@dataclass
class Method:
    """normal: w = 1, plain supervised fine-tuning."""

    name: str = "normal"

    needs: ClassVar[frozenset[str]] = frozenset()  # columns: logp, ref_logp, logp_unconditional; planted
    masked: ClassVar[bool] = False  # whether `weights` reads the mask of the run's scorer and threshold
    online: ClassVar[bool] = False
    pointwise: ClassVar[bool] = True  # an online weight depends on its own token alone
    over_step: ClassVar[bool] = False  # an online weight depends on all tokens of the optimizer step
    of_the_model: ClassVar[bool] = True  # an online weight depends on the model in training; else validation has it too
    divided_by_all: ClassVar[bool] = False  # divisor=kept counts the tokens to which the online rule gives 0 as well
    entropy_top: ClassVar[int] = 0
    prompt_attention: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False  # trains on one part of the rows after the other (`parts`)
    own_rows: ClassVar[bool] = False  # the training rows are tokens with their weights: `own_table` reads them
    epochs_factor: ClassVar[int] = 1
    version: ClassVar[int] = 1  # raised when the rule changes, so that runs of the old one are told from new ones

    def __post_init__(self) -> None:
        check_ranges(self, "method.")

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        """w_t of every response token, float32 [tokens]; 0 drops the token's loss."""
        return np.ones(scores.tokens, np.float32)

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        """A factor to the stored w_t of the tokens of a micro-batch, [N], without gradient."""
        raise NotImplementedError(f"{self.name} is not an online method")

    # -- hooks: what a method needs before or beside training ------------------------------------------------------

    def check(self, config: Config) -> None:
        """Refuse settings of the run that the method cannot work with.

        Raises:
            ConfigError: naming the key and the remedy.
        """
        if "planted" in self.needs and not config.plant.share:
            raise ConfigError(f"method={self.name} drops the noise that was planted: set plant.share, e.g. 0.3")

    @property
    def changes_rows(self) -> bool:
        """Whether `examples` gives other rows than it was given, whose scores are then the method's own."""
        return type(self).examples is not Method.examples

    def examples(self, examples: Sequence[Example]) -> Sequence[Example]:
        """The training examples that the method makes of those of the task."""
        return examples

    def own_table(self, rows: Rows) -> Iterator[pa.RecordBatch]:
        """The table that `stream` is given, where the method has `own_rows`, in the place of encoded examples.

        Raises:
            ValueError: with the file and the row that the method cannot take.
        """
        raise NotImplementedError(f"{self.name} has no rows of its own")

    def mask(self, scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[str], seed: int) -> Mask:
        """The training table: labels, and weights other than 0 and 1, from the columns that the method `needs`."""
        mask = build_mask(scored, threshold, attributes if self.masked else ())
        names = set(self.needs) | ({"labels"} if self.masked else set())
        if self.masked and threshold.end is ThresholdEnd.kept:
            names.add("end")
        if self.masked and threshold.protect is not Protect.none:
            names.add("protected")
        if self.masked and ROW_WEIGHTS in scored.column_names:
            names.add(ROW_WEIGHTS)
        scores = Responses.from_table(mask.table, names)
        weights = np.split(self.weights(scores, seed), scores.offsets[1:-1])
        return weights_to_labels(scored, weights, threshold if self.masked else None)

    def stream(
        self, rows: Batches, threshold: ThresholdConfig, attributes: Sequence[str], seed: int
    ) -> Mask | StreamedMask | WeighedMask:
        """`mask` in bounded memory where the weights of a response do not depend on other rows'; else in memory."""
        kind = type(self)
        if kind.mask is Method.mask and kind.weights is Method.weights and not self.masked:  # w = 1
            return StreamedMask(rows, ThresholdConfig(end=ThresholdEnd.scored), ())
        return self.mask(rows.table(), threshold, attributes, seed)

    def parts(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Rows of the parts that are trained one after the other, each cleaned (`clean`) by the model as the parts
        before left it. `sources`: of each row, the example that it was made of."""
        raise NotImplementedError(f"{self.name} does not train in parts")

    def clean(self, scores: Responses) -> np.ndarray:
        """w_t of the response tokens of a part behind the first, given `logp` and the trained model's `ref_logp`."""
        raise NotImplementedError(f"{self.name} does not train in parts")


@dataclass
class XTF(Method):
    """Drop a token that lacks any of the three attributes (arXiv 2602.14536)."""

    name: str = "xtf"
    masked: ClassVar[bool] = True

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        return (~scores.columns["dropped"]).astype(np.float32)

    def mask(self, scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[str], seed: int) -> Mask:
        return build_mask(scored, threshold, attributes)  # with the statistics of each attribute

    def stream(
        self, rows: Batches, threshold: ThresholdConfig, attributes: Sequence[str], seed: int
    ) -> Mask | StreamedMask | WeighedMask:
        if type(self).mask is XTF.mask:
            return StreamedMask(rows, threshold, attributes)
        return super().stream(rows, threshold, attributes, seed)


@dataclass
class DoubleEpochs(Method):
    """w = 1 for twice the epochs: what more of the same training would give (arXiv 2602.14536)."""

    name: str = "double_epochs"
    epochs_factor: ClassVar[int] = 2


@dataclass
class Given(Method):
    """The data's own `labels` or `weights` (see `given_table`)."""

    name: str = "given"
    own_rows: ClassVar[bool] = True

    def check(self, config: Config) -> None:
        if config.plant.share:
            raise ConfigError(
                f"plant.share={config.plant.share}: method=given trains a token table as it is; unset one"
            )

    def own_table(self, rows: Rows) -> Iterator[pa.RecordBatch]:
        return given_table(rows)

    def mask(self, scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[str], seed: int) -> Mask:
        found = WeighedMask(Batches.of(scored))
        return Mask(found.batches.table(), found.stats)

    def stream(
        self, rows: Batches, threshold: ThresholdConfig, attributes: Sequence[str], seed: int
    ) -> Mask | StreamedMask | WeighedMask:
        return WeighedMask(rows)


# -- controls ------------------------------------------------------------------------------------------------


@dataclass
class Matched(Method):
    """A control that drops as many tokens of each example as the mask of scorer and threshold, but other ones.

    The appended end of a response, which the mask keeps unless threshold.end=scored, is kept here too,
    and so are the tokens that threshold.protect names.
    """

    match: str = "xtf"  # the method whose mask gives the number: the one that masks by scorer and threshold
    masked: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.match != "xtf":
            raise ConfigError(f"method.match={self.match}: only the mask of xtf can be matched")

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        untrained = scores.columns.get(ROW_WEIGHTS, np.ones(scores.tokens)) == 0
        dropped = np.bincount(scores.example, scores.columns["dropped"] & ~untrained, len(scores.lengths))
        order = np.where(untrained, np.inf, self.order(scores, seed))
        for name in {"end", "protected"} & scores.columns.keys():
            # What the mask leaves alone comes last: it drops no more than the others.
            order = np.where(scores.columns[name], np.inf, order)
        rank = scores.rank(order)
        return (rank >= dropped[scores.example]).astype(np.float32)

    def order(self, scores: Responses, seed: int) -> np.ndarray:
        """[tokens]; the lowest values of each example are dropped."""
        raise NotImplementedError


@dataclass
class Random(Matched):
    """Control: drop tokens uniformly at random."""

    name: str = "random"

    def order(self, scores: Responses, seed: int) -> np.ndarray:
        return np.random.default_rng([seed, RANDOM_STREAM]).random(scores.tokens)


RANDOM_STREAM = 2**31  # keeps the random mask apart from the training order, whose streams are epochs


@dataclass
class LowLoss(Matched):
    """Control: drop the tokens with the lowest loss under the base model."""

    name: str = "low_loss"
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})

    def order(self, scores: Responses, seed: int) -> np.ndarray:
        return -scores.columns["logp"]


@dataclass
class HighLoss(Matched):
    """Control: drop the tokens with the highest loss under the base model."""

    name: str = "high_loss"
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})

    def order(self, scores: Responses, seed: int) -> np.ndarray:
        return scores.columns["logp"]


@dataclass
class Decile(Method):
    """Probe: train on one tenth of all response tokens by base probability, or on all but it.

    Decile 1 holds the least likely tokens of the training set, 10 the most likely; ties go by position.
    """

    name: str = "decile"
    decile: int = within(1, 1, 10)  # which tenth is trained, 1: the least probable tokens
    invert: bool = False  # train on the other nine
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        first, last = ((self.decile - offset) * scores.tokens // 10 for offset in (1, 0))
        weights = np.full(scores.tokens, float(self.invert), np.float32)
        weights[np.argsort(scores.columns["logp"], kind="stable")[first:last]] = not self.invert
        return weights


@dataclass
class Oracle(Method):
    """Control: drop exactly the noise that `plant` planted, the most that any filter of labels could find.

    A token that holds both planted and clean text goes too. The noise stays in the input.
    """

    name: str = "oracle"
    needs: ClassVar[frozenset[str]] = frozenset({"planted"})

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        return (scores.columns["planted"] == 0).astype(np.float32)


# -- weights from the base model -----------------------------------------------------------------------------


@dataclass
class PriFT(Method):
    """w = p of the token under the base model before training (arXiv 2606.09396): the opposite of KN.

    From the paper: the weight, which is DFT's with a frozen model in place of the one in training, and the divisor,
    in the authors' code the tokens that carry loss, not the sum of their weights; so it is here (`tuning.divisor`). As
    there, the appended end of a response is weighed like any token. Not built: their second rule, which keeps a token
    where it and all less likely ones together hold half of the probability; a stored `logp` does not tell that.
    """

    name: str = "prift"
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        return np.exp(scores.columns["logp"]).astype(np.float32)


# -- data: which examples ------------------------------------------------------------------------------------


@dataclass
class DataFiltering(Method):
    """Keep the examples whose prompt helps least: highest IFD = ppl(O | I) / ppl(O) below 1 (arXiv
    2308.12032).

    An IFD of 1 or more means that the prompt hinders; the authors leave such examples out as well.
    """

    name: str = "data_filtering"
    keep: float = within(0.5, 0, 1, excluding=(0,))  # share of the examples
    needs: ClassVar[frozenset[str]] = frozenset({"logp", "logp_unconditional"})

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        examples = len(scores.lengths)
        conditional, alone = (
            np.bincount(scores.example, scores.columns[name], examples) / np.maximum(scores.lengths, 1)
            for name in ("logp", "logp_unconditional")
        )
        log_ifd = alone - conditional
        best = np.argsort(-log_ifd, kind="stable")
        best = best[log_ifd[best] < 0][: round(self.keep * examples)]
        return np.isin(scores.example, best).astype(np.float32)


@dataclass
class DataAugmentation(Method):
    """w = 1 on the examples and on paraphrases of their prompts with the same response (arXiv 2302.13007).

    The authors' paraphrases are ChatGPT's; `xtf.data.augment` reads any from a file, or rewords plainly.
    """

    name: str = "data_augmentation"
    path: str | None = place()  # JSON lines with `example_id` and `prompt`; None: a few fixed rewordings
    factor: int = within(2, 1, 1000)  # examples afterwards per example before, at most

    def examples(self, examples: Sequence[Example]) -> list[Example]:
        return augment(examples, self.factor, Path(self.path) if self.path else None)


# -- excess loss over a reference model ----------------------------------------------------------------------


@dataclass
class Referenced(Method):
    """A method that compares the loss with a reference model's (`ref_logp`), an artifact of its own."""

    keep: float = within(0.6, 0, 1, excluding=(0,))  # share of the tokens
    reference: str | None = place()  # a model's folder or id; None: the base model, fine-tuned on a warm-up subset
    warmup: float = within(0.2, 0, 1, excluding=(0,))  # share of the training examples in that subset

    def warmup_rows(self, rows: int) -> np.ndarray:
        """Rows that the reference model is trained on, ascending; the same for every seed of a run."""
        chosen = np.random.default_rng(WARMUP_SEED).permutation(rows)[: max(1, round(self.warmup * rows))]
        return np.sort(chosen)


WARMUP_SEED = 2502_01968


@dataclass
class SLM(Referenced):
    """Online: keep the tokens with the largest excess loss l - l_ref of the whole optimizer step (Rho-1, arXiv
    2404.07965)."""

    name: str = "slm"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})
    online: ClassVar[bool] = True
    pointwise: ClassVar[bool] = False
    over_step: ClassVar[bool] = True

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        excess = tokens.stored["ref_logp"] - tokens.logp
        by_row = tokens.example.argsort(stable=True)  # so that ties do not depend on the packing
        best = excess[by_row].argsort(descending=True, stable=True)
        chosen = by_row[best[: max(1, round(self.keep * len(excess)))]]
        weights = excess.new_zeros(len(excess))
        weights[chosen] = 1.0
        return weights


@dataclass
class TokenCleaning(Referenced):
    """Keep the tokens with the largest l_base - l_ref of the whole set (arXiv 2502.01968)."""

    name: str = "token_cleaning"
    needs: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        return top_share(excess_loss(scores), self.keep)


@dataclass
class SelfEvolving(Method):
    """Token cleaning whose reference model evolves (arXiv 2502.01968).

    The model is trained on a warm-up part of the examples. Then, subset by subset, the model trained so far is the
    reference that cleans the subset, and goes on training on what is left of it.
    """

    name: str = "token_cleaning_evolving"
    keep: float = within(0.6, 0, 1, excluding=(0,))  # share of each subset's tokens
    warmup: float = within(0.2, 0, 1, excluding=(0,))  # share of the training examples that are trained whole, first
    subsets: int = within(5, 1, 1000)  # parts that are cleaned, behind the warm-up
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})
    in_parts: ClassVar[bool] = True

    def parts(self, sources: Sequence[str]) -> list[np.ndarray]:
        """Rows of the warm-up part and of each subset, in training order; the same for every seed of a run.

        They are drawn by source, so that a part is not cleaned by a model that has been trained on its rows' siblings.
        """
        numbers = {source: number for number, source in enumerate(dict.fromkeys(sources))}
        order = np.random.default_rng(WARMUP_SEED).permutation(len(numbers))
        first = max(1, round(self.warmup * len(numbers)))
        parts = (order[:first], *np.array_split(order[first:], self.subsets))
        of_row = np.array([numbers[source] for source in sources])
        return [np.flatnonzero(np.isin(of_row, part)) for part in parts if len(part)]

    def clean(self, scores: Responses) -> np.ndarray:
        """w_t of a subset's response tokens, given `logp` and the evolving model's `ref_logp`."""
        return top_share(excess_loss(scores), self.keep)


def excess_loss(scores: Responses) -> np.ndarray:
    """l_base - l_ref of every token: how much the reference model's training taught it."""
    excess: np.ndarray = scores.columns["ref_logp"] - scores.columns["logp"]
    return excess


def top_share(values: np.ndarray, share: float) -> np.ndarray:
    """1 for the `share` largest values, float32; ties go by position."""
    weights = np.zeros(len(values), np.float32)
    weights[np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]] = 1
    return weights


@dataclass
class Forgetting(Referenced):
    """Learn the tokens with the largest l_base - l_ref, unlearn the rest (arXiv 2508.04329).

    mean l over the top `keep` - lambda * mean l over the rest; lambda grows linearly from 0 to `strength`.
    The two means are taken with the sizes of both groups in the whole set, not in each step.
    """

    name: str = "forgetting"
    keep: float = within(0.7, 0, 1, excluding=(0,))  # share of all tokens that are learnt
    strength: float = within(0.25, 0, 1e6)  # lambda at the end of training
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})
    online: ClassVar[bool] = True
    of_the_model: ClassVar[bool] = False

    def weights(self, scores: Responses, seed: int) -> np.ndarray:
        top = top_share(excess_loss(scores), self.keep)
        rest = scores.tokens - top.sum()
        return np.where(top > 0, 1.0, -top.sum() / max(rest, 1)).astype(np.float32)

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        learned = (tokens.weights > 0).to(tokens.weights.dtype)
        return learned + (1 - learned) * (self.strength * tokens.progress)


# -- online: from the model in training ----------------------------------------------------------------------


@dataclass
class SSToken(Method):
    """Keep the tokens of each example that training has moved and that look at the prompt (arXiv 2510.18250).

    Score: gamma * minmax(l_base - l), within the example, + (1 - gamma) * the share of the token's own attention (last
    layer, mean of the heads) that goes to the prompt. The ceil(keep * n) best of an example's n tokens are kept.
    """

    name: str = "sstoken"
    gamma: float = within(0.5, 0, 1)  # what the moved loss counts in the score, against attention
    keep: float = within(0.6, 0, 1, excluding=(0,))  # share of the example's tokens
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"logp"})
    online: ClassVar[bool] = True
    pointwise: ClassVar[bool] = False
    prompt_attention: ClassVar[bool] = True

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        assert tokens.prompt_attention is not None
        excess = tokens.logp - tokens.stored["logp"]
        weights = excess.new_zeros(len(excess))
        start = 0
        for length in tokens.example.unique_consecutive(return_counts=True)[1].tolist():
            part = slice(start, start + length)
            low, high = excess[part].min(), excess[part].max()
            moved = (excess[part] - low) / (high - low).clamp(min=1e-12)
            score = self.gamma * moved + (1 - self.gamma) * tokens.prompt_attention[part]
            chosen = score.argsort(descending=True, stable=True)[: math.ceil(self.keep * length - 1e-9)]
            weights[start + chosen] = 1.0
            start += length
        return weights


@dataclass
class DFT(Method):
    """Dynamic fine-tuning: w = p_t (arXiv 2508.05629)."""

    name: str = "dft"
    online: ClassVar[bool] = True

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        return tokens.logp.exp()


@dataclass
class EAFT(Method):
    """Entropy-adaptive fine-tuning: w = (H / 3)^alpha, H of the 20 most likely tokens (arXiv 2601.02151)."""

    name: str = "eaft"
    alpha: float = within(1.0, 0, 100)  # 1: in proportion to the entropy
    online: ClassVar[bool] = True
    entropy_top: ClassVar[int] = 20

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        assert tokens.entropy is not None
        return (tokens.entropy / 3).clamp(min=0) ** self.alpha


@dataclass
class ProFit(Method):
    """Keep p_t >= tau (arXiv 2601.09195); the sum is divided by all response tokens, as the authors' code does."""

    name: str = "profit"
    tau: float = within(0.1, 0, 1, excluding=(1,))  # the probability from which on a token is trained
    version: ClassVar[int] = 2
    online: ClassVar[bool] = True
    divided_by_all: ClassVar[bool] = True

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        return (tokens.logp >= (math.log(self.tau) if self.tau else -math.inf)).to(tokens.logp.dtype)


# -- methods by name, and their training tables --------------------------------------------------------------


METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Method,
        DoubleEpochs,
        Random,
        LowLoss,
        HighLoss,
        Decile,
        Oracle,
        PriFT,
        DataFiltering,
        DataAugmentation,
        SLM,
        TokenCleaning,
        SelfEvolving,
        SSToken,
        DFT,
        EAFT,
        ProFit,
        Forgetting,
        Given,
        XTF,
    )
}
METHODS |= installed_classes("xtf.methods", Method, METHODS)  # of other packages
register_installed()  # behind them, for a module that has a method and an attribute imports this one


# What method=given reads of a row, beside its id.
GIVEN = ("input_ids", "labels", "weights", "prompt_length", "end_tokens", SOURCE, "attention_mask", "position_ids")
# Columns of scored and masked tables that say how their labels and weights came about; these count it already.
TOLD = (ROW_WEIGHTS, "dropped", "planted", "protected", "ref_logp", "logp_unconditional", PROMPT_TR, COLUMN, *LOOKS)


def given_table(rows: Rows) -> Iterator[pa.RecordBatch]:
    """A user's own token rows as they are: `input_ids`, and `labels` (-100 without loss) or `weights`, a number for
    each response token, behind `prompt_length` tokens of prompt; of labels and weights both count.

    The columns are `example_id`, `input_ids`, `prompt_length`, `weights` list<float32> (N,), 0 where there is no label,
    `end_tokens`, `SOURCE`, and the scores that the first row has. `prompt_length` defaults to the place of the first
    label.

    Raises:
        ValueError: with file and row: a field that would not be heeded, lists that are none of numbers or of other
            lengths, an id that another row has, a label within the prompt or another than the token that it stands at,
            padding, several documents.
    """
    first = rows.rows[0]
    scores = list(
        dict.fromkeys(name for one in ATTRIBUTES.values() for name in (one.name, one.source) if name in first)
    )
    schema = pa.schema(
        {
            "example_id": pa.string(),
            "input_ids": pa.list_(pa.int32()),
            "prompt_length": pa.int32(),
            "end_tokens": pa.int8(),
            "weights": pa.list_(pa.float32()),
            SOURCE: pa.string(),
            **{name: pa.list_(pa.float32()) for name in scores},
        }
    )
    numbered, ids = zip(rows.rows, rows.numbers, strict=True), Hashes()
    while some := list(itertools.islice(numbered, ROWS_AT_ONCE)):
        read = []
        for row, number in some:
            try:
                read.append({"example_id": row_id(row, number), **_given(row, scores)})
            except ValueError as error:
                raise ValueError(f"{rows.source}: row {number}: {error}") from error
            read[-1][SOURCE] = str(row.get(SOURCE) or read[-1]["example_id"])
        ids.extend(hash(row["example_id"]) for row in read)
        yield pa.RecordBatch.from_pylist(read, schema)
    refuse_repeated(rows.source, ids, lambda: map(row_id, rows.rows, rows.numbers))


def _given(row: Mapping[str, Any], scores: Sequence[str]) -> dict[str, Any]:
    """What training reads of a row of `given_table`."""
    if "input_ids" not in row or not ("labels" in row or {"weights", "prompt_length"} <= row.keys()):
        raise ValueError(
            "method=given wants token ids: input_ids with labels (-100 where nothing is trained), or with "
            f"prompt_length and weights (a number for each token behind the prompt); the row has {', '.join(row)}"
        )
    told = {*GIVEN, *ID_FIELDS, *TOLD}.union(*((one.name, one.source, one.drops) for one in ATTRIBUTES.values()))
    for name, value in row.items():
        if name == "drop_probability":
            raise ValueError(
                "drop_probability would make labels differ from epoch to epoch: method=given trains the same ones in "
                "each; leave the column out"
            )
        if name not in told and not isinstance(value, str | None):  # a text cannot say what is trained
            raise ValueError(
                f"the field {name!r} is not read by method=given, which reads labels, weights, prompt_length: leave it "
                "out, or put what it says into weights"
            )
    ids = ids_of(row, "input_ids")
    _check_one_document(row, len(ids))
    labels = ids_of(row, "labels", least=IGNORED) if "labels" in row else ids
    if len(labels) != len(ids):
        raise ValueError(f"labels has {len(labels)} entries, input_ids has {len(ids)}")
    trained = labels != IGNORED
    if (other := trained & (labels != ids)).any():
        at = int(np.argmax(other))
        raise ValueError(
            f"the label at {at} is {labels[at]}, the token there is {ids[at]}; labels are input_ids at their own place "
            "(not shifted), or -100"
        )
    first = int(np.argmax(trained)) if trained.any() else len(ids)
    prompt = _count(row, "prompt_length", len(ids)) if "prompt_length" in row else first
    if first < prompt and "labels" in row:
        raise ValueError(f"the label at {first} lies within the prompt of {prompt} tokens")
    kept, response = trained[prompt:], len(ids) - prompt
    return {
        "input_ids": ids,
        "prompt_length": prompt,
        "end_tokens": _count(row, "end_tokens", response) if "end_tokens" in row else 0,
        "weights": _numbers(row, "weights", response) * kept if "weights" in row else kept.astype(np.float32),
        **{name: _numbers(row, name, response) for name in scores},
    }


def _check_one_document(row: Mapping[str, Any], length: int) -> None:
    for name, wanted, why in (
        ("attention_mask", np.ones(length), "is not 1 throughout: padding and packed documents are not read: leave the "
         "pads out, one document a row"),
        ("position_ids", np.arange(length), "do not count from 0: leave them out, one document a row"),
    ):  # fmt: skip
        if name in row and not np.array_equal(ids_of(row, name, switches=name == "attention_mask"), wanted):
            raise ValueError(f"{name} {why}")


def _count(row: Mapping[str, Any], name: str, most: int) -> int:
    value = row[name]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 0 to {most}, not {value!r}")
    return value


def _numbers(row: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    """A field that has a number for each response token, float32 (N,)."""
    values = row[name]
    if not isinstance(values, list | tuple) or not {type(value) for value in values} <= {int, float}:
        raise ValueError(f"{name} must be a flat list of numbers")
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} entries, the response has {length} tokens, all behind the prompt")
    most = float(np.finfo(np.float32).max)
    if any(not -most <= value <= most for value in values):
        raise ValueError(f"{name} holds what is no finite number in 32 bits")
    return np.array(values, np.float32)
