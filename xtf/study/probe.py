"""`python run.py probe=true`: what each method would drop of one's own data, and a short pilot with its sure margin.

Everything is done on the first `pilot.examples` training rows and `pilot.eval_examples` evaluation rows, with the
artifacts of ordinary runs: the same settings given to `python run.py` find them finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.table import Table

from xtf.config.identity import digest
from xtf.config.schema import Config, ConfigError, SourceConfig, Stage
from xtf.data.ragged import Responses
from xtf.data.rows import load_rows
from xtf.data.tokens import Pieces
from xtf.pipeline import ORDER, Pipeline
from xtf.reporting import figures
from xtf.reporting.explorer import show_verdict
from xtf.reporting.intervals import (
    Comparison,
    Components,
    components,
    crossed_effect,
    family,
    mean,
    paired_values,
    smallest_study,
)
from xtf.reporting.pages import Section, estimated, percent, picture, points, render_sections, seconds
from xtf.reporting.runs import Run, base_mean, load_run
from xtf.runtime.artifacts import locked
from xtf.runtime.models import load_tokenizer
from xtf.runtime.progress import console, say
from xtf.runtime.run_folder import Manifest, OutputDir, RunFolder, finished
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.methods import METHODS, ProFit
from xtf.scoring.verdict import Verdict, judge_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PILOT = ("normal", "xtf", "random")
MASKS = ("xtf", "random", "low_loss", "high_loss", "token_cleaning")
PROFIT = "profit"  # an online method: what it would drop in the first step
GAINS = (0.01, 0.02, 0.05)
POWER = 0.8


def probe(config: Config, changed: Mapping[str, Any]) -> list[Path]:
    """Makes or reuses the pilot's runs, prints the tables, writes reports/probe-*.md and .html; returns their paths.

    Args:
        config: resolved.
        changed: the overridden keys that name a run's folder (`xtf.config.identity.overrides`).

    Raises:
        ConfigError: settings that a probe does not use.
        ValueError: what the user can mend, as in `xtf.pipeline.run`.
    """
    if config.method.name != "xtf" or config.stage is not Stage.all:
        raise ConfigError(
            f"probe=true runs its methods and stages by itself: leave out method={config.method.name} and "
            f"stage={config.stage.value}"
        )
    if not config.scorer.attributes:
        raise ConfigError(f"probe=true asks which tokens a scorer drops; scorer={config.scorer.name} has none")
    at_hand = len(load_rows(config.task.eval))
    small, named = pilot_settings(config, changed)
    masks = {name: _mask_folder(small, named, name) for name in MASKS}
    dropped = dropped_tokens({name: folder.mask for name, folder in masks.items()})
    stats = Manifest(masks["xtf"]).stages["mask"]["stats"]
    verdict = judge_file(masks["xtf"].mask, config.threshold, stats)
    assert verdict is not None  # there are attributes
    tokenizer = load_tokenizer(config.model)
    show_verdict(verdict, tokenizer)  # before anything is trained
    runs = {
        name: [_run(small, named, name, small.seed + number) for number in range(config.pilot.seeds)] for name in PILOT
    }
    output = OutputDir(Path(config.output_dir)).reports
    stem = "-".join(["probe", config.task.name, config.model.name, config.tuning.name.value, digest(named, 8)])
    say("comparing the pilot's runs")
    found = compare(runs)
    pilot, drawn = _pilot_section(runs, found), []
    if any(each.sign for each in found.values()):  # intervals that all hold zero are said, not drawn
        panel = {"the pilot, with 95 % intervals (Holm)": [(name, c.value, c.low, c.high) for name, c in found.items()]}
        drawn = [picture(figures.effects(panel), output, stem, "Differences between the pilot's methods")]
        pilot = dataclasses.replace(pilot, pictures=drawn)
    sections = [
        Section("Should one train with this mask?", [*_judged(verdict, tokenizer), f"The pilot: {_decided(found)}."]),
        pilot,
        _power_section(runs, config.pilot.gain, at_hand),
        _shares_section(dropped, stats),
        _agreement_section(dropped),
    ]
    title = f"Probe of {config.task.name} with {config.model.name}"
    written = render_sections(title, sections, output, stem)
    for section in sections:
        _print(section)
    for path in written:
        if not any(path in one.files for one in drawn):
            say(f"report: {path}")
    return written


def _judged(verdict: Verdict, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    first, *reasons = verdict.lines(Pieces(tokenizer).alone)
    return [f"This mask: {first}.", *reasons]


def pilot_settings(config: Config, changed: Mapping[str, Any]) -> tuple[Config, dict[str, Any]]:
    """The configuration cut to the pilot's rows, and the overrides that name its runs; fewer rows stay as they are."""
    named = {key: value for key, value in changed.items() if not key.startswith("method.")}
    sources: dict[str, Any] = {}
    for which, most in (("train", config.pilot.examples), ("eval", config.pilot.eval_examples)):
        source: SourceConfig = getattr(config.task, which)
        if source.limit is None or source.limit > most:
            source = dataclasses.replace(source, limit=most)
            named[f"task.{which}.limit"] = most
        sources[which] = source
    task = dataclasses.replace(config.task, **sources)
    return dataclasses.replace(config, task=task), named


