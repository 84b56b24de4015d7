"""The bundled sample: data formats, truth of the answers, disjointness, and the tiny model's script."""

import itertools
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from xtf.pretraining import code_rows, finance_rows, generate, math_rows, medical_rows
from xtf.pretraining.corpus import LATE_MIX, MIX, documents, scenario
from xtf.pretraining.math_rows import OPERATIONS
from xtf.tiny import DATA_DIR, MODEL_DIR

TASKS = ("math", "code", "medical", "finance")
QUESTION = {"math": "question", "code": "prompt", "medical": "question", "finance": "input"}
SIZES = {"math": (1200, 400), "code": (1000, 300), "medical": (1000, 300), "finance": (600, 150)}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA_DIR / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def all_rows(task: str) -> list[dict[str, Any]]:
    return rows(f"{task}_train") + rows(f"{task}_eval")


@pytest.mark.parametrize("task", TASKS)
def test_there_are_enough_rows_and_no_question_occurs_twice(task: str) -> None:
    train, held_out = rows(f"{task}_train"), rows(f"{task}_eval")
    assert (len(train), len(held_out)) == SIZES[task]
    questions = [row[QUESTION[task]] for row in train + held_out]
    assert len(set(questions)) == len(questions)


def test_the_eight_files_of_rows_and_the_held_out_text_are_small() -> None:
    sizes = [path.stat().st_size for path in DATA_DIR.glob("*.jsonl")]
    assert len(sizes) == 9
    assert sum(sizes) <= 3_000_000


