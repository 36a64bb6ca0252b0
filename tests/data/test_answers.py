import random
import unicodedata
from collections import Counter

import pytest

from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.vqa_answers import leave_one_out, normalize_answer
from fusionkit.errors import ConfigError, DataError
from fusionkit.scoring.vqa import agreement, official_accuracy
from tests.data.worlds import write_json


def test_the_published_rule_normalises_and_counts():
    given = ["Yes"] * 5 + ["yes"] * 4 + ["the dog"] * 6 + ["dog"] * 4 + ["two"] * 9 + ["cat"] * 8
    built = AnswerVocabulary.build(given)
    assert built.answers == ["the dog", "two", "Yes"]  # the commonest spelling of dog, 2, yes
    assert [built.place(each) for each in ("Dog.", "2", "yes", "cat")] == [0, 1, 2, None]
    with pytest.raises(ConfigError, match=r"data.answers.min_count=20 leaves no answer .*occurs 10 times\); lower it"):
        AnswerVocabulary.build(given, min_count=20)


def test_drawn_answers_have_the_classes_of_the_published_rule_in_its_order():
    rng = random.Random(3)
    words = ["dog", "t-shirt", "one way", "hà nội", "dont know", "12", "yes", "zoo", "red", "tv"]
    forms = [str, str.upper, str.title, "the {}".format, "{}.".format, "{}?".format, " {} ".format, "a {}\n".format]
    given = [rng.choice(forms)(rng.choice(words[: rng.randint(1, 10)])) for _ in range(400)]
    counts = Counter(map(normalize_answer, given))
    published = sorted((each for each in counts if counts[each] >= 9), key=lambda each: (-counts[each], each))
    built = AnswerVocabulary.build(given)
    assert 6 < len(published) < len(counts) < len(set(given))
    assert list(map(normalize_answer, built.answers)) == published
    assert [built.place(each) for each in given] == [
        published.index(name) if (name := normalize_answer(each)) in published else None for each in given
    ]


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


@pytest.mark.parametrize("person", ["Yes", "A", "Hà Nội", "one", "an toàn", "T-shirt", "红色", "สีแดง", "أحمر"])
@pytest.mark.parametrize("people", [1, 2, 3, 10])
def test_what_is_trained_as_right_is_scored_as_right(person, people):
    vocabulary = AnswerVocabulary.build([person] * 9 + ["other"] * 9)
    ((best, score),) = vocabulary.scores([person] * people).items()
    assert score == 1 == agreement(vocabulary.answers[best], [person] * people)
    assert official_accuracy(vocabulary.answers[best], [person] * people) == min(3, people - 1) / 3
    assert AnswerVocabulary([person], target="n_over_3").scores([person] * people) == {0: 1}


def test_letters_are_answers_and_nothing_is_none():
    built = AnswerVocabulary.build(["A", "B", "C", "D", "The", "", " ", "."] * 9)
    assert sorted(built.answers) == [".", "A", "B", "C", "D", "The"]
    assert built.scores(["A"] * 6 + ["The"] * 4) == {built.place("a"): 1.0, built.place("the"): 1.0}


def test_spellings_that_are_as_common_are_told_apart_by_the_normalised_one_then_by_letters():
    assert AnswerVocabulary.build(["Red", "red", "RED"] * 3).answers == ["red"]
    assert AnswerVocabulary.build(["RED", "Red"] * 5).answers == ["RED"]
    assert AnswerVocabulary.build(["b"] * 9 + ["A."] * 9 + ["c"] * 10).answers == ["c", "A.", "b"]


def test_lists_of_older_checkpoints_mean_the_same():
    older = AnswerVocabulary(["yes", "hà nội", "", "t-shirt", "t shirt"])
    assert older.answers == ["yes", "hà nội", "", "t-shirt", "t shirt"]
    places = {each: older.place(each) for each in ("Yes", "Hà Nội", "A", "the", "", "T-Shirt", "t shirt", "no")}
    assert places == {"Yes": 0, "Hà Nội": 1, "A": 2, "the": 2, "": 2, "T-Shirt": 4, "t shirt": 4, "no": None}
    assert older.scores(["a"] * 2 + ["the"] + ["no"] * 7) == {2: pytest.approx(0.9)}
    assert AnswerVocabulary(["", "a"]).place("A") == 1
    decomposed = AnswerVocabulary([unicodedata.normalize("NFD", "đỏ")])
    assert (decomposed.place("đỏ"), len(decomposed.answers[0])) == (0, 3)


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


def test_half_a_letter_is_no_answer(tmp_path):
    with pytest.raises(
        DataError, match=r"list.json has the answer 'n.ud83do', which is no text in Unicode; correct it"
    ):
        AnswerVocabulary.load(write_json(tmp_path / "list.json", ["yes", "n\ud83do"]))


def test_missing_and_repeating_lists(tmp_path):
    with pytest.raises(DataError, match=r"no.json does not exist"):
        AnswerVocabulary.load(tmp_path / "no.json")
    with pytest.raises(DataError, match="has 'b' twice"):
        AnswerVocabulary(["a", "b", "b"])
