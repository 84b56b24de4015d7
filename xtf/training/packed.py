"""A causal language model on packed rows: attention within documents, and the loss.

Shapes: T tokens of a packed row, L of one of its documents, N of the row's tokens predict a token with loss, n of them
are a chunk; H query heads, K key heads, S head width, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric.utilities import move_data_to_device
from peft import PeftModel
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from xtf.config.schema import Backward
from xtf.data.rows import first_few
from xtf.data.steps import MicroBatch, TrainingRows, pack_documents
from xtf.runtime.heads import decoder_of, logits_of, position_table, rope_limit
from xtf.scoring.methods import Method, OnlineTokens

PACKED = "packed_sdpa"  # name of the attention function below in transformers' registry
LOGITS_AT_ONCE = 2**26  # elements of the largest [tokens, vocabulary] block; 256 MiB in float32


# -- attention within documents ------------------------------------------------------------------------------


@dataclass
class PromptAttention:
    """Asks one layer for the share of each token's attention that goes to the prompt of its document."""

    layer: int
    prompt_lengths: Sequence[int]
    shares: dict[int, Tensor] = field(default_factory=dict)  # document -> [length], mean over heads

    def look(
        self, document: int, module: nn.Module, query_1HLS: Tensor, key_1KLS: Tensor, scaling: float | None
    ) -> None:
        """Note the share for one document, from the layer's queries and keys."""
        with torch.no_grad():
            key_1HLS = repeat_kv(key_1KLS, query_1HLS.shape[1] // key_1KLS.shape[1])
            scores_1HLL = (
                query_1HLS.float() @ key_1HLS.float().transpose(2, 3) * (scaling or query_1HLS.shape[-1] ** -0.5)
            )
            length = scores_1HLL.shape[-1]
            later_LL = torch.ones(length, length, dtype=torch.bool, device=scores_1HLL.device).triu(1)
            attention_1HLL = scores_1HLL.masked_fill(later_LL, -torch.inf).softmax(-1)
            self.shares[document] = attention_1HLL[0, :, :, : self.prompt_lengths[document]].sum(-1).mean(0)


def packed_sdpa(
    module: nn.Module,
    query_1HTS: Tensor,
    key_1KTS: Tensor,
    value_1KTS: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int],
    prompt_attention: PromptAttention | None = None,
    constant: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each document of a packed row to itself, [1, H, T, S] -> [1, T, H, S].

    One call of PyTorch's kernel per document: the work grows with the sum of the squared lengths, where a
    masked call over the row grows with the square of the sum. No gradient flows into keys and values at the positions
    `constant`, [M].
    """
    assert attention_mask is None, "documents are told apart by their lengths, not by a mask"
    if constant is not None:
        for part in (key_1KTS, value_1KTS):
            if part.requires_grad:
                part.register_hook(lambda grad_1KTS: grad_1KTS.index_fill(2, constant, 0))
    outputs = []
    documents = zip(
        *(part.split(list(document_lengths), dim=2) for part in (query_1HTS, key_1KTS, value_1KTS)), strict=True
    )
    for index, (q, k, v) in enumerate(documents):
        if prompt_attention is not None and module.layer_idx == prompt_attention.layer:
            prompt_attention.look(index, module, q, k, kwargs.get("scaling"))
        outputs.append(sdpa_attention_forward(module, q, k, v, None, is_causal=True, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)


# -- parts of the backward pass ------------------------------------------------------------------------------


class _Rows(torch.autograd.Function):
    """Some rows of a packed row's states, [1, T, D] -> [1, n, D]; none of them twice."""

    @staticmethod
    def forward(ctx: Any, states_1TD: Tensor, rows_n: Tensor) -> Tensor:
        ctx.save_for_backward(rows_n)
        ctx.tokens = states_1TD.shape[1]
        return states_1TD.index_select(1, rows_n)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (rows_n,) = ctx.saved_tensors
        grad_1TD = outer[0].new_zeros(1, ctx.tokens, outer[0].shape[-1])
        return grad_1TD.index_copy_(1, rows_n, outer[0]), None


class _Apart:
    """Runs what treats every token by itself with a gradient at the positions `learnt` only, not at `constant`."""

    def __init__(self, learnt: Tensor, constant: Tensor) -> None:
        self.learnt, self.constant = learnt, constant
        # States, and their rows apart: what was read last, for several projections read it, and what was made last, for
        # projections and MLP read what a norm makes.
        self.known: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, forward: Callable[[Tensor], Tensor], states_1TD: Tensor) -> Tensor:
        """`forward`, which takes [1, n, D] to [1, n, E], of [1, T, D]."""
        read = next((states for states in self.known if states[0] is states_1TD), None)
        if read is None:
            rest = states_1TD.detach().index_select(1, self.constant)
            read = states_1TD, _Rows.apply(states_1TD, self.learnt), rest
        own = forward(read[1])
        with torch.no_grad():
            rest = forward(read[2])
            whole = own.new_empty(1, states_1TD.shape[1], own.shape[-1]).index_copy_(1, self.constant, rest)
        whole = whole.index_copy_(1, self.learnt, own)
        self.known = [read, (whole, own, rest)]
        return whole


