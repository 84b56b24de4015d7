"""Reports of experiments that stop before training, and of sweeps of which some runs are missing or failed."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import scored_table, write_run

from xtf.reporting.mask_report import dropped_shares
from xtf.reporting.sweep_report import jobs_report, sweep_report
from xtf.runtime.artifacts import read_json, write_json
from xtf.runtime.progress import console
from xtf.runtime.run_folder import OutputDir, RunFolder
from xtf.scoring.masks import MaskedTokens


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def masked_run(root: Path, **identity: Any) -> Path:
    """A run that stopped at its mask, with the manifest of its scoring pass."""
    folder = write_run(root, scored=scored_table(20), correct=[True], base=None, experiment="fig4", **identity)
    (folder / "metrics.json").unlink()
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("stage: all", "stage: mask"))
    manifest = read_json(folder / "manifest.json")
    manifest["stages"]["score"] = {"seconds": 2.0, "paths": {"scores": "elsewhere/scores/key"}}
    write_json(folder / "manifest.json", manifest)
    costs = {"seconds": 2.0, "tokens": 500, "peak_memory_mb": 123.4, "device": "cpu"}
    write_json(root / "scores/key/manifest.json", costs)
    return folder


def entry(folder: Path, stage: str, **overrides: Any) -> dict[Path, dict[str, Any]]:
    """What a sweep says of the job in `folder`."""
    task, model, tuning, method, setting = folder.parts[-6:-1]
    scorer, threshold, *_ = setting.split("-")
    said = {"task": task, "model": model, "tuning": tuning, "method": method, "scorer": scorer, "threshold": threshold}
    return {folder.parent: said | {"seed": 0, "stage": stage, "overrides": overrides}}


def test_shares_by_hand_in_the_terms_of_figure_4() -> None:
    ri, kn, tr = (np.array(bits, bool) for bits in ([1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0]))
    drops = {"drop_ri": ri, "drop_kn": kn, "drop_tr": tr}
    tokens = MaskedTokens(np.array([5]), {"ids": np.arange(5), "kept": ~(ri | kn | tr)} | drops)
    found = dropped_shares(tokens)
    assert found["ri only"] == found["kn only"] == 0.4
    assert found["ri after kn"] == found["kn after ri"] == 0.2
    assert found["ri after tr"] == 0.4
    assert found["ri after both"] == 0.2
    assert found["kn after both"] == 0.0
    assert found["union"] == 0.8


def test_masks_without_training_are_reported_with_figures_costs_and_the_papers_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 160)  # which a worker of xdist fixes at 80
    folder = masked_run(tmp_path, model="deepseek_qwen_1_5b")
    (job,) = entry(folder, "mask").values()
    listed = {f"{folder.parent.relative_to(tmp_path)}/seed{seed}": job | {"seed": seed} for seed in (0, 1)}
    write_json(OutputDir(tmp_path).jobs_file("fig4"), listed)
    paths = sweep_report("fig4", tmp_path / "runs", tmp_path / "out")
    shown = capsys.readouterr().out
    assert "Response tokens dropped" in shown and "method=xtf, seed 0" in shown
    names = {path.name for path in paths}
    assert {"fig4.csv", "fig4.md", "fig4.html"} <= names
    for figure in ("distributions", "overlap", "sensitivity"):
        for suffix in ("png", "svg"):
            assert any(name.endswith(f"{figure}.{suffix}") for name in names), (figure, suffix)
    found = {line["quantity"]: line for line in lines(tmp_path / "out/fig4.csv") if not line["at"]}
    assert found["kn only"]["reported"] == "13.86"
    assert float(found["scores: peak memory MB"]["value"]) == 123.4
    curve = [line for line in lines(tmp_path / "out/fig4.csv") if line["quantity"] == "threshold.kn.pcp"]
    (used,) = (line for line in curve if float(line["at"]) == 0.95)
    assert float(used["value"]) == pytest.approx(float(found["kn only"]["value"]))
    text = (tmp_path / "out/fig4.md").read_text()
    assert "| 250 | 123 |" in text  # tokens a second, MB
    assert "seed1 | not begun |" in text
    assert text.index("## Should one train with this mask?") < text.index("## Time and memory of scoring")


@pytest.mark.usefixtures("no_pictures")
def test_a_sweep_that_stops_at_masks_begins_with_their_verdicts_and_names_them_by_what_it_went_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, listed = [], {}
    for pcp in (0.9, 0.95):
        overrides = {"threshold.kn.pcp": pcp} if pcp != 0.95 else {}  # the default overrides nothing
        folders.append(masked_run(tmp_path, overrides=overrides))
        listed |= entry(folders[-1], "mask", **overrides)
    jobs_report("sweep-1234", folders, listed, tmp_path / "out")
    shown = capsys.readouterr().out
    lines = (tmp_path / "out/sweep-1234.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# tiny on math: a sweep over threshold.kn.pcp, 2 runs"
    assert next(line for line in lines if line.startswith("## ")) == "## Should one train with these masks?"
    verdicts = {row.split(" | ")[0]: row.split(" | ")[1:] for row in lines[4:8] if "threshold" in row}
    assert list(verdicts) == ["| threshold.kn.pcp=0.9", "| threshold.kn.pcp=0.95"]
    (level, why), _ = verdicts.values()
    assert level == "look closer" and "of the dropped tokens have an id that is dropped wherever it stands" in why
    assert "## Dropped tokens: threshold.kn.pcp=0.9" in lines
    assert "threshold.kn.pcp=0.9" in shown and "look closer" in shown and "xtf-paper" not in shown


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("stage", "made"), [("preview", "explorer, 2.0 s"), ("export", "export for trl"), ("train", "model, 7.0 s, loss")]
)
def test_sweeps_that_preview_export_or_train_end_with_what_they_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, stage: str, made: str
) -> None:
    monkeypatch.setattr(console, "width", 80)
    folder = masked_run(tmp_path)
    run = RunFolder(folder)
    {"preview": run.reports / "preview.html", "export": run.export("trl"), "train": run.model}[stage].mkdir(
        parents=True
    )
    if stage == "train":
        manifest = read_json(run.manifest)
        manifest["stages"]["train"] = {"seconds": 5.0, "record": {"final_loss": 1.5}}
        write_json(run.manifest, manifest)
    jobs_report("sweep-1234", [folder], entry(folder, stage), tmp_path / "out")
    first = [line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert " ".join(first).startswith(f"method=xtf look closer, {made}")  # beside the shares, in 80 columns
    page = (tmp_path / "out/sweep-1234.md").read_text(encoding="utf-8")
    assert "# tiny on math: 1 run\n" in page and f"{made.split(',')[0]}: " in page


def test_masks_are_reported_as_masks_where_another_experiment_trained_on_them(tmp_path: Path) -> None:
    folder = masked_run(tmp_path)
    write_json(folder / "metrics.json", {"metrics": "of another experiment"})
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("stage: mask", "stage: all"))
    (job,) = entry(folder, "mask").values()
    write_json(OutputDir(tmp_path).jobs_file("fig4"), {str(folder.relative_to(tmp_path)): job})
    paths = sweep_report("fig4", tmp_path / "runs", tmp_path / "out")
    assert any(path.name.endswith("overlap.png") for path in paths)


def test_a_number_of_the_paper_does_not_stand_beside_other_settings(tmp_path: Path) -> None:
    folder = masked_run(tmp_path, model="deepseek_qwen_1_5b")
    folder.parent.rename(folder.parent.with_name("xtf-paper-12345678"))
    sweep_report("fig4", tmp_path / "runs", tmp_path / "out")
    assert {line["reported"] for line in lines(tmp_path / "out/fig4.csv")} == {""}


def test_runs_that_a_sweep_has_yet_to_make_or_that_failed_stay_visible(tmp_path: Path) -> None:
    right, wrong = [True] * 8 + [False] * 2, [False] * 8 + [True] * 2
    write_run(tmp_path, correct=right, base=wrong, experiment="t")
    failed = write_run(tmp_path, correct=wrong, base=wrong, experiment="t", method="normal")
    (failed / "metrics.json").unlink()
    why = {"type": "OutOfMemoryError", "error": "no memory", "traceback": "", "command": ""}
    write_json(RunFolder(failed).error, why)
    job = {
        "task": "math",
        "model": "tiny",
        "tuning": "full",
        "scorer": "xtf",
        "threshold": "paper",
        "seed": 0,
        "stage": "all",
        "overrides": {"tuning.epochs": 9},
        "method": "random",
    }
    never = "runs/math/tiny/full/random/xtf-paper-abcdef12/seed0"
    write_json(OutputDir(tmp_path).jobs_file("t"), {never: job})
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    notes = {line["setting"]: line["note"] for line in lines(tmp_path / "out/t.csv")}
    assert notes["method=normal"] == "1 run failed"
    assert notes["method=random tuning.epochs=9"] == "1 run not begun"
    text = (tmp_path / "out/t.md").read_text()
    assert "OutOfMemoryError: no memory" in text
    assert f"{never}`: not begun" in text


def test_second_best_is_marked_only_if_its_interval_parts_too(tmp_path: Path) -> None:
    def outcomes(right: int) -> list[bool | None]:
        return [True] * right + [False] * (200 - right)

    for method, right in {"xtf": 190, "normal": 120, "random": 40, "low_loss": 44}.items():
        write_run(tmp_path, correct=outcomes(right), base=outcomes(20), method=method, experiment="t")
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    marks = {line["setting"]: line["mark"] for line in lines(tmp_path / "out/t.csv")}
    assert (marks["method=xtf"], marks["method=normal"]) == ("best", "second")
    assert marks["method=random"] == marks["method=low_loss"] == ""
    text = (tmp_path / "out/t.md").read_text()
    assert "**95.0 % [" in text
    assert "_60.0 % [" in text
