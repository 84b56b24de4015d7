"""Reports: a run's files turned into pages that say whether it helped, and by how sure a margin.

Everything is read back from files (metrics.json, mask.parquet, generations.jsonl, train_log.csv, config.yaml), so a
report can be made again at any time, on any machine, without the model; torch is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table
from rich.text import Text

from xtf.data.tokens import visible
from xtf.reporting.intervals import Estimate
from xtf.reporting.pages import (
    Picture,
    counted,
    estimated,
    percent,
    picture,
    points,
    render_page,
    seconds,
    with_interval,
)
from xtf.reporting.runs import (
    LOSS,
    Run,
    advised,
    arm_mean,
    base_mean,
    beside,
    command_line,
    control_runs,
    load_run,
    means,
    over_base,
    over_control,
    read_lines,
    recorded_config,
    recorded_threshold,
    settings_of,
)
from xtf.runtime.artifacts import part_intact
from xtf.runtime.progress import console, item, say
from xtf.runtime.run_folder import RunFolder, checked_mask
from xtf.runtime.train_log import read_log
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import MaskedTokens, notes
from xtf.scoring.regime import Regime
from xtf.scoring.sensitivity import sweep
from xtf.scoring.verdict import judge_file

CONTROLS = {"normal": "plain fine-tuning on every response token", "random": "a random mask as large as XTF's"}
TO_ADD = "To add it: "  # before the command in a sentence
SHOWN_GENERATIONS = 12
PRINTED_GENERATIONS = 4  # on paper
SHOWN_TOKENS = 15


# -- the table that ends a run -------------------------------------------------------------------------------


def console_table(metrics: Mapping[str, Any]) -> Group:
    """What `python run.py` shows at its end: figures before and after, shares dropped, times.

    Figures that are 0 before and after are left out, as they are of the report.
    """
    quality = Table(title="Before and after, with 95 % intervals", title_justify="left")
    for name in ("metric", "base model", "fine-tuned", "items"):
        quality.add_column(name, justify="left" if name == "metric" else "right")
    for name, metric in metrics["metrics"].items():
        base = (metrics["base_metrics"] or {}).get(name)
        if metric["value"] or (base and base["value"]):
            quality.add_row(name, with_interval(base) if base else "-", with_interval(metric), str(metric["n"]))
    stats = metrics["mask"]
    times = Table(title="Time", title_justify="left")
    for name in metrics["timing"]:
        times.add_column(name.replace("_", " "), justify="right")
    times.add_row(*(seconds(value) for value in metrics["timing"].values()))
    return Group(quality, *mask_table(stats).renderables, times)


def mask_table(stats: Mapping[str, Any]) -> Group:
    """The shares of a mask (`MaskStats.to_dict`), and what is to be said of it."""
    dropped = Table(title=f"Dropped of {stats['response_tokens']:,} response tokens", title_justify="left")
    for name in (*(f"by {attribute.label}" for attribute in ATTRIBUTES.values()), "by any", "kept"):
        dropped.add_column(name, justify="right")
    dropped.add_row(
        *(percent(stats["dropped_share"].get(name), 2) for name in (*ATTRIBUTES, "union")),
        percent(stats["kept_share"], 2),
    )
    remarks = [Text(line) for line in notes(stats)]
    warnings = [Text(f"degenerate attribute {line}", style="yellow") for line in degenerate(stats)]
    return Group(dropped, *remarks, *warnings)


def degenerate(stats: Mapping[str, Any]) -> list[str]:
    """The attributes that could not tell tokens apart, each with its reason."""
    return [f"{entry['attribute'].upper()}: {entry['reason']}" for entry in stats["degenerate"]]


def show_report(folder: RunFolder, files: Sequence[Path], explorer: Path, answer: bool) -> None:
    """The same on the console, with the `answer` to "did it help?" where it is asked for, and where to read on."""
    run = load_run(folder.path)
    console.print(console_table(run.record))
    if answer:
        say("\nDid it help?")
        for sentence in verdict(run):
            said, _, command = sentence.partition(TO_ADD)
            say(item(f"{said}{TO_ADD}".rstrip() if command else said, console.width))
            if command:  # whole, to be copied
                say(f"    {command}")
        say("")
    say(f"metrics:  {folder.metrics}")
    say(f"explorer: {explorer}")
    for file in files:
        if file.suffix == ".html":
            say(f"report:   {file}")


# -- did it help? --------------------------------------------------------------------------------------------


def verdict(run: Run) -> list[str]:
    """Answers "did it help?": against the base model, then against each control that was run; each first by what the
    task counts, then by the loss on its responses if that was measured, which tells smaller differences apart."""
    arm = [load_run(folder.path) for folder in RunFolder(run.folder).seeds()]
    metrics = [run.headline, *(name for name in means(arm) if name == LOSS)]
    sentences = [_against_base(run, arm, metric) for metric in metrics]
    if run.is_control("normal"):
        return sentences
    for method, words in CONTROLS.items():
        if run.is_control(method):
            continue
        control = controls_of(arm, method)
        found = {metric: over_control(arm, control, metric) for metric in metrics}
        for metric, each in found.items():
            if each is not None:
                of = f"Against {words}" if metric == run.headline else "In loss"
                sentences.append(f"{of}: {_difference(each)}. {_reading(each, 'that control')}")
        if found[run.headline] is None:
            wanted = command_line(run.record, method=method, **beside(recorded_config(RunFolder(run.folder))))
            sentences.append(f"Not compared with {words}: no such run with the same settings. {TO_ADD}{wanted}")
    return sentences


def _against_base(run: Run, arm: Sequence[Run], metric: str) -> str:
    after, before, found = arm_mean(arm, metric), base_mean(arm, metric), over_base(arm, metric)
    if metric == LOSS:
        name, shown = "Its loss on the reference responses", f"{after.value:.3f} nats a token"
    else:
        name, shown = f"Fine-tuning with {_with(run)} took {metric}", percent(after.value)
    if found is None or before is None:
        reached = name.replace(" took ", " reached ") if metric != LOSS else f"{name} is"
        return f"{reached} {estimated(after)}; the base model was not measured."
    first = f"{before.value:.3f}" if metric == LOSS else percent(before.value)
    verb = " went" if metric == LOSS else ""
    return f"{name}{verb} from {first} to {shown}: {_difference(found)}. {_reading(found, 'the base model')}"


def _difference(found: Estimate) -> str:
    seeds = counted(found.seeds, "seed")
    unit, each = ("nats", "row") if found.unit == "nats" else ("points", "item")
    return f"{points(found)} {unit} over {counted(found.items, each)} and {seeds}" + (
        " (so the spread between seeds is not in the interval)" if found.seeds == 1 else ""
    )


def _reading(found: Estimate, other: str) -> str:
    if found.same:
        return f"No item came out differently than with {other}, so the interval says nothing."
    if not found.sign:
        return f"The interval holds zero: this does not show a difference from {other}."
    return f"{'Better' if found.sign > 0 else 'Worse'} than {other}: the interval leaves out zero."


def controls_of(arm: Sequence[Run], method: str) -> dict[int, Run]:
    """The finished runs of a control in the same tree that compare with the arm's, by seed."""
    here = RunFolder(arm[0].folder)
    others = (load_run(folder.path) for name in {method: 0, "xtf": 0} for folder in here.of_method(name))
    return control_runs(arm, (other for other in others if other.is_control(method)), method)


