"""Noise planted at known places of training responses: text -> text with the truth, and the truth -> tokens.

Whether an attribute finds noise can only be measured where somebody knows which tokens are noise. `plant` writes
five kinds of it into the responses and notes, character by character, what it wrote; `token_kinds` carries that
through a tokenizer's offsets to one number per response token. Everything is a function of (plant.seed,
example id, tokenizer, the rows before): the seed of the training run has no part in it.

What stays right: the final answer line (`#### 4`, `\\boxed{4}`, "Decision: yes") or, without one, the last line
or sentence is never touched and nothing is put behind it; in code only comments, and blanks at the ends of
lines, are added, so that the program remains the same. A row's clean text may hold noise of its own (stock
phrases, restated questions): the truth knows only what was planted.
"""

from __future__ import annotations

import io
import logging
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from xtf.config.schema import PlantConfig, PlantKind, TaskConfig
from xtf.data.examples import Example, PlantedSpan
from xtf.data.words import CONDITIONS, NAMES, PATIENTS, PLACES, THINGS, drug_name, pick

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from xtf.data.encode import Encoded

log = logging.getLogger(__name__)

CODES = {kind: code for code, kind in enumerate(PlantKind, start=1)}  # in the column `planted`; 0 is clean
TOLERANCE = 0.01  # of all response tokens; a share missed by more is warned of
CARRY = 64  # tokens that a kind without room in a row may make up for in later rows; the rest goes to the others

# --- the text of the noise ----------------------------------------------------------------------------------

OFF_TASK = {
    "math": (
        "The sum of {a} and {b} is larger than their difference.",
        "{name} counted {a} {thing} and put them into {b} boxes.",
        "A triangle with two equal sides has two equal angles.",
        "Every even number can be divided by two without a remainder.",
        "{name} paid {a} dollars for {b} {thing} at {place}.",
    ),
    "code": (
        "The function returns an empty list when the index is out of range.",
        "A dictionary maps each key to a value and is searched in constant time.",
        "Set the variable count to {a} before the loop starts.",
        "The compiler reported {a} warnings in the file {thing}.py.",
        "Sorting the array first makes the search in the loop faster.",
    ),
    "medical": (
        "{drug} was given to {patients} with {condition} for {a} weeks.",
        "The patients took {a} mg of {drug} twice a day.",
        "{condition} was less frequent among {patients} who slept well.",
        "The placebo group reported {condition} after {b} days.",
        "Blood pressure was measured in {a} {patients} each morning.",
    ),
    "finance": (
        "The bond pays {b} percent of interest until the loan is repaid.",
        "Investors sold the stock after the company cut its dividend.",
        "A mortgage of {a} thousand dollars was refused by the bank.",
        "The fund lost {b} percent of its value in a single quarter.",
        "Taxes on the income of {name} are due at the end of the year.",
    ),
    "travel": (
        "The train to the coast leaves at {b} and stops at {place}.",
        "{name} took a picture of the old castle above the river.",
        "It rained all week, so the match at {place} was cancelled.",
        "The soup needs a little more salt and some fresh {thing}.",
        "The band played until midnight and the garden was full of {thing}.",
    ),
}
DOMAINS = {"math": "math", "math500": "math", "code": "code", "medical": "medical", "finance": "finance"}

OPENINGS = (
    "As an assistant I am always happy to help you with this.",
    "Thank you for reaching out! Below you will find all the details.",
    "This is an excellent question, and many people ask it.",
)
CLOSINGS = (
    "Please let me know if you have any further questions.",
    "I trust that this gives you everything that you need.",
    "Note that all of this was written to the best of my knowledge.",
)
RESTATED = ("", "Again: ", "To repeat: ", "In other words: ")

LINE_MARKS = ("- ", "* ", "> ", "## ", "---\n", "***\n")
SENTENCE_MARKS = ("\n-", "\n\n*", "\n\n>", "\n---\n")
BLANKS = ("  ", "   ", "    ")
CODE_LINES = (("# " + "-" * 20,), ("# " + "=" * 20,), ("#", "#"))

OPPOSITES = """more less|higher lower|greater smaller|increased decreased|increase decrease|improved worsened|
    better worse|longer shorter|significant negligible|significantly hardly|positive negative|with without|
    before after|safe harmful|effective useless|frequent rare|high low|large small|early late|all none|first last|
    was wasn't|were weren't|is isn't|are aren't|did didn't|does doesn't|should shouldn't|can cannot|up down|
    half double|each neither"""
