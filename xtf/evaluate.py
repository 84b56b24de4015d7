"""Batched generation on the evaluation prompts, grading, and the record of both.

Batches are planned from prompt lengths alone, so a killed evaluation that is started again generates the missing
batches exactly as it would have, and ends with the same completions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.artifacts import read_json, write_atomic, write_json
from xtf.config import TaskConfig, digest
from xtf.tasks.base import Example, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Key = tuple[str, int]  # (example_id, sample number)


@dataclass(frozen=True)
class Decoding:
    """How completions are made; part of their identity."""

    max_new_tokens: int
    samples: int
    temperature: float
    top_p: float
    seed: int

    @classmethod
    def of(cls, task: TaskConfig, seed: int) -> Decoding:
        # Greedy decoding draws nothing, so its result does not depend on the seed and is shared between seeds.
        return cls(
            task.max_new_tokens, task.samples, task.temperature, task.top_p, seed if task.temperature else 0
        )


def plan_batches(
    lengths: Sequence[int], max_new_tokens: int, samples: int, budget: int
) -> list[list[tuple[int, int]]]:
    """Batches of (prompt index, sample), longest prompts first, at most `budget` tokens each (padding included).

    A prompt that alone exceeds the budget forms a batch of its own: it has to be generated somehow.
    """
    items = sorted(
        ((i, k) for i in range(len(lengths)) for k in range(samples)), key=lambda ik: (-lengths[ik[0]], ik)
    )
    batches: list[list[tuple[int, int]]] = []
    for item in items:
        if batches and (len(batches[-1]) + 1) * (lengths[batches[-1][0][0]] + max_new_tokens) <= budget:
            batches[-1].append(item)
        else:
            batches.append([item])
    return batches


def generate_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], decoding: Decoding,
    stop: Sequence[str], batch_seed: int,
) -> list[str]:  # fmt: skip
    """Completions of token-id prompts: left padding, KV cache, stop at EOS; text after a `stop` string is cut."""
    import torch

    from xtf.data import decode_response

    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    input_ids = torch.full((len(prompts), longest), pad)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        attention_mask[row, longest - len(ids) :] = 1
    eos = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [] if eos is None else [eos])}
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if decoding.temperature:
        sampling = {
            "do_sample": True,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": 0,
        }
    torch.manual_seed(batch_seed)
    with torch.inference_mode():
        output = model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device),
            max_new_tokens=decoding.max_new_tokens, eos_token_id=sorted(stops), pad_token_id=pad, use_cache=True,
            **sampling,
        )  # fmt: skip
    texts = [decode_response(tokenizer, ids) for ids in output[:, longest:].tolist()]
    for mark in stop:
        texts = [text.split(mark, 1)[0] for text in texts]
    return texts


def generate(
    load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example],
    prompts: Sequence[Sequence[int]], decoding: Decoding, *, budget: int, folder: Path, stop: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[Key, str]:  # fmt: skip
    """All completions, by (example_id, sample). Finished batches are kept in `folder`, so a killed call goes on.

    Args:
        load: gives the model; not called when every completion is there already.
        prompts: token ids, one list per example.
        budget: tokens per batch, prompt padding and new tokens included.
        progress: told the number of prompt tokens of each finished batch.
    """
    partial = folder / "generations.partial.jsonl"
    done: dict[Key, str] = {}
    if partial.exists():
        for line in partial.read_bytes().split(b"\n")[
            :-1
        ]:  # a line without its newline was cut off by a kill
            item = json.loads(line)
            done[item["example_id"], item["sample"]] = item["completion"]
        kept = [_partial_line(key, text) for key, text in done.items()]
        write_atomic(partial, lambda path: path.write_text("".join(kept), encoding="utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    model = None
    for number, batch in enumerate(
        plan_batches([len(p) for p in prompts], decoding.max_new_tokens, decoding.samples, budget)
    ):
        keys = [(examples[i].example_id, k) for i, k in batch]
        if not all(key in done for key in keys):
            model = model or load()
            seed = int(digest([decoding.seed, number]), 16) % 2**31
            texts = generate_batch(model, tokenizer, [prompts[i] for i, _ in batch], decoding, stop, seed)
            with partial.open("a", encoding="utf-8") as handle:
                handle.writelines(_partial_line(key, text) for key, text in zip(keys, texts, strict=True))
            done.update(zip(keys, texts, strict=True))
        if progress:
            progress(sum(len(prompts[i]) for i, _ in batch))
    return done


def _partial_line(key: Key, completion: str) -> str:
    return (
        json.dumps({"example_id": key[0], "sample": key[1], "completion": completion}, ensure_ascii=False)
        + "\n"
    )


def evaluate(
    load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, task: Task, examples: Sequence[Example],
    prompts: Sequence[Sequence[int]], decoding: Decoding, *, budget: int, folder: Path,
    identity: Mapping[str, Any], stop: Sequence[str] = (), progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Generate (unless `folder` holds the completions of the same `identity`), grade, and write generations.jsonl.

    A change of grader alone regrades the stored completions. Returns {"metrics", "grading", "generated"}.
    """
    record_file, stored = folder / "generations.json", folder / "generations.jsonl"
    key = digest({"identity": identity, "decoding": decoding, "prompts": prompts, "stop": stop})
    record = read_json(record_file) if record_file.exists() else {}
    if record.get("key") == key and stored.exists():
        items = [json.loads(line) for line in stored.read_text(encoding="utf-8").split("\n")[:-1]]
        completions = {(item["example_id"], item["sample"]): item["completion"] for item in items}
    else:
        marker = folder / "generations.partial.key"
        if not marker.exists() or marker.read_text() != key:
            (folder / "generations.partial.jsonl").unlink(missing_ok=True)
            write_atomic(marker, lambda path: path.write_text(key))
        completions = generate(
            load,
            tokenizer,
            examples,
            prompts,
            decoding,
            budget=budget,
            folder=folder,
            stop=stop,
            progress=progress,
        )

    order = [(example, k) for example in examples for k in range(decoding.samples)]
    grades = task.grade([(example, completions[example.example_id, k]) for example, k in order])
    lines = []
    for (example, k), grade in zip(order, grades, strict=True):
        lines.append({
            "example_id": example.example_id, "sample": k, "prompt": example.messages[-1]["content"],
            "completion": completions[example.example_id, k], "extracted": grade.extracted,
            "reference": task.reference(example), "correct": grade.correct, "reason": grade.reason,
        })  # fmt: skip
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(stored, lambda path: path.write_text(text, encoding="utf-8"))
    write_json(
        record_file, {"key": key, "decoding": dataclasses.asdict(decoding), "identity": dict(identity)}
    )
    for leftover in ("generations.partial.jsonl", "generations.partial.key"):
        (folder / leftover).unlink(missing_ok=True)
    per_example = [grades[i : i + decoding.samples] for i in range(0, len(grades), decoding.samples)]
    metrics = task.metrics(examples, per_example)
    return {
        "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics.items()},
        "grading": task.system_info(),
    }
