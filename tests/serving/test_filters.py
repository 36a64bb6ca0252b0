"""What is said is looked at before it is sent, in a stream too."""

import pytest

from fusionkit.errors import ConfigError
from fusionkit.serving.filters import Words, draft, filtered
from fusionkit.serving.problems import Problem


def test_words_are_whole_in_any_case_and_phrases_longest_first() -> None:
    rule = Words(["red", "red star", "c++"])
    assert rule("caption", "A Red  Star, redder than Red c++") == "A ***, redder than *** ***"
    assert Words(["x"], mark=r"\1")("caption", "x") == r"\1"


def test_a_text_may_be_refused() -> None:
    rule = Words(["ugly"], refuse=True)
    assert rule("answer", "uglier") == "uglier"
    with pytest.raises(Problem, match="the answer holds words") as refused:
        rule("answer", "how UGLY")
    assert refused.value.status == 422


@pytest.mark.parametrize("words", [[], [" "], "word"])
def test_a_list_of_no_words_is_a_mistake(words: object) -> None:
    with pytest.raises(ConfigError, match="words is"):
        Words(words)  # type: ignore[arg-type]


def test_all_texts_that_the_model_makes_up_are_looked_at() -> None:
    said = {"answer": "red", "answers": [{"answer": "red", "probability": 0.5}, ("red",)], "n": None}
    assert filtered("answer", said, Words(["red"])) == {
        "answer": "***",
        "answers": [{"answer": "***", "probability": 0.5}, ["***"]],
        "n": None,
    }
    assert filtered("search", said, Words(["red"])) is said
    assert filtered("answer", said, None) is said
    with pytest.raises(TypeError, match="gave NoneType"):
        filtered("caption", "a", lambda kind, text: None)  # type: ignore[arg-type, return-value]


def test_a_stream_runs_behind_so_that_no_part_of_a_phrase_is_sent() -> None:
    rule = Words(["red star"])
    said = ("a", "a re", "a red", "a red st", "a red star", "a red star and", "a red star and more")
    assert [draft("caption", text, rule) for text in said] == ["", "", "", "a", "", "a", "a ***"]
    assert draft("caption", "a red", None) == "a red"
    assert draft("caption", "a red", lambda kind, text: text) is None
