"""Reports of runs and of sweeps, and the statistics in them, on small runs made by hand."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_runs import generations, metric, scored_table, write_run
from rich.console import Console

from xtf.config.schema import PRESETS, Attribute
from xtf.reporting import figures
from xtf.reporting.intervals import difference, mean
from xtf.reporting.pages import fenced, inline_code, with_interval
from xtf.reporting.run_report import console_table, most_dropped, paired_generations, run_report, verdict
from xtf.reporting.runs import arm_mean, command_line, item_values, load_run
from xtf.reporting.sweep_report import jobs_report, sweep_report
from xtf.runtime.progress import console
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.masks import MaskedTokens, build_mask

PNG = b"\x89PNG\r\n\x1a\n"


def outcomes(right: int, wrong: int) -> list[bool]:
    return [True] * right + [False] * wrong


def values(*runs: list[float]) -> list[dict[str, float]]:
    return [{f"item-{place}": value for place, value in enumerate(run)} for run in runs]


def printed(record: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(console_table(record))
    return console.file.getvalue()  # type: ignore[attr-defined]


# -- statistics --


def test_item_values_are_means_over_samples_and_none_without_a_verdict() -> None:
    lines = [
        {"example_id": name, "correct": correct}
        for name, correct in (("a", True), ("a", False), ("b", None), ("c", None), ("c", True))
    ]
    assert item_values(lines, "accuracy") == {"a": 0.5, "b": None, "c": 1.0}


def test_pass_at_k_is_the_share_of_all_draws_of_k_samples_with_a_right_one() -> None:
    right = [True, True, False, False, False]
    draws = [(i, j) for i, j in product(range(5), repeat=2) if i < j]
    expected = sum(right[i] or right[j] for i, j in draws) / len(draws)
    lines = [{"example_id": "a", "correct": each} for each in right]
    assert item_values(lines, "pass@2") == {"a": pytest.approx(expected)} == {"a": pytest.approx(0.7)}


def test_a_metric_that_is_no_mean_over_items_is_refused() -> None:
    with pytest.raises(ValueError, match="macro_f1"):
        item_values([], "macro_f1")
    with pytest.raises(ValueError, match="pass@3 needs at least 3 samples"):
        item_values([{"example_id": "a", "correct": True}], "pass@3")


def test_the_interval_of_one_seed_is_wilsons_of_right_and_wrong_and_a_bootstrap_of_shares() -> None:
    found = mean(values([1.0] * 30 + [0.0] * 70))
    assert (found.value, found.seeds, found.items, found.interval) == (0.3, 1, 100, "wilson")
    assert [found.low, found.high] == pytest.approx([0.2189, 0.3958], abs=1e-4)
    shares = [0.75] * 30 + [0.25] * 70
    found = mean(values(shares))
    generator = np.random.default_rng(1)
    draws = [np.mean(generator.choice(shares, 100)) for _ in range(4000)]
    assert found.value == pytest.approx(0.4)
    assert (found.seeds, found.items, found.interval) == (1, 100, "bootstrap over seeds and items")
    assert [found.low, found.high] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.011)


def test_the_interval_of_all_wrong_is_not_a_point() -> None:
    found = mean(values([0.0] * 30, [0.0] * 30))
    assert (found.value, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(0.1135, abs=1e-4)  # Wilson: z^2 / (n + z^2)


def test_the_spread_between_seeds_widens_the_interval() -> None:
    steady = mean(values([1.0, 0.0] * 50, [1.0, 0.0] * 50))
    uneven = mean(values([1.0] * 90 + [0.0] * 10, [1.0] * 10 + [0.0] * 90))
    assert steady.value == uneven.value == 0.5
    assert uneven.high - uneven.low > 2 * (steady.high - steady.low)
    assert [uneven.low, uneven.high] == pytest.approx([0.1, 0.9], abs=0.06)  # a draw may hold one seed twice


def test_a_difference_is_paired_by_item_and_seed() -> None:
    hard_and_easy = [0.0, 1.0] * 50
    better = [value if place else 1.0 for place, value in enumerate(hard_and_easy)]  # one item more is right
    found = difference(values(better), values(hard_and_easy))
    assert found.value == pytest.approx(0.01)
    assert found.high <= 0.04  # unpaired, it would be about +-0.14
    same = difference(values(better, better), values(better, better))
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_differences_over_other_items_or_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="different items"):
        difference(values([1.0, 0.0]), values([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="same seeds on both sides, not 2 and 1"):
        difference(values([1.0], [0.0]), values([1.0]))
    with pytest.raises(ValueError, match="no item has a verdict"):
        mean([{"a": None}])


def test_items_without_a_verdict_on_one_side_are_left_out_of_both() -> None:
    found = difference([{"a": 1.0, "b": None, "c": 0.0}], [{"a": 0.0, "b": 1.0, "c": None}])
    assert (found.value, found.items) == (1.0, 1)


# -- one run --


def test_the_report_answers_with_interval_seeds_and_controls(tmp_path: Path) -> None:
    base = outcomes(10, 90)
    run = write_run(tmp_path, correct=outcomes(60, 40), base=base)
    write_run(tmp_path, correct=outcomes(60, 40), base=base, method="normal", scorer="none")
    against_base, against_normal, against_random = verdict(load_run(run))
    assert "from 10.0 % to 60.0 %: +50.0 [" in against_base
    assert "100 items and 1 seed (so the spread between seeds is not in the interval)" in against_base
    assert "Better than the base model" in against_base
    assert against_normal.startswith("Against plain fine-tuning on every response token: +0.0 [+0.0, +0.0] points")
    assert "No item came out differently" in against_normal
    assert "no such run" in against_random
    assert "method=random" in against_random


def test_all_finished_seeds_count(tmp_path: Path) -> None:
    base = outcomes(10, 90)
    for seed in (0, 1, 2):
        run = write_run(tmp_path, correct=outcomes(30 + seed, 70 - seed), base=base, seed=seed)
    write_run(tmp_path, correct=outcomes(70, 30), base=base, method="normal", scorer="none", seed=1)
    sentences = verdict(load_run(run))
    assert "to 31.0 %: +21.0" in sentences[0]
    assert "100 items and 3 seeds." in sentences[0]
    assert "-39.0 [" in sentences[1]  # seed 1 alone is shared
    assert "Worse than that control" in sentences[1]


def test_a_control_with_other_settings_is_no_control(tmp_path: Path) -> None:
    base = outcomes(10, 90)
    run = write_run(tmp_path, correct=outcomes(60, 40), base=base)
    write_run(
        tmp_path, correct=outcomes(9, 91), base=base, method="normal", scorer="none", overrides={"tuning.epochs": 9}
    )
    assert "no such run" in verdict(load_run(run))[1]


def write_cutoffs(root: Path) -> list[Path]:
    """XTF and random masks of two cutoffs of KN: with the second, random is as good as XTF. Returns XTF's runs."""
    runs = []
    for pcp, xtf, random in ((0.5, 20, 10), (0.99, 60, 60)):
        more = {"base": outcomes(10, 90), "overrides": {"threshold.kn.pcp": pcp}, "experiment": "t"}
        runs.append(write_run(root, correct=outcomes(xtf, 100 - xtf), **more))
        write_run(root, correct=outcomes(random, 100 - random), method="random", **more)
    write_run(root, correct=outcomes(30, 70), base=outcomes(10, 90), method="normal", experiment="t")
    return runs


