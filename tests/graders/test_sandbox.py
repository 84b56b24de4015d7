"""What programs try in the sandbox, and what is left of it: in verdicts, files, processes and memory."""

# ruff: noqa: E501, PTH110 - programs as one-line strings

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from xtf.config.schema import SandboxConfig
from xtf.graders import sandbox as module
from xtf.graders.sandbox import Job, NoNamespacesError, Sandbox, Worker, isolation_record, probe

CONFIG = SandboxConfig(wall_seconds=8.0, cpu_seconds=1, memory_mb=512)
TESTS = "assert f(1) == 2"


def namespaces() -> bool:
    try:
        probe(CONFIG)
    except ValueError:
        return False
    return True


contained = pytest.mark.skipif(not namespaces(), reason="this machine lets nobody make namespaces")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(replace(CONFIG, workers=1)) as opened:
        yield opened


def run(box: Sandbox, program: str, tests: str = TESTS, names: tuple[str, ...] = ("f",)) -> module.Outcome:
    (outcome,) = box.run([Job(textwrap.dedent(program), tests, names)])
    return outcome


def children(config: SandboxConfig) -> set[int]:
    """The sandbox's processes that were started with these settings, which stand on their command lines."""
    found, mark = set(), f'"file_mb": {config.file_mb},'.encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            line = path.read_bytes()
            if b"sandbox_child.py" in line and mark in line:
                found.add(int(path.parent.name))
    return found


def lingering(config: SandboxConfig, seconds: float = 20) -> set[int]:
    """Processes still there after a while: a killed one may take a moment to end, more so on a busy machine."""
    deadline = time.monotonic() + seconds
    while (found := children(config)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that temporary files go to, empty and this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


# -- verdicts --------------------------------------------------------------------------------------------------


@contained
def test_a_right_program_passes_and_a_wrong_one_names_the_failing_line(box: Sandbox) -> None:
    assert run(box, "def f(x): return x + 1") == module.Outcome(True, "all tests passed")
    wrong = run(box, "def f(x): return x")
    assert not wrong.passed and wrong.reason == "AssertionError: assert f(1) == 2"


@contained
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os._exit(0)", "ended by itself with status 0"),
        ("import sys; sys.exit(0)", "raised SystemExit"),
        ("def f(x):\n    import os; os._exit(0)", "ended by itself with status 0"),
        ("def f(x):\n    raise SystemExit(0)", "raised SystemExit"),
        ("class Stop(BaseException): pass\ndef f(x): raise Stop('now')", "raised Stop: now"),
        ("def f(x): raise KeyboardInterrupt", "raised KeyboardInterrupt"),
        ("def f(x): raise ValueError('no')", "ValueError: no"),
        (
            "def f(x):\n    class Odd(Exception):\n        def __str__(self): raise TypeError\n    raise Odd",
            "Odd",
        ),
        ("class Same:\n    __eq__ = lambda a, b: True\ndef f(x): return Same()", "AssertionError"),
        ("class Same(int):\n    __eq__ = lambda a, b: True\ndef f(x): return Same(7)", "AssertionError"),
        (
            "import builtins\nbuiltins.AssertionError = builtins.Exception = None\ndef f(x): return 3",
            "AssertionError",
        ),
        ("def len(x): return 2\ndef f(x): return []", "AssertionError"),
        ("f = 2", "not callable"),
        ("g = 2", "does not define f"),
        ("def f(x) return", "SyntaxError"),
        ("def f(x): return f(x)", "RecursionError"),
        ("def f(x):\n    import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("def f(x):\n    import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a", "RecursionError"),
        ("import os\nos.close(3)\ndef f(x): return 2", "ended by"),
    ],
)
def test_a_program_that_cheats_or_breaks_fails_and_says_how(box: Sandbox, program: str, reason: str) -> None:
    outcome = run(box, program, "assert len([f(1)]) == 1 and f(1) == 2")
    assert not outcome.passed and reason in outcome.reason
    assert run(box, "def f(x): return 2").passed  # the next program is not affected


