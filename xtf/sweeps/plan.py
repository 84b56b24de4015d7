"""What a run or a sweep would take: jobs, shared passes, tokens, memory per device, device hours (stage=plan).

Memory is counted, not measured: weights, gradients, optimizer states, activations of the largest batch and the block of
logits that is held at once, for decoders with gated feed-forward layers and attention that keeps no score matrix (sdpa,
flash). Fragmentation and kernels' work space stand in `RESERVE`. Time follows from one stated throughput
(`plan.tokens_per_second`). Both say whether a plan is possible, not what it will come to within ten per cent.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.config.identity import digest, plain
from xtf.config.schema import Config, ConfigError, ModelShape, TRVariant, Tuning
from xtf.data.ragged import IGNORED
from xtf.data.rows import ids_of, is_tokenized, load_rows
from xtf.runtime.artifacts import intact, read_json
from xtf.runtime.progress import console, duration, say
from xtf.runtime.run_folder import Manifest, finished
from xtf.runtime.shapes import FORWARD, adapter_parameters, model_file, parameters, shape_of, tokens_per_second, widths
from xtf.scoring.passes import Pass, passes_of
from xtf.sweeps.jobs import Planned
from xtf.tasks import load_task

GIB = 2**30
LOGITS = 2**26  # elements of the largest block of logits, in training as in scoring on a GPU
RESERVE = 1.0  # GiB that the GPU's context and the allocator take beside the tensors
GPU_MEMORY = 80.0  # GiB, where plan.device_memory_gb is not given
SAMPLE = 200  # local rows whose tokens are counted for an average


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """GiB on one device at the worst moment of each stage."""

    scoring: float
    training: float
    evaluation: float

    @property
    def peak(self) -> float:
        """The most that any stage takes."""
        return max(self.scoring, self.training, self.evaluation)


def memory(shape: ModelShape, config: Config) -> Memory:
    """What each stage holds on one device.

    - scoring and evaluation run on one device, with weights in bfloat16 on a GPU, else float32;
    - full tuning: float32 weights, gradients and two AdamW states, 16 bytes a weight, and their bfloat16 copies under
      autocast; ddp adds the gradients' buckets, fsdp splits the 16 bytes over the devices;
    - LoRA: frozen weights as in scoring, 16 bytes for each weight of the adapter;
    - activations of a layer, in elements a token: inputs and outputs of two norms (4 hidden), queries and keys before
      and after rotation, values, attention's output, and 4 intermediate in the feed-forward layer. With
      tuning.gradient_checkpointing one layer's, and the inputs of all.
    """
    trainer, tuning = config.trainer, config.tuning
    gpu = trainer.accelerator != "cpu"
    width = 2 if gpu and trainer.precision in ("auto", "bf16-mixed") else 4
    count, (query, key), longest = parameters(shape), widths(shape), config.model.max_length
    inference = 4 * shape.hidden + query + 2 * key + 3 * shape.intermediate
    logits = 4 * LOGITS

    layer = 4 * shape.hidden + 3 * query + 3 * key + 4 * shape.intermediate
    held = shape.layers * shape.hidden + layer if tuning.gradient_checkpointing else shape.layers * layer
    # Where the micro-batch is chosen from the free memory, what the longest row needs decides whether it fits.
    activations = max(trainer.tokens_per_microbatch or 1, longest) * (held + 6 * shape.hidden) * width
    if tuning.name is Tuning.full:
        states = 16 * count
        if trainer.strategy == "ddp":
            states += 4 * count
        elif trainer.strategy == "fsdp":
            states //= trainer.world_size
        states += width * count if width == 2 and trainer.strategy != "fsdp" else 0
        if trainer.strategy == "fsdp":  # the largest unit is gathered whole
            states += 4 * shape.vocabulary * shape.hidden
    else:
        states = width * count + 16 * adapter_parameters(shape, tuning.lora.r)

    batch = max(trainer.tokens_per_eval_batch, longest)
    rows = max(1, batch // (config.task.size.prompt + config.task.max_new_tokens))
    cache = 2 * shape.layers * key * width
    reserve = RESERVE if gpu else 0.0
    return Memory(
        scoring=(width * count + max(trainer.tokens_per_score_batch, longest) * inference * width + 2 * logits) / GIB
        + reserve,
        training=(states + activations + 3 * logits) / GIB + reserve,
        evaluation=(width * count + batch * (cache + inference * width) + 8 * rows * shape.vocabulary) / GIB + reserve,
    )


def device_memory(config: Config) -> float:
    """GiB of one device: as stated, else 80 for a GPU and the machine's own for the CPU."""
    if config.plan.device_memory_gb is not None:
        return config.plan.device_memory_gb
    if config.trainer.accelerator != "cpu":
        return GPU_MEMORY
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


