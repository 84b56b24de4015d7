"""A masked table -> packed optimizer steps: the order of rows, bins of documents, micro-batches."""

from __future__ import annotations

import copy
import functools
import hashlib
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from xtf.data.batches import Batches, Growing
from xtf.data.ragged import IGNORED, ROW_WEIGHTS, Sequences, positions

DRAWS = 2**31 + 2  # keeps these draws apart from the order of rows, whose streams are epochs, and from other streams


class TrainingRows:
    """A masked table as flat arrays, one entry per token of the whole table: what the steps are cut from.

    Columns of the table: `example_id`, `input_ids`, `prompt_length`, `labels` (as long as `input_ids`, -100
    where there is no loss), `weights` (float32, as long as the response; 1 where the table has none), and the
    `extra` ones, as long as the response, that an online method reads. `own_queries`: the model reads every target,
    also the last one.

    The table is gone through a record batch at a time, and what is as long as its tokens lies in files in `folder`
    without a name (`Growing`), mapped into memory: some 15 bytes a token there, and 50 bytes a row in memory.

    A mask whose holes move has two columns more, `drop_probability` (a number for each row) and `dropped` (bool, as
    long as the response): with that probability a dropped token has its stored weight in an epoch, else its row's. Here
    stands what it has on average; `in_epoch` draws.

    Raises:
        ValueError: a column is missing or as long as neither the sequence nor the response.
    """

    READ = ("example_id", "input_ids", "prompt_length", "labels", "weights", "drop_probability", "dropped", ROW_WEIGHTS)

    def __init__(
        self,
        table: pa.Table | Batches,
        extra: Iterable[str] = (),
        *,
        own_queries: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.batches = Batches.of(table) if isinstance(table, pa.Table) else table
        self.extra, self.own_queries, self.folder = tuple(extra), own_queries, folder
        self.apart: int | None = None  # tokens; longer documents share no row with others (longrope)
        self.moving = False
        self._read(None)

    def _read(self, drawn: tuple[int, int] | None) -> None:
        """Fill the arrays, with the weights of the epoch that is `drawn`: (seed, epoch)."""
        files: dict[str, Growing] = {}
        names: list[pa.Array] = []
        of_rows: list[tuple[np.ndarray, ...]] = []
        for batch in self.batches:
            rows = self._sequences(batch)
            names.append(batch.column("example_id"))
            arrays, needed = self._tokens(rows, drawn)
            of_rows.append((rows.lengths, rows.prompts, needed))
            for name, values in arrays.items():
                if name not in files:
                    files[name] = Growing(self.folder)
                files[name].extend(values)
        if not names:
            raise ValueError("there are no rows to train on")
        self._names = pa.chunked_array(names)
        self.lengths, self.prompt_lengths, self.needed = map(np.concatenate, zip(*of_rows, strict=True))
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        whole = {name: file.whole() for name, file in files.items()}
        self.input_ids, self.labels, self.weights = whole["input_ids"], whole["labels"], whole["weights"]
        self.in_response, self.kept, self.idle = whole["in_response"], whole["kept"], whole["idle"]
        self.columns = {name: whole[f"column {name}"] for name in self.extra}

    def _sequences(self, batch: pa.RecordBatch) -> Sequences:
        names = batch.schema.names
        wanted = ["example_id", "input_ids", "prompt_length", "labels", *self.extra]
        if missing := [name for name in wanted if name not in names]:
            raise ValueError(f"the training table lacks the columns {missing}; it has {names}")
        self.moving = "drop_probability" in names
        return Sequences(batch)

    def _tokens(self, rows: Sequences, drawn: tuple[int, int] | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The arrays of some rows' tokens, (L,) each, and how many tokens of each row the model reads, int64 (R,)."""
        names, in_response, position = rows.table.schema.names, rows.in_response, positions(rows.lengths)

        def of_tokens(values: np.ndarray | np.float32, otherwise: float, kind: type = np.float32) -> np.ndarray:
            found: np.ndarray = np.full(len(rows.ids), otherwise, kind)
            found[in_response] = values
            return found

        labels = rows.of_sequences("labels")
        untrained = of_tokens(rows.untrained, False, np.bool_)  # by the rows themselves, whatever the mask
        weights = of_tokens(rows.of_responses("weights") if "weights" in names else np.float32(1), 1)
        arrays = {f"column {name}": of_tokens(rows.of_responses(name), 1) for name in self.extra}
        if self.moving:
            chance = of_tokens(rows.of_responses("dropped"), 0)  # of being dropped in an epoch
            chance *= np.repeat(rows.table.column("drop_probability").to_numpy().astype(np.float32), rows.lengths)
            when_kept = of_tokens(rows.of_responses(ROW_WEIGHTS) if ROW_WEIGHTS in names else np.float32(1), 1)
            if drawn is None:
                weights = np.where(chance > 0, when_kept - chance * (when_kept - weights), weights)
            else:
                ids = rows.table.column("example_id").to_pylist()
                draws = [_draws(*drawn, name, length) for name, length in zip(ids, rows.lengths, strict=True)]
                weights = np.where((chance > 0) & (np.concatenate(draws) >= chance), when_kept, weights)
        # A document's first token is never a target: nothing precedes it.
        kept = (labels != IGNORED) & (weights != 0) & (position > 0)
        # Tokens from the last kept one on are targets at most, so the model need not read them; it reads that one too
        # where a rule asks what the kept tokens themselves attend to.
        reach = np.where(kept, position + self.own_queries, 0)
        needed = np.maximum.reduceat(np.append(reach, 0), rows.offsets[:-1])
        # Response tokens that predict one which the mask dropped. The end of a document predicts nothing.
        dropped = in_response & ~kept & ~untrained & (position > 0)
        arrays |= {"input_ids": rows.ids, "labels": labels, "weights": weights, "kept": kept}
        arrays |= {"in_response": in_response, "idle": in_response & np.append(dropped[1:], False)}
        return arrays, needed

    @property
    def example_ids(self) -> list[str]:
        """The id of each row."""
        found: list[str] = self._names.to_pylist()
        return found

    def in_epoch(self, seed: int, epoch: int) -> TrainingRows:
        """The rows with the weights of an epoch; themselves where these are the same in all.

        A draw is a function of (seed, epoch, example id, position in the row): neither the order of the rows nor how
        they are batched, spread over devices or resumed changes it.
        """
        if not self.moving:
            return self
        found = copy.copy(self)
        found._read((seed, epoch))
        return found

    def __len__(self) -> int:
        return len(self.lengths)


def _draws(seed: int, epoch: int, example_id: str, tokens: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for the tokens of an example in an epoch."""
    words = np.frombuffer(hashlib.sha256(example_id.encode()).digest(), np.uint32).tolist()
    return np.random.default_rng([seed, DRAWS, epoch, *words]).random(tokens)


@functools.lru_cache(1)  # each step asks for it
def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch, a function of (seed, epoch) alone."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def pack(lengths: Sequence[int], budget: int, multiple: int = 1) -> list[list[int]]:
    """Bins of indices into `lengths`, each of at most `budget` tokens; a longer document has one to itself.

    Best fit, longest first. With `multiple` devices the number of bins is a multiple of it and the load is
    spread evenly; a bin is then empty if there are fewer documents than devices.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), ascending; without those in which no document has room
    shortest = min(lengths, default=0)
    for index in longest_first:
        slot = bisect_left(room, (lengths[index], 0))
        if slot == len(room):
            left, chosen = budget, len(bins)
            bins.append([])
        else:
            left, chosen = room.pop(slot)
        bins[chosen].append(index)
        if left - lengths[index] >= shortest:
            insort(room, (left - lengths[index], chosen))
    if multiple == 1:
        return bins
    limit = max([budget, *lengths])
    count = max(1, -(-len(bins) // multiple)) * multiple
    while True:
        bins = _spread(lengths, longest_first, count)
        if max(sum(lengths[index] for index in one) for one in bins) <= limit:
            return bins
        count += multiple


def _spread(lengths: Sequence[int], longest_first: Sequence[int], count: int) -> list[list[int]]:
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in longest_first:
        lightest = loads.index(min(loads))
        bins[lightest].append(index)
        loads[lightest] += lengths[index]
    return bins


@dataclass
class MicroBatch:
    """Documents packed into one row of T tokens, N of which predict a token that carries loss.

    `position_ids`, which restart at each document, and `document_lengths` keep attention within documents;
    there is no attention mask. Targets are shifted: hidden state `predictors[i]` predicts `targets[i]`.
    """

    input_ids: torch.Tensor  # [1, T] int64
    position_ids: torch.Tensor  # [1, T] int64
    document_lengths: tuple[int, ...]  # their sum is T
    predictors: torch.Tensor  # [N] int64, positions in the row
    targets: torch.Tensor  # [N] int64
    weights: torch.Tensor  # [N] float32
    rows: torch.Tensor  # [N] int64, the table row that a target belongs to; equal ones are adjacent
    idle: torch.Tensor  # [M] int64, positions in the row of response tokens that predict one which the mask dropped
    prompt_lengths: tuple[int, ...]  # of each document
    columns: dict[str, torch.Tensor]  # each [N] float32


@dataclass
class Step:
    """One optimizer step: this device's micro-batches, and what all devices' micro-batches hold together."""

    index: int  # 0-based, over the whole training
    micro_batches: list[MicroBatch]
    rows: np.ndarray  # table rows of the step
    kept_tokens: int  # targets with a positive stored weight
    response_tokens: int
    tokens: int  # prompt and response, cut tails included


def collate(data: TrainingRows, rows: np.ndarray, budget: int, index: int, rank: int = 0, devices: int = 1) -> Step:
    """Pack the rows of one optimizer step; every device packs all of them alike and takes its share.

    Documents longer than `data.apart` are packed among themselves; a budget of 0 packs one document a row.
    """
    with_loss = [int(row) for row in rows if data.needed[row] > 0]
    limit = sys.maxsize if data.apart is None else data.apart
    long, short = ([row for row in with_loss if bool(data.needed[row] > limit) is which] for which in (True, False))
    shares: list[list[int]] = []
    for group in (long, short) if long and short else (with_loss,):
        bins = pack([int(data.needed[row]) for row in group], budget, devices)
        shares += [[group[one] for one in packed] for packed in bins[rank::devices]]
    # A device without a document computes one token of weight zero, so that all devices do the same work.
    shares = shares or [[]]
    members = np.concatenate([np.arange(data.offsets[row], data.offsets[row + 1]) for row in rows])
    return Step(
        index=index,
        micro_batches=[_micro_batch(data, share) for share in shares],
        rows=rows,
        kept_tokens=int((data.kept & (data.weights > 0))[members].sum()),
        response_tokens=int(data.in_response[members].sum()),
        tokens=len(members),
    )


def _micro_batch(data: TrainingRows, rows: Sequence[int]) -> MicroBatch:
    if not rows:
        return _empty_micro_batch(data)
    ids, positions, kept, targets_of, idle = [], [], [], [], []
    start = 0
    for row in rows:
        begin, length = data.offsets[row], data.needed[row]
        ids.append(data.input_ids[begin : begin + length])
        positions.append(np.arange(length))
        targets = begin + 1 + np.flatnonzero(data.kept[begin + 1 : min(begin + 1 + length, data.offsets[row + 1])])
        kept.append(start + targets - begin - 1)
        targets_of.append(targets)
        idle.append(start + np.flatnonzero(data.idle[begin : begin + length]))
        start += length
    flat = np.concatenate(targets_of)
    return MicroBatch(
        input_ids=_tensor(np.concatenate(ids), torch.int64)[None],
        position_ids=_tensor(np.concatenate(positions), torch.int64)[None],
        document_lengths=tuple(int(data.needed[row]) for row in rows),
        predictors=_tensor(np.concatenate(kept), torch.int64),
        targets=_tensor(data.labels[flat], torch.int64),
        weights=_tensor(data.weights[flat], torch.float32),
        rows=_tensor(np.repeat(np.asarray(rows), [len(one) for one in targets_of]), torch.int64),
        idle=_tensor(np.concatenate(idle), torch.int64),
        prompt_lengths=tuple(int(data.prompt_lengths[row]) for row in rows),
        columns={name: _tensor(column[flat], torch.float32) for name, column in data.columns.items()},
    )


def pack_documents(documents: Sequence[torch.Tensor]) -> MicroBatch:
    """Whole documents, 1-D int64 each, in one row; every token but each one's first is a target of weight 1."""
    table = pa.table(
        {
            "example_id": [str(index) for index in range(len(documents))],
            "input_ids": [ids.tolist() for ids in documents],
            "prompt_length": [1] * len(documents),
            "labels": [ids.tolist() for ids in documents],
        }
    )
    return _micro_batch(TrainingRows(table), range(len(documents)))


def _empty_micro_batch(data: TrainingRows) -> MicroBatch:
    zero = torch.zeros(1, dtype=torch.int64)
    columns = {name: torch.zeros(1) for name in data.columns}
    first = torch.full((1,), int(data.input_ids[0]))
    none = torch.zeros(0, dtype=torch.int64)
    return MicroBatch(first[None], zero[None], (1,), zero, first, torch.zeros(1), zero, none, (1,), columns)


def filled(micro: MicroBatch, length: int, pad_id: int) -> MicroBatch:
    """The row brought to `length` tokens by a document of `pad_id` behind the others; a longer one as it is."""
    missing = length - micro.input_ids.shape[1]
    if missing <= 0:
        return micro
    filler = torch.full((1, missing), pad_id)
    return replace(
        micro,
        input_ids=torch.cat([micro.input_ids, filler], dim=1),
        position_ids=torch.cat([micro.position_ids, torch.arange(missing)[None]], dim=1),
        document_lengths=(*micro.document_lengths, missing),
        prompt_lengths=(*micro.prompt_lengths, missing),
    )


def _tensor(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.as_tensor(values).to(dtype)


class StepLoader:
    """All optimizer steps of a training, in order; a function of the seed, resumable at any step.

    Each epoch visits every row once, shuffled unless `shuffle` is off; its last step may be smaller than `batch_size`.
    With `fill_with`, a token id, every micro-batch is filled up to the budget, so that a compiled model sees one shape.
    """

    def __init__(
        self,
        data: TrainingRows,
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        budget: int,
        max_steps: int | None = None,
        rank: int = 0,
        devices: int = 1,
        fill_with: int | None = None,
        shuffle: bool = True,
    ) -> None:
        self.shuffle = shuffle
        self.data, self.batch_size, self.seed, self.budget = data, batch_size, seed, budget
        self.rank, self.devices, self.fill_with = rank, devices, fill_with
        self.steps_per_epoch = -(-len(data) // batch_size)
        self.steps = min(self.steps_per_epoch * epochs, max_steps or sys.maxsize)
        self.next = 0
        self._drawn: tuple[int, TrainingRows] | None = None  # the rows as they are in an epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        while self.next < self.steps:
            step = self.step(self.next)
            self.next += 1
            yield step

    def step(self, index: int) -> Step:
        """The step at a 0-based index, as this device sees it."""
        data = self._in_epoch(index // self.steps_per_epoch)
        step = collate(data, self.rows(index), self.budget, index, self.rank, self.devices)
        if self.fill_with is not None:
            step.micro_batches = [filled(micro, self.budget, self.fill_with) for micro in step.micro_batches]
        return step

    def _in_epoch(self, epoch: int) -> TrainingRows:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, self.data.in_epoch(self.seed, epoch)
        return self._drawn[1]

    def rows(self, index: int) -> np.ndarray:
        """Table rows of a step."""
        epoch, within = divmod(index, self.steps_per_epoch)
        rows = len(self.data)
        order = epoch_order(rows, self.seed, epoch) if self.shuffle else np.arange(rows)
        return order[within * self.batch_size : (within + 1) * self.batch_size]

    def tokens(self, steps: int | None = None) -> int:
        """Prompt and response tokens in the first `steps` steps, or in all."""
        whole, rest = divmod(self.steps if steps is None else steps, self.steps_per_epoch)
        first = whole * self.steps_per_epoch
        rows = [self.rows(first + index) for index in range(rest)]
        return whole * int(self.data.lengths.sum()) + sum(int(self.data.lengths[part].sum()) for part in rows)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the next step."""
        return {"next": self.next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from the step that a checkpoint kept."""
        self.next = state["next"]
