"""Conversations about an image: who says what, as data sets write it down."""

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


class Conversation(NamedTuple):
    """The turns of a conversation, in order."""

    roles: tuple[str, ...]  # of SYSTEM, USER, ASSISTANT
    turns: tuple[str, ...]  # what each says

    @classmethod
    def of(cls, text: Text) -> "Conversation":
        """That of a text of the kind "conversations"."""
        return cls(tuple(text.facts["roles"]), tuple(text.facts["turns"]))

    def text(self, id: int | str) -> Text:
        """As a text of the kind "conversations"."""
        return Text(id, self.shown(), {"roles": list(self.roles), "turns": list(self.turns)})

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
    """A conversation of LLaVA's turns, {"from", "value"}, or messages, {"role", "content"}, about one picture.

    Content is a text, or a list of {"type": "text", "text": ...} and {"type": "image"}. The picture, which is read before all
    turns, is left out of the first one of the user; neighbouring turns of one speaker are one turn, and what the assistant says
    before the user is left out. Raises DataError, with ``where`` it stands, for anything else.
    """
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(turn, dict) for turn in given):
        raise DataError(
            f"{where} has the conversation {str(given)[:60]!r}, but a conversation is a list of turns, each saying who says "
            'what: [{"role": "user", "content": "what is this?"}, ...]'
        )
    said: list[list[str]] = []
    is_asked = False
    for turn in given:
        who, content = LLAVA if LLAVA[0] in turn else ("role", "content")
        role = ROLES.get(str(turn.get(who)))
        if role is None:
            raise DataError(f"{where} has a turn of '{turn.get(who)}'; {suggest(str(turn.get(who)), ROLES)}")
        words, pictures = _words(turn.get(content), where)
        if pictures and (role != USER or (is_asked and said[-1][0] != USER) or pictures > 1):
            raise DataError(
                f"{where} has {IMAGE_TOKEN} {'more than once' if pictures > 1 else 'behind the first turn of the user'}, but its "
                "one picture is read before all turns; move it there, or leave the row out"
            )
        if role == ASSISTANT and not is_asked:
            continue
        is_asked = is_asked or role == USER
        if said and said[-1][0] == role:
            said[-1][1] = f"{said[-1][1]}\n{words}".strip()
        else:
            said.append([role, words])
    return Conversation(tuple(role for role, _ in said), tuple(words for _, words in said))


def _words(content: Any, where: str) -> tuple[str, int]:
    """The words of a turn, and how many pictures stand among them."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    words, pictures = list[str](), 0
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image", "image_url"):
            pictures += 1
        elif kind == "text" and isinstance(part.get("text"), str):
            pictures += part["text"].count(IMAGE_TOKEN)
            words.append(re.sub(rf"\s*{IMAGE_TOKEN}\s*", " ", part["text"]))
        else:
            raise DataError(f"{where} has a turn that says {str(part)[:60]!r}, which is neither words nor a picture")
    return readable("\n".join(words)).strip(), pictures
