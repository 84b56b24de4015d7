"""The program that runs inside the sandbox (see `xtf.graders.sandbox` for the design and the trust model).

Started with the standard library only, so that a fork is cheap and holds nothing of the parent's:

    server     started once per worker; enters the namespaces, builds the file system, forks a keeper per job, the next
               one while the one before is busy; gives each its turn when all of the one before has ended
    keeper     makes the namespaces of one job, forks the checker there, reads the job, hands it over, and sends the
               checker's one verdict on; alone of a job's processes it holds the worker's channel
    checker    PID 1 there; runs the *tests*, writes the verdict; its end kills the namespace
    candidate  runs the model's *program*, answers the checker's calls; never sees the tests

A message between parent and server is a `HEADER` (number of the job, nonce, length) and JSON. The verdict carries the
number and the nonce of its job.
"""

# pathlib is not worth its import here
# ruff: noqa: PTH102, PTH103, PTH109, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import builtins
import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import itertools
import json
import os
import platform
import random
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn

Value = Any  # what JSON holds
HEADER = struct.Struct("!Q16sI")  # number of the job, nonce, length of the JSON that follows
CHANNEL = 3  # the descriptor of server and keeper that leads to the parent
KEEPER_CHANNEL = 3  # the checker's, to the keeper
PROGRAM_CHANNEL = 3  # the candidate's, to the checker
MAX_FRAME = 64 * 2**20  # bytes of one message between checker and candidate
MAX_REASON = 2000  # characters
MAX_VERDICT = HEADER.size + 64 * 2**10  # bytes
END_OF_JOBS, IRREGULAR = 3, 4  # how a keeper ends, 0 after a verdict; `sandbox.py` knows the latter too
WATCH_SECONDS = 0.05  # between looks at the memory of all of a job's processes
END_SECONDS = 1.0  # for a process that has closed its channel to end
MUTABLE = (list, dict, set, deque, bytearray)
BUILTIN_ERRORS = {  # what a program raises and tests see under the same name, made from one string
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, UnicodeError | BaseExceptionGroup | StopIteration | StopAsyncIteration)
}

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
KEYCTL_JOIN_SESSION_KEYRING = 1
# set aside for short-lived users by systemd; no account has them. A checker has the first, its candidate the next one
TRANSIENT_USERS = range(61184, 65516, 4)  # two for a job and two for the next one

