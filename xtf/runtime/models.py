"""Loading a base model and its tokenizer: where from, in which precision, on which device."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.home import expanded
from xtf.config.schema import Accelerator, AttentionKernel, ModelConfig, Precision, TrainerConfig
from xtf.runtime import gguf
from xtf.runtime.artifacts import check_model, sha256
from xtf.runtime.progress import console
from xtf.tiny import MODEL_DIR

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "xtf.tiny"  # model.path of the model that ships with the package
LARGE_FILE = 64 * 2**20  # bytes; hashing every weight of a 14B model would take longer than scoring with it
SIZES = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size"
)  # fmt: skip
WEIGHTS, SHARD = "model.safetensors", re.compile(r"model-\d+-of-\d+\.safetensors")
LFS_POINTER = b"version https://git-lfs.github.com/"  # how a file begins that git left behind in the place of another


def location(model: ModelConfig) -> str:
    """What `from_pretrained` is given: a folder, or an id on the hub.

    Raises:
        ValueError: a GGUF file that cannot be unpacked (`xtf.runtime.gguf.unpacked`).
    """
    if model.path == BUNDLED:
        return str(MODEL_DIR)
    if gguf.is_gguf(model.path):
        return str(gguf.unpacked(model.path))
    return expanded(model.path)


def check_folder(model: ModelConfig) -> None:
    """Refuse a folder whose files cannot be a model's, before anything is made with it; hub ids pass.

    Whether the weights fit the configuration shows when they are loaded (`load_model`).

    Raises:
        ValueError: naming the file, and what it is; a model of this program that is not as it was written.
    """
    folder = Path(location(model))
    if not folder.is_dir():
        return
    config = folder / "config.json"
    if not config.is_file():
        what = "it has no config.json"
        if (folder / "adapter_config.json").is_file():
            what = "it is an adapter; merge it into its model (peft's merge_and_unload), and give the merged folder"
        raise ValueError(f"model.path={model.path} holds no model: {what}")
    check_model(folder)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".model", ".jinja", ".txt"):
            with file.open("rb") as handle:
                if handle.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise ValueError(
                        f"{file} is a pointer of Git LFS, not the file itself: fetch it with git lfs pull, or the "
                        "model with hf download"
                    )
    settings = json_object(config)
    for name in SIZES:
        size = settings.get(name)
        if isinstance(size, int | float) and not 1 <= size < math.inf:
            raise ValueError(f"model.path={model.path} cannot be loaded: its config.json says {name}={size}")
    _check_index(folder)
    for file in sorted(folder.glob("*.safetensors")):
        _check_header(file, quantised=bool(settings.get("quantization_config")))


def _check_index(folder: Path) -> None:
    """The files of weights are those that the index names; transformers passes over others without a word."""
    index = folder / "model.safetensors.index.json"
    content = json_object(index) if index.is_file() else {"metadata": {}}
    named: Any = content.get("weight_map") if index.is_file() else {}
    if not isinstance(named, dict) or (index.is_file() and not named):
        raise ValueError(f"{index} has no weight_map, which says where each tensor is: fetch it again")
    for name in named.values():
        if not isinstance(name, str) or not (folder / name).is_file():
            raise ValueError(f"{index} names {name}, which is not in the folder: fetch it, or the model again")
    if not isinstance(content.get("metadata"), dict):
        raise ValueError(f'{index} has no metadata, without which transformers does not read it: add "metadata": {{}}')
    files = set(named.values())
    for file in sorted(folder.glob("model*.safetensors")):
        if file.name not in files and (SHARD.fullmatch(file.name) or (named and file.name == WEIGHTS)):
            what = f"is none of the files that {index.name} names" if named else f"belongs to an {index.name}, not here"
            raise ValueError(f"{file} {what}: remove what is not of this model, or fetch the model again")


def json_object(file: Path) -> dict[str, Any]:
    """The content of one of a model's files.

    Raises:
        ValueError: naming the file, which is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}): fetch the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} must be a JSON object, not {type(found).__name__}: fetch the model again")
    return found


def _check_header(file: Path, quantised: bool) -> None:
    """The header says how long each tensor is, so that a file that was cut off is known by its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys() if not quantised else ():
                kind = tensors.get_slice(name).get_dtype()
                if name.endswith("weight") and kind[0] in "IU":
                    raise ValueError(
                        f"{file} has {name} in {kind}, whole numbers, and its config.json no quantization_config that "
                        "says what they stand for: fetch both again, from one place"
                    )
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        what = "is empty" if not size else f"is no safetensors file, or cut off ({size:,} bytes; {error})"
        raise ValueError(f"{file} {what}: fetch it again") from error


def context_of(config: Any) -> int | None:
    """Tokens that a model's positions are made for, prompt and answer together; None where its config names none.

    Args:
        config: of transformers.

    Raises:
        ValueError: it says what is no number of positions.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if limit is None:
        return None
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(
            f"config.json of {config.name_or_path} says max_position_embeddings={limit!r}, which is no length: mend it"
        )
    if not isinstance(rope, Mapping):
        return limit
    scale = rope.get("factor")  # YaRN and its like, which some state beside the length before them
    if not isinstance(scale, int | float):
        return limit
    before = rope.get("original_max_position_embeddings") or limit
    for name, value in (("factor", scale), ("original_max_position_embeddings", before)):
        if not isinstance(value, int | float) or not 0 < value < 2**40:
            raise ValueError(f"config.json of {config.name_or_path} says {name}={value!r}, which is no length: mend it")
    return max(limit, round(scale * before))


