"""Words and answers of a run that goes on or starts from a checkpoint: the checkpoint's own, since its weights mean them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from omegaconf import DictConfig, OmegaConf
from tokenizers.models import WordLevel
from torch import Tensor, nn

from fusionkit.assembly.artifacts import tokenizer_from
from fusionkit.assembly.trust import read_stored
from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.datamodule import DataModule
from fusionkit.data.tokenizer import COMPANION, companion_of, load_tokenizer, rules_of
from fusionkit.errors import ConfigError, DataError

SPECIAL = ("pad", "unk", "cls", "sep", "mask")


def own_vocabularies(
    config: DictConfig, artifacts: Mapping[str, Any], path: str | Path, *, goes_on: bool
) -> dict[str, Any]:
    """What the data module is given in place of a tokenizer and answers made from the data: those that a checkpoint carries.

    A tokenizer that the configuration names has to be the checkpoint's. So have answers, in a run that ``goes_on``; one that
    starts from a checkpoint may have a list of its own (``carry_answers``). Raises ConfigError with the first difference.
    """
    kept: dict[str, Any] = {}
    if artifacts["tokenizer"]:
        kept["tokenizer"] = tokenizer_from(artifacts["tokenizer"])
    if (name := config.data.get("tokenizer")) is not None:
        named = load_tokenizer(name)
        own = kept.get("tokenizer")
        if told := unlike_ids(artifacts.get("ids") or {}, named) if own is None else unlike(own, named):
            hint = "leave tokenizer=null" if own is not None else "give the tokenizer that it was trained with"
            raise ConfigError(f"tokenizer={name} is not that of checkpoint {path}: {told}; {hint}")
    elif not kept:
        raise ConfigError(
            f"checkpoint {path} brings no tokenizer; give the one that it was trained with as tokenizer=FOLDER"
        )
    if _reads_the_same_answers(config, artifacts):
        kept["answers"] = _own_answers(config, artifacts["answers"], path, goes_on=goes_on)
    return kept


def _reads_the_same_answers(config: DictConfig, artifacts: Mapping[str, Any]) -> bool:
    """Whether a checkpoint knows answers, and has learnt a task of the run that is about questions."""
    learnt = read_stored(artifacts["config"], "the checkpoint").task
    shared = [get_object(block._target_) for name, block in config.task.items() if name in learnt]
    return bool(artifacts["answers"]) and any(getattr(task, "reads", None) == "questions" for task in shared)


def _own_answers(config: DictConfig, own: Sequence[str], path: str | Path, *, goes_on: bool) -> AnswerVocabulary:
    given = config.data.get("answers")
    is_list = isinstance(given, str)
    if list(own) == [str(number) for number in range(len(own))]:  # an import that was given no names
        if not is_list:
            raise ConfigError(
                f"checkpoint {path} knows its answers by number only; give the list that it was trained with, a .json file, as "
                "data.answers=FILE"
            )
        named = AnswerVocabulary.load(given)
        if len(named) != len(own):
            raise ConfigError(
                f"data.answers={given} has {len(named)} answers, but checkpoint {path} chooses among {len(own)}"
            )
        return named
    if not is_list:
        return AnswerVocabulary(own, **({"target": given.target} if "target" in (given or {}) else {}))
    named = AnswerVocabulary.load(given)
    if goes_on and (told := unlike_lists(own, named.answers)):
        raise ConfigError(
            f"data.answers={given} is not the list of checkpoint {path}: {told}; give that, or leave it out"
        )
    return named


def unlike(own: Any, other: Any) -> str | None:
    """The first difference between two tokenizers, in words: a word's number, a special token, or how texts are split."""
    numbers, others = own.get_vocab(), other.get_vocab()
    for word in sorted(numbers.keys() | others.keys(), key=lambda word: (numbers.get(word, len(numbers)), word)):
        if numbers.get(word) != others.get(word):
            return f"'{word}' is {_number(numbers, word)} there and {_number(others, word)} here"
    if told := unlike_ids({name: getattr(own, f"{name}_token_id") for name in SPECIAL}, other):
        return told
    there, here = rules_of(own), rules_of(other)
    section = next((key for key in {**there, **here} if key != COMPANION and there.get(key) != here.get(key)), None)
    if section is not None:
        return f"its {section} is another"
    one, two = companion_of(own), companion_of(other)
    if one is None or two is None:
        return None if one is two else f"{COMPANION}/ is {'here' if one is None else 'there'} alone"
    told = unlike(one, two)
    return None if told is None else f"in {COMPANION}/, {told}"


