"""A masked set as a LightningDataModule: split, checked against the model, given out as whole optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytorch_lightning as pl
from transformers import PreTrainedModel

from xtf.config.checks import check_backward
from xtf.config.schema import Backward, CheckpointChoice, TuningConfig
from xtf.data.batches import Batches, parquet_batches
from xtf.data.ragged import SOURCE, as_arrow
from xtf.data.steps import Step, StepLoader, TrainingRows, collate
from xtf.scoring.methods import Method
from xtf.training.packed import PACKED, check_positions, enable_packing

if TYPE_CHECKING:
    import datasets

VALIDATION_STREAM = 2**31 + 1  # keeps the split apart from the training order, whose streams are epochs
VALIDATION_ROWS = 256  # packed at once
NEEDED = ("batch_size", "epochs", "learning_rate", "schedule", "warmup_ratio")  # what a model's recipe gives in a run


class MaskedDataModule(pl.LightningDataModule):
    """The training and the validation rows of a masked set, for `xtf.training.module.TokenFilteredLM`.

    A batch is a whole optimizer step of `tuning.batch_size` rows (`xtf.data.steps.Step`: packed micro-batches), and the
    loader runs through all `tuning.epochs`, so the Trainer counts one epoch: `Trainer(max_epochs=1)`. With several
    devices each gets its share of every step's micro-batches.

    Args:
        masked: what `xtf.mask` returned, its table, or a run's mask.parquet.
        tuning: batch_size, epochs, learning_rate, schedule and warmup_ratio must be set; `validation_fraction` of the
            rows is split off for `val_dataloader`.
        seed: of the split and the order of the rows.
        method: online methods read further columns.
        tokens_per_microbatch: of a packed row; a longer document has one to itself. Any number gives the same sums.
        fill_with: a token id; every packed row is filled up to `tokens_per_microbatch`, for a compiled model.
        shuffle: each epoch anew.
        folder: where `TrainingRows` keeps what is as long as the tokens; by default that of `TMPDIR`.

    Raises:
        ValueError: nothing to train on; columns are missing; a setting that a recipe would have given is not set.
    """

    def __init__(
        self,
        masked: datasets.Dataset | pa.Table | str | Path,
        tuning: TuningConfig,
        *,
        seed: int,
        method: Method | None = None,
        tokens_per_microbatch: int = 8192,
        fill_with: int | None = None,
        shuffle: bool = True,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        if missing := [name for name in NEEDED if getattr(tuning, name) is None]:
            raise ValueError(f"tuning lacks {', '.join(missing)}; only in a run do these come from the model's recipe")
        self.tuning, self.seed, self.method = tuning, seed, method or Method()
        check_backward(tuning, self.method)
        self.tokens_per_microbatch, self.fill_with, self.shuffle = tokens_per_microbatch, fill_with, shuffle
        extra = sorted(self.method.needs) if self.method.online else ()
        self.training, self.validation = _split(
            _batches(masked, extra), tuning, seed, extra, own_queries=self.method.prompt_attention, folder=folder
        )
        self.longest = max(int(rows.needed.max()) for rows in self._parts())  # tokens of the longest document
        self.attention: str | None = None  # the model's implementation, once `prepare` has chosen it
        self.loader: StepLoader | None = None  # that the Trainer goes through

    def _parts(self) -> list[TrainingRows]:
        return [rows for rows in (self.training, self.validation) if rows is not None]

    def prepare(self, model: PreTrainedModel, compiled: bool = False) -> bool:
        """Check that the model can read the rows, and let it read several documents in a row.

        Returns:
            Whether it can; otherwise each document has a row of its own.

        Raises:
            ValueError: ids outside the vocabulary, documents beyond the positions, a model that cannot be trained
                packed, or an attention that the method cannot read; naming the examples.
        """
        for rows in self._parts():
            _check_ids(rows, model)
        check_positions(model, self.training, self.validation)
        self.attention, packs = enable_packing(model, self.longest, compiled)
        if self.method.prompt_attention and self.attention != PACKED:
            raise ValueError(
                f"method={self.method.name} reads attention in the training step, which {self.attention} attention "
                "does not show; use model.attention=sdpa, trainer.compile=false and documents within the sliding window"
            )
        if self.tuning.backward is not Backward.exact and self.attention != PACKED:
            raise ValueError(
                f"tuning.backward={self.tuning.backward.value} filters within the packed attention, and "
                f"{type(model).__name__} is trained with {self.attention} attention here: use tuning.backward=exact, "
                "or model.attention=sdpa, trainer.compile=false and documents within the sliding window"
            )
        if not packs:
            self.tokens_per_microbatch = 0
        return packs

    def steps(self, rank: int = 0, devices: int = 1) -> StepLoader:
        """All optimizer steps from the first on, as the device of that rank sees them."""
        tuning = self.tuning
        assert tuning.batch_size is not None and tuning.epochs is not None
        return StepLoader(
            self.training,
            batch_size=tuning.batch_size,
            epochs=tuning.epochs * self.method.epochs_factor,
            max_steps=tuning.max_steps,
            seed=self.seed,
            budget=self.tokens_per_microbatch,
            rank=rank,
            devices=devices,
            fill_with=self.fill_with,
            shuffle=self.shuffle,
        )

    def validation_steps(self, rank: int = 0, devices: int = 1) -> ValidationLoader | None:
        """The validation rows, as the device of that rank sees them; none without `tuning.validation_fraction`."""
        if self.validation is None:
            return None
        return ValidationLoader(self.validation, self.tokens_per_microbatch, rank, devices)

    def train_dataloader(self) -> StepLoader:
        """The steps of this device; each training goes through all of them, or on from its checkpoint."""
        assert self.trainer is not None
        self.loader = self.steps(self.trainer.global_rank, self.trainer.world_size)
        return self.loader

    def val_dataloader(self) -> ValidationLoader | list[ValidationLoader]:
        """The validation rows of this device."""
        assert self.trainer is not None
        return self.validation_steps(self.trainer.global_rank, self.trainer.world_size) or []


@dataclass(frozen=True)
class ValidationLoader:
    """Rows in their order, `VALIDATION_ROWS` at a time; of each time, the share of one device."""

    rows: TrainingRows
    tokens_per_microbatch: int
    rank: int
    devices: int

    def __len__(self) -> int:
        return -(-len(self.rows) // VALIDATION_ROWS)

    def __iter__(self) -> Iterator[Step]:
        for number, part in enumerate(np.array_split(np.arange(len(self.rows)), len(self))):
            yield collate(self.rows, part, self.tokens_per_microbatch, number, self.rank, self.devices)


def _batches(masked: datasets.Dataset | pa.Table | str | Path, extra: Sequence[str]) -> Batches:
    """The rows; those of a file are read a batch at a time, and no column of it that training does not need."""
    if not isinstance(masked, str | Path):
        return Batches.of(as_arrow(masked))
    file = Path(masked)
    names = [name for name in pq.read_schema(file).names if name in (*TrainingRows.READ, SOURCE, *extra)]
    return Batches(lambda: parquet_batches([file], names))


def _split(
    rows: Batches,
    tuning: TuningConfig,
    seed: int,
    extra: Sequence[str],
    *,
    own_queries: bool = False,
    folder: Path | None = None,
) -> tuple[TrainingRows, TrainingRows | None]:
    """Training rows, and validation rows if `tuning.validation_fraction` asks for them (at least one then).

    Rows of one source example, its turns and its augmented copies, stay together.
    """
    if tuning.validation_fraction > 0:
        held_out = _held_out(rows, tuning.validation_fraction, seed)
        training, validation = (
            TrainingRows(rows.where(which), extra, own_queries=own_queries, folder=folder)
            for which in (~held_out, held_out)
        )
    elif tuning.checkpoint is CheckpointChoice.best:
        raise ValueError("tuning.checkpoint=best needs tuning.validation_fraction above 0")
    else:
        training, validation = TrainingRows(rows, extra, own_queries=own_queries, folder=folder), None
    if not training.kept.any():
        raise ValueError("no response token of the training rows carries loss; there is nothing to train on")
    return training, validation


def _held_out(rows: Batches, share: float, seed: int) -> np.ndarray:
    """Which rows are for validation, bool (R,): about `share` of them."""
    names = pa.chunked_array([batch.column(SOURCE if SOURCE in batch.schema.names else "example_id") for batch in rows])
    wanted = max(1, round(share * len(names)))
    # Each source's number, in the order in which they come.
    source = pc.dictionary_encode(names).combine_chunks().indices.to_numpy()
    sizes = np.bincount(source)
    order = np.random.default_rng([seed, VALIDATION_STREAM]).permutation(len(sizes))
    held_out = np.isin(source, order[: int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1])
    if held_out.all():
        raise ValueError(
            f"{wanted} of {len(names)} rows for validation, with the other rows of their source examples, leave "
            "nothing to train on"
        )
    return held_out


def _check_ids(rows: TrainingRows, model: PreTrainedModel) -> None:
    """Refuse a token id that the model has no embedding for.

    Raises:
        ValueError: naming the example.
    """
    vocabulary = model.get_input_embeddings().get_parameter("weight").shape[0]
    if rows.input_ids.min() < 0 or rows.input_ids.max() >= vocabulary:
        at = int(np.argmax((rows.input_ids < 0) | (rows.input_ids >= vocabulary)))
        example = rows.example_ids[int(np.searchsorted(rows.offsets, at, "right")) - 1]
        raise ValueError(
            f"example {example}: token id {rows.input_ids[at]} lies outside the model's vocabulary of {vocabulary}; "
            "the data was made with another tokenizer"
        )
