"""Whole trainings: against an independent loop, killed and resumed, on two processes, with an adapter."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import signal
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from pytorch_lightning.loggers import CSVLogger
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from xtf.config.schema import (
    Backward,
    CheckpointChoice,
    Config,
    Divisor,
    LoggerConfig,
    LoraSettings,
    Schedule,
    ThresholdConfig,
    TrainerConfig,
    Tuning,
    TuningConfig,
)
from xtf.data.batches import Batches
from xtf.data.ragged import SOURCE, with_ends
from xtf.data.steps import TrainingRows, collate, epoch_order
from xtf.runtime import train_log
from xtf.runtime.artifacts import read_json, seal, write_json
from xtf.runtime.train_log import read_log
from xtf.scoring.methods import METHODS, Method, SelfEvolving
from xtf.training import datamodule
from xtf.training import fit as train_file
from xtf.training.fit import _cleaned, _save, fit
from xtf.training.module import NonFiniteLoss
from xtf.training.packed import PackedLM

VOCABULARY = 61


def build(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(1)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM._from_config(LlamaConfig(**(shape | changes)), attn_implementation="sdpa")


def table(rows: int = 20) -> pa.Table:
    random = np.random.default_rng(0)
    ids = [random.integers(1, VOCABULARY, random.integers(6, 25)).tolist() for _ in range(rows)]
    prompts = [int(random.integers(1, 5)) for _ in range(rows)]
    labels = [
        [token if at >= prompt and random.random() < 0.7 else -100 for at, token in enumerate(row)]
        for row, prompt in zip(ids, prompts, strict=True)
    ]
    names = [f"e{i}" for i in range(rows)]
    return pa.table({"example_id": names, "input_ids": ids, "prompt_length": prompts, "labels": labels})


TUNING = TuningConfig(
    name=Tuning.full, epochs=2, learning_rate=1e-2, batch_size=6, schedule=Schedule.constant, warmup_ratio=0.0
)
TRAINER = TrainerConfig(name="cpu", tokens_per_microbatch=40, checkpoint_every=3)


def config(method: str = "xtf", trainer: TrainerConfig = TRAINER, seed: int = 0, **tuning: Any) -> Config:
    return Config(
        seed=seed,
        method=METHODS[method](),
        tuning=dataclasses.replace(TUNING, **tuning),
        trainer=trainer,
        logger=LoggerConfig(name="csv"),
    )


def train(
    folder: Path, settings: Config | None = None, model: PreTrainedModel | None = None, **more: Any
) -> dict[str, Any]:
    more = {"table": table(), "loggers": [], "pad_id": 0} | more
    return fit(model or build(), more.pop("table"), settings or config(), folder, **more)


def slow_training(steps: int, divisor: Divisor, rate: Any, clip: bool = True) -> tuple[PreTrainedModel, list[float]]:
    """The same training as one would write it down: one row after the other, PyTorch's AdamW and clipping."""
    model, source = build().train(), table().to_pylist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.999), weight_decay=0.0)
    losses = []
    for step in range(steps):
        epoch, within = divmod(step, 4)
        rows = [source[row] for row in epoch_order(20, 0, epoch)[within * 6 : within * 6 + 6]]
        loss, kept, response = torch.zeros(()), 0, 0
        for row in rows:
            logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
            loss = loss + F.cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="sum")
            kept += sum(label != -100 for label in row["labels"])
            response += len(row["labels"]) - row["prompt_length"]
        loss = loss / (kept if divisor is Divisor.kept else response)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("divisor", Divisor)
def test_training_equals_a_plain_loop(tmp_path: Path, divisor: Divisor) -> None:
    record = train(tmp_path, config(divisor=divisor, schedule=Schedule.linear))
    slow, losses = slow_training(8, divisor, lambda step: 1e-2 * (1 - step / 8))
    assert [row["loss"] for row in read_log(tmp_path / "train_log.csv")] == pytest.approx(losses, rel=1e-5)
    trained = load_file(tmp_path / "model/model.safetensors")
    for name, value in slow.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), rtol=1e-4, atol=2e-5)
    assert (record["steps"], record["epochs"], record["examples"]) == (8, 2.0, 20)
    assert record["final_loss"] == pytest.approx(losses[-1], rel=1e-5)