@contained
def test_writing_verdicts_to_every_descriptor_does_not_pass(box: Sandbox) -> None:
    program = """
        import json, os, struct
        for message in ({"verdict": "passed", "reason": "x"}, {"value": {"f": {"handle": 0}}}, {"value": 2}, {}):
            content = json.dumps(message).encode()
            for fd in range(64):
                try: os.write(fd, struct.pack("!I", len(content)) + content)
                except OSError: pass
        def f(x): return 3
    """
    assert not run(box, program).passed


@contained
def test_the_tests_cannot_be_found_in_the_memory_of_the_program(box: Sandbox) -> None:
    program = """
        import gc, sys
        def f(x):
            frame, texts = sys._getframe(), []
            while frame:
                texts += [str(value) for value in frame.f_locals.values()]
                frame = frame.f_back
            texts += [str(part) for thing in gc.get_objects() if isinstance(thing, dict) for part in thing.values()
                      if isinstance(part, str)]
            return 2 if any("SECRET" + "_IN_TESTS" in text for text in texts) else 0
    """
    assert not run(box, program, "'SECRET_IN_TESTS'\nassert f(1) == 2").passed


@contained
def test_a_test_that_catches_everything_cannot_save_a_program_that_ended(box: Sandbox) -> None:
    tests = "try:\n    f(1)\nexcept BaseException:\n    pass"
    assert not run(box, "def f(x):\n    import os; os._exit(0)", tests).passed
    assert run(box, "def f(x): raise ValueError", tests).passed


@contained
@pytest.mark.parametrize(
    "test",
    [
        "a = [3, 1]\nf(a)\nassert a == [1, 3]",  # a change in place
        "a = {1: 2}\ng(a)\nassert a == {}",
        "assert list(h(3)) == [0, 1, 2]",
        "assert next(h(1)) == 0",
        "assert same(2 ** 100) == 2 ** 100 and same(-(3 ** 5000)) == -(3 ** 5000)",
        "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        "assert same((1, [2, {3: {4}}], 'é\\ud800', b'x', None, True, 1.5, 2j)) == (1, [2, {3: {4}}], 'é\\ud800', b'x', None, True, 1.5, 2j)",
        "assert type(same((1,))) is tuple and type(same(True)) is bool and type(same(1.0)) is float",
        "assert same(range(3)) == range(3) and same(frozenset({1})) == frozenset({1})",
        "assert same(int) is int and f.__name__ == 'f'",
        "n = Node(1)\nn.next = Node(2)\nassert total(n) == 3 and n.next.value == 2",
        "assert count() == {'a': 2}",
        "try:\n    bad()\n    assert False, 'no error'\nexcept ZeroDivisionError:\n    pass",
        "import math\nassert math.isclose(third(), 1 / 3)",
        "assert half() == 0.5 and half() - 1 == -0.5 and Node(1) and not none()",
        "assert f([2, 1], reverse=True) is None",
        "assert sorted([2, 1]) == [1, 2]",  # the real one
    ],
)
def test_data_crosses_unchanged_and_objects_stay_where_they_are(box: Sandbox, test: str) -> None:
    program = """
        import math
        from collections import Counter
        class Node:
            def __init__(self, value): self.value, self.next = value, None
        def f(a, reverse=False): a.sort(reverse=reverse)
        def g(a): a.clear()
        def h(n): yield from range(n)
        def same(x): return x
        def total(n): return n.value + (total(n.next) if n.next else 0)
        def count(): return Counter("aa")
        def bad(): return 1 / 0
        def third(): return 1 / 3
        def half(): return __import__("fractions").Fraction(1, 2)
        def none(): return None
        def sorted(x): return 0
    """
    names = ("Node", "f", "g", "h", "same", "total", "count", "bad", "third", "half", "none")
    assert run(box, program, test, names) == module.Outcome(True, "all tests passed")


@contained
def test_helpers_before_the_tests_are_not_the_programs_own(box: Sandbox) -> None:
    job = Job(
        "def helper(x): return 2\ndef f(x): return 5",
        "assert helper(f(1)) == 2",
        ("f",),
        "def helper(x): return x",
    )
    assert not box.run([job])[0].passed


# -- limits ----------------------------------------------------------------------------------------------------

FORK_BOMB = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
TREE = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        block = bytearray(200 * 2**20)
        time.sleep(60)
