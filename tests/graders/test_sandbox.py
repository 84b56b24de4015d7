"""What programs try in the sandbox, and what is left of it: in verdicts, files, processes and memory."""

# ruff: noqa: E501, PTH110 - programs as one-line strings

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from xtf.config.schema import SandboxConfig
from xtf.graders import sandbox as module
from xtf.graders import sandbox_child
from xtf.graders.sandbox import NoNamespacesError, Sandbox, Trial, Worker, check_isolation, isolation_record

CONFIG = SandboxConfig(wall_seconds=8.0, cpu_seconds=1, memory_mb=512)
TESTS = "assert f(1) == 2"


def namespaces() -> bool:
    try:
        check_isolation(CONFIG)
    except ValueError:
        return False
    return True


contained = pytest.mark.skipif(not namespaces(), reason="this machine lets nobody make namespaces")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(replace(CONFIG, workers=1)) as opened:
        yield opened


def run(box: Sandbox, program: str, tests: str = TESTS, names: tuple[str, ...] = ("f",)) -> module.Outcome:
    (outcome,) = box.run([Trial(textwrap.dedent(program), tests, names)])
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
        ("def f(x):\n    class Odd(Exception):\n        def __str__(self): raise TypeError\n    raise Odd", "Odd"),
        ("class Same:\n    __eq__ = lambda a, b: True\ndef f(x): return Same()", "AssertionError"),
        ("class Same(int):\n    __eq__ = lambda a, b: True\ndef f(x): return Same(7)", "AssertionError"),
        ("import builtins\nbuiltins.AssertionError = builtins.Exception = None\ndef f(x): return 3", "AssertionError"),
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
    real_time = run(box, "def f(x):\n    import os; os.kill(os.getpid(), 40)", tests)
    assert (real_time.passed, real_time.reason) == (False, "the program was ended by signal 40")
    assert run(box, "def f(x): raise ValueError", tests).passed


