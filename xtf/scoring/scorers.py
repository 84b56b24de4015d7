"""Token scores: how much the text leans on a token (RI), how new it is (KN), how near the task it lies (TR).

All three come from one forward pass of the base model over length-sorted batches:

- RI: attention that the token receives in one layer. PyTorch's fused attention runs everywhere; in the scored
  layer the weights are formed once more, a chunk of queries at a time, and only their column sums are kept.
- KN: 1 - p of the token. The LM head runs only where a response token is predicted, a chunk at a time.
- TR: a table from token id to score. It needs the embedding matrix and token counts, and no forward pass. With
  `scorer.tr.variant=contextual` a token's vector is its hidden state on the way into the middle layer of the pass. As
  the mean of the dataset is known at the end only, these vectors are kept until then (`with_context_tr`).

Batches are padded on the *right*. With causal attention no token sees what stands right of it, so no padding
mask is needed, positions start at 0 in every row, and memory stays linear in length.

Shapes, as suffixes of every tensor's name: B rows of a batch, T padded length, H query heads, K key heads, G query
heads of a key head (H = K G), D head width, C queries of a chunk, S keys that they see, E model width, V vocabulary,
N response tokens, U token ids. NumPy arrays are flat, (N,) or (R,) for R rows, or (V,), and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from xtf.config.schema import RIVariant, Scale, ScorerConfig, TRVariant
from xtf.data.ragged import PROMPT_TR, Row, Sequences, as_lists, as_table, places
from xtf.runtime.heads import decoder_of, input_device, is_quantised, logits_of, position_table, rope_limit, unwrapped
from xtf.scoring.attributes import ATTRIBUTES, LOOKS, Brought, brought, computed

HIDDEN = "hidden"  # the column of unit vectors that stands for `tr` until that can be worked out
ATTENTION = "xtf_scoring"  # the name under which the pass registers its attention with transformers
TINY = torch.finfo(torch.float32).tiny  # floor under the logarithm of an attention that rounds to 0
# Sizes of temporaries in float32 elements. On a CPU a chunk of logits must stay below 32 MiB, above which the
# allocator maps fresh pages each time (4 times slower), and attention weights near the cache's size (2 times). With a
# vocabulary so large that those are few tokens, the head's product with them takes longer than the pages do.
LOGITS_ON_CPU, WEIGHTS_ON_CPU, ON_GPU = 7 * 2**20, 2**20, 2**26
LEAST_ON_CPU = 192  # tokens
ROWS_AT_ONCE = 10_000  # whose tokens are counted at once


# --- what a scorer asks for ---------------------------------------------------------------------------------


def scored_layer(scorer: ScorerConfig, layers: int) -> int:
    """The layer whose attention is RI, from 0.

    Raises:
        ValueError: the model does not have it.
    """
    layer = scorer.ri.layer
    if scorer.ri.variant is RIVariant.released:
        if layer not in (-1, 0):
            raise ValueError(f"scorer.ri.layer={layer}: scorer.ri.variant=released is defined on layer 0")
        return 0
    if not -layers <= layer < layers:
        raise ValueError(f"scorer.ri.layer={layer}: the model has layers 0 to {layers - 1}, or -{layers} to -1")
    return layer % layers


# --- rows as flat arrays ------------------------------------------------------------------------------------


def _sequences(rows: Sequence[Row]) -> Sequences:
    """Rows end to end.

    Raises:
        ValueError: no rows, or one without prompt or response.
    """
    if not rows:
        raise ValueError("there are no rows to score")
    flat = Sequences(as_table(rows))
    if (bad := (flat.prompts < 1) | (flat.responses < 1)).any():
        raise ValueError(
            "a row needs a prompt token, which predicts the first response token, and a response token; "
            f"these have none: {flat.named(bad)}"
        )
    return flat


def batches(lengths: np.ndarray, tokens_per_batch: int, apart: int | None = None) -> Iterator[np.ndarray]:
    """Row numbers in batches of like length, longest first, of at most `tokens_per_batch` tokens with
    padding.

    A row longer than that is a batch of its own. Longest first: if memory runs out, it does so at once. Rows longer
    than `apart` share no batch with others.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch={tokens_per_batch}: it must be at least 1")
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        widest = int(lengths[order[start]])
        count = max(1, tokens_per_batch // widest)
        if apart is not None and widest > apart:
            count = min(count, int(np.count_nonzero(lengths[order[start:]] > apart)))
        yield order[start : start + count]
        start += count


# --- the scoring pass ---------------------------------------------------------------------------------------


def score_rows(
    model: PreTrainedModel,
    rows: Sequence[Row],
    scorer: ScorerConfig,
    *,
    tr: TRTable | None = None,
    logp: bool = False,
    prompts: bool = False,
    tokens_per_batch: int = 16384,
    pad_id: int = 0,
    progress: Callable[[int], None] | None = None,
) -> pa.Table:
    """Scores the response tokens of `rows`, in their order.

    Columns: `example_id` string, `input_ids` list<int32>, `prompt_length` int32, then those that `scorer`
    asks for, list<float32> as long as the response: `ri` (attention received, its logarithm by default; eq.
    2), `kn` = 1 - p (eq. 3) with `logp` = log p in nats, `tr` in [0, 1] (eq. 4). `logp=True` adds `logp`
    without `kn`; `prompts=True` adds `PROMPT_TR`, as long as the prompt, from the same table `tr`. With
    variant=contextual the column `HIDDEN` stands for `tr`, which `with_context_tr` makes of it.
    `scorer.top` and `scorer.attenders` add the columns `LOOKS` of `xtf.scoring.attributes`, list<fixed_size_list>.

    `tr` is the table from `tr_table`, needed if TR is asked for. `progress` is called after each batch with
    its number of real tokens. `pad_id` fills places that nothing attends to: any id of the vocabulary does.
    During the pass the model is in eval mode and on the scoring attention; both are put back afterwards.

    Raises:
        ValueError: a row without prompt or response, a layer that is not there, a class of model that cannot be
            scored, a token id that `tr` lacks, scores that are not finite (with the ids of their examples).
    """
    flat, wanted = _sequences(rows), computed(scorer)
    needs = brought(wanted, scorer)
    want_ri, want_logp = Brought.attention in needs, logp or Brought.logp in needs or scorer.top > 0
    if scorer.attenders and not want_ri:
        raise ValueError("scorer.attenders are taken where RI is scored: ask for an attribute that needs attention")
    want_hidden = Brought.hidden in needs
    scores: dict[str, np.ndarray] = {}
    if want_ri or want_logp or want_hidden:
        model = unwrapped(model)
        if (table_size := position_table(model)) is not None:
            too_long = flat.lengths > table_size
            flat.refuse(too_long, f"{type(model).__name__} has positions for {table_size} tokens; longer are the")
        with _scoring_attention(model, needed=want_ri) as exchanged:
            scores = _forward_scores(
                model,
                flat,
                scorer if want_ri else None,
                want_logp,
                scorer.top,
                want_hidden,
                tokens_per_batch if exchanged else 1,  # with its own attention a row is read alone, without padding
                pad_id,
                progress,
            )
    hidden_NE = scores.pop(HIDDEN, None)
    looks = {name: scores.pop(name) for name in LOOKS if name in scores}
    if tr is None and (prompts or Brought.embeddings in needs):
        raise ValueError("scoring TR needs the table that xtf.scoring.scorers.tr_table builds from all rows")
    if tr is not None and Brought.embeddings in needs:
        scores["tr"] = tr.lookup(flat.response_ids)
    scores |= {attribute.name: attribute.derive(flat, scores) for attribute in wanted if attribute.derive is not None}
    finite = {name: np.isfinite(values) for name, values in scores.items()}
    if hidden_NE is not None:
        finite["the hidden state of a token"] = np.isfinite(hidden_NE).all(axis=1)
    for name, which in finite.items():
        broken = np.add.reduceat(~which, np.cumsum(flat.responses) - flat.responses, dtype=int) > 0
        if broken.any():
            raise ValueError(
                f"{name} is not a finite number in {flat.named(broken)}; check the model's weights and "
                "precision (float16 overflows where bfloat16 does not)"
            )
    table = flat.table
    for name in (*ATTRIBUTES, "logp"):
        if name in scores:
            table = table.append_column(name, as_lists(scores[name], flat.responses))
    if tr is not None and prompts:
        table = table.append_column(PROMPT_TR, as_lists(tr.lookup(flat.ids[~flat.in_response]), flat.prompts))
    for name, values_NK in looks.items():
        each = pa.FixedSizeListArray.from_arrays(pa.array(values_NK.ravel()), values_NK.shape[1])
        offsets = np.concatenate([[0], np.cumsum(flat.responses)]).astype(np.int32)
        table = table.append_column(name, pa.ListArray.from_arrays(pa.array(offsets), each))
    if hidden_NE is not None:
        table = table.append_column(HIDDEN, _as_vectors(flat, hidden_NE))
    return table


@torch.no_grad()
def _forward_scores(
    model: PreTrainedModel,
    flat: Sequences,
    ri: ScorerConfig | None,
    want_logp: bool,
    top: int,
    want_hidden: bool,
    tokens_per_batch: int,
    pad_id: int,
    progress: Callable[[int], None] | None,
) -> dict[str, np.ndarray]:
    """`ri`, unless None is given, and `logp` of all response tokens: float32 (N,), in the rows' order; `HIDDEN`, their
    unit vectors, float16 (N, E); of `LOOKS` those that are asked for, int32 or float32 (N, K)."""
    depth = model.config.get_text_config().num_hidden_layers
    layer = None if ri is None else scored_layer(ri, depth)
    later = want_hidden and layer is not None and layer < depth // 2  # the middle layer comes after the scored one
    tap = _Tap(model, ends=not want_logp and (layer is None or later)) if want_hidden else None
    if want_logp:
        _check_head(model, torch.from_numpy(flat.ids[None, : min(16, flat.lengths[0])].astype(np.int64)))
    device = input_device(model)
    starts, response_starts = flat.offsets[:-1], np.cumsum(flat.responses) - flat.responses
    found: dict[str, list[torch.Tensor]] = {}
    found_at = []
    for batch in batches(flat.lengths, tokens_per_batch, rope_limit(model)):
        lengths, prompts, responses = flat.lengths[batch], flat.prompts[batch], flat.responses[batch]
        T = int(lengths[0])
        padded = np.full(len(batch) * T, pad_id, dtype=np.int64)
        row_starts = np.arange(len(batch)) * T
        padded[places(row_starts, lengths)] = flat.ids[places(starts[batch], lengths)]
        ids_BT = torch.from_numpy(padded.reshape(len(batch), T)).to(device)
        at_N = torch.from_numpy(places(row_starts + prompts, responses)).to(device)  # in B * T
        probe = None if ri is None else _Probe(ri, layer, lengths, prompts, last=not want_logp and not later)
        with nullcontext() if tap is None else tap:
            hidden_BTE = _hidden(model, ids_BT, probe)
        if tap is not None:
            found.setdefault(HIDDEN, []).append(tap.vectors(at_N))
        if probe is not None and probe.scores_BT is not None:
            found.setdefault("ri", []).append(probe.scores_BT.flatten()[at_N.to(probe.scores_BT.device)])
            if probe.attenders:
                prompt_N1 = torch.from_numpy(np.repeat(prompts, responses))[:, None].to(at_N.device)
                at_NK = probe.from_at_BTK.flatten(0, 1)[at_N] - prompt_N1
                found.setdefault("from_at", []).append(at_NK.clamp(min=0).int())
                found.setdefault("from_share", []).append(probe.from_share_BTK.flatten(0, 1)[at_N])
        if want_logp:
            hidden_NE = hidden_BTE.flatten(0, 1)[at_N.to(hidden_BTE.device) - 1]
            logp_N, top_NK, p_NK = _log_p(model, hidden_NE, ids_BT.flatten()[at_N], top)
            found.setdefault("logp", []).append(logp_N)
            if top:
                found.setdefault("top_id", []).append(top_NK)
                found.setdefault("top_p", []).append(p_NK)
        found_at.append(places(response_starts[batch], responses))
        if progress is not None:
            progress(int(lengths.sum()))
    # Copies to the host wait until here, so that a GPU never idles between two batches.
    back = np.argsort(np.concatenate(found_at))
    return {name: torch.cat([part.cpu() for part in parts]).numpy()[back] for name, parts in found.items()}


class _Tap:
    """Takes the hidden states that enter the middle layer, of an even number of layers the first after the middle."""

    def __init__(self, model: PreTrainedModel, *, ends: bool) -> None:
        layers = getattr(model.get_decoder(), "layers", None)
        if not isinstance(layers, torch.nn.ModuleList) or len(layers) < 2:
            raise ValueError(
                f"{type(model).__name__} shows no layers between which hidden states could be taken; use "
                "scorer.tr.variant=dataset"
            )
        self.layer, self.ends = layers[len(layers) // 2], ends  # ends: the pass may end here
        self.hidden_BTE: torch.Tensor | None = None

    def __enter__(self) -> None:
        self.handle = self.layer.register_forward_pre_hook(self._take, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _take(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.hidden_BTE = args[0] if args else kwargs["hidden_states"]
        if self.ends:
            raise _ScoredLayerDone

    def vectors(self, at_N: torch.Tensor) -> torch.Tensor:
        """Unit vectors at places in B * T, float16 (N, E), in main memory: a pass has too many for a GPU."""
        assert self.hidden_BTE is not None
        hidden_NE = self.hidden_BTE.flatten(0, 1)[at_N.to(self.hidden_BTE.device)].float()
        self.hidden_BTE = None
        return F.normalize(hidden_NE, dim=-1).half().cpu()


class _ScoredLayerDone(Exception):
    """Ends a forward pass of which nothing beyond the scored layer is wanted."""


def _hidden(model: PreTrainedModel, ids_BT: torch.Tensor, probe: _Probe | None = None) -> torch.Tensor:
    """Last hidden states (B, T, E); an empty tensor if the probe ended the pass at its layer."""
    kwargs: dict[str, Any] = {} if probe is None else {"xtf_probe": probe}
    try:
        hidden_BTE: torch.Tensor = decoder_of(model)(input_ids=ids_BT, use_cache=False, **kwargs).last_hidden_state
    except _ScoredLayerDone:
        return torch.empty(0)
    if probe is not None and probe.scores_BT is None:
        raise ValueError(
            f"{type(model).__name__} does not send layer {probe.layer} through AttentionInterface of "
            "transformers, so the attention that tokens receive cannot be seen; use a scorer without RI"
        )
    return hidden_BTE


# --- KN: log-probabilities ----------------------------------------------------------------------------------


def _log_p(
    model: PreTrainedModel, hidden_NE: torch.Tensor, targets_N: torch.Tensor, top: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p of each target under the LM head, float32 (N,), and the ids of the `top` likeliest tokens, int32 (N, top),
    with their p, float32 (N, top): a chunk of N by V logits at a time."""
    on_cpu, vocabulary = hidden_NE.device.type == "cpu", model.config.get_text_config().vocab_size
    chunk = max(LEAST_ON_CPU, LOGITS_ON_CPU // vocabulary) if on_cpu else max(1, ON_GPU // vocabulary)
    parts = []
    for part_NE, part_N in zip(hidden_NE.split(chunk), targets_N.to(hidden_NE.device).split(chunk), strict=True):
        logits_NV = logits_of(model, part_NE).float()
        best = logits_NV.topk(top)
        p_NK = (best.values - logits_NV.logsumexp(-1, keepdim=True)).exp() if top else best.values
        if on_cpu:  # in place: a second N by V takes up to 8 % of the LM head's time, most of it for fresh pages
            logp_N = torch.log_softmax(logits_NV, -1, out=logits_NV).gather(1, part_N[:, None])[:, 0]
        else:
            logp_N = -F.cross_entropy(logits_NV, part_N, reduction="none")
        parts.append((logp_N, best.indices.int(), p_NK))
    logp, ids, p = zip(*parts, strict=True)
    return torch.cat(logp), torch.cat(ids), torch.cat(p)


_head_checked: WeakSet[PreTrainedModel] = WeakSet()


def _check_head(model: PreTrainedModel, ids_1T: torch.Tensor) -> None:
    """Refuses a class that does more between its last hidden states and its logits than `logits_of` knows.

    Compares both on a few tokens. Attention and precision are the same, so they agree to rounding.
    """
    if model in _head_checked:
        return
    ids_1T = ids_1T.to(input_device(model))
    own_1TV = model(input_ids=ids_1T, use_cache=False).logits.float()
    head_1TV = logits_of(model, _hidden(model, ids_1T)).float()
    gap = ((head_1TV - own_1TV).norm() / own_1TV.norm()).item()
    if gap > (1e-4 if own_1TV.dtype == model.dtype else 1e-2):
        raise ValueError(
            f"{type(model).__name__} changes its logits behind the LM head (by {gap:.2g} of their size) in a way that "
            "is not known here; use a scorer without KN, such as ri_tr"
        )
    _head_checked.add(model)


# --- RI: received attention ---------------------------------------------------------------------------------


class _Probe:
    """Takes queries and keys of the scored layer from `_attend`, for one batch, and turns them into RI."""

    def __init__(
        self, scorer: ScorerConfig, layer: int | None, lengths: np.ndarray, prompts: np.ndarray, *, last: bool
    ) -> None:
        self.variant, self.scale = scorer.ri.variant, scorer.ri.scale
        self.layer, self.last = layer, last  # last: the pass may end with this layer
        self.attenders = scorer.attenders
        self.lengths_B = torch.from_numpy(lengths)
        self.first_query = int(prompts.min())  # what a response token receives comes from response positions
        self.scores_BT: torch.Tensor | None = None  # float32; holds RI at response positions

    def collect(self, query_BHTD: torch.Tensor, key_BKTD: torch.Tensor, scaling: float, window: int | None) -> None:
        """Head-averaged attention weights, summed over queries (received) or keys (released), then averaged.

        Received (eq. 2): the mean over queries i >= j of the attention paid to key j. Released: the mean over
        keys of the attention that query i pays, which is 1 / length.
        """
        B, H, T, _ = query_BHTD.shape
        device = query_BHTD.device
        length_B1 = self.lengths_B.to(device)[:, None]
        position_T = torch.arange(T, device=device)
        query_BKGTD = (query_BHTD * scaling).unflatten(1, (key_BKTD.shape[1], -1))
        total_BT = torch.zeros(B, T, device=device)
        # The queries that attend most to each key so far, K of them, and how much.
        self.from_share_BTK = torch.zeros(B, T, self.attenders, device=device)
        self.from_at_BTK = torch.zeros(B, T, self.attenders, dtype=torch.long, device=device)
        chunk = max(1, (WEIGHTS_ON_CPU if device.type == "cpu" else ON_GPU) // (B * H * T))
        for start in range(self.first_query, T, chunk):
            end = min(start + chunk, T)
            first = _first_seen(start, window)
            query_BKXD = query_BKGTD[:, :, :, start:end].flatten(2, 3)  # X: G C
            weights_BHCS = (query_BKXD @ key_BKTD[:, :, first:end].transpose(2, 3)).float()
            weights_BHCS = weights_BHCS.view(B, H, end - start, end - first)
            weights_BHCS.masked_fill_(~_seen(position_T[start:end], position_T[first:end], window), -torch.inf)
            weights_BHCS = weights_BHCS.softmax(-1)
            if self.variant is RIVariant.released:
                total_BT[:, start:end] = weights_BHCS.sum(-1).mean(1)
            else:  # queries in the padding see the text too and must not count
                share_BC = (position_T[start:end] < length_B1).float() / H
                share_B1Y = share_BC[:, None].expand(B, H, end - start).reshape(B, 1, -1)  # Y: H C
                total_BT[:, first:end] += (share_B1Y @ weights_BHCS.flatten(1, 2))[:, 0]
                if self.attenders:
                    real_BC1 = (position_T[start:end] < length_B1).float()[..., None]
                    self._rank((weights_BHCS.mean(1) * real_BC1).transpose(1, 2), first, start)
        count_BT = length_B1 - position_T if self.variant is RIVariant.received else length_B1
        scores_BT = total_BT / count_BT.clamp(min=1)
        self.scores_BT = scores_BT.clamp(min=TINY).log() if self.scale is Scale.log else scores_BT

    def _rank(self, weights_BSC: torch.Tensor, first: int, start: int) -> None:
        """Takes the attention that queries from `start` pay to keys from `first` into account."""
        keys = slice(first, first + weights_BSC.shape[1])
        at_C = torch.arange(start, start + weights_BSC.shape[2], device=weights_BSC.device)
        shares = torch.cat([self.from_share_BTK[:, keys], weights_BSC], dim=-1)
        places = torch.cat([self.from_at_BTK[:, keys], at_C.expand(weights_BSC.shape)], dim=-1)
        best = shares.topk(self.attenders, dim=-1)
        self.from_share_BTK[:, keys] = best.values
        self.from_at_BTK[:, keys] = places.gather(-1, best.indices)


def _first_seen(query: int, window: int | None) -> int:
    """The first key position that the query at this position sees."""
    return 0 if window is None else max(0, query - window + 1)


def _seen(query_C: torch.Tensor, key_S: torch.Tensor, window: int | None) -> torch.Tensor:
    """Which keys each query sees, from their positions; bool (C, S)."""
    behind_CS = query_C[:, None] - key_S
    return behind_CS >= 0 if window is None else (behind_CS >= 0) & (behind_CS < window)


def _causal_mask(
    *, config: Any, kv_length: int, local_size: int | None = None, allow_is_causal_skip: bool = True, **_: Any
) -> torch.Tensor | None:
    """What transformers passes to `_attend` as the mask: None, or the size of a sliding window that bites
    (0-d).

    A (T, T) mask would cost more memory than all scores. ValueError for attention that is neither causal nor
    a sliding window.
    """
    if not allow_is_causal_skip or local_size not in (None, getattr(config, "sliding_window", None)):
        raise ValueError(
            f"the attention of {config.model_type} models is neither causal nor a sliding window, which "
            "scoring does not support"
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
    """Fused causal attention, (B, T, H, D). In the probe's layer RI is collected on the way."""
    window = None if attention_mask is None else int(attention_mask)
    T, D = query_BHTD.shape[2:]
    if xtf_probe is not None and module.layer_idx == xtf_probe.layer:
        xtf_probe.collect(query_BHTD, key_BKTD, D**-0.5 if scaling is None else scaling, window)
        if xtf_probe.last:
            raise _ScoredLayerDone
    if window is None:
        output_BTHD, _ = sdpa_attention_forward(
            module, query_BHTD, key_BKTD, value_BKTD, None, scaling=scaling, **kwargs
        )
        return output_BTHD, None
    position_T = torch.arange(T, device=query_BHTD.device)
    parts_BHCD = []
    for start in range(0, T, window):  # a block of queries sees itself and the block before it
        end, first = min(start + window, T), _first_seen(start, window)
        parts_BHCD.append(
            F.scaled_dot_product_attention(
                query_BHTD[:, :, start:end],
                key_BKTD[:, :, first:end],
                value_BKTD[:, :, first:end],
                attn_mask=_seen(position_T[start:end], position_T[first:end], window),
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(parts_BHCD, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _causal_mask)


@contextmanager
def _scoring_attention(model: PreTrainedModel, needed: bool = False) -> Iterator[bool]:
    """Eval mode and the scoring attention inside the block, if the class can have it; what was before, after it.

    Raises:
        ValueError: it cannot, and it is `needed`.
    """
    before, modes = model.config._attn_implementation, [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        cause = _exchange(model, before)
        if cause is not None and needed:
            raise ValueError(
                f"{type(model).__name__} does not show its attention ({cause}), so the attention that tokens receive "
                "cannot be seen; use a scorer without RI"
            )
        yield cause is None
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)
        for module, training in modes:  # train() would set them all alike
            module.training = training


def _exchange(model: PreTrainedModel, before: str) -> str | None:
    """Puts the scoring attention in; why it cannot be, with the model as it was, or None.

    Whether a class lets its attention be exchanged shows on a few tokens: were it another, so would be their states.
    """
    ids_1T = torch.arange(1, 13, device=input_device(model))[None] * 7919 % model.config.get_text_config().vocab_size
    known = model in _exchangeable
    # no_grad: what a quantised weight packs at its first use must not stay an inference tensor
    with torch.no_grad():
        own_BTE = torch.empty(0) if known else _tried(model, ids_1T).float()
        if not known:
            _check_causal(model, ids_1T, own_BTE)
        try:
            model.set_attn_implementation("sdpa")  # ValueError for a class that fused attention cannot serve
            model.set_attn_implementation(ATTENTION)
            if model.config._attn_implementation != ATTENTION:
                cause: str | None = "its attention cannot be exchanged"
            elif known:
                cause = None
            else:
                gap = float((_hidden(model, ids_1T).float() - own_BTE).norm() / own_BTE.norm())
                exact = 1e-3 if model.dtype == torch.float32 else 0.1
                cause = None if gap < exact else "it adds something of its own to the weights"
        except (ValueError, TypeError, RuntimeError) as error:
            cause = str(error).splitlines()[0].split(". ")[0].rstrip(".")
    if cause is None:
        _exchangeable.add(model)
    elif model.config._attn_implementation != before:
        model.set_attn_implementation(before)
    return cause


def _tried(model: PreTrainedModel, ids_1T: torch.Tensor) -> torch.Tensor:
    """`_hidden`, of a model as it came; ValueError for one that computes nothing, or no numbers."""
    try:
        own_BTE = _hidden(model, ids_1T)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{type(model).__name__} cannot be run on a few tokens: {said}") from error
    if not own_BTE.isfinite().all():
        raise ValueError(f"{type(model).__name__} computes NaN or infinity from a few tokens: its weights are damaged")
    return own_BTE


def _check_causal(model: PreTrainedModel, ids_1T: torch.Tensor, own_BTE: torch.Tensor) -> None:
    """Refuses a model whose tokens see what stands behind them, as BERT's and XLNet's do: no p of a next token there.

    With another last token, the states before it must be the same, but for rounding. A quantised model's rounding may
    follow all tokens that it reads at once: it is not tried.
    """
    if is_quantised(model):
        return
    other_1T = ids_1T.clone()
    other_1T[0, -1] = ids_1T[0, 0]
    gap = float((_tried(model, other_1T).float() - own_BTE)[:, :-1].norm() / own_BTE[:, :-1].norm())
    if gap > (1e-3 if model.dtype == torch.float32 else 5e-2):
        raise ValueError(
            f"{type(model).__name__} is not causal: its tokens see what stands behind them (their states change by "
            f"{gap:.2g} of their size), so it gives no probability of a next token; load a causal language model"
        )


_exchangeable: WeakSet[PreTrainedModel] = WeakSet()


# --- TR: the table ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenCounts:
    """How often each token id occurs in a dataset, int64, by id: in whole examples, and in responses alone."""

    all: np.ndarray
    response: np.ndarray


def count_tokens(rows: Sequence[Row]) -> TokenCounts:
    """Counts over `rows`, for ids up to the largest there is."""
    counts = np.zeros((2, 0), dtype=np.int64)
    for start in range(0, max(1, len(rows)), ROWS_AT_ONCE):
        flat = _sequences(rows[start : start + ROWS_AT_ONCE])
        size = max(counts.shape[1], int(flat.ids.max()) + 1)
        counts = np.pad(counts, ((0, 0), (0, size - counts.shape[1])))
        counts[0] += np.bincount(flat.ids, minlength=size)
        counts[1] += np.bincount(flat.response_ids, minlength=size)
    return TokenCounts(*counts)


@dataclass(frozen=True)
class TRTable:
    """TR of every token id that occurs in a response, or in whole rows: float32 (V,), NaN elsewhere.

    `nearest` and `farthest` are the cosine distances that became 1 and 0: those of responses, so that TR of an id that
    only prompts have may lie beyond.
    """

    values: np.ndarray
    nearest: float
    farthest: float

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        """TR of each id, float32.

        Raises:
            ValueError: an id that the table was not built for.
        """
        found = self.values[ids]
        if np.isnan(found).any():
            raise ValueError(f"the TR table lacks token id {ids[np.isnan(found)][0]}: build it from all rows to score")
        return found


@torch.no_grad()
def tr_table(
    model: PreTrainedModel,
    counts: TokenCounts,
    scorer: ScorerConfig,
    *,
    domain_words: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    tokens_per_batch: int = 16384,
    prompts: bool = False,
) -> TRTable:
    """TR = 1 - minmax(cosine distance to the domain vector), over the ids that occur in responses (eq. 4).

    `counts` are those of the whole dataset: the domain vector and the extremes are the dataset's. `prompts` adds the
    ids that occur in prompts only, on the same scale.

    variant=dataset: a token's vector is its embedding row, the domain vector the mean embedding of all tokens
    of the dataset, prompts included. No forward pass.

    variant=released: vectors are last hidden states: of a one-token input for a token; for the domain the
    mean over `domain_words` of each word's mean over its tokens (`tokenizer` splits it). The authors' code
    uses the cosine as it is; min-max changes neither its clusters nor its quantiles.

    If all distances are equal, all TR are 1. A vector of zeros has cosine 0 with everything.

    Raises:
        ValueError: ids outside the model's vocabulary; vectors that are not finite; variant=released without
            tokenizer or words, or a word without tokens.
    """
    vocabulary = _embedding_rows(model)[0]
    if len(counts.all) > vocabulary:
        raise ValueError(
            f"token id {len(counts.all) - 1} does not fit a vocabulary of {vocabulary}: tokenizer and model do not "
            "belong together"
        )
    used = np.flatnonzero(counts.all if prompts else counts.response)
    if scorer.tr.variant is TRVariant.dataset:
        distances = _dataset_distances(model, counts.all, used)
    else:
        if tokenizer is None:
            raise ValueError("scorer.tr.variant=released needs the tokenizer, to split the domain words")
        with _scoring_attention(model):
            distances = _released_distances(model, used, domain_words, tokenizer, tokens_per_batch)
    if not np.isfinite(distances).all():
        raise ValueError(
            "the model's embeddings of tokens in the dataset are not finite numbers; first such token id: "
            f"{used[~np.isfinite(distances)][0]}"
        )
    of_responses = distances[counts.response[used] > 0]
    nearest, farthest = float(of_responses.min()), float(of_responses.max())
    values = np.full(vocabulary, np.nan, dtype=np.float32)
    values[used] = 1.0 if nearest == farthest else (farthest - distances) / (farthest - nearest)
    return TRTable(values, nearest, farthest)


def _embedding_rows(model: PreTrainedModel) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """How many rows the input embedding has, and what gives those of ids (n,) as (n, E), in the model's precision.

    A quantised embedding keeps no matrix of them, and one with a `device_map` may lie on disk: there its own forward
    pass unpacks or fetches them.
    """
    embedding = model.get_input_embeddings()
    weight: Any = getattr(embedding, "weight", None)
    plain = isinstance(weight, torch.nn.Parameter) and type(weight.data) is torch.Tensor and weight.is_floating_point()
    if plain and not weight.is_meta:
        return weight.shape[0], lambda ids: weight[ids.to(weight.device)]
    device = input_device(model)

    def passed(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = embedding(ids.to(device))
        return found

    return weight.shape[0] if plain else model.config.get_text_config().vocab_size, passed


def _dataset_distances(model: PreTrainedModel, counts: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Cosine distances of the embedding rows of `used` to the mean row under `counts` (V,); float64."""
    _, rows = _embedding_rows(model)

    def blocks(ids: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for block in np.array_split(ids, -(-len(ids) // 4096)):  # the whole matrix in float64 may be gigabytes
            yield block, rows(torch.from_numpy(block)).to("cpu", torch.float64)

    centre_E: torch.Tensor | float = 0.0
    for block, rows_UE in blocks(np.flatnonzero(counts)):
        centre_E = centre_E + torch.from_numpy(counts[block] / counts.sum()) @ rows_UE
    assert isinstance(centre_E, torch.Tensor)  # a dataset has tokens
    return np.concatenate([1.0 - F.cosine_similarity(rows_UE, centre_E[None]).numpy() for _, rows_UE in blocks(used)])


def _released_distances(
    model: PreTrainedModel,
    used: np.ndarray,
    domain_words: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    tokens_per_batch: int,
) -> np.ndarray:
    """Cosine distances of one-token hidden states to the mean hidden state of the domain words; float64."""

    device = input_device(model)

    def hidden(ids: Any) -> torch.Tensor:
        """Last hidden states (B, T, E) of rows of ids, float64."""
        ids_BT = torch.as_tensor(ids, dtype=torch.int64, device=device)
        return _hidden(model, ids_BT).to("cpu", torch.float64)

    if not domain_words:
        raise ValueError("scorer.tr.variant=released needs task.domain_words, and there are none")
    words_E = []
    for word in domain_words:
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(f"task.domain_words: the tokenizer makes no token of {word!r}")
        words_E.append(hidden([ids])[0].mean(0))
    centre_E = torch.stack(words_E).mean(0)
    blocks = np.array_split(used, -(-len(used) // tokens_per_batch))
    return np.concatenate([1.0 - F.cosine_similarity(hidden(block[:, None])[:, 0], centre_E[None]) for block in blocks])


# --- TR in context ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Centre:
    """What the dataset says of its tokens' vectors: the mean of those of all response tokens, float64 (E,), and the
    cosine distances to it that become 1 and 0."""

    mean: np.ndarray
    nearest: float
    farthest: float

    def distances(self, hidden_NE: np.ndarray) -> np.ndarray:
        """Cosine distances to the mean, float64 (N,); a vector of zeros has cosine 0 with everything."""
        return _cosine_distances(hidden_NE, self.mean)


def context_centre(blocks: Callable[[], Iterable[np.ndarray]]) -> Centre:
    """The centre of the vectors, (N, E), that `blocks` gives, which is called twice.

    Every token counts alike, as each vector has length 1: some, above all the first of a row, are hundreds of times
    longer than the others in the middle layers of language models and would be the mean.
    """
    total_E, tokens = np.zeros(1), 0
    for hidden_NE in blocks():
        total_E, tokens = total_E + hidden_NE.sum(axis=0, dtype=np.float64), tokens + len(hidden_NE)
    mean_E = total_E / tokens
    extremes = [(found.min(), found.max()) for found in (_cosine_distances(block, mean_E) for block in blocks())]
    return Centre(mean_E, float(min(low for low, _ in extremes)), float(max(high for _, high in extremes)))


def _cosine_distances(hidden_NE: np.ndarray, centre_E: np.ndarray) -> np.ndarray:
    parts = []
    for part_NE in np.array_split(hidden_NE, -(-len(hidden_NE) // ROWS_AT_ONCE)):
        wide_NE = part_NE.astype(np.float64)
        size_N = np.linalg.norm(wide_NE, axis=1) * np.linalg.norm(centre_E)
        parts.append(1.0 - np.divide(wide_NE @ centre_E, size_N, out=np.zeros(len(wide_NE)), where=size_N > 0))
    return np.concatenate(parts)


def with_context_tr(table: pa.Table, centre: Centre) -> pa.Table:
    """The table with `tr` = 1 - minmax(cosine distance) in the place of `HIDDEN`; all 1 if all distances are equal."""
    distances = centre.distances(hidden_states(table))
    spread = centre.farthest - centre.nearest
    values = np.clip((centre.farthest - distances) / spread, 0, 1) if spread else np.ones(len(distances))
    column = as_lists(values.astype(np.float32), Sequences(table).responses)
    return table.set_column(table.column_names.index(HIDDEN), "tr", column)


def hidden_states(table: pa.Table) -> np.ndarray:
    """The vectors of a table's response tokens, float16 (N, E)."""
    column = table[HIDDEN].combine_chunks().flatten()
    width: int = column.type.byte_width
    values = np.frombuffer(column.buffers()[1], np.uint8)[column.offset * width : (column.offset + len(column)) * width]
    return values.view(np.float16).reshape(len(column), -1)


def _as_vectors(flat: Sequences, hidden_NE: np.ndarray) -> pa.ListArray:
    """A list for each row, of as many bytes for each response token as its vector takes."""
    width = hidden_NE.shape[1] * hidden_NE.itemsize
    data = pa.py_buffer(np.ascontiguousarray(hidden_NE))
    offsets = np.concatenate([[0], np.cumsum(flat.responses)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(hidden_NE), [None, data])
    )
