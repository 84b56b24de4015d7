"""Who finds planted noise: every attribute, every union of them, and other methods' scores, against the truth.

A *detector* has a score (higher: more like noise), a rule that drops tokens, or both. It is asked to tell the noise of
one kind from clean tokens; tokens of other kinds and those that straddle planted and clean text
(`xtf.data.planting.response_kinds`) are left out. Threshold-free: AUROC and average precision of the score. At its
threshold: precision, recall, F1, and the gain, which is what it finds beyond dropping as many tokens of each response
blindly (`rule_measures`). Intervals are 95 % percentile bootstraps over examples, for tokens of one response stand and
fall together; several plantings into the same examples are pooled, an example is drawn with all.

Everything is computed from stored masks and scores; no model is loaded. The report's CSV file holds every finding, and
the report can be made again from it alone (`archive=FOLDER`), but for the list of tokens.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from xtf.config.compose import load_config, override_value
from xtf.config.identity import digest, identity, plain
from xtf.config.schema import Config, PlantKind, Protect, ThresholdConfig, ThresholdEnd
from xtf.data.planting import CODES
from xtf.data.ragged import Responses, Sequences
from xtf.data.tokens import Pieces
from xtf.graders.metrics import Metric
from xtf.reporting import figures
from xtf.reporting.pages import counted, picture, render_page, write_csv
from xtf.runtime.models import load_tokenizer
from xtf.runtime.run_folder import Manifest, RunFolder, checked_mask, run_folders
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import build_mask
from xtf.scoring.methods import HighLoss, LowLoss, ProFit, Random, TokenCleaning, excess_loss

RESAMPLES = 1000
INTERVAL = "bootstrap over examples"
BINS = 256  # of a score within the bootstrap, for noise and for clean tokens; the estimate itself is exact
ANY = "any kind"
METHOD = ", method="  # in the name of a case
MEASURES = ("auroc", "average_precision", "precision", "recall", "f1", "gain")
SHOWN = 12  # clean tokens in the list of what was dropped instead

# --- threshold-free measures --------------------------------------------------------------------------------


def score_counts(score: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Noise and clean tokens at each distinct score, ascending; float64. score: float [N]; noise: bool [N]."""
    values, place = np.unique(score, return_inverse=True)
    return tuple(np.bincount(place[part], minlength=len(values)).astype(float) for part in (noise, ~noise))  # type: ignore[return-value]


def auroc(noise_B: np.ndarray, clean_B: np.ndarray) -> np.ndarray:
    """The chance that a noise token scores above a clean one, ties counted half; NaN without either.

    From counts per ascending score, along the last axis. This is the Mann-Whitney U statistic over its maximum.
    """
    below_B = np.cumsum(clean_B, -1) - clean_B / 2
    return _ratio((noise_B * below_B).sum(-1), noise_B.sum(-1) * clean_B.sum(-1))


def average_precision(noise_B: np.ndarray, clean_B: np.ndarray) -> np.ndarray:
    """Sum over thresholds, from the highest score down, of precision times the recall gained; NaN without noise.

    From counts per ascending score, along the last axis: tokens of equal score are dropped together.
    """
    noise_B, clean_B = noise_B[..., ::-1], clean_B[..., ::-1]
    found_B, dropped_B = np.cumsum(noise_B, -1), np.cumsum(noise_B + clean_B, -1)
    precision_B = np.divide(found_B, dropped_B, out=np.zeros_like(found_B), where=dropped_B > 0)
    return _ratio((noise_B * precision_B).sum(-1), noise_B.sum(-1))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    top, bottom = np.asarray(top, float), np.asarray(bottom, float)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


# --- measures with intervals --------------------------------------------------------------------------------