@contained
@pytest.mark.parametrize(
    "test",
    [
        "a = [3, 1]\nf(a)\nassert a == [1, 3]",  # a change in place
        "a = [3, 1]\nf(a=a)\nassert a == [1, 3]",
        "import collections\na = collections.defaultdict(list, b=[1])\nput(a, 'c', 2)\nassert a == {'b': [1], 'c': 2}",
        "a = {1: 2}\ng(a)\nassert a == {}",
        "assert same(2 ** 100) == 2 ** 100 and same(-(3 ** 5000)) == -(3 ** 5000)",
        "assert same(float('inf')) == float('inf') and same(float('nan')) != same(float('nan'))",
        "assert same((1, [2, {3: {4}}], 'é\\ud800', b'x', None, True, 1.5, 2j)) == (1, [2, {3: {4}}], 'é\\ud800', b'x', None, True, 1.5, 2j)",
        "assert type(same((1,))) is tuple and type(same(True)) is bool and type(same(1.0)) is float",
        "assert same(range(3)) == range(3) and same(frozenset({1})) == frozenset({1})",
        "same(int), same(__import__('math'))",
        "n = Node(1)\nn.next = Node(2)\nassert total(n) == 3 and n.next.value == 2",
        "assert count() == {'a': 2}",
        "try:\n    bad()\n    assert False, 'no error'\nexcept ZeroDivisionError:\n    pass",
        "import math\nassert math.isclose(third(), 1 / 3)",
        "assert half() == 0.5 and half() - 1 == -0.5 and not none()",
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
        def put(a, key, value): a[key] = value
        def same(x): return x
        def total(n): return n.value + (total(n.next) if n.next else 0)
        def count(): return Counter("aa")
        def bad(): return 1 / 0
        def third(): return 1 / 3
        def half(): return __import__("fractions").Fraction(1, 2)
        def none(): return None
        def sorted(x): return 0
    """
    names = ("Node", "f", "g", "same", "total", "count", "bad", "third", "half", "none", "put")
    assert run(box, program, test, names) == module.Outcome(True, "all tests passed")


@contained
def test_a_message_that_no_text_file_takes_is_told_all_the_same(box: Sandbox) -> None:
    reason = run(box, "def f(x): raise ValueError('\\ud800')").reason
    assert reason == "ValueError: \\ud800" and reason.encode()


@contained
def test_helpers_before_the_tests_are_not_the_programs_own(box: Sandbox) -> None:
    trial = Trial(
        "def helper(x): return 2\ndef f(x): return 5", "assert helper(f(1)) == 2", ("f",), "def helper(x): return x"
    )
    assert not box.run([trial])[0].passed


# -- only plain data crosses ---------------------------------------------------------------------------------------


@contained
@pytest.mark.parametrize(
    ("program", "test"),
    [
        # the name of a built-in, or of a module, is not looked up at the tests' side
        ("enc, dec = (lambda s: '__import__(\"os\").getppid()'), eval", "assert dec(enc('x')) == 1"),
        (
            "enc, dec = str, exec",
            "import sys\ndec(enc('import sys; sys.stolen = 1'))\nassert not hasattr(sys, 'stolen')",
        ),
        ("import os as enc\ndec = enc.getppid", "assert enc.getppid() == 1 and dec() == 1"),
        ("enc = dec = type", "assert enc(1) is not int"),
        # a test's own built-ins and modules are names, looked up at the program's side
        (
            "def enc(x): return x is len\ndef dec(x): import math; return x is math",
            "import math\nassert enc(len) and dec(math)",
        ),
    ],
)
def test_no_builtin_and_no_module_of_the_tests_process_is_the_programs_to_choose(
    box: Sandbox, program: str, test: str
) -> None:
    assert run(box, program, test, ("enc", "dec")) == module.Outcome(True, "all tests passed")


HIJACK = """
import sys
outermost = sys._getframe()
while outermost.f_back: outermost = outermost.f_back
harness = outermost.f_globals
"""


@contained
@pytest.mark.parametrize(
    "reply",
    [
        *("{}", "[]", "None", "{'end': True}", "{'value': {}}", "{'value': {'int': '0x1', 'handle': 0}}"),
        *("{'value': {'builtin': 'exec'}}", "{'value': {'module': 'os'}}", "{'value': {'Checker': 1}}"),
        *("{'value': {'handle': True}}", "{'value': {'handle': '0'}}", "{'value': {'set': [[1]]}}"),
        *("{'value': {'int': 5}}", "{'value': {'Fraction': ['0x1', '0x0']}}", "{'value': {'Fraction': '1e999999999'}}"),
        *("{'value': {'complex': ['__import__', 1]}}", "{'value': {'range': [1, 2, 0]}}"),
        *("{'value': 2, 'changed': [[7, [1]]]}", "{'value': 2, 'changed': [['x', [1]]]}", "{'value': 2, 'changed': 5}"),
        *("{'error': 'AssertionError'}", "{'error': []}", "{'error': [1]}", "{'error': ['StopIteration']}"),
    ],
)
def test_a_reply_of_the_programs_own_making_fails_even_tests_that_catch_everything(box: Sandbox, reply: str) -> None:
    program = f"{HIJACK}\nharness['serve'] = lambda values, message: {reply}\ndef f(x): return 2"
    outcome = run(box, program, "try:\n    f(1)\nexcept BaseException:\n    pass")
    assert not outcome.passed and outcome.reason.startswith("the program")


@contained
@pytest.mark.parametrize(
    "content",
    [
        "b'[' * 10**6",
        "b'{\"value\": ' + b'[' * 10**5 + b']' * 10**5 + b'}'",
        "b'{\"value\": ' + b'9' * 5000 + b'}'",  # more digits than Python reads
        "b'{\"value\": 2}' + frame(b'{\"value\": 2}')",
        "b'\\xff\\xfe'",
    ],
)
def test_bytes_on_the_programs_channel_that_are_no_reply_fail_it(box: Sandbox, content: str) -> None:
    program = f"""
        import os, struct, time
        def frame(content): return struct.pack("!I", len(content)) + content
        def f(x):
            content = {content}
            os.write(3, frame(content) if b"value" not in content[12:] else frame(content[:12]) + content[12:])
            time.sleep(1000)
    """
    outcome = run(box, program, "try:\n    f(1)\nexcept BaseException:\n    pass")
    assert (outcome.passed, outcome.reason) == (False, "the program wrote to the checker's channel")


@contained
@pytest.mark.parametrize(
    ("program", "test"),
    [
        (  # NumPy would read 4 numbers at the program's address
            "class F:\n    __array_interface__ = {'shape': (4,), 'typestr': '<i8', 'data': (8, False), 'version': 3}\n"
            "    def __array__(self, *a, **k): return [2]\nf = F()",
            "import numpy as np\nassert np.array(f).dtype == object and np.array(f).shape == ()",
        ),
        *(
            (f"class F:\n    def {name}(self, *a): return 2\nf = F()", f"assert not hasattr(f, '{name}')")
            for name in ("__index__", "__float__", "__array__", "__array_struct__", "__buffer__", "__fspath__")
        ),
        ("f = type('F', (), {'__name__': 'g'})()", "assert not hasattr(f, '__name__')"),
        ("class F: __class__ = property(lambda self: Exception)\nf = F()", "assert not isinstance(f, Exception)"),
        ("class F:\n    def __eq__(self, other): return True\nf = F()", "assert f.__eq__(2) is not True and f != 2"),
        ("class F: pass\nf = F()\nf._checker = f._handle = 7", "assert f._checker == f._handle == 7"),
        ("def f(**k): return sorted(k)", "assert f(self=1, kind=2, operation=3) == ['kind', 'operation', 'self']"),
    ],
)
def test_a_stand_in_answers_no_special_name_of_the_programs(box: Sandbox, program: str, test: str) -> None:
    assert run(box, program, test) == module.Outcome(True, "all tests passed")


@contained
@pytest.mark.parametrize("action", ["copy.deepcopy(f)", "copy.copy(f)", "pickle.dumps(f)", "f.__class__ = int"])
def test_a_stand_in_is_not_taken_apart(box: Sandbox, action: str) -> None:
    outcome = run(box, "class F: pass\nf = F()", f"import copy, pickle\n{action}")
    assert not outcome.passed and "of the program cannot be" in outcome.reason


SPECIAL = """
asked = []
class F:
    def __iter__(self): asked.append("iter"); return iter([1, 2])
    def __len__(self): asked.append("len"); return 2
    def __getitem__(self, key): asked.append("getitem"); return 2
    def __contains__(self, part): asked.append("contains"); return True
    def __eq__(self, other): asked.append("eq"); return True
    def __hash__(self): asked.append("hash"); return 2
    def __repr__(self): asked.append("repr"); return "2"
    def __index__(self): asked.append("index"); return 2
    __next__ = __int__ = __float__ = __complex__ = __length_hint__ = __array__ = __add__ = __radd__ = __index__
    keys = lambda self: [0]
f = F()
def what(): return asked
"""


@contained
def test_neither_syntax_nor_c_asks_an_object_of_the_program_for_a_special_name(box: Sandbox) -> None:
    tests = """
import array, bisect, collections, itertools, math, operator, random, statistics
import numpy as np
for use in (
    list, tuple, set, sorted, sum, zip, dict, reversed, iter, next, len, max, all, bytes, bytearray, enumerate, int, float,
    complex, abs, range, operator.index, operator.neg, collections.deque, collections.Counter, itertools.chain.from_iterable,
    random.choice, statistics.mean, math.prod, math.floor, "".join, "%(a)s".__mod__, [0].__getitem__, open,
    lambda f: [*f], lambda f: dict(**f), lambda f: 1 in f, lambda f: f[0], lambda f: f + 1, lambda f: 1 + f,
    lambda f: map(str, f), lambda f: array.array("d", f), lambda f: bisect.bisect(f, 1), lambda f: "{:d}".format(f),
    lambda f: np.fromiter(f, int), lambda f: np.asarray(f, dtype=float), lambda f: np.zeros(f), lambda f: np.allclose(f, 2),
):
    try:
        use(f)
    except TypeError:
        continue
    raise AssertionError(f"{use} took it")
assert np.array(f).shape == () and np.array([f, f]).shape == (2,) and not np.array_equal(f, [1, 2])
assert f != 2 and f == f and len({f, 2}) == 2 and "2" not in (str(f), repr(f), format(f))
assert not any(isinstance(f, getattr(collections.abc, name)) for name in ("Iterable", "Sized", "Container", "Iterator"))
assert what() == []
"""
    assert run(box, SPECIAL, tests, ("f", "what")) == module.Outcome(True, "all tests passed")
    refused = run(box, SPECIAL, "assert 2 in f")
    assert refused == module.Outcome(False, "TypeError: argument of type 'object of the program' is not iterable")


@contained
@pytest.mark.parametrize("test", ["assert f", "assert not f", "while f: pass", "all([f])", "f or 2"])
def test_an_object_of_the_program_is_neither_true_nor_false(box: Sandbox, test: str) -> None:
    outcome = run(box, SPECIAL, f"try:\n    {test}\nexcept BaseException:\n    pass")
    assert not outcome.passed and outcome.reason.startswith("the tests ask whether an object of the program is true")


@contained
def test_tests_may_call_the_program_from_threads_and_each_gets_its_own_answer(box: Sandbox) -> None:
    tests = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(f, range(200))) == [n + 1 for n in range(200)]
"""
    assert run(box, "def f(x): return x + 1", tests) == module.Outcome(True, "all tests passed")


@contained
def test_an_answer_that_an_alarm_of_the_tests_cut_off_is_not_the_next_ones(box: Sandbox) -> None:
    tests = """
import signal
class Late(BaseException): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    f(0.5)
except BaseException: pass
f(0)
"""
    program = "import time\ndef f(x):\n    time.sleep(x)\n    return x"
    outcome = run(box, program, tests)
    assert not outcome.passed and "the program cannot be asked: Late" in outcome.reason


def test_the_watch_over_memory_keeps_no_descriptor_of_a_process_that_ends_as_it_looks(tmp_path: Path) -> None:
    (tmp_path / "7" / "statm").mkdir(parents=True)  # it can be opened, and not read
    ours, theirs = socket.socketpair()
    output, _ = os.pipe()
    processes = os.open(tmp_path, os.O_RDONLY)
    limits = {"wall_seconds": 5.0, "memory_mb": 512, "output_kb": 64}
    with ours, theirs:
        checker = sandbox_child.Checker(0, ours, output, processes, None, limits)
        before = len(list(Path("/proc/self/fd").iterdir()))
        checker.watch_memory()
        assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_fault_while_asking_the_program_is_its_failure_and_no_error_that_a_test_expects() -> None:
    ours, theirs = socket.socketpair()
    output, _ = os.pipe()
    with ours, theirs:
        checker = sandbox_child.Checker(0, ours, output, 10**6, None, {"wall_seconds": 5.0, "memory_mb": 1})
        checker.next_look = 0.0  # at memory, of which there is no list: a descriptor that is none
        with pytest.raises(sandbox_child.FailureError, match="cannot be asked: OSError"):
            checker.operate("call", 0, (), {})


@contained
@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x): raise StopIteration", "assert all(map(lambda x: f(x) == x + 1, [1, 2]))"),
        ("class S(StopIteration): pass\ndef f(x): raise S", "assert all(map(lambda x: f(x) == x + 1, [1, 2]))"),
        ("def f(x): raise StopAsyncIteration", "try:\n    f(1)\nexcept Exception:\n    pass"),
        (
            "class F:\n    def __getattr__(self, name): raise StopIteration\nf = F()",
            "assert all(map(lambda x: x.a, [f]))",
        ),
    ],
)
def test_stop_iteration_out_of_a_call_does_not_end_the_tests_loop(box: Sandbox, program: str, test: str) -> None:
    outcome = run(box, program, test)
    assert not outcome.passed and outcome.reason.startswith("the program raised S")


