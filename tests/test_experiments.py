"""Every experiment file: its header, its grid, and every job of it composed and resolved."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from xtf import cli
from xtf.sweeps.jobs import Composer, compose_jobs

ROOT = Path(__file__).parents[1]
EXPERIMENTS = cli.choices("experiments")


def jobs(name, **fixed):
    """Every combination of an experiment's grid as overrides; `fixed` narrows it like the command line does."""
    grid = OmegaConf.load(EXPERIMENTS[name]).hydra.sweeper.params
    grid = {key: str(value).split(",") for key, value in grid.items()} | {k: [v] for k, v in fixed.items()}
    for values in itertools.product(*grid.values()):
        yield [f"experiments={name}", *(f"{key}={value}" for key, value in zip(grid, values, strict=True))]


TINY = {"seed": "0", "model": "tiny"}


@pytest.fixture(scope="module")
def composer(composing):
    """For the jobs of all experiments: what follows from a choice alone is composed once."""
    return Composer([job for name in EXPERIMENTS for job in (*jobs(name), *jobs(name, **TINY))])


@pytest.fixture(scope="module")
def composed(composer, request):
    """The jobs of an experiment, composed once for all tests of it: pytest puts those side by side."""
    return request.param, compose_jobs(list(jobs(request.param)), composer)


def each(names):
    return pytest.mark.parametrize("composed", names, indirect=True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_says_what_is_run_how_and_what_the_authors_report(name):
    header = EXPERIMENTS[name].read_text().split("\nhydra:")[0]
    assert header.startswith("# @package _global_\n")
    for needed in (f"python run.py -m experiments={name}", "# Jobs: ", "# Cost: ", "# The authors report: "):
        assert needed in header, needed


@each(EXPERIMENTS)
def test_every_job_composes_has_a_folder_of_its_own_and_is_counted_in_the_header(composed):
    name, found = composed[0], [job for job in composed[1] if job.is_case]
    assert len({job.folder for job in found}) == len(found)
    assert {job.config.experiment for job in found} == {name}
    (line,) = (line for line in EXPERIMENTS[name].read_text().splitlines() if line.startswith("# Jobs: "))
    counted = re.search(r"= (\d+)", line) or re.search(r"(\d+)", line)
    assert counted is not None
    assert int(counted[1]) == len(found)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_is_trained_is_trained_with_three_seeds_or_more(name):
    node = OmegaConf.load(EXPERIMENTS[name])
    if node.get("stage") in ("mask", "score") or name == "real":  # `real` says that it is a first look, no result
        return
    assert len(set(str(node.hydra.sweeper.params.seed).split(","))) >= 3


TABLE_3 = {  # training examples, learning rate, that of medicine, epochs; written off the paper's table 3
    ("llama_1b", "full"): (500, 9e-6, 1e-5, 3),
    ("deepseek_qwen_1_5b", "full"): (600, 9e-6, 1e-5, 3),
    ("llama_3b", "full"): (1000, 8e-6, 3e-6, 3),
    ("llama_8b", "full"): (3000, 5e-6, 2e-6, 3),
    ("mistral_7b", "full"): (3000, 5e-6, 2e-6, 3),
    ("deepseek_qwen_7b", "full"): (3000, 5e-6, 2e-6, 3),
    ("llama_8b", "lora"): (3000, 5e-5, 5e-5, 5),
    ("mistral_7b", "lora"): (3000, 5e-5, 5e-5, 5),
    ("deepseek_qwen_7b", "lora"): (3000, 5e-5, 5e-5, 5),
    ("deepseek_qwen_14b", "lora"): (3000, 3e-5, 3e-5, 5),
}


@each(["table1_math", "table1_medical", "table2", "table4_math500", "table4_finance", "table5", "fig5_code"])
def test_every_job_of_the_papers_tables_trains_as_table_3_says(composed):
    seen = set()
    for job in composed[1]:
        if not job.is_case:
            continue
        config = job.config
        case = (config.model.name, config.tuning.name.value)
        examples, rate, medical, epochs = TABLE_3[case]
        tuning = config.tuning
        assert config.task.train.limit == examples, job.name
        assert tuning.learning_rate == (medical if config.task.name == "medical" else rate), job.name
        assert (tuning.epochs, tuning.batch_size, tuning.schedule.value) == (epochs, 8, "constant"), job.name
        assert (tuning.lora.r, tuning.lora.alpha, tuning.lora.dropout) == (8, 32, 0.0)
        seen.add(case)
    assert seen


@each(["table1_math"])
def test_the_main_tables_run_the_papers_ten_cases(composed):
    assert {(job.config.model.name, job.config.tuning.name.value) for job in composed[1] if job.is_case} == {
        ("llama_1b", "full"),
        ("llama_3b", "full"),
        ("llama_8b", "full"),
        ("llama_8b", "lora"),
        ("mistral_7b", "full"),
        ("mistral_7b", "lora"),
        ("deepseek_qwen_1_5b", "full"),
        ("deepseek_qwen_7b", "full"),
        ("deepseek_qwen_7b", "lora"),
        ("deepseek_qwen_14b", "lora"),
    }


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_tiny_model_runs_any_of_them_on_its_bundled_rows(composer, name):
    for job in compose_jobs(list(jobs(name, **TINY)), composer):
        assert Path(job.config.task.train.path).exists()
