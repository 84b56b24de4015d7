"""Scores against hand-worked numbers and against one slow eager pass per row."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
)

from xtf.config.schema import Attribute, RIConfig, RIVariant, Scale, ScorerConfig, TRConfig, TRVariant
from xtf.data.encode import Encoded, encode
from xtf.data.ragged import as_table
from xtf.scoring import scorers
from xtf.scoring.attributes import LOOKS
from xtf.scoring.scorers import (
    HIDDEN,
    Centre,
    TokenCounts,
    batches,
    context_centre,
    count_tokens,
    hidden_states,
    score_rows,
    tr_table,
    with_context_tr,
)
from xtf.tasks import as_examples

RI, KN, TR = Attribute.ri, Attribute.kn, Attribute.tr


def scorer(*attributes, compute=(), layer=-1, scale=Scale.log, variant=RIVariant.received, tr=TRVariant.dataset):
    return ScorerConfig("test", list(attributes), list(compute), RIConfig(variant, layer, scale), TRConfig(tr))


def table_for(model, rows, config, **words):
    return tr_table(model, count_tokens(rows), config, **words)


def eager(model, row, layer=-1):
    """Received attention and p of a row's response tokens from one eager pass over it, in loops."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=torch.tensor([row.input_ids]), output_attentions=True)
    model.set_attn_implementation(before)
    attention = output.attentions[layer][0].mean(0).double()
    probabilities = output.logits[0].double().softmax(-1)
    length = len(row.input_ids)
    received, p = [], []
    for j in range(row.prompt_length, length):
        received.append(sum(attention[i, j].item() for i in range(j, length)) / (length - j))
        p.append(probabilities[j - 1, row.input_ids[j]].item())
    return np.array(received), np.array(p)


def assert_equal_to_eager(model, rows, table, layer=-1):
    for row, ri, kn, logp in zip(rows, *(table[name].to_pylist() for name in ("ri", "kn", "logp")), strict=True):
        received, p = eager(model, row, layer)
        np.testing.assert_allclose(np.exp(ri), received, atol=1e-5)
        np.testing.assert_allclose(ri, np.log(received), atol=1e-4)
        np.testing.assert_allclose(kn, 1 - p, atol=1e-5)
        np.testing.assert_allclose(logp, np.log(p), atol=1e-4)


# --- RI and KN against the oracle ---------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("name", ["qwen2", "qwen2_window", "qwen3", "llama", "mistral"])
def test_batched_scores_equal_one_eager_pass_per_row(small_model, random_rows, name, layer):
    model = small_model(name)
    table = score_rows(model, random_rows, scorer(RI, KN, layer=layer), tokens_per_batch=100)
    assert table["example_id"].to_pylist() == [row.example_id for row in random_rows]
    assert table["input_ids"].to_pylist() == [row.input_ids for row in random_rows]
    assert table["prompt_length"].to_pylist() == [row.prompt_length for row in random_rows]
    assert_equal_to_eager(model, random_rows, table, layer)


def test_the_chunk_size_changes_nothing(small_model, random_rows, monkeypatch):
    model = small_model("mistral")
    whole = score_rows(model, random_rows, scorer(RI, KN))
    monkeypatch.setattr(scorers, "LOGITS_ON_CPU", 1)  # one position at a time
    monkeypatch.setattr(scorers, "LEAST_ON_CPU", 1)
    monkeypatch.setattr(scorers, "WEIGHTS_ON_CPU", 1)  # one query at a time
    for name in ("ri", "logp"):
        pieces = score_rows(model, random_rows, scorer(RI, KN))[name].combine_chunks().flatten()
        np.testing.assert_allclose(pieces, whole[name].combine_chunks().flatten(), atol=1e-5)


def test_uniform_attention_and_a_flat_head_give_the_numbers_worked_out_by_hand(small_model):
    model = small_model("llama")
    with torch.no_grad():
        model.model.layers[2].self_attn.q_proj.weight.zero_()  # query i pays 1 / (i + 1) to each key it sees
        model.lm_head.weight.zero_()  # p = 1 / 97 everywhere
    table = score_rows(model, [Encoded("a", [5, 6, 7, 8], 1)], scorer(RI, KN, scale=Scale.raw))
    # key 1: queries 1, 2, 3 pay 1/2, 1/3, 1/4: 13/36 on average; key 2: 1/3, 1/4: 7/24; key 3: 1/4
    np.testing.assert_allclose(table["ri"][0].as_py(), [13 / 36, 7 / 24, 1 / 4], rtol=1e-6)
    np.testing.assert_allclose(table["kn"][0].as_py(), [96 / 97] * 3, rtol=1e-6)
    np.testing.assert_allclose(table["logp"][0].as_py(), [-math.log(97)] * 3, rtol=1e-6)


