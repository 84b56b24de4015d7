"""Train the tiny base model from nothing: `python -m xtf.tiny.pretrain [--out DIR] [--quick]`.

A byte-level BPE tokenizer is trained on a sample of `corpus.documents`, then a Qwen2-architecture model on
rows of packed documents: Muon for the matrices, AdamW for the rest, bfloat16 autocast over float32 weights;
warm-up, constant rate, linear decay to 0. Every seed is fixed. A killed run, started again with the same
settings, goes on from its last checkpoint.

Shapes: R rows, T = `row_tokens` positions in a row.
"""

import argparse
import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from xtf.tiny import MODEL_DIR
from xtf.tiny.corpus import END_OF_TEXT, LATE_MIX, TURN_END, TURN_START, documents

# Words with their leading space or sign, single digits, punctuation, line ends, other space.
TOKEN_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Settings:
    """Everything that decides the weights. Lengths and sizes are in tokens unless the name says otherwise."""

    seed: int = 0
    vocabulary: int = 2048
    tokenizer_documents: int = 40_000
    hidden: int = 192
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 1
    intermediate: int = 512
    row_tokens: int = 256
    step_rows: int = 24
    steps: int = 900
    warmup_steps: int = 100
    decay_steps: int = 300
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    processes: int = 2
    report_steps: int = 100  # between two lines of progress, and between two checkpoints


QUICK = Settings(
    vocabulary=512, tokenizer_documents=300, hidden=32, layers=2, heads=2, key_value_heads=1, intermediate=64,
    row_tokens=64, step_rows=4, steps=8, warmup_steps=2, decay_steps=3, processes=1, report_steps=4,
)  # fmt: skip


