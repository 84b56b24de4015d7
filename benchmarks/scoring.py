"""What scoring costs beside a plain forward pass, and beside the authors' three passes.

    python -m benchmarks.scoring [--quick] [--device cuda] [--shape 0.5b]

The model is random: weights do not change the time. "Forward" is `model(input_ids).logits` over the very same batches.
The authors' algorithm is written here from its description: batch size 1, one pass for eager attention of all layers,
one for a full softmax per token in a Python loop, and one forward for each distinct token of the data. Rows are GSM8K's
in Qwen2.5's tokens where these lie beside the repository, else drawn with like repetition. How many times slower the
authors are hangs on the share of distinct tokens, which falls as data grow (a third of two rows, 12 % of 24, 4 % of
600, 1 % of all 7,473), so the ratio is measured on a few rows and worked out from its parts for 600, the number that
the paper trains its smallest Qwen-based model on.

    python -m benchmarks.scoring --growth 10000,100000,1000000

scores so many short rows with a tiny model through the whole stored pass, each in a process of its own, and prints
seconds and peak memory. Start from several shards of 2,048 rows: below, memory grows with the rows in the first.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from benchmarks.measure import Claim, Times, alternate, console, profile, report
from xtf import tiny
from xtf.config.schema import Attribute, Config, RIConfig, ScorerConfig, TaskConfig, TrainerConfig
from xtf.data.encode import Encoded
from xtf.runtime.memory import peak_memory, reset_peak_memory
from xtf.scoring.scorers import batches, count_tokens, score_rows, tr_table
from xtf.scoring.store import scoring_pass

SHARED = Path(__file__).parents[2] / "shared"
PAPER_ROWS, DISTINCT = 600, 0.0398
ALL = tuple(Attribute)
SHAPES = {  # hidden, intermediate, layers, heads, key heads, vocabulary, tied embeddings
    "many": (32, 64, 1, 2, 2, 512, True),  # small enough for a million rows on a CPU
    "long": (64, 128, 2, 2, 2, 512, True),  # and for a row of 32k tokens
    "60m": (640, 1920, 8, 10, 2, 32768, True),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),
    "1.5b": (1536, 8960, 28, 12, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
}


@dataclass(frozen=True)
class Case:
    """Rows to score: how many, how long on average, and which share of each is prompt."""

    rows: int
    length: int
    prompt: float

    def make(self, vocab_size: int) -> list[Encoded]:
        generator = np.random.default_rng(0)
        lengths = np.clip(generator.gamma(8, self.length / 8, self.rows), self.length / 3, self.length * 2)
        rows = []
        for number, length in enumerate(lengths.astype(int)):
            ids = np.minimum(generator.zipf(1.2, length), vocab_size) - 1
            rows.append(Encoded(str(number), ids.tolist(), max(1, int(length * self.prompt))))
        return rows


def gsm8k_rows(count: int, vocab_size: int) -> tuple[list[Encoded], float]:
    """The first rows, their ids renumbered to fit the vocabulary; and the share of distinct ones in PAPER_ROWS rows.

    Without GSM8K: rows of that length with as many distinct ids, and the share counted once.
    """
    if not (SHARED / "data/gsm8k/train.jsonl").exists():
        return Case(count, 180, 0.33).make(vocab_size), DISTINCT
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "tokenizers/qwen2.5")
    with (SHARED / "data/gsm8k/train.jsonl").open(encoding="utf-8") as lines:
        items = [json.loads(line) for line, _ in zip(lines, range(PAPER_ROWS), strict=False)]
    prompts, answers = (tokenizer([item[part] for item in items])["input_ids"] for part in ("question", "answer"))
    flat = [token for row in (*prompts, *answers) for token in row]
    number: dict[int, int] = {}
    rows = [
        Encoded(str(i), [number.setdefault(token, len(number)) for token in prompt + answer], len(prompt))
        for i, (prompt, answer) in enumerate(zip(prompts[:count], answers[:count], strict=True))
    ]
    assert len(number) <= vocab_size
    return rows, len(set(flat)) / len(flat)


def build(shape: str, device: str) -> PreTrainedModel:
    hidden, intermediate, layers, heads, key_heads, vocab_size, tied = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        tie_word_embeddings=tied,
        max_position_embeddings=65536,
        dtype=torch.bfloat16 if device == "cuda" else torch.float32,
    )
    with torch.device(device):
        return Qwen2ForCausalLM._from_config(config).eval()


# --- the subjects -------------------------------------------------------------------------------------------


@torch.inference_mode()
def forward(model: PreTrainedModel, rows: list[Encoded], budget: int) -> None:
    """A forward pass with all logits over the batches that scoring makes, without a padding mask."""
    for batch in batches(np.array([len(row.input_ids) for row in rows]), budget):
        longest = len(rows[batch[0]].input_ids)
        padded = [rows[place].input_ids + [0] * (longest - len(rows[place].input_ids)) for place in batch]
        model(input_ids=torch.tensor(padded, device=model.device), use_cache=False).logits  # noqa: B018


def score(
    model: PreTrainedModel, rows: list[Encoded], budget: int, attributes: tuple[Attribute, ...] = ALL, layer: int = -1
) -> None:
    scorer = ScorerConfig("benchmark", list(attributes), ri=RIConfig(layer=layer))
    table = None
    if Attribute.tr in attributes:
        table = tr_table(model, count_tokens(rows), scorer)
    score_rows(model, rows, scorer, tr=table, tokens_per_batch=budget)


@torch.inference_mode()
def authors_attention(model: PreTrainedModel, rows: list[Encoded]) -> None:
    """`model` is on eager attention, here and below."""
    for row in rows:
        ids = torch.tensor([row.input_ids], device=model.device)
        model(input_ids=ids, output_attentions=True).attentions[0].mean(1)[0].mean(1).tolist()


@torch.inference_mode()
def authors_probabilities(model: PreTrainedModel, rows: list[Encoded]) -> None:
    for row in rows:
        ids = torch.tensor([row.input_ids], device=model.device)
        logits = model(input_ids=ids, output_hidden_states=True).logits
        for place in range(len(row.input_ids) - 1):
            F.softmax(logits[0, place], dim=-1)[ids[0, place + 1]].item()


@torch.inference_mode()
def authors_tokens(model: PreTrainedModel, rows: list[Encoded]) -> None:
    domain = torch.randn(model.config.hidden_size, device=model.device, dtype=model.dtype)
    for token in {token for row in rows for token in row.input_ids}:
        ids = torch.tensor([[token]], device=model.device)
        vector = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 0]
        F.cosine_similarity(vector[None], domain[None]).item()


# --- time ---------------------------------------------------------------------------------------------------


def compare(what: str, times: dict[str, Times], over: str, under: str, **promise: Any) -> Claim:
    """The ratio of two subjects' wall times, repeat by repeat; the note has that of their CPU times."""
    cpu = float(np.median(times[over].cpu / times[under].cpu))
    seconds = f"{np.median(times[over].wall):.2f} s / {np.median(times[under].wall):.2f} s; CPU time {cpu:.3g}"
    return Claim(what, times[over].wall / times[under].wall, note=seconds, **promise)


