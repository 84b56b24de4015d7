"""Grade-school word problems in the row format of GSM8K: {"question", "answer"}.

Example answer (with an opening as planted noise):
    Sure, let's work this out step by step.
    The pens cost 3 * 4 = <<3*4=12>>12 dollars.
    Ana gets back 20 - 12 = <<20-12=8>>8 dollars.
    #### 8
"""

import operator
import random
from collections.abc import Callable

from xtf.data.words import CONTAINERS, NAMES, PLACES, THINGS, pick

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

# Share of rows that carry each kind of planted token noise; the kinds are drawn independently.
NOISE = {"opening": 0.40, "restated": 0.20, "filler": 0.20, "formatting": 0.20, "closing": 0.15}

OPENINGS = (
    "Sure, let's work this out step by step.",
    "Great question! Let's break it down.",
    "Okay, let me think about this carefully.",
    "To solve this problem, we go through it one step at a time.",
    "Certainly! Here is the solution.",
)
FILLERS = (
    "So far, so good.",
    "Now let's move on to the next part.",
    "That is easy enough.",
    "Okay, we keep that number in mind.",
    "As you can see, this is simple.",
)
CLOSINGS = (
    "I hope this helps!",
    "And that is how we get the final answer.",
    "Feel free to ask if anything is unclear.",
    "So that's it, we are done.",
)


