"""Choices from outside the repository: a folder of YAML files and a package beside it, found through Hydra's path."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import hydra
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from xtf.config.compose import load_config, register, to_config, typed
from xtf.config.identity import identity, overrides, plain
from xtf.config.schema import ConfigError

ROOT = Path(__file__).parents[2]
FILES = {
    "my_package/__init__.py": "",
    "my_package/parts.py": '''
from dataclasses import dataclass

import numpy as np

from xtf.data.examples import Reading, turns
from xtf.scoring.methods import Method


@dataclass
class EveryOther(Method):
    """Drops every second token."""

    name: str = "mine"
    first: int = 0

    def weights(self, scores, seed):
        return ((np.arange(scores.tokens) + self.first) % 2).astype(np.float32)


def read(row):
    return Reading(turns("Q: " + row["question"], row["answer"]))


def grade(completion, reference, row):
    return reference in completion


class NoMethod:
    pass
''',
    "my_package/conf/__init__.py": "",
    "my_package/conf/method/mine.yaml": "_target_: my_package.parts.EveryOther\nname: mine\nfirst: 0\n",
    "my_package/conf/model/mine.yaml": "defaults: [tiny]\nname: mine\n",
    "my_package/conf/task/mine.yaml": (
        "defaults: [/schema/task@_here_]\nname: mine\nreader: my_package.parts.read\n"
        "grader: python:my_package.parts.grade\n"
        "max_new_tokens: 4\n"
    ),
}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.fixture
def compose(package, monkeypatch):
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    monkeypatch.syspath_prepend(str(package))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    register()
    path = f"hydra.searchpath=[file://{ROOT},pkg://my_package.conf]"
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda *arguments: hydra.compose("config", overrides=[path, *arguments])


def test_a_method_from_outside_is_typed_recorded_with_its_class_and_read_back(compose):
    node = compose("method=mine", "method.first=1")
    config = to_config(node)
    assert (type(config.method).__name__, config.method.first) == ("EveryOther", 1)
    assert overrides(typed(node), typed(compose("method=mine"))) == {"method.first": 1}
    record = plain(config)
    assert record["method"] == {"_target_": "my_package.parts.EveryOther", "name": "mine", "first": 1}
    assert load_config(OmegaConf.create(OmegaConf.to_yaml(record))) == config
    assert identity(config)["method._target_"] == "my_package.parts.EveryOther"
    assert "method._target_" not in identity(to_config(compose()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_target_": "my_package.parts.Nothing"}, "method._target_=my_package.parts.Nothing: .*on PYTHONPATH"),
        ({"_target_": "my_package.parts.NoMethod"}, "must derive from xtf.scoring.methods.Method"),
        ({"name": "slm"}, "method.name=slm is the name of a built-in method"),
        ({"first": "x"}, "method.first=x is not valid: it must be a whole number"),
        ({"frist": 1}, "there is no key 'method.frist'; did you mean 'method.first'"),
        ({"_target_": None, "name": "slmm"}, "method=slmm is not built in; did you mean 'slm'"),
    ],
)
def test_a_file_of_a_method_that_cannot_work_is_refused(compose, package, change, message):
    values = {"_target_": "my_package.parts.EveryOther", "name": "mine", "first": 0} | change
    file = package / "my_package/conf/method/mine.yaml"
    file.write_text(OmegaConf.to_yaml(OmegaConf.create({k: v for k, v in values.items() if v is not None})))
    with pytest.raises(ConfigError, match=message):
        to_config(compose("method=mine"))


def run(package, *arguments, status=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_with_method_model_task_and_grader_from_outside(package):
    data = ROOT / "xtf/tiny/data"
    given = [
        "model=mine",
        "task=mine",
        "method=mine",
        f"task.train.path={data / 'math_train.jsonl'}",
        f"task.eval.path={data / 'math_eval.jsonl'}",
        "task.train.limit=8",
        "task.eval.limit=2",
        "tuning.max_steps=1",
        "evaluate.base=false",
    ]
    run(package, "--config-dir", "my_package/conf", *given)
    folder = package / "outputs/runs/mine/mine/full/mine"
    (record,) = folder.glob("*/seed0/metrics.json")
    mask = pq.read_table(record.with_name("mask.parquet")).slice(0, 1).to_pylist()[0]
    response = mask["labels"][mask["prompt_length"] :]
    assert all((label == -100) == (place % 2 == 0) for place, label in enumerate(response))
    # A sweep, its path given the other way; its first job is the run above.
    out = run(package, "-m", "hydra.searchpath=[pkg://my_package.conf]", *given, "seed=0,1", "stage=mask")
    assert "2 jobs: 1 finished, 1 to run" in out
    assert (record.parents[1] / "seed1/mask.parquet").is_file()
    error = run(package, "--config-dir", "my_package/conf", "task=mien", status=2)
    assert "task=mien: there is no such choice; did you mean 'mine'? (choices: code, custom" in error


# -- installed packages ------------------------------------------------------------------------------------------------

FURTHER = {
    "my_package/place.py": """
from dataclasses import dataclass

import numpy as np

from xtf.data.ragged import positions
from xtf.scoring.attributes import TokenAttribute
from xtf.scoring.methods import Method

PLACE = TokenAttribute(
    name="place",
    source="place",
    noise=1,
    title="Place",
    explanation="does it stand early in its response?",
    axis="place in the response, from 0",
    reason="it stands too late ({score})",
    colour="#CC79A7",
    mark="P",
    derive=lambda rows, brought: positions(rows.responses).astype(np.float32),
)


@dataclass
class Beside(Method):
    name: str = "beside"
""",
    "my_package/further.py": """
import pyarrow.parquet as pq