def pilot_jobs(config: Config, changed: Mapping[str, Any]) -> list[tuple[Config, dict[str, Any]]]:
    """The jobs of a probe, for `stage=plan`: the pilot's runs, and the masks that are compared beside them.

    Each is a configuration with the overrides that name its folder.
    """
    small, named = pilot_settings(config, changed)
    runs = [
        dataclasses.replace(small, method=METHODS[name](), seed=small.seed + number)
        for name in PILOT
        for number in range(config.pilot.seeds)
    ]
    masks = [
        dataclasses.replace(small, method=METHODS[name](), stage=Stage.mask) for name in MASKS if name not in PILOT
    ]
    return [(job, named) for job in (*runs, *masks)]


# -- runs ----------------------------------------------------------------------------------------------------


def _mask_folder(config: Config, named: Mapping[str, Any], method: str) -> RunFolder:
    """The run folder that holds the method's mask.parquet, made unless it is there."""
    config = dataclasses.replace(config, method=METHODS[method](), stage=Stage.mask)
    folder = RunFolder.of(config, named)
    with locked(folder.path, say):
        pipeline = Pipeline(config, named, folder)
        if not finished(config, folder):
            say(f"mask: {method}")
            ahead = pipeline.ahead(ORDER.index(Stage.mask))
            ahead("score")
            passes = pipeline.score()
            ahead("mask")
            pipeline.mask(passes)
    return folder


def _run(config: Config, named: Mapping[str, Any], method: str, seed: int) -> Run:
    """The finished run of a method and seed, made unless it is there."""
    config = dataclasses.replace(config, method=METHODS[method](), seed=seed)
    folder = RunFolder.of(config, named)
    with locked(folder.path, say):
        pipeline = Pipeline(config, named, folder)
        if not finished(config, folder):
            say(f"pilot: {method}, seed {seed}")
            pipeline.stages()
    return load_run(folder.path)


# -- which tokens --------------------------------------------------------------------------------------------


def dropped_tokens(masks: Mapping[str, Path]) -> dict[str, np.ndarray]:
    """Whether each response token is dropped, bool [tokens]: by XTF's attributes, by each mask, by ProFit at first.

    ProFit decides by the model in training; before its first step that is the base model.
    """
    found = {}
    xtf = pq.read_table(masks["xtf"])
    used = [attribute for attribute in ATTRIBUTES.values() if attribute.drops in xtf.column_names]
    flat = Responses.from_table(xtf, [attribute.drops for attribute in used]).columns
    for attribute in used:
        found[attribute.name] = flat[attribute.drops]
    for name, path in masks.items():
        found[name] = Responses.from_table(pq.read_table(path), ["labels"]).columns["dropped"]
    logp = Responses.from_table(pq.read_table(masks["low_loss"]), ["logp"]).columns["logp"]
    found[PROFIT] = np.exp(logp) <= ProFit().tau
    return found


def jaccard(first: np.ndarray, second: np.ndarray) -> float | None:
    """Share of the tokens dropped by either that both drop; None where neither drops any."""
    either = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / either if either else None


def kappa(first: np.ndarray, second: np.ndarray) -> float | None:
    """Cohen's kappa: agreement beyond what the two shares give by chance; None where chance alone agrees always."""
    observed, a, b = (first == second).mean(), first.mean(), second.mean()
    chance = a * b + (1 - a) * (1 - b)
    return float((observed - chance) / (1 - chance)) if chance < 1 else None


def _shares_section(dropped: Mapping[str, np.ndarray], stats: Mapping[str, Any]) -> Section:
    text = [
        f"Of {stats['response_tokens']:,} response tokens of {stats['examples']:,} examples. `random`, `low_loss` and "
        "`high_loss` drop as many as `xtf`, example by example; `profit` decides anew in each step, this is its first."
    ]
    text += [f"Degenerate attribute {one['attribute'].upper()}: {one['reason']}." for one in stats["degenerate"]]
    rows = [[name, percent(float(values.mean()), 2)] for name, values in dropped.items()]
    return Section("What each method would drop", text, ["by", "dropped"], rows)


def _agreement_section(dropped: Mapping[str, np.ndarray]) -> Section:
    def entry(row: str, column: str) -> str:
        if row == column:
            return ""
        places = list(dropped)
        function = kappa if places.index(row) < places.index(column) else jaccard
        value = function(dropped[row], dropped[column])
        return "-" if value is None else f"{value:.2f}"

    text = (
        "Below the diagonal: of the tokens dropped by either, the share dropped by both (Jaccard). Above it: Cohen's "
        "kappa, 0 where they agree as chance would, 1 where they are the same, below 0 where they avoid each other."
    )
    # Columns by number: with their names the table would not fit into 80 columns.
    rows = [[f"{k} {row}", *(entry(row, column) for column in dropped)] for k, row in enumerate(dropped, start=1)]
    heads = [str(k) for k in range(1, len(dropped) + 1)]
    return Section("Do they drop the same tokens?", [text], ["", *heads], rows)