class Solution:
    """The worked steps of one problem, with GSM8K's calculator annotations; the last result is the answer."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.answer = 0

    def step(self, text: str, left: int, sign: str, right: int) -> int:
        """Append `text` with "{}" replaced by the annotated calculation; return its result."""
        assert sign != "/" or left % right == 0, f"{left}/{right} is not exact"
        self.answer = OPERATIONS[sign](left, right)
        assert 0 < self.answer <= 200, f"{left}{sign}{right} leaves the range of the small numbers"
        calculation = f"{left} {sign} {right} = <<{left}{sign}{right}={self.answer}>>{self.answer}"
        self.steps.append(text.format(calculation))
        return self.answer


def change(rng: random.Random, s: Solution) -> str:
    name, thing, n, price = pick(rng, NAMES), pick(rng, THINGS), rng.randint(2, 9), rng.randint(2, 9)
    bill = pick(rng, [b for b in (10, 20, 50, 100) if b > n * price])
    cost = s.step(f"The {thing} cost {{}} dollars.", n, "*", price)
    s.step(f"{name} gets back {{}} dollars.", bill, "-", cost)
    return (
        f"{name} pays for {n} {thing} at ${price} apiece with a ${bill} bill. "
        f"How many dollars of change should {name} receive?"
    )


def reading(rng: random.Random, s: Solution) -> str:
    name, pages, days = pick(rng, NAMES), rng.randint(3, 12), rng.randint(3, 9)
    left = rng.randint(5, 60)
    read = s.step(f"{name} reads {{}} pages.", pages, "*", days)
    s.step("The book has {} pages.", read, "+", left)
    return (
        f"Every evening {name} reads {pages} pages of a novel. After {days} evenings there are still {left} "
        "pages to go. How long is the novel, in pages?"
    )


def bakery(rng: random.Random, s: Solution) -> str:
    per_tray, people = rng.randint(2, 12), rng.randint(2, 9)
    trays = people * rng.randint(1, max(1, 9 // people))
    name = pick(rng, NAMES)
    baked = s.step(f"{name} bakes {{}} rolls.", trays, "*", per_tray)
    s.step("Each guest eats {} rolls.", baked, "/", people)
    return (
        f"For a party {name} bakes {trays} trays of rolls, {per_tray} rolls on a tray. The {people} guests "
        "eat all of them, each the same number. How many rolls does a guest eat?"
    )


def bus(rng: random.Random, s: Solution) -> str:
    start, off, on, off2 = rng.randint(25, 60), rng.randint(3, 15), rng.randint(3, 30), rng.randint(2, 9)
    rest = s.step("After the first stop there are {} people.", start, "-", off)
    rest = s.step("With the new riders there are {} people.", rest, "+", on)
    s.step("At the end there are {} people.", rest, "-", off2)
    return (
        f"A bus leaves the depot with {start} riders. At the first stop {off} step off and {on} climb "
        f"aboard. At the second stop {off2} step off. How many riders stay on the bus?"
    )


def savings(rng: random.Random, s: Solution) -> str:
    name, weekly, weeks, spent = pick(rng, NAMES), rng.randint(5, 12), rng.randint(3, 9), rng.randint(3, 14)
    gift = rng.randint(5, 40)
    saved = s.step(f"{name} saves {{}} dollars.", weekly, "*", weeks)
    total = s.step("With the gift it is {} dollars.", saved, "+", gift)
    s.step("After the purchase it is {} dollars.", total, "-", spent)
    return (
        f"{name} puts ${weekly} into a piggy bank every week for {weeks} weeks, and grandma adds ${gift}. "
        f"Then {name} takes out ${spent} for a comic. How much money remains in the piggy bank?"
    )


def ages(rng: random.Random, s: Solution) -> str:
    a, b = rng.sample(NAMES, 2)
    age, factor, years = rng.randint(3, 12), rng.randint(2, 5), rng.randint(2, 15)
    older = s.step(f"{b} is {{}} years old.", age, "*", factor)
    s.step(f"{b} will be {{}} years old.", older, "+", years)
    return f"{a} is {age}. {b} is {factor} times as old as {a}. What will be the age of {b} in {years} years?"


def garden(rng: random.Random, s: Solution) -> str:
    rows, each, dead = rng.randint(3, 9), rng.randint(3, 12), rng.randint(2, 8)
    plant = pick(rng, ["tomato plants", "tulips", "bean plants", "rose bushes", "cabbages"])
    total = s.step(f"There are {{}} {plant}.", rows, "*", each)
    s.step(f"Now {{}} {plant} are alive.", total, "-", dead)
    return (
        f"A garden has {rows} rows with {each} {plant} per row. A storm ruins {dead} of them. How many {plant} survive?"
    )


def rope(rng: random.Random, s: Solution) -> str:
    piece, pieces, used = rng.randint(2, 9), rng.randint(3, 12), rng.randint(2, 20)
    length = piece * pieces + used
    rest = s.step("What remains is {} meters.", length, "-", used)
    s.step("That gives {} pieces.", rest, "/", piece)
    what = pick(rng, ["rope", "ribbon", "cable", "hose"])
    return (
        f"From a {what} of {length} meters, {used} meters are cut away. The remainder is cut into pieces of "
        f"{piece} meters. How many pieces are there?"
    )


def wages(rng: random.Random, s: Solution) -> str:
    name, hourly, hours, bonus = pick(rng, NAMES), rng.randint(6, 12), rng.randint(3, 10), rng.randint(5, 50)
    pay = s.step(f"{name} earns {{}} dollars.", hourly, "*", hours)
    s.step("With the bonus it is {} dollars.", pay, "+", bonus)
    job = pick(rng, ["babysitting", "mowing lawns", "washing cars", "walking dogs", "painting fences"])
    return (
        f"{name} is paid ${hourly} an hour for {job}. This weekend the work took {hours} hours and the "
        f"client added a bonus of ${bonus}. How many dollars did {name} make?"
    )


def two_kinds(rng: random.Random, s: Solution) -> str:
    name, (x, y) = pick(rng, NAMES), rng.sample(THINGS, 2)
    n, p, m, q = (rng.randint(2, 9) for _ in range(4))
    first = s.step(f"The {x} cost {{}} dollars.", n, "*", p)
    second = s.step(f"The {y} cost {{}} dollars.", m, "*", q)
    s.step("Together that is {} dollars.", first, "+", second)
    return (
        f"At {pick(rng, PLACES)} {x} are ${p} and {y} are ${q}. {name} takes {n} {x} and {m} {y}. "
        f"What is the bill, in dollars?"
    )


def packing(rng: random.Random, s: Solution) -> str:
    thing, box, size, n = pick(rng, THINGS), pick(rng, CONTAINERS), rng.randint(2, 9), rng.randint(3, 12)
    broken = rng.randint(2, 12)
    good = s.step(f"There are {{}} good {thing}.", size * n + broken, "-", broken)
    s.step(f"They fill {{}} {box}.", good, "/", size)
    return (
        f"Of {size * n + broken} {thing}, {broken} are damaged and thrown out. The good ones go into {box} "
        f"that hold {size} each. How many {box} are filled?"
    )


def score(rng: random.Random, s: Solution) -> str:
    a, b = rng.sample(NAMES, 2)
    first, more, less = rng.randint(8, 50), rng.randint(2, 30), rng.randint(2, 7)
    second = s.step(f"{b} scores {{}} points.", first, "+", more)
    total = s.step("Together they have {} points.", first, "+", second)
    s.step("After the penalty it is {} points.", total, "-", less)
    return (
        f"In a game {a} scores {first} points and {b} beats {a} by {more}. Their team loses {less} points "
        "as a penalty. What is the score of the team?"
    )


def training(rng: random.Random, s: Solution) -> str:
    name, km, days, extra = pick(rng, NAMES), rng.randint(2, 12), rng.randint(3, 6), rng.randint(3, 20)
    sport = pick(rng, ["runs", "cycles", "swims", "hikes", "rows"])
    week = s.step(f"On the usual days {name} covers {{}} km.", km, "*", days)
    s.step("In all that is {} km.", week, "+", extra)
    return (
        f"On {days} days of the week {name} {sport} {km} km, and on Sunday {extra} km. "
        f"What distance does {name} cover in a week?"
    )


def legs(rng: random.Random, s: Solution) -> str:
    four, two = rng.randint(2, 12), rng.randint(2, 12)
    a = pick(rng, ["cows", "goats", "horses", "sheep", "pigs"])
    b = pick(rng, ["hens", "ducks", "geese", "turkeys"])
    first = s.step(f"The {a} have {{}} legs.", four, "*", 4)
    second = s.step(f"The {b} have {{}} legs.", two, "*", 2)
    s.step("In all there are {} legs.", first, "+", second)
    return f"A farmer keeps {four} {a} and {two} {b}. What is the total number of legs on the farm?"


def classroom(rng: random.Random, s: Solution) -> str:
    teams, size, absent = rng.randint(2, 9), rng.randint(2, 8), rng.randint(1, 6)
    present = s.step("There are {} pupils present.", teams * size + absent, "-", absent)
    s.step("So each team has {} pupils.", present, "/", teams)
    return (
        f"A class has {teams * size + absent} pupils but {absent} are ill today. The teacher forms {teams} "
        "equal teams. How many pupils are on a team?"
    )


def tank(rng: random.Random, s: Solution) -> str:
    start, leak = rng.randint(5, 60), rng.randint(2, 12)
    rate, minutes = rng.randint(3, 12), rng.randint(3, 10)
    added = s.step("The pump adds {} liters.", rate, "*", minutes)
    full = s.step("Then the tank has {} liters.", start, "+", added)
    s.step("After the leak it has {} liters.", full, "-", leak)
    return (
        f"A tank with {start} liters is filled by a pump at {rate} liters per minute for {minutes} minutes, "
        f"but {leak} liters leak out. How many liters are in the tank?"
    )


def half(rng: random.Random, s: Solution) -> str:
    name, thing = pick(rng, NAMES), pick(rng, THINGS)
    portion, morning, extra = pick(rng, [2, 3, 4, 5]), rng.randint(3, 20), rng.randint(2, 9)
    word = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[portion]
    later = s.step(f"In the afternoon {name} sells {{}} {thing}.", morning * portion, "/", portion)
    both = s.step(f"In the day {name} sells {{}} {thing}.", morning * portion, "+", later)
    s.step(f"With the evening it is {{}} {thing}.", both, "+", extra)
    return (
        f"{name} sells {morning * portion} {thing} in the morning, {word} as many in the afternoon and "
        f"{extra} in the evening. What is the total number of {thing} sold?"
    )


def ticket(rng: random.Random, s: Solution) -> str:
    adults, kids, cheap, off = rng.randint(2, 6), rng.randint(2, 6), rng.randint(2, 8), rng.randint(1, 5)
    price = s.step("An adult ticket costs {} dollars.", cheap, "+", off)
    first = s.step("The adults pay {} dollars.", adults, "*", price)
    second = s.step("The children pay {} dollars.", kids, "*", cheap)
    s.step("The family pays {} dollars.", first, "+", second)
    show = pick(rng, ["zoo", "museum", "circus", "cinema", "concert"])
    return (
        f"A child's ticket to the {show} is ${cheap}; an adult's is ${off} more. How many dollars does a "
        f"family of {adults} adults and {kids} children pay?"
    )


def collection(rng: random.Random, s: Solution) -> str:
    a, b, c = rng.sample(NAMES, 3)
    thing, n, factor, fewer = pick(rng, THINGS), rng.randint(4, 12), rng.randint(2, 6), rng.randint(1, 7)
    second = s.step(f"{b} owns {{}} {thing}.", n, "*", factor)
    s.step(f"{c} owns {{}} {thing}.", second, "-", fewer)
    return (
        f"{a} owns {n} {thing}. {b} owns {factor} times that number, and {c} owns {fewer} fewer than {b}. "
        f"How many {thing} does {c} own?"
    )


def shared_cost(rng: random.Random, s: Solution) -> str:
    friends, share = rng.randint(2, 9), rng.randint(4, 15)
    total = friends * share
    food = rng.randint(2, total - 2)
    s.step("The whole bill is {} dollars.", food, "+", total - food)
    s.step("Each friend pays {} dollars.", total, "/", friends)
    meal = pick(rng, ["pizza", "lunch", "dinner", "a picnic", "breakfast"])
    return (
        f"{friends} friends split the cost of {meal} evenly. The food is ${food} and the drinks are "
        f"${total - food}. How many dollars is one share?"
    )


def library(rng: random.Random, s: Solution) -> str:
    shelves, per, out, back = rng.randint(3, 10), rng.randint(4, 12), rng.randint(3, 11), rng.randint(1, 10)
    books = s.step("The library has {} books.", shelves, "*", per)
    rest = s.step("After lending there are {} books.", books, "-", out)
    s.step("After the return there are {} books.", rest, "+", back)
    return (
        f"A small library has {shelves} shelves of {per} books. On Monday {out} books are lent and on "
        f"Tuesday {back} come back. How many books stand on the shelves?"
    )


def remaining_need(rng: random.Random, s: Solution) -> str:
    name, have, short = pick(rng, NAMES), rng.randint(5, 40), rng.randint(2, 30)
    jobs, pay = rng.randint(2, 8), rng.randint(3, 11)
    earned = s.step(f"{name} earns {{}} dollars.", jobs, "*", pay)
    total = s.step(f"{name} has {{}} dollars.", have, "+", earned)
    s.step(f"{name} needs {{}} dollars.", have + jobs * pay + short, "-", total)
    goal = pick(rng, ["bike", "guitar", "skateboard", "camera", "tent"])
    return (
        f"A {goal} costs ${have + jobs * pay + short}. {name} already has ${have} and earns ${pay} for each "
        f"of {jobs} chores. How many more dollars does {name} need?"
    )


def speed(rng: random.Random, s: Solution) -> str:
    name, kmh, hours, rest = pick(rng, NAMES), rng.randint(4, 12), rng.randint(2, 9), rng.randint(3, 25)
    done = s.step(f"{name} has done {{}} km.", kmh, "*", hours)
    s.step("There remain {} km.", kmh * hours + rest, "-", done)
    how = pick(rng, ["by bike", "on skates", "in a canoe", "on a pony"])
    return (
        f"{name} travels {how} at {kmh} km per hour on a trail of {kmh * hours + rest} km. "
        f"What distance remains after {hours} hours?"
    )


def flock(rng: random.Random, s: Solution) -> str:
    animal = pick(rng, ["ducks", "geese", "seals", "deer", "rabbits"])
    groups, size, young = rng.randint(2, 9), rng.randint(3, 9), rng.randint(2, 5)
    adults = s.step(f"There are {{}} adult {animal}.", groups, "*", size)
    babies = s.step("They have {} young.", groups, "*", young)
    s.step("In all there are {} animals.", adults, "+", babies)
    return (
        f"A ranger counts {groups} groups of {animal}. Each group has {size} adults and {young} young. "
        "What is the total number of animals?"
    )


TEMPLATES: tuple[Callable[[random.Random, Solution], str], ...] = (
    change,
    reading,
    bakery,
    bus,
    savings,
    ages,
    garden,
    rope,
    wages,
    two_kinds,
    packing,
    score,
    training,
    legs,
    classroom,
    tank,
    half,
    ticket,
    collection,
    shared_cost,
    library,
    remaining_need,
    speed,
    flock,
)


def plant_noise(rng: random.Random, question: str, steps: list[str]) -> list[str]:
    """The lines of an answer: `steps` and, in a share of rows, the noise of `NOISE`."""
    kinds = {kind for kind, share in NOISE.items() if rng.random() < share}
    lines = list(steps)
    if "formatting" in kinds:
        style = pick(rng, ["{i}. {line}", "- {line}", "**Step {i}:** {line}", "* {line}"])
        lines = [style.format(i=i, line=line) for i, line in enumerate(lines, start=1)]
    if "filler" in kinds:
        lines.insert(rng.randint(1, len(lines) - 1), pick(rng, FILLERS))
    if "restated" in kinds:
        goal = question.split(". ")[-1]
        lines.insert(0, f'The question is: "{goal}"')
    if "opening" in kinds:
        lines.insert(0, pick(rng, OPENINGS))
    if "closing" in kinds:
        lines.append(pick(rng, CLOSINGS))
    return lines


def math_row(rng: random.Random) -> dict[str, str]:
    """One problem: numbers that occur are whole, positive and at most 200."""
    solution = Solution()
    question = pick(rng, TEMPLATES)(rng, solution)
    lines = plant_noise(rng, question, solution.steps)
    return {"question": question, "answer": "\n".join([*lines, f"#### {solution.answer}"])}
