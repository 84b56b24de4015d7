"""The explorer and the reports in a real browser: headless Chromium from the system, driven by Playwright."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from made_runs import generations, scored_table, write_run
from test_explorer import HOSTILE, byte_tokenizer, encode
from test_mask_report import masked_run
from transformers import AutoModelForCausalLM, AutoTokenizer

import xtf
from xtf.config.schema import PRESETS, Attribute, PlantKind, ScorerConfig, ThresholdEnd
from xtf.data.planting import CODES
from xtf.data.ragged import with_ends, with_row_weights
from xtf.data.tokens import Pieces, visible
from xtf.reporting.explorer import preview
from xtf.reporting.pages import render_sections
from xtf.reporting.run_report import run_report
from xtf.reporting.runs import load_run
from xtf.reporting.shown import preview_text
from xtf.reporting.sweep_report import jobs_report, sweep_report
from xtf.scoring.masks import MaskedTokens, build_mask, row_weighted
from xtf.study.detection import Detector, PlantedTokens, _write_report, findings
from xtf.study.probe import PILOT, PROFIT, _agreement_section, _pilot_section, _shares_section, compare
from xtf.tiny import MODEL_DIR

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (extra: test)")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine (apt install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def closed_pages(browser: Any) -> Iterator[None]:
    """Closes what a test opened, so that the next one has the browser to itself."""
    yield
    for context in browser.contexts:
        context.close()


class Page:
    """A page, and whatever it complained about."""

    def __init__(self, browser: Any, path: Path | str, fragment: str = "", measured: bool = False) -> None:
        self.page = browser.new_page(viewport={"width": 1400, "height": 900})
        if measured:
            self.session = self.page.context.new_cdp_session(self.page)
            self.session.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog opened"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto((path.as_uri() if isinstance(path, Path) else path) + fragment)
        if isinstance(path, Path) and path.name.startswith("preview"):
            self.page.wait_for_selector(READY)
            self.page.evaluate("document.getElementById('filters').open = true")

    def main_thread_seconds(self) -> float:
        """Processor time that the page's main thread has worked so far."""
        found = self.session.send("Performance.getMetrics")["metrics"]
        return float(next(each["value"] for each in found if each["name"] == "TaskDuration"))

    def totals(self) -> tuple[int, list[int]]:
        """Kept tokens, and tokens by what dropped them (bit 0 RI, bit 1 KN, bit 2 TR)."""
        return self.page.evaluate("[+kept.dataset.kept, JSON.parse(kept.dataset.codes)]")

    def slide(self, attribute: str, place: int) -> None:
        before = self.page.inner_text("#kept")
        self.page.evaluate(
            "([id, place]) => { const slider = document.getElementById(id); slider.value = place;"
            "slider.dispatchEvent(new Event('input')); slider.dispatchEvent(new Event('change')); }",
            [f"slider-{attribute}", place],
        )
        self.page.wait_for_function("before => kept.innerText !== before", arg=before)

    def setting(self, attribute: str) -> tuple[str, float]:
        name, value = self.page.inner_text(f"#value-{attribute}").split(" = ")
        return name, float(value)


@pytest.fixture(scope="module")
def scored() -> pa.Table:
    return scored_table(40)


@pytest.fixture(scope="module")
def masked(scored: pa.Table) -> pa.Table:
    return build_mask(scored, PRESETS["paper"], list(Attribute)).table


