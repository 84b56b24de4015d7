"""Runs programs that a model wrote against tests, so that neither the machine nor the verdict is at their mercy.

This is the side of the run: it starts servers (`sandbox_child.py`) and believes of what they send one verdict, which
bears the number and the nonce of the trial. Whatever else arrives (another number, a second verdict, anything unasked)
fails the trial and costs the worker its place: the next trial gets a new one. How program and tests are kept apart,
what is promised and what is not: docs/sandbox.md.

Without namespaces nothing runs unless the configuration allows it (`task.sandbox.allow_unsandboxed=true`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from xtf.config.checks import check_ranges
from xtf.config.schema import SandboxConfig
from xtf.runtime.interrupt import ended

CHILD = Path(__file__).with_name("sandbox_child.py")
HEADER = struct.Struct("!Q16sI")  # number of the job, nonce, length of the JSON that follows
MAX_REPLY = 64 * 2**10  # bytes
IRREGULAR = 4  # how the server ends when a tests' process wrote something other than one verdict
START_SECONDS = 30.0  # for a worker to come up
GRACE_SECONDS = 2.0  # beyond the wall limit, which the checker enforces itself
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Trial:
    """A program and its tests; `names`: all that they see of it; `preamble`: trusted code run before them."""

    program: str
    tests: str
    names: tuple[str, ...] = ()
    preamble: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a trial."""

    passed: bool
    reason: str


class NoNamespacesError(Exception):
    """The kernel does not let this process make namespaces; the message is the kernel's."""


class IrregularError(Exception):
    """A worker sent something other than the one verdict that it was asked for."""


