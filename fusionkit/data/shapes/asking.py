"""Draws the questions of a scene: eight, over all families, with answers balanced so that guessing does not pay."""

import random
from dataclasses import replace
from typing import Any

from fusionkit.data.shapes.meaning import ATTRIBUTES, DIRECTIONS, PLACES, Description, is_at
from fusionkit.data.shapes.questions import (
    HowMany,
    IsBigger,
    IsRelated,
    IsSo,
    IsThere,
    Question,
    What,
    Where,
    WhichSide,
    speaks_of_held_out,
)
from fusionkit.data.shapes.referring import refer, refer_plainly
from fusionkit.data.shapes.scene import COLORS, SHAPES, SIZES, Scene

VALUES: dict[str, tuple[Any, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "place": PLACES}
PAIR = ("color", "shape")
EXISTENCE = (PAIR, PAIR, ("size", *PAIR), ("size", "shape"), ("color",), ("shape",))
COUNTED = (("color",), ("shape",), ("size",), ("size", "color"), ("size", "shape"), PAIR)
COUNT_RARITY = (2, 3, 4, 5, 6, 6, 6)  # weight of an answer 0 to 6: high counts are seldom to be had
TRIES = 8


def sample_questions(scene: Scene, rng: random.Random) -> list[tuple[Question, str, str, str]]:
    """Up to eight settled questions, no two alike: the question, its answer, its sentence and its question type."""
    asked: dict[Question, tuple[Question, str, str, str]] = {}
    yes_no = rng.choice((_is_related, _is_related, _is_bigger, _is_so))
    place = rng.choice((_size, _where, _which_side))
    families = (_is_there, _is_there, yes_no, _how_many_things, _how_many, _color, _shape, place)
    for family in families:
        for _ in range(TRIES):
            question = family(scene, rng)
            answer = question.answer(scene) if question else None
            is_fit = question not in asked and (scene.has_held_out or not question or not speaks_of_held_out(question))
            if question and answer and is_fit:
                words, kind = question.words(rng)
                asked[question] = (question, answer, words[0].upper() + words[1:] + "?", kind)
                break
    return list(asked.values())


def _is_there(scene: Scene, rng: random.Random) -> Question | None:
    """What is there, or by an even chance the same with one attribute or the place exchanged so that it is not."""
    thing = rng.choice(scene.things)
    names = rng.choice(EXISTENCE)
    description = Description(**{name: getattr(thing, name) for name in names})
    places = [place for place in PLACES if is_at(thing, place)]
    if places and rng.random() < 0.2:
        description = replace(description, size=None, place=rng.choice(places))
    return IsThere(description) if rng.random() < 0.5 else _is_not_there(description, scene, rng)


def _is_not_there(description: Description, scene: Scene, rng: random.Random) -> Question | None:
    names = [name for name in VALUES if getattr(description, name)]
    for name in rng.sample(names, len(names)):
        for value in rng.sample(VALUES[name], len(VALUES[name])):
            question = IsThere(replace(description, **{name: value}))
            if question.answer(scene) == "no" and (scene.has_held_out or not speaks_of_held_out(question)):
                return question
    return None


def _is_related(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    first, second = (refer_plainly(thing, scene, rng) for thing in rng.sample(scene.things, 2))
    return IsRelated(first, rng.choice(tuple(DIRECTIONS)), second) if first and second else None


def _is_bigger(scene: Scene, rng: random.Random) -> Question | None:
    if len(scene.things) < 2:
        return None
    first, second = (refer_plainly(thing, scene, rng, hidden="size") for thing in rng.sample(scene.things, 2))
    return IsBigger(first, second, rng.random() < 0.5) if first and second else None


def _is_so(scene: Scene, rng: random.Random) -> Question | None:
    """A doubtful attribute: the true one, or by an even chance another."""
    thing, name = rng.choice(scene.things), rng.choice(ATTRIBUTES)
    description = refer(thing, scene, rng, hidden=name)
    value = getattr(thing, name)
    if rng.random() < 0.5:
        value = rng.choice([other for other in VALUES[name] if other != value])
    return IsSo(description, replace(description, **{name: value})) if description else None


def _how_many_things(scene: Scene, rng: random.Random) -> Question:
    return HowMany(Description())


def _how_many(scene: Scene, rng: random.Random) -> Question:
    """First the number that shall be the answer, then a kind of which there are so many."""
    by_count: dict[int, list[Description]] = {}
    for names in COUNTED:
        thing = rng.choice(scene.things)
        for description in (
            Description(**{name: getattr(thing, name) for name in names}),
            Description(**{name: rng.choice(VALUES[name]) for name in names}),
        ):
            by_count.setdefault(len(description.found(scene) or []), []).append(description)
    counts = sorted(by_count)
    count = rng.choices(counts, [COUNT_RARITY[number] for number in counts])[0]
    return HowMany(rng.choice(by_count[count]))


def _color(scene: Scene, rng: random.Random) -> Question | None:
    return _what("color", scene, rng)


def _shape(scene: Scene, rng: random.Random) -> Question | None:
    return _what("shape", scene, rng)


def _size(scene: Scene, rng: random.Random) -> Question | None:
    return _what("size", scene, rng)


def _what(attribute: str, scene: Scene, rng: random.Random) -> Question | None:
    description = refer(rng.choice(scene.things), scene, rng, hidden=attribute)
    return What(description, attribute) if description else None


def _where(scene: Scene, rng: random.Random) -> Question | None:
    description = refer_plainly(rng.choice(scene.things), scene, rng)
    return Where(description) if description else None


def _which_side(scene: Scene, rng: random.Random) -> Question | None:
    description = refer_plainly(rng.choice(scene.things), scene, rng)
    return WhichSide(description, rng.choice((("left", "right"), ("top", "bottom")))) if description else None