# -- the loss ------------------------------------------------------------------------------------------------


@dataclass
class _Tied:
    """Weights, [V, D], that are the embedding's and the LM head's, in one backward pass."""

    weight: nn.Parameter
    head_grad: Tensor | None = None


class _TiedEmbedding(torch.autograd.Function):
    """Tokens' rows of tied weights, [1, T] -> [1, T, D], whose gradient is added to the head's.

    One of its own would be a fresh [V, D] of zeros for each micro-batch, to be added to the head's: 5 % of a step of
    SmolLM2 on a CPU. Autograd holds the head's until all gradients of the weights are there; nothing has read it yet.
    """

    @staticmethod
    def forward(ctx: Any, tied: _Tied, weight: Tensor, ids_1T: Tensor, padding: int | None) -> Tensor:
        ctx.tied, ctx.padding = tied, -1 if padding is None else padding
        ctx.save_for_backward(ids_1T)
        return F.embedding(ids_1T, weight)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        (ids_1T,) = ctx.saved_tensors
        grad_VD, ctx.tied.head_grad = ctx.tied.head_grad, None
        if grad_VD is None:  # the states were used otherwise than for the loss
            own = torch.ops.aten.embedding_dense_backward(outer[0], ids_1T, len(ctx.tied.weight), ctx.padding, False)
            return None, own, None, None
        learnt_1T = ids_1T != ctx.padding
        grad_VD.index_add_(0, ids_1T[learnt_1T], outer[0][learnt_1T].to(grad_VD.dtype))
        return None, None, None, None


