"""How completions are made."""

from __future__ import annotations

from dataclasses import dataclass

from xtf.config.schema import TaskConfig


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
        """As the task asks."""
        # Greedy decoding draws nothing, so its result does not depend on the seed and is shared between seeds.
        return cls(task.max_new_tokens, task.samples, task.temperature, task.top_p, seed if task.temperature else 0)
