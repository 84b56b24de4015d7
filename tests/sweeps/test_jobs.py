"""Sweeps: jobs checked before the first one, failures that stay with their job, kills, shared passes, devices."""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import hydra
import pytest
from omegaconf import OmegaConf

from xtf import cli
from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.identity import overrides
from xtf.config.schema import ConfigError
from xtf.runtime.artifacts import read_json
from xtf.runtime.run_folder import RunFolder
from xtf.sweeps import jobs, reports, slurm

ROOT = Path(__file__).parents[2]
FEW = [
    "task.train.limit=12",
    "task.eval.limit=2",
    "task.max_new_tokens=4",
    "trainer.tokens_per_eval_batch=400",
    "tuning.max_steps=1",
    "tuning.batch_size=4",
    "evaluate.base=false",
]


def run(folder, *arguments, status=0, **how):
    done = commands.run(arguments, folder, **how)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout, done.stderr


def one_by_one(arguments):
    """A job as Hydra composes it when it is run."""
    node = hydra.compose("config", overrides=list(arguments), return_hydra_config=True)
    default = cli._default(node.hydra.runtime.choices)
    plain = OmegaConf.masked_copy(node, [name for name in node if name != "hydra"])
    return resolve(to_config(plain)), overrides(plain, default)


@pytest.mark.parametrize(
    "axes",
    [
        [
            ["experiments=fig5_code"],
            ["model=llama_3b", "model=tiny"],
            ["tuning=full"],
            ["method=normal", "method=xtf"],
            ["seed=0", "seed=3"],
            ["task=code"],
        ],
        [
            ["model=tiny"],
            ["tuning=lora", "tuning=full"],
            ["tuning.lora.r=2"],
            ["tuning.epochs=1", "tuning.epochs=null"],
            ["threshold=released"],
            ["threshold.ri.shift=0.03"],
        ],
        [["experiments=fig4"], ["model=tiny"], ["+task.domain_words=[a,b]"], ["scorer=none", "scorer=ri"]],
    ],
)
def test_jobs_put_together_from_parts_equal_hydras_own_composition(composing, axes):
    batch = [list(arguments) for arguments in itertools.product(*axes)]
    found = jobs.compose_jobs(batch)
    checked = [job for job in found if job.is_case][:: max(1, len(batch) // 3)]
    assert checked
    for job in checked:
        config, changed = one_by_one(job.overrides)
        assert job.config == config
        assert dict(job.changed) == changed


def test_a_sweep_over_scorers_shares_one_scoring_pass(composing):
    def computed(*batch):
        found = jobs.share_scoring(jobs.compose_jobs(batch))
        assert (found[-1].config, dict(found[-1].changed)) == one_by_one(found[-1].overrides)
        return [list(job.config.scorer.compute) for job in found]

    assert computed(["scorer=none"], ["scorer=ri"], ["scorer=kn"]) == [["kn", "ri"]] * 3
    assert computed(["scorer=ri", "seed=0"], ["scorer=ri", "seed=1"]) == [[], []]
    assert computed(["scorer=none", "scorer.compute=[tr]"], ["scorer=ri", "scorer.compute=[tr]"]) == [["tr"]] * 2


def test_the_command_line_wins_over_the_grid_of_an_experiment():
    grid = OmegaConf.load(cli.choices("experiments")["table2"]).hydra.sweeper.params
    left = jobs.without_given(grid, ["experiments=table2", "model=tiny", "seed=0,1", "threshold.kn.pcp=0.9"])
    assert left == {key: value for key, value in grid.items() if key not in ("model", "seed")}
    assert len(left) == len(grid) - 2


@pytest.mark.parametrize("stage", ["score", "mask", "preview", "export", "train", "evaluate", "report", "all"])
def test_a_sweep_over_any_stage_of_a_run_ends_with_a_report_that_knows_what_it_went_over(composing, monkeypatch, stage):
    asked = []
    monkeypatch.setattr(reports, "jobs_report", lambda name, folders, listed, out_dir: asked.append(listed) or [])
    batch = [[f"stage={stage}", f"threshold.kn.pcp={pcp}"] for pcp in (0.9, 0.8)]
    reports.write_reports(jobs.compose_jobs(batch))
    said = [(job["stage"], job["overrides"]) for listed in asked for job in listed.values()]
    assert sorted(said, key=str) == [(stage, {"threshold.kn.pcp": pcp}) for pcp in (0.8, 0.9)]


def test_a_sweep_with_one_wrong_job_is_refused_before_any_work(tmp_path):
    _, err = run(tmp_path, "-m", "seed=0,1", "tuning.batch_size=4,0", status=2)
    assert "nothing was started, for one of 4 jobs is wrong: seed=0 tuning.batch_size=0" in err
    assert "tuning.batch_size=0 is out of range: it must be at least 1" in err
    assert not list(tmp_path.rglob("manifest.json"))


def test_two_jobs_of_one_folder_are_refused(composing):
    batch = [["seed=1", "logger=csv"], ["seed=1", "logger=tensorboard"]]
    with pytest.raises(ConfigError, match=r"two jobs would write outputs/runs/math/tiny.*seed=1 logger=csv and"):
        jobs.compose_jobs(batch)


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failing_job_is_named_at_the_end_and_does_not_stop_the_others(tmp_path, launcher):
    sweep = [
        "-m",
        "method=given,normal,double_epochs",
        "stage=mask",
        "task.train.limit=4",
        f"hydra/launcher={launcher}",
    ]
    if launcher == "joblib":  # its workers are stopped as an interpreter ends, which a forked command does not
        command = [sys.executable, str(ROOT / "run.py"), *sweep]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        out, err = done.stdout, done.stderr
    else:
        out, err = run(tmp_path, *sweep, status=1)
    assert "3 jobs: 0 finished, 3 to run" in out
    assert err.count("error: math/tiny/full/given/xtf-paper-") == 1
    assert "error: 1 failed; the same command runs what is missing" in err
    runs = tmp_path / "outputs/runs/math/tiny/full"
    assert len(list(runs.glob("*/*/seed0/mask.parquet"))) == 2
    (failed,) = runs.glob("*/*/seed0/error.json")
    assert failed.relative_to(runs).parts[0] == "given"
    left = read_json(failed)
    assert "Traceback" in left["traceback"]
    assert left["command"].startswith("python run.py -m method=given,normal,double_epochs stage=mask")

    if launcher == "basic":
        out, _ = run(tmp_path, *sweep, status=1)
        assert "3 jobs: 2 finished, 1 to run" in out


def test_an_error_is_forgotten_when_the_run_is_tried_again(tmp_path):
    arguments = ["method=normal", "stage=mask", "task.train.limit=4"]
    run(tmp_path, "-m", *arguments)
    (folder,) = (file.parent for file in tmp_path.rglob("mask.parquet"))  # complete, but what came next failed
    RunFolder(folder).error.write_text(json.dumps({"type": "ValueError", "error": "old"}))
    assert RunFolder(folder).failure() == "ValueError: old"
    out, _ = run(tmp_path, "-m", *arguments)
    assert "1 jobs: 0 finished, 1 to run" in out
    assert RunFolder(folder).failure() is None
    assert (folder / "mask.parquet").exists()


def test_a_sweep_killed_midway_and_started_again_ends_complete(tmp_path):
    sweep = ["-m", "method=normal", "scorer=none", "seed=0,1,2", *FEW]
    run(tmp_path, *sweep, status=-signal.SIGKILL, prepare=commands.Kill(r"/metrics\.json$", 2).watch)
    done = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.json")}
    assert len(done) == 1
    out, _ = run(tmp_path, *sweep)
    assert "3 jobs: 1 finished, 2 to run" in out
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("metrics.json")}
    assert len(after) == 3
    assert done.items() <= after.items()
    (report,) = (tmp_path / "outputs/reports").glob("sweep-*.md")  # of its own, though no experiment is named
    assert "math · tiny · full: accuracy" in out and report.name in out
    assert "3 finished runs" in report.read_text(encoding="utf-8")


def test_two_processes_that_need_one_scoring_pass_at_once_compute_it_once(tmp_path):
    passes = ["stage=score", "task.train.limit=16", "trainer.shard_examples=4", "scorer.compute=[ri,kn,tr]"]
    both = [commands.start([*passes, f"scorer={name}"], tmp_path, tmp_path / "log") for name in ("ri", "kn")]
    assert [one.finish().returncode for one in both] == [0, 0], (tmp_path / "log").read_text()
    (folder,) = (tmp_path / "outputs/scores").iterdir()
    manifest = read_json(folder / "manifest.json")
    shards = [folder / name for name in manifest["shards"]]
    assert len(shards) == 4
    runs = [read_json(file) for file in tmp_path.glob("outputs/runs/**/manifest.json")]
    assert len(runs) == 2
    for run in runs:  # the second read what the first had written: both know the same seconds
        assert run["stages"]["score"]["seconds"] == pytest.approx(manifest["seconds"], abs=1e-3)


def trainer(composing, *arguments):
    return resolve(to_config(hydra.compose("config", overrides=list(arguments))))


def test_each_worker_process_takes_a_gpu_of_its_own_and_the_one_too_many_is_refused(composing, tmp_path, monkeypatch):
    config = trainer(composing, "trainer=gpu", f"output_dir={tmp_path}")
    held = []
    for expected in ("3", "5"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
        monkeypatch.setattr(jobs._Device, "lock", None)  # as in a process that has none yet
        jobs.claim_device(config)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
        jobs.claim_device(config)  # its next job stays there
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
        held.append(jobs._Device.lock)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(jobs._Device, "lock", None)
    with pytest.raises(ConfigError, match=r"all 2 GPUs are taken by other jobs: set hydra.launcher.n_jobs=2"):
        jobs.claim_device(config)
    held[0].release()
    jobs.claim_device(config)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_jobs_on_several_gpus_do_not_go_through_joblib(composing, monkeypatch):
    monkeypatch.setattr(jobs._Device, "lock", None)
    with pytest.raises(ConfigError, match=r"trainer.devices=2 with hydra/launcher=joblib"):
        jobs.claim_device(trainer(composing, "trainer=ddp"))


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "sweep"), ("slurm", "slurm")])
def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch, launcher, extra):
    monkeypatch.setattr("xtf.cli.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"hydra/launcher={launcher} needs the extra '{extra}'"):
        cli.check_arguments([f"hydra/launcher={launcher}"], sweep=True)


SLURM = {"_target_": "x.SlurmLauncher", "nodes": 0, "tasks_per_node": 1, "gpus_per_node": None, "gres": None}


def test_slurm_is_asked_for_the_machines_and_devices_of_the_trainer(composing):
    @functools.cache
    def composed(seeds, *trainer):
        return jobs.compose_jobs([[text, *trainer] for text in seeds])

    def asked(*trainer, **launcher):
        return jobs.launcher_settings(composed(*trainer), SLURM | launcher)

    fsdp = (("seed=0", "seed=1"), "trainer=fsdp", "trainer.devices=8", "trainer.nodes=2")
    assert asked(*fsdp) == {"nodes": 2, "tasks_per_node": 1, "gpus_per_node": 8}
    assert asked(*fsdp, nodes=2, gpus_per_node=8) == asked(*fsdp)
    assert asked(*fsdp, gres="gpu:h100:8") == {"nodes": 2, "tasks_per_node": 1}
    assert asked(("trainer=gpu",)) == {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 1}
    assert asked(("trainer=cpu",)) == {"nodes": 1, "tasks_per_node": 1}
    with pytest.raises(ConfigError, match=r"hydra.launcher.gpus_per_node=4 is not trainer.devices \(8\)"):
        asked(*fsdp, gpus_per_node=4)
    with pytest.raises(ConfigError, match="tasks_per_node=8 is not one task on each machine"):
        asked(*fsdp, tasks_per_node=8)
    several = [["trainer=ddp", f"seed={seed}", f"trainer.devices={devices}"] for seed, devices in [(0, 2), (1, 4)]]
    with pytest.raises(ConfigError, match=r"these differ in trainer\.nodes or trainer\.devices"):
        jobs.launcher_settings(jobs.compose_jobs(several), SLURM)
    with pytest.raises(ConfigError, match=r"trainer\.nodes=2: a sweep over several machines needs"):
        asked(*fsdp, _target_="hydra._internal.core_plugins.basic_launcher.BasicLauncher")


@pytest.fixture
def queue(monkeypatch):
    """Slurm's queue, which lists what `listed` holds."""
    job_class = SimpleNamespace(watcher=None)
    monkeypatch.setitem(sys.modules, "submitit.slurm.slurm", SimpleNamespace(SlurmJob=job_class))
    monkeypatch.setitem(sys.modules, "submitit.slurm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())
    found = slurm.watched()
    assert job_class.watcher is found
    found.listed, found.status = [], 0
    monkeypatch.setattr(
        slurm.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, found.status, "\n".join(found.listed), "no contact"),
    )
    return found


def test_slurm_jobs_are_looked_for_in_the_queue_which_is_told_as_it_changes(queue, capsys):
    def say():
        assert not queue.is_done("7_0", "force")
        return " ".join(capsys.readouterr().out.split())

    for number in ("7", "7_0", "7_1"):  # submitit registers the array, too
        queue.register_job(number)
    queue.listed = ["6|RUNNING|None", "7_0|PENDING|Resources", "7_1|RUNNING|None"]
    assert say() == "Slurm: 1 pending, 1 running (Resources)"
    assert say() == ""
    queue.status = 1
    assert say() == "Slurm's queue cannot be read, and is tried again: no contact"
    queue.status = 0
    assert not queue.is_done("7_1", "force"), "a queue that cannot be read ends no job"
    capsys.readouterr()
    queue.listed = ["7_0|COMPLETING|None", "7_1|CANCELLED|None"]  # the first has met its time limit
    assert say() == "Slurm: 1 completing"
    assert queue.is_done("7_1", "cache")
    queue.listed = ["7_0|PENDING|PartitionConfig"]
    assert "1 pending (PartitionConfig). No machine has what hydra.launcher asks for" in say()
    queue.listed = []
    assert queue.is_done("7_0", "force") and queue.get_state("7_0", "cache") == slurm.GONE
    assert queue.get_state("7_1") == "CANCELLED"


def test_a_slurm_job_that_ends_without_a_word_leaves_an_error_once_the_others_have_ended(composing, queue, tmp_path):
    line = [f"output_dir={tmp_path}", "stage=score"]
    sent = jobs.compose_jobs([[*line, f"seed={seed}"] for seed in (0, 1, 2)])
    for number in ("7", "7_0", "7_1"):  # the third was not sent
        queue.register_job(number)
    queue.listed = ["7_0|CANCELLED|None", "7_1|FAILED|None"]
    sent[1].folder.record_error(ValueError("its own"))
    log = tmp_path / "logs/7_0/7_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("a\nslurmstepd: error: *** JOB 7 ON vm CANCELLED AT 10:00 ***\n\n")
    assert slurm.settle(queue, sent, f"{tmp_path}/logs/%j")
    with pytest.raises(jobs.JobsFailedError, match="2 failed; the same command runs what is missing") as raised:
        jobs.raise_failures(sent)
    assert "LostError: Slurm's job 7_0 ended without a result (CANCELLED): slurmstepd: error: ***" in str(raised.value)
    assert f"({log})" in str(raised.value) and "ValueError: its own" in str(raised.value)
    assert sent[2].folder.failure() is None
    assert not slurm.settle(queue, sent, f"{tmp_path}/logs/%j")


def test_a_job_that_slurm_runs_again_has_not_failed():
    asked = subprocess.CalledProcessError(-signal.SIGTERM, ["scontrol", "requeue", "7_0"])
    try:
        raise ValueError("around it") from asked
    except ValueError as error:
        assert slurm.sent_again(error)
    assert not slurm.sent_again(subprocess.CalledProcessError(1, asked.cmd)), "Slurm has refused to"
    assert not slurm.sent_again(subprocess.CalledProcessError(-signal.SIGTERM, ["git"]))


def test_a_job_by_another_version_of_the_program_is_refused(monkeypatch):
    monkeypatch.setenv("XTF_PROGRAM", jobs.program())
    jobs.check_program()
    monkeypatch.setenv("XTF_PROGRAM", "another")
    with pytest.raises(ConfigError, match="the program has changed since the sweep was started"):
        jobs.check_program()