def train_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: single digits, ChatML turns, EOS <|im_end|>, padding <|endoftext|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(TOKEN_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(documents(settings.seed + 1), settings.tokenizer_documents)
    tokenizer.train_from_iterator(sample, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def packed_rows(
    tokenizer: PreTrainedTokenizerFast, settings: Settings, count: int, stream: Iterator[str]
) -> np.ndarray:
    """`count` rows of token ids, uint16 [R, T + 1]: each starts with a new document; its last one is cut."""
    rows = np.empty((count, settings.row_tokens + 1), dtype=np.uint16)
    separator = tokenizer.pad_token_id
    filled, row = 0, []
    while True:
        for ids in tokenizer(list(itertools.islice(stream, 2000)))["input_ids"]:
            row += [*ids, separator]
            if len(row) > settings.row_tokens:
                rows[filled] = row[: settings.row_tokens + 1]
                filled, row = filled + 1, []
                if filled == count:
                    return rows


def training_rows(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> np.ndarray:
    """The rows of all steps, uint16 [R, T + 1]: `MIX`, then `LATE_MIX` while the learning rate decays."""
    late = settings.decay_steps * settings.step_rows
    early = settings.steps * settings.step_rows - late
    return np.concatenate(
        [
            packed_rows(tokenizer, settings, early, documents(settings.seed)),
            packed_rows(tokenizer, settings, late, documents(settings.seed + 3, LATE_MIX)),
        ]
    )


def learning_rate(step: int, settings: Settings) -> float:
    """Linear warm-up, constant, linear decay to 0 over the last `decay_steps`."""
    rising = (step + 1) / settings.warmup_steps
    falling = (settings.steps - step) / settings.decay_steps
    return settings.learning_rate * min(1.0, rising, falling)


def new_model(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> Qwen2ForCausalLM:
    torch.manual_seed(settings.seed)
    config = Qwen2Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.set_attn_implementation("eager")  # on a CPU, faster than sdpa at these sizes
    return model


def row_loss(model: torch.nn.Module, rows: np.ndarray) -> torch.Tensor:
    """Mean next-token loss in nats over rows of token ids [R, T + 1]."""
    ids = torch.from_numpy(rows.astype(np.int64))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def new_optimizers(model: Qwen2ForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers; AdamW for embedding, norms and biases, without weight decay."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(matrices, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


@dataclass
class Run:
    """What the processes of one training run share: settings and the files they meet at."""

    settings: Settings
    tokenizer_dir: Path
    rows_path: Path
    checkpoint: Path
    rendezvous: Path

    def steps(self, rank: int, rows: np.ndarray, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """(step, this process's rows of that step)."""
        size = self.settings.step_rows
        for step in range(start, self.settings.steps):
            yield step, rows[step * size : (step + 1) * size][rank :: self.settings.processes]


def train(rank: int, run: Run) -> None:
    """One process of the run; process 0 prints, and checkpoints model, optimizers and loss curve."""
    settings = run.settings
    torch.set_num_threads(1)
    rows = np.load(run.rows_path, mmap_mode="r")
    model = new_model(PreTrainedTokenizerFast.from_pretrained(run.tokenizer_dir), settings)
    optimizers = new_optimizers(model, settings)
    start, curve = 0, []
    if run.checkpoint.exists():
        state = torch.load(run.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        start, curve = state["step"], state["curve"]
    wrapped: torch.nn.Module = model
    if settings.processes > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{run.rendezvous}", rank=rank, world_size=settings.processes
        )
        wrapped = DistributedDataParallel(model)

    def save(step: int) -> None:
        partial = run.checkpoint.with_suffix(".partial")
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "curve": curve,
        }
        torch.save(state, partial)
        partial.replace(run.checkpoint)

    began, recent = time.perf_counter(), []
    for step, batch in run.steps(rank, rows, start):
        loss = row_loss(wrapped, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, settings)
            optimizer.step()
            optimizer.zero_grad()
        recent.append(loss.item())
        done = step + 1
        if rank == 0 and (done % settings.report_steps == 0 or done == settings.steps):
            mean = sum(recent) / len(recent)
            curve.append([done, round(mean, 4)])
            rate = (done - start) * settings.step_rows * settings.row_tokens / (time.perf_counter() - began)
            print(f"step {done}/{settings.steps}  loss {mean:.4f}  {rate:,.0f} tokens/s", flush=True)
            recent.clear()
            save(done)


def fingerprint(settings: Settings) -> str:
    """Hash of the first documents of both mixes: a checkpoint of other text is not continued."""
    mixes = documents(settings.seed), documents(settings.seed + 3, LATE_MIX)
    text = "\0".join(document for mix in mixes for document in itertools.islice(mix, 1000))
    return hashlib.sha256(text.encode()).hexdigest()


def pretrain(settings: Settings, out: Path) -> dict[str, Any]:
    """Train and write tokenizer and model to `out`; return what `training.json` holds."""
    out.mkdir(parents=True, exist_ok=True)
    work = out / "unfinished"
    work.mkdir(exist_ok=True)
    kept, wanted = work / "settings.json", json.dumps(asdict(settings) | {"text": fingerprint(settings)})
    if not kept.exists() or kept.read_text() != wanted:
        shutil.rmtree(work)
        work.mkdir()
        kept.write_text(wanted)
    tokenizer = train_tokenizer(settings)
    tokenizer.save_pretrained(out)
    held_out = packed_rows(tokenizer, settings, 64, documents(settings.seed + 2))
    rows_path = work / "rows.npy"
    if not rows_path.exists():
        np.save(rows_path, training_rows(tokenizer, settings))

    with tempfile.TemporaryDirectory() as meeting:
        run = Run(settings, out, rows_path, work / "checkpoint.pt", Path(meeting) / "rendezvous")
        if settings.processes == 1:
            train(0, run)
        else:
            torch.multiprocessing.spawn(train, args=(run,), nprocs=settings.processes)
    state = torch.load(run.checkpoint, weights_only=True)
    model = new_model(tokenizer, settings)
    model.load_state_dict(state["model"])
    model = cast(Qwen2ForCausalLM, model.bfloat16().eval())
    with torch.no_grad():
        loss = row_loss(model, held_out).item()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    record = {
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "tokens": settings.steps * settings.step_rows * settings.row_tokens,
        "held_out_loss": round(loss, 4),
        "loss_curve": state["curve"],
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(work)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny base model from nothing.")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="folder (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a toy model in seconds, to try the script")
    arguments = parser.parse_args()
    record = pretrain(QUICK if arguments.quick else Settings(), arguments.out)
    print(
        f"{arguments.out}: {record['parameters']:,} parameters, {record['tokens']:,} tokens, "
        f"held-out loss {record['held_out_loss']}"
    )


if __name__ == "__main__":
    main()
