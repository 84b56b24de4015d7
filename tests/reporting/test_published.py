"""What runs show on Weights & Biases and TensorBoard, read back from the files that these write."""

from __future__ import annotations

import csv
import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import scored_table, write_run
from omegaconf import DictConfig, OmegaConf
from test_explorer import byte_tokenizer
from test_reports import outcomes

from xtf.config.compose import load_config
from xtf.config.schema import PRESETS, Attribute, Config, LoggerConfig, WandbMode
from xtf.reporting.published import (
    CURVES,
    create_dashboards,
    dashboards,
    mask_tables,
    publish,
    publish_tensorboard,
    scalars,
    workspace,
    write_scalars,
)
from xtf.reporting.run_report import run_report
from xtf.reporting.runs import load_run
from xtf.runtime import loggers
from xtf.runtime.loggers import STEP, training_loggers, whole_run
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.masks import MaskedTokens, build_mask

LOGGER = LoggerConfig(name="wandb", project="tests", tags=["mine"], mode=WandbMode.offline)


def config_of(run: Path) -> Config:
    node = OmegaConf.load(run / "config.yaml")
    assert isinstance(node, DictConfig)
    return load_config(node)


def test_scalars_have_documented_names_and_the_records_values(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, correct=outcomes(60, 40), base=outcomes(10, 90), model="llama_1b"))
    found = scalars(run)
    assert found["eval/accuracy"] == 0.6
    assert found["base/accuracy_low"] == run.record["base_metrics"]["accuracy"]["low"]
    assert found["difference/accuracy"] == pytest.approx(0.5)
    assert found["reported/accuracy"] == pytest.approx(0.1, abs=0.09)  # table 1, llama_1b on GSM8K
    assert found["mask/dropped/union"] == run.record["mask"]["dropped_share"]["union"]
    assert found["mask/overlap/kn_tr"] == run.record["mask"]["overlap"]["kn_tr"]
    assert found["time/train"] == 130.0


BLOCK = 32768  # of the log format that W&B's files have in common with LevelDB
FULL, LAST = 1, 4


def records(folder: Path) -> dict[str, list[Any]]:
    """The records of the offline runs in `folder` by their job type, parsed with W&B's own message types.

    W&B's service writes on its own: a run is read again until its last record is there.
    """
    found = {}
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        read = list(parsed(file))
        while "exit" not in [record.WhichOneof("record_type") for record in read]:
            time.sleep(0.2)
            read = list(parsed(file))
        (described,) = [record.run for record in read if record.WhichOneof("record_type") == "run"]
        assert described.job_type not in found
        found[described.job_type] = read
    return found


def parsed(file: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    data, place = file.read_bytes(), 7  # after the file's header
    parts = b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a chunk's header: the rest of the block is padding
            place += BLOCK - place % BLOCK
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        if place + 7 + length > len(data):
            return  # still being written
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(read: list[Any]) -> list[dict[str, Any]]:
    """What each call of `log` wrote, less what W&B adds itself."""
    lines = []
    for record in read:
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if items:
            lines.append({k: json.loads(v) for k, v in items.items() if not k.startswith("_")})
    return lines


@pytest.mark.parametrize("experiment", ["table2", None])
def test_a_job_is_one_wandb_run_with_curves_and_figures_under_the_documented_names(
    tmp_path: Path, experiment: str | None
) -> None:
    run = write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), experiment=experiment, logger=LOGGER)
    with whole_run(config_of(run), RunFolder(run)):
        for stage in ("score", "mask", "train", "evaluate"):
            publish(config_of(run), RunFolder(run), stage, byte_tokenizer())
    (read,) = records(run).values()
    (described,) = [record.run for record in read if record.WhichOneof("record_type") == "run"]
    assert (described.project, described.run_group) == ("tests", experiment or "math/tiny/xtf")
    assert described.display_name == "math/tiny/full/xtf/xtf-paper/seed0"
    assert described.run_id == json.loads((run / "wandb.json").read_text())["id"]
    assert sorted(described.tags) == ["math", "mine", "paper", "tiny", "xtf"]

    scores, mask, *curves, end = history(read)
    end.pop(STEP, None)  # as W&B fills it in from the last curve
    assert {key for key in scores if key.endswith("/_type")} == {
        f"scores/{name}/_type" for name in ("ri", "kn", "tr", "logp")
    }
    assert scores["scores/kn/_type"] == "histogram"
    figures = scalars(load_run(run))
    assert {k: v for k, v in mask.items() if k.startswith("mask/")} == {
        k: v for k, v in figures.items() if k.startswith("mask/")
    }
    assert mask["examples/_type"] == mask["tokens/_type"] == "table-file"
    assert mask["examples/nrows"] == 12
    assert [line["train/loss"] for line in curves[:3]] == [2.0, 1.0, 0.6667]
    assert curves[-1]["validation/loss"] == 1.5 and "validation/loss" not in curves[0]
    assert {k: v for k, v in end.items() if not k.startswith("generations")} == figures
    assert end["generations/_type"] == "table-file"
    assert (end["generations/nrows"], end["generations/ncols"]) == (10, 9)
    summary = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in read
        for item in record.summary.update
    }
    assert {k: v for k, v in summary.items() if k in figures} == figures


