"""The LightningModule: the only place that sees gradients. `training_step` applies the mask."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from peft import PeftModel
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from xtf.config.schema import Backward, Divisor, Optimizer, Schedule, TuningConfig
from xtf.data.steps import MicroBatch, Step, StepLoader
from xtf.scoring.methods import Method, OnlineTokens
from xtf.training.datamodule import MaskedDataModule
from xtf.training.muon import Muon
from xtf.training.packed import PackedLM


class NonFiniteLoss(ValueError):
    """The loss or its gradient is not a finite number; raised before the weights are changed."""


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

    Z is the number of tokens with w > 0 (`divisor=kept`; before the online rule for a method `divided_by_all`) or of
    all response tokens (`divisor=response`) in the step, over all its micro-batches and devices. A batch is a whole
    optimizer step (`xtf.data.steps.Step`), which is why optimization is manual.

    With a Trainer of your own (docs/extending.md):

        data = MaskedDataModule(masked, tuning, seed=0)
        module = TokenFilteredLM(model, Method(), tuning, seed=0)
        pl.Trainer(max_epochs=1).fit(module, datamodule=data)

    Args:
        model: all that requires a gradient is trained, in float32.
        method: an online one weighs tokens in the step; else the mask's weights are all.
        tuning: learning_rate, schedule and warmup_ratio set.
        seed: of dropout.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, method: Method, tuning: TuningConfig, *, seed: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold trained parameters only
        self.packed = PackedLM(model, method)
        self.method, self.tuning, self.seed = method, tuning, seed
        self.best_loss, self.best_step = math.inf, 0
        # tuning.backward=kept, labelled: of the first step's gradient to the exact one
        self.gradient_cosine: float | None = None
        self._clock = time.perf_counter()
        self._attention_before: str | None = None

    @property
    def data(self) -> MaskedDataModule:
        """What is trained on."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # set by Lightning
        if not isinstance(data, MaskedDataModule):
            raise TypeError(
                "TokenFilteredLM trains on whole optimizer steps: trainer.fit(module, datamodule=...) with a "
                "xtf.training.datamodule.MaskedDataModule"
            )
        return data

    @property
    def loader(self) -> StepLoader:
        """The steps that this device goes through."""
        loader = self.data.loader
        assert loader is not None, "Lightning has asked for it"
        return loader

    def configure_callbacks(self) -> list[pl.Callback]:
        """Where Lightning attaches the module, before it looks at its own settings: refuse those that say again, and
        otherwise, what `tuning` says.

        Raises:
            ValueError: naming what to set instead.
        """
        trainer = self.trainer
        if trainer.state.fn is not TrainerFn.FITTING:
            return []
        clash = {
            "accumulate_grad_batches": (trainer.accumulate_grad_batches != 1, "tuning.batch_size: a batch is a step"),
            "gradient_clip_val": (bool(trainer.gradient_clip_val), "tuning.max_grad_norm"),
            "max_epochs": (
                trainer.max_epochs != 1,
                "max_epochs=1, and tuning.epochs: the loader runs through them all",
            ),
            "max_steps": (trainer.max_steps != -1, "tuning.max_steps, which the learning rate's course follows"),
        }
        if wrong := [f"instead of Trainer({name}=...), {other}" for name, (given, other) in clash.items() if given]:
            raise ValueError("set " + "; ".join(wrong))
        return []

    def setup(self, stage: str) -> None:
        """Let the model read packed rows, unless its owner has done so; `teardown` takes that back."""
        base = self.packed.base
        before = base.config._attn_implementation
        if self.data.attention is None or before != self.data.attention:
            self.data.prepare(base)
            self._attention_before = before

    def teardown(self, stage: str) -> None:
        if self._attention_before is not None:
            self.packed.base.set_attn_implementation(self._attention_before)
            self._attention_before = None

    def configure_model(self) -> None:
        """Under fsdp, spread each decoder layer, and then what lies around the layers, over the devices."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(self.packed, FSDPModule):
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
        if others := {parameter.dtype for parameter in trained} - {torch.float32}:
            raise ValueError(f"weights that are trained are float32, not {', '.join(map(str, others))}: model.float()")
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
        several = len(step.micro_batches) > 1 or self.trainer.world_size > 1
        decided = self.method.over_step and several  # one micro-batch is the step, whose rule the forward pass follows
        if decided:
            step.micro_batches = self._decide(step.micro_batches)
        backward = self.tuning.backward
        if backward is not Backward.exact and step.index == 0:
            self.gradient_cosine = self._cosine(step)
            torch.manual_seed(int(state[0]))
        for number, micro in enumerate(step.micro_batches):
            with self._backward(micro, backward, last=number == len(step.micro_batches) - 1):
                total, losses, weights = self.packed(micro, decided)
                self.manual_backward(total)
            loss_sum += total.detach()
            kept += (weights > 0).sum()
            if not torch.isfinite(total.detach()):
                rows = micro.rows[~torch.isfinite(losses * weights)].unique().tolist()
                ids = self.loader.data.example_ids
                suspects += [ids[row] for row in rows]
        return {"record": self._update(step, loss_sum, kept, suspects)}

    def _decide(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches with the weights of a rule that looks at the tokens of all of them, on all devices."""
        losses = torch.cat([self.packed.losses(micro) for micro in micro_batches])
        names = sorted(micro_batches[0].columns)
        parts = [
            torch.cat([micro.rows for micro in micro_batches]),
            losses,
            torch.cat([micro.weights for micro in micro_batches]),
            *(torch.cat([micro.columns[name] for micro in micro_batches]) for name in names),
        ]
        shares = self._all_devices(torch.stack([part.double() for part in parts]))
        everything = torch.cat(shares, dim=1)
        there = everything[2] != 0  # a device without a document has a token of weight 0, which is none of the step's
        _, loss, weight, *stored = everything[:, there].float()
        columns = dict(zip(names, stored, strict=True))
        seen = OnlineTokens(-loss, weight, columns, everything[0, there].long(), self.packed.progress)
        factors = torch.zeros_like(everything[0], dtype=torch.float32)
        factors[there] = self.method.online_weights(seen)
        start = sum(share.shape[1] for share in shares[: self.global_rank])
        found = factors[start : start + len(losses)].split([len(micro.weights) for micro in micro_batches])
        return [
            replace(micro, weights=micro.weights * factor) for micro, factor in zip(micro_batches, found, strict=True)
        ]

    def _all_devices(self, own: Tensor) -> list[Tensor]:
        """The (K, N) tensors of all devices, whose N differ, in the order of the devices."""
        if self.trainer.world_size == 1:
            return [own]
        gather = self.trainer.strategy.all_gather
        lengths = gather(torch.tensor(own.shape[1], device=own.device)).tolist()
        padded = torch.nn.functional.pad(own, (0, max(lengths) - own.shape[1]))
        return [share[:, :length] for share, length in zip(gather(padded), lengths, strict=True)]

    @contextlib.contextmanager
    def _backward(self, micro: MicroBatch, backward: Backward, last: bool) -> Iterator[None]:
        """Within, a micro-batch goes forward and backward. Under ddp, gradients are exchanged in the last one only."""
        wrapper = self.trainer.model
        with contextlib.ExitStack() as stack:
            if isinstance(wrapper, DistributedDataParallel) and not last:
                stack.enter_context(wrapper.no_sync())
            stack.enter_context(self.packed.filtered(micro, backward))
            yield

    def _cosine(self, step: Step) -> float:
        """Of the angle between the step's gradient with `tuning.backward` and the exact one, without dropout."""
        dropouts = [part for part in self.modules() if isinstance(part, nn.Dropout) and part.training]
        found = []
        for dropout in dropouts:
            dropout.eval()
        for backward in (Backward.exact, self.tuning.backward):
            for number, micro in enumerate(step.micro_batches):
                with self._backward(micro, backward, last=number == len(step.micro_batches) - 1):
                    self.manual_backward(self.packed(micro)[0])
            found.append([p.grad for p in self.parameters() if p.grad is not None])
            self.zero_grad(set_to_none=True)
        for dropout in dropouts:
            dropout.train()
        exact, filtered = found

        def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
            products = (torch.sum(a * b) for a, b in zip(left, right, strict=True))
            return sum(float(one.full_tensor() if isinstance(one, DTensor) else one) for one in products)

        return dot(exact, filtered) / max(math.sqrt(dot(exact, exact) * dot(filtered, filtered)), sys.float_info.min)

    def _update(self, step: Step, loss_sum: Tensor, kept: Tensor, suspects: Sequence[str]) -> dict[str, Any]:
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        totals = self._sum_over_devices(torch.stack([loss_sum, kept]))
        kept_tokens = int(totals[1])
        counted = step.kept_tokens if self.method.divided_by_all else kept_tokens
        divisor = max(1, counted if self.tuning.divisor is Divisor.kept else step.response_tokens)
        loss = float(totals[0]) / divisor
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # The sum's gradient becomes the mean's here; ddp and fsdp have averaged it over the devices on the
        # way.
        scale = self.trainer.world_size / divisor
        total_norm = torch.nn.utils.get_total_norm(gradients)
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm) * scale
        if not (math.isfinite(loss) and math.isfinite(norm)):
            names = self.loader.data.example_ids
            ids = suspects or [names[row] for row in step.rows]
            raise NonFiniteLoss(
                f"step {step.index + 1}: the loss is {loss} and its gradient's norm {norm}; the weights "
                f"are as they were before the step. Examples: {', '.join(ids)}. "
                "A lower tuning.learning_rate may help; if the first step fails, look at these examples"
            )
        most = self.tuning.max_grad_norm  # 0: no clipping
        clip = min(1.0, most / norm) if most and norm else 1.0
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
        # A Trainer that validates, by `validation_step`, does so when its owner wants.
        own = self.data.validation is not None and not self.trainer.enable_validation
        if own and (done % self.loader.steps_per_epoch == 0 or done == len(self.loader)):
            record["validation_loss"] = self._validate(done)
        return record

    def _validate(self, done: int) -> float:
        """Loss over the validation rows' stored weights; the lowest one so far is remembered with its
        step."""
        self.eval()
        self.on_validation_epoch_start()
        with torch.no_grad():
            for step in self.data.validation_steps(self.global_rank, self.trainer.world_size) or ():
                self.validation_step(self.trainer.strategy.batch_to_device(step))
        self.train()
        loss = self._validation_loss()
        self.log("validation/loss", loss, rank_zero_only=True)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, done
        self._clock = time.perf_counter()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._validated = torch.zeros(2, device=self.device)  # weighted losses, tokens with a positive weight

    def validation_step(self, step: Step) -> None:
        """Adds up the loss over stored weights, which a mask dropped tokens from as in training."""
        for micro in step.micro_batches:
            total, _, weights = self.packed(micro)
            self._validated += torch.stack([total, (weights > 0).sum()])

    def on_validation_epoch_end(self) -> None:
        self.log("validation/loss", self._validation_loss(), rank_zero_only=True, prog_bar=True)

    def _validation_loss(self) -> float:
        weighted, kept = self._sum_over_devices(self._validated).tolist()
        return float(weighted / max(1.0, kept))

    def _sum_over_devices(self, values: Tensor) -> Tensor:
        summed = self.trainer.strategy.reduce(values, reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed

    def on_train_start(self) -> None:
        self.train()  # from_pretrained leaves a model in eval mode, and Lightning leaves it as it is
        self._clock = time.perf_counter()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint["best"] = {"loss": self.best_loss, "step": self.best_step}
        checkpoint["gradient_cosine"] = self.gradient_cosine

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.best_loss, self.best_step = checkpoint["best"]["loss"], checkpoint["best"]["step"]
        self.gradient_cosine = checkpoint.get("gradient_cosine")