from xtf.data.examples import Reading, turns
from xtf.exports.base import Trainer
from xtf.graders.base import Grade, Grader


def read(row):
    return Reading(turns("Q: " + row["question"], row["answer"]))


class FirstWord(Grader):
    version = 7

    def verdict(self, item):
        return Grade(item.completion.split()[:1] == item.reference.split()[:1], item.completion, "first word")


class Plain(Trainer):
    name = title = "plain"
    note = tried = "-"

    def write(self, rows, recipe, folder):
        pq.write_table(rows.table, folder / "train.parquet")

    def command(self, recipe):
        return "cat train.parquet"
""",
    "my_package/conf/__init__.py": "",
    "my_package/conf/task/installed.yaml": (
        "defaults: [/schema/task@_here_]\nname: installed\nreader: trivia\ngrader: first_word\n"
    ),
}
POINTS = {
    "xtf.attributes": {
        **dict.fromkeys(("place", "late", "ri"), "my_package.place:PLACE"),
        "no": "my_package.place:Beside",
    },
    "xtf.tasks": {"trivia": "my_package.further:read", "math": "my_package.further:read"},
    "xtf.graders": {"first_word": "my_package.further:FirstWord"},
    "xtf.exports": {
        "plain": "my_package.further:Plain",
        "broken": "my_package.nowhere:X",
        "no": "my_package.further:read",
    },
    "xtf.conf": {"my_package": "my_package.conf"},
}


@pytest.fixture
def installed_package(tmp_path):
    """The package that docs/extending.md shows, with further entry points, as pip would have installed it."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (code, *_), (declared,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "toml"))
    assert sum(bool(line) for line in code.splitlines()) <= 10
    points = tomllib.loads(declared)["project"]["entry-points"] | POINTS
    points["xtf.methods"] = points["xtf.methods"] | {"beside": "my_package.place:Beside"}
    sections = ["\n".join([f"[{group}]", *(f"{k} = {v}" for k, v in names.items())]) for group, names in points.items()]
    files = {"my_package/__init__.py": "", "my_package/parts.py": code, **FURTHER}
    files |= {
        "my_package-1.0.dist-info/entry_points.txt": "\n\n".join(sections) + "\n",
        "my_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_an_installed_package_gives_methods_attributes_tasks_graders_exports_and_choices(installed_package):
    data = ROOT / "xtf/tiny/data/math_train.jsonl"
    given = ["task=installed", "method=every_other", f"task.train.path={data}", "task.train.limit=6"]
    out = run(installed_package, *given, "method.first=1", "stage=export", "export.to=plain")
    (written,) = installed_package.glob("outputs/exports/*/plain/train.parquet")
    (mask,) = installed_package.glob("outputs/runs/installed/tiny/full/every_other/**/mask.parquet")
    row = pq.read_table(mask).slice(0, 1).to_pylist()[0]
    response = row["labels"][row["prompt_length"] :]
    assert all((label == -100) == (place % 2 == 1) for place, label in enumerate(response))
    assert pq.read_table(written)["labels"].to_pylist()[0] == row["labels"]
    assert "how to train with it" in out
    error = run(installed_package, *given, "method.frist=1", status=2)
    assert "there is no key 'method.frist'; did you mean 'method.first'" in error
    # Refused for the grader alone: the attribute and its threshold are known.
    late = ["scorer.attributes=[place]", "threshold.place.q=0.4", "task.grader=first_wird"]
    error = run(installed_package, *late, "stage=mask", "task.train.limit=6", status=1)
    assert "unknown task.grader 'first_wird'; did you mean 'first_word'" in error


def test_an_attribute_of_an_installed_package_is_a_row_of_the_table_with_a_threshold(
    installed_package, monkeypatch, caplog
):
    from xtf.config import schema
    from xtf.scoring import attributes

    monkeypatch.syspath_prepend(str(installed_package))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    for table in (attributes.ATTRIBUTES, schema.FURTHER_THRESHOLDS):
        for name in ("place", "late"):  # which this takes out again at the end
            monkeypatch.setitem(table, name, None)
            del table[name]
    with caplog.at_level(logging.WARNING, "xtf"):
        attributes.register_installed()
    assert list(attributes.ATTRIBUTES) == schema.attribute_names() == ["ri", "kn", "tr", "place"]
    assert attributes.rule_of(schema.PRESETS["paper"], attributes.ATTRIBUTES["place"]).q == 0.1
    assert "xtf.attributes=late is left out: it calls itself 'place'" in caplog.text
    assert "xtf.attributes=ri of an installed package is left out: the name is ours" in caplog.text
    assert "xtf.attributes=no is left out: my_package.place.Beside is no xtf.scoring.attributes.T" in caplog.text
    with pytest.raises(ValueError, match="letters and digits only, not 'my_place'"):
        attributes.register(dataclasses.replace(attributes.ATTRIBUTES["place"], name="my_place"))


def test_entry_points_that_cannot_be_are_left_out_with_a_warning(installed_package, monkeypatch, caplog):
    from xtf.exports.base import Trainer
    from xtf.runtime.imports import installed, installed_classes

    monkeypatch.syspath_prepend(str(installed_package))
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.WARNING, "xtf"):
        assert list(installed_classes("xtf.exports", Trainer)) == ["plain"]
        assert installed("xtf.tasks", ["math"]) == {"trivia": "my_package.further.read"}
    assert "xtf.exports=broken is left out, for my_package.nowhere.X cannot be imported" in caplog.text
    assert "xtf.exports=no is left out: my_package.further.read is no xtf.exports.base.Trainer" in caplog.text
    assert "xtf.tasks=math of an installed package is left out: the name is ours" in caplog.text