# -- the pilot -----------------------------------------------------------------------------------------------


def paired(runs: Mapping[str, Sequence[Run]], treated: str, control: str) -> np.ndarray:
    """Differences of verdicts, [seeds, items]."""
    sides = ([run.verdicts(run.headline) for run in runs[name]] for name in (treated, control))
    return paired_values(*sides)


def compare(runs: Mapping[str, Sequence[Run]]) -> dict[str, Comparison]:
    """XTF against each control, one family of two; Student's t, as a pilot's few seeds make a bootstrap too short."""
    controls = [name for name in PILOT if name != "xtf"]
    found = family([crossed_effect(paired(runs, "xtf", control)) for control in controls])
    return {f"xtf - {control}": one for control, one in zip(controls, found, strict=True)}


def _pilot_section(runs: Mapping[str, Sequence[Run]], found: Mapping[str, Comparison]) -> Section:
    metric = runs["normal"][0].headline
    base = base_mean(runs["normal"], metric)
    arms = {} if base is None else {"base model": base}
    arms |= {name: mean([run.verdicts(metric) for run in some]) for name, some in runs.items()}
    rows = []
    for name, arm in arms.items():
        kept = [run.record["mask"]["kept_share"] for run in runs.get(name, ())]
        took = [run.record["timing"]["train"] for run in runs.get(name, ())]
        figures_of_runs = [f"{np.mean(kept):.1%}", seconds(float(np.mean(took)))] if kept else ["", ""]
        rows.append([name, estimated(arm), *figures_of_runs])
    rows += [[name, f"{points(one)} points", "", ""] for name, one in found.items()]
    one = next(iter(found.values()))
    text = (
        f"{metric} over {one.effect.seeds} seeds and {one.effect.items} items with 95 % intervals: for each method by "
        "bootstrap over both, which is rather too short with so few seeds; for the two differences by Student's t with "
        "Holm's correction, which is not."
    )
    return Section("The pilot", [_decided(found) + ".", text], ["", metric, "tokens kept", "training"], rows)


def _decided(found: Mapping[str, Comparison]) -> str:
    words = {1: "better", -1: "worse", 0: "the interval holds zero, so the pilot does not decide"}
    return "; ".join(f"{name}: {words[each.sign]}" for name, each in found.items())


def needed(parts: Components, gain: float, at_hand: int) -> str:
    """How large a study must be to tell a gain, in a sentence."""
    told = f"{100 * gain:g} points"
    if not (parts.items or parts.rest or parts.seeds):
        return f"Every item of the pilot differs alike, so nothing can be said about a gain of {told}."
    try:
        study = smallest_study(parts, gain, at_hand, POWER)
    except ValueError:
        return f"To tell a gain of {told}, 100 seeds would not be enough: training is that uneven."
    more = "" if study[1] <= at_hand else f" (there are {at_hand:,})"
    return f"To tell a gain of {told} you need about {study[0]} seeds and {study[1]:,} evaluation items{more}."


def _power_section(runs: Mapping[str, Sequence[Run]], gain: float, at_hand: int) -> Section:
    parts = {control: components(paired(runs, "xtf", control)) for control in ("normal", "random")}
    gains = sorted({*GAINS, gain})
    explained = (
        f"Seeds x evaluation items, for a power of {POWER:.0%} with the pilot's own test (Student's t, two-sided at "
        "5 %), simulated with the variances of the pilot's paired differences: a between seeds, b between items, e of "
        "the rest, so that S seeds and I items leave a / S + b / I + e / (S I). Estimates from a few seeds are rough."
    )
    rows = []
    for control, part in parts.items():
        variances = [f"{part.seeds:.5f}", f"{part.items:.4f}", f"{part.rest:.4f}"]
        rows.append([control, *variances, *(_short(part, one, at_hand) for one in gains)])
    columns = ["xtf against", "a", "b", "e", *(_points(one) for one in gains)]
    text = [needed(parts["normal"], gain, at_hand), explained]
    return Section("How large a study would have to be", text, columns, rows)


def _points(gain: float) -> str:
    return f"{100 * gain:g} point" + ("" if gain == 0.01 else "s")


def _short(parts: Components, gain: float, at_hand: int) -> str:
    if not (parts.items or parts.rest or parts.seeds):
        return "-"
    try:
        return "{} x {:,}".format(*smallest_study(parts, gain, at_hand, POWER))
    except ValueError:
        return "> 100 seeds"


def _print(section: Section) -> None:
    if not section.columns:
        console.print(f"{section.title}\n" + "\n".join(section.text), markup=False, highlight=False)
        return
    console.print(section.title, style="bold", markup=False, highlight=False)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, name in enumerate(section.columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=place == 0)
    for row in section.rows:
        table.add_row(*row)
    console.print(table)
    for sentence in section.text:
        console.print(sentence, highlight=False)