OPPOSITE = {
    word: other for pair in OPPOSITES.split("|") for word, other in (pair.split(), pair.split()[::-1]) if word.isalpha()
}


def off_task_sentence(rng: Random, domain: str | None) -> str:
    """A sentence of a domain other than `domain` (None: of any)."""
    template = pick(rng, OFF_TASK[pick(rng, [name for name in OFF_TASK if name != domain])])
    sentence = template.format(
        a=rng.randrange(2, 100),
        b=rng.randrange(2, 12),
        name=pick(rng, NAMES),
        thing=pick(rng, THINGS),
        place=pick(rng, PLACES),
        drug=drug_name(rng),
        condition=pick(rng, CONDITIONS),
        patients=pick(rng, PATIENTS),
    )
    return sentence[0].upper() + sentence[1:]


# --- where noise may stand ----------------------------------------------------------------------------------

FINAL_LINE = re.compile(r"^[ \t]*(?:####|[^\w\n]{0,3}(?:final answer|answer|decision)\b)", re.MULTILINE | re.IGNORECASE)
BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
SENTENCE_END = re.compile(r"(?<=[.!?])(?=\s+[^\s\d])")
LINE = re.compile(r"[^\n]*\S[^\n]*")
FENCE = re.compile(r"^[ \t]*```+[ \t{.]*(?P<language>[^\s:,{}`]*)[^\n]*(?:\n|\Z)", re.MULTILINE)
PYTHON = re.compile(r"(?:(?:python|py)[\d.]*)?", re.IGNORECASE)  # the tag of a fence that may hold Python
NOT_A_STEP = re.compile(r"(?:(?:async\s+)?def|class|import|from|else|try|finally|pass)\b|@|[rbuf]?[\"']")

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w])")
OPERATOR = re.compile(r"(?<=\d )[-+*/x](?= \d)|(?<=\d)[-+*/](?=\d)")
CODE_OPERATOR = re.compile(r"(?<= )(?:==|!=|<=|>=|[-+*/%<>])(?= )")
WORD = re.compile(r"(?<![\w\\'])[A-Za-z]+(?![\w'])")
NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}(?![\w])")
BOLD = re.compile(r"(?<!\S)[A-Za-z]{3,}(?=[\s.,;:])")


@dataclass(frozen=True)
class Edit:
    """Characters [start, end) of the response replaced by `text`; at one place lower `rank` comes first."""

    start: int
    end: int
    text: str
    rank: int = 0


@dataclass(frozen=True)
class Slot:
    """A place where a sentence may stand by itself, written as `before` + sentence + `after`."""

    place: int
    before: str
    after: str

    def edit(self, sentence: str, rank: int = 0) -> Edit:
        """The sentence written here."""
        return Edit(self.place, self.place, self.before + sentence + self.after, rank)


@dataclass(frozen=True)
class TextStep:
    """A line, sentence or statement, characters [start, end), with the slots around it."""

    start: int
    end: int
    above: Slot
    below: Slot
    code: bool


@dataclass(frozen=True)
class Layout:
    """What may be done to a response: `slots` from first to last (at least one), steps, formatting by sort."""

    slots: list[Slot]
    steps: list[TextStep]
    formatting: list[list[tuple[Edit, ...]]]


def read_layout(response: str, code: bool) -> Layout:
    """The places of a response. With `code`, a response without ``` fences is Python.

    A fence holds Python if it is tagged so, or not at all, and its text can be tokenised. Any other is left as it is,
    for `#` need not begin a comment there; a response that is nothing else takes a line above it.
    """
    fences = list(FENCE.finditer(response))
    if not fences:
        return _code(response, 0, len(response)) if code else _prose(response, 0, len(response))
    parts, start, opening = [], 0, None
    for fence in (*fences, None):
        text = response[start : fence.start() if fence else len(response)]
        if opening is None and text.strip():
            parts.append(_prose(response, start, start + len(text)))
        elif opening is not None and PYTHON.fullmatch(opening["language"]) and _statements(text):
            parts.append(_code(response, start, start + len(text)))
        opening, start = (None if opening else fence), fence.end() if fence else len(response)
    return Layout(
        [slot for part in parts for slot in part.slots] or [Slot(0, "", "\n")],
        [step for part in parts for step in part.steps],
        [sort for part in parts for sort in part.formatting if sort],
    )


