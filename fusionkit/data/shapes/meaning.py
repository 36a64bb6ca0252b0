"""What a description means: three-valued truth against a scene, and the words that say it.

Words and truth come from the same value, so a text cannot say what its scene does not show. Truth is None where people
would argue (an object almost in the middle is neither left nor right): no text rests on such a case.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fusionkit.data.shapes.scene import HELD_OUT, Scene, Thing

Truth = bool | None
Voice = Mapping[str, str]  # which wording a speaker prefers, by word
LOW, HIGH = 0.39, 0.5  # left of LOW is left, right of HIGH is not; mirrored for right, top and bottom
CENTER, OUTSIDE = 0.09, 0.17  # distance from the middle, on the worse axis
APART, BEHIND = 0.12, -0.06  # "left of" holds from APART on, and surely fails from BEHIND on
LEAD = 0.08  # the leftmost leads the next by this much

ATTRIBUTES = ("color", "shape", "size")
DIRECTIONS = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDES = {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1)}
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PLACES = (*CORNERS, "center", *SIDES)
EXTREMES = {"leftmost": ("x", -1), "rightmost": ("x", 1), "highest": ("y", -1), "lowest": ("y", 1)}
SUPERLATIVES = {"largest": "large", "smallest": "small"}

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLURALS = {"cross": "crosses"}
PHRASES = {  # usual wordings of a word; a text keeps to one of them throughout
    "object": ("object", "object", "shape"),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
    "at left": ("on the left",),
    "at right": ("on the right",),
    "at top": ("at the top",),
    "at bottom": ("at the bottom",),
    "at center": ("in the center", "in the middle"),
    "large": ("large", "large", "big"),
    "largest": ("largest", "biggest"),
}


def every(truths: Iterable[Truth]) -> Truth:
    """Three-valued and."""
    result: Truth = True
    for truth in truths:
        if truth is False:
            return False
        result = truth and result
    return result


def some(truths: Iterable[Truth]) -> Truth:
    """Three-valued or."""
    result: Truth = False
    for truth in truths:
        if truth:
            return True
        result = None if truth is None else result
    return result


def is_at(thing: Thing, place: str) -> Truth:
    """Whether the thing lies on a side, in a corner or in the center of the picture."""
    if place == "center":
        off = max(abs(thing.x - 0.5), abs(thing.y - 0.5))
        return True if off <= CENTER else False if off >= OUTSIDE else None
    return every(_is_beside(thing, side) for side in place.split())


def _is_beside(thing: Thing, side: str) -> Truth:
    axis, sign = SIDES[side]
    value = getattr(thing, axis)
    inwards = value if sign < 0 else 1 - value
    return True if inwards <= LOW else False if inwards >= HIGH else None


def is_related(thing: Thing, relation: str, anchor: Thing) -> Truth:
    """Whether the thing is left, right, above or below the anchor, and more so than it is off to the side."""
    if thing is anchor:
        return False
    axis, sign = DIRECTIONS[relation]
    dx, dy = thing.x - anchor.x, thing.y - anchor.y
    along, across = (sign * dx, abs(dy)) if axis == "x" else (sign * dy, abs(dx))
    return False if along <= BEHIND else True if along >= APART and along >= across / 2 else None


def is_extreme(thing: Thing, extreme: str, others: Sequence[Thing]) -> Truth:
    """Whether the thing is the leftmost, ..., smallest of ``others`` (two or more, with itself), by a lead."""
    if extreme in SUPERLATIVES:
        first = [other for other in others if other.size == SUPERLATIVES[extreme]]
        return None if len(first) != 1 or len(others) < 2 else thing is first[0]
    axis, sign = EXTREMES[extreme]
    values = sorted(sign * getattr(other, axis) for other in others)
    if len(values) < 2:
        return None
    own = sign * getattr(thing, axis)
    return False if own <= values[-1] - LEAD else True if own == values[-1] and own - values[-2] >= LEAD else None


@dataclass(frozen=True, slots=True)
class Description:
    """A kind of thing, by what it is, where it is, how it compares with others of its kind, or what it is next to."""

    color: str | None = None
    shape: str | None = None
    size: str | None = None
    place: str | None = None
    extreme: str | None = None
    relation: str | None = None
    anchor: "Description | None" = None

    def is_kind(self, thing: Thing) -> bool:
        """Whether colour, shape and size are as described."""
        return (
            (self.color is None or self.color == thing.color)
            and (self.shape is None or self.shape == thing.shape)
            and (self.size is None or self.size == thing.size)
        )

    @property
    def is_plain(self) -> bool:
        """Whether attributes alone describe it."""
        return not (self.place or self.extreme or self.relation)

    def fits(self, thing: Thing, scene: Scene) -> Truth:
        """Whether the description is true of a thing of the scene."""
        if not self.is_kind(thing):
            return False
        if self.is_plain:
            return True
        truths: list[Truth] = []
        if self.place:
            truths.append(is_at(thing, self.place))
        if self.extreme:
            truths.append(is_extreme(thing, self.extreme, [other for other in scene.things if self.is_kind(other)]))
        if self.relation and self.anchor:
            anchor = self.anchor.only(scene)
            truths.append(is_related(thing, self.relation, anchor) if anchor else None)
        return every(truths)

    def found(self, scene: Scene) -> list[Thing] | None:
        """The things that fit, or None where one of them is a matter of opinion."""
        kinds = [thing for thing in scene.things if self.is_kind(thing)]
        if self.is_plain:
            return kinds
        truths = [self.fits(thing, scene) for thing in kinds]
        return None if None in truths else [thing for thing, truth in zip(kinds, truths, strict=True) if truth]

    def only(self, scene: Scene) -> Thing | None:
        """The one thing that fits, or None where the description does not single one out."""
        found = self.found(scene)
        return found[0] if found and len(found) == 1 else None

    @property
    def is_held_out(self) -> bool:
        """Whether it names a colour-shape pair that training must not speak of."""
        return (self.color, self.shape) in HELD_OUT or bool(self.anchor and self.anchor.is_held_out)

    def words(self, voice: Voice, plural: bool = False) -> str:
        """The noun phrase without its article, e.g. "large red circle in the top left"."""
        noun = self.shape or voice["object"]
        if plural:
            noun = PLURALS.get(noun, noun + "s")
        adjectives = [voice.get(word, word) for word in (self.extreme, self.size, self.color) if word]
        where = [say_place(self.place, voice)] if self.place else []
        if self.relation and self.anchor:
            where.append(f"{voice[self.relation]} the {self.anchor.words(voice)}")
        return " ".join((*adjectives, noun, *where))


def choose_voice(rng: random.Random) -> Voice:
    """How one speaker puts things, for one text."""
    return {word: rng.choice(wordings) for word, wordings in PHRASES.items()}


def say_place(place: str, voice: Voice) -> str:
    """Where, with its preposition: "in the top left"."""
    return voice.get(f"at {place}", f"in the {place}")


def with_article(noun: str) -> str:
    """ "a red circle", "an orange star"."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
