r"""Every number in a text, exactly and whole.

A number that is written in a way that is not read whole (1.234.567, 3!^2, 10^{n}) has no value here, so that nobody
takes a part of it for the number.

    1,000  1 000  1'000  1{,}000     1000          10^6  3 \times 10^5  1.5e-3     powers and scientific notation
    $-12.50  -$12.50  −12.5          -12.5         1.2 million  $5k  $5 bn                1200000, 5000, 5000000000
    1/2  \frac{1}{2}  ½  .5          1/2           minus 3  negative 3             -3
    2 1/2  2\frac{1}{2}  2½          5/2           2 and a half                    5/2
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_NUMBER = 200  # characters; a model that repeats one digit has not given a number
MAX_EXPONENT = 200

# hyphens and minus signs as keyboards and typesetters write them
DASHES = "-−–\u2010\u2011\u2012\u02d7\u207b\u2796\ufe63\uff0d"
BLANKS = " \u00a0\u2002-\u200a\u202f\u205f"  # of any width, for a class of characters
GROUP = rf"(?:,|\{{,\}}|\\[,;: ]|['’ʼ_~{BLANKS}])"  # what may stand between groups of three digits
INTEGER = rf"(?:[1-9]\d{{0,2}}(?:{GROUP}\d{{3}})+(?!\d)|\d+)"
DIGITS = rf"{INTEGER}(?:\.\d+)?|(?<![^\W\d_])\.\d+"  # the stop of "No.5" is none of a decimal
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
VULGAR = "".join(chr(code) for code in range(0x2150, 0x215F)) + "¼½¾"
EXPONENT = (
    r"(?:\s*\^\s*|\*\*(?=[-−+\d({]))"
    r"(?:\{\s*(?P<{0}1>[-−+]?\d+)\s*\}|\(\s*(?P<{0}2>[-−+]?\d+)\s*\)|(?P<{0}3>[-−+]?\d+)(?!\d))"
)
POWER = EXPONENT.replace("{0}", "exponent") + r"|(?P<raised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
TEN = EXPONENT.replace("{0}", "ten") + r"|(?P<tenraised>[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"
TIMES = r"\s*(?:\\times|\\cdot|[×·•∙⋅*x])\s*"
PARTS = {
    name: Fraction(1, part)
    for part, names in {
        2: "half halves",
        3: "third thirds",
        4: "quarter quarters fourth fourths",
        5: "fifth fifths",
        6: "sixth sixths",
        8: "eighth eighths",
        10: "tenth tenths",
    }.items()
    for name in names.split()
}
COUNTS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3}
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
    "quadrillion": 10**15,
}
LETTERS = {  # after a currency only
    letters: 10**power
    for power, names in {3: "k", 6: "m mn mm mio mil mln", 9: "b bn bln mrd", 12: "t tn trn"}.items()
    for letters in names.split()
}
ABBREVIATION = rf"(?i:{'|'.join(sorted(LETTERS.keys() - {'t'}, key=len, reverse=True))}|(?-i:T))"
CURRENCY = r"\\?[$€£¥₹₩]|\b(?:USD|EUR|GBP|INR|CAD|AUD|CHF|RM|Rs\.?)"
FRACTION = r"\\[dtc]?frac\s*(?:\{\s*(?P<top>-?\d+)\s*\}\s*\{\s*(?P<bottom>\d+)\s*\}|(?P<top1>\d)\s*(?P<bottom1>\d))"
MIXED = (  # what may follow a whole number: a proper fraction
    rf"(?:(?:[ \t~\u00a0]+|[ \t]+and[ \t]+)(?P<over1>\d+)\s*[/⁄]\s*(?P<under1>\d+)(?![\d/⁄])"
    rf"|\s*\\[dt]?frac\s*(?:\{{\s*(?P<over2>\d+)\s*\}}\s*\{{\s*(?P<under2>\d+)\s*\}}|(?P<over3>\d)\s*(?P<under3>\d))"
    rf"|[ \t]?(?P<vulgar>[{VULGAR}])"
    rf"|[ \t]+and[ \t]+(?P<count>{'|'.join(COUNTS)})[ \t-]+(?P<part>{'|'.join(PARTS)})\b)"
)
SCALE = rf"[ \t~*_$-]*(?:\\text\s*\{{\s*)?(?P<scale>{'|'.join(SCALES)})s?\b\}}?"
NUMBER = re.compile(
    rf"(?P<minus>\b(?:minus|negative|neg\b\.?)[ \t]+|[{DASHES}])?(?P<gap>[ \t]*)"
    rf"(?P<currency>(?:{CURRENCY})[ \t]*)?(?(currency)(?P<inner>[{DASHES}])?|)"
    rf"(?:(?P<alone>[{VULGAR}])|{FRACTION}"
    rf"|(?P<whole>{INTEGER}){MIXED}"
    rf"|(?P<digits>{DIGITS})(?:[eE](?P<e>[-−+]?\d+)(?!\w|\.\d)|{TIMES}10(?:{TEN}|(?P<lost>[{DASHES}]\d+))|{POWER})?"
    rf"(?:\s*[/⁄]\s*(?P<over>{DIGITS}))?)"
    rf"(?:{SCALE}(?:{SCALE.replace('<scale>', '<scale_2>')})?|(?P<letters>{ABBREVIATION})\b"
    rf"|(?(currency)[ \t~{BLANKS}]+(?P<spaced>{ABBREVIATION})(?![\w'’&-])|(?!)))?",
    re.IGNORECASE,
)
# A minus sign is one after these; after other words it may as well take away ("5 apples - 3").
BEFORE_SIGN = re.compile(
    r"(?:\b(?:is|are|was|were|be|to|of|or|and|at|by|from|equals?|about|around|approximately|exactly|it's|gives?|"
    r"get|yields?|makes?|than|only|between)|[^\w\s)\]}%.,½*_$`]|\A)[ \t*_$`]*\Z",
    re.IGNORECASE,
)
# LaTeX that may stand beside a number and says nothing about its value; any other command makes it a part of something.
PLAIN = (
    r"(?:text\w*|math(?:rm|bf|it|sf|tt|normal)|mbox|f?box(?:ed)?|left|right|[bB]igg?[lr]?|quad|qquad|[,;:! ]"
    r"|displaystyle|underline|color|large|Large|huge|Huge|approx|sim|implies|Rightarrow|Longrightarrow|rightarrow|to|therefore"
    r"|because|degree|circ|cents|item|hfill|newline|par|end|begin|checkmark|blacksquare|square|qed)"
)
UNIT_LETTERS = "mgshldcpLCFWVJN"  # glued to a number ("5m"); any other letter is a variable or a size ("3x", "12B")
SPACED_LETTERS = UNIT_LETTERS + "aAtTbBKI"  # after a blank: words, too ("3 a day")
UNIT_PAIRS = (
    "mm|cm|dm|km|nm|in|ft|yd|mi|mg|kg|lb|oz|hr|am|pm|ml|dl|cl|kl|pt|qt|st|nd|rd|th|ms|ns|sq|cc|pp|px|GB|MB|KB|TB|Hz|kW"
)
COUNTED = r"hundred|thousand|million|billion|(?:twen|thir|for|fif|six|seven|eigh|nine)ty"
FUNCTION = "factorial|log|ln|exp|sin|cos|tan"
SIGNS = rf"[{DASHES}+*/·×÷^]"
ORDINALS = "second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|twelfth|twentieth|nth"
UNITS_PLACE = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
# What makes the digits after it a part of something larger: a command or function, an operator on what is no number,
# a bound.
INSIDE = re.compile(
    rf"(?:(?<=[\w}}])_|[√±∓∛]|\\(?!{PLAIN}(?![A-Za-z]))[A-Za-z]+(?:\[\w+\]|_\{{?\w+\}}?)?|[\d)\]}}]\s*\^|\}}|[-+*/(]\s*\^)"
    r"\s*[({]?\s*\Z|\d\.?\Z|(?<=[^\W\d_])\.\Z"
    rf"|(?<![A-Za-z.\\])[A-Za-z](?:\^\{{?\w\}}?)?(?:{SIGNS}|[ \t]+{SIGNS}[ \t]+)\Z"
    rf"|(?:[π∞]|\\(?!{PLAIN}(?![A-Za-z]))[A-Za-z]+\}}?)[ \t]*{SIGNS}[ \t]*\Z"
    r"|[)\]}](?:[+*/·×÷]|[ \t]+[+*/·×÷][ \t]+)\Z"
    r"|(?:[<≤≥≠]|(?<=\w)[ \t]*>)=?[ \t$]*\Z",
    re.IGNORECASE,
)
# The same with words: "half of", "not".
INSIDE_WORDS = re.compile(
    r"%[ \t]+of[ \t]+(?:the[ \t]+)?\$?\Z"
    rf"|\b(?:half|third|quarter|fifth|tenth|double|triple|square|cube|root|percent|{FUNCTION}|{COUNTED})[ \t-]+"
    r"(?:of[ \t]+|and[ \t]+)?(?:the[ \t]+)?\$?\Z"
    r"|(?:\b(?:twice|thrice|sqrt|not)|n['’]t)[ \t(]+(?:exactly[ \t]+)?[$(]*\Z"
    r"|\bbetween[ \t][^.\n]{1,40}[ \t]and[ \t]+\$?\Z",
    re.IGNORECASE,
)
# What a text must end with, but for `BETWEEN`, for the two to find anything: that is looked up first, as they try some
# twenty forms at each of the characters before a number.
BETWEEN = "({$" + "".join(filter(str.isspace, map(chr, range(0x3001))))
LAST_SIGNS = frozenset("_√±∓∛^}-−–+*/·×÷<≤≥≠>=.]")
LAST_WORDS = (
    *("of", "the", "and", "half", "third", "quarter", "fifth", "tenth", "double", "triple", "square", "cube", "root"),
    *("percent", *FUNCTION.split("|"), "hundred", "thousand", "million", "billion", "ty"),
    *("twice", "thrice", "sqrt", "not", "n't", "n’t", "exactly"),
)
CHANGES_NOTHING = frozenset(",;:!?\"'$%=<>]/+|&")  # with which nothing in `OUTSIDE` begins
TAG = re.compile(r"<[^<>\n]*>[ \t]*\Z")  # "<b>5": markup, no bound
MAGNITUDE = re.compile(r"\|\s*\{?\s*\Z")  # |-5|
PART_OF_A_NAME = re.compile(  # cm^2, x_1, A4, H2O: no number of its own
    r"[^\W\d]\}?\s*(?:\^|_)\s*\{?\s*[-−]?\Z|(?<![\\A-Za-z])[A-Za-z]+\Z"
)
OUTSIDE = re.compile(
    r"\s*\)?\s*(?:\^(?!\s*\{?\s*(?:\\circ|°|o\b|th|st|nd|rd))|\*\*[\d({]|√)"
    r"|\s*(?:π|∞|[±∓]|(?:°|\^\s*\{?\s*(?:\\circ|°)\s*\}?)\s*\d)"
    rf"|[ \t{{}}]*\\(?!{PLAIN}(?![A-Za-z]))[A-Za-z]+"
    r"|[\u0300-\u036f]|_\{?\d|\.?\\(?:overline|bar|dot)|\.\(\d|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]|[٫٬]\d"
    r"|[ \t-]*(?:halves|half\b(?![ \t-]+\w)|thirds?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|(?:hundred|thousand|million|billion)ths?|squared|cubed|factorial|mod(?:ulo)?)\b"
    r"|[ \t]+(?:raised[ \t]+)?to[ \t]+the[ \t]+(?:(?:power|\d+(?:st|nd|rd|th)|\w+[ \t]+power)\b"
    rf"|(?:(?:minus|negative)[ \t]+)?(?:{ORDINALS}|{UNITS_PLACE})\b(?![ \t]+(?!is\b|equals\b|or\b|and\b)[a-z]))"
    rf"|[ \t]+and[ \t]+(?:an?|{UNITS_PLACE})[ \t-]+(?:{'|'.join(PARTS)}|sevenths?|ninths?)\b"
    r"|[ \t]*\(?(?:recurring|repeating)\b(?![ \t]+(?!decimal)[a-z])"
    r"|[ \t]*(?:°|degrees?\b)?[ \t]*[CF]?[ \t]+below[ \t]+zero\b"
    rf"|[ \t~]+(?:(?:{'|'.join(name for name in LETTERS if len(name) > 1 and name != 'mm')})\b|(?-i:[KMB])(?![\w'’&-]))"
    r"|[ \t]?[eE][-−+]?\d"
    rf"|(?-i:(?![{UNIT_LETTERS}]\b)[A-Za-zα-ω](?![^\W_])|[ \t](?![{SPACED_LETTERS}])[a-zα-ω](?![\w'’-])"
    rf"|(?!(?:{UNIT_PAIRS})\b)[a-z]{{2}}(?![^\W_])|(?!(?:mm|cm|dm|km|m|in|ft|yd|mi)[23]\b)[A-Za-z]+\d)",
    re.IGNORECASE,
)
WHOLE_IN_WORDS = re.compile(rf"\b(?:{UNITS_PLACE}|{COUNTED})[ \t]+and[ \t]*\Z", re.IGNORECASE)  # "three and 1/2"
GOES_ON = re.compile(r"\.\.|…")
MONTH = r"(?:Jan|Feb|Mar|Apr|May|June?|July?|Aug|Sept?|Oct|Nov|Dec)[a-z]*\.?"
DATE = re.compile(
    rf"\b{MONTH}[ \t]+\d{{1,2}}(?:st|nd|rd|th)?,?[ \t]+\d{{4}}\b"
    rf"|\b\d{{1,2}}(?:st|nd|rd|th)?(?:[ \t]+of)?[ \t]+{MONTH},?[ \t]+\d{{4}}\b"
)


@dataclass(frozen=True)
class Numeral:
    """A number at characters [start, end) of a text; `value` is None where it cannot be read whole."""

    value: Fraction | None
    start: int
    end: int
    scaled: bool = False  # "million" or the like is part of it


def numerals(text: str) -> list[Numeral]:
    """Every number in a text, in order."""
    found = []
    of_dates = {place for match in DATE.finditer(text) for place in range(*match.span())}
    for match in NUMBER.finditer(text):
        before = text[max(0, match.start() - 40) : match.start("gap")]
        if len(match[0]) > MAX_NUMBER or (not match["minus"] and not match["gap"] and _of_a_name(before)):
            continue
        begin, sign = _sign(match, text)
        start = begin + len(text[begin : match.end()]) - len(text[begin : match.end()].lstrip())
        whole = not _inside(text[max(0, start - 60) : start], sign) and not _goes_on(text, match.end())
        whole = whole and match.end() - 1 not in of_dates
        whole = whole and not ("." in match[0] and GOES_ON.match(text, match.end()))  # 3.14...
        value = _value(match) if whole and sign is not None else None
        if value is not None and 0 < value < 1 and WHOLE_IN_WORDS.search(before):
            value = None
        scaled = bool(match["scale"])
        found.append(Numeral(-value if value is not None and sign == -1 else value, start, match.end(), scaled))
    return found


def numbers(text: str) -> list[Fraction]:
    """The values of the numbers in a text that are read whole."""
    return [numeral.value for numeral in numerals(text) if numeral.value is not None]


def _inside(before: str, sign: int | None) -> bool:
    """Whether what precedes a number makes it a part of something larger."""
    if "<" in before:
        before = TAG.sub("", before)
    if sign == -1 and MAGNITUDE.search(before):
        return True
    tail = before.rstrip(BETWEEN)
    last = tail[-1:]
    if (last == "-" or tail.casefold().endswith(LAST_WORDS)) and INSIDE_WORDS.search(before):
        return True
    if last.isalnum():
        possible = last.isdecimal() or "\\" in before or "_" in before
    elif last in ("=", "."):
        possible = tail[-2:-1].isalnum() or tail[-2:-1] in LAST_SIGNS
    else:
        possible = last in LAST_SIGNS
    return possible and bool(INSIDE.search(before))


def _of_a_name(before: str) -> bool:
    last = before[-1:]
    possible = (last.isascii() and last.isalpha()) or "^" in before or "_" in before
    return possible and bool(PART_OF_A_NAME.search(before))


def _goes_on(text: str, end: int) -> bool:
    """Whether what follows a number makes it a part of something larger."""
    return end < len(text) and text[end] not in CHANGES_NOTHING and bool(OUTSIDE.match(text, end))


def _sign(match: re.Match[str], text: str) -> tuple[int, int | None]:
    """Where the number begins, and 1, -1, or None where a minus may also be that of a difference."""
    inner = -1 if match["inner"] else 1  # "$-5"
    if not match["minus"]:
        return match.start("gap"), inner
    before = text[max(0, match.start() - 40) : match.start()]
    word, spaced = match["minus"][0].isalpha(), bool(match["gap"])
    if inner < 0:
        return match.start(), None
    if word and match["minus"].lower().startswith("neg"):
        return match.start(), -1
    if not word and not spaced:  # "-5": a sign, unless it is tied to what precedes ("10-5", "5–10")
        tied = re.search(r"[\w)\]}.,%½]\Z", before)
        return (match.start("gap"), 1) if tied else (match.start(), -1)
    line = before.rpartition("\n")[2]
    if not word and not line.strip() and "\n" in before:  # an item of a list: "- 5 apples"
        return match.start("gap"), 1
    if BEFORE_SIGN.search(line):
        return match.start(), -1
    if re.search(r"[\d)\]}%½](?:[ \t]*[^\W\d]+){0,3}[ \t]*\Z", line):  # taken away from the number before
        return (match.end("minus") if word else match.start("gap")), (None if word else 1)
    return match.start(), None


def _plain(digits: str) -> Fraction:
    if digits.isdecimal():
        return Fraction(int(digits))
    whole, _, rest = re.sub(r"[^\d.]", "", digits).partition(".")
    return Fraction(int(whole + rest), 10 ** len(rest))


def _vulgar(sign: str) -> Fraction:
    top, _, bottom = unicodedata.normalize("NFKC", sign).partition("⁄")
    return Fraction(int(top), int(bottom))


def _exponent(*texts: str | None) -> int | None:
    """The first exponent that is there; None if it is too large to compute with."""
    text = next(text for text in texts if text)
    number = int(text.translate(SUPERSCRIPTS).replace("−", "-"))
    return number if abs(number) <= MAX_EXPONENT else None


def _value(match: re.Match[str]) -> Fraction | None:
    if match.lastgroup == "digits":  # nothing but digits
        return _plain(match["digits"])
    part = match.groupdict()
    if part["alone"]:
        value: Fraction | None = _vulgar(part["alone"])
    elif part["top"] or part["top1"]:
        top, bottom = int(part["top"] or part["top1"]), int(part["bottom"] or part["bottom1"])
        value = Fraction(top, bottom) if bottom else None
    else:
        value = _read(part)
        if value is not None and part["over"]:
            divisor = _plain(part["over"])
            value = value / divisor if divisor else None
    for scale in (part["scale"], part["scale_2"]):
        if value is not None and scale:
            value *= SCALES[scale.lower()]
    if value is not None and (letters := part["letters"] or part["spaced"]):
        unit = letters in ("m", "mm", "b")  # "5m" is a length as likely as an amount
        value = value * LETTERS[letters.lower()] if part["currency"] else (value if unit else None)
    return value


def _read(part: dict[str, str | None]) -> Fraction | None:
    """Digits with what follows them: a power of ten, an exponent, or the fraction of a mixed number."""
    if part["whole"]:
        return _mixed(part)
    if part["lost"]:  # "1.5 x 10-3": a power whose sign was lost, or a difference
        return None
    digits = part["digits"]
    assert digits is not None
    base = _plain(digits)
    if any(part[name] for name in ("ten1", "ten2", "ten3", "tenraised")):
        exponent = _exponent(part["ten1"], part["ten2"], part["ten3"], part["tenraised"])
        return None if exponent is None else base * Fraction(10) ** exponent
    if part["e"]:
        exponent = _exponent(part["e"])
        return None if exponent is None else base * Fraction(10) ** exponent
    if any(part[name] for name in ("exponent1", "exponent2", "exponent3", "raised")):
        exponent = _exponent(part["exponent1"], part["exponent2"], part["exponent3"], part["raised"])
        if exponent is None or (base == 0 and exponent < 0) or len(digits) * abs(exponent) > 2 * MAX_NUMBER:
            return None
        return base**exponent
    return base


def _mixed(part: dict[str, str | None]) -> Fraction | None:
    if part["vulgar"]:
        fraction = _vulgar(part["vulgar"])
    elif part["part"]:
        fraction = COUNTS[str(part["count"]).lower()] * PARTS[part["part"].lower()]
    else:
        top = int(part["over1"] or part["over2"] or part["over3"] or 0)
        bottom = int(part["under1"] or part["under2"] or part["under3"] or 0)
        fraction = Fraction(top, bottom) if bottom else Fraction(0)
    whole = _plain(str(part["whole"]))
    return whole + fraction if 0 < fraction < 1 and not part["over"] else None  # "2 3/2" is no mixed number


def show(value: Fraction) -> str:
    """A number as people write it, exactly: 18, -0.5, 1/3."""
    for places in range(MAX_NUMBER):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = f"{abs(scaled.numerator):0{places + 1}d}"
            sign, whole, rest = "-" * (value < 0), digits[: len(digits) - places], digits[len(digits) - places :]
            return f"{sign}{whole}.{rest}" if rest else f"{sign}{whole}"
    return str(value)
