"""A few examples of a mask in colour, where no page can be opened: in a terminal, and in a notebook's cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from xtf.config.schema import PRESETS
from xtf.data.provenance import tokenizer_of
from xtf.data.ragged import as_arrow
from xtf.data.tokens import Pieces, decoded
from xtf.scoring.attributes import ATTRIBUTES, OTHER
from xtf.scoring.masks import MaskedTokens, threshold_of

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase


def prompts(table: pa.Table, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The text of each row's prompt."""
    for ids, length in zip(table["input_ids"].to_pylist(), table["prompt_length"].to_pylist(), strict=True):
        yield decoded(tokenizer, ids[:length])


@dataclass(frozen=True)
class TextPreview:
    """Examples for a rich console, in colour if it has colour, else with marks around what is dropped; and for a
    notebook, which shows what a cell ends with."""

    examples: Sequence[tuple[str, str, Sequence[tuple[str, tuple[str, ...]]]]]  # title, prompt, (text, dropped by)
    total: int

    def of(self, example: int) -> TextPreview:
        """The same of one example alone."""
        return TextPreview([self.examples[example]], self.total)

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

    def _repr_html_(self) -> str:
        """The same as HTML without script; colours are translucent, for light and dark notebooks."""
        names = [(f"dropped by {row.label}", (row.name,)) for row in ATTRIBUTES.values()]
        legend = " ".join(_span(text, by) for text, by in [*names, ("dropped by the method", ("other",))])
        parts = [f"<p>kept {legend}</p>"]
        for title, prompt, runs in self.examples:
            text = "".join(_span(piece, by) for piece, by in runs)
            parts.append(
                f"<p><b>{escape(title)}</b></p>"
                f'<div style="white-space:pre-wrap;opacity:.75;max-height:9em;overflow:auto">{escape(prompt)}</div>'
                f'<div style="white-space:pre-wrap">{text}</div>'
            )
        return "".join([*parts, f"<p>{len(self.examples)} of {self.total} examples</p>"])

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
    masked: datasets.Dataset | pa.Table, tokenizer: PreTrainedTokenizerBase | None = None, *, examples: int = 5
) -> TextPreview:
    """The first examples of a masked table, for `rich.print` or as the last line of a notebook's cell.

    `tokenizer` is the one that the dataset says it was scored with, if None.

    Raises:
        ValueError: the table is empty, or no example is asked for; another tokenizer, or none that can be loaded.
    """
    table = as_arrow(masked)
    tokenizer = tokenizer_of(masked, tokenizer)
    if table.num_rows == 0 or examples < 1:
        raise ValueError(f"nothing to show: {table.num_rows} rows in the table, {examples} asked for")
    shown = table.slice(0, examples)
    tokens, pieces = MaskedTokens.from_mask(shown), Pieces(tokenizer)
    counted = tokens.counted(threshold_of(masked, PRESETS["paper"]))
    found = []
    for row, (name, prompt) in enumerate(zip(shown["example_id"].to_pylist(), prompts(shown, tokenizer), strict=True)):
        start, end = tokens.offsets[row], tokens.offsets[row + 1]
        runs: list[tuple[str, tuple[str, ...]]] = []
        for place, piece in enumerate(pieces(tokens.ids[start:end].tolist()), start=start):
            names = _dropped_by(tokens, place)
            if runs and runs[-1][1] == names:
                runs[-1] = (runs[-1][0] + piece, names)
            else:
                runs.append((piece, names))
        kept = tokens.kept[start:end][counted[start:end]]
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


def _span(text: str, names: tuple[str, ...]) -> str:
    if not names:
        return escape(text)
    rows = [ATTRIBUTES[name] for name in names if name in ATTRIBUTES]
    colour, line = (rows[0].colour, rows[0].line if len(rows) == 1 else "double") if rows else (OTHER, "solid")
    said = " + ".join(row.label for row in rows) or "the method"
    style = f"background:{colour}4d;text-decoration:underline {line} {colour} 2px"
    return f'<span title="dropped by {said}" style="{style}">{escape(text)}</span>'


def _marked(text: str, names: tuple[str, ...]) -> Text:
    marks = "".join(ATTRIBUTES[name].mark if name in ATTRIBUTES else "-" for name in names)
    return Text(f"[{marks}:{text}]" if names else text)
