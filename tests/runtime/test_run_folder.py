"""Where runs lie, and when they are finished: also those that an earlier version made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hydra
import pytest

from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.identity import overrides
from xtf.config.schema import ConfigError, Stage
from xtf.graders import VERSIONS
from xtf.reporting.cells import experiment_folders
from xtf.reporting.runs import load_run
from xtf.runtime.artifacts import DamagedError, read_json, sha256, write_json
from xtf.runtime.run_folder import Manifest, OutputDir, RunFolder, finished, run_folders
from xtf.sweeps.jobs import compose_jobs, unfinished

# Made by the version before the rooms: two steps on twelve rows, without and with evaluate.losses; models left out.
RECORDED = Path(__file__).parents[1] / "recorded"
COMMAND = (
    "task.train.path=rows.jsonl", "task.eval.path=eval.jsonl", "tuning.max_steps=2", "task.max_new_tokens=16",
    "output_dir=recorded",
)  # fmt: skip


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the recorded output folder in it."""
    shutil.copytree(RECORDED, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VERSIONS, "number", 1)  # the one that graded these runs
    return tmp_path / "recorded"


def composed(*arguments: str):
    node = hydra.compose("config", overrides=[*COMMAND, *arguments])
    default = hydra.compose("config")
    return resolve(to_config(node)), overrides(node, default)


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("arguments", [["seed=3"], ["seed=4", "evaluate.losses=true"]])
def test_a_run_of_an_earlier_version_is_found_finished(recorded: Path, arguments: list[str]) -> None:
    config, changed = composed(*arguments)
    folder = RunFolder.of(config, changed)
    assert folder.has_results
    assert finished(config, folder)
    assert load_run(folder.path).base_generations()


