"""The report's figures, drawn with matplotlib and written as PNG and SVG.

One hue per attribute, here and in the explorer (`xtf.scoring.attributes`). Each figure is a function of plain arrays,
so that it can be drawn from a run's files without loading a model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from xtf.graders.metrics import Metric
from xtf.runtime.artifacts import write_atomic
from xtf.scoring.attributes import ATTRIBUTES, OTHER, SEVERAL

BLUE, VERMILION = "#0072B2", "#D55E00"
KEPT = "#BDBDBD"
HISTOGRAM_BINS = 60
MARKERS = "os^vDPX*<>hpd"


def save(figure: Figure, folder: Path, name: str) -> dict[str, Path]:
    """Writes `name`.png and `name`.svg, each whole or not at all; the same figure gives the same bytes."""
    FigureCanvasAgg(figure)
    paths = {suffix: folder / f"{name}.{suffix}" for suffix in ("png", "svg")}
    with matplotlib.rc_context({"svg.hashsalt": "xtf"}):
        write_atomic(paths["png"], partial(figure.savefig, format="png", dpi=150))
        figure.set_layout_engine("none")  # the layout stands; the second file need not find it again
        write_atomic(paths["svg"], partial(figure.savefig, format="svg", metadata={"Date": None}))
    return paths


def accuracy(rows: Sequence[tuple[str, float, float, float]], unit: str = "share") -> Figure:
    """Dots with 95 % intervals; a row is (label, value, low, high) as shares or in nats, drawn from the top."""
    labels = [textwrap.fill(row[0], 32, break_on_hyphens=False) for row in reversed(rows)]
    lines = sum(max(2.2, 1 + label.count("\n")) for label in labels)
    figure, axes = _panels(1, height=0.9 + 0.2 * lines)
    (axis,) = axes
    scale = 1 if unit == "nats" else 100
    for place, (_, value, low, high) in enumerate(reversed(rows)):
        bars = _whiskers(scale * value, scale * low, scale * high)
        axis.errorbar(scale * value, place, xerr=bars, fmt="o", color="black", capsize=4)
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlabel(f"{'nats a token' if unit == 'nats' else '% of items'}, with the 95 % interval")
    return figure


def pass_at(metrics: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Bars of each setting's pass@k, side by side for every k, with intervals (figure 5 of the paper).

    `metrics[name][label]` is (value, low, high), as shares.
    """
    labels = list(dict.fromkeys(label for found in metrics.values() for label in found))
    figure, (axis,) = _panels(1, height=3.4)
    width = 0.8 / len(labels)
    for place, label in enumerate(labels):
        spots = [
            k + (place - (len(labels) - 1) / 2) * width for k, found in enumerate(metrics.values()) if label in found
        ]
        values, lows, highs = zip(*(found[label] for found in metrics.values() if label in found), strict=True)
        heights = 100 * np.array(values)
        errors = _whiskers(heights, 100 * np.array(lows), 100 * np.array(highs))
        axis.bar(spots, heights, width, yerr=errors, capsize=3, color=f"C{place % 10}", label=label)
    axis.set_xticks(range(len(metrics)), list(metrics))
    axis.set_ylabel("% of problems solved, with the 95 % interval")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=7.5)
    return figure


def distributions(
    scores: Mapping[str, np.ndarray], dropped: Mapping[str, np.ndarray], cuts: Mapping[str, Sequence[float]]
) -> Figure:
    """Each attribute's scores, kept and dropped by it (figure 3 of the paper), with its thresholds as lines.

    Dropped tokens are stacked on the kept ones, on a log scale. `scores[a]` and `dropped[a]` hold one value per
    response token; `cuts[a]` has a line for each threshold that holds for all examples (none for RI, whose threshold is
    each example's own).
    """
    figure, axes = _panels(len(scores))
    for axis, (attribute, values) in zip(axes, scores.items(), strict=True):
        drop, colour = dropped[attribute], ATTRIBUTES[attribute].colour
        edges = np.histogram_bin_edges(values, HISTOGRAM_BINS)
        every, low = (np.histogram(part, edges)[0] for part in (values, values[drop]))
        axis.stairs(every, edges, fill=True, color=KEPT)
        axis.stairs(every, edges, baseline=every - low, fill=True, color=colour)
        for cut in cuts[attribute]:
            axis.axvline(cut, color="black", linestyle="--", linewidth=1)
        axis.set_yscale("log")
        axis.set_ylim(0.7, 2 * max(every))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(f"{ATTRIBUTES[attribute].label}: {ATTRIBUTES[attribute].axis}")
        axis.set_title(f"drops {100 * drop.mean():.2f} %", color=colour, fontsize=10)
    axes[0].set_ylabel("response tokens")
    return figure


