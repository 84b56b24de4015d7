"""Looking at a mask: which tokens train, what dropped the others, and what other thresholds would do.

`preview` writes one HTML file that needs no network: text, scores and thresholds travel in it, compressed,
and so does the charting library (plotly.js, as the plotly package ships it). `preview_text` is for the
terminal.

Nothing from a dataset can run as script: texts reach the page inside base64, are put on it as text nodes
only, and the page's content security policy admits no script but the two that are written here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from xtf.config.identity import digest, plain
from xtf.config.schema import Attribute, Config, ThresholdConfig
from xtf.data.tokens import Pieces, ResponseTokens, decoded, response_tokens
from xtf.reporting.figures import COLOURS, SCORES
from xtf.reporting.runs import command_line
from xtf.runtime.artifacts import write_atomic
from xtf.runtime.run_folder import Manifest, RunFolder
from xtf.scoring.sensitivity import Sweep, sweep
from xtf.scoring.thresholds import PRESETS, SOURCE, Scores

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MOST_EXAMPLES = 2000
MOST_BYTES = 25_000_000  # of the file
MOST_TOKENS = 1_000_000  # response tokens in it: about as many as MOST_BYTES allow
NAMES = {"ri": "Reasoning importance", "kn": "Knowledge novelty", "tr": "Task relevance"}
MARKS = {"ri": "R", "kn": "K", "tr": "T"}


def preview(
    masked: datasets.Dataset | pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    threshold: str | ThresholdConfig = "paper",
    examples: int = MOST_EXAMPLES,
    command: str = "python run.py",
    title: str = "XTF explorer",
) -> Path:
    """Writes the explorer of a masked table (`xtf.mask`, or a run's mask.parquet) to `path` and returns it.

    `threshold` must be the one that the table was masked with: the sliders start there. `command` is what the
    page puts before the settings that reproduce the sliders. A table with more than `examples` rows, or one
    that would make the file larger than 25 MB, is sampled at random (fixed seed), and the page says so;
    thresholds are fitted to the whole table all the same.

    ValueError: a table without labels or rows, a `threshold` that does not give the table's drops.
    """
    table = masked if isinstance(masked, pa.Table) else masked.with_format("arrow")[:]
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    if isinstance(threshold, str) and threshold not in PRESETS:
        raise ValueError(f"there is no threshold {threshold!r}; choose from {', '.join(PRESETS)}")
    config = PRESETS[threshold] if isinstance(threshold, str) else threshold
    tokens = len(response_tokens(table).ids)
    examples = min(examples, max(1, table.num_rows * MOST_TOKENS // max(1, tokens)))
    while True:
        page = _page(table, tokenizer, config, examples, command, title)
        if len(page) <= MOST_BYTES or examples == 1:
            break
        examples = max(1, int(min(examples, table.num_rows) * 0.9 * MOST_BYTES / len(page)))
    path = Path(path)
    write_atomic(path, lambda temporary: temporary.write_bytes(page))
    return path


def explore_run(
    config: Config,
    changed: Mapping[str, Any],
    folder: RunFolder,
    manifest: Manifest,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> Path:
    """The explorer of a run's mask, beside its report; made anew only when the mask or what is shown has changed."""
    path = folder.reports / "preview.html"
    key = digest([manifest.stages["mask"]["sha256"], config.preview.examples])
    if path.exists() and manifest.content.get("explorer") == key:
        return path
    names = {key: value for key, value in plain(config).items() if isinstance(value, dict) and "name" in value}
    record = {key: value["name"] for key, value in names.items()}
    preview(
        pq.read_table(folder.mask),
        tokenizer(),
        path,
        threshold=config.threshold,
        examples=config.preview.examples or MOST_EXAMPLES,
        command=command_line({**record, "seed": config.seed, "overrides": plain(dict(changed))}),
    )
    manifest.note(explorer=key)
    return path


def _page(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    config: ThresholdConfig,
    examples: int,
    command: str,
    title: str,
) -> bytes:
    rows = _sample(table.num_rows, examples)
    shown = table.take(rows)
    tokens = response_tokens(shown)
    sweeps = _sweeps(response_tokens(table), tokens, config)
    live = _is_union(tokens)
    if live:
        _check_threshold(tokens, sweeps)
    strings, pieces = _strings(tokens, Pieces(tokenizer))
    meta = {
        "total": table.num_rows,
        "live": live,
        "command": command,
        "attributes": [_describe(name, found, tokens, config) for name, found in sweeps.items()],
        "strings": strings,
        "rows": rows.tolist(),
        "ids": shown["example_id"].to_pylist(),
        "prompts": list(_prompts(shown, tokenizer)),
        "columns": [],
    }
    arrays = {
        "offsets": tokens.offsets.astype(np.uint32),
        "piece": pieces,
        "id": tokens.ids.astype(np.uint32),
        "kept": tokens.kept.astype(np.uint8),
        **{f"score_{name}": values.astype(np.float32) for name, values in tokens.scores.items() if name != "kn"},
        **{f"first_{name}": found.first for name, found in sweeps.items()},
    }
    blob = bytearray()
    for name, values in arrays.items():
        blob += b"\0" * (-len(blob) % 8)  # typed arrays start at a multiple of their item size
        meta["columns"].append({"name": name, "type": values.dtype.name, "start": len(blob), "length": len(values)})
        blob += values.tobytes()
    return _render(meta, bytes(blob), title)


def _sample(rows: int, wanted: int) -> np.ndarray:
    if rows <= wanted:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))


