"""A run that goes on or starts from a checkpoint reads words and answers as the checkpoint's weights mean them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fusionkit.assembly.artifacts import tokenizer_files, tokenizer_from
from fusionkit.assembly.vocabulary import (
    carry_answers,
    own_vocabularies,
    tell_unknown,
    unknown_words,
    unlike,
    unlike_ids,
    unlike_lists,
)
from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.tokenizer import word_tokenizer
from fusionkit.errors import ConfigError, DataError

WORDS = word_tokenizer(["a red dog", "a red cat", "a dog"])
OTHER = word_tokenizer(["a red cat", "a red cat", "a red dog", "a dog"])  # the same words, numbered otherwise
RULE = {"_target_": "fusionkit.data.answers.AnswerVocabulary.build", "_partial_": True, "min_count": 1}
VQA = {"vqa": {"_target_": "fusionkit.tasks.vqa.VQA"}}


def config(tokenizer=None, answers=RULE, task=VQA):
    return OmegaConf.create({"data": {"tokenizer": tokenizer, "answers": answers}, "task": task})


def artifacts(answers=("yes", "no", "2"), tokenizer=WORDS, task=VQA, **more) -> dict[str, Any]:
    files = tokenizer and tokenizer_files(tokenizer)
    return {"tokenizer": files, "answers": answers, "config": OmegaConf.to_yaml(config(task=task)), **more}


def saved(folder: Path, tokenizer) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


def listed(folder: Path, *answers: str) -> str:
    (folder / "answers.json").write_text(json.dumps(answers))
    return str(folder / "answers.json")


@pytest.mark.parametrize("goes_on", [True, False])
def test_the_checkpoints_own_words_and_answers_are_used(tmp_path: Path, goes_on: bool) -> None:
    for name in (None, saved(tmp_path, WORDS)):
        given = config(name, RULE | {"target": "n_over_3"})
        kept = own_vocabularies(given, artifacts(), "x.ckpt", goes_on=goes_on)
        assert kept["tokenizer"].get_vocab() == WORDS.get_vocab()
        assert kept["answers"].answers == ["yes", "no", "2"]
        assert kept["answers"].target == "n_over_3"


def test_another_tokenizer_is_refused_with_the_first_word_that_differs(tmp_path: Path) -> None:
    name = saved(tmp_path, OTHER)
    with pytest.raises(
        ConfigError,
        match=rf"tokenizer={name} is not that of checkpoint x: 'dog' is number 6 there and number 8 here; leave",
    ):
        own_vocabularies(config(name), artifacts(), "x", goes_on=False)


def test_a_checkpoint_without_a_tokenizer_is_given_its_own(tmp_path: Path) -> None:
    name, ids = saved(tmp_path, WORDS), {"cls": 2, "sep": 3, "pad": 0, "mask": 4}
    import_ = artifacts(None, None, ids=ids)
    assert own_vocabularies(config(name), import_, "x", goes_on=False) == {}
    with pytest.raises(ConfigError, match=r"checkpoint x brings no tokenizer; give the one"):
        own_vocabularies(config(), import_, "x", goes_on=False)
    with pytest.raises(ConfigError, match=r"the sep token is number 102 there and 3 here; give the tokenizer that it"):
        own_vocabularies(config(name), import_ | {"ids": ids | {"sep": 102}}, "x", goes_on=False)


def test_tokenizers_differ_in_words_special_tokens_and_how_they_split() -> None:
    same = tokenizer_from(tokenizer_files(WORDS))
    assert unlike(WORDS, same) is None
    same(["a red dog"], truncation=True, max_length=2, padding="max_length")  # not what the words mean
    assert unlike(WORDS, same) is None
    assert unlike(WORDS, word_tokenizer(["a red dog"])) == "'cat' is number 8 there and unknown here"
    assert unlike(word_tokenizer(["a red dog"]), WORDS) == "'cat' is unknown there and number 8 here"
    special = tokenizer_from(tokenizer_files(WORDS))
    special.mask_token = "[UNK]"
    assert unlike(WORDS, special) == "the mask token is number 4 there and 1 here"
    cased = tokenizer_from(tokenizer_files(WORDS))
    cased.backend_tokenizer.normalizer = None
    assert unlike(WORDS, cased) == "its normalizer is another"
    assert unlike_ids({}, WORDS) is None


def test_tokenizers_differ_in_that_of_instructions() -> None:
    plain, one, other = (word_tokenizer(["a red dog"]) for _ in range(3))
    one.companion, other.companion = word_tokenizer(["a cat"]), word_tokenizer(["a cow"])
    assert unlike(one, one) is None
    assert unlike(one, plain) == "qformer_tokenizer/ is there alone"
    assert unlike(plain, one) == "qformer_tokenizer/ is here alone"
    assert unlike(one, other) == "in qformer_tokenizer/, 'cat' is number 6 there and unknown here"


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (["yes", "no"], None),
        (["no", "yes"], "answer 0 is 'yes' there and 'no' here"),
        (["yes", "2"], "answer 1 is 'no' there and '2' here"),
        (["yes"], "it has 2 answers, and this has 1"),
        (["yes", "no", "2"], "it has 2 answers, and this has 3"),
    ],
)
def test_lists_of_answers_differ_at_a_place(other: list[str], told: str | None) -> None:
    assert unlike_lists(["yes", "no"], other) == told


def test_a_list_of_ones_own_is_for_a_run_that_starts(tmp_path: Path) -> None:
    given = config(answers=listed(tmp_path, "no", "yes", "2"))
    assert own_vocabularies(given, artifacts(), "x", goes_on=False)["answers"].answers == ["no", "yes", "2"]
    with pytest.raises(
        ConfigError, match=r"json is not the list of checkpoint x: answer 0 is 'yes' there and 'no' here"
    ):
        own_vocabularies(given, artifacts(), "x", goes_on=True)
    same = config(answers=listed(tmp_path, "yes", "no", "2"))
    assert own_vocabularies(same, artifacts(), "x", goes_on=True)["answers"].answers == ["yes", "no", "2"]


def test_answers_that_an_import_numbered_need_their_list(tmp_path: Path) -> None:
    numbered = artifacts(["0", "1"])
    with pytest.raises(ConfigError, match=r"knows its answers by number only; give the list"):
        own_vocabularies(config(), numbered, "x", goes_on=False)
    named = config(answers=listed(tmp_path, "no", "yes"))
    assert own_vocabularies(named, numbered, "x", goes_on=False)["answers"].answers == ["no", "yes"]
    with pytest.raises(ConfigError, match=r"has 3 answers, but checkpoint x chooses among 2"):
        own_vocabularies(config(answers=listed(tmp_path, "a", "b", "c")), numbered, "x", goes_on=False)


@pytest.mark.parametrize("task", [{}, {"vqa": {"_target_": "fusionkit.tasks.itm.ITM"}}])
def test_answers_that_no_task_has_learnt_are_made_of_the_data(task: dict[str, Any]) -> None:
    assert "answers" not in own_vocabularies(config(task=task), artifacts(), "x", goes_on=False)
    assert "answers" not in own_vocabularies(config(), artifacts(task={}), "x", goes_on=False)
    assert "answers" not in own_vocabularies(config(), artifacts(None), "x", goes_on=False)


class Choice(nn.Module):
    """A task that chooses among answers, as wide inside as there are answers."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self.answers = answers
        self.head = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, len(answers)))


