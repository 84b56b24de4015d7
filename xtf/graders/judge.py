"""Grading open answers with a judge model behind any OpenAI-compatible endpoint (extra `judge`).

A verdict that could not be had (time-outs, refusals, an unreadable reply, the cap on requests) is counted as
`ungraded`, never as wrong. Verdicts are cached on disk by content, so a repeated or interrupted grading asks
only for what is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.schema import JudgeConfig, TaskConfig
from xtf.data.examples import RowError, render
from xtf.graders.base import Grade, Grader, Item, final_part
from xtf.graders.choice import ChoiceGrader
from xtf.runtime.artifacts import DamagedError, read_entry, with_digest, write_json
from xtf.runtime.progress import say

if TYPE_CHECKING:
    import openai

BACKOFF_SECONDS = 0.5  # doubles with every attempt
LONGEST_REPLY = 1 << 20  # bytes of a reply's body
LONGEST_WAIT = 60.0  # seconds, also for a server's Retry-After


class NoVerdictError(Exception):
    """One item cannot be judged; the message says why."""


class JudgeGrader(Grader):
    """Asks whether an answer agrees with the reference: yes, no, or no verdict."""

    def __init__(self, config: JudgeConfig, cache: Path) -> None:
        self.config, self.cache = config, cache
        self.reader = ChoiceGrader(("yes", "no"))
        self.requests = self.cached = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, config: TaskConfig, output_dir: Path) -> JudgeGrader:
        return cls(config.judge, Path(config.judge.cache or output_dir / "judge"))

    def check(self) -> None:
        """ValueError unless there are a client, a model, an endpoint with its key, and a usable prompt."""
        config = self.config
        if find_spec("openai") is None:
            raise ValueError("task.grader=judge needs the extra `judge`: pip install 'xtf[judge]'")
        if not config.model:
            raise ValueError("task.grader=judge needs task.judge.model: the name of the judge at its endpoint")
        if config.api_key_env and not os.environ.get(config.api_key_env):
            raise ValueError(
                f"the judge at {config.base_url or 'api.openai.com'} has no key: set the environment "
                f"variable {config.api_key_env}, or task.judge.api_key_env='' if your own endpoint needs none"
            )
        if not config.api_key_env and not config.base_url:
            raise ValueError("the judge has neither an endpoint nor a key: set task.judge.base_url")
        key = os.environ.get(config.api_key_env, "") if config.api_key_env else ""
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key in {config.api_key_env} has characters that no key has (a line's end?): mend it")
        if config.base_url and not re.match(r"https?://[^\s/]", config.base_url):
            raise ValueError(f"task.judge.base_url={config.base_url} is no address, such as http://localhost:8000/v1")
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"verdicts cannot be kept at task.judge.cache={self.cache}: {error}") from error
        try:
            text = render(config.prompt, {"question": "q", "reference": "<reference>", "answer": "<answer>"})
        except RowError as error:
            raise ValueError(
                f"task.judge.prompt reads only {{question}}, {{reference}}, {{answer}}: {error}"
            ) from error
        if "<reference>" not in text or "<answer>" not in text:
            raise ValueError("task.judge.prompt must show the judge both {reference} and {answer}")

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        self.check()
        answers = [final_part(item.completion).strip() for item in items]
        prompts = [self._prompt(item, answer) for item, answer in zip(items, answers, strict=True)]
        # each distinct prompt once; an empty answer needs no judge
        distinct = list(dict.fromkeys(text for text, answer in zip(prompts, answers, strict=True) if answer))
        with self._client() as client, ThreadPoolExecutor(self.config.concurrency) as pool:
            verdicts = dict(zip(distinct, pool.map(lambda text: self._verdict(client, text), distinct), strict=True))
        return [
            Grade(verdicts[text][0], answer, verdicts[text][1]) if answer else Grade(False, None, "empty answer")
            for text, answer in zip(prompts, answers, strict=True)
        ]

    def _prompt(self, item: Item, answer: str) -> str:
        question = "\n\n".join(turn["content"] for turn in item.example.messages if turn["role"] != "system")
        return render(self.config.prompt, {"question": question, "reference": item.reference, "answer": answer})

    def _client(self) -> openai.OpenAI:
        import openai

        key = os.environ[self.config.api_key_env] if self.config.api_key_env else "none"
        return openai.OpenAI(
            base_url=self.config.base_url, api_key=key, timeout=self.config.timeout_seconds, max_retries=0
        )

    def _verdict(self, client: openai.OpenAI, text: str) -> tuple[bool | None, str]:
        content = json.dumps([self.config.base_url, self.config.model, text])
        key = hashlib.sha256(content.encode()).hexdigest()
        path = self.cache / key[:2] / f"{key}.json"
        if path.is_file():
            try:
                reply = read_entry(path, "the judge is asked again", reply=str)["reply"]
            except (DamagedError, OSError) as error:
                say(str(error))
                reply = ""
            if (kept := self.reader.decide(reply)) is not None:
                with self._lock:
                    self.cached += 1
                return kept == "yes", reply
        try:
            reply = self._ask(client, text)
        except NoVerdictError as error:
            return None, f"no verdict: {error}"
        choice = self.reader.decide(reply)
        if choice is None:
            return None, f"no verdict: the judge's reply is neither yes nor no: {reply[:200]!r}"
        write_json(path, with_digest({"model": self.config.model, "verdict": choice == "yes", "reply": reply}))
        return choice == "yes", reply

    def _ask(self, client: openai.OpenAI, text: str) -> str:
        """The judge's reply. Retries what may pass: no connection, time-outs, 429, 5xx, a broken body."""
        import openai

        problem = ""
        for attempt in range(self.config.retries + 1):
            self._count_request()
            wait = BACKOFF_SECONDS * 2**attempt
            try:
                body = self._body(client, text)
                content = _content(body)
                if content is not None:
                    return content
                problem = f"malformed reply {body[:200].decode(errors='replace')!r}"
            except openai.APIStatusError as error:
                if error.status_code in (401, 403, 404):
                    raise ValueError(
                        f"the judge refuses every request: {error}. Mend task.judge.base_url={self.config.base_url}, "
                        f"task.judge.model={self.config.model} or the key (task.judge.api_key_env="
                        f"{self.config.api_key_env}), and start the same command again"
                    ) from error
                if error.status_code not in (408, 409, 429) and error.status_code < 500:
                    raise NoVerdictError(str(error)) from error
                problem = str(error)
                wait = max(wait, _retry_after(error.response.headers.get("retry-after")))
            except (openai.APIError, OSError) as error:  # no connection, time-out
                problem = f"{type(error).__name__}: {error}"
            if attempt < self.config.retries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise NoVerdictError(f"{problem} ({self.config.retries + 1} attempts)")

    def _body(self, client: openai.OpenAI, text: str) -> bytes:
        """The body of the reply; TimeoutError for one that takes longer than a request may, however it trickles in."""
        import httpx

        deadline = time.monotonic() + self.config.timeout_seconds
        asked = client.chat.completions.with_streaming_response.create(
            model=str(self.config.model), messages=[{"role": "user", "content": text}], temperature=0
        )
        body = bytearray()
        try:
            with asked as reply:
                for chunk in reply.iter_bytes():
                    body += chunk
                    if len(body) > LONGEST_REPLY:
                        raise NoVerdictError(f"the judge's reply is longer than {LONGEST_REPLY} bytes")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the reply did not end within {self.config.timeout_seconds:g} s")
        except httpx.HTTPError as error:  # the connection broke behind the head of the reply
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        return bytes(body)

    def _count_request(self) -> None:
        with self._lock:
            if self.requests >= self.config.max_requests:
                raise NoVerdictError(f"the cap task.judge.max_requests={self.config.max_requests} is reached")
            self.requests += 1

    def system_info(self) -> dict[str, Any]:
        return {
            "judge": self.config.model,
            "endpoint": self.config.base_url or "default of the openai client",
            "requests": self.requests,
            "verdicts_from_cache": self.cached,
        }


def _content(body: bytes) -> str | None:
    """What the assistant says in the body of a reply; None for another body."""
    try:
        content = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return content.encode(errors="replace").decode() if isinstance(content, str) else None


def _retry_after(header: str | None) -> float:
    """Seconds that a server asks to wait; 0 if it names none (or a date)."""
    try:
        return float(header or 0)
    except ValueError:
        return 0.0