time.sleep(60)
"""


@contained
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "timeout"),
        ("def f(x):\n    while True: pass", "timeout"),
        ("import time\ntime.sleep(1000)", "wall time"),
        (FORK_BOMB, "timeout"),
        ("block = bytearray(10 * 2**30)", "MemoryError"),
        ("def f(x): return 'x' * (10 * 2**30)", "MemoryError"),
        ("while True: print('x' * 1000)", "printed more than 64 kB"),
        ("def f(x):\n    import os\n    while True: os.write(2, b'x' * 1000)", "printed more than 64 kB"),
        ("with open('big', 'wb') as file:\n    while True: file.write(b'x' * 2**20)", "OSError"),
        ("for n in range(99):\n    with open(str(n), 'wb') as file: file.write(b'x' * 2**20)", "OSError"),
        ("files = [open('/dev/null') for _ in range(1000)]", "Too many open files"),
        (
            "import threading\nfor _ in range(1000): threading.Thread(target=__import__('time').sleep, args=(60,)).start()",
            "start new thread",
        ),
    ],
)
def test_every_limit_ends_the_program(program: str, reason: str) -> None:
    with Sandbox(replace(CONFIG, wall_seconds=4.0, workers=1)) as box:
        started = time.monotonic()
        outcome = run(box, program)
        assert not outcome.passed and reason in outcome.reason
        assert time.monotonic() - started < 60  # an hour, if the limit did not hold


@contained
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount /proc in a sandbox without one")
def test_the_memory_of_all_processes_counts_together() -> None:
    with Sandbox(replace(CONFIG, workers=1)) as box:
        assert "processes hold more than 512 MB" in run(box, TREE).reason


@contained
def test_tests_that_do_not_end_are_ended_too() -> None:
    with Sandbox(replace(CONFIG, cpu_seconds=30, wall_seconds=0.5, workers=1)) as box:
        assert "tests did not end" in run(box, "def f(x): return 2", "while True: pass").reason
        assert run(box, "def f(x): return 2").passed


# -- the machine -----------------------------------------------------------------------------------------------


@contained
def test_secrets_of_the_environment_and_the_home_folder_are_out_of_reach(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XTF_TEST_TOKEN", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    with Sandbox(replace(CONFIG, workers=1)) as fresh:  # its server starts with the variable set
        program = f"""
            import glob, os
            seen = [str(dict(os.environ))]
            for path in [{str(secret)!r}, {str(Path.home())!r}, {__file__!r}, "/etc/passwd", "/etc/shadow",
                         *glob.glob("/proc/*/environ"), *glob.glob("/home/*/*"), *glob.glob("/tmp/*"), *glob.glob("/root/.*")]:
                try: seen.append(open(path).read() if os.path.isfile(path) else str(os.listdir(path)))
                except OSError: pass
            def f(x): return seen
        """
        outcome = run(fresh, program, "import json\nraise RuntimeError(json.dumps(f(1)))")
    assert "RuntimeError" in outcome.reason
    assert "hunter2" not in outcome.reason and "root:" not in outcome.reason and "XTF" not in outcome.reason


@contained
def test_nothing_outside_its_own_folder_can_be_written_and_the_folder_is_empty(box: Sandbox) -> None:
    program = """
        import os, sys
        written = []
        for folder, _, _ in [(os.getcwd(), 0, 0), ("/", 0, 0), ("/usr", 0, 0), ("/dev", 0, 0), ("/lib", 0, 0), (sys.prefix, 0, 0),
                             (os.path.dirname(os.__file__), 0, 0), ("/etc", 0, 0), ("/proc", 0, 0)]:
            try:
                with open(os.path.join(folder, "left_behind"), "w") as file: file.write("x")
                written.append(folder)
            except OSError: pass
        found = os.listdir(os.getcwd())
        def f(x): return [written, found]
    """
    for _ in range(2):  # and not even the one of the program before
        assert run(box, program, "assert f(1) == [['/box'], ['left_behind']], f(1)") == module.Outcome(
            True, "all tests passed"
        )


@contained
def test_no_socket_reaches_anything_not_even_this_machine(box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"""
            import socket
            def f(x):
                for address in (("127.0.0.1", {port}), ("1.1.1.1", 53)):
                    try: socket.create_connection(address, 1)
                    except OSError: continue
                    return 1
                return 2
        """
        assert run(box, program).passed
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


@contained
def test_signals_and_traces_do_not_reach_the_parent(box: Sandbox) -> None:
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None)
        for pid in (1, os.getppid(), -1):
            for number in range(1, 65):
                if pid != -1 or number == 9:
                    try: os.kill(pid, number)
                    except OSError: pass
        traced = libc.ptrace(16, os.getppid(), 0, 0) == 0
        def f(x): return 3 if traced or os.getppid() != 1 else 2
    """
    (worker,) = box._workers
    assert run(box, "def f(x): return 2").passed and worker.process is not None
    server = worker.process.pid
    assert run(box, program).passed
    assert run(box, "def f(x): return 2").passed
    assert worker.process.pid == server and worker.process.poll() is None


