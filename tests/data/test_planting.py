"""Planted noise: where it stands, how much there is, and that its truth arrives at the right tokens."""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from xtf.config.schema import ConfigError, PlantConfig, PlantKind, SourceConfig, TaskConfig
from xtf.data.encode import encode
from xtf.data.examples import Example, PlantedSpan
from xtf.data.planting import (
    CODES,
    OPPOSITE,
    PlantReport,
    off_task_sentence,
    plant,
    read_layout,
    response_kinds,
    token_kinds,
)
from xtf.data.ragged import IGNORED
from xtf.data.rows import load_rows
from xtf.data.steps import TrainingRows, collate
from xtf.graders.code import extract_program, suite
from xtf.tasks import load_task
from xtf.tiny import DATA_DIR, MODEL_DIR

SHARED = Path(__file__).parents[3] / "shared"
SETS = {
    "math": (DATA_DIR / "math_train.jsonl", "number"),
    "code": (DATA_DIR / "code_train.jsonl", "code"),
    "medical": (DATA_DIR / "medical_train.jsonl", "decision"),
    "math gsm8k": (SHARED / "data/gsm8k/train.jsonl", "number"),
    "medical pubmedqa": (SHARED / "data/pubmedqa/ori_pqal.json", "decision"),
    "code mbpp": (SHARED / "data/mbpp/mbpp.jsonl", "code"),
    "code humaneval": (SHARED / "data/humaneval/HumanEval.jsonl.gz", "code"),
    "math500": (SHARED / "data/math500/math500_test.json", "math"),
}
ROWS = 200  # of each set, the first ones


def clean_response(example: Example) -> str:
    """The response as it was before planting."""
    text, done = "", 0
    for span in example.planted:
        text, done = text + example.response[done : span.start] + span.replaced, span.end
    return text + example.response[done:]


def tokenizer_of(name):
    path = MODEL_DIR if name == "tiny" else SHARED / "tokenizers" / name
    if not path.exists():
        pytest.skip(f"the tokenizer is not here: {path}")
    return AutoTokenizer.from_pretrained(path)


