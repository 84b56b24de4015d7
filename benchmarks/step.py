"""What a mask saves of a training step, and what `tuning.backward` makes of it, on real weights and rows.

    OMP_NUM_THREADS=1 python -m benchmarks.step ROWS.jsonl [--model smollm2_135m] [--train 50] [model.path=FOLDER ...]

ROWS are JSONL with `question` and `answer` (GSM8K's train.jsonl) or what else `xtf.score` takes. The first of them are
scored and masked by the paper's thresholds (`--drop 0.36`: by chance instead). Then the same optimizer steps are done
in turn: on all response tokens, with the mask, and with the mask and a filtered backward pass; forward, backward,
clipping, AdamW, in seconds of the process's CPU time. `--train` also trains anew each way for so many steps, and tells
the loss of rows that were not trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

import xtf
from benchmarks.measure import Claim, console, report
from xtf.config.checks import resolve
from xtf.config.compose import compose, register, to_config
from xtf.config.home import HOME
from xtf.config.schema import Backward, Config, LoggerConfig, Schedule, TrainerConfig, Tuning, TuningConfig
from xtf.data.ragged import as_arrow
from xtf.data.steps import Step, TrainingRows, collate
from xtf.runtime.models import load_model, load_tokenizer
from xtf.scoring.methods import METHODS, Method
from xtf.training.budget import activation_bytes, tokens_on_cpu
from xtf.training.fit import fit
from xtf.training.packed import PackedLM, enable_packing

ALL, EXACT, KEPT, LABELLED = "all response tokens", "mask, exact", "mask, backward=kept", "mask, backward=labelled"
WAYS = {ALL: Backward.exact, EXACT: Backward.exact, KEPT: Backward.kept, LABELLED: Backward.labelled}
RATE = 2e-5


def read(path: Path, number: int) -> list[dict[str, Any]]:
    """The first rows of a file, as `xtf.score` takes them."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(number), strict=False)]
    return [
        {"prompt": row["question"], "response": row["answer"]} if "question" in row and "answer" in row else row
        for row in rows
    ]


def with_labels(table: pa.Table, labels: list[list[int]]) -> pa.Table:
    """The table with these labels in the place of its own."""
    at = table.schema.get_field_index("labels")
    return table.set_column(at, "labels", pa.array(labels, table.schema.field("labels").type))


def unmasked(table: pa.Table) -> pa.Table:
    """The table with a label for every response token."""
    return with_labels(
        table,
        [
            [-100] * prompt + ids[prompt:]
            for ids, prompt in zip(table["input_ids"].to_pylist(), table["prompt_length"].to_pylist(), strict=True)
        ],
    )


def drawn(table: pa.Table, share: float) -> pa.Table:
    """The table with that share of the response tokens dropped by chance."""
    random, whole = np.random.default_rng(0), unmasked(table)
    labels = [
        [-100 if random.random() < share else label for label in row[:-1]] + row[-1:]
        for row in whole["labels"].to_pylist()
    ]
    return with_labels(whole, labels)


