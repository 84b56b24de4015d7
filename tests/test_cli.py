"""The command line as a user meets it: help, guards and errors, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import commands
import pytest

from xtf import cli
from xtf.config import home
from xtf.config.identity import digest
from xtf.config.schema import GROUPS

ROOT = Path(__file__).parents[1]


def run(*arguments, cwd=ROOT, env=None):
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
        check=False,
    )


NO_TORCH = """
import runpy, sys
sys.argv = ["run.py", *{arguments!r}]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""


def test_help_lists_groups_choices_and_experiments_without_torch_or_hydra():
    text = cli.help_text()
    for group in (*GROUPS, "experiments"):
        (line,) = (line for line in text.splitlines() if line.startswith(f"  {group} "))
        listed = line.split(maxsplit=1)[1].replace("*", "").split(", ")
        assert listed == list(cli.choices(group))
    assert "*xtf" in text and "experiments=NAME" in text and "preview.format=text" in text
    code = NO_TORCH.format(arguments=["--help"]) + "\nassert 'hydra' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "torch was imported" not in done.stderr
    assert "usage: python run.py" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=qwne"], "model=qwne: there is no such choice; did you mean 'qwen'? (choices:"),
        (["modle=qwen"], "there is no key 'modle'; did you mean 'model'?"),
        (["threshold.kn.pcq=0.9"], "there is no key 'threshold.kn.pcq'; did you mean 'threshold.kn.pcp'?"),
        (["tuning.lr=1"], "there is no key 'tuning.lr'"),
        (["scorer=none,ri"], "put -m before it (python run.py -m scorer=none,ri)"),
        (["threshold.kn.pcp=high"], "threshold.kn.pcp"),
        (["threshold.kn.pcp=2"], "threshold.kn.pcp=2.0 is out of range"),
        (["task.train.path=nowhere.jsonl"], "task.train.path=nowhere.jsonl: there is no such file"),
        (["experiments=table2"], "experiments=table2 is a sweep: run it as python run.py -m experiments=table2"),
        (["seed=abc"], "seed=abc is not valid: it must be a whole number"),
        (["stage=preveiw"], "did you mean 'preview'?"),
        (["+tuning.lr=1"], "there is no key 'tuning.lr'"),
        (["task.train.path=my file (1).jsonl"], "write 'task.train.path=\"my file (1).jsonl\"'"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_the_remedy_before_torch_loads(arguments, message):
    code = NO_TORCH.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_deleted_there(tmp_path):
    argument = f"task.name={tmp_path}/theirs"
    folder = tmp_path / "theirs/tiny/full/xtf" / f"xtf-paper-{digest({'task.name': f'{tmp_path}/theirs'}, 8)}" / "seed0"
    folder.mkdir(parents=True)
    (folder / "error.json").write_text("{}")
    done = commands.run([argument], tmp_path)
    assert done.returncode == 2 and "becomes the name of a folder" in done.stderr
    assert (folder / "error.json").exists()


BAD = ["task.train.path=bad.jsonl", "task.eval.path=bad.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["stage=plan", *BAD], 1, "error: bad.jsonl: cannot be read: row 1"),
        (["-m", "stage=plan", "seed=0,1", *BAD], 1, "error: bad.jsonl: cannot be read: row 1"),
        (["stage=plan", "scorer.model=tiny"], 2, "scorer.model=tiny is not counted by stage=plan"),
        (["stage=report", "experiments=table2", "output_dir=bad.jsonl"], 2, "bad.jsonl is not a folder"),
        (["-m", "seed=0,1", "output_dir=bad.jsonl"], 2, "output_dir=bad.jsonl: "),
        (["stage=preview", "preview.against=gone"], 2, "preview.against=gone: there is no gone"),
    ],
)
def test_what_is_wrong_outside_a_runs_stages_is_a_sentence_too(tmp_path, arguments, status, message):
    (tmp_path / "bad.jsonl").write_text("[")
    done = commands.run(arguments, tmp_path)
    assert done.returncode == status, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("outputs/scores/*"))


@pytest.mark.parametrize(
    ("program", "sweep", "command"),
    [
        ("/venv/bin/xtf", "", "xtf"),
        ("/there/XTF/run.py", "", "python run.py"),
        ("/there/xtf/__main__.py", "", "python -m xtf"),
        ("/there/pytest/__main__.py", "", "python run.py"),
        ("/there/joblib/worker.py", "xtf -m seed=0,1", "xtf"),
        ("/there/run.py", "python -m xtf -m seed=0,1", "python -m xtf"),
    ],
)
def test_messages_name_the_command_with_which_the_program_was_started(monkeypatch, program, sweep, command):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setenv("XTF_COMMAND", sweep)
    assert home._command() == command


def test_a_wheels_help_says_of_what_it_does_not_hold_where_that_is(monkeypatch):
    monkeypatch.setattr(home, "HOME", home.PACKAGE)
    assert home.in_repository("docs/extending.md") == "docs/extending.md in the repository"


@pytest.mark.skipif(sys.platform != "linux", reason="other wheels of Arrow need not bring jemalloc")
def test_arrow_is_given_an_allocator_that_it_has():
    import pyarrow as pa

    import xtf.cli  # noqa: F401

    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] in pa.supported_memory_backends()


def test_a_stated_configuration_can_be_looked_at_without_running_it(tmp_path):
    done = run("--cfg", "job", "model=qwen", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_refused_before_any_work(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = run("trainer=gpu", f"output_dir={tmp_path}")
    assert done.returncode == 1
    assert "trainer=gpu needs a CUDA device" in done.stderr
    assert not (tmp_path / "scores").exists()


def test_a_model_that_is_not_to_be_had_says_what_to_fetch_and_where_it_was_looked_for(tmp_path):
    rows = ROOT / "xtf/tiny/data/math_eval.jsonl"
    done = run(
        "model=qwen",
        f"task.train.path={rows}",
        f"task.eval.path={rows}",
        f"output_dir={tmp_path}",
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
    )
    assert done.returncode == 1
    assert "hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B" in done.stderr
    assert str(tmp_path / "hf") in done.stderr


def test_a_judge_that_is_down_is_a_sentence_and_no_traceback(tmp_path, monkeypatch, capsys):
    from xtf import pipeline
    from xtf.graders.base import Grade, accuracy_metrics

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["run.py"])
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: accuracy_metrics([[Grade(None, None, "no verdict: down")]]))
    assert cli.main(["stage=evaluate", f"output_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "error: task.grader: none of 1 completions could be graded: no verdict: down" in said
    assert "Traceback" not in said
