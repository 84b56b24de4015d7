"""Should this mask be trained with? Judged from the mask alone, before any training: fine, look closer, or do not.

A token id that is dropped wherever it stands, or nearly so, though the base model does not expect it, is hardly learnt
from the data. Where such ids make the form of the answer, which stands in nearly every response, the model is taught
everything but how to answer: SmolLM2-135M on PubMedQA ended with every answer unreadable. Each limit below lies between
masks of stored runs that did harm and masks that did not (experiments/study_real.md, experiments/README.md; the table
is in docs/does-it-help.md). They are few, so a limit tells where to look and is no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from xtf.config.home import in_repository
from xtf.config.schema import Protect, ThresholdConfig, ThresholdEnd
from xtf.data.batches import parquet_batches
from xtf.data.ragged import ROW_WEIGHTS
from xtf.scoring.attributes import ATTRIBUTES
from xtf.scoring.masks import MaskedTokens

# Of the responses: what stands in as many is the answer's form; 98 to 100 % where never teaching it did harm.
FORM = 0.9
LEAST = 10  # occurrences of a token id before "wherever it stands" says something; judgement
# Of a token id's places: dropped in as many, it goes wherever it stands, or nearly so. TR in context drops "ision" (of
# "Decision") in 95 % of its places in PubMedQA, #### in 98 % in GSM8K: 92 and 14 % of the answers were unreadable.
NEARLY = 0.9
# Of the dropped tokens that have such an id. SmolLM2, real rows: 17, 23 and 24 % with harm, 0 % (random masks) without.
ALWAYS = 0.15
# Nats a token of the base model in the dropped tokens of such ids. SmolLM2: 0.27 to 0.36 in the four masks that cost it
# 0.23 to 0.86, at most 0.09 in all others. Not set by the tiny model, which ends at 2.5 % with 0.38 (code).
UNTAUGHT = 0.2
# Of the tokens dropped. At random 32 and 37 % cost SmolLM2 0.01 and 0.03 nats a token, 54 % (MBPP) 0.08; 65 % took the
# tiny model from 45 to 12 %.
MOST = 0.5
# Nats a token: the base model hardly knows such text. Masks mostly did harm at 8.4 and 11.3; known rows have 1 to 3.
STRANGE = 5.0
# Of the tokens that the grader reads. XTF drops 71 and 65 % of them in GSM8K and PubMedQA, random masks 37 and 32 %.
ANSWER = 0.5
WORST = 10  # ids shown
READ = (  # columns of mask.parquet
    *("input_ids", "prompt_length", "end_tokens", "labels", "dropped", "logp", ROW_WEIGHTS),
    *(attribute.drops for attribute in ATTRIBUTES.values()),
)
EVIDENCE = (  # of FORM: experiments/study_real.md
    "Where that was so, XTF cost SmolLM2-135M 0.86 (GSM8K), 0.23 (PubMedQA) and 0.35 nats a token (MBPP) over plain "
    "fine-tuning, a random mask of the same size 0.03, 0.01 and 0.08."
)
WITHOUT_TR = (
    "SmolLM2's cost went from 0.86 to 0.02 (GSM8K), from 0.23 to 0.00 (PubMedQA) and from 0.35 to 0.02 nats a token "
    "(MBPP), with 24, 13 and 29 % dropped; Qwen2.5-Coder-0.5B's from 0.13 to 0.05 (MBPP), with 47 % dropped"
)
SAFE = (
    "threshold=safe: what is dropped counts with weight 0.3. It took XTF's cost from 0.86 to 0.02 (GSM8K) and from "
    "0.23 to 0.06 nats a token (PubMedQA, 24 % of the answers still unreadable)"
)

PROTECT = (
    "threshold.protect=answer: what the task's grader reads is never dropped. With threshold=safe it cost 0.01 nats a "
    "token (PubMedQA, 2 % of the answers unreadable)"
)


class Level(IntEnum):
    """What to do with a mask; the worst of its reasons decides."""

    fine = 0
    look = 1
    stop = 2

    @property
    def words(self) -> str:
        """The judgement, as it is shown."""
        return ("fine", "look closer", "do not train on this")[self]


@dataclass(frozen=True)
class Always:
    """A token id that is dropped in at least `NEARLY` of its places, at most in half of them by KN: the base does not
    know it."""

    id: int
    times: int
    responses: int
    by: tuple[str, ...]  # attributes that drop it in at least half of its places


@dataclass(frozen=True)
class Verdict:
    """The judgement of a mask with what decides it.

    reasons: what was looked at, each with its level, in sentences; always: the worst ids that are dropped wherever they
    stand; advice: what to try, as settings; untaught: the base model's nats in the dropped tokens of all such ids, and
    in all judged tokens, each by the number of judged tokens; None where log p is not scored.
    """

    reasons: Sequence[tuple[Level, str]]
    always: Sequence[Always]
    advice: Sequence[str]
    untaught: tuple[float, float] | None = None

    @property
    def level(self) -> Level:
        """The worst level of the reasons."""
        return max((level for level, _ in self.reasons), default=Level.fine)

    @property
    def reason(self) -> str:
        """The first of the reasons that decide; of a fine mask what was looked at."""
        return next((text for level, text in self.reasons if level == self.level), "")

    @property
    def setting(self) -> dict[str, str]:
        """What is advised first, as a key and its value; empty where nothing is, or no one setting."""
        first = next(iter(self.advice), "").partition(" ")[0].rstrip(",:")
        key, equals, value = first.partition("=")
        return {key: value} if equals else {}

    def lines(self, name: Callable[[int], str]) -> list[str]:
        """In sentences, the judgement first; `name` gives the text of a token id."""
        found = [self.level.words + ("" if self.level else ", nothing in it speaks against training")]
        found += [text for _, text in self.reasons]
        if self.always:
            shown = ", ".join(f"{name(item.id)!r} ({item.times:,})" for item in self.always)
            found.append(f"Dropped wherever they stand, or nearly so: {shown}")
            if self.untaught is not None and self.untaught[0] < UNTAUGHT:
                found.append(
                    "With all such ids go {:.2f} of the base model's {:.2f} nats a token.".format(*self.untaught)
                )
        return found + [f"Try {text}" for text in self.advice]


def judge(parts: Iterable[MaskedTokens], threshold: ThresholdConfig, stats: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a mask that `threshold` made, from its rows some at a time; memory is that of one part.

    `stats` are those of the mask (`MaskStats.to_dict`): which attributes are degenerate, and what is dropped of the
    tokens that the grader reads, if that was counted. Without them neither is judged.
    """
    counts, stats = _Counts.of(parts, threshold), stats or {}
    always = counts.always()
    untaught = None
    if counts.nats is not None:
        gone, total = float(counts.nats[[item.id for item in always]].sum()), max(1, int(counts.judged.sum()))
        untaught = gone / total, counts.nats_judged / total
    form = [item for item in always if item.responses >= FORM * counts.examples]
    reasons = sorted(_reasons(counts, always, len(form), untaught, threshold, stats), key=lambda found: -found[0])
    advice = list(_advice(counts, form or always, bool(form), threshold, stats)) if reasons else []
    if not reasons:
        reasons = [(Level.fine, _looked_at(counts, untaught))]
    return Verdict(reasons, sorted(always, key=lambda item: -item.responses)[:WORST], advice, untaught)


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _looked_at(counts: _Counts, untaught: tuple[float, float] | None) -> str:
    """What a mask against which nothing speaks was found to be."""
    dropped, total = int(counts.dropped.sum()), max(1, int(counts.judged.sum()))
    if not dropped:
        return "No token is dropped: this is plain fine-tuning."
    text = f"{_share(dropped / total)} of the response tokens are dropped"
    if untaught is not None:
        text += ", with ids that are dropped wherever they stand go {:.2f} of the base model's {:.2f} nats a token"
        text = text.format(*untaught)
    return text + "; how well it chooses, only a training can tell."


