"""The study's analysis on made-up stored runs whose effects are known by hand."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtf.reporting import figures
from xtf.reporting import intervals as statistics
from xtf.reporting.cells import find_cells
from xtf.study.analysis import hypotheses, load, over_tasks, study_report
from xtf.study.arms import Arm, Study, arm_of

ITEMS, SEEDS = 100, 5


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "EFFECT_RESAMPLES", 999)


def stored(right: int, seed: int, **identity: Any) -> dict[str, Any]:
    """A run that has the first `right` items right, and one item of its seed's own."""
    verdicts = np.arange(ITEMS) < right
    verdicts[ITEMS - 1 - seed] = True
    overrides = {f"plant.{key}": identity.pop(key) for key in ("share",) if key in identity}
    overrides |= {f"method.{key}": identity.pop(key) for key in ("decile", "invert") if key in identity}
    losses = {"unreadable": 0.25, "loss": 1.0, "token_accuracy": 0.7, "calibration_error": 0.1}
    forgetting = identity.pop("forgetting", 1.0) + 0.01 * seed**2
    figures = losses | {"forgetting_loss": forgetting, "accuracy": float(verdicts.mean())}
    record = {
        "task": "math",
        "method": "normal",
        "model": "tiny",
        "tuning": "full",
        "scorer": "xtf",
        "threshold": "paper",
        "seed": seed,
        "overrides": overrides,
        "metrics": {name: {"value": value} for name, value in figures.items()},
        "training": {"kept_tokens": 1000 * right, "steps": 30},
        "timing": {"score": 2.0, "reference": 4.0, "train": 12.0},
    } | identity
    text = "".join("01"[int(right)] for right in verdicts)
    place = "-".join(str(value) for value in (*identity.values(), *overrides.values()))
    return {"folder": f"{place}/seed{seed}", "record": record, "verdicts": text}