# --- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokens:
    """Rows of a run's data and the tokens of an average one; `source`: counted, sampled or stated."""

    train_rows: int
    eval_rows: int
    prompt: float
    response: float
    source: str

    @property
    def train(self) -> float:
        """Tokens of all training rows, once."""
        return self.train_rows * (self.prompt + self.response)


def tokens_of(job: Planned) -> Tokens:
    """From the job's own scoring pass, else from a sample of local rows, else as `task.size` states it."""
    task, size = job.config.task, job.config.task.size
    train, evaluation = _local_rows(task.train.path), _local_rows(task.eval.path)
    sampled = _sampled(job.config) if train and evaluation else None
    if not (train and evaluation):
        train, evaluation = size.train_rows, size.eval_rows
    prompt, response = sampled or (size.prompt, size.response)
    found = Tokens(
        min(train, task.train.limit or train),
        min(evaluation, task.eval.limit or evaluation),
        prompt,
        response,
        "sampled" if sampled else "stated",
    )
    manifest = Manifest(job.folder)
    path = manifest.stages.get("score", {}).get("paths", {}).get(Pass.base.value)
    rows = manifest.data.get("train", {}).get("rows")
    if path and rows and intact(Path(path) / "manifest.json"):
        total = read_json(Path(path) / "manifest.json").get("tokens")
        if total:
            share = found.prompt / (found.prompt + found.response)
            mean = total / rows
            return Tokens(rows, found.eval_rows, share * mean, (1 - share) * mean, "counted")
    return found


@functools.cache
def _local_rows(path: str | None) -> int | None:
    """Rows of a local JSON-lines file; None for any other source, whose rows are not read for a plan."""
    if path is None or not path.endswith(".jsonl") or not Path(path).exists():
        return None
    with Path(path).open("rb") as lines:
        return sum(1 for line in lines if line.strip())


_samples: dict[str, tuple[float, float]] = {}


def _sampled(config: Config) -> tuple[float, float] | None:
    """Mean tokens of the prompt and of the response of the first local rows, the chat template left out.

    None where the rows or a tokenizer.json are not on this machine.
    """
    from tokenizers import Tokenizer

    file, task = model_file(config.model, "tokenizer.json"), config.task
    if file is None or task.train.path is None:
        return None
    key = digest([str(file), task])
    if key not in _samples:
        source = dataclasses.replace(task.train, limit=min(SAMPLE, task.train.limit or SAMPLE))
        rows = load_rows(source)
        if is_tokenized(rows.rows[0]) or config.method.own_rows:
            ids, trained = [], []
            for row, number in zip(rows.rows, rows.numbers, strict=True):
                try:
                    ids.append(len(ids_of(row, "input_ids")))
                    labels = [] if row.get("labels") is None else ids_of(row, "labels", least=IGNORED).tolist()
                except ValueError as error:
                    raise ValueError(f"{rows.source}: row {number}: {error}") from error
                trained.append(sum(label != IGNORED for label in labels or row.get("weights") or []))
            _samples[key] = statistics.mean(ids) - statistics.mean(trained), statistics.mean(trained)
            return _samples[key]
        examples = load_task(task, config.output_dir).examples(rows, training=True)
        prompts = ["".join(str(turn["content"]) for turn in example.messages) for example in examples]
        prompt, response = (
            statistics.mean(len(each.ids) for each in Tokenizer.from_file(str(file)).encode_batch(texts))
            for texts in (prompts, [example.response for example in examples])
        )
        _samples[key] = prompt, response + 1  # the response ends with the token that ends texts
    return _samples[key]