PRELOADED = (
    *("bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *("functools", "hashlib", "heapq", "itertools", "math", "operator", "re", "statistics", "string", "typing"),
)

libc = ctypes.CDLL(None, use_errno=True)


# -- messages ------------------------------------------------------------------------------------------------


def frame(message: Value) -> bytes:
    content = json.dumps(message).encode()
    return struct.pack("!I", len(content)) + content


def read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes from a blocking descriptor; fewer at its end."""
    parts = []
    while count and (part := os.read(fd, min(count, 1 << 20))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_frame(fd: int) -> Value:
    """The next message between checker and candidate, None at the end of the stream."""
    header = read_exactly(fd, 4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack("!I", header)
    content = read_exactly(fd, length)
    return json.loads(content) if len(content) == length else None


def read_job(fd: int) -> tuple[bytes, bytes] | None:
    """The next job as its header and its JSON, None at the end of the stream."""
    header = read_exactly(fd, HEADER.size)
    if len(header) < HEADER.size:
        return None
    length = HEADER.unpack(header)[2]
    content = read_exactly(fd, length)
    return (header, content) if len(content) == length else None


def answer(header: bytes, message: Value) -> bytes:
    """A message with the number and the nonce of the job that it answers."""
    content = json.dumps(message).encode()
    number, nonce, _ = HEADER.unpack(header)
    return HEADER.pack(number, nonce, len(content)) + content


def write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


# -- values --------------------------------------------------------------------------------------------------


class Values:
    """Plain data as JSON and back; what else crosses, and how, differs between the two sides.

    Functions, classes, instances, iterators, modules and built-ins of the program stay where they are and cross as a
    handle: a number in the candidate's table, a `Remote` at the checker's. Nothing that the checker decodes is code of
    its own: a program that returned the checker's `exec` could have the tests call it.
    """

    def encode(self, value: Any) -> Value:
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            value = value.item()
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):  # hexadecimal has no limit on its length, unlike decimal
            return int(value) if abs(value) < 2**53 else {"int": hex(value)}
        if isinstance(value, float):
            return float(value)
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, bytes | bytearray):
            return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
        if isinstance(value, list):
            return [self.encode(part) for part in value]
        if isinstance(value, dict):
            return {"dict": [[self.encode(key), self.encode(part)] for key, part in value.items()]}
        for kind in (tuple, set, frozenset, deque):
            if isinstance(value, kind):
                return {kind.__name__: [self.encode(part) for part in value]}
        if isinstance(value, Fraction):
            return {"Fraction": [hex(value.numerator), hex(value.denominator)]}
        if isinstance(value, Decimal):
            return {"Decimal": str(value)}
        if isinstance(value, range):
            return {"range": [self.encode(part) for part in (value.start, value.stop, value.step)]}
        return self.encode_other(value)

    def decode(self, value: Value) -> Any:
        if isinstance(value, list):
            return [self.decode(part) for part in value]
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        match kind:
            case "int":
                return int(content, 16)
            case "complex":
                return complex(*content)
            case "bytes" | "bytearray":
                return bytes.fromhex(content) if kind == "bytes" else bytearray.fromhex(content)
            case "dict":
                return {self.decode(key): self.decode(part) for key, part in content}
            case "tuple" | "set" | "frozenset" | "deque":
                make = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}[kind]
                return make(self.decode(part) for part in content)
            case "range":
                return range(*(self.decode(part) for part in content))
            case "Fraction":
                return Fraction(*(int(part, 16) for part in content))
            case "Decimal":
                return Decimal(content)
        return self.decode_other(kind, content)

    def encode_other(self, value: Any) -> Value:
        raise NotImplementedError

    def decode_other(self, kind: str, content: Value) -> Any:
        raise NotImplementedError


class ProgramValues(Values):
    """The candidate's side: its objects get handles, and the names that tests pass are looked up here."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def encode_other(self, value: Any) -> Value:
        self.objects.append(value)
        return {"handle": len(self.objects) - 1}

    def decode_other(self, kind: str, content: Value) -> Any:
        match kind:
            case "builtin":
                return vars(builtins)[content]
            case "module":
                return importlib.import_module(content)
            case "handle":
                return self.objects[content]
        raise ValueError(f"unknown kind of value {kind!r}")


class TestValues(Values):
    """The checker's side: handles become `Remote`s, built-ins and modules that a test passes become names."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker

    def encode_other(self, value: Any) -> Value:
        if type(value) is Remote:
            return {"handle": object.__getattribute__(value, "_handle")}
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in sys.stdlib_module_names:
            return {"module": value.__name__}
        name = getattr(value, "__name__", "")
        if isinstance(value, type | types.BuiltinFunctionType) and vars(builtins).get(name) is value:
            return {"builtin": name}
        raise TypeError(f"a test passes a {type(value).__name__} to the program: only data can be passed")

    def decode_other(self, kind: str, content: Value) -> Any:
        if kind == "handle" and type(content) is int:
            return Remote(self.checker, content)
        raise ValueError(f"unknown kind of value {kind!r}")


def is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


class Remote:
    """The checker's stand-in for an object of the candidate: it can be called and has attributes; equality is identity.

    No special name is passed on, neither those of syntax (`__iter__`, `__len__`, `__getitem__`) nor others
    (`__array_interface__`, `__index__`, `__name__`): C code that asks for one trusts what it gets, and NumPy would
    follow an address of the program's choice. Python says in its own words what such an object cannot do.
    """

    __slots__ = ("_checker", "_handle")

    def __init__(self, checker: Checker, handle: int) -> None:
        object.__setattr__(self, "_checker", checker)
        object.__setattr__(self, "_handle", handle)

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name) if is_special(name) else ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        if is_special(name):
            raise AttributeError(f"{name} of an object of the program cannot be set")
        ask(self, "setattr", name, value)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("an object of the program cannot be copied or pickled")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return ask(self, "call", *args, keywords=kwargs)

    def __bool__(self) -> NoReturn:
        # else it were true, whatever the program's `__bool__` or `__len__` would say
        checker: Checker = object.__getattribute__(self, "_checker")
        checker.fail("the tests ask whether an object of the program is true: only plain data is")


Remote.__name__ = "object of the program"  # in messages: "'object of the program' object is not iterable"


def ask(remote: Remote, operation: str, *args: Any, keywords: dict[str, Any] | None = None) -> Any:
    """What the candidate answers to an operation on one of its objects."""
    checker: Checker = object.__getattribute__(remote, "_checker")
    return checker.operate(operation, object.__getattribute__(remote, "_handle"), args, keywords or {})


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
}


# -- the candidate -------------------------------------------------------------------------------------------


def run_candidate(channel: int) -> NoReturn:
    """Runs the program it is sent, then serves calls until it is killed."""
    values = ProgramValues()
    message = read_frame(channel)
    try:
        module = types.ModuleType("candidate")
        sys.modules["candidate"] = module
        exec(compile(message["program"], "<program>", "exec"), module.__dict__)
        space = vars(module)
        reply = {"value": {name: values.encode(space[name]) for name in message["names"] if name in space}}
    except BaseException as error:  # whatever the program does must reach the checker as a failure
        reply = describe(error)
    write_all(channel, frame(reply))
    while (message := read_frame(channel)) is not None:
        write_all(channel, frame(serve(values, message)))
    os._exit(0)


def serve(values: ProgramValues, message: Value) -> Value:
    try:
        args = [values.decode(part) for part in message["args"]]
        kwargs = {name: values.decode(part) for name, part in message["kwargs"].items()}
        target = values.objects[message["handle"]]
        result = OPERATIONS[message["operation"]](target, *args, **kwargs)
        given = {**dict(enumerate(args)), **kwargs}
        sent = {**dict(enumerate(message["args"])), **message["kwargs"]}
        changed = [
            [place, now]
            for place, arg in given.items()
            if isinstance(arg, MUTABLE) and (now := values.encode(arg)) != sent[place]
        ]
        return {"value": values.encode(result), "changed": changed}
    except BaseException as error:  # as in run_candidate
        return describe(error)


def describe(error: BaseException) -> Value:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    try:
        text = str(error)[:300]
    except Exception:  # an exception class of the program's own making may fail to print
        text = "(its message cannot be shown)"
    return {"error": kinds, "text": text, "fatal": not isinstance(error, Exception)}


# -- the checker ---------------------------------------------------------------------------------------------


class FailureError(BaseException):
    """Ends the tests; not an `Exception`, so that no `except Exception` in a test swallows it."""


class Checker:
    """Talks to the candidate, within the time limit and the limit on what it prints."""

    def __init__(
        self,
        pid: int,
        channel: socket.socket,
        output: int,
        processes: int | None,
        listener: int | None,
        settings: dict[str, Any],
    ) -> None:
        self.pid, self.channel, self.output, self.processes = pid, channel, output, processes
        self.listener, self.shared = listener, 0  # bytes of shared memory that the program asked for
        self.deadline = time.monotonic() + settings["wall_seconds"]
        self.settings = settings
        self.next_look = time.monotonic() + WATCH_SECONDS
        self.printed = 0
        self.failure: FailureError | None = None
        self.turn = threading.Lock()  # to ask the program
        self.values = TestValues(self)
        self.poller = select.poll()
        self.poller.register(output, select.POLLIN)
        if listener is not None:
            self.poller.register(listener, select.POLLIN)
        channel.setblocking(False)

    def watch_memory(self) -> None:
        """Ends the job when all its processes together hold more than the limit (which each alone cannot).

        Shared pages count through `count_shared`: they may be held without being in any process's resident set.
        """
        if self.processes is None:
            return
        pages = 0
        for name in os.listdir(self.processes):
            with contextlib.suppress(OSError):  # it has just ended
                fd = os.open(f"{name}/statm", os.O_RDONLY, dir_fd=self.processes) if name.isdigit() else -1
                if fd >= 0:
                    try:
                        _, resident, shared = os.read(fd, 200).split()[:3]
                    finally:  # also of one that ends just now, or a program of many would use up all descriptors
                        os.close(fd)
                    pages += int(resident) - int(shared)
        if pages * resource.getpagesize() + self.shared > self.memory_limit():
            self.fail(f"the program's processes hold more than {self.settings['memory_mb']} MB")

    def memory_limit(self) -> int:
        return int(self.settings["memory_mb"]) * 2**20

    def count_shared(self) -> None:
        """Lets the candidate's next request for shared memory go on if the limit allows all of them together.

        Each counts with its full length until the job ends: to unmap or to close one does not free what another
        process may still hold. The lengths are in registers, which the program cannot change after this look.
        """
        assert self.listener is not None
        notice = bytearray(NOTICE.size)
        try:
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_RECV, notice)
            ident, _, _, number, _, _, *arguments = NOTICE.unpack(notice)
            size = requested_bytes(number, arguments, self.settings)
            fits = self.shared + size <= self.memory_limit()
            self.shared += size if fits else 0
            response = (ident, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE) if fits else (ident, 0, -errno.ENOMEM, 0)
            fcntl.ioctl(self.listener, SECCOMP_IOCTL_NOTIF_SEND, NOTICE_RESPONSE.pack(*response))
        except FileNotFoundError:  # the process was killed while it waited
            pass

    def fail(self, reason: str) -> NoReturn:
        self.failure = self.failure or FailureError(reason)  # a test that catches everything cannot undo it
        raise self.failure

    def request(self, message: Value) -> Value:
        """Sends a message and waits for the answer; for one thread of the tests after the other."""
        content = frame(message)
        with self.turn:
            if self.failure:
                raise self.failure
            try:
                return self.exchange(content)
            # which no test may take for one that it expects of the program; after an alarm of the tests, the answer
            # that was waited for would be taken for the next one
            except BaseException as error:
                self.fail(f"the program cannot be asked: {error!r}")

    def exchange(self, content: bytes) -> Value:
        """The answer to a message, draining what the candidate prints."""
        unsent, received = memoryview(content), bytearray()
        while True:
            if len(received) >= 4:
                (length,) = struct.unpack_from("!I", received)
                if length > MAX_FRAME:
                    self.fail("the program's answer is too large")
                if len(received) > 4 + length:
                    self.fail("the program wrote to the checker's channel")
                if len(received) == 4 + length:
                    return self.parse(bytes(received[4:]))
            self.poller.register(self.channel, select.POLLIN | (select.POLLOUT if unsent else 0))
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                self.fail(f"timeout: {self.settings['wall_seconds']:g} s of wall time")
            events = dict(self.poller.poll(1000 * min(remaining, WATCH_SECONDS)))
            if time.monotonic() >= self.next_look:
                self.watch_memory()
                self.next_look = time.monotonic() + WATCH_SECONDS
            if events.get(self.output):
                self.drain()
            if self.listener is not None and events.get(self.listener, 0) & select.POLLIN:
                self.count_shared()
            state = events.get(self.channel.fileno(), 0)
            if state & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self.receive(received)
            elif state & select.POLLOUT:
                with contextlib.suppress(BlockingIOError, ConnectionError):  # a closed channel shows when reading
                    unsent = unsent[self.channel.send(unsent[: 1 << 16]) :]

    def receive(self, received: bytearray) -> None:
        try:
            part = self.channel.recv(1 << 20)
        except ConnectionError:
            part = b""
        if not part:
            self.fail(self.how_it_ended())
        received += part

    def drain(self) -> None:
        part = os.read(self.output, 1 << 16)
        self.printed += len(part)
        if not part:
            self.poller.unregister(self.output)
        if self.printed > self.settings["output_kb"] * 1024:
            self.fail(f"the program printed more than {self.settings['output_kb']} kB")

    def parse(self, content: bytes) -> Value:
        try:
            reply = json.loads(content)
            assert isinstance(reply, dict)
        except (ValueError, AssertionError, RecursionError, MemoryError):
            self.fail("the program wrote to the checker's channel")
        return reply

    def how_it_ended(self) -> str:
        """Why the candidate's process is gone, or only its end of the channel: the checker may not signal it."""
        return how_it_ended(self.pid, "the program", self.settings["cpu_seconds"])

    def value(self, reply: Value) -> Any:
        """The JSON value in a reply; raises what the program raised, if it is a built-in kind of exception."""
        if "error" not in reply:
            if "value" not in reply:
                self.fail("the program wrote to the checker's channel")
            return reply["value"]
        kinds, text = reply["error"], str(reply.get("text"))
        if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
            self.fail("the program wrote to the checker's channel")
        if reply.get("fatal") or not {"StopIteration", "StopAsyncIteration"}.isdisjoint(kinds):
            # the latter would end a loop of the tests over calls, as in `all(map(f, cases))`, as if all had been made
            self.fail(f"the program raised {kinds[0]}: {text}")
        for name in kinds:
            if name in BUILTIN_ERRORS:
                raise BUILTIN_ERRORS[name](text if name == kinds[0] else f"{kinds[0]}: {text}")
        raise RuntimeError(f"{kinds[0]}: {text}")

    def operate(self, operation: str, handle: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        message = {
            "operation": operation,
            "handle": handle,
            "args": [self.values.encode(arg) for arg in args],
            "kwargs": {name: self.values.encode(arg) for name, arg in kwargs.items()},
        }
        reply = self.request(message)
        result = self.value(reply)
        try:
            for place, now in reply.get("changed", []):
                replace_content(kwargs[place] if isinstance(place, str) else args[place], self.values.decode(now))
            return self.values.decode(result)
        # a hostile answer may break the decoding in any way, which no test may take for an error that it expects
        except Exception as error:
            self.fail(f"the program's answer cannot be read: {error!r}")

    def run(self, job: dict[str, Any]) -> None:
        """Loads the program, then runs the tests here, with the program's names as stand-ins."""
        found = self.value(self.request({"program": job["program"], "names": job["names"]}))
        missing = [name for name in job["names"] if name not in found]
        if missing:
            self.fail(f"the program does not define {', '.join(missing)}")
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["preamble"], "<preamble>", "exec"), space)
        # only what was asked for: a program's own `len` or `__builtins__` must not replace those of the tests
        space.update({name: self.values.decode(found[name]) for name in job["names"]})
        exec(compile(job["tests"], "<tests>", "exec"), space)
        if self.failure:
            raise self.failure