def softened(weight: float, probability: float) -> pa.Table:
    """`table`, whose dropped tokens count `weight` in an epoch that drops them, by `probability`."""
    source = table().to_pylist()
    for row in source:
        response = slice(row["prompt_length"], None)
        row["dropped"] = [label == -100 for label in row["labels"][response]]
        row["labels"] = [-100] * row["prompt_length"] + row["input_ids"][response]
        row["weights"] = [weight if dropped else 1.0 for dropped in row["dropped"]]
        row["drop_probability"] = probability
    return pa.Table.from_pylist(source)


@pytest.mark.parametrize(("weight", "probability"), [(0.0, 0.5), (0.3, 0.5), (0.1, 1.0)])
def test_soft_and_moving_holes_train_as_in_a_plain_loop(tmp_path: Path, weight: float, probability: float) -> None:
    """Micro-batches of 40 tokens in steps of 6 rows: the loss is divided once, by all that train in the step."""
    train(tmp_path, config(), table=softened(weight, probability))
    model, source = build().train(), softened(weight, probability).to_pylist()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    losses, counts = [], []
    for step in range(8):
        epoch, within = divmod(step, 4)
        loss, count = torch.zeros(()), 0
        for number in epoch_order(20, 0, epoch)[within * 6 : within * 6 + 6]:
            row = source[number]
            words = np.frombuffer(hashlib.sha256(row["example_id"].encode()).digest(), "<u4").tolist()
            draws = np.random.default_rng([0, 2**31 + 2, epoch, *words]).random(len(row["input_ids"]))
            logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0].log_softmax(-1)
            for at in range(max(1, row["prompt_length"]), len(row["input_ids"])):
                dropped = row["dropped"][at - row["prompt_length"]] and draws[at] < probability
                if weight or not dropped:
                    loss = loss - (weight if dropped else 1.0) * logits[at - 1, row["input_ids"][at]]
                    count += 1
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()) / count)
        counts.append(count)
    log = read_log(tmp_path / "train_log.csv")
    assert [row["kept_tokens"] for row in log] == counts
    assert [row["loss"] for row in log] == pytest.approx(losses, rel=1e-5)
    trained = load_file(tmp_path / "model/model.safetensors")
    for name, value in model.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), rtol=1e-4, atol=5e-5)


def test_validation_counts_a_token_that_is_dropped_at_times_as_it_counts_on_average(tmp_path: Path) -> None:
    settings = config(validation_fraction=0.2, learning_rate=0.0)
    train(tmp_path, settings, table=softened(0.25, 0.5))
    held_out = np.random.default_rng([0, 2**31 + 1]).permutation(20)[:4]
    model, source = build().eval(), softened(0.25, 0.5).to_pylist()
    total, count = 0.0, 0
    for row in (source[number] for number in held_out):
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0].log_softmax(-1).detach()
        for at in range(row["prompt_length"], len(row["input_ids"])):
            weight = 0.625 if row["dropped"][at - row["prompt_length"]] else 1.0
            total, count = total - weight * float(logits[at - 1, row["input_ids"][at]]), count + 1
    found = [row["validation_loss"] for row in read_log(tmp_path / "train_log.csv") if row["validation_loss"]]
    assert found == pytest.approx([total / count] * len(found), rel=1e-5) and len(found) == 2


def test_a_largest_norm_of_0_is_training_without_clipping(tmp_path: Path) -> None:
    train(tmp_path / "off", config(max_grad_norm=0.0, schedule=Schedule.linear))
    losses = slow_training(8, Divisor.kept, lambda step: 1e-2 * (1 - step / 8), clip=False)[1]
    clipped = slow_training(8, Divisor.kept, lambda step: 1e-2 * (1 - step / 8))[1]
    assert losses != pytest.approx(clipped, rel=1e-5)  # some step of it would be clipped
    assert [row["loss"] for row in read_log(tmp_path / "off/train_log.csv")] == pytest.approx(losses, rel=1e-5)


