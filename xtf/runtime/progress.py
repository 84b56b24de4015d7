"""Progress bars with tokens per second and time left; silent when the output is not a terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console()


class _TokenRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="cyan")


@contextlib.contextmanager
def bar(description: str, tokens: int) -> Iterator[Callable[[int], None]]:
    """A bar over `tokens`; yields the function that advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _TokenRate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=tokens)
        yield lambda done: progress.advance(task, done)


def say(message: str) -> None:
    """One line about what the program does."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yields a function that gives the seconds since entry."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start
