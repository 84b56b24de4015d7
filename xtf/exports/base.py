"""What every export shares: rows that were checked, the recipe they are trained by, the folder and its README.

A trainer derives from `Trainer` in a file of its own, says what it takes, and writes its data and configuration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from xtf.config.identity import digest
from xtf.config.schema import ConfigError, EmptyRows, Optimizer, Schedule, Tuning, TuningConfig
from xtf.data.batches import Batches, spooled
from xtf.data.provenance import tokenizer_digest
from xtf.data.ragged import IGNORED, as_lists, flat, positions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TOKENIZER = "tokenizer"  # the folder of an export that holds the tokenizer, where it is not the model's own
ROW_GROUP = 8192  # rows of a group of a Parquet file, which its writer holds in memory
PARQUET = "`train.parquet`: `input_ids` list<int32>, `attention_mask` list<int8>, `labels` list<int32>"


@dataclass(frozen=True)
class MaskedRows:
    """What is exported.

    `table`, one row per example: `input_ids` list<int32>; `attention_mask` list<int8>, all 1; `labels` list<int32>,
    -100 where no loss falls; and `loss_weights` list<float32> where the mask has weights other than 0 and 1. All lists
    of a row are as long as its input_ids.
    """

    table: pa.Table
    kept: int  # labels that are not -100
    without_label: int  # rows of the masked set that have no label, kept or left out

    def _lengths(self) -> Iterator[np.ndarray]:
        for chunk in self.table["input_ids"].chunks:
            yield chunk.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, [rows] int64."""
        return np.concatenate(list(self._lengths()))

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return sum(int(part.sum()) for part in self._lengths())

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(int(part.max(initial=0)) for part in self._lengths())

    @property
    def digest(self) -> str:
        """SHA-256 of the rows' content."""
        total = hashlib.sha256()
        for part in self._lengths():
            total.update(part.tobytes())
        for name in self.table.column_names:
            total.update(f"{name}\0".encode())
            for chunk in self.table[name].chunks:
                total.update(flat(chunk)[0].tobytes())
        return total.hexdigest()


@dataclass(frozen=True)
class TrainingRecipe:
    """What a trainer's configuration is written from; `tuning` leaves none of its hyper-parameters open."""

    model: str  # a folder, or an id on the hub
    revision: str | None
    max_length: int  # tokens of a row at most
    tuning: TuningConfig
    epochs: int  # with what the method multiplies them by
    seed: int
    bf16: bool  # compute in bfloat16
    lora_targets: Sequence[str] = ()  # modules that get an adapter; only with tuning=lora
    tokenizer: str | None = None  # the folder `TOKENIZER`, None where the model's own made the rows
    pad_token: str | None = None  # what is to pad rows, where the tokenizer names none

    @property
    def pretrained(self) -> str:
        """The arguments of `from_pretrained`, as source."""
        return f"{self.model!r}" + (f", revision={self.revision!r}" if self.revision else "")

    @property
    def pretrained_tokenizer(self) -> str:
        """The same for the tokenizer."""
        return f"{self.tokenizer!r}" if self.tokenizer else self.pretrained

    @property
    def lora(self) -> bool:
        """Whether adapters are trained instead of all weights."""
        return self.tuning.name is Tuning.lora

    def not_carried(self, trainer: Trainer) -> list[str]:
        """The settings of the run that the trainer's configuration does not hold, in words."""
        tuning, found = self.tuning, []
        if self.tokenizer and not trainer.takes_tokenizer:
            found.append(
                f"the tokenizer that made the rows: the configuration names none beside the model's own; it lies in "
                f"{self.tokenizer}/, to be put beside the trained model"
            )
        if tuning.optimizer is not Optimizer.adamw:
            found.append(f"tuning.optimizer={tuning.optimizer.value}: the configuration says AdamW")
        if tuning.schedule is Schedule.trapezoid:
            found.append("tuning.schedule=trapezoid: the configuration says linear")
        if tuning.divisor is not TuningConfig.divisor:
            found.append(f"tuning.divisor={tuning.divisor.value}: other trainers divide by the labels that are kept")
        if tuning.backward is not TuningConfig.backward:
            found.append(f"tuning.backward={tuning.backward.value}: other trainers' gradient is exact")
        if tuning.validation_fraction:
            found.append(f"tuning.validation_fraction={tuning.validation_fraction}: its rows are among those exported")
        return found