def how_it_ended(pid: int, who: str, cpu_seconds: int) -> str:
    """Why a child of this process is gone, or only its end of the channel between them."""
    deadline = time.monotonic() + END_SECONDS
    ended, status, used = os.wait4(pid, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.002)
        ended, status, used = os.wait4(pid, os.WNOHANG)
    if not ended:
        return f"{who} closed its channel"
    if os.WIFEXITED(status):
        return f"{who} ended by itself with status {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    # by SIGKILL alone if it does not listen to the other, as the first process of a namespace does not
    if number == signal.SIGXCPU or (number == signal.SIGKILL and used.ru_utime + used.ru_stime >= cpu_seconds):
        return f"timeout: {cpu_seconds} s of CPU time"
    known = number in set(signal.Signals)  # which holds the first and the last real-time signal alone
    name = signal.Signals(number).name if known else f"signal {number}"
    return f"{who} was ended by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def replace_content(old: Any, new: Any) -> None:
    """What the program did in place to an argument, done to the checker's copy, which may be of a subclass
    (`defaultdict`) that crossed as what it is based on."""
    if not isinstance(old, type(new)) or not isinstance(old, MUTABLE):
        raise TypeError(f"{type(old).__name__} cannot become {type(new).__name__}")
    old.clear()
    old.update(new) if isinstance(old, dict | set) else old.extend(new)


