"""Captions: statements about a scene, their truth, and five different ways in which people might put it."""

import random
from dataclasses import dataclass

from fusionkit.data.shapes.meaning import (
    CORNERS,
    DIRECTIONS,
    NUMBERS,
    PLACES,
    Description,
    Truth,
    Voice,
    choose_voice,
    every,
    is_at,
    is_related,
    some,
    with_article,
)
from fusionkit.data.shapes.scene import Scene, Thing

CAPTIONS = 5
MAX_WORDS = 20
ALONE = ("a single {0}", "only {1}", "just one {0}", "{1} and nothing else", "one {0} on its own", "one object, {1}")
COMPLETE = ("{n} {objects}: {all}", "{all}, {n} {objects} in all")
TOTAL = ("{n} {objects}, among them {all}", "{n} {objects} including {all}", "{all}, {n} {objects} in all")
PLAIN = ("{all}", "{all}", "there {be} {all}", "a picture of {all}")


@dataclass(frozen=True, slots=True)
class Exists:
    """Things that fit the description are there: at least one, or exactly ``count``."""

    description: Description
    count: int | None = None

    def truth(self, scene: Scene) -> Truth:
        """Against a scene; None where it hangs on a matter of opinion."""
        if self.count is None:
            return some(self.description.fits(thing, scene) for thing in scene.things)
        found = self.description.found(scene)
        return None if found is None else len(found) == self.count

    def words(self, voice: Voice) -> str:
        """The noun phrase with its article or number."""
        if self.count is None:
            return with_article(self.description.words(voice))
        return f"{NUMBERS[self.count]} {self.description.words(voice, plural=True)}"


@dataclass(frozen=True, slots=True)
class Related:
    """Some thing of the first kind is left of (right of, above, below) some thing of the second."""

    first: Description
    relation: str
    second: Description

    def truth(self, scene: Scene) -> Truth:
        """Against a scene; None where it hangs on a matter of opinion."""
        return some(
            every((self.first.fits(a, scene), self.second.fits(b, scene), is_related(a, self.relation, b)))
            for a in scene.things
            for b in scene.things
        )

    def words(self, voice: Voice) -> str:
        """Both noun phrases, each with its article."""
        first, second = with_article(self.first.words(voice)), with_article(self.second.words(voice))
        return f"{first} {voice[self.relation]} {second}"


@dataclass(frozen=True, slots=True)
class Caption:
    """Statements that hold together and, with ``total``, how many things there are in all."""

    statements: tuple[Exists | Related, ...]
    total: int | None = None

    def truth(self, scene: Scene) -> Truth:
        """Against a scene; None where it hangs on a matter of opinion."""
        counted = self.total in (None, len(scene.things))
        return every((counted, *(statement.truth(scene) for statement in self.statements)))

    def words(self, rng: random.Random) -> str:
        """A sentence, as people caption photographs."""
        voice = choose_voice(rng)
        first, *rest = (statement.words(voice) for statement in self.statements)
        if self.total == 1:
            said = rng.choice(ALONE).format(first.split(" ", 1)[1], first)
        else:
            be = "is" if first.startswith(("a ", "an ")) else "are"
            listed = self._join(first, rest)
            frame = rng.choice(PLAIN if self.total is None else COMPLETE if self._is_complete() else TOTAL)
            objects = f"{voice['object']}s"
            said = frame.format(n=NUMBERS[self.total or 0], all=listed, be=be, objects=objects)
        return said[0].upper() + said[1:] + "."

    def _join(self, first: str, rest: list[str]) -> str:
        """After a relation "with", since "left of a star and a ring" might mean both."""
        if not rest:
            return first
        listed = " and ".join(filter(None, (", ".join(rest[:-1]), rest[-1])))
        if isinstance(self.statements[0], Related):
            return f"{first}, with {listed}"
        return f"{first}, {listed}" if len(rest) > 1 else f"{first} and {listed}"

    def _is_complete(self) -> bool:
        """Whether the statements account for everything there is."""
        return self.total == sum(statement.count or 1 for statement in self.statements if isinstance(statement, Exists))


