"""`TokenFilteredLM` and `MaskedDataModule` under a Trainer that somebody else makes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from test_fit import TUNING, build, table, train

from xtf.scoring.methods import Method
from xtf.training.datamodule import MaskedDataModule
from xtf.training.module import TokenFilteredLM


def trainer(folder: Path, **settings: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(**{"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder} | quiet | settings)


@pytest.mark.parametrize("given", ["table", "dataset", "file"])
def test_a_trainer_of_ones_own_ends_with_the_same_weights_as_a_run(tmp_path: Path, given: str) -> None:
    pq.write_table(table(), tmp_path / "mask.parquet")
    masked = {"table": table(), "dataset": datasets.Dataset(table()), "file": tmp_path / "mask.parquet"}[given]
    ours = build()
    train(tmp_path / "run", model=ours)
    data = MaskedDataModule(masked, TUNING, seed=0, tokens_per_microbatch=40)
    own = build()
    trainer(tmp_path, enable_checkpointing=False).fit(TokenFilteredLM(own, Method(), TUNING, seed=0), datamodule=data)
    for (name, one), other in zip(ours.named_parameters(), own.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_trainer_of_ones_own_validates_the_rows_that_were_split_off(tmp_path: Path) -> None:
    tuning = dataclasses.replace(TUNING, validation_fraction=0.25)
    data = MaskedDataModule(table(), tuning, seed=0)
    module = TokenFilteredLM(build(), Method(), tuning, seed=0)
    own = trainer(tmp_path, num_sanity_val_steps=0)
    own.fit(module, datamodule=data)
    assert data.validation is not None
    total, kept = 0.0, 0
    held_out = set(data.validation.example_ids)
    assert len(held_out) == 5 and not held_out & set(data.training.example_ids)
    for row in table().to_pylist():
        if row["example_id"] in held_out:
            with torch.no_grad():
                logits = module.packed.model(torch.tensor([row["input_ids"]])).logits[0]
            total += float(F.cross_entropy(logits[:-1], torch.tensor(row["labels"][1:]), reduction="sum"))
            kept += sum(label != -100 for label in row["labels"])
    assert float(own.callback_metrics["validation/loss"]) == pytest.approx(total / kept, rel=1e-5)
    (found,) = trainer(tmp_path, max_epochs=None).validate(module, datamodule=data, verbose=False)
    assert found["validation/loss"] == pytest.approx(total / kept, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "instead"),
    [
        ({"accumulate_grad_batches": 4}, "tuning.batch_size"),
        ({"gradient_clip_val": 1.0}, "tuning.max_grad_norm"),
        ({"max_epochs": 3}, "tuning.epochs"),
        ({"max_steps": 3}, "tuning.max_steps"),
    ],
)
def test_what_the_trainer_would_do_otherwise_is_refused_with_what_to_set(
    tmp_path: Path, settings: dict[str, Any], instead: str
) -> None:
    module = TokenFilteredLM(build(), Method(), TUNING, seed=0)
    with pytest.raises(ValueError, match=rf"instead of Trainer\({next(iter(settings))}=...\).*{instead}"):
        trainer(tmp_path, **settings).fit(module, datamodule=MaskedDataModule(table(), TUNING, seed=0))


def test_a_second_training_on_the_same_data_begins_at_its_first_step(tmp_path: Path) -> None:
    data = MaskedDataModule(table(), TUNING, seed=0, tokens_per_microbatch=40)
    assert len(list(data.steps())) == 8  # whoever looks takes nothing away
    ends = []
    for _ in range(2):
        own = build()
        module = TokenFilteredLM(own, Method(), TUNING, seed=0)
        trainer(tmp_path, enable_checkpointing=False).fit(module, datamodule=data)
        ends.append(own.lm_head.weight.detach().clone())
    assert torch.equal(*ends) and not torch.equal(ends[0], build().lm_head.weight)


def test_weights_of_another_precision_are_refused(tmp_path: Path) -> None:
    module = TokenFilteredLM(build().bfloat16(), Method(), TUNING, seed=0)
    with pytest.raises(ValueError, match=r"not torch.bfloat16: model.float\(\)"):
        trainer(tmp_path).fit(module, datamodule=MaskedDataModule(table(), TUNING, seed=0))


def test_another_datamodule_and_an_open_tuning_are_refused(tmp_path: Path) -> None:
    module = TokenFilteredLM(build(), Method(), TUNING, seed=0)
    with pytest.raises(TypeError, match="MaskedDataModule"):
        trainer(tmp_path).fit(module, train_dataloaders=[])
    with pytest.raises(ValueError, match="tuning lacks learning_rate"):
        MaskedDataModule(table(), dataclasses.replace(TUNING, learning_rate=None), seed=0)