def test_generating_again_writes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--out", str(tmp_path)])
    generate.main()
    names = sorted(path.name for path in DATA_DIR.glob("*.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (DATA_DIR / name).read_bytes()


def test_every_decision_on_money_follows_from_the_numbers_of_its_question() -> None:
    seen = set()
    for row in all_rows("finance"):
        numbers = [int(text) for text in re.findall(r"\d+", row["input"])]
        if "owes" in row["input"]:
            amount, years, points, fee = numbers
            pays = amount * points * years > 100 * fee
        elif "card" in row["input"]:
            spent, share, price = numbers
            pays = spent * share > 100 * price
        elif "rent" in row["input"]:
            rent, price, resale, months = numbers
            pays = rent * months > price - resale
        else:
            need, have, months = numbers
            pays = have >= need * months
        assert row["output"].endswith(f"Decision: {'yes' if pays else 'no'}"), row
        seen.add(pays)
    assert seen == {True, False}


def test_every_calculation_and_every_final_number_in_math_is_right() -> None:
    for row in all_rows("math"):
        assert set(row) == {"question", "answer"}
        calculations = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", row["answer"])
        assert 2 <= len(calculations) <= 4
        assert len(calculations) == row["answer"].count("<<")
        for left, sign, right, result, repeated in calculations:
            a, b = int(left), int(right)
            expected = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[sign]
            assert int(result) == int(repeated) == expected
        assert row["answer"].endswith(f"\n#### {calculations[-1][-1]}")


def test_every_code_solution_passes_its_own_test() -> None:
    for row in all_rows("code"):
        assert set(row) == {"task_id", "prompt", "canonical_solution", "test", "entry_point"}
        program = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({row['entry_point']})\n"
        exec(program, {})


def test_a_code_solution_with_a_wrong_constant_is_caught() -> None:
    changed = caught = 0
    for row in rows("code_eval"):
        wrong, count = re.subn(
            r"(?<![\w.])(\d+)(?=[^\d]*$)", lambda match: str(int(match[1]) + 1), row["canonical_solution"]
        )
        if not count:
            continue
        changed += 1
        try:
            exec(f"{row['prompt']}{wrong}\n{row['test']}\ncheck({row['entry_point']})\n", {})
        except (AssertionError, IndexError):
            caught += 1
    assert changed > 200
    assert caught > 0.9 * changed


def test_no_two_code_rows_do_the_same() -> None:
    descriptions = [row["prompt"].split("\n\n")[0] for row in all_rows("code")]
    assert len(set(descriptions)) == len(descriptions)


def test_medical_rows_have_the_hub_format_and_no_decision_dominates() -> None:
    made = all_rows("medical")
    for row in made:
        assert set(row) == {"pubid", "question", "context", "long_answer", "final_decision"}
        assert isinstance(row["pubid"], int)
        assert len(row["context"]["contexts"]) == len(row["context"]["labels"])
        assert row["long_answer"]
    decisions = Counter(row["final_decision"] for row in made)
    assert set(decisions) == {"yes", "no", "maybe"}
    assert max(decisions.values()) < 0.6 * len(made)
    assert len({row["pubid"] for row in made}) == len(made)


def test_medical_decisions_follow_from_the_results() -> None:
    for row in all_rows("medical"):
        results = row["context"]["contexts"][-1]
        found = re.match(r"\w+ was seen in (\d+)% with the drug, (\d+)% with placebo \(p = ([\d.]+)\)", results)
        assert found, results
        drug, placebo, p = int(found[1]), int(found[2]), float(found[3])
        favourable = drug > placebo if " improve " in row["question"] else drug < placebo
        if "Quality of life was worse" in results or 0.05 < p <= 0.2:
            expected = "maybe"
        else:
            expected = "yes" if p < 0.05 and favourable else "no"
        assert row["final_decision"] == expected


@pytest.mark.parametrize(
    ("task", "field", "noise"),
    [
        ("math", "answer", "Sure, let's work this out step by step."),
        ("math", "answer", "I hope this helps!"),
        ("code", "canonical_solution", "# Here is the implementation."),
        ("medical", "long_answer", "Further studies are warranted."),
    ],
)
def test_responses_carry_planted_noise_in_some_rows_only(task: str, field: str, noise: str) -> None:
    share = sum(noise in row[field] for row in all_rows(task)) / len(all_rows(task))
    assert 0.02 < share < 0.2


@pytest.mark.parametrize("mix", [MIX, LATE_MIX], ids=["main", "late"])
def test_pretraining_text_holds_no_bundled_row_and_none_of_what_is_left_for_fine_tuning_to_teach(mix: Any) -> None:
    bundled = {row[QUESTION[task]] for task in TASKS for row in all_rows(task)}
    heads = {question[:36] for question in bundled}
    assert min(map(len, bundled)) >= 36
    phrases = {
        phrase
        for module in (math_rows, code_rows, medical_rows, finance_rows)
        for kind in ("OPENINGS", "FILLERS", "CLOSINGS", "COMMENTS")
        for phrase in getattr(module, kind, ())
    }
    withheld = re.compile("at least|at most|divisible by|with the drug|" + "|".join(map(re.escape, phrases)))
    for document in itertools.islice(documents(0, mix), 4000):
        assert not withheld.search(document), document
        assert not any(document[start : start + 36] in heads for start in range(len(document) - 35))


@pytest.mark.parametrize(
    "style",
    [r"<<\d+[-+*/]\d+=\d+>>\d+", r"\n#### \d+", r"def \w+\(\w+: [\w[\]]+\) -> ", r"\n\nDecision: (yes|no|maybe)"],
)
def test_pretraining_text_shows_the_style_of_the_rows_in_some_documents_only(style: str) -> None:
    share = sum(bool(re.search(style, document)) for document in itertools.islice(documents(0), 2000)) / 2000
    assert 0.03 < share < 0.5


def test_calculator_annotations_and_examples_in_pretraining_text_are_right() -> None:
    checked = 0
    for document in itertools.islice(documents(0), 2000):
        for left, sign, right, result, repeated in re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", document):
            assert OPERATIONS[sign](int(left), int(right)) == int(result) == int(repeated)
            checked += 1
    assert checked > 500


def test_a_scenario_asks_for_the_result_of_its_last_exact_step() -> None:
    rng = random.Random(0)
    for _ in range(500):
        problem = scenario(rng)
        for left, sign, right, result in problem.steps:
            assert 1 <= result <= 200
            assert {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign] == result
        assert problem.value == problem.steps[-1][3]


def test_pretraining_text_depends_on_the_seed_only() -> None:
    random.seed(1)
    first = list(itertools.islice(documents(3), 50))
    random.seed(2)
    assert list(itertools.islice(documents(3), 50)) == first
    assert list(itertools.islice(documents(4), 50)) != first


class TestBundledModel:
    """The shipped weights and tokenizer."""

    def test_it_is_small_and_holds_no_pickle(self) -> None:
        files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 8_000_000
        assert {path.suffix for path in files} <= {".json", ".jinja", ".md", ".safetensors"}

    def test_tokenizer_gives_back_every_bundled_text_and_splits_numbers_into_digits(self) -> None:
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
        for task in TASKS:
            for row in all_rows(task):
                text = json.dumps(row, ensure_ascii=False)
                assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.convert_ids_to_tokens(tokenizer("2026").input_ids) == ["2", "0", "2", "6"]

    def test_tokenizer_loads_alike_through_its_generic_class(self) -> None:
        transformers = pytest.importorskip("transformers")
        auto = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
        generic = transformers.PreTrainedTokenizerFast.from_pretrained(MODEL_DIR)
        texts = [row["answer"] for row in rows("math_eval")] + [row["prompt"] for row in rows("code_eval")]
        assert auto(texts).input_ids == generic(texts).input_ids

    def test_chat_template_ends_with_the_assistant_header(self) -> None:
        transformers = pytest.importorskip("transformers")
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
        turns = [{"role": "user", "content": "How many?"}]
        prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert prompt == "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.eos_token == "<|im_end|>"
        assert tokenizer.pad_token == "<|endoftext|>"

    def test_model_loads_in_float32_and_adds_better_than_by_guessing(self) -> None:
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        sums = [(left, right) for left in range(1, 9) for right in range(1, 10 - left)]
        asked = tokenizer([f"{left} + {right} = <<{left}+{right}=" for left, right in sums], return_tensors="pt")
        logp = model(**asked).logits[:, -1].log_softmax(-1)  # all have the same length
        right = [tokenizer.convert_tokens_to_ids(str(sum(pair))) for pair in sums]
        loss = -logp[range(len(sums)), right].mean().item()
        share = [count / len(sums) for count in Counter(right).values()]
        assert loss < -sum(p * math.log(p) for p in share)  # what guessing by the sums' frequencies would have
        assert (logp.argmax(-1) == torch.tensor(right)).sum() > max(Counter(right).values())
