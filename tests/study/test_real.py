"""The analysis of the study on real models: made-up losses with known differences, read as the plan says."""

from __future__ import annotations

import csv
import re
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from made_runs import write_run

from xtf.reporting.cells import find_cells
from xtf.reporting.pages import Section
from xtf.reporting.runs import Run
from xtf.study.archive import write_archive
from xtf.study.arms import Arm, Study
from xtf.study.real import (
    Judged,
    Row,
    _rule_section,
    _verdict_section,
    arm_rows,
    fitted_limit,
    hypotheses,
    judged_masks,
    rates_run,
    study_report,
)

ROOT = Path(__file__).parents[2]
SHIFTS = {"normal": 0.0, "random": 0.02, "xtf": 0.5, "protected": 0.05}
PROTECTED = {"threshold.protect": "answer"}


def made(
    root: Path, tasks: tuple[str, ...] = ("math", "medical"), rows: int = 40, experiment: str = "study_real"
) -> None:
    generator = np.random.default_rng(0)
    for task in tasks:
        tokens = generator.integers(20, 60, size=rows)
        easy = generator.normal(1.0, 0.3, size=rows)  # nats a token of each row
        for seed in range(3):
            for arm, shift in SHIFTS.items():
                nats = tokens * (easy + shift + generator.normal(0, 0.02, size=rows))
                losses = {f"row-{n}": (int(t), float(v)) for n, (t, v) in enumerate(zip(tokens, nats, strict=True))}
                write_run(
                    root,
                    correct=[True] * 5 + [False] * 5,
                    base=None,
                    task=task,
                    method="xtf" if arm == "protected" else arm,
                    overrides=PROTECTED if arm == "protected" else {},
                    seed=seed,
                    experiment=experiment,
                    losses=losses,
                )


def test_the_papers_recipe_has_a_table_of_its_own(tmp_path: Path) -> None:
    made(tmp_path, tasks=("math",))
    study_report(tmp_path, tmp_path / "without")
    assert "the paper's recipe" not in (tmp_path / "without/study_real.md").read_text()
    made(tmp_path, tasks=("medical",), experiment="study_real_paper")
    study_report(tmp_path, tmp_path / "with")
    page = (tmp_path / "with/study_real.md").read_text()
    assert page.splitlines()[0].endswith(": 24 finished runs")
    table = page[page.index("## tiny, medical, the paper's recipe: every method") :].split("\n## ")[0]
    assert [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")] == [
        "| method",
        *("| normal", "| random", "| answer tokens kept", "| xtf"),
    ]
    with (tmp_path / "with/arms.csv").open() as file:
        assert {line["task"] for line in csv.DictReader(file)} == {"math"}


def test_hypotheses_are_read_from_losses_row_by_row(tmp_path: Path) -> None:
    made(tmp_path, tasks=("math",))
    found = {one.name: one for one in hypotheses(Study(find_cells("study_real", tmp_path / "runs")), "math")}
    readings = {name: one.reading for name, one in found.items()}
    assert readings == {
        "S1": "refuted",
        "S2": "supported",
        "S3": "not all run",
        "S4": "supported by answer tokens kept",
        "S5": "refuted",
        "S6": "not run",
        "S7": "not run",
        "S8": "not run",
    }
    (harm,) = found["S1"].contrasts
    assert (harm.unit, harm.found.effect.seeds, harm.found.effect.items) == ("nats", 3, 40)
    assert harm.found.value == pytest.approx(0.5, abs=0.02)
    low, high = harm.found.student
    assert low < harm.found.value < high
    assert found["S3"].missing == ["TR alone - normal", "RI alone - normal"]


