"""Synthetic questions on money in the row format of FiQA: {"instruction", "input", "output"}.

FiQA's answers are free text that only a judge can grade. These end with a decision, so that the sample can be graded
without an endpoint: yes or no follows from the numbers in the question. People and prices are invented; nothing here is
advice.
"""

import random
from typing import Any

from xtf.data.words import NAMES, noisy, pick

DECISIONS = ("yes", "no")
INSTRUCTION = "Answer the question on money. Give the reason, then yes or no."

# Share of rows that carry each kind of planted token noise; the kinds are drawn independently.
NOISE = {"opening": 0.35, "restated": 0.20, "filler": 0.25, "closing": 0.40}

OPENINGS = (
    "That is a good question, and one that many people ask.",
    "I am not your adviser, but here are my thoughts.",
    "It depends, as so often with money.",
    "Thanks for asking.",
)
FILLERS = (
    "Of course everyone's situation is different.",
    "This leaves taxes aside.",
    "As always, past prices say little about future ones.",
)
CLOSINGS = (
    "Hope that helps.",
    "You may want to talk to a professional as well.",
    "Whatever you do, read the small print.",
    "Good luck.",
)


def refinance(rng: random.Random, name: str, pays: bool) -> tuple[str, str]:
    """A loan at a lower rate saves amount x points x years / 100, less a fee."""
    hundreds, points, years = rng.randint(10, 90), rng.randint(1, 3), rng.randint(2, 5)
    saved = hundreds * points * years
    fee = _beside(rng, saved, lower=pays)
    question = (
        f"{name} owes {hundreds * 100} for {years} years. A new loan is {points} points cheaper a year and costs a fee "
        f"of {fee}. Should {name} change?"
    )
    return (question, f"{hundreds * 100} at {points} points for {years} years saves {saved}, and the fee is {fee}.")


def card(rng: random.Random, name: str, pays: bool) -> tuple[str, str]:
    """A card that gives back a share of what is spent, for a yearly price."""
    hundreds, share = rng.randint(20, 150), rng.randint(1, 4)
    back = hundreds * share
    price = _beside(rng, back, lower=pays)
    question = (
        f"{name} spends {hundreds * 100} a year. A card gives back {share} percent and costs {price} a year. "
        "Is the card worth it?"
    )
    return question, f"{share} percent of {hundreds * 100} is {back}, and the card costs {price}."


def reserve(rng: random.Random, name: str, enough: bool) -> tuple[str, str]:
    """Savings against some months of spending."""
    tens, months = rng.randint(60, 250), rng.randint(3, 8)
    need = tens * 10 * months
    have = _beside(rng, need, lower=not enough)
    question = f"{name} needs {tens * 10} a month and has saved {have}. "
    question += f"Will that last for {months} months without work?"
    return question, f"{months} months at {tens * 10} take {need}, and {name} has {have}."


def buy_or_rent(rng: random.Random, name: str, pays: bool) -> tuple[str, str]:
    """Rent for some months against the loss in value of what is bought."""
    rent, months = rng.randint(20, 90), rng.randint(4, 18)
    total = rent * months
    lost = _beside(rng, total, lower=pays)
    resale = rng.randint(2, 30) * 10
    question = (
        f"{name} can rent a piano for {rent} a month or buy it for {lost + resale} and sell it for {resale} after "
        f"{months} months. Is buying cheaper?"
    )
    return (
        question,
        f"Renting takes {total} in {months} months, and buying costs {lost + resale} less {resale}, {lost}.",
    )


KINDS = (refinance, card, reserve, buy_or_rent)


def _beside(rng: random.Random, value: int, lower: bool) -> int:
    """A whole number clearly below or above `value`, and above zero."""
    gap = max(5, value * rng.randint(10, 60) // 100)
    return max(1, value - gap) if lower else value + gap


def finance_row(rng: random.Random, decision: str) -> dict[str, Any]:
    """One row whose numbers lead to `decision`, one of `DECISIONS`."""
    kind = pick(rng, KINDS)
    question, reason = kind(rng, pick(rng, NAMES), decision == "yes")
    sentences = noisy(rng, reason, f"You ask: {question}", NOISE, OPENINGS, FILLERS, CLOSINGS)
    return {"instruction": INSTRUCTION, "input": question, "output": f"{' '.join(sentences)}\n\nDecision: {decision}"}
