"""The explorer's data and the terminal preview; the page itself is tested in test_browser.py."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from made_runs import scored_table, write_run
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import xtf
from xtf.config.schema import PRESETS, Attribute, KNThreshold, Protect, RIThreshold, ThresholdConfig, ThresholdEnd
from xtf.data.provenance import recorded, tokenizer_digest
from xtf.data.ragged import Responses, with_ends, with_row_weights
from xtf.data.tokens import Pieces, visible
from xtf.reporting import explorer
from xtf.reporting.explorer import _run_title, differences, preview, summary
from xtf.reporting.runs import recorded_config
from xtf.reporting.shown import preview_text
from xtf.runtime.run_folder import RunFolder
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import MaskedTokens, build_mask, row_weighted
from xtf.scoring.sensitivity import NEVER, sweep
from xtf.scoring.thresholds import in_words

SHARED = Path(__file__).parents[3] / "shared" / "tokenizers"
HOSTILE = "</script><script>alert(1)</script>"


def byte_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a token for each byte and for each of `words`."""
    vocabulary = {symbol: place for place, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(words))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def payload(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the page unpacks: its description, and its columns by name."""
    page = path.read_text(encoding="utf-8")
    packed = {name: re.search(rf'id="{name}">([^<]*)<', page) for name in ("meta", "arrays")}
    meta, blob = (gzip.decompress(base64.b64decode(found.group(1))) for found in packed.values() if found)
    described = json.loads(meta)
    columns = {
        column["name"]: np.frombuffer(blob, column["type"], column["length"], column["start"])
        for column in described["columns"]
    }
    return described, columns


def masked_table(examples: int = 20, threshold: str = "paper") -> pa.Table:
    return build_mask(scored_table(examples), PRESETS[threshold], list(Attribute)).table


# -- pieces of text --


def test_a_character_spread_over_tokens_is_shown_once_with_its_last_token() -> None:
    tokenizer = byte_tokenizer()
    pieces = Pieces(tokenizer)(encode(tokenizer, "a😀b"))
    assert pieces == ["a", "", "", "", "😀", "b"]


def test_bytes_that_never_become_a_character_are_shown_as_replacements() -> None:
    tokenizer = byte_tokenizer()
    first_byte = encode(tokenizer, "😀")[0]
    assert Pieces(tokenizer)([first_byte, *encode(tokenizer, "x"), first_byte]) == ["\ufffd", "x", "\ufffd"]


@pytest.mark.parametrize(
    "text",
    ["plain words, twice  spaced", "ไทย 漢字 かな", "👩‍👩‍👧 é", "مرحبا بالعالم", "def f():\n\treturn 1\r\n", HOSTILE],
)
@pytest.mark.parametrize("name", ["bytes", "qwen2.5", "phi-3"])
def test_pieces_joined_are_the_decoded_text(name: str, text: str) -> None:
    if name != "bytes" and not (SHARED / name).is_dir():
        pytest.skip(f"no tokenizer at {SHARED / name}")
    tokenizer = byte_tokenizer() if name == "bytes" else AutoTokenizer.from_pretrained(SHARED / name)
    ids = encode(tokenizer, text)
    pieces = Pieces(tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces).strip(" ") == text.strip(" ")


def test_blanks_and_control_characters_are_made_visible() -> None:
    assert visible(" a\tb\n\u202e") == "·a⇥b⏎\\u202e"
    assert visible("") == "(empty)"


# -- sliders --


@pytest.mark.parametrize("shift", [-0.03, 0.0, 0.03])
@pytest.mark.parametrize("preset", ["paper", "released", "quantile"])
@pytest.mark.parametrize("attribute", list(Attribute))
def test_every_slider_position_drops_what_a_mask_with_that_setting_drops(
    preset: str, attribute: Attribute, shift: float
) -> None:
    scored, chosen = scored_table(15), getattr(PRESETS[preset], attribute.value)
    config = replace(PRESETS[preset], **{attribute.value: replace(chosen, shift=shift)})
    tokens = MaskedTokens.from_mask(build_mask(scored, config, [attribute]).table)
    block = tokens.only(ATTRIBUTES[attribute].source)
    found = sweep(ATTRIBUTES[attribute], config, block, block)
    name, key = found.setting.split(".")[1:]
    assert name == attribute.value
    for place in {0, found.chosen, len(found.values) // 3, len(found.values) - 1}:
        rule = replace(getattr(config, name), **{key: found.values[place]})
        try:
            mask = build_mask(scored, replace(config, **{name: rule}), [attribute])
        except ValueError:  # a mask that keeps nothing is refused
            assert found.dropped(place).all()
            continue
        assert (MaskedTokens.from_mask(mask.table).dropped[name] == found.dropped(place)).all()
        assert found.shares()[place] == pytest.approx(mask.stats.dropped_share[name])


def test_a_token_that_no_setting_drops_is_marked_as_such() -> None:
    block = Responses(np.array([4]), {"logp": np.log(np.array([0.2, 0.7, 0.96, 0.99999]))})
    found = sweep(ATTRIBUTES["kn"], PRESETS["paper"], block, block)
    assert found.first[0] == NEVER
    assert found.values[found.first[1]] == 0.69  # the loosest p of the slider that 0.7 is above
    assert found.values[found.first[2]] == 0.955
    assert found.first[3] == 0


# -- the file --


def test_the_file_holds_the_table_and_the_starting_position(tmp_path: Path) -> None:
    table, tokenizer = masked_table(), byte_tokenizer()
    path = preview(table, tokenizer, tmp_path / "deep" / "preview.html", command="python run.py task=math")
    assert f"<strong>This mask: {summary(table, tokenizer).splitlines()[0].removeprefix('this mask: ')}</strong>" in (
        path.read_text(encoding="utf-8")
    )
    described, columns = payload(path)
    tokens = MaskedTokens.from_mask(table)
    assert described["total"] == 20
    assert described["rows"] == list(range(20))
    assert (columns["id"] == tokens.ids).all()
    assert (columns["kept"] == tokens.kept).all()
    assert (columns["score_tr"] == tokens.scores["tr"]).all()
    for attribute in described["attributes"]:
        place = attribute["values"].index(attribute["values"][attribute["chosen"]])
        assert ((columns[f"first_{attribute['name']}"] <= place) == tokens.dropped[attribute["name"]]).all()
    texts = [described["strings"][place] for place in columns["piece"][: tokens.offsets[1]]]
    assert texts == Pieces(tokenizer)(tokens.ids[: tokens.offsets[1]].tolist())


def test_a_larger_table_is_sampled_with_thresholds_of_the_whole(tmp_path: Path) -> None:
    table = masked_table(60)
    described, columns = payload(preview(table, byte_tokenizer(), tmp_path / "p.html", examples=7))
    assert described["total"] == 60
    assert len(described["rows"]) == len(described["ids"]) == 7
    assert described["rows"] == sorted(set(described["rows"]))
    assert described["live"]
    kept = MaskedTokens.from_mask(table.take(described["rows"])).kept
    assert (columns["kept"] == kept).all()


def test_a_file_that_would_be_too_large_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, tokenizer = masked_table(60), byte_tokenizer()
    whole = preview(table, tokenizer, tmp_path / "whole.html").stat().st_size
    one = preview(table, tokenizer, tmp_path / "one.html", examples=1).stat().st_size
    monkeypatch.setattr("xtf.reporting.explorer.MOST_BYTES", (whole + one) // 2)
    path = preview(table, tokenizer, tmp_path / "some.html")
    assert path.stat().st_size <= (whole + one) // 2
    assert 1 <= len(payload(path)[0]["rows"]) < 60


def test_a_dataset_of_the_library_is_taken_as_well(tmp_path: Path) -> None:
    table = masked_table()
    described, _ = payload(preview(datasets.Dataset(table), byte_tokenizer(), tmp_path / "p.html"))
    assert described["ids"] == table["example_id"].to_pylist()
    with pytest.raises(ValueError, match=r"no threshold 'papr'; choose from paper"):
        preview(table, byte_tokenizer(), tmp_path / "p.html", threshold="papr")


def test_a_dataset_is_shown_and_judged_with_the_threshold_that_it_was_masked_with(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    table = scored_table(20)
    guarded = ThresholdConfig(name="mine", ri=RIThreshold(c=0.2), end=ThresholdEnd.scored, dropped_weight=0.25)
    masked = xtf.mask(datasets.Dataset(table), guarded)
    assert payload(preview(masked, tokenizer, tmp_path / "p.html"))[0]["effect"] == "with weight 0.25"
    assert summary(masked, tokenizer) == summary(masked, tokenizer, threshold=guarded)
    for given in ("paper", replace(guarded, dropped_weight=0.5)):
        with pytest.raises(ValueError, match=r"masked with threshold=mine, not with .*: leave threshold out"):
            summary(masked, tokenizer, threshold=given)


def said_to_be_of(tokenizer: PreTrainedTokenizerFast, folder: Path | str) -> datasets.Dataset:
    """A masked dataset that says that this tokenizer scored it, and where that lies."""
    said = {"tokenizer": tokenizer_digest(tokenizer), "tokenizer_name": str(folder)}
    return xtf.mask(recorded(with_ends(scored_table(5), [0] * 5), said))


def test_without_a_tokenizer_the_one_that_scored_is_loaded(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer("a word of its own")
    tokenizer.save_pretrained(tmp_path / "saved")
    masked = said_to_be_of(tokenizer, tmp_path / "saved")
    assert summary(masked) == summary(masked, tokenizer)
    assert repr(summary(masked)) == str(summary(masked))  # a shell shows lines, not one with \\n in it
    assert xtf.show(masked) == xtf.show(masked, tokenizer)
    assert preview(masked, None, tmp_path / "p.html").is_file()
    gone = said_to_be_of(tokenizer, tmp_path / "gone")
    with pytest.raises(
        ValueError, match=r"scored with, .*gone, cannot be loaded \(there is no such folder.*\): give it"
    ):
        summary(gone)
    byte_tokenizer().save_pretrained(tmp_path / "gone")
    with pytest.raises(ValueError, match="were scored with another tokenizer"):
        xtf.show(gone)
    with pytest.raises(ValueError, match="do not say from where their tokenizer can be loaded: give it"):
        xtf.show(masked_table())


def test_another_tokenizers_rows_are_not_decoded(tmp_path: Path) -> None:
    masked, other = said_to_be_of(byte_tokenizer("one"), ""), byte_tokenizer("another")
    for look in (summary, xtf.show, lambda *both: preview(*both, tmp_path / "p.html")):
        with pytest.raises(ValueError, match=r"scored with another tokenizer .*: give the one of the scores"):
            look(masked, other)


def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path) -> None:
    masked, tokenizer = datasets.Dataset(masked_table(5)), byte_tokenizer()
    for rows in (masked[:3], datasets.DatasetDict(train=masked), list(masked), masked.to_pandas()):
        for look in (
            summary,
            xtf.show,
            lambda *both: preview(*both, tmp_path / "p.html"),
            lambda one, _: xtf.provenance(one),
        ):
            with pytest.raises(ValueError, match=r"a datasets\.Dataset is needed, not .* instead of rows\[:3\]"):
                look(rows, tokenizer)


def test_another_threshold_than_the_masks_is_refused(tmp_path: Path) -> None:
    other = ThresholdConfig(name="other", ri=RIThreshold(c=0.2))
    with pytest.raises(ValueError, match=r"another threshold: .* of RI differ"):
        preview(masked_table(), byte_tokenizer(), tmp_path / "p.html", threshold=other)


def test_an_appended_end_that_is_kept_is_told_from_the_tokens_that_sliders_move(tmp_path: Path) -> None:
    scored = scored_table(20)
    ended = with_ends(scored, [1, 0] * 10)
    table = build_mask(ended, PRESETS["paper"], list(Attribute)).table
    described, columns = payload(preview(table, byte_tokenizer(), tmp_path / "p.html"))
    tokens = MaskedTokens.from_mask(table)
    last = tokens.offsets[1:] - 1
    assert np.flatnonzero(columns["judged"] == 0).tolist() == last[::2].tolist()
    for attribute in described["attributes"]:
        first = columns[f"first_{attribute['name']}"]
        assert (first[last[::2]] == NEVER).all()
        assert ((first <= attribute["chosen"]) == tokens.dropped[attribute["name"]]).all()
    as_before = replace(PRESETS["paper"], end=ThresholdEnd.scored)
    table = build_mask(ended, as_before, list(Attribute)).table
    _, columns = payload(preview(table, byte_tokenizer(), tmp_path / "q.html", threshold=as_before))
    assert columns["judged"].all()
    with pytest.raises(ValueError, match="another threshold"):
        preview(table, byte_tokenizer(), tmp_path / "q.html")


def test_protected_tokens_stay_kept_at_every_slider_and_dropped_ones_are_shown_in_soft_masks(tmp_path: Path) -> None:
    scored = scored_table(20)
    flags = [[place == 0 for place in range(len(row))] for row in scored["logp"].to_pylist()]
    scored = scored.append_column("protected", pa.array(flags, pa.list_(pa.bool_())))
    guard = replace(PRESETS["paper"], protect=Protect.answer, dropped_weight=0.1, drop_probability=0.5)
    table = build_mask(scored, guard, list(Attribute)).table
    described, columns = payload(preview(table, byte_tokenizer(), tmp_path / "p.html", threshold=guard))
    tokens = MaskedTokens.from_mask(table)
    assert described["live"]
    assert described["effect"] == "with weight 0.1 in an epoch that drops them, each with probability 0.5"
    assert np.flatnonzero(columns["guarded"]).tolist() == tokens.offsets[:-1].tolist()
    assert (columns["kept"] == tokens.kept).all() and not columns["kept"].all()
    for attribute in described["attributes"]:
        assert (columns[f"first_{attribute['name']}"][tokens.offsets[:-1]] == NEVER).all()


def test_labels_of_another_method_have_no_sliders(tmp_path: Path) -> None:
    table = masked_table()
    kept_all = [
        [-100] * prompt + ids[prompt:]
        for ids, prompt in zip(table["input_ids"].to_pylist(), table["prompt_length"].to_pylist(), strict=True)
    ]
    table = table.set_column(table.column_names.index("labels"), "labels", pa.array(kept_all, pa.list_(pa.int32())))
    described, columns = payload(preview(table, byte_tokenizer(), tmp_path / "p.html"))
    assert not described["live"]
    assert columns["kept"].all()


def test_an_empty_or_unmasked_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        preview(masked_table().slice(0, 0), byte_tokenizer(), tmp_path / "p.html")
    with pytest.raises(ValueError, match="masked table is needed"):
        preview(scored_table(3), byte_tokenizer(), tmp_path / "p.html")


def test_texts_of_the_dataset_stand_nowhere_in_the_file_as_they_are(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(HOSTILE)
    table = scored_table(5)
    table = table.set_column(0, "example_id", pa.array([f"{HOSTILE}{row}" for row in range(5)]))
    masked = build_mask(table, PRESETS["paper"], list(Attribute)).table
    page = preview(masked, tokenizer, tmp_path / "p.html", title=HOSTILE).read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page


def head(path: Path) -> tuple[str, str]:
    """The page's title, and what stands under it."""
    found = re.search(r"<title>(.*?)</title>.*</h1>\n<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1], re.sub("<.*?>", "", found[2])


def test_a_page_of_the_library_says_what_the_rows_say_and_no_command(tmp_path: Path) -> None:
    tokenizer, ended = byte_tokenizer(), with_ends(scored_table(5), [0] * 5)
    said = {
        "model": "org/base",
        "model_commit": "abc",
        "dtype": "torch.bfloat16",
        "tokenizer": tokenizer_digest(tokenizer),
        "tokenizer_name": "org/other",
        "scorer": {"name": "xtf", "attributes": ["ri", "kn", "tr"]},
        "max_length": 2048,
        "versions": {"xtf": "0.1.0"},
    }
    masked = xtf.mask(recorded(ended, said), replace(PRESETS["paper"], kn=KNThreshold(pcp=0.9)))
    path = preview(masked, tokenizer, tmp_path / "p.html", against=("theirs", masked))
    title, facts = head(path)
    assert title == "base · paper, kn.pcp=0.9 · against theirs · XTF explorer"
    assert facts.startswith(
        "model org/base · commit abc · tokenizer org/other · scored RI, KN, TR, torch.bfloat16, at most 2,048 tokens · "
        "mask threshold paper, kn.pcp=0.9 · by XTF 0.1.0 · shown 20"
    )
    page = path.read_text(encoding="utf-8")
    assert "run.py" not in page and 'id="command"' not in page and payload(path)[0]["command"] is None
    assert 'id="command"' in preview(masked, tokenizer, path, command="make it").read_text(encoding="utf-8")


def test_pages_of_runs_that_differ_have_titles_that_do(tmp_path: Path) -> None:
    config = recorded_config(RunFolder(write_run(tmp_path, correct=[True], base=None)))
    usual = _run_title(config, {}, None)
    assert usual == "math · tiny · scorer xtf, threshold paper, seed 0 · XTF explorer"
    assert "threshold paper, threshold.kn.pcp=0.9, seed 0" in _run_title(config, {"threshold.kn.pcp": 0.9}, None)
    assert "seed 1" in _run_title(replace(config, seed=1), {}, None)
    other = write_run(tmp_path, correct=[True], base=None, scorer="none") / "mask.parquet"
    assert _run_title(config, {}, other).endswith(" · against math tiny full xtf none-paper seed0 · XTF explorer")


# -- the terminal --


def hand_made() -> tuple[pa.Table, PreTrainedTokenizerFast]:
    tokenizer = byte_tokenizer()
    prompt, response = encode(tokenizer, "Q"), encode(tokenizer, "abcd")
    table = pa.table(
        {
            "example_id": ["one"],
            "input_ids": pa.array([prompt + response], pa.list_(pa.int32())),
            "prompt_length": pa.array([1], pa.int32()),
            "drop_ri": [[False, True, True, False]],
            "drop_kn": [[False, False, True, False]],
            "labels": pa.array([[-100, response[0], -100, -100, -100]], pa.list_(pa.int32())),
        }
    )
    return table, tokenizer


def test_without_colour_dropped_tokens_stand_between_marks() -> None:
    table, tokenizer = hand_made()
    console = Console(no_color=True, force_terminal=False, width=80, record=True)
    console.print(preview_text(table, tokenizer))
    shown = console.export_text()
    assert "a[R:b][RK:c][-:d]" in shown
    assert "example 0 (one): 75.0 % of 4 tokens dropped" in shown
    assert "1 of 1 examples" in shown


def test_an_examples_share_is_of_what_is_judged_also_in_the_text(tmp_path: Path) -> None:
    lengths = [len(row) for row in scored_table(3)["logp"].to_pylist()]
    scored = with_ends(scored_table(3), [1, 0, 0])
    weights = [[1.0] * lengths[0], [0.0] * 2 + [1.0] * (lengths[1] - 2), [1.0] * lengths[2]]
    table = row_weighted(build_mask(with_row_weights(scored, weights), PRESETS["paper"], list(Attribute))).table
    _, columns = payload(preview(table, byte_tokenizer(), tmp_path / "p.html"))
    counts = np.add.reduceat(columns["judged"], columns["offsets"][:-1]).tolist()
    assert counts == [lengths[0] - 1, lengths[1] - 2, lengths[2]]
    titles = [title for title, *_ in preview_text(table, byte_tokenizer()).examples]
    assert [int(re.findall(r"of (\d+) tokens", title)[0]) for title in titles] == counts


def test_with_colour_dropped_tokens_carry_the_attributes_hue() -> None:
    table, tokenizer = hand_made()
    console = Console(force_terminal=True, color_system="truecolor", width=80, record=True)
    console.print(preview_text(table, tokenizer))
    shown = console.export_text(styles=True)
    assert "48;2;0;114;178mb\x1b" in shown  # RI's blue
    assert "[R:" not in shown


def test_a_notebook_shows_dropped_tokens_in_colour_and_texts_as_text() -> None:
    table, tokenizer = hand_made()
    page = preview_text(table, tokenizer)._repr_html_()
    assert '<span title="dropped by RI" style="background:#0072B24d;' in page
    assert '">b</span>' in page
    assert '<span title="dropped by RI + KN"' in page and '<span title="dropped by the method"' in page
    hostile = byte_tokenizer(HOSTILE)
    scored = pa.table(
        {
            "example_id": [HOSTILE],
            "input_ids": pa.array([encode(hostile, HOSTILE * 2)], pa.list_(pa.int32())),
            "prompt_length": pa.array([1], pa.int32()),
            "labels": pa.array([encode(hostile, HOSTILE * 2)], pa.list_(pa.int32())),
        }
    )
    shown = xtf.show(scored, hostile)._repr_html_()
    assert "<script" not in shown and shown.count("&lt;/script&gt;&lt;script&gt;") == 3


# -- two masks --


def test_a_mask_of_other_tokens_is_refused_by_name(tmp_path: Path) -> None:
    table, tokenizer = masked_table(), byte_tokenizer()
    assert differences(table, table, "itself") == (0, 0)
    with pytest.raises(ValueError, match="theirs masks other rows: it lacks 5 of 20"):
        preview(table, tokenizer, tmp_path / "p.html", against=("theirs", table.slice(5)))
    ids = [[1, *row[1:]] for row in table["input_ids"].to_pylist()]
    changed = table.set_column(1, "input_ids", pa.array(ids, pa.list_(pa.int32())))
    with pytest.raises(ValueError, match=r"theirs has other tokens in 'row-\d+'"):
        preview(table, tokenizer, tmp_path / "p.html", against=("theirs", changed))


def test_a_file_that_is_no_mask_is_refused_with_what_is_wanted(tmp_path: Path) -> None:
    table, tokenizer = masked_table(), byte_tokenizer()
    other = table.drop_columns(["example_id", "labels"])  # as an export's train.parquet
    with pytest.raises(ValueError, match=r"theirs is no mask, .*no column example_id and labels: give a run's mask"):
        preview(table, tokenizer, tmp_path / "p.html", against=("theirs", other))
    (tmp_path / "train.parquet").write_text("none")
    with pytest.raises(ValueError, match=r"train\.parquet: cannot be read: .*Parquet"):
        explorer._read_mask(tmp_path / "train.parquet")


# -- rules --


def test_rules_are_said_in_words() -> None:
    paper, released = PRESETS["paper"], PRESETS["released"]
    assert in_words(ATTRIBUTES["kn"], paper) == "Dropped when its p under the base model is above 0.95."
    assert "1.5 interquartile ranges" in in_words(ATTRIBUTES["ri"], released)
    assert in_words(ATTRIBUTES["ri"], released).endswith("; at most 5% of a response.")
    assert "of 5 (Multi-Otsu, of prompts and responses)" in in_words(ATTRIBUTES["tr"], released)
    assert "cluster 2, from below, of 5" in in_words(ATTRIBUTES["tr"], paper)
    assert "20.0% of all response tokens" in in_words(ATTRIBUTES["tr"], PRESETS["quantile"])
