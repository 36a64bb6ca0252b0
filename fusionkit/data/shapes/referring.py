"""Referring to one thing and no other: by its attributes, its place, its rank among its kind, or its neighbour."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from fusionkit.data.shapes.meaning import (
    DIRECTIONS,
    EXTREMES,
    PLACES,
    SUPERLATIVES,
    Description,
    choose_voice,
    is_at,
    is_related,
)
from fusionkit.data.shapes.scene import Scene, Thing

T = TypeVar("T")
EXPRESSIONS = 3
NAMED = {  # how often people name which, before they look for anything else
    ("color", "shape"): 8,
    ("shape",): 4,
    ("color",): 3,
    ("size", "shape"): 2,
    ("size", "color", "shape"): 2,
    ("size", "color"): 1,
    ("size",): 1,
}
STYLES = {"attributes": 6, "place": 2, "rank": 2, "neighbour": 1}


def refer(thing: Thing, scene: Scene, rng: random.Random, hidden: str = "") -> Description | None:
    """An unambiguous description of the thing that does not name the ``hidden`` attribute; None where none is found."""
    candidates = (_CANDIDATES[style](thing, scene, rng, hidden) for style in _weighted_order(STYLES, rng))
    return _first_clear(chain.from_iterable(candidates), thing, scene)


def refer_plainly(thing: Thing, scene: Scene, rng: random.Random, hidden: str = "") -> Description | None:
    """The same by attributes alone, where a place would give the answer away or make the sentence long."""
    return _first_clear(_by_attributes(thing, scene, rng, hidden), thing, scene)


def sample_expressions(scene: Scene, rng: random.Random) -> list[tuple[Thing, Description, str]]:
    """Up to three expressions: the thing meant, the description that finds it, and its words; no two alike."""
    things = rng.sample(scene.things, len(scene.things))
    expressions: dict[Description, tuple[Thing, Description, str]] = {}
    for thing in (things * EXPRESSIONS)[: 2 * EXPRESSIONS]:
        description = refer(thing, scene, rng)
        if description and description not in expressions and len(expressions) < EXPRESSIONS:
            words = rng.choice(("the ", "")) + description.words(choose_voice(rng))
            expressions[description] = (thing, description, words)
    return list(expressions.values())


def _first_clear(descriptions: Iterable[Description], thing: Thing, scene: Scene) -> Description | None:
    return next((description for description in descriptions if description.only(scene) is thing), None)


def _by_attributes(thing: Thing, scene: Scene, rng: random.Random, hidden: str) -> Iterator[Description]:
    for names in _weighted_order(NAMED, rng):
        if hidden not in names:
            yield Description(**{name: getattr(thing, name) for name in names})


def _loosely(thing: Thing, rng: random.Random, hidden: str) -> Description:
    """What one says of a thing that something else singles out: its shape, its colour, both, or just "object"."""
    names = [name for name in ("shape", "color") if name != hidden]
    return Description(**{name: getattr(thing, name) for name in rng.choice((names, names[:1], names[1:], []))})


def _by_place(thing: Thing, scene: Scene, rng: random.Random, hidden: str) -> Iterator[Description]:
    for place in PLACES:
        if is_at(thing, place):
            yield replace(_loosely(thing, rng, hidden), place=place)


def _by_rank(thing: Thing, scene: Scene, rng: random.Random, hidden: str) -> Iterator[Description]:
    ranks = (*EXTREMES, *(() if hidden == "size" else SUPERLATIVES))
    for rank in rng.sample(ranks, len(ranks)):
        yield replace(_loosely(thing, rng, hidden), extreme=rank)


def _by_neighbour(thing: Thing, scene: Scene, rng: random.Random, hidden: str) -> Iterator[Description]:
    for anchor in rng.sample(scene.things, len(scene.things)):
        landmark = Description(anchor.color, anchor.shape)
        for relation in DIRECTIONS:
            if is_related(thing, relation, anchor) and landmark.only(scene) is anchor:
                yield replace(_loosely(thing, rng, hidden), relation=relation, anchor=landmark)


_CANDIDATES = {"attributes": _by_attributes, "place": _by_place, "rank": _by_rank, "neighbour": _by_neighbour}


def _weighted_order(weights: dict[T, int], rng: random.Random) -> list[T]:
    """All keys in random order, the heavy ones early more often (Efraimidis and Spirakis, 2006)."""
    return sorted(weights, key=lambda key: -(rng.random() ** (1 / weights[key])))