@pytest.fixture(scope="module")
def explorer(masked: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    return preview(masked, byte_tokenizer(), folder / "preview.html", command="python run.py task=math")


def long_report(folder: Path) -> Path:
    """The report of a run with long texts, and without the controls, so that it says how to add them."""
    correct = [True, False] * 20
    run = write_run(folder, scored=scored_table(60), correct=correct, base=[False] * 40)
    words = "a long line of words that goes on for quite a while, " * 60
    lines = [
        line | {"prompt": words, "completion": "\n\n".join([words[:90]] * 30), "reference": words[:900]}
        for line in generations(correct)
    ]
    (run / "generations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_report(run, folder / "out")
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def address(explorer: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Gives the address of a page by what it shows, made when it is first asked for."""

    @functools.cache
    def made(which: str) -> str:
        if which in ("explorer", "heat"):
            return explorer.as_uri() + ("#colour=p&only=kn" if which == "heat" else "")
        return PAGES[which](tmp_path_factory.mktemp(which)).as_uri()

    return made


def sweep_page(folder: Path) -> Path:
    """A sweep of six settings, two seeds each, with a verdict on each mask."""
    safe, wide = {"threshold.protect": "answer"}, {"scorer.tr.variant": "contextual", "threshold.kn.pcp": 0.9}
    for seed in (0, 1):
        for method, overrides in (("normal", {}), ("random", {}), *(("xtf", one) for one in ({}, safe, wide))):
            run = write_run(
                folder,
                correct=[True, False, True, True],
                base=[False] * 4,
                method=method,
                seed=seed,
                overrides=overrides,
                experiment="t",
            )
            record = json.loads((run / "metrics.json").read_text())
            words = {"verdict": "look closer", "verdict_reason": "54 % of the response tokens are dropped."}
            record["mask"] |= words if method == "xtf" else {}
            (run / "metrics.json").write_text(json.dumps(record))
    sweep_report("t", folder / "runs", folder / "out")
    return folder / "out" / "t.html"


def masks_page(folder: Path) -> Path:
    """Two masks, and nothing trained with them."""
    folders = [masked_run(folder, overrides=overrides) for overrides in ({}, {"threshold.kn.pcp": 0.9})]
    jobs_report("masks", folders, {}, folder / "out")
    return folder / "out" / "masks.html"


def probe_page(folder: Path) -> Path:
    """What a probe says of ten detectors, the widest of its tables, and of its pilot."""
    names = ("ri", "kn", "tr", "xtf", "random", "low_loss", "high_loss", "token_cleaning", PROFIT)
    generator = np.random.default_rng(0)
    dropped = {name: generator.random(500) < 0.3 for name in names}
    runs = {
        method: [
            load_run(write_run(folder, correct=[True, False, True], base=[False] * 3, method=method, seed=seed))
            for seed in (0, 1)
        ]
        for method in PILOT
    }
    stats = runs["xtf"][0].record["mask"]
    sections = [_pilot_section(runs, compare(runs)), _shares_section(dropped, stats), _agreement_section(dropped)]
    render_sections("Probe", sections, folder, "probe")
    return folder / "probe.html"


def detection_page(folder: Path) -> Path:
    """What each attribute finds of planted noise."""
    count = 400
    generator = np.random.default_rng(0)
    planted = generator.integers(0, 2, count).astype(np.int8) * CODES[PlantKind.off_task]
    score = generator.random(count) + planted
    found = {"KN": Detector(score, score > 1), "RI": Detector(-score, score < 0.5)}
    example = np.repeat(np.arange(count // 10), 10)
    tokens = PlantedTokens("math, tiny", 0.3, 0.3, planted, example, example, np.arange(count), found, None)
    _write_report("planted", findings(tokens), folder, source="1 mask", unfinished=["outputs/runs/of/another/run"])
    return folder / "planted.html"


PAGES = {
    "report": long_report,
    "sweep": sweep_page,
    "masks": masks_page,
    "probe": probe_page,
    "detection": detection_page,
}


def codes(table: pa.Table) -> list[int]:
    tokens = MaskedTokens.from_mask(table)
    bits = sum(tokens.dropped[name].astype(int) << bit for bit, name in enumerate(("ri", "kn", "tr")))
    return np.bincount(bits, minlength=16).tolist()


def test_the_explorer_opens_without_a_complaint_or_a_request(browser: Any, explorer: Path, masked: pa.Table) -> None:
    opened = Page(browser, explorer)
    opened.page.wait_for_selector("#overlap .bars")
    opened.page.wait_for_selector("#plot-tr .bars")
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.totals() == [int(MaskedTokens.from_mask(masked).kept.sum()), codes(masked)]
    assert opened.page.inner_text("#command") == "python run.py task=math"


def test_sliders_give_the_numbers_of_the_masks_with_their_settings(
    browser: Any, explorer: Path, scored: pa.Table
) -> None:
    opened = Page(browser, explorer)
    settings = PRESETS["paper"]
    for attribute, place in (("ri", 28), ("kn", 5), ("tr", 30), ("kn", 60), ("tr", 5)):
        opened.slide(attribute, place)
        key, value = opened.setting(attribute)
        rule = replace(getattr(settings, attribute), **{key.split(".")[-1]: value})
        settings = replace(settings, **{attribute: rule})
        mask = build_mask(scored, settings, list(Attribute))
        assert opened.totals() == [mask.stats.kept_tokens, codes(mask.table)]
        assert f"{key}={value:g}" in opened.page.inner_text("#command")
        opened.page.wait_for_function(
            "([id, share]) => document.getElementById(id).textContent === share",
            arg=[f"share-{attribute}", f"{100 * mask.stats.dropped_share[attribute]:.2f} %"],
        )


def test_a_cards_title_counts_what_thresholds_judge(browser: Any, scored: pa.Table, tmp_path: Path) -> None:
    some = with_ends(scored.slice(0, 3), [1, 0, 1])
    length = len(some["logp"][1])
    weights = [[1.0] * len(some["logp"][0]), [0.0] + [1.0] * (length - 1), [1.0] * len(some["logp"][2])]
    table = row_weighted(build_mask(with_row_weights(some, weights), PRESETS["paper"], list(Attribute))).table
    page = Page(browser, preview(table, byte_tokenizer(), tmp_path / "preview.html")).page
    shown = [title.split(": ")[1].split() for title in page.locator(".card h3").all_inner_texts()]
    written = [title.split(": ")[1].split() for title, *_ in preview_text(table, byte_tokenizer()).examples]
    assert [(round(float(one[0]), 1), one[3]) for one in shown] == [(float(one[0]), one[3]) for one in written]


def test_an_attribute_switched_off_drops_nothing(browser: Any, explorer: Path, scored: pa.Table) -> None:
    opened = Page(browser, explorer)
    before = opened.page.inner_text("#kept")
    opened.page.uncheck("#active-kn")
    opened.page.wait_for_function("before => kept.innerText !== before", arg=before)
    mask = build_mask(scored, PRESETS["paper"], [Attribute.ri, Attribute.tr])
    assert opened.totals()[0] == mask.stats.kept_tokens
    assert "scorer=ri_tr" in opened.page.inner_text("#command")


def test_a_deep_link_lands_on_the_token_and_says_why(browser: Any, explorer: Path, masked: pa.Table) -> None:
    tokens = MaskedTokens.from_mask(masked)
    place = int(np.flatnonzero(tokens.dropped["kn"] & ~tokens.dropped["ri"] & ~tokens.dropped["tr"])[-1])
    example = int(np.searchsorted(tokens.offsets, place, side="right")) - 1
    token = place - int(tokens.offsets[example])
    opened = Page(browser, explorer, f"#example={example}&token={token}")
    opened.page.wait_for_selector("#tip:not([hidden])")
    focused = opened.page.evaluate(
        "[document.activeElement.dataset.k, document.activeElement.closest('.card').dataset.place,"
        "document.activeElement.getBoundingClientRect().top]"
    )
    assert focused[:2] == [str(token), str(example)]
    assert 0 < focused[2] < 900
    said = opened.page.inner_text("#tip")
    p = float(np.exp(tokens.scores["logp"][place]))
    assert f"the base model already gives it {p:.{4 if p > 0.99 else 2}f}" in said
    assert f"id\t{tokens.ids[place]}\n" in said
    assert f"KN\tp {p:.4f}; drops p above 0.9500" in said
    assert said.startswith("Dropped by KN: the base model already gives it")
    assert f"{token} of 0 to {tokens.offsets[example + 1] - tokens.offsets[example] - 1} in the response" in said


def test_hovering_shows_the_token_and_arrow_keys_move_on(browser: Any, explorer: Path) -> None:
    page = Page(browser, explorer).page
    spans = page.locator('.card[data-place="1"] .t')
    spans.nth(0).hover()
    assert page.inner_text("#tip").startswith(("Kept: ", "Dropped by "))
    spans.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.k") == "1"
    assert page.evaluate("location.hash") == "#example=1&token=1"
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_filters_show_the_examples_that_fit(browser: Any, explorer: Path, masked: pa.Table) -> None:
    page = Page(browser, explorer).page
    tokens = MaskedTokens.from_mask(masked)
    with_ri = sum(bool(part.any()) for part in np.split(tokens.dropped["ri"], tokens.offsets[1:-1]))
    page.select_option("#only", "ri")
    assert page.inner_text("#matches") == f"{with_ri} of 40 examples"
    page.click("#clear")
    page.fill("#text", "row-17")
    assert page.inner_text("#matches") == "1 of 40 examples"
    assert page.locator(".card h3").all_inner_texts()[0].startswith("Example 17 (row-17)")
    page.fill("#text", "")
    page.select_option("#sort", "most")
    shares = [1 - part.mean() for part in np.split(tokens.kept, tokens.offsets[1:-1])]
    assert page.locator(".card").first.get_attribute("data-place") == str(int(np.argmax(shares)))


def hostile_table(tokenizer: Any) -> pa.Table:
    """Rows whose prompts, responses and ids try to be markup, change direction, or split characters."""
    texts = [
        HOSTILE,
        "<img src=x onerror=alert(1)>",
        "\u202eabc مرحبا بالعالم",
        "😀 漢字 e\u0301",
        "def f():\n\treturn '`|'",
    ]
    ids = [encode(tokenizer, text) for text in texts]
    scored = pa.table(
        {
            "example_id": [f"<script>alert({row})</script>" for row in range(len(texts))],
            "input_ids": pa.array([row + row for row in ids], pa.list_(pa.int32())),
            "prompt_length": pa.array([len(row) for row in ids], pa.int32()),
            "logp": pa.array([[-0.5] * (len(row) - 1) + [-0.01] for row in ids], pa.list_(pa.float32())),
        }
    )
    return build_mask(scored, PRESETS["paper"], [Attribute.kn]).table


def test_nothing_of_a_hostile_dataset_runs_and_all_of_it_is_shown(browser: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(HOSTILE, "<img src=x onerror=alert(1)>")
    path = preview(hostile_table(tokenizer), tokenizer, tmp_path / "preview.html", title=HOSTILE)
    opened = Page(browser, path)
    assert opened.complaints == []
    assert opened.page.locator("img").count() == 0
    shown = ["".join(card.locator(".t:not(.part)").all_text_contents()) for card in opened.page.locator(".card").all()]
    assert shown[:3] == [HOSTILE, "<img src=x onerror=alert(1)>", "\u202eabc مرحبا بالعالم"]
    assert shown[3] == "😀 漢字 e\u0301"
    assert shown[4] == "def f():\n\treturn '`|'"
    assert opened.page.title() == HOSTILE
    opened.page.locator(".card .t").first.hover()
    assert "</script>" in opened.page.inner_text("#tip code")


def test_two_thousand_examples_open_and_stay_on_few_elements(browser: Any, tmp_path: Path) -> None:
    """The limit is 3 s on an idle machine; measured: 2.0 s of the main thread's own time, whatever else runs.

    Asserted is twice the limit, in that time and not by the clock: a slower processor or a busy one must not fail,
    a page that does needless work for every token must.
    """
    table = build_mask(scored_table(2000, tokens=400), PRESETS["paper"], list(Attribute)).table
    path = preview(table, byte_tokenizer(), tmp_path / "preview.html")
    assert path.stat().st_size <= 25_000_000
    opened = Page(browser, path, measured=True)
    page = opened.page
    assert 0 < opened.main_thread_seconds() < 6
    assert page.locator(".card").count() == 2000
    assert page.locator(".t").count() < 20_000
    page.evaluate("scrollTo(0, document.body.scrollHeight / 2)")
    page.wait_for_function(  # wherever in the window a response may stand
        "() => [...Array(30).keys()].some((k) => "
        "document.elementsFromPoint(700, 20 * k).some((e) => e.closest('.response')))"
    )
    assert page.locator(".t").count() < 20_000


def test_the_report_opens_without_a_complaint(browser: Any, tmp_path: Path) -> None:
    run = write_run(tmp_path, correct=[True, False, True, True], base=[False, False, True, False])
    run_report(run, tmp_path / "out")
    opened = Page(browser, tmp_path / "out" / "report.html")
    assert opened.complaints == []
    assert opened.page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize(("which", "least"), [("report", 3), ("sweep", 1)])
def test_a_printed_report_has_at_most_six_pages_and_no_stranded_heading(
    browser: Any, address: Callable[[str], str], tmp_path: Path, which: str, least: int
) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed (extra: test)")
    page = Page(browser, address(which)).page
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    pages = pypdf.PdfReader(tmp_path / "report.pdf").pages
    assert least <= len(pages) <= 6
    titles = {" ".join(title.split()) for title in page.locator("h1, h2, h3, caption").all_inner_texts()}
    lasts = [[line for line in each.extract_text().splitlines() if line.strip()][-1] for each in pages]
    assert [line for line in lasts if " ".join(line.split()) in titles] == []


def test_commands_and_the_configuration_are_copied_by_a_button(browser: Any, address: Callable[[str], str]) -> None:
    opened = Page(browser, address("report"))
    page = opened.page
    buttons = page.locator("button.copy")
    assert [buttons.nth(k).get_attribute("aria-label") for k in range(buttons.count())] == [
        *["Copy the command"] * 3,  # two controls that were not run, and the run itself
        "Copy the configuration",
    ]
    buttons.nth(0).click()
    page.wait_for_function("() => document.querySelector('button.copy').textContent !== 'Copy'")
    assert "method=normal" in page.evaluate("getSelection().toString()")
    assert page.evaluate("getSelection().toString()").startswith("python run.py")
    assert opened.complaints == []


def srgb(page: Any, selector: str) -> np.ndarray:
    """The background of an element, (3,) in 0 to 1."""
    said = page.evaluate("selector => getComputedStyle(document.querySelector(selector)).backgroundColor", selector)
    numbers = np.array([float(number) for number in re.findall(r"[\d.]+", said)][:3])
    return numbers / 255 if said.startswith("rgb") else numbers


def luminance(colour: np.ndarray) -> float:
    """Relative luminance, as WCAG defines it, of sRGB in 0 to 1."""
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_on_every_tint_and_on_the_hottest_heat(
    browser: Any, explorer: Path, scheme: str
) -> None:
    """axe-core leaves out stripes, which lie over gradients: each of their colours is looked at here."""
    page = browser.new_page(color_scheme=scheme)
    page.set_default_timeout(120_000)
    page.goto(explorer.as_uri())
    page.wait_for_selector(READY)
    names = ("ri", "kn", "tr")
    grounds = [f"var(--{name}-tint)" for name in names] + ["var(--grey)"]
    grounds += [f"color-mix(in srgb, var(--{name}) 60%, var(--paper))" for name in names]
    pairs = [("var(--ink)", ground) for ground in grounds]
    pairs += [("var(--soft)", ground) for ground in ("var(--paper)", "var(--box)")]
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<i id=probe></i>')")
    for text, ground in pairs:
        lights = []
        for colour in (text, ground):
            page.evaluate("colour => { document.getElementById('probe').style.background = colour; }", colour)
            lights.append(luminance(srgb(page, "#probe")))
        assert (max(lights) + 0.05) / (min(lights) + 0.05) >= 4.5, (text, ground)


def test_heat_shows_p_as_a_colour_beside_what_is_dropped(browser: Any, explorer: Path, masked: pa.Table) -> None:
    page = Page(browser, explorer, "#colour=p").page
    tokens = MaskedTokens.from_mask(masked)
    orange = np.array([0xD5, 0x5E, 0x00]) / 255  # KN's, at most 60 % of it
    for k in range(int(tokens.lengths[0])):
        share = 0.6 * float(np.exp(tokens.scores["logp"][k]))
        found = srgb(page, f'.card[data-place="0"] .t[data-k="{k}"]')
        np.testing.assert_allclose(found, share * orange + (1 - share), atol=0.01)
    assert page.locator(".heat .t.s2").count() > 0  # the underline of what KN drops is there still
    assert "p, as the base model expects" in page.inner_text("#legend")
    page.select_option("#colour", "ri")
    page.wait_for_function("() => location.hash === '#colour=ri'")
    low, high = np.quantile(tokens.scores["ri"], [0.01, 0.99])
    share = 0.6 * np.clip((tokens.scores["ri"][0] - low) / (high - low), 0, 1)
    blue = np.array([0x00, 0x72, 0xB2]) / 255
    np.testing.assert_allclose(
        srgb(page, '.card[data-place="0"] .t[data-k="0"]'), share * blue + (1 - share), atol=0.01
    )


def test_what_is_set_survives_a_reload_and_is_reset(browser: Any, explorer: Path) -> None:
    opened = Page(browser, explorer)
    page = opened.page
    before = opened.totals()
    opened.slide("kn", 5)
    page.uncheck("#active-ri")
    page.select_option("#only", "tr")
    page.fill("#text", "ro")
    page.select_option("#sort", "most")
    page.check("#blanks")
    page.select_option("#colour", "tr")
    page.wait_for_function("() => location.hash.includes('colour=tr')")
    shown = opened.totals()
    said = page.inner_text("#was")
    old, new = (float(number) for number in re.findall(r"([\d.]+) %", said))
    total = sum(before[1])
    assert (old, new) == (
        pytest.approx(100 * before[0] / total, abs=0.01),
        pytest.approx(100 * shown[0] / total, abs=0.01),
    )
    first = page.locator(".card").first.get_attribute("data-place")
    page.reload()
    page.wait_for_selector(READY)
    assert opened.totals() == shown
    assert page.inner_text("#was") == said
    assert page.locator(".card").first.get_attribute("data-place") == first
    values = page.evaluate("['only', 'text', 'sort', 'colour'].map((id) => document.getElementById(id).value)")
    assert values == ["tr", "ro", "most", "tr"]
    assert page.is_checked("#blanks")
    page.click("#reset")
    page.wait_for_function("() => document.getElementById('reset').hidden")
    assert opened.totals() == before
    assert page.inner_text("#was") == ""


def test_each_active_filter_has_a_chip_that_removes_it_and_an_empty_result_says_why(
    browser: Any, explorer: Path
) -> None:
    page = Page(browser, explorer).page
    page.select_option("#only", "ri")
    page.fill("#text", "no such text")
    assert page.locator("#chips button").all_inner_texts() == [
        "examples with tokens dropped by RI ×",
        "text has “no such text” ×",
    ]
    assert page.inner_text("#none") == ("No example fits: examples with tokens dropped by RI; text has “no such text”.")
    page.click("#chips button >> nth=1")
    assert page.locator("#chips button").count() == 1
    assert page.is_hidden("#none")
    page.click("#chips button")
    assert page.inner_text("#matches") == "40 of 40 examples"


def test_found_text_is_marked_in_prompt_and_response_across_tokens(browser: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    path = preview(hostile_table(tokenizer), tokenizer, tmp_path / "preview.html")
    page = Page(browser, path).page
    page.fill("#text", "ONERROR")
    assert page.inner_text("#matches") == "1 of 5 examples"
    assert page.locator("mark").all_inner_texts() == ["onerror"]
    assert "".join(page.locator(".t.hit").all_inner_texts()) == "onerror"


def test_shown_blanks_let_lines_end_where_they_did(browser: Any, tmp_path: Path) -> None:
    text = "several quite ordinary words that fill a line and then another one of these " * 3 + "end"
    tokenizer = byte_tokenizer()
    ids = encode(tokenizer, text)
    row = {"example_id": ["a"], "input_ids": pa.array([ids[:1] + ids], pa.list_(pa.int32())), "prompt_length": [1]}
    scored = pa.table({**row, "logp": pa.array([[-0.5] * len(ids)], pa.list_(pa.float32()))})
    table = build_mask(scored, PRESETS["paper"], [Attribute.kn]).table
    page = Page(browser, preview(table, tokenizer, tmp_path / "preview.html")).page
    page.set_viewport_size({"width": 320, "height": 900})
    page.evaluate("document.getElementById('filters').open = true")
    page.check("#blanks")
    tops = page.evaluate("[...document.querySelectorAll('.card .t')].map((span) => span.getClientRects()[0].top)")
    breaks = [k for k in range(1, len(ids)) if tops[k] > tops[k - 1] + 5]
    assert len(breaks) >= 2
    assert all(text[k - 1] == " " for k in breaks)


@pytest.mark.parametrize("width", [390, 1440])
def test_the_first_token_is_at_most_five_tabs_away_without_the_link(browser: Any, explorer: Path, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(120_000)
    page.goto(explorer.as_uri())
    page.wait_for_selector(READY)
    for _ in range(5):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.t')"):
            break
    assert page.evaluate("document.activeElement.dataset.k") == "0"


def test_the_first_token_is_one_link_away(browser: Any, explorer: Path) -> None:
    page = Page(browser, explorer).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("[document.activeElement.className.split(' ')[0], document.activeElement.dataset.k]") == [
        "t",
        "0",
    ]


def test_two_masks_differ_where_the_sets_of_their_dropped_tokens_do(
    browser: Any, scored: pa.Table, masked: pa.Table, tmp_path: Path
) -> None:
    other = build_mask(scored, PRESETS["released"], list(Attribute)).table
    shuffled = other.take(list(reversed(range(other.num_rows))))
    path = preview(masked, byte_tokenizer(), tmp_path / "preview.html", against=("released", shuffled))
    page = Page(browser, path).page
    mine, theirs = (set(np.flatnonzero(~MaskedTokens.from_mask(table).kept)) for table in (masked, other))
    assert page.inner_text("#was") == (
        f"{len(mine ^ theirs):,} tokens differ from released: {len(mine - theirs):,} dropped only here, "
        f"{len(theirs - mine):,} only there"
    )
    assert page.locator("#colour").input_value() == "differ"
    for place in page.evaluate("order.filter((e) => cards[e].dataset.filled)"):
        first, last = MaskedTokens.from_mask(masked).offsets[place : place + 2]
        here, there = (page.locator(f'.card[data-place="{place}"] [data-side="{side}"]') for side in ("here", "there"))
        coloured = [here.locator(".t:not(.s0)").count(), there.locator(".t:not(.s0)").count()]
        assert coloured == [len((a - b) & set(range(first, last))) for a, b in ((mine, theirs), (theirs, mine))]
    page.select_option("#only", "here")
    page.wait_for_function("() => location.hash.includes('only=here')")
    tokens = MaskedTokens.from_mask(masked)
    assert page.inner_text("#matches") == f"{len({tokens.example[k] for k in mine - theirs})} of 40 examples"


def test_alternatives_and_attention_are_shown_at_the_token(browser: Any, masked: pa.Table, tmp_path: Path) -> None:
    k, lengths = 2, MaskedTokens.from_mask(masked).lengths
    example = int(np.flatnonzero(lengths > 3)[0])
    words = {"top_id": [5, 7], "top_p": [0.75, 0.125], "from_at": [0, 0], "from_share": [0.5, 0.0]}
    table = masked
    for name, values in words.items():
        kind = pa.int32() if isinstance(values[0], int) else pa.float32()
        rows = [[values] * int(length) for length in lengths]
        table = table.append_column(name, pa.array(rows, pa.list_(pa.list_(kind, k))))
    tokenizer = byte_tokenizer()
    page = Page(browser, preview(table, tokenizer, tmp_path / "preview.html"), f"#example={example}&token=3").page
    said = page.inner_text("#tip")
    first, second = (visible(Pieces(tokenizer).alone(token)) for token in (5, 7))
    assert f"{first}\t0.75\n{second}\t0.13" in said
    assert "who attends to it" in said and "\t-3 later\t0.500" in said
    assert page.evaluate("[...document.querySelectorAll('.t.from')].map((span) => span.dataset.k)") == ["0"]


def test_what_a_token_shows_is_what_a_direct_pass_of_the_model_gives(browser: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    row = {"prompt": "Tom has 3 apples and buys 4. How many?", "response": "He has 3 + 4 = 7 apples.\n#### 7"}
    config = ScorerConfig(name="xtf", attributes=list(Attribute), top=3, attenders=3)
    scored = xtf.score(model, tokenizer, [row] * 2, scorer=config, progress=False)
    path = preview(xtf.mask(scored), tokenizer, tmp_path / "preview.html")
    token, start, ids = 4, scored[0]["prompt_length"], torch.tensor([scored[0]["input_ids"]])
    with torch.no_grad():
        output = model(input_ids=ids, output_attentions=True)
    likely = output.logits[0, start + token - 1].softmax(-1).topk(3)
    attention = output.attentions[-1][0].mean(0)[start + token :, start + token].topk(3)
    said = Page(browser, path, f"#example=0&token={token}").page.inner_text("#tip")
    alone = Pieces(tokenizer).alone
    shown = {visible(alone(token)): p for token, p in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)}
    places = zip(attention.indices.tolist(), attention.values.tolist(), strict=True)
    shown |= {f"{later} later" if later else "itself": share for later, share in places}
    for name, value in shown.items():
        found = re.search(rf"(?:^|\t){re.escape(name)}\t(0\.\d+)", said, re.MULTILINE)
        assert found and float(found[1]) == pytest.approx(value, abs=0.5 * 10 ** (2 - len(found[1])) + 1e-4)


def test_on_a_phone_the_verdict_leaves_room_for_the_examples(browser: Any, explorer: Path) -> None:
    for width, folded in ((390, True), (1440, False)):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_default_timeout(120_000)  # a busy machine is slow, not wrong
        page.goto(explorer.as_uri())
        page.wait_for_selector(READY)
        assert page.inner_text("#verdict strong") == "This mask: look closer"
        assert page.locator("#verdict > ul > li").count() == 2  # the worst reason, the first remedy
        assert page.locator("#reasons[open]").count() == (not folded)
        if folded:
            assert page.evaluate("document.getElementById('examples').getBoundingClientRect().top") < 900


def test_the_page_says_that_the_ends_of_responses_are_dropped(browser: Any, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(HOSTILE, "<img src=x onerror=alert(1)>")
    scored, scores_ends = hostile_table(tokenizer), replace(PRESETS["paper"], end=ThresholdEnd.scored)
    table = build_mask(scored, scores_ends, [Attribute.kn]).table  # KN drops the last token of each response
    page = Page(browser, preview(table, tokenizer, tmp_path / "preview.html", threshold=scores_ends)).page
    assert page.inner_text("#verdict strong") == "This mask: do not train on this"
    said = page.inner_text("#verdict > ul")
    assert "The end of 100 % of the responses is dropped: none teaches to stop." in said
    assert "Try threshold.end=kept: the end of a response is not judged" in page.inner_text("#verdict")


@pytest.mark.parametrize("width", [390, 768, 1440])
@pytest.mark.parametrize("which", ["explorer", "heat", *PAGES])
def test_there_is_no_serious_accessibility_violation_nor_sideways_scrolling(
    browser: Any, address: Callable[[str], str], which: str, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed (extra: test)")
    context = browser.new_context(bypass_csp=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(address(which))
    if which not in PAGES:
        for drawn in (READY, "#overlap .bars", "#plot-tr .bars"):
            page.wait_for_selector(drawn, state="attached")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if which not in PAGES and width < 960:  # examples before sliders
            tops = page.evaluate(
                "['examples', 'sliders'].map((id) => document.getElementById(id).getBoundingClientRect().top)"
            )
            assert tops[0] < tops[1]
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (each["id"], [node["html"] for node in each["nodes"]][:3])
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == [], scheme
