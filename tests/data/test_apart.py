"""Work in a process of its own: its results and errors, and its end where it takes too much."""

import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

from fusionkit.data.tables.child import CAN_FORK
from fusionkit.data.texts import apart
from fusionkit.data.texts.apart import Apart, Exceeded
from fusionkit.data.texts.chat import ChatTemplate
from fusionkit.data.texts.conversations import Conversation
from fusionkit.errors import ConfigError, DataError
from tests.data.chat_templates import CHATML, TEMPLATES
from tests.data.test_chat import of_family, talk, tokenizer_of

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="processes have no bounds here")


def double(number: Any) -> Any:
    if number < 0:
        raise DataError("below 0")
    return 2 * number


def test_results_come_from_one_other_process() -> None:
    who = Apart(lambda _: os.getpid())
    assert Apart(double)([3, 4]) == [6, 8]
    (first,), (second,) = who([0]), who([0])
    assert first == second != os.getpid()
    who.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert who([0]) != [first]


def test_errors_are_those_of_the_work() -> None:
    doubled = Apart(double)
    with pytest.raises(DataError, match="below 0"):
        doubled([1, -1])
    with pytest.raises(TypeError):
        doubled(["a"])
    assert doubled([1]) == [2]  # and it goes on


def test_a_forgotten_one_ends_its_process() -> None:
    who = Apart(lambda _: os.getpid())
    (process,) = who([0])
    del who
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_another_process_has_one_of_its_own() -> None:
    who = Apart(lambda _: (os.getpid(), os.getppid()))
    ((first, _),) = who([0])
    read_end, write_end = os.pipe()
    if not (fork := os.fork()):
        os.write(write_end, repr(who([0])[0]).encode())
        os._exit(0)
    os.waitpid(fork, 0)
    second, parent = eval(os.read(read_end, 100))
    assert first != second
    assert parent == fork
    assert who([0])[0][0] == first  # which the other has not ended
    again = pickle.loads(pickle.dumps(Apart(double)))
    assert again([2]) == [4]


@pytest.mark.parametrize(
    "work",
    [
        lambda _: bytearray(2**31),
        lambda _: any(iter(int, 1)),  # one step of Python's
        lambda _: os._exit(3),
    ],
)
def test_what_takes_too_much_is_ended(work: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 1)
    with pytest.raises(Exceeded, match="more than 1 seconds, or 1 GiB of memory"):
        Apart(work)([0])


def test_the_time_is_that_of_one_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 1)

    def busy(_: Any) -> None:
        start = time.process_time()
        while time.process_time() < start + 0.8:
            pass

    assert Apart(busy)([0] * 4) == [None] * 4


HOSTILE = {
    "memory": "{% set n = messages|length %}{% set x = ('a' * (n * 2**29))|length %}",
    "constant": "{% set x = ('a' * 2**31)|length %}",  # which is made when the template is compiled
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one step": "{% set x = ([range(99999)|list] * 2000)|sum(start=[])|length %}",
    "later": "{% if messages|length > 4 %}{% for a in range(99999) %}{% for b in range(99999) %}"
    + "{% endfor %}" * 2
    + "{% endif %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_takes_too_much_is_told_in_a_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SECONDS", 1)
    tokenizer = tokenizer_of("words", HOSTILE[name] + CHATML)
    with pytest.raises(
        ConfigError, match=r"chat template of tokenizer=: the template takes more than 1 seconds, or 1 GiB"
    ):
        ChatTemplate(tokenizer).spell([(1, talk("a", "b", "a", "b", "a", "b"))], 100)
    assert ChatTemplate(tokenizer, CHATML).spell([(1, talk("a", "b"))], 100)


def test_a_template_without_an_end_to_its_words() -> None:
    tokenizer = tokenizer_of("words", CHATML + "{{ 'a' * 2**20 }}")
    with pytest.raises(ConfigError, match=r"the template makes 1,048,\d+ characters of a conversation"):
        ChatTemplate(tokenizer)
    long = Conversation(("user", "assistant"), ("word " * 2**18, "b"))
    ChatTemplate(tokenizer, CHATML).write(long, "1")


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_template_goes_on_in_the_process_that_it_is_sent_to(family: str) -> None:
    chat = ChatTemplate(of_family(family, "bytes")[0])
    rows = [(1, talk("what?", "a dog", "where?", "there")), (2, talk("a", "b"))]
    assert pickle.loads(pickle.dumps(chat)).spell(rows, 100) == chat.spell(rows, 100)
