"""The reference model that a method compares the base model with: a given one, or the base model, warmed up."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.identity import digest, plain
from xtf.config.schema import Config
from xtf.data.batches import Batches
from xtf.data.ragged import ROW_WEIGHTS, as_table, with_row_weights, with_sources
from xtf.runtime.artifacts import intact, locked, read_json, write_json
from xtf.runtime.models import fingerprint, inference_dtype, load_model
from xtf.runtime.progress import say, stopwatch
from xtf.runtime.run_folder import OutputDir, RunFolder
from xtf.scoring.methods import METHODS
from xtf.scoring.passes import write_mask
from xtf.training.device_process import train

if TYPE_CHECKING:
    from xtf.data.encode import Encoded
    from xtf.scoring.store import Load


@dataclass(frozen=True)
class Reference:
    """identity: what its scores are keyed by; folder and seconds: of one that was trained here, else None."""

    identity: Mapping[str, Any]
    load: Load
    folder: Path | None = None
    seconds: float | None = None


def reference_model(config: Config, rows: Sequence[Encoded]) -> Reference:
    """The model that `method.reference` names, or the base model fine-tuned on the method's warm-up subset.

    The latter is an artifact of its own under references/, shared by every run with the same settings.
    """
    import pyarrow as pa

    method, dtype = config.method, inference_dtype(config.trainer)
    if method.reference is not None:
        other = dataclasses.replace(config.model, path=method.reference, revision=None)
        return Reference(fingerprint(other), functools.partial(load_model, other, config.trainer, dtype))
    chosen = method.warmup_rows(len(rows))
    warmup = dataclasses.replace(config, method=METHODS["normal"](), seed=0)
    table = with_row_weights(as_table(rows), [row.weights for row in rows])
    table = with_sources(table, [row.source or row.example_id for row in rows]).take(pa.array(chosen))
    what = {
        "base": fingerprint(config.model),
        "tuning": plain(config.tuning),
        "tokens": digest(table["input_ids"].to_pylist(), 64),
    }
    if ROW_WEIGHTS in table.column_names:
        what[ROW_WEIGHTS] = digest(table[ROW_WEIGHTS].to_pylist(), 64)
    folder = RunFolder(OutputDir(Path(config.output_dir)).references / digest(what))
    with locked(folder.path, say):
        if not intact(folder.model) or not intact(folder.train_record):
            say(f"training the reference model of method={method.name} on {len(chosen)} examples")
            folder.write_config(warmup)
            write_mask(warmup, Batches.of(table), folder.mask)
            with stopwatch() as seconds:
                record = train(warmup, folder)
            write_json(folder.train_record, record | {"seconds": round(seconds(), 3)}, sealed=True)
    return Reference(
        what,
        functools.partial(load_model, config.model, config.trainer, dtype, folder.model),
        folder.path,
        read_json(folder.train_record).get("seconds"),  # references of older versions do not say
    )
