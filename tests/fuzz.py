"""A coverage-guided fuzzer (atheris) on one of the readers of what others wrote, for a given time.

    python tests/fuzz.py files|templates|values|frames|replies SECONDS [--seed N]

It ends with the number of inputs tried; the first one on which a promise does not hold is printed and kept under
outputs/fuzz/, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import secrets
import socket
import sys
import tempfile
import time
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["xtf.data", "xtf.graders"]):
    from xtf.data.examples import RowError, render
    from xtf.data.rows import load_rows
    from xtf.graders.sandbox import IrregularError, Worker
    from xtf.graders.sandbox_child import (
        BUILTIN_ERRORS,
        HEADER,
        Checker,
        FailureError,
        Remote,
        TestValues,
        answer,
        is_verdict,
    )

import pyarrow as pa
import pyarrow.parquet as pq

from xtf.config.schema import SandboxConfig, SourceConfig

SCRATCH = Path(tempfile.mkdtemp())
ROWS = [{"question": "1 + 1?", "answer": "two é \u2028", "n": 2.5, "m": [{"role": "user", "content": "x"}]}] * 3
SUFFIXES = ("jsonl", "json", "csv", "parquet", "jsonl.gz", "parquet.gz")
NOTHING, _ = os.pipe()  # what the program prints
LIMITS = {"wall_seconds": 5.0, "memory_mb": 512, "output_kb": 64}


def files(content: bytes) -> None:
    """The first byte chooses the format; the rest is the file."""
    file = SCRATCH / f"rows.{SUFFIXES[content[0] % len(SUFFIXES)] if content else 'jsonl'}"
    file.write_bytes(content[1:])
    try:
        for _ in load_rows(SourceConfig(path=str(file))):
            pass
    except (ValueError, OSError) as error:  # a RowError is a ValueError; a sentence, with the file in it
        if isinstance(error, UnicodeError | RecursionError) or file.name not in str(error):
            raise AssertionError(f"refused without a word on the file: {error!r}") from error


def templates(content: bytes) -> None:
    """A template over a row's fields."""
    with contextlib.suppress(RowError, ValueError):
        assert len(render(content.decode("utf-8", "replace"), ROWS[0])) < 10**6


def values(content: bytes) -> None:
    """A value as a program's side sends it to the tests'."""
    decoder = TestValues.__new__(TestValues)
    decoder.checker = None  # type: ignore[assignment]  # a handle needs none until it is used
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return
    try:
        decoded = decoder.decode(value)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
        return  # the checker fails the program on any of them
    assert not holds_code(decoded), "code was decoded"


def holds_code(value: Any) -> bool:
    """Whether anything in it could be called."""
    if isinstance(value, dict):
        return any(holds_code(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set | frozenset | deque):
        return any(map(holds_code, value))
    return type(value) is not Remote and isinstance(value, types.ModuleType | type | Callable)


def frames(content: bytes) -> None:
    """What a tests' process and a server say: none of it is a verdict on a job whose nonce they do not know, and
    nothing beside the one verdict passes with it."""
    header = HEADER.pack(7, secrets.token_bytes(16), 0)
    assert not is_verdict(content, header), "forged"
    genuine = answer(header, {"passed": False, "reason": "x"})
    if content:
        assert not is_verdict(genuine + content, header) and not is_verdict(content + genuine, header), "surplus"
    worker = Worker(SandboxConfig(), isolate=True)
    worker.number = 7
    worker.channel, theirs = socket.socketpair()
    with worker.channel, theirs:
        theirs.sendall(content)
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(EOFError, IrregularError):
            raise AssertionError(f"forged: {worker._receive(time.monotonic() + 5, header[8:24])}")


def replies(content: bytes) -> None:
    """What a program's process answers to the tests': read as data, raised as a built-in error, or the end of it."""
    ours, theirs = socket.socketpair()
    checker = Checker(0, ours, NOTHING, None, None, LIMITS)
    checker.how_it_ended = lambda: "it ended"  # type: ignore[method-assign]  # there is no process
    with ours, theirs:
        if content[-1:] == b"!":  # a whole frame
            content = (len(content) - 1).to_bytes(4, "big") + content[:-1]
        theirs.sendall(content)
        theirs.shutdown(socket.SHUT_WR)
        changed, numbers = {"a": 1}, [1]
        try:
            found = checker.operate("call", 0, (numbers,), {"key": changed})
        except (FailureError, RuntimeError, *BUILTIN_ERRORS.values()):
            found = None  # BUILTIN_ERRORS: what the program says that it raised
        assert not holds_code([found, changed, numbers]), "code was decoded"
        assert type(changed) is dict and type(numbers) is list


def seeds() -> dict[str, list[bytes]]:
    """Inputs to begin with, by target."""
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    text = json.dumps({"passed": True, "reason": ""}).encode()
    decoded: list[Any] = [{"bytes": base64.b64encode(b"x").decode()}, {"dict": [["a", 1]]}, {"tuple": [1, {"set": []}]}]
    decoded += [{"complex": ["1", "nan"]}, {"Fraction": "1/3"}, {"range": [1, 2, 3]}, {"builtin": "exec"}]
    decoded += [{"module": "os"}, {"handle": 3}, {"Decimal": "1e5"}, {"deque": [[1], None]}, {"int": "0x10"}]
    answered: list[Any] = [{"value": value, "changed": [[0, value], ["key", {"dict": [[1, 2]]}]]} for value in decoded]
    answered += [{"end": True}, {"error": ["KeyError", "Exception"], "text": "x", "fatal": False}]
    return {
        "files": [
            b"\0" + "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
            b"\1" + json.dumps(ROWS).encode(),
            b'\2question,answer\n"1, ""1""",2\nx,"a\nb"\n',
            b"\3" + table.getvalue(),
        ],
        "templates": [b"{question} {{x}} {n:.2f} {m[0]}", b"{question.__class__}{answer!r:>9}"],
        "values": [json.dumps(value).encode() for value in decoded],
        "frames": [HEADER.pack(7, bytes(16), len(text)) + text],
        "replies": [json.dumps(reply).encode() + b"!" for reply in answered],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    "files": files,
    "templates": templates,
    "values": values,
    "frames": frames,
    "replies": replies,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", type=int)
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's; 0: another one each time")
    chosen = parser.parse_args()
    corpus, kept = SCRATCH / "corpus", Path("outputs/fuzz")
    corpus.mkdir()
    kept.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds()[chosen.target]):
        (corpus / str(number)).write_bytes(content)
    flags = [f"-max_total_time={chosen.seconds}", f"-seed={chosen.seed}", "-timeout=10", "-rss_limit_mb=4096"]
    flags += ["-max_len=65536", "-print_final_stats=1", f"-artifact_prefix={kept}/{chosen.target}-"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], TARGETS[chosen.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