def check(job: dict[str, Any], checker: Checker) -> dict[str, Any]:
    try:
        checker.run(job)
    except BaseException as error:  # a failed assertion, or anything else that ends the tests
        reason = checker.failure or f"{type(error).__name__}: {str(error)[:300] or failing_line(error, job['tests'])}"
        return {"passed": False, "reason": str(reason)[:MAX_REASON]}
    return {"passed": True, "reason": "all tests passed"}


def failing_line(error: BaseException, tests: str) -> str:
    lines, traceback = tests.splitlines(), error.__traceback__
    found = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<tests>" and traceback.tb_lineno <= len(lines):
            found = lines[traceback.tb_lineno - 1].strip()
        traceback = traceback.tb_next
    return found[:300]


def run_checker(settings: dict[str, Any], user: int, processes: int | None) -> NoReturn:
    """One job: forks the candidate first, so that its memory has never held the tests, then reads the job."""
    ours, theirs = socket.socketpair()
    output, printed = os.pipe()
    os.umask(0)  # two users share the folder
    pid = os.fork()
    if pid == 0:
        become_candidate(settings, user + 1, theirs.detach(), printed)
    theirs.close()
    os.close(printed)
    listener = None
    if settings["isolate"]:
        drop_privileges(user)
        install_filter(settings["checker_filter"])
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    else:
        die_with_parent()
    job = read_job(KEEPER_CHANNEL)
    if job is None:
        leave(settings, pid, END_OF_JOBS)
    header, content = job
    os.dup2(0, 2)  # to /dev/null, as standard output: what tests print is nobody's business
    verdict = check(json.loads(content), Checker(pid, ours, output, processes, listener, settings))
    write_all(KEEPER_CHANNEL, answer(header, verdict))
    leave(settings, pid, 0)