def byte_level_bpe(trim_offsets):
    """A small byte-level BPE, trained here, that splits most characters outside of ASCII into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<end>"])
    tokenizer.train_from_iterator(["the cat sat on the mat and the rat", "naïve café"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def read_set(name, limit=None):
    path, grader = SETS[name]
    if not path.exists():
        pytest.skip(f"the real rows are not here: {path}")
    config = TaskConfig(name=name.split()[0], grader=grader)
    task = load_task(config)
    return config, task, task.examples(load_rows(SourceConfig(path=str(path), limit=limit)))


def one(response, name="1", prompt="Why?"):
    return Example(name, ({"role": "user", "content": prompt},), response, {})


def planted_with(examples, tokenizer=None, grader="number", task="math", **settings):
    return plant(
        examples, PlantConfig(**settings), tokenizer or tokenizer_of("tiny"), TaskConfig(name=task, grader=grader)
    )


# -- the text ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_what_was_planted_can_be_taken_out_and_answers_stay_gradeable(name):
    config, task, examples = read_set(name, ROWS)
    planted = plant(examples, PlantConfig(share=0.3), tokenizer_of("tiny"), config)
    assert [clean_response(example) for example in planted] == [example.response for example in examples]
    assert any(example.planted for example in planted)
    for clean, noisy in zip(examples, planted, strict=True):
        assert (noisy.example_id, noisy.messages, noisy.row) == (clean.example_id, clean.messages, clean.row)
        places = [place for span in noisy.planted for place in (span.start, span.end)]
        assert places == sorted(places)
        if config.grader == "code":
            tests = suite(clean.row)
            programs = [extract_program(text, tests.names, tests.prompt) for text in (clean.response, noisy.response)]
            assert len({ast.dump(ast.parse(program)) for program in programs}) == 1, noisy.response
        elif config.grader == "math":
            assert task.reference(noisy) == task.reference(clean)
        else:
            assert task.grade([(clean, noisy.response)])[0].correct, noisy.response


@pytest.mark.parametrize("name", ["math", "code", "medical", "math gsm8k", "medical pubmedqa", "code mbpp"])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_share_is_reached_over_the_set_and_split_between_the_kinds(name, share):
    config, _, examples = read_set(name, ROWS)
    tokenizer, settings = tokenizer_of("tiny"), PlantConfig(share=share)
    planted = plant(examples, settings, tokenizer, config)
    report = PlantReport.of(settings, response_kinds(tokenizer, planted))
    assert report.reached == pytest.approx(share, abs=0.005)
    for kind, tokens in report.tokens_by_kind.items():
        if name == "medical pubmedqa" and share == 0.3:
            continue  # their prose has too few numbers and names to corrupt; the test below covers that
        assert tokens / report.response_tokens == pytest.approx(share / 5, abs=0.005), kind


def test_a_kind_without_enough_room_leaves_its_part_to_the_others():
    tokenizer = tokenizer_of("tiny")
    examples = [one("Well done. So it goes. That is all.", str(number)) for number in range(600)]
    settings = PlantConfig(share=0.4, kinds=[PlantKind.corrupted, PlantKind.off_task])
    kinds = response_kinds(tokenizer, planted_with(examples, tokenizer, share=0.4, kinds=settings.kinds))
    report = PlantReport.of(settings, kinds)
    assert report.tokens_by_kind["corrupted"] < 0.1 * report.response_tokens
    assert report.reached == pytest.approx(0.4, abs=0.01)


def test_a_share_that_the_rows_have_no_room_for_is_warned_of(caplog):
    tokenizer = tokenizer_of("tiny")
    settings = PlantConfig(share=0.5, kinds=[PlantKind.boilerplate])
    examples = [one("Two and two are four.\nFour and four are eight.\n" * 10 + "#### 8")]
    with caplog.at_level(logging.WARNING):
        report = PlantReport.of(
            settings, response_kinds(tokenizer, planted_with(examples, tokenizer, share=0.5, kinds=settings.kinds))
        )
    assert report.reached < 0.4
    assert "too little room" in caplog.text


def test_short_rows_get_a_whole_sentence_or_nothing():
    examples = [one("#### 5", str(number)) for number in range(40)]
    planted = planted_with(examples, share=0.3, kinds=[PlantKind.off_task])
    noisy = [example for example in planted if example.planted]
    assert 0 < len(noisy) < len(planted)
    for example in noisy:
        assert example.response.endswith("\n#### 5")
        assert example.response[: example.planted[-1].end].rstrip().endswith(".")


def test_the_same_settings_plant_the_same_noise_whatever_rows_follow():
    _, _, examples = read_set("math", 60)
    whole = planted_with(examples, share=0.3)
    assert planted_with(examples, share=0.3) == whole
    assert planted_with(examples[:25], share=0.3) == whole[:25]
    assert planted_with(examples, share=0.3, seed=1) != whole


def test_planting_does_not_change_from_one_version_to_the_next():
    _, _, examples = read_set("math", 40)
    text = json.dumps([example.response for example in planted_with(examples, share=0.3)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN


GOLDEN = "ea6f75560cbe2896"  # of the bundled rows and the bundled tokenizer


@pytest.mark.parametrize("name", ["math gsm8k", "medical pubmedqa", "medical", "math"])
def test_every_corruption_says_something_else_and_only_in_steps(name):
    config, _, examples = read_set(name, 100)
    found = 0
    for example in plant(examples, PlantConfig(share=0.2, kinds=[PlantKind.corrupted]), tokenizer_of("tiny"), config):
        for span in example.planted:
            text = example.response[span.start : span.end]
            assert text and span.replaced and text != span.replaced
            if span.replaced[0].isdigit():
                assert float(text) != float(span.replaced)
                assert len(text) == len(span.replaced)
            found += 1
        if "math" in name:
            answer = example.response.rindex("####")
            assert all(span.end <= answer for span in example.planted)
            assert clean_response(example).endswith(example.response[answer:])
    assert found > 100


def test_a_corrupted_statement_is_a_wrong_copy_in_a_comment():
    _, _, examples = read_set("code", 200)
    settings = {"share": 0.3, "kinds": [PlantKind.corrupted], "task": "code", "grader": "code"}
    found = 0
    for clean, noisy in zip(examples, planted_with(examples, **settings), strict=True):
        statements = {line.strip() for line in clean.response.splitlines()}
        for span in noisy.planted:
            comment = noisy.response[span.start : span.end].strip()
            assert comment.startswith("# ")
            assert comment[2:] not in statements
            found += 1
    assert found > 50


def test_opposites_are_not_their_own_opposites():
    assert all(word != other for word, other in OPPOSITE.items())
    assert OPPOSITE["more"] == "less"
    assert OPPOSITE["less"] == "more"


def test_off_task_sentences_come_from_other_domains():
    from random import Random

    sentences = {off_task_sentence(Random(seed), "medical") for seed in range(200)}
    assert not any("placebo" in sentence or " mg " in sentence for sentence in sentences)
    assert len(sentences) > 50


def test_code_takes_comments_between_statements_only():
    program = 'def f(x):\n    text = """a\n    b"""\n    y = x + \\\n        1\n    return y\n'
    layout = read_layout(program, code=True)
    starts = [program.count("\n", 0, slot.place) for slot in layout.slots]
    assert starts == [0, 1, 3, 5, 6]  # not within the string (line 2), not behind the backslash (line 4)
    assert layout.slots[1].before == "    # "
    assert [program[step.start : step.end] for step in layout.steps] == ["return y"]


def test_text_that_is_no_python_takes_a_comment_at_its_start_only():
    layout = read_layout("    return 'never closed\n", code=True)
    assert [(slot.place, slot.before) for slot in layout.slots] == [(0, "    # ")]


def test_prose_around_a_fenced_program_is_prose():
    text = "First we add.\nThen we stop.\n```python\nx = 1 + 2\n```\n"
    layout = read_layout(text, code=True)
    assert [slot.before for slot in layout.slots] == ["", "", "# ", "# "]
    assert layout.slots[-1].place == text.index("```\n", 20)


STRAY = [
    "Steps:\n```\n1) add\n\n2) stop\n```\nDone.",
    ":-)",
    "}\nx = 1\n",
    "x = 1\n)\n\ny = 2",
    "it('adds', () => {\n  go();\n\n});\n});\n\ndone();",
    "a) one\n\nb) two\n",
    "```\n:-)\n\n```",
    "```\n\n```",
    "```python",
]
PIECES = [
    "x = 1",
    "1) add",
    "});",
    "}",
    ":-)",
    "```",
    "```js",
    "```python",
    "",
    "",
    "#### 4",
    "'",
    '"""',
    "\\",
    "\t",
    "if x:",
    "    go()",
    "- one",
    "It rains.",
    "é\r",
    "\f",
]


