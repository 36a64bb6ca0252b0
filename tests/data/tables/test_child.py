"""Work on a stranger's file in a process of its own, which ends where it takes too much."""

import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from fusionkit.data.tables.child import CAN_FORK, Bounds, Exceeded, in_child
from fusionkit.data.texts import chat
from fusionkit.data.texts.chat import ChatTemplate
from fusionkit.data.texts.conversations import Conversation
from fusionkit.errors import ConfigError, DataError
from tests.data.chat_templates import CHATML
from tests.data.test_chat import tokenizer_of

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes have no bounds here")
HERE = os.getpid()
FEW = Bounds(seconds=1, waited=30)


@pytest.mark.parametrize(
    ("work", "bounds"),
    [
        (lambda: bytearray(2**31), FEW),
        (lambda: any(iter(int, 1)), FEW),  # one step of Python's
        (lambda: time.sleep(60), Bounds(waited=0.2)),
    ],
)
def test_what_takes_too_much_is_ended(work: Callable[[], Any], bounds: Bounds) -> None:
    start = time.monotonic()
    with pytest.raises(Exceeded, match=f"more than {bounds.seconds} seconds, or 1 GiB of memory"):
        in_child(work, bounds)
    assert time.monotonic() - start < 25


def test_what_stays_within_its_bounds_is_given() -> None:
    def busy() -> int:
        while time.process_time() < 0.5:
            pass
        return len(bytearray(2**29))

    assert in_child(busy, FEW) == 2**29


def test_a_wider_bound_that_the_process_has_already_is_none_of_the_works() -> None:
    def is_ended() -> bool:
        resource.setrlimit(resource.RLIMIT_AS, (2**45, 2**45))
        try:
            return in_child(lambda: not bytearray(2**31), FEW)
        except Exceeded:
            return True

    assert in_child(is_ended)  # a process of its own, as no limit can be taken back


def test_a_process_with_many_open_files_waits_too() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1100, hard))
    with ExitStack() as files:
        files.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while files.enter_context(open(os.devnull, "rb")).fileno() < 1030:
            pass
        assert in_child(lambda: 7, FEW) == 7


def test_other_ends_are_the_works_own() -> None:
    def told() -> None:
        raise DataError("a sentence")

    def failing() -> None:
        raise KeyError(os.getpid())

    with pytest.raises(DataError, match="a sentence"):
        in_child(told, FEW)
    with pytest.raises(KeyError, match=str(HERE)):
        in_child(failing, FEW)


HOSTILE = {
    "memory": "{% set n = messages|length %}{% set x = ('a' * (n * 2**29))|length %}",
    "constant": "{% set x = ('a' * 2**31)|length %}",  # which is made when the template is compiled
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one step": "{% set x = ([range(99999)|list] * 2000)|sum(start=[])|length %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_takes_too_much_is_told_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "Bounds", lambda: FEW)
    with pytest.raises(
        ConfigError, match=r"chat template of tokenizer=: the template takes more than 1 seconds, or 1 GiB"
    ):
        ChatTemplate(tokenizer_of("words", HOSTILE[name] + CHATML))


@pytest.mark.parametrize(("own", "given", "expected"), [(None, None, 0), (CHATML, None, 1), (None, CHATML, 1)])
def test_strangers_templates_alone_are_tried_in_a_process_of_their_own(
    own: str | None, given: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = list[Any]()
    monkeypatch.setattr(chat, "in_child", lambda work, bound: bounds.append(bound) or work())
    ChatTemplate(tokenizer_of("words", own), given)
    assert bounds == [Bounds()] * expected


def test_a_template_without_an_end_to_its_words() -> None:
    tokenizer = tokenizer_of("words", CHATML + "{{ 'a' * 2**20 }}")
    with pytest.raises(ConfigError, match=r"the template makes 1,048,\d+ characters of a conversation"):
        ChatTemplate(tokenizer)
    long = Conversation(("user", "assistant"), ("word " * 2**18, "b"))
    ChatTemplate(tokenizer, CHATML).write(long, "1")