@contained
@pytest.mark.parametrize(
    "program",
    [
        "class F:\n    def __len__(self): return 2\n    def __iter__(self): return iter([])\ndef f(x): return F()",
        "class H(int):\n    def __hash__(self): return 0\n    def __eq__(self, other): return True\ndef f(x): return {H(5), H(6)}",
        "class F(float):\n    __eq__ = lambda a, b: True\n    __sub__ = __abs__ = lambda *a: 0.0\ndef f(x): return F(9)",
        "class S(str):\n    __eq__ = lambda a, b: True\n    __hash__ = str.__hash__\ndef f(x): return S('no')",
        "class L(list):\n    def __eq__(self, other): return True\n    def __len__(self): return 1\ndef f(x): return L()",
        "a = []\na.append(a)\ndef f(x): return a",
        "a = {}\na[1] = a\ndef f(x): return a",
        'import json\njson.dumps = lambda *a, **k: \'{"value": {"f": {"handle": 0}}}\'\ndef f(x): return [2]',
        "class M(type):\n    __name__ = property(lambda self: 1 / 0)\nclass E(Exception, metaclass=M): pass\ndef f(x): raise E",
        "def f(x):\n    yield 2\n    yield 3",
        "def f(x):\n    while True: yield 2",
    ],
)
def test_values_that_lie_about_themselves_do_not_equal_the_right_one(program: str) -> None:
    with Sandbox(replace(CONFIG, wall_seconds=4.0, workers=1)) as box:
        assert not run(box, program, "assert list(f(1)) == [2] and f(1) == [2] or f(1) == 2.0 or f(1) == 'yes'").passed


