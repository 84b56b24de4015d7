"""The LightningModule: the only place that sees gradients. `training_step` applies the mask.

Shapes: T tokens of a packed row, N of them predict a token with loss, D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from lightning_fabric.utilities import move_data_to_device
from peft import PeftModel
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from xtf.config import Divisor, Optimizer, Schedule, TuningConfig
from xtf.data import MicroBatch, Step, StepLoader, TrainingRows, collate, pack_documents
from xtf.methods import Method, OnlineTokens
from xtf.muon import Muon

PACKED = "packed_sdpa"  # name of the attention function below in transformers' registry
VALIDATION_ROWS = 256  # packed at once
LOGITS_AT_ONCE = 2**26  # elements of the largest [tokens, vocabulary] block; 256 MiB in float32


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not a finite number; raised before the weights are changed."""


# -- attention within documents ------------------------------------------------------------------------------


@dataclass
class PromptProbe:
    """Asks one layer for the share of each token's attention that goes to the prompt of its document."""

    layer: int
    prompt_lengths: Sequence[int]
    shares: dict[int, Tensor] = field(default_factory=dict)  # document -> [length], mean over heads

    def look(
        self, document: int, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None
    ) -> None:
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
        weights = micro.weights * self.method.online_weights(
            self._seen(micro, slice(None), losses, None, probe)
        )
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
        return OnlineTokens(
            -losses, micro.weights[where], stored, micro.rows[where], self.progress, entropy, attention
        )

    def hidden(self, micro: MicroBatch, probe: PromptProbe | None = None) -> Tensor:
        """Last hidden states of the tokens that predict a target, [N, D]."""
        base, decoder, _ = self._parts
        packed: dict[str, Any] = {}
        if base.config._attn_implementation == PACKED:
            packed = {"document_lengths": micro.document_lengths, "probe": probe}
        output = decoder(
            input_ids=micro.input_ids, position_ids=micro.position_ids, use_cache=False, **packed
        )
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
        raise ValueError(
            f"the weights of {type(model).__name__} are broken: its loss on plain token ids is not finite"
        )
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
    if (
        model.config._attn_implementation == "sdpa"
        and passes_lengths_on
        and (window is None or longest <= window)
    ):
        model.set_attn_implementation(PACKED)


# -- training ------------------------------------------------------------------------------------------------


