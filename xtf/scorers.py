"""Token scores: how much the text leans on a token (RI), how new it is (KN), how near the task it lies (TR).

All three come from one forward pass of the base model over length-sorted batches:

- RI: attention that the token receives in one layer. The pass runs PyTorch's fused attention everywhere; in the scored
  layer alone the attention weights are formed a second time, a chunk of queries at a time, and only their sums kept.
- KN: 1 - p of the token. The LM head runs only where a response token is predicted, a chunk of positions at a time.
- TR: a table from token id to score. It needs the embedding matrix and the token counts, and no forward pass.

Batches are padded on the *right*. With causal attention a token never sees what stands right of it, so no padding mask
is needed, every row's positions start at 0, and the fused kernels run at full speed with memory linear in length.

Shapes: B rows of a batch, T padded length, H query heads, K key heads, G = H / K, D head width, C queries of a chunk,
E width of the model, V vocabulary, N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from xtf.config import Attribute, RIVariant, Scale, ScorerConfig, TRVariant

ATTENTION = "xtf_scoring"  # the name under which the pass registers its attention with transformers
TINY = torch.finfo(torch.float32).tiny  # floor under the logarithm of an attention that rounds to 0
HEAD_TOLERANCE = 1e-2  # nats; see _check_head


class Row(Protocol):
    """What a row must have; `xtf.data.Encoded` does."""

    @property
    def example_id(self) -> str: ...
    @property
    def input_ids(self) -> Sequence[int]: ...
    @property
    def prompt_length(self) -> int: ...


# -- what a scorer asks for ------------------------------------------------------------------------------------------


def computed(scorer: ScorerConfig) -> set[Attribute]:
    """The attributes to score: those that may drop a token, and those asked for beside them."""
    return {*scorer.attributes, *scorer.compute}


def needs_forward(scorer: ScorerConfig) -> bool:
    """Whether scoring rows runs the model: for RI and KN yes, for TR alone no."""
    return bool(computed(scorer) & {Attribute.ri, Attribute.kn})


def scored_layer(scorer: ScorerConfig, layers: int) -> int:
    """The layer whose attention is RI, counted from 0; ValueError if the model does not have it."""
    layer = scorer.ri.layer
    if scorer.ri.variant is RIVariant.released:
        if layer not in (-1, 0):
            raise ValueError(
                f"scorer.ri.variant=released is defined on layer 0; scorer.ri.layer={layer} contradicts it"
            )
        return 0
    if not -layers <= layer < layers:
        raise ValueError(
            f"scorer.ri.layer={layer}: the model has layers 0 to {layers - 1} (or -1 to -{layers})"
        )
    return layer % layers


# -- rows as flat arrays ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Flat:
    """Ragged rows end to end; `response` marks the response tokens among `ids`."""

    ids: np.ndarray  # int32, all tokens
    lengths: np.ndarray  # int64, per row
    prompts: np.ndarray  # int64, per row

    @property
    def responses(self) -> np.ndarray:
        return self.lengths - self.prompts

    @property
    def response(self) -> np.ndarray:
        return ragged_arange(self.lengths) >= np.repeat(self.prompts, self.lengths)


def ragged_arange(lengths: np.ndarray) -> np.ndarray:
    """0 .. n-1 for each n, end to end: [2, 3] -> [0, 1, 0, 1, 2]."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths)


def _flatten(rows: Sequence[Row]) -> _Flat:
    lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int64)
    prompts = np.array([row.prompt_length for row in rows], dtype=np.int64)
    bad = np.flatnonzero((prompts < 1) | (prompts >= lengths))
    if len(bad):
        raise ValueError(
            "a row needs at least one prompt token, which predicts the first response token, and one response token; "
            f"wrong are {_names(rows, bad)}"
        )
    ids = np.fromiter(chain.from_iterable(row.input_ids for row in rows), np.int32, int(lengths.sum()))
    return _Flat(ids, lengths, prompts)