def test_the_log_has_a_line_per_step_and_the_record_its_sums(tmp_path: Path) -> None:
    record = train(tmp_path, config(max_steps=5))
    source = table()
    kept = [sum(label != -100 for label in row) for row in source["labels"].to_pylist()]
    lengths = [len(row) for row in source["input_ids"].to_pylist()]
    log = read_log(tmp_path / "train_log.csv")
    assert [row["step"] for row in log] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in log] == [1, 1, 1, 1, 2]
    order = [*epoch_order(20, 0, 0), *epoch_order(20, 0, 1)[:6]]
    assert record["kept_tokens"] == sum(kept[row] for row in order)
    assert record["tokens"] == sum(lengths[row] for row in order)
    with (tmp_path / "train_log.csv").open() as lines:
        assert {"loss", "tokens_per_second", "learning_rate", "grad_norm"} <= set(next(csv.reader(lines)))


def test_the_model_folder_loads_by_itself_and_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    record = train(tmp_path, config(max_steps=2))
    before = (tmp_path / "model/model.safetensors").read_bytes()
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert not (tmp_path / "checkpoints").exists()
    assert train(tmp_path, config(max_steps=3)) == record == json.loads((tmp_path / "model/training.json").read_text())
    assert (tmp_path / "model/model.safetensors").read_bytes() == before


def test_loggers_get_every_value_of_every_step(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path / "logger", name="", version="", flush_logs_every_n_steps=1)
    train(tmp_path, config(max_steps=4, validation_fraction=0.2), loggers=[logger])
    with (tmp_path / "logger/metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    log = read_log(tmp_path / "train_log.csv")
    for name in ("loss", "kept_tokens", "tokens_per_second", "learning_rate", "grad_norm"):
        values = [float(row[f"train/{name}"]) for row in rows if row[f"train/{name}"]]
        assert values == pytest.approx([row[name] for row in log], rel=1e-6)
    assert [float(row["validation/loss"]) for row in rows if row["validation/loss"]] == pytest.approx(
        [row["validation_loss"] for row in log if row["validation_loss"] is not None], rel=1e-6
    )


def test_seeds_change_the_order_and_nothing_else_changes_the_result(tmp_path: Path) -> None:
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        train(tmp_path / name, config(seed=seed))
    first, same, other = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in "abc")
    assert first == same
    assert first != other


def test_double_epochs_trains_twice_as_long(tmp_path: Path) -> None:
    assert train(tmp_path, config("double_epochs", epochs=1))["steps"] == 8


@pytest.mark.parametrize("method", ["dft", "eaft", "profit"])
def test_online_methods_train(tmp_path: Path, method: str) -> None:
    assert np.isfinite(train(tmp_path, config(method, max_steps=2))["final_loss"])


def with_reference(seed: int = 5) -> pa.Table:
    """The table with stored log-probabilities of two made-up models, for whole responses."""
    source, random = table(), np.random.default_rng(seed)
    lengths = [len(ids) - prompt for ids, prompt in
               zip(source["input_ids"].to_pylist(), source["prompt_length"].to_pylist(), strict=True)]  # fmt: skip
    for name in ("logp", "ref_logp"):
        values = [np.log(random.random(length)).astype(np.float32) for length in lengths]
        source = source.append_column(name, pa.array(values, pa.list_(pa.float32())))
    return source


def slow_losses(model: PreTrainedModel, row: dict[str, Any]) -> tuple[torch.Tensor, np.ndarray]:
    """Losses of a row's labelled tokens, one forward pass for it, and their places within the response."""
    logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0]
    losses = F.cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="none")
    places = np.flatnonzero(np.array(row["labels"]) != -100)
    return losses[places - 1], places - row["prompt_length"]


