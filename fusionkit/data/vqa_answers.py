"""Answers of VQA v2 in their official spelling (GT-Vision-Lab/VQA, vqaEval.py of 2021), quirks included."""

import re
from functools import lru_cache

from fusionkit.files.unicode import readable

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")


_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the script passes re.UNICODE (32) where re.sub takes a count


_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}


# "she's" and "let's" are missing on purpose: the published table maps them to themselves, so "shes" stays "shes".
_CONTRACTED = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd "
    "he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've "
    "needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've "
    "we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've "
    "you'll you're you've"
)


_CONTRACTIONS = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTED.split() for at, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the published table has this one the wrong way round


@lru_cache(maxsize=200_000)  # people give the same answers again and again
def normalize_answer(answer: str) -> str:
    """The official processing of an answer: punctuation, then number words, articles and contractions."""
    return _process_words(_process_punctuation(clean_spaces(answer)))


def mmf_answer(answer: str) -> str:
    """The processing of MMF's ``EvalAIAnswerProcessor``, by which TextVQA is scored.

    As ``normalize_answer``, after capitals, commas and question marks have gone and each 's has become a word of its own.
    """
    plain = readable(answer).lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _process_words(_process_punctuation(clean_spaces(plain)))


def _process_punctuation(answer: str) -> str:
    """A mark vanishes if it touches a space anywhere in the answer (or a number has a comma), else is a space."""
    has_thousands = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        vanishes = has_thousands or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", text, count=_MAX_PERIODS)


def _process_words(answer: str) -> str:
    words = (_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def clean_spaces(answer: str) -> str:
    """The answer as ``readable`` gives it, on one line and without space around it: all that is done to one in any case."""
    return readable(answer).replace("\n", " ").replace("\t", " ").strip()


def answer_key(answer: str) -> str:
    """What the spellings of one answer share: it is normalised, and where that leaves nothing ("A", "?") in lower case."""
    return normalize_answer(answer) or clean_spaces(answer).lower()


def leave_one_out(count: int, total: int) -> float:
    """What an answer is worth that `count` of `total` people gave: 1, 2, 3, 4 of ten are .3, .6, .9 and 1, as officially.

    Each person in turn is left out, and three others who agree are enough. Of fewer than four people all others are enough,
    and a person alone is taken at his word, so that 1 can be reached.
    """
    enough = max(1, min(3, total - 1))
    return ((total - count) * min(enough, count) + count * min(enough, count - 1 + (total == 1))) / (enough * total)