@pytest.mark.parametrize(("growth", "reading"), [(0.2, "supported"), (-0.2, "refuted"), (0.0, "refuted")])
def test_the_harm_is_read_over_the_learning_rates_of_both_experiments(tmp_path: Path, growth, reading) -> None:
    """xtf - normal is 0.5 nats at 1e-4 and `growth` more with every tripling of the rate."""
    generator = np.random.default_rng(1)
    rates = {1e-4: "study_real", 3e-4: "study_real_rates", 9e-4: "study_real_rates"}
    for step, (rate, experiment) in enumerate(rates.items()):
        for method in ("normal", "xtf"):
            shift = (0.5 + growth * step) * (method == "xtf")
            nats = 30 * (1 + shift + generator.normal(0, 0.02, size=40))
            losses = {f"row-{n}": (30, float(value)) for n, value in enumerate(nats)}
            overrides = {"tuning.learning_rate": rate}
            what = {"method": method, "overrides": overrides, "experiment": experiment, "losses": losses}
            write_run(tmp_path, correct=[True], base=None, **what)
    cells = [cell for name in set(rates.values()) for cell in find_cells(name, tmp_path / "runs")]
    main, both = Study(find_cells("study_real", tmp_path / "runs")), Study(cells)
    assert rates_run(both, "math") == [1e-4, 3e-4, 9e-4]
    found = {one.name: one for one in hypotheses(main, "math", both)}["S6"]
    assert found.reading == reading
    assert found.contrasts[0].found.value == pytest.approx(growth, abs=0.01)
    write_archive("study_real", tmp_path / "runs", tmp_path / "stored")
    write_archive("study_real_rates", tmp_path / "runs", tmp_path / "stored")
    study_report(tmp_path / "stored", tmp_path / "page")
    page = (tmp_path / "page" / "study_real.md").read_text()
    assert "6 finished runs" in page
    (line,) = re.findall(r"^\| 0\.0009 \|.*$", page, re.MULTILINE)
    assert float(line.split("|")[4].split()[0]) == pytest.approx(0.5 + 2 * growth, abs=0.02)


def test_threshold_safe_and_the_setting_that_it_is_are_one_arm(tmp_path: Path) -> None:
    common = {"correct": [True], "base": None, "experiment": "study_real"}
    write_run(tmp_path, method="normal", **common)
    write_run(tmp_path, seed=1, threshold="safe", **common)
    write_run(tmp_path, seed=2, overrides={"threshold.dropped_weight": 0.3}, **common)
    study = Study(find_cells("study_real", tmp_path / "runs"))
    found = {arm.name: sorted(runs) for arm, runs in study.runs.items()}
    assert found == {"normal": [0], "xtf threshold.dropped_weight=0.3": [1, 2]}