@pytest.mark.parametrize("budget", [25, 60, 10_000])
def test_slm_ranks_the_tokens_of_the_whole_step_however_it_is_packed(tmp_path: Path, budget: int) -> None:
    source, model = with_reference(), build()
    rows = [source.to_pylist()[row] for row in epoch_order(20, 0, 0)[:6]]
    with torch.no_grad():
        found = [slow_losses(model, row) for row in rows]
    losses = torch.cat([part for part, _ in found])
    reference = np.concatenate([np.array(row["ref_logp"])[at] for row, (_, at) in zip(rows, found, strict=True)])
    best = (losses + torch.tensor(reference)).argsort(descending=True)[: round(0.6 * len(losses))]
    trainer = TrainerConfig(name="cpu", tokens_per_microbatch=budget)
    train(tmp_path, config("slm", trainer=trainer, max_steps=1), table=source)
    (row,) = read_log(tmp_path / "train_log.csv")
    assert row["kept_tokens"] == round(0.6 * len(losses))
    assert row["loss"] == pytest.approx(float(losses[best].mean()), rel=1e-5)


def test_profit_divides_by_all_labelled_tokens(tmp_path: Path) -> None:
    rows = [table().to_pylist()[row] for row in epoch_order(20, 0, 0)[:6]]
    with torch.no_grad():
        losses = torch.cat([slow_losses(build(), row)[0] for row in rows])
    settings = config("profit", max_steps=1)
    settings.method.tau = float(losses.neg().exp().median())
    train(tmp_path, settings)
    (row,) = read_log(tmp_path / "train_log.csv")
    kept = losses[losses.neg().exp() >= settings.method.tau]
    assert row["kept_tokens"] == len(kept) < len(losses)
    assert row["loss"] == pytest.approx(float(kept.sum()) / len(losses), rel=1e-5)


def test_forgettings_validation_counts_the_rest_as_its_training_does(tmp_path: Path) -> None:
    source, method = with_reference(), METHODS["forgetting"]()
    source = method.mask(source, ThresholdConfig(name="paper"), [], 0).table
    settings = config("forgetting", validation_fraction=0.3, epochs=2)
    train(tmp_path, settings, table=source)
    log = read_log(tmp_path / "train_log.csv")
    held = sorted(np.random.default_rng([0, datamodule.VALIDATION_STREAM]).permutation(20)[:6])
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    total, kept = 0.0, 0
    for row in (source.to_pylist()[place] for place in held):
        with torch.no_grad():
            losses, at = slow_losses(model, row)
        weights = np.array(row["weights"])[at]
        factors = np.where(weights > 0, 1.0, method.strength * 1.0)  # progress is 1 at the last step
        total += float((losses.numpy() * weights * factors).sum())
        kept += int((weights > 0).sum())
    assert log[-1]["validation_loss"] == pytest.approx(total / kept, rel=1e-4)


def test_the_validation_split_never_parts_rows_of_one_source(tmp_path: Path) -> None:
    source = table()
    sources = [f"s{row // 3}" for row in range(20)]
    for seed in range(5):
        training, validation = datamodule._split(
            Batches.of(source.append_column(SOURCE, pa.array(sources))),
            dataclasses.replace(TUNING, validation_fraction=0.2),
            seed,
            (),
        )
        assert validation is not None
        names = [{sources[int(name[1:])] for name in rows.example_ids} for rows in (training, validation)]
        assert not names[0] & names[1]
        assert 4 <= len(validation) <= 6
    plain = datamodule._split(Batches.of(source), dataclasses.replace(TUNING, validation_fraction=0.2), 3, ())[1]
    assert plain is not None
    order = np.random.default_rng([3, datamodule.VALIDATION_STREAM]).permutation(20)
    assert plain.example_ids == [f"e{row}" for row in sorted(order[:4])]


def test_a_cleaned_part_keeps_the_sources_of_its_rows(tmp_path: Path) -> None:
    source = table()
    zeros = [[0.0] * (len(row["input_ids"]) - row["prompt_length"]) for row in source.to_pylist()]
    part = source.drop_columns("labels").append_column("logp", pa.array(zeros, pa.list_(pa.float32())))
    part = with_ends(part, [1] * 20).append_column(SOURCE, pa.array([f"s{row // 3}" for row in range(20)]))
    cleaned = _cleaned(build(), part, SelfEvolving(), 100, 0)
    for name in ("example_id", "end_tokens", SOURCE):
        assert cleaned[name].to_pylist() == part[name].to_pylist()