# -- one run -------------------------------------------------------------------------------------------------


def run_report(run_dir: Path, out_dir: Path) -> list[Path]:
    """Writes report.html, report.md and figures/*.png, *.svg for one finished run; returns their paths.

    The report compares with runs of `normal` and `random` that lie beside it in the same tree and share its settings;
    what is not there is named, with the command that adds it.

    Raises:
        ValueError: the run has not finished.
    """
    run = load_run(Path(run_dir))
    folder = RunFolder(run.folder)
    arm = [load_run(one.path) for one in folder.seeds()]
    tokens = judged_tokens(folder, pq.read_table(checked_mask(folder)))
    drawn = _pictures(run, arm, tokens, Path(out_dir))
    decode, unnamed = _decoder(run)
    advice = judge_file(checked_mask(folder), recorded_threshold(folder), run.record["mask"])
    around = beside(recorded_config(folder))
    context = {
        "run": run.record,
        "title": _title(run),
        "about": _about(run),
        "verdict": verdict(run),
        "to_add": TO_ADD,
        "degenerate": degenerate(run.record["mask"]),
        "quality": _quality(run, arm),
        "regime": str(Regime(**found)) if (found := run.record.get("regime")) else None,
        "mask": _mask_rows(run.record["mask"]),
        "notes": notes(run.record["mask"]),
        "advice": [*advice.lines(decode), *advised(run.record, advice, **around)] if advice else [],
        "level": advice.level.name if advice else "",
        "figures": drawn,
        "most_dropped": {name: most_dropped(tokens, name, decode) for name in tokens.dropped},
        "unnamed": unnamed,
        "generations": paired_generations(run.base_generations(), read_lines(folder.generations)),
        "printed": PRINTED_GENERATIONS,
        "command": command_line(run.record, **around),
        "settings": [
            (key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else _number(value))
            for key, value in run.record["training"].items()
            if isinstance(value, str | int | float)
        ],
        "config": folder.config.read_text(encoding="utf-8"),
        "explorer": (Path(out_dir) / "preview.html").is_file(),
    }
    return [file for each in drawn for file in each.files] + render_page("report", context, Path(out_dir))