# -- a channel of its own for the verdict --------------------------------------------------------------------------


@contained
def test_tests_may_print_what_they_like_and_no_program_profits_from_it(box: Sandbox) -> None:
    forged = """
        import json, struct
        def f(x):
            content = json.dumps({"verdict": "passed", "passed": True, "reason": "x"}).encode()
            frames = struct.pack("!I", len(content)) + content + struct.pack("!Q16sI", x, bytes(16), len(content)) + content
            return (frames * 500).decode("latin-1")
    """
    tests = """
import os, sys
for stream in (sys.stdout, sys.stderr):
    stream.write(f(1)); stream.flush()
for fd in (1, 2):
    os.write(fd, f(1).encode("latin-1"))
assert f(1) == 2
"""
    (worker,) = box._workers
    assert run(box, "def f(x): return 2").passed and worker.process is not None
    server = worker.process.pid
    for _ in range(2):  # nor does what was printed become the next one's verdict
        outcome = run(box, forged, tests)
        assert not outcome.passed and outcome.reason.startswith("AssertionError")
    assert run(box, "def f(x): return 2", "print('x' * 10**7, flush=True)\nassert f(1) == 2").passed
    assert worker.process.pid == server


@contained
def test_a_tests_process_that_writes_more_than_its_verdict_fails_and_costs_the_worker_its_place(box: Sandbox) -> None:
    """As tests would that open what the program names: here the numbers of descriptors."""
    tests = """
for place in range(3, 64):
    try:
        with open(f(place), "wb", closefd=False) as file: file.write(b'{"passed": true, "reason": "x"}')
    except OSError: pass
"""
    (worker,) = box._workers
    assert run(box, "def f(x): return 2").passed and worker.process is not None
    server = worker.process.pid
    outcome = run(box, "def f(x): return x", tests)
    assert outcome == module.Outcome(False, "the tests' process sent something other than its verdict")
    assert run(box, "def f(x): return 2").passed
    assert worker.process is not None and worker.process.pid != server


SERVER = """
import json, os, struct, sys
HEADER = struct.Struct("!Q16sI")
fd = json.loads(sys.argv[1])["channel"]
PASS = b'{"passed": true, "reason": "x"}'
def send(number, nonce, content): os.write(fd, HEADER.pack(number, nonce, len(content)) + content)
send(0, bytes(16), b'{"problem": null}')
while header := os.read(fd, HEADER.size):
    number, nonce, length = HEADER.unpack(header)
    os.read(fd, length)
    REPLY
"""


@pytest.mark.parametrize(
    "reply",
    [
        "send(number, bytes(16), PASS)",
        "send(number + 1, nonce, PASS)",
        "send(number - 1, nonce, PASS)",
        'send(number, nonce, b\'{"passed": 1, "reason": "x"}\')',
        "send(number, nonce, b'{\"passed\": true}')",
        'send(number, nonce, b\'{"passed": true, "reason": "x", "more": 1}\')',
        "send(number, nonce, b'[true]')",
        "send(number, nonce, b'{')",
        "os.write(fd, HEADER.pack(number, nonce, 2**32 - 1) + PASS)",
        "os.write(fd, PASS * 100)",
        "sys.exit(4)",
    ],
)
def test_a_reply_that_is_not_the_verdict_asked_for_fails_and_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setattr(module, "CHILD", tmp_path / "server.py")
    module.CHILD.write_text(SERVER.replace("REPLY", reply))
    worker = Worker(CONFIG, isolate=True)
    outcome = worker.run(Trial("", ""))
    assert outcome == module.Outcome(False, "the tests' process sent something other than its verdict")
    assert worker.process is None and worker.channel is None