def _sweeps(dataset: ResponseTokens, shown: ResponseTokens, config: ThresholdConfig) -> dict[str, Sweep]:
    """A slider for every attribute that was scored, whether or not it was in use."""
    found = {}
    for attribute in Attribute:
        column = SOURCE[attribute]
        if column in dataset.scores:
            parts = [Scores(np.diff(part.offsets), {column: part.scores[column]}) for part in (dataset, shown)]
            found[attribute.value] = sweep(attribute, config, *parts)
    return found


def _is_union(tokens: ResponseTokens) -> bool:
    """Whether the labels are the attributes' union, so that sliders can say what a threshold would do."""
    union = np.logical_or.reduce([np.zeros(len(tokens.ids), dtype=bool), *tokens.dropped.values()])
    return bool((tokens.kept == ~union).all()) and bool(tokens.dropped)


def _check_threshold(tokens: ResponseTokens, sweeps: dict[str, Sweep]) -> None:
    for name, stored in tokens.dropped.items():
        if name not in sweeps:
            raise ValueError(f"the table has drop_{name} but no scores {SOURCE[Attribute(name)]!r} to explain it")
        differing = int(np.count_nonzero(sweeps[name].dropped(sweeps[name].chosen) != stored))
        if differing:
            raise ValueError(
                f"the table was masked with another threshold: {differing} of {len(stored)} decisions of "
                f"{name.upper()} differ; give preview the threshold that xtf.mask was given"
            )


def _describe(name: str, found: Sweep, tokens: ResponseTokens, config: ThresholdConfig) -> dict[str, Any]:
    rule = getattr(config, name)
    return {
        "name": name,
        "title": NAMES[name],
        "axis": SCORES[name],
        "colour": COLOURS[name],
        "setting": found.setting,
        "values": found.values,
        "chosen": found.chosen,
        "active": name in tokens.dropped,
        "cuts": found.cuts,
        "cap": rule.cap,
        "rule": rule.rule.value,
    }


def _strings(tokens: ResponseTokens, pieces: Pieces) -> tuple[list[str], np.ndarray]:
    """The distinct pieces of text, and for each response token the place of its own, uint32 (N,)."""
    places: dict[str, int] = {}
    found = np.empty(len(tokens.ids), dtype=np.uint32)
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        found[start:end] = [places.setdefault(text, len(places)) for text in pieces(tokens.ids[start:end].tolist())]
    return list(places), found


