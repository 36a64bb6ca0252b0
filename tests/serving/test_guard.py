"""Who may ask, how much and how slowly: an application of any kind behind the guard."""

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from fusionkit.serving.guard import LOOPBACK, Guard
from fusionkit.serving.limits import Limits
from fusionkit.serving.metrics import Metrics
from fusionkit.serving.problems import Problem

JSON = [(b"host", b"localhost:8000"), (b"content-type", b"application/json")]


class Talk:
    """One request to a guard: what is sent to it, one message after the other, and what comes back."""

    def __init__(self, method: str = "POST", path: str = "/v1/match", headers: Any = JSON, kind: str = "http") -> None:
        self.scope = {"type": kind, "method": method, "path": path, "headers": list(headers)}
        self.messages: asyncio.Queue[Any] = asyncio.Queue()
        self.received = 0
        self.said: list[Any] = []

    def give(self, body: bytes = b"{}", more: bool = False) -> "Talk":
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    async def receive(self) -> Any:
        self.received += 1
        return await self.messages.get()

    async def send(self, message: Any) -> None:
        self.said.append(message)

    @property
    def status(self) -> int:
        return int(self.said[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.said[0]["headers"]}

    @property
    def error(self) -> str:
        return str(json.loads(self.said[1]["body"])["error"])


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"] if scope["method"] == "POST" else b"got"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def guard(app: Any = echo, hosts: Any = LOOPBACK, **limits: Any) -> Guard:
    return Guard(app, hosts, Limits(**limits), Metrics(), lambda path: "kind")


def go(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


async def ask(guarded: Guard, talk: Talk) -> Talk:
    await guarded(talk.scope, talk.receive, talk.send)
    return talk


def test_what_is_right_passes_with_our_headers() -> None:
    talk = go(ask(guard(), Talk().give(b"ab", more=True).give(b"c")))
    assert (talk.status, talk.said[1]["body"]) == (200, b"abc")
    assert talk.headers["content-type"] == "text/plain"
    assert talk.headers["x-content-type-options"] == "nosniff"
    assert talk.headers["x-frame-options"] == "DENY"
    policy = talk.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize(
    ("host", "hosts", "is_right"),
    [
        ("localhost", LOOPBACK, True),
        ("LOCALHOST:1", LOOPBACK, True),
        ("127.0.0.1:8000", LOOPBACK, True),
        ("[::1]:8000", LOOPBACK, True),
        ("[::1]", LOOPBACK, True),
        ("evil.com", LOOPBACK, False),
        ("evil.com:8000", LOOPBACK, False),
        ("localhost.evil.com", LOOPBACK, False),
        ("127.0.0.1.evil.com:80", LOOPBACK, False),
        ("", LOOPBACK, False),
        (":8000", LOOPBACK, False),
        ("My.Machine:8000", ["my.machine"], True),
        ("localhost", ["my.machine"], False),
        ("anything", ["*"], True),
        ("", ["*"], False),
    ],
)
def test_only_its_own_names_are_answered(host: str, hosts: Any, is_right: bool) -> None:
    for path in ("/", "/health"):
        talk = go(ask(guard(hosts=hosts), Talk("GET", path, [(b"host", host.encode())])))
        assert talk.status == (200 if is_right else 421)


def test_two_names_or_none_are_no_name() -> None:
    for headers in ([], [(b"host", b"localhost"), (b"host", b"localhost")]):
        assert go(ask(guard(), Talk("GET", "/", headers))).status == 421


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:8000", 200), ("http://evil.com", 403), ("null", 403)]
)
def test_pages_of_others_are_not_answered(origin: str, status: int) -> None:
    assert go(ask(guard(), Talk(headers=[*JSON, (b"origin", origin.encode())]).give())).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([JSON[0]], 415),
        ([JSON[0], (b"content-type", b"text/plain")], 415),
        ([JSON[0], (b"content-type", b"Application/JSON ; charset=utf-8")], 200),
        ([*JSON, (b"content-encoding", b"gzip")], 415),
        ([*JSON, (b"content-encoding", b"identity")], 200),
        ([*JSON, (b"content-length", b"1048577")], 413),
        ([*JSON, (b"content-length", b"1048576")], 200),
        ([*JSON, (b"content-length", b"9" * 400)], 413),
    ],
)
def test_what_the_head_says_is_looked_at_before_the_body(headers: Any, status: int) -> None:
    talk = go(ask(guard(max_body_mb=1), Talk(headers=headers).give()))
    assert talk.status == status
    assert talk.received == (status == 200)
    if status == 413:
        assert talk.headers["connection"] == "close"


