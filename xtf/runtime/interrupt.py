"""Ctrl-C: the program ends within seconds, with exit status 130 and the command that goes on.

Python raises KeyboardInterrupt between two of its own instructions only, and what catches it may wait for threads or
clean up for minutes. So the signal also wakes a thread, which ends the program if it has not ended by then, or at once
when Ctrl-C comes twice. Nothing is lost: every artifact survives a kill.
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

STATUS = 130  # what shells give for a program that SIGINT ended
GRACE_SECONDS = 1.5  # for the program to end by itself
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


@contextlib.contextmanager
def interruptible(command: str) -> Iterator[None]:
    """Ctrl-C within ends the process as described above, `command` being what goes on; for the main thread."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    farewell = _Farewell(command)
    pressed = False

    def on_signal(*_: Any) -> None:
        nonlocal pressed
        if not pressed:  # a second one is the thread's
            pressed = True
            raise KeyboardInterrupt

    threading.Thread(target=_watch, args=(reading, farewell), daemon=True).start()
    signal.signal(signal.SIGINT, on_signal)
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield
    except KeyboardInterrupt:
        farewell.say()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would kill an interpreter that is closing down
        raise
    finally:
        if not pressed:
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGINT, before)
            writing.close()


def _watch(reading: socket.socket, farewell: _Farewell) -> None:
    while number := reading.recv(1):  # nothing: the other end was closed
        if number[0] == signal.SIGINT:
            break
    else:
        return
    reading.settimeout(GRACE_SECONDS)
    with contextlib.suppress(TimeoutError):
        reading.recv(1)
    farewell.say()
    os._exit(STATUS)


def end_with(program: int) -> None:
    """From now on SIGINT ends this process at once and without a word, and so does, within a second, the end of its
    parent or of the process `program`.

    For the processes that torch's launcher starts, in sessions of their own: it hands Ctrl-C on to them, and they would
    unwind with a traceback each and wait for one another while the program that they belong to has ended. One that is
    killed cannot tell them, and they would go on beside those of the next attempt.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent and running(program):
            time.sleep(0.5)
        os._exit(STATUS)

    threading.Thread(target=watch, daemon=True).start()


class _Farewell:
    """The last words, once; from either thread, so not through Python's buffers."""

    def __init__(self, command: str) -> None:
        self.text = f"interrupted; this command goes on from here: {command}\n"
        self.lock = threading.Lock()

    def say(self) -> None:
        if not self.lock.acquire(blocking=False):
            return
        with contextlib.suppress(OSError):
            os.write(2, ((SHOW_CURSOR if sys.stderr.isatty() else "") + self.text).encode())