def load_config(model: ModelConfig) -> Any:
    """transformers' configuration of the base model.

    Raises:
        ValueError: it is neither cached nor reachable, or no configuration of a known architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location(model), revision=model.revision)
    except Exception as error:  # whatever a configuration with unusual values makes it raise
        raise _unreachable(model, "configuration", error) from error


def device(trainer: TrainerConfig) -> torch.device:
    """The device of scoring and evaluation.

    Raises:
        ValueError: the trainer asks for a GPU and there is none.
    """
    import torch

    if trainer.accelerator is Accelerator.cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            f"trainer={trainer.name} needs a CUDA device and PyTorch {torch.__version__} finds none here; "
            "use trainer=cpu, or install a CUDA build of PyTorch"
        )
    return torch.device("cuda", 0)


def precision(trainer: TrainerConfig) -> str:
    """`trainer.precision` with `auto` decided: bf16-mixed on a GPU that computes in it, else 32-true."""
    import torch

    if trainer.precision is not Precision.auto:
        return trainer.precision.value
    return "bf16-mixed" if device(trainer).type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


def inference_dtype(trainer: TrainerConfig) -> torch.dtype:
    """dtype of the weights for scoring and generation; training keeps float32 master weights instead."""
    import torch

    return torch.bfloat16 if precision(trainer).startswith("bf16") else torch.float32


def attention(model: ModelConfig, trainer: TrainerConfig) -> str:
    """The attention kernel for `model.attention`, with `auto` decided."""
    if model.attention is not AttentionKernel.auto:
        return model.attention.value
    from transformers.utils import is_flash_attn_2_available

    half = device(trainer).type == "cuda" and precision(trainer) != "32-true"
    return "flash_attention_2" if half and is_flash_attn_2_available() else "sdpa"


def fingerprint(model: ModelConfig) -> dict[str, Any]:
    """What identifies the weights: id and revision on the hub, or a digest of a local folder or of a GGUF file.

    In a folder, files above `LARGE_FILE` bytes count by name, size and their first and last MiB.
    """
    if gguf.is_gguf(model.path):
        return gguf.fingerprint(model.path)
    folder = Path(location(model))
    if not folder.is_dir():
        return {"path": model.path, "revision": model.revision or "main"}
    total = hashlib.sha256()
    for file in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".md"):
        size = file.stat().st_size
        total.update(f"{file.name}\0{size}\0".encode())
        if size <= LARGE_FILE:
            total.update(sha256(file).encode())
        else:
            with file.open("rb") as handle:
                total.update(handle.read(2**20))
                handle.seek(-(2**20), 2)
                total.update(handle.read())
    return {"path": folder.name if model.path != BUNDLED else BUNDLED, "sha256": total.hexdigest()}


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, or the one that `model.tokenizer` names.

    Raises:
        ValueError: it is neither cached nor reachable, or the one named has other tokens than the GGUF file.
    """
    from transformers import AutoTokenizer

    load = AutoTokenizer.from_pretrained
    if model.tokenizer is not None:
        named = named_tokenizer(model.tokenizer, what=f"model.tokenizer={model.tokenizer}")
        if gguf.is_gguf(model.path):
            _refuse_other_tokens(model, load(location(model)), named)
        return named
    check_folder(model)
    try:
        found: PreTrainedTokenizerBase = load(location(model), revision=model.revision)
    except Exception as error:  # a tokenizer.json with unusual values makes its library raise almost anything
        if Path(model.path).is_dir():
            load_config(model)  # which is read for the tokenizer's class: the fault may be there
        raise _unreachable(model, "tokenizer", error) from error
    return found


