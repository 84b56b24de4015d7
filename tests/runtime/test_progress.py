"""Progress where the output is no terminal, and what stages are said to take."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from xtf.config.schema import Config, ModelConfig, ModelShape, PlanConfig, TrainerConfig
from xtf.runtime import pace, progress
from xtf.runtime.progress import Lines, duration


def test_a_line_every_half_minute_with_rate_and_time_left(capsys):
    now = 0.0
    lines = Lines("training", 1000, clock=lambda: now)
    for now in (10.0, 20.0, 31.0, 40.0, 62.0):  # noqa: B007
        lines(100)
    out = capsys.readouterr().out.splitlines()
    assert out == ["training: 30%, 10 tokens/s, 72 s left", "training: 50%, 8 tokens/s, 62 s left"]


def test_what_an_earlier_attempt_did_is_not_counted_as_fast(capsys):
    now = 0.0
    lines = Lines("training", 1000, clock=lambda: now)
    lines(500)
    now = 40.0
    lines(100)
    assert capsys.readouterr().out == "training: 60%, 2 tokens/s, 3 min left\n"


@pytest.mark.parametrize(("seconds", "words"), [(5, "5 s"), (89, "89 s"), (150, "2 min"), (7200, "2.0 h")])
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(pace, "_measured", {})
    shape = ModelShape(layers=1, hidden=1000, intermediate=1000, heads=1, kv_heads=1, vocabulary=3000, tied=True)
    model = ModelConfig(name="own", path="owner/not-on-this-machine", shape=shape)
    return Config(model=model, trainer=TrainerConfig(name="cpu"), plan=PlanConfig(tokens_per_second=1.0))


def test_a_stage_is_announced_at_the_stated_rate_then_at_the_measured_one(config, capsys):
    pace.announce(config, "training", 1200, 1200)  # 10 M weights: 100 tokens/s
    pace.measured(config, 1000, 20.0)
    pace.announce(config, "training", 1200, 1200)
    assert capsys.readouterr().out.splitlines() == [
        "training: about 12 s for 1,200 tokens, at a training pace of 100 tokens/s (stated: plan.tokens_per_second)",
        "training: about 24 s for 1,200 tokens, at a training pace of 50 tokens/s (measured in this run)",
    ]


def test_short_work_is_not_announced(config, capsys):
    pace.announce(config, "training", 400, 400)
    assert capsys.readouterr().out == ""


def test_a_stage_is_named_and_its_bars_begin_with_its_number(capsys, monkeypatch):
    monkeypatch.setattr(progress._Console, "prefix", "")
    progress.stage(2, 5, "train")
    with progress.bar("training", 10) as advance:
        assert advance.description == "2/5 training"
    assert capsys.readouterr().out == "stage 2 of 5: train\n"


def test_a_bar_is_one_line_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(width=80, file=written, force_terminal=True, color_system=None, legacy_windows=False)
    monkeypatch.setattr(progress, "console", terminal)
    monkeypatch.setattr(progress._Console, "prefix", "5/6 ")
    with progress.bar("evaluating the tuned model", 1_234_567) as advance:
        for _ in range(3):
            advance(40_000)
            time.sleep(0.2)
    *_, last = (
        line for line in re.split("[\r\n]", re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", written.getvalue())) if line.strip()
    )
    assert last.startswith("5/6 evaluating the tuned model ") and last.rstrip().endswith(" left")
    assert "tokens/s" in last and len(last) <= 80


def test_a_long_text_that_stands_above_is_not_said_again(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        progress.say_once("a long text of this test", "as above")
    assert capsys.readouterr().out == "a long text of this test\nas above\n"
