"""What a run shows on Weights & Biases, TensorBoard and in scalars.csv, and the dashboards that lay it out.

Training logs every step as it goes, and train_log.csv holds the same under the names in parentheses:

    train/loss (loss), train/kept_tokens (kept_tokens), train/tokens_per_second (tokens_per_second),
    train/learning_rate (learning_rate), train/grad_norm (grad_norm), validation/loss (validation_loss)

From the run's files come, under names that stay, the same in all three places:

    eval/<metric>, eval/<metric>_low, eval/<metric>_high    the fine-tuned model, with its 95 % interval
    base/<metric>, base/<metric>_low, base/<metric>_high    the base model
    difference/<metric>                                     fine-tuned minus base
    reported/<metric>                                       what the paper reports, as a share
    mask/kept, mask/dropped/<attribute>, mask/dropped/union, mask/overlap/<attributes>
                                                            shares of response tokens
    time/<stage>                                            seconds

On W&B and TensorBoard also `scores/<column>`, histograms of ri, kn, tr and logp. On W&B tables, which sort and filter:

    examples       each of the first training rows: shares dropped, mean p, coloured text
    tokens         each response token of these rows: its scores, what drops it
    generations    completions of the base and the fine-tuned model with verdicts

and on TensorBoard the report as text, and the run's settings with its figures under HPARAMS. All of it stands in the
run's one W&B run (`xtf.runtime.loggers`), or in its folder tensorboard/. The run's files are the record; what is here
mirrors them, and can be published again from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xtf.config.identity import digest
from xtf.config.schema import Config, ThresholdConfig
from xtf.data.ragged import PROMPT_TR
from xtf.data.tokens import Pieces, visible
from xtf.reporting.pages import write_csv
from xtf.reporting.reported import reported_share
from xtf.reporting.runs import Run, load_run, read_lines
from xtf.reporting.shown import preview_text
from xtf.runtime.artifacts import write_json
from xtf.runtime.loggers import STEP, wandb_mode, wandb_run, whole_run
from xtf.runtime.run_folder import Manifest, RunFolder, checked_mask
from xtf.runtime.train_log import read_log
from xtf.scoring.attributes import ATTRIBUTES, LOOKS
from xtf.scoring.masks import MaskedTokens
from xtf.scoring.store import read_pass

if TYPE_CHECKING:
    import wandb
    from transformers import PreTrainedTokenizerBase

BINS = 64
SHOWN_EXAMPLES = 20
SHOWN_GENERATIONS = 200
CURVES = {  # name -> column of train_log.csv, and in words
    "train/loss": ("loss", "loss per kept token"),
    "train/kept_tokens": ("kept_tokens", "kept tokens per step"),
    "train/tokens_per_second": ("tokens_per_second", "tokens per second"),
    "train/learning_rate": ("learning_rate", "learning rate"),
    "train/grad_norm": ("grad_norm", "gradient norm"),
    "validation/loss": ("validation_loss", "validation loss"),
}


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
    found |= mask_scalars(record["mask"])
    return found | {f"time/{name}": seconds for name, seconds in record["timing"].items()}


def mask_scalars(stats: Mapping[str, Any]) -> dict[str, float]:
    """The shares of a mask (`MaskStats`) under their documented names."""
    found = {"mask/kept": stats["kept_share"]}
    found |= {f"mask/dropped/{name}": share for name, share in stats["dropped_share"].items()}
    return found | {f"mask/overlap/{name}": share for name, share in stats["overlap"].items()}


def write_scalars(run: Run) -> Path:
    """The run's scalars.csv, with the columns name and value."""
    return write_csv(RunFolder(run.folder).scalars, ("name", "value"), scalars(run).items())