def _by_chance(times: np.ndarray, share: float) -> float:
    """The expected number of dropped tokens whose id goes in `NEARLY` of its places, of a random mask.

    times: int64, the places of each id; share: of all tokens that it drops. Sums of k P(X = k), X binomial.
    """
    dropped = 0.0
    for n, ids in zip(*np.unique(times, return_counts=True), strict=True):
        if n * (NEARLY - share) ** 2 > 15:  # Hoeffding: the sum differs from none, or from all, by less than e^-30
            dropped += ids * n * share * (share > NEARLY)
            continue
        k = np.arange(math.ceil(NEARLY * n), n + 1)
        ways = math.lgamma(n + 1) - np.array([math.lgamma(j + 1) + math.lgamma(n - j + 1) for j in k])
        dropped += ids * float((k * np.exp(ways + k * math.log(share) + (n - k) * math.log1p(-share))).sum())
    return dropped


def _lessened(threshold: ThresholdConfig) -> bool:
    """Whether what is dropped is taught all the same, with less weight or in some epochs."""
    return threshold.dropped_weight > 0 or threshold.drop_probability < 1


def _answers_go(stats: Mapping[str, Any]) -> bool:
    answers: Mapping[str, int] = stats.get("answers", {})
    return bool(answers) and answers["dropped"] >= ANSWER * answers["tokens"]


