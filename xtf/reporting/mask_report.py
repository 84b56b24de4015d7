"""The report of an experiment whose models are not graded: whether to train with its masks, what was scored and dropped
and how long that took.

From stored scores it draws the paper's figures 3 (distributions with thresholds), 4 (overlap) and 6 (share dropped
against threshold) of every task and model, and from the passes' manifests the tables 6 and 7 (memory and time of
scoring), with what the authors report beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from xtf.reporting.cells import Cell, label_cells
from xtf.reporting.pages import Picture, Section, percent, picture, render_sections, seconds, write_csv
from xtf.reporting.reported import reported_of_mask
from xtf.reporting.run_report import curves, cuts_of, exclusive_shares, judged_tokens
from xtf.reporting.runs import recorded_threshold
from xtf.runtime.artifacts import read_json
from xtf.runtime.progress import console, say
from xtf.runtime.run_folder import Manifest, RunFolder, checked_mask
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import MaskedTokens, notes
from xtf.scoring.store import SCORED_AGAIN
from xtf.scoring.verdict import Verdict, judge_file

Lines = list[list[Any]]  # a figure each, under `COLUMNS`
# `value` is a share, seconds or MB; `at` is the threshold's setting, for points of a curve.
COLUMNS = ("task", "model", "tuning", "run", "quantity", "at", "value", "reported")


MASKS = {"score", "mask"}  # stages of which nothing is trained
BESIDE = {"preview", "export", "train"}  # which make something of masks, whether or not there are results as well


def has_results(folders: Sequence[Path], listed: Sequence[str]) -> bool:
    """Whether an experiment is about trained and graded models; not if its jobs stop before they are graded.

    Args:
        listed: the stages that its sweeps asked for, where they left a list: its folders may be shared with
            experiments that went further.
    """
    runs = [RunFolder(folder) for folder in folders]
    # Of a run that has not begun, as of those beside it, no more than a mask is known to be wanted.
    wanted = set(listed) or {run.recorded["stage"] for run in runs if run.config.exists()}
    if listed and wanted <= MASKS:
        return False
    return not wanted <= MASKS | BESIDE or any(run.has_results for run in runs)


def mask_report(name: str, cells: Sequence[Cell], out_dir: Path, title: str | None = None) -> list[Path]:
    """Writes <name>.csv, .md, .html and the figures, and prints a table of the settings; returns their paths.

    Args:
        cells: the experiment's settings with all their runs, those included that are missing.
        title: by default the name and how many runs there are.

    Raises:
        ValueError: no run has been scored.
    """
    names, usual = _names(cells)
    every = {folder: Manifest(folder) for folder in names}
    runs = {folder: manifest for folder, manifest in every.items() if "score" in manifest.stages}
    if not runs:
        raise ValueError(f"none of the {len(every)} runs of {name} has been scored")
    masked = {folder: manifest for folder, manifest in runs.items() if "mask" in manifest.stages}
    lines: Lines = []
    judged = {
        folder: judge_file(checked_mask(folder), recorded_threshold(folder), manifest.stages["mask"]["stats"])
        for folder, manifest in masked.items()
    }
    sections = [*([_verdicts(judged, names, usual)] if masked else []), _made(runs, names), _costs(runs, lines)]
    for folder, manifest in masked.items():
        sections.append(_mask_section(name, names[folder], folder, manifest, out_dir, lines))
    missing = [[names[folder], str(folder.path), folder.state()] for folder in every if folder not in runs]
    if missing:
        sections.append(Section("Missing", columns=["setting", "run", "why"], rows=missing))
    console.print(_table(runs, judged, names))
    if usual:
        say(usual)
    written = write_csv(out_dir / f"{name}.csv", COLUMNS, lines)
    title = title or f"{name}: {len(runs)} of {len(every)} runs"
    return [written, *render_sections(title, sections, out_dir, name)]


def _names(cells: Sequence[Cell]) -> tuple[dict[RunFolder, str], str]:
    """What each run is called, and in a sentence what holds unless its name says otherwise: the setting as in any
    report of a sweep (`label_cells`), with the case and the seed where there are several."""
    labels, usual = label_cells(cells)
    cases = {cell.case for cell in cells}
    seeds = {folder.name for cell in cells for folder in cell.folders}
    names = {}
    for label, cell in zip(labels, cells, strict=True):
        for folder in cell.folders:
            parts = [*([" · ".join(cell.case)] if len(cases) > 1 else []), label]
            parts += [folder.name.replace("seed", "seed ")] if len(seeds) > 1 else []
            names[RunFolder(folder)] = ", ".join(parts)
    return names, usual


def _verdicts(judged: Mapping[RunFolder, Verdict | None], names: Mapping[RunFolder, str], usual: str) -> Section:
    """Whether to train with each mask, and what decides that."""
    rows = [
        [names[folder], *(("-", "no attribute drops anything") if found is None else (found.level.words, found.reason))]
        for folder, found in judged.items()
    ]
    title = f"Should one train with {'this mask' if len(rows) == 1 else 'these masks'}?"
    return Section(title, [usual] if usual else [], ["setting", "verdict", "what decides it"], rows)


def _found(folder: RunFolder, manifest: Manifest) -> dict[str, Path]:
    """What the stages behind the mask have made of it, in a word or two."""
    found = {"explorer": folder.reports / "preview.html"}
    found |= {f"export for {place.name}": place for place in sorted(folder.export("-").parent.glob("*"))}
    found |= {"model": folder.model} if "train" in manifest.stages else {}
    return {what: path for what, path in found.items() if path.exists()}


def _made(runs: Mapping[RunFolder, Manifest], names: Mapping[RunFolder, str]) -> Section:
    """Where what each run has made lies, and how long its stages took."""
    rows = []
    for folder, manifest in runs.items():
        took = [f"{stage} {seconds(done['seconds'])}" for stage, done in manifest.stages.items() if "seconds" in done]
        places = {"mask": folder.mask, **_found(folder, manifest)} if "mask" in manifest.stages else {}
        said = [f"{what}: {path}" for what, path in places.items()]
        rows.append([names[folder], ", ".join(took), _loss(manifest), "; ".join(said) or "scores alone"])
    return Section("What was made", columns=["setting", "time", "last training loss", "where"], rows=rows)


def _loss(manifest: Manifest) -> str:
    record = manifest.stages.get("train", {}).get("record")
    return "-" if record is None else f"{record['final_loss']:.3f}"


def _table(
    runs: Mapping[RunFolder, Manifest], judged: Mapping[RunFolder, Verdict | None], names: Mapping[RunFolder, str]
) -> Table:
    """What each run has made, and what its mask drops and keeps, for the console."""
    table = Table(title="Response tokens dropped" if judged else "Scored", title_justify="left")
    table.add_column("setting", overflow="fold")
    for label in (*(attribute.label for attribute in ATTRIBUTES.values()), "by any", "kept") if judged else ():
        table.add_column(label, justify="right", no_wrap=True)
    for folder, manifest in runs.items():
        verdict, took = judged.get(folder), sum(done.get("seconds", 0) for done in manifest.stages.values())
        said = [verdict.level.words] if verdict is not None else []
        said += [*_found(folder, manifest), seconds(took)]
        said += [f"loss {_loss(manifest)}"] if "train" in manifest.stages else []
        shares = []
        if judged:
            stats = manifest.stages.get("mask", {}).get("stats", {})
            dropped = stats.get("dropped_share", {})
            shares = [percent(share) for share in (*map(dropped.get, (*ATTRIBUTES, "union")), stats.get("kept_share"))]
        table.add_row(Text.assemble((names[folder], "bold"), "\n", ", ".join(said)), *shares)
    return table


def _line(folder: RunFolder, quantity: str, value: float, reported: str, at: float | str = "") -> list[Any]:
    return [*folder.case, "/".join(folder.parts[3:]), quantity, at, value, reported]


# -- tables 6 and 7 -----------------------------------------------------------------------------------------


def _costs(runs: Mapping[RunFolder, Manifest], lines: Lines) -> Section:
    """Time and memory of each run's passes over its training rows."""
    rows, seen = [], set()
    for folder, manifest in runs.items():
        task, model, _ = folder.case
        for kind, path in manifest.stages["score"]["paths"].items():
            store = folder.output.scores / Path(path).name
            if store in seen:
                continue
            seen.add(store)
            found = read_json(store / "manifest.json", SCORED_AGAIN)
            peak, took, tokens = found.get("peak_memory_mb"), found["seconds"], found["tokens"]
            said_peak = reported_of_mask(folder, "6", "scoring", "peak memory MB")
            said_took = reported_of_mask(folder, "7", "scoring", "seconds")
            held = "not recorded" if peak is None else f"{peak:,.0f}"
            time = [f"{tokens:,}", seconds(took), f"{tokens / took:,.0f}" if took else "-"]
            device = found.get("device", "not recorded")
            rows.append([task, model, kind, device, *time, held, said_took or "-", said_peak or "-"])
            lines.append(_line(folder, f"{kind}: seconds", took, said_took))
            if peak is not None:
                lines.append(_line(folder, f"{kind}: peak memory MB", peak, said_peak))
    text = (
        "One pass over the training rows for all attributes. Peak memory: on a GPU that of tensors while scoring, on "
        "the CPU that of the whole process; MB are 1e6 bytes. The authors make three passes, on hardware that they do "
        "not name, over a number of rows that they do not state."
    )
    measured = ["task", "model", "pass", "device", "tokens", "time", "tokens/s", "peak MB"]
    columns = [*measured, "reported: seconds", "reported: peak MB"]
    return Section("Time and memory of scoring (tables 6 and 7)", [text], columns, rows)


