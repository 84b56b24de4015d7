"""Looking at a mask: which tokens train, what dropped the others, and what other thresholds would do.

`preview` writes one HTML file that needs no network: text, scores and thresholds travel in it, compressed, and so does
the charting library (plotly.js, as the plotly package ships it). `xtf.reporting.shown` is for terminals and notebooks.

Nothing from a dataset can run as script: texts reach the page inside base64, are put on it as text nodes only, and the
page's content security policy admits no script but the two that are written here.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xtf.config.identity import digest, leaves, plain
from xtf.config.schema import PRESETS, Config, ConfigError, PreviewFormat, ThresholdConfig
from xtf.data.provenance import provenance, tokenizer_of
from xtf.data.ragged import as_arrow
from xtf.data.rows import reading_arrow
from xtf.data.tokens import Pieces
from xtf.reporting.pages import counted, script_hash, templates
from xtf.reporting.shown import preview_text, prompts
from xtf.runtime.artifacts import sha256, write_atomic
from xtf.runtime.progress import console, item, say, say_once
from xtf.runtime.run_folder import Manifest, RunFolder, checked_mask
from xtf.scoring.attributes import ATTRIBUTES, LOOKS, OTHER, PAPER, TokenAttribute, rule_of
from xtf.scoring.masks import MaskedTokens, effect, threshold_of
from xtf.scoring.sensitivity import NEVER, Sweep, sweep
from xtf.scoring.store import read_pass
from xtf.scoring.thresholds import in_words
from xtf.scoring.verdict import Verdict, judge

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

VERSION = 5  # of the page: a run's explorer of an earlier one is made anew
MOST_EXAMPLES = 2000
MOST_BYTES = 25_000_000  # of the file
COMPARED = ("example_id", "input_ids", "prompt_length", "labels")  # the columns that two masks are compared by
MOST_TOKENS = 1_000_000  # response tokens in it: about as many as MOST_BYTES allow


def preview(
    masked: datasets.Dataset | pa.Table,
    tokenizer: PreTrainedTokenizerBase | None,
    path: str | Path,
    *,
    threshold: str | ThresholdConfig | None = None,
    examples: int = MOST_EXAMPLES,
    command: str | None = None,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    against: tuple[str, datasets.Dataset | pa.Table] | None = None,
    stats: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the explorer of a masked table (`xtf.mask`, or a run's mask.parquet) to `path` and returns it.

    `tokenizer` is the one that the dataset says it was scored with, if None.
    `threshold` is the one that the table was masked with, where the sliders start; left out, the one that the dataset
    says (`xtf.provenance`), and of a table that says none the paper's. `command` is one that makes this page, which the
    page shows, and puts before the settings that reproduce the sliders. A table with more than `examples` rows, or one
    that would make the file larger than 25 MB, is sampled at random (fixed seed), and the page says so; thresholds are
    fitted to the whole table all the same.

    `facts` (model, data, date, ...) stand at the top in that order; by default what the dataset says of itself.
    `against` is another mask of the same tokens with its name: the page then shows both, coloured where they differ.
    Columns that `scorer.top` and `scorer.attenders` stored are shown at each token. `stats` are those of the mask for
    the verdict (`MaskStats.to_dict`), by default what the dataset says of itself.

    Raises:
        ValueError: a table without labels or rows, a `threshold` that does not give the table's drops, a mask of other
            tokens in `against`; another tokenizer than the dataset says, or none that can be loaded.
    """
    table = as_arrow(masked)
    tokenizer = tokenizer_of(masked, tokenizer)
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    config = _masked_with(masked, threshold)
    other = None if against is None else (against[0], _same_tokens(table, as_arrow(against[1]), against[0]))
    said = provenance(masked)
    facts = facts or _facts(said, tokenizer, config)
    named = Path(facts.get("model", "XTF")).name
    tokens = MaskedTokens.from_mask(table).tokens
    head = _Head(
        title or _title([named, ", ".join([config.name, *_changed(config)])], against and against[0]),
        [*facts.items(), ("tokens", f"{tokens:,} of {counted(table.num_rows, 'response')}")],
        command,
    )
    examples = min(examples, max(1, table.num_rows * MOST_TOKENS // max(1, tokens)))
    while True:
        page = _page(table, tokenizer, config, examples, head, other, stats or said)
        if len(page) <= MOST_BYTES or examples == 1:
            break
        examples = max(1, int(min(examples, table.num_rows) * 0.9 * MOST_BYTES / len(page)))
    path = Path(path)
    write_atomic(path, lambda temporary: temporary.write_bytes(page))
    return path


@dataclass(frozen=True)
class _Head:
    """What stands above the examples: facts are pairs of name and value."""

    title: str
    facts: Sequence[tuple[str, str]]
    command: str | None


def _title(parts: Sequence[str], against: str | None) -> str:
    """What tells a page from others in a browser's tabs."""
    return " · ".join([*parts, *([f"against {against}"] if against else []), "XTF explorer"])


def _changed(config: ThresholdConfig) -> list[str]:
    """In what a threshold differs from the preset of its name, as settings; of one's own from the paper's."""
    usual = dict(leaves(plain(PRESETS.get(config.name, PRESETS["paper"]))))
    mine = dict(leaves(plain(config))).items()
    return [f"{key}={value}" for key, value in mine if key != "name" and value != usual.get(key)]


def _facts(said: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, config: ThresholdConfig) -> dict[str, str]:
    """What a masked table says of itself (`provenance`), as far as it does."""
    scorer, tokenizer_name = said.get("scorer"), said.get("tokenizer_name", tokenizer.name_or_path)
    model = str(said.get("model") or tokenizer_name or "not named")
    commit, dtype = said.get("model_commit"), said.get("dtype")
    length = f"at most {said['max_length']:,} tokens" if "max_length" in said else ""
    found = {
        "model": model,
        "commit": commit,
        "tokenizer": tokenizer_name if tokenizer_name != model else "",
        "scored": scorer and ", ".join(filter(None, [*map(str.upper, scorer["attributes"]), dtype, length])),
        "method": said.get("method"),
        "mask": f"threshold {', '.join([config.name, *_changed(config)])}",
        "by": f"XTF {said['versions']['xtf']}" if "versions" in said else "",
        "shown": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    return {name: str(value) for name, value in found.items() if value}


def _same_tokens(table: pa.Table, other: pa.Table, name: str) -> pa.Table:
    """The rows of `other` in the order of `table`.

    Raises:
        ValueError: it is no mask, lacks one, or a row has other tokens.
    """
    if lacking := [column for column in COMPARED if column not in other.column_names]:
        raise ValueError(
            f"{name} is no mask, for it has no column {' and '.join(lacking)}: give a run's mask.parquet (stage=mask "
            "says where it lies), or a table of xtf.mask"
        )
    place = {example: row for row, example in enumerate(other["example_id"].to_pylist())}
    ids = table["example_id"].to_pylist()
    if missing := [example for example in ids if example not in place]:
        raise ValueError(f"{name} masks other rows: it lacks {len(missing)} of {len(ids)}, such as {missing[0]!r}")
    other = other.take([place[example] for example in ids])
    for column in ("input_ids", "prompt_length"):
        if not table[column].equals(other[column]):
            pairs = zip(ids, table[column].to_pylist(), other[column].to_pylist(), strict=True)
            first = next((example for example, one, two in pairs if one != two), None)
            if first is not None:
                raise ValueError(
                    f"{name} has other tokens in {first!r}: another tokenizer, template or length (masks by two models "
                    "compare on one model's tokens: score the second one's run with scorer.model=...)"
                )
    return other


def _masked_with(masked: datasets.Dataset | pa.Table, threshold: str | ThresholdConfig | None) -> ThresholdConfig:
    """The threshold of a masked table: what it says of itself, or else what is given.

    Raises:
        ValueError: an unknown name, or another threshold than the table says.
    """
    if isinstance(threshold, str) and threshold not in PRESETS:
        raise ValueError(f"there is no threshold {threshold!r}; choose from {', '.join(PRESETS)}")
    given = PRESETS[threshold] if isinstance(threshold, str) else threshold
    if "threshold" not in provenance(masked):
        return PRESETS["paper"] if given is None else given
    said = threshold_of(masked, PRESETS["paper"])
    if given is not None and plain(said) | plain(given) != plain(said):
        raise ValueError(
            f"these rows were masked with threshold={said.name}, not with the {given.name} that is given: leave "
            "threshold out, and the one that they were masked with is used"
        )
    return said


def explore_run(
    config: Config,
    changed: Mapping[str, Any],
    folder: RunFolder,
    manifest: Manifest,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> Path:
    """The explorer of a run's mask, beside its report; made anew only when the mask or what is shown has changed."""
    from xtf.reporting.runs import beside, command_line, named

    other = None if config.preview.against is None else compared_mask(config.preview.against)
    path = folder.reports / ("preview.html" if other is None else f"preview-against-{digest(str(other))}.html")
    looks = [config.scorer.top, config.scorer.attenders]
    key = digest([VERSION, manifest.stages["mask"]["sha256"], config.preview.examples, looks, other and sha256(other)])
    noted: dict[str, str] = manifest.content.setdefault("explorers", {})
    if path.exists() and noted.get(path.name) == key:
        return path
    made = datetime.fromtimestamp(folder.mask.stat().st_mtime, UTC)
    train = manifest.data.get("train", {})
    masked = pq.read_table(folder.mask)
    preview(
        _with_looks(masked, config, manifest),
        tokenizer(),
        path,
        threshold=threshold_of(masked, config.threshold),
        examples=config.preview.examples or MOST_EXAMPLES,
        command=command_line(named(config, changed), **beside(config)),
        title=_run_title(config, changed, other),
        facts={
            "model": f"{config.model.name} ({config.model.path})",
            "data": f"{config.task.name}: {train.get('source', '-')}, {train.get('rows', 0):,} rows",
            "mask": f"{_rule_name(config)}, made {made:%Y-%m-%d %H:%M} UTC",
        },
        against=None if other is None else (_name_of(other), _read_mask(other)),
        stats=manifest.stages["mask"]["stats"],
    )
    noted[path.name] = key
    manifest.save()
    return path


def _run_title(config: Config, changed: Mapping[str, Any], other: Path | None) -> str:
    """What tells a run's page from those of runs that differ in a setting, the seed or what they are compared with."""
    from xtf.reporting.runs import settings_of

    rule = ", ".join([_rule_name(config), *settings_of(changed), f"seed {config.seed}"])
    return _title([config.task.name, config.model.name, rule], None if other is None else _name_of(other))


def _rule_name(config: Config) -> str:
    method = "" if config.method.name == "xtf" else f"method {config.method.name}, "
    return f"{method}scorer {config.scorer.name}, threshold {config.threshold.name}"


def compared_mask(given: str) -> Path:
    """The file that preview.against names; a run's is checked.

    Raises:
        ConfigError: there is none.
        DamagedError: it is not as its run has left it.
    """
    path = Path(given)
    file = RunFolder(path).mask if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"preview.against={given}: there is no {file}; give another run's folder, or its mask.parquet (stage=mask "
            "says where it lies)"
        )
    run = RunFolder(file.parent)
    return checked_mask(run) if file == run.mask and run.manifest.exists() else file


def _read_mask(file: Path) -> pa.Table:
    with reading_arrow(file):
        return pq.read_table(file)


def _name_of(mask: Path) -> str:
    """A run's mask by what names its folder, any other by its path."""
    parts = mask.resolve().parent.parts
    return " ".join(parts[parts.index("runs") + 1 :]) if "runs" in parts and mask.name == "mask.parquet" else str(mask)


def _with_looks(table: pa.Table, config: Config, manifest: Manifest) -> pa.Table:
    """The mask with what `scorer.top` and `scorer.attenders` stored in the pass that scored it."""
    if not (config.scorer.top or config.scorer.attenders):
        return table
    scored = read_pass(Path(manifest.stages["score"]["paths"]["scores"]))
    if not scored["example_id"].equals(table["example_id"]):
        say("scorer.top and scorer.attenders are not shown: the mask has other rows than were scored")
        return table
    for name in LOOKS:
        if name in scored.column_names:
            table = table.append_column(name, scored[name])
    return table


def show_preview(
    config: Config, folder: RunFolder, explorer: Callable[[], Path], tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> None:
    """stage=preview: the explorer's page, or with preview.format=text coloured examples on the terminal."""
    if config.preview.format is PreviewFormat.html:
        say(f"preview: {explorer()}")
    else:
        console.print(preview_text(pq.read_table(folder.mask), tokenizer(), examples=config.preview.examples or 5))
    if config.preview.against is not None:
        table = pq.read_table(folder.mask)
        other = compared_mask(config.preview.against)
        here, there = differences(table, _read_mask(other), str(other))
        say(f"{here + there:,} tokens differ from {other}: {here:,} dropped only here, {there:,} only there")


def differences(masked: pa.Table, other: pa.Table, name: str) -> tuple[int, int]:
    """How many response tokens only the first mask drops, and how many only the other, of that `name`.

    Raises:
        ValueError: `other` masks other rows or tokens.
    """
    kept = MaskedTokens.from_mask(masked).kept
    other_kept = MaskedTokens.from_mask(_same_tokens(masked, other, name)).kept
    return int(np.count_nonzero(~kept & other_kept)), int(np.count_nonzero(kept & ~other_kept))


class Lines(str):
    """Text that a shell or a notebook shows line by line, without quotes."""

    def __repr__(self) -> str:
        return str(self)


def summary(
    masked: datasets.Dataset | pa.Table,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    threshold: str | ThresholdConfig | None = None,
) -> Lines:
    """Whether to train with a masked table, why not, and what to try instead, in lines (`xtf.scoring.verdict`): a text
    to print, which a shell and a notebook show as it is.

    `tokenizer` is the one that the dataset says it was scored with, if None. `threshold` is the one that the table was
    masked with; left out, the one that the dataset says (`xtf.provenance`), and of a table that says none the paper's.

    Raises:
        ValueError: a table without labels; an unknown `threshold`, another one than the dataset says; another
            tokenizer, or none that can be loaded.
    """
    config, tokenizer = _masked_with(masked, threshold), tokenizer_of(masked, tokenizer)
    verdict = judge([MaskedTokens.from_mask(as_arrow(masked))], config, provenance(masked))
    return Lines(in_lines(verdict, tokenizer))


def show_verdict(found: Verdict, tokenizer: PreTrainedTokenizerBase, more: Sequence[str] = ()) -> None:
    """The verdict on a run's mask on the console: as soon as there is one, so before anything is trained with it.
    `more` lines follow where its reasons are not those of a run before."""
    text = in_lines(found, tokenizer, console.width)
    if say_once(text, f"this mask: {found.level.words}, for the same reasons as above"):
        for line in more:
            say(line)


def in_lines(verdict: Verdict, tokenizer: PreTrainedTokenizerBase, width: int | None = None) -> str:
    """A verdict as it is printed, with the tokens' texts; lines of at most `width` characters."""
    first, *rest = verdict.lines(Pieces(tokenizer).alone)
    return "\n".join([f"this mask: {first}", *(item(line, width) for line in rest)])


def _page(
    table: pa.Table,
    tokenizer: PreTrainedTokenizerBase,
    config: ThresholdConfig,
    examples: int,
    head: _Head,
    against: tuple[str, pa.Table] | None,
    stats: Mapping[str, Any],
) -> bytes:
    rows = _sample(table.num_rows, examples)
    shown = table.take(rows)
    tokens, whole = MaskedTokens.from_mask(shown), MaskedTokens.from_mask(table)
    sweeps = _sweeps(whole, tokens, config)
    live = tokens.by_attributes  # else sliders cannot say what a threshold would do
    if live:
        _check_threshold(tokens, sweeps)
    decode = Pieces(tokenizer)
    strings, pieces = _strings(tokens, decode)
    meta = {
        "total": table.num_rows,
        "live": live,
        "effect": effect(config) if "dropped" in table.column_names else "nothing",
        "command": head.command,
        "attributes": [_describe(ATTRIBUTES[name], found, tokens, config) for name, found in sweeps.items()],
        "bits": {name: 1 << place for place, name in enumerate(ATTRIBUTES)},
        "paper": PAPER,
        "colours": {"other": OTHER},
        "strings": strings,
        "rows": rows.tolist(),
        "ids": shown["example_id"].to_pylist(),
        "prompts": list(prompts(shown, tokenizer)),
        "columns": [],
        "against": against and against[0],
        "top": 0,
        "attenders": 0,
    }
    arrays = {
        "offsets": tokens.offsets.astype(np.uint32),
        "piece": pieces,
        "id": tokens.ids.astype(np.uint32),
        "kept": tokens.kept.astype(np.uint8),
        "judged": tokens.counted(config).astype(np.uint8),
        "guarded": tokens.protected(config).astype(np.uint8),
        "untrained": tokens.untrained.astype(np.uint8),
        **{f"score_{name}": values.astype(np.float32) for name, values in tokens.scores.items() if name != "kn"},
        **{f"first_{name}": found.first for name, found in sweeps.items()},
    }
    if against is not None:
        arrays["other"] = _codes(MaskedTokens.from_mask(against[1].take(rows)))
    if "top_id" in shown.column_names:
        found = _looks(shown["top_id"])
        meta["top"] = found.shape[1]
        arrays["top_piece"] = _strings_of(found.ravel(), strings, decode)
        arrays["top_p"] = _as_uint16(_looks(shown["top_p"]))
    if "from_at" in shown.column_names:
        found = _looks(shown["from_at"])
        meta["attenders"] = found.shape[1]
        arrays["from_at"], arrays["from_share"] = (
            found.ravel().astype(np.uint32),
            _as_uint16(_looks(shown["from_share"])),
        )
    blob = bytearray()
    for name, values in arrays.items():
        blob += b"\0" * (-len(blob) % 8)  # typed arrays start at a multiple of their item size
        meta["columns"].append({"name": name, "type": values.dtype.name, "start": len(blob), "length": len(values)})
        blob += values.tobytes()
    return _render(meta, bytes(blob), head, judge([whole], config, stats), decode)


def _codes(tokens: MaskedTokens) -> np.ndarray:
    """By token what drops it, uint16 (N,): a bit for each attribute, or the one above them for the method alone."""
    bits = {name: 1 << place for place, name in enumerate(ATTRIBUTES)}
    found = np.zeros(tokens.tokens, np.uint16)
    for name, dropped in tokens.dropped.items():
        found |= np.where(dropped, bits[name], 0).astype(np.uint16)
    found[~tokens.kept & (found == 0)] = 1 << len(ATTRIBUTES)
    found[tokens.kept] = 0
    return found


def _looks(column: pa.ChunkedArray) -> np.ndarray:
    """A column of `LOOKS`, (N, K)."""
    each = column.combine_chunks().flatten()
    return each.flatten().to_numpy(zero_copy_only=False).reshape(-1, each.type.list_size)


def _as_uint16(shares: np.ndarray) -> np.ndarray:
    """Shares of 0 to 1 as 0 to 65535, which a page holds in half the bytes."""
    return np.round(np.clip(shares.ravel(), 0, 1) * 65535).astype(np.uint16)


def _strings_of(ids: np.ndarray, strings: list[str], pieces: Pieces) -> np.ndarray:
    """The places in `strings` of the texts of ids, uint32 (N,); texts that it lacks are added."""
    places = {text: place for place, text in enumerate(strings)}
    distinct, inverse = np.unique(ids, return_inverse=True)
    at = [places.setdefault(pieces.alone(int(token)), len(places)) for token in distinct]
    strings[:] = list(places)
    return np.array(at, np.uint32)[inverse]


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
            only = sweep(attribute, config, *(part.only(column) for part in parts))
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
        "sentence": in_words(attribute, config),
    }


def _strings(tokens: MaskedTokens, pieces: Pieces) -> tuple[list[str], np.ndarray]:
    """The distinct pieces of text, and for each response token the place of its own, uint32 (N,)."""
    places: dict[str, int] = {}
    found = np.empty(len(tokens.ids), dtype=np.uint32)
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        found[start:end] = [places.setdefault(text, len(places)) for text in pieces(tokens.ids[start:end].tolist())]
    return list(places), found


def _render(meta: dict[str, Any], blob: bytes, head: _Head, verdict: Verdict, decode: Pieces) -> bytes:
    from plotly.offline import get_plotlyjs

    source = (files("xtf.reporting") / "templates" / "explorer.js").read_text(encoding="utf-8")
    scripts = [get_plotlyjs(), source]
    hashes = " ".join(map(script_hash, scripts))
    lines = verdict.lines(decode.alone)
    lead = (
        [lines[1], *lines[len(lines) - len(verdict.advice) :][:1]] if verdict.reasons and len(lines) > 4 else lines[1:]
    )
    text = (
        templates()
        .get_template("explorer.html.j2")
        .render(
            title=head.title,
            facts=head.facts,
            command=head.command,
            level=verdict.level.name,
            judgement=lines[0],
            lead=lead,
            reasons=[line for line in lines[1:] if line not in lead],
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