def overlap(shares: Mapping[tuple[str, ...], float]) -> Figure:
    """Exclusive shares of response tokens by the set of attributes that dropped them, as an UpSet plot."""
    attributes = [name for name in ATTRIBUTES if any(name in group for group in shares)]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    bars, dots = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    for place, (group, share) in enumerate(shares.items()):
        colour = ATTRIBUTES[group[0]].colour if len(group) == 1 else SEVERAL
        bars.bar(place, 100 * share, color=colour, width=0.6)
        bars.annotate(f"{100 * share:.2f}", (place, 100 * share), ha="center", va="bottom", fontsize=8)
        for row, attribute in enumerate(attributes):
            colour = ATTRIBUTES[attribute].colour if attribute in group else "#E0E0E0"
            dots.plot(place, -row, "o", markersize=9, color=colour)
    bars.set_ylabel("% of response tokens")
    bars.margins(y=0.15)
    dots.set_yticks([-row for row in range(len(attributes))], [name.upper() for name in attributes])
    dots.set_xticks([])
    dots.margins(y=0.4)
    for axis in (bars, dots):
        axis.spines[["top", "right"]].set_visible(False)
    dots.spines[["bottom", "left"]].set_visible(False)
    return figure


def sensitivity(curves: Mapping[str, tuple[str, np.ndarray, np.ndarray, float]]) -> Figure:
    """Share of response tokens that an attribute drops against its threshold (figure 6 of the paper).

    `curves[a]` is (setting's name, its values, shares, the value in use).
    """
    figure, axes = _panels(len(curves))
    for axis, (attribute, (setting, values, shares, chosen)) in zip(axes, curves.items(), strict=True):
        axis.plot(values, 100 * shares, color=ATTRIBUTES[attribute].colour)
        axis.axvline(chosen, color="black", linestyle="--", linewidth=1, label=f"in use: {chosen:g}")
        axis.set_xlabel(setting)
        axis.legend(frameon=False, fontsize=7.5)
    axes[0].set_ylabel("% of response tokens dropped")
    return figure