class Trainer:
    """A trainer that takes masked rows."""

    name: ClassVar[str]  # export.to
    title: ClassVar[str]  # for people
    weights: ClassVar[bool] = False  # whether it reads a weight for each token
    takes_tokenizer: ClassVar[bool] = False  # whether its configuration can name another tokenizer than the model's own
    packages: ClassVar[tuple[str, ...]] = ()  # those whose versions decide whether the files fit
    columns: ClassVar[str] = PARQUET  # what its data holds, for the README
    note: ClassVar[str]  # what to know before changing the configuration
    tried_with: ClassVar[Mapping[str, str]] = {}  # package -> version; its own package first
    tried: ClassVar[str]  # when, and how it came out

    def write(self, rows: MaskedRows, recipe: TrainingRecipe, folder: Path) -> None:
        """Write data and configuration into an empty folder."""
        raise NotImplementedError

    def command(self, recipe: TrainingRecipe) -> str:
        """What is typed in the folder to train."""
        raise NotImplementedError


# -- checks ----------------------------------------------------------------------------------------------------------


def checked_rows(masked: pa.Table | Batches, trainer: Trainer, empty: EmptyRows, folder: Path) -> MaskedRows:
    """The rows of a masked table as `trainer` takes them, mapped from a file in `folder` without a name.

    A label at a row's first token is left out: nothing precedes it, so no trainer learns from it, but some count it.

    Raises:
        ValueError: no mask; labels that do not belong to their input_ids; weights that the trainer would ignore;
            nothing that carries loss.
    """
    kept, without = 0, 0

    def parts() -> Iterator[pa.RecordBatch]:
        nonlocal kept, without
        for batch in Batches.of(masked) if isinstance(masked, pa.Table) else masked:
            columns, of_rows = _checked_columns(batch, trainer)
            labels = columns["labels"]
            row = np.repeat(np.arange(len(of_rows)), of_rows)
            with_label = np.bincount(row[labels != IGNORED], minlength=len(of_rows)) > 0
            kept += int(np.count_nonzero(labels != IGNORED))
            without += int(np.count_nonzero(~with_label))
            part = pa.RecordBatch.from_pydict({name: as_lists(values, of_rows) for name, values in columns.items()})
            if empty is EmptyRows.drop and not with_label.all():
                part = part.filter(pa.array(with_label))
            yield part

    table = spooled(parts(), folder)
    if not kept:
        raise ValueError("every label is -100: there is nothing to train on")
    return MaskedRows(table, kept, without)


def _checked_columns(masked: pa.RecordBatch, trainer: Trainer) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The columns of `MaskedRows.table`, each flat, [tokens], and the tokens of each row."""
    names = masked.schema.names
    if "labels" not in names:
        raise ValueError(
            f"this table has no mask: it has no column 'labels' but {', '.join(names)}; put it through xtf.mask first"
        )
    if "input_ids" not in names:
        raise ValueError(f"this table has no column 'input_ids' but {', '.join(names)}")
    if "drop_probability" in names:
        raise ValueError(
            "the mask drops other tokens in each epoch (column `drop_probability`), which no file can hold: "
            f"{trainer.title} would drop them in all; mask the rows with threshold.drop_probability=1"
        )
    if "weights" in names and not trainer.weights:
        raise ValueError(
            f"the mask has fractional weights (column `weights`), which {trainer.title} does not read: it would train "
            "every token alike; export to one that does (export.to=ms_swift), or take a mask of 0 and 1"
        )
    ids, lengths = _flat(masked, "input_ids")
    found, label_lengths = _flat(masked, "labels")

    def refuse(rows: np.ndarray, what: str) -> None:
        if rows.any():
            first = np.flatnonzero(rows)[:5]
            own = masked["example_id"].take(pa.array(first)).to_pylist() if "example_id" in names else first.tolist()
            more = f" and {int(rows.sum()) - len(own)} more" if rows.sum() > len(own) else ""
            raise ValueError(f"{what}: example {', '.join(map(str, own))}{more}; mask the rows again (xtf.mask)")

    refuse(lengths == 0, "input_ids is empty")
    refuse(label_lengths != lengths, "labels and input_ids differ in length")
    row = np.repeat(np.arange(len(lengths)), lengths)
    wrong = (found != IGNORED) & (found != ids)
    refuse(
        np.bincount(row[wrong], minlength=len(lengths)) > 0,
        "a label is neither -100 nor the input id at its place (labels are not shifted)",
    )
    starts = np.cumsum(lengths) - lengths
    found = found.astype(np.int32)
    found[starts] = IGNORED
    columns: dict[str, np.ndarray] = {
        "input_ids": ids.astype(np.int32),
        "attention_mask": np.ones(len(ids), np.int8),
        "labels": found,
    }
    if "weights" in names:
        columns["loss_weights"] = _weights(masked, ids, lengths, found)
    return columns, lengths


def _weights(masked: pa.RecordBatch, ids: np.ndarray, lengths: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The responses' weights as one for each token, [tokens]; 0 where no loss falls."""
    values, _ = _flat(masked, "weights")
    response = positions(lengths) >= np.repeat(masked["prompt_length"].to_numpy(), lengths)
    if len(values) != np.count_nonzero(response):
        raise ValueError("the column `weights` is not as long as the responses; mask the rows again (xtf.mask)")
    weights = np.zeros(len(ids), np.float32)
    weights[response] = values
    weights[labels == IGNORED] = 0
    return weights


