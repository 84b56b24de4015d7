# ruff: noqa: SIM905 -- a word list reads better as one string
"""Pre-training text of the tiny model: an endless, seeded stream of generated documents.

Kinds and their share of documents are in `MIX`: arithmetic drills, word problems, code, abstracts, questions on
money and general prose, each in several styles, more than half of them as ChatML conversations. A share of them is in
the style of the bundled fine-tuning sets: worked steps with calculator annotations and "#### n", typed signatures with
an example, a reason before "Decision: yes", stock phrases. So a model of this text knows the style in part. What it
does not know: the sets' own sentences, step wordings and stock phrases, a quarter of their kinds of word problem, half
of their conditions on numbers, and how their trials report results. Drug names and results are invented.

Templates hold slots in braces and alternatives in brackets: "{name} [buys|finds] {n} {thing}".
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from xtf.data.words import CONDITIONS, CONTAINERS, NAMES, PATIENTS, PLACES, TEXT_WORDS, THINGS, drug_name, pick
from xtf.pretraining.math_rows import OPERATIONS

END_OF_TEXT = "<|endoftext|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

ALTERNATIVES = re.compile(r"\[([^][]*\|[^][]*)\]")


def say(rng: random.Random, template: str, **slots: object) -> str:
    """`template` with one alternative chosen in each pair of brackets, the inner ones first, and its slots filled."""
    while ALTERNATIVES.search(template):
        template = ALTERNATIVES.sub(lambda match: pick(rng, match[1].split("|")), template)
    return template.format(**slots)


def chat(*turns: str) -> str:
    """A ChatML conversation of alternating user and assistant turns."""
    roles = ("user", "assistant")
    return "".join(f"{TURN_START}{roles[i % 2]}\n{turn}{TURN_END}\n" for i, turn in enumerate(turns))


def calculation(rng: random.Random) -> tuple[int, str, int, int]:
    """(left, sign, right, result) with whole numbers from 0 to 160, most of them below 100; products up to 12 * 12."""
    sign = pick(rng, "++--**/")
    if sign == "+":
        left, right = rng.randint(1, pick(rng, [20, 60, 100])), rng.randint(1, pick(rng, [12, 60]))
    elif sign == "-":
        left = rng.randint(2, pick(rng, [20, 60, 140]))
        right = rng.randint(1, min(left, pick(rng, [12, 60])))
    else:
        left, right = rng.randint(2, 12), rng.randint(2, 12)
        if sign == "/":
            left *= right
    return left, sign, right, OPERATIONS[sign](left, right)


SPOKEN = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
ANNOTATED = "{a} {sign} {b} = <<{a}{sign}{b}={c}>>{c}"
NOTATIONS = (
    "{a} {spoken} {b} is {c}.",
    "{a}{sign}{b}={c}",
    "{c} = {a} {sign} {b}",
    "{a} {sign} {b} = {c}",
    "{a} {sign} {b} = {c}",
    ANNOTATED,
    ANNOTATED,
    ANNOTATED,
)


def drill(rng: random.Random) -> str:
    """Bare calculations in one of several notations."""
    notation, lines = pick(rng, NOTATIONS), []
    for _ in range(rng.randint(6, 16)):
        a, sign, b, c = calculation(rng)
        lines.append(notation.format(a=a, sign=sign, spoken=SPOKEN[sign], b=b, c=c))
    return pick(rng, ["\n", "\n", " " if notation.endswith(".") else ", "]).join(lines)


def echo(rng: random.Random) -> str:
    """Something that only copying can tell, again and again: without such text a small model learns to copy late."""
    kind = rng.randrange(4)
    items = {
        0: lambda: str(rng.randint(0, 160)),
        1: lambda: drug_name(rng),
        2: lambda: pick(rng, TEXT_WORDS),
        3: lambda: str(rng.randint(0, 9)),
    }[kind]
    text = pick(rng, [" ", " ", ", "]).join(items() for _ in range(rng.randint(3, 10)))
    if rng.random() < 0.5:
        return "\n".join([text] * rng.randint(2, 4))
    return chat(say(rng, "[Say|Write|Repeat] [this|it] [again|once more]: ") + text, text)


def times_table(rng: random.Random) -> str:
    n = rng.randint(2, 12)
    row = pick(rng, ["{p} / {n} = {i}", "{n} * {i} = {p}", "{i} * {n} = {p}"])
    return "\n".join(row.format(n=n, i=i, p=n * i) for i in range(1, 13))


def asked_calculation(rng: random.Random) -> str:
    turns = []
    for _ in range(rng.randint(1, 3)):
        a, sign, b, c = calculation(rng)
        asked = f"{a} {sign if rng.random() < 0.6 else SPOKEN[sign]} {b}"
        turns.append(say(rng, "[What is {asked}?|Compute {asked}.|{asked} = ?]", asked=asked))
        turns.append(say(rng, "[{a} {sign} {b} = {c}|The answer is {c}.|{c}|It is {c}.]", a=a, sign=sign, b=b, c=c))
    return chat(*turns)


class Problem:
    """Sentences of a word problem and the calculations that solve it; `value` is the latest result."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.steps: list[tuple[int, str, int, int]] = []
        self.value = 0
        self.unit = ""

    def calculate(self, left: int, sign: str, right: int) -> None:
        self.value = OPERATIONS[sign](left, right)
        self.steps.append((left, sign, right, self.value))


GAIN = (
    "{Name} [buys|gets|finds|picks|receives] {n} more.",
    "Then {other} gives {name} {n} more {thing}.",
    "Later {n} {thing} [are added|come in|arrive].",
    "{Name} wins {n} {thing} in a game.",
)
LOSS = (
    "{Name} [loses|sells|eats|breaks] {n} of them.",
    "Then {name} gives {n} {thing} to {other}.",
    "After that {n} {thing} [are taken away|are lost|go missing].",
    "{Other} takes {n} of the {thing}.",
)
GROWTH = (
    "The number of {thing} then becomes {n} times as big.",
    "Then {name} makes it {n} times as many.",
    "{Other} has {n} times as many {thing} as that.",
)
SHARES = (
    "{Name} [divides|shares|splits] the {thing} equally [among|between] {n} friends.",
    "{Name} puts the {thing} into {n} {box}, the same number in each.",
    "The {thing} are dealt out to {n} children in equal parts.",
)


