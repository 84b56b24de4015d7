"""Stored scoring passes: Parquet shards and a manifest, written as they come, resumable, shared between runs.

A pass is keyed by what decides its numbers: model, tokens, precision and scorer settings. Another pass with the same
key but further columns serves as well.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from xtf.config.identity import digest, plain
from xtf.config.schema import Accelerator, Config, Engine, ScorerConfig, TRVariant
from xtf.data.ragged import PROMPT_TR
from xtf.runtime.artifacts import (
    DamagedError,
    intact,
    locked,
    naming,
    read_json,
    sha256,
    versions,
    with_digest,
    without_digest,
    write_atomic,
    write_json,
)
from xtf.runtime.memory import peak_memory, reset_peak_memory
from xtf.runtime.models import inference_dtype
from xtf.runtime.pace import announce, measured
from xtf.runtime.progress import bar, say, stopwatch
from xtf.runtime.shapes import FORWARD
from xtf.scoring.attributes import ATTRIBUTES, Brought, brought
from xtf.scoring.on_ray import score_on_ray

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.scoring.scorers import TokenCounts, TRTable

SCORED_AGAIN = "run the command of its run with stage=score, which makes it anew"

# Gives the model, on the device `place` if that is named. For several devices, and for Ray, it is pickled.
Load: TypeAlias = "Callable[..., PreTrainedModel]"


def scoring_pass(
    store: Path,
    rows: Sequence[Encoded],
    columns: set[str],
    *,
    config: Config,
    model: Mapping[str, Any],
    load: Load,
    tokenizer: PreTrainedTokenizerBase,
    also: Iterable[str] = (),
) -> Path:
    """The folder of a complete pass over `rows` that has `columns` (of ri, logp, tr, prompt_tr, and top5 or attenders10
    with the number that `config.scorer` asks for), made unless it is there.

    Args:
        model: what identifies the weights (`xtf.runtime.models.fingerprint`).
        load: gives the model; not called when the scores are there.
        also: columns to compute in the same pass, for later runs.
    """
    scorer = plain(config.scorer)
    identity = {
        "model": dict(model),
        "tokens": rows_digest(rows),
        "dtype": str(inference_dtype(config.trainer)),
        "ri": scorer["ri"],
        "tr": scorer["tr"],
        "domain_words": list(config.task.domain_words) if config.scorer.tr.variant is TRVariant.released else [],
    }
    for candidate in sorted(store.glob(f"{digest(identity)}-*/manifest.json")):
        found: dict[str, Any] = read_json(candidate) if intact(candidate) else {}
        if found.get("complete") and columns <= set(found["columns"]) and shards_intact(candidate.parent, found):
            return candidate.parent
    compute = columns | set(also)
    folder = store / f"{digest(identity)}-{'_'.join(sorted(compute))}"
    with locked(folder, say):
        _write_shards(folder, rows, compute, identity, config, load, tokenizer)
    return folder


def _write_shards(
    folder: Path,
    rows: Sequence[Encoded],
    columns: set[str],
    identity: Mapping[str, Any],
    config: Config,
    load: Load,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Score what is missing, shard by shard; a shard that is not as the manifest says is scored again."""
    from xtf.data.stored import tokens_in
    from xtf.scoring.scorers import count_tokens

    written, size = Written(folder), config.trainer.shard_examples
    manifest = written.load()
    if manifest.get("shard_examples") != size:
        manifest = {
            "complete": False,
            "columns": sorted(columns),
            "identity": dict(identity),
            "shards": {},
            "shard_examples": size,
            "seconds": 0.0,
            "versions": versions(),
        }
    parts = {f"{i // size:05d}.parquet": range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)}
    shards = {name: entry for name, entry in manifest["shards"].items() if name in parts}
    broken = [name for name, entry in shards.items() if not _matches(folder / name, entry)]
    if broken:
        say(f"{folder}: {', '.join(broken)} missing or not as it was written; scoring again")
    manifest["shards"] = {name: entry for name, entry in shards.items() if name not in broken}
    missing = {name: part for name, part in parts.items() if name not in manifest["shards"]}
    if manifest["complete"] and not missing:  # another run has made it while this one waited
        return
    manifest["complete"] = False  # until the shards that were broken are there again
    written.save(manifest)
    if missing:
        attributes = [attribute for attribute in ATTRIBUTES.values() if attribute.source in columns]
        needs, prompts = brought(attributes, config.scorer), PROMPT_TR in columns
        counts = count_tokens(rows) if prompts or Brought.embeddings in needs else None
        looks = frozenset(column.rstrip("0123456789") for column in columns) & {"top", "attenders"}
        names = tuple(attribute.name for attribute in attributes)
        scorer = ShardScorer(folder, names, looks, prompts, counts, config, load, tokenizer)
        tokens = sum(tokens_in(rows, part) for part in missing.values())
        before = manifest["seconds"]
        cost = FORWARD * tokens if looks or not needs <= {Brought.embeddings} else 0.0
        announce(config, "scoring", tokens, cost)
        with bar("scoring", tokens) as progress:
            for name, seconds, peak in _score(scorer, rows, missing, progress):
                manifest["seconds"] += seconds
                manifest["peak_memory_mb"] = max(manifest.get("peak_memory_mb", 0.0), peak)
                manifest["device"] = config.trainer.accelerator
                manifest["shards"][name] = {"sha256": sha256(folder / name), "examples": len(parts[name])}
                written.note(manifest, name)
        measured(config, cost, manifest["seconds"] - before)
    manifest["shards"] = {name: manifest["shards"][name] for name in parts}
    if "tr" in columns and config.scorer.tr.variant is TRVariant.contextual:
        _finish_tr(written, manifest)
    manifest["complete"] = True
    manifest["tokens"] = sum(tokens_in(rows, part) for part in parts.values())
    written.save(manifest)


