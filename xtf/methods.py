"""Every method's rule for w_t, the weight of a response token in loss = sum(w l) / Z; one dataclass each.

A *static* method computes its weights from a scored table before training (`weights`); an *online* one
computes them from the model in training, within the training step (`online_weights`). A method's fields are
the keys of its YAML file, their defaults the only ones. Nothing here imports torch: the online rules use
the methods of the tensors that they are given.

Notation: p_t is the probability of the response token t, l_t = -log p_t, and `logp` the stored log p_t
under the base model; arrays are flat over all response tokens of the table, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa

from xtf.config import Attribute, ThresholdConfig

if TYPE_CHECKING:
    import torch

    from xtf.masks import Mask


@dataclass(frozen=True)
class Scores:
    """Score columns of a table, flat over its response tokens; example i owns `offsets[i]:offsets[i + 1]`."""

    offsets: np.ndarray  # [examples + 1] int64
    columns: Mapping[str, np.ndarray]  # each [tokens]

    @classmethod
    def from_table(cls, table: pa.Table, names: frozenset[str]) -> Scores:
        """The columns `names` of a scored or masked table; `labels` becomes `dropped`, true where a label
        is -100."""
        ids, prompts = table["input_ids"].combine_chunks(), table["prompt_length"].to_numpy()
        lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
        columns = {}
        for name in sorted(names):
            if name not in table.column_names:
                raise ValueError(
                    f"the method needs the score column {name!r}; the table has {table.column_names}"
                )
            values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            if name == "labels":
                position = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                name, values = "dropped", values[position >= np.repeat(prompts, lengths)] == -100
            columns[name] = values
        return cls(np.concatenate([[0], np.cumsum(lengths - prompts)]), columns)


@dataclass(frozen=True)
class OnlineTokens:
    """What an online rule sees of N response tokens of a packed micro-batch, all detached.

    A rule that looks at tokens one by one (`pointwise`) is given them in chunks.
    """

    logp: torch.Tensor  # [N] float32, log p_t under the model in training
    stored: Mapping[str, torch.Tensor]  # score columns that the method needs, each [N]
    example: torch.Tensor  # [N] int64; tokens of one example are adjacent
    entropy: torch.Tensor | None  # [N], of the `entropy_top` most likely tokens, renormalised; nats
    prompt_attention: torch.Tensor | None  # [N], share of the token's attention that goes to the prompt


@dataclass(frozen=True)
class Method:
    """w = 1: plain supervised fine-tuning."""

    name: str = "normal"

    needs: ClassVar[frozenset[str]] = frozenset()  # score columns beside the ids
    masked: ClassVar[bool] = False  # reads the mask of scorer and threshold
    online: ClassVar[bool] = False
    pointwise: ClassVar[bool] = True  # an online weight depends on its own token alone
    entropy_top: ClassVar[int] = 0
    prompt_attention: ClassVar[bool] = False
    epochs_factor: ClassVar[int] = 1

    def weights(self, scores: Scores, seed: int) -> np.ndarray:
        """w_t of every response token, float32 [tokens]; 0 drops the token's loss."""
        return np.ones(int(scores.offsets[-1]), np.float32)

    def online_weights(self, tokens: OnlineTokens) -> torch.Tensor:
        """w_t of the tokens of a micro-batch, [N], without gradient."""
        raise NotImplementedError(f"{self.name} is not an online method")


@dataclass(frozen=True)
class XTF(Method):
    """Drop a token that lacks any of the three attributes (arXiv 2602.14536): the stored mask decides."""

    name: str = "xtf"
    masked: ClassVar[bool] = True


@dataclass(frozen=True)
class Random(Method):
    """Control: in each example drop as many tokens as the mask of scorer and threshold does, at random."""

    name: str = "random"
    needs: ClassVar[frozenset[str]] = frozenset({"labels"})
    masked: ClassVar[bool] = True

    def weights(self, scores: Scores, seed: int) -> np.ndarray:
        chance = np.random.default_rng([seed, RANDOM_STREAM]).random(int(scores.offsets[-1]))
        return keep_all_but_lowest(chance, scores)


RANDOM_STREAM = 1  # keeps the random mask apart from the training order of the same seed


def keep_all_but_lowest(values: np.ndarray, scores: Scores) -> np.ndarray:
    """Weight 0 for the lowest values of each example, as many as the matched mask drops there; ties by
    position."""
    lengths = np.diff(scores.offsets)
    example = np.repeat(np.arange(len(lengths)), lengths)
    dropped = np.bincount(example, scores.columns["dropped"], len(lengths))
    order = np.lexsort((values, example))
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(scores.offsets[:-1], lengths)
    return (rank >= dropped[example]).astype(np.float32)


def make_mask(
    method: Method, scored: pa.Table, threshold: ThresholdConfig, attributes: Sequence[Attribute], seed: int
) -> Mask:
    """The training table of a method: its labels (and weights) from the scores that it `needs`.

    An online method trains every response token that its rule weighs; a masked one starts from the mask of
    `threshold` over `attributes`.
    """
    from xtf.masks import build_mask, weights_to_labels

    mask = build_mask(scored, threshold, attributes if method.masked else ())
    if type(method).weights is Method.weights:
        return mask
    scores = Scores.from_table(mask.table, method.needs)
    weights = method.weights(scores, seed)
    return weights_to_labels(scored, np.split(weights, scores.offsets[1:-1]))


METHODS: dict[str, type[Method]] = {"normal": Method, "xtf": XTF, "random": Random}