class _ChunkedLoss(torch.autograd.Function):
    """A sum of losses over chunks of tokens, each chunk's gradients taken as soon as its loss is known.

    A chunk's logits are freed before the next chunk's are made, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: Callable[[Tensor, slice], Tensor],
        size: int,
        tied: _Tied | None,
        hidden_ND: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND)
        grads: list[Tensor | None] = [None] * len(parameters)
        for part in _chunks(len(hidden_ND), size):
            with torch.enable_grad():
                leaf_nD = hidden_ND[part].detach().requires_grad_()
                loss = chunk_loss(leaf_nD, part)
            found = torch.autograd.grad(loss, (leaf_nD, *parameters))
            grad_ND[part] = found[0]
            grads = [new if old is None else old.add_(new) for old, new in zip(grads, found[1:], strict=True)]
            total += loss.detach()
        ctx.tied = tied
        ctx.at = None if tied is None else next(i for i, p in enumerate(parameters) if p is tied.weight)
        ctx.grads = (
            grad_ND,
            *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        # `data` is no view: autograd adds another gradient of the same weights to it in place.
        grads = [grad.data.mul_(outer[0].to(grad.dtype)) for grad in grads]
        if ctx.tied is not None:
            ctx.tied.head_grad = grads[1 + ctx.at]
        return None, None, None, *grads


def _chunks(length: int, size: int) -> Iterable[slice]:
    return (slice(start, start + size) for start in range(0, length, size))


class PackedLM(nn.Module):
    """A causal language model with its loss: the decoder on a packed row, the LM head on kept tokens only."""

    def __init__(self, model: PreTrainedModel | PeftModel, method: Method) -> None:
        super().__init__()
        self.model = model
        self.method = method
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        assert isinstance(base, PreTrainedModel)
        # In a tuple, so that they are not registered a second time: `model` holds them already.
        self._parts = (base, decoder_of(base), base.get_output_embeddings())
        self.config = base.config.get_text_config()
        self._behind_attention = behind_last_attention(base)
        self.row_wise = row_wise_parts(base)
        self._constant: Tensor | None = None
        self._tied: _Tied | None = None  # of the last forward pass
        self.progress = 0.0  # share of the training steps done

    def forward(self, micro: MicroBatch, decided: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w l over the micro-batch's targets; beside it, without gradient, l [N] and w [N].

        `decided`: its weights are the online rule's already.
        """
        prompt_attention = None
        if self.method.prompt_attention and self.training:
            prompt_attention = PromptAttention(self.config.num_hidden_layers - 1, micro.prompt_lengths)
        hidden_ND = self.hidden(micro, prompt_attention)
        if decided or not self.method.online or (self.method.of_the_model and not self.training):
            return self._loss(hidden_ND, micro.targets, micro.weights)
        if self.method.pointwise:
            return self._loss(hidden_ND, micro.targets, micro.weights, micro)
        # The rule ranks tokens against each other: all losses first, then the gradient of the chosen ones.
        with torch.no_grad():
            losses_N = self._loss(hidden_ND, micro.targets, micro.weights)[1]
        weights_N = micro.weights * self.method.online_weights(
            self._seen(micro, slice(None), losses_N, None, prompt_attention)
        )
        chosen_N = weights_N.nonzero()[:, 0]
        total = self._loss(hidden_ND[chosen_N], micro.targets[chosen_N], weights_N[chosen_N])[0]
        return total, losses_N, weights_N

    @torch.no_grad()
    def losses(self, micro: MicroBatch) -> Tensor:
        """l [N] of the micro-batch's targets."""
        return self._loss(self.hidden(micro), micro.targets, micro.weights)[1]

    def _loss(
        self, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, pointwise: MicroBatch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w l, l and w; with `pointwise`, w is multiplied by the online rule, token by token."""
        losses_N = torch.zeros_like(weights_N)
        weights_N = weights_N.clone()

        def chunk_loss(hidden_nD: Tensor, where: slice) -> Tensor:
            logits_nV = self.logits(hidden_nD).float()
            losses_n = F.cross_entropy(logits_nV, targets_N[where], reduction="none")
            losses_N[where] = losses_n.detach()
            if pointwise is not None:
                seen = self._seen(pointwise, where, losses_N[where], logits_nV.detach(), None)
                weights_N[where] *= self.method.online_weights(seen)
            return (weights_N[where] * losses_n).sum()

        if torch.is_grad_enabled():
            head = [parameter for parameter in self._parts[2].parameters() if parameter.requires_grad]
            total = _ChunkedLoss.apply(chunk_loss, self.chunk, self._tied, hidden_ND, *head)
        else:
            parts = [chunk_loss(hidden_ND[where], where) for where in _chunks(len(hidden_ND), self.chunk)]
            total = torch.stack(parts).sum()
        return total, losses_N, weights_N

    def _seen(
        self,
        micro: MicroBatch,
        where: slice,
        losses_N: Tensor,
        logits_nV: Tensor | None,
        prompt_attention: PromptAttention | None,
    ) -> OnlineTokens:
        entropy_n = attention_N = None
        if self.method.entropy_top and logits_nV is not None:
            top_nk = logits_nV.topk(self.method.entropy_top, dim=-1).values.log_softmax(-1)
            entropy_n = -(top_nk.exp() * top_nk).sum(-1)
        if prompt_attention is not None:
            shares = prompt_attention.shares
            of_T = torch.cat([shares[document] for document in range(len(shares))])
            own_N = (micro.predictors + 1).clamp(max=len(of_T) - 1)  # a device without a document has one token
            attention_N = of_T[own_N]
        stored = {name: column[where] for name, column in micro.columns.items()}
        return OnlineTokens(
            -losses_N, micro.weights[where], stored, micro.rows[where], self.progress, entropy_n, attention_N
        )

    def hidden(self, micro: MicroBatch, prompt_attention: PromptAttention | None = None) -> Tensor:
        """Last hidden states of the tokens that predict a target, [N, D]."""
        base, decoder, _ = self._parts
        packed: dict[str, Any] = {}
        if base.config._attn_implementation == PACKED:
            packed = {"document_lengths": micro.document_lengths, "prompt_attention": prompt_attention}
            packed["constant"] = self._constant
        if len(micro.document_lengths) > 1 or packed:  # a single document has the positions that a model counts itself
            packed["position_ids"] = micro.position_ids
        with self._on_predictors(micro.predictors, micro.input_ids.shape[1]), self._with_tied_embedding():
            output = decoder(input_ids=micro.input_ids, use_cache=False, **packed)
        hidden_ND: Tensor = output.last_hidden_state[0, micro.predictors]
        return hidden_ND

    @contextlib.contextmanager
    def filtered(self, micro: MicroBatch, backward: Backward) -> Iterator[None]:
        """Within, for the forward and the backward pass of `micro`: states at some places are constants.

        With `kept` at its `idle` places, where prompts have their whole gradient; with `labelled` wherever no token is
        predicted that carries loss, prompts too. The loss reaches those places through their keys and values alone.
        That way is cut, in `packed_sdpa`, which is all that is approximated; then their gradient is zero in all layers,
        and what treats every token by itself computes and keeps nothing for it. The forward pass gives what it gives
        without.
        """
        if backward is Backward.exact:
            yield
            return
        learnt_T = torch.full_like(micro.input_ids[0], backward is Backward.kept, dtype=torch.bool)
        if backward is Backward.kept:
            learnt_T[micro.idle] = False
        else:
            learnt_T[micro.predictors] = True
        learnt, constant = learnt_T.nonzero()[:, 0], (~learnt_T).nonzero()[:, 0]
        if not len(constant):
            yield
            return
        assert self._parts[0].config._attn_implementation == PACKED
        # Where the last layer is computed at the predictors alone, it leaves out those places and more.
        parts = [part for part in self.row_wise if part not in self._behind_attention]
        own = {part: part.__dict__["forward"] for part in parts if "forward" in part.__dict__}
        self._constant = constant
        apart = _Apart(learnt, constant)
        for part in parts:
            part.forward = functools.partial(apart, part.forward)
        try:
            yield
        finally:
            self._constant = None
            for part in parts:
                del part.forward
                part.__dict__.update({"forward": own[part]} if part in own else {})

    @contextlib.contextmanager
    def _on_predictors(self, predictors: Tensor, tokens: int) -> Iterator[None]:
        """Within, what lies behind the last layer's attention is computed where a target is predicted, and 0 elsewhere.

        Nothing reads the other places. Not with gradient checkpointing, which computes the layer again outside, and not
        in a compiled model, which wants one shape.
        """

        def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return args[0][:, predictors], *args[1:]

        def scatter(module: nn.Module, args: tuple[Tensor, ...], output_1ND: Tensor) -> Tensor:
            whole_1TD = output_1ND.new_zeros(1, tokens, output_1ND.shape[-1])
            return whole_1TD.index_copy(1, predictors, output_1ND)

        handles: list[Any] = []
        again = any(getattr(part, "gradient_checkpointing", False) for part in self._parts[0].modules())
        if len(predictors) < tokens and not (again or self._compiled):
            for part in self._behind_attention:
                handles += [part.register_forward_pre_hook(gather), part.register_forward_hook(scatter)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _with_tied_embedding(self) -> Iterator[None]:
        """Within, the embedding's gradient is added to the head's where both have the same weights and learn.

        On a CPU alone: on a GPU the order of such sums is not fixed, and fresh memory costs next to nothing. Not in a
        compiled model, whose graph has its own.
        """
        base, _, head = self._parts
        embedding: Any = base.get_input_embeddings()
        self._tied = None
        if (
            type(embedding) is not nn.Embedding
            or (weight := embedding.weight) is not getattr(head, "weight", None)
            or not (torch.is_grad_enabled() and weight.requires_grad and weight.device.type == "cpu")
            or self._compiled
            or "forward" in vars(embedding)
            or embedding.max_norm is not None
            or embedding.scale_grad_by_freq
            or embedding.sparse
        ):
            yield
            return
        self._tied = tied = _Tied(weight)
        vars(embedding)["forward"] = lambda ids_1T: _TiedEmbedding.apply(tied, weight, ids_1T, embedding.padding_idx)
        try:
            yield
        finally:
            del vars(embedding)["forward"]

    def logits(self, hidden_nD: Tensor) -> Tensor:
        """Logits from last hidden states, [n, D] -> [n, V]."""
        return logits_of(self._parts[0], hidden_nD)

    @property
    def _compiled(self) -> bool:
        return self._parts[0].get_decoder()._compiled_call_impl is not None

    @property
    def base(self) -> PreTrainedModel:
        """The model without the adapter's wrapper."""
        return self._parts[0]

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, LOGITS_AT_ONCE // self.config.vocab_size)


# MLPs that treat every token by itself; a mixture of experts may not.
ROW_WISE = ("LlamaMLP", "Qwen2MLP", "Qwen3MLP", "MistralMLP", "Phi3MLP", "GemmaMLP", "Gemma2MLP", "SmolLM3MLP")


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj")


def row_wise_parts(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The parts of the decoder's layers that treat every token by itself: norms, projections of the attention, MLPs.
    None of a layer that has them in a form that is not known."""
    found: list[nn.Module] = []
    for layer in getattr(decoder_of(model), "layers", None) or ():
        mlp, attention = getattr(layer, "mlp", None), getattr(layer, "self_attn", None)
        if mlp is not None and type(mlp).__name__ in ROW_WISE and attention is not None:
            found += [part for part in layer.children() if type(part).__name__.endswith("RMSNorm")]
            found += [part for name, part in attention.named_children() if name in PROJECTIONS and _linear(part)]
            found.append(mlp)
    return tuple(found)


def _linear(part: nn.Module | None) -> bool:
    """A linear map, or an adapter around one."""
    return isinstance(getattr(part, "base_layer", part), nn.Linear)


def behind_last_attention(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The parts of the last layer that come after its attention and treat every token by itself: the projection of what
    attention gives, and the MLP. None of a layer that has them in a form that is not known."""
    layers = getattr(decoder_of(model), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return ()
    mlp, attention = getattr(layers[-1], "mlp", None), getattr(layers[-1], "self_attn", None)
    projection = getattr(attention, "o_proj", None)
    if type(mlp).__name__ not in ROW_WISE or not _linear(projection):
        return ()
    assert mlp is not None and projection is not None
    return projection, mlp


def enable_packing(model: PreTrainedModel, longest: int, compiled: bool = False) -> tuple[str, bool]:
    """Let `model` read packed rows; returns the name of its attention implementation, now `PACKED` where it was sdpa,
    and whether several documents may share a row.

    They may not where one document's states or attention reach into the next (recurrent layers, attention that looks
    past the documents' bounds); each then has a row of its own.

    Args:
        longest: tokens of the longest document; sliding windows shorter than that stay with masked attention.
        compiled: whether the model will be compiled; then the attention stays, as document lengths are no fixed shape.

    Raises:
        ValueError: the loss of single documents differs too: something unknown stands between the last hidden states
            and the logits; or the weights are broken.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 15, device=model.device) * 7919 % vocabulary
    documents = [tokens[:6], tokens[6:]]
    training, original = model.training, model.config._attn_implementation
    model.eval()
    try:
        with torch.no_grad():
            apart = []
            for ids in documents:
                logits = model(ids[None], use_cache=False).logits[0, :-1].float()
                apart.append(F.cross_entropy(logits, ids[1:], reduction="none"))
            if not torch.cat(apart).isfinite().all():
                raise ValueError(
                    f"the weights of {type(model).__name__} are broken: its loss on plain token ids is not finite"
                )
            if not compiled:
                _choose_attention(model, longest)
            # Chunks of attention are counted from the row's start, not from a document's.
            chunk = getattr(model.config.get_text_config(), "attention_chunk_size", None) or longest
            if longest <= chunk and _difference(model, [documents], apart) is None:
                return str(model.config._attn_implementation), True
            if model.config._attn_implementation != original:
                model.set_attn_implementation(original)
            if (difference := _difference(model, [[ids] for ids in documents], apart)) is None:
                return str(original), False
    finally:
        model.train(training)
    raise ValueError(
        f"{type(model).__name__} cannot be trained here: its logits are not what its LM head makes of its last hidden "
        f"states (the loss of single documents differs by {difference:.2g}; an unknown scaling behind the head?)"
    )


def _difference(model: PreTrainedModel, rows: Sequence[Sequence[Tensor]], apart: Sequence[Tensor]) -> float | None:
    """By how much the losses of documents packed into rows differ from those `apart`; None: not beyond rounding.

    Infinity for a model that does not take them so.
    """
    found = []
    for documents in rows:
        micro = move_data_to_device(pack_documents(documents), model.device)
        try:
            found.append(PackedLM(model, Method())(micro)[1])
        except (TypeError, ValueError, RuntimeError, AssertionError):
            return math.inf
    difference = float((torch.cat(found) - torch.cat(list(apart))).abs().max())
    return None if difference < (1e-3 if model.dtype == torch.float32 else 0.1) else difference


def check_positions(model: PreTrainedModel, *parts: TrainingRows | None) -> None:
    """Refuse rows that a table of learned positions is too short for; keep those apart that longrope would change.

    Raises:
        ValueError: naming the examples.
    """
    table = position_table(model)
    for rows in parts:
        if rows is None:
            continue
        rows.apart = rope_limit(model)
        if table is not None and (rows.needed > table).any():
            names = [name for name, long in zip(rows.example_ids, rows.needed > table, strict=True) if long]
            raise ValueError(
                f"{type(model).__name__} has positions for {table} tokens; longer are the examples {first_few(names)}: "
                f"set model.max_length={table}"
            )


def _choose_attention(model: PreTrainedModel, longest: int) -> None:
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    parameters = inspect.signature(decoder_of(model).forward).parameters.values()
    passes_lengths_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if model.config._attn_implementation == "sdpa" and passes_lengths_on and (window is None or longest <= window):
        model.set_attn_implementation(PACKED)