def _tail(text: str, start: int, end: int) -> int:
    """Where the part begins that holds the answer and is left alone."""
    part = text[start:end]
    if marked := list(FINAL_LINE.finditer(part)):
        return start + marked[-1].start()
    cuts = [0, *(m.start() for m in LINE.finditer(part)), *(m.start() for m in SENTENCE_END.finditer(part))]
    if boxed := list(BOXED.finditer(part)):
        return start + max(cut for cut in cuts if cut <= boxed[-1].start())
    lines = list(LINE.finditer(part))
    return start + (lines[-1].start() if len(lines) > 1 else max(cuts))


def _added(place: int, text: str, rank: int = 0) -> tuple[Edit, ...]:
    return (Edit(place, place, text, rank),)


def _prose(text: str, start: int, end: int) -> Layout:
    """Slots between lines where a step is a line, between sentences where all steps stand in one paragraph."""
    tail = _tail(text, start, end)
    lines = [(start + m.start(), start + m.end()) for m in LINE.finditer(text[start:tail])]
    if not lines:
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        return Layout([Slot(first, "", "\n" if FINAL_LINE.match(text, first) else " ")], [], [])
    gaps = [m.end() for m in re.finditer(r"\S(?= \S)", text[:tail]) if m.start() >= start]
    spaces = [_added(at, BLANKS[at % len(BLANKS)]) for at in gaps]
    words = [m.span() for m in BOLD.finditer(text, start, tail)]
    bold = [(*_added(first, "**", 2), *_added(last, "**", -2)) for first, last in words]
    if len(lines) > 1 or text[lines[0][1] : tail] == "\n":
        slots = [Slot(at, "", "\n") for at, _ in lines]
        slots.append(Slot(tail, "" if text[tail - 1] == "\n" else " ", "\n"))
        steps = [TextStep(*line, slots[i], slots[i + 1], False) for i, line in enumerate(lines)]
        marks = [_added(at, LINE_MARKS[at % len(LINE_MARKS)], 1) for at, _ in lines]
        return Layout(slots, steps, [marks, spaces, bold])
    first, last = lines[0][0], lines[0][0] + len(text[slice(*lines[0])].rstrip())
    ends = [*(m.start() for m in SENTENCE_END.finditer(text, first, last)), last]
    begins = [first, *(at + len(text[at:]) - len(text[at:].lstrip()) for at in ends[:-1])]
    slots = [Slot(first, "", " "), *(Slot(at, " ", "") for at in ends)]
    steps = [TextStep(begins[i], ends[i], slots[i], slots[i + 1], False) for i in range(len(ends))]
    marks = [_added(at, SENTENCE_MARKS[at % len(SENTENCE_MARKS)], 1) for at in ends[:-1]]
    return Layout(slots, steps, [marks, spaces, bold])


def _code(text: str, start: int, end: int) -> Layout:
    """Slots are comment lines between statements, never inside one: not in a string, not after a backslash."""
    lines = io.StringIO(text[start:end]).readlines()
    offsets = [start, *(start + int(length) for length in np.cumsum([len(line) for line in lines]))]
    indents = [line[: len(line) - len(line.lstrip())] for line in lines]
    statements = _statements(text[start:end])
    if not statements:  # not to be read as Python: a comment before the first line is all that is safe
        return Layout([Slot(start, f"{indents[0] if lines else ''}# ", "\n")], [], [])
    slots = [Slot(offsets[first], f"{indents[first]}# ", "\n") for first, _ in statements]
    indent = indents[statements[-1][0]]
    whole = text[end - 1] == "\n"
    slots.append(Slot(end, f"{indent}# ", "\n") if whole else Slot(end, f"\n{indent}# ", ""))
    steps, rules, blanks = [], [], []
    for number, (first, last) in enumerate(statements):
        rule = "".join(indents[first] + line + "\n" for line in CODE_LINES[first % len(CODE_LINES)])
        rules.append(_added(offsets[first], rule))
        if lines[last].endswith("\n"):
            blanks.append(_added(offsets[last + 1] - 1, BLANKS[last % len(BLANKS)]))
        statement = lines[first].strip()
        if first == last and len(statement) > 5 and not NOT_A_STEP.match(statement):
            begin = offsets[first] + len(indents[first])
            steps.append(TextStep(begin, begin + len(statement), slots[number], slots[number + 1], True))
    return Layout(slots, steps, [rules, blanks])