def become_candidate(settings: dict[str, Any], user: int, channel: int, printed: int) -> NoReturn:
    try:
        os.setsid()
        if settings["isolate"]:
            drop_privileges(user)
            listener = install_filter(settings["candidate_filter"], SECCOMP_FILTER_FLAG_NEW_LISTENER)
            with socket.socket(fileno=os.dup(channel)) as connection:
                socket.send_fds(connection, [b"."], [listener])
        else:
            die_with_parent()
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.dup2(channel, PROGRAM_CHANNEL)
        # the listener, too, or the program would decide on its own requests
        os.closerange(PROGRAM_CHANNEL + 1, 256)
        os.environ.clear()
        os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd(), PATH="/usr/bin:/bin", OPENBLAS_NUM_THREADS="1")
        tempfile.tempdir = None
        sys.argv = ["program"]
        run_candidate(PROGRAM_CHANNEL)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def leave(settings: dict[str, Any], pid: int, status: int) -> NoReturn:
    """Ends this job's processes: with namespaces the kernel does it, because the checker is PID 1."""
    if not settings["isolate"]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(status)


# -- system calls ----------------------------------------------------------------------------------------------

# linux/seccomp.h, linux/bpf_common.h, linux/audit.h, asm-generic/mman-common.h
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8
SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_USER_NOTIF = 0x80000000, 0x7FC00000
SECCOMP_RET_ERRNO, SECCOMP_RET_ALLOW = 0x00050000, 0x7FFF0000
SECCOMP_IOCTL_NOTIF_RECV, SECCOMP_IOCTL_NOTIF_SEND = 0xC0502100, 0xC0182101
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
NOTICE = struct.Struct("=QIIiIQ6Q")  # id, pid, flags; number, architecture, instruction pointer, arguments
NOTICE_RESPONSE = struct.Struct("=QqiI")  # id, value, error, flags
BPF_LOAD, BPF_AND, BPF_RETURN = 0x20, 0x54, 0x06
BPF_JUMP, BPF_JUMP_EQUAL, BPF_JUMP_AT_LEAST = 0x05, 0x15, 0x35
X32_CALLS = 0x40000000  # the second numbering of x86-64
MAP_SHARED_ANONYMOUS, MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x21, 0x40000, 0x4, 0o4000
CLONE_NEW_ANY = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | 0x02000000
AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
ALL_BITS = 0xFFFFFFFF

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # `uname -m`: AUDIT_ARCH

# Name, number on x86-64, number on AArch64 ("-": it has no such call). What Docker's default profile refuses to a
# container without capabilities; io_uring and keyrings; vmsplice, by which a pipe holds pages that no process has;
# pidfd_send_signal, for a socket tells its other end's process (SO_PEERPIDFD), and that is the checker.
REFUSED = """
acct 163 89; add_key 248 217; adjtimex 159 171; bpf 321 280; chroot 161 51; clock_adjtime 305 266;
clock_settime 227 112; delete_module 176 106; fanotify_init 300 262; finit_module 313 273; fsconfig 431 431;
fsmount 432 432; fsopen 430 430; fspick 433 433; get_mempolicy 239 236; init_module 175 105; io_uring_enter 426 426;
io_uring_register 427 427; io_uring_setup 425 425; ioperm 173 -; iopl 172 -; kcmp 312 272; kexec_file_load 320 294;
kexec_load 246 104; keyctl 250 219; lookup_dcookie 212 18; mbind 237 235; memfd_secret 447 447; migrate_pages 256 238;
modify_ldt 154 -; mount 165 40; mount_setattr 442 442; move_mount 429 429; move_pages 279 239;
name_to_handle_at 303 264; open_by_handle_at 304 265; open_tree 428 428; perf_event_open 298 241; personality 135 92;
pidfd_getfd 438 438; pidfd_send_signal 424 424; pivot_root 155 41; process_madvise 440 440; process_vm_readv 310 270;
process_vm_writev 311 271;
ptrace 101 117; quotactl 179 60; quotactl_fd 443 443; reboot 169 142; request_key 249 218; set_mempolicy 238 237;
set_mempolicy_home_node 450 450; setdomainname 171 162; sethostname 170 161; setns 308 268; settimeofday 164 170;
swapoff 168 225; swapon 167 224; syslog 103 116; umount2 166 39; unshare 272 97; userfaultfd 323 282; vhangup 153 58;
vmsplice 278 75
"""
# those that are allowed or not by their arguments, and seccomp itself
OTHERS = """
clone 56 220; clone3 435 435; kill 62 129; memfd_create 319 279; mmap 9 222; msgget 68 186; pidfd_open 434 434;
prlimit64 302 261; rt_sigqueueinfo 129 138; rt_tgsigqueueinfo 297 240; seccomp 317 277; semget 64 190; shmget 29 194;
socket 41 198; socketpair 53 199; tgkill 234 131; tkill 200 130
"""