def _reasons(
    counts: _Counts,
    always: Sequence[Always],
    form: int,
    untaught: tuple[float, float] | None,
    threshold: ThresholdConfig,
    stats: Mapping[str, Any],
) -> Iterator[tuple[Level, str]]:
    """What speaks against the mask; `form` of the ids that are `always` dropped stand in nearly every response."""
    lessened = _lessened(threshold)
    worst = Level.look if lessened else Level.stop
    if 0 < counts.examples < LEAST and counts.dropped.any():
        yield (
            Level.look,
            f"There are {counts.examples} responses: too few to see which tokens are dropped wherever they stand.",
        )
    if form:
        taught = "taught with less weight." if lessened else f"never taught. {EVIDENCE}"
        yield (
            worst,
            f"Of the tokens that stand in at least {_share(FORM)} of the {counts.examples:,} responses, {form} "
            f"{'is' if form == 1 else 'are'} dropped in at least {_share(NEARLY)} of the places: the form of the "
            f"answer is {taught}",
        )
    if untaught is not None and untaught[0] >= UNTAUGHT:
        yield (
            worst,
            "With ids that are dropped wherever they stand, or nearly so, go {:.2f} of the base model's {:.2f} nats a "
            "token: what it has to learn there, no example teaches".format(*untaught)
            + (" with its whole weight." if lessened else f" ({UNTAUGHT:g} and more did harm)."),
        )
    if threshold.end is ThresholdEnd.scored and counts.ends and (share := counts.ends_dropped / counts.ends) >= 0.5:
        teaches = "teaches to stop with its whole weight" if lessened else "teaches to stop"
        yield worst, f"The end of {_share(share)} of the responses is dropped: none {teaches}."
    if _answers_go(stats):
        answers = stats["answers"]
        yield (
            Level.look,
            f"{_share(answers['dropped'] / answers['tokens'])} of the tokens that the task's grader reads are dropped "
            f"(counted in {answers['responses']:,} responses).",
        )
    dropped, total = int(counts.dropped.sum()), max(1, int(counts.judged.sum()))
    by_id = sum(item.times for item in always)
    if dropped and by_id / dropped >= ALWAYS and not lessened:
        yield (
            Level.look,
            f"{_share(by_id / dropped)} of the dropped tokens have an id that is dropped wherever it stands, or nearly "
            f"so (of a random mask's as large: {_share(counts.by_chance())}): hardly another example teaches what they "
            "are.",
        )
    if dropped / total > MOST:
        yield Level.look, f"{_share(dropped / total)} of the response tokens are dropped."
    for one in stats.get("degenerate", []):
        yield Level.look, f"{one['attribute'].upper()} is degenerate: {one['reason']}."
    if counts.trained and counts.nats is not None and (loss := counts.nats_trained / counts.trained) > STRANGE:
        yield (
            Level.look,
            f"The base model has {loss:.1f} nats a token on these responses: it hardly knows their style, "
            f"where masks did harm ({in_repository('experiments/history')}).",
        )


def _advice(
    counts: _Counts, worst: Sequence[Always], form: bool, threshold: ThresholdConfig, stats: Mapping[str, Any]
) -> Iterator[str]:
    """What to try, as settings; the `worst` of the ids that are dropped wherever they stand say what to leave out."""
    blamed = {name for item in worst for name in item.by}
    without = {one["attribute"] for one in stats.get("degenerate", [])} | {"tr"} & blamed
    if without:
        rest = "_".join(name for name in counts.by if name not in without)
        text = f"scorer={rest}" if rest else "scorer=none, which is plain fine-tuning"
        if "tr" in blamed:
            text += ", for it is TR that drops them" + f". {WITHOUT_TR}" * (rest == "ri_kn")
        yield text
    if blamed and not _lessened(threshold):
        yield SAFE
        if not without:
            yield f"a mask without {' and '.join(sorted(blamed)).upper()}, or threshold.drop_probability=0.5"
    if "answers" in stats and (form or _answers_go(stats)) and threshold.protect is Protect.none:  # else it is refused
        yield PROTECT
    if threshold.end is ThresholdEnd.scored:
        yield "threshold.end=kept: the end of a response is not judged"


