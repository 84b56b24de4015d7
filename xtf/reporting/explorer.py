"""Looking at a mask: which tokens train, what dropped the others, and what other thresholds would do.

`preview` writes one HTML file that needs no network: text, scores and thresholds travel in it, compressed, and so does
the charting library (plotly.js, as the plotly package ships it). `preview_text` is for the terminal.

Nothing from a dataset can run as script: texts reach the page inside base64, are put on it as text nodes only, and the
page's content security policy admits no script but the two that are written here.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from xtf.config.home import COMMAND
from xtf.config.identity import digest, plain
from xtf.config.schema import PRESETS, Config, PreviewFormat, ThresholdConfig
from xtf.data.ragged import Responses
from xtf.data.tokens import Pieces, decoded
from xtf.reporting.pages import templates
from xtf.runtime.artifacts import write_atomic
from xtf.runtime.progress import console, say
from xtf.runtime.run_folder import Manifest, RunFolder
from xtf.scoring.attributes import ATTRIBUTES, OTHER, PAPER, SEVERAL, TokenAttribute, rule_of
from xtf.scoring.masks import MaskedTokens, effect
from xtf.scoring.sensitivity import NEVER, Sweep, sweep
from xtf.scoring.verdict import Verdict, judge

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

MOST_EXAMPLES = 2000
MOST_BYTES = 25_000_000  # of the file
MOST_TOKENS = 1_000_000  # response tokens in it: about as many as MOST_BYTES allow


def preview(
    masked: datasets.Dataset | pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    *,
    threshold: str | ThresholdConfig = "paper",
    examples: int = MOST_EXAMPLES,
    command: str = COMMAND,
    title: str = "XTF explorer",
) -> Path:
    """Writes the explorer of a masked table (`xtf.mask`, or a run's mask.parquet) to `path` and returns it.

    `threshold` must be the one that the table was masked with: the sliders start there. `command` is what the page puts
    before the settings that reproduce the sliders. A table with more than `examples` rows, or one that would make the
    file larger than 25 MB, is sampled at random (fixed seed), and the page says so; thresholds are fitted to the whole
    table all the same.

    Raises:
        ValueError: a table without labels or rows, a `threshold` that does not give the table's drops.
    """
    table = masked if isinstance(masked, pa.Table) else masked.with_format("arrow")[:]
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    config = _preset(threshold)
    tokens = MaskedTokens.from_mask(table).tokens
    examples = min(examples, max(1, table.num_rows * MOST_TOKENS // max(1, tokens)))
    while True:
        page = _page(table, tokenizer, config, examples, command, title)
        if len(page) <= MOST_BYTES or examples == 1:
            break
        examples = max(1, int(min(examples, table.num_rows) * 0.9 * MOST_BYTES / len(page)))
    path = Path(path)
    write_atomic(path, lambda temporary: temporary.write_bytes(page))
    return path


def _preset(threshold: str | ThresholdConfig) -> ThresholdConfig:
    if isinstance(threshold, str) and threshold not in PRESETS:
        raise ValueError(f"there is no threshold {threshold!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[threshold] if isinstance(threshold, str) else threshold


def explore_run(
    config: Config,
    changed: Mapping[str, Any],
    folder: RunFolder,
    manifest: Manifest,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> Path:
    """The explorer of a run's mask, beside its report; made anew only when the mask or what is shown has changed."""
    from xtf.reporting.runs import command_line

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


def show_preview(
    config: Config, folder: RunFolder, explorer: Callable[[], Path], tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> None:
    """stage=preview: the explorer's page, or with preview.format=text coloured examples on the terminal."""
    if config.preview.format is PreviewFormat.html:
        say(f"preview: {explorer()}")
    else:
        examples = config.preview.examples or 5
        table = pq.read_table(folder.mask)
        console.print(preview_text(table, tokenizer(), examples=examples))
        say(summary(table, tokenizer(), threshold=config.threshold))


def summary(
    masked: datasets.Dataset | pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    threshold: str | ThresholdConfig = "paper",
) -> str:
    """Whether to train with a masked table, why not, and what to try instead, in lines (`xtf.scoring.verdict`).

    `threshold` is the one that the table was masked with.

    Raises:
        ValueError: a table without labels, an unknown `threshold`.
    """
    table = masked if isinstance(masked, pa.Table) else masked.with_format("arrow")[:]
    found = judge(MaskedTokens.from_mask(table), _preset(threshold))
    return "this mask: " + "\n  ".join(found.lines(Pieces(tokenizer).alone))


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
    tokens, whole = MaskedTokens.from_mask(shown), MaskedTokens.from_mask(table)
    sweeps = _sweeps(whole, tokens, config)
    union = np.logical_or.reduce([np.zeros(len(tokens.ids), dtype=bool), *tokens.dropped.values()])
    # Sliders can say what a threshold would do where the labels are the attributes' union.
    trained = ~tokens.untrained
    live = bool((tokens.kept == ~union)[trained].all()) and bool(tokens.dropped)
    judged = tokens.judged(config) if live else trained  # another method may drop any token
    if live:
        _check_threshold(tokens, sweeps)
    decode = Pieces(tokenizer)
    strings, pieces = _strings(tokens, decode)
    meta = {
        "total": table.num_rows,
        "live": live,
        "effect": effect(config) if "dropped" in table.column_names else "nothing",
        "command": command,
        "attributes": [_describe(ATTRIBUTES[name], found, tokens, config) for name, found in sweeps.items()],
        "bits": {name: 1 << place for place, name in enumerate(ATTRIBUTES)},
        "paper": PAPER,
        "colours": {"other": OTHER, "several": SEVERAL},
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
        "judged": judged.astype(np.uint8),
        "guarded": tokens.protected(config).astype(np.uint8),
        "untrained": (~trained).astype(np.uint8),
        **{f"score_{name}": values.astype(np.float32) for name, values in tokens.scores.items() if name != "kn"},
        **{f"first_{name}": found.first for name, found in sweeps.items()},
    }
    blob = bytearray()
    for name, values in arrays.items():
        blob += b"\0" * (-len(blob) % 8)  # typed arrays start at a multiple of their item size
        meta["columns"].append({"name": name, "type": values.dtype.name, "start": len(blob), "length": len(values)})
        blob += values.tobytes()
    return _render(meta, bytes(blob), title, judge(whole, config), decode)


def _sample(rows: int, wanted: int) -> np.ndarray:
    if rows <= wanted:
        return np.arange(rows)
    return np.sort(np.random.default_rng(0).choice(rows, wanted, replace=False))


def _sweeps(dataset: MaskedTokens, shown: MaskedTokens, config: ThresholdConfig) -> dict[str, Sweep]:
    """A slider for every attribute that was scored, whether or not it was in use; none drops an end that is kept."""
    found = {}
    for name, attribute in ATTRIBUTES.items():
        column = attribute.source
        if column in dataset.scores:
            parts = [part.select(part.judged(config)) for part in (dataset, shown)]
            blocks = (Responses(part.lengths, {column: part.scores[column]}) for part in parts)
            only = sweep(attribute, config, *blocks)
            first = np.full(shown.tokens, NEVER, dtype=np.uint8)
            first[shown.judged(config)] = only.first
            first[shown.protected(config)] = NEVER
            found[name] = replace(only, first=first)
    return found


def _check_threshold(tokens: MaskedTokens, sweeps: dict[str, Sweep]) -> None:
    for name, stored in tokens.dropped.items():
        if name not in sweeps:
            raise ValueError(f"the table has drop_{name} but no scores {ATTRIBUTES[name].source!r} to explain it")
        differing = int(np.count_nonzero(sweeps[name].dropped(sweeps[name].chosen) != stored))
        if differing:
            raise ValueError(
                f"the table was masked with another threshold: {differing} of {len(stored)} decisions of "
                f"{name.upper()} differ; give preview the threshold that xtf.mask was given"
            )


def _describe(attribute: TokenAttribute, found: Sweep, tokens: MaskedTokens, config: ThresholdConfig) -> dict[str, Any]:
    rule = rule_of(config, attribute)
    shown = ("name", "label", "title", "explanation", "axis", "reason", "colour", "source")
    return {
        **{key: getattr(attribute, key) for key in shown},
        **{key: getattr(found, key) for key in ("setting", "values", "chosen", "cuts")},
        "active": attribute.name in tokens.dropped,
        "cap": rule.cap,
        "rule": rule.rule.value,
    }


def _strings(tokens: MaskedTokens, pieces: Pieces) -> tuple[list[str], np.ndarray]:
    """The distinct pieces of text, and for each response token the place of its own, uint32 (N,)."""
    places: dict[str, int] = {}
    found = np.empty(len(tokens.ids), dtype=np.uint32)
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        found[start:end] = [places.setdefault(text, len(places)) for text in pieces(tokens.ids[start:end].tolist())]
    return list(places), found


def _prompts(table: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    for ids, length in zip(table["input_ids"].to_pylist(), table["prompt_length"].to_pylist(), strict=True):
        yield decoded(tokenizer, ids[:length])


def _render(meta: dict[str, Any], blob: bytes, title: str, verdict: Verdict, decode: Pieces) -> bytes:
    from plotly.offline import get_plotlyjs

    source = (files("xtf.reporting") / "templates" / "explorer.js").read_text(encoding="utf-8")
    scripts = [get_plotlyjs(), source]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts
    )
    text = (
        templates()
        .get_template("explorer.html.j2")
        .render(
            title=title,
            level=verdict.level.name,
            verdict=verdict.lines(decode.alone),
            policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
            scripts=scripts,
            attributes=ATTRIBUTES.values(),
            sets=[
                (code, [row for bit, row in enumerate(ATTRIBUTES.values()) if code >> bit & 1])
                for code in range(1, 1 << len(ATTRIBUTES))
            ],  # every set of attributes that may drop a token, with its code on the page
            other=(1 << len(ATTRIBUTES), OTHER),
            meta=_packed(json.dumps(meta).encode()),
            arrays=_packed(blob),
        )
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
        rows = list(ATTRIBUTES.values())
        if colour:
            entries = [(f"dropped by {row.label}", (row.name,)) for row in rows] + [
                ("dropped by the method", ("other",))
            ]
            return Text("  ").join([Text("kept"), *(_coloured(text, names) for text, names in entries)])
        first, *others = rows
        marks = [f"[{first.mark}:dropped by {first.label}]", *(f"[{row.mark}:by {row.label}]" for row in others)]
        return Text("  ".join(["kept", *marks, f"[{others[0].mark}{others[1].mark}:by both]", "[-:by the method]"]))


def preview_text(
    masked: datasets.Dataset | pa.Table, tokenizer: PreTrainedTokenizerBase, *, examples: int = 5
) -> TextPreview:
    """The first examples of a masked table, for `rich.print`.

    Raises:
        ValueError: the table is empty, or no example is asked for.
    """
    table = masked if isinstance(masked, pa.Table) else masked.with_format("arrow")[:]
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    shown = table.slice(0, examples)
    tokens, pieces = MaskedTokens.from_mask(shown), Pieces(tokenizer)
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
        kept = tokens.kept[start:end][~tokens.untrained[start:end]]
        share = 1 - kept.mean() if len(kept) else 0.0
        found.append((f"example {row} ({name}): {100 * share:.1f} % of {len(kept)} tokens dropped", prompt, runs))
    return TextPreview(found, table.num_rows)


def _dropped_by(tokens: MaskedTokens, place: int) -> tuple[str, ...]:
    """The attributes that dropped a token; ("other",) if a method gave it no weight; () if kept."""
    if tokens.kept[place]:
        return ()
    return tuple(name for name, dropped in tokens.dropped.items() if dropped[place]) or ("other",)


def _coloured(text: str, names: tuple[str, ...]) -> Text:
    """One attribute: white on its hue. Several: the first one's hue, underlined, to tell them from one."""
    if not names:
        return Text(text)
    colour = ATTRIBUTES[names[0]].colour if names[0] in ATTRIBUTES else OTHER
    return Text(text, style=f"white on {colour}" + (" underline bold" if len(names) > 1 else ""))


def _marked(text: str, names: tuple[str, ...]) -> Text:
    marks = "".join(ATTRIBUTES[name].mark if name in ATTRIBUTES else "-" for name in names)
    return Text(f"[{marks}:{text}]" if names else text)
