"""Plans: shapes, memory and shared work against numbers worked by hand, and what does not fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from xtf import cli
from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.identity import plain
from xtf.config.schema import ConfigError, ModelShape
from xtf.runtime import shapes
from xtf.runtime.artifacts import write_json
from xtf.sweeps import jobs, plan

ROOT = Path(__file__).parents[2]
SMALL = ModelShape(layers=2, hidden=8, intermediate=16, heads=4, kv_heads=2, vocabulary=100)


@pytest.fixture(scope="module")
def compose(composing):
    return lambda *arguments: resolve(to_config(hydra.compose("config", overrides=list(arguments))))


def batch(name, **fixed):
    grid = OmegaConf.load(cli.choices("experiments")[name]).hydra.sweeper.params
    axes = {key: str(value).split(",") for key, value in grid.items()} | fixed
    return [
        [f"experiments={name}", *(f"{key}={value}" for key, value in zip(axes, values, strict=True))]
        for values in itertools.product(*axes.values())
    ]


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("llama_1b", 1_235_814_400),
        ("llama_3b", 3_212_749_824),
        ("llama_8b", 8_030_261_248),
        ("mistral_7b", 7_241_732_096),
        ("deepseek_qwen_1_5b", 1_777_088_000),
        ("deepseek_qwen_7b", 7_615_616_512),
        ("deepseek_qwen_14b", 14_770_033_664),
        ("qwen2_5_0_5b", 494_032_768),
        ("qwen3_0_6b", 596_049_920),
        ("smollm2_360m", 361_821_120),
    ],
)
def test_the_stated_shapes_give_the_published_numbers_of_parameters(compose, model, count):
    assert shapes.parameters(compose(f"model={model}").model.shape) == count


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_a_shape_read_from_a_config_has_the_parameters_of_the_model(small_model, family):
    model = small_model(family)
    shape = shapes.read_shape(json.loads(model.config.to_json_string(use_diff=False)))
    assert shapes.parameters(shape) == model.num_parameters()


def test_an_adapter_has_the_parameters_that_peft_makes(small_model):
    from peft import LoraConfig, get_peft_model

    model = small_model("llama")
    shape = shapes.read_shape(json.loads(model.config.to_json_string(use_diff=False)))
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=3))
    assert shapes.adapter_parameters(shape, 3) == adapted.get_nb_trainable_parameters()[0]


def test_memory_of_a_small_model_by_hand(compose):
    # head 2, so queries 8 and keys 4 wide; a layer: 2*8*8 + 2*8*4 + 3*8*16 + 2*8 = 592; 100*8*2 + 2*592 + 8 = 2792.
    assert shapes.parameters(SMALL) == 2792
    config = compose(
        "model=tiny",
        "model.max_length=64",
        "trainer.tokens_per_microbatch=100",
        "trainer.tokens_per_score_batch=200",
        "trainer.tokens_per_eval_batch=1000",
        "task.max_new_tokens=20",
        "task.size.prompt=80",
    )
    found = plan.memory(SMALL, config)
    logits = 4 * 2**26
    # Inference, elements a token: 4*8 + 8 + 2*4 + 3*16 = 96. Training, a layer: 4*8 + 3*8 + 3*4 + 4*16 = 132.
    assert found.scoring * 2**30 == pytest.approx(4 * 2792 + 200 * 96 * 4 + 2 * logits)
    assert found.training * 2**30 == pytest.approx(16 * 2792 + 100 * (2 * 132 + 6 * 8) * 4 + 3 * logits)
    # Keys and values of two layers: 2*2*4 elements a token; ten rows of 100 tokens, two blocks of float32 logits.
    assert found.evaluation * 2**30 == pytest.approx(4 * 2792 + 1000 * (2 * 2 * 4 + 96) * 4 + 8 * 10 * 100)
    checkpointed = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, gradient_checkpointing=True))
    saved = (found.training - plan.memory(SMALL, checkpointed).training) * 2**30
    assert saved == pytest.approx(100 * (2 * 132 - (2 * 8 + 132)) * 4)


def test_states_of_full_tuning_lora_ddp_and_fsdp_on_gpus(compose):
    def training(*arguments):
        small = ("model.max_length=8", "trainer.tokens_per_microbatch=1", "model=llama_8b")
        config = compose(*small, *arguments)
        return plan.memory(config.model.shape, config).training

    count, adapter = 8_030_261_248, 32 * 8 * (2 * 4096 + 4096 + 1024)
    per_token = 8 * (32 * (4 * 4096 + 3 * 4096 + 3 * 1024 + 4 * 14336) + 6 * 4096) * 2
    rest = (3 * 4 * 2**26 + per_token) / 2**30 + 1.0
    full = training("trainer=gpu")
    assert full == pytest.approx(18 * count / 2**30 + rest)
    assert training("trainer=ddp") == pytest.approx(22 * count / 2**30 + rest)
    gathered = 4 * 128256 * 4096
    assert training("trainer=fsdp", "trainer.devices=8") == pytest.approx((2 * count + gathered) / 2**30 + rest)
    assert training("trainer=gpu", "tuning=lora") == pytest.approx((2 * count + 16 * adapter) / 2**30 + rest)


def test_a_sweep_counts_its_cases_its_shared_passes_and_its_reference_models(compose):
    found = plan.make_plan(jobs.compose_jobs(batch("table1_math", seed=["0"], method=["normal", "slm", "xtf"])))
    assert [plan.case[1:] for plan in found.cases].count(("llama_8b", "lora")) == 1
    assert sum(plan.jobs for plan in found.cases) == 30
    # xtf: a pass a model; LoRA and full tuning train the same rows. slm: a pass and a reference model for each case.
    assert found.passes == 7 + 10
    assert found.references == 10


def test_a_second_model_that_scores_is_refused_in_a_sweep_as_in_one_run(compose):
    line = ["model=llama_1b", "scorer.model=smollm2_135m"]
    for planned in (jobs.compose_jobs([line]), [jobs.Planned((), compose(*line, "stage=plan"), {})]):
        with pytest.raises(ConfigError, match=r"^scorer\.model=smollm2_135m is not counted by stage=plan: unset it"):
            plan.show_plan(planned)


def test_rows_with_other_planted_noise_have_a_reference_model_of_their_own(compose):
    shares = {"seed": ["0", "1"], "method": ["slm"], "plant.share": ["0", "0.15", "0.3"]}
    assert plan.make_plan(jobs.compose_jobs(batch("study_methods", **shares))).references == 3


def test_tokens_of_a_real_model_are_stated_and_trained_for_every_epoch(compose):
    (job,) = jobs.compose_jobs([["model=llama_1b", "task=math", "method=double_epochs"]])
    found = plan.make_plan([job])
    (line,) = found.cases
    assert line.source == "stated"
    assert line.tokens == 500 * (80 + 125) * 3 * 2
    # Trained; then 1,319 prompts read and 250 tokens written for each, by the base model and by the tuned one.
    work = 615_000 + 2 * 1319 * (80 / 3 + 250)
    assert line.hours == pytest.approx(work * 1.2358144 / 10_000 / 3600)


def test_tokens_of_local_rows_are_sampled_and_those_of_a_scored_run_counted(compose, tmp_path):
    (job,) = jobs.compose_jobs([["task.train.limit=10", f"output_dir={tmp_path}"]])
    sampled = plan.tokens_of(job)
    assert (sampled.train_rows, sampled.eval_rows, sampled.source) == (10, 400, "sampled")
    assert 30 < sampled.prompt + sampled.response < 300
    write_json(tmp_path / "scores/key/manifest.json", {"tokens": 1234})
    stages = {"score": {"paths": {"scores": str(tmp_path / "scores/key")}}}
    write_json(job.folder.manifest, {"stages": stages, "data": {"train": {"rows": 10}}})
    counted = plan.tokens_of(job)
    assert counted.source == "counted"
    assert counted.train == pytest.approx(1234)


def test_tokenised_rows_are_counted_and_those_that_cannot_be_named(compose, tmp_path):
    def tokens(name, content, *more):
        (tmp_path / name).write_text(content)
        paths = [f"task.{part}.path={tmp_path / name}" for part in ("train", "eval")]
        return plan.tokens_of(jobs.compose_jobs([[*paths, *more, f"output_dir={tmp_path}"]])[0])

    whole = '{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}\n'
    found = tokens("whole.jsonl", whole)
    assert (found.prompt, found.response) == (1, 2)
    weighed = '{"input_ids": [7, 8, 9], "prompt_length": 1, "weights": [1, 0.5]}\n'
    found = tokens("weighed.jsonl", weighed, "method=given")
    assert (found.prompt, found.response) == (1, 2)
    with pytest.raises(ValueError, match="row 2: input_ids must be a list of whole numbers"):
        tokens("mixed.jsonl", whole + '{"prompt": "Hi"}\n')


def test_full_tuning_of_8b_on_a_card_of_24_gb_is_refused_and_lora_with_small_batches_is_not(compose, capsys):
    card = ["trainer=gpu", "plan.device_memory_gb=24", "model=llama_8b"]
    with pytest.raises(ConfigError, match=r"training of model=llama_8b tuning=full trainer=gpu takes about \d+ GiB"):
        plan.show_plan(jobs.compose_jobs([card]))
    small = ["tuning=lora", "tuning.gradient_checkpointing=true", "trainer.tokens_per_eval_batch=8192"]
    plan.show_plan(jobs.compose_jobs([[*card, *small]]))
    assert "llama_8b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"config\.json is not JSON .*: fetch the model again"),
        ("[]", r"config\.json must be a JSON object"),
        ('{"n_embd": 8, "n_head": 2, "n_layer": 1, "vocab_size": 9}', "whole numbers for num_hidden_layers, hidden_s"),
        ('{"num_hidden_layers": "12"}', "whole numbers for num_hidden_layers, .*vocab_size; this one does not"),
    ],
)
def test_a_config_that_the_plan_cannot_count_is_named(compose, tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        shapes.shape_of(dataclasses.replace(compose().model, path=str(tmp_path)))
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_model_of_unknown_shape_says_what_to_state(compose):
    config = compose("model=llama_1b").model
    unknown = dataclasses.replace(config, path="nobody/nothing", shape=ModelShape())
    with pytest.raises(ConfigError, match=r"state model.shape"):
        shapes.shape_of(unknown)
    assert plain(config.shape)["layers"] == 16
