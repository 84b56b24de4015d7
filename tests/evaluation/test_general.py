"""HellaSwag from a text file, and lm-eval's figures against likelihoods counted by hand."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from xtf.evaluation.general import _metrics, check_general, evaluate_general, hellaswag_items

SHARED = Path(__file__).parents[3] / "shared" / "data"
MODEL = Path(__file__).parents[2] / "xtf" / "tiny" / "model"
TEXT = (
    "Cooking: A man [header] How to cook [title] Wash it.  He\n2\nsings.\nsleeps.\neats [step] it.\nruns.\n"
    "Counting: Tom has 3 apples and buys 4 more. Now he\n0\nhas 7 apples.\nhas 2 cows.\nflies.\nis a tree.\n"
)


def test_a_hellaswag_file_has_six_lines_an_item_and_its_mark_up_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "items.txt.bz2"
    path.write_bytes(bz2.compress(TEXT.encode()))
    first, second = hellaswag_items(path)
    assert first == {
        "query": "Cooking: A man  How to cook. Wash it. He".replace("  ", " "),
        "choices": ["sings.", "sleeps.", "eats it.", "runs."],
        "label": 2,
    }
    assert second["label"] == 0


def test_files_and_tasks_that_cannot_be_run_are_refused_early(tmp_path: Path) -> None:
    check_general([])
    pytest.importorskip("lm_eval", reason="the extra `general` is not installed")
    with pytest.raises(ValueError, match="no such file"):
        check_general(["hellaswag:none.txt"])
    bad = tmp_path / "bad.txt"
    bad.write_text(TEXT.replace("\n2\n", "\n7\n"))
    with pytest.raises(ValueError, match="needs six lines per item"):
        check_general([f"hellaswag:{bad}"])
    with pytest.raises(ValueError, match="lm-eval knows no task hellasweg"):
        check_general(["hellasweg"])


def test_shares_get_wilson_intervals_and_other_figures_normal_ones() -> None:
    figures = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "ppl,none": 10.0, "ppl_stderr,none": 1.0}
    metrics = _metrics(figures, 10)
    assert set(metrics) == {"acc", "ppl"}
    assert (metrics["acc"].interval, metrics["acc"].low) == ("wilson", pytest.approx(0.2366, abs=1e-4))
    assert (metrics["ppl"].low, metrics["ppl"].high) == pytest.approx((8.04, 11.96), abs=1e-3)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")
def test_all_of_hellaswags_validation_items_are_read() -> None:
    items = hellaswag_items(SHARED / "hellaswag" / "hellaswag_val_full.txt.bz2")
    assert len(items) == 10042
    assert all(len(item["choices"]) == 4 and all(item["choices"]) for item in items)


def test_lm_eval_on_a_model_folder_agrees_with_likelihoods_counted_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra `general` is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = tmp_path / "items.txt"
    words = ["red", "12", "the sum", "yes", "a dog", "return x"]
    lines = [
        f"Item {n}: What follows {words[n % 6]}\n{n % 4}\n"
        + "".join(f"{words[(n + k) % 6]} and {words[(n * k) % 6]}\n" for k in range(4))
        for n in range(20)
    ]
    path.write_text("".join(lines))
    metrics = evaluate_general(str(MODEL), [f"hellaswag:{path}"])

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL)
    right = 0
    for item in hellaswag_items(path):
        scores = []
        for choice in item["choices"]:
            whole = tokenizer(f"{item['query']} {choice}", add_special_tokens=False)["input_ids"]
            start = len(tokenizer(item["query"], add_special_tokens=False)["input_ids"])
            with torch.inference_mode():
                logp = model(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(float(logp[at - 1, whole[at]]) for at in range(start, len(whole))))
        right += scores.index(max(scores)) == item["label"]
    assert metrics["general/hellaswag_file/acc"].value == right / 20
    assert metrics["general/hellaswag_file/acc"].n == 20
