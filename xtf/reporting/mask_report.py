"""The report of an experiment that stops before training: what was scored and dropped, how long that took.

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

from xtf.reporting.pages import Picture, Section, percent, picture, render_sections, seconds, write_csv
from xtf.reporting.reported import reported_of_mask
from xtf.reporting.run_report import curves, cuts_of, exclusive_shares, judged_tokens
from xtf.runtime.artifacts import read_json
from xtf.runtime.progress import console
from xtf.runtime.run_folder import Manifest, RunFolder, checked_mask
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import MaskedTokens, notes
from xtf.scoring.store import SCORED_AGAIN

Lines = list[list[Any]]  # a figure each, under `COLUMNS`
# `value` is a share, seconds or MB; `at` is the threshold's setting, for points of a curve.
COLUMNS = ("task", "model", "tuning", "run", "quantity", "at", "value", "reported")


def has_results(folders: Sequence[Path], listed: Sequence[str]) -> bool:
    """Whether an experiment is about trained and graded models; not if its jobs stop at scores or masks.

    Args:
        listed: the stages that its sweeps asked for, where they left a list: its folders may be shared with
            experiments that went further.
    """
    if listed:
        return not set(listed) <= {"score", "mask"}
    runs = [RunFolder(folder) for folder in folders]
    # Of a run that has not begun, as of those beside it, no more than a mask is known to be wanted.
    stages = {run.recorded["stage"] for run in runs if run.config.exists()}
    return not stages <= {"score", "mask"} or any(run.has_results for run in runs)


def mask_report(name: str, folders: Sequence[Path], out_dir: Path) -> list[Path]:
    """Writes <name>.csv, .md, .html and the figures, and prints the shares of the masks; returns their paths.

    Args:
        folders: the experiment's run folders, those included that are missing.

    Raises:
        ValueError: no run has been scored.
    """
    every = {folder: Manifest(folder) for folder in map(RunFolder, folders)}
    runs = {folder: manifest for folder, manifest in every.items() if "score" in manifest.stages}
    if not runs:
        raise ValueError(f"none of the {len(folders)} runs of {name} has been scored")
    lines: Lines = []
    sections = [_costs(runs, lines)]
    for folder, manifest in runs.items():
        if "mask" in manifest.stages:
            sections.append(_mask_section(name, folder, manifest, out_dir, lines))
    missing = [[str(folder.path), folder.state()] for folder in every if folder not in runs]
    if missing:
        sections.append(Section("Missing", columns=["run", "why"], rows=missing))
    masks = {folder: found["stats"] for folder, one in runs.items() if (found := one.stages.get("mask"))}
    if masks:
        console.print(_shares(masks))
    written = write_csv(out_dir / f"{name}.csv", COLUMNS, lines)
    return [written, *render_sections(f"{name}: {len(runs)} of {len(folders)} runs", sections, out_dir, name)]


def _shares(masks: Mapping[RunFolder, Mapping[str, Any]]) -> Table:
    """What each mask drops and keeps, for the console."""
    table = Table(title="Response tokens dropped", title_justify="left")
    table.add_column("mask", overflow="fold")
    for label in (*(attribute.label for attribute in ATTRIBUTES.values()), "by any", "kept"):
        table.add_column(label, justify="right")
    for folder, stats in masks.items():
        shares = [stats["dropped_share"].get(name) for name in (*ATTRIBUTES, "union")]
        table.add_row(folder.name, *(percent(share) for share in (*shares, stats["kept_share"])))
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


def _mask_section(name: str, folder: RunFolder, manifest: Manifest, out_dir: Path, lines: Lines) -> Section:
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
        drawn = [
            picture(figure, out_dir, f"{stem}-{part}", f"{' '.join(folder.case)}: {part}")
            for part, figure in parts.items()
        ]
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
    title = f"Dropped tokens: {' · '.join(folder.parts)}"
    return Section(title, [text], ["dropped by", "ours", "reported"], rows, drawn)


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