class Steps:
    """One model and its optimizer, and what a step of each kind costs."""

    def __init__(self, model: PreTrainedModel, table: pa.Table, batch: int) -> None:
        self.packed = PackedLM(model.train(), Method())
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-7, fused=True)
        budget = tokens_on_cpu(sum(p.numel() for p in self.parameters), activation_bytes(self.packed)[0])
        self.steps: dict[str, list[Step]] = {}
        for name in WAYS:
            rows = TrainingRows(unmasked(table) if name == ALL else table)
            parts = np.array_split(np.arange(len(rows)), len(rows) // batch)
            self.steps[name] = [collate(rows, part, budget, index) for index, part in enumerate(parts)]

    def seconds(self, name: str, index: int) -> float:
        """CPU time of one step."""
        step, started = self.steps[name][index], time.process_time()
        for micro in step.micro_batches:
            with self.packed.filtered(micro, WAYS[name]):
                (self.packed(micro)[0] / step.kept_tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started

    def products(self, name: str) -> float:
        """Operations of the steps' matrix products, two for each weight and token that it multiplies, of which the
        backward pass does twice as many; without the attention's own."""
        base, micros = self.packed.base, [micro for step in self.steps[name] for micro in step.micro_batches]
        head = base.get_output_embeddings().weight.numel()
        layers = sum(p.numel() for p in base.get_decoder().layers.parameters() if p.ndim == 2)
        tokens = sum(micro.input_ids.shape[1] for micro in micros)
        predictors = sum(len(micro.predictors) for micro in micros)
        learnt = {KEPT: tokens - sum(len(micro.idle) for micro in micros), LABELLED: predictors}.get(name, tokens)
        return float(2 * layers * (tokens + 2 * learnt) + 6 * head * predictors)

    def cosines(self, index: int) -> dict[str, float]:
        """Of the filtered gradients of one step to the exact one."""
        found: dict[str, list[torch.Tensor]] = {}
        for name in (EXACT, KEPT, LABELLED):
            for micro in self.steps[name][index].micro_batches:
                with self.packed.filtered(micro, WAYS[name]):
                    self.packed(micro)[0].backward()
            found[name] = [p.grad for p in self.parameters if p.grad is not None]
            self.optimizer.zero_grad(set_to_none=True)

        def dot(left: str, right: str) -> float:  # by tensor: one float32 sum over 5e8 weights is percents off
            return sum(float((a * b).sum()) for a, b in zip(found[left], found[right], strict=True))

        return {name: dot(EXACT, name) / math.sqrt(dot(EXACT, EXACT) * dot(name, name)) for name in (KEPT, LABELLED)}


@torch.no_grad()
def loss(model: PreTrainedModel, table: pa.Table) -> float:
    """Mean over the labelled tokens, in nats."""
    packed, rows = PackedLM(model.eval(), Method()), TrainingRows(table)
    losses = [packed.losses(micro) for micro in collate(rows, np.arange(len(rows)), 1024, 0).micro_batches]
    return float(torch.cat(losses).mean())


def trained(model: PreTrainedModel, table: pa.Table, backward: Backward, batch: int, steps: int) -> dict[str, Any]:
    """Train `model` in place for so many steps; the training's record."""
    tuning = TuningConfig(
        name=Tuning.full,
        epochs=-(-steps * batch // len(table)),
        max_steps=steps,
        learning_rate=RATE,
        batch_size=batch,
        schedule=Schedule.constant,
        warmup_ratio=0.0,
        backward=backward,
    )
    trainer = TrainerConfig(name="bench", checkpoint_every=10**9)
    config = Config(method=METHODS["xtf"](), tuning=tuning, trainer=trainer, logger=LoggerConfig(name="csv"))
    with tempfile.TemporaryDirectory() as folder:
        return fit(model, table, config, Path(folder), pad_id=0, loggers=[])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="ROWS.jsonl")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the program, such as model.path=FOLDER")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--batch", type=int, default=8, help="rows per optimizer step")
    parser.add_argument("--steps", type=int, default=4, help="different steps, each done in turn by all subjects")
    parser.add_argument("--repeats", type=int, default=2, help="times that each is done, after one to warm up")
    parser.add_argument("--drop", type=float, help="drop this share of the response tokens by chance")
    parser.add_argument("--train", type=int, default=0, help="steps of a training in each way")
    parser.add_argument("--rows", type=int, help="that are trained on; else as many as these steps go through")
    parser.add_argument("--held-out", type=int, default=64, help="rows whose loss is told after --train")
    arguments = parser.parse_intermixed_args()
    transformers_logging.disable_progress_bar()
    register()
    with hydra.initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        said = [f"model={arguments.model}", "task=custom", f"task.train.path={arguments.file}", "stage=mask"]
        config = resolve(to_config(compose([*said, *arguments.settings])))

    def fresh() -> PreTrainedModel:
        return load_model(config.model, config.trainer, torch.float32)

    def held_out_loss(model: PreTrainedModel, table: pa.Table) -> float:
        enable_packing(model, config.model.max_length)
        return loss(model, table)

    tokenizer, model = load_tokenizer(config.model), fresh()
    timed, held_out = arguments.batch * arguments.steps, arguments.held_out if arguments.train else 0
    learnt = max(timed, arguments.rows or arguments.batch * arguments.train)
    rows = read(arguments.file, learnt + held_out)
    if len(rows) < learnt + held_out:
        parser.error(f"{arguments.file} has {len(rows)} rows, and {learnt + held_out} are needed")
    started = time.process_time()
    scored = xtf.score(model, tokenizer, rows)
    scoring = (time.process_time() - started) / len(rows)
    table = as_arrow(xtf.mask(scored, threshold="paper"))
    if arguments.drop is not None:
        table = drawn(table, arguments.drop)
    enable_packing(model, config.model.max_length)
    response = sum(map(len, table["input_ids"].to_pylist())) - sum(table["prompt_length"].to_pylist())
    kept = sum(label != -100 for row in table["labels"].to_pylist() for label in row)
    bench = Steps(model, table.slice(0, timed), arguments.batch)
    idle = sum(len(micro.idle) for step in bench.steps[KEPT] for micro in step.micro_batches)
    places = sum(micro.input_ids.shape[1] for step in bench.steps[KEPT] for micro in step.micro_batches)
    unlabelled = 1 - sum(len(micro.predictors) for step in bench.steps[KEPT] for micro in step.micro_batches) / places
    shares = {KEPT: idle / places, LABELLED: unlabelled}
    found: dict[str, Any] = {"dropped": 1 - kept / response, "idle": shares, "cosine": bench.cosines(0)}
    console.print(f"{found['dropped']:.1%} of the response tokens dropped")
    for name, share in shares.items():
        console.print(f"{name}: {share:.1%} of the places computed are idle; cosine {found['cosine'][name]:.3f}")
    found["products"] = {name: bench.products(name) / bench.products(ALL) for name in (EXACT, KEPT, LABELLED)}
    for name, share in found["products"].items():
        console.print(f"{name}: the matrix products alone would take {share:.2f} of a step without a mask")
    seconds: dict[str, list[float]] = {name: [] for name in bench.steps}
    for repeat in range(arguments.repeats + 1):
        for index in range(arguments.steps):
            for name, samples in seconds.items():
                spent = bench.seconds(name, index)
                if repeat:
                    samples.append(spent)
    times = {name: np.array(samples) for name, samples in seconds.items()}
    claims = [
        Claim("a step with the mask / without", times[EXACT] / times[ALL], limit=1.0, aim=0.93),
        Claim("a step with backward=kept / without", times[KEPT] / times[ALL], aim=0.78),
        Claim("a step with backward=labelled / without", times[LABELLED] / times[ALL], aim=0.78),
    ]
    for name in (EXACT, KEPT, LABELLED):
        whole = (arguments.batch * scoring + 2 * times[name]) / (2 * times[ALL])
        claims.append(Claim(f"scoring once and two epochs ({name}) / two epochs without a mask", whole, aim=1.0))
    del bench, model
    if arguments.train:
        rest = unmasked(table.slice(len(table) - held_out))
        found["held-out loss"] = {"base": held_out_loss(fresh(), rest)}
        for name in (EXACT, KEPT, LABELLED):
            model = fresh()
            record = trained(model, table.slice(0, learnt), WAYS[name], arguments.batch, arguments.train)
            found["held-out loss"][name], found[name] = held_out_loss(model, rest), record
            console.print(f"{name}: {found['held-out loss'][name]:.4f}")
        console.print(f"after {arguments.train} steps: {found['held-out loss']}")
    return report(
        "step", claims, found | {"scoring seconds a row": scoring, "settings": vars(arguments), "seconds": seconds}
    )


if __name__ == "__main__":
    raise SystemExit(main())