def write_archive(folder: Path, name: str, runs: list[dict[str, Any]]) -> None:
    texts = sorted({run["verdicts"] for run in runs})
    content = {
        "experiment": name,
        "items": [[f"item-{number}" for number in range(ITEMS)]],
        "generations": [{"items": 0, "samples": 1, "verdicts": text} for text in texts],
        "runs": [
            {
                "folder": run["folder"],
                "record": run["record"],
                "generations": texts.index(run["verdicts"]),
                "base": None,
            }
            for run in runs
        ],
    }
    (folder / f"{name}.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))


def make(folder: Path, seeds: int = SEEDS, tasks: tuple[str, ...] = ("math",)) -> None:
    right = {"normal": 50, "xtf": 20, "random": 35, "low_loss": 36, "high_loss": 34, "dft": 50}
    noisy = {"normal": 40, "xtf": 30, "random": 30, "low_loss": 30, "high_loss": 30, "slm": 60, "token_cleaning": 41}
    forgetting = {"normal": 1.0, "xtf": 0.5}
    methods, attributes, deciles = [], [], []
    for seed in range(seeds):
        for task in tasks:
            for share, arms in ((0.0, right), (0.3, noisy)):
                planted = {"share": share} if share else {}
                for method, count in arms.items():
                    more = {"forgetting": forgetting.get(method, 1.0)} | planted
                    methods.append(stored(count, seed, task=task, method=method, **more))
        for scorer, count in (("ri", 51), ("kn", 30), ("tr", 20)):
            more = {"forgetting": 0.9 + 0.1 * seed}
            attributes.append(stored(count, seed, method="xtf", scorer=scorer, **more))
        for number in range(1, 11):
            deciles.append(stored(80 - 5 * number, seed, method="decile", decile=number))
            deciles.append(stored(20 + 3 * number, seed, method="decile", decile=number, invert=True))
    write_archive(folder, "study_methods", methods)
    write_archive(folder, "study_attributes", attributes)
    write_archive(folder, "study_deciles", deciles)


def answers(folder: Path) -> dict[str, Any]:
    return {answer.name: answer for answer in hypotheses(load(folder)[0], "math")}


def test_every_hypothesis_is_read_as_the_plan_says(tmp_path: Path) -> None:
    make(tmp_path)
    found = answers(tmp_path)
    values = {name: [one.found.value for one in answer.contrasts] for name, answer in found.items()}
    assert values["H1"] == pytest.approx([-0.30])
    assert values["H2"] == pytest.approx([-0.10 + 0.30])
    assert values["H3"] == pytest.approx([-0.15, 0.01, -0.01, 0, 0, 0])
    assert values["H4"] == pytest.approx([-0.30, 0.01, -0.20, -0.30])
    assert values["H5"] == pytest.approx([-0.05, 0.03])
    assert values["H6"] == pytest.approx([-0.5, 0.1])  # kn: -0.1 to 0.3 over the seeds
    assert values["H7"] == pytest.approx([0.20, 0.01])
    assert {name: answer.reading for name, answer in found.items()} == {
        "H1": "refuted",
        "H2": "supported",
        "H3": "supported",
        "H4": "supported",
        "H5": "supported",
        "H6": "undecided",
        "H7": "supported",
    }
    assert [one.found.sign for one in found["H6"].contrasts] == [-1, 0]
    assert found["H6"].contrasts[0].unit == "nats"


def test_holm_holds_within_a_question(tmp_path: Path) -> None:
    make(tmp_path)
    contrasts = answers(tmp_path)["H3"].contrasts
    assert [one.found.sign for one in contrasts] == [-1, 0, 0, 0, 0, 0]
    assert contrasts[0].found.alpha == pytest.approx(0.05 / 6)
    assert contrasts[1].found.alpha == pytest.approx(0.05 / 5)


def test_what_was_not_run_is_named_and_not_read(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "study_attributes.json.gz").unlink()
    found = answers(tmp_path)
    assert found["H4"].reading == "not all run"
    assert found["H4"].missing == ["ri - normal, noise 0%", "kn - normal, noise 0%", "tr - normal, noise 0%"]
    assert "study_attributes" in load(tmp_path)[1][0]
    with pytest.raises(ValueError, match="no run of the study"):
        load(tmp_path / "nowhere")


def test_only_seeds_that_both_sides_have_are_compared(tmp_path: Path) -> None:
    make(tmp_path)
    study, _ = load(tmp_path)
    del study.runs[Arm("math", 0.0, "xtf")][3]
    found = study.combination((1.0, Arm("math", 0.0, "xtf")), (-1.0, Arm("math", 0.0, "normal")))
    assert found is not None
    assert (found.seeds, found.items) == (4, ITEMS)


def test_effects_are_pooled_over_tasks_where_there_are_two(tmp_path: Path) -> None:
    make(tmp_path, seeds=2)
    assert over_tasks(load(tmp_path)[0]) == []
    make(tmp_path, seeds=2, tasks=("math", "medical"))
    rows = {row[:3]: row for row in over_tasks(load(tmp_path)[0])}
    found = rows[0.0, "xtf", "normal"]
    assert found.tasks == ("math", "medical")
    assert found.pooled is not None
    assert (found.pooled.value, found.pooled.tau) == pytest.approx((-0.3, 0.0))
    assert rows[0.0, "dft", "normal"].pooled is None  # the same items right in every run
    study_report(tmp_path, tmp_path / "out")
    report = (tmp_path / "out" / "study.md").read_text()
    assert "Not pooled, for every item came out alike in a task: dft - normal, noise 0%; " in report
    assert (tmp_path / "out" / "figures" / "tasks-effects.png").is_file()
    lines = list(csv.DictReader((tmp_path / "out" / "tasks.csv").open()))
    assert len(lines) == len(rows)
    assert {line["value"] for line in lines if line["arm"] == "dft" and line["control"] == "normal"} == {""}


def test_the_report_holds_numbers_figures_and_what_is_missing(tmp_path: Path) -> None:
    make(tmp_path, seeds=2)
    files = study_report(tmp_path, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in files}
    drawn = {f"figures/math-{n}.{s}" for n in ("effects", "tokens", "deciles") for s in ("png", "svg")}
    assert names == {"study.md", "study.html", "comparisons.csv", "arms.csv"} | drawn
    text = (tmp_path / "out" / "study.md").read_text(encoding="utf-8")
    for words in (
        "| H1 | XTF helps on data as they are | xtf - normal, noise 0% | -30.0 [",
        "refuted |",
        "| 0% | xtf | 21.0 % [",
        "| 25.0 % | 20,000 | 30 | 2 |",
        "| 6.0 s | 12.0 s | 50.0 % |",
        "there is nothing to pool",
    ):
        assert words in text, words
    with (tmp_path / "out" / "comparisons.csv").open(newline="") as lines:
        rows = {(r["question"], r["share"], r["arm"], r["control"]): r for r in csv.DictReader(lines)}
    assert float(rows["all", "0.3", "slm", "normal"]["value"]) == pytest.approx(0.2)
    assert float(rows["H5", "", "slope of accuracy over deciles, one alone, per decile", ""]["value"]) == (
        pytest.approx(-0.05)
    )
    with (tmp_path / "out" / "arms.csv").open(newline="") as lines:
        arms = {(r["share"], r["arm"]): r for r in csv.DictReader(lines)}
    assert float(arms["0.0", "all but decile 10"]["accuracy"]) == pytest.approx(0.51)
    assert float(arms["0.0", "xtf"]["forgetting_loss"]) == pytest.approx(0.505)


def test_settings_that_all_runs_share_are_no_part_of_an_arms_name(tmp_path: Path) -> None:
    make(tmp_path, seeds=1)
    cells = find_cells("study_methods", tmp_path, tmp_path)
    names = {arm.name for arm in Study(cells).runs}
    for cell in cells:
        for run in cell.runs.values():
            run.record["overrides"]["task.eval.limit"] = 100  # type: ignore[index]
            if run.record["overrides"].get("plant.share"):
                run.record["overrides"]["plant.seed"] = 1  # type: ignore[index]
    assert {arm.name for arm in Study(cells).runs} == names


def test_settings_of_one_task_are_no_part_of_its_arms_names(tmp_path: Path) -> None:
    make(tmp_path, seeds=1, tasks=("math", "medical"))
    cells = find_cells("study_methods", tmp_path / "runs", tmp_path)
    for cell in cells:
        for run in cell.runs.values():
            if run.record["task"] == "medical":
                run.record["overrides"]["task.samples"] = 1  # type: ignore[index]
    study = Study(cells)
    assert {arm.name for arm in study.runs if arm.task == "medical"} == {
        arm.name for arm in study.runs if arm.task == "math"
    }


def test_other_settings_make_an_arm_of_their_own(tmp_path: Path) -> None:
    make(tmp_path, seeds=1)
    study: Study = load(tmp_path)[0]
    run = study.runs[Arm("math", 0.3, "xtf")][0]
    common = {"model", "tuning", "threshold"}
    assert arm_of(run, common) == Arm("math", 0.3, "xtf")
    run.record["overrides"]["tuning.epochs"] = 2  # type: ignore[index]
    assert arm_of(run, common) == Arm("math", 0.3, "xtf tuning.epochs=2")
    assert arm_of(run, {"tuning"}) == Arm("math", 0.3, "xtf model=tiny threshold=paper tuning.epochs=2")


def test_random_masks_of_two_sizes_are_two_arms(tmp_path: Path) -> None:
    """A random mask has the size of its scorer's; of the paper's own it bears no further name."""
    make(tmp_path, seeds=1)
    study: Study = load(tmp_path)[0]
    run = study.runs[Arm("math", 0.3, "random")][0]
    common = {"model", "tuning", "threshold"}
    assert arm_of(run, common) == Arm("math", 0.3, "random")
    run.record["scorer"] = "ri_kn"  # type: ignore[index]
    assert arm_of(run, common) == Arm("math", 0.3, "random scorer=ri_kn")


def test_runs_of_two_models_are_not_taken_for_one_arm(tmp_path: Path) -> None:
    runs = [
        stored(right, 0, method=method, model=model)
        for model, right in (("tiny", 20), ("other", 60))
        for method in ("normal", "xtf")
    ]
    write_archive(tmp_path, "study_methods", runs)
    names = {arm.name for arm in load(tmp_path)[0].runs}
    assert names == {f"{method} model={model}" for method in ("normal", "xtf") for model in ("tiny", "other")}


def test_two_runs_of_one_arm_and_seed_are_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, "study_methods", [stored(20, 0)])
    write_archive(tmp_path, "study_attributes", [stored(60, 0) | {"folder": "elsewhere/seed0"}])
    with pytest.raises(ValueError, match="two runs of normal on math with seed 0"):
        load(tmp_path)


