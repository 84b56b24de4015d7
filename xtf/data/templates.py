"""A tokenizer's chat template, taken as it is: what opens an answer, what ends it, and what is unusual about it.

Templates are tried out once on a made-up conversation. What is found unusual is warned of, once for each finding, or
refused (`task.template_checks=refuse`):

- an answer does not end with the tokenizer's EOS: the token that ends it there is trained and stops generation;
- nothing ends an answer, but the next turn begins with a token of its own (GLM-4.5): that one is trained there;
- the generation prompt opens a thought (DeepSeek-R1): `task.think`;
- `add_generation_prompt` changes nothing though answers have a heading: the heading is added;
- an answer's heading is not the generation prompt (GPT-OSS's channels): responses follow the generation prompt;
- today's date is written: it is `task.date`, so that no token depends on the day.
"""

from __future__ import annotations

import copy
import datetime
import functools
import itertools
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import AddedToken, PreTrainedTokenizerBase

from xtf.config.identity import plain
from xtf.config.schema import TaskConfig, TemplateChecks, Think

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

TODAY = re.compile(r"""\bstrftime_now\s*\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")  # a template's call for today's date
OTHER_DAY = re.compile(r"\bstrftime_now\b(?!\s+is\s+(?:not\s+)?defined\b)")  # beside it: another use of the day
CHANCE = re.compile(r"\|\s*random\b|\blipsum\s*\(")  # of Jinja
TAG = "think|thinking|thought|reasoning"  # of a thought
THOUGHT = re.compile(rf"</?(?:{TAG})>")
OPENED, CLOSED = re.compile(rf"<({TAG})>\s*\Z"), re.compile(rf"</(?:{TAG})>\s*\Z")  # at a generation prompt's end
OPENS, CLOSES = re.compile(rf"\s*<({TAG})>\n?"), re.compile(rf"</(?:{TAG})>")  # at a response's start; anywhere
LIMIT_SECONDS = 10.0  # a template that takes longer for one row, or to be tried out, will not end
LOOK_SECONDS = 0.5  # between looks at whether it has gone on
USER, ANSWER, NEXT = "question 7351", "answer 7352", "question 7353"  # of the conversation that is tried


@dataclass(frozen=True)
class Chat:
    """The settings of a task that concern its model's chat template."""

    think: Think = Think.open
    date: str = TaskConfig.date
    checks: TemplateChecks = TemplateChecks.warn

    @classmethod
    def of(cls, task: TaskConfig) -> Chat:
        """Those of a task."""
        return cls(task.think, task.date, task.template_checks)

    def asked(self) -> list[str]:
        """The settings that are not their defaults, as key=value without `task.`."""
        every = {"think": self.think, "date": self.date, "template_checks": self.checks}
        usual = (Chat.think, Chat.date, Chat.checks)
        return [f"{key}={plain(value)}" for (key, value), was in zip(every.items(), usual, strict=True) if value != was]


@dataclass(frozen=True)
class Template:
    """What a template was found to do.

    end: the id that ends an answer; cue: what the generation prompt lacks; closing: the text that closes the thought
    which it opens, where `task.think=close`; findings: what is unusual, a sentence each; markers: the added tokens that
    it writes around turns, those of thoughts aside.
    """

    end: int | None
    cue: str = ""
    closing: str = ""
    findings: tuple[str, ...] = ()
    markers: frozenset[str] = frozenset()


DEFAULT = Chat()


def template_of(tokenizer: PreTrainedTokenizerBase, chat: Chat = DEFAULT) -> Template:
    """What the tokenizer's template does under these settings; says what is unusual, each finding once.

    Raises:
        ValueError: something is, and `task.template_checks=refuse`; or it does not end, or writes at random.
    """
    found = _tried(tokenizer, str(tokenizer.chat_template), chat)
    if found.findings and chat.checks is TemplateChecks.refuse:
        raise ValueError(
            f"the chat template of {name_of(tokenizer)}: {'; '.join(found.findings)} (task.template_checks=refuse)"
        )
    said = _said.setdefault(tokenizer, set())
    for finding in found.findings:
        if finding not in said:
            said.add(finding)
            log.warning("the chat template of %s: %s", name_of(tokenizer), finding)
    return found


_said: WeakKeyDictionary[PreTrainedTokenizerBase, set[str]] = WeakKeyDictionary()


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that ends an answer: trained behind every response, and where generation stops."""
    return _tried(tokenizer, str(tokenizer.chat_template), DEFAULT).end


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, Any]],
    chat: Chat,
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    cue: bool = True,
) -> str:
    """The turns as the template writes them, with its generation prompt if `cue`; for as long as it likes, so within
    `each_in_time`.

    Raises:
        TemplateError: it refuses them.
    """
    settings: dict[str, Any] = {"enable_thinking": False} if chat.think is Think.close else {}
    day = datetime.datetime.fromisoformat(chat.date)
    try:
        source = tokenizer.get_chat_template(tools=[dict(tool) for tool in tools] or None)
        text = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=TODAY.sub(lambda call: json.dumps(day.strftime(call[2]), ensure_ascii=False), source),
            add_generation_prompt=cue,
            tokenize=False,
            **settings,
        )
    except TemplateError:
        raise
    except Exception as error:  # whatever a template stumbles over: a range that is too long, memory
        raise TemplateError(repr(error)) from error
    assert isinstance(text, str)
    return text


@functools.lru_cache(maxsize=32)
def _tried(tokenizer: PreTrainedTokenizerBase, source: str, chat: Chat) -> Template:
    """See `Template`; `source` is the template's text, which a caller may exchange."""
    eos = tokenizer.eos_token_id
    if tokenizer.chat_template is None:
        return Template(eos)
    if CHANCE.search(source):
        raise ValueError(
            f"the chat template of {name_of(tokenizer)} draws what it writes by lot, so no two runs see the same: "
            "give another tokenizer (model.tokenizer) or mend its template"
        )
    user, answer, following = (
        {"role": role, "content": text} for role, text in (("user", USER), ("assistant", ANSWER), ("user", NEXT))
    )
    trials = [
        ([user], chat, True),
        ([user], chat, False),
        ([user, answer], chat, False),
        ([user, answer, following], chat, False),
        ([user], Chat(chat.think, "2001-02-03"), True),
    ]
    try:
        prompt, bare, whole, more, other_day = each_in_time(
            tokenizer,
            lambda trial: render(tokenizer, trial[0], trial[1], cue=trial[2]),
            [("a made-up conversation", trial) for trial in trials],
        )
    except TemplateError as error:
        return Template(eos, findings=(f"it could not be tried out ({error}); responses end with EOS",))
    findings: list[str] = []
    if ANSWER not in whole or NEXT not in more:
        return Template(eos, findings=("it does not show what an assistant says; responses end with EOS",))
    tail, between = whole.rpartition(ANSWER)[2], more.rpartition(ANSWER)[2].partition(NEXT)[0]
    ends = bool(tail.strip())  # something stands behind the last answer
    end = first_marker(tokenizer, tail if ends else between)
    shown = None if end is None else tokenizer.convert_ids_to_tokens(end)
    if shown is None:
        findings.append("no token of its own ends an answer; responses end with the tokenizer's EOS")
    elif not ends:
        findings.append(f"nothing ends an answer but the {shown} of the next turn: that is trained as its end")
    elif end != eos:
        findings.append(
            f"an answer ends with {shown}, not with EOS ({tokenizer.eos_token}): {shown} is trained, and ends answers"
        )
    heading = whole.partition(ANSWER)[0]
    cue = ""
    if prompt == bare and heading.startswith(prompt) and heading[len(prompt) :].strip():
        cue = heading[len(prompt) :]
        findings.append(f"it ignores add_generation_prompt: {cue!r}, which it writes before an answer, is added")
    opened = OPENED.search(prompt + cue)
    closing = ""
    if not opened and heading.strip() != (prompt + cue).strip():
        pairs = zip(heading, prompt + cue, strict=False)
        at = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        findings.append(
            f"before an answer it writes {heading[at:]!r} where its generation prompt has {(prompt + cue)[at:]!r}: "
            "responses follow the generation prompt"
        )
    if opened:
        tag = opened[1]
        closing = f"\n</{tag}>\n\n" if chat.think is Think.close else ""
        findings.append(
            f"the generation prompt opens <{tag}>; "
            + (
                f"</{tag}> is put behind it (task.think=close)"
                if closing
                else "responses are trained within it (task.think=open; task.think=close closes it before them)"
            )
        )
    elif chat.think is Think.close and "enable_thinking" not in source:
        findings.append("its generation prompt opens no thought, so that task.think=close closes none")
    if OTHER_DAY.search(TODAY.sub("", source)):
        findings.append("it writes today's date in a form that task.date does not reach: its tokens depend on the day")
    elif other_day != prompt:
        findings.append(f"it writes today's date: {chat.date} stands there, whatever the day (task.date)")
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(prompt + cue + more + whole, add_special_tokens=False, verbose=False)["input_ids"]
    written = {str(added[token].content) for token in ids if token in added}
    markers = frozenset(token for token in written if not THOUGHT.fullmatch(token))
    return Template(eos if end is None else end, cue, closing, tuple(findings), markers)


def each_in_time(
    tokenizer: PreTrainedTokenizerBase, function: Callable[[Item], Result], items: Sequence[tuple[str, Item]]
) -> list[Result]:
    """`function`, which renders, of each item in order; `items` come with their names in a message.

    In a thread of its own, which nothing can stop: it ends with the program. One for all of them, since a thread costs
    more than a render.

    Raises:
        Exception: what `function` raises.
        ValueError: one of them takes more than `LIMIT_SECONDS`.
    """
    done: list[Result] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            for _, item in items:
                done.append(function(item))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    before, looks = 0, 0  # counted, since the clock goes on while the whole process is stopped (Ctrl-Z)
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
        before, looks = len(done), looks + 1 if len(done) == before else 0
        if looks * LOOK_SECONDS > LIMIT_SECONDS and thread.is_alive():
            raise ValueError(
                f"the chat template of {name_of(tokenizer)} does not end: {items[before][0]} takes it more than "
                f"{LIMIT_SECONDS:g} s; give another tokenizer (model.tokenizer) or mend its template"
            )
    if failed:
        raise failed[0]
    return done


def first_marker(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The id of the added token with which the text begins, blanks aside; None if it begins with anything else."""
    for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]:
        if token in tokenizer.added_tokens_decoder:
            return int(token)
        if str(tokenizer.decode([token])).strip():
            return None
    return None


def special_text(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the text of a special token, or of another that the template writes around turns; None where there are
    none."""
    return _special_text(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=32)
def _special_text(tokenizer: PreTrainedTokenizerBase, source: str) -> re.Pattern[str] | None:
    markers = _tried(tokenizer, source, DEFAULT).markers
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.content]
    texts = [token.content for token in added if token.special or token.content in markers]
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None


def textual(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer that takes what `special_text` finds as text, with `split_special_tokens=True`.

    It knows all of that as special, since other tokens are not split.

    Raises:
        ValueError: a slow tokenizer, which cannot be told.
    """
    return _textual(tokenizer, str(tokenizer.chat_template))


@functools.lru_cache(maxsize=8)
def _textual(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    markers = _tried(tokenizer, source, DEFAULT).markers
    other = [
        token for token in tokenizer.added_tokens_decoder.values() if token.content in markers and not token.special
    ]
    if not other:
        return tokenizer
    if not tokenizer.is_fast:
        raise ValueError(
            f"{name_of(tokenizer)} cannot encode {other[0].content}, which a response spells out, as text; use a fast "
            "tokenizer, or leave such rows out"
        )
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.add_special_tokens(  # those of the copy; the ids stay
        [AddedToken(token.content, special=True, normalized=False) for token in other]
    )
    return own


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer in a message."""
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}"