def test_a_second_verdict_is_not_the_next_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHILD", tmp_path / "server.py")
    again = "send(number, nonce, PASS)\n    " * 2
    module.CHILD.write_text(SERVER.replace("REPLY", again))
    worker = Worker(CONFIG, isolate=True)
    assert worker.run(Trial("", "")).passed
    first = worker.process
    time.sleep(0.5)
    assert worker.run(Trial("", "")).passed  # by a new worker, of which it is the first
    assert worker.process is not first and worker.number == 1
    worker.stop()


@pytest.mark.parametrize("change", [(1, 0, b""), (0, 1, b""), (0, 0, b"x"), (0, 0, b"{}")])
def test_the_keeper_passes_on_one_verdict_on_its_own_job(change: tuple[int, int, bytes]) -> None:
    header = sandbox_child.HEADER.pack(7, bytes(16), 0)
    good = sandbox_child.answer(header, {"passed": True, "reason": "x"})
    assert sandbox_child.is_verdict(good, header)
    number, nonce, surplus = change
    other = sandbox_child.HEADER.pack(7 + number, bytes([nonce] * 16), 0)
    assert not sandbox_child.is_verdict(sandbox_child.answer(other, {"passed": True, "reason": "x"}) + surplus, header)
    assert not sandbox_child.is_verdict(good[:-1], header) and not sandbox_child.is_verdict(b"", header)
    assert not sandbox_child.is_verdict(sandbox_child.answer(header, {"passed": 1, "reason": "x"}), header)


@contained
def test_a_program_holds_four_descriptors_and_no_trace_of_the_job(box: Sandbox) -> None:
    program = """
        import os, sys
        found, names = [], set()
        for fd in range(1024):
            try: os.fstat(fd); found.append(fd)
            except OSError: pass
        frame = sys._getframe()
        while frame:
            names |= set(frame.f_locals)
            frame = frame.f_back
        paths = [path for path in ("/proc/self", "/dev/fd", "/dev/shm", "/dev/zero", "/sys/kernel") if os.path.exists(path)]
        def f(x): return [found, sorted(names & {"nonce", "header", "content", "job", "tests"}), paths]
    """
    assert run(box, program, "assert f(1) == [[0, 1, 2, 3], [], []], f(1)") == module.Outcome(True, "all tests passed")


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


SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args))
    return (result, ctypes.get_errno()) if result == -1 else (result, 0)
"""


@contained
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (
            "import mmap\ndef f(x):\n    block = mmap.mmap(-1, 2**20)\n    block[:3] = b'abc'\n    return block[:3]",
            "b'abc'",
        ),
        (
            "blocks = []\nimport mmap\ndef f(x):\n    for n in range(9): blocks.append(mmap.mmap(-1, 90 * 2**20))",
            "OSError",
        ),
        (  # unmapped, and perhaps held by another process: it counts until the end
            "import mmap\ndef f(x):\n    for n in range(9): mmap.mmap(-1, 90 * 2**20).close()",
            "OSError",
        ),
        (  # six processes of which each keeps within its own limit
            """
import mmap, os, time
def f(x):
    reading, writing = os.pipe()
    for _ in range(6):
        if os.fork() == 0:
            try:
                block = mmap.mmap(-1, 200 * 2**20)
                for place in range(0, len(block), 2**16): block[place] = 1
                os.write(writing, b"y")
                time.sleep(1000)
            except OSError: os.write(writing, b"n")
            os._exit(0)
    answers = b""
    while len(answers) < 6: answers += os.read(reading, 6)
    return sorted(answers.decode())
""",
            "['n', 'n', 'n', 'n', 'y', 'y']",
        ),
        ("import os\ndef f(x): return len([os.memfd_create('x') for _ in range(33)])", "OSError"),
        ("import os\ndef f(x): return len([os.memfd_create('x') for _ in range(9)])", "9"),
        (
            f"{SYSCALL}\ndef f(x): return [libc.shmget(0, 200 << 20, 0o1600) >= 0 for _ in range(3)]",
            "[True, True, False]",
        ),
    ],
)
def test_shared_memory_of_every_kind_counts_against_the_limit(box: Sandbox, program: str, expected: str) -> None:
    outcome = run(box, program, f"assert f(1) == {expected}" if expected != "OSError" else "f(1)")
    assert outcome.passed if expected != "OSError" else "Cannot allocate memory" in outcome.reason, outcome


@pytest.mark.skipif(platform.machine() not in sandbox_child.ARCHITECTURES, reason="its system calls are not known")
def test_semaphores_count_by_their_number() -> None:
    number = sandbox_child.call_numbers(platform.machine())["semget"]
    assert sandbox_child.requested_bytes(number, [0, 32000, 0], {}) == 32000 * 64
    assert sandbox_child.requested_bytes(number, [0, 1, 0], {}) == 2**16


@contained
def test_huge_pages_are_not_to_be_had(box: Sandbox) -> None:
    """They are in nobody's resident memory; the machine may have none, so that the error tells which it was."""
    numbers = sandbox_child.call_numbers(platform.machine())
    program = f"""{SYSCALL}
name = ctypes.create_string_buffer(b"x")
def f(x): return [call({numbers["mmap"]}, 0, 2**21, 3, 0x40022, -1, 0)[1],
                  call({numbers["memfd_create"]}, ctypes.addressof(name), 4)[1],
                  call({numbers["shmget"]}, 0, 2**21, 0o5600)[1]]
"""
    refused = [errno.ENOMEM] * 3
    assert run(box, program, f"assert f(1) == {refused}, f(1)") == module.Outcome(True, "all tests passed")