def test_attention_that_rounds_to_zero_has_a_finite_logarithm(small_model):
    model = small_model("llama")
    with torch.no_grad():  # every query looks at the first token alone: the others receive e^-10000
        model.model.layers[0].self_attn.q_proj.weight.mul_(1e4)
    table = score_rows(model, [Encoded("a", list(range(20)), 1)], scorer(RI, layer=0))
    values = np.array(table["ri"][0].as_py())
    assert np.isfinite(values).all() and values.min() < -30


def test_half_precision_scores_are_float32_and_near_the_full_ones(small_model, random_rows):
    model = small_model("qwen3", initializer_range=0.05)
    full = score_rows(model, random_rows, scorer(RI, KN))
    half = score_rows(model.to(torch.bfloat16), random_rows, scorer(RI, KN))
    assert half.schema == full.schema
    for name in ("ri", "kn"):
        near = half[name].combine_chunks().flatten().to_numpy()
        np.testing.assert_allclose(near, full[name].combine_chunks().flatten(), atol=0.1)


def test_released_ri_is_one_over_the_length_for_every_token(small_model, random_rows):
    config = scorer(RI, variant=RIVariant.released, scale=Scale.raw)
    table = score_rows(small_model("qwen2"), random_rows, config, tokens_per_batch=200)
    for row, values in zip(random_rows, table["ri"].to_pylist(), strict=True):
        np.testing.assert_allclose(values, 1 / len(row.input_ids), rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_window", "mistral"])
def test_alternatives_and_who_attends_equal_one_eager_pass_per_row(small_model, random_rows, name, monkeypatch):
    model, k = small_model(name, initializer_range=0.2), 3
    config = replace(scorer(RI), top=k, attenders=k)
    monkeypatch.setattr(scorers, "WEIGHTS_ON_CPU", 3000)  # a few queries at a time
    table = score_rows(model, random_rows, config, tokens_per_batch=100)
    model.set_attn_implementation("eager")
    for number, row in enumerate(random_rows):
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row.input_ids]), output_attentions=True)
        attention = output.attentions[-1][0].mean(0)
        p = output.logits[0].softmax(-1)
        ids, shares, at, paid = (table[column][number].as_py() for column in LOOKS)
        assert len(ids) == len(row.input_ids) - row.prompt_length
        for j, place in enumerate(range(row.prompt_length, len(row.input_ids))):
            best = p[place - 1].topk(k)
            np.testing.assert_allclose(shares[j], best.values, atol=1e-5)
            np.testing.assert_allclose([p[place - 1, token] for token in ids[j]], best.values, atol=1e-5)
            seen = attention[place:, place]
            most = seen.topk(min(k, len(seen))).values.numpy()
            np.testing.assert_allclose(paid[j], np.pad(most, (0, k - len(most))), atol=1e-5)
            who = [attention[row.prompt_length + i, place] for i, share in zip(at[j], paid[j], strict=True) if share]
            np.testing.assert_allclose(who, [share for share in paid[j] if share], atol=1e-5)
    with pytest.raises(ValueError, match="taken where RI is scored"):
        score_rows(model, random_rows, replace(scorer(KN), attenders=2))


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral"])
@pytest.mark.parametrize("tokenizer_name", ["qwen2.5", "phi-3"])
def test_scores_on_real_rows_equal_the_eager_ones(small_model, shared, family, tokenizer_name):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / tokenizer_name)
    with (shared / "data/gsm8k/train.jsonl").open() as lines:
        raw = [json.loads(next(lines)) for _ in range(4)]
    examples = as_examples({"prompt": row["question"], "response": row["answer"]} for row in raw)
    rows, _ = encode(tokenizer, examples, 512)
    model = small_model(family, len(tokenizer), initializer_range=0.1, sliding_window=64)
    table = score_rows(model, rows, scorer(RI, KN, TR), tr=table_for(model, rows, scorer(TR)), tokens_per_batch=512)
    assert_equal_to_eager(model, rows, table)
    assert_tr_equals_loops(model, rows, table)


# --- TR -----------------------------------------------------------------------------------------------------


