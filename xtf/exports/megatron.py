"""Megatron-Bridge and NeMo: packed Parquet with the documents' starts, and the dataset's configuration."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from xtf.data.batches import write_parquet
from xtf.data.ragged import IGNORED, Lists, as_lists
from xtf.exports.base import MaskedRows, Trainer, TrainingRecipe

PACKS_AT_ONCE = 256  # that are in memory
FILE = "train.idx.parquet"  # the ending by which Megatron-Bridge knows packed Parquet


class Megatron(Trainer):
    """Megatron-Bridge's offline packed data (`GPTSFTPackedParquetDataset`)."""

    name = "megatron"
    title = "Megatron-Bridge"
    packages = ("megatron-bridge", "megatron-core")
    columns = (
        f"`{FILE}`: `input_ids` list<int32> of several documents end to end, `seq_start_id` list<int32>, where each "
        "starts, and `loss_mask` list<int8>, which stands at the token that *predicts*: 1 at place t where the token "
        "at t + 1 carries loss"
    )
    note = (
        "Documents are kept apart by `seq_start_id`. Offline packed data wants a micro-batch of 1, and "
        "`pad_seq_to_mult` of 1. A step holds packs, not rows: the global batch size is yours to choose. Set "
        "`cfg.model.calculate_per_token_loss = True` and `cfg.ddp.average_in_collective = False`: otherwise the "
        "loss of a step is the mean of its packs' means, and tokens of packs that keep few weigh more. The mask is "
        "0 or 1 (the collator makes integers of it). A label right behind the tokenizer's EOS within a row does not "
        "count: the collator takes it for padding."
    )
    tried_with: ClassVar = {"megatron-bridge": "0.6.2", "megatron-core": "0.19.2"}
    tried = (
        "2026-11-26: its data set and collator read, learn and count "
        "every document as masked, and the first loss is the one computed by hand, 2.61965 (`make interop`, on a CPU, "
        "so with Megatron-Core's own attention instead of Transformer Engine's)"
    )

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """train.idx.parquet, dataset.py."""
        write_parquet(packed(rows, recipe.max_length), folder / FILE)
        (folder / "dataset.py").write_text(_script(recipe), encoding="utf-8")

    def command(self, recipe: TrainingRecipe) -> str:
        """A recipe of Megatron-Bridge takes the dataset; its other settings depend on the machines."""
        return "cfg.dataset = dataset.masked_rows()   # in a recipe of Megatron-Bridge for this model"


def packed(rows: MaskedRows, length: int) -> Iterator[pa.RecordBatch]:
    """Rows packed into at most `length` tokens, longest first; the mask moved to the predicting token."""
    from xtf.data.steps import pack

    every_ids, every_labels = (Lists(rows.table[name]) for name in ("input_ids", "labels"))
    groups = pack(array("q", rows.lengths.tobytes()), length)
    for first in range(0, len(groups), PACKS_AT_ONCE):
        some = groups[first : first + PACKS_AT_ONCE]
        ids = [[every_ids[index] for index in group] for group in some]
        masks = [np.append(every_labels[index][1:] != IGNORED, False) for group in some for index in group]
        starts = [np.cumsum([0, *map(len, group)])[:-1] for group in ids]
        tokens = np.array([sum(map(len, group)) for group in ids])
        columns = {
            "input_ids": as_lists(np.concatenate([document for group in ids for document in group]), tokens),
            "loss_mask": as_lists(np.concatenate(masks).astype(np.int8), tokens),
            "seq_start_id": as_lists(np.concatenate(starts).astype(np.int32), np.array([len(group) for group in some])),
        }
        yield pa.RecordBatch.from_pydict(columns)


def _script(recipe: TrainingRecipe) -> str:
    return f'''\
"""The masked rows as a dataset of Megatron-Bridge: cfg.dataset = dataset.masked_rows()"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from megatron.bridge.data.builders import GPTSFTDatasetConfig
from megatron.bridge.data.packing import PackedSequenceSpecs

HERE = Path(__file__).resolve().parent


def masked_rows():
    return GPTSFTDatasetConfig(
        seq_length={recipe.max_length},
        dataset_root=HERE,
        seed={recipe.seed},
        do_validation=False,
        do_test=False,
        enable_offline_packing=True,
        offline_packing_specs=PackedSequenceSpecs(
            packed_sequence_size={recipe.max_length},
            packed_train_data_path=HERE / "{FILE}",
            packed_metadata_path=HERE / "metadata.jsonl",  # only read with pad_cu_seqlens
        ),
    )
'''