def draws_of(groups: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each example is drawn in each resample, float32 [resamples, groups]; fixed seed."""
    return np.random.default_rng(0).multinomial(groups, [1 / groups] * groups, resamples).astype(np.float32)


def score_measures(score: np.ndarray, noise: np.ndarray, group: np.ndarray, draws_RG: np.ndarray) -> dict[str, Metric]:
    """`auroc` and `average_precision` of a score [N] with intervals over examples; `group` [N] numbers them.

    The resamples count tokens in bins that part the noise into `BINS` equal portions and the clean tokens too, so that
    a rare sort is told apart as finely as a common one; with no more than `BINS` tokens of either they are exact. The
    interval is moved by what the bins cost the estimate.

    Raises:
        ValueError: there is no noise, or no clean token.
    """
    if not noise.any() or noise.all():
        raise ValueError(f"{int(noise.sum())} of {len(noise)} tokens are noise: both sorts are needed")
    sorts, portions, groups = (noise, ~noise), np.linspace(0, 1, BINS + 1), draws_RG.shape[1]
    # Tokens are the edges, so that each bin begins at one: average precision asks what lies above a noise token.
    starts = np.unique([np.quantile(score[sort], portions, method="higher") for sort in sorts])
    place = group * len(starts) + np.searchsorted(starts, score, "right") - 1
    tables = [
        np.bincount(place[sort], minlength=groups * len(starts)).reshape(groups, -1).astype(np.float32)
        for sort in sorts
    ]
    noise_RB, clean_RB = (draws_RG @ table for table in tables)
    whole, found = score_counts(score, noise), {}
    for name, measure in (("auroc", auroc), ("average_precision", average_precision)):
        exact = float(measure(*whole))
        shift = exact - float(measure(*(table.sum(0) for table in tables)))
        found[name] = _metric(exact, np.clip(measure(noise_RB, clean_RB) + shift, 0, 1), groups)
    return found


def rule_measures(
    dropped: np.ndarray, noise: np.ndarray, group: np.ndarray, draws_RG: np.ndarray, text: np.ndarray | None = None
) -> dict[str, Metric]:
    """`precision`, `recall`, `f1`, `gain`, and the share of the clean tokens that was dropped as `clean_dropped`; what
    is undefined (nothing dropped, no noise) is left out.

    `text` [N] numbers the responses, of which an example has several after several plantings; None: one each. Of n
    tokens of a response, d of them dropped and k of them noise, a blind rule with as many drops hits d k / n noise
    tokens on average, so

        gain = sum(hits - d k / n) / noise - sum(false drops - d (n - k) / n) / clean

    which is 0 on average for a rule that is blind within a response, however its rate follows the response's share of
    noise: recall - clean_dropped is not. A rule that drops the noise and nothing else has 1 where all responses have
    the same share of noise, and less where they differ, for in a response of noise alone there is nothing to tell.
    """
    text = group if text is None else text
    noise_T, tokens_T = np.bincount(text, noise), np.bincount(text)
    blind = dropped * (noise_T / np.maximum(tokens_T, 1))[text]  # what a blind drop of the same response hits
    cells = (dropped & noise, dropped & ~noise, noise, ~noise, blind)
    counts_GC = np.stack([np.bincount(group, cell, draws_RG.shape[1]) for cell in cells], -1)
    found = {}
    whole, draws = _rates(counts_GC.sum(0)), _rates(draws_RG @ counts_GC)
    for name, value in whole.items():
        if not np.isnan(value):
            found[name] = _metric(float(value), draws[name], draws_RG.shape[1])
    return found


def _rates(counts_C: np.ndarray) -> dict[str, np.ndarray]:
    hit, false, noise, clean, blind = np.moveaxis(np.asarray(counts_C, float), -1, 0)
    recall, clean_dropped = _ratio(hit, noise), _ratio(false, clean)
    some = np.where(noise > 0, 1.0, np.nan)
    # What is not a hit is a false drop, of the blind rule's drops too: hits beyond its are false drops short of its.
    gain = _ratio(hit - blind, noise) + _ratio(hit - blind, clean)
    return {
        "precision": some * _ratio(hit, hit + false),
        "recall": recall,
        "f1": some * _ratio(2 * hit, hit + false + noise),
        "gain": gain,
        "clean_dropped": clean_dropped,
    }


def _metric(value: float, draws: np.ndarray, groups: int) -> Metric:
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Metric(value, float(min(low, value)), float(max(high, value)), groups, INTERVAL)


# --- detectors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detector:
    """score: float [N], higher is more like noise; dropped: bool [N]. Either may be missing."""

    score: np.ndarray | None
    dropped: np.ndarray | None


def detectors(table: pa.Table, threshold: ThresholdConfig, seed: int) -> dict[str, Detector]:
    """Every detector that the score columns of a table allow, by name.

    `RI`, `KN`, `TR` and their unions drop by `threshold`. `low loss`, `high loss` and `random` drop as many tokens of
    each example as the union of the attributes. A low p is what DFT gives little weight and ProFit drops, so the score
    of both is that of `high loss (low p)`; DFT has no threshold.
    """
    attributes = [attribute for attribute in ATTRIBUTES.values() if attribute.source in table.column_names]
    mask = build_mask(table, threshold, [attribute.name for attribute in attributes])
    columns = {name for attribute in attributes for name in (attribute.source, attribute.drops)} | {"labels"}
    if threshold.end is ThresholdEnd.kept:
        columns.add("end")
    if threshold.protect is not Protect.none:
        columns.add("protected")
    scores = Responses.from_table(mask.table, columns | ({"ref_logp"} & set(table.column_names)))
    drops = {a.label: scores.columns[a.drops].astype(bool) for a in attributes}
    # Little attention, a high probability and distance from the centre speak for noise.
    found = {a.label: Detector(a.noise * scores.columns[a.source], drops[a.label]) for a in attributes}
    for size in range(2, len(drops) + 1):
        for names in combinations(drops, size):
            found[" or ".join(names)] = Detector(None, np.logical_or.reduce([drops[name] for name in names]))
    found["random"] = _as_detector(Random(), scores, seed)
    if "logp" in scores.columns:
        logp = scores.columns["logp"]
        found["low loss"] = _as_detector(LowLoss(), scores, seed)
        found["high loss (low p)"] = _as_detector(HighLoss(), scores, seed)
        found[f"ProFit (p at most {ProFit().tau:g})"] = Detector(None, logp <= np.log(ProFit().tau))
        if "ref_logp" in scores.columns:
            dropped = TokenCleaning().weights(scores, seed) == 0
            found["token cleaning"] = Detector(-excess_loss(scores), dropped)
    return found


def _as_detector(method: Random | LowLoss | HighLoss, scores: Responses, seed: int) -> Detector:
    return Detector(-method.order(scores, seed), method.weights(scores, seed) == 0)


# --- what the runs of an experiment say ---------------------------------------------------------------------


@dataclass(frozen=True)
class PlantedTokens:
    """The response tokens of masks that differ in nothing but the planting's seed, one mask after the other.

    codes: int8 [N], `CODES`; group: int64 [N], which example; text: int64 [N], which response, of which an example has
    one per mask; ids: int32 [N], their token ids.
    """

    case: str
    share: float
    reached: float
    codes: np.ndarray
    group: np.ndarray
    text: np.ndarray
    ids: np.ndarray
    detectors: Mapping[str, Detector]
    config: Config

    @property
    def kinds(self) -> list[str]:
        """The kinds of noise that were planted, all together first; empty without noise."""
        present = [kind.value for kind in PlantKind if (self.codes == CODES[kind]).any()]
        return [ANY, *present] if present else []

    def of_kind(self, kind: str) -> np.ndarray:
        """Whether each token is noise of that kind, bool [N]."""
        found: np.ndarray = self.codes > 0 if kind == ANY else self.codes == CODES[PlantKind(kind)]
        return found


@dataclass(frozen=True)
class Finding:
    """One detector on one kind of noise in one case and share; measures that are undefined are missing."""

    case: str
    share: float
    kind: str
    detector: str
    noise_tokens: int
    clean_tokens: int
    response_tokens: int  # of all kinds, straddling ones included
    reached: float  # the share of them that was planted
    measures: Mapping[str, Metric]


def read_planted(folders: Sequence[Path]) -> list[PlantedTokens]:
    """The tokens of finished masks, ordered by case and share.

    Masks that are read together agree in everything that determines a run's result, the rows before planting included,
    but in plant.seed; those of one case in all but plant.share as well.
    """
    parts: dict[tuple[str, float], list[tuple[Config, pa.Table]]] = defaultdict(list)
    settings: dict[str, _Setting] = {}
    for folder in folders:
        node = OmegaConf.create(dict(RunFolder(folder).recorded))
        assert isinstance(node, DictConfig)
        config, data = load_config(node), Manifest(RunFolder(folder)).data["train"]
        keys = {key: plain(value) for key, value in identity(config).items()} | {"rows": data["sha256"]}
        del keys["plant.seed"], keys["plant.share"]
        settings.setdefault(digest(keys), _Setting(config, data["source"], data["rows"], keys))
        parts[digest(keys), config.plant.share].append((config, pq.read_table(checked_mask(RunFolder(folder)))))
    cases = dict(zip(settings, _cases(list(settings.values())), strict=True))
    found = [_planted(cases[setting], share, runs) for (setting, share), runs in parts.items()]
    return sorted(found, key=lambda planted: (planted.case, planted.share))


@dataclass(frozen=True)
class _Setting:
    """What the masks of a case have in common; `keys` says all that may differ from one case to the next."""

    config: Config
    source: str  # a file's name or a data set's id
    rows: int
    keys: Mapping[str, Any]

    def case(self, source: str) -> str:
        config = self.config
        said = f"{config.task.name}, {self.rows} rows of {source}, {config.model.name}"
        said += "" if config.method.name == "xtf" else f"{METHOD}{config.method.name}"
        return said + ("" if config.threshold.name == "paper" else f", threshold={config.threshold.name}")


def _cases(settings: Sequence[_Setting]) -> list[str]:
    """A name for each setting, no two alike: its task, rows, model, method and preset, and what else is needed.

    Files of one name are told apart by the folders above them, other settings by the keys in which they differ.
    """
    sources = [setting.source for setting in settings]
    for alike in _alike([setting.case(setting.source) for setting in settings]):
        for place, source in zip(alike, _sources([settings[place] for place in alike]), strict=True):
            sources[place] = source
    cases = [setting.case(source) for setting, source in zip(settings, sources, strict=True)]
    for alike in _alike(cases):
        parts = [settings[place].keys for place in alike]
        keys = dict.fromkeys(key for part in parts for key in part)
        differing = [key for key in keys if any(part.get(key) != parts[0].get(key) for part in parts)]
        for place, part in zip(alike, parts, strict=True):
            words = {key: override_value(part.get(key)) for key in differing}
            words |= {"rows": words["rows"][:8]} if "rows" in words else {}  # the beginning of their hash
            cases[place] += "".join(f", {key}={value}" for key, value in words.items())
    assert len(set(cases)) == len(cases), cases
    return cases


def _alike(names: Sequence[str]) -> list[list[int]]:
    """The places of each name that more than one has."""
    places = defaultdict(list)
    for place, name in enumerate(names):
        places[name].append(place)
    return [found for found in places.values() if len(found) > 1]


def _sources(settings: Sequence[_Setting]) -> list[str]:
    """Where the rows of each come from, with as many folders as it takes to tell different rows apart."""
    paths: dict[str, Path] = {}
    for setting in settings:
        paths.setdefault(setting.keys["rows"], Path(setting.config.task.train.path or setting.source))
    depths = range(1, max(len(path.parts) for path in paths.values()) + 1)
    depth = max(depths, key=lambda depth: len({path.parts[-depth:] for path in paths.values()}))
    names = {rows: Path(*path.parts[-depth:]).as_posix() for rows, path in paths.items()}
    return [setting.source if depth == 1 else names[setting.keys["rows"]] for setting in settings]


def _planted(case: str, share: float, runs: Sequence[tuple[Config, pa.Table]]) -> PlantedTokens:
    ids = {name: number for number, name in enumerate(runs[0][1]["example_id"].to_pylist())}
    codes, groups, tokens, sizes, found = [], [], [], [], defaultdict[str, list[Detector]](list)
    for config, table in runs:
        rows = Sequences(table)
        numbers = [ids.setdefault(name, len(ids)) for name in table["example_id"].to_pylist()]
        groups.append(np.repeat(numbers, rows.responses))
        sizes.append(rows.responses)
        tokens.append(rows.response_ids)
        planted = "planted" in table.column_names
        codes.append(rows.of_responses("planted") if planted else np.zeros(int(rows.responses.sum()), np.int8))
        for name, detector in detectors(table, config.threshold, config.plant.seed).items():
            found[name].append(detector)
    whole, every = np.concatenate(codes), np.concatenate(sizes)
    return PlantedTokens(
        case,
        share,
        float((whole > 0).mean()),
        whole,
        np.concatenate(groups),
        np.repeat(np.arange(len(every)), every),
        np.concatenate(tokens),
        {name: _joined(parts) for name, parts in found.items() if len(parts) == len(runs)},
        runs[0][0],
    )


def _joined(parts: Sequence[Detector]) -> Detector:
    scores = [part.score for part in parts if part.score is not None]
    drops = [part.dropped for part in parts if part.dropped is not None]
    return Detector(np.concatenate(scores) if scores else None, np.concatenate(drops) if drops else None)


def findings(planted: PlantedTokens) -> list[Finding]:
    """Every detector on every kind; without noise only what it drops of the clean tokens."""
    draws_RG = draws_of(int(planted.group.max()) + 1)
    clean, found = planted.codes == 0, []
    for kind in planted.kinds or [ANY]:
        noise = planted.of_kind(kind)
        part = noise | clean
        group, text = planted.group[part], planted.text[part]
        for name, detector in planted.detectors.items():
            measures: dict[str, Metric] = {}
            if detector.score is not None and noise.any():
                measures |= score_measures(detector.score[part], noise[part], group, draws_RG)
            if detector.dropped is not None:
                measures |= rule_measures(detector.dropped[part], noise[part], group, draws_RG, text)
            tokens = int(noise.sum()), int(clean.sum()), len(noise), planted.reached
            found.append(Finding(planted.case, planted.share, kind, name, *tokens, measures))
    return found


@dataclass(frozen=True)
class Dropped:
    """What a rule dropped: shares of its drops by kind, clean and straddling tokens included, and the clean
    tokens behind the largest parts as (token id, drops, occurrences)."""

    detector: str
    total: int
    shares: Mapping[str, float]
    clean: Sequence[tuple[int, int, int]]


def dropped_instead(planted: PlantedTokens, name: str) -> Dropped:
    """The confusion table of one detector that has a rule."""
    dropped = planted.detectors[name].dropped
    assert dropped is not None, name
    total, clean = int(dropped.sum()), planted.codes == 0
    sorts = {kind: planted.of_kind(kind) for kind in planted.kinds if kind != ANY}
    sorts |= {"straddling": planted.codes < 0, "clean": clean}
    counts = np.bincount(planted.ids[dropped & clean])
    every = np.bincount(planted.ids[clean], minlength=len(counts))
    most = [int(token) for token in np.argsort(-counts, kind="stable")[:SHOWN] if counts[token]]
    return Dropped(
        name,
        total,
        {sort: int((dropped & part).sum()) / max(total, 1) for sort, part in sorts.items()},
        [(token, int(counts[token]), int(every[token])) for token in most],
    )


# --- the report ---------------------------------------------------------------------------------------------


def unseen(rows: Sequence[Finding]) -> list[str]:
    """For each case and kind, in words, what the three attributes make of it at the largest share.

    An attribute sees a kind if its AUROC lies above 0.5 or its gain above 0 with the whole interval.
    """
    said = []
    for case in dict.fromkeys(row.case for row in rows):
        share = max(row.share for row in rows if row.case == case)
        here = [row for row in rows if row.case == case and row.share == share]
        for kind in dict.fromkeys(row.kind for row in here if row.kind != ANY and row.noise_tokens):
            one = {row.detector: row.measures for row in here if row.kind == kind}
            names = [attribute.label for attribute in ATTRIBUTES.values() if attribute.label in one]
            gains = {name: one[name]["gain"] for name in names if "gain" in one[name]}
            seen = [n for n in names if one[n]["auroc"].low > 0.5 or (n in gains and gains[n].low > 0)]
            inverted = [name for name in names if one[name]["auroc"].high < 0.5]
            said.append(
                f"{case}, {kind}: "
                + ("seen by " if seen else "not what any of the three attributes can see (")
                + ", ".join(
                    f"{name} AUROC {one[name]['auroc'].value:.2f}"
                    + (f" with a gain of {gains[name].value:+.2f}" if name in gains else "")
                    for name in seen or names
                )
                + ("" if seen else ")")
                + (f"; by {', '.join(inverted)} it looks more worth keeping than clean tokens" if inverted else "")
                + "."
            )
    return said


def detection_report(experiment: str, runs_root: Path, out_dir: Path, archive: Path | None = None) -> list[Path]:
    """Writes <experiment>.csv, .md, .html and one figure per kind of noise; returns their paths.

    Args:
        archive: folder with the <experiment>.csv of an earlier report, which is then read instead of masks.

    Raises:
        ValueError: no run of the experiment has a mask yet, or the archive has no such file.
    """
    if archive is not None:
        rows = read_findings(archive / f"{experiment}.csv")
        return _write_report(experiment, rows, out_dir, source=f"findings of {archive.name}/{experiment}.csv")
    folders = [folder.path for folder in run_folders(runs_root, experiment)]
    done = [folder for folder in folders if "mask" in Manifest(RunFolder(folder)).stages]
    if not done:
        raise ValueError(f"none of the {len(folders)} runs of experiment {experiment!r} has a mask yet")
    settings = read_planted(done)
    return _write_report(
        experiment,
        [finding for planted in settings for finding in findings(planted)],
        out_dir,
        source=f"{counted(len(done), 'mask')}, {counted(len(settings), 'setting')}",
        instead=_instead(settings),
        unfinished=[str(folder) for folder in folders if folder not in done],
    )


def _write_report(
    experiment: str,
    rows: Sequence[Finding],
    out_dir: Path,
    *,
    source: str,
    instead: Sequence[Mapping[str, Any]] = (),
    unfinished: Sequence[str] = (),
) -> list[Path]:
    written = [write_csv(out_dir / f"{experiment}.csv", COLUMNS, map(_csv_line, rows))]
    pictures = []
    for kind in dict.fromkeys(row.kind for row in rows if row.noise_tokens):
        figure = figures.detection(_curves(rows, kind))
        pictures.append(picture(figure, out_dir, f"{experiment}-{kind.replace(' ', '_')}", kind))
        written += pictures[-1].files
    context = {
        "title": f"{experiment}: {source}",
        "unseen": unseen(rows),
        "tables": _tables(rows),
        "pictures": pictures,
        "instead": instead,
        "unfinished": unfinished,
    }
    return written + render_page("detection", context, out_dir, experiment)


def _instead(settings: Sequence[PlantedTokens]) -> list[dict[str, Any]]:
    """What the attributes dropped at the largest share of each case, tokens in words."""
    found = []
    largest = {planted.case: planted for planted in sorted(settings, key=lambda each: (each.case, each.share))}
    for planted in largest.values():
        pieces = Pieces(load_tokenizer(planted.config.model))
        labels = [attribute.label for attribute in ATTRIBUTES.values() if attribute.label in planted.detectors]
        names = [*labels, " or ".join(labels)] if len(labels) > 1 else labels
        for each in (dropped_instead(planted, name) for name in names):
            tokens = [(repr(pieces.alone(token)), drops, every) for token, drops, every in each.clean]
            found.append({"case": planted.case, "share": planted.share, "dropped": each, "tokens": tokens})
    return found


def _curves(rows: Sequence[Finding], kind: str) -> dict[str, dict[str, list[tuple[float, Metric]]]]:
    """AUROC by case, detector and share, for the figure.

    What another method adds stands in its rows' own case; it joins the case without it unless several would. `low loss`
    is KN's score again and `random` is chance.
    """
    found: dict[str, dict[str, list[tuple[float, Metric]]]] = defaultdict(lambda: defaultdict(list))
    cases = {row.case for row in rows}
    joining = Counter(case.partition(METHOD)[0] for case in cases if METHOD in case)
    for row in sorted(rows, key=lambda row: METHOD in row.case):
        if row.kind != kind or "auroc" not in row.measures or row.detector in ("low loss", "random"):
            continue
        case = row.case.partition(METHOD)[0]
        points = found[case if case in cases and joining[case] <= 1 else row.case][row.detector]
        if row.share not in {share for share, _ in points}:
            points.append((row.share, row.measures["auroc"]))
    return found


def _tables(rows: Sequence[Finding]) -> list[dict[str, Any]]:
    """For each case and share: AUROC by detector and kind, and every measure for all kinds together."""
    found = []
    for case, share in dict.fromkeys((row.case, row.share) for row in rows):
        here = [row for row in rows if (row.case, row.share) == (case, share)]
        by = {(row.detector, row.kind): row.measures for row in here}
        counts = {row.kind: row.noise_tokens for row in here if row.noise_tokens}
        names = list(dict.fromkeys(row.detector for row in here))
        found.append(
            {
                "title": f"{case}: share {100 * share:g} %",
                "reached": here[0].reached,
                "tokens": here[0].response_tokens,
                "counts": counts,
                "kinds": list(counts),
                "auroc": [
                    (name, [by[name, kind].get("auroc") for kind in counts])
                    for name in names
                    if "auroc" in by[name, ANY]
                ],
                "recall": [
                    (name, [by[name, kind].get("recall") for kind in counts], by[name, ANY]["clean_dropped"])
                    for name in names
                    if "clean_dropped" in by[name, ANY]
                ],
                "all": [(name, [by[name, ANY].get(measure) for measure in MEASURES]) for name in names],
            }
        )
    return found


_SHOWN = (*MEASURES, "clean_dropped")
_TYPES = {"case": str, "share": float, "kind": str, "detector": str, "noise_tokens": int, "clean_tokens": int}
_TYPES |= {"response_tokens": int, "reached": float}
COLUMNS = (*_TYPES, "examples", *(f"{name}{part}" for name in _SHOWN for part in ("", "_low", "_high")))


def _csv_line(row: Finding) -> list[Any]:
    """A finding under `COLUMNS`; each measure with its interval in five digits, empty where it is undefined."""
    found = [row.measures.get(name) for name in _SHOWN]
    numbers = [
        None if each is None else f"{number:.5g}"
        for each in found
        for number in ((0.0,) * 3 if each is None else (each.value, each.low, each.high))
    ]
    return [*(getattr(row, name) for name in _TYPES), next((one.n for one in found if one), None), *numbers]


def read_findings(path: Path) -> list[Finding]:
    """The lines of a report's CSV file.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"there is no {path.name} in {path.parent}")
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    found = []
    for row in lines:
        measures = {}
        for name in filter(row.get, _SHOWN):
            value, low, high = (float(row[f"{name}{part}"]) for part in ("", "_low", "_high"))
            measures[name] = Metric(value, low, high, int(row["examples"]), INTERVAL)
        facts: dict[str, Any] = {name: kind(row[name]) for name, kind in _TYPES.items()}
        found.append(Finding(**facts, measures=measures))
    return found