@contained
def test_privileges_cannot_be_had_back(box: Sandbox) -> None:
    program = """
        import ctypes, os
        libc = ctypes.CDLL(None)
        got = [libc.mount(b"tmpfs", b"/box", b"tmpfs", 0, b"") == 0, libc.sethostname(b"x", 1) == 0]
        try: os.setuid(0); got.append(os.getuid() == 0 and os.geteuid() == 0 and REAL_ROOT)
        except OSError: pass
        if libc.unshare(0x10020000) == 0:  # a user namespace of its own gives no power over the mounts of this one
            got.append(libc.mount(b"none", b"/usr", b"", 4096 | 32, b"") == 0)
            got.append(libc.umount2(b"/usr", 2) == 0)
        def f(x): return 3 if any(got) else 2
    """.replace("REAL_ROOT", str(os.geteuid() == 0))
    assert run(box, program).passed


@contained
def test_deleting_its_folder_and_leaving_threads_and_daemons_running_changes_nothing(box: Sandbox) -> None:
    program = """
        import os, shutil, threading, time
        threading.Thread(target=time.sleep, args=(1000,)).start()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(1000)
            os._exit(0)
        shutil.rmtree(os.getcwd(), ignore_errors=True)
        def f(x): return 2
    """
    assert run(box, program).passed
    assert run(box, "def f(x): return 2").passed
    assert Path(sys.executable).exists()


