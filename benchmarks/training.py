"""What a training step costs beside Hugging Face's Trainer and TRL's SFTTrainer.

    python -m benchmarks.training [--quick] [--shape 0.5b] [--device cuda]
    python -m benchmarks.training --model smollm2_135m --task medical --data ROWS.jsonl [--rows 8]

Every subject trains the same random Qwen2 on the same rows (lengths like GSM8K's, about half of them prompt), or with
`--model` real weights on a file's first rows, with the same mask (26 % of the response tokens dropped by chance),
AdamW, clipping, precision and rows per step. The second of two epochs is timed, from update to update: data, forward,
backward, update; on a CPU in seconds of the process's CPU time, which other processes disturb less. Of the documented
settings of each of the other two trainers the fastest in a first round is taken (`--quick` takes those that were
fastest before, and repeats the faster of these two alone; `--repeats 0` leaves it at the first round). Peak memory is
what training adds to a process of its own that has the model already (of the device with it, on a GPU). TRL is an
extra: pip install trl.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    DataCollatorWithFlattening,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

import xtf
from benchmarks.measure import Claim, console, profile, report
from benchmarks.step import drawn, unmasked
from xtf.config.checks import resolve
from xtf.config.compose import compose, register, to_config
from xtf.config.home import HOME
from xtf.config.schema import Accelerator, Backward, Config, LoggerConfig, Schedule, TrainerConfig, Tuning, TuningConfig
from xtf.data.ragged import as_arrow
from xtf.data.rows import load_rows
from xtf.runtime.memory import peak_memory, reset_peak_memory
from xtf.runtime.models import load_model, load_tokenizer
from xtf.scoring.methods import METHODS
from xtf.tasks import load_task
from xtf.training.fit import fit

SHAPES = {  # hidden, intermediate, layers, heads, key heads; the vocabulary is Qwen2's
    "small": (192, 576, 4, 3, 1),
    "75m": (384, 1152, 10, 6, 2),
    "0.5b": (896, 4864, 24, 14, 2),
    "1.5b": (1536, 8960, 28, 12, 2),
}
VOCABULARY = 151936
KEEP = 0.74  # of the response tokens, as the paper reports for GSM8K
RATE = 1e-6
QUICK = ("Trainer, flattened", "SFTTrainer, padding-free")  # the fastest of each in every longer run
OURS, UNMASKED, LABELLED = "xtf", "xtf, nothing dropped", "xtf, backward=labelled"


class Bench:
    """The model, the rows, and one method per subject: train two epochs, return the seconds of the second."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device, self.rows, self.steps = arguments.device, arguments.rows, arguments.steps
        if arguments.model is None:
            model, self.whole = random_model(arguments.shape), random_rows(self.rows * self.steps)
        else:
            model, self.whole = real(arguments.model, arguments.task, arguments.data, self.rows * self.steps)
        self.model: PreTrainedModel = model.to(self.device)
        self.table = drawn(self.whole, 1 - KEEP)
        lengths = [len(row) for row in self.table["input_ids"].to_pylist()]
        self.tokens, self.largest = sum(lengths), sum(sorted(lengths)[-self.rows :])

    @property
    def subjects(self) -> dict[str, Callable[[], float]]:
        found: dict[str, Callable[[], float]] = {
            OURS: lambda: self.ours(self.table),
            UNMASKED: lambda: self.ours(self.whole),
            LABELLED: lambda: self.ours(self.table, Backward.labelled),
            "Trainer, padded": lambda: self.trainer(),
            "Trainer, grouped by length": lambda: self.trainer(train_sampling_strategy="group_by_length"),
            "Trainer, flattened": lambda: self.trainer(flatten=True),
        }
        if importlib.util.find_spec("trl"):
            found["SFTTrainer, padded"] = lambda: self.sft_trainer()
            found["SFTTrainer, padding-free"] = lambda: self.sft_trainer(padding_free=True)
        return found

    def ours(self, table: pa.Table, backward: Backward = Backward.exact, compiled: bool = False) -> float:
        tuning = TuningConfig(
            name=Tuning.full,
            epochs=2,
            learning_rate=RATE,
            batch_size=self.rows,
            schedule=Schedule.constant,
            warmup_ratio=0.0,
            backward=backward,
        )
        accelerator = Accelerator.gpu if self.device == "cuda" else Accelerator.cpu
        config = Config(
            method=METHODS["xtf"](),
            tuning=tuning,
            trainer=TrainerConfig(
                name="bench",
                accelerator=accelerator,
                checkpoint_every=10**9,
                compile=compiled,
                # a compiled model sees one shape, filled up: as much as the largest step
                tokens_per_microbatch=self.largest if compiled else TrainerConfig.tokens_per_microbatch,
            ),
            logger=LoggerConfig(name="csv"),
        )
        with tempfile.TemporaryDirectory() as folder:
            return self.timed(lambda: fit(self.model, table, config, Path(folder), pad_id=0, loggers=[]))

    def trainer(self, flatten: bool = False, **settings: Any) -> float:
        collator = DataCollatorWithFlattening() if flatten else pad
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(**self.arguments(folder), **settings)
            subject = Trainer(self.model, arguments, data_collator=collator, train_dataset=self.dataset())
            return self.timed(quiet(subject).train)

    def sft_trainer(self, **settings: Any) -> float:
        from trl import SFTConfig, SFTTrainer

        with tempfile.TemporaryDirectory() as folder:
            arguments = SFTConfig(**self.arguments(folder), max_length=None, **settings)
            subject = SFTTrainer(self.model, arguments, train_dataset=self.dataset(), processing_class=make_tokenizer())
            return self.timed(quiet(subject).train)

    def arguments(self, folder: str) -> dict[str, Any]:
        return {
            "output_dir": folder,
            "num_train_epochs": 2,
            "per_device_train_batch_size": self.rows,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "max_grad_norm": 1.0,
            "bf16": self.device == "cuda",
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": self.device == "cpu",
        }

    def dataset(self) -> Dataset:
        return Dataset(self.table.select(["input_ids", "labels"]))

    def timed(self, train: Callable[[], Any]) -> float:
        """Seconds from the last update of the first epoch to the last of the second."""
        ticks: list[float] = []

        def tick(*_: Any) -> None:
            if self.device == "cuda":
                torch.cuda.synchronize()
            ticks.append(time.perf_counter() if self.device == "cuda" else time.process_time())

        hook = register_optimizer_step_post_hook(tick)
        try:
            train()
        finally:
            hook.remove()
            self.model.zero_grad(set_to_none=True)
        assert len(ticks) == 2 * self.steps, (len(ticks), self.steps)
        return ticks[-1] - ticks[self.steps - 1]