# --- shared work -----------------------------------------------------------------------------------------------------


def shared_passes(config: Config) -> dict[Pass, str]:
    """Each scoring pass that a run reads, by kind, with a key that is the same wherever the pass is."""
    rows = {
        "task": config.task.name,
        "train": plain(config.task.train),
        "model": [config.model.path, config.model.revision, config.model.max_length],
    }
    if config.method.changes_rows:
        rows["augmented"] = plain(config.method)
    if config.plant.share:
        rows["planted"] = plain(config.plant)
    scorer = [plain(config.scorer.ri), plain(config.scorer.tr)]
    words = config.task.domain_words if config.scorer.tr.variant is TRVariant.released else []
    keys = {
        Pass.base: digest([rows, scorer, words]),
        Pass.unconditional: digest([rows, "unconditional"]),
        Pass.reference: digest([rows, reference_key(config)]),
        Pass.prompts: digest([rows, scorer, words]),  # the base's brings it
    }
    return {kind: keys[kind] for kind in passes_of(config)}


def reference_key(config: Config) -> str | None:
    """What a reference model is shared by; None for a run that needs none, or is given one."""
    if Pass.reference not in passes_of(config) or config.method.reference is not None:
        return None
    warmup = config.method.warmup_rows(config.task.train.limit or config.task.size.train_rows)
    planted = plain(config.plant) if config.plant.share else None
    rows = [config.task.name, plain(config.task.train), planted, len(warmup)]
    return digest([rows, config.model.path, plain(config.tuning)])


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass
class CasePlan:
    """What the jobs of one case (task, model and tuning) take."""

    case: tuple[str, str, str]
    jobs: int = 0
    done: int = 0
    tokens: float = 0.0  # trained, in jobs to do
    memory: Memory = Memory(0.0, 0.0, 0.0)
    hours: float = 0.0  # of one device
    source: str = ""


@dataclass(frozen=True)
class Plan:
    """What all jobs take; passes and reference models count once for all jobs that share them."""

    cases: Sequence[CasePlan]
    passes: int
    references: int
    too_large: Sequence[str]  # in words, what does not fit


def make_plan(jobs: Sequence[Planned]) -> Plan:
    """Adds up what the jobs that are to do would take; what several of them share counts once.

    Raises:
        ConfigError: the shape of a model is not known; a job has a pass that is not counted.
    """
    cases: dict[tuple[str, str, str], CasePlan] = {}
    seen: dict[str, set[Any]] = defaultdict(set)
    refused: dict[str, None] = {}
    for job in jobs:
        if not job.is_case:
            continue
        config = job.config
        if config.scorer.model is not None:
            raise ConfigError(f"scorer.model={config.scorer.model.name} is not counted by stage=plan: unset it")
        case = (config.task.name, config.model.name, config.tuning.name.value)
        plan = cases.setdefault(case, CasePlan(case))
        plan.jobs += 1
        passes, reference = shared_passes(config), reference_key(config)
        seen["all passes"] |= set(passes.values())
        seen["references"] |= {reference} - {None}
        if finished(job.config, job.folder):
            plan.done += 1
            continue
        shape, tokens = shape_of(config.model), tokens_of(job)
        plan.source = tokens.source
        found = memory(shape, config)
        if found.peak > plan.memory.peak:
            plan.memory = found
        refused |= dict.fromkeys(_too_large(config, found))
        trained = _trained(config, tokens)
        work = trained
        for kind, key in passes.items():
            if key not in seen["passes"]:
                seen["passes"].add(key)
                read = tokens.response if kind is Pass.unconditional else tokens.prompt + tokens.response
                work += FORWARD * tokens.train_rows * read
        if reference is not None and reference not in seen["trained references"]:
            seen["trained references"].add(reference)
            share = len(config.method.warmup_rows(tokens.train_rows)) / tokens.train_rows
            work += share * tokens.train * (config.tuning.epochs or 1)
        if config.stage.value in ("all", "evaluate"):
            generated = tokens.eval_rows * config.task.samples
            each = generated * (FORWARD * tokens.prompt + min(config.task.max_new_tokens, 2 * tokens.response))
            base = digest([case[:2], plain(config.task.eval), config.seed if config.task.temperature else None])
            untouched = config.evaluate.base and base not in seen["base"]
            seen["base"] |= {base} if untouched else set()
            work += each * (2 if untouched else 1)
        plan.tokens += trained
        plan.hours += work / tokens_per_second(config, parameters(shape)) / 3600
    return Plan(list(cases.values()), len(seen["all passes"]), len(seen["references"]), list(refused))


