"""What every report is made with: numbers as text, pictures, sections of a page, CSV files, templates to files."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from xtf.runtime.artifacts import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from xtf.reporting.intervals import Comparison, Estimate

# -- numbers as text -----------------------------------------------------------------------------------------


def percent(value: float | None, digits: int = 1) -> str:
    """A share in per cent: 41.0 %; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def with_interval(metric: Mapping[str, Any]) -> str:
    """A recorded figure with its interval: 41.0 % [38.2, 43.9], or in nats with three decimals."""
    if metric.get("unit") == "nats":
        return f"{metric['value']:.3f} nats [{metric['low']:.3f}, {metric['high']:.3f}]"
    return f"{percent(metric['value'])} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def estimated(found: Estimate | None) -> str:
    """The same of a mean over seeds and items; "-" where there is none."""
    return "-" if found is None else with_interval(vars(found))


def figure(metric: Any) -> str:
    """A figure between -1 and 1 with its interval: 0.62 [0.58, 0.66]; "-" where it is undefined."""
    return "-" if metric is None else f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]"


def points(found: Estimate | Comparison) -> str:
    """A difference in percentage points with its interval: +3.2 [-0.4, +6.9]; in nats with three decimals."""
    if getattr(found, "unit", "share") == "nats":
        return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def compared(found: Estimate | str) -> str:
    """The same in a table: where no item differs, an interval would only look sure; a reason stands as it is."""
    return found if isinstance(found, str) else "no item differs" if found.same else points(found)


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def seconds(value: float) -> str:
    """A time in seconds, from two minutes up in minutes."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


WIDE = 7.0  # inches: a figure of one panel has less

# -- parts of a page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """A figure of a page: the Markdown shows its PNG file, the HTML, which needs no other file, holds the SVG."""

    title: str
    png: str  # seen from the page's folder
    data: str  # the SVG itself as an address, so that a page needs no other file
    files: tuple[Path, ...]
    note: str = ""  # how to read it, below
    wide: bool = False  # of several panels: it takes the page's width


def picture(figure: Figure, out_dir: Path, name: str, title: str, note: str = "") -> Picture:
    """Draws `figure` to `out_dir`/figures/`name`.png and .svg, for a page in `out_dir`; `note` says how to read it."""
    from xtf.reporting import figures  # the explorer, of the library alone, draws none

    paths = figures.save(figure, out_dir / "figures", name)
    png = paths["png"].relative_to(out_dir).as_posix()
    data = "data:image/svg+xml;base64," + base64.b64encode(paths["svg"].read_bytes()).decode()
    return Picture(title, png, data, tuple(paths.values()), note, wide=figure.get_figwidth() > WIDE)


@dataclass(frozen=True)
class Section:
    """A part of a page: sentences, then a table if it has rows, then pictures."""

    title: str
    text: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()


# -- files ---------------------------------------------------------------------------------------------------


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A CSV file with a line of column names, made whole or not at all; returns `path`. None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_atomic(path, partial(Path.write_text, data=text.getvalue(), encoding="utf-8"))
    return path


def render_sections(title: str, sections: Sequence[Section], out_dir: Path, stem: str) -> list[Path]:
    """Writes a page of sections, `stem`.html and `stem`.md; returns the paths of its pictures and its own."""
    drawn = [file for section in sections for shown in section.pictures for file in shown.files]
    return drawn + render_page("tables", {"title": title, "sections": sections}, out_dir, stem)


def templates() -> Environment:
    """The templates of this room, with what they write numbers and code with."""
    environment = Environment(
        loader=PackageLoader("xtf.reporting"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files("xtf.reporting") / "templates" / "page.js").read_text(encoding="utf-8")
    environment.globals["script"] = {"text": script, "hash": script_hash(script)}
    environment.filters |= {
        "percent": percent,
        "interval": with_interval,
        "figure": figure,
        "estimate": estimated,
        "compared": compared,
        "seconds": seconds,
        "fenced": fenced,
        "code": inline_code,
        "headings": headings,
        "breakable": breakable,
    }
    return environment


def script_hash(text: str) -> str:
    """The source of a page's content security policy that allows this script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def breakable(text: str) -> Markup:
    """Settings whose long keys may go on in the next line behind a dot or an equals sign."""
    return Markup(re.sub("([.=])", r"\1<wbr>", str(escape(text))))


def headings(body: str) -> list[tuple[str, Markup]]:
    """The parts of a page, (anchor, title): its h2 that have an id."""
    return [(name, Markup(words)) for name, words in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)]


def render_page(template: str, context: Mapping[str, Any], out_dir: Path, stem: str | None = None) -> list[Path]:
    """Fills `template`.html.j2 and .md.j2; writes `stem`.html and .md (by default, named as the template)."""
    written = []
    for suffix in ("html", "md"):
        text = templates().get_template(f"{template}.{suffix}.j2").render(context)
        path = out_dir / f"{stem or template}.{suffix}"
        write_atomic(path, partial(Path.write_text, data=text, encoding="utf-8"))
        written.append(path)
    return written


def fenced(text: str) -> str:
    """A Markdown code block that no run of backticks inside `text` can close."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def inline_code(text: str) -> str:
    """Markdown code within a table cell."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if "`" in text or not text.strip() else ""
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")
