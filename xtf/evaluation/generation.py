"""Continuous batching: a row that ends gives its place to the next prompt, and a step never copies the KV cache.

Rows stand right-aligned, as left padding makes them, so any attention model of transformers serves, sliding windows
included. A step writes one column at the right end of the cache, a prompt that joins is written into an idle place,
and the cache is laid out afresh only when its spare columns are used up or when places stay idle.

Shapes: B places side by side, W columns in use, H key heads, D head width, N rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from xtf.runtime.heads import position_table, rope_limit

SPARE = 64  # columns to grow into before the cache is laid out afresh
IDLE = 8  # places are filled again, or given up, as soon as one in so many is idle

# The next token of each row, int64 (N,), from logits float32 (N, V); told the rows' prompts and numbers of new tokens.
Choose = Callable[[torch.Tensor, Sequence[tuple[int, int]]], torch.Tensor]
Completion = tuple[int, list[int]]  # index of the prompt, ids of the new tokens


def greedy(logits_NV: torch.Tensor, rows: Sequence[tuple[int, int]]) -> torch.Tensor:
    """The likeliest token of each row."""
    return logits_NV.argmax(-1)


def draw(logits_NV: torch.Tensor, uniform_N: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """A token of each row's nucleus (arXiv 1904.09751), int64 (N,): the one on which `uniform_N` in [0, 1) falls.

    The nucleus is the smallest set of likeliest tokens whose probabilities add up to `top_p`. One number in, one
    token out: what a row draws does not depend on the rows beside it.
    """
    p_NV, ids_NV = (logits_NV.double() / temperature).softmax(-1).sort(descending=True, stable=True)
    p_NV[p_NV.cumsum(-1) - p_NV >= top_p] = 0.0
    sum_NV = p_NV.cumsum(-1)
    place_N1 = torch.searchsorted(sum_NV, uniform_N[:, None] * sum_NV[:, -1:], right=True)
    return ids_NV.gather(-1, place_N1)[:, 0]


class TooLong(ValueError):
    """Prompts, by index, for whose completions the model has no positions."""

    def __init__(self, prompts: list[int], message: str) -> None:
        super().__init__(message)
        self.prompts = prompts


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    places: int,
    max_new_tokens: int,
    stops: Collection[int],
    choose: Choose = greedy,
    over: Callable[[list[int]], bool] = lambda new: False,
) -> Iterator[Completion]:
    """Yields a completion as soon as it ends; at most `places` prompts run side by side.

    It ends before a token of `stops`, at `max_new_tokens`, or when `over`, shown its tokens after each new one, says
    so. The longest prompts go first, so that a prompt that joins is never longer than the rows that run. Rows that may
    pass the length at which longrope changes its frequencies, for all rows of a step, run one by one.

    Raises:
        TooLong: a prompt and its new tokens run off the model's table of positions.
    """
    table = position_table(model)
    if table is not None and (long := [i for i, ids in enumerate(prompts) if len(ids) + max_new_tokens - 1 > table]):
        raise TooLong(
            long,
            f"{type(model).__name__} has positions for {table} tokens, fewer than a prompt and {max_new_tokens} new "
            "tokens need (task.max_new_tokens)",
        )
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    limit = rope_limit(model)
    alone = [index for index in order if limit is not None and len(prompts[index]) + max_new_tokens - 1 > limit]
    for waiting, side_by_side in ((deque(alone), 1), (deque(order[len(alone) :]), places)):
        rows = _Rows(
            model, prompts, max_new_tokens, frozenset(stops), choose, over, limit if side_by_side == 1 else None
        )
        while waiting or rows.running:
            if IDLE * len(rows.idle) >= len(rows.prompt):
                if waiting:
                    free = len(rows.idle) if rows.running else side_by_side
                    yield from rows.join([waiting.popleft() for _ in range(min(free, len(waiting)))])
                else:
                    rows.close_up()
            if rows.running:
                yield from rows.step()


class _Rows:
    """The rows that run side by side, and their KV cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stops: frozenset[int],
        choose: Choose,
        over: Callable[[list[int]], bool],
        limit: int | None,
    ) -> None:
        self.model, self.prompts, self.max_new_tokens, self.stops = model, prompts, max_new_tokens, stops
        self.choose, self.over = choose, over
        self.limit = limit  # tokens beyond which the one row that runs is read anew, with other frequencies
        self.prompt: list[int] = []  # the prompt at each place, -1 where it is idle
        self.new: list[list[int]] = []  # the tokens that each place got; all but the last are in the cache
        self.seen_BW = torch.empty(0, 0, dtype=torch.bool, device=model.device)  # False: left of the row
        self.layers: list[_Layer] = []
        self.cache = Cache(layers=[])

    @property
    def running(self) -> list[int]:
        return [place for place, prompt in enumerate(self.prompt) if prompt >= 0]

    @property
    def idle(self) -> list[int]:
        return [place for place, prompt in enumerate(self.prompt) if prompt < 0]

    def _read(self, rows: Sequence[Sequence[int]]) -> tuple[list[_Layer], Cache, torch.Tensor, torch.Tensor]:
        """The cache of `rows` as layers and whole, which of its columns they reach, and the next token's logits."""
        layers = [_Layer() for _ in range(self.model.config.get_text_config().num_hidden_layers)]
        cache = Cache(layers=[*layers])
        width = max(map(len, rows))
        ids_BW = torch.tensor([[0] * (width - len(ids)) + list(ids) for ids in rows])
        seen_BW = torch.tensor([[False] * (width - len(ids)) + [True] * len(ids) for ids in rows])
        ids_BW, seen_BW = ids_BW.to(self.model.device), seen_BW.to(self.model.device)
        logits_BV = self.model(
            input_ids=ids_BW,
            attention_mask=seen_BW,
            position_ids=(seen_BW.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return layers, cache, seen_BW, logits_BV

    def join(self, prompts: Sequence[int]) -> Iterator[Completion]:
        """Reads prompts, by index, into idle places, or into a fresh cache where nothing runs."""
        layers, cache, seen_BW, logits_BV = self._read([self.prompts[index] for index in prompts])
        if self.running:
            where, width = self.idle[: len(prompts)], seen_BW.shape[1]
            for own, other in zip(self.layers, layers, strict=True):
                own.put(torch.tensor(where, device=self.model.device), other)
            self.seen_BW[where] = False
            self.seen_BW[where, -width:] = seen_BW
        else:
            where = list(range(len(prompts)))
            self.layers, self.cache, self.seen_BW = layers, cache, seen_BW
            self.prompt, self.new = [-1] * len(prompts), [[] for _ in prompts]
        for place, index in zip(where, prompts, strict=True):
            self.prompt[place], self.new[place] = index, []
        return self._grow(where, logits_BV)

    def step(self) -> Iterator[Completion]:
        """One more token for every row."""
        if self.limit is not None and int(self.seen_BW[0].sum()) == self.limit:
            whole = [*self.prompts[self.prompt[0]], *self.new[0]]
            self.layers, self.cache, self.seen_BW, logits_BV = self._read([whole])
            yield from self._grow([0], logits_BV)
            return
        if self.layers[0].full:
            self._lay_out(range(len(self.prompt)))
        last_B1 = torch.tensor([[new[-1]] for new in self.new], device=self.model.device)
        position_B1 = self.seen_BW.sum(1, keepdim=True)
        position_B1[self.idle] = 0  # what an idle place says is not read, but a table of positions has an end
        self.seen_BW = torch.cat([self.seen_BW, self.seen_BW.new_ones(len(last_B1), 1)], 1)
        logits_BV = self.model(
            input_ids=last_B1,
            attention_mask=self.seen_BW,
            position_ids=position_B1,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        running = self.running
        yield from self._grow(running, logits_BV[running])

    def close_up(self) -> None:
        """Gives up idle places."""
        running = self.running
        self._lay_out(running)
        self.prompt = [self.prompt[place] for place in running]
        self.new = [self.new[place] for place in running]

    def _lay_out(self, places: Sequence[int]) -> None:
        """Drops the columns that no running row reaches back to, and all but `places`; gives room for new columns."""
        width = int(self.seen_BW[self.running].sum(1).max())
        places_B = torch.tensor(places, device=self.model.device)
        for layer in self.layers:
            layer.keep(places_B, width)
        self.seen_BW = self.seen_BW[places_B, -width:]

    def _grow(self, where: list[int], logits_NV: torch.Tensor) -> Iterator[Completion]:
        """Adds a token to the rows at `where`; yields those that end with it and makes their places idle."""
        rows = [(self.prompt[place], len(self.new[place])) for place in where]
        for place, token in zip(where, self.choose(logits_NV.float(), rows).tolist(), strict=True):
            new = self.new[place]
            stopped = token in self.stops
            if not stopped:
                new.append(token)
            if stopped or len(new) == self.max_new_tokens or self.over(new):
                yield self.prompt[place], new
                self.prompt[place], self.new[place] = -1, [0]


class _Layer(DynamicLayer):
    """One layer's keys and values, (B, H, W, D): the columns in use of buffers that have room to the right."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._lay_out(key_states, value_states)
        else:
            width = self.keys.shape[2] + 1
            for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
                buffer[:, :, width - 1 : width] = new
            self.keys, self.values = (buffer[:, :, :width] for buffer in self.buffers)
        return self.keys, self.values

    @property
    def full(self) -> bool:
        return bool(self.keys.shape[2] == self.buffers[0].shape[2])

    def keep(self, rows_B: torch.Tensor, width: int) -> None:
        """Only these rows and the last `width` columns stay."""
        self._lay_out(self.keys[rows_B, :, -width:], self.values[rows_B, :, -width:])

    def put(self, rows_B: torch.Tensor, other: _Layer) -> None:
        """The rows of `other`, which is no wider, take the places `rows_B`."""
        self.keys[rows_B, :, -other.keys.shape[2] :] = other.keys
        self.values[rows_B, :, -other.values.shape[2] :] = other.values

    def _lay_out(self, *states_BHWD: torch.Tensor) -> None:
        """Copies keys and values into new buffers with room to the right."""
        self.buffers = [
            torch.cat([part, part.new_zeros(*part.shape[:2], SPARE, part.shape[3])], 2) for part in states_BHWD
        ]
        self.keys, self.values = (buffer[:, :, :-SPARE] for buffer in self.buffers)
