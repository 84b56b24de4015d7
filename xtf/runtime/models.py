"""Loading a base model and its tokenizer: where from, in which precision, on which device."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.schema import Accelerator, AttentionKernel, ModelConfig, Precision, TrainerConfig
from xtf.runtime import gguf
from xtf.runtime.artifacts import sha256
from xtf.runtime.progress import console
from xtf.tiny import MODEL_DIR

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUNDLED = "xtf.tiny"  # model.path of the model that ships with the package
LARGE_FILE = 64 * 2**20  # bytes; hashing every weight of a 14B model would take longer than scoring with it


def location(model: ModelConfig) -> str:
    """What `from_pretrained` is given: a folder, or an id on the hub.

    Raises:
        ValueError: a GGUF file that cannot be unpacked (`xtf.runtime.gguf.unpacked`).
    """
    if model.path == BUNDLED:
        return str(MODEL_DIR)
    if gguf.is_gguf(model.path):
        return str(gguf.unpacked(model.path))
    return model.path


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
        try:
            named: PreTrainedTokenizerBase = load(model.tokenizer)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"model.tokenizer={model.tokenizer} cannot be loaded: {reason}") from error
        if gguf.is_gguf(model.path):
            _refuse_other_tokens(model, load(location(model)), named)
        return named
    place = location(model)
    try:
        return load(place, revision=model.revision)
    except (OSError, ValueError) as error:
        raise _unreachable(model, "tokenizer", error) from error


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
        ValueError: it is neither cached nor reachable.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    adapter = folder is not None and (folder / "adapter_config.json").exists()
    base = folder is None or adapter
    if not console.is_terminal:
        transformers.utils.logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            location(model) if base else str(folder),
            revision=model.revision if base else None,
            dtype=dtype,
            attn_implementation=attention(model, trainer),
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise _unreachable(model, "weights", error) from error
    loaded = loaded.to(place or device(trainer))  # type: ignore[arg-type]
    if adapter:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(folder)).merge_and_unload()
    return loaded.eval()


def _unreachable(model: ModelConfig, what: str, error: Exception) -> ValueError:
    from huggingface_hub.constants import HF_HUB_CACHE

    if Path(location(model)).is_dir():
        return ValueError(f"the {what} in {model.path} cannot be loaded: {error}")
    revision = f" --revision {model.revision}" if model.revision else ""
    return ValueError(
        f"the {what} of {model.path} are neither in the cache {HF_HUB_CACHE} nor reachable on the hub "
        f"({type(error).__name__}: {str(error).splitlines()[0]}). Where there is a network, fetch them with: "
        f"hf download {model.path}{revision} (a gated model: accept its licence on its page and run hf auth login), "
        "or give a folder: model.path=FOLDER"
    )
