"""One spelling of each letter, no broken characters; names of metrics that tell kinds apart in any script."""

import unicodedata

import pytest

from fusionkit.data.files import expecting
from fusionkit.data.sample import Text
from fusionkit.errors import DataError
from fusionkit.files.unicode import MAX_CHARACTERS, BadText, LongText, metric_words, readable


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a cat", "a cat"),
        (unicodedata.normalize("NFD", "con bò màu đỏ"), "con bò màu đỏ"),
        ("so happy \ud83d", "so happy \ufffd"),
        ("\ude00 happy", "\ufffd happy"),
        ("\ud83d\ude00", "\U0001f600"),  # two halves side by side are one character
        ("a\0b", "a\ufffdb"),
        ("é\0", "é\ufffd"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
        ("ﬁ ½", "ﬁ ½"),  # NFC, not NFKC
    ],
)
def test_every_text_is_read_alike(text: str, read: str) -> None:
    assert readable(text) == read
    assert Text(1, text).text == read
    read.encode()


def test_a_text_of_many_characters_names_itself_and_its_file() -> None:
    assert readable("a" * MAX_CHARACTERS)
    with pytest.raises(
        LongText, match=r"^a text of 100,001 characters is longer than the 100,000 that one may have; sh"
    ):
        readable("a" * (MAX_CHARACTERS + 1))
    with (
        pytest.raises(DataError, match=r"^here.json: text 7: a text of 10,485,760 characters"),
        expecting("here.json", ""),
    ):
        Text(7, "x" * 10 * 2**20)


def test_what_is_no_text_is_told() -> None:
    with pytest.raises(BadText, match=r"^text 1 is None, but has to be a string"):
        Text(1, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["yes/no", "other", "is this a"], ["yes_no", "other", "is_this_a"]),
        (["颜色", "数量", "màu", "mẫu"], ["颜色", "数量", "màu", "mẫu"]),
        (["Màu sắc"], ["màu_sắc"]),
        (["रंग", "สี", "لون"], ["रंग", "สี", "لون"]),  # marks are part of a word
        (["color", "Color", "COLOR"], ["color_3", "color_2", "color"]),
        (["yes/no", "yes no", "yes.no"], ["yes_no_3", "yes_no", "yes_no_2"]),
        (["a", "a!", "a_2"], ["a", "a_2", "a_2_2"]),
        (["?", "!!"], ["unnamed_2", "unnamed"]),
        (["\U0001f534", "\U0001f535", "x^y", "。"], ["\U0001f534", "\U0001f535", "x_y", "unnamed"]),
        (["chance", "no baseline"], ["chance_type", "no_baseline_type"]),  # which are the names of guessers' metrics
        (["a", "a"], ["a", "a"]),
    ],
)
def test_kinds_keep_their_letters_and_apart(kinds: list[str], words: list[str]) -> None:
    named = metric_words(kinds)
    assert [named[kind] for kind in kinds] == words
    assert len(set(named.values())) == len(set(kinds))
    assert metric_words(reversed(kinds)) == named
