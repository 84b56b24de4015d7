"""Synthetic abstracts in the row format of PubMedQA.

Each row: {"pubid", "question", "context": {"contexts", "labels"}, "long_answer", "final_decision"}.

Nothing here is medical knowledge: drugs, trials and numbers are invented. The decision follows from the
results:
    yes     the change is as asked, and p is below 0.05
    no      the groups are alike and p is above 0.3, or a significant change goes the other way
    maybe   p is between 0.06 and 0.2, or the two outcomes disagree
"""

import random
from dataclasses import dataclass
from typing import Any

from xtf.data.words import CONDITIONS, PATIENTS, drug_name, noisy, pick

DECISIONS = ("yes", "no", "maybe")

# Share of rows that carry each kind of planted token noise; the kinds are drawn independently.
NOISE = {"opening": 0.35, "restated": 0.20, "filler": 0.25, "closing": 0.40}

OPENINGS = (
    "To the best of our knowledge, this is one of the first studies of its kind.",
    "Taken together, these findings are of interest.",
    "In light of the above, the following can be said.",
    "Thank you for the question.",
)
FILLERS = (
    "It should be noted that this is only one study.",
    "As with any study, some caution is in order.",
    "This is in line with what one might expect.",
)
CLOSINGS = (
    "Further studies are warranted.",
    "Larger trials are needed to confirm these results.",
    "These results may be of value to clinicians.",
    "More research is needed in this field.",
)

METHODS = (
    "{n} {who} with {illness} were assigned to {drug} or placebo for {weeks} weeks.",
    "We followed {n} {who} with {illness} on {drug} or placebo over {weeks} weeks.",
    "In this {weeks}-week trial, {n} {who} with {illness} took {drug} or placebo.",
)
WORSE_LIFE = "Quality of life was worse with the drug (p = 0.02)."
BACKGROUNDS = (
    "{Illness} is common in {who}, and the role of {drug} is debated.",
    "{drug} has been proposed for {illness}, but the evidence is limited.",
    "Little is known about {drug} in {who} with {illness}.",
)


@dataclass(frozen=True)
class Finding:
    """Rates in per cent with the drug and with placebo, and the p value of their difference."""

    drug: int
    placebo: int
    p: str

    def text(self, outcome: str) -> str:
        return f"{outcome} was seen in {self.drug}% with the drug, {self.placebo}% with placebo (p = {self.p})."


def significant(rng: random.Random, higher: bool) -> Finding:
    low = rng.randint(15, 50)
    high = low + rng.randint(15, 40)
    p = pick(rng, ["0.001", "0.002", "0.004", "0.01", "0.02", "0.03"])
    return Finding(high, low, p) if higher else Finding(low, high, p)


def alike(rng: random.Random) -> Finding:
    rate = rng.randint(15, 80)
    return Finding(rate, rate + rng.randint(-2, 2), f"0.{rng.randint(31, 95)}")


def unclear(rng: random.Random, higher: bool) -> Finding:
    low = rng.randint(15, 60)
    high = low + rng.randint(5, 10)
    p = f"0.{rng.randint(6, 20):02d}"
    return Finding(high, low, p) if higher else Finding(low, high, p)


def medical_row(rng: random.Random, decision: str, pubid: int) -> dict[str, Any]:
    """One row whose results lead to `decision`, one of `DECISIONS`."""
    facts: dict[str, Any] = {
        "drug": drug_name(rng),
        "who": pick(rng, PATIENTS),
        "illness": pick(rng, CONDITIONS),
        "n": rng.randint(3, 60) * 10,
        "weeks": rng.randint(2, 24),
    }
    facts["Illness"] = facts["illness"].capitalize()
    helps = rng.random() < 0.5
    outcome, verb, more, less = (
        ("Improvement", "improve", "more", "less") if helps else ("Relapse", "prevent", "less", "more")
    )
    with_drug = f"frequent with {facts['drug']}"
    if decision == "yes":
        results = [significant(rng, higher=helps).text(outcome)]
        reason = f"{outcome} was {more} {with_drug}, and the difference was significant."
    elif decision == "no" and rng.random() < 0.5:
        results = [significant(rng, higher=not helps).text(outcome)]
        reason = f"{outcome} was {less} {with_drug}, so it did not help."
    elif decision == "no":
        results = [alike(rng).text(outcome)]
        reason = f"{outcome} was similar with {facts['drug']} and placebo, so there was no clear effect."
    elif rng.random() < 0.5:
        results = [unclear(rng, higher=helps).text(outcome)]
        reason = f"There was a trend in favor of {facts['drug']}, but it was not significant."
    else:
        results = [significant(rng, higher=helps).text(outcome), WORSE_LIFE]
        reason = f"{outcome} was {more} {with_drug}, but quality of life was worse."
    question = f"Does {facts['drug']} {verb} {facts['illness']} in {facts['who']}?"
    return {
        "pubid": pubid,
        "question": question,
        "context": {
            "contexts": [pick(rng, BACKGROUNDS).format(**facts), pick(rng, METHODS).format(**facts), " ".join(results)],
            "labels": ["BACKGROUND", "METHODS", "RESULTS"],
        },
        "long_answer": " ".join(noisy(rng, reason, f"We asked: {question}", NOISE, OPENINGS, FILLERS, CLOSINGS)),
        "final_decision": decision,
    }