def test_a_random_mask_is_the_control_of_its_own_scorer_and_threshold_alone(tmp_path: Path) -> None:
    cutoffs = write_cutoffs(tmp_path)
    other = write_run(tmp_path, correct=outcomes(60, 40), base=outcomes(10, 90), scorer="kn")
    _, normal, random = zip(*(verdict(load_run(run)) for run in (*cutoffs, other)), strict=True)
    assert [re.search(r": (\S+)", line)[1] for line in normal] == ["-10.0", "+30.0", "+30.0"]  # type: ignore[index]
    assert random[0].startswith("Against a random mask as large as XTF's: +10.0 [")
    assert random[1].startswith("Against a random mask as large as XTF's: +0.0 [")
    assert random[2].startswith("Not compared with a random mask as large as XTF's: no such run")


def sampled(root: Path, seeds: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Runs at temperature 0.8 by method, where every seed has its own base completions; the last run of each.

    Right in per cent, XTF and base: 20 and 5 with seed 0, 40 and 10 with 1, 60 and 15 with 2, 80 and 20 with 3; a
    control has 10 less than XTF.
    """
    last = {}
    for method, chosen in seeds.items():
        for seed in chosen:
            right, base = 20 * (seed + 1) - 10 * (method != "xtf"), 5 * (seed + 1)
            last[method] = write_run(
                root,
                correct=outcomes(right, 100 - right),
                base=outcomes(base, 100 - base),
                method=method,
                seed=seed,
                task="code",
                overrides={"task.temperature": 0.8},
                experiment="t",
            )
    return last


def test_sampled_runs_are_paired_seed_by_seed_each_with_its_own_base(tmp_path: Path) -> None:
    every = (0, 1, 2)
    run = sampled(tmp_path, {"normal": every, "random": every, "xtf": every})["xtf"]
    over_base, *controls = verdict(load_run(run))
    assert "from 10.0 % to 40.0 %: +30.0 [" in over_base
    assert "100 items and 3 seeds." in over_base
    for line in controls:
        assert "+10.0 [" in line
        assert "100 items and 3 seeds." in line
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out" / "t.csv")
    base, xtf = table["code", "base model"], table["code", "method=xtf"]
    assert (float(base["value"]), base["seeds"]) == (pytest.approx(0.1), "3")
    for name, found in (("base", 0.3), ("normal", 0.1), ("random", 0.1)):
        assert (float(xtf[f"{name}_difference"]), xtf[f"{name}_seeds"]) == (pytest.approx(found), "3")


def test_a_control_without_its_first_seed_is_compared_over_the_others(tmp_path: Path) -> None:
    run = sampled(tmp_path, {"normal": (1, 2), "random": (2, 3), "xtf": (0, 1, 2)})["xtf"]
    basis = [re.search(r"items and (\d) seed", line)[1] for line in verdict(load_run(run))]  # type: ignore[index]
    assert basis == ["3", "2", "1"]
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    xtf = read_table(tmp_path / "out" / "t.csv")["code", "method=xtf"]
    assert float(xtf["normal_difference"]) == float(xtf["random_difference"]) == pytest.approx(0.1)
    assert (xtf["base_seeds"], xtf["normal_seeds"], xtf["random_seeds"]) == ("3", "2", "1")


def test_a_run_whose_base_was_graded_otherwise_is_no_control(tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=outcomes(60, 40), base=outcomes(10, 90), seed=1)
    write_run(tmp_path, correct=outcomes(50, 50), base=outcomes(30, 70), method="normal", seed=1)
    assert "no such run" in verdict(load_run(run))[1]


def test_run_report_writes_pages_and_figures_that_hold_the_runs_numbers(tmp_path: Path) -> None:
    scored = scored_table(30)
    run = write_run(tmp_path, scored=scored, correct=outcomes(60, 40), base=outcomes(10, 90))
    paths = run_report(run, tmp_path / "out")
    names = {path.relative_to(tmp_path / "out").as_posix() for path in paths}
    figures = ("accuracy", "distributions", "sensitivity", "overlap", "loss")
    assert names == {"report.html", "report.md"} | {f"figures/{n}.{s}" for n in figures for s in ("png", "svg")}
    for path in paths:
        start = path.read_bytes()[:8]
        assert start == PNG if path.suffix == ".png" else start
    stats = build_mask(scored, PRESETS["paper"], list(Attribute)).stats
    for page in (tmp_path / "out" / "report.md", tmp_path / "out" / "report.html"):
        text = page.read_text(encoding="utf-8")
        assert f"{100 * stats.dropped_share['kn']:.2f} %" in text
        assert "60.0 % [50.2, 69.1]" in text
        assert "python run.py model=tiny task=math tuning=full method=xtf scorer=xtf threshold=paper seed=0" in text
        assert "wrong → right: 50" in text
        assert "torch" in text
        assert text.index("This mask: ") < text.rindex("What was dropped")
        assert not re.search(r"\d\.\d{9,}", re.sub(r"data:image\S+", "", text.split("Configuration")[0]))
    for anchor in ("help", "before", "dropped", "figures", "tokens", "completions", "repeat"):
        assert f'<a href="#{anchor}">' in text and f'<h2 id="{anchor}">' in text  # of report.html


def test_a_report_without_base_or_scores_says_what_is_missing(tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=outcomes(60, 40), base=None, method="normal", scorer="none")
    names = [path.name for path in run_report(run, tmp_path / "out")]
    assert "distributions.png" not in names
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "the base model was not measured" in text
    assert "| accuracy | - | 60.0 %" in text


def test_degenerate_attributes_are_flagged_in_words(tmp_path: Path) -> None:
    scored = scored_table(10)
    flat = [[0.5] * len(row) for row in scored["tr"].to_pylist()]
    place = scored.column_names.index("tr")
    scored = scored.set_column(place, "tr", pa.array(flat, pa.list_(pa.float32())))
    run = write_run(tmp_path, scored=scored, correct=outcomes(6, 4), base=outcomes(1, 9))
    run_report(run, tmp_path / "out")
    assert "Degenerate attribute TR: its scores are (nearly) constant" in (tmp_path / "out" / "report.md").read_text()
    assert "degenerate attribute TR" in printed(load_run(run).record)


def test_markup_in_a_dataset_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=outcomes(2, 2), base=outcomes(1, 3))
    hostile = "</pre><script>alert(1)</script> ``` | {}"
    lines = generations(outcomes(2, 2), completion=hostile.replace("{}", "{{}} {}"))
    (run / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_report(run, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1  # the page's own
    assert "<script>alert" not in page
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"````text\n</pre><script>.*\n````", markdown)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished run: it has no metrics\.json"):
        run_report(tmp_path, tmp_path / "out")


def test_the_console_table_shows_quality_shares_and_times(tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=outcomes(60, 40), base=outcomes(10, 90))
    record = load_run(run).record
    shown = printed(record)
    assert "10.0 % [5.5, 17.4]" in shown
    assert "60.0 % [50.2, 69.1]" in shown
    assert f"{100 * record['mask']['dropped_share']['union']:.2f} %" in shown
    assert "2.2 min" in shown


def test_most_dropped_tokens_are_counted_by_attribute() -> None:
    table = build_mask(scored_table(40), PRESETS["paper"], list(Attribute)).table
    tokens = MaskedTokens.from_mask(table)
    found = most_dropped(tokens, "tr", lambda token: f" {token}\n")
    ids, dropped = tokens.ids.tolist(), tokens.dropped["tr"].tolist()
    counts = {token: sum(d for i, d in zip(ids, dropped, strict=True) if i == token) for token in set(ids)}
    best = max(counts.values())
    assert found[0]["dropped"] == best
    assert found[0]["share"] == best / ids.count(found[0]["id"])
    assert found[0]["text"] == f"·{found[0]['id']}⏎"


def test_shown_completions_take_turns_between_the_kinds_of_change() -> None:
    base, tuned = (generations([False, False, True, True, False]), generations([True, True, False, True, False]))
    found = paired_generations(base, tuned)
    assert found["counts"] == {"wrong → right": 2, "right → wrong": 1, "right → right": 1, "wrong → wrong": 1}
    order = [item["after"]["example_id"] for item in found["items"]]
    assert order == ["item-0", "item-2", "item-3", "item-4", "item-1"]
    assert found["items"][0]["before"]["correct"] is False


def test_the_command_is_quoted_for_hydra_and_the_shell(tmp_path: Path) -> None:
    overrides = {"task.train.path": "my data/a,b.jsonl", "threshold.kn.cap": None, "scorer.compute": ["ri", "kn"]}
    run = write_run(tmp_path, correct=outcomes(1, 1), base=None, overrides=overrides)
    line = command_line(load_run(run).record)
    assert "'task.train.path=\"my data/a,b.jsonl\"'" in line
    assert "threshold.kn.cap=null" in line
    assert "'scorer.compute=[ri,kn]'" in line


def test_the_command_of_another_method_has_none_of_this_ones_settings(tmp_path: Path) -> None:
    run = write_run(
        tmp_path, correct=outcomes(1, 1), base=None, method="slm", overrides={"method.keep": 0.5, "plant.share": 0.3}
    )
    record = load_run(run).record
    assert "method.keep=0.5" in command_line(record, seed=1)
    assert "method.keep" not in command_line(record, method="random")
    assert "plant.share=0.3" in command_line(record, method="random")


def test_markdown_code_cannot_be_closed_from_inside() -> None:
    assert fenced("a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert inline_code("a`|b") == "`` a`\\|b ``"


def test_reports_do_not_import_torch_nor_what_draws_before_they_draw() -> None:
    code = (
        "import sys, xtf.reporting.mask_report, xtf.reporting.run_report, xtf.reporting.sweep_report\n"
        "print(*{'torch', 'matplotlib', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# -- a sweep --


def sweep(root: Path, **more: Any) -> None:
    """Two seeds of normal, xtf and random; xtf is far better; one more xtf run did not finish."""
    base = outcomes(10, 90)
    for seed in (0, 1):
        write_run(root, correct=outcomes(40, 60), base=base, method="normal", seed=seed, experiment="t", **more)
        write_run(root, correct=outcomes(80 + seed, 20 - seed), base=base, seed=seed, experiment="t", **more)
    unfinished = write_run(root, correct=outcomes(1, 1), base=base, seed=2, experiment="t", **more)
    (unfinished / "metrics.json").unlink()
    write_run(root, correct=outcomes(41, 59), base=base, method="random", seed=1, experiment="t", **more)


def read_table(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as lines:
        return {(row["task"], row["setting"]): row for row in csv.DictReader(lines)}


def test_a_sweep_table_has_means_paired_differences_and_what_is_missing(tmp_path: Path) -> None:
    sweep(tmp_path)
    sweep(tmp_path, task="medical")
    rows = {folder for folder in (tmp_path / "runs" / "medical").rglob("seed*") if "random" in folder.parts}
    for folder in rows:  # the random control of one task was never run
        for file in folder.iterdir():
            file.unlink()
    paths = sweep_report("t", tmp_path / "runs", tmp_path / "out")
    assert {path.suffix for path in paths} == {".csv", ".md", ".html", ".png", ".svg"}
    table = read_table(tmp_path / "out" / "t.csv")
    xtf = table["math", "method=xtf"]
    assert float(xtf["value"]) == pytest.approx(0.805)
    assert float(xtf["base_difference"]) == pytest.approx(0.705)
    assert float(xtf["normal_difference"]) == pytest.approx(0.405)
    assert float(xtf["random_difference"]) == pytest.approx(0.40)
    assert (xtf["seeds"], xtf["normal_seeds"], xtf["random_seeds"]) == ("2", "2", "1")
    assert xtf["note"] == "1 run not finished"
    assert xtf["mark"] == "best"
    assert table["math", "method=random"]["note"] == "without seed 0"
    assert table["medical", "method=random"]["note"] == "no run"
    assert table["medical", "method=random"]["value"] == ""
    text = (tmp_path / "out" / "t.md").read_text(encoding="utf-8")
    assert "**80.5 % [" in text
    assert "/seed2`" in text
    lines = text.splitlines()
    heads = [place for place, line in enumerate(lines) if line.startswith("| method | mean |")]
    assert heads and all(lines[k + 1].startswith("|---|") and lines[k + 2].startswith("| `base") for k in heads)
    assert {line.count("|") for line in lines[heads[0] : heads[0] + 3]} == {lines[heads[0]].count("|")}


def test_a_sweep_over_thresholds_pairs_each_with_its_own_random_mask(tmp_path: Path) -> None:
    write_cutoffs(tmp_path)
    write_run(tmp_path, correct=outcomes(70, 30), base=outcomes(10, 90), experiment="t")
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out" / "t.csv")
    settings = [f"method=xtf{cutoff}" for cutoff in (" threshold.kn.pcp=0.5", " threshold.kn.pcp=0.99", "")]
    found = {
        name: [table["math", setting][f"{name}_difference"] for setting in settings] for name in ("normal", "random")
    }
    assert [float(each) for each in found["normal"]] == pytest.approx([-0.1, 0.3, 0.4])
    assert [float(each) for each in found["random"][:2]] == pytest.approx([0.1, 0.0])
    assert found["random"][2] == ""
    assert "| no run |" in (tmp_path / "out" / "t.md").read_text(encoding="utf-8")


def test_xtf_without_a_scorer_is_plain_fine_tuning_unless_attributes_are_given(tmp_path: Path) -> None:
    def over_normal() -> dict[str, str]:
        sweep_report("t", tmp_path / "runs", tmp_path / "out")
        rows = read_table(tmp_path / "out" / "t.csv").values()
        return {row["value"]: row["normal_difference"][:4] for row in rows if row["setting"] != "base model"}

    more = {"base": outcomes(10, 90), "experiment": "t"}
    masked = {"scorer.attributes": ["kn"]}
    write_run(tmp_path, correct=outcomes(80, 20), scorer="none", overrides=masked, **more)
    write_run(tmp_path, correct=outcomes(60, 40), **more)
    assert over_normal() == {"0.8": "", "0.6": ""}
    write_run(tmp_path, correct=outcomes(35, 65), scorer="none", **more)
    assert over_normal() == {"0.8": "0.45", "0.6": "0.25", "0.35": ""}


def test_nothing_is_marked_best_where_intervals_meet(tmp_path: Path) -> None:
    write_run(tmp_path, correct=outcomes(45, 55), base=outcomes(40, 60), experiment="t")
    write_run(tmp_path, correct=outcomes(44, 56), base=outcomes(40, 60), method="normal", experiment="t")
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    assert {row["mark"] for row in read_table(tmp_path / "out" / "t.csv").values()} == {""}


def test_an_experiment_is_found_by_name_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    sweep(tmp_path)
    write_run(tmp_path, correct=outcomes(1, 1), base=None, model="other", experiment="another")
    sweep_report("t", tmp_path / "runs", tmp_path / "out")
    assert all(row["model"] == "tiny" for row in read_table(tmp_path / "out" / "t.csv").values())
    with pytest.raises(ValueError, match="no run of experiment 'table9'"):
        sweep_report("table9", tmp_path / "runs", tmp_path / "out")


def test_the_papers_numbers_stand_beside_runs_of_the_papers_settings(tmp_path: Path) -> None:
    both = {"model": "llama_1b", "experiment": "table1", "base": outcomes(3, 97)}
    write_run(tmp_path, correct=outcomes(4, 96), method="normal", **both)
    write_run(tmp_path, correct=outcomes(5, 95), **both)
    sweep_report("table1", tmp_path / "runs", tmp_path / "out")
    table = read_table(tmp_path / "out" / "table1.csv")
    assert table["math", "base model"]["reported_percent"] == "2.8"
    assert table["math", "method=normal"]["reported_percent"] == "4.3"
    assert table["math", "method=xtf"]["reported_percent"] != ""


def test_own_data_has_no_reported_number(tmp_path: Path) -> None:
    own = {"model": "llama_1b", "experiment": "e", "overrides": {"task.train.path": "my.jsonl"}}
    write_run(tmp_path, correct=outcomes(4, 96), base=outcomes(3, 97), method="normal", **own)
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    assert {row["reported_percent"] for row in read_table(tmp_path / "out" / "e.csv").values()} == {""}


@pytest.mark.usefixtures("no_pictures")
def test_reports_of_runs_that_differ_in_a_setting_have_titles_that_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path, correct=outcomes(5, 5), base=None, overrides={"threshold.kn.pcp": 0.9})
    run_report(folder, tmp_path / "out")
    title = re.findall("<title>(.*?)</title>", (tmp_path / "out" / "report.html").read_text(encoding="utf-8"))[0]
    assert "scorer xtf, threshold paper, seed 0, threshold.kn.pcp=0.9, 10 training rows" in title


@pytest.mark.usefixtures("no_pictures")
def test_the_figure_names_a_run_without_a_mask_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    draw = figures.accuracy
    monkeypatch.setattr(figures, "accuracy", lambda rows, *unit: (drawn.append(rows), draw(rows, *unit))[1])
    run_report(write_run(tmp_path, correct=outcomes(5, 5), base=None, scorer="none"), tmp_path / "out")
    assert [name for name, *_ in drawn[0]] == ["fine-tuned with every response token"]


def test_text_table_figure_and_sweep_of_one_run_show_one_figure_with_one_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, correct=outcomes(5, 55), base=outcomes(2, 58))
    write_run(tmp_path, correct=outcomes(9, 51), base=outcomes(2, 58), scorer="none")  # which is plain fine-tuning
    drawn: list[Any] = []
    draw = figures.accuracy
    monkeypatch.setattr(figures, "accuracy", lambda rows, *unit: (drawn.append(rows), draw(rows, *unit))[1])
    run_report(folder, tmp_path / "out")
    metrics = load_run(folder).record["metrics"]["accuracy"], load_run(folder).record["base_metrics"]["accuracy"]
    tuned, base = ((found["value"], found["low"], found["high"]) for found in metrics)
    assert drawn[0] == [
        ("base model", *base),
        ("fine-tuned with XTF", *tuned),
        ("fine-tuned with every response token", *drawn[0][2][1:]),
    ]
    assert drawn[0][2][1] == pytest.approx(9 / 60)
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert f"| accuracy | {with_interval(metrics[1])} | {with_interval(metrics[0])} | 60 | wilson |" in text
    assert "took accuracy from 3.3 % to 8.3 %: +5.0" in text
    assert "Against plain fine-tuning on every response token: -6.7" in text

    monkeypatch.setattr(console, "width", 200)  # which a worker of xdist fixes at 80
    jobs_report("sweep", [folder], {}, tmp_path / "out")
    row = read_table(tmp_path / "out" / "sweep.csv")["math", "method=xtf"]
    assert tuple(float(row[name]) for name in ("value", "low", "high")) == tuned
    shown = capsys.readouterr().out
    assert with_interval(metrics[0]) in shown and with_interval(metrics[1]) in shown
    assert with_interval(metrics[0]) in (tmp_path / "out" / "sweep.md").read_text(encoding="utf-8")


def test_in_80_columns_a_sweep_over_one_key_names_its_settings_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method in ("normal", "random", "xtf"):
        write_run(tmp_path, correct=outcomes(5, 55), base=outcomes(2, 58), method=method, experiment="e")
    monkeypatch.setattr(console, "width", 80)
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    first = [line.split()[0].rstrip(":") for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {"method", "base", "normal", "random", "xtf"} <= set(first)


def test_a_sweep_says_what_was_said_of_its_masks_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, seed, words in (("normal", 0, None), ("xtf", 0, "fine"), ("xtf", 1, "do not train on this")):
        folder = write_run(tmp_path, correct=outcomes(5, 5), base=None, method=method, seed=seed, experiment="e")
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        record["mask"] |= {"verdict": words, "verdict_reason": "" if words == "fine" else "Why not."} if words else {}
        (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    said = "The verdict on the mask, math · tiny · full: do not train on this (xtf). Why not."
    assert said in " ".join(capsys.readouterr().out.split())
    page = (tmp_path / "out" / "e.md").read_text(encoding="utf-8")
    assert page.splitlines()[2] == f"- {said}"  # behind the title, before what training gave
    html = (tmp_path / "out" / "e.html").read_text(encoding="utf-8")
    assert f'<div class="mask stop">\n<p>{said}</p>' in html and html.index(said) < html.index("<nav")
    assert read_table(tmp_path / "out" / "e.csv")["math", "method=xtf"]["verdict"] == "do not train on this"


def test_several_seeds_are_pooled_alike_in_text_table_and_figure(tmp_path: Path) -> None:
    for seed, right in enumerate((10, 20, 30)):
        folder = write_run(tmp_path, correct=outcomes(right, 40 - right), base=outcomes(5, 35), seed=seed)
    run_report(folder, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "took accuracy from 12.5 % to 50.0 %" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| accuracy, mean of 3 seeds |")]
    assert "| 12.5 % [" in row and "| 50.0 % [" in row and "bootstrap over seeds and items" in row


def test_the_metric_fixture_is_the_wilson_interval() -> None:
    found = metric(outcomes(60, 40))
    assert (round(found["low"], 3), round(found["high"], 3)) == (0.502, 0.691)


def test_what_differs_between_cases_alone_is_in_no_label(tmp_path: Path) -> None:
    for task in ("math", "medical"):
        for method in ("normal", "xtf"):
            overrides = {"task.train.path": f"{task}.jsonl", "tuning.epochs": 1}
            write_run(
                tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), task=task, method=method, overrides=overrides
            )
    begun = tmp_path / "runs" / "math" / "tiny" / "full" / "xtf" / "xtf-paper-0badc0de" / "seed0"
    begun.mkdir(parents=True)  # killed before it wrote what it is
    folders = [*(file.parent for file in tmp_path.glob("runs/**/metrics.json")), begun]
    jobs_report("labels", folders, {}, tmp_path / "out")
    assert {label for _, label in read_table(tmp_path / "out" / "labels.csv")} == {
        "base model",
        "method=normal",
        "method=xtf",
        "method=xtf scorer=xtf threshold=paper overrides=0badc0de",
    }


def test_what_more_than_half_of_the_settings_have_is_said_once_and_not_in_each_label(tmp_path: Path) -> None:
    def add(**more: Any) -> None:
        write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), experiment="e", **more)

    add(method="normal")
    add(method="random")
    add()
    add(scorer="ri_kn")
    add(threshold="safe", overrides={"threshold.protect": "answer"})
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    assert [label for _, label in read_table(tmp_path / "out" / "e.csv")] == [
        "base model",
        "method=normal",
        "method=random",
        "method=xtf scorer=ri_kn",
        "method=xtf",
        "method=xtf threshold=safe threshold.protect=answer",
    ]
    page = (tmp_path / "out" / "e.md").read_text(encoding="utf-8")
    assert "Where a setting does not say otherwise: scorer=xtf, threshold=paper." in page
    assert "| method | mean | over base |" in page and "| `xtf scorer=ri_kn` |" in page


@pytest.mark.parametrize(
    ("width", "below"), [(80, ["8.3 % [3.6, 18.1]  -41.7 ["]), (72, ["8.3 %  ", "[3.6, 18.1]  ["])]
)
def test_a_narrow_console_holds_a_sweep_with_long_settings_and_all_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int, below: list[str]
) -> None:
    long = {"scorer.tr.variant": "contextual", "threshold.protect": "answer"}
    for method, overrides in (("normal", {}), ("random", {}), ("xtf", {}), ("xtf", long)):
        write_run(
            tmp_path, correct=outcomes(5, 55), base=outcomes(30, 30), method=method, overrides=overrides, experiment="e"
        )
    monkeypatch.setattr(console, "width", width)
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    names = [place for place, line in enumerate(lines) if line.startswith("xtf scorer.tr.variant=contextual")]
    rest = [line.strip() for line in lines[names[0] + 2 :]]  # the name and what it stands for take two lines
    assert [line[: len(start)] for line, start in zip(rest, below, strict=False)] == below
    assert all(len(line.rstrip()) <= width for line in lines[names[0] :])


def lossy(root: Path, method: str, nats: float, **more: Any) -> Path:
    """A run of 40 rows with 10 and 20 tokens in turn, each token at so many nats, and rows that differ a little."""
    rows = {f"row-{k}": (10 + 10 * (k % 2), (10 + 10 * (k % 2)) * (nats + 0.01 * (k % 3))) for k in range(40)}
    return write_run(root, correct=outcomes(5, 5), base=None, method=method, losses=rows, **more)


def test_the_loss_decides_where_it_is_measured_and_accuracy_shows_nothing(tmp_path: Path) -> None:
    folder = lossy(tmp_path, "xtf", 2.0)
    lossy(tmp_path, "normal", 1.5)
    _, loss, against, in_loss, without = verdict(load_run(folder))
    assert loss.startswith("Its loss on the reference responses is 2.0")
    assert "No item came out differently" in against
    assert in_loss.startswith("In loss: +0.500 [") and in_loss.endswith(
        "Worse than that control: the interval leaves out zero."
    )
    assert without.startswith("Not compared with a random mask")
    assert without.endswith(f" seed=0 output_dir={tmp_path}")  # where it is looked for


def test_a_sweep_compares_the_loss_of_its_arms_and_says_where_no_item_differs(tmp_path: Path) -> None:
    lossy(tmp_path, "xtf", 2.0, experiment="e")
    lossy(tmp_path, "normal", 1.5, experiment="e")
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    with (tmp_path / "out" / "e.csv").open(newline="", encoding="utf-8") as lines:
        rows = {(row["setting"], row["metric"]): row for row in csv.DictReader(lines)}
    found = rows["method=xtf", "loss"]
    assert (found["unit"], float(found["normal_difference"])) == ("nats", pytest.approx(0.5))
    assert found["value"] == str(
        load_run(tmp_path / "runs/math/tiny/full/xtf/xtf-paper/seed0").record["metrics"]["loss"]["value"]
    )
    assert rows["method=normal", "loss"]["mark"] == ""  # the made-up intervals meet
    page = (tmp_path / "out" / "e.md").read_text(encoding="utf-8")
    assert "loss against normal: of 1 comparison, 0 better and 1 worse (xtf)" in page
    assert "| no item differs |" in page and "## math · tiny · full: loss, nats a token" in page


def test_the_loss_of_several_seeds_is_the_ratio_of_nats_to_tokens(tmp_path: Path) -> None:
    runs = [load_run(lossy(tmp_path, "xtf", nats, seed=seed)) for seed, nats in enumerate((1.0, 2.0))]
    found = arm_mean(runs, "loss")
    rows = [rows for run in runs if (rows := run.row_losses())]
    nats, tokens = (sum(pair[part] for each in rows for pair in each.values()) for part in (1, 0))
    assert found.value == pytest.approx(nats / tokens)
    assert (found.unit, found.seeds, found.interval) == ("nats", 2, "bootstrap over seeds and rows")
    assert found.low == pytest.approx(1.0, abs=0.02) and found.high == pytest.approx(2.0, abs=0.02)


def test_what_is_no_mean_over_items_stands_in_a_sweeps_report_and_csv(tmp_path: Path) -> None:
    for seed, value in ((0, 2.0), (1, 3.0)):
        folder = write_run(tmp_path, correct=outcomes(5, 5), base=None, seed=seed, experiment="e")
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        figure = {"value": value, "low": 1.0, "high": 4.0, "n": 24, "interval": "bootstrap over rows", "unit": "nats"}
        record["metrics"] |= {"forgetting_loss": figure, "ungraded": figure | {"value": 0.0}}
        (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
    sweep_report("e", tmp_path / "runs", tmp_path / "out")
    with (tmp_path / "out" / "e.csv").open(newline="", encoding="utf-8") as lines:
        found = {row["metric"]: row for row in csv.DictReader(lines) if row["setting"] == "method=xtf"}
    assert (found["forgetting_loss"]["value"], found["forgetting_loss"]["seeds"]) == ("2.5", "2")
    assert "ungraded" not in found
    assert "| `xtf` | 2.500 nats |" in (tmp_path / "out" / "e.md").read_text(encoding="utf-8")


def test_a_sweep_leads_to_the_reports_of_its_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, correct=outcomes(5, 5), base=None, experiment="e")
    out = tmp_path / "reports"
    run_report(folder, RunFolder(folder).reports)
    sweep_report("e", tmp_path / "runs", out)
    page = (out / "e.html").read_text(encoding="utf-8")
    (address,) = re.findall('<a href="([^#"]+)"', page)
    assert (out / address).is_file() and address.endswith("report.html")
