"""stage=pretrain: a base model from nothing, on generated text, by the training of fine-tuning (`xtf.training.fit`).

A byte-level BPE tokenizer is trained on a sample of the text, then a Qwen2-architecture model on rows of packed
documents: Muon for the matrices of the layers, AdamW for the rest; warm-up, constant rate, linear decay to 0 over the
last third of the steps, which read the text's late mix. Everything follows from `pretrain.*` and the seed, and a run
that is cut off goes on from its last checkpoint to the same weights.

Shapes: R rows, T = `row_tokens` predicted positions in a row.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from xtf.config.identity import digest, plain
from xtf.config.schema import Config, Optimizer, PretrainConfig, PretrainText, Schedule, Tuning, TuningConfig
from xtf.data.encode import Encoded
from xtf.evaluation.teacher_forced import mean_loss, predict
from xtf.pretraining import broad, corpus
from xtf.runtime.artifacts import intact, locked, naming, seal, write_atomic, write_json
from xtf.runtime.models import device
from xtf.runtime.progress import say
from xtf.runtime.run_folder import OutputDir
from xtf.runtime.train_log import read_log
from xtf.scoring.methods import METHODS
from xtf.training.fit import LOG, fit

# Words with their leading space or sign, single digits, punctuation, line ends, other space.
TOKEN_PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MIXES = {PretrainText.tiny: (corpus.MIX, corpus.LATE_MIX), PretrainText.broad: (broad.MIX, broad.LATE_MIX)}
LATE = 3  # the last 1 / LATE of the steps read the late mix, while the learning rate decays
HELD_OUT_ROWS = 64
HELD_OUT_TOKENS = 8192  # of one forward pass


def train_tokenizer(settings: PretrainConfig, seed: int) -> PreTrainedTokenizerFast:
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
        special_tokens=[corpus.END_OF_TEXT, corpus.TURN_START, corpus.TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = corpus.documents(seed + 1, MIXES[settings.text][0])
    tokenizer.train_from_iterator(itertools.islice(text, settings.tokenizer_documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=corpus.TURN_END,
        pad_token=corpus.END_OF_TEXT,
        additional_special_tokens=[corpus.TURN_START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def packed_rows(tokenizer: PreTrainedTokenizerFast, length: int, count: int, stream: Iterator[str]) -> np.ndarray:
    """`count` rows of token ids, int32 [R, length]: each starts with a new document; its last one is cut."""
    rows = np.empty((count, length), dtype=np.int32)
    separator = tokenizer.pad_token_id
    filled, row = 0, []
    while True:
        for ids in tokenizer(list(itertools.islice(stream, 2000)))["input_ids"]:
            row += [*ids, separator]
            if len(row) >= length:
                rows[filled] = row[:length]
                filled, row = filled + 1, []
                if filled == count:
                    return rows


def training_rows(tokenizer: PreTrainedTokenizerFast, settings: PretrainConfig, seed: int) -> np.ndarray:
    """The rows of all steps in their order, int32 [R, T + 1]: the main mix, then the late one."""
    early, late = MIXES[settings.text]
    last = settings.steps // LATE * settings.step_rows
    first = settings.steps * settings.step_rows - last
    length = settings.row_tokens + 1
    return np.concatenate(
        [
            packed_rows(tokenizer, length, first, corpus.documents(seed, early)),
            packed_rows(tokenizer, length, last, corpus.documents(seed + 3, late)),
        ]
    )


def as_table(rows: np.ndarray) -> pa.Table:
    """Rows of token ids [R, T + 1] as a training table: every token but a row's first carries loss."""
    count, length = rows.shape
    offsets = pa.array(np.arange(count + 1) * length, pa.int32())
    ids = pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))
    return pa.table(
        {
            "example_id": [f"row-{number}" for number in range(count)],
            "input_ids": ids,
            "prompt_length": pa.array(np.ones(count, np.int32)),
            "labels": ids,
        }
    )