def unlike_ids(ids: Mapping[str, int], tokenizer: Any) -> str | None:
    """The first special token, by name, that a tokenizer numbers otherwise."""
    for name, number in ids.items():
        if (here := getattr(tokenizer, f"{name}_token_id")) != number:
            return f"the {name} token is number {number} there and {here} here"
    return None


def unlike_lists(own: Sequence[str], other: Sequence[str]) -> str | None:
    """The first place where two lists of answers differ, in words."""
    place = next((n for n, (one, two) in enumerate(zip(own, other, strict=False)) if one != two), None)
    if place is not None:
        return f"answer {place} is '{own[place]}' there and '{other[place]}' here"
    return None if len(own) == len(other) else f"it has {len(own)} answers, and this has {len(other)}"


def carry_answers(
    module: nn.Module, found: Mapping[str, Tensor], known: Sequence[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint that knows these answers, with a row for each answer as the module's tasks number them.

    A new answer has the row that it was initialised with; how many are new is told by task. A task that chooses among answers
    has them as ``answers``, and as many outputs of a linear layer.
    """
    own, carried, new = module.state_dict(), dict(found), []
    row_of = {answer: number for number, answer in enumerate(known)}
    for task, part in module.get_submodule("tasks").named_children():
        answers = getattr(part, "answers", ())
        if not known or not answers or tuple(answers) == tuple(known):
            continue
        here = [number for number, answer in enumerate(answers) if answer in row_of]
        there = [row_of[answers[number]] for number in here]
        outputs = [
            name for name, layer in part.named_modules() if getattr(layer, "out_features", None) == len(answers)
        ][-1:]
        for name in (f"{place}.{kind}" for place in outputs for kind in ("weight", "bias")):
            for full in (f"tasks.{task}.{name}", f"teacher.heads.{task}.{name.removeprefix('head.')}"):
                if full in own and full in found and found[full].shape == (len(known), *own[full].shape[1:]):
                    carried[full] = own[full].clone()
                    carried[full][here] = found[full][there].to(own[full])
        if len(here) < len(answers):
            new.append(f"{len(answers) - len(here)} of {len(answers)} answers of {task}")
    return carried, new


def _number(numbers: Mapping[str, int], word: str) -> str:
    return f"number {numbers[word]}" if word in numbers else "unknown"


@rank_zero_only
def tell_unknown(config: DictConfig, datamodule: DataModule, path: str | Path) -> None:
    """Warn of training words, and of answers that are frequent in the data, that a checkpoint's vocabularies lack.

    Raises DataError where they lack all these answers. Words are looked up in a vocabulary of whole words alone: others spell
    what they do not know.
    """
    if words := unknown_words(datamodule.tokenizer, datamodule.training_strings()):
        rank_zero_warn(
            f"the tokenizer of checkpoint {path} does not know {len(words)} words of the training texts, such as "
            f"'{max(words, key=words.__getitem__)}': all of them are read as one unknown word"
        )
    rule = config.data.get("answers")
    if datamodule.answers is None or not OmegaConf.is_dict(rule):
        return
    frequent = datamodule.frequent_answers(instantiate(rule))
    unknown = [answer for answer in frequent if answer not in datamodule.answers.index]
    if unknown and len(unknown) == len(frequent):
        raise DataError(
            f"checkpoint {path} knows none of the answers of the training questions, such as '{unknown[0]}'; give a run that "
            "starts from it its own list, a .json file, as data.answers=FILE"
        )
    if unknown:
        rank_zero_warn(
            f"checkpoint {path} does not know {len(unknown)} of {len(frequent)} answers of the training questions, such as "
            f"'{unknown[0]}': they are not learnt; a run that starts from it may have its own list as data.answers=FILE"
        )


def unknown_words(tokenizer: Any, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs that a vocabulary of whole words lacks; none for one that spells words."""
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, WordLevel):
        return Counter()
    known, normalizer, splitter = tokenizer.get_vocab(), backend.normalizer, backend.pre_tokenizer
    texts = texts if normalizer is None else map(normalizer.normalize_str, texts)
    return Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text) if word not in known)
