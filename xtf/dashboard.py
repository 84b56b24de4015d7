"""What a finished run shows on Weights & Biases and TensorBoard, and the dashboards that lay it out.

Training logs `train/loss`, `train/kept_tokens`, `train/tokens_per_second`, `train/learning_rate`,
`train/grad_norm` and `validation/loss` per step. From a finished run's files come, under names that stay:

    eval/<metric>, eval/<metric>_low, eval/<metric>_high    the fine-tuned model, with its 95 % interval
    base/<metric>, base/<metric>_low, base/<metric>_high    the base model
    difference/<metric>                                     fine-tuned minus base
    reported/<metric>                                       what the paper reports, as a share
    mask/kept, mask/dropped/<attribute>, mask/dropped/union, mask/overlap/<attributes>    shares of response
    tokens time/<stage>                                            seconds scores/<attribute>   histograms
    examples   coloured text        generations   table with verdicts (W&B only)

The run's files are the record; what is here mirrors them, and can be published again from them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from xtf.artifacts import write_atomic
from xtf.config import LoggerConfig
from xtf.explorer import preview_text
from xtf.results import Run, load_run, read_lines
from xtf.sweeps import reported_share
from xtf.tokens import response_tokens

if TYPE_CHECKING:
    import wandb
    from transformers import PreTrainedTokenizerBase

Mode = Literal["online", "offline", "disabled"]
BINS = 64
SHOWN_EXAMPLES = 20
SHOWN_GENERATIONS = 200


def scalars(run: Run) -> dict[str, float]:
    """The figures of a finished run under their documented names."""
    record = run.record
    found: dict[str, float] = {}
    for prefix, metrics in (("eval", record["metrics"]), ("base", record["base_metrics"] or {})):
        for name, metric in metrics.items():
            found[f"{prefix}/{name}"] = metric["value"]
            found[f"{prefix}/{name}_low"], found[f"{prefix}/{name}_high"] = metric["low"], metric["high"]
    for name, metric in (record["base_metrics"] or {}).items():
        found[f"difference/{name}"] = record["metrics"][name]["value"] - metric["value"]
    for name in record["metrics"]:
        reported = reported_share(run, name)
        if reported is not None:
            found[f"reported/{name}"] = reported
    stats = record["mask"]
    found["mask/kept"] = stats["kept_share"]
    found |= {f"mask/dropped/{name}": share for name, share in stats["dropped_share"].items()}
    found |= {f"mask/overlap/{name}": share for name, share in stats["overlap"].items()}
    return found | {f"time/{name}": seconds for name, seconds in record["timing"].items()}


# -- Weights & Biases ---------------------------------------------------------------------------------------


def publish(run_dir: Path, tokenizer: PreTrainedTokenizerBase, logger: LoggerConfig, mode: Mode) -> bool:
    """Mirrors a finished run to W&B, as a run of job type `report` in the group of its experiment.

    `mode` is online, offline or disabled. Offline files lie in the run's folder, and `wandb sync` uploads
    them; if the server cannot be reached, the run is written offline, and the answer is False, else True.
    ValueError if the run has not finished.
    """
    import wandb

    run = load_run(run_dir)
    record = run.record
    described = {
        key: record[key] for key in ("task", "model", "tuning", "method", "scorer", "threshold", "seed")
    }
    settings: dict[str, Any] = {
        "project": logger.project,
        "entity": logger.entity,
        "dir": str(run_dir),
        "name": "/".join(map(str, described.values())),
        "group": record["experiment"],
        "job_type": "report",
        "tags": [
            *(str(described[key]) for key in ("model", "task", "method", "scorer", "threshold")),
            *logger.tags,
        ],
        "config": described | {"overrides": dict(record["overrides"])},
        "reinit": "finish_previous",
    }
    arrived = True
    try:
        session = wandb.init(mode=mode, **settings)
    except wandb.errors.CommError:
        session, arrived = wandb.init(mode="offline", **settings), False
    with session:
        found = scalars(run)
        session.log({**found, **_media(run, tokenizer)})
        session.summary.update(found)
    return arrived


def _media(run: Run, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    import wandb

    table = pq.read_table(run.folder / "mask.parquet")
    media: dict[str, Any] = {
        f"scores/{name}": wandb.Histogram(np_histogram=np.histogram(values, BINS))
        for name, values in response_tokens(table).scores.items()
    }
    media["examples"] = wandb.Html(examples_html(table.slice(0, SHOWN_EXAMPLES), tokenizer), inject=False)
    media["generations"] = _generations(run)
    return media


def examples_html(table: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Coloured examples as a static page without script."""
    console = Console(
        file=io.StringIO(), record=True, force_terminal=True, color_system="truecolor", width=110
    )
    console.print(preview_text(table, tokenizer, examples=table.num_rows))
    return console.export_html(inline_styles=True)