def effects(
    panels: Mapping[str, Sequence[tuple[str, float, float, float]]],
    control: str = "control",
    untrained: Mapping[str, float] | None = None,
    student: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    unit: str = "points",
) -> Figure:
    """Differences from a control with their intervals, a panel each; a row is (label, value, low, high).

    Their unit is shares, drawn as points, or nats a token.

    A label stands at the same height in all panels, best on top by the first panel that has it (of nats the fewest);
    each panel has its own scale. `untrained`: the base model's difference by panel, as a dotted line. `student`: a
    second interval by panel and label, Student's t, as a thin line behind the first.
    """
    labels = {row[0] for rows in panels.values() for row in rows}
    figure, axes = _panels(len(panels), height=1.5 + 0.3 * len(labels), sharey=True)
    scale = 100 if unit == "points" else 1
    first: dict[str, float] = {}
    for rows in panels.values():
        first = {label: value for label, value, *_ in rows} | first
    places = {
        label: place for place, label in enumerate(sorted(first, key=first.__getitem__, reverse=unit != "points"))
    }
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        for label, (low, high) in ((student or {}).get(title) or {}).items():
            line = axis.hlines(places[label], scale * low, scale * high, color=OTHER, linewidth=0.8)
            line.set_label("95 % interval, Student's t")
        for label, value, low, high in rows:
            bars = _whiskers(scale * value, scale * low, scale * high)
            axis.errorbar(scale * value, places[label], xerr=bars, fmt="o", color="black", linewidth=2, markersize=4)
        axis.plot([], [], "o-", color="black", linewidth=2, markersize=4, label="95 % interval")
        axis.axvline(0, color=OTHER, linestyle="--", linewidth=1, label=control)
        if untrained and title in untrained:
            place = scale * untrained[title]
            axis.axvline(place, color=BLUE, linestyle=":", linewidth=1.5, label="untrained")
        for label in sorted(labels - {row[0] for row in rows}, key=places.__getitem__, reverse=True):
            _not_run(axis, places[label])
        axis.set_xlabel(f"{unit} minus {control}")
        axis.set_title(title, fontsize=10)
    axes[0].set_yticks(range(len(places)), list(places))
    axes[0].set_ylim(-0.6, len(places) - 0.4)
    keys = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def answers(
    panels: Mapping[str, Sequence[tuple[str, float, float, float, float]]], untrained: Mapping[str, tuple[float, float]]
) -> Figure:
    """What became of the answers, a panel each; a row is (label, right, low, high, unreadable), as shares, drawn from
    the top. What is right has an interval; unreadable is a hollow dot. `untrained`: right and unreadable, by panel."""
    labels = [*dict.fromkeys(row[0] for rows in panels.values() for row in rows), "untrained"]
    figure, axes = _panels(len(panels), height=1.5 + 0.3 * len(labels), sharey=True)
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        base = (
            [("untrained", right, right, right, bad) for right, bad in [untrained[title]]] if title in untrained else []
        )
        for label, *shares in (*rows, *base):
            right, low, high, unreadable = (100 * share for share in shares)
            place = len(labels) - 1 - labels.index(label)
            axis.plot(unreadable, place, "o", color=VERMILION, markersize=7, fillstyle="none")
            bars = _whiskers(right, low, high)
            axis.errorbar(right, place, xerr=bars, fmt="o", color="black", linewidth=2, markersize=4)
        for label in (label for label in labels if label not in {row[0] for row in (*rows, *base)}):
            _not_run(axis, len(labels) - 1 - labels.index(label))
        axis.set_xlim(-3, 103)
        axis.set_xlabel("% of the answers")
        axis.set_title(title, fontsize=10)
    axes[0].set_yticks(range(len(labels)), labels[::-1])
    axes[0].set_ylim(-0.6, len(labels) - 0.4)
    keys = [
        Line2D([], [], marker="o", color="black", linewidth=2, markersize=4, label="right, 95 % interval"),
        Line2D([], [], marker="o", color=VERMILION, linestyle="none", fillstyle="none", label="unreadable"),
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def foretold(
    groups: Mapping[str, Sequence[tuple[str, float, float, float, float, bool]]],
    limit: float,
    harm: float,
    axis_name: str,
) -> Figure:
    """What became of masks against what was known before.

    A dot is (label, before, nats over normal, low, high, harmed). The dashed line is the `limit` from which on harm is
    said, the shaded band what counts as harm. Dots on the wrong side of the line have their labels.
    """
    figure, (axis,) = _panels(1, height=4.6)
    figure.set_figwidth(8.5)
    axis.axhspan(harm, 10, color=VERMILION, alpha=0.08, linewidth=0, label=f"harm: {harm} nats or more")
    axis.axvline(limit, color="black", linestyle="--", linewidth=1, label=f"limit: {limit:.2f}")
    axis.axhline(0, color=OTHER, linewidth=0.8)
    top, wrong = harm, list[tuple[float, float, str, str]]()
    for place, (name, dots) in enumerate(groups.items()):
        for label, before, value, low, high, harmed in dots:
            bars = _whiskers(value, low, high)
            marker = MARKERS[place % len(MARKERS)]
            axis.errorbar(before, value, yerr=bars, fmt=marker, color=f"C{place}", markersize=5, linewidth=1, alpha=0.8)
            top = max(top, high)
            if (before >= limit) != harmed:
                wrong.append((before, value, label, f"C{place}"))
        axis.plot([], [], MARKERS[place % len(MARKERS)], color=f"C{place}", label=name)
    for right_side in (False, True):  # labels point into the panel, and make room for each other
        beside, below = "right" if right_side else "left", 10.0
        for before, value, label, colour in sorted(wrong, key=lambda dot: -dot[1]):
            if (before >= limit) == right_side:
                below = min(value, below - 0.04 * top)
                shift = -0.008 if right_side else 0.008
                axis.annotate(label, (before + shift, below), fontsize=7, ha=beside, va="center", color=colour)
    axis.set_ylim(-0.06 * top, 1.05 * top)
    axis.set_xlabel(axis_name)
    axis.set_ylabel("nats a token minus normal")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def captioned(figure: Figure, text: str) -> Figure:
    """The figure with a caption below it, so that it explains itself where it is shown alone."""
    lines = textwrap.fill(text, int(15 * figure.get_figwidth()))
    figure.supxlabel(lines, x=0.01, ha="left", fontsize=8, color="#444444", linespacing=1.4)
    return figure


def against_tokens(panels: Mapping[str, Sequence[tuple[str, float, float, float, float]]]) -> Figure:
    """Accuracy against supervised tokens, a panel each; a dot is (label, tokens, value, low, high)."""
    figure, axes = _panels(len(panels), height=3.8, sharey=True)
    labels = list(dict.fromkeys(dot[0] for dots in panels.values() for dot in dots))
    styles = {label: (MARKERS[place % len(MARKERS)], f"C{place % 10}") for place, label in enumerate(labels)}
    for axis, (title, dots) in zip(axes, panels.items(), strict=True):
        for label, tokens, value, low, high in dots:
            marker, colour = styles[label]
            bars = _whiskers(100 * value, 100 * low, 100 * high)
            axis.errorbar(tokens, 100 * value, yerr=bars, fmt=marker, color=colour, markersize=5, linewidth=0.8)
        axis.set_xlabel("supervised tokens")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set_title(title, fontsize=10)
    axes[0].set_ylabel("accuracy, %")
    keys = [Line2D([], [], marker=m, color=c, linestyle="none", label=label) for label, (m, c) in styles.items()]
    figure.legend(handles=keys, loc="outside right upper", frameon=False, fontsize=7.5)
    return figure


def deciles(curves: Mapping[str, Sequence[tuple[int, float, float, float]]], references: Mapping[str, float]) -> Figure:
    """Accuracy by decile of base probability, a panel each; a point is (decile, value, low, high).

    `references`: accuracies to compare with, by name, as lines.
    """
    figure, axes = _panels(len(curves), height=3.3, sharey=True)
    for axis, (title, points) in zip(axes, curves.items(), strict=True):
        places, values, lows, highs = (100 * np.array(part, float) for part in zip(*points, strict=True))
        bars = _whiskers(values, lows, highs)
        axis.errorbar(places / 100, values, yerr=bars, fmt="o-", color=VERMILION, capsize=3)
        for (name, reference), style in zip(references.items(), ("--", ":", "-."), strict=False):
            axis.axhline(100 * reference, color="black", linestyle=style, linewidth=1, label=name)
        axis.set_xticks(range(1, 11))
        axis.set_xlabel("decile of base probability (1: least likely)")
        axis.set_title(title, fontsize=10)
    axes[0].set_ylim(bottom=0)  # last, as it ends the fitting of the shared axis to what is drawn
    axes[0].set_ylabel("accuracy, %")
    if references:
        lines = axes[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=len(references), frameon=False, fontsize=8)
    return figure


def detection(panels: Mapping[str, Mapping[str, Sequence[tuple[float, Metric]]]]) -> Figure:
    """AUROC of telling noise from clean tokens: a panel per case, a row per detector, a dot with its 95 %
    interval per planted share, the darker the more was planted. The dashed line is chance.
    """
    names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    metrics = [metric for rows in panels.values() for points in rows.values() for _, metric in points]
    reach = 0.03 + max((abs(limit - 0.5) for one in metrics for limit in (one.low, one.high)), default=0.5)
    shares = sorted({share for rows in panels.values() for points in rows.values() for share, _ in points})
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    size = (2.2 + 2.8 * columns, 0.4 + lines * (1.1 + 0.34 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colours = {attribute.label: attribute.colour for attribute in ATTRIBUTES.values()}
    for axis, (case, rows) in zip(axes, panels.items(), strict=False):
        for row, name in enumerate(names):
            for share, metric in rows.get(name, ()):
                place = shares.index(share)
                axis.errorbar(
                    metric.value,
                    row + 0.22 * (place - (len(shares) - 1) / 2),
                    xerr=_whiskers(metric.value, metric.low, metric.high),
                    fmt="o",
                    markersize=4,
                    color=colours.get(name, "black"),
                    alpha=(place + 1) / len(shares),
                )
            if name not in rows:
                axis.text(0.03, row, "not run", transform=axis.get_yaxis_transform(), va="center", fontsize=7.5)
        axis.axvline(0.5, color="black", linestyle="--", linewidth=1)
        axis.set_xlim(0.5 - reach, 0.5 + reach)
        axis.set_title(textwrap.fill(case, 34), fontsize=9)
        axis.set_xlabel("\N{LEFTWARDS ARROW} kept   AUROC   found \N{RIGHTWARDS ARROW}")
        axis.tick_params(labelbottom=True)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    dot: dict[str, Any] = {"marker": "o", "markersize": 5, "color": "black", "linestyle": "none"}
    keys = [
        Line2D([], [], alpha=(place + 1) / len(shares), label=f"{100 * share:g} % planted", **dot)
        for place, share in enumerate(shares)
    ]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(shares), frameon=False, fontsize=8)
    return figure


def loss_curve(steps: Sequence[float], losses: Sequence[float]) -> Figure:
    """Training loss by optimizer step."""
    figure, (axis,) = _panels(1)
    axis.plot(steps, losses, color="black", linewidth=1)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss per kept token (nats)")
    return figure


def _not_run(axis: Axes, place: int) -> None:
    axis.text(0.5, place, "not run", transform=axis.get_yaxis_transform(), ha="center", va="center", fontsize=7.5)


def _whiskers(value: Any, low: Any, high: Any) -> np.ndarray:
    """Error bars [2, N] from values to their limits, single numbers or arrays [N].

    A limit that rounding has put a hair on the wrong side of its value lies at the value: Matplotlib refuses bars of
    negative length.
    """
    low, value, high = np.atleast_1d(low), np.atleast_1d(value), np.atleast_1d(high)
    return np.maximum([value - low, high - value], 0)


def _panels(count: int, height: float = 2.9, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.4, 3.4 * count), height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, count, sharey=sharey)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
