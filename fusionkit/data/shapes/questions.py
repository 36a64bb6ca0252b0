"""What a question means: its answer in a scene, or None where the scene does not settle it; and its words."""

import random
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol

from fusionkit.data.shapes.meaning import (
    ATTRIBUTES,
    CORNERS,
    OPPOSITE,
    Description,
    choose_voice,
    is_at,
    is_related,
    say_place,
    with_article,
)
from fusionkit.data.shapes.scene import Scene


class Question(Protocol):
    """One thing that may be asked of a scene."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    answer_type: ClassVar[str]

    def answer(self, scene: Scene) -> str | None:
        """The answer that every careful person gives, or None where there is none."""
        ...

    def words(self, rng: random.Random) -> tuple[str, str]:
        """The sentence and its question type: the opening words by which VQA v2 sorts questions."""
        ...


def _yes_no(truth: bool | None) -> str | None:
    return None if truth is None else "yes" if truth else "no"


@dataclass(frozen=True, slots=True)
class IsThere:
    """Is there a large red star?"""

    answer_type: ClassVar[str] = "yes/no"
    description: Description

    def answer(self, scene: Scene) -> str | None:
        """Yes where one surely fits, no where none can be said to."""
        found = self.description.found(scene)
        return _yes_no(None if found is None else bool(found))

    def words(self, rng: random.Random) -> tuple[str, str]:
        """In the singular or the plural."""
        voice = choose_voice(rng)
        one, many = with_article(self.description.words(voice)), self.description.words(voice, plural=True)
        there = (f"is there {one}", "is there a")
        return rng.choice((there, there, (f"are there any {many}", "are there any"), (f"can you see {one}", "can you")))


@dataclass(frozen=True, slots=True)
class IsRelated:
    """Is the red star left of the blue circle?"""

    answer_type: ClassVar[str] = "yes/no"
    first: Description
    relation: str
    second: Description

    def answer(self, scene: Scene) -> str | None:
        """None unless both things are singled out and lie clearly so, or clearly the other way round."""
        first, second = self.first.only(scene), self.second.only(scene)
        if first is None or second is None or first is second:
            return None
        if is_related(first, OPPOSITE[self.relation], second):
            return "no"
        return "yes" if is_related(first, self.relation, second) else None

    def words(self, rng: random.Random) -> tuple[str, str]:
        """See Question."""
        voice = choose_voice(rng)
        return f"is the {self.first.words(voice)} {voice[self.relation]} the {self.second.words(voice)}", "is the"


@dataclass(frozen=True, slots=True)
class IsBigger:
    """Is the red star larger than the blue circle? Or, with ``smaller``, smaller?"""

    answer_type: ClassVar[str] = "yes/no"
    first: Description
    second: Description
    smaller: bool = False

    def answer(self, scene: Scene) -> str | None:
        """None unless one thing is large and the other small."""
        first, second = self.first.only(scene), self.second.only(scene)
        if first is None or second is None or first.size == second.size:
            return None
        return _yes_no((first.size == "small") == self.smaller)

    def words(self, rng: random.Random) -> tuple[str, str]:
        """See Question."""
        voice = choose_voice(rng)
        than = "smaller than" if self.smaller else rng.choice(("larger than", "bigger than"))
        return f"is the {self.first.words(voice)} {than} the {self.second.words(voice)}", "is the"


@dataclass(frozen=True, slots=True)
class IsSo:
    """Is the star red? ``claim`` is the description with the doubtful attribute added."""

    answer_type: ClassVar[str] = "yes/no"
    description: Description
    claim: Description

    def answer(self, scene: Scene) -> str | None:
        """None unless one thing is singled out."""
        thing = self.description.only(scene)
        return _yes_no(self.claim.is_kind(thing) if thing else None)

    def words(self, rng: random.Random) -> tuple[str, str]:
        """A shape is a noun, the rest are adjectives."""
        voice = choose_voice(rng)
        claimed = next(name for name in ATTRIBUTES if getattr(self.claim, name) != getattr(self.description, name))
        value = getattr(self.claim, claimed)
        said = with_article(value) if claimed == "shape" else voice.get(value, value)
        return f"is the {self.description.words(voice)} {said}", "is the"


@dataclass(frozen=True, slots=True)
class HowMany:
    """How many red stars are there?"""

    answer_type: ClassVar[str] = "number"
    description: Description

    def answer(self, scene: Scene) -> str | None:
        """In digits."""
        found = self.description.found(scene)
        return None if found is None else str(len(found))

    def words(self, rng: random.Random) -> tuple[str, str]:
        """See Question."""
        voice = choose_voice(rng)
        many = self.description.words(voice, plural=True)
        return rng.choice((f"how many {many} are there", f"how many {many} can you see")), "how many"


@dataclass(frozen=True, slots=True)
class What:
    """What color is the star? What shape is left of the red star? What size is the red star?"""

    answer_type: ClassVar[str] = "other"
    description: Description
    attribute: str

    def answer(self, scene: Scene) -> str | None:
        """None unless one thing is singled out."""
        thing = self.description.only(scene)
        return getattr(thing, self.attribute) if thing else None

    def words(self, rng: random.Random) -> tuple[str, str]:
        """Of a nameless thing one asks "what is left of ...", of any other "what color is the ..."."""
        voice = {**choose_voice(rng), "object": "object"}  # "what shape is the shape" is no question
        said = self.description.words(voice)
        where = self.description.relation or self.description.place
        if self.attribute == "shape" and where and said.startswith("object "):
            return said.replace("object", rng.choice(("what is", "what shape is")), 1), "what is"
        return f"what {self.attribute} is the {said}", f"what {self.attribute} is the"


@dataclass(frozen=True, slots=True)
class Where:
    """Where is the red star? In a corner or the center."""

    answer_type: ClassVar[str] = "other"
    description: Description

    def answer(self, scene: Scene) -> str | None:
        """The corner, or center; None where a thing lies between them."""
        thing = self.description.only(scene)
        if thing is None or is_at(thing, "center") is None:
            return None
        return next((place for place in ("center", *CORNERS) if is_at(thing, place)), None)

    def words(self, rng: random.Random) -> tuple[str, str]:
        """See Question."""
        voice = choose_voice(rng)
        return f"where is the {self.description.words(voice)}", "where is the"


@dataclass(frozen=True, slots=True)
class WhichSide:
    """Is the red star on the left or on the right? At the top or at the bottom?"""

    answer_type: ClassVar[str] = "other"
    description: Description
    sides: tuple[str, str]

    def answer(self, scene: Scene) -> str | None:
        """The side; None near the middle."""
        thing = self.description.only(scene)
        return next((side for side in self.sides if thing and is_at(thing, side)), None)

    def words(self, rng: random.Random) -> tuple[str, str]:
        """See Question."""
        voice = choose_voice(rng)
        first, second = (say_place(side, voice) for side in self.sides)
        return f"is the {self.description.words(voice)} {first} or {second}", "is the"


def speaks_of_held_out(question: Question) -> bool:
    """Whether the question names a colour-shape pair that training must not mention."""
    parts = (getattr(question, field.name) for field in fields(question))
    return any(part.is_held_out for part in parts if isinstance(part, Description))