def log_probabilities(model: PreTrainedModel, source: pa.Table) -> list[np.ndarray]:
    """log p of the response tokens, one row after the other."""
    found = []
    for row in source.to_pylist():
        ids, prompt = torch.tensor([row["input_ids"]]), row["prompt_length"]
        with torch.no_grad():
            losses = model.eval()(ids, use_cache=False).logits[0, prompt - 1 : -1].log_softmax(-1)
        found.append(losses[torch.arange(len(losses)), ids[0, prompt:]].numpy())
    return found


def test_self_evolving_cleaning_lets_the_model_so_far_clean_the_next_part(tmp_path: Path) -> None:
    source = table()
    lists = pa.list_(pa.float32())
    scored = source.append_column("logp", pa.array([row.tolist() for row in log_probabilities(build(), source)], lists))
    method = SelfEvolving(subsets=1, warmup=0.4, keep=0.6)
    record = train(tmp_path / "run", dataclasses.replace(config(), method=method), table=scored)

    model = build()
    first, second = (scored.take(rows) for rows in method.parts(scored["example_id"].to_pylist()))
    train(tmp_path / "first", config(), model, table=first)
    pairs = zip(log_probabilities(model, second), second["logp"].to_pylist(), strict=True)
    gains = [now - np.array(base) for now, base in pairs]
    cut = np.sort(np.concatenate(gains))[-round(0.6 * sum(map(len, gains)))]
    rows = second.to_pylist()
    for row, gain in zip(rows, gains, strict=True):
        response = row["input_ids"][row["prompt_length"] :]
        kept = [token if learnt >= cut else -100 for token, learnt in zip(response, gain, strict=True)]
        row["labels"] = [-100] * row["prompt_length"] + kept
    train(tmp_path / "second", config(), model, table=pa.Table.from_pylist(rows))

    ours, expected = (load_file(tmp_path / name / "model/model.safetensors") for name in ("run", "second"))
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
    assert record["parts"][1]["kept_tokens"] == 2 * round(0.6 * sum(map(len, gains)))
    assert [row["step"] for row in read_log(tmp_path / "run/train_log.csv")] == list(range(1, record["steps"] + 1))


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_part_whose_log_is_damaged_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    class Model:
        """Stands in for one that learns."""

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> Model:
            return cls()

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            assert state == {}

    trained = []

    def fit_part(_model: Any, part: pa.Table, _config: Any, folder: Path, **_: Any) -> dict[str, Any]:
        record = folder / "model" / train_file.RECORD
        if not record.exists():
            trained.append(folder.name)
            train_log.write_log(folder / train_file.LOG, [{"step": 1, "tokens": part.num_rows}], sealed=True)
            write_json(record, {"steps": 1, "examples": part.num_rows, "tokens": 2, "kept_tokens": 2})
            seal(record.parent)
        found: dict[str, Any] = read_json(record)
        return found

    def whole_run() -> None:
        chosen = dataclasses.replace(config(), method=SelfEvolving(subsets=1, warmup=0.4, keep=0.6))
        parts = chosen.method.parts([str(row) for row in range(20)])
        model: Any = Model()
        train_file._fit_parts(model, table(), parts, chosen, tmp_path, pad_id=0)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_file, "fit", fit_part)
    monkeypatch.setattr(train_file, "_cleaned", lambda _model, part, *_: part)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_file, "write_log", killed)  # that of the whole run: both parts are trained
        whole_run()
    log = tmp_path / "parts/0" / train_file.LOG
    content = log.read_text()
    log.unlink()
    if damage == "flipped":
        log.write_text(content.replace(",8,", ",9,"))
    whole_run()
    assert trained == ["0", "1", "0"]
    assert [(row["step"], row["tokens"]) for row in read_log(tmp_path / train_file.LOG)] == [(1, 8), (2, 12)]
    assert ("parts/0/train_log.csv is damaged" in "".join(capsys.readouterr().out.split("\n"))) == (damage == "flipped")