def test_what_a_later_process_adds_offline_goes_to_the_same_wandb_run_and_how_they_are_joined_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, correct=outcomes(6, 4), base=None, logger=LOGGER)
    told = []
    for stage in ("mask", "train"):
        publish(config_of(run), RunFolder(run), stage, byte_tokenizer())
        told.append("wandb sync" in capsys.readouterr().out)
    assert told == [False, True]
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    named = {record.run.run_id for file in files for record in parsed(file) if record.HasField("run")}
    assert len(files) == 2 and named == {json.loads((run / "wandb.json").read_text())["id"]}
    (run / "wandb.json").write_text((run / "wandb.json").read_text().replace(named.pop(), "12345678"))
    made, resumed = loggers._run_id(RunFolder(run))
    said = " ".join(capsys.readouterr().out.split())
    assert "wandb.json is damaged" in said and "what follows goes to a new W&B run" in said
    assert made != "12345678" and not resumed and loggers._run_id(RunFolder(run)) == (made, True)


def test_tensorboard_and_the_csv_hold_the_same_scalars_and_tensorboard_the_rest(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    overrides = {"tuning.epochs": 2}
    made = write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), model="llama_1b", overrides=overrides)
    run = load_run(made)
    run_report(run.folder, RunFolder(run.folder).reports)
    publish_tensorboard(run)
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    expected = scalars(run)
    read = {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]}
    assert read == pytest.approx(expected)
    scored = scored_table(12)
    for name in ("ri", "kn", "tr", "logp"):
        found = events.Histograms(f"scores/{name}")[0].histogram_value
        values = np.concatenate(scored[name].to_pylist())
        assert (found.num, found.min, found.max) == (len(values), values.min(), values.max())
    said = events.Tensors("report/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "## Did it help?" in said and "![" not in said and "(preview.html)" not in said
    plugin = HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    ).session_start_info.hparams
    assert plugin["learning_rate"].number_value == 1e-3
    assert plugin["method"].string_value == "xtf"
    assert plugin["tuning.epochs"].number_value == 2
    with write_scalars(run).open(newline="") as lines:
        assert {row["name"]: float(row["value"]) for row in csv.DictReader(lines)} == expected


def test_training_goes_on_offline_where_the_server_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    import wandb

    with socket.socket() as closed:  # a port that nobody listens at
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb.teardown()  # it reads the environment once
    request.addfinalizer(wandb.teardown)
    logger = replace(LOGGER, mode=WandbMode.online, timeout_seconds=1)
    run = write_run(tmp_path, correct=outcomes(6, 4), base=None, logger=logger)
    with training_loggers(config_of(run), RunFolder(run)) as (live,):
        live.log_metrics({"train/loss": 0.5}, step=7)
    assert "W&B could not be reached" in capsys.readouterr().out
    (line,) = history(records(run)["fine-tuning"])
    assert line == {"train/loss": 0.5, "trainer/global_step": 7}


def test_examples_and_tokens_are_tables_with_the_masks_own_numbers() -> None:
    table = build_mask(scored_table(3), PRESETS["paper"], list(Attribute)).table
    made = mask_tables(table, byte_tokenizer("<script>alert(1)</script>"), PRESETS["paper"])
    tokens = MaskedTokens.from_mask(table)
    columns, rows = made["tokens"]
    each = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [row["decision"] == "kept" for row in each] == tokens.kept.tolist()
    assert [row["ri"] for row in each] == tokens.scores["ri"].tolist()
    assert [row["p"] for row in each] == pytest.approx(np.exp(tokens.scores["logp"]))
    assert [row["position"] for row in each] == [k for n in tokens.lengths for k in range(n)]
    place = int(np.flatnonzero(tokens.dropped["kn"] & tokens.dropped["tr"])[0])
    assert "KN + TR" in each[place]["decision"]
    columns, rows = made["examples"]
    each = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [row["tokens"] for row in each] == tokens.lengths.tolist()
    parts = np.split(tokens.kept, tokens.offsets[1:-1])
    assert [row["dropped"] for row in each] == pytest.approx([1 - part.mean() for part in parts])
    for row in each:
        assert "<script" not in row["text"].html
        assert "dropped by KN" in row["text"].html


def test_every_panel_shows_names_that_runs_log(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), model="llama_1b"))
    known = {*scalars(run), *CURVES, "examples", "tokens", "generations"} | {
        f"scores/{name}" for name in ("ri", "kn", "tr")
    }
    known |= {key.replace("accuracy", "pass@1") for key in known}  # the figures of other tasks
    shown = {key for board in dashboards() for part in board.sections.values() for panel in part for key in panel.keys}
    assert shown <= known
    assert {key for board in dashboards() for key in board.columns} <= known


def test_dashboards_become_workspaces() -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed (extra: dashboard)")
    for board in dashboards():
        made = workspace(board, "someone", "tests")
        assert [section.name for section in made.sections] == list(board.sections)
        assert [len(section.panels) for section in made.sections] == [len(part) for part in board.sections.values()]


def test_without_an_account_the_dashboards_are_written_down(tmp_path: Path) -> None:
    config = config_of(write_run(tmp_path, correct=outcomes(1, 1), base=None, logger=LOGGER))
    (path,) = create_dashboards(config, tmp_path)
    written = json.loads(Path(path).read_text())
    assert [board["name"] for board in written] == [board.name for board in dashboards()]
    online = replace(config, logger=replace(LOGGER, mode=WandbMode.online))
    with pytest.raises(ValueError, match=r"logger\.entity"):
        create_dashboards(online, tmp_path)
