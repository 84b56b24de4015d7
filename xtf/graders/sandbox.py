"""Runs programs that a model wrote against tests, so that neither the machine nor the verdict is at their
mercy.

What is trusted: this package and the kernel. What is not: the program; and, for the machine's sake, the
tests, which come from a dataset. Program and tests run in *different* processes. The tests call the program's
functions through a pipe that carries data only; the verdict is what the tests' process writes to a descriptor
that the program does not have, in a process that it cannot trace, signal or write to. So a program that
exits, prints, replaces `assert`'s helpers, `builtins` or the checker, or returns an object that equals
everything, changes its own process only, and fails. What a program can still do is return right answers for
the wrong reason (such as a table of them).

Containment, with the kernel's namespaces (Linux 5.12 or later, as root or where users may create user
namespaces): no network; a file system that holds the interpreter, its packages and the system's libraries,
read-only, and an empty folder in memory; no environment of the parent's; its own process tree, which the
kernel kills with its first process; no privileges and no way to gain any; limits on CPU time, wall time,
address space, processes, file size and output. The limit on CPU time holds for each process; that on memory
for each and, where /proc may be mounted, for all of a program's processes together. The kernel itself remains
reachable through its system calls: for code that is hostile rather than wrong, run this in a virtual machine.

Without namespaces nothing runs unless the configuration allows it (`task.sandbox.allow_unsandboxed=true`):
then the limits hold, the files and the network do not stay out of reach, and the run's record says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from xtf.config.schema import SandboxConfig

CHILD = Path(__file__).with_name("sandbox_child.py")
START_SECONDS = 30.0  # for a worker to come up
GRACE_SECONDS = 2.0  # beyond the wall limit, which the checker enforces itself
SYSTEM_FOLDERS = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/etc/ld.so.cache")


@dataclass(frozen=True)
class Job:
    """A program and its tests; `names`: all that they see of it; `preamble`: trusted code run before them."""

    program: str
    tests: str
    names: tuple[str, ...] = ()
    preamble: str = ""


@dataclass(frozen=True)
class Outcome:
    passed: bool
    reason: str


class NoNamespacesError(Exception):
    """The kernel does not let this process make namespaces; the message is the kernel's."""


class Worker:
    """One server process, and the jobs that it runs, one at a time."""

    def __init__(self, config: SandboxConfig, isolate: bool) -> None:
        self.config, self.isolate = config, isolate
        self.process: subprocess.Popen[bytes] | None = None
        self.folder: tempfile.TemporaryDirectory[str] | None = None  # without namespaces only

    def start(self) -> subprocess.Popen[bytes]:
        self.folder = None if self.isolate else tempfile.TemporaryDirectory(prefix="xtf-sandbox-")
        settings = {
            **dataclasses.asdict(self.config),
            "isolate": self.isolate,
            "folder": self.folder and self.folder.name,
            "readable": readable_paths(),
            "packages": package_folders(),
        }
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
        if "LD_LIBRARY_PATH" in os.environ:  # an interpreter with a shared library in an unusual place
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-s", "-B", str(CHILD), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
        ready = self._receive(time.monotonic() + START_SECONDS)
        if ready is None:
            raise RuntimeError("the sandbox's server did not start (its error is above)")
        if ready["problem"] is not None:
            self.stop()
            raise NoNamespacesError(ready["problem"])
        return self.process

    def run(self, job: Job) -> Outcome:
        process = self.process or self.start()
        assert process.stdin is not None
        content = json.dumps(dataclasses.asdict(job)).encode()
        deadline = time.monotonic() + self.config.wall_seconds + GRACE_SECONDS
        with contextlib.suppress(BrokenPipeError):  # a server that is gone shows when reading
            _write(process.stdin.fileno(), struct.pack("!I", len(content)) + content)
        reply = self._receive(deadline)
        if reply is not None:
            return Outcome(reply["verdict"] == "passed", reply["reason"])
        late = time.monotonic() >= deadline
        self.stop()  # and with it everything in its namespaces; the next job starts another
        return Outcome(False, "timeout: the tests did not end" if late else "the tests' process died (memory limit?)")

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """The next message, None if none is complete by the deadline or the server is gone."""
        assert self.process is not None and self.process.stdout is not None
        fd = self.process.stdout.fileno()
        content, wanted = b"", 4
        while len(content) < wanted:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(fd, 1 << 16) if ready else b""
            if not part:
                return None
            content += part
            if len(content) >= 4:
                wanted = 4 + struct.unpack("!I", content[:4])[0]
        reply: dict[str, Any] = json.loads(content[4:])
        return reply

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # server, keeper, checker; the rest dies with the checker
            self.process.communicate()
            self.process = None
        if self.folder is not None:
            self.folder.cleanup()


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def package_folders() -> list[str]:
    """Where the programs find third-party packages: those of this environment."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def readable_paths() -> list[str]:
    """What the programs may read: outer folders first, so that inner ones are known to be covered."""
    interpreter = {sys.base_prefix, sys.base_exec_prefix}
    paths = {*SYSTEM_FOLDERS, *interpreter, *package_folders()}
    return sorted(path for path in paths if Path(path).exists())


class Sandbox:
    """Runs jobs on `config.workers` workers. Use as a context manager: the end stops every process."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.isolate, self.problem = probe(config)
        self._workers = [Worker(config, self.isolate) for _ in range(config.workers)]

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()

    def run(self, jobs: Sequence[Job], progress: Callable[[], None] | None = None) -> list[Outcome]:
        """One outcome per job, in order."""
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def run_one(job: Job) -> Outcome:
            worker = free.get()
            try:
                return worker.run(job)
            finally:
                free.put(worker)
                if progress is not None:
                    progress()

        with ThreadPoolExecutor(len(self._workers)) as pool:
            return list(pool.map(run_one, jobs))


def probe(config: SandboxConfig) -> tuple[bool, str | None]:
    """Whether namespaces can be used, else the kernel's reason; ValueError if the run may not go without."""
    if config.workers < 1:
        raise ValueError(f"task.sandbox.workers must be at least 1, not {config.workers}")
    problem = None if sys.platform == "linux" else f"{platform.system()} has no namespaces"
    if problem is None:
        worker = Worker(config, isolate=True)
        try:
            outcome = worker.run(Job("def f(): return 1", "assert f() == 1", ("f",)))
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
    isolate, problem = probe(config)
    kinds = ["mount", "pid", "network", "ipc", "uts"] + (["user"] if os.geteuid() != 0 else [])
    limits = dataclasses.asdict(config)
    del limits["allow_unsandboxed"], limits["workers"]
    return {
        "namespaces": kinds if isolate else [],
        "why_none": problem,
        "kernel": platform.release(),
        "limits": limits,
    }
