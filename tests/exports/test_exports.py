"""Masked rows for other trainers: what is written, what is refused, and the loss that the trainers really compute."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import runpy
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import xtf
from xtf import tiny
from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.identity import overrides
from xtf.config.schema import LoraSettings, Schedule, Tuning, TuningConfig
from xtf.data.provenance import recorded, tokenizer_digest
from xtf.exports import TRAINERS
from xtf.exports.base import MaskedRows, tokenizer_state
from xtf.exports.megatron import packed
from xtf.exports.write import export_run
from xtf.inputs import Inputs
from xtf.runtime.run_folder import Manifest, RunFolder

MODEL = str(tiny.MODEL_DIR)
SETTINGS = {"epochs": 1, "learning_rate": 1e-4, "schedule": Schedule.constant, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def masked(tokenizer):
    """Eight short rows, the second without any label, with labels dropped by hand."""
    generator = np.random.default_rng(0)
    rows = {"example_id": [], "input_ids": [], "prompt_length": [], "labels": []}
    for number, length in enumerate([9, 7, 30, 14, 5, 22, 11, 18]):
        ids = generator.integers(5, 2000, length).tolist()
        keep = (generator.random(length) < 0.6) & (np.arange(length) >= 3) & (number != 1)
        rows["example_id"].append(f"row-{number}")
        rows["input_ids"].append(ids)
        rows["prompt_length"].append(3)
        rows["labels"].append([token if kept else -100 for token, kept in zip(ids, keep, strict=True)])
    lists = {name: pa.array(rows[name], pa.list_(pa.int32())) for name in ("input_ids", "labels")}
    return datasets.Dataset(pa.table({**rows, **lists}))


def export(masked, folder, to="hf", **settings):
    return xtf.export(masked, to, folder, model=MODEL, **settings)


def test_a_trainer_that_is_here_in_another_version_than_tried_is_named(masked, tmp_path, monkeypatch, caplog) -> None:
    assert json.loads((export(masked, tmp_path / "as-tried") / "export.json").read_text())["other_versions"] == []
    assert "is installed here" not in caplog.text
    monkeypatch.setattr(TRAINERS["hf"], "tried_with", {"transformers": "3.0.2"})
    page = (export(masked, tmp_path / "other") / "README.md").read_text()
    here = importlib.metadata.version("transformers")
    line = f"transformers {here} is installed here, and may read them otherwise: these files were tried with 3.0.2"
    assert line in page
    assert line in caplog.text
    export(masked, tmp_path / "not-here", to="megatron")  # runs elsewhere, with what it has there
    assert "megatron-core" not in caplog.text


def by_hand(masked) -> float:
    """Sum of the losses of the kept tokens over their number, a row at a time."""
    model, total, kept = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval(), 0.0, 0
    with torch.no_grad():
        for row in masked:
            logp = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for place, label in enumerate(row["labels"]):
                if label != -100:
                    total -= logp[place - 1, label].item()
                    kept += 1
    return total / kept


@pytest.fixture
def first_loss(monkeypatch):
    """What the exported script logs for its first step, with other values in the exported configuration."""

    def train(folder: Path, **changes) -> float:
        file = folder / "training.yaml"
        arguments = yaml.safe_load(file.read_text()) | {"max_steps": 1, "use_cpu": True, **changes}
        file.write_text(yaml.safe_dump(arguments))
        monkeypatch.chdir(folder)
        return runpy.run_path("train.py")["trainer"].state.log_history[0]["loss"]

    return train


# -- the trainers really run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(1, 7), (7, 1), (4, 2)])
def test_transformers_trainer_computes_the_loss_by_hand(masked, tmp_path, first_loss, batch):
    folder = export(masked, tmp_path / "hf")
    size, accumulate = batch
    found = first_loss(folder, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate)
    assert found == pytest.approx(by_hand(masked), rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.parametrize("changes", [{}, {"packing": True, "packing_strategy": "bfd", "max_length": 64}])
def test_trl_computes_the_loss_by_hand_also_packed(masked, tmp_path, first_loss, changes):
    folder = export(masked, tmp_path / "trl", "trl")
    found = first_loss(folder, per_device_train_batch_size=7, gradient_accumulation_steps=1, bf16=False, **changes)
    assert found == pytest.approx(by_hand(masked), rel=1e-3)


# -- what is written ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", TRAINERS)
def test_every_export_has_a_readme_and_a_record_with_hashes(masked, tmp_path, to):
    folder = export(masked, tmp_path / to, to)
    readme, record = (folder / "README.md").read_text(), json.loads((folder / "export.json").read_text())
    kept = sum(label != -100 for row in masked["labels"] for label in row)
    assert (record["rows"], record["kept_tokens"], record["rows_without_label"]["count"]) == (7, kept, 1)
    assert "1 rows have no label at all and are left out" in readme
    for value in (record["rows_sha256"], *record["files"].values(), record["versions"]["xtf"]):
        assert value in readme
    assert {file.name for file in folder.iterdir()} == {"README.md", "export.json", *record["files"]}


@pytest.mark.parametrize("to", ["hf", "trl", "axolotl", "llamafactory"])
def test_the_data_has_exactly_three_columns(masked, tmp_path, to):
    folder = export(masked, tmp_path / to, to, empty_rows="keep")
    if to == "llamafactory":
        rows = datasets.load_from_disk(str(folder / "data"))["train"]
    else:
        rows = datasets.Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["input_ids", "attention_mask", "labels"]
    assert rows["input_ids"][:] == masked["input_ids"][:] and rows["labels"][:] == masked["labels"][:]
    assert rows["attention_mask"][:] == [[1] * len(ids) for ids in masked["input_ids"]]


def test_lengths_in_the_configurations_fit_the_longest_row(masked, tmp_path):
    files = {"trl": ("training.yaml", "max_length"), "axolotl": ("axolotl.yaml", "sequence_len")}
    files["llamafactory"] = ("llamafactory.yaml", "cutoff_len")
    for to, (name, key) in files.items():
        folder = export(masked, tmp_path / to, to)
        assert yaml.safe_load((folder / name).read_text())[key] == 30
        longer = export(masked, tmp_path / f"{to}-40", to, max_length=40)
        assert yaml.safe_load((longer / name).read_text())[key] == 40


def test_adapters_name_the_modules_that_peft_takes_for_the_model(masked, tmp_path):
    lora = TuningConfig(name=Tuning.lora, batch_size=4, lora=LoraSettings(r=4, alpha=9), **SETTINGS)
    folder = export(masked, tmp_path / "axolotl", "axolotl", tuning=lora)
    settings = yaml.safe_load((folder / "axolotl.yaml").read_text())
    assert (settings["adapter"], settings["lora_r"], settings["lora_alpha"]) == ("lora", 4, 9)
    assert settings["lora_target_modules"] == ["q_proj", "v_proj"]


def another(tokenizer, folder):
    """The same ids, and another end and chat template."""
    found = AutoTokenizer.from_pretrained(MODEL)
    found.eos_token, found.chat_template = tokenizer.convert_ids_to_tokens(7), "{{ messages[0].content }}"
    found.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("to", TRAINERS)
def test_another_tokenizer_than_the_models_own_goes_with_the_rows(masked, tokenizer, tmp_path, caplog, to):
    given = another(tokenizer, tmp_path / "given")
    folder = export(masked, tmp_path / to, to, tokenizer=given)
    saved = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer_state(saved) == tokenizer_state(given) != tokenizer_state(tokenizer)
    files = {"hf": "train.py", "trl": "train.py", "axolotl": "axolotl.yaml", "megatron": "finetune.py"}
    named = ("from_pretrained('tokenizer')", "tokenizer_config: tokenizer\n", "tokenizer_model=str(HERE / 'tokenizer')")
    told = "the tokenizer that made the rows: the configuration names none beside the model's own"
    if to in files:
        assert any(words in (folder / files[to]).read_text() for words in named)
    assert (told in (folder / "README.md").read_text()) == (told in caplog.text) == (to not in files)


def test_the_models_own_tokenizer_is_not_saved_again(masked, tokenizer, tmp_path):
    folder = export(masked, tmp_path / "own", tokenizer=AutoTokenizer.from_pretrained(MODEL))
    assert export(masked, folder) == folder  # the same export
    changed = AutoTokenizer.from_pretrained(MODEL)
    changed.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="holds another export"):
        export(masked, folder, tokenizer=changed)
    assert (export(masked, tmp_path / "changed", tokenizer=changed) / "tokenizer").is_dir()


def test_axolotl_is_told_what_pads_where_the_tokenizer_names_nothing(masked, tokenizer, tmp_path):
    assert tokenizer.pad_token is not None
    assert "special_tokens" not in (export(masked, tmp_path / "own", "axolotl") / "axolotl.yaml").read_text()
    without = AutoTokenizer.from_pretrained(MODEL)
    without.pad_token = None
    folder = export(masked, tmp_path / "base", "axolotl", tokenizer=without)
    settings = yaml.safe_load((folder / "axolotl.yaml").read_text())
    assert settings["special_tokens"] == {"pad_token": tokenizer.eos_token}


def test_megatron_masks_the_predicting_token_and_packs_whole_documents(masked):
    table = pa.table({name: masked.data.table[name] for name in ("input_ids", "labels")})
    found = pa.Table.from_batches(packed(MaskedRows(table, 0, 0), 40)).to_pylist()
    documents = {}
    for pack in found:
        assert len(pack["input_ids"]) == len(pack["loss_mask"]) <= 40
        ends = [*pack["seq_start_id"][1:], len(pack["input_ids"])]
        for start, end in zip(pack["seq_start_id"], ends, strict=True):
            documents[tuple(pack["input_ids"][start:end])] = pack["loss_mask"][start:end]
    assert len(documents) == len(masked)
    for row in masked:
        wanted = [int(label != -100) for label in row["labels"][1:]] + [0]
        assert documents[tuple(row["input_ids"])] == wanted


def with_weights(masked):
    table = masked.data.table
    weights = [[0.25 if place % 2 else 1.0 for place in range(len(ids) - 3)] for ids in masked["input_ids"]]
    return datasets.Dataset(table.append_column("weights", pa.array(weights, pa.list_(pa.float32()))))


def test_ms_swift_gets_a_scale_for_every_token(masked, tmp_path):
    folder = export(with_weights(masked), tmp_path / "swift", "ms_swift", empty_rows="keep")
    for line, row in zip((folder / "train.jsonl").read_text().splitlines(), masked, strict=True):
        scale = [
            0.0 if label == -100 else 0.25 if (place - 3) % 2 else 1.0 for place, label in enumerate(row["labels"])
        ]
        assert json.loads(line) == {"token_ids": row["input_ids"], "loss_scale": scale}
    assert "--is_binary_loss_scale false" in (folder / "train.sh").read_text()
    plain = export(masked, tmp_path / "plain", "ms_swift")
    command = (plain / "train.sh").read_text()
    assert "--is_binary_loss_scale true" in command
    assert "--fp16 false" in command  # else ms-swift 4.6.0 turns it on beside torch_dtype float32
    assert "--truncation_strategy delete" in command  # ms-swift 4.6.0 knows delete, left, right and split


# -- what is refused ----------------------------------------------------------------------------------------------


def changed(masked, **columns):
    rows = masked.to_dict() | columns
    return datasets.Dataset.from_dict(rows)


def test_rows_that_do_not_belong_together_are_refused(masked, tmp_path):
    labels = [list(row) for row in masked["labels"]]
    labels[2][4] = 4
    with pytest.raises(ValueError, match=r"neither -100 nor the input id at its place .*: example row-2;"):
        export(changed(masked, labels=labels), tmp_path / "a")
    with pytest.raises(ValueError, match=r"labels and input_ids differ in length: example row-0;"):
        export(changed(masked, labels=[masked["labels"][0][:-1], *masked["labels"][1:]]), tmp_path / "b")
    with pytest.raises(ValueError, match=r"no mask: it has no column 'labels'.*xtf.mask first"):
        export(masked.remove_columns("labels"), tmp_path / "c")
    with pytest.raises(ValueError, match=r"nothing to train on"):
        export(changed(masked, labels=[[-100] * len(ids) for ids in masked["input_ids"]]), tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_no_dataset_of_lists_are_refused_in_a_sentence(masked, tmp_path):
    split = masked.train_test_split(test_size=2)
    for rows in (masked[:3], split, list(masked), masked.to_pandas(), masked.with_format("arrow")[:]):
        with pytest.raises(ValueError, match=r"a datasets.Dataset is needed, not .* instead of rows\[:3\]"):
            export(rows, tmp_path / "a")
        with pytest.raises(ValueError, match=r"a datasets\.Dataset is needed, not "):
            xtf.mask(rows)
    with pytest.raises(ValueError, match="there are no rows"):
        export(masked.select([]), tmp_path / "b")
    with pytest.raises(ValueError, match=r"column 'labels' holds no lists but int64"):
        export(changed(masked, labels=[1] * len(masked)), tmp_path / "c")
    floats = masked.cast_column("labels", datasets.List(datasets.Value("float32")))
    wanted = pq.read_table(export(masked, tmp_path / "d") / "train.parquet")
    assert pq.read_table(export(floats, tmp_path / "e") / "train.parquet").equals(wanted)


def test_megatrons_script_has_the_runs_settings_and_a_step_of_about_as_many_rows(masked, tmp_path, monkeypatch):
    """The names that it imports are stood in for by what keeps its arguments."""
    lora = TuningConfig(name=Tuning.lora, batch_size=4, lora=LoraSettings(r=4, alpha=9), **SETTINGS | {"epochs": 2})
    folder = export(masked, tmp_path / "megatron", "megatron", tuning=lora, max_length=40)
    assert "torchrun --nproc-per-node=1 finetune.py" in (folder / "README.md").read_text()

    class Kept(SimpleNamespace):
        from_hf_pretrained = staticmethod(lambda path: Kept(path=path))

        def to_megatron_provider(self, load_weights):
            return self

    class Stand(types.ModuleType):
        __path__ = ()

        def __getattr__(self, name):
            return Kept

    for line in (folder / "finetune.py").read_text().splitlines():
        if line.startswith("from megatron"):
            monkeypatch.setitem(sys.modules, line.split()[1], Stand(line.split()[1]))
    for name in ("megatron.bridge.data", "megatron.bridge.data.builders", "megatron.bridge.data.packing"):
        monkeypatch.setitem(sys.modules, name, Stand(name))
    monkeypatch.syspath_prepend(str(folder))
    found = runpy.run_path(str(folder / "finetune.py"))["config"]
    monkeypatch.delitem(sys.modules, "dataset")
    packs = pq.read_metadata(folder / "train.idx.parquet").num_rows
    assert (found.model.path, found.model.seq_length, found.model.calculate_per_token_loss) == (MODEL, 40, True)
    assert (found.train.num_epochs, found.train.global_batch_size) == (2, round(4 * packs / 7))
    assert (found.optimizer.lr, found.scheduler.lr_decay_style) == (1e-4, "constant")
    assert found.checkpoint.pretrained_checkpoint == found.tokenizer.tokenizer_model == MODEL
    assert (found.peft.target_modules, found.peft.dim, found.peft.alpha) == (["linear_q", "linear_v"], 4, 9)


def test_megatron_is_given_no_name_that_makes_a_folder_beside_the_model(masked, tmp_path):
    script = (export(masked, tmp_path / "megatron", "megatron") / "dataset.py").read_text()
    assert "tokenizer_model_name" not in script and "packed_metadata_path=HERE" in script


@pytest.mark.parametrize("to", [name for name in TRAINERS if name != "ms_swift"])
def test_weights_that_the_trainer_ignores_are_refused(masked, tmp_path, to):
    with pytest.raises(ValueError, match=r"fractional weights .*export.to=ms_swift"):
        export(with_weights(masked), tmp_path / to, to)


@pytest.mark.parametrize("to", ["hf", "ms_swift"])
def test_a_mask_that_differs_from_epoch_to_epoch_is_refused(masked, tmp_path, to):
    moving = masked.add_column("drop_probability", [0.5] * len(masked))
    with pytest.raises(ValueError, match=r"drops other tokens in each epoch .*threshold\.drop_probability=1"):
        export(moving, tmp_path / to, to)


def test_lengths_that_would_be_cut_are_refused(masked, tmp_path):
    with pytest.raises(ValueError, match=r"export.max_length=20: the trainer would cut 2 of 7 rows"):
        export(masked, tmp_path / "short", max_length=20)


def test_another_export_in_the_folder_is_refused_and_left_alone(masked, tmp_path):
    folder = export(masked, tmp_path / "one")
    (folder / "output").mkdir()  # what training leaves
    before = (folder / "export.json").read_text()
    assert export(masked, folder) == folder
    with pytest.raises(ValueError, match=r"holds another export"):
        export(masked, folder, empty_rows="keep")
    with pytest.raises(ValueError, match=r"holds another export"):
        export(masked, folder, "trl")
    assert (folder / "export.json").read_text() == before and (folder / "output").is_dir()
    (folder / "train.py").write_text("other")
    with pytest.raises(ValueError, match=r"train.py changed since"):
        export(masked, folder)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no export"):
        export(masked, tmp_path / "own")


@pytest.mark.parametrize("content", ["{}", "[]", '{"identity": 3}', "no JSON"])
def test_a_folder_with_another_programs_record_is_refused(masked, tmp_path, content):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(ValueError, match=r"export\.json is damaged.*delete .* to redo it, or give another folder"):
        export(masked, tmp_path)


def test_a_damaged_record_of_an_export_is_refused(masked, tmp_path):
    folder = export(masked, tmp_path / "hf")
    record = folder / "export.json"
    whole = record.read_text()
    for old, new in (('"identity"', '"identitx"'), ('"rows": 7', '"rows": 3')):
        record.write_text(whole.replace(old, new))
        with pytest.raises(ValueError, match=r"export\.json is damaged"):
            export(masked, folder)


def test_a_file_in_the_place_of_the_folder_is_refused(masked, tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match=r"can hold no export, for .*/file is a file: give another folder"):
            export(masked, folder)


def test_what_a_killed_export_left_is_deleted_by_the_next(masked, tmp_path):
    left = tmp_path / f".hf.{platform.node()}-{2**22 + 1}.tmp"
    left.mkdir()
    (left / "train.parquet").touch()
    folder = export(masked, tmp_path / "hf")
    assert list(tmp_path.iterdir()) == [folder]


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    rows = [{"prompt": "What is 2 + 3?", "response": "2 + 3 = 5\n#### 5"}] * 3
    scored = xtf.mask(xtf.score(model, tokenizer, rows), threshold="quantile").shuffle(seed=1)
    folder = xtf.export(scored, to="trl", folder=tmp_path / "trl")  # model and tokenizer as recorded
    assert MODEL in (folder / "train.py").read_text()
    assert "threshold=quantile, end=kept, attributes: ri, kn, tr" in (folder / "README.md").read_text()
    other = AutoTokenizer.from_pretrained(MODEL)
    other.add_tokens(["<another>"])
    with pytest.raises(ValueError, match=r"were scored with another tokenizer"):
        xtf.export(scored, to="trl", folder=tmp_path / "other", tokenizer=other)


def test_a_model_that_is_gone_is_named_and_asked_for(masked, tokenizer, tmp_path):
    gone = str(tmp_path / "model")
    scored = recorded(masked.data.table, {"model": gone, "tokenizer": tokenizer_digest(tokenizer)})
    with pytest.raises(
        ValueError, match=rf"tokenizer of {gone}, the model that scored .*: give model=, a folder or an id"
    ):
        xtf.export(scored, "hf", tmp_path / "a")
    with pytest.raises(
        ValueError, match=rf"'{gone}', which the export names, cannot be read: .*; give one that is there"
    ):
        xtf.export(scored, "hf", tmp_path / "b", tokenizer=tokenizer)
    assert xtf.export(scored, "hf", tmp_path / "c", model=MODEL).is_dir()


def test_rows_within_the_length_that_yarn_gives_a_model_are_taken(masked, tokenizer, tmp_path):
    settings = json.loads((tiny.MODEL_DIR / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
    settings |= {"max_position_embeddings": 16, "rope_parameters": yarn}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    folder = xtf.export(masked, "hf", tmp_path / "out", model=str(tmp_path / "model"), tokenizer=tokenizer)
    assert json.loads((folder / "export.json").read_text())["recipe"]["max_length"] == 30


def test_unknown_names_are_refused_with_the_known_ones(masked, tmp_path):
    with pytest.raises(ValueError, match=r"to='tlr' is not known; did you mean 'trl'"):
        export(masked, tmp_path / "x", "tlr")
    with pytest.raises(ValueError, match="empty_rows='maybe': known are drop, keep"):
        export(masked, tmp_path / "x", empty_rows="maybe")


# -- the command line ---------------------------------------------------------------------------------------------


def config(*arguments):
    return to_config(hydra.compose("config", overrides=list(arguments)))


@pytest.mark.usefixtures("composing")
def test_what_no_file_can_hold_is_refused_before_anything_is_scored():
    with pytest.raises(ValueError, match=r"method=dft weighs tokens with the model in training"):
        resolve(config("stage=export", "method=dft"))
    with pytest.raises(ValueError, match=r"method=token_cleaning_evolving cleans each part"):
        resolve(config("stage=export", "method=token_cleaning_evolving"))
    with pytest.raises(
        ValueError, match=r"dropped_weight=0.1 gives fractional weights, which TRL's .*export.to=ms_swift"
    ):
        resolve(config("stage=export", "export.to=trl", "threshold.dropped_weight=0.1"))
    resolve(config("stage=export", "export.to=ms_swift", "threshold.dropped_weight=0.1"))
    with pytest.raises(ValueError, match=r"drop_probability=0.5 draws anew in each epoch .* which no file can hold"):
        resolve(config("stage=export", "export.to=ms_swift", "threshold.drop_probability=0.5"))
    with pytest.raises(ValueError, match=r"export.to=axolot is not known; did you mean 'axolotl'"):
        resolve(config("stage=export", "export.to=axolot"))
    resolve(config("stage=mask", "method=dft"))


@pytest.mark.usefixtures("composing")
def test_export_settings_do_not_name_the_run():
    from xtf.config.compose import compose, typed

    plain = compose([])
    node = compose(["stage=export", "export.to=trl", "export.empty_rows=keep", "export.max_length=400"])
    assert overrides(typed(node), typed(plain)) == {}


@pytest.mark.usefixtures("composing")
def test_a_run_is_exported_from_its_mask(tokenizer, tmp_path):
    from xtf.pipeline import run

    made = resolve(
        config("stage=export", "export.to=axolotl", "scorer=kn", "task.train.limit=6", f"output_dir={tmp_path}")
    )
    run(made, {"task.train.limit": 6})
    folder = RunFolder.of(made, {"task.train.limit": 6})
    place = folder.export("axolotl")
    assert place == tmp_path / "exports" / "-".join(folder.parts) / "axolotl"
    rows, mask = pq.read_table(place / "train.parquet"), pq.read_table(folder.mask)
    assert rows.num_rows == 6
    assert rows["input_ids"].to_pylist() == mask["input_ids"].to_pylist()
    assert rows["labels"].to_pylist() == mask["labels"].to_pylist()
    settings = yaml.safe_load((place / "axolotl.yaml").read_text())
    assert settings["num_epochs"] == made.tuning.epochs
    assert settings["micro_batch_size"] == made.tuning.batch_size  # accumulated means would weigh short rows more
    assert settings["gradient_accumulation_steps"] == 1
    readme = (place / "README.md").read_text()
    assert "scorer=kn (attributes: kn), threshold=paper" in readme
    assert "tokenizer_config" not in settings
    named = replace(made, model=replace(made.model, tokenizer=MODEL), export=replace(made.export, to="hf"))
    export_run(named, folder, Manifest(folder), lambda: Inputs(made, Manifest(folder)).encoded, tokenizer)
    assert "from_pretrained('tokenizer')" in (folder.export("hf") / "train.py").read_text()
    assert not folder.model.exists() and not folder.metrics.exists()
