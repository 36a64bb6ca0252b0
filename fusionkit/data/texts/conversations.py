"""Conversations about images: who says what, as data sets write it down."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fusionkit.data.sample import Text
from fusionkit.errors import DataError, suggest
from fusionkit.files.unicode import readable

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ROLES = {SYSTEM: SYSTEM, USER: USER, "human": USER, ASSISTANT: ASSISTANT, "gpt": ASSISTANT}
CONVERSATIONS = "conversations"  # the kind of such texts
IMAGE_TOKEN = "<image>"  # LLaVA's place of the picture in a text
LLAVA = ("from", "value")
TURNS = "turns"  # the fact that conversations have
PICTURES = "pictures"  # the fact of a conversation that says which image of its sample is at each place; else they are in order


class Conversation(NamedTuple):
    """The turns of a conversation, in order. Each IMAGE_TOKEN of the user is the place of a picture; without any, the one picture
    is read before all turns."""

    roles: tuple[str, ...]  # of SYSTEM, USER, ASSISTANT
    turns: tuple[str, ...]  # what each says

    @property
    def places(self) -> int:
        """How many pictures have a place."""
        return sum(said.count(IMAGE_TOKEN) for role, said in zip(self.roles, self.turns, strict=True) if role == USER)

    def read_first(self) -> "Conversation":
        """Without the place of a picture that is the only one, and in the first turn of the user: it is read before all turns."""
        first = self.roles.index(USER) if USER in self.roles else 0
        if self.places != 1 or IMAGE_TOKEN not in self.turns[first]:
            return self
        words = " ".join(part for part in parts_of(self.turns[first]) if part)
        return self._replace(turns=(*self.turns[:first], words, *self.turns[first + 1 :]))

    @classmethod
    def of(cls, text: Text) -> "Conversation":
        """That of a text of the kind "conversations"."""
        return cls(tuple(text.facts["roles"]), tuple(text.facts[TURNS]))

    def text(self, id: int | str) -> Text:
        """As a text of the kind "conversations"."""
        return Text(id, self.shown(), {"roles": list(self.roles), TURNS: list(self.turns)})

    def shown(self) -> str:
        """For people to read, a turn a line."""
        return "\n".join(f"{role}: {said}" for role, said in zip(self.roles, self.turns, strict=True))

    @property
    def reply(self) -> str | None:
        """What the assistant says last; None where the user has the last word."""
        return self.turns[-1] if self.roles[-1:] == (ASSISTANT,) else None

    @property
    def before_reply(self) -> "Conversation":
        """What the last reply is to."""
        return Conversation(self.roles[:-1], self.turns[:-1]) if self.reply is not None else self

    def without_oldest(self) -> "Conversation":
        """Without the first turn of the user and what follows up to his next one; itself where he has only one."""
        places = [place for place, role in enumerate(self.roles) if role == USER]
        if len(places) < 2:
            return self
        kept = [*range(places[0]), *range(places[1], len(self.roles))]
        return Conversation(tuple(self.roles[n] for n in kept), tuple(self.turns[n] for n in kept))


def read_conversation(given: Any, where: str) -> Conversation:
    """A conversation of LLaVA's turns, {"from", "value"}, or messages, {"role", "content"}, about pictures.

    Content is a text, or a list of {"type": "text", "text": ...} and {"type": "image"}. Pictures stand where the user shows them
    (``Conversation``); neighbouring turns of one speaker are one turn, and what the assistant says before the user is left out.
    Raises DataError, with ``where`` it stands, for anything else.
    """
    said: list[list[str]] = []
    is_asked = False
    for turn in turns_of(given, where):
        who, content = LLAVA if LLAVA[0] in turn else ("role", "content")
        role = ROLES.get(str(turn.get(who)))
        if role is None:
            raise DataError(f"{where} has a turn of '{turn.get(who)}'; {suggest(str(turn.get(who)), ROLES)}")
        words = _words(turn.get(content), where)
        if role != USER and IMAGE_TOKEN in words:
            raise DataError(
                f"{where} has {IMAGE_TOKEN} in a turn of the {role}, but pictures are shown by the user; move it to a turn of "
                "the user, or leave the row out"
            )
        if role == ASSISTANT and not is_asked:
            continue
        is_asked = is_asked or role == USER
        if said and said[-1][0] == role:
            said[-1][1] = f"{said[-1][1]}\n{words}".strip()
        else:
            said.append([role, words])
    roles, turns = tuple(role for role, _ in said), tuple(_placed(words) for _, words in said)
    return Conversation(roles, turns).read_first()


def turns_of(given: Any, where: str) -> Sequence[dict[str, Any]]:
    """The turns of a conversation. Raises DataError for what is none."""
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(turn, dict) for turn in given):
        raise DataError(
            f"{where} has the conversation {str(given)[:60]!r}, but a conversation is a list of turns, each saying who says "
            'what: [{"role": "user", "content": "what is this?"}, ...]'
        )
    return given


def pictures_named(given: Any, where: str) -> list[str]:
    """The files that messages name for their pictures, in order.

    Such are {"type": "image", "image": "a.jpg"}, also "path" or "url", and {"type": "image_url", "image_url": {"url": "a.jpg"}}
    """
    found = []
    for turn in turns_of(given, where):
        content = turn.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
                names = [part.get(key) for key in ("image", "path", "url", "image_url")]
                plain = [name.get("url") if isinstance(name, dict) else name for name in names]
                found += [name for name in plain if isinstance(name, str)][:1]
    return found


def require_places(conversation: Conversation, pictures: int, where: str) -> None:
    """Raise DataError unless each picture has its place; one alone needs none."""
    places = conversation.places
    if places != pictures and (places or pictures > 1):
        shown = f"{places} {IMAGE_TOKEN}" if places else f"no {IMAGE_TOKEN}, or only one,"
        raise DataError(
            f"{where} has {shown} in what the user says, but {pictures} picture{'s' * (pictures != 1)}; write {IMAGE_TOKEN} once "
            "where each is seen"
        )


def shown_first(said: str) -> str:
    """What the user says of a picture that is shown first."""
    return f"{IMAGE_TOKEN} {said}"


def parts_of(said: str) -> list[str]:
    """What stands before, between and behind the pictures of a turn; one part more than there are pictures."""
    return [part.strip() for part in said.split(IMAGE_TOKEN)]


def _placed(said: str) -> str:
    """A turn with its pictures a space apart from its words."""
    if IMAGE_TOKEN not in said:
        return said
    parts = [part.strip() for part in re.split(rf"({IMAGE_TOKEN})", said)]
    return " ".join(part for part in parts if part)


def _words(content: Any, where: str) -> str:
    """The words of a turn, IMAGE_TOKEN in the place of each picture."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    words = list[str]()
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            words.append(IMAGE_TOKEN)
        elif kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        else:
            raise DataError(f"{where} has a turn that says {str(part)[:60]!r}, which is neither words nor a picture")
    return readable("\n".join(words)).strip()