def new_model(tokenizer: PreTrainedTokenizerFast, settings: PretrainConfig, seed: int) -> Qwen2ForCausalLM:
    """An untrained model of the shape that `settings` give, its weights drawn with the seed."""
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
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
    )


def pretrain(config: Config) -> Path:
    """Make the model that `config.pretrain` describes, unless it is there; returns its folder, for model.path=.

    Beside it lie train_log.csv, the loss curve, and pretrain.json: settings, sizes, loss on held-out text, tokens per
    second. Files of earlier versions also hold what one token costs and how much of the machine that is, which is now
    measured by `python -m benchmarks.pretraining`.
    """
    settings, seed = config.pretrain, config.seed
    name = f"{settings.name}-{digest([settings, seed, _sample(settings, seed)], 8)}"
    folder = OutputDir(Path(config.output_dir)).pretrained / name
    with locked(folder, say):
        if not intact(folder / "pretrain.json") or not intact(folder / "model"):
            write_json(folder / "pretrain.json", _pretrain(config, folder), sealed=True)
            shutil.rmtree(folder / "training")
    return folder / "model"


def _sample(settings: PretrainConfig, seed: int) -> str:
    """A digest of the first documents of both mixes: a change of the text makes another model."""
    streams = (corpus.documents(seed, mix) for mix in MIXES[settings.text])
    return digest([list(itertools.islice(stream, 200)) for stream in streams])


def _pretrain(config: Config, folder: Path) -> dict[str, Any]:
    settings, seed = config.pretrain, config.seed
    tokenizer = train_tokenizer(settings, seed)
    model = new_model(tokenizer, settings, seed).to(device(config.trainer))  # type: ignore[arg-type]
    table = as_table(training_rows(tokenizer, settings, seed))
    tuning = TuningConfig(
        name=Tuning.full,
        epochs=1,
        batch_size=settings.step_rows,
        learning_rate=settings.learning_rate,
        schedule=Schedule.trapezoid,
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        optimizer=Optimizer.muon,
        betas=[0.9, 0.95],
    )
    recipe = replace(config, method=METHODS["normal"](), tuning=tuning)
    pad_id = int(tokenizer.pad_token_id)
    work = folder / "training"
    record = fit(model, table, recipe, work, pad_id=pad_id, loggers=[], tokenizer=tokenizer, shuffle=False)
    log = read_log(work / LOG)
    write_atomic(folder / LOG, lambda path: shutil.copyfile(work / LOG, path))
    trained = Qwen2ForCausalLM.from_pretrained(work / "model", dtype=torch.bfloat16)
    with torch.no_grad():  # the last norm stands before the LM head, so this divides the logits
        trained.model.norm.weight /= settings.temperature
    trained.generation_config.eos_token_id = tokenizer.eos_token_id
    trained.generation_config.pad_token_id = pad_id
    shutil.rmtree(folder / "model", ignore_errors=True)
    with naming(folder / "model"):
        trained.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    seal(folder / "model")
    steady = log[len(log) // 10 :]  # without the start, when memory is allocated and kernels are chosen
    rate = sum(row["tokens"] for row in steady) / sum(row["tokens"] / row["tokens_per_second"] for row in steady)
    return {
        "settings": plain(settings),
        "seed": seed,
        "parameters": trained.num_parameters(),
        "tokens": settings.steps * settings.step_rows * settings.row_tokens,
        "held_out_loss": _held_out_loss(trained, tokenizer, settings, seed),
        "tokens_per_second": rate,
        "training": record,
    }


def _held_out_loss(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, settings: PretrainConfig, seed: int
) -> float:
    """Nats per token of the main mix, freshly drawn (see `xtf.pretraining.corpus.held_out` for what repeats itself)."""
    text = corpus.documents(corpus.HELD_OUT_SEED + seed, MIXES[settings.text][0])
    rows = packed_rows(tokenizer, settings.row_tokens + 1, HELD_OUT_ROWS, text)
    encoded = [Encoded(f"row-{number}", row.tolist(), 1) for number, row in enumerate(rows)]
    return mean_loss(predict(model.float().eval(), encoded, budget=HELD_OUT_TOKENS)).value