def test_the_archive_gives_the_pages_of_the_runs(tmp_path: Path) -> None:
    made(tmp_path)
    write_archive("study_real", tmp_path / "runs", tmp_path / "stored")
    study_report(tmp_path, tmp_path / "one")
    study_report(tmp_path / "stored", tmp_path / "two")
    for name in ("arms.csv", "study_real.md", "study_real.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with (tmp_path / "one" / "arms.csv").open() as file:
        lines = {(line["task"], line["arm"]): line for line in csv.DictReader(file)}
    assert len(lines) == 8
    for task in ("math", "medical"):
        losses = {arm: float(line["loss"]) for (where, arm), line in lines.items() if where == task}
        for arm, line in lines.items():
            if arm[0] == task and arm[1] != "normal":
                assert float(line["minus_normal"]) == pytest.approx(losses[arm[1]] - losses["normal"], abs=1e-9)
    page = (tmp_path / "one" / "study_real.md").read_text()
    assert "tiny, medical: the hypotheses" in page
    assert "| answer tokens kept |" in page
    assert {file.name for file in (tmp_path / "one/figures").glob("*.png")} >= {"tiny-losses.png", "tiny-answers.png"}


def test_the_verdict_is_put_to_the_test_by_masks_that_its_limits_do_not_know(tmp_path: Path) -> None:
    """Said and became, side by side; "look closer" and the masks that set the limits are not counted."""
    made(tmp_path, tasks=("math",))
    study = Study(find_cells("study_real", tmp_path / "runs"))
    rows = {"math": arm_rows(study, "math")}
    said = {"random": "fine", "xtf": "do not train on this", "xtf threshold.protect=answer": "fine"}

    def section(**test: str) -> Section:
        arms = {Arm("math", 0.0, name): level for name, level in (said | test).items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Run, "mask_verdict", lambda run: {"level": arms.get(by_run[run.folder]), "untaught": 0.25})
            return _verdict_section("tiny", judged_masks("tiny", study, rows))

    by_run = {run.folder: arm for arm, runs in study.runs.items() for run in runs.values()}
    found = section()
    lines = {line[1]: line[2:] for line in found.rows}
    assert [*lines] == ["random", "answer tokens kept", "xtf"], "normal has no mask, so nothing to compare"
    assert lines["xtf"][:2] == ["do not train on this", "0.25"] and lines["xtf"][-2:] == ["harm", "set with it"]
    assert lines["random"][-2:] == ["no harm", "test"]
    assert (
        "1 were called 'fine' or 'do not train on this'; that was right of 1 of 1: 100.0 % [20.7, 100.0]"
        in found.text[1]
    )
    assert "right of 0 of 1: 0.0 % [0.0, 79.3]" in section(random="do not train on this").text[1]
    assert len(section(random="look closer").text) == 1


def test_a_limit_is_fitted_on_one_half_of_the_masks_and_tested_on_the_other(tmp_path: Path) -> None:
    """The limit lies in the widest gap of those that are wrong least often; what the halves are, their names decide."""
    minus = {"normal": SimpleNamespace(student=(0.0, 0.1))}
    row = cast(Row, SimpleNamespace(arm=Arm("math", 0.0, "xtf"), minus=minus))  # what the picture looks at

    def mask(name: str, untaught: float | None, harm: bool) -> Judged:
        return Judged("tiny", "math", row, name, "fine", untaught, 0.0, harm, tests=True)

    fit = [mask("", 0.0, False), mask("", 0.1, False), mask("", 0.3, True), mask("", 0.9, True), mask("", 0.35, False)]
    assert fitted_limit(fit) == pytest.approx(0.625), "above 0.35 or 0.1, one is wrong: 0.55 wide and 0.2"
    assert fitted_limit([*fit, mask("", 0.31, True)]) == pytest.approx(0.2), "now two would be wrong above 0.35"
    halves: tuple[list[str], list[str]] = ([], [])
    for name in map(str, range(12)):
        halves[sha256(name.encode()).digest()[0] >= 128].append(name)
    (a, b, *_), (c, d, *_) = halves
    masks = [mask(a, 0.0, False), mask(b, 0.4, True), mask(c, 0.1, False), mask(d, 0.1, True), mask("none", None, True)]
    found = _rule_section(masks, tmp_path)
    assert found is not None
    assert [line[:2] for line in found.rows] == [["fit", b], ["fit", a], ["test", c], ["test", d]]
    assert "0.20 nats a token, right of 2 of 2: 100.0 % [34.2, 100.0]" in found.text[0]
    assert "right of 1 of 2: 50.0 % [9.5, 90.5]: of those that harm 0 of 1" in found.text[0]
    assert _rule_section(masks[:2], tmp_path) is None, "nothing to test it on"
    assert _rule_section([masks[0], *masks[2:]], tmp_path) is None, "nothing to set it between"


DIFFERENCE = re.compile(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]")


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the report of the archive."""
    folder = tmp_path_factory.mktemp("archived")
    study_report(ROOT / "experiments/results", folder)
    return folder


@pytest.mark.parametrize(
    ("page", "heading"),
    [("docs/does-it-help.md", "## SmolLM2"), ("experiments/README.md", "### A model that was really")],
)
def test_the_tables_that_people_read_hold_the_figures_of_the_archive(page: str, heading: str, archived: Path) -> None:
    """Each difference to normal with its interval, also that no arm is left out."""
    with (archived / "arms.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["minus_normal"] and line["model"] == "smollm2_135m"]
    parts = ("minus_normal", "minus_normal_student_low", "minus_normal_student_high")
    stored = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*(float(line[part]) for part in parts)) for line in lines]
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.split(r"\n##+ ", text[text.index(heading) + 1 :])[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert sorted(DIFFERENCE.findall(table)) == sorted(stored)
