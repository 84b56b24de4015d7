"""The probe: agreement and power in numbers worked out by hand, and a whole one on very few rows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pyarrow.parquet as pq
import pytest

from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.schema import ConfigError
from xtf.reporting.intervals import Components
from xtf.runtime.artifacts import read_json
from xtf.runtime.progress import console
from xtf.study.probe import PROFIT, _agreement_section, _print, dropped_tokens, jaccard, kappa, needed, probe

ROOT = Path(__file__).parents[2]


def test_agreement_as_worked_by_hand() -> None:
    first = np.array([True, True, True, False, False, False, False, False, False, False])
    second = np.array([True, True, False, True, False, False, False, False, False, False])
    assert jaccard(first, second) == pytest.approx(2 / 4)
    # 8 of 10 agree; chance is 0.3 * 0.3 + 0.7 * 0.7 = 0.58
    assert kappa(first, second) == pytest.approx((0.8 - 0.58) / 0.42)
    assert kappa(first, ~first) < 0
    none = np.zeros(10, bool)
    assert (jaccard(none, none), kappa(none, none)) == (None, None)


def test_the_sentence_names_seeds_and_items() -> None:
    parts = Components(seeds=1e-4, items=0.04, rest=0.2)
    assert needed(parts, 0.05, 600) == ("To tell a gain of 5 points you need about 4 seeds and 494 evaluation items.")
    assert needed(Components(0, 0.5, 0.5), 0.01, 100).endswith("evaluation items (there are 100).")
    assert "100 seeds would not be enough" in needed(Components(0.01, 0, 0), 0.01, 100)
    assert "Every item of the pilot differs alike" in needed(Components(0, 0, 0), 0.01, 100)


def test_its_widest_tables_fit_into_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("ri", "kn", "tr", "xtf", "random", "low_loss", "high_loss", "token_cleaning", PROFIT)
    generator = np.random.default_rng(0)
    dropped = {name: generator.random(500) < 0.3 for name in names}
    monkeypatch.setattr(console, "width", 80)
    _print(_agreement_section(dropped))
    printed = capsys.readouterr().out
    assert "\u2026" not in printed  # nothing is cut
    entries = [line.split() for line in printed.splitlines() if line.strip()[:1].isdigit()][1:]
    assert [row[1] for row in entries] == list(names)
    assert [row[2:] for row in entries] == [
        [
            f"{(kappa if a < b else jaccard)(dropped[names[a]], dropped[names[b]]):.2f}"
            for b in range(len(names))
            if a != b
        ]
        for a in range(len(names))
    ]


SMALL = [
    "pilot.seeds=2",
    "pilot.examples=24",
    "pilot.eval_examples=6",
    "task.max_new_tokens=16",
    "tuning.max_steps=2",
    "evaluate.base=false",
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *SMALL, *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=os.environ | {"COLUMNS": "160"},
    )


def test_a_probe_runs_end_to_end_and_its_runs_are_ordinary_ones(tmp_path: Path) -> None:
    assert "9 jobs: 0 done, 9 to do" in run(tmp_path, "probe=true", "stage=plan").stdout
    assert not (tmp_path / "outputs").exists()
    done = run(tmp_path, "probe=true")
    assert done.returncode == 0, done.stderr
    for words in ("What each method would drop", "Do they drop the same tokens?", "The pilot", "a gain of 2 points"):
        assert words in done.stdout, words
    said = [
        "mask: xtf",
        "stage 1 of 2: score",
        "stage 2 of 2: mask",
        "mask: random",
        "this mask: ",
        "pilot: normal, seed 0",
    ]
    places = [done.stdout.index(words) for words in said]
    assert places == sorted(places)
    order = ["Should one train with this mask?", "The pilot", "What each method would drop"]
    (page,) = tmp_path.glob("outputs/reports/probe-math-tiny-full-*.md")
    assert [line[3:] for line in page.read_text(encoding="utf-8").splitlines() if line[3:] in order] == order
    records = [read_json(file) for file in tmp_path.glob("outputs/runs/**/metrics.json")]
    assert sorted((record["method"], record["seed"]) for record in records) == [
        (method, seed) for method in ("normal", "random", "xtf") for seed in (0, 1)
    ]
    assert {record["data"]["train"]["rows"] for record in records} == {24}
    (text,) = tmp_path.glob("outputs/reports/probe-math-tiny-full-*.md")
    assert "| xtf - normal |" in text.read_text(encoding="utf-8")
    assert text.with_suffix(".html").is_file()

    masks = {
        name: next(tmp_path.glob(f"outputs/runs/math/tiny/full/{name}/*/seed0/mask.parquet"))
        for name in ("xtf", "low_loss", "token_cleaning")
    }
    dropped = dropped_tokens(masks)
    assert (dropped["xtf"] == dropped["ri"] | dropped["kn"] | dropped["tr"]).all()
    assert dropped["token_cleaning"].mean() == pytest.approx(0.4, abs=0.01)
    logp = np.concatenate(pq.read_table(masks["low_loss"])["logp"].to_numpy())
    assert dropped[PROFIT].tolist() == (logp <= np.log(0.1)).tolist()
    assert f"| xtf | {100 * dropped['xtf'].mean():.2f} % |" in text.read_text(encoding="utf-8")

    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("outputs/runs/**/metrics.json")}
    assert "9 jobs: 9 done, 0 to do" in run(tmp_path, "probe=true", "stage=plan").stdout
    assert run(tmp_path, "probe=true").returncode == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    plain = run(tmp_path, "task.train.limit=24", "task.eval.limit=6", "method=random", "seed=1")
    assert "already done" in plain.stdout


@pytest.mark.parametrize(
    ("argument", "words"),
    [("method=dft", "leave out method=dft"), ("stage=mask", "stage=mask"), ("scorer=none", "scorer=none has none")],
)
def test_settings_that_a_probe_would_ignore_are_refused(
    monkeypatch: pytest.MonkeyPatch, argument: str, words: str
) -> None:
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(to_config(hydra.compose("config", overrides=["probe=true", argument])))
    with pytest.raises(ConfigError, match=words):
        probe(config, {})
