"""Worked examples before the conversations of an evaluated split: few-shot prompts (Flamingo)."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fusionkit.data.images import image_key, photo_keys
from fusionkit.data.sample import Sample, Text
from fusionkit.data.tables.samples import Samples, as_samples
from fusionkit.data.texts.conversations import (
    ASSISTANT,
    CONVERSATIONS,
    PICTURES,
    SYSTEM,
    USER,
    Conversation,
    shown_first,
)
from fusionkit.errors import DataError

TRIES = 100  # training images that are looked at for each example


def with_shots(samples: Sequence[Sample], training: Sequence[Sample], count: int, source: str, seed: int) -> Samples:
    """The samples, their conversations behind ``count`` exchanges about other pictures.

    These are the first question and reply of training conversations about one picture, drawn by (seed, source, image): all
    conversations of an image have the same. Raises DataError where there are not enough.
    """
    found = []
    for sample in samples:
        rng = random.Random(f"{seed}/{source}/shots/{sample.image_id}")
        shots = _drawn(training, count, photo_keys(sample), rng)
        if len(shots) < count:
            raise DataError(
                f"data.sources.{source}.shots is {count}, but {len(shots)} training conversations about one other picture, with "
                f"a reply, were found for image {sample.image_id}; set it lower"
            )
        texts = tuple(_behind(text, shots, 1 + len(sample.others)) for text in sample.texts.get(CONVERSATIONS, ()))
        others = (*sample.others, *(path for path, _, _ in shots))
        found.append(replace(sample, texts={**sample.texts, CONVERSATIONS: texts}, others=others))
    return as_samples(found)


def _drawn(
    training: Sequence[Sample], count: int, own: Sequence[int], rng: random.Random
) -> list[tuple[Path, str, str]]:
    """Pictures, none of those that are the sample's ``own``, with what the user says first about each, and the reply."""
    found, used = list[tuple[Path, str, str]](), set(own)
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        sample = training[rng.randrange(len(training))]
        talks = [Conversation.of(text) for text in sample.texts.get(CONVERSATIONS, ())]
        said = [exchange for talk in talks if not talk.places for exchange in _first_exchange(talk)]
        if said and not sample.others and (key := image_key(sample)) not in used:
            used.add(key)
            found.append((sample.image, *rng.choice(said)))
    return found


def _first_exchange(talk: Conversation) -> list[tuple[str, str]]:
    """The first question with its reply, or none."""
    pairs = zip(talk.roles, talk.roles[1:], talk.turns, talk.turns[1:], strict=False)
    return [(asked, said) for first, second, asked, said in pairs if (first, second) == (USER, ASSISTANT)][:1]


def _behind(text: Text, shots: Sequence[tuple[Path, str, str]], own: int) -> Text:
    """A conversation about ``own`` pictures, the examples before it."""
    talk = Conversation.of(text)
    start = int(talk.roles[:1] == (SYSTEM,))
    said = [turn for _, asked, reply in shots for turn in (shown_first(asked), reply)]
    first = talk.roles.index(USER)
    turns = list(talk.turns)
    if not talk.places:
        turns[first] = shown_first(turns[first])
    whole = Conversation(
        (*talk.roles[:start], *(USER, ASSISTANT) * len(shots), *talk.roles[start:]),
        (*turns[:start], *said, *turns[start:]),
    )
    pictures = [*range(own, own + len(shots)), *range(own)]
    return replace(whole.text(text.id), facts={**text.facts, **whole.text(text.id).facts, PICTURES: pictures})
