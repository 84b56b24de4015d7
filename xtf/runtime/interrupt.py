"""Ctrl-C and SIGTERM: the program ends within seconds, with exit status 130 or 143 and the command that goes on.

Python raises KeyboardInterrupt between two of its own instructions only, and what catches it may wait for threads or
clean up for minutes. So the signal also wakes a thread, which ends the program if it has not ended by then, or at once
when the signal comes twice. Nothing is lost: every artifact survives a kill.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from xtf.runtime.artifacts import running

SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}
GRACE_SECONDS = 1.5  # for the program to end by itself
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


@contextlib.contextmanager
def interruptible(command: str) -> Iterator[Farewell]:
    """Ctrl-C and SIGTERM within end the process as described above, `command` being what goes on; for the main thread.

    They come as KeyboardInterrupt; the farewell knows the exit status. A signal that the process ignores stays ignored.
    """
    farewell = Farewell(command)
    before = {number: signal.getsignal(number) for number in SAID}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or not heard:
        yield farewell
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def on_signal(number: int, _: Any) -> None:
        if farewell.number is None:  # a second one is the thread's
            farewell.number = signal.Signals(number)
            raise KeyboardInterrupt

    threading.Thread(target=_watch, args=(reading, farewell), daemon=True).start()
    for number in heard:
        signal.signal(number, on_signal)
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield farewell
    except KeyboardInterrupt:
        farewell.say()
        for number in heard:  # a second one would kill an interpreter that is closing down
            signal.signal(number, signal.SIG_IGN)
        raise
    finally:
        if farewell.number is None:
            signal.set_wakeup_fd(descriptor)
            for number in heard:
                signal.signal(number, before[number])
            writing.close()


def _watch(reading: socket.socket, farewell: Farewell) -> None:
    while number := reading.recv(1):  # nothing: the other end was closed
        if number[0] in SAID:
            break
    else:
        return
    reading.settimeout(GRACE_SECONDS)
    with contextlib.suppress(TimeoutError):
        reading.recv(1)
    farewell.number = farewell.number or signal.Signals(number[0])
    farewell.say()
    os._exit(farewell.status)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """What is started within is not reached by SIGINT and SIGTERM, nor is what it starts; see `end_with`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SAID)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with(program: int) -> None:
    """From now on SIGINT and SIGTERM end this process without a word, and so does, within a second, the end of its
    parent or of the process `program`.

    For the processes of torch's launcher, which is started with `deaf_children`: whoever ends a job sends its signal to
    all of its processes, and the launcher would tell of it in a block of text, its processes in a traceback each, and
    wait for one another while the program that they belong to has ended. So that program ends them all; it is given a
    second before these end by the signal, which the launcher would report as their failure. One that is killed cannot
    end them, and they would go on beside those of the next attempt.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and running(program):
            time.sleep(0.5)
        os._exit(128 + signal.SIGINT)

    def listen() -> None:
        number = signal.sigwait(SAID)
        time.sleep(1)
        os._exit(128 + number)

    for thread in (watch, listen):
        threading.Thread(target=thread, daemon=True).start()


def ended(status: int) -> str:
    """How a process ended, by its exit status: above 128, as shells say it, or below 0 a signal ended it."""
    number = -status if status < 0 else status - 128
    if number <= 0:
        return f"ended by itself with status {status}" + (" (its error is above)" if status else "")
    known = number in set(signal.Signals)
    name = signal.Signals(number).name if known else f"signal {number}"
    return f"was ended by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


class Farewell:
    """The last words, once; from either thread, so not through Python's buffers."""

    def __init__(self, command: str) -> None:
        self.command, self.number = command, None
        self.lock = threading.Lock()

    number: signal.Signals | None  # what ended the program

    @property
    def status(self) -> int:
        """The exit status, as shells give it for a program that a signal ended; that of Ctrl-C without one."""
        return 128 + (self.number or signal.SIGINT)

    def say(self) -> None:
        """Why the program ends, and what goes on."""
        if not self.lock.acquire(blocking=False):
            return
        text = f"{SAID[self.number or signal.SIGINT]}; this command goes on from here: {self.command}\n"
        with contextlib.suppress(OSError):
            os.write(2, ((SHOW_CURSOR if sys.stderr.isatty() else "") + text).encode())