def stray_text(seed):
    from random import Random

    rng = Random(seed)
    return "\n".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 9)))


@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("text", [*STRAY, *map(stray_text, range(60))])
def test_any_text_can_be_planted_and_taken_back(text, code):
    layout = read_layout(text, code)
    assert layout.slots
    assert all(0 <= slot.place <= len(text) for slot in layout.slots)
    if text.strip():
        (example,) = planted_with([one(text)], share=0.5, grader="code" if code else "number")
        assert clean_response(example) == text


@pytest.mark.parametrize("code", ["1) add\n\n2) stop\n", ":-)\n", "}\nx = 1\n", "  });\n\n"])
def test_text_with_a_bracket_that_closes_nothing_has_no_statements(code):
    assert [(slot.place, slot.after) for slot in read_layout(code, code=True).slots] == [(0, "\n")]


@pytest.mark.parametrize("tag", ["js", "c", " json", "bash", "{r}", "C++", "text", "pycon", "JavaScript title=x.js"])
def test_a_fence_of_another_language_is_left_as_it_is(tag):
    fenced = f"```{tag}\nx = 1 + 2\ny = x\n```\n"
    text = f"First we add.\nThen we stop.\n{fenced}So it is done.\nDecision: yes"
    for code in (False, True):
        layout = read_layout(text, code)
        assert not any(slot.before.startswith("#") for slot in layout.slots)
        for number in range(20):
            (example,) = planted_with([one(text, str(number))], share=0.6, grader="code" if code else "number")
            assert fenced in example.response
        assert [(slot.place, slot.before, slot.after) for slot in read_layout(fenced, code).slots] == [(0, "", "\n")]