def publish_tensorboard(run: Run) -> None:
    """Adds the same scalars to the run's TensorBoard files, with histograms, its settings and its report as text."""
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    folder = RunFolder(run.folder)
    figures = scalars(run)
    with SummaryWriter(str(run.folder / "tensorboard")) as writer:
        for name, value in figures.items():
            writer.add_scalar(name, value, 0)
        for name, values in _scores(folder):
            writer.add_histogram(name, values, 0, bins=BINS)
        shown = {name: value for name, value in figures.items() if name.startswith(("eval/", "difference/"))}
        assert writer.file_writer is not None
        for part in hparams(settings(run), shown):
            writer.file_writer.add_summary(part)
        report = folder.reports / "report.md"
        if report.is_file():
            writer.add_text("report", without_pictures(report.read_text(encoding="utf-8")), 0)


def settings(run: Run) -> dict[str, str | int | float | bool]:
    """What tells runs apart in a table of hyperparameters: what names the run, its training, what was overridden."""
    record = run.record
    named = {key: record[key] for key in ("task", "model", "tuning", "method", "scorer", "threshold", "seed")}
    training = {key: record["training"].get(key) for key in ("learning_rate", "batch_size", "epochs", "examples")}
    found = {**training, **record["overrides"], **named}
    plain_types = (str, int, float, bool)
    return {
        key: value if isinstance(value, plain_types) else str(value)
        for key, value in found.items()
        if value is not None
    }


def without_pictures(markdown: str) -> str:
    """A report's text where its pictures and other pages cannot be opened."""
    return re.sub(r"^!?\[[^]]*\]\([^)]*\)\n+", "", markdown, flags=re.MULTILINE)


def _scores(folder: RunFolder) -> Iterator[tuple[str, np.ndarray]]:
    """The scores that a run read, by their documented names, each flat over the response tokens."""
    for kind, path in Manifest(folder).stages["score"]["paths"].items():
        table = read_pass(folder.output.scores / Path(path).name)
        for name in table.column_names:
            if pa.types.is_list(table.schema.field(name).type) and name not in ("input_ids", PROMPT_TR, *LOOKS):
                values = table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                yield f"scores/{'' if kind == 'scores' else f'{kind}_'}{name}", values


# -- Weights & Biases ---------------------------------------------------------------------------------------


PUBLISHED = {"wandb": ("score", "mask", "train", "evaluate"), "tensorboard": ("evaluate",)}  # stages, by logger


