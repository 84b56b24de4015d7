"""A fourth attribute, the place of a token in its response, added by one call and found wherever attributes are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import numpy as np
import pyarrow as pa
import pytest
from made_runs import write_run
from omegaconf import OmegaConf
from test_explorer import byte_tokenizer, payload

from xtf.config import schema
from xtf.config.checks import resolve
from xtf.config.compose import register as register_schema
from xtf.config.compose import to_config
from xtf.config.identity import identity, plain
from xtf.config.schema import PRESETS, ConfigError, ScorerConfig
from xtf.data.encode import Encoded
from xtf.data.ragged import positions
from xtf.reporting.explorer import preview
from xtf.reporting.published import dashboards, scalars
from xtf.reporting.run_report import console_table, run_report
from xtf.reporting.runs import load_run
from xtf.reporting.shown import preview_text
from xtf.runtime.artifacts import sha256
from xtf.scoring import attributes
from xtf.scoring.attributes import ATTRIBUTES, TokenAttribute, pick, rule_of
from xtf.scoring.masks import build_mask
from xtf.scoring.scorers import score_rows

ROOT = Path(__file__).parents[2]
PLACE = TokenAttribute(
    name="place",
    source="place",
    noise=1,
    title="Place",
    explanation="does it stand early in its response?",
    axis="place in the response, from 0",
    reason="it stands too late ({score})",
    colour="#CC79A7",
    mark="P",
    derive=lambda rows, brought: positions(rows.responses).astype(np.float32),
)
ROWS = [Encoded("a", [1, 2, 3, 4, 5, 6], 1), Encoded("b", [1, 2, 3, 4, 5, 6, 7], 2)]  # two responses of five tokens


@pytest.fixture
def place() -> Iterator[TokenAttribute]:
    """The attribute, registered; taken out again afterwards."""
    attributes.register(PLACE)
    yield PLACE
    del ATTRIBUTES["place"], schema.FURTHER_THRESHOLDS["place"]
    register_schema()  # Hydra's store, too, forgets it


def scored() -> pa.Table:
    table = score_rows(None, ROWS, ScorerConfig(name="own", attributes=["place"]))  # type: ignore[arg-type]  # no model is asked
    return table.append_column("logp", pa.array([[-2.0] * 5] * 2, pa.list_(pa.float32())))


def test_the_table_is_read_without_torch_matplotlib_or_arrow() -> None:
    code = "import sys, xtf.scoring.attributes; print({'torch', 'matplotlib', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


def test_names_marks_colours_and_settings_are_each_ones_own() -> None:
    rows = list(ATTRIBUTES.values())
    for part in ("name", "mark", "colour", "title"):
        assert len({getattr(row, part) for row in rows}) == len(rows), part
    assert schema.attribute_names() == list(ATTRIBUTES) == ["ri", "kn", "tr"]
    assert all(rule_of(PRESETS["paper"], row) == getattr(PRESETS["paper"], row.name) for row in rows)
    with pytest.raises(ValueError, match="there is an attribute 'ri'"):
        attributes.register(ATTRIBUTES["ri"])


def test_an_unknown_attribute_is_refused_with_the_nearest_name() -> None:
    assert [row.name for row in pick(["tr", "ri", "tr"])] == ["ri", "tr"]
    with pytest.raises(ValueError, match=r"unknown attribute 'rii'; did you mean 'ri'\?; known are ri, kn, tr"):
        pick(["rii"])


def test_a_further_attribute_is_scored_without_a_model_where_it_needs_none(place: TokenAttribute) -> None:
    assert scored()["place"].to_pylist() == [[0, 1, 2, 3, 4]] * 2


def test_a_further_attribute_drops_by_its_own_setting(place: TokenAttribute) -> None:
    mask = build_mask(scored(), PRESETS["paper"], ["place", "kn"])  # p is 0.14: KN drops nothing
    # q=0.1 of ten tokens is one, and the two last ones tie: of none and two, as near, the fewer are dropped
    assert mask.stats.dropped_share["place"] == 0.0
    wider = attributes.with_rule(PRESETS["paper"], place, schema.QuantileThreshold(q=0.4))
    mask = build_mask(scored(), wider, ["place", "kn"])
    assert mask.table["drop_place"].to_pylist() == [[False, False, False, True, True]] * 2
    assert mask.table["labels"].to_pylist()[0] == [-100, 2, 3, 4, -100, -100]
    assert mask.stats.dropped_share == pytest.approx({"kn": 0.0, "place": 0.4, "union": 0.4})
    assert mask.stats.overlap == {"kn_place": 0.0}
    assert mask.stats.thresholds["place"] == {"rule": "quantile", "shift": 0.0, "cap": None, "above": 2.0}


def test_a_further_attribute_has_a_node_in_the_configuration(
    place: TokenAttribute, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_schema()
    monkeypatch.setenv("XTF_ROOT", str(ROOT))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = hydra.compose("config", ["scorer.attributes=[ri,place]", "threshold.place.q=0.25"])
        config = resolve(to_config(node))
        assert rule_of(config.threshold, place).q == 0.25
        assert dict(identity(config))["threshold.place.q"] == 0.25
        assert config.scorer.attributes == ["ri", "place"]
        with pytest.raises(Exception, match="qq"):
            hydra.compose("config", ["threshold.place.qq=0.25"])
        with pytest.raises(ConfigError, match="no attribute 'plac'; did you mean 'place'"):
            resolve(to_config(hydra.compose("config", ["scorer.attributes=[plac]"])))
        with pytest.raises(ValueError, match=r"threshold\.place\.q=2"):
            resolve(to_config(hydra.compose("config", ["threshold.place.q=2"])))


def test_a_further_attribute_is_on_the_page_and_in_the_terminal(place: TokenAttribute, tmp_path: Path) -> None:
    wider = attributes.with_rule(PRESETS["paper"], place, schema.QuantileThreshold(q=0.4))
    table = build_mask(scored(), wider, ["place", "kn"]).table
    path = preview(table, byte_tokenizer(), tmp_path / "p.html", threshold=wider)
    described, columns = payload(path)
    (found,) = (one for one in described["attributes"] if one["name"] == "place")
    assert (found["title"], found["colour"], found["setting"]) == ("Place", "#CC79A7", "threshold.place.q")
    assert found["values"][found["chosen"]] == 0.4
    assert described["bits"] == {"ri": 1, "kn": 2, "tr": 4, "place": 8}
    assert columns["score_place"].tolist() == [0, 1, 2, 3, 4] * 2
    assert ((columns["first_place"] <= found["chosen"]) == np.tile([False, False, False, True, True], 2)).all()
    page = path.read_text(encoding="utf-8")
    assert ".s8 { background: var(--place-tint); text-decoration: underline solid var(--place) 2px; }" in page
    assert (
        ".s10 { background: repeating-linear-gradient(135deg, var(--kn-tint) 0px 5px, var(--place-tint) 5px 10px)"
        in page
    )
    runs = preview_text(table, byte_tokenizer()).examples[0][2]
    assert [names for _, names in runs] == [(), ("place",)]


def test_a_further_attribute_is_in_reports_and_dashboards(place: TokenAttribute, tmp_path: Path) -> None:
    folder = write_run(tmp_path, correct=[True, False], base=[False, False])
    table = build_mask(scored(), PRESETS["paper"], ["place", "kn"])
    wider = attributes.with_rule(PRESETS["paper"], place, schema.QuantileThreshold(q=0.4))
    mask = build_mask(scored(), wider, ["place", "kn"])
    assert table.stats != mask.stats
    import pyarrow.parquet as pq

    pq.write_table(mask.table, folder / "mask.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["mask"]["sha256"] = sha256(folder / "mask.parquet")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    record = json.loads((folder / "metrics.json").read_text()) | {"mask": mask.stats.to_dict()}
    (folder / "metrics.json").write_text(json.dumps(record))
    config = OmegaConf.load(folder / "config.yaml")
    config.threshold = OmegaConf.create(plain(wider))
    OmegaConf.save(config, folder / "config.yaml")
    paths = run_report(folder, tmp_path / "out")
    assert {"distributions.png", "sensitivity.png", "overlap.png"} <= {path.name for path in paths}
    assert "dropped by PLACE" in (tmp_path / "out" / "report.md").read_text()
    assert scalars(load_run(folder))["mask/dropped/place"] == pytest.approx(0.4)
    assert "by PLACE" in [column.header for column in console_table(record).renderables[1].columns]  # type: ignore[union-attr]
    keys = {key for board in dashboards() for part in board.sections.values() for panel in part for key in panel.keys}
    assert {"mask/dropped/place", "mask/overlap/kn_place", "scores/place"} <= keys