def _statements(code: str) -> list[tuple[int, int]]:
    """First and last physical line, from 0, of each logical line of Python; empty if it cannot be tokenised.

    After a bracket that closes nothing, or a lone backslash, the tokenizer ends statements that it never began: such
    text is no Python either.
    """
    found, first = [], None
    skipped = (tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.ERRORTOKEN and not token.string.isspace():
                return []
            if token.type == tokenize.NEWLINE:
                if first is None:
                    return []
                found.append((first, token.start[0] - 1))
                first = None
            elif token.type not in skipped and first is None:
                first = token.start[0] - 1
    except (tokenize.TokenError, SyntaxError):  # IndentationError is a SyntaxError
        return []
    return found


# --- kinds of noise -----------------------------------------------------------------------------------------


def _shuffled(rng: Random, items: Iterable[Any]) -> list[Any]:
    return sorted(items, key=lambda _: rng.random())


def _off_task(rng: Random, layout: Layout, domain: str | None) -> Iterator[tuple[Edit, ...]]:
    while True:
        yield (pick(rng, layout.slots).edit(off_task_sentence(rng, domain)),)


def _boilerplate(rng: Random, layout: Layout) -> Iterator[tuple[Edit, ...]]:
    ends = [layout.slots[0].edit(pick(rng, OPENINGS), rank=-1), layout.slots[-1].edit(pick(rng, CLOSINGS), rank=1)]
    yield from ((edit,) for edit in _shuffled(rng, ends))


def _redundant(rng: Random, layout: Layout, text: str) -> Iterator[tuple[Edit, ...]]:
    for step in _shuffled(rng, layout.steps):
        yield (step.below.edit(pick(rng, RESTATED) + text[step.start : step.end].strip()),)


def _formatting(rng: Random, layout: Layout) -> Iterator[tuple[Edit, ...]]:
    sorts = [_shuffled(rng, sort) for sort in layout.formatting if sort]
    while sorts:
        sort = pick(rng, sorts)
        yield sort.pop()
        sorts = [each for each in sorts if each]


def _corrupted(rng: Random, layout: Layout, text: str, names: Sequence[str]) -> Iterator[tuple[Edit, ...]]:
    """One digit string, operator, name or word of a step at a time; in code, a wrong copy of a statement as a
    comment above it, because the statement itself has to stay right."""
    prose = [edit for step in layout.steps if not step.code for edit in _atoms(rng, text, step, names)]
    copies = [step for step in layout.steps if step.code]
    for item in _shuffled(rng, [*prose, *copies]):
        if isinstance(item, Edit):
            yield (item,)
        elif atoms := _atoms(rng, text, item, ()):
            wrong = pick(rng, atoms)
            yield (item.above.edit(text[item.start : wrong.start] + wrong.text + text[wrong.end : item.end]),)


def _atoms(rng: Random, text: str, step: TextStep, names: Sequence[str]) -> list[Edit]:
    """Every change of one number, operator, name or word that makes the step say something else."""
    found = {}
    for match in NUMBER.finditer(text, step.start, step.end):
        found[match.span()] = _other_number(rng, match[0])
    for match in (CODE_OPERATOR if step.code else OPERATOR).finditer(text, step.start, step.end):
        others = {"==": ["!="], "!=": ["=="], "<": [">="], ">": ["<="], "<=": [">"], ">=": ["<"]}
        found[match.span()] = pick(rng, others.get(match[0], [sign for sign in "+-*/" if sign != match[0]]))
    turned = []
    for match in WORD.finditer(text, step.start, step.end):
        if match[0] in names:
            found[match.span()] = pick(rng, [name for name in NAMES if name != match[0]])
        elif match[0] in OPPOSITE and not step.code and not text.startswith(" not", match.end()):
            turned.append(match)
    if turned:  # two opposites would make the step right again
        chosen = pick(rng, turned)
        found[chosen.span()] = OPPOSITE[chosen[0]]
    return [Edit(start, end, other) for (start, end), other in sorted(found.items())]


def _other_number(rng: Random, number: str) -> str:
    """Another number of as many digits."""
    places = [place for place, digit in enumerate(number) if digit != "."]
    changed = set(places[-1:]) | {place for place in places if rng.random() < 0.5}
    digits = [
        pick(rng, [d for d in "123456789" if d != old]) if place in changed else old for place, old in enumerate(number)
    ]
    return "".join(digits)


# --- planting -----------------------------------------------------------------------------------------------


def plant(
    examples: Sequence[Example], config: PlantConfig, tokenizer: PreTrainedTokenizerBase, task: TaskConfig
) -> list[Example]:
    """The examples with noise in their responses and its places in `planted`; prompts and rows stay.

    The noise makes up `config.share` of the response tokens of `tokenizer` (EOS counts as one), divided evenly
    between the kinds. Rows are gone through in order, and what a row is short of, or has too much, is made good
    by the next ones: single rows differ (a short one gets no noise or a whole sentence), the set as a whole is
    met to within a sentence. A kind for which the rows have too little room leaves its part to the others.

    Raises:
        ValueError: a response that is more than one plain text.
    """
    for example in examples:
        if example.spans or example.answer is not None:
            raise ValueError(
                f"plant.share={config.share}: example {example.example_id} marks parts of its response, or has tool "
                "calls or reasoning there, among which nothing can be planted; leave such rows out"
            )
    planter = _Planter(config, tokenizer, task)
    return [planter.row(example) for example in examples]


class _Planter:
    def __init__(self, config: PlantConfig, tokenizer: PreTrainedTokenizerBase, task: TaskConfig) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.code, self.domain = task.grader == "code", DOMAINS.get(task.name)
        self.part = config.share / len(config.kinds)
        self.owed = dict.fromkeys(config.kinds, 0.0)  # noise tokens that the rows so far are short of
        self.lengths: dict[str, int] = {}

    def row(self, example: Example) -> Example:
        rng = Random(f"{self.config.seed}/{example.example_id}")
        edits, given = self._choose(rng, example)
        planted = _apply(example, edits)
        codes = np.array(response_kinds(self.tokenizer, [planted])[0])
        for kind in self.owed:
            noise = int(np.count_nonzero(codes == CODES[kind]))
            self.owed[kind] += self.part * len(codes) + given[kind] - noise
        return planted

    def _choose(self, rng: Random, example: Example) -> tuple[list[tuple[PlantKind, Edit]], dict[PlantKind, float]]:
        """The edits of a row, and what each kind was given of the part of kinds that have no room."""
        proposals = self._proposals(rng, example)
        due = {kind: owed + self.part * (self._tokens(example.response) + 1) for kind, owed in self.owed.items()}
        given = dict.fromkeys(due, 0.0)
        edits: list[tuple[PlantKind, Edit]] = []
        open_kinds = list(due)
        while open_kinds:
            kind = max(open_kinds, key=lambda each: due[each])
            chosen = next(proposals[kind], None)
            if chosen is None:
                open_kinds.remove(kind)
                surplus = max(due[kind] - CARRY, 0.0)
                for other in open_kinds if surplus else []:
                    due[other] += surplus / len(open_kinds)
                    given[other] += surplus / len(open_kinds)
                if open_kinds:
                    given[kind] -= surplus
                continue
            cost = sum(self._tokens(edit.text) for edit in chosen)
            if due[kind] < cost / 2:
                open_kinds.remove(kind)  # its turn comes in a later row
                continue
            edits += [(kind, edit) for edit in chosen]
            due = {each: value + self.part * cost - cost * (each is kind) for each, value in due.items()}
        return edits, given

    def _proposals(self, rng: Random, example: Example) -> dict[PlantKind, Iterator[tuple[Edit, ...]]]:
        text, layout = example.response, read_layout(example.response, self.code)
        prompt = " ".join(message["content"] for message in example.messages)
        names = sorted({*NAME.findall(text), *NAME.findall(prompt)})
        makers: dict[PlantKind, Callable[[Random], Iterator[tuple[Edit, ...]]]] = {
            PlantKind.off_task: lambda own: _off_task(own, layout, self.domain),
            PlantKind.boilerplate: lambda own: _boilerplate(own, layout),
            PlantKind.corrupted: lambda own: _corrupted(own, layout, text, names),
            PlantKind.redundant: lambda own: _redundant(own, layout, text),
            PlantKind.formatting: lambda own: _formatting(own, layout),
        }
        return {kind: makers[kind](Random(f"{rng.random()}/{kind.value}")) for kind in self.config.kinds}

    def _tokens(self, text: str) -> int:
        if text not in self.lengths:
            self.lengths[text] = len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return self.lengths[text]


def _apply(example: Example, edits: Sequence[tuple[PlantKind, Edit]]) -> Example:
    """Carries out the edits, which do not overlap, and notes where their text stands."""
    text, spans, done = "", [], 0
    for kind, edit in sorted(edits, key=lambda each: (each[1].start, each[1].end, each[1].rank)):
        assert done <= edit.start, (example.example_id, edit)
        text += example.response[done : edit.start]
        spans.append(PlantedSpan(len(text), len(text) + len(edit.text), kind, example.response[edit.start : edit.end]))
        text, done = text + edit.text, edit.end
    return replace(example, response=text + example.response[done:], planted=tuple(spans))


# --- the truth, token by token ------------------------------------------------------------------------------


def response_kinds(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[list[int]]:
    """For each example, one number per token of its response, EOS included: 0 clean, `CODES[kind]` noise.

    A token is noise if it holds a planted character, of the kind of the first one. One that also holds clean
    characters other than blanks cannot be told either way and is marked by the negative number; a token of
    planted and clean blanks together is noise, for the clean text would have had another one.
    """
    from xtf.data.encode import response_offsets

    found = []
    for example, offsets in zip(examples, response_offsets(tokenizer, [e.response for e in examples]), strict=True):
        kinds = np.zeros(len(example.response) + 1, np.int8)
        for span in example.planted:
            kinds[span.start : span.end] = CODES[span.kind]
        planted = np.flatnonzero(kinds)
        ink = np.array([not character.isspace() for character in example.response] + [False])
        clean_ink = np.concatenate([[0], np.cumsum(ink & (kinds == 0))])
        start, end = offsets.T
        next_planted = np.append(planted, len(kinds))[np.searchsorted(planted, start)]
        noise = next_planted < end
        codes = np.where(noise, kinds[np.minimum(next_planted, len(kinds) - 1)], 0)
        straddles = noise & (clean_ink[end] > clean_ink[start])
        found.append([*np.where(straddles, -codes, codes).tolist(), 0])
    return found


def token_kinds(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], rows: Sequence[Encoded]
) -> list[list[int]]:
    """`response_kinds` for encoded rows: each list as long as `input_ids[prompt_length:]`, cut where that is."""
    by_id = {example.example_id: example for example in examples}
    kinds = response_kinds(tokenizer, [by_id[row.example_id] for row in rows])
    aligned = []
    for row, codes in zip(rows, kinds, strict=True):
        length = len(row.input_ids) - row.prompt_length
        assert len(codes) >= length, (row.example_id, len(codes), length)
        aligned.append(codes[:length])
    return aligned


@dataclass(frozen=True)
class PlantReport:
    """What was planted, counted in response tokens. `tokens_by_kind` leaves out `straddling` ones."""

    asked: float
    reached: float
    examples: int
    examples_with_noise: int
    response_tokens: int
    straddling: int
    tokens_by_kind: dict[str, int]

    @classmethod
    def of(cls, config: PlantConfig, kinds: Sequence[Sequence[int]]) -> PlantReport:
        """Counts; warns if the share was missed by more than `TOLERANCE`."""
        flat = np.concatenate([np.asarray(row, np.int8) for row in kinds])
        counts = {kind.value: int(np.count_nonzero(flat == CODES[kind])) for kind in config.kinds}
        reached = sum(counts.values()) / len(flat)
        if abs(reached - config.share) > TOLERANCE:
            log.warning(
                "plant.share=%g was asked for, %.3f of %d response tokens are planted noise: the rows have too "
                "little room for plant.kinds=%s, or model.max_length cut them",
                config.share,
                reached,
                len(flat),
                [kind.value for kind in config.kinds],
            )
        touched = sum(any(row) for row in kinds)
        return cls(config.share, reached, len(kinds), touched, len(flat), int(np.count_nonzero(flat < 0)), counts)


def with_truth(
    table: pa.Table,
    config: PlantConfig,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    rows: Sequence[Encoded],
) -> tuple[pa.Table, dict[str, Any]]:
    """The table with the column `planted`, list<int8> as long as the response: which noise each token is; and the
    report of what was planted."""
    import pyarrow as pa

    kinds = token_kinds(tokenizer, examples, rows)
    return table.append_column("planted", pa.array(kinds, pa.list_(pa.int8()))), asdict(PlantReport.of(config, kinds))