def random_model(shape: str) -> PreTrainedModel:
    """A Qwen2 with weights that were not trained."""
    hidden, intermediate, layers, heads, key_heads = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM._from_config(config, attn_implementation="sdpa")


def real(name: str, task: str, file: Path, number: int) -> tuple[PreTrainedModel, pa.Table]:
    """A model of conf/model in float32, and a file's first rows as a task reads them, every response token labelled."""
    register()
    with hydra.initialize_config_dir(str(HOME / "conf"), version_base="1.3"):
        said = [f"model={name}", f"task={task}", f"task.train.path={file}", f"task.train.limit={number}", "stage=mask"]
        config = resolve(to_config(compose(said)))
    model = load_model(config.model, config.trainer, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        examples = list(load_task(config.task, folder).iterate(load_rows(config.task.train)))
    assert len(examples) == number, f"{file} has {len(examples)} rows, and {number} are needed"
    scored = xtf.score(model, load_tokenizer(config.model), examples, scorer="tr", progress=False)
    return model, unmasked(as_arrow(xtf.mask(scored, threshold="paper")))


def random_rows(rows: int) -> pa.Table:
    """Random ids; lengths log-normal, with the means and spreads of GSM8K in Qwen2.5's tokens."""
    random = np.random.default_rng(0)
    prompts = np.exp(random.normal(np.log(86), 0.3, rows)).astype(int)  # with the template's 30 tokens
    responses = np.exp(random.normal(np.log(114), 0.42, rows)).astype(int)
    ids = [random.integers(1, VOCABULARY, length).tolist() for length in prompts + responses]
    labels = [[-100] * prompt + row[prompt:] for row, prompt in zip(ids, prompts, strict=True)]
    names = [str(row) for row in range(rows)]
    return pa.table({"example_id": names, "input_ids": ids, "prompt_length": prompts, "labels": labels})


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    short = [width - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([row["input_ids"] + [0] * n for row, n in zip(rows, short, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in short]),
        "labels": torch.tensor([row["labels"] + [-100] * n for row, n in zip(rows, short, strict=True)]),
    }


def make_tokenizer() -> PreTrainedTokenizerFast:
    """SFTTrainer asks for one; the rows are token ids already."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>")),
        pad_token="<pad>",
        eos_token="<eos>",
    )


def quiet(trainer: Trainer) -> Trainer:
    trainer.remove_callback(PrinterCallback)
    return trainer


def fastest(first: dict[str, float], family: str) -> str | None:
    names = [name for name in first if name.startswith(family)]
    return min(names, key=first.__getitem__) if names else None


def added_memory(arguments: argparse.Namespace, subject: str) -> int:
    """Bytes that training one subject adds at most, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.training", "--shape", arguments.shape, "--device", arguments.device]
    command += ["--rows", str(arguments.rows), "--steps", "1", "--only", subject]
    if arguments.model is not None:
        command += ["--model", arguments.model, "--task", arguments.task, "--data", str(arguments.data)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # two of these run side by side
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_thread)
    return int(json.loads(done.stdout.splitlines()[-1]))


def report_compile(arguments: argparse.Namespace) -> int:
    """Warm steps with `trainer.compile=true` against without; compiling falls into the epoch that is not timed."""
    plain, compiled = Bench(arguments), Bench(arguments)
    first = compiled.ours(compiled.table, compiled=True)
    console.print(f"compiled once; then {compiled.tokens / first:,.0f} tokens/s", highlight=False)
    pairs = np.array(
        [(plain.ours(plain.table), compiled.ours(compiled.table, compiled=True)) for _ in range(arguments.repeats)]
    )
    claim = Claim("tokens/s, compiled against not", pairs[:, 0] / pairs[:, 1], at_least=True)
    return report("compile", [claim], {"settings": vars(arguments), "seconds": pairs.tolist()})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model, in three minutes on two cores")
    parser.add_argument("--shape", choices=SHAPES, default="75m")
    parser.add_argument("--model", help="of conf/model, instead of random weights")
    parser.add_argument("--task", default="custom", help="of conf/task, that reads the rows of --data")
    parser.add_argument("--data", type=Path, help="rows of --model's training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=16, help="rows per optimizer step")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps per epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing")
    parser.add_argument(
        "--compile", action="store_true", help="measure torch.compile against its absence, and nothing else"
    )
    parser.add_argument("--only", help="train this subject once and print the memory that this took")
    arguments = parser.parse_args()
    if (arguments.model is None) != (arguments.data is None):
        parser.error("--model and --data go together")
    if arguments.quick and arguments.model is None:
        arguments.shape, arguments.rows, arguments.steps = "small", 4, 1
    for name in ("pytorch_lightning", "transformers", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    if arguments.compile:
        return report_compile(arguments)
    bench = Bench(arguments)
    if arguments.only:
        device = bench.model.device
        reset_peak_memory(device)
        before = 0 if device.type == "cuda" else peak_memory(device)
        bench.subjects[arguments.only]()
        print(json.dumps(peak_memory(device) - before))
        return 0
    if arguments.profile:
        profile("training, two epochs", bench.subjects[OURS])
        return 0
    subjects = bench.subjects
    own = (OURS, UNMASKED, LABELLED)
    first: dict[str, float] = {}
    for name, run in subjects.items():
        if not arguments.quick or name in (*own, *QUICK):
            first[name] = run()
            console.print(f"first round: {name}: {bench.tokens / first[name]:,.0f} tokens/s", highlight=False)
    others = [name for name in (fastest(first, "Trainer"), fastest(first, "SFTTrainer")) if name]
    repeated = [min(others, key=first.__getitem__)] if arguments.quick else others
    seconds: dict[str, list[float]] = {name: [] for name in (*own, *repeated)}
    if not arguments.repeats:
        seconds = {name: [first[name]] for name in seconds}
    for _ in range(arguments.repeats):
        for name, samples in seconds.items():
            samples.append(subjects[name]())
    times = {name: np.array(values) for name, values in seconds.items()}
    # Two small ones side by side; of real models one, for Trainer's take many GB.
    with ThreadPoolExecutor(2 if arguments.device == "cpu" and arguments.model is None else 1) as pool:
        measured = pool.map(functools.partial(added_memory, arguments), (OURS, *others))
    memory = dict(zip((OURS, *others), measured, strict=True))
    best = min(repeated, key=lambda name: float(np.median(times[name])))
    promised = 1.2 if arguments.device == "cuda" else 1.7
    masked = 1.05 if arguments.model is None else None  # real rows may be nearly all prompt
    once = {f"{name}, first round": np.array([first[name] / first[OURS]]) for name in others if name not in times}
    against = {name: times[name] / times[OURS] for name in repeated} | once
    claims = [Claim(f"tokens/s against {name}", ratios, at_least=True) for name, ratios in against.items()]
    claims += [
        Claim(f"tokens/s against the faster ({best})", times[best] / times[OURS], promised, at_least=True),
        Claim(f"tokens/s with backward=labelled against {best}", times[best] / times[LABELLED], at_least=True),
        Claim("tokens/s with the mask against without", times[UNMASKED] / times[OURS], masked, at_least=True),
        Claim(
            "peak memory that training adds, against the lower of the others",
            np.array([memory[OURS] / min(memory[name] for name in others)]),
            1.0,
            note=", ".join(f"{name} {added / 2**30:.2f} GiB" for name, added in memory.items()),
        ),
    ]
    details = {
        "settings": vars(arguments),
        "seconds": {name: values.tolist() for name, values in times.items()},
        "first_round": first,
        "tokens_per_second": {name: bench.tokens / float(np.median(found)) for name, found in times.items()},
        "memory": memory,
    }
    return report("training", claims, details)


if __name__ == "__main__":
    raise SystemExit(main())
