"""What runs show on Weights & Biases, read back from its offline files."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from made_runs import scored_table, write_run
from test_explorer import byte_tokenizer
from test_report import outcomes

from xtf.config import Attribute, LoggerConfig
from xtf.dashboard import DASHBOARDS, create_dashboards, examples_html, publish, scalars, workspace
from xtf.masks import build_mask
from xtf.results import load_run
from xtf.thresholds import PRESETS

LOGGER = LoggerConfig(name="wandb", project="tests", tags=["mine"])


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


def records(folder: Path) -> list[Any]:
    """All records of the one offline run in `folder`, parsed with W&B's own message types."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place = file.read_bytes(), 7  # after the file's header
    found, parts = [], b""
    while place < len(data):
        if BLOCK - place % BLOCK < 7:  # no room for a chunk's header: the rest of the block is padding
            place += BLOCK - place % BLOCK
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_an_offline_run_holds_figures_histograms_examples_and_generations(tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), experiment="table2")
    assert publish(run, byte_tokenizer(), LOGGER, "offline")
    found = records(run)
    while "exit" not in [
        record.WhichOneof("record_type") for record in found
    ]:  # its service writes on its own
        time.sleep(0.2)
        found = records(run)
    (described,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (described.project, described.run_group, described.job_type) == ("tests", "table2", "report")
    assert set(described.tags) == {"tiny", "math", "xtf", "paper", "mine"}
    history: dict[str, Any] = {}
    for record in found:
        for item in record.history.item:
            history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert history["eval/accuracy"] == 0.6
    assert {"mask/kept", "mask/dropped/ri", "mask/overlap/ri_kn_tr", "time/score"} <= history.keys()
    assert history["scores/kn/_type"] == "histogram"
    assert history["examples/_type"] == "html-file"
    assert history["generations/_type"] == "table-file"
    assert (history["generations/nrows"], history["generations/ncols"]) == (10, 9)


def test_coloured_examples_are_a_page_without_script() -> None:
    table = build_mask(scored_table(3), PRESETS["paper"], list(Attribute)).table
    page = examples_html(table, byte_tokenizer("<script>alert(1)</script>"))
    assert "<script" not in page
    assert "#0072b2" in page.lower() or "#d55e00" in page.lower()


def test_every_panel_shows_names_that_runs_log(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, correct=outcomes(6, 4), base=outcomes(1, 9), model="llama_1b"))
    training = {"loss", "kept_tokens", "tokens_per_second", "learning_rate", "grad_norm"}
    known = {*scalars(run), "examples", "generations", "validation/loss"}
    known |= {f"train/{name}" for name in training} | {f"scores/{name}" for name in ("ri", "kn", "tr")}
    shown = {
        key
        for board in DASHBOARDS
        for part in board.sections.values()
        for panel in part
        for key in panel.keys
    }
    assert shown <= known


def test_dashboards_become_workspaces() -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed (extra: dashboard)")
    for board in DASHBOARDS:
        made = workspace(board, "someone", "tests")
        assert [section.name for section in made.sections] == list(board.sections)
        assert [len(section.panels) for section in made.sections] == [
            len(part) for part in board.sections.values()
        ]


def test_without_an_account_the_dashboards_are_written_down(tmp_path: Path) -> None:
    (path,) = create_dashboards(LOGGER, tmp_path, "offline")
    written = json.loads(Path(path).read_text())
    assert [board["name"] for board in written] == [board.name for board in DASHBOARDS]
    with pytest.raises(ValueError, match=r"logger\.entity"):
        create_dashboards(LOGGER, tmp_path, "online")