def assert_tr_equals_loops(model, rows, table):
    """TR from its definition: normalised distances to the mean embedding, one response token after the
    other."""
    embedding = model.get_input_embeddings().weight.detach().double().numpy()
    centre = np.mean([embedding[token] for row in rows for token in row.input_ids], axis=0)

    def distance(token):
        vector = embedding[token]
        return 1 - vector @ centre / np.linalg.norm(vector) / np.linalg.norm(centre)

    distances = [[distance(token) for token in row.input_ids[row.prompt_length :]] for row in rows]
    nearest, farthest = min(map(min, distances)), max(map(max, distances))
    for expected, values in zip(distances, table["tr"].to_pylist(), strict=True):
        np.testing.assert_allclose(values, [1 - (d - nearest) / (farthest - nearest) for d in expected], atol=1e-5)


def plane_model(vectors):
    """What `tr_table` reads of a model: embedding rows and their number."""
    embedding = torch.nn.Embedding.from_pretrained(torch.tensor(vectors))
    return SimpleNamespace(get_input_embeddings=lambda: embedding)


def test_tr_worked_out_by_hand():
    model = plane_model([[4.0, 0.0], [0.0, 2.0], [0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    # domain vector: (1 * (4, 0) + 2 * (0, 2)) / 3, along (1, 1); cosines: 1 / sqrt(2) twice, 0, 1
    counts = TokenCounts(np.array([1, 2, 0, 0, 0]), np.array([1, 1, 3, 1, 0]))
    table = tr_table(model, counts, scorer(TR))
    np.testing.assert_allclose(table.values[:4], [2**-0.5, 2**-0.5, 0, 1], atol=1e-7)
    assert math.isnan(table.values[4]), "token 4 is in no response"
    assert (table.nearest, table.farthest) == (pytest.approx(0), pytest.approx(1))
    np.testing.assert_array_equal(table.lookup(np.array([3, 2])), table.values[[3, 2]])


def test_equal_distances_make_every_tr_one():
    counts = TokenCounts(np.array([1, 1]), np.array([1, 1]))
    assert tr_table(plane_model([[1.0, 0.0], [0.0, 1.0]]), counts, scorer(TR)).values.tolist() == [1, 1]


def test_tr_of_rows_equals_the_definition(small_model, random_rows):
    model = small_model("qwen2")
    table = score_rows(model, random_rows, scorer(TR), tr=table_for(model, random_rows, scorer(TR)))
    assert_tr_equals_loops(model, random_rows, table)


# --- TR in context ------------------------------------------------------------------------------------------

CONTEXTUAL = TRVariant.contextual


def hidden_by_loops(model, rows):
    """The middle layer's hidden state of each response token, one eager pass a row; float64."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = []
    for row in rows:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([row.input_ids]), output_hidden_states=True)
        states = output.hidden_states[model.config.num_hidden_layers // 2][0].double().numpy()
        found.append(states[row.prompt_length :])
    model.set_attn_implementation(before)
    return found


def context_tr_by_loops(model, rows):
    states = hidden_by_loops(model, rows)
    unit = [[vector / np.linalg.norm(vector) for vector in row] for row in states]
    centre = np.mean([vector for row in unit for vector in row], axis=0)
    distances = [[1 - vector @ centre / np.linalg.norm(centre) for vector in row] for row in unit]
    nearest, farthest = min(map(min, distances)), max(map(max, distances))
    return [[(farthest - distance) / (farthest - nearest) for distance in row] for row in distances]


def in_context(model, rows, *attributes, shards=1, **more):
    parts = [rows[first : first + -(-len(rows) // shards)] for first in range(0, len(rows), -(-len(rows) // shards))]
    tables = [score_rows(model, part, scorer(*attributes, tr=CONTEXTUAL), **more) for part in parts]
    centre = context_centre(lambda: (hidden_states(table) for table in tables))
    return pa.concat_tables(with_context_tr(table, centre) for table in tables)


@pytest.mark.parametrize("name", ["qwen2", "qwen2_window", "qwen3", "llama", "mistral"])
def test_contextual_tr_equals_one_eager_pass_per_row_whatever_the_shards(small_model, random_rows, name):
    model = small_model(name)
    for shards in (1, 3):
        table = in_context(model, random_rows, RI, KN, TR, shards=shards, tokens_per_batch=100)
        assert table.column_names[3:] == ["ri", "kn", "logp", "tr"]
        assert table.schema.field("tr").type == pa.list_(pa.float32())
        for values, expected in zip(table["tr"].to_pylist(), context_tr_by_loops(model, random_rows), strict=True):
            np.testing.assert_allclose(values, expected, atol=2e-3)  # of half precision
    plain = score_rows(model, random_rows, scorer(RI, KN), tokens_per_batch=100)
    for column in ("ri", "kn", "logp"):
        assert table[column].combine_chunks().equals(plain[column].combine_chunks()) or np.allclose(
            *(one[column].combine_chunks().flatten().to_numpy() for one in (table, plain)), atol=1e-5
        )


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_contextual_tr_and_ri_come_from_one_pass_that_ends_with_the_later_of_their_layers(
    small_model, random_rows, layer
):
    model, seen = small_model("llama", num_hidden_layers=4), []
    score_rows(model, random_rows[:1], scorer(RI))  # the first call checks the class of the model
    for number, part in enumerate(model.model.layers):
        part.register_forward_hook(lambda *_, number=number: seen.append(number))
    config = scorer(RI, TR, layer=layer, tr=CONTEXTUAL)
    table = score_rows(model, random_rows, config, tokens_per_batch=10_000)
    assert seen == list(range({0: 2, 1: 2, -1: 3}[layer])), "the middle of four layers lies behind two"
    expected = score_rows(model, random_rows, scorer(RI, layer=layer), tokens_per_batch=10_000)
    np.testing.assert_allclose(*(one["ri"].combine_chunks().flatten() for one in (table, expected)), atol=1e-6)
    vectors = np.concatenate(hidden_by_loops(model, random_rows))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(hidden_states(table), vectors, atol=1e-3)


def test_the_same_token_has_another_contextual_tr_in_another_context(small_model):
    rows = [Encoded("a", [5, 6, 7, 8], 1), Encoded("b", [9, 3, 7, 8], 1)]
    values = in_context(small_model("llama"), rows, TR)["tr"].to_pylist()
    assert values[0][1] != values[1][1]
    by_id = score_rows(small_model("llama"), rows, scorer(TR), tr=table_for(small_model("llama"), rows, scorer(TR)))
    assert by_id["tr"][0][1] == by_id["tr"][1][1]


def test_contextual_tr_worked_out_by_hand():
    """Vectors along 0, 90, 45 and 180 degrees: the mean is (1 / sqrt(2), 1 + 1 / sqrt(2)) / 4, at 67.5 degrees."""
    half = 2**-0.5
    vectors = np.array([[1, 0], [0, 1], [half, half], [-1, 0]], np.float16)
    centre = context_centre(lambda: iter([vectors[:3], vectors[3:]]))
    cosines = [math.cos(math.radians(angle)) for angle in (67.5, 22.5, 22.5, 112.5)]
    np.testing.assert_allclose(1 - centre.distances(vectors), cosines, atol=1e-3)
    rows = as_table([Encoded("a", [1, 2, 3], 1), Encoded("b", [1, 4, 5], 1)])
    lists = pa.array([[v.tobytes() for v in vectors[:2]], [v.tobytes() for v in vectors[2:]]], pa.list_(pa.binary(4)))
    low, high = cosines[3], cosines[1]
    expected = [[(c - low) / (high - low) for c in pair] for pair in (cosines[:2], cosines[2:])]
    whole = rows.append_column(HIDDEN, lists)
    for found in (whole, pa.concat_tables([whole, whole]).combine_chunks().slice(2)):
        np.testing.assert_allclose(with_context_tr(found, centre)["tr"].to_pylist(), expected, atol=1e-3)
    same = context_centre(lambda: iter([vectors[[1, 1]]]))
    two = as_table([Encoded("a", [1, 2, 3], 1)]).append_column(HIDDEN, lists.slice(0, 1))
    assert with_context_tr(two, Centre(same.mean, 0.0, 0.0))["tr"].to_pylist() == [[1, 1]], "equal distances"


def test_a_hidden_state_that_is_not_finite_names_its_example(small_model):
    model = small_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = math.nan
    with pytest.raises(ValueError, match=r"the hidden state of a token is not a finite number in .*'b'"):
        score_rows(model, [Encoded("a", [1, 2], 1), Encoded("b", [1, 7], 1)], scorer(TR, tr=CONTEXTUAL))


class LetterTokenizer:
    """One token per letter: a = 0, b = 1, ..."""

    def __call__(self, word, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) - ord("a") for letter in word]}


def test_released_tr_compares_last_hidden_states(small_model, random_rows):
    model = small_model("qwen2", vocab_size=97)
    config = scorer(TR, tr=TRVariant.released)
    words = ["ab", "c", "defg"]
    table = table_for(model, random_rows, config, domain_words=words, tokenizer=LetterTokenizer(), tokens_per_batch=7)

    def last_hidden(ids):
        with torch.no_grad():
            return model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double()

    domain = torch.stack([last_hidden([ord(c) - ord("a") for c in word]).mean(0) for word in words]).mean(0)
    used = sorted({token for row in random_rows for token in row.input_ids[row.prompt_length :]})
    cosines = [torch.cosine_similarity(last_hidden([token])[0], domain, dim=0).item() for token in used]
    scaled = (np.array(cosines) - min(cosines)) / (max(cosines) - min(cosines))
    np.testing.assert_allclose(table.values[used], scaled, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "tokenizer", "message"),
    [((), LetterTokenizer(), "domain_words"), (("a", ""), LetterTokenizer(), "''"), (("a",), None, "tokenizer")],
)
def test_released_tr_refuses_what_it_cannot_use(small_model, random_rows, words, tokenizer, message):
    config = scorer(TR, tr=TRVariant.released)
    with pytest.raises(ValueError, match=message):
        table_for(small_model("qwen2"), random_rows, config, domain_words=words, tokenizer=tokenizer)


def test_counts_worked_out_by_hand_do_not_depend_on_the_rows_counted_at_once(monkeypatch):
    rows = [Encoded("a", [1, 1, 3], 1), Encoded("b", [0, 1], 1), Encoded("c", [2, 5, 5], 2)]
    for at_once in (1, 2, 3):
        monkeypatch.setattr(scorers, "ROWS_AT_ONCE", at_once)
        counts = count_tokens(rows)
        assert counts.all.tolist() == [1, 3, 1, 1, 0, 2] and counts.response.tolist() == [0, 2, 0, 1, 0, 1]


def test_ids_beyond_the_vocabulary_are_refused(small_model):
    with pytest.raises(ValueError, match="id 97 does not fit a vocabulary of 97"):
        table_for(small_model("qwen2"), [Encoded("a", [1, 97], 1)], scorer(TR))


def test_a_table_of_other_rows_is_refused(small_model, random_rows):
    model = small_model("qwen2")
    table = table_for(model, [Encoded("a", [1, 2], 1)], scorer(TR))
    with pytest.raises(ValueError, match="lacks token id"):
        score_rows(model, random_rows, scorer(TR), tr=table)


# --- only what is asked for ---------------------------------------------------------------------------------


def count_calls(monkeypatch, model):
    """Rows that went through each part of the model."""
    calls = {}
    parts = {"head": model.lm_head, **{f"layer{i}": layer for i, layer in enumerate(model.model.layers)}}
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda _, args, name=name: calls.setdefault(name, []).append(args[0].shape[:-1].numel())
        )
    return calls


def test_tr_alone_runs_no_forward_pass(small_model, random_rows, monkeypatch):
    model = small_model("qwen2")
    table = table_for(model, random_rows, scorer(TR))
    calls = count_calls(monkeypatch, model)
    assert score_rows(model, random_rows, scorer(TR), tr=table).column_names[3:] == ["tr"]
    assert not calls


def test_ri_alone_ends_with_the_scored_layer(small_model, random_rows, monkeypatch):
    model = small_model("qwen2")
    score_rows(model, random_rows[:1], scorer(RI))  # the first call checks the class of the model
    calls = count_calls(monkeypatch, model)
    early = score_rows(model, random_rows, scorer(RI, layer=1))
    assert set(calls) == {"layer0", "layer1"}
    assert early.column_names[3:] == ["ri"]
    full = score_rows(model, random_rows, scorer(RI, KN, layer=1))
    assert early["ri"].equals(full["ri"])


def test_kn_alone_forms_no_attention_weights_and_runs_the_head_on_responses_only(small_model, random_rows, monkeypatch):
    model = small_model("qwen2")
    score_rows(model, random_rows[:1], scorer(KN))  # the first call checks the class of the model
    calls = count_calls(monkeypatch, model)
    monkeypatch.setattr(scorers._Probe, "collect", None)
    table = score_rows(model, random_rows, scorer(KN))
    assert table.column_names[3:] == ["kn", "logp"]
    assert sum(calls["head"]) == sum(len(row.input_ids) - row.prompt_length for row in random_rows)


def test_logp_comes_without_kn_where_a_method_needs_it(small_model, random_rows):
    model = small_model("qwen2")
    assert score_rows(model, random_rows, scorer(), logp=True).column_names[3:] == ["logp"]


def test_attributes_to_compute_are_scored_too(small_model, random_rows):
    table = score_rows(small_model("qwen2"), random_rows, scorer(KN, compute=(RI,)))
    assert table.column_names[3:] == ["ri", "kn", "logp"]


def test_batches_hold_rows_of_like_length_within_the_budget():
    lengths = np.array([3, 9, 4, 30, 9, 1])
    assert [batch.tolist() for batch in batches(lengths, 20)] == [[3], [1, 4], [2, 0, 5]]


def test_progress_counts_every_real_token_once(small_model, random_rows):
    seen = []
    score_rows(small_model("qwen2"), random_rows, scorer(KN), tokens_per_batch=60, progress=seen.append)
    assert len(seen) > 3 and sum(seen) == sum(len(row.input_ids) for row in random_rows)


# --- the model is left as it was ----------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_and_training_mode_are_put_back(small_model, random_rows, attention):
    model = small_model("llama", attention_dropout=0.5).train()
    model.set_attn_implementation(attention)
    first = score_rows(model, random_rows, scorer(RI, KN))
    assert model.training and model.config._attn_implementation == attention
    assert first.equals(score_rows(model, random_rows, scorer(RI, KN))), "dropout was active"
    with pytest.raises(ValueError, match="layers 0 to 2"):
        score_rows(model, random_rows, scorer(RI, layer=3))
    assert model.training and model.config._attn_implementation == attention


# --- what cannot be scored ----------------------------------------------------------------------------------


def test_scores_that_are_not_finite_name_their_examples(small_model):
    model = small_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    rows = [Encoded("good", [1, 2, 3], 1), Encoded("bad", [1, 7, 3, 4], 2)]
    with pytest.raises(ValueError, match="not a finite number in 'bad';"):
        score_rows(model, rows, scorer(KN))
    with pytest.raises(ValueError, match=r"not finite numbers.*token id"):
        table_for(model, rows, scorer(TR))


@pytest.mark.parametrize("prompt_length", [0, 3, 4])
def test_a_row_without_prompt_or_response_is_refused(small_model, prompt_length):
    with pytest.raises(ValueError, match="'lost'"):
        score_rows(small_model("qwen2"), [Encoded("lost", [1, 2, 3], prompt_length)], scorer(KN))


def test_nothing_to_score_is_refused(small_model):
    with pytest.raises(ValueError, match="no rows"):
        score_rows(small_model("qwen2"), [], scorer(KN))


def test_tr_without_its_table_is_refused(small_model, random_rows):
    with pytest.raises(ValueError, match="tr_table"):
        score_rows(small_model("qwen2"), random_rows, scorer(TR))


@pytest.mark.parametrize("layer", [-4, 3])
def test_a_layer_that_is_not_there_is_refused(small_model, random_rows, layer):
    with pytest.raises(ValueError, match=f"scorer.ri.layer={layer}"):
        score_rows(small_model("qwen2"), random_rows, scorer(RI, layer=layer))


def test_released_ri_is_of_layer_zero(small_model, random_rows):
    with pytest.raises(ValueError, match="layer 0"):
        score_rows(small_model("qwen2"), random_rows, scorer(RI, layer=2, variant=RIVariant.released))


SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def test_a_class_that_changes_its_logits_in_an_unknown_way_is_refused_for_kn_and_scored_for_ri(random_rows):
    model = GraniteForCausalLM(GraniteConfig(**SIZES, initializer_range=0.3, logits_scaling=8.0)).eval()
    table = score_rows(model, random_rows, scorer(RI))
    np.testing.assert_allclose(np.exp(table["ri"][1].as_py()), eager(model, random_rows[1])[0], atol=1e-5)
    model.register_forward_hook(lambda model, inputs, output: setattr(output, "logits", output.logits * 2))
    with pytest.raises(ValueError, match="changes its logits behind the LM head"):
        score_rows(model, random_rows, scorer(KN))


def test_attention_that_is_not_causal_or_windowed_is_refused(random_rows):
    chunked = Llama4TextConfig(
        **SIZES, head_dim=8, intermediate_size_mlp=48, num_local_experts=1, attention_chunk_size=8, pad_token_id=0
    )
    with pytest.raises(ValueError, match="neither causal nor a sliding window"):
        score_rows(Llama4ForCausalLM(chunked).eval(), random_rows, scorer(RI))


def test_attention_with_a_soft_cap_is_refused(random_rows):
    capped = Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8)).eval()
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        score_rows(capped, random_rows, scorer(RI))
