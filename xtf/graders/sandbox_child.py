"""The program that runs inside the sandbox (see `xtf.graders.sandbox` for the design and the trust model).

Started with the standard library only, so that a fork is cheap and holds nothing of the parent's:

    server     started once per worker; enters the namespaces, builds the file system, forks a keeper per job
    keeper     moves into a fresh PID and mount namespace, forks the checker there, waits for it
    checker    PID 1 there; reads a job, runs the *tests*, writes the verdict; its end kills the namespace
    candidate  runs the model's *program*, answers the checker's calls; never sees the tests
"""

# pathlib is not worth its import here
# ruff: noqa: PTH102, PTH103, PTH109, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211

from __future__ import annotations

import builtins
import contextlib
import ctypes
import gc
import importlib
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
import time
import types
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

Value = Any  # what JSON holds
MAX_FRAME = 64 * 2**20  # bytes of one message
EXIT_END_OF_JOBS = 3
WATCH_SECONDS = 0.05  # between looks at the memory of all of a job's processes
MUTABLE = (list, dict, set, deque, bytearray)

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = 1, 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CAPABILITY_VERSION_3 = 0x20080522
TRANSIENT_USERS = range(61184, 65520)  # set aside for short-lived users by systemd; no account has them

PRELOADED = (
    *("bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions"),
    *(
        "functools",
        "hashlib",
        "heapq",
        "itertools",
        "math",
        "operator",
        "re",
        "statistics",
        "string",
        "typing",
    ),
)

libc = ctypes.CDLL(None, use_errno=True)


# -- messages ------------------------------------------------------------------------------------------------


def pack(message: Value) -> bytes:
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
    """The next message, None at the end of the stream."""
    header = read_exactly(fd, 4)
    if len(header) < 4:
        return None
    (length,) = struct.unpack("!I", header)
    content = read_exactly(fd, length)
    return json.loads(content) if len(content) == length else None


