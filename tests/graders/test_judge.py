"""The judge against a real HTTP server on loopback that fails in every way that servers fail."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from xtf.config.schema import JudgeConfig, TaskConfig
from xtf.data.examples import Example
from xtf.graders import judge as module
from xtf.graders.base import Grade, Item
from xtf.graders.judge import JudgeGrader
from xtf.tasks import load_task

pytest.importorskip("openai", reason="the extra `judge` is not installed")

Answer = Callable[["Handler", int], None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append({"path": self.path, "key": self.headers["Authorization"], **body})
            count = sum(request["messages"] == body["messages"] for request in self.server.requests)
            self.server.busy += 1
            self.server.busiest = max(self.server.busiest, self.server.busy)
        try:
            self.server.answer(self, count)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def reply(self, content: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def say(self, text: str | None) -> None:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.reply({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.busy = self.busiest = 0
        self.answer: Answer = lambda handler, _: handler.say("Yes.")

    def handle_error(self, *_: Any) -> None:  # a client that gave up waiting
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def config(server: Server, monkeypatch: pytest.MonkeyPatch) -> JudgeConfig:
    monkeypatch.setenv("TEST_KEY", "sk-test")
    monkeypatch.setattr(module, "BACKOFF_SECONDS", 0.01)
    return JudgeConfig(
        base_url=f"http://127.0.0.1:{server.server_port}/v1",
        model="judge-1",
        api_key_env="TEST_KEY",
        retries=3,
        timeout_seconds=30.0,
    )


def items(*answers: str) -> list[Item]:
    question = Example("1", ({"role": "user", "content": "Capital of France?"},), "Paris", {})
    return [Item(question, answer, "Paris") for answer in answers]


def test_the_judge_sees_question_reference_and_answer_at_temperature_zero(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    server.answer = lambda handler, _: handler.say("no" if "Rome" in str(server.requests[-1]) else "**Yes**, it does.")
    grades = JudgeGrader(replace(config, concurrency=1), tmp_path).grade(items("It is Paris.", "Rome", ""))
    assert [grade.correct for grade in grades] == [True, False, False]
    assert grades[0] == Grade(True, "It is Paris.", "**Yes**, it does.")
    assert grades[2] == Grade(False, None, "empty answer")
    request = server.requests[0]
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer sk-test")
    assert (request["model"], request["temperature"]) == ("judge-1", 0)
    (message,) = request["messages"]
    assert all(part in message["content"] for part in ("Capital of France?", "Paris", "It is Paris."))
    assert len(server.requests) == 2  # the empty answer needed no judge


def test_verdicts_are_kept_on_disk_by_content(server: Server, config: JudgeConfig, tmp_path: Path) -> None:
    first = JudgeGrader(config, tmp_path).grade(items("Paris", "Paris", "Rome"))
    assert len(server.requests) == 2  # the same answer is asked about once
    again = JudgeGrader(config, tmp_path)
    assert again.grade(items("Paris", "Rome")) == first[1:] and len(server.requests) == 2
    assert again.system_info()["verdicts_from_cache"] == 2 and again.system_info()["requests"] == 0
    JudgeGrader(replace(config, model="judge-2"), tmp_path).grade(items("Paris"))
    assert len(server.requests) == 3
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"verd')  # cut off by a machine that went down
    assert JudgeGrader(config, tmp_path).grade(items("Paris"))[0].correct is True and len(server.requests) == 4
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"verdict": false, "reply": "yas"}')  # damaged
    assert JudgeGrader(config, tmp_path).grade(items("Paris"))[0].correct is True and len(server.requests) == 5


FAULTS: dict[str, Answer] = {
    "rate limit": lambda handler, _: handler.reply({"error": {"message": "slow down"}}, 429, Retry_After="0.02"),
    "server error": lambda handler, _: handler.reply("oops", 503, "text/plain"),
    "a page instead of JSON": lambda handler, _: handler.reply("<html>login</html>", kind="text/html"),
    "JSON cut short": lambda handler, _: handler.reply('{"choices": ['),
    "no choices": lambda handler, _: handler.reply({"choices": []}),
    "choices as an object": lambda handler, _: handler.reply({"choices": {"a": 1}}),
    "choices as a text": lambda handler, _: handler.reply({"choices": "yes"}),
    "a choice that is null": lambda handler, _: handler.reply({"choices": [None]}),
    "a message that is null": lambda handler, _: handler.reply({"choices": [{"message": None}]}),
    "a message that is a text": lambda handler, _: handler.reply({"choices": [{"message": "yes"}]}),
    "no number": lambda handler, _: handler.reply('{"choices": NaN}'),
    "a body that is nested too deeply": lambda handler, _: handler.reply("[" * 100_000),
    "no content": lambda handler, _: handler.say(None),
    "disconnect": lambda handler, _: handler.connection.close(),
    "a line of noise": lambda handler, _: (
        handler.wfile.write(b"\x00\xff garbage\r\n\r\n"),
        handler.connection.close(),
    )[0],
    "time-out": lambda handler, _: time.sleep(1.5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_retried_and_one_that_stays_gives_no_verdict(
    server: Server, config: JudgeConfig, tmp_path: Path, fault: str
) -> None:
    def twice(handler: Handler, count: int) -> None:
        FAULTS[fault](handler, count) if count <= 2 else handler.say("yes")

    config = replace(config, timeout_seconds=1.0 if fault == "time-out" else 30.0)
    server.answer = twice
    (grade,) = JudgeGrader(config, tmp_path).grade(items("Paris"))
    assert grade.correct is True and len(server.requests) == 3

    server.answer = FAULTS[fault]
    (grade,) = JudgeGrader(config, tmp_path).grade(items("Rome"))
    assert grade.correct is None and "no verdict" in grade.reason and "4 attempts" in grade.reason
    assert len(server.requests) == 3 + 4
    assert len(list(tmp_path.rglob("*.json"))) == 1  # a failure is not kept


def test_a_reply_that_trickles_in_ends_with_the_time_of_a_request(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    def trickle(handler: Handler, _: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.end_headers()
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.1)

    server.answer = trickle
    start = time.monotonic()
    (grade,) = JudgeGrader(replace(config, retries=0, timeout_seconds=0.5), tmp_path).grade(items("Paris"))
    assert grade.correct is None and "did not end within 0.5 s" in grade.reason
    assert time.monotonic() - start < 5


def test_a_reply_without_end_is_not_kept_in_memory(server: Server, config: JudgeConfig, tmp_path: Path) -> None:
    server.answer = lambda handler, _: handler.say("yes" * (1 << 20))
    (grade,) = JudgeGrader(config, tmp_path).grade(items("Paris"))
    assert grade.correct is None and "longer than 1048576 bytes" in grade.reason


def test_half_a_character_in_a_reply_does_not_end_the_grading(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    server.answer = lambda handler, _: handler.reply('{"choices": [{"message": {"content": "Yes. \\ud800"}}]}')
    (grade,) = JudgeGrader(config, tmp_path).grade(items("Paris"))
    assert grade.correct is True and grade.reason == "Yes. ?"


def test_an_address_key_or_folder_that_cannot_be_used_is_refused_before_training(
    config: JudgeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"task\.judge\.base_url=localhost:8000 is no address"):
        JudgeGrader(replace(config, base_url="localhost:8000"), tmp_path).check()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be kept at task\.judge\.cache="):
        JudgeGrader(config, tmp_path / "file").check()
    monkeypatch.setenv("TEST_KEY", "sk-test\n")
    with pytest.raises(ValueError, match="the key in TEST_KEY has characters that no key has"):
        JudgeGrader(config, tmp_path).check()


def test_an_unclear_reply_is_no_verdict_and_is_not_asked_again_in_vain(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    server.answer = lambda handler, _: handler.say("It depends: yes or no.")
    (grade,) = JudgeGrader(config, tmp_path).grade(items("Paris"))
    assert grade.correct is None and "neither yes nor no" in grade.reason
    assert len(server.requests) == 1 and not list(tmp_path.rglob("*.json"))


def test_a_request_that_the_judge_refuses_concerns_that_item_only(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    def refuse_long(handler: Handler, count: int) -> None:
        long = len(str(server.requests[-1])) > 5000
        handler.reply({"error": {"message": "context length"}}, 400) if long else handler.say("yes")

    server.answer = refuse_long
    grades = JudgeGrader(replace(config, concurrency=1), tmp_path).grade(items("x" * 9000, "Paris"))
    assert [grade.correct for grade in grades] == [None, True]
    assert "context length" in grades[0].reason and len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_stops_the_grading(
    server: Server, config: JudgeConfig, tmp_path: Path, status: int
) -> None:
    server.answer = lambda handler, _: handler.reply({"error": {"message": "nope"}}, status)
    with pytest.raises(ValueError, match=r"refuses every request.*nope.*task\.judge\.base_url=.*api_key_env=TEST_KEY"):
        JudgeGrader(config, tmp_path).grade(items("Paris"))


def test_the_cap_on_requests_counts_retries_and_leaves_the_rest_without_verdict(
    server: Server, config: JudgeConfig, tmp_path: Path
) -> None:
    server.answer = lambda handler, count: handler.reply("", 500) if count == 1 else handler.say("yes")
    grades = JudgeGrader(replace(config, max_requests=4, concurrency=1), tmp_path).grade(items("a", "b", "c"))
    assert [grade.correct for grade in grades] == [True, True, None]
    assert "max_requests=4" in grades[2].reason and len(server.requests) == 4


def test_no_more_requests_run_at_once_than_allowed(server: Server, config: JudgeConfig, tmp_path: Path) -> None:
    three = threading.Barrier(3, timeout=60)

    def wait_for_two_others(handler: Handler, _: int) -> None:
        three.wait()
        handler.say("yes")

    server.answer = wait_for_two_others
    grades = JudgeGrader(replace(config, concurrency=3, timeout_seconds=60.0), tmp_path).grade(
        items(*map(str, range(12)))
    )
    assert all(grade.correct for grade in grades) and server.busiest == 3


def test_failed_verdicts_are_counted_and_never_wrong(server: Server, config: JudgeConfig, tmp_path: Path) -> None:
    server.answer = lambda handler, _: handler.say("maybe" if "third" in str(server.requests[-1]) else "yes")
    judge = JudgeGrader(replace(config, concurrency=1), tmp_path)
    metrics = judge.metrics([""] * 3, [[grade] for grade in judge.grade(items("first", "second", "third"))])
    assert (metrics["accuracy"].value, metrics["accuracy"].n) == (1.0, 2)
    assert metrics["ungraded"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "task.judge.model"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
        ({"api_key_env": "", "base_url": None}, "neither an endpoint nor a key"),
        ({"prompt": "Right?"}, "must show the judge both"),
        ({"prompt": "{reference} {answer} {gold}"}, "only {question}, {reference}, {answer}: field 'gold' is missing"),
        ({"prompt": "{question.__class__} {reference} {answer}"}, "no attributes"),
        ({"prompt": "{question:>99999999999} {reference} {answer}"}, "is wider than 999 characters"),
        ({"prompt": "{question[a]} {reference} {answer}"}, "task.judge.prompt reads only"),
        ({"prompt": "{question:{answer}} {reference}"}, "task.judge.prompt reads only"),
        ({"prompt": "{} {reference} {answer}"}, "task.judge.prompt reads only"),
    ],
)
def test_a_judge_that_cannot_be_reached_is_refused_before_training(
    config: JudgeConfig, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    task = load_task(TaskConfig(name="finance", grader="judge", judge=replace(config, **change)), str(tmp_path))
    with pytest.raises(ValueError) as raised:
        task.check()
    assert message in str(raised.value)


def test_an_own_endpoint_without_a_key_is_allowed(server: Server, config: JudgeConfig, tmp_path: Path) -> None:
    judge = JudgeGrader(replace(config, api_key_env=""), tmp_path)
    judge.check()
    assert judge.grade(items("Paris"))[0].correct is True


def test_a_kept_verdict_that_is_damaged_is_named_and_asked_for_again(
    server: Server, config: JudgeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    JudgeGrader(config, tmp_path).grade(items("Paris"))
    (path,) = tmp_path.rglob("*.json")
    path.write_text(re.sub(r'"reply": "[^"]*"', '"reply": "no"', path.read_text()))
    assert JudgeGrader(config, tmp_path).grade(items("Paris"))[0].correct is True and len(server.requests) == 2
    assert f"{path.name} is damaged" in "".join(capsys.readouterr().out.split("\n")).replace("  ", " ")
    JudgeGrader(config, tmp_path).grade(items("Paris"))
    assert len(server.requests) == 2