def change_events(rng: random.Random, p: Problem, facts: dict[str, object], count: int) -> None:
    """Append `count` events that change `p.value` and keep it between 1 and 200."""
    for _ in range(count):
        sign = pick(rng, "++--*/")
        texts: tuple[str, ...]
        if sign == "+" and p.value <= 190:
            n, texts = rng.randint(1, min(60, 200 - p.value)), GAIN
        elif sign == "*" and p.value <= 60:
            n, texts = rng.randint(2, min(9, 200 // p.value)), GROWTH
        elif sign == "/" and any(p.value % k == 0 for k in range(2, 10)) and p.value <= 150:
            n, texts = pick(rng, [k for k in range(2, 10) if p.value % k == 0]), SHARES
        elif p.value > 2:
            sign, n, texts = "-", rng.randint(1, min(60, p.value - 1)), LOSS
        else:
            sign, n, texts = "+", rng.randint(1, 60), GAIN
        p.sentences.append(say(rng, pick(rng, texts), n=n, **facts))
        p.calculate(p.value, sign, n)
        if sign in "*/":  # "each friend" and "{other}" own the rest of the story
            return


def inventory(rng: random.Random) -> Problem:
    """Things come and go."""
    p = Problem()
    name, other = rng.sample(NAMES, 2)
    thing, box, place = pick(rng, THINGS), pick(rng, CONTAINERS), pick(rng, PLACES)
    facts: dict[str, object] = {
        "name": name,
        "Name": name,
        "other": other,
        "Other": other,
        "thing": thing,
        "box": box,
        "place": place,
    }
    p.unit = thing
    if rng.random() < 0.5:
        n, m = rng.randint(2, 12), rng.randint(2, 12)
        start = (
            "{name} [has|owns|brings] {n} {box} of {thing}. [Each holds|Every one has] {m}.",
            "There are {n} {box} at {place}, [each with|and each has|all holding] {m} {thing}.",
            "{name} makes {m} {thing} [a day|every day] for {n} days.",
            "{name} lays out {n} lines of {m} {thing}.",
        )
        p.sentences.append(say(rng, pick(rng, start), n=n, m=m, **facts))
        p.calculate(n, "*", m)
    else:
        p.value = rng.randint(3, 100)
        start = (
            "{name} [has|owns|starts with|begins with|holds] {n} {thing}.",
            "There are {n} {thing} [at|in|near] {place}.",
            "{name} [collects|counts|gathers] {n} {thing} at {place}.",
            "{name} had {n} {thing} [last week|in the beginning|on Monday].",
        )
        p.sentences.append(say(rng, pick(rng, start), n=p.value, **facts))
    change_events(rng, p, facts, rng.randint(1, 3) - bool(p.steps and rng.random() < 0.3))
    if not p.steps:
        change_events(rng, p, facts, 1)
    each = p.steps[-1][1] == "/"
    ask = (
        "How many {thing} [are in each part|does each one get|are there per share]?"
        if each
        else "How many {thing} [are there now|are there in the end|is that|are there then]?"
    )
    p.sentences.append(say(rng, ask, **facts))
    return p


def comparison(rng: random.Random) -> Problem:
    """Some people have more or fewer than others; a total or the last number is asked for."""
    p = Problem()
    people = rng.sample(NAMES, 3)
    thing = pick(rng, [*THINGS, "dollars", "points", "years", "meters"])
    p.unit = thing
    amounts = [rng.randint(3, 50)]
    p.value = amounts[0]
    p.sentences.append(f"{people[0]} has {amounts[0]} {thing}.")
    for i in range(1, rng.randint(2, 3)):
        before, who, previous = p.value, people[i], people[i - 1]
        kind = pick(rng, ["more", "fewer", "times"])
        if kind == "more" or before < 3 or before > 60:
            n = rng.randint(1, 40)
            p.sentences.append(
                say(rng, "{who} has {n} more [{thing} |]than {prev}.", who=who, n=n, thing=thing, prev=previous)
            )
            p.calculate(before, "+", n)
        elif kind == "fewer":
            n = rng.randint(1, before - 1)
            p.sentences.append(say(rng, "{who} has {n} [less|fewer] than {prev}.", who=who, n=n, prev=previous))
            p.calculate(before, "-", n)
        else:
            n = rng.randint(2, 3)
            word = pick(rng, [["twice", "two times"], ["three times", "3 times"]][n - 2])
            p.sentences.append(f"{who} has {word} as many as {previous}.")
            p.calculate(before, "*", n)
        amounts.append(p.value)
    if rng.random() < 0.5 and len(amounts) == 2 and sum(amounts) <= 200:
        p.calculate(amounts[0], "+", amounts[1])
        p.sentences.append(
            say(
                rng,
                "How many {thing} do [they have together|{a} and {b} have in all|both have]?",
                thing=thing,
                a=people[0],
                b=people[1],
            )
        )
    else:
        p.sentences.append(f"How many {thing} does {people[len(amounts) - 1]} have?")
    return p


def two_groups(rng: random.Random) -> Problem:
    """The sum or the difference of two products."""
    p = Problem()
    name, (x, y), (box, box2) = pick(rng, NAMES), rng.sample(THINGS, 2), rng.sample(CONTAINERS, 2)
    n, m, k, q = (rng.randint(2, 9) for _ in range(4))
    facts: dict[str, object] = {"name": name, "n": n, "m": m, "k": k, "q": q, "x": x, "y": y, "box": box, "box2": box2}
    money = rng.random() < 0.5
    p.unit = "dollars" if money else "things"
    first = "{name} [buys|orders] {n} {x} for {m} dollars each" if money else "{name} has {n} {box} with {m} {x}"
    second = "{k} {y} for {q} dollars each." if money else "{k} {box2} with {q} {y}."
    p.sentences.append(say(rng, f"{first} and {second}", **facts))
    p.calculate(n, "*", m)
    p.calculate(k, "*", q)
    a, b = n * m, k * q
    if rng.random() < 0.75 or a == b:
        p.calculate(a, "+", b)
        ask = (
            "How much does [it all cost|{name} pay|{name} spend]?" if money else "How many {x} and {y} is that in all?"
        )
    else:
        p.calculate(max(a, b), "-", min(a, b))
        ask = "What is the difference [in cost|between the two]?" if money else "How many more of one than the other?"
    p.sentences.append(say(rng, ask, **facts))
    return p


def money(rng: random.Random) -> Problem:
    """Earning, spending and saving."""
    p = Problem()
    p.unit = "dollars"
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    n, m = rng.randint(2, 12), rng.randint(2, 12)
    start = (
        "{name} works {n} hours and gets {m} dollars for each hour.",
        "{name} sells {n} {thing} for {m} dollars each.",
        "{name} saves {m} dollars a month for {n} months.",
        "{n} {thing} cost {m} dollars each.",
    )
    which = rng.randrange(len(start))
    p.sentences.append(start[which].format(name=name, n=n, m=m, thing=thing))
    p.calculate(n, "*", m)
    cost = which == 3
    if cost:
        paid = p.value + rng.randint(1, 50)
        if rng.random() < 0.5:
            p.sentences.append(say(rng, "{name} [pays with|hands over|gives] {n} dollars.", name=name, n=paid))
            p.calculate(paid, "-", p.value)
            p.sentences.append(say(rng, "How much money [comes back|does {name} get back|is left]?", name=name))
        else:
            off = rng.randint(1, p.value - 1)
            p.sentences.append(say(rng, "There is [a discount of|a rebate of] {n} dollars. How much is it now?", n=off))
            p.calculate(p.value, "-", off)
        return p
    for _ in range(rng.randint(1, 2)):
        if p.value < 3 or rng.random() < 0.5:
            k = rng.randint(1, 50)
            p.sentences.append(say(rng, "[{name} also gets|An aunt sends|Then come] {k} dollars more.", name=name, k=k))
            p.calculate(p.value, "+", k)
        else:
            k = rng.randint(1, min(50, p.value - 1))
            p.sentences.append(
                say(rng, "{name} [spends|pays|loses] {k} dollars on [food|a bus ride|a gift|a hat].", name=name, k=k)
            )
            p.calculate(p.value, "-", k)
    p.sentences.append(
        say(rng, "How much money [does {name} have now|does {name} have|is there in the end]?", name=name)
    )
    return p


PROBLEMS: tuple[Callable[[random.Random], Problem], ...] = (inventory, inventory, comparison, two_groups, money)


# (text, calculations, unit): a to d are numbers of the text; x, y, z the first results. Nothing here is solved as the
# bundled kinds legs, half, ticket, flock, remaining_need and tank are: their steps are left for fine-tuning to teach.
SCENARIOS = (
    (
        "{name} [plants|sets out] {a} lines of {b} bushes. {c} of the bushes die. How many bushes are left?",
        "a*b x-c",
        "bushes",
    ),
    (
        "A pool has {a} liters. A hose brings {b} liters [every|each|a] minute. How much is in it after {c} minutes?",
        "b*c a+x",
        "liters",
    ),
    (
        "A barrel has {a} liters. {name} pours in {b} liters, but {c} liters run out. How much is in it?",
        "a+b x-c",
        "liters",
    ),
    (
        "A train has {a} passengers. {b} get off and {c} get on. How many passengers are on [it|the train]?",
        "a-b x+c",
        "passengers",
    ),
    (
        "A train leaves with {a} people. {b} get off, {c} get on, then {d} get off. How many people are on it?",
        "a-b x+c y-d",
        "people",
    ),
    ("{name} is {a} years old. {other} is {b} times older. How old will {other} be in {c} years?", "a*b x+c", "years"),
    ("{name} is {a}. {other} is {b} years younger. How old was {other} {c} years ago?", "a-b x-c", "years"),
    (
        "{a} {thing} are in a pile. {b} of them are bad. The rest go into {box} of {c}. How many {box} is that?",
        "a-b x/c",
        "{box}",
    ),
    (
        "A wire is {a} meters long. {name} uses {b} meters and cuts the rest into bits of {c} meters. How many bits?",
        "a-b x/c",
        "bits",
    ),
    (
        "{name} earns {a} dollars per day. After {b} days {name} buys shoes for {c} dollars. How much is left?",
        "a*b x-c",
        "dollars",
    ),
    (
        "{name} gets {a} dollars an hour, works {b} hours, and gets a tip of {c} dollars. How much is it in all?",
        "a*b x+c",
        "dollars",
    ),
    (
        "Soup costs {a} dollars and bread costs {b} dollars. {c} people pay equal parts. How much is a part?",
        "a+b x/c",
        "dollars",
    ),
    (
        "{name} wants a lamp for {a} dollars. {name} has {b} dollars and gets {c} more. How much is missing?",
        "b+c a-x",
        "dollars",
    ),
    (
        "A road is {a} km long. {name} walks {b} km [a|per|every] day for {c} days. How much of it is left?",
        "b*c a-x",
        "km",
    ),
    ("{name} walks {a} km on each of {b} days and {c} km on the last day. How far is that?", "a*b x+c", "km"),
    (
        "{name} makes {a} plates of {b} cakes. {c} people eat them all in equal parts. How many for each one?",
        "a*b x/c",
        "cakes",
    ),
    ("{name} has {a} points. {other} has {b} more than {name}. How many do they have together?", "a+b a+x", "points"),
    ("{a} boys and {b} girls [form|make] groups of {c}. How many groups are there?", "a+b x/c", "groups"),
    (
        "Of {a} students {b} stay at home. The others sit at {c} tables, as many at each. How many at a table?",
        "a-b x/c",
        "students",
    ),
    (
        "{name} picks {a} {thing}, {other} picks {b} times as many, and a child {c} less than {other}. How "
        "many is that?",
        "a*b x-c",
        "{thing}",
    ),
    (
        "{name} has {a} {box} of {b} {thing} and lends {c}. Then {d} come back. How many are there?",
        "a*b x-c y+d",
        "{thing}",
    ),
    (
        "One of the {thing} costs {a} dollars. {name} buys {b} and pays with {c} dollars. How much comes back?",
        "a*b c-x",
        "dollars",
    ),
    (
        "A story has {a} parts. {name} reads {b} parts a day for {c} days. How many parts are not read?",
        "b*c a-x",
        "parts",
    ),
    (
        "{name} reads {a} parts of a story a day. After {b} days {c} parts are left. How many parts has it?",
        "a*b x+c",
        "parts",
    ),
    (
        "{thing} are {a} dollars, {thing2} are {b} dollars. {name} buys {c} {thing} and {d} {thing2}. How much is it?",
        "c*a d*b x+y",
        "dollars",
    ),
    (
        "{name} saves {a} dollars a month for {b} months, gets {c} from {other} and spends {d}. How much is there?",
        "a*b x+c y-d",
        "dollars",
    ),
)


def solve(plan: str, numbers: dict[str, int]) -> list[tuple[int, str, int, int]] | None:
    """The calculations of `plan`, or None if one is not exact or leaves 1 to 200."""
    known = {str(digit): digit for digit in range(10)} | numbers
    steps = []
    for result_name, part in zip("xyzw", plan.split(), strict=False):
        a, sign, b = known[part[0]], part[1], known[part[2]]
        result = OPERATIONS[sign](a, b)
        if not 1 <= result <= 200 or (sign == "/" and a % b):
            return None
        steps.append((a, sign, b, result))
        known[result_name] = result
    return steps


def scenario(rng: random.Random) -> Problem:
    """A problem of `SCENARIOS` with numbers for which every step is exact and small."""
    p = Problem()
    text, plan, unit = pick(rng, SCENARIOS)
    small = {letter for part in plan.split() if part[1] in "*/" for letter in (part[0], part[2])}
    steps = None
    while steps is None:
        numbers = {letter: rng.randint(2, 12 if letter in small else 90) for letter in "abcd"}
        if "/" in plan:
            numbers["a"] = rng.randint(2, 90)
        steps = solve(plan, numbers)
    (name, other), (thing, thing2) = rng.sample(NAMES, 2), rng.sample(THINGS, 2)
    facts = {"name": name, "other": other, "thing": thing, "thing2": thing2, "box": pick(rng, CONTAINERS)}
    p.sentences, p.steps, p.value = [say(rng, text, **numbers, **facts)], steps, steps[-1][3]
    p.unit = unit.format(**facts)
    return p


# Subjects, verbs and settings are many, so that a model of this text holds any of them for possible, and none for sure.
NOUNS = (
    "library tank pump book guest stop gift purchase leak bonus party garden team class family ticket bill "
    "friend adult "
    "child teacher group trip box shop farmer table rope piece week day evening morning afternoon return "
    "lending penalty "
    "game bus train shelf pupil rider wire store club school pond field truck price work road storm bed bird "
    "cook driver"
).split()
PLURALS = (
    "adults children riders people animals cows hens guests friends pupils teams pieces boxes boys girls bottles rooms "
    "chairs tables farmers players students cars lamps rolls"
).split()
QUALITIES = "good usual new other present first last small whole full free red old adult alive".split()
STEPS = (
    "The {noun} [has|had|holds|gets|adds|gives|needs|costs|pays|takes] {step} {u}.",
    "The [{nouns}|{u}] [have|had|cost|pay|get|weigh|fill|make] {step} {u}.",
    "There [are|remain|were|will be] {step} [{quality} |]{u}.",
    "{who} [has|gets|needs|pays|earns|bakes|reads|saves|scores|sells|owns|covers|makes|buys|spends] {step} {u}.",
    "{who} [has done|will have|gets back|gives back|will be|has left|is] {step} {u}.",
    "[In all|In total|So|Then|Now|Together|At the end|In the end|After that|After the {noun}|With the {noun}|In "
    "the {noun}|"
    "On the {quality} days] [there are|it is|that is|they have|we have|it has|{who} has|the {noun} has] {step} {u}.",
    "[That|This|It] [is|makes|gives|leaves|comes to] {step} {u}.",
    "[So each|Each|Every|An|One] {noun} [has|gets|pays|eats|takes|holds] {step} {u}.",
    "[What remains|What is left|The rest|The {quality} number|The whole {noun}|The total] is {step} {u}.",
    "[They|We] [have|fill|get|pay|need|make] {step} {u}.",
)
STOCK_SHARE = 0.22  # of answers, for each kind of stock phrase


@dataclass(frozen=True)
class Stock:
    """Phrases that carry nothing: in front of an answer, between its sentences, behind it."""

    openings: tuple[str, ...]
    fillers: tuple[str, ...]
    closings: tuple[str, ...]


STEP_STOCK = Stock(
    openings=(
        "[Sure|Okay|Great|Certainly|Yes|Right|Good][,|!|.] [let's|let me|we|I] "
        "[work|think|break|solve|go|look|do|take] "
        "[it|that|the problem|about it] [out|down|through|over|now] [step by step|carefully|slowly|one step at "
        "a time].",
        "To [solve|answer|do] [it|the problem|such a problem], [we|you|I] [go|work|look|think] [through|about|over] "
        "[it|all] [one step at a time|step by step|with care].",
        "[Certainly|Okay|Good question][!|.] [Here is|This is|Below is] [my|an|one] [solution|answer|way].",
    ),
    fillers=(
        "[So far|Up to here|Well], [all is well|that is right|we have it].",
        "[That|This|It] is [easy|simple|clear|good] [to see|so far|now].",
        "[As you see|As we can see|As one can see], [this|it|that] is [simple|easy|right].",
        "[Now|Next|Okay,] [let's|we|let us] [move on|go on|turn|keep that in mind and go] to the "
        "[last|other|second] [part|step].",
    ),
    closings=(
        "[I|We] hope [that|it] [helps|is clear|is right][!|.]",
        "[And|So] [that|this] is [how|why|where] we [find|see|have] the [answer|result|final number].",
        "[Feel free|Be free|Do not wait] to ask [me|again|more] if [anything|something|it] is [not clear|hard].",
        "[So|And|Now] [that's all|we are done|it is done].",
    ),
)
TRIAL_STOCK = Stock(
    openings=(
        "[To the best of|As far as|To] [our|my] [knowledge|view|reading], [this|it|that] is [one of|among] the "
        "[first|few|best] [studies|trials|reports] of [its|this|the] [sort|type|field].",
        "[Taken|Seen|Read] together, [the|our|all] [findings|results|data] are [of interest|of note|clear|mixed].",
        "In [light|view] of [this|the data|what was found], [the following|this much|little] can be [said|noted].",
        "[Thanks|Thank you] for [your question|the abstract|your time].",
    ),
    fillers=(
        "It [should|must|may] be [noted|said] that [this|it] is [a|but a|one] [small|short|single] [study|trial].",
        "As [with|in] [any|every|all] [trial|study|work], [some|great|due] [caution|care|doubt] is [needed|wise].",
        "This is [in line|at odds] with what [one|we|others] [expect|might think|found].",
    ),
    closings=(
        "[Further|More|Other|Larger] [studies|trials|work|research] [are|is] [needed|called for|welcome][| "
        "here| in this area].",
        "[Larger|Longer|Better] [studies|trials] are needed to [confirm|test|check] [this|them|the results].",
        "These [findings|results|data] may be of [value|use|interest] to [doctors|patients|others].",
    ),
)
MONEY_STOCK = Stock(
    openings=(
        "[That|This] is a [good|hard|fair] question[, and|. Well,] [many|some|most] [people|of us] [ask it|ask that].",
        "[I am|We are] [no|not an] adviser, but [here is|this is] what [I|we] [think|say].",
        "[It depends|It is not clear|That is easy], as [often|so often|always] [with prices|in life|with loans].",
    ),
    fillers=(
        "[Of course|Still|Note that] [everyone's|each|your] [case|situation|budget] is [its own|not the same].",
        "This leaves [taxes|fees|risk|all else] [out|out of it].",
    ),
    closings=(
        "[I hope|Hope] [this|it] [helps|is of use].",
        "You [may|might|should] want to [ask|talk to|see] [a bank|someone|a friend] [too|first|as well].",
        "[Whatever you do|In any case], [take care|good luck|read all of it].",
    ),
)
MARKS = ("- {line}", "* {line}", "{i}. {line}", "({i}) {line}", "**{i}.** {line}", "**Part {i}:** {line}")


def with_stock(rng: random.Random, lines: list[str], stock: Stock, question: str = "") -> list[str]:
    """`lines` and, each kind in its share of answers, stock phrases and, half as often, the question said again."""
    lines = list(lines)
    if rng.random() < STOCK_SHARE:
        lines.insert(rng.randint(1, len(lines)), say(rng, pick(rng, stock.fillers)))
    if question and rng.random() < STOCK_SHARE / 2:
        lines.insert(0, say(rng, "[You want to know|We asked here|Asked]: ") + question)
    if rng.random() < STOCK_SHARE:
        lines.insert(0, say(rng, pick(rng, stock.openings)))
    if rng.random() < STOCK_SHARE:
        lines.append(say(rng, pick(rng, stock.closings)))
    return lines


def annotated(rng: random.Random, p: Problem) -> str:
    """A solution of `p`, a step a line, with calculator annotations and mostly "#### n"."""
    lines = []
    who = next((word for word in re.findall(r"[A-Z][a-z]+", " ".join(p.sentences)) if word in NAMES), "It")
    for a, sign, b, c in p.steps:
        step = ANNOTATED.format(a=a, sign=sign, b=b, c=c)
        facts = {"noun": pick(rng, NOUNS), "nouns": pick(rng, PLURALS), "quality": pick(rng, QUALITIES)}
        lines.append(say(rng, pick(rng, STEPS), step=step, who=who, u=p.unit, **facts))
    if rng.random() < STOCK_SHARE:
        mark = pick(rng, MARKS)
        lines = [mark.format(i=i, line=line) for i, line in enumerate(lines, start=1)]
    goal = p.sentences[-1].split(". ")[-1]
    end = say(rng, "[#### {v}|#### {v}|#### {v}|The answer is {v}.]", v=p.value)
    return "\n".join([*with_stock(rng, lines, STEP_STOCK, f'"{goal}"'), end])


def worked(rng: random.Random, p: Problem) -> str:
    """A solution of `p` in one of several styles."""
    if rng.random() < 0.6:
        return annotated(rng, p)
    style = rng.randrange(6)
    lines = []
    for i, (a, sign, b, c) in enumerate(p.steps):
        last = i == len(p.steps) - 1
        if style == 0:
            lead = "First" if i == 0 else pick(rng, ["Then", "Next", "After that"])
            lines.append(f"{lead}, {a} {sign} {b} = {c}.")
        elif style == 1:
            lines.append(f"{a} {SPOKEN[sign]} {b} is {c}.")
        elif style == 2:
            lines.append(f"We [get|have] {a} {sign} {b} = {c}{' ' + p.unit if last else ''}.")
        elif style == 3:
            lines.append(f"[There are|That makes|This gives] {a} {sign} {b} = {c}.")
        elif style == 4:
            lines.append(f"{a} {sign} {b} = {c}")
        else:
            lines.append(f"Step {i + 1}: {a} {sign} {b} = {c}.")
    closing = {4: "Answer: {v}", 5: "[Result: {v}|The answer is {v}.]"}.get(
        style, "[The answer is {v}.|So the answer is {v}.|It is {v} {u}.]"
    )
    lines.append(closing)
    text = ("\n" if style >= 4 else pick(rng, [" ", " ", "\n"])).join(lines)
    return say(rng, text, v=p.value, u=p.unit)


def told(rng: random.Random, makers: Sequence[Callable[[random.Random], Problem]]) -> str:
    """One or two problems of `makers` with their solutions, mostly as a conversation."""
    p = pick(rng, makers)(rng)
    question, solution = " ".join(p.sentences), worked(rng, p)
    style = rng.random()
    if style < 0.6:
        return chat(question, solution)
    if style < 0.7:
        return f"Question: {question}\nAnswer: {solution}"
    if style < 0.8:
        return f"Problem. {question}\n\nSolution. {solution}"
    if style < 0.9:
        return f"{question} {solution}"
    q = pick(rng, makers)(rng)
    return chat(question, solution, " ".join(q.sentences), worked(rng, q))


def word_problem(rng: random.Random) -> str:
    return told(rng, PROBLEMS)


def scenario_problem(rng: random.Random) -> str:
    return told(rng, (scenario,))


# "at least", "at most" and "divisible by" are left for fine-tuning to teach.
TESTS = {
    "bigger than {a}": "{v} > {a}",
    "greater than {a}": "{v} > {a}",
    "smaller than {a}": "{v} < {a}",
    "less than {a}": "{v} < {a}",
    "{a} or more": "{v} >= {a}",
    "{a} or less": "{v} <= {a}",
    "a multiple of {a}": "{v} % {a} == 0",
    "no multiple of {a}": "{v} % {a} != 0",
    "equal to {a}": "{v} == {a}",
    "other than {a}": "{v} != {a}",
    "even": "{v} % 2 == 0",
    "odd": "{v} % 2 == 1",
}
# (name, documentation, expression, type of the result)
LIST_JOBS = (
    ("count_{s}", "[How many [values|numbers] are|Count the [values|numbers|entries]] {c}",
     "sum(1 for {v} in {xs} if {t})", "int"),
    ("select_{s}", "[The values that are|Keep the [values|numbers]|Select the entries] {c}",
     "[{v} for {v} in {xs} if {t}]", "list[int]"),
    ("total_{s}", "[Total of the|Sum of the|Add the] [values|numbers] {c}", "sum({v} for {v} in {xs} if {t})", "int"),
    ("has_{s}", "[True if|Tell if|Tell whether] [some value|any value|a number] is {c}", "any({t} for {v} in {xs})",
     "bool"),
    ("only_{s}", "[True if|Tell if|Tell whether] [each|every] [value|entry] is {c}", "all({t} for {v} in {xs})",
     "bool"),
    ("where_{s}", "[Places|Positions|The indexes] of the [values|entries] {c}",
     "[i for i, {v} in enumerate({xs}) if {t}]", "list[int]"),
)  # fmt: skip
PLAIN_JOBS = (
    ("plus_{a}", "[Raise all values by {a}|Add {a} to all values]", "[{v} + {a} for {v} in {xs}]", "list[int]"),
    ("minus_{a}", "[Lower all values by {a}|Take {a} from each value]", "[{v} - {a} for {v} in {xs}]", "list[int]"),
    ("times_{a}", "[All values times|Multiply all values by] {a}", "[{v} * {a} for {v} in {xs}]", "list[int]"),
    ("modulo_{a}", "All values modulo {a}", "[{v} % {a} for {v} in {xs}]", "list[int]"),
    ("cap_{a}", "No value above {a}", "[min({v}, {a}) for {v} in {xs}]", "list[int]"),
    ("head", "The first {a} values", "{xs}[:{a}]", "list[int]"),
    ("tail", "All but the first {a} values", "{xs}[{a}:]", "list[int]"),
    ("largest", "The biggest value", "max({xs})", "int"),
    ("smallest", "The smallest value", "min({xs})", "int"),
    ("ordered", "The values in order", "sorted({xs})", "list[int]"),
    ("backwards", "The values from last to first", "{xs}[::-1]", "list[int]"),
)
SCALAR_JOBS = (
    ("linear", "{a} times {x} plus {b}", "{x} * {a} + {b}", "int"),
    ("linear", "{x} times {a}, less {b}", "{x} * {a} - {b}", "int"),
    ("shifted", "{x} plus {a}, times {b}", "({x} + {a}) * {b}", "int"),
    ("square", "{x} squared plus {a}", "{x} * {x} + {a}", "int"),
    ("within", "True if {x} lies from {a} to {b}", "{a} <= {x} <= {b}", "bool"),
)
# The same, with the type of the argument in front of the result's.
STRING_JOBS = (
    ("count_char", 'How many times "{l}" is in {x}', '{x}.count("{l}")', "str", "int"),
    ("without_char", 'The string {x} without "{l}"', '{x}.replace("{l}", "")', "str", "str"),
    ("swap_char", 'Put "{m}" in place of "{l}"', '{x}.replace("{l}", "{m}")', "str", "str"),
    ("begins", 'The strings beginning with "{l}"', '[w for w in {x} if w.startswith("{l}")]', "list[str]", "list[str]"),
    ("finishes", 'The strings finishing with "{l}"', '[w for w in {x} if w.endswith("{l}")]', "list[str]", "list[str]"),
    ("containing", 'How many strings have "{l}" in them', 'sum(1 for w in {x} if "{l}" in w)', "list[str]", "int"),
    ("glue", 'One string with "{l}" as the separator', '"{l}".join({x})', "list[str]", "str"),
    ("long_ones", "The strings of more than {a} characters", "[w for w in {x} if len(w) > {a}]", "list[str]",
     "list[str]"),
    ("short_ones", "The strings of less than {a} characters", "[w for w in {x} if len(w) < {a}]", "list[str]",
     "list[str]"),
    ("again", "The string {x} written {a} times", "{x} * {a}", "str", "str"),
    ("prefix", "The beginning of {x}, {a} characters", "{x}[:{a}]", "str", "str"),
    ("suffix", "The end of {x}, {a} characters", "{x}[-{a}:]", "str", "str"),
    ("upper", "The string {x} in capitals", "{x}.upper()", "str", "str"),
)  # fmt: skip
COMMENTS = (
    "# [Here is|This is|Now comes] the [code|result|main part|function|loop][.|]",
    "# [This|The] [code|function] [solves|does] the [job|task] [above|below|asked for].",
    "# [Sure|Okay|Well], [let's|let us|I] write the [body|function|rest] [step by step|now].",
    "# TODO: [test|check|rename] [this|it] [later|again|soon]",
    "# [go|look|walk] [through|along] the [values|list|input]",
    "# this is [the|an] [hard|easy|short] part",
    "# [do|start] the [work|job|rest] [here|now]",
    "# [short|easy|simple] [and|but] [clear|right|correct]",
)


REDUCTIONS: tuple[tuple[str, Callable[[list[int]], object]], ...] = (
    ("sum", sum),
    ("max", max),
    ("min", min),
    ("len", len),
    ("sorted", sorted),
)


@dataclass(frozen=True)
class Function:
    """A small function of one argument; `doc` starts with a capital and has no full stop."""

    name: str
    argument: str
    takes: str  # types
    gives: str
    doc: str
    expression: str

    def head(self, typed: bool) -> str:
        if typed:
            return f"def {self.name}({self.argument}: {self.takes}) -> {self.gives}:\n"
        return f"def {self.name}({self.argument}):\n"


def function(rng: random.Random) -> Function:
    """A random small function."""
    # As in people's code, some names are much more frequent than others; the bundled rows have the most frequent ones.
    v, xs = pick(rng, "x n n n item value".split()), pick(rng, "values items data numbers numbers numbers".split())
    a, b = rng.randint(1, 30), rng.randint(1, 30)
    kind = rng.random()
    takes = "list[int]"
    if kind < 0.5:
        (condition, test), (name, doc, body, gives) = pick(rng, list(TESTS.items())), pick(rng, LIST_JOBS)
        slots = {"c": condition.format(a=a), "t": test.format(a=a, v=v), "v": v, "xs": xs, "s": pick(rng, TEXT_WORDS)}
        argument = xs
    elif kind < 0.7:
        name, doc, body, gives = pick(rng, PLAIN_JOBS)
        slots, argument = {"a": str(a), "v": v, "xs": xs}, xs
    elif kind < 0.82:
        name, doc, body, gives = pick(rng, SCALAR_JOBS)
        argument, takes = pick(rng, "x x x y n".split()), "int"
        slots = {"a": str(a), "b": str(b), "x": argument}
    else:
        name, doc, body, takes, gives = pick(rng, STRING_JOBS)
        several = takes == "list[str]"
        argument = pick(rng, ("words words words names lines" if several else "text text text s line").split())
        letter, other = rng.sample("abcdefghilmnoprstuwy", 2)
        slots = {"a": str(rng.randint(2, 9)), "l": letter, "m": other, "x": argument}
    return Function(name.format(**slots), argument, takes, gives, say(rng, doc, **slots), body.format(**slots))


def example_call(rng: random.Random, f: Function) -> str:
    """A call of `f` with a random argument and what it gives, as in an interactive session."""
    words = rng.sample(TEXT_WORDS, 3)
    value: object = {
        "int": rng.randint(0, 30), "str": words[0], "list[str]": words,
        "list[int]": [rng.randint(0, 30) for _ in range(rng.randint(1, 6))],
    }[f.takes]  # fmt: skip
    return f">>> {f.name}({value!r})\n    {eval(f.expression, {f.argument: value})!r}"


def body_lines(rng: random.Random, expression: str) -> list[str]:
    """The expression as one return, through a variable, or - if it is a filter - as a loop."""
    loop = re.fullmatch(r"\[(\w+) for \1 in (\w+) if (.+)\]", expression)
    if loop and rng.random() < 0.4:
        v, xs, test = loop.groups()
        return ["out = []", f"for {v} in {xs}:", f"    if {test}:", f"        out.append({v})", "return out"]
    if rng.random() < 0.2:
        name = pick(rng, "out answer value result".split())
        return [f"{name} = {expression}", f"return {name}"]
    return [f"return {expression}"]


def code(rng: random.Random) -> str:
    style = rng.random()
    if style < 0.25:
        parts = []
        for _ in range(rng.randint(1, 3)):
            f = function(rng)
            head = f.head(typed=False) + (f'    """{f.doc}."""\n' if rng.random() < 0.7 else f"    # {f.doc}\n")
            parts.append(head + "".join(f"    {line}\n" for line in body_lines(rng, f.expression)))
        return "\n\n".join(parts)
    f = function(rng)
    lines = body_lines(rng, f.expression)
    if rng.random() < STOCK_SHARE:
        lines.insert(0, say(rng, pick(rng, COMMENTS)))
    body = "".join(f"    {line}\n" for line in lines)
    if style < 0.65:
        lead = say(rng, "[Finish|Complete|Continue] [this|the] [Python |][function|code][| below].\n\n")
        shown = f'{f.head(typed=True)}    """{f.doc}.\n\n    {example_call(rng, f)}\n    """\n'
        return chat(f"{lead if rng.random() < 0.5 else ''}{shown}", body)
    head, doc = f.head(typed=False), f.doc[0].lower() + f.doc[1:]
    if style < 0.78:
        ask = "[Write|Give me|I need] a Python function {name}({argument}): {doc}."
        return chat(say(rng, ask, name=f.name, argument=f.argument, doc=doc), f"{head}{body}")
    if style < 0.88:
        ask = say(rng, "[Fill in the body|Write the rest|Finish this function]:")
        return chat(f'{ask}\n{head}    """{f.doc}."""\n', body)
    if style < 0.93:
        return chat(f"What does this return?\n{head}{body}", f"{f.doc}.")
    numbers = [rng.randint(0, 30) for _ in range(rng.randint(3, 6))]
    name, reduce = pick(rng, REDUCTIONS)
    return f"nums = {numbers}\nprint({name}(nums))\n# {reduce(numbers)}\n"


STUDY = (
    "[Aim|Objective]: To [test|study|examine] {drug} for {illness}. "
    "[Design|Methods]: {n} {who} [received|got] {drug} or [a dummy pill|no drug] [for {w} weeks|].",
    "[The effect|The value] of {drug} on {illness} is [unknown|disputed]. {n} {who} were [studied|included].",
    "{drug} was compared with usual care in {n} {who} who had {illness}.",
)
GOOD, BAD = (
    ("recovery", "relief", "response", "remission", "improvement", "success"),
    ("attacks", "worsening", "return of symptoms", "failure", "relapse", "new symptoms"),
)
RESULTS = (
    "The rate of {outcome} was {first}% [on|under|with] {drug} and {second}% [in the control group|in "
    "controls|with placebo].",
    "{Outcome} was [seen|found|noted] in {first}% [on {drug}|with {drug}|of the treated], {second}% "
    "[with|on|under] placebo.",
    "[With|On] {drug}, {first}% had {outcome}, [without it|on placebo] {second}%.",
)
# (kind of outcome for the drug) -> the finding, often in the bundled rows' words; {rate}: what sets the groups apart
FINDINGS = {
    "better": "{Outcome} was {rate} [with|with|with|on|under] {drug}, "
    "[and the [difference|difference|difference|gap] was [significant|significant|clear|large]|"
    "so [it|{drug}] [was effective|worked|helped]].",
    "worse": "{Outcome} was {rate} [with|with|with|on|under] {drug}, [so|so|so|which means] [it|it|it|{drug}] "
    "[did no good|was not effective|did not work|did not help].",
    "same": "{Outcome} was [similar|similar|similar|the same] [with|with|with|on|under] {drug} and "
    "[placebo|placebo|placebo|usual care], "
    "so [there was no|there was no|there was no|it had no] [clear|clear|real] [difference|benefit|effect].",
    "unsure": "There was [a|a|a|some] [trend|trend|trend|sign] [in favor of|in favor of|in favor of|towards] {drug}, "
    "but [it was not|it was not|it was not|this is not] [significant|significant|significant|clear].",
}
CHAT_ASK = (
    "Does {drug} [work|help] [for|against] {illness}?",
    "Is {drug} [useful|effective] in {illness}?",
    "Did {drug} [do better than|beat] usual care?",
)


def abstract(rng: random.Random) -> str:
    """A short invented abstract, alone, with a conclusion, or with a question about it."""
    facts = {
        "drug": drug_name(rng),
        "illness": pick(rng, CONDITIONS),
        "who": pick(rng, PATIENTS),
        "n": rng.randint(20, 600),
        "w": rng.randint(2, 52),
    }
    wanted = rng.random() < 0.5
    outcome = pick(rng, GOOD if wanted else BAD)
    kind = pick(rng, ["better", "worse", "same", "unsure"])
    low = rng.randint(5, 60)
    gap = {
        "better": rng.randint(12, 39),
        "worse": rng.randint(12, 39),
        "same": rng.randint(0, 2),
        "unsure": rng.randint(4, 10),
    }[kind]
    drug_high = (kind != "worse") == wanted
    first, second = (low + gap, low) if drug_high else (low, low + gap)
    facts |= {"outcome": outcome, "Outcome": outcome.capitalize(), "first": first, "second": second}
    facts["rate"] = say(rng, f"{'more' if drug_high else 'less'} [frequent|frequent|frequent|common|likely]")
    result = say(rng, pick(rng, RESULTS), **facts)
    conclusion = say(rng, FINDINGS[kind], **facts)
    study = say(rng, pick(rng, STUDY), **facts)
    text = f"{study} {result}"
    style = rng.random()
    if style < 0.3:
        return f"{text} {say(rng, '[Conclusion: |In conclusion, |We conclude: ]')}{conclusion}"
    verdict = {"better": "Yes", "worse": "No", "same": "No", "unsure": "Maybe"}[kind]
    ask = say(rng, pick(rng, CHAT_ASK), **facts)
    if style < 0.7:
        return chat(
            f"{study}\n{result}\n\nQuestion: {ask}\n{say(rng, DECISION_ASK)}",
            decided(rng, conclusion, verdict.lower(), TRIAL_STOCK, ask),
        )
    answer = say(
        rng,
        "[{verdict}. {conclusion}|{conclusion} {verdict}.|{conclusion} So: {low}.]",
        verdict=verdict,
        conclusion=conclusion,
        low=verdict.lower(),
    )
    if style < 0.9:
        return chat(f"{text}\n{ask}" if rng.random() < 0.7 else f"{ask}\n{text}", answer)
    return f"{text}\nQ: {ask}\nA: {answer}"


DECISION_ASK = "[Give a reason, then say|Say why, and end with|Answer with a reason and] yes, no or maybe."


def decided(rng: random.Random, reason: str, decision: str, stock: Stock, question: str) -> str:
    """A reason, now and then with stock phrases, and the decision on a line of its own."""
    return f"{' '.join(with_stock(rng, [reason], stock, question))}\n\nDecision: {decision}"


# (question, reason if a is the larger, reason if b is the larger, decision if a is the larger)
MONEY = (
    (
        "{name} has {a} dollars and wants a [bike|lamp|coat|guitar] for {b} dollars. Can {name} pay for it?",
        "{a} is [more than|above] {b}", "{a} is [less than|below] {b}", "yes",
    ),
    (
        "A [pass|ticket book] costs {a} dollars, and {name} would pay {b} dollars without it. [Is it worth it|Should "
        "{name} take it]?",
        "It costs {a}, [more than|above] {b}", "It costs {a}, [less than|below] {b}", "no",
    ),
    (
        "{name} pays {a} a [month|year] now. Another [bank|shop] asks {b}. Is the new one cheaper?",
        "{b} is [less than|below] {a}", "{b} is [more than|above] {a}", "yes",
    ),
)  # fmt: skip


def advice(rng: random.Random) -> str:
    """A question on money that two numbers decide."""
    top = pick(rng, [100, 1000, 9000])
    a, b = rng.sample(range(2, top), 2)
    ask, more, less, decision = pick(rng, MONEY)
    facts = {"name": pick(rng, NAMES), "a": a, "b": b}
    other = {"yes": "no", "no": "yes"}[decision]
    reason = f"{say(rng, more if a > b else less, **facts)}."
    lead = say(rng, "[Say why|Give a reason], then yes or no.")
    question = say(rng, ask, **facts)
    return chat(f"{lead}\n{question}", decided(rng, reason, decision if a > b else other, MONEY_STOCK, question))


SENTENCES = (
    "{name} [walked|went|drove|cycled] to {place} [in the morning|before lunch|after school|on a cold day].",
    "{name} and {other} [like|enjoy|talk about] {thing} and {thing2}.",
    "The {adjective} {word} [stood|lay|was] [near|behind|next to] the {word2}.",
    "It was [raining|sunny|windy|late|early], so {name} [stayed at home|called {other}|was happy].",
    "[Everyone|Nobody|A friend|The teacher] [knew|said|thought] that the {word} was {adjective}.",
    "{name} found {thing} in a {adjective} box and gave them to {other}.",
    "In [spring|summer|autumn|winter] the {word} is often {adjective}.",
    '"[Where is|Have you seen|I like] the {word}," said {name}. "It is {adjective}."',
    "{other} wanted to [learn|see|buy|draw] something {adjective}, so they went to {place}.",
    "People who have {illness} [should rest|may need help|often feel tired|can ask a doctor].",
    "The question of the {word} was [hard|easy|new], and {name} had [a good|no] answer.",
    "First [read|look at] the {word}, then [write|think about] the {word2}, and [at last|finally] rest.",
    "On [Monday|Tuesday|Friday|Sunday] {n} people came to {place} to see the {adjective} {word}.",
)
ADJECTIVES = "small large old new quiet bright dark simple green red strange famous empty warm heavy short".split()


def sentence(rng: random.Random) -> str:
    name, other = rng.sample(NAMES, 2)
    thing, thing2 = rng.sample(THINGS, 2)
    word, word2 = rng.sample(TEXT_WORDS, 2)
    return say(
        rng,
        pick(rng, SENTENCES),
        name=name,
        other=other,
        thing=thing,
        thing2=thing2,
        word=word,
        word2=word2,
        place=pick(rng, PLACES),
        adjective=pick(rng, ADJECTIVES),
        illness=pick(rng, CONDITIONS),
        n=rng.randint(2, 99),
    )


def prose(rng: random.Random) -> str:
    sentences = [sentence(rng) for _ in range(rng.randint(3, 8))]
    style = rng.random()
    if style < 0.6:
        return " ".join(sentences)
    if style < 0.75:
        level = "#" * rng.randint(1, 4)
        return f"{level} The {pick(rng, ADJECTIVES)} {pick(rng, TEXT_WORDS)}\n\n" + "\n".join(
            f"- {s}" for s in sentences
        )
    if style < 0.9:
        word = pick(rng, TEXT_WORDS)
        return chat(say(rng, "[Tell me|Write] a [short |]story about a {word}.", word=word), " ".join(sentences))
    return chat(f"Say this again: {sentences[0]}", sentences[0])


Mix = dict[Callable[[random.Random], str], float]

# Kind of document -> share of documents.
MIX: Mix = {
    echo: 0.10,
    drill: 0.16,
    times_table: 0.02,
    asked_calculation: 0.03,
    word_problem: 0.18,
    scenario_problem: 0.18,
    code: 0.16,
    abstract: 0.12,
    advice: 0.03,
    prose: 0.02,
}
# While the learning rate decays: problems from more walks of life, less prose.
LATE_MIX: Mix = {
    echo: 0.02,
    drill: 0.10,
    asked_calculation: 0.02,
    word_problem: 0.12,
    scenario_problem: 0.32,
    code: 0.22,
    abstract: 0.15,
    advice: 0.03,
    prose: 0.02,
}


HELD_OUT_SEED = 10_000  # of text to measure by; pre-training counts its seeds from 0


def held_out(count: int) -> list[str]:
    """Freshly drawn documents of the mix, to measure what a fine-tuned model forgot.

    The templates are finite: about one document in twenty stands word for word in the training text too.
    """
    return list(islice(documents(HELD_OUT_SEED), count))


def documents(seed: int, mix: Mix = MIX) -> Iterator[str]:
    """An endless stream of documents of the mix; equal seeds give equal streams."""
    rng = random.Random(seed)
    kinds, weights = list(mix), list(mix.values())
    while True:
        yield rng.choices(kinds, weights)[0](rng)