def _names(rows: Sequence[Row], places: np.ndarray) -> str:
    listed = ", ".join(repr(rows[place].example_id) for place in places[:10])
    return listed + (f" and {len(places) - 10} more" if len(places) > 10 else "")


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _batches(lengths: np.ndarray, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, longest first, at most `tokens_per_batch` tokens with padding.

    A row that is longer than that is a batch of its own. Longest first: if memory runs out, it does so at once.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch must be at least 1, not {tokens_per_batch}")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, tokens_per_batch // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count


# -- the scoring pass ------------------------------------------------------------------------------------------------


def score_rows(
    model: PreTrainedModel,
    rows: Sequence[Row],
    scorer: ScorerConfig,
    *,
    tr: TRTable | None = None,
    logp: bool = False,
    tokens_per_batch: int = 16384,
    pad_id: int = 0,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Scores the response tokens of `rows`, in their order.

    Columns: `example_id` string, `input_ids` list<int32>, `prompt_length` int32, then, each list<float32> and as long
    as the response: `ri` (attention received, its logarithm by default), `kn` = 1 - p and `logp` = log p (natural),
    `tr` in [0, 1]; those that `scorer` asks for. `logp=True` adds `logp` without `kn`.

    `tr` is the table from `tr_table`, needed if TR is asked for. `progress` is called after each batch with its number
    of real tokens. `pad_id` fills positions that nothing attends to: any valid id does.
    The model is put in eval mode and on the scoring attention for the duration, and put back afterwards.

    ValueError: a row without prompt or response; a layer that is not there; a class of model whose attention or
    head cannot be scored; scores that are not finite, with the ids of their examples.
    """
    if not rows:
        raise ValueError("no rows to score")
    wanted = computed(scorer)
    want_logp = logp or Attribute.kn in wanted
    flat = _flatten(rows)
    scores: dict[str, np.ndarray] = {}
    if want_logp or Attribute.ri in wanted:
        scores = _forward_scores(
            model,
            rows,
            flat,
            scorer if Attribute.ri in wanted else None,
            want_logp,
            tokens_per_batch,
            pad_id,
            progress,
        )
    if Attribute.kn in wanted:
        scores["kn"] = -np.expm1(scores["logp"])
    if Attribute.tr in wanted:
        if tr is None:
            raise ValueError("scoring TR needs the table from xtf.scorers.tr_table")
        scores["tr"] = tr.lookup(flat.ids[flat.response])
    _check_finite(rows, flat, scores)
    return pa.table(
        {
            "example_id": pa.array([row.example_id for row in rows], pa.string()),
            "input_ids": _lists(flat.ids, flat.lengths),
            "prompt_length": pa.array(flat.prompts.astype(np.int32)),
            **{
                name: _lists(scores[name], flat.responses)
                for name in ("ri", "kn", "tr", "logp")
                if name in scores
            },
        }
    )


def _check_finite(rows: Sequence[Row], flat: _Flat, scores: dict[str, np.ndarray]) -> None:
    for name, values in scores.items():
        broken = ~np.isfinite(values)
        if broken.any():
            places = np.unique(np.repeat(np.arange(len(rows)), flat.responses)[broken])
            raise ValueError(
                f"{name} is not a finite number for {int(broken.sum())} tokens of {_names(rows, places)}; "
                "check the model's weights and precision (float16 overflows where bfloat16 does not)"
            )


@torch.inference_mode()
def _forward_scores(
    model: PreTrainedModel,
    rows: Sequence[Row],
    flat: _Flat,
    scorer: ScorerConfig | None,
    want_logp: bool,
    tokens_per_batch: int,
    pad_id: int,
    progress: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """`ri` (unless `scorer` is None) and `logp` of all response tokens, float32, flat in the order of the rows."""
    starts = np.cumsum(flat.lengths) - flat.lengths
    response_starts = np.cumsum(flat.responses) - flat.responses
    device = model.get_input_embeddings().weight.device
    layer = None if scorer is None else scored_layer(scorer, model.config.get_text_config().num_hidden_layers)
    places: list[np.ndarray] = []
    found: dict[str, list[torch.Tensor]] = {}
    with _scoring_attention(model):
        if want_logp:
            shortest = int(np.argmin(flat.lengths))
            _check_head(model, torch.tensor([list(rows[shortest].input_ids)], device=device))
        for batch in _batches(flat.lengths, tokens_per_batch):
            lengths, prompts, responses = flat.lengths[batch], flat.prompts[batch], flat.responses[batch]
            padded = int(lengths.max())
            ids = np.full((len(batch), padded), pad_id, dtype=np.int64)
            ids[np.arange(padded) < lengths[:, None]] = np.concatenate(
                [flat.ids[starts[row] : starts[row] + flat.lengths[row]] for row in batch]
            )
            ids_BT = torch.from_numpy(ids).to(device)
            at = ragged_arange(responses)  # of each response token within its response
            picked = torch.from_numpy(np.repeat(np.arange(len(batch)) * padded + prompts, responses) + at).to(
                device
            )
            probe = None if scorer is None else _Probe(scorer, layer, lengths, prompts, stop=not want_logp)
            hidden_BTE = _run(model, ids_BT, probe)
            if probe is not None:
                assert probe.scores_BT is not None
                found.setdefault("ri", []).append(
                    probe.scores_BT.flatten()[picked.to(probe.scores_BT.device)]
                )
            if hidden_BTE is not None and want_logp:
                hidden_NE = hidden_BTE.flatten(0, 1)[picked.to(hidden_BTE.device) - 1]
                found.setdefault("logp", []).append(_log_p(model, hidden_NE, ids_BT.flatten()[picked]))
            places.append(np.repeat(response_starts[batch], responses) + at)
            if progress is not None:
                progress(int(lengths.sum()))
    # The copies to the host wait until here, so that a GPU never waits for them between two batches.
    back = np.argsort(np.concatenate(places))
    return {name: torch.cat([part.cpu() for part in parts]).numpy()[back] for name, parts in found.items()}


class _LayerDone(Exception):
    """Raised inside the pass once RI is known and nothing beyond the scored layer is wanted."""


def _run(model: PreTrainedModel, ids_BT: torch.Tensor, probe: _Probe | None) -> torch.Tensor | None:
    """Last hidden states, (B, T, E); None if the probe ended the pass at its layer."""
    kwargs: dict[str, Any] = {} if probe is None else {"xtf_probe": probe}
    try:
        hidden = model.base_model(input_ids=ids_BT, use_cache=False, **kwargs).last_hidden_state
    except _LayerDone:
        return None
    if probe is not None and probe.scores_BT is None:
        raise ValueError(
            f"{type(model).__name__} does not route layer {probe.layer} through transformers' AttentionInterface, "
            "so the attention that tokens receive cannot be seen; use scorer=kn, tr or kn_tr with this model"
        )
    return hidden


# -- KN: log-probabilities -------------------------------------------------------------------------------------------


def _log_p(model: PreTrainedModel, hidden_NE: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """log p of each target under the LM head, float32; never more than a chunk of N positions by V logits at once."""
    head = model.get_output_embeddings()
    chunk = max(1, _chunk_elements(hidden_NE.device, 2**23) // head.weight.shape[0])
    parts = []
    for hidden, targets in zip(hidden_NE.split(chunk), targets_N.split(chunk), strict=True):
        logits = head(hidden).float()
        parts.append(-F.cross_entropy(logits, targets.to(logits.device), reduction="none"))
    return torch.cat(parts)


def _check_head(model: PreTrainedModel, ids_1T: torch.Tensor) -> None:
    """Compares one short row with the logits of the model's own forward.

    Some classes scale or cap their logits after the LM head (Gemma 2, Cohere, Granite). `_log_p` does not, and must
    refuse them rather than score something else. Both sides use the same attention and precision, so they agree to
    rounding; a scale or cap that matters is far above the tolerance.
    """
    targets = ids_1T[0, 1:]
    own = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    ours = _log_p(model, _run(model, ids_1T, None)[0, :-1], targets)  # type: ignore[index]
    gap = (own.gather(1, targets[:, None].to(own.device))[:, 0] - ours).abs().max().item()
    if gap > HEAD_TOLERANCE:
        raise ValueError(
            f"{type(model).__name__} changes its logits after the LM head (log p differs by {gap:.3g}), which scoring "
            "does not support; use scorer=ri, tr or ri_tr with this model"
        )


def _chunk_elements(device: torch.device, on_cpu: int) -> int:
    """Float32 elements of a temporary: small enough for a CPU's caches, large enough to fill a GPU."""
    return on_cpu if device.type == "cpu" else 2**26


# -- RI: received attention ------------------------------------------------------------------------------------------


class _Probe:
    """Collects the RI scores of one batch while the scored layer runs; `_attend` hands it queries and keys."""

    def __init__(
        self, scorer: ScorerConfig, layer: int | None, lengths: np.ndarray, prompts: np.ndarray, *, stop: bool
    ) -> None:
        self.variant, self.scale = scorer.ri.variant, scorer.ri.scale
        self.layer, self.stop = layer, stop
        self.lengths_B = torch.from_numpy(lengths)
        self.first_query = int(
            prompts.min()
        )  # response tokens receive attention from response positions only
        self.scores_BT: torch.Tensor | None = None  # float32; valid where the response is

    def collect(
        self, query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, scaling: float, window: int | None
    ) -> None:
        """Head-averaged attention, summed over queries (received) or over keys (released)."""
        B, H, T, D = query_BHTD.shape
        K = key_BKTD.shape[1]
        device = query_BHTD.device
        lengths_B1 = self.lengths_B.to(device)[:, None]
        position_T = torch.arange(T, device=device)
        query = (query_BHTD * scaling).view(B, K, H // K, T, D)
        total_BT = torch.zeros(B, T, device=device)
        chunk = max(1, _chunk_elements(device, 2**21) // (B * H * T))
        for start in range(self.first_query, T, chunk):
            stop = min(start + chunk, T)
            first = (
                0 if window is None else max(0, start - window + 1)
            )  # no query of the chunk sees further back
            weights = query[:, :, :, start:stop].flatten(2, 3) @ key_BKTD[:, :, first:stop].transpose(2, 3)
            weights = weights.float().view(B, H, stop - start, stop - first)
            ahead = position_T[first:stop] - position_T[start:stop, None]  # key position - query position
            hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)
            weights = weights.masked_fill_(hidden, -torch.inf).softmax(-1)
            if self.variant is RIVariant.released:
                total_BT[:, start:stop] = weights.sum(-1).mean(1)
            else:  # rows of padding also attend to the text, so they must not count
                real_BC = (position_T[start:stop] < lengths_B1).float() / H
                share_B1HC = real_BC[:, None, None].expand(B, 1, H, stop - start).flatten(2)
                total_BT[:, first:stop] += (share_B1HC @ weights.flatten(1, 2))[:, 0]
        # received: queries j .. length - 1 can see key j; released: the mean is over all keys of the row
        count = (lengths_B1 - position_T).clamp(min=1) if self.variant is RIVariant.received else lengths_B1
        scores = total_BT / count
        self.scores_BT = scores.clamp(min=TINY).log() if self.scale is Scale.log else scores


def _causal_mask(
    *, config: Any, kv_length: int, local_size: int | None = None, allow_is_causal_skip: bool = True, **_: Any
) -> torch.Tensor | None:
    """In place of a (T, T) mask: nothing for causal attention, the window's size (0-d) where a window bites.

    Right padding needs no mask of its own. Patterns that are neither causal nor a sliding window are refused.
    """
    if not allow_is_causal_skip or local_size not in (None, getattr(config, "sliding_window", None)):
        raise ValueError(
            f"models of type {config.model_type} have an attention pattern that is neither causal nor a sliding window; "
            "their tokens cannot be scored"
        )
    return None if local_size is None or local_size >= kv_length else torch.tensor(local_size)


def _attend(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    xtf_probe: _Probe | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Fused causal attention; in the probe's layer it also collects RI. Returns (B, T, H, D)."""
    window = None if attention_mask is None else int(attention_mask)
    if xtf_probe is not None and module.layer_idx == xtf_probe.layer:
        scale = query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
        xtf_probe.collect(query_BHTD, key_BKTD, scale, window)
        if xtf_probe.stop:
            raise _LayerDone
    if window is None:
        return sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, None, scaling=scaling, **kwargs
        )
    T = query_BHTD.shape[2]
    parts = []
    for start in range(0, T, window):  # each block of queries sees itself and the block before it
        stop, first = min(start + window, T), max(0, start - window + 1)
        behind = torch.arange(start, stop, device=query_BHTD.device)[:, None] - torch.arange(
            first, stop, device=query_BHTD.device
        )
        parts.append(
            F.scaled_dot_product_attention(
                query_BHTD[:, :, start:stop],
                key_BKTD[:, :, first:stop],
                value_BKTD[:, :, first:stop],
                attn_mask=(behind >= 0) & (behind < window),
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _causal_mask)


@contextmanager
def _scoring_attention(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode and the scoring attention inside the block; both as they were after it."""
    before, training = model.config._attn_implementation, model.training
    model.set_attn_implementation("sdpa")  # ValueError for a class that the fused attention cannot serve
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        raise ValueError(
            f"{type(model).__name__} does not let its attention be exchanged and cannot be scored"
        )
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(training)


# -- TR: the table ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenCounts:
    """How often each token id occurs, int64 (V,): in whole examples, and in responses. Counts of shards add up."""

    all: np.ndarray
    response: np.ndarray

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.all + other.all, self.response + other.response)


def count_tokens(rows: Sequence[Row], vocab_size: int) -> TokenCounts:
    """Counts over `rows`; ValueError for an id outside the model's vocabulary."""
    flat = _flatten(rows)
    if flat.ids.max() >= vocab_size:
        raise ValueError(
            f"token id {flat.ids.max()} is outside the model's vocabulary of {vocab_size}: "
            "tokenizer and model do not belong together"
        )
    return TokenCounts(
        np.bincount(flat.ids, minlength=vocab_size),
        np.bincount(flat.ids[flat.response], minlength=vocab_size),
    )


@dataclass(frozen=True)
class TRTable:
    """TR of every token id that occurs in a response: float32 (V,), NaN elsewhere.

    `nearest` and `farthest` are the cosine distances that became 1 and 0.
    """

    values: np.ndarray
    nearest: float
    farthest: float

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """TR of each id; ValueError for an id that the table was not built for."""
        found = self.values[ids]
        if np.isnan(found).any():
            raise ValueError(
                f"token id {ids[np.isnan(found)][0]} is not in the TR table; build it from all rows that are scored"
            )
        return found


@torch.inference_mode()
def tr_table(
    model: PreTrainedModel | torch.Tensor,
    counts: TokenCounts,
    scorer: ScorerConfig,
    *,
    domain_words: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens_per_batch: int = 16384,
) -> TRTable:
    """TR = 1 - minmax(cosine distance to the domain vector), over the token ids that occur in responses (eq. 4).

    variant=dataset: a token's vector is its embedding row; the domain vector is the mean embedding of all tokens of
    the dataset, prompts included: rows weighted by counts. No forward pass; `model` may be the (V, E) matrix alone.

    variant=released: vectors are last hidden states: of a one-token input for a token; for the domain the mean over
    `domain_words` of each word's mean over its tokens. The authors' code leaves the cosine unscaled; min-max changes
    neither clusters nor quantiles. `tokenizer` splits the words, without special tokens.

    If all distances are equal, all TR are 1. A vector of zeros has cosine 0 with everything.
    """
    used = np.flatnonzero(counts.response)
    if scorer.tr.variant is TRVariant.dataset:
        weight = model if isinstance(model, torch.Tensor) else model.get_input_embeddings().weight
        distances = _dataset_distances(weight, counts, used)
    else:
        if isinstance(model, torch.Tensor) or tokenizer is None:
            raise ValueError("scorer.tr.variant=released runs the model: give the model and its tokenizer")
        distances = _released_distances(model, used, domain_words, tokenizer, tokens_per_batch)
    nearest, farthest = float(distances.min()), float(distances.max())
    spread = farthest - nearest
    values = np.full(len(counts.all), np.nan, dtype=np.float32)
    values[used] = 1.0 - (distances - nearest) / spread if spread > 0 else 1.0
    return TRTable(values, nearest, farthest)


def _rows_of(weight: torch.Tensor, ids: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
    """Embedding rows in float64, a few thousand at a time."""
    for start in range(0, len(ids), 4096):
        part = slice(start, min(start + 4096, len(ids)))
        yield part, weight[torch.from_numpy(ids[part]).to(weight.device)].to("cpu", torch.float64)


def _dataset_distances(weight: torch.Tensor, counts: TokenCounts, used: np.ndarray) -> np.ndarray:
    present = np.flatnonzero(counts.all)
    frequency = torch.from_numpy(counts.all[present] / counts.all.sum())
    centre = torch.zeros(weight.shape[1], dtype=torch.float64)
    for part, rows in _rows_of(weight, present):
        centre += frequency[part] @ rows
    distances = np.empty(len(used))
    for part, rows in _rows_of(weight, used):
        distances[part] = 1.0 - F.cosine_similarity(rows, centre[None]).numpy()
    return distances


def _released_distances(
    model: PreTrainedModel,
    used: np.ndarray,
    domain_words: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int,
) -> np.ndarray:
    if not domain_words:
        raise ValueError("scorer.tr.variant=released needs task.domain_words, and the list is empty")
    device = model.get_input_embeddings().weight.device
    with _scoring_attention(model):

        def last_hidden(ids: Any) -> torch.Tensor:
            hidden = _run(model, torch.as_tensor(ids, dtype=torch.int64, device=device), None)
            assert hidden is not None
            return hidden.to("cpu", torch.float64)

        words = []
        for word in domain_words:
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ValueError(f"task.domain_words: the tokenizer makes no token of {word!r}")
            words.append(last_hidden([ids])[0].mean(0))
        centre = torch.stack(words).mean(0)
        parts = [
            last_hidden(part[:, None])[:, 0]
            for part in np.array_split(used, -(-len(used) // tokens_per_batch))
        ]
        return np.concatenate([1.0 - F.cosine_similarity(part, centre[None]).numpy() for part in parts])