@contained
def test_shared_memory_and_the_programs_own_count_together(box: Sandbox) -> None:
    program = """
        import mmap, time
        shared, own = mmap.mmap(-1, 200 * 2**20), []
        def f(x):
            import os
            if os.fork() == 0:
                block = bytearray(200 * 2**20)
                time.sleep(1000)
            block = bytearray(200 * 2**20)
            time.sleep(1000)
    """
    assert "processes hold more than 512 MB" in run(box, program, "f(1)").reason


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
def test_system_calls_that_a_program_has_no_use_for_are_refused(box: Sandbox) -> None:
    numbers = sandbox_child.call_numbers(platform.machine())
    names = [*sandbox_child.REFUSED_NUMBERS[platform.machine()], "clone3"]
    assert {"io_uring_setup", "userfaultfd", "keyctl", "add_key", "unshare", "setns", "perf_event_open", "bpf"} < set(
        names
    )
    program = f"""{SYSCALL}
def f(number): return call(number, 0, 0, 0, 0, 0)[1]
def new(flag): return call({numbers["clone"]}, flag | 17, 0, 0, 0, 0)[1]
def other(): return call(0x40000000 + 39)[1]
"""
    wanted = {numbers[name]: errno.ENOSYS if name == "clone3" else errno.EPERM for name in names}
    tests = f"found = {{number: f(number) for number in {sorted(wanted)}}}\nassert found == {wanted}, found\n"
    tests += "assert {new(flag) for flag in (0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)} == {1}\n"
    if platform.machine() == "x86_64":
        tests += "assert other() == 38"  # the other numbering of the same calls
    assert run(box, program, tests, ("f", "new", "other")) == module.Outcome(True, "all tests passed")


@contained
def test_only_sockets_of_three_families_can_be_made(box: Sandbox) -> None:
    program = """
        import socket
        def f(family):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
                try: socket.socket(family, kind)
                except OSError as error: why = error.errno
                else: return 0
            return why
    """
    tests = """
assert [family for family in range(64) if f(family) == 0] == [1, 2, 10]
assert {f(family) for family in (16, 17, 38, 40, 44)} == {97}  # netlink, packet, crypto, vsock, XDP
"""
    assert run(box, program, tests) == module.Outcome(True, "all tests passed")


def test_the_numbers_of_the_system_calls_are_those_of_libseccomp() -> None:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not on this machine")
    for machine, architecture in sandbox_child.ARCHITECTURES.items():
        known = sandbox_child.call_numbers(machine)
        found = {name: library.seccomp_syscall_resolve_name_arch(architecture, name.encode()) for name in known}
        assert found == known
        assert {rule.name for rule in sandbox_child.filter_rules(0, machine)} <= known.keys()


@contained
def test_system_v_memory_and_posix_queues_do_not_outlast_their_program(box: Sandbox) -> None:
    program = f"""{SYSCALL}
def f(create):
    shared = libc.shmget(77, 4096, 0o1600 if create else 0)
    messages = libc.msgget(77, 0o1600 if create else 0)
    queue = libc.mq_open(b"/left", 0o102 if create else 0, 0o600, None)
    return [shared >= 0, messages >= 0, queue >= 0]
"""
    assert run(box, program, "assert f(True) == [True] * 3, f(True)").passed
    assert run(box, program, "assert f(False) == [False] * 3, f(False)").passed


@contained
def test_each_program_has_a_session_keyring_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number = sandbox_child.call_numbers(platform.machine())["keyctl"]
    libc = ctypes.CDLL(None)
    if (ours := libc.syscall(number, 0, -3, 0)) < 0:  # KEYCTL_GET_KEYRING_ID of the session
        pytest.skip("this kernel has no keyrings")
    source = module.CHILD.read_text()
    monkeypatch.setattr(module, "CHILD", tmp_path / "sandbox_child.py")
    module.CHILD.write_text(
        source.replace("in REFUSED_NUMBERS[machine])", "in REFUSED_NUMBERS[machine] if name != 'keyctl')")
    )
    seen = [ours]
    with Sandbox(replace(CONFIG, workers=1)) as box:
        for _ in range(2):
            outcome = run(box, f"{SYSCALL}\ndef f(x): return call({number}, 0, -3, 0)", "raise ValueError(f(1)[0])")
            seen.append(int(outcome.reason.removeprefix("ValueError: ")))
    assert min(seen) > 0 and len(set(seen)) == 3


