"""Stored scoring passes: Parquet shards and a manifest, written as they come, resumable, shared between runs.

A pass is keyed by what decides its numbers: model, tokens, precision and scorer settings. Another pass with the same
key but further columns serves as well.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.artifacts import locked, read_json, sha256, versions, write_atomic, write_json
from xtf.config import Attribute, Config, TRVariant, digest, plain
from xtf.progress import bar, say, stopwatch
from xtf.thresholds import SOURCE

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data import Encoded


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills positions which nothing attends to."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def scoring_pass(
    store: Path, rows: Sequence[Encoded], columns: set[str], *, config: Config, model: Mapping[str, Any],
    load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, also: Iterable[str] = (),
) -> Path:  # fmt: skip
    """The folder of a complete pass over `rows` that has `columns` (of ri, logp, tr), made unless it is there.

    Args:
        model: what identifies the weights (`xtf.models.fingerprint`).
        load: gives the model; not called when the scores are there.
        also: columns to compute in the same pass, for later runs.
    """
    from xtf.models import inference_dtype

    scorer = plain(config.scorer)
    identity = {
        "model": dict(model),
        "tokens": digest([(row.example_id, row.input_ids, row.prompt_length) for row in rows], 64),
        "dtype": str(inference_dtype(config.trainer)),
        "ri": scorer["ri"],
        "tr": scorer["tr"],
        "domain_words": list(config.task.domain_words)
        if config.scorer.tr.variant is TRVariant.released
        else [],
    }
    for candidate in sorted(store.glob(f"{digest(identity)}-*/manifest.json")):
        found = read_json(candidate)
        if found["complete"] and columns <= set(found["columns"]) and _intact(candidate.parent, found):
            return candidate.parent
    compute = columns | set(also)
    folder = store / f"{digest(identity)}-{'_'.join(sorted(compute))}"
    with locked(folder, say):
        _write_shards(folder, rows, compute, identity, config, load, tokenizer)
    return folder


def _write_shards(
    folder: Path, rows: Sequence[Encoded], columns: set[str], identity: Mapping[str, Any], config: Config,
    load: Callable[[], PreTrainedModel], tokenizer: PreTrainedTokenizerBase,
) -> None:  # fmt: skip
    """Score what is missing, shard by shard; a shard that is not as the manifest says is scored again."""
    import pyarrow.parquet as pq

    from xtf.scorers import count_tokens, score_rows, tr_table

    manifest_file, size = folder / "manifest.json", config.trainer.shard_examples
    manifest: dict[str, Any] = read_json(manifest_file) if manifest_file.exists() else {}
    if manifest.get("shard_examples") != size:
        manifest = {"complete": False, "columns": sorted(columns), "identity": dict(identity), "shards": {},
                    "shard_examples": size, "seconds": 0.0, "versions": versions()}  # fmt: skip
    parts = {f"{i // size:05d}.parquet": rows[i : i + size] for i in range(0, len(rows), size)}
    shards = {name: entry for name, entry in manifest["shards"].items() if name in parts}
    broken = [name for name, entry in shards.items() if not _matches(folder / name, entry)]
    if broken:
        say(f"{folder}: {', '.join(broken)} missing or not as it was written; scoring again")
    manifest["shards"] = {name: entry for name, entry in shards.items() if name not in broken}
    missing = {name: part for name, part in parts.items() if name not in manifest["shards"]}
    if missing:
        attributes = [attribute for attribute in Attribute if SOURCE[attribute] in columns]
        scorer = dataclasses.replace(config.scorer, attributes=attributes, compute=[])
        model, budget = load(), config.trainer.tokens_per_score_batch
        with stopwatch() as seconds:
            table = None
            if Attribute.tr in attributes:
                embeddings: Any = model.get_input_embeddings()
                counts = count_tokens(rows, embeddings.weight.shape[0])
                words = config.task.domain_words
                table = tr_table(
                    model, counts, scorer, domain_words=words, tokenizer=tokenizer, tokens_per_batch=budget
                )
            manifest["seconds"] += seconds()
        with bar("scoring", sum(len(row.input_ids) for part in missing.values() for row in part)) as progress:
            for name, part in missing.items():
                with stopwatch() as seconds:
                    scored = score_rows(
                        model, part, scorer, tr=table, tokens_per_batch=budget, pad_id=pad_id(tokenizer),
                        progress=progress,
                    )  # fmt: skip
                    write_atomic(folder / name, functools.partial(pq.write_table, scored))
                manifest["seconds"] += seconds()
                manifest["shards"][name] = {"sha256": sha256(folder / name), "examples": len(part)}
                write_json(manifest_file, manifest)
    manifest["shards"] = {name: manifest["shards"][name] for name in parts}
    manifest["complete"] = True
    manifest["tokens"] = sum(len(row.input_ids) for row in rows)
    write_json(manifest_file, manifest)


def read_pass(folder: Path) -> pa.Table:
    """The scored table of a complete pass, in the order of its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pa.concat_tables(
        pq.read_table(folder / name) for name in read_json(folder / "manifest.json")["shards"]
    )


def unscored(rows: Sequence[Encoded]) -> pa.Table:
    """The columns of a scored table without any score, for methods that need none."""
    import pyarrow as pa

    return pa.table({
        "example_id": pa.array([row.example_id for row in rows], pa.string()),
        "input_ids": pa.array([row.input_ids for row in rows], pa.list_(pa.int32())),
        "prompt_length": pa.array([row.prompt_length for row in rows], pa.int32()),
    })  # fmt: skip


def _matches(file: Path, entry: Mapping[str, Any]) -> bool:
    return file.exists() and sha256(file) == entry["sha256"]


def _intact(folder: Path, manifest: Mapping[str, Any]) -> bool:
    return all(_matches(folder / name, entry) for name, entry in manifest["shards"].items())
