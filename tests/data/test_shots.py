"""Worked examples before the conversations of an evaluated split: what is drawn, and where their pictures stand."""

from dataclasses import replace
from pathlib import Path

import pytest

from fusionkit.data.sample import Sample
from fusionkit.data.source import Source
from fusionkit.data.texts.conversations import Conversation
from fusionkit.data.texts.shots import with_shots
from fusionkit.errors import ConfigError, DataError

ROLES = ("user", "assistant") * 2


def sample(number: int, *turns: tuple[str, ...], others: int = 0, first: str | None = None) -> Sample:
    texts = []
    for place, said in enumerate(turns):
        roles = ROLES[: len(said)] if first is None else ("system", *ROLES[: len(said)])
        talk = Conversation(roles, said if first is None else (first, *said))
        texts.append(talk.text(f"{number}/{place}"))
    return Sample(
        number, Path(f"{number}.jpg"), {"conversations": tuple(texts)}, others=tuple(map(Path, "xyz"[:others]))
    )


TRAINING = [
    *(sample(n, (f"{n}a?", f"{n}b", f"{n}c?", f"{n}d"), (f"{n}e?", f"{n}f")) for n in range(6)),
    sample(6, ("6a?",)),  # no reply
    sample(7, ("7a?", "7b", "<image> ?", "7d")),  # a picture later on
    sample(8, ("<image> <image> ?", "8b"), others=1),
    sample(9, ("9a?", "9b"), first="Be short."),
]


def test_each_image_has_examples_of_its_own_and_always_the_same():
    asked = [sample(n, ("what?", "it", "so?"), ("where?", "there")) for n in range(100, 140)]
    found = with_shots(asked, TRAINING, 3, "talk", 0)
    assert found == with_shots(asked[::-1], TRAINING, 3, "talk", 0)[::-1]
    drawn = set()
    for before, after in zip(asked, found, strict=True):
        assert (after.image, after.image_id, len(after.others)) == (before.image, before.image_id, 3)
        exchanges = set()
        for old, text in zip(before.texts["conversations"], after.texts["conversations"], strict=True):
            talk, own = Conversation.of(text), Conversation.of(old)
            assert text.id == old.id
            assert talk.roles == ("user", "assistant") * 3 + own.roles
            assert talk.turns[6:] == (f"<image> {own.turns[0]}", *own.turns[1:])
            assert text.facts["pictures"] == [1, 2, 3, 0]
            exchanges.add(talk.turns[:6])
            assert talk.places == 4
        (shots,) = exchanges  # all conversations of an image have the same
        for path, asks, reply in zip(after.others, shots[::2], shots[1::2], strict=True):
            number = path.stem
            assert (asks, reply) in {(f"<image> {number}{x}?", f"{number}{y}") for x, y in ("ab", "ef")}
            drawn.add((number, reply))
        assert len(set(after.others)) == 3
    assert drawn == {(str(n), f"{n}{y}") for n in range(6) for y in "bf"} | {("9", "9b")}
    assert found != with_shots(asked, TRAINING, 3, "talk", 1)
    assert found != with_shots(asked, TRAINING, 3, "other", 0)


def test_an_image_is_not_its_own_example():
    found = with_shots(TRAINING[:2], TRAINING[:2], 1, "talk", 0)
    assert [each.others for each in found] == [(Path("1.jpg"),), (Path("0.jpg"),)]
    with pytest.raises(
        DataError,
        match=r"data.sources.talk.shots is 2, but 1 training conversations about one other picture, .* for image 0",
    ):
        with_shots(TRAINING[:1], TRAINING[:2], 2, "talk", 0)


def test_none_of_the_images_of_a_conversation_is_its_example():
    pair = replace(TRAINING[8], others=(Path("0.jpg"),))
    (found,) = with_shots([pair], TRAINING[:2], 1, "talk", 0)
    assert found.others == (Path("0.jpg"), Path("1.jpg"))
    with pytest.raises(DataError, match=r"but 1 training conversations about one other picture, .* for image 8"):
        with_shots([pair], TRAINING[:2], 2, "talk", 0)


def test_a_system_turn_stays_first_and_pictures_with_places_keep_them():
    asked = [sample(100, ("what?", "it"), first="Be short."), sample(101, ("so <image> <image>?", "it"), others=1)]
    first, second = with_shots(asked, TRAINING[:2], 2, "talk", 0)
    (text,) = first.texts["conversations"]
    assert Conversation.of(text).roles == ("system", *ROLES, "user", "assistant")
    assert Conversation.of(text).turns[0] == "Be short."
    assert Conversation.of(text).turns[-2:] == ("<image> what?", "it")
    (text,) = second.texts["conversations"]
    assert second.others[0] == Path("x")
    assert text.facts["pictures"] == [2, 3, 0, 1]
    assert Conversation.of(text).turns[-2:] == ("so <image> <image>?", "it")


@pytest.mark.parametrize(
    ("shots", "kinds", "roles"),
    [(-1, {"conversations": 1}, ["train"]), (2, {"captions": 1}, ["train"]), (2, {"conversations": 1}, ["val"])],
)
def test_examples_are_conversations_of_a_training_split(shots, kinds, roles):
    Source(None, {role: [role] for role in roles}, 1, kinds).check("data.sources.a")
    with pytest.raises(
        ConfigError, match=rf"data\.sources\.a\.shots is {shots}, but has to be a number of conversations"
    ):
        Source(None, {role: [role] for role in roles}, 1, kinds, shots=shots).check("data.sources.a")
    Source(None, {"train": ["a"]}, 1, {"conversations": 1}, shots=2).check("data.sources.a")
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.shots is 1\.5, but has to be a whole number"):
        Source(None, {"train": ["a"]}, 1, {"conversations": 1}, shots=1.5).check("data.sources.a")