def read_numbers(table: str) -> dict[str, dict[str, int]]:
    """The numbers of the calls of a table, by machine and name."""
    rows = [entry.split() for entry in table.split(";")]
    return {
        machine: {row[0]: int(row[place]) for row in rows if row[place] != "-"}
        for place, machine in enumerate(ARCHITECTURES, start=1)
    }


REFUSED_NUMBERS, OTHER_NUMBERS = read_numbers(REFUSED), read_numbers(OTHERS)


def call_numbers(machine: str) -> dict[str, int]:
    return {**REFUSED_NUMBERS[machine], **OTHER_NUMBERS[machine]}


class Rule(NamedTuple):
    """Returns `action` for a call, if an argument's `mask` is (or, with `unless`, is not) one of `values`."""

    name: str
    action: int
    argument: int | None = None
    values: tuple[int, ...] = ()
    mask: int = ALL_BITS
    unless: bool = False


def filter_rules(shared: int, machine: str) -> list[Rule]:
    """The rules for tests and program, which differ in what becomes of a request for shared memory."""

    def refuse(code: int) -> int:
        return SECCOMP_RET_ERRNO | code

    return [
        *(Rule(name, refuse(errno.EPERM)) for name in REFUSED_NUMBERS[machine]),
        Rule("clone3", refuse(errno.ENOSYS)),  # its flags are in memory; libc then uses clone
        Rule("clone", refuse(errno.EPERM), 0, (0,), CLONE_NEW_ANY, unless=True),
        Rule("socket", refuse(errno.EAFNOSUPPORT), 0, (AF_UNIX, AF_INET, AF_INET6), unless=True),
        Rule("socketpair", refuse(errno.EAFNOSUPPORT), 0, (AF_UNIX,), unless=True),
        # PID 1, the checker, which an ordinary user's program shares its user with
        *(
            Rule(name, refuse(errno.EPERM), 0, (1,))
            for name in ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "prlimit64")
        ),
        Rule("mmap", refuse(errno.ENOMEM), 3, (MAP_HUGETLB,), MAP_HUGETLB),
        Rule("memfd_create", refuse(errno.ENOMEM), 1, (MFD_HUGETLB,), MFD_HUGETLB),
        Rule("shmget", refuse(errno.ENOMEM), 2, (SHM_HUGETLB,), SHM_HUGETLB),
        Rule("mmap", shared, 3, (MAP_SHARED_ANONYMOUS,), MAP_SHARED_ANONYMOUS),
        *(Rule(name, shared) for name in ("memfd_create", "shmget", "msgget", "semget")),
    ]


