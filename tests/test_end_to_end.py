"""The whole pipeline on the bundled model and rows: what it leaves, what it reuses, and that a kill costs nothing."""

from __future__ import annotations

import csv
import importlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import commands
import datasets
import hydra
import numpy as np
import pyarrow.parquet as pq
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

import xtf
from xtf import pipeline
from xtf.config.checks import resolve
from xtf.config.compose import register, to_config
from xtf.config.identity import overrides
from xtf.config.schema import GROUPS
from xtf.reporting.runs import load_run
from xtf.runtime import models
from xtf.runtime.artifacts import read_json
from xtf.tiny import MODEL_DIR

ROOT = Path(__file__).parents[1]
SMALL = [
    "task.train.limit=48",
    "task.eval.limit=12",
    "task.max_new_tokens=16",
    "trainer.shard_examples=16",
    "trainer.checkpoint_every=1",
    "trainer.tokens_per_eval_batch=100",
    "tuning.epochs=1",
    "tuning.batch_size=8",
]
RUN = "outputs/runs/math/tiny/full/xtf"


def finish(folder, *arguments):
    """Runs `SMALL` in `folder`; what it printed."""
    done = commands.run([*SMALL, *arguments], folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def record(folder):
    """metrics.json without what may differ between two equal runs: seconds, rates, what the machine had free."""

    def timeless(value):
        if isinstance(value, dict):
            return {
                k: timeless(v)
                for k, v in value.items()
                if "second" not in k and k not in ("timing", "command", "git_commit", "free_gb", "how")
            }
        return value

    (file,) = folder.glob(f"{RUN}/*/seed0/metrics.json")
    return timeless(read_json(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, str(ROOT / "run.py"), *SMALL]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


def test_a_run_leaves_every_artifact_of_the_contract(whole):
    folder, log = whole
    (run,) = folder.glob(f"{RUN}/*/seed0")
    assert run.parent.name.startswith("xtf-paper-")
    for name in (
        "config.yaml",
        "manifest.json",
        "mask.parquet",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer_config.json",
        "generations.jsonl",
        "metrics.json",
        "train_log.csv",
    ):
        assert (run / name).exists(), name
    assert not list(folder.rglob("*.tmp"))
    assert len(list((folder / "outputs/base").iterdir())) == 1
    for word in (
        "accuracy",
        "by any",
        "metrics.json",
        "report.html",
        "95 %",
        "judged before it is trained with: python",
    ):
        assert word in log, word

    got = read_json(run / "metrics.json")
    assert {
        "task": "math",
        "model": "tiny",
        "method": "xtf",
        "scorer": "xtf",
        "threshold": "paper",
        "seed": 0,
    }.items() <= got.items()
    for metrics in (got["metrics"], got["base_metrics"]):
        assert metrics["accuracy"]["n"] == 12
        assert metrics["accuracy"]["low"] <= metrics["accuracy"]["value"] <= metrics["accuracy"]["high"]
    assert set(got["timing"]) == {"score", "mask", "evaluate_base", "train", "evaluate"}
    assert got["data"]["train"]["rows"] == 48


def test_the_mask_is_a_training_file_whose_labels_are_the_kept_response_tokens(whole):
    folder, _ = whole
    (file,) = folder.glob(f"{RUN}/*/seed0/mask.parquet")
    dropped = kept = 0
    for row in pq.read_table(file).to_pylist():
        start = row["prompt_length"]
        assert row["labels"][:start] == [-100] * start
        drops = zip(row["drop_ri"], row["drop_kn"], row["drop_tr"], strict=True)
        for token, label, drop in zip(row["input_ids"][start:], row["labels"][start:], drops, strict=True):
            assert label == (-100 if any(drop) else token)
            dropped, kept = dropped + any(drop), kept + (not any(drop))
    stats = record(folder)["mask"]
    assert stats["end_tokens"] == 48  # one for each row; kept, and not counted among the response tokens
    kept -= 48
    assert stats["kept_tokens"] == kept
    assert stats["dropped_share"]["union"] == pytest.approx(dropped / (dropped + kept))
    assert dropped > 0 and kept > 0


def test_the_model_that_is_written_loads_with_transformers_alone(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (folder,) = whole[0].glob(f"{RUN}/*/seed0/model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer)


def test_the_same_command_again_does_nothing_and_says_so(whole):
    folder, _ = whole
    anew = ("config.yaml", "hashes.json")  # written by every command, with the same content
    before = {path: path.stat().st_mtime_ns for path in folder.glob(f"{RUN}/**/*") if path.name not in anew}
    log = finish(folder)
    assert "already done" in log
    after = {path: path.stat().st_mtime_ns for path in folder.glob(f"{RUN}/**/*") if path.name not in anew}
    assert {p: t for p, t in after.items() if p.is_file() and p.name != ".lock"} == {
        p: t for p, t in before.items() if p.is_file() and p.name != ".lock"
    }


MOMENTS = {  # what it is about to write when it is killed, and for which time
    "score": (r"outputs/scores/[^/]+/00001\.parquet$", 1),
    "mask": (rf"{RUN}/[^/]+/seed0/mask\.parquet$", 1),
    "evaluate the base": (r"outputs/base/[^/]+/generations\.partial\.jsonl$", 2),
    "train": (rf"{RUN}/[^/]+/seed0/checkpoints/last\.ckpt$", 3),
    "evaluate": (rf"{RUN}/[^/]+/seed0/generations\.partial\.jsonl$", 2),
    "record": (rf"{RUN}/[^/]+/seed0/metrics\.json$", 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_stage_and_started_again_ends_with_the_same_record(whole, tmp_path, moment):
    pattern, time = MOMENTS[moment]
    killed = commands.run(SMALL, tmp_path, prepare=commands.Kill(pattern, time).watch)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert not list(tmp_path.glob(f"{RUN}/*/seed0/metrics.json"))
    finish(tmp_path)
    assert record(tmp_path) == record(whole[0])


def test_two_runs_that_want_one_folder_take_turns(whole, tmp_path):
    both = [commands.start(SMALL, tmp_path, tmp_path / "log") for _ in range(2)]
    assert [one.finish().returncode for one in both] == [0, 0], (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "waiting for it" in log
    assert "already done" in log
    assert record(tmp_path) == record(whole[0])


# --- in this process, with the same artifacts ---


@pytest.fixture
def run(whole, monkeypatch, no_pictures):
    """Runs a configuration in the folder of the whole run, like run.py does."""
    monkeypatch.chdir(whole[0])
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()

    def call(*arguments):
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            node = hydra.compose("config", overrides=[*SMALL, *arguments])
            groups = [a for a in arguments if a.split("=")[0] in GROUPS]
            default = hydra.compose("config", overrides=groups)
        return pipeline.run(resolve(to_config(node)), overrides(node, default))

    return call


@pytest.fixture
def no_model(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    for module in ("inputs", "pipeline", "evaluation.stage", "training.device_process", "training.reference"):
        if hasattr(importlib.import_module(f"xtf.{module}"), "load_model"):
            monkeypatch.setattr(f"xtf.{module}.load_model", refuse)
    monkeypatch.setattr(models, "load_model", refuse)


def test_other_thresholds_and_fewer_attributes_reuse_the_scores_without_a_model(run, no_model, capsys):
    assert run("stage=mask", "threshold=released") is None
    assert run("stage=mask", "scorer=kn", "threshold.kn.pcp=0.9") is None
    assert run("stage=mask", "method=random") is None
    assert len(re.findall("^this mask: ", capsys.readouterr().out, re.MULTILINE)) == 2  # at random by no attribute
    assert len(list(Path("outputs/scores").iterdir())) == 1


def test_what_is_dropped_of_the_answers_is_what_protecting_them_gives_back(run, no_model):
    def stats(**matching):
        for file in Path(RUN).glob("*/seed0/config.yaml"):
            if all(text in file.read_text() for text in matching.values()):
                return read_json(file.parent / "manifest.json")["stages"]["mask"]["stats"]
        raise AssertionError("no such run")

    run("stage=mask", "threshold=quantile")
    run("stage=mask", "threshold=quantile", "threshold.protect=answer")
    kept = stats(name="name: quantile", protect="protect: answer")
    answers = stats(name="name: quantile", protect="protect: none")["answers"]
    assert answers == {"responses": 48, "tokens": kept["protected_tokens"], "dropped": kept["given_back"]}
    assert 0 < answers["dropped"] < answers["tokens"]
    assert kept["answers"]["dropped"] == 0


def test_a_runs_mask_says_by_which_threshold_it_was_made_and_is_judged_by_it(run, no_model):
    run("stage=mask", "threshold=safe")
    (file,) = Path(RUN).glob("xtf-safe-*/seed0/mask.parquet")
    table, tokenizer = pq.read_table(file), AutoTokenizer.from_pretrained(MODEL_DIR)
    assert xtf.provenance(table)["threshold"]["dropped_weight"] == 0.3
    assert xtf.summary(table, tokenizer) == xtf.summary(
        table.replace_schema_metadata(None), tokenizer, threshold="safe"
    )
    with pytest.raises(ValueError, match="were masked with threshold=safe, not with the paper"):
        xtf.summary(table, tokenizer, threshold="paper")
    assert len(datasets.Dataset.from_parquet(str(file), cache_dir="cache")) == table.num_rows


def test_a_random_mask_drops_as_many_tokens_of_each_example_as_xtf(run, no_model):
    run("stage=mask", "method=random")
    (ours,) = Path("outputs/runs/math/tiny/full/random").glob("*/seed0/mask.parquet")
    xtf = next(file.parent / "mask.parquet" for file in Path(RUN).glob("xtf-paper-*/seed0/metrics.json"))

    def counts(file):
        return [row.count(-100) for row in pq.read_table(file)["labels"].to_pylist()]

    assert counts(ours) == counts(xtf)
    assert pq.read_table(ours)["labels"] != pq.read_table(xtf)["labels"]


def test_losses_asked_for_later_are_added_to_a_finished_run(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was trained or completions were made")

    before = run()
    monkeypatch.setattr("xtf.pipeline.train", refuse)
    monkeypatch.setattr("xtf.evaluation.evaluate.generate_share", refuse)
    after = run("evaluate.losses=true")
    figures = ("loss", "token_accuracy", "calibration_error", "forgetting_loss")
    for which in ("metrics", "base_metrics"):
        assert {name: after[which][name] for name in before[which]} == before[which]
        assert set(after[which]) == {*before[which], *figures}
        for name in figures:
            found = after[which][name]
            assert found["low"] < found["value"] < found["high"], name
    assert after["metrics"]["loss"]["value"] < after["base_metrics"]["loss"]["value"]
    assert after["metrics"]["loss"]["n"] == 12
    by_row = load_run(Path(after["artifacts"]["metrics"]).parent).losses()
    assert by_row is not None
    assert np.mean(list(by_row.values())) == pytest.approx(after["metrics"]["loss"]["value"], abs=1e-6)
    monkeypatch.setattr("xtf.evaluation.teacher_forced.predict", refuse)
    assert run("evaluate.losses=true")["metrics"] == after["metrics"]


def test_a_broken_score_shard_is_found_by_its_hash_and_scored_again(run, caplog):
    (shard,) = Path("outputs/scores").glob("*/00001.parquet")
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    run("stage=score")
    assert pq.read_table(shard) == pq.read_table(__import__("io").BytesIO(good))


def test_training_rows_that_changed_under_a_finished_run_are_refused(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = (ROOT / "xtf/tiny/data/math_train.jsonl").read_text().splitlines()[:20]
    rows.write_text("\n".join(lines))
    run("stage=mask", f"task.train.path={rows}")
    rows.write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"task\.train\.path=.* has changed since"):
        run("stage=mask", f"task.train.path={rows}", "threshold.kn.pcp=0.95")


def test_a_mask_that_keeps_nothing_is_refused(run):
    with pytest.raises(ValueError, match="keeps none"):
        run("stage=mask", "scorer=kn", "threshold.kn.pcp=1e-30")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "What?"}, r"row 2: field 'answer' is missing"),
        ({"question": "What?", "answer": "  "}, r"row 2: field 'answer' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_number_and_field(run, tmp_path, row, message):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        run("stage=score", f"task.train.path={rows}")


def test_a_prompt_that_leaves_no_room_is_counted(run):
    run("stage=score", "model.max_length=45")  # prompts have 37 to 64 tokens
    (manifest,) = (
        p
        for p in Path(RUN).glob("*/seed0/manifest.json")
        if "no_room" in p.read_text() and read_json(p)["encoding"]["no_room"]
    )
    report = read_json(manifest)["encoding"]
    assert report["rows"] == 48
    assert report["truncated"] and report["no_room"]


def test_a_sweep_grades_the_base_model_once_and_scores_once(tmp_path):
    finish(tmp_path, "-m", "scorer=none,kn,ri_tr", "tuning.max_steps=1")
    assert len(list(tmp_path.glob("outputs/runs/**/metrics.json"))) == 3
    assert len(list(tmp_path.glob("outputs/base/*"))) == 1
    assert len(list(tmp_path.glob("outputs/scores/*"))) == 1


SHARED = ROOT.parent / "shared" / "data"
REAL = {
    "math": [f"task.train.path={SHARED}/gsm8k/train.jsonl", f"task.eval.path={SHARED}/gsm8k/test.jsonl"],
    "code": [
        f"task.train.path={SHARED}/mbpp/mbpp.jsonl",
        f"task.eval.path={SHARED}/humaneval/HumanEval.jsonl.gz",
        "task.samples=2",
        "task.pass_at=[1,2]",
    ],
    "medical": [
        *(f"task.{which}.path={SHARED}/pubmedqa/ori_pqal.json" for which in ("train", "eval")),
        f"task.train.exclude_ids={SHARED}/pubmedqa/test_ground_truth.json",
        f"task.eval.ids={SHARED}/pubmedqa/test_ground_truth.json",
    ],
}


@pytest.mark.skipif(not SHARED.exists(), reason="the published data sets are not at ../shared/data")
@pytest.mark.parametrize("task", REAL)
def test_real_rows_run_to_a_record(tmp_path, task):
    finish(tmp_path, f"task={task}", *REAL[task], "task.train.limit=24", "task.eval.limit=6", "tuning.max_steps=2")
    (file,) = tmp_path.glob(f"outputs/runs/{task}/**/metrics.json")
    got = read_json(file)
    assert got["data"]["train"]["rows"] == 24
    assert got["metrics"]["pass@1" if task == "code" else "accuracy"]["n"] == 6


def test_lora_trains_an_adapter_that_is_evaluated(run):
    record = run("tuning=lora", "tuning.max_steps=2", "logger=tensorboard")
    (adapter,) = Path("outputs/runs/math/tiny/lora").glob("**/model/adapter_model.safetensors")
    assert adapter.stat().st_size < 2**20
    assert record["metrics"]["accuracy"]["n"] == 12
    events = EventAccumulator(str(adapter.parents[1] / "tensorboard")).Reload()
    names = set(events.Tags()["scalars"])
    assert {"train/loss", "train/kept_tokens", "train/grad_norm", "eval/accuracy", "mask/kept"} <= names
    with (adapter.parents[1] / "train_log.csv").open(newline="") as lines:
        losses = [float(row["loss"]) for row in csv.DictReader(lines)]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(losses)


def test_wandb_without_a_key_logs_offline_and_never_asks(run, monkeypatch):
    for key in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("NETRC", str(Path("no-netrc").absolute()))
    steps = ("tuning.max_steps=2", "method=normal")
    run(*steps)
    (folder,) = Path("outputs/runs/math/tiny/full/normal").glob("*/seed0")
    assert not (folder / "wandb").exists()
    run("logger=wandb", *steps)  # a finished run is told about from its files
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    run("logger=wandb", *steps)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    run("logger=wandb", "tuning.max_steps=1", "method=normal", "stage=train")
    assert len(list(Path("outputs/runs/math/tiny/full/normal").glob("**/offline-run-*"))) == 1 + 1


@pytest.mark.parametrize("method", ["slm", "data_filtering", "data_augmentation", "dft", "token_cleaning_evolving"])
def test_methods_that_need_more_than_a_mask_get_it(run, method):
    record = run(f"method={method}", "tuning.max_steps=2", "evaluate.base=false", "task.eval.limit=4")
    assert record["method"] == method
    assert record["training"]["kept_tokens"] > 0
    again = run(f"method={method}", "tuning.max_steps=2", "evaluate.base=false", "task.eval.limit=4", "seed=1")
    assert again["data"] == record["data"]
    if method == "slm":
        assert len(list(Path("outputs/references").iterdir())) == 1


def test_a_users_own_labels_train_as_they_are(run, whole, tmp_path):
    mask = next(file.parent / "mask.parquet" for file in (whole[0] / RUN).glob("xtf-paper-*/seed0/metrics.json"))
    table = pq.read_table(mask).select(["example_id", "input_ids", "prompt_length", "labels"])
    pq.write_table(table, tmp_path / "mine.parquet")
    run("method=given", f"task.train.path={tmp_path / 'mine.parquet'}", "stage=mask")
    (ours,) = Path("outputs/runs/math/tiny/full/given").glob("**/mask.parquet")
    assert pq.read_table(ours)["labels"].to_pylist() == table["labels"].to_pylist()


def test_the_oracle_leaves_what_was_planted_out_of_the_loss_and_nothing_else(tmp_path):
    log = finish(tmp_path, "method=oracle", "plant.share=0.3", "evaluate.base=false", "task.eval.limit=2")
    assert not (tmp_path / "outputs/scores").exists(), log
    (run,) = tmp_path.glob("outputs/runs/math/tiny/full/oracle/*/seed0")
    planted = 0
    for row in pq.read_table(run / "mask.parquet").to_pylist():
        response = row["labels"][row["prompt_length"] :]
        assert [label == -100 for label in response] == [code != 0 for code in row["planted"]]
        planted += sum(code != 0 for code in row["planted"])
    found = read_json(run / "metrics.json")
    assert planted > 0
    assert found["training"]["kept_tokens"] == found["mask"]["response_tokens"] - planted
