"""The settings of a source are of the kinds they have to be, or one sentence with their key."""

from typing import Any

import pytest

from fusionkit.data.source import Source
from fusionkit.errors import ConfigError

GOOD: dict[str, Any] = {"splits": {"train": ("a",), "val": []}, "batch_size": 1, "texts_per_image": {"captions": 1}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"splits": "train"}, "splits is 'train', but has to be a section of keys"),
        ({"texts_per_image": 2}, "texts_per_image is 2, but has to be a section of keys"),
        ({"texts_per_image": {"captions": None}}, "texts_per_image.captions is None, but has to be a whole number"),
        ({"texts_per_image": {"a": 1, "captions": "1"}}, "texts_per_image.captions is '1', but has to be a whole"),
        ({"texts_per_image": {"captions": True}}, "texts_per_image.captions is True, but has to be a whole number"),
        ({"texts_per_image": {"a": 0, "captions": -1}}, "texts_per_image.captions is -1, but has to be a number of texts"),
        ({"batch_size": 1.5}, "batch_size is 1.5, but has to be a whole number"),
        ({"shuffle_window": 0}, "shuffle_window is 0, but has to be a number of images, or null"),
        ({"shuffle_window": 1.5}, "shuffle_window is 1.5, but has to be a whole number"),
        ({"max_length": None}, "max_length is None, but has to be a whole number"),
        ({"max_length": 2}, "max_length is 2, but has to be at least 3"),
        ({"batch_size": 0}, "batch_size is 0, but has to be at least 1"),
        ({"splits": {"train": "a"}}, "splits.train is 'a', but has to be a list: [a]"),
        ({"splits": {"train": 5}}, "splits.train is 5, but has to be a list of names"),
        ({"splits": {"train": ["a"], "val": ["a", 1e308]}}, "splits.val is ['a', 1e+308], but has to be a list of names"),
        ({"splits": {"train": {"a": 1}}}, "splits.train is {'a': 1}, but has to be a list of names"),
        ({"chat_template": 5}, "chat_template is 5, but has to be a text in Jinja, or null"),
        ({"chat_template": {"a": "b"}}, "chat_template is {'a': 'b'}, but has to be a text in Jinja, or null"),
        ({"texts_per_image": {}}, "texts_per_image asks for no texts"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Source(None, **GOOD | change).check("x")  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"x.{words}")


@pytest.mark.parametrize("change", [{}, {"max_length": 3}, {"texts_per_image": {"captions": 1, "questions": 0}}])
def test_what_can_work_passes(change: dict[str, Any]) -> None:
    Source(None, **GOOD | change).check("x")  # type: ignore[arg-type]
