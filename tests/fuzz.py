"""A coverage-guided fuzzer (atheris) on one of the readers of what others wrote, for a given time.

    python tests/fuzz.py files|templates|values|frames SECONDS [--seed N]

It ends with the number of inputs tried; the first one on which a promise does not hold is printed and kept under
outputs/fuzz/, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import sys
import tempfile
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["xtf.data", "xtf.graders"]):
    from xtf.data.examples import RowError, render
    from xtf.data.rows import load_rows
    from xtf.graders.sandbox_child import HEADER, Remote, TestValues, is_verdict

import pyarrow as pa
import pyarrow.parquet as pq

from xtf.config.schema import SourceConfig

SCRATCH = Path(tempfile.mkdtemp())
ROWS = [{"question": "1 + 1?", "answer": "two é \u2028", "n": 2.5, "m": [{"role": "user", "content": "x"}]}] * 3
SUFFIXES = ("jsonl", "json", "csv", "parquet", "jsonl.gz", "parquet.gz")
HEAD = HEADER.pack(7, b"nobody knows it.", 0)


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
    """A reply of the tests' process: taken as a verdict only if it is bound to the job."""
    if is_verdict(content, HEAD):
        assert content[:24] == HEAD[:24], "forged"
        assert content[HEADER.size :].strip(b" \t\r\n")[:1] == b"{"


def seeds() -> dict[str, list[bytes]]:
    """Inputs to begin with, by target."""
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    text = json.dumps({"passed": True, "reason": ""}).encode()
    decoded: list[Any] = [{"bytes": base64.b64encode(b"x").decode()}, {"dict": [["a", 1]]}, {"tuple": [1, {"set": []}]}]
    decoded += [{"complex": ["1", "nan"]}, {"Fraction": "1/3"}, {"range": [1, 2, 3]}, {"builtin": "exec"}]
    decoded += [{"module": "os"}, {"handle": 3}, {"Decimal": "1e5"}, {"deque": [[1], None]}, {"int": "0x10"}]
    return {
        "files": [
            b"\0" + "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
            b"\1" + json.dumps(ROWS).encode(),
            b'\2question,answer\n"1, ""1""",2\nx,"a\nb"\n',
            b"\3" + table.getvalue(),
        ],
        "templates": [b"{question} {{x}} {n:.2f} {m[0]}", b"{question.__class__}{answer!r:>9}"],
        "values": [json.dumps(value).encode() for value in decoded],
        "frames": [HEAD[:24] + len(text).to_bytes(4, "big") + text],
    }


TARGETS: dict[str, Callable[[bytes], None]] = {
    "files": files,
    "templates": templates,
    "values": values,
    "frames": frames,
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
