"""Every method's weights on numbers worked out by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from xtf.config.schema import Attribute, Protect, SourceConfig, ThresholdConfig, ThresholdEnd
from xtf.data.batches import Batches
from xtf.data.ragged import IGNORED, ROW_WEIGHTS, Responses, with_ends, with_row_weights
from xtf.data.rows import load_rows
from xtf.scoring.masks import Mask, row_weighted, weights_to_labels
from xtf.scoring.methods import (
    METHODS,
    Decile,
    Forgetting,
    HighLoss,
    LowLoss,
    Matched,
    Method,
    OnlineTokens,
    Oracle,
    Random,
    SelfEvolving,
    TokenCleaning,
)

LOGP = [-0.01, -1.0, -0.02, -3.0, -0.5, -0.04]  # two examples: four response tokens, two
REF_LOGP = [-0.01, -0.2, -0.01, -2.9, -0.1, -0.5]  # l_base - l_ref: 0, 0.8, 0.01, 0.1, 0.4, -0.46


def scored() -> pa.Table:
    lists = pa.list_(pa.float32())
    return pa.table(
        {
            "example_id": ["a", "b"],
            "input_ids": pa.array([[9, 8, 1, 2, 3, 4], [9, 5, 6]], pa.list_(pa.int32())),
            "prompt_length": pa.array([2, 1], pa.int32()),
            "logp": pa.array([LOGP[:4], LOGP[4:]], lists),
            "ref_logp": pa.array([REF_LOGP[:4], REF_LOGP[4:]], lists),
            "logp_unconditional": pa.array([[-1.0, -1.5, -1.0, -4.5], [-0.2, -0.2]], lists),
        }
    )


def table_of(method: Method, seed: int = 0) -> pa.Table:
    return method.mask(scored(), ThresholdConfig(name="paper"), [Attribute.kn], seed).table


def labels_of(method: Method, seed: int = 0) -> list[list[int]]:
    return table_of(method, seed)["labels"].to_pylist()


def tokens(logp: list[float], **more: object) -> OnlineTokens:
    count = len(logp)
    fields = {
        "weights": torch.ones(count),
        "stored": {},
        "example": torch.zeros(count, dtype=torch.int64),
        "progress": 0.0,
    }
    return OnlineTokens(logp=torch.tensor(logp), **(fields | more))


def test_normal_and_double_epochs_train_every_response_token() -> None:
    assert labels_of(METHODS["normal"]()) == [[-100, -100, 1, 2, 3, 4], [-100, 5, 6]]
    assert labels_of(METHODS["double_epochs"]()) == labels_of(METHODS["normal"]())
    assert (METHODS["normal"].epochs_factor, METHODS["double_epochs"].epochs_factor) == (1, 2)


def test_xtf_drops_what_the_threshold_drops() -> None:
    # p = 0.99, 0.37, 0.98, 0.05 | 0.61, 0.96 against 0.95
    assert labels_of(METHODS["xtf"]()) == [[-100, -100, -100, 2, -100, 4], [-100, 5, -100]]


def test_low_and_high_loss_drop_as_many_tokens_of_each_example_as_the_matched_mask() -> None:
    # XTF drops two tokens of the first example and one of the second.
    assert labels_of(LowLoss()) == [[-100, -100, -100, 2, -100, 4], [-100, 5, -100]]
    assert labels_of(HighLoss()) == [[-100, -100, 1, -100, 3, -100], [-100, -100, 6]]


def test_controls_keep_the_appended_end_where_the_mask_does() -> None:
    ended = with_ends(scored(), [1, 1])  # p of the ends: 0.05 and 0.96
    paper = ThresholdConfig(name="paper")

    def labels(method: Method, threshold: ThresholdConfig = paper, seed: int = 0) -> list[list[int]]:
        return method.mask(ended, threshold, [Attribute.kn], seed).table["labels"].to_pylist()

    assert labels(METHODS["xtf"]()) == [[-100, -100, -100, 2, -100, 4], [-100, 5, 6]]
    assert labels(LowLoss()) == labels(METHODS["xtf"]())
    assert labels(HighLoss()) == [[-100, -100, 1, -100, -100, 4], [-100, 5, 6]], "p 0.37 and 0.98, not the end's 0.05"
    found = {str(labels(Random(), seed=seed)) for seed in range(100)}
    assert len(found) == 3, "pairs of the three tokens before the end"
    assert all("4], [-100, 5, 6]]" in one for one in found)
    stats = [method.mask(ended, paper, [Attribute.kn], 0).stats for method in (METHODS["xtf"](), Random())]
    assert [(one.response_tokens, one.kept_tokens, one.end_tokens) for one in stats] == [(4, 2, 2)] * 2
    judged = replace(paper, end=ThresholdEnd.scored)
    assert labels(HighLoss(), judged) == labels_of(HighLoss())
    assert [labels(Random(), judged, seed) for seed in range(9)] == [labels_of(Random(), seed) for seed in range(9)]


def test_controls_of_a_soft_mask_are_as_soft() -> None:
    soft = ThresholdConfig(name="soft", dropped_weight=0.25)
    for name in ("xtf", "random", "low_loss", "high_loss"):
        hard = labels_of(METHODS[name](), 3)
        table = METHODS[name]().mask(scored(), soft, [Attribute.kn], 3).table
        assert table["labels"].to_pylist() == [[-100, -100, 1, 2, 3, 4], [-100, 5, 6]]
        expected = [
            [0.25 if label == -100 else 1.0 for label in row[at:]] for row, at in zip(hard, (2, 1), strict=True)
        ]
        assert table["weights"].to_pylist() == expected, name


def test_controls_drop_as_much_as_a_mask_that_protects_and_never_what_it_protects() -> None:
    lists = pa.list_(pa.bool_())
    table = scored().append_column("protected", pa.array([[False, False, True, False], [False, True]], lists))
    guard = ThresholdConfig(name="guard", protect=Protect.answer)

    def labels(name: str, seed: int = 0) -> list[list[int]]:
        return METHODS[name]().mask(table, guard, [Attribute.kn], seed).table["labels"].to_pylist()

    assert labels("xtf") == [[-100, -100, -100, 2, 3, 4], [-100, 5, 6]], "3 and 6 are known and protected"
    assert labels("low_loss") == labels("xtf")
    assert labels("high_loss") == [[-100, -100, 1, 2, 3, -100], [-100, 5, 6]]
    found = {str(labels("random", seed)) for seed in range(60)}
    assert len(found) == 3 and all(", 3, " in one and one.endswith("[-100, 5, 6]]") for one in found)


def test_a_control_refuses_to_match_what_has_no_mask() -> None:
    with pytest.raises(ValueError, match=r"method\.match=dft"):
        Random(match="dft")


def test_random_keeps_the_count_per_example_and_follows_the_seed() -> None:
    seen = set()
    for seed in range(100):
        labels = labels_of(Random(), seed)
        assert [sum(label != -100 for label in row) for row in labels] == [2, 1]
        assert labels == labels_of(Random(), seed)
        seen.add(str(labels))
    assert len(seen) == 12, "6 pairs of the four tokens, times 2"


def test_a_decile_is_a_tenth_of_all_response_tokens_by_probability_and_ties_go_by_position() -> None:
    # Twelve tokens of two examples; tenths end at ranks 1, 2, 3, 4, 6, 7, 8, 9, 10, 12.
    logp = np.array([-5, -9, -1, -1, -1, -2, -8, -7, -6, -4, -3, 0], np.float32)
    scores = Responses(np.array([5, 7]), {"logp": logp})
    kept = [np.flatnonzero(Decile(decile=number).weights(scores, 0)).tolist() for number in range(1, 11)]
    assert kept == [[1], [6], [7], [8], [0, 9], [10], [5], [2], [3], [4, 11]]
    for number, tenth in enumerate(kept, start=1):
        others = np.flatnonzero(Decile(decile=number, invert=True).weights(scores, 0)).tolist()
        assert sorted(tenth + others) == list(range(12))


@pytest.mark.parametrize("number", [0, 11])
def test_an_eleventh_decile_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=rf"method\.decile={number}"):
        Decile(decile=number)


def test_the_oracle_drops_every_token_with_planted_text_and_no_other() -> None:
    # Codes: 0 clean, 1 to 5 the kinds of noise, below 0 planted and clean text in one token.
    planted = np.array([0, 3, 0, -1, 5], np.int8)
    scores = Responses(np.array([2, 3]), {"planted": planted})
    assert Oracle().weights(scores, 0).tolist() == [1, 0, 1, 0, 0]


def test_prift_weighs_by_the_base_models_probability_and_by_nothing_else() -> None:
    table = table_of(METHODS["prift"]())
    assert table["labels"].to_pylist() == labels_of(METHODS["normal"]())
    # e to -0.01, -1, -0.02, -3, -0.5, -0.04, as a table of exponentials has them
    expected = [0.99005, 0.367879, 0.980199, 0.049787, 0.606531, 0.960789]
    assert np.concatenate(table["weights"].to_numpy()).tolist() == pytest.approx(expected, abs=1e-6)
    assert table["weights"].type == pa.list_(pa.float32())


def test_prift_gives_no_label_to_what_the_base_model_holds_for_impossible() -> None:
    scores = Responses(np.array([2]), {"logp": np.array([-200.0, 0.0], np.float32)})
    assert METHODS["prift"]().weights(scores, 0).tolist() == [0.0, 1.0]


def test_data_filtering_keeps_whole_examples_by_ifd_below_one() -> None:
    # Mean log-probabilities given the prompt and alone: -1.0075 and -2, IFD e^-0.99; -0.27 and -0.2, e^0.07.
    assert labels_of(METHODS["data_filtering"]()) == [[-100, -100, 1, 2, 3, 4], [-100, -100, -100]]
    assert labels_of(METHODS["data_filtering"](keep=1.0)) == [[-100, -100, 1, 2, 3, 4], [-100, -100, -100]]


def test_token_cleaning_keeps_the_largest_excess_of_the_whole_set() -> None:
    assert labels_of(TokenCleaning(keep=0.5)) == [[-100, -100, -100, 2, -100, 4], [-100, 5, -100]]


def test_ties_of_the_excess_go_by_position() -> None:
    scores = Responses(np.array([4]), {"logp": np.zeros(4), "ref_logp": np.zeros(4)})
    assert TokenCleaning(keep=0.5).weights(scores, 0).tolist() == [1, 1, 0, 0]


def test_self_evolving_parts_cover_the_rows_once() -> None:
    rows = [str(row) for row in range(50)]
    parts = SelfEvolving(subsets=5, warmup=0.2).parts(rows)
    assert [len(part) for part in parts] == [10, 8, 8, 8, 8, 8]
    assert sorted(np.concatenate(parts).tolist()) == list(range(50))
    assert TokenCleaning(warmup=0.2).warmup_rows(50).tolist() == parts[0].tolist()
    assert [len(part) for part in SelfEvolving(subsets=5, warmup=0.5).parts(rows[:4])] == [2, 1, 1]


def test_self_evolving_parts_keep_the_rows_of_a_source_together() -> None:
    sources = [f"s{row % 17}" for row in range(50)]
    parts = SelfEvolving(subsets=3, warmup=0.2).parts(sources)
    assert sorted(np.concatenate(parts).tolist()) == list(range(50))
    names = [{sources[row] for row in part} for part in parts]
    assert sum(map(len, names)) == 17
    assert all(part.tolist() == sorted(part) for part in parts)


def test_slm_keeps_the_largest_excess_over_the_reference() -> None:
    seen = tokens(LOGP, stored={"ref_logp": torch.tensor(REF_LOGP)})
    assert METHODS["slm"](keep=0.5).online_weights(seen).tolist() == [0, 1, 0, 1, 1, 0]


def test_sstoken_mixes_loss_gain_and_prompt_attention_within_each_example() -> None:
    seen = tokens(
        [-0.5, -1.0, -2.0, -1.0, -1.0],
        stored={"logp": torch.tensor([-1.0, -1.0, -3.0, -2.0, -1.0])},
        example=torch.tensor([7, 7, 7, 2, 2]),
        prompt_attention=torch.tensor([0.2, 0.9, 0.1, 0.1, 0.9]),
    )
    # Gains .5 0 1 | 1 0; scores at gamma .5: .35 .45 .55 | .55 .45; ceil(1.2) tokens of three, one of two.
    assert METHODS["sstoken"](keep=0.4).online_weights(seen).tolist() == [0, 1, 1, 1, 0]


def test_dft_weighs_by_probability_and_profit_cuts_at_tau() -> None:
    seen = tokens([math.log(0.05), math.log(0.2), 0.0])
    assert METHODS["dft"]().online_weights(seen).tolist() == pytest.approx([0.05, 0.2, 1.0])
    assert METHODS["profit"]().online_weights(seen).tolist() == [0, 1, 1]


def test_eaft_weighs_by_entropy() -> None:
    seen = tokens([-1.0, -1.0], entropy=torch.tensor([math.log(20), 1.5]))
    assert METHODS["eaft"]().online_weights(seen).tolist() == pytest.approx([math.log(20) / 3, 0.5])
    assert METHODS["eaft"](alpha=2.0).online_weights(seen)[1].item() == pytest.approx(0.25)


def test_forgetting_subtracts_the_rest_with_growing_strength() -> None:
    method = Forgetting(keep=2 / 3)
    table = table_of(method)
    weights = np.concatenate(table["weights"].to_numpy())
    # Four tokens are learnt; the other two share -4, so that sum(w l) / 4 is mean(top) - mean(rest).
    assert weights.tolist() == [-2, 1, 1, 1, 1, -2]
    seen = tokens([-1.0] * 6, weights=torch.tensor(weights), progress=0.5)
    assert method.online_weights(seen).tolist() == pytest.approx([0.125, 1, 1, 1, 1, 0.125])


def given(tmp_path: Path, *rows: dict[str, Any] | str, limit: int | None = None) -> Mask:
    """What method=given makes of the rows of a file: dicts, or lines as they stand in it."""
    file = tmp_path / "mine.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return given_file(file, limit)


def given_file(file: Path, limit: int | None = None) -> Mask:
    method = METHODS["given"]()
    table = Batches.of(pa.Table.from_batches(method.own_table(load_rows(SourceConfig(path=str(file), limit=limit)))))
    streamed = method.stream(table, ThresholdConfig(), (), seed=0)
    found = Mask(streamed.batches.table(), streamed.stats)
    assert method.mask(table.table(), ThresholdConfig(), (), 0).table.equals(found.table)
    return found


def test_given_labels_train_as_they_are(tmp_path: Path) -> None:
    labels = [[-100, -100, 1, -100, 3], [-100, 5, 6]]
    ids = [[9, 8, 1, 2, 3], [9, 5, 6]]
    mask = given(tmp_path, *({"input_ids": row, "labels": own} for row, own in zip(ids, labels, strict=True)))
    assert mask.table["labels"].to_pylist() == labels
    assert mask.table["prompt_length"].to_pylist() == [2, 1]
    assert mask.table["example_id"].to_pylist() == ["1", "2"], "rows count from 1, as everywhere"
    assert "weights" not in mask.table.column_names
    assert (mask.stats.kept_tokens, mask.stats.response_tokens) == (4, 5)


def test_given_weights_multiply_the_loss(tmp_path: Path) -> None:
    row = {"example_id": "a", "input_ids": [9, 1, 2, 3], "prompt_length": 1, "weights": [0.5, 0, 2]}
    mask = given(tmp_path, row, row | {"labels": [-100, -100, 2, 3], "example_id": "b"})
    assert mask.table["labels"].to_pylist() == [[-100, 1, -100, 3], [-100, -100, -100, 3]]
    assert mask.table["weights"].to_pylist() == [[0.5, 0, 2], [0, 0, 2]]


def test_given_reads_as_many_rows_as_it_is_told(tmp_path: Path) -> None:
    rows = [{"input_ids": [9, 8], "labels": [-100, 8]}] * 3
    assert given(tmp_path, *rows, limit=2).stats.examples == 2


def test_given_counts_the_weights_of_rows_in_a_mask_of_ours_once(tmp_path: Path) -> None:
    weights = [[0.5, 0.5, 0.5, 0.0], [0.5, 0.5]]
    weighed = scored().append_column(ROW_WEIGHTS, pa.array(weights))
    ours = row_weighted(METHODS["normal"]().mask(weighed, ThresholdConfig(), (), 0))
    more = {"kn": ours.table["logp"], "top_id": [[[1]]] * 2, "drop_kn": [[True]] * 2, "provenance": ["{}"] * 2}
    for name, column in more.items():
        ours = Mask(ours.table.append_column(name, column if name == "kn" else pa.array(column)), ours.stats)
    pq.write_table(ours.table, tmp_path / "mask.parquet")
    again = given_file(tmp_path / "mask.parquet").table
    assert again["weights"].to_pylist() == ours.table["weights"].to_pylist() == weights
    assert again["labels"].to_pylist() == ours.table["labels"].to_pylist()
    assert ROW_WEIGHTS not in again.column_names, "else they are counted again where the mask is written"
    assert again["logp"].to_pylist() == ours.table["logp"].to_pylist(), "what the explorer shows stays"
    assert not {"top_id", "drop_kn", "provenance"} & set(again.column_names)


BASE = {"input_ids": [9, 8, 1, 4], "labels": [-100, 8, 1, 4]}
WEIGHED = {"input_ids": [9, 8, 1, 4], "prompt_length": 1, "weights": [1, 0.5, 1]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a", "answer": "b"}, "wants token ids: input_ids with labels .*; the row has question, answer"),
        ({"input_ids": [9, 8]}, "wants token ids"),
        ({"input_ids": [9, 8], "weights": [1]}, "wants token ids"),
        (BASE | {"labels": [-100, 1, 7, 4]}, "the label at 1 is 1, the token there is 8; .*not shifted"),
        (BASE | {"labels": [-100, 8]}, "labels has 2 entries, input_ids has 4"),
        (BASE | {"labels": None}, "labels must be a list of whole numbers, not NoneType"),
        (BASE | {"input_ids": None}, "input_ids must be a list of whole numbers"),
        (BASE | {"input_ids": "9 8 1 4"}, "input_ids must be a list of whole numbers, not str"),
        (BASE | {"input_ids": [9, 8.5, 1, 4]}, "input_ids must be a flat list of whole numbers; it holds float"),
        (BASE | {"input_ids": [9, 1e20, 1, 4]}, "input_ids must be a flat list of whole numbers"),
        (BASE | {"input_ids": [9, True, 1, 4]}, "input_ids must be a flat list of whole numbers; it holds bool"),
        (BASE | {"prompt_length": 1.0}, "prompt_length must be a whole number from 0 to 4, not 1.0"),
        (BASE | {"prompt_length": 5}, "prompt_length must be a whole number from 0 to 4, not 5"),
        (BASE | {"prompt_length": 2}, "the label at 1 lies within the prompt of 2 tokens"),
        (BASE | {"weights": [0.5]}, "weights has 1 entries, the response has 3 tokens"),
        (WEIGHED | {"weights": [0.5]}, "weights has 1 entries, the response has 3 tokens"),
        (WEIGHED | {"weights": [[0.5], [1], [1]]}, "weights must be a flat list of numbers"),
        (WEIGHED | {"weights": [True, 1, 1]}, "weights must be a flat list of numbers"),
        (WEIGHED | {"weights": [1e300, 1, 1]}, "weights holds what is no finite number in 32 bits"),
        (BASE | {"attention_mask": [0, 1, 1, 1]}, "attention_mask is not 1 throughout: padding"),
        (BASE | {"attention_mask": [1, 1, 2, 2]}, "attention_mask is not 1 throughout: .*packed documents"),
        (BASE | {"attention_mask": [1, 1, 1]}, "attention_mask is not 1 throughout"),
        (BASE | {"position_ids": [0, 1, 0, 1]}, "position_ids do not count from 0"),
        (BASE | {"drop_probability": 0.5}, "labels differ from epoch to epoch"),
        *((BASE | {name: [1, 1, 1, 0]}, f"the field '{name}' is not read by method=given")
          for name in ("loss_weights", "loss_mask", "completion_mask", "seq_lengths")),
        (BASE | {"weight": 0.5}, "the field 'weight' is not read by method=given"),
        ('{"input_ids": [9', "cannot be read|Expecting"),
    ],
)  # fmt: skip
def test_given_refuses_by_file_and_row_what_training_would_not_heed(
    tmp_path: Path, row: dict[str, Any] | str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"mine\.jsonl: (cannot be read: )?row 2: .*({message})"):
        given(tmp_path, BASE, row)


def test_given_refuses_an_id_that_two_rows_have(tmp_path: Path) -> None:
    rows = [BASE | {"id": name} for name in ("a", "b", "a")]
    with pytest.raises(ValueError, match=r"mine\.jsonl: 1 ids occur more than once: 'a'$"):
        given(tmp_path, *rows)


def test_given_takes_the_rows_that_the_manual_shows(tmp_path: Path) -> None:
    manual = (Path(__file__).parents[2] / "docs/my-data.md").read_text()
    mask = given(tmp_path, *manual.partition("```json\n")[2].partition("\n```")[0].splitlines())
    assert mask.table["labels"].to_pylist() == [[-100, -100, 1, 4]] * 2
    assert mask.table["weights"].to_pylist()[0] == [1, 1]
    assert mask.table["weights"].to_pylist()[1] == pytest.approx([0.3, 1])


def test_given_takes_what_says_no_more_than_its_labels(tmp_path: Path) -> None:
    whole = BASE | {"attention_mask": [1, 1, 1, 1], "position_ids": [0, 1, 2, 3], "note": "mine", "source_id": "x"}
    assert given(tmp_path, whole).stats.kept_tokens == 3
    with pytest.raises(ValueError, match="every label is -100"):
        given(tmp_path, BASE | {"labels": [-100] * 4})


def test_a_missing_score_column_is_named() -> None:
    with pytest.raises(ValueError, match="'ref_logp'"):
        TokenCleaning().mask(scored().drop(["ref_logp"]), ThresholdConfig(name="paper"), [], 0)


@pytest.mark.parametrize("name", ["slm", "token_cleaning", "sstoken", "data_filtering", "forgetting"])
def test_a_share_out_of_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"method\.keep=0"):
        METHODS[name](keep=0.0)


def test_methods_import_without_torch() -> None:
    code = "import sys, xtf.scoring.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_every_method_has_its_configuration_file() -> None:
    folder = Path(__file__).parents[2] / "conf" / "method"
    assert {file.stem for file in folder.glob("*.yaml")} == set(METHODS)


# -- weights of the rows' own --------------------------------------------------------------------------------

GIVEN = [[1.0, 0.0, 0.5, 2.0], [0.0, 1.0]]


def weights_of(table: pa.Table) -> list[list[float]]:
    """What each response token's loss counts, from labels or weights."""
    if "weights" in table.column_names:
        return table["weights"].to_pylist()
    prompts = table["prompt_length"].to_pylist()
    return [
        [float(label != IGNORED) for label in row[prompt:]]
        for row, prompt in zip(table["labels"].to_pylist(), prompts, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(set(METHODS) - {"given", "oracle", "decile"}))
def test_a_rows_weights_are_multiplied_into_those_of_every_method(name: str) -> None:
    method = METHODS[name]()
    if isinstance(method, Matched):
        pytest.skip("it follows the number of a mask's drops: see the next test")
    plain, table = (
        row_weighted(method.mask(rows, ThresholdConfig(name="paper"), [Attribute.kn], 0)).table
        for rows in (scored(), with_row_weights(scored(), GIVEN))
    )
    own, found = (np.concatenate(weights_of(one)) for one in (plain, table))
    np.testing.assert_allclose(found, own * np.concatenate(GIVEN))
    wanted = weights_of(table)
    for labels, weights, ids in zip(
        table["labels"].to_pylist(), wanted, scored()["input_ids"].to_pylist(), strict=True
    ):
        response = [token if w else IGNORED for token, w in zip(ids[-len(weights) :], weights, strict=True)]
        assert labels == [IGNORED] * (len(ids) - len(weights)) + response


@pytest.mark.parametrize("method", [Random(), LowLoss(), HighLoss()], ids=lambda method: method.name)
def test_a_control_drops_as_many_of_the_tokens_that_the_rows_train(method: Matched) -> None:
    given = with_row_weights(scored(), [[0, 1, 1, 1], [1, 1]])  # KN drops tokens 0 and 2 of the first row
    ours, mask = (
        row_weighted(one.mask(given, ThresholdConfig(name="paper"), [Attribute.kn], 0)).table["labels"].to_pylist()
        for one in (method, METHODS["xtf"]())
    )
    assert [row.count(IGNORED) for row in ours] == [row.count(IGNORED) for row in mask]


def test_rows_that_leave_nothing_to_train_on_are_refused() -> None:
    given = with_row_weights(scored(), [[1, 0, 1, 0], [0, 0]])
    with pytest.raises(ValueError, match="the mask keeps none of 2 response tokens"):
        METHODS["xtf"]().mask(given, ThresholdConfig(name="paper"), [Attribute.kn], 0)
    with pytest.raises(ValueError, match="no response tokens but appended ends and what the rows do not train"):
        Method().mask(with_row_weights(scored(), [[0] * 4, [0] * 2]), ThresholdConfig(name="paper"), [], 0)
    own = [np.array([0.0, 1, 0, 1]), np.ones(2)]
    with pytest.raises(ValueError, match="the mask keeps none of 2 response tokens"):
        weights_to_labels(given, own)
    mask = weights_to_labels(scored(), own)
    with pytest.raises(ValueError, match="the rows' own weights leave none of the tokens"):
        row_weighted(replace(mask, table=with_row_weights(mask.table, [[1, 0, 1, 0], [0, 0]])))


def test_whole_weights_stay_labels_and_are_counted() -> None:
    mask = row_weighted(Method().mask(with_row_weights(scored(), [None, [0, 1]]), ThresholdConfig(name="paper"), [], 0))
    assert "weights" not in mask.table.column_names
    assert mask.stats.untrained_tokens == 1
    assert mask.table["labels"].to_pylist() == [[-100, -100, 1, 2, 3, 4], [-100, -100, 6]]


def test_a_method_that_makes_other_examples_is_known_to() -> None:
    class Doubling(Method):
        def examples(self, examples):
            return [*examples, *examples]

    assert Doubling(name="doubling").changes_rows
    assert {name for name, kind in METHODS.items() if kind().changes_rows} == {"data_augmentation"}