def fitting_length(rows: MaskedRows, wanted: int | None, limit: int | None) -> int:
    """The length that the configuration allows: `wanted`, by default the longest row's.

    Args:
        limit: positions that the model has, None where it does not say.

    Raises:
        ConfigError: the trainer would cut rows, or the model cannot read them.
    """
    if wanted is not None and wanted < rows.longest:
        cut = int(np.count_nonzero(rows.lengths > wanted))
        raise ConfigError(
            f"export.max_length={wanted}: the trainer would cut {cut} of {len(rows.lengths)} rows, the longest has "
            f"{rows.longest} tokens; leave it out, or make shorter rows (model.max_length={wanted})"
        )
    if limit is not None and rows.longest > limit:
        raise ConfigError(
            f"the longest row has {rows.longest} tokens and the model {limit} positions, so the trainer would cut it; "
            f"make shorter rows (model.max_length={limit})"
        )
    return wanted or rows.longest


def check_vocabulary(rows: MaskedRows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises:
    ValueError: an input id that the tokenizer does not have.
    """
    largest = int(max(flat(chunk)[0].max(initial=0) for chunk in rows.table["input_ids"].chunks))
    if largest >= len(tokenizer):
        raise ValueError(
            f"the rows hold the id {largest} and this tokenizer ({tokenizer.name_or_path or 'unnamed'}) has "
            f"{len(tokenizer)} tokens: it is not the one that they were scored with; give that one"
        )


def _flat(table: pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the length of each list (int64)."""
    if nulls := table[name].null_count:
        raise ValueError(f"column {name!r} holds {nulls} nulls")
    if not pa.types.is_nested(table[name].type):
        raise ValueError(f"column {name!r} holds no lists but {table[name].type}")
    return flat(table[name])


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of what is saved with a tokenizer: its ids, its chat template, its special tokens."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest([tokenizer_digest(tokenizer), str(tokenizer.chat_template), special])


# -- files that several trainers share -------------------------------------------------------------------------------


def write_yaml(path: Path, values: Mapping[str, Any], heading: str) -> None:
    """Write a configuration, under a comment that says what it is of."""
    import yaml

    path.write_text(f"# {heading}\n" + yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")


def training_settings(recipe: TrainingRecipe) -> dict[str, Any]:
    """The settings of one device that transformers' Trainer and the tools built on it know by the same names."""
    tuning = recipe.tuning
    found = {
        "output_dir": "output",
        "gradient_accumulation_steps": tuning.batch_size,
        "learning_rate": tuning.learning_rate,
        "adam_beta1": tuning.betas[0],
        "adam_beta2": tuning.betas[1],
        "weight_decay": tuning.weight_decay,
        "max_grad_norm": tuning.max_grad_norm,
        "bf16": recipe.bf16,
        "seed": recipe.seed,
        "logging_steps": 1,
    }
    return found if tuning.max_steps is None else {**found, "max_steps": tuning.max_steps}


def scheduler(tuning: TuningConfig) -> str:
    """The learning rate's course by the name that transformers has for it."""
    if tuning.schedule is Schedule.constant:
        return "constant_with_warmup" if tuning.warmup_ratio else "constant"
    return "cosine" if tuning.schedule is Schedule.cosine else "linear"
