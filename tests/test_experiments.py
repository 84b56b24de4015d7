"""Every experiment file: its header, its grid, and every job of it composed and resolved."""

from __future__ import annotations

import itertools
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from xtf import cli
from xtf.config import register, resolve, run_folder, to_config

ROOT = Path(__file__).parents[1]
EXPERIMENTS = cli.choices(ROOT, "experiments")


@pytest.fixture(scope="module")
def compose():
    register()
    patch = pytest.MonkeyPatch()
    patch.setenv("XTF_ROOT", str(ROOT))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *arguments: hydra.compose("config", overrides=list(arguments))
    patch.undo()


def jobs(name, **fixed):
    """Every combination of an experiment's grid as overrides; `fixed` narrows it like the command line does."""
    grid = OmegaConf.load(EXPERIMENTS[name]).hydra.sweeper.params
    grid = {key: str(value).split(",") for key, value in grid.items()} | {k: [v] for k, v in fixed.items()}
    for values in itertools.product(*grid.values()):
        yield [f"experiments={name}", *(f"{key}={value}" for key, value in zip(grid, values, strict=True))]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_header_says_what_is_run_how_and_what_the_authors_report(name):
    header = EXPERIMENTS[name].read_text().split("\nhydra:")[0]
    assert header.startswith("# @package _global_\n")
    for needed in (f"python run.py -m experiments={name}", "# Jobs: ", "# Cost: ", "# The authors report: "):
        assert needed in header, needed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_composes_resolves_and_has_a_folder_of_its_own(compose, name):
    folders, ran = set(), 0
    for arguments in jobs(name, seed="7"):
        config = to_config(compose(*arguments))
        if config.cases and f"{config.model.name}/{config.tuning.name.value}" not in config.cases:
            continue
        resolve(config)
        changed = dict(argument.split("=") for argument in arguments if "." in argument)
        folders.add(run_folder(config, changed))
        ran += 1
        assert config.experiment == name
    assert len(folders) == ran > 0


def test_the_main_tables_run_the_papers_ten_cases(compose):
    cases = set()
    for arguments in jobs("table1_math", seed="0", method="xtf"):
        config = to_config(compose(*arguments))
        if f"{config.model.name}/{config.tuning.name.value}" in config.cases:
            cases.add((config.model.name, config.tuning.name.value))
    assert cases == {
        ("llama_1b", "full"), ("llama_3b", "full"), ("llama_8b", "full"), ("llama_8b", "lora"),
        ("mistral_7b", "full"), ("mistral_7b", "lora"), ("deepseek_qwen_1_5b", "full"),
        ("deepseek_qwen_7b", "full"), ("deepseek_qwen_7b", "lora"), ("deepseek_qwen_14b", "lora"),
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "table4_finance"])
def test_the_tiny_model_runs_any_of_them_on_its_bundled_rows(compose, name):
    for arguments in jobs(name, seed="0", model="tiny"):
        config = resolve(to_config(compose(*arguments)))
        assert Path(config.task.train.path).exists()