def time_against_forward(model: PreTrainedModel, rows: int, budget: int, repeats: int) -> list[Claim]:
    """Rows with little, half and mostly prompt; and what RI of a middle layer and TR cost alone."""
    claims = []
    for prompt, limit in ((0.05, 1.05), (0.5, 1.0), (0.9, 1.0)):
        data = Case(rows, 160, prompt).make(model.config.vocab_size)
        times = alternate(
            {
                "forward": functools.partial(forward, model, data, budget),
                "scoring": functools.partial(score, model, data, budget),
            },
            repeats,
        )
        what = f"RI + KN + TR / forward, {prompt:.0%} prompt"
        claims.append(compare(what, times, "scoring", "forward", limit=limit))
    layer = model.config.num_hidden_layers // 2 - 1
    data = Case(rows, 160, 0.5).make(model.config.vocab_size)
    times = alternate(
        {
            "forward": functools.partial(forward, model, data, budget),
            "ri": functools.partial(score, model, data, budget, (Attribute.ri,), layer),
            "tr": functools.partial(score, model, data, budget, (Attribute.tr,)),
        },
        repeats,
    )
    half = f"RI of layer {layer + 1} of {model.config.num_hidden_layers} / forward"
    claims.append(compare(half, times, "ri", "forward", limit=0.75))
    claims.append(compare("TR / forward", times, "tr", "forward", limit=0.1))
    return claims