def learning_rate_factor(schedule: Schedule, step: int, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then constant, or decaying towards
    0."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match schedule:
        case Schedule.constant:
            return 1.0
        case Schedule.linear:
            return 1.0 - progress
        case Schedule.cosine:
            return 0.5 * (1.0 + math.cos(math.pi * progress))
        case Schedule.trapezoid:
            return min(1.0, 3 * (steps - step) / steps)


class TokenFilteredLM(pl.LightningModule):
    """Fine-tuning on weighted response tokens: loss = sum(w l) / Z over a whole optimizer step.

    Z is the number of tokens with w > 0 (`divisor=kept`) or of all response tokens (`divisor=response`) in
    the step, over all its micro-batches and devices. A batch is a whole optimizer step (`xtf.data.Step`),
    which is why optimization is manual.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        method: Method,
        tuning: TuningConfig,
        loader: StepLoader,
        *,
        validation: TrainingRows | None = None,
        seed: int,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold trained parameters only
        self.packed = PackedLM(model, method)
        self.method, self.tuning, self.loader, self.validation, self.seed = (
            method,
            tuning,
            loader,
            validation,
            seed,
        )
        self.best_loss, self.best_step = math.inf, 0
        self._clock = time.perf_counter()

    def configure_model(self) -> None:
        """Under fsdp, spread each decoder layer, and then what lies around the layers, over the devices."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(
            self.packed, FSDPModule
        ):
            return
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        layer_names = set(self.packed.base._no_split_modules or ())
        for part in self.packed.modules():
            if type(part).__name__ in layer_names:
                fully_shard(part, mesh=mesh)
        fully_shard(self.packed, mesh=mesh)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW on the trainable parameters, float32, with weight decay on matrices only.

        With `tuning.optimizer=muon` the matrices of the layers go to Muon, with the weight decay, and AdamW keeps the
        rest. Muon's updates are scaled to AdamW's size, so that one learning rate serves both.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        assert all(parameter.dtype == torch.float32 for parameter in trained), "master weights are float32"
        rate, decay, (first, second) = self.tuning.learning_rate, self.tuning.weight_decay, self.tuning.betas
        assert rate is not None
        optimizers: list[torch.optim.Optimizer] = []
        if self.tuning.optimizer is Optimizer.muon:
            inner = [p for p in self.packed.base.get_decoder().layers.parameters() if p.ndim == 2]
            taken = {id(parameter) for parameter in inner}
            trained, decay = [p for p in trained if id(p) not in taken], 0.0
            optimizers = [Muon(inner, lr=rate, weight_decay=self.tuning.weight_decay)]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        return [torch.optim.AdamW(groups, lr=rate, betas=(first, second), fused=True), *optimizers]

    def training_step(self, step: Step) -> dict[str, Any]:
        """Forward and backward of every micro-batch, then one update; returns the step's `record`."""
        # Dropout is a function of (seed, step, device), so that a resumed run needs no generator state.
        state = np.random.SeedSequence([self.seed, step.index, self.global_rank]).generate_state(1)
        torch.manual_seed(int(state[0]))
        self.packed.progress = step.index / max(1, len(self.loader) - 1)
        loss_sum = torch.zeros((), device=self.device)
        kept = torch.zeros((), device=self.device)
        suspects: list[str] = []
        for number, micro in enumerate(step.micro_batches):
            with self._accumulate(last=number == len(step.micro_batches) - 1):
                total, losses, weights = self.packed(micro)
                self.manual_backward(total)
            loss_sum += total.detach()
            kept += (weights > 0).sum()
            if not torch.isfinite(total.detach()):
                rows = micro.rows[~torch.isfinite(losses * weights)].unique().tolist()
                suspects += [self.loader.data.example_ids[row] for row in rows]
        return {"record": self._update(step, loss_sum, kept, suspects)}

    def _accumulate(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Under ddp, gradients are exchanged in the last micro-batch's backward pass only."""
        wrapper = self.trainer.model
        if isinstance(wrapper, DistributedDataParallel) and not last:
            return wrapper.no_sync()
        return contextlib.nullcontext()

    def _update(self, step: Step, loss_sum: Tensor, kept: Tensor, suspects: Sequence[str]) -> dict[str, Any]:
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        totals = self._sum_over_devices(torch.stack([loss_sum, kept]))
        kept_tokens = int(totals[1])
        divisor = max(1, kept_tokens if self.tuning.divisor is Divisor.kept else step.response_tokens)
        loss = float(totals[0]) / divisor
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # The sum's gradient becomes the mean's here; ddp and fsdp have averaged it over the devices on the
        # way.
        scale = self.trainer.world_size / divisor
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm) * scale
        if not (math.isfinite(loss) and math.isfinite(norm)):
            ids = suspects or [self.loader.data.example_ids[row] for row in step.rows]
            raise NonFiniteLoss(
                f"step {step.index + 1}: the loss is {loss} and its gradient's norm {norm}; the weights "
                f"are as they were before the step. Examples: {', '.join(ids)}. "
                "A lower tuning.learning_rate may help; if the first step fails, look at these examples"
            )
        clip = min(1.0, self.tuning.max_grad_norm / norm) if norm > 0 else 1.0
        torch._foreach_mul_(gradients, scale * clip)
        schedule, peak, warmup = self.tuning.schedule, self.tuning.learning_rate, self.tuning.warmup_ratio
        assert schedule is not None and peak is not None and warmup is not None, "the tuning is resolved"
        rate = peak * learning_rate_factor(schedule, step.index, len(self.loader), warmup)
        for number, optimizer in enumerate(optimizers):
            for group in optimizer.param_groups:
                group["lr"] = rate
            # Lightning counts each step of an optimizer of its own as a training step; one is counted.
            (optimizer if number == 0 else optimizer.optimizer).step()
            optimizer.zero_grad(set_to_none=True)
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        record = {
            "loss": loss,
            "kept_tokens": kept_tokens,
            "tokens_per_second": step.tokens / seconds,
            "learning_rate": rate,
            "grad_norm": norm,
        }
        self.log_dict({f"train/{name}": float(value) for name, value in record.items()}, rank_zero_only=True)
        done = step.index + 1
        record |= {"step": done, "epoch": -(-done // self.loader.steps_per_epoch), "tokens": step.tokens}
        if self.validation is not None and (
            done % self.loader.steps_per_epoch == 0 or done == len(self.loader)
        ):
            record["validation_loss"] = self._validate(done)
        return record

    def _validate(self, done: int) -> float:
        """Loss over the validation rows' stored weights; the lowest one so far is remembered with its
        step."""
        assert self.validation is not None
        sums = torch.zeros(2, device=self.device)
        order = np.arange(len(self.validation))
        self.eval()
        with torch.no_grad():
            for part in np.array_split(order, -(-len(order) // VALIDATION_ROWS)):
                devices = {"rank": self.global_rank, "devices": self.trainer.world_size}
                step = collate(self.validation, part, self.loader.budget, done, **devices)
                for micro in self.trainer.strategy.batch_to_device(step).micro_batches:
                    total, _, weights = self.packed(micro)
                    sums += torch.stack([total, (weights > 0).sum()])
        self.train()
        weighted, kept = self._sum_over_devices(sums).tolist()
        loss = weighted / max(1.0, kept)
        self.log("validation/loss", loss, rank_zero_only=True)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, done
        self._clock = time.perf_counter()
        return float(loss)

    def _sum_over_devices(self, values: Tensor) -> Tensor:
        summed = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def on_train_start(self) -> None:
        self._clock = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["best"] = {"loss": self.best_loss, "step": self.best_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best_loss, self.best_step = checkpoint["best"]["loss"], checkpoint["best"]["step"]
