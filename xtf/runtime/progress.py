"""Progress with tokens per second and time left: a bar on a terminal, else a line every so often."""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

console = Console()
EVERY = 30.0  # seconds between two lines where the output is no terminal


class _Console:
    prefix = ""  # of bars and lines: which stage of how many
    told: ClassVar[set[str]] = set()  # long texts that stand above


def stage(number: int, stages: int, name: str) -> None:
    """Says that a stage begins; the bars from here on begin with its number."""
    _Console.prefix = f"{number}/{stages} "
    say(f"stage {number} of {stages}: {name}")


class _TokenRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} tokens/s" if speed else "", style="cyan")


class _Left(ProgressColumn):
    """The time left in words, at the end the time taken."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        if task.finished_time is not None:
            return Text(f"took {duration(task.finished_time)}")
        return Text("" if task.time_remaining is None else f"{duration(task.time_remaining)} left")


@contextlib.contextmanager
def bar(description: str, tokens: int) -> Iterator[Callable[[int], None]]:
    """Progress over `tokens`; yields the function that advances it."""
    description = _Console.prefix + description
    if not (console.is_terminal or console.is_jupyter):
        yield Lines(description, tokens)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),  # what the rest leaves of the line
        TextColumn("{task.percentage:>3.0f} %"),
        _TokenRate(Column(no_wrap=True)),
        _Left(Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, expand=True) as progress:
        task = progress.add_task(description, total=tokens)
        yield lambda done: progress.advance(task, done)


class Lines:
    """Says every `EVERY` seconds how far the work is; what an earlier attempt did counts as done, not as fast."""

    def __init__(self, description: str, tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.description, self.tokens, self.clock = description, tokens, clock
        self.done = 0
        self.start = self.last = clock()
        self.before = 0  # tokens of an earlier attempt, which a resumed training begins with

    def __call__(self, done: int) -> None:
        """Told how many tokens more are done."""
        now = self.clock()
        if self.done == 0 and now - self.start < 1.0:
            self.before, self.start, self.last = done, now, now
        self.done += done
        if now - self.last < EVERY or self.done == self.before:
            return
        self.last = now
        speed = (self.done - self.before) / (now - self.start)
        say(
            f"{self.description}: {self.done / max(1, self.tokens):.0%}, {speed:,.0f} tokens/s, "
            f"{duration((self.tokens - self.done) / speed)} left"
        )


def duration(seconds: float) -> str:
    """About how long, in words: '40 s', '3 min', '2.5 h'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def say(message: str) -> None:
    """One line about what the program does."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


def item(text: str, width: int | None) -> str:
    """One of a list: text in lines of at most `width` characters, words and commands whole; None: in one line."""
    if width is None:
        return f"  - {text}"
    return textwrap.fill(
        text, width, initial_indent="  - ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def say_once(text: str, again: str) -> bool:
    """Says a long text, and `again` where it stands above already, as of another seed in a sweep; whether it is new."""
    new = text not in _Console.told
    say(text if new else again)
    _Console.told.add(text)
    return new


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Yields a function that gives the seconds since entry."""
    start = time.monotonic()
    yield lambda: time.monotonic() - start