def time_against_authors(model: PreTrainedModel, count: int, budget: int, repeats: int) -> list[Claim]:
    """On a few rows as measured, and worked out for as many rows as the paper trains on."""
    data, distinct_then = gsm8k_rows(count, model.config.vocab_size)
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    times = alternate(
        {
            "scoring": functools.partial(score, model, data, budget),
            "attention": functools.partial(authors_attention, eager, data),
            "probabilities": functools.partial(authors_probabilities, eager, data),
            "tokens": functools.partial(authors_tokens, eager, data),
        },
        repeats,
    )
    ids = [token for row in data for token in row.input_ids]
    distinct = len(set(ids)) / len(ids)
    parts = {name: found.wall / times["scoring"].wall for name, found in times.items() if name != "scoring"}
    note = ", ".join(f"{name} {np.median(ratios):.3g}" for name, ratios in parts.items())
    passes = parts["attention"] + parts["probabilities"]
    return [
        Claim(
            f"authors' passes / scoring, {count} rows, {distinct:.0%} of tokens distinct",
            passes + parts["tokens"],
            aim=20.0 if model.device.type == "cpu" else 50.0,
            at_least=True,
            note=note,
        ),
        Claim(
            f"the same worked out for {PAPER_ROWS} rows, {distinct_then:.0%} distinct",
            passes + parts["tokens"] * distinct_then / distinct,
            aim=20.0 if model.device.type == "cpu" else 50.0,
            at_least=True,
        ),
    ]


# --- memory -------------------------------------------------------------------------------------------------


def peak(subject: str, shape: str, device: str, case: Case, budget: int) -> tuple[float, float]:
    """Bytes held before one subject runs, and at most meanwhile; of a process that does nothing else."""
    model = build(shape, device)
    run = {"forward": forward, "scoring": score}[subject]
    run(model, Case(1, 16, 0.5).make(model.config.vocab_size), budget)  # libraries get their buffers
    data = case.make(model.config.vocab_size)
    reset_peak_memory(model.device)
    before = peak_memory(model.device)
    run(model, data, budget)
    return before, peak_memory(model.device)


