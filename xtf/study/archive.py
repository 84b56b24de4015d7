"""Finished runs without their models: every run's metrics.json and every verdict, small enough to keep for good.

    python -m xtf.study.archive study_methods         # outputs/runs -> experiments/results/study_methods.json.gz
    python run.py stage=report experiments=study_methods archive=experiments/results

One gzipped JSON file per experiment: `items`, lists of the example ids of evaluation sets; `generations`, verdicts of
one model each as a text, one character per sample (1 right, 0 wrong, - no verdict), `samples` per item in the order of
`items`; `runs`, each with its `record`, its `folder` below runs/, the places of its own and the base model's
generations, with `evaluate.losses` the tokens and nats of each evaluation row, and as `judged` what is said of its mask
before training. Equal generations are stored once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xtf.reporting.archived import LETTERS, SUFFIX, ArchivedRun, read_archive
from xtf.reporting.cells import find_cells
from xtf.reporting.runs import read_lines
from xtf.runtime.artifacts import write_atomic
from xtf.runtime.run_folder import RunFolder


def write_archive(experiment: str, runs_root: Path, target: Path, *, add: bool = False) -> Path:
    """Stores the finished runs of an experiment in `target`/<experiment>.json.gz; returns that path.

    Args:
        add: keep what the archive holds already, from another machine or an output folder that is gone; a run
            that is in both is taken from `runs_root`.

    Raises:
        ValueError: the experiment has no finished run under `runs_root`, or the archive has runs that would be lost.
    """
    path = target / f"{experiment}{SUFFIX}"
    runs = [run for cell in find_cells(experiment, runs_root) for run in cell.runs.values()]
    if not runs:
        raise ValueError(f"no run of experiment {experiment!r} under {runs_root} has finished")
    here = {
        run.folder.relative_to(runs_root): ArchivedRun(
            run.folder.relative_to(runs_root),
            _portable(run.record, runs_root.parent),
            read_lines(RunFolder(run.folder).generations),
            run.base_generations(),
            run.row_losses(),
            run.mask_verdict(),
        )
        for run in runs
    }
    kept = {run.folder: run for run in read_archive(path)} if path.exists() else {}
    lost = kept.keys() - here.keys()
    if lost and not add:
        raise ValueError(
            f"{path} holds {len(lost)} runs that are not under {runs_root}, such as {min(lost)}: --add keeps them; "
            "to be rid of them, delete the file first"
        )
    here = kept | here
    items: list[list[str]] = []
    generations: list[dict[str, Any]] = []
    stored = [
        {
            "folder": run.folder.as_posix(),
            "record": run.record,
            "generations": _place(generations, _packed(run.generations, items)),
            "base": None if run.base is None else _place(generations, _packed(run.base, items)),
        }
        | ({} if run.by_row is None else {"losses": _packed_losses(run.by_row, items)})
        | ({} if run.judged is None else {"judged": run.judged})
        for run in here.values()
    ]
    content = {"experiment": experiment, "items": items, "generations": generations, "runs": stored}
    data = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
    write_atomic(path, lambda temporary: temporary.write_bytes(data))
    return path


def _portable(record: Mapping[str, Any], output_dir: Path) -> dict[str, Any]:
    """The record with its output folder called outputs/, wherever it lies on the machine that made it.

    Other paths below the working folder are seen from there.
    """
    folder, here = str(output_dir), f"{Path.cwd()}/"
    setting = re.compile(rf"output_dir={re.escape(folder)}(?=[\s'\"]|$)")

    def portable(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: portable(part) for key, part in value.items()}
        if isinstance(value, list):
            return [portable(part) for part in value]
        if not isinstance(value, str):
            return value
        if value == folder or value.startswith(folder + "/"):
            return "outputs" + value[len(folder) :]
        return setting.sub("output_dir=outputs", value).removeprefix(here).replace(f"={here}", "=")

    return {key: portable(value) for key, value in record.items()}


def _packed(lines: Sequence[Mapping[str, Any]], items: list[list[str]]) -> dict[str, Any]:
    """Lines of a generations.jsonl (all samples of an item side by side) as one letter each."""
    ids = [line["example_id"] for line in lines if line["sample"] == 0]
    samples = len(lines) // len(ids)
    assert [(line["example_id"], line["sample"]) for line in lines] == [
        (name, sample) for name in ids for sample in range(samples)
    ], "generations.jsonl is ordered by item, then by sample"
    letters = "".join(LETTERS[line["correct"]] for line in lines)
    return {"items": _place(items, ids), "samples": samples, "verdicts": letters}


def _packed_losses(rows: Mapping[str, tuple[int, float]], items: list[list[str]]) -> dict[str, Any]:
    tokens, nats = zip(*rows.values(), strict=True)
    return {"items": _place(items, list(rows)), "tokens": tokens, "nats": nats}


def _place(known: list[Any], value: Any) -> int:
    """Where `value` stands in `known`, at its end if it is new."""
    if value not in known:
        known.append(value)
    return known.index(value)


def main() -> None:
    """The command line, `python -m xtf.study.archive`."""
    parser = argparse.ArgumentParser(description="Store the finished runs of experiments, without their models.")
    parser.add_argument("experiments", nargs="+", help="names, such as study_methods")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs"), help="default: %(default)s")
    parser.add_argument("--to", type=Path, default=Path("experiments/results"), help="default: %(default)s")
    parser.add_argument("--add", action="store_true", help="keep the runs that the archive holds already")
    arguments = parser.parse_args()
    for experiment in arguments.experiments:
        try:
            path = write_archive(experiment, arguments.output_dir / "runs", arguments.to, add=arguments.add)
        except ValueError as error:
            parser.exit(2, f"error: {error}\n")
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
