"""The model that lmms-eval asks, by its contract: lmms-eval itself is not among the libraries of the tests."""

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from fusionkit.api import lmms_eval
from fusionkit.api.lmms_eval import Adapter, until
from fusionkit.errors import ConfigError, DataError


class Echo:
    batch_size = 1

    def answer(self, images: list[Any], texts: list[str], by: str | None = None) -> list[str]:
        return [
            f"{text}|{len(each) if isinstance(each, list) else 1}\nmore"
            for each, text in zip(images, texts, strict=True)
        ]


def asked(monkeypatch: pytest.MonkeyPatch, shown: Any, prompt: str = "what?") -> list[str]:
    monkeypatch.setattr(lmms_eval, "load", lambda *_: Echo())
    adapter = Adapter("run", batch_size="1")
    adapter.task_dict = {"t": {"test": [shown]}}
    adapter.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
    return adapter.generate_until(
        [SimpleNamespace(args=(prompt, {"until": ["\n"]}, lambda doc: doc, 0, "t", "test"))] * 70
    )


def test_replies_come_in_order_and_end_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (4, 4))
    assert asked(monkeypatch, [picture], "<image> what?") == ["what?|1"] * 70
    assert asked(monkeypatch, [picture, picture], "<image><image> what?") == ["<image><image> what?|2"] * 70
    assert until(" a. b ", {"until": "."}) == "a"
    assert until("a", {}) == "a"


@pytest.mark.parametrize("shown", [None, [], ["film.mp4"]])
def test_what_shows_no_picture_is_told(monkeypatch: pytest.MonkeyPatch, shown: Any) -> None:
    with pytest.raises(DataError, match="task t: document 0 of test shows"):
        asked(monkeypatch, shown)


def test_mistakes_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no 'chekpoint'"):
        Adapter("run", chekpoint="x")
    with pytest.raises(ConfigError, match="ask is nope"):
        Adapter("run", ask="nope")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        Adapter("run")