def measure_peak(subject: str, shape: str, device: str, case: Case, budget: int) -> tuple[float, float]:
    """`peak` in a fresh process."""
    arguments = [subject, shape, device, str(case.rows), str(case.length), str(case.prompt), str(budget)]
    command = [sys.executable, "-m", "benchmarks.scoring", "--peak", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    before, top = done.stdout.split()[-2:]
    return float(before), float(top)


def memory_claims(shape: str, device: str, rows: int, lengths: tuple[int, ...], budget: int) -> list[Claim]:
    """Peak memory beside a forward pass, and how it grows with the length of a row."""
    case = Case(rows, 160, 0.05)
    (before, theirs), (start, ours) = (
        measure_peak(subject, shape, device, case, budget) for subject in ("forward", "scoring")
    )
    grown = []
    for length in lengths:
        empty, top = measure_peak("scoring", "long", device, Case(1, length, 0.5), budget)
        grown.append(top - empty)
    return [
        Claim(
            "peak memory, RI + KN + TR / forward, 5% prompt",
            np.array([ours / theirs]),
            limit=1.1,
            note=f"{ours / 2**20:,.0f} MiB / {theirs / 2**20:,.0f} MiB",
        ),
        Claim(
            "the same without model and libraries",
            np.array([(ours - start) / (theirs - before)]),
            limit=1.1,
            note=f"{(ours - start) / 2**20:,.0f} MiB / {(theirs - before) / 2**20:,.0f} MiB",
        ),
        *(
            Claim(
                f"memory for a row of {length:,} tokens / of {lengths[0]:,}",
                np.array([more / grown[0]]),
                limit=1.1 * length / lengths[0],
                note=f"{more / 2**20:,.0f} MiB / {grown[0] / 2**20:,.0f} MiB",
            )
            for length, more in zip(lengths[1:], grown[1:], strict=True)
        ),
    ]


# --- growth -------------------------------------------------------------------------------------------------


class ManyRows(Sequence[Encoded]):
    """Short rows made when they are asked for, so that memory shows what the pass holds and not its input."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.rows))]
        if index >= self.rows:
            raise IndexError(index)
        length = 8 + index * 7919 % 9
        return Encoded(str(index), [(index * 31 + place * 17) % 512 for place in range(length)], length // 2)


def grow(rows: int) -> tuple[float, float]:
    """Seconds, and peak bytes of the process, of a stored pass over so many rows."""
    config = Config(
        scorer=ScorerConfig("benchmark", list(ALL)),
        trainer=TrainerConfig("cpu", shard_examples=2048),
        task=TaskConfig(name="math"),
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny.MODEL_DIR)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        scoring_pass(
            Path(folder),
            ManyRows(rows),
            {"ri", "logp", "tr"},
            config=config,
            model={},
            load=lambda: build("many", "cpu"),
            tokenizer=tokenizer,
        )
        return time.monotonic() - started, peak_memory(torch.device("cpu"))


def report_growth(counts: list[int]) -> int:
    """Seconds per million tokens and memory must not grow from one count to the next by more than noise."""
    found = []
    for count in counts:
        command = [sys.executable, "-m", "benchmarks.scoring", "--grow", str(count)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(tuple(map(float, done.stdout.split()[-2:])))
        console.print(f"{count:,} rows: {found[-1][0]:.1f} s, peak {found[-1][1] / 2**20:,.0f} MiB")
    claims = []
    for (few, before), (many, after) in pairwise(zip(counts, found, strict=True)):
        what = f"{many:,} rows / {few:,} rows"
        times = f"{after[0]:.1f} s / {before[0]:.1f} s"
        claims.append(Claim(f"time, {what}", np.array([after[0] / before[0]]), 1.2 * many / few, note=times))
        memory = f"{after[1] / 2**20:,.0f} MiB / {before[1] / 2**20:,.0f} MiB"
        claims.append(Claim(f"peak memory, {what}", np.array([after[1] / before[1]]), 1.1, note=memory))
    return report("scoring-growth", claims, {"rows": counts})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rows: three minutes on two quiet cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="60m", choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true", help="print where the time goes, and measure nothing")
    parser.add_argument("--growth", help="numbers of rows, with commas between them")
    parser.add_argument("--peak", nargs=7, help=argparse.SUPPRESS)
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.growth:
        return report_growth([int(count) for count in options.growth.split(",")])
    if options.grow:
        print(*grow(options.grow))
        return 0
    device, quick, repeats = options.device, options.quick, options.repeats
    if options.peak:
        subject, shape, device, rows, length, prompt, budget = options.peak
        print(*peak(subject, shape, device, Case(int(rows), int(length), float(prompt)), int(budget)))
        return 0
    started = time.monotonic()
    budget = 4096 if device == "cpu" else 65536
    rows = (6 if quick else 64) if device == "cpu" else 1024
    if options.profile:
        model = build(options.shape, device)
        data = Case(rows, 160, 0.5).make(model.config.vocab_size)
        score(model, data, budget)
        profile("scoring, 50% prompt", lambda: score(model, data, budget))
        return 0
    lengths = (8192, 32768) if quick else (8192, 16384, 32768)
    memory = memory_claims(options.shape, device, max(rows, 16), lengths, budget)
    model = build(options.shape, device)
    size = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{size / 1e6:.0f} million parameters on {device}, {budget} tokens per batch, {repeats} repeats")
    claims = time_against_forward(model, rows, budget, repeats)
    claims += time_against_authors(model, 4 if quick else 24, budget, repeats)
    details = {"shape": options.shape, "parameters": size, "repeats": repeats, "rows": rows, "budget": budget}
    return report("scoring", [*claims, *memory], {**details, "seconds": time.monotonic() - started})


if __name__ == "__main__":
    sys.exit(main())
