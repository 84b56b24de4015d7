"""Archives of runs: what is read back gives the same tables as the runs themselves, in little room."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import write_run

from xtf.reporting.archived import ArchiveError, read_archive
from xtf.reporting.runs import load_run
from xtf.reporting.sweep_report import sweep_report
from xtf.study.archive import write_archive


def outcomes(right: int, wrong: int) -> list[bool | None]:
    return [True] * right + [False] * wrong


def runs(root: Path) -> None:
    base = outcomes(10, 90)
    for seed in (0, 1):
        for method, right in (("normal", 40), ("xtf", 60 + seed)):
            correct = [None, *outcomes(right, 99 - right)]
            write_run(root, correct=correct, base=base, method=method, seed=seed, experiment="t")
    write_run(root, correct=outcomes(1, 1), base=base, method="random", experiment="another")


def test_an_archive_gives_the_tables_of_the_runs_that_it_was_written_from(tmp_path: Path) -> None:
    runs(tmp_path)
    path = write_archive("t", tmp_path / "runs", tmp_path / "results")
    sweep_report("t", tmp_path / "runs", tmp_path / "one")
    sweep_report("t", Path("nowhere"), tmp_path / "two", archive=tmp_path / "results")
    for name in ("t.csv", "t.md"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    assert len(read_archive(path)) == 4
    for stored in read_archive(path):
        run = load_run(tmp_path / "runs" / stored.folder)
        assert str(tmp_path) in json.dumps(run.record)  # of the machine that made it
        assert json.dumps(stored.record) == json.dumps(run.record).replace(str(tmp_path), "outputs")
        assert stored.verdicts("accuracy") == run.verdicts("accuracy")
        assert stored.verdicts("accuracy")["item-0"] is None


def test_losses_by_row_are_kept_and_pair_runs(tmp_path: Path) -> None:
    rows = {"normal": {"a": (3, 6.0), "b": (1, 1.0)}, "xtf": {"a": (3, 9.0), "b": (1, 0.5)}}
    for method, by_row in rows.items():
        write_run(tmp_path, correct=outcomes(1, 1), base=None, method=method, experiment="t", losses=by_row)
    stored = {run.record["method"]: run for run in read_archive(write_archive("t", tmp_path / "runs", tmp_path / "r"))}
    for method, run in stored.items():
        assert run.losses() == load_run(tmp_path / "runs" / run.folder).losses()
        assert (values := run.losses()) is not None
        assert sum(values.values()) / 2 == run.record["metrics"]["loss"]["value"], method
    assert stored["xtf"].losses() == {"a": 4.5, "b": 0.25}


def test_an_archive_is_the_same_file_each_time_and_small(tmp_path: Path) -> None:
    runs(tmp_path)
    first = write_archive("t", tmp_path / "runs", tmp_path / "a").read_bytes()
    assert write_archive("t", tmp_path / "runs", tmp_path / "b").read_bytes() == first
    bare = sum(len(json.dumps(run.record)) for run in read_archive(tmp_path / "a" / "t.json.gz"))
    assert len(first) < bare / 3


def test_runs_of_two_output_folders_meet_in_one_archive(tmp_path: Path) -> None:
    for seeds, name in (((0, 1), "one"), ((1, 2), "two")):
        for seed in seeds:
            right = 10 + seed + 50 * (name == "two")
            write_run(
                tmp_path / name, correct=outcomes(right, 99 - right), base=None, method="xtf", seed=seed, experiment="t"
            )
        path = write_archive("t", tmp_path / name / "runs", tmp_path, add=True)
    found = {run.seed: sum(filter(None, run.verdicts("accuracy").values())) for run in read_archive(path)}
    assert found == {0: 10, 1: 61, 2: 62}
    with pytest.raises(ValueError, match=r"holds 1 runs that are not under .*seed0: --add keeps them"):
        write_archive("t", tmp_path / "two/runs", tmp_path)
    assert len(read_archive(path)) == 3


@pytest.mark.parametrize("folder", ["out", "o", "a.b"])
def test_nothing_but_the_output_folder_is_renamed(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = write_run(Path(folder), correct=outcomes(1, 1), base=None, experiment="t")
    record = json.loads((place / "metrics.json").read_text())
    record |= {"command": f"python run.py note=out output_dir={folder} seed=0", "artifact": f"{folder}/runs/x"}
    record["command"] += f" task.train.path={tmp_path}/rows/train.jsonl"
    record |= {"examples_without_loss": 3, "overrides": {"tuning.lora.dropout": "out of o a.b"}}
    record["overrides"]["task.train.path"] = f"{tmp_path}/rows/train.jsonl"
    (place / "metrics.json").write_text(json.dumps(record))
    (stored,) = read_archive(write_archive("t", Path(folder) / "runs", tmp_path))
    assert stored.record["command"] == (
        "python run.py note=out output_dir=outputs seed=0 task.train.path=rows/train.jsonl"
    )
    assert stored.record["artifact"] == "outputs/runs/x"
    assert stored.record["examples_without_loss"] == 3
    assert stored.record["overrides"] == record["overrides"] | {"task.train.path": "rows/train.jsonl"}


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: gzip.compress(b'{"runs": [')])
def test_a_damaged_archive_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    runs(tmp_path)
    path = write_archive("t", tmp_path / "runs", tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArchiveError, match=r"t\.json\.gz is damaged"):
        read_archive(path)


def test_several_samples_of_an_item_stay_together(tmp_path: Path) -> None:
    folder = write_run(tmp_path, correct=outcomes(1, 1), base=None, experiment="t")
    lines = [
        {"example_id": name, "sample": sample, "correct": correct}
        for name, verdicts in (("a", (True, False, None)), ("b", (False, False, True)))
        for sample, correct in enumerate(verdicts)
    ]
    (folder / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (stored,) = read_archive(write_archive("t", tmp_path / "runs", tmp_path))
    assert stored.generations == lines
    assert stored.base_generations() is None
    assert stored.verdicts("pass@2") == pytest.approx({"a": 2 / 3, "b": 2 / 3})


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    runs(tmp_path)
    with pytest.raises(ValueError, match="'table9'"):
        write_archive("table9", tmp_path / "runs", tmp_path)
    with pytest.raises(ValueError, match=r"there is no table9\.json\.gz"):
        sweep_report("table9", tmp_path, tmp_path, archive=tmp_path)
