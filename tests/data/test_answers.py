import pytest

from fusionkit.data.answers import AnswerVocabulary, leave_one_out
from fusionkit.errors import ConfigError, DataError
from fusionkit.evaluation.vqa import official_accuracy
from tests.data.worlds import write_json


def test_the_published_rule_normalises_and_counts():
    given = ["Yes"] * 5 + ["yes"] * 4 + ["the dog"] * 6 + ["dog"] * 4 + ["two"] * 9 + ["cat"] * 8
    assert AnswerVocabulary.build(given).answers == ["dog", "2", "yes"]
    with pytest.raises(ConfigError, match=r"data.answers.min_count=20 leaves no answer .*occurs 10 times\); lower it"):
        AnswerVocabulary.build(given, min_count=20)


@pytest.mark.parametrize(("count", "score"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_leave_one_out_is_the_official_accuracy(count, score):
    people = ["red"] * count + [f"other {n}" for n in range(10 - count)]
    assert leave_one_out(count, 10) == pytest.approx(score) == official_accuracy("red", people)


def test_soft_targets_of_a_question():
    people = ["Red."] * 2 + ["red", "the blue", "green"] + ["grey"] * 5
    vocabulary = AnswerVocabulary(["blue", "grey", "red", "yes"])
    assert vocabulary.scores(people) == pytest.approx({2: 0.9, 0: 0.3, 1: 1.0})
    simple = AnswerVocabulary(["blue", "grey", "red", "yes"], target="n_over_3")
    assert simple.scores(people) == pytest.approx({2: 1.0, 0: 1 / 3, 1: 1.0})
    assert vocabulary.scores(["yes"]) == {3: 1.0}
    with pytest.raises(ConfigError, match=r"no soft target 'n_over3'; did you mean 'n_over_3'\?"):
        AnswerVocabulary(["yes"], target="n_over3")


@pytest.mark.parametrize("content", [["b", "a", ""], {"a": 1, "": 2, "b": 0}])
def test_published_lists_keep_their_order(tmp_path, content):
    vocabulary = AnswerVocabulary.load(write_json(tmp_path / "list.json", content))
    assert vocabulary.answers == ["b", "a", ""]
    vocabulary.save(tmp_path / "again.json")
    assert AnswerVocabulary.load(tmp_path / "again.json").answers == ["b", "a", ""]


@pytest.mark.parametrize("content", [{"a": 0, "b": 2}, {"a": "b"}, ["a", 1], [], "a", {"a": True, "b": 0.5}])
def test_what_is_no_answer_list(tmp_path, content):
    with pytest.raises(DataError, match=r"list.json is no answer list; expected a JSON list"):
        AnswerVocabulary.load(write_json(tmp_path / "list.json", content))


def test_missing_and_repeating_lists(tmp_path):
    with pytest.raises(DataError, match=r"no.json does not exist"):
        AnswerVocabulary.load(tmp_path / "no.json")
    with pytest.raises(DataError, match="has 'b' twice"):
        AnswerVocabulary(["a", "b", "b"])
