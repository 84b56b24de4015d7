"""Should this mask be trained with? Judged from the mask alone, before any training: fine, look closer, or do not.

A token id that is dropped wherever it stands, or nearly so, though the base model does not expect it, is hardly learnt
from the data. Where such ids make the form of the answer, which stands in nearly every response, the model is taught
everything but how to answer: SmolLM2-135M on PubMedQA ended with every answer unreadable. Each limit below lies between
masks of stored runs that did harm and masks that did not (experiments/study_real.md, experiments/README.md; the table
is in docs/does-it-help.md). They are few, so a limit tells where to look and is no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from xtf.config.schema import Protect, ThresholdConfig, ThresholdEnd
from xtf.scoring.masks import MaskedTokens

# Of the responses: what stands in as many is the answer's form; 98 to 100 % where never teaching it did harm.
FORM = 0.9
LEAST = 10  # occurrences of a token id before "wherever it stands" says something; judgement
# Of a token id's places: dropped in as many, it goes wherever it stands, or nearly so. TR in context drops "ision" (of
# "Decision") in 95 % of its places in PubMedQA, #### in 98 % in GSM8K: 92 and 14 % of the answers were unreadable.
NEARLY = 0.9
# Of the dropped tokens that have such an id. SmolLM2, real rows: 17, 23 and 24 % with harm, 0 % (random masks) without.
ALWAYS = 0.15
# Of the tokens dropped. At random 32 and 37 % did SmolLM2 nearly no harm, 65 % took the tiny model from 55 to 16 %.
MOST = 0.5
# Nats a token: the base model hardly knows such text. Masks mostly did harm at 8.4 and 11.3; known rows have 1 to 3.
STRANGE = 5.0
WORST = 10  # ids shown
EVIDENCE = (  # of FORM: experiments/study_real.md
    "Where that was so, XTF cost SmolLM2-135M 0.84 (GSM8K) and 0.23 nats a token (PubMedQA) over plain fine-tuning, "
    "a random mask of the same size 0.04 and 0.01."
)
SAFE = (
    "threshold=safe: what is dropped counts with weight 0.3. It took XTF's cost from 0.84 to 0.02 (GSM8K) and from "
    "0.23 to 0.05 nats a token (PubMedQA), and was no better than plain fine-tuning either"
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

    def lines(self, name: Callable[[int], str]) -> list[str]:
        """In sentences, the judgement first; `name` gives the text of a token id."""
        found = [f"{self.level.words}" + (":" if self.level else ": nothing in the mask speaks against it")]
        found += [text for level, text in self.reasons if level]
        if self.always:
            shown = ", ".join(f"{name(item.id)!r} ({item.times:,})" for item in self.always)
            found.append(f"Dropped wherever they stand, or nearly so: {shown}")
            if self.untaught is not None:
                found.append(
                    "With all such ids go {:.2f} of the base model's {:.2f} nats a token.".format(*self.untaught)
                )
        return found + [f"Try {text}" for text in self.advice]


def judge(tokens: MaskedTokens, threshold: ThresholdConfig) -> Verdict:
    """The verdict on the mask of all `tokens`, which `threshold` made."""
    judged, examples = tokens.judged(threshold), len(tokens.lengths)
    drop = ~tokens.kept & judged
    always = _always(tokens, judged, drop)
    form = [item for item in always if item.responses >= FORM * examples]
    reasons = []
    lessened = threshold.dropped_weight > 0 or threshold.drop_probability < 1  # what is dropped is taught all the same
    if form:
        taught = "taught with less weight." if lessened else f"never taught. {EVIDENCE}"
        reasons.append(
            (
                Level.look if lessened else Level.stop,
                f"Token ids that stand in at least {FORM:.0%} of the {examples:,} responses are dropped in at least "
                f"{NEARLY:.0%} of their places ({len(form)}): the form of the answer is {taught}",
            )
        )
    if threshold.end is ThresholdEnd.scored:
        last = tokens.offsets[1:][tokens.lengths > 0] - 1
        share = float(drop[last].mean()) if len(last) else 0.0
        if share >= 0.5:
            level, teaches = (
                (Level.look, "teaches to stop with its whole weight") if lessened else (Level.stop, "teaches to stop")
            )
            reasons.append((level, f"The end of {share:.0%} of the responses is dropped: none {teaches}."))
    dropped, total = int(np.count_nonzero(drop)), max(1, int(np.count_nonzero(judged)))
    by_id = sum(item.times for item in always)
    if dropped and by_id / dropped >= ALWAYS and not lessened:
        reasons.append(
            (
                Level.look,
                f"{by_id / dropped:.0%} of the dropped tokens have an id that is dropped wherever it stands, or nearly "
                "so: hardly another example teaches what they are.",
            )
        )
    if dropped / total > MOST:
        reasons.append((Level.look, f"{dropped / total:.0%} of the response tokens are dropped."))
    if "logp" in tokens.scores:
        loss = float(-tokens.scores["logp"][~tokens.untrained].mean(dtype=np.float64))
        if loss > STRANGE:
            reasons.append(
                (
                    Level.look,
                    f"The base model has {loss:.1f} nats a token on these responses: it hardly knows their style, "
                    "where masks did harm (experiments/history).",
                )
            )
    advice = []
    if not lessened and any(level for level, _ in reasons) and always:
        advice.append(SAFE)
    if form or by_id:
        by = {name for item in form or always for name in item.by}
        if "tr" in by:
            advice.append("scorer=ri_kn, for it is TR that drops them, or TR in context: scorer.tr.variant=contextual")
        elif by and not lessened:
            advice.append(f"a mask without {' and '.join(sorted(by)).upper()}, or threshold.drop_probability=0.5")
    if form and threshold.protect is Protect.none:
        advice.append("threshold.protect=answer: what the task's grader reads is never dropped")
    if threshold.end is ThresholdEnd.scored:
        advice.append("threshold.end=kept: the end of a response is not judged")
    untaught = None
    if "logp" in tokens.scores:
        nats = -tokens.scores["logp"].astype(np.float64)
        gone = drop & np.isin(tokens.ids, [item.id for item in always])
        untaught = float(nats[gone].sum()) / total, float(nats[judged].sum()) / total
    return Verdict(reasons, sorted(always, key=lambda item: -item.responses)[:WORST], advice, untaught)


def _always(tokens: MaskedTokens, judged: np.ndarray, drop: np.ndarray) -> list[Always]:
    """The ids of which at least `NEARLY` of the judged tokens are dropped, if there are `LEAST` of them."""
    ids, place = np.unique(tokens.ids, return_inverse=True)
    times = np.bincount(place[judged], minlength=len(ids))
    gone = np.bincount(place[drop], minlength=len(ids))
    which = np.flatnonzero((gone >= NEARLY * times) & (times >= LEAST))
    if "kn" in tokens.dropped:
        known = np.bincount(place[judged & tokens.dropped["kn"]], minlength=len(ids))
        which = which[2 * known[which] < times[which]]
    here = np.isin(place, which) & judged
    pairs = np.unique(np.stack([place[here], tokens.example[here]]), axis=1)
    responses = np.bincount(pairs[0], minlength=len(ids))
    by = {name: np.bincount(place[here & values], minlength=len(ids)) for name, values in tokens.dropped.items()}
    return [
        Always(
            id=int(ids[k]),
            times=int(times[k]),
            responses=int(responses[k]),
            by=tuple(name for name, counts in by.items() if 2 * counts[k] >= times[k]),
        )
        for k in which
    ]
