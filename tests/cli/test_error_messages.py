"""What a part of ours raises while it is built is about its values; what another's raises is a defect."""

from typing import Any

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fusionkit.cli.app import LONGEST, mistake_of
from fusionkit.cli.error_messages import translate
from fusionkit.errors import ConfigError, DataError


def raised_by(block: dict[str, Any]) -> Exception:
    with pytest.raises(InstantiationException) as caught:
        instantiate({"part": block})
    return caught.value


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"_target_": "hydra.utils.get_object", "path": "../x"}, "part cannot be built: Error loading '../x'"),
        ({"_target_": "fusionkit.data.answers.AnswerVocabulary", "answers": 5}, "part cannot be built: 'int' object"),
        ({"_target_": "fusionkit.data.answers.AnswerVocabulary", "answer": 5}, "part cannot be built: "),
        ({"_target_": "nowhere.X"}, "part cannot be built: "),
    ],
)
def test_values_that_no_part_can_be_built_of_are_told(block: dict[str, Any], words: str) -> None:
    told = translate(raised_by(block))
    assert isinstance(told, ConfigError)
    assert str(told).startswith(words)


def test_a_defect_of_another_is_one() -> None:
    assert translate(raised_by({"_target_": "builtins.int", "_args_": ["x"]})) is None


@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_a_sentence_is_not_endless(kind: type[Exception]) -> None:
    for length in (LONGEST - 1, LONGEST):
        error = kind("a" + "x" * (length - 2) + "b")
        assert str(mistake_of(error, (), [])) == str(error)
    told = mistake_of(kind("a" + "x" * LONGEST + "b"), (), [])
    half = LONGEST // 2 - 1
    assert type(told) is kind
    assert str(told) == "a" + "x" * half + " ... " + "x" * half + "b"