class Worker:
    """One server process, and the trials that it runs, one at a time."""

    def __init__(self, config: SandboxConfig, isolate: bool) -> None:
        self.config, self.isolate = config, isolate
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.number = 0  # of the trial
        self.folder: tempfile.TemporaryDirectory[str] | None = None  # without namespaces only

    def settings(self, channel: int) -> dict[str, Any]:
        """What the server is told; `channel` is its descriptor of the socket to this process."""
        return {
            **dataclasses.asdict(self.config),
            "isolate": self.isolate,
            "folder": self.folder and self.folder.name,
            "readable": readable_paths(),
            "packages": package_folders(),
            "channel": channel,
        }

    def wall(self) -> list[str]:
        """The command that the server's is given to: none, or bwrap with a read-only view of the file system, nothing
        of the user's folders, no network, and the rights by which the server builds its own walls inside.

        Raises:
            ValueError: bwrap is asked for and not installed.
        """
        if not self.config.bubblewrap:
            return []
        if (bwrap := shutil.which("bwrap")) is None:
            raise ValueError("task.sandbox.bubblewrap=true: there is no bwrap on this machine (apt install bubblewrap)")
        root = os.geteuid() == 0  # who needs no user namespace; a user's own gives the server one in turn
        apart = ["pid", "net", "ipc", "uts", *([] if root else ["user"])]
        readable = [sys.prefix, *readable_paths(), str(CHILD)]
        return [
            # not --die-with-parent: it would end with the thread that started it; the server ends with its channel
            *(bwrap, *(f"--unshare-{name}" for name in apart), *(["--cap-add", "ALL"] * root)),
            *("--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),
            *(part for path in readable for part in ("--ro-bind", path, path)),
            *(["--bind", self.folder.name, self.folder.name] if self.folder else []),
            "--",
        ]

    def start(self) -> subprocess.Popen[bytes]:
        self.folder = None if self.isolate else tempfile.TemporaryDirectory(prefix="xtf-sandbox-")
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter with a shared library in an unusual place
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.channel, theirs = socket.socketpair()
        with theirs:
            settings = self.settings(theirs.fileno())
            self.process = subprocess.Popen(
                [*self.wall(), sys.executable, "-S", "-P", "-s", "-B", str(CHILD), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self.wait_until_ready(self.process)
        return self.process

    def wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        """Raises NoNamespacesError with the kernel's reason."""
        try:
            ready = self._receive(time.monotonic() + START_SECONDS, bytes(16))
        except TimeoutError as error:
            self.stop()
            raise ChildProcessError(f"the sandbox's server was not ready within {START_SECONDS:g} s") from error
        except (OSError, EOFError, IrregularError) as error:
            raise ChildProcessError(f"the sandbox's server {ended(self.stop())} before it was ready") from error
        if ready["problem"] is not None:
            self.stop()
            raise NoNamespacesError(ready["problem"])

    def run(self, trial: Trial) -> Outcome:
        if self.process is not None and (self.process.poll() is not None or self._has_something_to_say()):
            self.stop()
        if self.process is None:
            self.start()
        assert self.channel is not None
        content = json.dumps(dataclasses.asdict(trial)).encode()
        nonce = secrets.token_bytes(16)
        self.number += 1
        deadline = time.monotonic() + self.config.wall_seconds + GRACE_SECONDS
        reason: str | None
        try:
            self.channel.settimeout(max(0.001, deadline - time.monotonic()))
            self.channel.sendall(HEADER.pack(self.number, nonce, len(content)) + content)
            reply = self._receive(deadline, nonce)
            if reply.keys() != {"passed", "reason"} or not isinstance(reply["passed"], bool):
                raise IrregularError
            # a program's message may hold half of a surrogate pair, which no file of text takes
            reason = str(reply["reason"]).encode("utf-8", "backslashreplace").decode()
            return Outcome(reply["passed"], reason)
        except TimeoutError:
            reason = "timeout: the tests did not end"
        except IrregularError:
            reason = "the tests' process sent something other than its verdict"
        except (ConnectionError, EOFError):
            reason = None
        status = self.stop()  # ends everything in its namespaces, too; the next trial starts another
        if status == IRREGULAR:
            reason = "the tests' process sent something other than its verdict"
        return Outcome(False, reason or f"the sandbox's server {ended(status)}")

    def _has_something_to_say(self) -> bool:
        """Whether there is something on the channel that was not asked for, or nothing will ever be."""
        assert self.channel is not None
        self.channel.settimeout(0)
        try:
            self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        return True

    def _receive(self, deadline: float, nonce: bytes) -> dict[str, Any]:
        """The answer to the trial with this number and nonce.

        Raises:
            TimeoutError: it is not here by the deadline.
            ConnectionError, EOFError: the server is gone.
            IrregularError: what came is something else.
        """
        number, theirs, length = HEADER.unpack(self._read(HEADER.size, deadline))
        if number != self.number or not secrets.compare_digest(theirs, nonce) or length > MAX_REPLY:
            raise IrregularError
        try:
            reply = json.loads(self._read(length, deadline))
        except ValueError as error:
            raise IrregularError from error
        if not isinstance(reply, dict):
            raise IrregularError
        return reply

    def _read(self, count: int, deadline: float) -> bytes:
        assert self.channel is not None
        content = b""
        while len(content) < count:
            self.channel.settimeout(max(0.001, deadline - time.monotonic()))
            part = self.channel.recv(count - len(content))
            if not part:
                raise EOFError
            content += part
        return content

    def stop(self) -> int:
        """How the server ended: one that had ended by itself keeps its status. 0 if there was none."""
        status = 0
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and been waited for
                os.killpg(self.process.pid, signal.SIGKILL)  # server, keepers, checkers; the rest dies with these
            status = self.process.wait()
            self.process = None
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.number = 0
        if self.folder is not None:
            self.folder.cleanup()
        return status


def package_folders() -> list[str]:
    """Where the programs find third-party packages: those of this environment."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def readable_paths() -> list[str]:
    """What the programs may read: outer folders first, so that inner ones are known to be covered."""
    interpreter = {sys.base_prefix, sys.base_exec_prefix}
    paths = {*SYSTEM_FOLDERS, *interpreter, *package_folders()}
    return sorted(path for path in paths if Path(path).exists())


class Sandbox:
    """Runs trials on `config.workers` workers. Use as a context manager: the end stops every process."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.isolate, self.problem = check_isolation(config)
        self._workers = [Worker(config, self.isolate) for _ in range(config.workers)]

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """One outcome per trial, in order."""
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def run_one(trial: Trial) -> Outcome:
            worker = free.get()
            try:
                return worker.run(trial)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            return list(pool.map(run_one, trials))


def check_isolation(config: SandboxConfig) -> tuple[bool, str | None]:
    """Whether programs can be isolated, tried with one; else the kernel's reason.

    Raises:
        ValueError: they cannot and the run may not go without; or a limit is none.
    """
    check_ranges(config, "task.sandbox.")  # to the kernel, for one, a limit of -1 is none
    problem = None if sys.platform == "linux" else f"{platform.system()} has no namespaces"
    if problem is None:
        worker = Worker(config, isolate=True)
        try:
            outcome = worker.run(Trial("def f(): return 1", "assert f() == 1", ("f",)))
            if outcome.passed:
                return True, None
            problem = outcome.reason
        except NoNamespacesError as error:
            problem = str(error)
        finally:
            worker.stop()
    if not config.allow_unsandboxed:
        raise ValueError(
            f"model-written code cannot be contained here: {problem}. Run as root or allow user namespaces "
            "(sysctl kernel.unprivileged_userns_clone=1; in Docker: --security-opt seccomp=unconfined "
            "--cap-add SYS_ADMIN), or accept the risk with task.sandbox.allow_unsandboxed=true"
        )
    return False, problem


def isolation_record(config: SandboxConfig) -> dict[str, Any]:
    """What the run's record says about how code was contained."""
    isolate, problem = check_isolation(config)
    kinds = ["mount", "pid", "network", "ipc", "uts"] + (["user"] if os.geteuid() != 0 else [])
    limits = dataclasses.asdict(config)
    del limits["allow_unsandboxed"], limits["workers"], limits["bubblewrap"]
    return {
        "namespaces": kinds if isolate else [],
        "why_none": problem,
        "own_ipc_and_keyring_per_program": isolate,
        "system_call_filter": isolate,
        "within_bubblewrap": config.bubblewrap,
        "kernel": platform.release(),
        "limits": limits,
    }