def judge_file(path: Path, threshold: ThresholdConfig, stats: Mapping[str, Any]) -> Verdict | None:
    """`judge` of a mask.parquet, a batch at a time; None where no attribute drops anything."""
    names = [name for name in pq.read_schema(path).names if name in READ]
    if not any(attribute.drops in names for attribute in ATTRIBUTES.values()):
        return None
    return judge(map(MaskedTokens.from_mask, parquet_batches([path], names)), threshold, stats)


def _none() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass
class _Counts:
    """What is counted over the parts; arrays are int64 by token id, as long as the greatest id that was seen."""

    judged: np.ndarray = field(default_factory=_none)  # places
    dropped: np.ndarray = field(default_factory=_none)  # of them
    responses: np.ndarray = field(default_factory=_none)  # with a judged place
    by: dict[str, np.ndarray] = field(default_factory=dict)  # places that an attribute drops
    nats: np.ndarray | None = field(default_factory=_none)  # float64, of dropped places; None where log p is not scored
    examples: int = 0
    ends: int = 0  # responses with a last token
    ends_dropped: int = 0
    trained: int = 0  # tokens
    nats_trained: float = 0.0
    nats_judged: float = 0.0

    @classmethod
    def of(cls, parts: Iterable[MaskedTokens], threshold: ThresholdConfig) -> _Counts:
        found = cls()
        for part in parts:
            found._add(part, threshold)
        return found

    def _add(self, tokens: MaskedTokens, threshold: ThresholdConfig) -> None:
        ids, judged, examples = tokens.ids, tokens.judged(threshold), len(tokens.lengths)
        drop = ~tokens.kept & judged
        pairs = np.unique(ids[judged] * max(1, examples) + tokens.example[judged])
        self.judged = _sum(self.judged, np.bincount(ids[judged]))
        self.dropped = _sum(self.dropped, np.bincount(ids[drop]))
        self.responses = _sum(self.responses, np.bincount(pairs // max(1, examples)))
        for name, values in tokens.dropped.items():
            self.by[name] = _sum(self.by.get(name, _none()), np.bincount(ids[judged & values]))
        self.examples += examples
        last = tokens.offsets[1:][tokens.lengths > 0] - 1
        self.ends, self.ends_dropped = self.ends + len(last), self.ends_dropped + int(np.count_nonzero(drop[last]))
        self.trained += int(np.count_nonzero(~tokens.untrained))
        if "logp" not in tokens.scores or self.nats is None:
            self.nats = None
            return
        nats = -tokens.scores["logp"].astype(np.float64)
        self.nats = _sum(self.nats, np.bincount(ids[drop], nats[drop]))
        self.nats_trained += float(nats[~tokens.untrained].sum())
        self.nats_judged += float(nats[judged].sum())

    def by_chance(self) -> float:
        """Of as many tokens dropped at random, the share whose id goes wherever it stands, or nearly so: expected."""
        dropped, total = int(self.dropped.sum()), int(self.judged.sum())
        share = dropped / total
        return _by_chance(self.judged[self.judged >= LEAST], share) / dropped if share < 1 else 1.0

    def always(self) -> list[Always]:
        """The ids of which at least `NEARLY` of the judged places are dropped, if there are `LEAST` of them."""
        times = self.judged
        gone, *by = (_sum(np.zeros(len(times), np.int64), counts) for counts in (self.dropped, *self.by.values()))
        named = dict(zip(self.by, by, strict=True))
        which = np.flatnonzero((gone >= NEARLY * times) & (times >= LEAST))
        if "kn" in named:
            which = which[2 * named["kn"][which] < times[which]]
        return [
            Always(
                id=int(k),
                times=int(times[k]),
                responses=int(self.responses[k]),
                by=tuple(name for name, counts in named.items() if 2 * counts[k] >= times[k]),
            )
            for k in which
        ]


def _sum(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two arrays as long as the longer, with 0 where the shorter has nothing."""
    if len(one) < len(other):
        one, other = other, one
    found = one.astype(np.result_type(one, other))
    found[: len(other)] += other
    return found
