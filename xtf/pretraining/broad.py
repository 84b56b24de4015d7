# ruff: noqa: SIM905 -- a word list reads better as one string
"""Wider pre-training text, for the larger shape of stage=pretrain: what `corpus` has, and more domains, styles, levels.

Added to the tiny model's kinds: encyclopedia entries, questions and reading comprehension about an invented world;
number sequences, sorting, spelling, units, the calendar, tables in CSV, records in JSON, syllogisms, letters, and
word problems with larger numbers. Every third place of the invented world is `withheld`: its facts stand in no
pre-training document, so that fine-tuning has something to teach (`withheld_rows`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from typing import Any

from xtf.data.words import NAMES, THINGS, pick
from xtf.pretraining import corpus
from xtf.pretraining.corpus import Mix, chat, say

PLACES = 3000
WITHHELD = 3  # one place in so many
START = "Bar Cel Dun Eld Fal Gor Hal Ist Jor Kam Lun Mor Nev Ost Pel Quin Ros Sel Tor Ulm Ves Wen Yar Zel".split()
MIDDLE = "a e i o u ar en il on ur an el".split()
END = "dale ford mere ston wick burg holm port rath ven dorf mont by stead".split()
CRAFTS = "glass|paper|salt|wool|honey|bells|tiles|rope|cheese|ink|boats|clocks|tea|pottery|silk|lamps".split("|")
RIVERS = "Arn|Bele|Corv|Dessa|Ethel|Fenna|Gault|Hirn|Iver|Jessa|Kall|Lorn|Mira|Nade|Orle|Pask".split("|")


@cache
def world() -> tuple[dict[str, Any], ...]:
    """The places of the invented world, the same for every seed: name, river, craft, year, mayor."""
    rng = random.Random(2026)
    places: dict[str, dict[str, Any]] = {}
    while len(places) < PLACES:
        name = pick(rng, START) + pick(rng, MIDDLE) + pick(rng, MIDDLE) + pick(rng, END)
        places[name] = {
            "name": name,
            "river": pick(rng, RIVERS),
            "craft": pick(rng, CRAFTS),
            "year": rng.randint(801, 1899),
            "mayor": pick(rng, NAMES),
        }
    return tuple(places.values())


@cache
def known() -> list[dict[str, Any]]:
    return [place for number, place in enumerate(world()) if number % WITHHELD]


@cache
def withheld() -> list[dict[str, Any]]:
    return [place for number, place in enumerate(world()) if number % WITHHELD == 0]


QUESTIONS = {
    "river": ("[Which river flows through|On which river lies] {name}?", "the {river}"),
    "craft": ("[What is {name} known for|What do people make in {name}]?", "{craft}"),
    "year": ("[When was {name} founded|In which year was {name} founded]?", "{year}"),
    "mayor": ("[Who is the mayor of {name}|Who leads {name}]?", "{mayor}"),
}
STATEMENTS = {
    "river": "{name} lies on the [river |]{river}.",
    "craft": "{name} is [known|famous] for its {craft}.",
    "year": "{name} was founded in {year}.",
    "mayor": "The mayor of {name} is {mayor}.",
}


def withheld_rows(count: int) -> list[dict[str, str]]:
    """Distinct questions on withheld places with their answers, as fine-tuning rows {"question", "answer"}."""
    rng = random.Random(7)
    facts = [(place, key) for place in withheld() for key in QUESTIONS]
    return [
        {"question": say(rng, QUESTIONS[key][0], **place), "answer": QUESTIONS[key][1].format(**place)}
        for place, key in rng.sample(facts, count)
    ]


def entry(rng: random.Random) -> str:
    """An encyclopedia entry in one of three styles."""
    place = pick(rng, known())
    keys = rng.sample(list(STATEMENTS), rng.randint(2, 4))
    sentences = [say(rng, STATEMENTS[key], **place) for key in keys]
    style = rng.random()
    if style < 0.5:
        return " ".join(sentences)
    if style < 0.75:
        return f"# {place['name']}\n\n" + "\n".join(f"- {key}: {place[key]}" for key in keys)
    return chat(say(rng, "[Tell me about|Describe] {name}.", **place), " ".join(sentences))


def fact_question(rng: random.Random) -> str:
    turns = []
    for _ in range(rng.randint(1, 3)):
        place, key = pick(rng, known()), pick(rng, list(QUESTIONS))
        ask, answer = QUESTIONS[key]
        said = answer.format(**place)
        turns += [say(rng, ask, **place), f"{said[0].upper()}{said[1:]}."]
    return chat(*turns)


def comprehension(rng: random.Random) -> str:
    """A text on a place that does not exist elsewhere, and a question that the text answers."""
    place = {
        "name": pick(rng, START) + pick(rng, END),
        "river": pick(rng, RIVERS),
        "craft": pick(rng, CRAFTS),
        "year": rng.randint(801, 1899),
        "mayor": pick(rng, NAMES),
    }
    keys = rng.sample(list(STATEMENTS), 3)
    text = " ".join(say(rng, STATEMENTS[key], **place) for key in keys)
    ask, answer = QUESTIONS[pick(rng, keys)]
    return chat(f"{text}\n{say(rng, ask, **place)}", answer.format(**place))


def sequence(rng: random.Random) -> str:
    """A number sequence and its next term: steps, factors, squares, or sums of the last two."""
    kind, first, step = rng.randrange(4), rng.randint(1, 40), rng.randint(2, 12)
    terms = [first**2 if kind == 2 else first]
    for place in range(1, rng.randint(5, 8)):
        if kind == 0:
            terms.append(terms[-1] + step)
        elif kind == 1:
            terms.append(terms[-1] * (2 + step % 3))
        elif kind == 2:
            terms.append((first + place) ** 2)
        else:
            terms.append(sum(terms[-2:]))
    *shown, last = terms
    text = ", ".join(map(str, shown))
    return chat(say(rng, "[What comes next|Continue]: {text}", text=text), str(last))


def ordering(rng: random.Random) -> str:
    """Sorting, counting and reversing of short lists of numbers or words."""
    items: list[Any] = (
        rng.sample(range(100), rng.randint(3, 8)) if rng.random() < 0.5 else rng.sample(THINGS, rng.randint(3, 6))
    )
    text = ", ".join(map(str, items))
    task, answer = pick(
        rng,
        [
            ("[Sort|Put in order]: {text}", ", ".join(map(str, sorted(items)))),
            ("[Reverse|Write backwards]: {text}", ", ".join(map(str, items[::-1]))),
            ("How many items are there? {text}", str(len(items))),
            ("Which comes first, which last? {text}", f"{items[0]} first, {items[-1]} last"),
        ],
    )
    return chat(say(rng, task, text=text), answer)


def spelling(rng: random.Random) -> str:
    word = pick(rng, [*THINGS, *(place["name"].lower() for place in known()[:200])])
    letter = pick(rng, word)
    ask, answer = pick(
        rng,
        [
            ("Spell {word}.", "-".join(word)),
            ("Write {word} backwards.", word[::-1]),
            ("How many letters has {word}?", str(len(word))),
            ("How often does {letter} occur in {word}?", str(word.count(letter))),
        ],
    )
    return chat(ask.format(word=word, letter=letter), answer)


UNITS = (("m", "cm", 100), ("km", "m", 1000), ("kg", "g", 1000), ("h", "min", 60), ("min", "s", 60), ("l", "ml", 1000))


def units(rng: random.Random) -> str:
    large, small, factor = pick(rng, UNITS)
    value = rng.randint(2, 90)
    if rng.random() < 0.5:
        return chat(f"How many {small} are {value} {large}?", f"{value} * {factor} = {value * factor} {small}")
    return chat(f"How many {large} are {value * factor} {small}?", f"{value * factor} / {factor} = {value} {large}")


DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def calendar(rng: random.Random) -> str:
    day, gap = rng.randrange(7), rng.randint(1, 30)
    later = rng.random() < 0.6
    answer = DAYS[(day + (gap if later else -gap)) % 7]
    ask = f"Today is {DAYS[day]}. Which day {'comes in' if later else 'was it'} {gap} days{'' if later else ' ago'}?"
    return chat(ask, f"{gap} = 7 * {gap // 7} + {gap % 7}, so {answer}")


def csv_table(rng: random.Random) -> str:
    """A small price list, and its total or its dearest line."""
    rows = [(thing, rng.randint(1, 20), rng.randint(1, 30)) for thing in rng.sample(THINGS, rng.randint(2, 5))]
    text = "item,count,price\n" + "\n".join(f"{item},{count},{price}" for item, count, price in rows)
    if rng.random() < 0.5:
        costs = [count * price for _, count, price in rows]
        steps = " + ".join(map(str, costs))
        return chat(f"{text}\nWhat does all of it cost?", f"{steps} = {sum(costs)}")
    return chat(f"{text}\nWhich item has the highest price?", max(rows, key=lambda row: row[2])[0])


def record(rng: random.Random) -> str:
    """A record of a known place as JSON, from it to words or back."""
    place = pick(rng, known())
    keys = rng.sample(list(STATEMENTS), 2)
    words = " ".join(say(rng, STATEMENTS[key], **place) for key in keys)
    data = json.dumps({"name": place["name"], **{key: place[key] for key in keys}})
    return chat(f"Write as JSON: {words}", data) if rng.random() < 0.5 else chat(f"Put in words: {data}", words)


def syllogism(rng: random.Random) -> str:
    """Yes, no or maybe from two premises."""
    a, b, c = rng.sample(THINGS, 3)
    first, second, verdict = pick(
        rng,
        [
            (f"All {a} are {b}.", f"All {b} are {c}.", "Yes"),
            (f"All {a} are {b}.", f"No {b} are {c}.", "No"),
            (f"Some {a} are {b}.", f"Some {b} are {c}.", "Maybe"),
            (f"All {a} are {b}.", f"Some {b} are {c}.", "Maybe"),
        ],
    )
    return chat(f"{first} {second} Are all {a} {c}?", verdict)


def letter(rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    thing, day = pick(rng, THINGS), pick(rng, DAYS)
    body = say(
        rng,
        "[thank you for|I was glad about] the {thing}. [I will come|Please come|We meet] on {day}. "
        "[Until then|See you soon|With best wishes],",
        thing=thing,
        day=day,
    )
    text = f"Dear {name},\n{body}\n{other}"
    if rng.random() < 0.5:
        return text
    return chat(f"Write to {name}: thanks for the {thing}, {day}, signed {other}.", text)


def long_sum(rng: random.Random) -> str:
    """Sums and differences of numbers with up to five digits, worked from the right."""
    digits = rng.randint(2, 5)
    a, b = sorted((rng.randrange(10**digits), rng.randrange(10**digits)), reverse=True)
    sign = pick(rng, "+-")
    return chat(f"{a} {sign} {b} = ?", str(a + b if sign == "+" else a - b))


NEW: dict[Callable[[random.Random], str], float] = {
    entry: 5,
    fact_question: 5,
    comprehension: 4,
    sequence: 2,
    ordering: 3,
    spelling: 2,
    units: 2,
    calendar: 2,
    csv_table: 3,
    record: 2,
    syllogism: 2,
    letter: 2,
    long_sum: 3,
}


def _wider(mix: Mix) -> Mix:
    """Half of the documents from `mix`, half from the kinds above."""
    return {kind: share / 2 for kind, share in mix.items()} | {
        kind: share / sum(NEW.values()) / 2 for kind, share in NEW.items()
    }


MIX = _wider(corpus.MIX)
LATE_MIX = _wider(corpus.LATE_MIX)