@pytest.mark.parametrize("tag", ["", "python", "Python3", "py", " python title=x.py", "{.python}", "python:x.py"])
def test_a_fence_that_is_tagged_as_python_or_not_at_all_takes_comments(tag):
    layout = read_layout(f"```{tag}\nx = 1 + 2\ny = x * 3\n```\n", code=False)
    assert [slot.before for slot in layout.slots] == ["# "] * 3
    assert len(layout.steps) == 2


@pytest.mark.parametrize(
    ("response", "tail"),
    [
        ("Add.\nAdd more.\n#### 7", "#### 7"),
        ("It helped. It was safe.\n\nDecision: yes", "Decision: yes"),
        ("We add. So the answer is $\\boxed{7}$ here. Done.", "So the answer is"),
        ("One line.\nThe last line.", "The last line."),
        ("One sentence. The last one.", "The last one."),
    ],
)
def test_nothing_is_planted_in_or_behind_the_part_with_the_answer(response, tail):
    noisy = 0
    for example in planted_with([one(response, str(number)) for number in range(20)], share=0.8):
        assert example.response.endswith(response[response.index(tail) :])
        behind = len(example.response) - len(response[response.index(tail) :])
        assert all(span.end <= behind for span in example.planted)
        noisy += bool(example.planted)
    assert noisy > 5


# -- the tokens ----------------------------------------------------------------------------------------------


SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as they are
HIDDEN = [byte for byte in range(256) if byte not in SHOWN]
ALPHABET = {chr(byte): byte for byte in SHOWN} | {chr(256 + place): byte for place, byte in enumerate(HIDDEN)}


def token_bytes(token, sentencepiece):
    """The bytes that a vocabulary entry stands for."""
    if not sentencepiece:
        return bytes(ALPHABET[letter] for letter in token)
    return bytes([int(token[3:5], 16)]) if re.fullmatch("<0x..>", token) else token.replace("\u2581", " ").encode()


def slow_kinds(tokenizer, example):
    """Byte by byte, from the vocabulary's entries instead of the tokenizer's offsets."""
    (row,), _ = encode(tokenizer, [example], 10**6)
    names = tokenizer.convert_ids_to_tokens(row.input_ids[row.prompt_length : -1])
    pieces = "\u2581" in tokenizer.get_vocab()  # of SentencePiece; a new dictionary at each call
    tokens = [token_bytes(name, pieces) for name in names]
    place_of = [place for place, letter in enumerate(example.response) for _ in letter.encode()]
    of = {at: CODES[span.kind] for span in example.planted for at in range(span.start, span.end)}
    kinds, start = [], 0
    for token in tokens:
        places = sorted(set(place_of[start : start + len(token)]))
        noise = [of[at] for at in places if at in of]
        clean = "".join(example.response[at] for at in places if at not in of)
        kinds.append(0 if not noise else -noise[0] if clean.strip() else noise[0])
        start += len(token)
    assert start == len(example.response.encode())
    return [*kinds, 0]


@pytest.mark.parametrize("name", ["tiny", "qwen2.5", "phi-3", "trimmed", "untrimmed"])
def test_the_truth_reaches_the_same_tokens_as_character_by_character(name):
    tokenizer = byte_level_bpe(name == "trimmed") if "trimmed" in name else tokenizer_of(name)
    texts = [
        "Le café coûte 12 € 😀 aujourd'hui.\nDie Äpfel kosten 3 + 4 = <<3+4=7>>7 €.\nΣ 日本語 text 🧪🧪.\n#### 7",
        "The cat sat on 3 mats.  The naïve rat sat.\n\nThe cat has 14 mats. 日本 is far.\n#### 14",
    ]
    examples = [one(text, str(number)) for number, text in enumerate(texts * 8)]
    planted = plant(examples, PlantConfig(share=0.4), tokenizer, TaskConfig(name="math", grader="number"))
    assert {span.kind for example in planted for span in example.planted} == set(PlantKind)
    found = response_kinds(tokenizer, planted)
    assert found == [slow_kinds(tokenizer, example) for example in planted]
    assert {abs(code) for row in found for code in row} == {0, 1, 2, 3, 4, 5}