# -- figures 3, 4 and 6 -------------------------------------------------------------------------------------


def _mask_section(
    name: str, called: str, folder: RunFolder, manifest: Manifest, out_dir: Path, lines: Lines
) -> Section:
    """Shares dropped, beside the reported ones, and the three figures."""
    from xtf.reporting import figures  # Matplotlib, which a stage that reports nothing goes without

    tokens = judged_tokens(folder, pq.read_table(checked_mask(folder)))
    stats = manifest.stages["mask"]["stats"]
    drawn: list[Picture] = []
    stem = f"{name}-{'-'.join(folder.parts)}"
    found = curves(folder, tokens)
    if tokens.dropped:
        scores = {key: tokens.scores[key] for key in tokens.dropped}
        cuts = {key: cuts_of(stats["thresholds"][key]) for key in scores}
        parts = {
            "distributions": figures.distributions(scores, tokens.dropped, cuts),
            "overlap": figures.overlap(exclusive_shares(tokens)),
            "sensitivity": figures.sensitivity(found),
        }
        drawn = [picture(figure, out_dir, f"{stem}-{part}", f"{called}: {part}") for part, figure in parts.items()]
    rows = []
    for quantity, share in dropped_shares(tokens).items():
        said = reported_of_mask(folder, "fig4", quantity, "filtered tokens %")
        rows.append([quantity, percent(share, 2), f"{said} %" if said else "-"])
        lines.append(_line(folder, quantity, share, said))
    for setting, values, shares, _ in found.values():
        lines += [
            _line(folder, setting, share, "", at) for at, share in zip(values.tolist(), shares.tolist(), strict=True)
        ]
    ends = stats.get("end_tokens", 0)  # records of earlier versions do not say
    beside = f", beside {ends:,} appended end tokens that are kept and not counted" if ends else ""
    text = (
        f"{len(tokens.kept):,} response tokens{beside}. Score distributions with thresholds (figure 3), overlap "
        '(figure 4), share dropped against each threshold (figure 6). "a after b": dropped by a and not by b.'
    )
    text = " ".join([text, *notes(stats)])
    return Section(f"Dropped tokens: {called}", [text], ["dropped by", "ours", "reported"], rows, drawn)


def dropped_shares(tokens: MaskedTokens) -> dict[str, float]:
    """Shares of the response tokens in the terms of figure 4: "ri only" (by RI at all), "ri after kn" (by RI and not by
    KN), "ri after both" (by RI alone), and "union" (by any)."""
    names, found = list(tokens.dropped), {}
    for name in names:
        own, others = tokens.dropped[name], [other for other in names if other != name]
        found[f"{name} only"] = own
        for other in others:
            found[f"{name} after {other}"] = own & ~tokens.dropped[other]
        if len(others) > 1:
            rest = np.logical_or.reduce([tokens.dropped[other] for other in others])
            found[f"{name} after {'both' if len(others) == 2 else 'all'}"] = own & ~rest
    if names:
        found["union"] = ~tokens.kept
    return {name: float(dropped.mean()) for name, dropped in found.items()}
