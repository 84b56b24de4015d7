"""Stored runs (`xtf.study.archive` writes them) read back."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtf.reporting.runs import Run, item_values

SUFFIX = ".json.gz"
LETTERS = {True: "1", False: "0", None: "-"}
VERDICTS = {letter: verdict for verdict, letter in LETTERS.items()}


class ArchiveError(ValueError):
    """An archive that cannot be read."""


@dataclass(frozen=True)
class ArchivedRun(Run):
    """A run of an archive: it knows verdicts, not completions."""

    generations: Sequence[Mapping[str, Any]]
    base: Sequence[Mapping[str, Any]] | None
    by_row: Mapping[str, tuple[int, float]] | None = None  # tokens and nats of each evaluation row
    judged: Mapping[str, Any] | None = None  # what is said of its mask

    def row_losses(self) -> dict[str, tuple[int, float]] | None:
        """As of any run, from the archive."""
        return None if self.by_row is None else dict(self.by_row)

    def verdicts(self, metric: str) -> dict[str, float | None]:
        """As of any run, from the stored verdicts."""
        return item_values(self.generations, metric)

    def mask_verdict(self) -> dict[str, Any] | None:
        """As of any run, as it was judged when it was stored; None of runs stored before that was."""
        return None if self.judged is None else dict(self.judged)

    def base_generations(self) -> list[dict[str, Any]] | None:
        """The base model's stored verdicts, without its completions; None if the run did not grade it."""
        return None if self.base is None else [dict(line) for line in self.base]


def read_archive(path: Path) -> list[ArchivedRun]:
    """The runs of an archive; their folders are those below an output folder's runs/.

    Raises:
        ArchiveError: the file is damaged.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise ArchiveError(f"{path} is damaged ({error}); take it from where it came again") from error
    unpacked = [_unpacked(packed, content["items"]) for packed in content["generations"]]
    return [
        ArchivedRun(
            Path(run["folder"]),
            run["record"],
            unpacked[run["generations"]],
            None if run["base"] is None else unpacked[run["base"]],
            None if (losses := run.get("losses")) is None else _by_row(losses, content["items"]),
            run.get("judged"),
        )
        for run in content["runs"]
    ]


def _by_row(losses: Mapping[str, Any], items: Sequence[Sequence[str]]) -> dict[str, tuple[int, float]]:
    return dict(zip(items[losses["items"]], zip(losses["tokens"], losses["nats"], strict=True), strict=True))


def _unpacked(packed: Mapping[str, Any], items: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    keys = [(name, sample) for name in items[packed["items"]] for sample in range(packed["samples"])]
    return [
        {"example_id": name, "sample": sample, "correct": VERDICTS[letter]}
        for (name, sample), letter in zip(keys, packed["verdicts"], strict=True)
    ]