def requested_bytes(number: int, arguments: Sequence[int], settings: dict[str, Any]) -> int:
    """The most memory that a call may come to hold; for a memfd the limit on a file's size holds."""
    numbers = call_numbers(platform.machine())
    if number in (numbers["mmap"], numbers["shmget"]):
        page = resource.getpagesize()
        return -(-arguments[1] // page) * page
    if number == numbers["memfd_create"]:
        return int(settings["file_mb"]) * 2**20
    semaphores = arguments[1] if number == numbers["semget"] else 0
    return max(64 * 2**10, 64 * semaphores)  # the kernel aligns each to a cache line


def build_filter(rules: Sequence[Rule], machine: str) -> bytes:
    """A seccomp filter in classic BPF: the first rule that fits decides, other calls are allowed.

    Written out rather than made by libseccomp, which not every machine has; a test compares the numbers with it.
    """
    architecture, numbers = ARCHITECTURES[machine], call_numbers(machine)

    def step(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    load_number = step(BPF_LOAD, 0)
    program = [
        step(BPF_LOAD, 4),
        step(BPF_JUMP_EQUAL, architecture, true=1),
        step(BPF_RETURN, SECCOMP_RET_KILL_PROCESS),
        load_number,
    ]
    if machine == "x86_64":
        program += [step(BPF_JUMP_AT_LEAST, X32_CALLS, false=1), step(BPF_RETURN, SECCOMP_RET_ERRNO | errno.ENOSYS)]
    for rule in rules:
        decide = [step(BPF_RETURN, rule.action)]
        if rule.argument is not None:
            count = len(rule.values)
            decide = [
                step(BPF_LOAD, 16 + 8 * rule.argument),  # the lower half, on a little-endian machine
                step(BPF_AND, rule.mask),
                # a value that is equal leads to the action or, with `unless`, past it
                *(step(BPF_JUMP_EQUAL, value, true=count - place) for place, value in enumerate(rule.values)),
                *([] if rule.unless else [step(BPF_JUMP, 1)]),
                *decide,
                load_number,
            ]
        program += [step(BPF_JUMP_EQUAL, numbers[rule.name], false=len(decide)), *decide]
    program.append(step(BPF_RETURN, SECCOMP_RET_ALLOW))
    return b"".join(program)


class FilterProgram(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install_filter(content: bytes, flags: int = 0) -> int:
    """Holds for this process and all that it starts, for good. With NEW_LISTENER: the descriptor to listen on."""
    number = call_numbers(platform.machine())["seccomp"]
    program = FilterProgram(len(content) // 8, content)
    result: int = libc.syscall(number, SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(program))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: {os.strerror(code)}")
    return result


def new_session_keyring() -> None:
    """Leaves the keyring of whoever started the run."""
    try:
        call(libc.syscall, call_numbers(platform.machine())["keyctl"], KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):  # without keyrings, or refused to us: then to programs, too
            raise


# -- limits and namespaces -----------------------------------------------------------------------------------


def call(function: Any, *args: Any) -> None:
    """A libc call that returns -1 and sets errno on failure; OSError then."""
    if function(*args) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{function.__name__}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    call(libc.mount, source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def make_read_only(path: str, flags: int = 0) -> None:
    """Read-only, no set-uid programs: the mount and, with AT_RECURSIVE, all below it (Linux 5.12)."""
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    call(libc.syscall, SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, attributes, len(attributes))


def enter_namespaces() -> None:
    """New mount, network (no interface is up), IPC and host-name namespaces; a user namespace if not root."""
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    user, group = os.geteuid(), os.getegid()
    call(libc.unshare, flags if user == 0 else flags | CLONE_NEWUSER)
    if user != 0:
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)


def build_root(readable: list[str]) -> None:
    """A file system of its own: interpreter and system libraries, read-only, three devices, an empty /box.

    Not /dev/zero: to map it shared makes memory that `count_shared` does not see.
    """
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    root = "/proc"  # any folder that holds none of `readable`
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for path in readable:
        target = root + path
        if os.path.islink(path):  # /lib -> usr/lib
            os.symlink(os.readlink(path), target)
            continue
        if os.path.lexists(target):  # below another one
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            open(target, "x").close()
        mount(path, target, "", MS_BIND | MS_REC)
        make_read_only(target, AT_RECURSIVE)
    os.makedirs(root + "/dev")
    for device in ("null", "random", "urandom"):
        open(f"{root}/dev/{device}", "x").close()
        mount(f"/dev/{device}", f"{root}/dev/{device}", "", MS_BIND)
    os.mkdir(root + "/box")
    if not os.path.lexists(root + "/tmp"):  # it exists where the interpreter lies below /tmp
        os.symlink("box", root + "/tmp")
    os.chdir(root)
    call(libc.pivot_root, b".", b".")
    call(libc.umount2, b".", MNT_DETACH)
    os.chdir("/")
    make_read_only("/")


def drop_privileges(user: int) -> None:
    """No capability nor a way to gain one, not traceable, ends with the keeper; root becomes another user."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    call(libc.capset, header, nothing)
    call(libc.prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
    die_with_parent()


def die_with_parent() -> None:
    """SIGKILL when the parent ends; a change of user clears this, so call it after."""
    if sys.platform == "linux":
        call(libc.prctl, PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def set_limits(settings: dict[str, Any]) -> None:
    """Per process. The number of processes only with namespaces: without, it is the user's in all."""
    limits = {
        resource.RLIMIT_CPU: (settings["cpu_seconds"], settings["cpu_seconds"] + 1),
        resource.RLIMIT_AS: (settings["memory_mb"] * 2**20,) * 2,
        resource.RLIMIT_FSIZE: (settings["file_mb"] * 2**20,) * 2,
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    if settings["isolate"]:
        limits[resource.RLIMIT_NPROC] = (settings["processes"],) * 2
    for limit, wanted in limits.items():
        _, most = resource.getrlimit(limit)
        assert min(wanted) >= 0, (limit, wanted)  # -1 would be no limit
        soft, hard = wanted if most == resource.RLIM_INFINITY else (min(part, most) for part in wanted)
        resource.setrlimit(limit, (soft, hard))


def open_process_list(folder: str) -> int | None:
    """A descriptor of this namespace's /proc, mounted nowhere; None where a container forbids to mount it.

    The candidate closes it before its program starts.
    """
    try:
        mount("proc", folder, "proc", MS_NOSUID | MS_NODEV)
    except PermissionError:
        return None
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    call(libc.umount2, folder.encode(), MNT_DETACH)
    return fd


def prepare_keeper(settings: dict[str, Any], user: int) -> tuple[int, int]:
    """Forks a keeper that gets everything ready for a job: its process, and the descriptor that gives it its turn."""
    turn, give = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(give)
            run_keeper(settings, user, turn)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    os.close(turn)
    return pid, give


def run_keeper(settings: dict[str, Any], user: int, turn: int) -> NoReturn:
    """Forks the checker as PID 1 of new namespaces (or, without namespaces, into a folder of its own)."""
    die_with_parent()
    if settings["isolate"]:
        folder = "/box"
        call(libc.unshare, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC)
    else:
        folder = tempfile.mkdtemp(dir=settings["folder"])
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            # no process that runs tests or a program has the way to the parent or to another keeper
            os.dup2(theirs.detach(), KEEPER_CHANNEL, inheritable=False)
            os.closerange(KEEPER_CHANNEL + 1, 256)
            ours.detach()
            processes = None
            if settings["isolate"]:
                processes = open_process_list(folder)
                options = f"mode=0777,size={settings['file_mb']}m,nr_inodes=1024"
                mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
                new_session_keyring()
            elif sys.platform == "linux":
                call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
            os.chdir(folder)
            set_limits(settings)
            run_checker(settings, user, processes)
        except BaseException:  # to the run's standard error, until there is a job
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    theirs.close()
    status = relay(ours, pid, settings["cpu_seconds"]) if os.read(turn, 1) else END_OF_JOBS
    with contextlib.suppress(ChildProcessError):  # it has been waited for
        if os.waitpid(pid, os.WNOHANG) == (0, 0):  # also if it closed its channel and goes on
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if not settings["isolate"]:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(status)


def relay(checker: socket.socket, pid: int, cpu_seconds: int) -> int:
    """Hands one job to the checker and its verdict, or why there is none, to the parent; how the keeper is to end."""
    job = read_job(CHANNEL)
    if job is None:
        return END_OF_JOBS
    header, content = job
    with contextlib.suppress(ConnectionError):  # a checker that is gone shows when reading
        checker.sendall(header + content)
    reply = b""
    while len(reply) <= MAX_VERDICT:
        ready, _, _ = select.select([checker.fileno(), CHANNEL], [], [])
        if CHANNEL in ready:  # the parent sends nothing before it has the verdict: it is gone
            return END_OF_JOBS
        try:
            part = checker.recv(1 << 16)
        except ConnectionError:
            part = b""
        if not part:
            break
        reply += part
    if not reply:
        reply = answer(header, {"passed": False, "reason": how_it_ended(pid, "the tests' process", cpu_seconds)})
    if not is_verdict(reply, header):
        return IRREGULAR
    write_all(CHANNEL, reply)
    return 0


def is_verdict(reply: bytes, header: bytes) -> bool:
    """Whether this is one verdict, on the job with this header, and nothing else."""
    if len(reply) < HEADER.size or len(reply) > MAX_VERDICT:
        return False
    number, nonce, length = HEADER.unpack_from(reply)
    if (number, nonce) != HEADER.unpack(header)[:2] or length != len(reply) - HEADER.size:
        return False
    try:
        verdict = json.loads(reply[HEADER.size :])
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(verdict, dict)
        and verdict.keys() == {"passed", "reason"}
        and isinstance(verdict["passed"], bool)
        and isinstance(verdict["reason"], str)
    )


def preload() -> None:
    """What programs import most, once instead of in every candidate."""
    for name in PRELOADED:
        importlib.import_module(name)
    random.seed(0)
    gc.collect()
    gc.freeze()


def main() -> int:
    settings = json.loads(sys.argv[1])
    if settings["channel"] != CHANNEL:
        os.dup2(settings["channel"], CHANNEL)
        os.close(settings["channel"])
    os.set_inheritable(CHANNEL, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.extend(settings["packages"])
    preload()
    hello = HEADER.pack(0, bytes(16), 0)
    try:
        if settings["isolate"]:
            machine = platform.machine()
            if machine not in ARCHITECTURES:
                raise OSError(errno.ENOSYS, f"no filter of system calls is known for {machine}")
            settings["checker_filter"] = build_filter(filter_rules(SECCOMP_RET_ERRNO | errno.ENOMEM, machine), machine)
            settings["candidate_filter"] = build_filter(filter_rules(SECCOMP_RET_USER_NOTIF, machine), machine)
            enter_namespaces()
            build_root(settings["readable"])
    except OSError as error:
        write_all(CHANNEL, answer(hello, {"problem": f"{error} (Linux {platform.release()})"}))
        return 0
    write_all(CHANNEL, answer(hello, {"problem": None}))
    user = TRANSIENT_USERS[os.getpid() % len(TRANSIENT_USERS)]  # the limit on processes counts by user
    pid, turn = prepare_keeper(settings, user)
    for number in itertools.count(1):
        following = prepare_keeper(settings, user + 2 * (number % 2))
        os.write(turn, b".")
        os.close(turn)
        _, status = os.waitpid(pid, 0)
        if status != 0:  # no more jobs, or none that the parent could trust this server with
            break
        pid, turn = following
    code = os.waitstatus_to_exitcode(status)
    return 0 if code == END_OF_JOBS else code if code > 0 else 128 - code  # by a signal, as shells say it


if __name__ == "__main__":
    sys.exit(main())