def named_tokenizer(
    name: str, revision: str | None = None, *, what: str = "", remedy: str = ""
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or of an id on the hub; `what` names it in the error, and `remedy` says what to do.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # a tokenizer.json with unusual values makes its library raise almost anything
        raise ValueError(f"{what or name} cannot be loaded ({not_there(name) or _short(error)}){remedy}") from error
    return found


def _refuse_other_tokens(model: ModelConfig, own: PreTrainedTokenizerBase, named: PreTrainedTokenizerBase) -> None:
    ours, theirs = ({number: token for token, number in one.get_vocab().items()} for one in (own, named))
    differ = sorted(number for number in ours.keys() | theirs.keys() if ours.get(number) != theirs.get(number))
    if differ:
        first = differ[0]
        raise ValueError(
            f"model.tokenizer={model.tokenizer} is another tokenizer than that of {model.path}: {len(differ):,} of "
            f"{len(ours):,} ids stand for other tokens, the first {first}: {theirs.get(first)!r} for "
            f"{ours.get(first)!r}; unset model.tokenizer to take the file's own"
        )


def load_model(
    model: ModelConfig, trainer: TrainerConfig, dtype: torch.dtype, folder: Path | None = None, place: str | None = None
) -> PreTrainedModel:
    """The base model, or the fine-tuned one in `folder` (a PEFT adapter there is put on the base model and merged).

    Returned in `dtype`, in evaluation mode, on the device `place`, by default the trainer's.

    Raises:
        ValueError: it is neither cached nor reachable; its weights are not whole, or not those of its configuration.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    adapter = folder is not None and (folder / "adapter_config.json").exists()
    base = folder is None or adapter
    if not console.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    if base:
        check_folder(model)
    if folder is not None:
        check_model(folder)
    source = location(model) if base else str(folder)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision=model.revision if base else None,
            dtype=dtype,
            attn_implementation=attention(model, trainer),
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that the report has them
            output_loading_info=True,
        )
    except Exception as error:  # a configuration with unusual values makes transformers raise almost anything
        raise _unreachable(model, "weights", error) if base else _broken(source, error) from error
    loaded, report = found
    _check_complete(report, model.path if base else source)
    loaded = loaded.to(place or device(trainer))
    if adapter:
        from peft import PeftModel

        try:
            loaded = PeftModel.from_pretrained(loaded, str(folder)).merge_and_unload()
        except Exception as error:
            raise _broken(str(folder), error) from error
    _check_finite(loaded, model.path if base else source)
    ready: PreTrainedModel = loaded.eval()
    return ready


def _check_finite(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that are NaN or infinite, with which every score would be NaN; quantised ones pass."""
    import torch

    for key, tensor in model.named_parameters():
        if tensor.numel() and tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
            least, largest = torch.aminmax(tensor.detach())
            if not (math.isfinite(least) and math.isfinite(largest)):
                raise ValueError(f"the weights of {name} hold NaN or infinity ({key}): fetch them again")


def _check_complete(report: Mapping[str, Any], name: str) -> None:
    """Refuse weights that are not those of the configuration: transformers fills in random ones and goes on.

    A head that is tied to the embedding needs no tensor of its own, and is not in the report.
    """
    shapes = [f"{key} {tuple(stored)}, not {tuple(wanted)}" for key, stored, wanted in report["mismatched_keys"]]
    missing = set(report["missing_keys"]) - {key for key, *_ in report["mismatched_keys"]}
    for what, keys in (
        ("have another shape than its config.json says", shapes),
        ("are missing that its config.json asks for", missing),
        ("are left over that its config.json has no place for", report["unexpected_keys"]),
        ("could not be read", report["error_msgs"]),
    ):
        if keys:
            first = ", ".join(sorted(map(str, keys))[:3])
            raise ValueError(
                f"the weights of {name} do not fit its configuration: {len(keys):,} tensors {what} ({first}"
                f"{', ...' if len(keys) > 3 else ''}); fetch weights and config.json again, from one place"
            )


def not_there(name: str) -> str | None:
    """Why a name is neither a folder nor an id on the hub; None where it is, or may be, one of them."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if Path(name).is_dir() or name == BUNDLED or gguf.is_gguf(name):
        return None
    if Path(name).exists():
        return "it is a file, not a model's folder"
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"there is no such folder (working folder: {Path.cwd()})"
    return None


def _broken(source: str, error: Exception) -> ValueError:
    """For a folder that this program wrote."""
    return ValueError(f"the model in {source} cannot be loaded ({_short(error)}): delete that folder to make it again")


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{'...' if len(text) > 300 else ''}"


def _unreachable(model: ModelConfig, what: str, error: Exception) -> ValueError:
    from huggingface_hub.constants import HF_HUB_CACHE

    if why := not_there(model.path):
        return ValueError(f"the {what} of model.path={model.path} cannot be loaded: {why}")
    if Path(location(model)).is_dir():
        return ValueError(f"the {what} in {model.path} cannot be loaded ({_short(error)})")
    if isinstance(error, ImportError):  # of an attention kernel, or of a quantisation's package
        return ValueError(f"the {what} of {model.path} cannot be loaded ({_short(error)})")
    revision = f" --revision {model.revision}" if model.revision else ""
    return ValueError(
        f"the {what} of {model.path} are neither in the cache {HF_HUB_CACHE} nor reachable on the hub "
        f"({type(error).__name__}: {(str(error).splitlines() or [''])[0]}). Where there is a network, fetch them with: "
        f"hf download {model.path}{revision} (a gated model: accept its licence on its page and run hf auth login), "
        "or give a folder: model.path=FOLDER"
    )