@contained
def test_two_thousand_programs_leave_no_process_no_file_and_no_memory_behind(temporary: Path) -> None:
    def memory(pids: set[int]) -> int:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    config = replace(CONFIG, workers=2, file_mb=13)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    jobs = [
        Job(f"open('file', 'w').write('x' * 10000)\ndef f(x): return x + {n % 2}", TESTS, ("f",)) for n in range(500)
    ]
    with Sandbox(config) as box:
        box.run(jobs[:20])
        servers = {worker.process.pid for worker in box._workers if worker.process}
        start, own = memory(servers), memory({os.getpid()})
        for _ in range(4):
            outcomes = box.run(jobs)
            assert [outcome.passed for outcome in outcomes] == [False, True] * 250
        assert {worker.process.pid for worker in box._workers if worker.process} == servers  # none had to be replaced
        assert memory(servers) - start < 4 * 2**20
        assert memory({os.getpid()}) - own < 32 * 2**20
    assert not lingering(config) and not list(temporary.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2


@contained
def test_nothing_outlives_a_parent_that_is_killed() -> None:
    script = (
        "from xtf.config.schema import SandboxConfig; from xtf.graders.sandbox import Job, Sandbox; import threading, time\n"
        "box = Sandbox(SandboxConfig(wall_seconds=3, cpu_seconds=1, workers=1, file_mb=14)).__enter__()\n"
        "threading.Timer(1, lambda: print('running', flush=True)).start()\n"
        "box.run([Job('import time; time.sleep(1000)', '', ())])\n"
    )
    config = replace(CONFIG, file_mb=14)
    path = {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=path) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"running\n"
        assert children(config)
        parent.kill()
    deadline = time.monotonic() + 30
    while children(config) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children(config)


@contained
def test_an_ordinary_user_gets_the_same_containment(tmp_path_factory: pytest.TempPathFactory) -> None:
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root, to become another user, and an interpreter that every user may run")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        child = shutil.copy(module.CHILD, folder)
        config = replace(CONFIG, wall_seconds=2.0)
        settings = {**asdict(config), "isolate": True, "folder": None, "packages": []}
        settings["readable"] = [path for path in sorted(module.SYSTEM_FOLDERS) if os.path.exists(path)]
        process = subprocess.Popen(
            [python, "-S", "-s", "-B", child, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env={},
            user=65534,
            group=65534,
            extra_groups=[],
        )
        worker = Worker(config, isolate=True)
        worker.process = process
        ready = worker._receive(time.monotonic() + 30)
        if ready is None or ready["problem"]:
            pytest.skip(f"users may not make user namespaces here: {ready}")
        assert worker.run(Job("def f(x): return 2", TESTS, ("f",))).passed
        reach = "import socket, os\ndef f(x):\n    try: socket.create_connection(('1.1.1.1', 53), 1)\n    except OSError: pass\n    else: return 3\n"
        reach += (
            "    return 3 if os.path.exists('/etc/passwd') or os.path.exists('/root') or os.getppid() != 1 else 2\n"
        )
        assert worker.run(Job(reach, TESTS, ("f",))).passed
        assert "timeout" in worker.run(Job(FORK_BOMB, TESTS, ("f",))).reason
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        shutil.rmtree(folder)


# -- without namespaces ----------------------------------------------------------------------------------------


def no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Worker.start

    def refuse(self: Worker) -> subprocess.Popen[bytes]:
        if self.isolate:
            raise NoNamespacesError("unshare: Operation not permitted")
        return start(self)

    monkeypatch.setattr(Worker, "start", refuse)


def test_without_namespaces_nothing_runs_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    no_namespaces(monkeypatch)
    with pytest.raises(ValueError, match=r"Operation not permitted.*allow_unsandboxed=true"):
        Sandbox(CONFIG)


def test_allowed_to_run_without_namespaces_limits_hold_and_the_record_says_so(
    monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    no_namespaces(monkeypatch)
    config = replace(CONFIG, allow_unsandboxed=True, wall_seconds=2, workers=1, file_mb=15)
    record = isolation_record(config)
    assert record["namespaces"] == [] and "not permitted" in record["why_none"]
    with Sandbox(config) as box:
        assert run(box, "open('file', 'w').close()\ndef f(x): return 2").passed
        assert "ended by itself" in run(box, "import os; os._exit(0)").reason
        assert "timeout" in run(box, "while True: pass").reason
        assert "wall time" in run(box, "import time; time.sleep(60)").reason
    assert not lingering(config) and not list(temporary.iterdir())


@contained
def test_the_record_names_the_namespaces_and_the_limits() -> None:
    record = isolation_record(CONFIG)
    assert {"mount", "pid", "network"} <= set(record["namespaces"]) and record["why_none"] is None
    assert record["limits"]["cpu_seconds"] == 1 and "workers" not in record["limits"]


def test_a_server_that_dies_is_replaced(box: Sandbox) -> None:
    assert run(box, "def f(x): return 2").passed
    (worker,) = box._workers
    assert worker.process is not None
    worker.process.kill()
    assert "died" in run(box, "def f(x): return 2").reason
    assert run(box, "def f(x): return 2").passed


def test_workers_run_side_by_side_and_outcomes_keep_their_order() -> None:
    jobs = [Job(f"def f(x): return {n}", f"assert f(1) == {n if n % 3 else -1}", ("f",)) for n in range(30)]
    done: list[int] = []
    lock = threading.Lock()

    def progress() -> None:
        with lock:
            done.append(1)

    with Sandbox(replace(CONFIG, workers=3)) as box:
        outcomes = box.run(jobs, progress)
    assert [outcome.passed for outcome in outcomes] == [bool(n % 3) for n in range(30)]
    assert len(done) == 30


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Sandbox(replace(CONFIG, workers=0))


def test_messages_are_framed_by_their_length() -> None:
    from xtf.graders import sandbox_child

    assert sandbox_child.pack({"a": 1}) == struct.pack("!I", 8) + b'{"a": 1}'
