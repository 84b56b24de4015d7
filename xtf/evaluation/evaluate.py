"""Batched generation on the evaluation prompts, grading, and the record of both.

The work is cut into shares from prompt lengths alone, so a killed evaluation that is started again generates the
missing shares exactly as it would have, and ends with the same completions.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xtf.config.identity import digest
from xtf.data.examples import Example
from xtf.data.rows import first_few
from xtf.evaluation.decoding import Decoding
from xtf.evaluation.vllm_engine import VLLMEngine
from xtf.runtime.artifacts import intact, naming, read_json, with_digest, without_digest, write_atomic, write_json
from xtf.runtime.progress import say
from xtf.tasks import Task

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Generator: TypeAlias = "PreTrainedModel | VLLMEngine"
Key = tuple[str, int]  # (example_id, sample number)
ROUNDS = 8  # times that each place of a share is filled; a kill loses at most one share
STOP_EVERY = 8  # tokens between two looks for a stop string


@dataclass(frozen=True)
class Share:
    """Completions that are generated together and stored together: what a killed evaluation can lose."""

    items: list[tuple[int, int]]  # (prompt index, sample)
    places: int  # of them that run at the same time


def cut_into_shares(lengths: Sequence[int], max_new_tokens: int, samples: int, budget: int) -> list[Share]:
    """All prompts and samples in shares, longest prompts first.

    So many run side by side that their KV cache never holds more than `budget` tokens, padding included. One that
    alone exceeds it runs alone: it has to be generated somehow.
    """
    items = sorted(((i, k) for i in range(len(lengths)) for k in range(samples)), key=lambda ik: (-lengths[ik[0]], ik))
    shares: list[Share] = []
    while items:
        places = max(1, budget // (lengths[items[0][0]] + max_new_tokens))
        shares.append(Share(items[: places * ROUNDS], places))
        items = items[places * ROUNDS :]
    return shares


def generate_share(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    places: int,
    seeds: Sequence[int],
    stop: Sequence[str] = (),
) -> Iterator[tuple[int, str]]:
    """Yields (index into `prompts`, completion) as they end: at EOS or the template's end of a turn, or before
    a `stop` string.

    `seeds` has one for each prompt: what is drawn for one does not depend on the others. Of the model's generation
    settings the EOS ids alone are heeded: how the models are decoded is the task's choice, alike for all of them.
    """
    import torch

    from xtf.data.encode import decode_response
    from xtf.data.templates import turn_end
    from xtf.evaluation.generation import complete, draw, greedy

    eos = model.generation_config.eos_token_id
    named = {tokenizer.eos_token_id, turn_end(tokenizer), *(eos if isinstance(eos, list) else [eos])}
    stops = {token for token in named if token is not None}
    uniform = [
        np.random.default_rng(seed).random(decoding.max_new_tokens, np.float32)
        for seed in (seeds if decoding.temperature else ())
    ]

    def sample(logits: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
        drawn = torch.tensor([uniform[row][step] for row, step in rows], device=logits.device)
        return draw(logits, drawn, decoding.temperature, decoding.top_p)

    def over(ids: list[int]) -> bool:
        """Whether a stop string is there. Looked for now and then, first in the last few tokens."""
        if not stop or len(ids) % STOP_EVERY:
            return False
        tail = decode_response(tokenizer, ids[-STOP_EVERY - max(len(mark.encode()) for mark in stop) :])
        return any(mark in tail and mark in decode_response(tokenizer, ids) for mark in stop)

    for index, ids in complete(
        model,
        prompts,
        places=places,
        max_new_tokens=decoding.max_new_tokens,
        stops=stops,
        over=over,
        choose=sample if decoding.temperature else greedy,
    ):
        text = decode_response(tokenizer, ids)
        for mark in stop:
            text = text.split(mark, 1)[0]
        yield index, text


@dataclass(frozen=True)
class Request:
    """What a model is to complete, and how."""

    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    prompts: Sequence[Sequence[int]]  # token ids, one list per example
    decoding: Decoding
    budget: int  # tokens in the KV cache at most, new tokens included
    folder: Path  # keeps finished shares, so that a killed call goes on
    stop: Sequence[str] = ()
    progress: Callable[[int], None] = lambda tokens: None  # told the prompt tokens of each finished completion


def generate(load: Callable[[], Generator], request: Request) -> dict[Key, str]:
    """All completions, by (example_id, sample); `load` is not called when every one is there already."""
    prompts, decoding, stop = request.prompts, request.decoding, request.stop
    partial = request.folder / "generations.partial.jsonl"
    done: dict[Key, str] = {}
    if partial.exists():
        lines = partial.read_bytes().split(b"\n")[:-1]  # a line without its newline was cut off by a kill
        found = [_read_partial(line) for line in lines]
        done = dict(item for item in found if item is not None)
        if damaged := found.count(None):
            say(f"{partial}: {damaged} of {len(found)} lines are damaged; their completions are generated again")
        kept = [_partial_line(key, text) for key, text in done.items()]
        write_atomic(partial, lambda path: path.write_text("".join(kept), encoding="utf-8"))
    request.folder.mkdir(parents=True, exist_ok=True)
    model = None
    for share in cut_into_shares([len(p) for p in prompts], decoding.max_new_tokens, decoding.samples, request.budget):
        keys = [(request.examples[i].example_id, k) for i, k in share.items]
        chosen = [prompts[i] for i, _ in share.items]
        if all(key in done for key in keys):
            request.progress(sum(map(len, chosen)))
            continue
        from xtf.evaluation.generation import TooLong

        model = model or load()
        seeds = [int(digest([decoding.seed, *key]), 16) % 2**31 for key in keys]
        answers: Iterable[tuple[int, str]]
        if isinstance(model, VLLMEngine):
            answers = enumerate(model.complete(request.tokenizer, chosen, decoding, stop, seeds))
        else:
            answers = generate_share(
                model, request.tokenizer, chosen, decoding, places=share.places, seeds=seeds, stop=stop
            )
        new: dict[Key, str] = {}
        try:
            for index, text in answers:
                new[keys[index]] = text
                request.progress(len(chosen[index]))
        except TooLong as error:
            names = first_few({keys[index][0] for index in error.prompts})
            raise ValueError(f"{error}: examples {names}") from error
        with naming(partial), partial.open("a", encoding="utf-8") as handle:
            handle.writelines(_partial_line(key, new[key]) for key in keys)
        done.update(new)
    return done


def _partial_line(key: Key, completion: str) -> str:
    entry = {"example_id": key[0], "sample": key[1], "completion": completion}
    return json.dumps(with_digest(entry), ensure_ascii=False) + "\n"


def _read_partial(line: bytes) -> tuple[Key, str] | None:
    """None for a line that is not as it was written; earlier versions wrote none with a digest."""
    try:
        entry = without_digest(json.loads(line), example_id=str, sample=int, completion=str)
    except (ValueError, RecursionError):
        return None
    return (entry["example_id"], entry["sample"]), entry["completion"]


def evaluate(
    load: Callable[[], Generator], request: Request, task: Task, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """Generate (unless the folder holds the completions of the same `identity`), grade, and write generations.jsonl.

    A change of grader alone regrades the stored completions. Returns {"metrics", "grading"}.
    """
    folder, examples, decoding = request.folder, request.examples, request.decoding
    record_file, stored = folder / "generations.json", folder / "generations.jsonl"
    key = digest({"identity": identity, "decoding": decoding, "prompts": request.prompts, "stop": request.stop})
    record = read_json(record_file) if intact(record_file) else {}
    if record.get("key") == key and intact(stored):
        items = [json.loads(line) for line in stored.read_text(encoding="utf-8").split("\n")[:-1]]
        completions = {(item["example_id"], item["sample"]): item["completion"] for item in items}
    else:
        marker = folder / "generations.partial.key"
        if not intact(marker) or marker.read_bytes() != key.encode():
            (folder / "generations.partial.jsonl").unlink(missing_ok=True)
            write_atomic(marker, lambda path: path.write_text(key), sealed=True)
        completions = generate(load, request)

    order = [(example, k) for example in examples for k in range(decoding.samples)]
    grades = task.grade([(example, completions[example.example_id, k]) for example, k in order])
    lines = []
    for (example, k), grade in zip(order, grades, strict=True):
        lines.append(
            {
                "example_id": example.example_id,
                "sample": k,
                "prompt": example.messages[-1]["content"],
                "completion": completions[example.example_id, k],
                "extracted": grade.extracted,
                "reference": task.reference(example),
                "correct": grade.correct,
                "reason": grade.reason,
            }
        )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(stored, lambda path: path.write_text(text, encoding="utf-8"), sealed=True)
    written = {"key": key, "decoding": dataclasses.asdict(decoding), "identity": dict(identity)}
    write_json(record_file, written, sealed=True)
    for leftover in ("generations.partial.jsonl", "generations.partial.key"):
        (folder / leftover).unlink(missing_ok=True)
    per_example = [grades[i : i + decoding.samples] for i in range(0, len(grades), decoding.samples)]
    metrics = task.metrics(examples, per_example)
    return {
        "metrics": {name: dataclasses.asdict(metric) for name, metric in metrics.items()},
        "grading": task.system_info(),
    }
