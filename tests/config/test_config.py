"""The schema: composition of every choice, table 3, checks, and the folder that a configuration names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from xtf import cli
from xtf.config.checks import resolve
from xtf.config.compose import load_config, register, to_config
from xtf.config.identity import differing_keys, identity, overrides, plain
from xtf.config.schema import GROUPS, Config, ConfigError
from xtf.runtime.run_folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose(monkeypatch):
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *arguments: hydra.compose("config", overrides=list(arguments))


def every_choice():
    return [(group, name) for group in (*GROUPS, "method") for name in cli.choices(ROOT, group)]


@pytest.mark.parametrize(("group", "name"), every_choice())
def test_every_choice_of_every_group_composes_and_is_typed(compose, group, name):
    extra = ["task.grader=exact"] if (group, name) == ("task", "custom") else []
    config = to_config(compose(f"{group}={name}", *extra))
    assert isinstance(config, Config)
    assert getattr(config, group).name is not None


# Written down from the paper's table 3: examples, rate full (medical), rate LoRA, epochs full / LoRA.
TABLE_3 = {
    "llama_1b": (500, 9e-6, 1e-5, None),
    "deepseek_qwen_1_5b": (600, 9e-6, 1e-5, None),
    "llama_3b": (1000, 8e-6, 3e-6, None),
    "deepseek_qwen_7b": (3000, 5e-6, 2e-6, 5e-5),
    "llama_8b": (3000, 5e-6, 2e-6, 5e-5),
    "mistral_7b": (3000, 5e-6, 2e-6, 5e-5),
    "deepseek_qwen_14b": (3000, 3e-6, 3e-6, 3e-5),
}


@pytest.mark.parametrize("name", TABLE_3)
def test_hyper_parameters_are_those_of_table_3(compose, name):
    examples, full, medical, lora = TABLE_3[name]
    for task, rate in (("math", full), ("code", full), ("medical", medical)):
        config = resolve(to_config(compose(f"model={name}", f"task={task}")))
        assert (config.tuning.learning_rate, config.tuning.epochs, config.tuning.batch_size) == (rate, 3, 8)
        assert config.task.train.limit == examples
    if lora is not None:
        config = resolve(to_config(compose(f"model={name}", "task=medical", "tuning=lora")))
        assert (config.tuning.learning_rate, config.tuning.epochs) == (lora, 5)
        assert (config.tuning.lora.r, config.tuning.lora.alpha, config.tuning.lora.dropout) == (8, 32, 0.0)


def test_a_given_hyper_parameter_wins_over_table_3(compose):
    config = resolve(to_config(compose("model=llama_8b", "tuning.learning_rate=1e-4", "task.train.limit=7")))
    assert (config.tuning.learning_rate, config.tuning.epochs, config.task.train.limit) == (1e-4, 3, 7)


def test_a_model_without_a_recipe_for_the_tuning_says_what_to_give(compose):
    with pytest.raises(ConfigError, match=r"llama_1b has no recipe for tuning=lora \(it has: full\)"):
        resolve(to_config(compose("model=llama_1b", "tuning=lora")))


def test_qwen_is_the_papers_1_5b_model(compose):
    config = to_config(compose("model=qwen"))
    assert config.model.name == "deepseek_qwen_1_5b"
    assert config.model.path == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"


def test_the_bundled_sample_belongs_to_the_tiny_model_alone(compose):
    tiny = resolve(to_config(compose())).task
    assert Path(tiny.train.path).name == "math_train.jsonl"
    assert Path(tiny.eval.path).name == "math_eval.jsonl"
    real = resolve(to_config(compose("model=qwen"))).task
    assert (real.train.path, real.train.hub, real.train.subset) == (None, "openai/gsm8k", "main")
    assert (real.train.split, real.eval.split) == ("train", "test")


def test_the_bundled_answers_on_money_need_no_judge_unless_one_is_given(compose):
    def grader(*arguments):
        return resolve(to_config(compose("task=finance", *arguments))).task.grader

    assert grader() == "decision"
    assert grader("task.judge.base_url=http://localhost:1/v1") == "judge"
    assert grader("model=llama_1b") == "judge"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["threshold.kn.pcp=1.5"],
            r"threshold\.kn\.pcp=1\.5 is out of range: it must be a probability between 0 and 1",
        ),
        (["threshold.ri.c=-1"], r"threshold\.ri\.c=-1\.0 is out of range: it must be a number of at least 0"),
        (["threshold.kn.pcp=nan"], "out of range"),
        (["threshold.tr.cluster=6"], r"it must be from 1 to classes \(5\)"),
        (["tuning.checkpoint=best"], "needs a validation split"),
        (["task.samples=5"], "equal completions"),
        (["task.pass_at=[1,10]"], "needs task.samples >= 10"),
        (["task.train.path=nowhere.jsonl"], r"task\.train\.path=nowhere\.jsonl: there is no such file"),
        (["evaluate.forgetting=mix.jsonl"], r"is read with evaluate\.losses=true only"),
        (["evaluate.forgetting=mix.jsonl", "evaluate.losses=true"], "there is no such file"),
        (["trainer.devices=2"], "needs trainer=ddp or trainer=fsdp"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(compose, arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve(to_config(compose(*arguments)))


def test_the_folder_names_the_choices_and_nothing_else_by_default(compose):
    node = compose("seed=3", "model=qwen", "task=medical", "scorer=ri_kn", "logger=wandb", "output_dir=elsewhere")
    default = compose("model=qwen", "task=medical", "scorer=ri_kn")
    changed = overrides(node, default)
    assert changed == {}
    folder = RunFolder.of(to_config(node), changed).path
    assert folder == Path("elsewhere/runs/medical/deepseek_qwen_1_5b/full/xtf/ri_kn-paper/seed3")


def test_an_override_gives_a_folder_of_its_own_however_it_is_written(compose):
    def folder(*arguments):
        node = compose(*arguments)
        return RunFolder.of(to_config(node), overrides(node, compose())).path

    assert folder("tuning.learning_rate=1e-3") == folder("tuning.learning_rate=0.001") != folder()
    assert folder("threshold.kn.shift=+0.03") != folder("threshold.kn.shift=-0.03")
    assert folder("tuning.epochs=2", "threshold.kn.pcp=0.9") == folder("threshold.kn.pcp=0.9", "tuning.epochs=2")


def test_a_record_from_before_a_key_existed_agrees_with_the_keys_default_alone(compose):
    config = resolve(to_config(compose()))
    recorded = plain(identity(config))
    del recorded["scorer.ri.layer"], recorded["tuning.betas"], recorded["tuning.lora.r"]
    assert differing_keys(recorded, config) == []
    other = resolve(to_config(compose("scorer.ri.layer=2", "tuning.learning_rate=1")))
    assert differing_keys(recorded, other) == ["scorer.ri.layer", "tuning.learning_rate"]


def test_a_written_configuration_reads_back_as_the_same_one(compose):
    config = resolve(to_config(compose("threshold=released", "method=random", "tuning=lora", "seed=4")))
    assert load_config(OmegaConf.create(OmegaConf.to_yaml(plain(config)))) == config


def test_the_schema_is_frozen(compose):
    with pytest.raises(dataclasses.FrozenInstanceError):
        to_config(compose()).seed = 1