def _prompts(table: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for ids, length in zip(table["input_ids"].to_pylist(), table["prompt_length"].to_pylist(), strict=True):
        yield decoded(tokenizer, ids[:length])


def _render(meta: dict[str, Any], blob: bytes, title: str) -> bytes:
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("xtf.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = (files("xtf.reporting") / "templates" / "explorer.js").read_text(encoding="utf-8")
    scripts = [get_plotlyjs(), source]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    text = environment.get_template("explorer.html.j2").render(
        title=title,
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        scripts=scripts,
        colours=COLOURS,
        meta=_packed(json.dumps(meta).encode()),
        arrays=_packed(blob),
    )
    return text.encode()


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


# -- the terminal --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextPreview:
    """Examples for a rich console: in colour if it has colour, else with marks around what is dropped."""

    examples: Sequence[tuple[str, str, Sequence[tuple[str, tuple[str, ...]]]]]  # title, prompt, (text, dropped by)
    total: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None
        yield self._legend(colour)
        for title, prompt, runs in self.examples:
            yield Text(f"\n{title}", style="bold")
            yield Text(prompt, style="dim")
            text = Text()
            for piece, names in runs:
                text.append_text(_coloured(piece, names) if colour else _marked(piece, names))
            yield text
        yield Text(f"\n{len(self.examples)} of {self.total} examples", style="dim")

    def _legend(self, colour: bool) -> Text:
        entries = [(f"dropped by {name.upper()}", (name,)) for name in MARKS] + [("dropped by the method", ("other",))]
        if colour:
            return Text("  ").join([Text("kept"), *(_coloured(text, names) for text, names in entries)])
        return Text("kept  [R:dropped by RI]  [K:by KN]  [T:by TR]  [KT:by both]  [-:by the method]")


def preview_text(
    masked: datasets.Dataset | pa.Table, tokenizer: PreTrainedTokenizerBase, *, examples: int = 5
) -> TextPreview:
    """The first examples of a masked table, for `rich.print`; ValueError for an empty table."""
    table = masked if isinstance(masked, pa.Table) else masked.with_format("arrow")[:]
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    shown = table.slice(0, examples)
    tokens, pieces = response_tokens(shown), Pieces(tokenizer)
    found = []
    for row, (name, prompt) in enumerate(zip(shown["example_id"].to_pylist(), _prompts(shown, tokenizer), strict=True)):
        start, end = tokens.offsets[row], tokens.offsets[row + 1]
        runs: list[tuple[str, tuple[str, ...]]] = []
        for place, piece in enumerate(pieces(tokens.ids[start:end].tolist()), start=start):
            names = _dropped_by(tokens, place)
            if runs and runs[-1][1] == names:
                runs[-1] = (runs[-1][0] + piece, names)
            else:
                runs.append((piece, names))
        share = 1 - tokens.kept[start:end].mean() if end > start else 0.0
        found.append((f"example {row} ({name}): {100 * share:.1f} % of {end - start} tokens dropped", prompt, runs))
    return TextPreview(found, table.num_rows)


def _dropped_by(tokens: ResponseTokens, place: int) -> tuple[str, ...]:
    """The attributes that dropped a token; ("other",) if a method gave it no weight; () if kept."""
    if tokens.kept[place]:
        return ()
    return tuple(name for name, dropped in tokens.dropped.items() if dropped[place]) or ("other",)


def _coloured(text: str, names: tuple[str, ...]) -> Text:
    """One attribute: white on its hue. Several: the first one's hue, underlined, to tell them from one."""
    if not names:
        return Text(text)
    return Text(text, style=f"white on {COLOURS[names[0]]}" + (" underline bold" if len(names) > 1 else ""))


def _marked(text: str, names: tuple[str, ...]) -> Text:
    return Text(f"[{''.join(MARKS.get(name, '-') for name in names)}:{text}]" if names else text)