def _generations(run: Run) -> wandb.Table:
    import wandb

    before = {(line["example_id"], line["sample"]): line for line in run.base_generations() or ()}
    columns: list[str | int] = [
        "example_id",
        "sample",
        "prompt",
        "reference",
        "base",
        "base_correct",
        "tuned",
        "tuned_correct",
        "reason",
    ]
    rows = []
    for line in read_lines(run.folder / "generations.jsonl")[:SHOWN_GENERATIONS]:
        base: Mapping[str, Any] = before.get((line["example_id"], line["sample"]), {})
        rows.append(
            [line["example_id"], line["sample"], line["prompt"], line["reference"], base.get("completion"),
             base.get("correct"), line["completion"], line["correct"], line["reason"]]
        )  # fmt: skip
    return wandb.Table(columns=columns, data=rows)


def publish_tensorboard(run_dir: Path) -> None:
    """Adds the same scalars to the run's TensorBoard files."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_dir / "tensorboard")) as writer:
        for name, value in scalars(load_run(run_dir)).items():
            writer.add_scalar(name, value, 0)


# -- dashboards ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """`kind` is line (over steps), bar (one bar a run) or media; `keys` are the names above."""

    title: str
    kind: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Dashboard:
    name: str
    sections: Mapping[str, Sequence[Panel]]


ATTRIBUTES = ("ri", "kn", "tr")
QUALITY = (
    Panel("accuracy, fine-tuned", "bar", ("eval/accuracy",)),
    Panel("fine-tuned minus base", "bar", ("difference/accuracy",)),
    Panel("base, fine-tuned, reported", "bar", ("base/accuracy", "eval/accuracy", "reported/accuracy")),
    Panel("95 % interval", "bar", ("eval/accuracy_low", "eval/accuracy_high")),
)
SHARES = (
    Panel("response tokens kept", "bar", ("mask/kept",)),
    Panel("dropped by", "bar", tuple(f"mask/dropped/{name}" for name in (*ATTRIBUTES, "union"))),
    Panel(
        "overlaps", "bar", tuple(f"mask/overlap/{name}" for name in ("ri_kn", "ri_tr", "kn_tr", "ri_kn_tr"))
    ),
)
TRAINING = tuple(
    Panel(title, "line", (key,))
    for title, key in (
        ("loss per kept token", "train/loss"),
        ("kept tokens per step", "train/kept_tokens"),
        ("tokens per second", "train/tokens_per_second"),
        ("learning rate", "train/learning_rate"),
        ("gradient norm", "train/grad_norm"),
        ("validation loss", "validation/loss"),
    )
)
SCORES = tuple(Panel(f"{name.upper()} scores", "media", (f"scores/{name}",)) for name in ATTRIBUTES)
DASHBOARDS = (
    Dashboard(
        "XTF: one run",
        {
            "Did it help?": QUALITY,
            "What was dropped": (*SHARES, *SCORES, Panel("examples", "media", ("examples",))),
            "Completions": (Panel("generations", "media", ("generations",)),),
            "Training": TRAINING,
        },
    ),
    Dashboard("XTF: a sweep", {"Did it help?": QUALITY, "What was dropped": SHARES, "Training": TRAINING}),
)


def create_dashboards(logger: LoggerConfig, out_dir: Path, mode: Mode) -> list[str]:
    """Creates the W&B workspaces, or unless `mode` is online writes what it would create.

    Returns their addresses, or the path of dashboards.json. ValueError: online, but no entity is set.
    """
    if mode != "online":
        path = out_dir / "dashboards.json"
        text = json.dumps([asdict(board) for board in DASHBOARDS], indent=2) + "\n"
        write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
        return [str(path)]
    if logger.entity is None:
        raise ValueError("set logger.entity to the W&B user or team that the dashboards are for")
    return [str(workspace(board, logger.entity, logger.project).save().url) for board in DASHBOARDS]


def workspace(board: Dashboard, entity: str, project: str) -> Any:
    """A dashboard as an unsaved wandb-workspaces Workspace (extra `dashboard`)."""
    from wandb_workspaces import workspaces

    sections = [
        workspaces.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in board.sections.items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name=board.name, sections=sections)


def _panel(panel: Panel) -> Any:
    from wandb_workspaces.reports import v2

    keys: list[Any] = list(panel.keys)
    if panel.kind == "line":
        return v2.LinePlot(title=panel.title, x="Step", y=keys)
    if panel.kind == "bar":
        return v2.BarPlot(title=panel.title, metrics=keys)
    assert panel.kind == "media", panel.kind
    return v2.MediaBrowser(title=panel.title, media_keys=keys)