def write_all(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


# -- values --------------------------------------------------------------------------------------------------


class Values:
    """Python values as JSON and back, so that checker and candidate share data but never code.

    Plain data is copied. Everything else (functions, classes, instances, iterators) stays where it is and
    crosses as a handle: a number in the candidate's table, a `Remote` at the checker's.
    """

    def __init__(self, remote: Checker | None = None) -> None:
        self.remote = remote
        self.objects: list[Any] = []

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
        if isinstance(value, Fraction | Decimal):
            return {"Fraction" if isinstance(value, Fraction) else "Decimal": str(value)}
        if isinstance(value, range):
            return {"range": [self.encode(part) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] in sys.stdlib_module_names:
            return {"module": value.__name__}
        if isinstance(value, Remote):
            return {"handle": object.__getattribute__(value, "_handle")}
        name = getattr(value, "__name__", "")
        if isinstance(value, type | types.BuiltinFunctionType) and vars(builtins).get(name) is value:
            return {"builtin": name}
        if self.remote is not None:
            raise TypeError(f"a test passes a {type(value).__name__} to the program: only data can be passed")
        self.objects.append(value)
        return {"handle": len(self.objects) - 1}

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
            case "Fraction" | "Decimal":
                return {"Fraction": Fraction, "Decimal": Decimal}[kind](content)
            case "module" if content.partition(".")[0] in sys.stdlib_module_names:
                return importlib.import_module(content)
            case "builtin":
                return vars(builtins)[content]
            case "handle":
                return self.objects[content] if self.remote is None else Remote(self.remote, content)
        raise ValueError(f"unknown kind of value {kind!r}")


class Remote:
    """The checker's stand-in for an object of the candidate; equality is identity."""

    def __init__(self, checker: Checker, handle: int) -> None:
        object.__setattr__(self, "_checker", checker)
        object.__setattr__(self, "_handle", handle)

    def _do(self, operation: str, *args: Any, **kwargs: Any) -> Any:
        checker = object.__getattribute__(self, "_checker")
        return checker.operate(operation, object.__getattribute__(self, "_handle"), args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._do("call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __bool__(self) -> bool:
        return bool(self._do("bool"))

    def __len__(self) -> int:
        return int(self._do("len"))

    def __iter__(self) -> Remote:
        iterator = self._do("iter")
        assert isinstance(iterator, Remote)
        return iterator

    def __next__(self) -> Any:
        return self._do("next")


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": lambda target, key: target[key],
    "bool": bool,
    "len": len,
    "iter": iter,
    "next": next,
}


# -- the candidate -------------------------------------------------------------------------------------------


def run_candidate(channel: int) -> NoReturn:
    """Runs the program it is sent, then serves calls until it is killed."""
    values = Values()
    message = read_frame(channel)
    try:
        module = types.ModuleType("candidate")
        sys.modules["candidate"] = module
        exec(compile(message["program"], "<program>", "exec"), module.__dict__)
        names = {name: values.encode(value) for name, value in vars(module).items() if not name.startswith("__")}
        reply = {"value": names}
    except BaseException as error:  # whatever the program does must reach the checker as a failure
        reply = describe(error)
    write_all(channel, pack(reply))
    while (message := read_frame(channel)) is not None:
        write_all(channel, pack(serve(values, message)))
    os._exit(0)


def serve(values: Values, message: Value) -> Value:
    try:
        args = [values.decode(part) for part in message["args"]]
        kwargs = {name: values.decode(part) for name, part in message["kwargs"].items()}
        result = OPERATIONS[message["operation"]](values.objects[message["handle"]], *args, **kwargs)
        changed = {}
        for place, (arg, sent) in enumerate(zip(args, message["args"], strict=True)):
            if isinstance(arg, MUTABLE) and (now := values.encode(arg)) != sent:
                changed[place] = now
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
        self, pid: int, channel: socket.socket, output: int, processes: int | None, settings: dict[str, Any]
    ) -> None:
        self.pid, self.channel, self.output, self.processes = pid, channel, output, processes
        self.deadline = time.monotonic() + settings["wall_seconds"]
        self.settings = settings
        self.next_look = time.monotonic() + WATCH_SECONDS
        self.printed = 0
        self.failure: FailureError | None = None
        self.values = Values(self)
        channel.setblocking(False)

    def watch_memory(self) -> None:
        """Ends the job when all its processes together hold more than the limit (which each alone cannot)."""
        if self.processes is None:
            return
        pages = 0
        for name in os.listdir(self.processes):
            with contextlib.suppress(OSError):  # it has just ended
                fd = os.open(f"{name}/statm", os.O_RDONLY, dir_fd=self.processes) if name.isdigit() else -1
                if fd >= 0:
                    _, resident, shared = os.read(fd, 200).split()[:3]
                    pages += int(resident) - int(shared)
                    os.close(fd)
        if pages * resource.getpagesize() > self.settings["memory_mb"] * 2**20:
            self.fail(f"the program's processes hold more than {self.settings['memory_mb']} MB")

    def fail(self, reason: str) -> NoReturn:
        self.failure = self.failure or FailureError(reason)  # a test that catches everything cannot undo it
        raise self.failure

    def request(self, message: Value) -> Value:
        """Sends a message and waits for the answer, draining what the candidate prints."""
        if self.failure:
            raise self.failure
        unsent, received = memoryview(pack(message)), bytearray()
        poller = select.poll()
        poller.register(self.output, select.POLLIN)
        while True:
            if len(received) >= 4:
                (length,) = struct.unpack_from("!I", received)
                if length > MAX_FRAME:
                    self.fail("the program's answer is too large")
                if len(received) >= 4 + length:
                    return self.parse(bytes(received[4 : 4 + length]))
            poller.register(self.channel, select.POLLIN | (select.POLLOUT if unsent else 0))
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                self.fail(f"timeout: {self.settings['wall_seconds']:g} s of wall time")
            events = dict(poller.poll(1000 * min(remaining, WATCH_SECONDS)))
            if time.monotonic() >= self.next_look:
                self.watch_memory()
                self.next_look = time.monotonic() + WATCH_SECONDS
            if events.get(self.output):
                self.drain(poller)
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

    def drain(self, poller: select.poll) -> None:
        part = os.read(self.output, 1 << 16)
        self.printed += len(part)
        if not part:
            poller.unregister(self.output)
        if self.printed > self.settings["output_kb"] * 1024:
            self.fail(f"the program printed more than {self.settings['output_kb']} kB")

    def parse(self, content: bytes) -> Value:
        try:
            reply = json.loads(content)
            assert isinstance(reply, dict)
        except (ValueError, AssertionError, RecursionError):
            self.fail("the program wrote to the checker's channel")
        return reply

    def how_it_ended(self) -> str:
        """Why the candidate's process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # it may have closed the channel and live on
        _, status = os.waitpid(self.pid, 0)
        if os.WIFEXITED(status):
            return f"the program ended by itself with status {os.WEXITSTATUS(status)}"
        if os.WTERMSIG(status) == signal.SIGXCPU:
            return f"timeout: {self.settings['cpu_seconds']} s of CPU time"
        return f"the program was ended by {signal.Signals(os.WTERMSIG(status)).name}"

    def value(self, reply: Value) -> Any:
        """The value in a reply; raises what the program raised, if it is a built-in kind of exception."""
        if "error" not in reply:
            return reply["value"]
        kinds, text = [str(kind) for kind in reply["error"]], str(reply.get("text"))
        if reply.get("fatal"):
            self.fail(f"the program raised {kinds[0]}: {text}")
        for name in kinds:
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
                raise kind(text) if name == kinds[0] else kind(f"{kinds[0]}: {text}")
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
            for place, now in reply.get("changed", {}).items():
                replace_content(args[int(place)], self.values.decode(now))
            return self.values.decode(result)
        except (TypeError, ValueError, LookupError, AttributeError, ImportError, RecursionError) as error:
            self.fail(f"the program's answer cannot be read: {error!r}")

    def run(self, job: dict[str, Any]) -> None:
        """Loads the program, then runs the tests here, with the program's names as stand-ins."""
        names = self.value(self.request({"program": job["program"]}))
        missing = [name for name in job["names"] if name not in names]
        if missing:
            self.fail(f"the program does not define {', '.join(missing)}")
        space: dict[str, Any] = {"__name__": "tests"}
        exec(compile(job["preamble"], "<preamble>", "exec"), space)
        # only what was asked for: a program's own `len` or `__builtins__` must not replace those of the tests
        space.update({name: self.values.decode(names[name]) for name in job["names"]})
        exec(compile(job["tests"], "<tests>", "exec"), space)
        if self.failure:
            raise self.failure


def replace_content(old: Any, new: Any) -> None:
    """What the program did in place to an argument, done to the checker's copy."""
    if type(old) is not type(new) or not isinstance(old, MUTABLE):
        raise TypeError(f"{type(old).__name__} cannot become {type(new).__name__}")
    old.clear()
    old.update(new) if isinstance(old, dict | set) else old.extend(new)


def check(job: dict[str, Any], checker: Checker) -> dict[str, str]:
    try:
        checker.run(job)
    except FailureError as failure:
        return {"verdict": "failed", "reason": str(failure)}
    except BaseException as error:  # a failed assertion, or anything else that ends the tests
        reason = checker.failure or f"{type(error).__name__}: {str(error)[:300] or failing_line(error, job['tests'])}"
        return {"verdict": "failed", "reason": str(reason)}
    return {"verdict": "passed", "reason": "all tests passed"}


def failing_line(error: BaseException, tests: str) -> str:
    lines, traceback = tests.splitlines(), error.__traceback__
    found = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<tests>" and traceback.tb_lineno <= len(lines):
            found = lines[traceback.tb_lineno - 1].strip()
        traceback = traceback.tb_next
    return found[:300]


def run_checker(settings: dict[str, Any], processes: int | None) -> NoReturn:
    """One job: forks the candidate first, so that its memory has never held the tests, then reads the job."""
    ours, theirs = socket.socketpair()
    output, printed = os.pipe()
    pid = os.fork()
    if pid == 0:
        become_candidate(theirs.fileno(), printed)
    theirs.close()
    os.close(printed)
    job = read_frame(0)
    if job is None:
        leave(settings, pid, EXIT_END_OF_JOBS)
    write_all(1, pack(check(job, Checker(pid, ours, output, processes, settings))))
    leave(settings, pid, 0)


def become_candidate(channel: int, printed: int) -> NoReturn:
    try:
        die_with_parent()
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        channel = os.dup2(channel, 3)
        os.closerange(4, 256)
        os.environ.clear()
        os.environ.update(HOME=os.getcwd(), TMPDIR=os.getcwd(), PATH="/usr/bin:/bin", OPENBLAS_NUM_THREADS="1")
        tempfile.tempdir = None
        sys.argv = ["program"]
        run_candidate(channel)
    finally:
        os._exit(1)


def leave(settings: dict[str, Any], pid: int, status: int) -> NoReturn:
    """Ends this job's processes: with namespaces the kernel does it, because the checker is PID 1."""
    if not settings["isolate"]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    os._exit(status)


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
    """A file system of its own: interpreter and system libraries, read-only, four devices, an empty /box."""
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
    for device in ("null", "zero", "random", "urandom"):
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
    for limit, (soft, hard) in limits.items():
        with contextlib.suppress(ValueError):  # the inherited hard limit is lower still
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


def run_keeper(settings: dict[str, Any], user: int) -> NoReturn:
    """Forks the checker as PID 1 of a new namespace (or, without namespaces, into a folder of its own)."""
    die_with_parent()
    if settings["isolate"]:
        folder = "/box"
        call(libc.unshare, CLONE_NEWPID | CLONE_NEWNS)
    else:
        folder = tempfile.mkdtemp(dir=settings["folder"])
    pid = os.fork()
    if pid == 0:
        try:
            processes = None
            if settings["isolate"]:
                processes = open_process_list(folder)
                options = f"mode=0777,size={settings['file_mb']}m,nr_inodes=1024"
                mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, options)
            os.chdir(folder)
            if settings["isolate"]:
                drop_privileges(user)
            else:
                die_with_parent()
            set_limits(settings)
            run_checker(settings, processes)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if not settings["isolate"]:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def preload() -> None:
    """What programs import most, once instead of in every candidate."""
    for name in PRELOADED:
        importlib.import_module(name)
    random.seed(0)
    gc.collect()
    gc.freeze()


def main() -> None:
    settings = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.extend(settings["packages"])
    preload()
    try:
        if settings["isolate"]:
            enter_namespaces()
            build_root(settings["readable"])
    except OSError as error:
        write_all(1, pack({"problem": f"{error} (Linux {platform.release()})"}))
        return
    write_all(1, pack({"problem": None}))
    user = TRANSIENT_USERS[os.getpid() % len(TRANSIENT_USERS)]  # the limit on processes counts by user
    while True:
        pid = os.fork()
        if pid == 0:
            try:
                run_keeper(settings, user)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        if status != 0:  # no more jobs; or the checker died, and the parent must not wait for its verdict
            return


if __name__ == "__main__":
    main()
