"""Every kind of wrong request is one sentence with its status; nothing of it is repeated at length."""

import json
from typing import Any

import pytest

from fusionkit.errors import ConfigError
from fusionkit.serving.limits import Limits
from fusionkit.serving.problems import Problem
from fusionkit.serving.reading import read_asked
from fusionkit.serving.schemas import Answer, Embed, Match, Search

LIMITS = Limits()
TURN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("body", "schema", "status", "told"),
    [
        (b"", Match, 400, "no JSON"),
        (b'{"image": "a", "text": ', Match, 400, "no JSON"),
        (b"\xff\xfe", Match, 400, "UTF-8"),
        (b"[1]", Match, 422, "this one is a list"),
        (b"7", Match, 422, "this one is a number"),
        (b"null", Match, 422, "this one is null"),
        (b'"a"', Match, 422, "this one is a text"),
        (b'{"image": NaN}', Match, 422, "NaN in the place of a number"),
        (b'{"weight": -Infinity, "text": "a"}', Search, 422, "-Infinity"),
        (b'{"weight": 1e999, "text": "a"}', Search, 422, "too large"),
        (b'{"weight": 0.' + b"1" * 5000 + b"}", Search, 422, "too long"),
        (b'{"top": ' + b"9" * 400 + b', "text": "a"}', Search, 422, "400 digits"),
        (b'{"weight": ' + b"9" * 400 + b', "text": "a"}', Search, 422, "400 digits"),
        (b'{"top": ' + b"9" * 5000 + b"}", Search, 422, "5,000 digits"),
        (b'{"text": "a", "weight": 1' + b"0" * 14 + b"}", Search, 422, "'weight' of the request is wrong"),
        (b'{"top": 101, "text": "a"}', Search, 422, "top is 101, but is at most 100"),
        (b'{"k": 101, "text": "a"}', Search, 422, "k is 101"),
        (b'{"top": 0, "text": "a"}', Search, 422, "'top' of the request is wrong"),
        (b'{"top": -1, "text": "a"}', Search, 422, "'top'"),
        (b'{"top": 1.5, "text": "a"}', Search, 422, "'top'"),
        (b'{"top": true, "text": "a"}', Search, 422, "'top'"),
        (b'{"top": "3", "text": "a"}', Search, 422, "'top'"),
        (b"[" * 5000, Match, 400, "nested"),
        (b'{"a":' * 4000, Match, 400, "nested"),
        (b"[" * 100_000, Match, 413, "more parts than 6,000"),
        (b"[" + b"0," * 500_000, Match, 413, "more parts"),
        (b"[" + b"{}," * 3001, Match, 413, "more parts"),
        (b'{"image": "a"}', Match, 422, "no 'text'; add it"),
        (b'{"image": "a", "text": ""}', Match, 422, "'text' of the request is wrong"),
        (b'{"image": "a", "text": 7}', Match, 422, "'text'"),
        (b'{"image": "a", "txet": "b"}', Match, 422, "'txet' that is not known; did you mean 'text'?"),
        (b'{"url": "http://x", "text": "b"}', Match, 422, "'url' that is not known"),
        (b'{"image": "a", "text": "' + b"x" * 4001 + b'"}', Match, 422, "4,001 characters"),
        (json.dumps({"messages": [TURN] * 33}).encode(), Answer, 422, "33 messages, but may have 32"),
        (json.dumps({"images": ["a"] * 9, "question": "x"}).encode(), Answer, 422, "9 images, but may have 8"),
        (json.dumps({"messages": [TURN | {"content": "x" * 2001}] * 2}).encode(), Answer, 422, "4,002 characters"),
        (json.dumps({"messages": [TURN | {"rolle": "x"}]}).encode(), Answer, 422, "'rolle'.*did you mean 'role'"),
        (json.dumps({"messages": [{"role": "user"}]}).encode(), Answer, 422, "no 'messages.0.content'"),
        (json.dumps({"messages": []}).encode(), Answer, 422, "'messages'"),
        (json.dumps({"images": "a"}).encode(), Answer, 422, "'images'"),
        (json.dumps({"x" * 10_000: 1}).encode(), Embed, 422, "'x{60}' that"),
    ],
)
def test_a_mistake_is_a_sentence(body: bytes, schema: Any, status: int, told: str) -> None:
    with pytest.raises(Problem, match=told) as refused:
        read_asked(body, schema, LIMITS)
    assert refused.value.status == status
    assert len(refused.value.sentence) < 510
    assert "\n" not in refused.value.sentence


def test_what_is_right_is_read() -> None:
    asked = read_asked(b'{"text": "a, b", "weight": 1, "top": 100}', Search, LIMITS)
    assert (asked.text, asked.weight, asked.top, asked.k, asked.image) == ("a, b", 1.0, 100, 64, None)
    turns = read_asked(json.dumps({"image": "a", "messages": [TURN] * 32}).encode(), Answer, LIMITS)
    assert turns.messages is not None
    assert len(turns.messages) == 32
    assert read_asked(json.dumps({"image": "a", "text": "x" * 4000}).encode(), Match, LIMITS).text == "x" * 4000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("max_queue", 0),
            ("max_queue", 1.5),
            ("max_queue", True),
            ("wait_ms", -1),
            ("timeout_seconds", float("nan")),
        ),
        *(("max_body_mb", 0), ("drain_seconds", float("inf")), ("readers", "2"), ("max_top", 10**10)),
    ],
)
def test_a_bound_that_is_none_is_a_sentence(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is "):
        Limits(**{name: value})
    assert Limits(wait_ms=0, max_megapixels=1).pixels == 1_000_000


def test_bounds_that_follow() -> None:
    limits = Limits(max_body_mb=2, max_queue=5, max_batch=3, max_characters=10)
    assert (limits.body_bytes, limits.held_bytes) == (2 * 2**20, 32 * 2**20)
    assert (limits.open_requests, limits.parts) == (13, 2010)