def _trained(config: Config, tokens: Tokens) -> float:
    """Tokens that the run trains on, prompts included: they are in the forward and the backward pass."""
    if config.stage.value in ("score", "mask", "preview"):
        return 0.0
    rows = tokens.train_rows * (config.tuning.epochs or 1) * config.method.epochs_factor
    if config.tuning.max_steps is not None:
        rows = min(rows, config.tuning.max_steps * (config.tuning.batch_size or 1))
    return rows * (tokens.prompt + tokens.response)


def _too_large(config: Config, found: Memory) -> list[str]:
    have, trainer = device_memory(config), config.trainer
    scored_only = config.stage.value in ("score", "mask", "preview")
    stages = ["scoring"] if scored_only else ["scoring", "training", "evaluation"]
    said = []
    for stage in stages:
        need = getattr(found, stage)
        if need <= have:
            continue
        remedy = {
            "scoring": "lower trainer.tokens_per_score_batch",
            "training": "use tuning=lora, trainer=fsdp with more devices or nodes, tuning.gradient_checkpointing=true "
            "or a lower trainer.tokens_per_microbatch",
            "evaluation": "lower trainer.tokens_per_eval_batch",
        }[stage]
        said.append(
            f"{stage} of model={config.model.name} tuning={config.tuning.name.value} trainer={trainer.name} "
            f"takes about {need:.0f} GiB on a device and there are {have:.0f}: {remedy}"
        )
    return said


def _short(value: float) -> str:
    """0.49, 8.9, 196: what a rough figure can bear."""
    return f"{value:,.{2 if value < 1 else 1 if value < 10 else 0}f}"


def show_plan(jobs: Sequence[Planned]) -> None:
    """Print the plan as a table.

    Raises:
        ConfigError: something cannot fit on its device.
    """
    from rich.table import Table

    found = make_plan(jobs)
    table = Table()
    table.add_column("task/model/tuning", no_wrap=True)
    for name in ("done", "tokens", "GiB:\nscore", "\ntrain", "\nevaluate", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for plan in found.cases:
        need = plan.memory
        mark = {"stated": "~", "sampled": "≈"}.get(plan.source, "")
        table.add_row(
            "/".join(plan.case),
            f"{plan.done}/{plan.jobs}",
            f"{mark}{_short(plan.tokens / 1e6)} M",
            *(_short(each) for each in (need.scoring, need.training, need.evaluation)),
            duration(3600 * plan.hours),
        )
    console.print(table)
    total, done = sum(plan.jobs for plan in found.cases), sum(plan.done for plan in found.cases)
    config = next(job.config for job in jobs if job.is_case)
    say(
        f"{total} job{'s' * (total != 1)}: {done} done, {total - done} to do; "
        f"scoring passes that they share: {found.passes}, reference models: {found.references}"
    )
    left = 3600 * sum(plan.hours for plan in found.cases)
    gpu, here = (tokens_per_second(config, 1e9, here=one) for one in (False, True))
    say(
        f"time of one device, all in all {duration(left)}: if it trains {gpu:,.0f} tokens/s of a model of 1e9 "
        "parameters (plan.tokens_per_second)"
    )
    if here != gpu:
        say(
            f"that is a GPU; with trainer={config.trainer.name}, at {here:,.0f} tokens/s, {duration(left * gpu / here)}"
        )
    say(
        "tokens: of training left to do (~ by the averages stated in task.size, ≈ by a sample of the local rows, else "
        "counted); GiB: at most at once on one device"
    )
    if found.too_large:
        raise ConfigError("this plan does not fit:\n  " + "\n  ".join(found.too_large))