class Written:
    """What of a pass is written: its manifest and, while it is being made, a line for each shard since that.

    The manifest is as long as there are shards, so writing it after each would take time quadratic in them. A line
    belongs to the manifest whose hash it has: beside another one, which says the same already or is of other shards, it
    is passed over. Where it is damaged its shard is scored again. Earlier versions do not know the lines, and score
    those shards again.
    """

    TOTALS = "seconds", "peak_memory_mb", "device"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest, self.lines = folder / "manifest.json", folder / "manifest.partial.jsonl"
        self.own = ""  # hash of the manifest as it was last saved

    def load(self) -> dict[str, Any]:
        """The manifest with what its lines add; empty where it is not there or not as it was written."""
        if not intact(self.manifest):
            return {}
        found: dict[str, Any] = read_json(self.manifest)
        own, damaged = sha256(self.manifest), 0
        for line in self.lines.read_bytes().splitlines() if self.lines.exists() else []:
            try:
                entry = without_digest(json.loads(line), manifest=str, shard=str, entry=dict, totals=dict)
            except (ValueError, RecursionError):
                damaged += 1
                continue
            if entry["manifest"] == own:
                found["shards"][entry["shard"]] = entry["entry"]
                found |= entry["totals"]
        if damaged:
            say(f"{self.lines}: {damaged} of its lines are not as they were written; their shards are scored again")
        return found

    def save(self, manifest: Mapping[str, Any]) -> None:
        """Write the whole manifest."""
        write_json(self.manifest, manifest, sealed=True)
        self.lines.unlink(missing_ok=True)
        self.own = sha256(self.manifest)

    def note(self, manifest: Mapping[str, Any], name: str) -> None:
        """Write what the manifest says of the shard `name`, which has just been written, and its totals."""
        totals = {key: manifest[key] for key in self.TOTALS if key in manifest}
        line = {"manifest": self.own, "shard": name, "entry": manifest["shards"][name], "totals": totals}
        with naming(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(with_digest(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _finish_tr(written: Written, manifest: dict[str, Any]) -> None:
    """Put `tr` in the place of the hidden states in every shard that still has them.

    What it takes of the whole pass is noted before the first shard is changed: after a kill the rest follows, and a
    shard that is scored again gets the numbers that it had.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from xtf.scoring.scorers import HIDDEN, Centre, context_centre, hidden_states, with_context_tr

    folder = written.folder
    waiting = [name for name in manifest["shards"] if HIDDEN in pq.read_schema(folder / name).names]
    if waiting and "tr" not in manifest:
        found = context_centre(
            lambda: (
                hidden_states(pq.read_table(folder / name, columns=["input_ids", "prompt_length", HIDDEN]))
                for name in waiting
            )
        )
        manifest["tr"] = {"mean": found.mean.tolist(), "nearest": found.nearest, "farthest": found.farthest}
        written.save(manifest)
    for name in waiting:
        centre = Centre(np.array(manifest["tr"]["mean"]), manifest["tr"]["nearest"], manifest["tr"]["farthest"])
        table = with_context_tr(pq.read_table(folder / name), centre)
        write_atomic(folder / name, functools.partial(pq.write_table, table))
        manifest["shards"][name]["sha256"] = sha256(folder / name)
        written.note(manifest, name)


@dataclass
class ShardScorer:
    """Scores shards of one pass and writes them. Each process has one, and loads the model when it needs it."""

    folder: Path
    attributes: tuple[str, ...]
    looks: frozenset[str]  # of top and attenders, which of them this pass brings
    prompts: bool  # whether it brings TR of the prompts' tokens
    counts: TokenCounts | None  # of the whole pass, for TR
    config: Config
    load: Load
    tokenizer: PreTrainedTokenizerBase
    place: str | None = None  # the device; None: where `load` puts the model

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded on first use."""
        return self.load() if self.place is None else self.load(place=self.place)

    @functools.cached_property
    def scorer(self) -> ScorerConfig:
        """The scorer's settings for the attributes of this pass."""
        own = self.config.scorer
        return dataclasses.replace(
            own,
            attributes=list(self.attributes),
            compute=[],
            top=own.top if "top" in self.looks else 0,
            attenders=own.attenders if "attenders" in self.looks else 0,
        )

    @functools.cached_property
    def tr_table(self) -> TRTable | None:
        """TR of every token id, from the counts of the whole pass; None without TR."""
        from xtf.scoring.scorers import tr_table

        if self.counts is None:
            return None
        return tr_table(
            self.model,
            self.counts,
            self.scorer,
            domain_words=self.config.task.domain_words,
            tokenizer=self.tokenizer,
            tokens_per_batch=self.config.trainer.tokens_per_score_batch,
            prompts=self.prompts,
        )

    def write(
        self, name: str, part: Sequence[Encoded], progress: Callable[[int], None] | None = None
    ) -> tuple[float, float]:
        """Write the shard `name`; returns the seconds, without those of loading the model, and the peak MB."""
        import pyarrow.parquet as pq

        from xtf.data.encode import pad_id
        from xtf.scoring.scorers import score_rows

        model = self.model
        reset_peak_memory(model.device)
        with stopwatch() as seconds:
            scored = score_rows(
                model,
                part,
                self.scorer,
                tr=self.tr_table,
                prompts=self.prompts,
                pad_id=pad_id(self.tokenizer),
                progress=progress,
                tokens_per_batch=self.config.trainer.tokens_per_score_batch,
            )
            write_atomic(self.folder / name, functools.partial(pq.write_table, scored))
        return seconds(), peak_memory(model.device) / 1e6


def _score(
    scorer: ShardScorer, rows: Sequence[Encoded], parts: Mapping[str, range], progress: Callable[[int], None]
) -> Iterator[tuple[str, float, float]]:
    """Write the shards, on every device of the trainer or of a Ray cluster; yields each one's name, what it adds to the
    seconds, and the peak memory of a device in MB.

    A shard's numbers depend on its own rows and on the counts of the whole pass, not on the process that makes them.
    """
    trainer = scorer.config.trainer
    if trainer.engine is Engine.ray:
        # Ray shows each actor its own GPU alone
        place = "cpu" if trainer.accelerator is Accelerator.cpu else "cuda:0"
        own = dataclasses.replace(scorer, folder=scorer.folder.absolute(), place=place)
        written = score_on_ray(own, own.folder, rows, parts, scorer.config)
        yield from _timed(written, rows, parts, progress)
        return
    if trainer.devices == 1:
        for name, part in parts.items():
            yield name, *scorer.write(name, rows[part.start : part.stop], progress)
        return
    context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
    places = context.SimpleQueue()
    for number in range(trainer.devices):
        places.put("cpu" if trainer.accelerator == "cpu" else f"cuda:{number}")
    pool = ProcessPoolExecutor(trainer.devices, context, _enter, (scorer, places))
    try:
        yield from _timed(_in_processes(pool, trainer.devices, rows, parts), rows, parts, progress)
    finally:
        pool.shutdown(cancel_futures=True)


def _timed(
    written: Iterator[tuple[str, float]],
    rows: Sequence[Encoded],
    parts: Mapping[str, range],
    progress: Callable[[int], None],
) -> Iterator[tuple[str, float, float]]:
    """Shards as several devices finish them, name and peak MB, each with the seconds since the one before."""
    with stopwatch() as seconds:
        before = 0.0
        for name, peak in written:
            now = seconds()
            yield name, now - before, peak
            before, part = now, parts[name]
            progress(sum(len(row.input_ids) for row in rows[part.start : part.stop]))


def _in_processes(
    pool: ProcessPoolExecutor, devices: int, rows: Sequence[Encoded], parts: Mapping[str, range]
) -> Iterator[tuple[str, float]]:
    """Hand the shards to the pool; yields name and peak MB of each."""
    waiting, tasks = iter(parts.items()), dict[Future[tuple[float, float]], str]()

    def submit(shards: int) -> None:
        """Hand over the rows of a few shards: those of all need not fit into memory."""
        for name, part in islice(waiting, shards):
            tasks[pool.submit(_write_in_process, name, rows[part.start : part.stop])] = name

    submit(2 * devices)
    while tasks:
        for task in wait(tasks, return_when=FIRST_COMPLETED).done:
            name = tasks.pop(task)
            _, peak = task.result()
            submit(1)
            yield name, peak


_of_this_process: ShardScorer | None = None


def _enter(scorer: ShardScorer, places: multiprocessing.SimpleQueue[str]) -> None:
    """First call in a scoring process."""
    global _of_this_process
    _of_this_process = dataclasses.replace(scorer, place=places.get())
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its processes to end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write_in_process(name: str, part: Sequence[Encoded]) -> tuple[float, float]:
    assert _of_this_process is not None
    return _of_this_process.write(name, part)


def rows_digest(rows: Sequence[Encoded]) -> str:
    """`xtf.config.identity.digest` of all tokens, a row at a time: a million rows are not written out in memory."""
    text = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        item = json.dumps([row.example_id, row.input_ids, row.prompt_length], ensure_ascii=False)
        text.update((", " * (number > 0) + item).encode())
    text.update(b"]")
    return text.hexdigest()


def read_pass(folder: Path) -> pa.Table:
    """The scored table of a complete pass, in the order of its rows, in memory; for whoever did not ask
    `scoring_pass` for it.

    Raises:
        DamagedError: it is not as it was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = read_json(folder / "manifest.json", SCORED_AGAIN)["shards"]
    for name, entry in shards.items():
        if not _matches(folder / name, entry):
            raise DamagedError(f"{folder / name} is missing, or not as it was written: {SCORED_AGAIN}")
    return pa.concat_tables(pq.read_table(folder / name) for name in shards)


def pass_batches(folder: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The same a batch at a time, or some of its columns."""
    from xtf.data.batches import parquet_batches

    return parquet_batches((folder / name for name in read_json(folder / "manifest.json")["shards"]), columns)


def pass_columns(folder: Path) -> list[str]:
    """The columns of a complete pass."""
    import pyarrow.parquet as pq

    names: list[str] = pq.read_schema(folder / next(iter(read_json(folder / "manifest.json")["shards"]))).names
    return names


def _matches(file: Path, entry: Mapping[str, Any]) -> bool:
    return file.exists() and sha256(file) == entry["sha256"]


def shards_intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether the shards of a pass are as its manifest says."""
    return all(_matches(folder / name, entry) for name, entry in manifest["shards"].items())