@contained
def test_the_tests_process_is_beyond_signals_limits_and_traces(box: Sandbox) -> None:
    """Even where tests handle a signal, which the kernel would then deliver to the first process of a namespace."""
    numbers = sandbox_child.call_numbers(platform.machine())
    program = f"""{SYSCALL}
def f(x):
    limits = (ctypes.c_uint64 * 2)(0, 0)
    got = [call({numbers["prlimit64"]}, 1, 0, ctypes.addressof(limits), 0)[0]]
    for number in (2, 9, 14, 15, 19, 24):
        got += [call(*args)[0] for args in (
            ({numbers["kill"]}, 1, number), ({numbers["tkill"]}, 1, number), ({numbers["tgkill"]}, 1, 1, number),
            ({numbers["rt_sigqueueinfo"]}, 1, number, 0), ({numbers["rt_tgsigqueueinfo"]}, 1, 1, number, 0))]
    got += [call({numbers["pidfd_open"]}, 1, 0)[0], call({numbers["process_vm_readv"]}, 1, 0, 0, 0, 0, 0)[0]]
    got += [call({numbers["ptrace"]}, request, 1, 0, 0)[0] for request in (0, 16, 0x4206)]
    for user in (0, os.getuid() - 1, os.getuid() + 1):
        try: os.setuid(user); got.append(user)
        except OSError: pass
    return sorted(set(got))
"""
    tests = (
        "import signal\nfor number in (2, 14, 15): signal.signal(number, lambda *_: 1 / 0)\nassert f(1) == [-1], f(1)"
    )
    assert run(box, program, tests) == module.Outcome(True, "all tests passed")


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
def test_five_hundred_programs_leave_no_process_no_file_and_no_memory_behind(temporary: Path) -> None:
    def memory(pids: set[int]) -> int:
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")

    config = replace(CONFIG, workers=2, file_mb=13)
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    trials = [
        Trial(f"open('file', 'w').write('x' * 10000)\ndef f(x): return x + {n % 2}", TESTS, ("f",)) for n in range(125)
    ]
    with Sandbox(config) as box:
        box.run(trials[:20])
        servers = {worker.process.pid for worker in box._workers if worker.process}
        start, own = memory(servers), memory({os.getpid()})
        for _ in range(4):
            outcomes = box.run(trials)
            assert [outcome.passed for outcome in outcomes] == ([False, True] * 63)[:125]
        assert {worker.process.pid for worker in box._workers if worker.process} == servers  # none had to be replaced
        assert memory(servers) - start < 2 * 2**20
        assert memory({os.getpid()}) - own < 32 * 2**20
    assert not lingering(config) and not list(temporary.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2


@contained
def test_nothing_outlives_a_parent_that_is_killed() -> None:
    script = (
        "from xtf.config.schema import SandboxConfig; from xtf.graders.sandbox import Trial, Sandbox; import threading, time\n"
        "box = Sandbox(SandboxConfig(wall_seconds=3, cpu_seconds=1, workers=1, file_mb=14)).__enter__()\n"
        "threading.Timer(1, lambda: print('running', flush=True)).start()\n"
        "box.run([Trial('import time; time.sleep(1000)', '', ())])\n"
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
@pytest.mark.parametrize("within", ["nothing", "bubblewrap"])
def test_an_ordinary_user_gets_the_same_containment(within: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if within == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("there is no bwrap on this machine (apt install bubblewrap)")
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root, to become another user, and an interpreter that every user may run")
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        child = Path(shutil.copy(module.CHILD, folder))
        config = replace(CONFIG, wall_seconds=2.0, bubblewrap=within == "bubblewrap")
        worker = Worker(config, isolate=True)
        worker.channel, theirs = socket.socketpair()
        settings = {**worker.settings(theirs.fileno()), "packages": []}
        settings["readable"] = [path for path in sorted(module.SYSTEM_FOLDERS) if os.path.exists(path)]
        monkeypatch.setattr(os, "geteuid", lambda: 65534)
        monkeypatch.setattr(module, "CHILD", child)
        monkeypatch.setattr(module, "readable_paths", lambda: settings["readable"])
        monkeypatch.setattr(sys, "prefix", "/usr")
        process = subprocess.Popen(
            [*worker.wall(), python, "-S", "-s", "-B", str(child), json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env={},
            pass_fds=[theirs.fileno()],
            user=65534,
            group=65534,
            extra_groups=[],
        )
        theirs.close()
        worker.process = process
        try:
            worker.wait_until_ready(process)
        except NoNamespacesError as error:
            pytest.skip(f"users may not make user namespaces here: {error}")
        assert worker.run(Trial("def f(x): return 2", TESTS, ("f",))).passed
        reach = "import socket, os\ndef f(x):\n    try: socket.create_connection(('1.1.1.1', 53), 1)\n    except OSError: pass\n    else: return 3\n"
        reach += (
            "    return 3 if os.path.exists('/etc/passwd') or os.path.exists('/root') or os.getppid() != 1 else 2\n"
        )
        assert worker.run(Trial(reach, TESTS, ("f",))).passed
        assert "timeout" in worker.run(Trial(FORK_BOMB, TESTS, ("f",))).reason
        worker.channel.close()
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
def test_bubblewrap_may_stand_around_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, bubblewrap=True, workers=1, file_mb=14)  # a mark of its own
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(ValueError, match=r"task\.sandbox\.bubblewrap=true: there is no bwrap"):
            Sandbox(config)
    if shutil.which("bwrap") is None:
        pytest.skip("there is no bwrap on this machine (apt install bubblewrap)")
    with Sandbox(config) as box:
        assert run(box, "def f(x): return 2").passed
        assert "ended by itself" in run(box, "import os; os._exit(0)").reason
    assert not lingering(config)
    assert isolation_record(config)["within_bubblewrap"] is True


@contained
def test_the_record_names_the_namespaces_and_the_limits() -> None:
    record = isolation_record(CONFIG)
    assert {"mount", "pid", "network"} <= set(record["namespaces"]) and record["why_none"] is None
    assert record["system_call_filter"] and record["own_ipc_and_keyring_per_program"]
    assert record["limits"]["cpu_seconds"] == 1 and "workers" not in record["limits"]


@contained
@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("os._exit(7)", "the tests' process ended by itself with status 7"),
        ("os.close(3); time.sleep(60)", "the tests' process closed its channel"),
    ],
)
def test_how_the_tests_process_ended_is_said(box: Sandbox, tests: str, reason: str) -> None:
    outcome = run(box, "def f(x): return 2", f"import os, time\n{tests}")
    assert not outcome.passed and reason in outcome.reason
    assert run(box, "def f(x): return 2").passed


@pytest.mark.parametrize(
    ("number", "cpu_seconds", "reason"),
    [
        (signal.SIGTERM, 60, "it was ended by SIGTERM"),
        (signal.SIGKILL, 60, "it was ended by SIGKILL (out of memory?)"),
        (signal.SIGKILL, 0, "timeout: 0 s of CPU time"),  # used up: the kernel's second limit
        (signal.SIGXCPU, 60, "timeout: 60 s of CPU time"),
    ],
)
def test_a_process_that_a_signal_ended_is_told_by_it(number: signal.Signals, cpu_seconds: int, reason: str) -> None:
    process = subprocess.Popen(["sleep", "60"])
    process.send_signal(number)
    assert sandbox_child.how_it_ended(process.pid, "it", cpu_seconds) == reason
    process.wait()  # of which nothing is left


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        ("os.kill(os.getpid(), 15)", "the sandbox's server was ended by SIGTERM"),
        ("os.kill(os.getpid(), 9)", "the sandbox's server was ended by SIGKILL (out of memory?)"),
        ("sys.exit(128 + 1)", "the sandbox's server was ended by SIGHUP"),  # as bwrap says it, or of a keeper
        ("os.kill(os.getpid(), 40)", "the sandbox's server was ended by signal 40"),
        ("raise MemoryError", "the sandbox's server ended by itself with status 1 (its error is above)"),
    ],
)
def test_how_the_server_ended_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str, reason: str) -> None:
    monkeypatch.setattr(module, "CHILD", tmp_path / "server.py")
    module.CHILD.write_text(SERVER.replace("REPLY", ends))
    assert Worker(CONFIG, isolate=True).run(Trial("", "")) == module.Outcome(False, reason)
    module.CHILD.write_text(f"import os, sys\n{ends}")
    with pytest.raises(ChildProcessError, match=re.escape(f"{reason} before it was ready")):
        Worker(CONFIG, isolate=True).run(Trial("", ""))


