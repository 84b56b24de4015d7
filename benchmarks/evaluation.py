"""What generation costs beside the usual loop, `generate` on padded batches of 8 in the order of the data, and beside
transformers' own continuous batching, which `generate_batch` runs.

    python -m benchmarks.evaluation [--quick] [--device cuda] [--model PATH] [--prompts FILE]

All decode greedily, the same prompts with the same model, and must give the same tokens in float32. When rows end is
what matters here, so all end a row after as many tokens as its reference answer has, as a fine-tuned model would; the
model's own end of text counts for nothing. The loop, whose rate does not depend on how many rows there are, gets the
first quarter of them, and so does `generate_batch`, beside which ours gets that quarter too. Rows are those of GSM8K's
test set (`--rows-from`: its test.jsonl as published, by default beside the repository), else the bundled ones. The
model is the bundled one, or `--model`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.utils import logging as transformers_logging

from benchmarks.measure import Claim, alternate, console, report
from xtf import tiny
from xtf.data.encode import encode_prompt
from xtf.data.examples import Example
from xtf.evaluation.evaluate import cut_into_shares
from xtf.evaluation.generation import complete, greedy

GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k/test.jsonl"
BUNDLED = Path(tiny.__file__).parent / "data/math_eval.jsonl"
BATCH = 8
# Of transformers' own: the fastest of what was tried on a CPU (benchmarks/README.md); left to choose its cache itself
# it takes 60 % of the machine's memory, and most of the time goes into that.
BLOCKS, BATCH_TOKENS = 64, 1024


@dataclass(frozen=True)
class Row:
    """A prompt, and how long its completion gets."""

    prompt: list[int]
    length: int  # tokens of the reference answer, at most those allowed


def read_rows(file: Path, rows: int, tokenizer: PreTrainedTokenizerBase, new: int) -> list[Row]:
    with file.open(encoding="utf-8") as lines:
        items = [json.loads(line) for line, _ in zip(lines, range(rows), strict=False)]
    found = []
    for item in items:
        example = Example("", ({"role": "user", "content": item["question"]},), item["answer"], {})
        answer = tokenizer(item["answer"], add_special_tokens=False)["input_ids"]
        found.append(Row(list(encode_prompt(tokenizer, example)), min(new, len(answer))))
    return found


class AsLongAsTheReference(StoppingCriteria):
    def __init__(self, rows: Sequence[Row], width: int) -> None:
        self.ends = torch.tensor([width + row.length for row in rows])

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return input_ids.shape[1] >= self.ends.to(input_ids.device)  # type: ignore[return-value]


@torch.inference_mode()
def loop(model: PreTrainedModel, rows: Sequence[Row], new: int) -> list[list[int]]:
    """Padded batches in data order, the whole batch until its last row ends."""
    completions = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        width = max(len(row.prompt) for row in batch)
        ids = torch.tensor([[0] * (width - len(row.prompt)) + row.prompt for row in batch])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in batch])
        output = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            stopping_criteria=[AsLongAsTheReference(batch, width)],
        )[:, width:].tolist()
        completions += [ids[: row.length] for ids, row in zip(output, batch, strict=True)]
    return completions


def ours(model: PreTrainedModel, rows: Sequence[Row], new: int, budget: int) -> list[list[int]]:
    """The way of `xtf.evaluation.evaluate`, without texts and files."""
    completions: list[list[int]] = [[] for _ in rows]
    for share in cut_into_shares([len(row.prompt) for row in rows], new, 1, budget):
        members = [index for index, _ in share.items]

        def choose(logits: torch.Tensor, at: Sequence[tuple[int, int]], members: list[int] = members) -> torch.Tensor:
            over = torch.tensor([step == rows[members[place]].length for place, step in at])
            return greedy(logits, at).masked_fill(over.to(logits.device), -1)

        prompts = [rows[index].prompt for index in members]
        for place, ids in complete(model, prompts, places=share.places, max_new_tokens=new, stops=[-1], choose=choose):
            completions[members[place]] = ids
    return completions


def generate_batch(model: PreTrainedModel, rows: Sequence[Row]) -> list[list[int]]:
    """transformers' continuous batching: the manager of `generate_batch`, which itself has one length for all rows."""
    settings = ContinuousBatchingConfig(num_blocks=BLOCKS, max_batch_tokens=BATCH_TOKENS)
    greedily = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    found: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(  # type: ignore[operator]
        generation_config=greedily, continuous_batching_config=settings, block=True, timeout=5
    ) as manager:
        names = [manager.add_request(row.prompt, max_new_tokens=row.length, eos_token_id=-1) for row in rows]
        while len(found) < len(rows):
            output = manager.get_result(timeout=1)
            if output is not None and output.is_finished():
                found[output.request_id] = output.generated_tokens
            elif output is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching ended before all rows did")
    return [found[name] for name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter completions: three minutes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--model", default=str(tiny.MODEL_DIR))
    parser.add_argument("--rows-from", type=Path, default=GSM8K if GSM8K.exists() else BUNDLED)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--new", type=int, help="new tokens at most")
    parser.add_argument("--budget", type=int, default=65536, help="trainer.tokens_per_eval_batch")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    count, new = (192, 512) if options.quick else (400, 512)
    count, new = options.rows or count, options.new or new
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # about the id that never ends a row
    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).to(options.device).eval()
    rows = read_rows(options.rows_from, count, tokenizer, new)
    made: dict[str, list[list[int]]] = {}
    times = alternate(
        {
            "loop": lambda: made.update(loop=loop(model, rows[: count // 4], new)),
            "xtf": lambda: made.update(xtf=ours(model, rows, new, options.budget)),
            "generate_batch": lambda: made.update(generate_batch=generate_batch(model, rows[: count // 4])),
            "xtf, a quarter": lambda: ours(model, rows[: count // 4], new, options.budget),
        },
        options.repeats,
    )
    tokens = {name: sum(map(len, completions)) for name, completions in made.items()}
    lengths = np.array([len(ids) for ids in made["xtf"]])
    prompt_tokens = sum(len(row.prompt) for row in rows)
    equal = sum(a == b == c for a, b, c in zip(made["loop"], made["xtf"], made["generate_batch"], strict=False))
    seconds = {name: float(np.median(found.wall)) for name, found in times.items()}
    share = tokens["xtf"] / tokens["loop"]
    cpu = float(np.median(times["loop"].cpu / times["xtf"].cpu)) * share
    rates = {name: tokens[name] / seconds[name] for name in tokens}
    beside = times["generate_batch"].wall / times["xtf, a quarter"].wall
    beside_cpu = float(np.median(times["generate_batch"].cpu / times["xtf, a quarter"].cpu))
    console.print(
        f"{count} rows of {options.rows_from.name}: {prompt_tokens / count:.0f} prompt tokens and "
        f"{lengths.mean():.0f} new ones on average; {equal} of {count // 4} completions equal token by token"
    )
    claims = [
        Claim(
            f"tokens/s against padded batches of {BATCH} in data order",
            times["loop"].wall / times["xtf"].wall * share,
            3.0,
            at_least=True,
            note=f"{rates['xtf']:,.0f} / {rates['loop']:,.0f} tokens/s; CPU time {cpu:.3g}",
        ),
        Claim(
            "tokens/s against generate_batch, the same rows",
            beside,
            1.3 if options.device == "cpu" else None,
            at_least=True,
            note=f"{rates['generate_batch']:,.0f} tokens/s; CPU time {beside_cpu:.3g}",
        ),
    ]
    details = {
        "settings": {"rows": count, "new": new, "budget": options.budget, "file": options.rows_from.name},
        "model": Path(options.model).name,
        "seconds": {name: found.wall.tolist() for name, found in times.items()},
        "tokens": tokens,
        "new_tokens_quartiles": np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        "equal_completions": equal,
        "took": time.monotonic() - started,
    }
    status = report("evaluation", claims, details)
    if dtype is torch.float32 and equal < count // 4:
        console.print(f"{count // 4 - equal} completions differ", style="red")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