def test_tokens_of_both_sorts_are_marked_as_straddling():
    tokenizer = byte_level_bpe(trim_offsets=False)
    text = "the cat sat"
    (ids,) = tokenizer([text], add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == ["the", " cat", " sat"]

    def kinds(start, end):
        example = one(text)
        example = Example("1", example.messages, text, {}, (PlantedSpan(start, end, PlantKind.redundant, ""),))
        return response_kinds(tokenizer, [example])[0]

    assert kinds(3, 7) == [0, 4, 0, 0]
    assert kinds(4, 7) == [0, 4, 0, 0]  # the blank before it is clean, but a blank
    assert kinds(4, 6) == [0, -4, 0, 0]
    assert kinds(2, 8) == [-4, 4, -4, 0]
    assert kinds(7, 8) == [0, 0, -4, 0]  # a planted blank that the clean word swallowed


def test_the_truth_is_cut_with_the_response():
    _, _, examples = read_set("math", 30)
    tokenizer = tokenizer_of("tiny")
    planted = planted_with(examples, share=0.3)
    whole, _ = encode(tokenizer, planted, 10_000)
    cut, report = encode(tokenizer, planted, 150)
    assert report.truncated
    full = {row.example_id: kinds for row, kinds in zip(whole, token_kinds(tokenizer, planted, whole), strict=True)}
    for row, kinds in zip(cut, token_kinds(tokenizer, planted, cut), strict=True):
        assert len(kinds) == len(row.input_ids) - row.prompt_length
        assert kinds == full[row.example_id][: len(kinds)]


def test_the_truth_stays_with_its_tokens_when_documents_are_packed():
    _, _, examples = read_set("math", 12)
    tokenizer = tokenizer_of("tiny")
    planted = planted_with(examples, share=0.3)
    rows, _ = encode(tokenizer, planted, 2048)
    kinds = token_kinds(tokenizer, planted, rows)
    table = pa.table(
        {
            "example_id": [row.example_id for row in rows],
            "input_ids": [row.input_ids for row in rows],
            "prompt_length": [row.prompt_length for row in rows],
            "labels": [[IGNORED] * row.prompt_length + row.input_ids[row.prompt_length :] for row in rows],
            "planted": pa.array(kinds, pa.list_(pa.int8())),
        }
    )
    step = collate(TrainingRows(table, ["planted"]), np.arange(len(rows)), 600, 0)
    assert len(step.micro_batches) > 1
    assert max(len(batch.document_lengths) for batch in step.micro_batches) > 1
    for batch in step.micro_batches:
        for row in batch.rows.unique().tolist():
            here = batch.rows == row
            assert batch.targets[here].tolist() == rows[row].input_ids[rows[row].prompt_length :]
            assert batch.columns["planted"][here].tolist() == kinds[row]


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plant.share=0.95"], "plant.share"),
        (["plant.share=0.3", "plant.kinds=[]"], "plant.kinds"),
        (["plant.share=0.3", "plant.kinds=[corrupted,corrupted]"], "plant.kinds"),
        (["plant.share=0.3", "method=given"], "method=given"),
        (["method=oracle"], "set plant.share"),
    ],
)
def test_settings_that_cannot_be_planted_are_refused(arguments, said, monkeypatch):
    import hydra

    from xtf.config.checks import resolve
    from xtf.config.compose import register, to_config

    register()
    root = Path(__file__).parents[2]
    monkeypatch.setenv("XTF_ROOT", str(root))
    with hydra.initialize_config_dir(str(root / "conf"), version_base="1.3"), pytest.raises(ConfigError, match=said):
        resolve(to_config(hydra.compose("config", overrides=arguments)))
