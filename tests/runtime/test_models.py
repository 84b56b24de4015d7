"""A model's folder: what is refused before anything is made with it, and weights that are not those of its config."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from xtf.config.schema import ModelConfig, TrainerConfig
from xtf.runtime.models import check_folder, context_of, load_config, load_model, load_tokenizer
from xtf.tiny import MODEL_DIR

TRAINER = TrainerConfig(name="cpu")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(MODEL_DIR, tmp_path / "model")


def model_in(folder):
    return ModelConfig(name="mine", path=str(folder))


def load(folder):
    return load_model(model_in(folder), TRAINER, torch.float32)


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def layers(number):
    return {"num_hidden_layers": number, "layer_types": ["full_attention"] * number}


def test_a_whole_folder_loads_and_its_tied_head_needs_no_tensor(folder):
    change_weights(folder, lambda weights: weights.pop("lm_head.weight", None))
    assert load(folder).get_output_embeddings() is not None


def take_out(weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def put_in(weights):
    weights["model.layers.99.mlp.up_proj.weight"] = torch.zeros(2, 2)


def reshape(weights):
    weights["model.norm.weight"] = torch.zeros(7)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: change_weights(folder, take_out), ["missing", "model.layers.1.mlp.up_proj.weight"]),
        (lambda folder: change_weights(folder, put_in), ["left over", "model.layers.99.mlp.up_proj.weight"]),
        (lambda folder: change_weights(folder, reshape), ["another shape", "model.norm.weight (7,)"]),
        (lambda folder: change_config(folder, **layers(9)), ["missing"]),
        (lambda folder: change_config(folder, **layers(1)), ["left over"]),
    ],
    ids=["missing", "left over", "shape", "more layers", "fewer layers"],
)
def test_weights_that_are_not_those_of_the_configuration_are_refused(folder, change, words):
    """transformers fills in random weights and goes on."""
    change(folder)
    with pytest.raises(ValueError, match="do not fit its configuration") as refused:
        load(folder)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"PK\x03\x04" + b"x" * 1000, "no safetensors"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "Git LFS"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", "Git LFS"),
        ("config.json", b"[]", "must be a JSON object, not list"),
        ("config.json", b"3", "must be a JSON object, not int"),
        ("config.json", b"", "is not JSON"),
        ("config.json", b"[" * 100_000, "is not JSON"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model-1.safetensors"}}', "names model-1.safetensors"),
        ("model.safetensors.index.json", b'{"weight_map": null}', "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": []}', "has no weight_map"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "model.safetensors"}}', "has no metadata"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["x"]}}', "names .*x.*, which is not in the folder"),
    ],
)
def test_a_file_that_cannot_be_a_models_is_refused_by_name(folder, name, content, words):
    (folder / name).write_bytes(content)
    for check in (check_folder, load_tokenizer):
        with pytest.raises(ValueError, match=words) as refused:
            check(model_in(folder))
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("indexed", [True, False])
def test_weights_beside_those_that_would_be_loaded_are_refused(folder, indexed):
    stray = folder / "model-00002-of-00002.safetensors"
    shutil.copy(folder / "model.safetensors", stray)
    if indexed:
        first = (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(first), first.name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"{stray.name} (is none of the files|belongs to an model.safetensors.index)"):
        load(folder)
    stray.unlink()
    load(folder)
    if indexed:
        shutil.copy(first, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"model\.safetensors is none of the files"):
            load(folder)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_no_numbers_are_refused(folder, value):
    change_weights(folder, lambda weights: weights["model.norm.weight"][3:4].fill_(value))
    with pytest.raises(ValueError, match=r"hold NaN or infinity \(model\.norm\.weight\)"):
        load(folder)


def test_weights_in_whole_numbers_are_refused_unless_the_configuration_says_what_they_stand_for(folder):
    change_weights(
        folder, lambda weights: weights.update({"model.norm.weight": weights["model.norm.weight"].to(torch.int8)})
    )
    with pytest.raises(ValueError, match=r"model\.norm\.weight in I8, whole numbers"):
        check_folder(model_in(folder))
    change_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    check_folder(model_in(folder))


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_weights_that_were_cut_off_are_refused_before_they_are_read(folder, share):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="cut off"):
        check_folder(model_in(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"vocab_size": -1},
        {"num_key_value_heads": 0},
        {"model_type": "nonsense"},
        {"hidden_act": "none of these"},
    ],
)
def test_a_configuration_with_unusual_values_is_one_sentence(folder, values):
    change_config(folder, **values)
    with pytest.raises(ValueError, match="cannot be loaded") as refused:
        load(folder)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_is_none_is_one_sentence(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"the tokenizer in .* cannot be loaded"):
        load_tokenizer(model_in(folder))


def test_a_folder_without_a_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no model: it has no config\.json"):
        check_folder(model_in(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no model: it is an adapter; merge it"):
        check_folder(model_in(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/model", "./here", "~/mine", "runs/seed0/model", "my model"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    model = ModelConfig(name="mine", path=name, tokenizer=None)
    for load_any in (load_tokenizer, load_config, lambda model: load_model(model, TRAINER, torch.float32)):
        with pytest.raises(
            ValueError, match=rf"^the \w+ of model\.path={name} cannot be loaded: there is no such folder"
        ):
            load_any(model)
    with pytest.raises(ValueError, match=rf"model\.tokenizer={name} cannot be loaded \(there is no such folder"):
        load_tokenizer(dataclasses.replace(model, path="xtf.tiny", tokenizer=name))


def test_a_file_in_the_place_of_a_models_folder_is_named(folder):
    file = folder / "model.safetensors"
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be loaded: it is a file, not a model's folder"):
        load_config(model_in(file))


def test_an_attention_kernel_that_cannot_be_imported_is_one_sentence(folder):
    from xtf.config.schema import AttentionKernel

    model = dataclasses.replace(model_in(folder), attention=AttentionKernel.flash_attention_2)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(model, TRAINER, torch.bfloat16)


def test_the_context_is_what_positions_are_made_for(folder):
    change_config(folder, max_position_embeddings=64)
    assert context_of(load_config(model_in(folder))) == 64
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    change_config(folder, rope_parameters=yarn)
    assert context_of(load_config(model_in(folder))) == 256


@pytest.mark.parametrize(
    "values", [{"factor": math.inf}, {"factor": math.nan}, {"factor": 0}, {"original_max_position_embeddings": "x"}]
)
def test_a_context_that_is_no_length_is_refused_by_its_key(folder, values):
    config = load_config(model_in(folder))
    config.rope_parameters = {"rope_type": "yarn", "factor": 4.0} | values
    with pytest.raises(ValueError, match=f"config.json of .* says {next(iter(values))}=.*, which is no length"):
        context_of(config)
    config.max_position_embeddings = 0
    with pytest.raises(ValueError, match="says max_position_embeddings=0, which is no length"):
        context_of(config)


@pytest.mark.parametrize("values", [{"vocab_size": "many"}, {"dtype": "float99"}, {"hidden_size": 8.5}])
def test_a_fault_of_the_configuration_is_not_told_as_one_of_the_tokenizer(folder, values):
    change_config(folder, **values)
    with pytest.raises(ValueError, match=r"^the configuration in"):
        load_tokenizer(model_in(folder))


def test_a_model_of_no_heads_is_refused_where_its_configuration_is_read(folder):
    change_config(folder, num_attention_heads=0)
    with pytest.raises(ValueError, match="says num_attention_heads=0"):
        check_folder(model_in(folder))