def test_under_slurm_tasks_are_no_concern_of_a_training_and_what_ends_a_job_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning refuses 8 tasks for one device; submitit ends a job at its time limit by SystemExit, in a handler."""
    for name, value in {"NTASKS": "8", "NTASKS_PER_NODE": "8", "JOB_NAME": "mine", "JOB_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    def end(*_: Any) -> None:
        raise SystemExit(255)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="255"):
        patch.setattr(train_file.Progress, "on_train_batch_end", end)
        train(tmp_path)
    assert train(tmp_path)["steps"] == 8


def test_a_machine_that_has_slurm_is_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.touch(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=os.pathsep)
    with warnings.catch_warnings(record=True) as told:
        train(tmp_path / "run")
    assert not [str(one.message) for one in told if "srun" in str(one.message)]


# -- killed and resumed --------------------------------------------------------------------------------------

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["xtf.training.fit"])


def kill_after(step: int) -> None:
    """This process ends by SIGKILL as soon as it has done so many steps."""
    after_step = train_file.Progress.on_train_batch_end

    def die(self: Any, *rest: Any) -> None:
        after_step(self, *rest)
        if rest[-2].index + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)

    train_file.Progress.on_train_batch_end = die  # type: ignore[method-assign]


def long_training(folder: Path, killed_at: int | None = None) -> None:
    """With dropout, the best checkpoint and moving holes: a resumed run has more than weights to restore."""
    if killed_at is not None:
        kill_after(killed_at)
    settings = config(validation_fraction=0.2, checkpoint=CheckpointChoice.best, epochs=8)
    train(folder, settings, build(attention_dropout=0.2), table=softened(0.1, 0.5))


def finished(target: Callable[..., None], *rows: tuple[Any, ...]) -> None:
    """Run a function in one process per row of arguments, at the same time."""
    processes = [PROCESSES.Process(target=target, args=row) for row in rows]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0


def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished(long_training, (whole,))
    for steps in (5, 14):
        process = PROCESSES.Process(target=long_training, args=(killed, steps))
        process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        assert (killed / "checkpoints/last.ckpt").exists()
        with (killed / "train_log.csv").open("a") as log:
            log.write("99,1,0.")  # what a kill in the middle of a line leaves
    finished(long_training, (killed,))
    for name in ("model.safetensors", "training.json"):
        assert (killed / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()
    logs = [read_log(folder / "train_log.csv") for folder in (killed, whole)]
    for row in logs[0] + logs[1]:
        row.pop("tokens_per_second")
    assert logs[0] == logs[1]


def train_rank(
    folder: Path,
    strategy: str,
    rank: int,
    port: int,
    killed_at: int | None = None,
    method: str = "xtf",
    backward: Backward = Backward.exact,
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank)}
    trainer = dataclasses.replace(TRAINER, name=strategy, strategy=strategy, devices=2)
    if killed_at is not None:
        after_step = train_file.Progress.on_train_batch_end

        def die(self: Any, *rest: Any) -> None:
            after_step(self, *rest)
            if rest[-1] + 1 == killed_at:
                os._exit(0)

        train_file.Progress.on_train_batch_end = die  # type: ignore[method-assign]
    more = {"table": with_reference()} if method == "slm" else {}
    train(folder, config(method, batch_size=19, trainer=trainer, backward=backward), **more)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("backward", Backward)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_like_one_also_when_killed(tmp_path: Path, strategy: str, backward: Backward) -> None:
    """20 rows in steps of 19 and 1: in the second, one process has no document and still takes part."""
    record = train(tmp_path / "one", config(batch_size=19, backward=backward))
    for killed_at in (3, None):
        port, two = free_port(), tmp_path / "two"
        finished(train_rank, *((two, strategy, rank, port, killed_at, "xtf", backward) for rank in (0, 1)))
        assert (tmp_path / "two/checkpoints/last.ckpt").exists() == (killed_at is not None)
    if backward is not Backward.exact:
        found = json.loads((tmp_path / "two/model/training.json").read_text())["gradient_cosine"]
        assert found == pytest.approx(record["gradient_cosine"], rel=1e-5)
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5)
    logs = [read_log(tmp_path / name / "train_log.csv") for name in ("one", "two")]
    assert [row["loss"] for row in logs[0]] == pytest.approx([row["loss"] for row in logs[1]], rel=1e-5)
    assert [row["kept_tokens"] for row in logs[0]] == [row["kept_tokens"] for row in logs[1]]


def train_elsewhere(folders: list[Path], rank: int, port: int) -> None:
    with (
        pytest.raises(ValueError, match=r"process 1 would go on from step 0 and the first one from 3")
        if rank
        else (contextlib.nullcontext())
    ):
        train_rank(folders[rank], "ddp", rank, port)
    os._exit(0)  # the first process would wait for the second one


def test_a_process_that_does_not_see_the_checkpoint_refuses_to_train_beside_the_others(tmp_path: Path) -> None:
    port = free_port()
    finished(train_rank, *((tmp_path / "two", "ddp", rank, port, 3) for rank in (0, 1)))
    port = free_port()
    folders = [tmp_path / "two", tmp_path / "other"]
    processes = [PROCESSES.Process(target=train_elsewhere, args=(folders, rank, port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    processes[1].join(300)
    assert processes[1].exitcode == 0
    processes[0].kill()


def test_slm_on_two_processes_ranks_the_tokens_of_both(tmp_path: Path) -> None:
    wide = TrainerConfig(name="cpu", tokens_per_microbatch=10_000)
    train(tmp_path / "one", config("slm", trainer=wide, batch_size=19), table=with_reference())
    port = free_port()
    finished(train_rank, *((tmp_path / "two", "ddp", rank, port, None, "slm") for rank in (0, 1)))
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=2e-5)


# -- settings ------------------------------------------------------------------------------------------------


def test_lora_writes_an_adapter_and_leaves_the_base_weights(tmp_path: Path) -> None:
    model, before = build(), build().state_dict()
    record = train(tmp_path, config(name=Tuning.lora, lora=LoraSettings(r=2)), model)
    assert {path.name for path in (tmp_path / "model").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    loaded = PeftModel.from_pretrained(build(), str(tmp_path / "model"))
    trained = {name: p for name, p in loaded.named_parameters() if "lora_B" in name}
    assert trained
    assert all(p.any() for p in trained.values())
    for name, value in loaded.get_base_model().state_dict().items():
        if "lora" not in name:
            assert torch.equal(value, before[name.replace("base_layer.", "")])
    assert record["trained_parameters"] < 1000


def test_the_best_checkpoint_is_the_one_that_is_kept(tmp_path: Path) -> None:
    settings = {"validation_fraction": 0.3, "epochs": 6, "learning_rate": 5e-2}
    record = train(tmp_path / "best", config(checkpoint=CheckpointChoice.best, **settings))
    log = read_log(tmp_path / "best/train_log.csv")
    losses = {row["step"]: row["validation_loss"] for row in log if row["validation_loss"] is not None}
    best = min(losses, key=losses.__getitem__)
    assert len(losses) == 6
    assert best < max(losses), "the rate is high enough that the last epoch is not the best"
    assert (record["checkpoint"], record["validation_loss"]) == (f"best: step {best}", losses[best])
    train(tmp_path / "stopped", config(max_steps=best, **settings))
    kept, stopped = (load_file(tmp_path / name / "model/model.safetensors") for name in ("best", "stopped"))
    assert all(torch.equal(kept[name], stopped[name]) for name in kept)


def test_gradient_checkpointing_does_not_change_the_result(tmp_path: Path) -> None:
    train(tmp_path / "plain", config(max_steps=3))
    train(tmp_path / "checkpointed", config(max_steps=3, gradient_checkpointing=True))
    plain, checkpointed = (load_file(tmp_path / name / "model/model.safetensors") for name in ("plain", "checkpointed"))
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backward", [Backward.kept, Backward.labelled])
def test_a_filtered_backward_pass_is_stated_with_its_cosine(tmp_path: Path, backward: Backward) -> None:
    ways = (Backward.exact, backward)
    exact, other = (train(tmp_path / way.value, config(backward=way)) for way in ways)
    assert (exact["backward"], other["backward"]) == ("exact", backward.value) and "gradient_cosine" not in exact
    # The first step's gradients by hand, document by document, as the loss of a step is a sum over its documents.
    rows, found = TrainingRows(table()), []
    step = collate(rows, epoch_order(len(rows), 0, 0)[:6], 0, 0)
    for way in ways:
        model = build().train()
        model.set_attn_implementation("packed_sdpa")
        packed = PackedLM(model, Method())
        for micro in step.micro_batches:
            with packed.filtered(micro, way):
                packed(micro)[0].backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    cosine = float(F.cosine_similarity(*found, dim=0))
    assert 0.5 < cosine < 0.9999
    assert other["gradient_cosine"] == pytest.approx(cosine, rel=1e-5)
    first, second = (read_log(tmp_path / way.value / "train_log.csv")[0] for way in ways)
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert first["grad_norm"] != pytest.approx(second["grad_norm"], rel=1e-5)


def test_a_filtered_backward_pass_needs_the_mask_before_the_step_and_packed_attention(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="method=slm weighs tokens within it: use tuning"):
        train(tmp_path, config("slm", backward=Backward.kept))
    eager = build()
    eager.set_attn_implementation("eager")
    for backward in (Backward.kept, Backward.labelled):
        with pytest.raises(ValueError, match=f"{backward.value} filters .* LlamaForCausalLM is trained with eager"):
            train(tmp_path, config(backward=backward), eager)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_the_example(tmp_path: Path) -> None:
    model = build(tie_word_embeddings=False)
    source = table(6)
    with torch.no_grad():  # of all tokens, 60 alone cannot be read
        model.model.embed_tokens.weight[60] = torch.inf
    ids = [[token % 59 + 1 for token in row] for row in source["input_ids"].to_pylist()]
    ids[4][0] = 60
    source = source.set_column(1, "input_ids", pa.array(ids))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"step 1: .* Examples: e4\. "):
        train(tmp_path, config(), model, table=source)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"checkpoint": CheckpointChoice.best}, "needs tuning.validation_fraction"),
        ({"validation_fraction": 0.999}, "leave nothing to train on"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        train(tmp_path, config(**change))


def test_a_method_that_reads_attention_refuses_a_kernel_that_hides_it(tmp_path: Path) -> None:
    model, source = build(), table()
    scored = source.append_column("logp", pa.array([row.tolist() for row in log_probabilities(model, source)]))
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="eager attention does not show"):
        train(tmp_path, config("sstoken"), model, table=scored)
    model.set_attn_implementation("sdpa")
    assert train(tmp_path, config("sstoken", max_steps=2), model, table=scored)["attention"] == "packed_sdpa"


def test_a_table_without_loss_is_refused(tmp_path: Path) -> None:
    source = table()
    nothing = pa.array([[-100] * len(row) for row in source["input_ids"].to_pylist()])
    with pytest.raises(ValueError, match="nothing to train on"):
        train(tmp_path, table=source.set_column(3, "labels", nothing))


def test_a_token_id_that_the_model_does_not_have_is_refused_before_training(tmp_path: Path) -> None:
    source = table()
    ids = source["input_ids"].to_pylist()
    ids[1][0] = 99_999
    strange = source.set_column(
        source.column_names.index("input_ids"), "input_ids", pa.array(ids, pa.list_(pa.int32()))
    )
    name = source["example_id"].to_pylist()[1]
    with pytest.raises(ValueError, match=f"example {name}: token id 99999 lies outside the model's vocabulary"):
        train(tmp_path, table=strange)
    assert not (tmp_path / "model").exists()


def test_of_a_model_that_a_full_disk_cuts_short_nothing_is_left(
    tmp_path: Path, full_disk: Callable[[], contextlib.AbstractContextManager[None]]
) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=64, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with full_disk(), pytest.raises(OSError, match=rf"{re.escape(str(tmp_path / 'model'))}'$"):
        _save(model, model.state_dict(), tmp_path / "model", {}, None)
    assert not list(tmp_path.iterdir())