def test_a_damaged_archive_is_not_taken_for_one_that_was_not_run(tmp_path: Path) -> None:
    make(tmp_path, seeds=1)
    file = tmp_path / "study_attributes.json.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"study_attributes\.json\.gz is damaged"):
        load(tmp_path)


def test_no_panel_cuts_off_an_interval_that_another_panel_does_not_have() -> None:
    panels = {"clean": [("xtf", -0.4, -0.5, -0.3)], "noisy": [("xtf", -0.03, -0.05, 0.0), ("oracle", 0.1, 0.05, 0.2)]}
    wider = {"clean": {"xtf": (-0.6, -0.2)}}
    for axis, (title, rows) in zip(figures.effects(panels, student=wider).axes, panels.items(), strict=True):
        low, high = axis.get_xlim()
        ends = [*(row[2:] for row in rows), *wider.get(title, {}).values()]
        assert low < 100 * min(end[0] for end in ends)
        assert high > 100 * max(end[1] for end in ends)
    dots = {title: [(n, 1e4, v + 0.5, a + 0.5, b + 0.5) for n, v, a, b in rows] for title, rows in panels.items()}
    for axis in figures.against_tokens(dots).axes:
        low, high = axis.get_ylim()
        assert low < 0.1 and high > 70
    curves = {"alone": [(1, 0.01, 0.0, 0.02)], "left out": [(1, 0.4, 0.3, 0.5)]}
    for axis in figures.deciles(curves, {"all tokens": 0.41}).axes:
        assert axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > 50