@pytest.mark.usefixtures("composing")
def test_a_run_that_an_earlier_version_of_its_grader_graded_is_left_to_do(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, changed = composed("seed=3")
    folder = RunFolder.of(config, changed)
    monkeypatch.setitem(VERSIONS, "number", 2)
    assert RunFolder.of(*composed("seed=3")).path == folder.path
    assert not finished(config, folder)


@pytest.mark.usefixtures("composing")
def test_a_figure_that_a_run_lacks_is_left_to_do_in_a_sweep_too(recorded: Path) -> None:
    line = [*COMMAND, "seed=3"]
    assert unfinished(compose_jobs([line])) == []
    (job,) = unfinished(compose_jobs([[*line, "evaluate.losses=true"]]))
    assert not finished(job.config, job.folder)


@pytest.mark.usefixtures("composing")
def test_a_base_model_that_was_not_graded_is_left_to_do(recorded: Path) -> None:
    config, changed = composed("seed=3")
    folder = RunFolder.of(config, changed)
    manifest = Manifest(folder)
    del manifest.stages["evaluate_base"]
    manifest.save()
    assert not finished(config, folder)
    config, changed = composed("seed=3", "evaluate.base=false")
    assert finished(config, folder)


@pytest.mark.usefixtures("composing")
def test_other_rows_or_another_grader_leave_a_run_to_do(recorded: Path) -> None:
    config, changed = composed("seed=3")
    folder = RunFolder.of(config, changed)
    other, _ = composed("seed=3", "task.grader=math")
    assert not finished(other, folder)
    with Path("rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"question": "2 + 2?", "answer": "#### 4"}) + "\n")
    assert not finished(config, folder)
    as_recorded, _ = composed("seed=3", "threshold.end=scored")
    with pytest.raises(ValueError, match=r"task\.train\.path=rows\.jsonl has changed since"):
        Manifest(folder).begin(as_recorded)


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(
    ("key", "argument"),
    [
        *((key, f"{key}=side.json") for key in ("task.train.ids", "task.eval.exclude_ids", "method.path")),
        (r"evaluate\.general\[1\]", "evaluate.general=[piqa,'hellaswag:side.json']"),
    ],
)
def test_a_file_beside_the_rows_that_has_changed_is_noticed(recorded: Path, key: str, argument: str) -> None:
    file = Path("side.json")
    file.write_text('["1"]')
    config, changed = composed("method=data_augmentation", argument)
    folder = RunFolder.of(config, changed)
    Manifest(folder).begin(config)
    assert Manifest(folder).changed_data(config) == []
    file.write_text('["1", "2"]')
    with pytest.raises(ValueError, match=rf"{key}=side\.json has changed since"):
        Manifest(folder).begin(config)
    file.unlink()
    with pytest.raises(ConfigError, match=rf"{key}=side\.json: there is no such file"):
        composed("method=data_augmentation", argument)


@pytest.mark.usefixtures("composing")
def test_a_run_that_another_rule_of_its_method_trained_is_told_apart(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = composed("seed=3", "threshold.end=scored")
    folder = RunFolder.of(*composed("seed=3")).path
    Manifest(RunFolder(folder)).begin(config)
    assert "another rule" not in capsys.readouterr().out
    monkeypatch.setattr(type(config.method), "version", 2)
    Manifest(RunFolder(folder)).begin(config)
    assert "was trained by an earlier version, which had another rule of method=xtf" in capsys.readouterr().out


@pytest.mark.usefixtures("composing")
def test_each_stage_is_finished_when_what_it_leaves_is_there(recorded: Path) -> None:
    config, changed = composed("seed=3")
    folder = RunFolder.of(config, changed)
    assert not finished(config, folder, Stage.mask)  # the recorded run came without its mask
    folder.mask.touch()
    assert not finished(config, folder, Stage.mask)  # it is not the one that was written
    manifest = Manifest(folder)
    manifest.stages["mask"]["sha256"] = sha256(folder.mask)
    manifest.save()
    assert finished(config, folder, Stage.mask)
    folder.model.mkdir()
    assert finished(config, folder, Stage.train)
    assert not finished(config, folder, Stage.evaluate)  # made anew each time


def test_a_folder_says_what_lies_around_it(recorded: Path) -> None:
    first, second = run_folders(OutputDir(recorded).runs)
    assert first.case == ("math", "tiny", "full")
    assert first.setting == {"method": "xtf", "scorer": "xtf", "threshold": "paper", "overrides": first.parts[4][-8:]}
    assert first.overridden
    assert not RunFolder(Path("runs/math/tiny/full/xtf/my-scorer-paper/seed0")).overridden
    assert first.output.path == recorded
    assert [folder.name for folder in first.seeds()] == [first.name, second.name] or first.seeds() == [first]
    assert first.reports == recorded / "reports" / first.name.replace("/", "-")


def test_damage_to_what_a_failure_left_stands_in_the_place_of_the_failure(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record_error(ValueError("no rows"))
    assert folder.failure() == "ValueError: no rows"
    folder.error.write_text(folder.error.read_text().replace('"type"', '"tyre"'))
    assert "error.json is damaged" in str(folder.failure())


def test_a_damaged_list_of_jobs_is_refused_with_the_remedy(tmp_path: Path) -> None:
    output = OutputDir(tmp_path)
    assert output.listed_jobs("table1") == {}
    write_json(output.jobs_file("table1"), {"runs/a": {"stage": "all"}}, sealed=True)
    assert output.listed_jobs("table1") == {"runs/a": {"stage": "all"}}
    output.jobs_file("table1").write_text(json.dumps({"runs/a": {"stage": "alm"}}))
    with pytest.raises(DamagedError, match=r"table1\.json is damaged.*delete it; jobs that will be run again"):
        experiment_folders("table1", output.runs)


@pytest.mark.usefixtures("composing")
def test_a_run_with_damaged_losses_is_left_to_do_for_that_is_their_remedy(recorded: Path) -> None:
    config, changed = composed("seed=4", "evaluate.losses=true")
    folder = RunFolder.of(config, changed)
    base = RunFolder(Path(Manifest(folder).stages["evaluate_base"]["path"]).parent)
    run = load_run(folder.path)
    for place, read in ((folder, run.row_losses), (base, lambda: run.base_values("loss"))):
        whole = read_json(place.losses) | {"rows": {"row": [3, 4.5]}}  # which later versions note
        write_json(place.losses, whole, sealed=True)
        assert finished(config, folder) and read()
        place.losses.write_text(place.losses.read_text().replace("1", "2", 1))
        assert not finished(config, folder)
        with pytest.raises(DamagedError, match=r"losses\.json is damaged.*run the command of its run again"):
            read()
        write_json(place.losses, whole, sealed=True)