def module_of(*answers: str) -> nn.ModuleDict:
    heads = nn.ModuleDict({"vqa": Choice(*answers).head})
    return nn.ModuleDict(
        {"tasks": nn.ModuleDict({"vqa": Choice(*answers)}), "teacher": nn.ModuleDict({"heads": heads})}
    )


@pytest.mark.parametrize("part", ["tasks.vqa.head", "teacher.heads.vqa"])
def test_rows_follow_their_answers(part: str) -> None:
    known = ("yes", "no", "2")
    found = module_of(*known).state_dict()
    for answers, new in (
        (("2", "yes", "no"), []),
        (("no", "3", "yes", "4"), ["2 of 4 answers of vqa"]),
        (("no",), []),
    ):
        module = module_of(*answers)
        carried, told = carry_answers(module, found, known)
        assert told == new
        for kind in ("weight", "bias"):
            rows, own = carried[f"{part}.2.{kind}"], module.state_dict()[f"{part}.2.{kind}"]
            for number, answer in enumerate(answers):
                theirs = found[f"{part}.2.{kind}"][known.index(answer)] if answer in known else own[number]
                assert torch.equal(rows[number], theirs)
            assert torch.equal(carried[f"{part}.0.{kind}"], found[f"{part}.0.{kind}"])  # inside, nothing is moved


def test_rows_stay_where_the_answers_are_the_same_or_unknown() -> None:
    found = module_of("yes", "no").state_dict()
    for known in (("yes", "no"), ()):
        carried, new = carry_answers(module_of("yes", "no"), found, known)
        assert new == []
        assert all(carried[name] is tensor for name, tensor in found.items())


def data_of(*answers: str, known: tuple[str, ...] = ("yes", "no"), texts: tuple[str, ...] = ("A red dog",)) -> Any:
    return SimpleNamespace(
        tokenizer=WORDS,
        answers=AnswerVocabulary(known),
        training_strings=lambda: texts,
        frequent_answers=lambda rule: rule(answers).answers,
    )


def test_what_a_checkpoint_does_not_know_is_told(recwarn: pytest.WarningsRecorder) -> None:
    tell_unknown(config(), data_of("yes"), "x")
    assert not recwarn
    tell_unknown(config(), data_of("yes", "3", texts=("a zebra", "zebras, a zebra")), "x")
    words, answers = (str(warning.message) for warning in recwarn)
    assert "does not know 3 words of the training texts, such as 'zebra'" in words
    assert "does not know 1 of 2 answers of the training questions, such as '3'" in answers
    with pytest.raises(DataError, match=r"x knows none of the answers of the training questions, such as '3'"):
        tell_unknown(config(), data_of("3"), "x")
    recwarn.clear()
    tell_unknown(config(answers="list.json"), data_of("3"), "x")  # a list of the user's own
    assert not recwarn


def test_words_are_those_of_the_tokenizers_own_splitting() -> None:
    assert unknown_words(WORDS, ["A Zebra", "zebra. DOG"]) == {"zebra": 2, ".": 1}
    plain = tokenizer_from(tokenizer_files(WORDS))
    plain.backend_tokenizer.normalizer = None
    assert unknown_words(plain, ["A dog"]) == {"A": 1}
    spelling = SimpleNamespace(backend_tokenizer=SimpleNamespace(model=object()))
    assert not unknown_words(spelling, ["zebra"])