def publish_stages(
    config: Config, folder: RunFolder, manifest: Manifest, tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> None:
    """Mirror each done stage once on the chosen logger; the files remain the record."""
    name = config.logger.name
    for stage in PUBLISHED.get(name, ()):
        entry = manifest.stages.get(stage)
        if entry is None or _told(config, manifest).get(stage) == digest(entry):
            continue
        if name == "wandb":
            publish(config, folder, stage, tokenizer())
        else:
            publish_tensorboard(load_run(folder.path))
        note_published(config, manifest, stage)


def note_published(config: Config, manifest: Manifest, stage: str) -> None:
    """The chosen logger has what a stage left: it was published, or logged as it came."""
    _told(config, manifest)[stage] = digest(manifest.stages[stage])
    manifest.save()


def _told(config: Config, manifest: Manifest) -> dict[str, str]:
    """A digest of what the chosen logger has been told about each stage."""
    loggers: dict[str, dict[str, str]] = manifest.content.setdefault("published", {})
    return loggers.setdefault(config.logger.name, {})


def publish(config: Config, folder: RunFolder, stage: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Mirrors what a done stage (score, mask, train or evaluate) left in a run's folder to W&B.

    Raises:
        ValueError: stage=evaluate of a run that has not finished.
    """
    import wandb

    stages = Manifest(folder).stages
    with whole_run(config, folder):
        session = wandb_run()
        if stage == "train":
            for row in read_log(folder.train_log, finished=True):  # under the names that training logged live
                values = {name: row[column] for name, (column, _) in CURVES.items() if row.get(column) is not None}
                session.log({**values, STEP: row["step"]})
            return
        found: dict[str, float] = {}
        media: dict[str, Any] = {}
        if stage == "score":
            for name, scores in _scores(folder):
                media[name] = wandb.Histogram(np_histogram=np.histogram(scores, BINS))
        elif stage == "mask":
            found = mask_scalars(stages["mask"]["stats"])
            table = pq.read_table(checked_mask(folder)).slice(0, SHOWN_EXAMPLES)
            for name, (columns, rows) in mask_tables(table, tokenizer, config.threshold).items():
                media[name] = wandb.Table(columns=list(columns), data=rows)
        else:
            run = load_run(folder.path)
            found = scalars(run)
            media["generations"] = _generations(run)
        session.log({**found, **media})
        session.summary.update(found)


def mask_tables(
    table: pa.Table, tokenizer: PreTrainedTokenizerBase, threshold: ThresholdConfig
) -> dict[str, tuple[Sequence[str], list[list[Any]]]]:
    """The columns and rows of the tables `examples` and `tokens`, of the masked rows in `table`.

    Shares are those of the tokens that `threshold` judges; text is a cell of HTML.
    """
    import wandb

    tokens, pieces = MaskedTokens.from_mask(table), Pieces(tokenizer)
    judged = tokens.judged(threshold)
    by = {name: values for name, values in tokens.dropped.items() if name in ATTRIBUTES}
    p = np.exp(tokens.scores["logp"].astype(np.float64)) if "logp" in tokens.scores else None
    examples, each = [], []
    shown = preview_text(table, tokenizer, examples=table.num_rows)
    for row, name in enumerate(table["example_id"].to_pylist()):
        part = slice(tokens.offsets[row], tokens.offsets[row + 1])
        counted = judged[part]
        shares = [
            float(values[part][counted].mean()) if counted.any() else None for values in (~tokens.kept, *by.values())
        ]
        mean_p = [] if p is None else [float(p[part].mean())]
        text = wandb.Html(shown.of(row)._repr_html_(), inject=False)
        examples.append([name, int(counted.sum()), *shares, *mean_p, text])
        for place, piece in enumerate(pieces(tokens.ids[part].tolist())):
            at = tokens.offsets[row] + place
            scores = [float(values[at]) for values in tokens.scores.values()]
            probability = [] if p is None else [float(p[at])]
            drops = " + ".join(ATTRIBUTES[name].label for name, values in by.items() if values[at])
            decision = "kept" if tokens.kept[at] else f"dropped by {drops or 'the method'}"
            each.append([name, place, visible(piece), int(tokens.ids[at]), decision, *probability, *scores])
    chance = [] if p is None else ["p"]
    return {
        "examples": (["example", "tokens", "dropped", *by, *(f"mean {name}" for name in chance), "text"], examples),
        "tokens": (["example", "position", "token", "id", "decision", *chance, *tokens.scores], each),
    }


def _generations(run: Run) -> wandb.Table:
    import wandb

    before = {(line["example_id"], line["sample"]): line for line in run.base_generations() or ()}
    item = ("example_id", "sample", "prompt", "reference")
    columns: list[str | int] = [*item, "base", "base_correct", "tuned", "tuned_correct", "reason"]
    rows = []
    for line in read_lines(RunFolder(run.folder).generations)[:SHOWN_GENERATIONS]:
        base: Mapping[str, Any] = before.get((line["example_id"], line["sample"]), {})
        tuned = (line["completion"], line["correct"], line["reason"])
        rows.append([*(line[name] for name in item), base.get("completion"), base.get("correct"), *tuned])
    return wandb.Table(columns=columns, data=rows)


# -- dashboards ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """`kind` is line (over steps), bar (one bar a run), table or media; `keys` are the names above."""

    title: str
    kind: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Dashboard:
    """`group_by` are configuration keys whose runs are averaged; `columns` stand in the table of runs."""

    name: str
    sections: Mapping[str, Sequence[Panel]]
    group_by: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


HEADLINES = ("accuracy", "pass@1")  # a task has one of them
QUALITY = (
    Panel("fine-tuned", "bar", tuple(f"eval/{name}" for name in HEADLINES)),
    Panel("fine-tuned minus base", "bar", tuple(f"difference/{name}" for name in HEADLINES)),
    Panel(
        "base, fine-tuned, reported",
        "bar",
        tuple(f"{who}/{name}" for name in HEADLINES for who in ("base", "eval", "reported")),
    ),
    Panel("95 % interval", "bar", tuple(f"eval/{name}_{end}" for name in HEADLINES for end in ("low", "high"))),
)
COLUMNS = (*(f"{who}/{name}" for name in HEADLINES for who in ("base", "eval", "difference", "reported")), "mask/kept")
TRAINING = tuple(Panel(title, "line", (name,)) for name, (_, title) in CURVES.items())


def dashboards() -> list[Dashboard]:
    """The workspaces, for the attributes that there are."""
    sets = [names for size in range(2, len(ATTRIBUTES) + 1) for names in combinations(ATTRIBUTES, size)]
    shares = (
        Panel("response tokens kept", "bar", ("mask/kept",)),
        Panel("dropped by", "bar", tuple(f"mask/dropped/{name}" for name in (*ATTRIBUTES, "union"))),
        Panel("overlaps", "bar", tuple(f"mask/overlap/{'_'.join(names)}" for names in sets)),
    )
    scores = [Panel(f"{a.label} scores", "media", (f"scores/{name}",)) for name, a in ATTRIBUTES.items()]
    return [
        Dashboard(
            "XTF: one run",
            {
                "Did it help?": QUALITY,
                "What was dropped": (
                    *shares,
                    *scores,
                    Panel("examples", "table", ("examples",)),
                    Panel("tokens", "table", ("tokens",)),
                ),
                "Completions": (Panel("generations", "table", ("generations",)),),
                "Training": TRAINING,
            },
            columns=COLUMNS,
        ),
        Dashboard(
            "XTF: a sweep",
            {"Did it help?": QUALITY, "What was dropped": shares, "Training": TRAINING},
            group_by=("model", "task", "tuning", "method", "scorer", "threshold"),
            columns=COLUMNS,
        ),
    ]


def create_dashboards(config: Config, out_dir: Path) -> list[str]:
    """Creates the W&B workspaces, or unless runs go online (`wandb_mode`) writes what it would create.

    Returns their addresses, or the path of dashboards.json.

    Raises:
        ValueError: online, but no entity is set, the extra `dashboard` is not installed, or the server does not answer.
    """
    logger = config.logger
    if wandb_mode(config) != "online":
        path = out_dir / "dashboards.json"
        write_json(path, [asdict(board) for board in dashboards()])
        return [str(path)]
    if logger.entity is None:
        raise ValueError("set logger.entity to the W&B user or team that the dashboards are for")
    import wandb

    try:
        boards = [workspace(board, logger.entity, logger.project) for board in dashboards()]
        return [str(board.save().url) for board in boards]
    except ModuleNotFoundError as error:
        raise ValueError("stage=dashboard needs wandb-workspaces: pip install 'xtf[dashboard]'") from error
    except (wandb.errors.Error, OSError) as error:
        raise ValueError(f"W&B did not create the dashboards: {error}") from error


def workspace(board: Dashboard, entity: str, project: str) -> Any:
    """A dashboard as an unsaved wandb-workspaces Workspace (extra `dashboard`)."""
    from wandb_workspaces import workspaces

    sections = [
        workspaces.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in board.sections.items()
    ]
    runs = workspaces.RunsetSettings(
        groupby=[workspaces.Config(name) for name in board.group_by],
        pinned_columns=[f"summary:{name}" for name in board.columns],
    )
    return workspaces.Workspace(
        entity=entity, project=project, name=board.name, sections=sections, runset_settings=runs
    )


def _panel(panel: Panel) -> Any:
    from wandb_workspaces.reports import v2

    keys: list[Any] = list(panel.keys)
    if panel.kind == "line":
        return v2.LinePlot(title=panel.title, x=STEP, y=keys)
    if panel.kind == "bar":
        return v2.BarPlot(title=panel.title, metrics=keys)
    if panel.kind == "table":
        return v2.WeavePanelSummaryTable(table_name=keys[0])
    assert panel.kind == "media", panel.kind
    return v2.MediaBrowser(title=panel.title, media_keys=keys)