def test_a_keeper_that_a_signal_ended_is_told(box: Sandbox) -> None:
    (worker,) = box._workers
    assert run(box, "def f(x): return 2").passed and worker.process is not None
    server = psutil.Process(worker.process.pid)

    def end() -> None:
        for keeper in server.children():
            keeper.terminate()

    timer = threading.Timer(0.5, end)
    timer.start()
    outcome = run(box, "import time\ndef f(x): time.sleep(60)")
    assert outcome == module.Outcome(False, "the sandbox's server was ended by SIGTERM")
    assert run(box, "def f(x): return 2").passed


def test_a_server_that_dies_is_replaced(box: Sandbox) -> None:
    assert run(box, "def f(x): return 2").passed
    (worker,) = box._workers
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert run(box, "def f(x): return 2").passed


def test_workers_run_side_by_side_and_outcomes_keep_their_order() -> None:
    trials = [Trial(f"def f(x): return {n}", f"assert f(1) == {n if n % 3 else -1}", ("f",)) for n in range(30)]
    with Sandbox(replace(CONFIG, workers=3)) as box:
        outcomes = box.run(trials)
    assert [outcome.passed for outcome in outcomes] == [bool(n % 3) for n in range(30)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, -1) for key in ("cpu_seconds", "memory_mb", "processes", "file_mb", "output_kb", "wall_seconds")),
        ("workers", 0),
        ("cpu_seconds", 0),
        ("wall_seconds", float("nan")),
        ("wall_seconds", float("inf")),
    ],
)
def test_limits_that_would_be_none_are_refused(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"task\.sandbox\.{key}={value} is out of range: it must be at least"):
        Sandbox(replace(CONFIG, **{key: value}))


def test_messages_are_framed_by_their_length() -> None:
    assert sandbox_child.frame({"a": 1}) == struct.pack("!I", 8) + b'{"a": 1}'