def test_a_body_without_a_length_is_bounded_too() -> None:
    talk = Talk()
    for _ in range(3):
        talk.give(b"x" * 2**19, more=True)
    guarded = guard(max_body_mb=1)
    go(ask(guarded, talk))
    assert (talk.status, talk.received) == (413, 3)
    assert guarded.held == guarded.open == 0


@pytest.mark.parametrize(("size", "status"), [(2**20, 200), (2**20 + 1, 413)])
def test_a_body_may_be_as_large_as_is_said(size: int, status: int) -> None:
    assert go(ask(guard(max_body_mb=1), Talk().give(b"x" * size))).status == status


def test_a_body_that_never_ends_is_given_up() -> None:
    talk = go(ask(guard(body_seconds=0.01), Talk().give(b"{", more=True)))
    assert (talk.status, talk.headers["connection"]) == (408, "close")


def test_a_client_that_goes_away_in_its_body_is_forgotten() -> None:
    talk = Talk().give(b"{", more=True)
    talk.messages.put_nowait({"type": "http.disconnect"})
    guarded = guard()
    go(ask(guarded, talk))
    assert talk.said == []
    assert guarded.held == guarded.open == 0


def test_too_many_open_requests_are_refused_before_their_bodies_are_read() -> None:
    async def crowd() -> None:
        guarded = guard(max_queue=1, max_batch=1)
        waiting = [asyncio.ensure_future(ask(guarded, talk := Talk().give(b"{", more=True))) for _ in range(3)]
        while guarded.held < 3:
            await asyncio.sleep(0)
        talk = await ask(guarded, Talk().give())
        assert (talk.status, talk.received, talk.headers["retry-after"]) == (429, 0, "1")
        assert (await ask(guarded, Talk("GET", "/health"))).status == 200
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert guarded.open == guarded.held == 0
        assert (await ask(guarded, Talk().give())).status == 200

    go(crowd())


def test_the_bodies_of_all_together_are_bounded() -> None:
    guarded = guard(max_body_mb=1)
    guarded.held = 16 * 2**20 - 1
    talk = go(ask(guarded, Talk().give(b"{}")))
    assert talk.status == 429
    assert guarded.held == 16 * 2**20 - 1
    assert go(ask(guarded, Talk().give(b"{"))).status == 200


def test_while_it_stops_nothing_new_is_taken() -> None:
    guarded = guard()
    guarded.is_draining = True
    talk = go(ask(guarded, Talk().give()))
    assert (talk.status, talk.headers["connection"], talk.received) == (503, "close", 0)
    assert go(ask(guarded, Talk("GET", "/metrics"))).status == 200


def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(message: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("fusionkit.serving.guard.STREAM_SECONDS", 0.0)
    talk, guarded = Talk("GET", "/"), guard(body_seconds=0.01)
    talk.send = stuck  # type: ignore[method-assign]
    go(ask(guarded, talk))
    assert guarded.open == 0


def test_failures_are_a_sentence_or_a_broken_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("secret words")

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        raise Problem(418, "no", {"X-Why": "tea"})

    talk = go(ask(guard(fails), Talk("GET", "/")))
    assert (talk.status, talk.error) == (500, "the service failed on this request")
    assert len(go(ask(guard(fails), Talk("GET", "/late"))).said) == 1
    talk = go(ask(guard(refuses), Talk("GET", "/")))
    assert (talk.status, talk.error, talk.headers["x-why"]) == (418, "no", "tea")
    assert "ZeroDivisionError at " in caplog.text
    assert "secret" not in caplog.text


def test_one_line_a_request_without_its_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fusionkit.serving")
    guarded = guard()
    go(ask(guarded, Talk(path="/v1/secret").give(b'{"text": "secret"}')))
    go(ask(guarded, Talk("BREW\n", "/")))
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[:3] for line in lines] == [["POST", "kind", "200"], ["?", "kind", "200"]]
    text = guarded.metrics.text().decode()
    assert 'fusionkit_requests_total{kind="kind",status="200"} 2.0' in text
    assert 'fusionkit_request_seconds_count{kind="kind"} 2.0' in text
    assert "fusionkit_open_requests 0.0" in text


def test_what_is_no_request_of_http() -> None:
    talk = go(ask(guard(), Talk(kind="websocket")))
    assert talk.said == [{"type": "websocket.close", "code": 1008}]