def _number(value: str | int) -> str:
    return f"{value:,}" if type(value) is int else str(value)  # not a bool


NAMED = {"xtf": "XTF", "normal": "every response token", "random": "a random mask"}  # methods, in a title


def _title(run: Run) -> str:
    return f"{run.record['model']} fine-tuned on {run.record['task']} with {_with(run)}"


def _with(run: Run) -> str:
    """What a run trained with, in words."""
    method = "normal" if run.is_control("normal") else run.record["method"]
    return NAMED.get(method, method)


def _about(run: Run) -> str:
    """What tells the run from others of its title."""
    record = run.record
    tuning = "" if record["tuning"] == "full" else f"{record['tuning']}, "
    rows = f"{record['data']['train']['rows']:,} training rows" if "train" in record["data"] else ""
    setting = f"{tuning}scorer {record['scorer']}, threshold {record['threshold']}, seed {run.seed}"
    return ", ".join(filter(None, [setting, *settings_of(record["overrides"]), rows]))


def _quality(run: Run, arm: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of "before and after". What is a mean over items is of all seeds, like the answer above and the figure
    below, the rest of this run; what is 0 before and after is left out."""
    rows, pooled = [], means(arm)
    for name, tuned in run.record["metrics"].items():
        base = (run.record["base_metrics"] or {}).get(name)
        if name in pooled:
            found, before = arm_mean(arm, name), base_mean(arm, name)
            of = "" if len(arm) == 1 else f", mean of {counted(len(arm), 'seed')}"
            rows.append(
                {
                    "name": f"{name}{of}",
                    "base": before and estimated(before),
                    "tuned": estimated(found),
                    "items": found.items,
                    "interval": found.interval,
                }
            )
        elif tuned["value"] or (base and base["value"]):
            of = "" if len(arm) == 1 else f", seed {run.seed}"
            before_text = base and with_interval(base)
            kind = {"items": tuned["n"], "interval": tuned["interval"]}
            rows.append({"name": f"{name}{of}", "base": before_text, "tuned": with_interval(tuned), **kind})
    return rows


def _mask_rows(stats: Mapping[str, Any]) -> list[tuple[str, str]]:
    shares = [(f"dropped by {a.label}", stats["dropped_share"].get(name)) for name, a in ATTRIBUTES.items()]
    overlaps = [
        (f"dropped by {' and '.join(name.upper().split('_'))}", share) for name, share in stats["overlap"].items()
    ]
    rows = [*shares, *overlaps, ("dropped by any", stats["dropped_share"].get("union")), ("kept", stats["kept_share"])]
    return [(name, percent(share, 2)) for name, share in rows if share is not None]


def exclusive_shares(tokens: MaskedTokens) -> dict[tuple[str, ...], float]:
    """Share of response tokens dropped by exactly this set of attributes, for every set that occurs."""
    names = list(tokens.dropped)
    bits = (tokens.dropped[name].astype(np.int64) << bit for bit, name in enumerate(names))
    codes = sum(bits, np.zeros(1, np.int64))
    counts = np.bincount(codes, minlength=1)
    return {
        tuple(name for bit, name in enumerate(names) if code >> bit & 1): count / len(codes)
        for code, count in enumerate(counts)
        if code and count
    }


NOTES = {  # how to read each figure
    "accuracy": "Dots: means; bars: 95 % intervals, as in the table above.",
    "distributions": "Grey: kept; in colour: dropped by this attribute; dashed: its threshold (RI's is each response's "
    "own). Counts on a log scale, each panel its own.",
    "sensitivity": "What other thresholds would drop; dashed: the one in use. Each panel has its own scale.",
    "overlap": "A bar for each set of attributes, marked by the dots below it, that dropped a token and no other did.",
}


def _pictures(run: Run, arm: Sequence[Run], tokens: MaskedTokens, out_dir: Path) -> list[Picture]:
    from xtf.reporting import figures  # Matplotlib, which a stage that reports nothing goes without

    drawn = [
        picture(figures.accuracy(_accuracy_rows(run, arm)), out_dir, "accuracy", "Before and after", NOTES["accuracy"])
    ]
    scored = {name: tokens.scores[name] for name in tokens.dropped if name in tokens.scores}
    if scored:
        cuts = {name: cuts_of(run.record["mask"]["thresholds"][name]) for name in scored}
        figure = figures.distributions(scored, tokens.dropped, cuts)
        drawn.append(picture(figure, out_dir, "distributions", "Scores and thresholds", NOTES["distributions"]))
        figure = figures.sensitivity(curves(RunFolder(run.folder), tokens))
        drawn.append(
            picture(figure, out_dir, "sensitivity", "Share dropped against the threshold", NOTES["sensitivity"])
        )
    shares = exclusive_shares(tokens)
    if shares:
        drawn.append(
            picture(
                figures.overlap(shares), out_dir, "overlap", "Which attributes dropped the tokens", NOTES["overlap"]
            )
        )
    log = [row for row in read_log(RunFolder(run.folder).train_log, finished=True) if row["loss"] is not None]
    if log:
        figure = figures.loss_curve([row["step"] for row in log], [row["loss"] for row in log])
        drawn.append(picture(figure, out_dir, "loss", "Training loss"))
    return drawn


def cuts_of(found: Mapping[str, Any]) -> list[float]:
    """An attribute's thresholds that hold for every example, as scores; RI's fences are each example's own."""
    if "p_above" in found:
        return [1 - found["p_above"]] if found["p_above"] is not None else []
    return [found[key] for key in ("low", "high", "below", "above") if found.get(key) is not None]


def judged_tokens(folder: RunFolder, masked: pa.Table) -> MaskedTokens:
    """The response tokens of a run's mask that its thresholds judge: without the appended end where that is kept."""
    tokens = MaskedTokens.from_mask(masked)
    return tokens.select(tokens.judged(recorded_threshold(folder))) if tokens.dropped else tokens


def curves(folder: RunFolder, tokens: MaskedTokens) -> dict[str, tuple[str, np.ndarray, np.ndarray, float]]:
    """Per attribute in use: its threshold's setting, the values, the shares dropped, the value in use."""
    config = recorded_threshold(folder)
    found_curves = {}
    for name in tokens.dropped:
        attribute = ATTRIBUTES[name]
        block = tokens.only(attribute.source)
        found = sweep(attribute, config, block, block)
        values = np.array(found.values)
        found_curves[name] = (found.setting, values, found.shares(), values[found.chosen])
    return found_curves


def _accuracy_rows(run: Run, arm: Sequence[Run]) -> list[tuple[str, float, float, float]]:
    metric = run.headline
    rows = [("base model", base)] if (base := base_mean(arm, metric)) is not None else []
    rows.append((f"fine-tuned with {_with(run)}", arm_mean(arm, metric)))
    for method in CONTROLS:
        found = {} if run.is_control(method) else controls_of(arm, method)
        if shared := [found[one.seed] for one in arm if one.seed in found]:
            rows.append((f"fine-tuned with {NAMED[method]}", arm_mean(shared, metric)))
    return [(name, found.value, found.low, found.high) for name, found in rows]


def most_dropped(tokens: MaskedTokens, attribute: str, decode: Callable[[int], str]) -> list[dict[str, Any]]:
    """The token ids that an attribute dropped most often: how often, out of how many occurrences."""
    counts = np.bincount(tokens.ids[tokens.dropped[attribute]])
    occurrences = np.bincount(tokens.ids)
    order = np.argsort(-counts, kind="stable")[:SHOWN_TOKENS]
    return [
        {
            "id": int(token),
            "text": visible(decode(int(token))),
            "dropped": int(counts[token]),
            "share": float(counts[token] / occurrences[token]),
        }
        for token in order
        if counts[token]
    ]


def _decoder(run: Run) -> tuple[Callable[[int], str], str | None]:
    """Token id -> text, from the tokenizer saved with the run; else the bare id, and the reason."""
    file = RunFolder(run.folder).model / "tokenizer.json"
    shown = file.relative_to(run.folder)
    if not file.is_file():
        return str, f"Tokens are shown by their ids: there is no {shown} beside this run."
    if not part_intact(file.parent, file.name):
        return str, f"Tokens are shown by their ids: {shown} is damaged, not as it was written."
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return lambda token: tokenizer.decode([token], skip_special_tokens=False), None


def paired_generations(base: Sequence[Mapping[str, Any]] | None, tuned: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A few items with both completions: the verdict changes and non-changes in turn, each in file order.

    Returns counts of each kind over all first samples, and the chosen items.
    """
    before = {(line["example_id"], line["sample"]): line for line in base or ()}
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in tuned:
        if line["sample"] != 0:
            continue
        old = before.get((line["example_id"], 0))
        kind = f"{_word(old['correct'])} → {_word(line['correct'])}" if old else _word(line["correct"])
        kinds.setdefault(kind, []).append({"kind": kind, "before": old, "after": line})
    turns = max((len(items) for items in kinds.values()), default=0)
    chosen = [items[turn] for turn in range(turns) for items in kinds.values() if turn < len(items)]
    return {"counts": {kind: len(items) for kind, items in kinds.items()}, "items": chosen[:SHOWN_GENERATIONS]}


def _word(correct: bool | None) -> str:
    return {True: "right", False: "wrong", None: "no verdict"}[correct]
