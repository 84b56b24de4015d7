"""A causal language model on packed rows: attention within documents, and the loss.

Shapes: T tokens of a packed row, N of them predict a token with loss, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
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

from xtf.data.steps import MicroBatch, pack_documents
from xtf.scoring.methods import Method, OnlineTokens

PACKED = "packed_sdpa"  # name of the attention function below in transformers' registry
LOGITS_AT_ONCE = 2**26  # elements of the largest [tokens, vocabulary] block; 256 MiB in float32


# -- attention within documents ------------------------------------------------------------------------------


@dataclass
class PromptProbe:
    """Asks one layer for the share of each token's attention that goes to the prompt of its document."""

    layer: int
    prompt_lengths: Sequence[int]
    shares: dict[int, Tensor] = field(default_factory=dict)  # document -> [length], mean over heads

    def look(self, document: int, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None) -> None:
        with torch.no_grad():
            key = repeat_kv(key, query.shape[1] // key.shape[1])
            scores = query.float() @ key.float().transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
            length = scores.shape[-1]
            later = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
            attention = scores.masked_fill(later, -torch.inf).softmax(-1)
            self.shares[document] = attention[0, :, :, : self.prompt_lengths[document]].sum(-1).mean(0)


def packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int],
    probe: PromptProbe | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each document of a packed row to itself, [1, heads, T, size] -> [1, T, heads,
    size].

    One call of PyTorch's kernel per document: the work grows with the sum of the squared lengths, where a
    masked call over the row grows with the square of the sum.
    """
    assert attention_mask is None, "documents are told apart by their lengths, not by a mask"
    outputs = []
    documents = zip(*(part.split(list(document_lengths), dim=2) for part in (query, key, value)), strict=True)
    for index, (q, k, v) in enumerate(documents):
        if probe is not None and module.layer_idx == probe.layer:
            probe.look(index, module, q, k, kwargs.get("scaling"))
        outputs.append(sdpa_attention_forward(module, q, k, v, None, is_causal=True, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(PACKED, packed_sdpa)
AttentionMaskInterface.register(PACKED, lambda *args, **kwargs: None)


# -- the loss ------------------------------------------------------------------------------------------------


class _ChunkedLoss(torch.autograd.Function):
    """A sum of losses over chunks of tokens, each chunk's gradients taken as soon as its loss is known.

    A chunk's logits are freed before the next chunk's are made, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        chunk_loss: Callable[[Tensor, slice], Tensor],
        size: int,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_grad = torch.empty_like(hidden)
        grads: list[Tensor | None] = [None] * len(parameters)
        for part in _chunks(len(hidden), size):
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                loss = chunk_loss(leaf, part)
            found = torch.autograd.grad(loss, (leaf, *parameters))
            hidden_grad[part] = found[0]
            grads = [new if old is None else old.add_(new) for old, new in zip(grads, found[1:], strict=True)]
            total += loss.detach()
        ctx.grads = (
            hidden_grad,
            *(torch.zeros_like(p) if g is None else g for g, p in zip(grads, parameters, strict=True)),
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        grads, ctx.grads = ctx.grads, None
        return None, None, *(grad.mul_(outer[0].to(grad.dtype)) for grad in grads)


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
        self._parts = (base, base.get_decoder(), base.get_output_embeddings())
        self.config = base.config.get_text_config()
        self.progress = 0.0  # share of the training steps done

    def forward(self, micro: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w l over the micro-batch's targets; beside it, without gradient, l [N] and w [N]."""
        probe = None
        if self.method.prompt_attention and self.training:
            probe = PromptProbe(self.config.num_hidden_layers - 1, micro.prompt_lengths)
        hidden = self.hidden(micro, probe)
        if not (self.method.online and self.training):
            return self._loss(hidden, micro.targets, micro.weights)
        if self.method.pointwise:
            return self._loss(hidden, micro.targets, micro.weights, micro)
        # The rule ranks tokens against each other: all losses first, then the gradient of the chosen ones.
        with torch.no_grad():
            losses = self._loss(hidden, micro.targets, micro.weights)[1]
        weights = micro.weights * self.method.online_weights(self._seen(micro, slice(None), losses, None, probe))
        chosen = weights.nonzero()[:, 0]
        total = self._loss(hidden[chosen], micro.targets[chosen], weights[chosen])[0]
        return total, losses, weights

    def _loss(
        self, hidden: Tensor, targets: Tensor, weights: Tensor, pointwise: MicroBatch | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of w l, l and w; with `pointwise`, w is multiplied by the online rule, token by token."""
        losses = torch.zeros_like(weights)
        weights = weights.clone()

        def chunk_loss(part: Tensor, where: slice) -> Tensor:
            logits = self.logits(part).float()
            token_losses = F.cross_entropy(logits, targets[where], reduction="none")
            losses[where] = token_losses.detach()
            if pointwise is not None:
                seen = self._seen(pointwise, where, losses[where], logits.detach(), None)
                weights[where] *= self.method.online_weights(seen)
            return (weights[where] * token_losses).sum()

        if torch.is_grad_enabled():
            head = [parameter for parameter in self._parts[2].parameters() if parameter.requires_grad]
            total = _ChunkedLoss.apply(chunk_loss, self.chunk, hidden, *head)
        else:
            parts = [chunk_loss(hidden[where], where) for where in _chunks(len(hidden), self.chunk)]
            total = torch.stack(parts).sum()
        return total, losses, weights

    def _seen(
        self,
        micro: MicroBatch,
        where: slice,
        losses: Tensor,
        logits: Tensor | None,
        probe: PromptProbe | None,
    ) -> OnlineTokens:
        entropy = attention = None
        if self.method.entropy_top and logits is not None:
            top = logits.topk(self.method.entropy_top, dim=-1).values.log_softmax(-1)
            entropy = -(top.exp() * top).sum(-1)
        if probe is not None:
            attention = torch.cat([probe.shares[i] for i in range(len(probe.shares))])[micro.predictors]
        stored = {name: column[where] for name, column in micro.columns.items()}
        return OnlineTokens(-losses, micro.weights[where], stored, micro.rows[where], self.progress, entropy, attention)

    def hidden(self, micro: MicroBatch, probe: PromptProbe | None = None) -> Tensor:
        """Last hidden states of the tokens that predict a target, [N, D]."""
        base, decoder, _ = self._parts
        packed: dict[str, Any] = {}
        if base.config._attn_implementation == PACKED:
            packed = {"document_lengths": micro.document_lengths, "probe": probe}
        output = decoder(input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False, **packed)
        hidden: Tensor = output.last_hidden_state[0, micro.predictors]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """LM head with the scaling and soft-capping that the architecture puts behind it, [n, D] -> [n, V]."""
        logits: Tensor = self._parts[2](hidden)
        if scale := getattr(self.config, "logit_scale", None):
            logits = logits * scale
        if scaling := getattr(self.config, "logits_scaling", None):
            logits = logits / scaling
        if cap := getattr(self.config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        return logits

    @property
    def base(self) -> PreTrainedModel:
        """The model without the adapter's wrapper."""
        return self._parts[0]

    @property
    def chunk(self) -> int:
        """Tokens whose logits are held at once."""
        return max(1, LOGITS_AT_ONCE // self.config.vocab_size)


def enable_packing(model: PreTrainedModel, longest: int, compiled: bool = False) -> str:
    """Let `model` read packed rows; returns the name of its attention implementation, now `PACKED` where it
    was sdpa.

    ValueError if packing changes the loss of two documents: recurrent or convolutional layers carry state
    from one document to the next, and a scaling behind the head may be unknown to `PackedLM.logits`.

    Args:
        longest: tokens of the longest document; sliding windows shorter than that stay with masked attention.
        compiled: whether the model will be compiled; then the attention stays, as document lengths are no fixed shape.
    """
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.arange(1, 15, device=model.device) * 7919 % vocabulary
    documents = [tokens[:6], tokens[6:]]
    training = model.training
    model.eval()
    with torch.no_grad():
        apart = []
        for ids in documents:
            logits = model(ids[None], use_cache=False).logits[0, :-1].float()
            apart.append(F.cross_entropy(logits, ids[1:], reduction="none"))
        if not compiled:
            _choose_attention(model, longest)
        micro = move_data_to_device(pack_documents(documents), model.device)
        packed = PackedLM(model, Method())(micro)[1]
    model.train(training)
    if not torch.cat(apart).isfinite().all():
        raise ValueError(f"the weights of {type(model).__name__} are broken: its loss on plain token ids is not finite")
    difference = float((packed - torch.cat(apart)).abs().max())
    if not difference < (1e-3 if model.dtype == torch.float32 else 0.1):
        raise ValueError(
            f"{type(model).__name__} cannot be trained packed: its loss differs by {difference:.2g} "
            "from that of the documents one by one (recurrent layers, or an unknown scaling of the logits)"
        )
    return str(model.config._attn_implementation)


def _choose_attention(model: PreTrainedModel, longest: int) -> None:
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    parameters = inspect.signature(model.get_decoder().forward).parameters.values()
    passes_lengths_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    if model.config._attn_implementation == "sdpa" and passes_lengths_on and (window is None or longest <= window):
        model.set_attn_implementation(PACKED)