def sample_captions(scene: Scene, rng: random.Random) -> list[tuple[Caption, str]]:
    """Five captions, all true, each with its own words; kinds of caption change from one to the next.

    It ends: even things that are all alike can be listed in three wordings and counted in four.
    """
    kinds = [_alone] if len(scene.things) == 1 else [_listed, _placed, _related, _totalled, _grouped]
    rng.shuffle(kinds)
    captions: dict[str, Caption] = {}
    turn = 0
    while len(captions) < CAPTIONS:
        caption = kinds[turn % len(kinds)](scene, rng)
        turn += 1
        if caption and caption.statements and caption.truth(scene) and not _is_vague(caption, scene):
            words = caption.words(rng)
            if len(words.split()) <= MAX_WORDS:
                captions.setdefault(words, caption)
    return [(caption, words) for words, caption in captions.items()]


def _is_vague(caption: Caption, scene: Scene) -> bool:
    """Whether it mentions one kind only, and there is more."""
    only = caption.statements[0]
    return len(caption.statements) == 1 and isinstance(only, Exists) and (only.count or 1) < len(scene.things)


def _alone(scene: Scene, rng: random.Random) -> Caption:
    return Caption(tuple(_mentions(scene, rng, 1, sized=True, placed=1)), total=1)


def _listed(scene: Scene, rng: random.Random) -> Caption:
    sized = len(scene.things) < 3 or rng.random() < 0.6
    kinds = {_describe(thing, True) for thing in scene.things}
    return Caption(tuple(_mentions(scene, rng, 3, sized, placed=1 if len(kinds) == 2 else 0)))


def _placed(scene: Scene, rng: random.Random) -> Caption:
    sized = len(scene.things) < 3 or rng.random() < 0.4
    return Caption(tuple(_mentions(scene, rng, 2 if sized else 3, sized, placed=2)))


def _totalled(scene: Scene, rng: random.Random) -> Caption:
    sized = len(scene.things) < 3 or rng.random() < 0.5
    return Caption(tuple(_mentions(scene, rng, 3, sized, placed=0)), total=len(scene.things))


def _related(scene: Scene, rng: random.Random) -> Caption | None:
    sized = len(scene.things) < 3 or rng.random() < 0.5
    a, b = rng.sample(scene.things, 2)
    relations = [relation for relation in DIRECTIONS if is_related(a, relation, b)]
    first, second = _describe(a, sized), _describe(b, sized)
    if not relations or first == second:
        return None
    said = Related(first, rng.choice(relations), second)
    covered = [thing for thing in scene.things if first.is_kind(thing) or second.is_kind(thing)]
    others = _mentions(scene, rng, 1, sized, placed=rng.randint(0, 1), covered=covered)
    return Caption((said, *others)) if others or sized else None


def _grouped(scene: Scene, rng: random.Random) -> Caption | None:
    """Things of one shape or one colour as a group, and some of the others."""
    leader = rng.choice(scene.things)
    group = rng.choice((Description(shape=leader.shape), Description(color=leader.color)))
    covered = group.found(scene) or []
    if not 2 <= len(covered) < len(scene.things):
        return None
    others = _mentions(scene, rng, 2, sized=True, placed=1, covered=covered)
    return Caption((Exists(group, len(covered)), *others))


def _mentions(
    scene: Scene, rng: random.Random, most: int, sized: bool, placed: int, covered: list[Thing] | None = None
) -> list[Exists]:
    """Up to ``most`` mentions that share no thing, nor any of ``covered``; the first ``placed`` of them say where."""
    seen = list(covered or [])
    mentions: list[Exists] = []
    for thing in rng.sample(scene.things, len(scene.things)):
        description = _describe(thing, sized, _where(thing, rng) if len(mentions) < placed else None)
        found = description.found(scene)
        if len(mentions) < most and found and not any(other in seen for other in found):
            mentions.append(Exists(description, len(found) if len(found) > 1 else None))
            seen += found
    return mentions


def _describe(thing: Thing, sized: bool, place: str | None = None) -> Description:
    return Description(thing.color, thing.shape, thing.size if sized else None, place)


def _where(thing: Thing, rng: random.Random) -> str | None:
    """A place the thing surely is in, a corner rather than a side."""
    places = [place for place in PLACES if is_at(thing, place)]
    corners = [place for place in places if place in CORNERS]
    return rng.choice(corners or places or [""]) or None
