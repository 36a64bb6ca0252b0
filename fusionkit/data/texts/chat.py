"""A chat template writes a conversation as one text, which is tokenised once; its characters tell which tokens are learnt."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.data.tables.child import Bounds, Exceeded, in_child
from fusionkit.data.texts.conversations import ASSISTANT, USER, Conversation, parts_of
from fusionkit.errors import ConfigError, DataError
from fusionkit.internals import on_one_day
from fusionkit.losses import IGNORE

# where a tokenizer brings no template: LLaVA 1.5's (vicuna_v1) without its opening sentence, between the tokenizer's own ends
PLAIN = (
    "{{ cls_token }}{% for message in messages %}{% if message.role == 'user' %}USER: {{ message.content }} "
    "{% elif message.role == 'assistant' %}ASSISTANT: {{ message.content }}{{ sep_token }}{% else %}{{ message.content }} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
LONGEST = 2**20  # characters that a template may write beside what is said
MARK, PICTURE = "\ue000", "\ue001"  # of private use, so that no text has them
PROBE = Conversation((USER, ASSISTANT) * 2, ("a", "b", "c", "d"))


class Written(NamedTuple):
    """A conversation as one text."""

    text: str
    said: list[tuple[int, int]]  # the characters of each reply, with what ends it
    ends: list[str]  # the special token that ends each
    prompt: int  # how many first characters the last reply follows
    places: list[int]  # how many characters stand before each picture that has a place


Place = tuple[int, int]  # the number of a picture, and that of the first token that sees it
FIRST = [(0, 0)]  # the one picture of a conversation, which is read before all turns


class Spelt(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    targets: list[int]  # the tokens that the assistant says, the ends of its turns included; IGNORE for all others
    words: list[int]  # the number of the word that each belongs to, or -1
    prompt: list[int]  # what the last reply, which is to be said, follows
    is_cut: bool
    places: list[Place]  # of the pictures among ``ids``
    prompt_places: list[Place]


class ChatTemplate:
    """Conversations as tokens: by ``template`` (Jinja), or None for the tokenizer's own; where it has none, by ``PLAIN``.

    The assistant says its words and the special token that the template puts behind them. Special tokens that are spelt out in
    what people say are broken by a space, so that nobody's words are taken for the end of a turn. Templates run in
    transformers' sandbox, which bounds neither time nor memory: a probe of others than ``PLAIN`` is written with such bounds.
    Raises ConfigError, naming ``key`` or the tokenizer, for a template that leaves out a reply, does not end it, or takes too
    much.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, key: str = "chat_template") -> None:
        own = f"the chat template of tokenizer={tokenizer.name_or_path}"
        self.tokenizer, self.key = tokenizer, key if template or not tokenizer.chat_template else own
        self.template = template or (None if tokenizer.chat_template else PLAIN)
        added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special = sorted(added | set(tokenizer.all_special_tokens), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)))
        self._end = re.compile(rf"\s*({self._special.pattern})")
        try:
            probe = partial(self.write, PROBE, "of a probe")
            written = probe() if self.template is PLAIN else in_child(probe, Bounds())
        except DataError as error:
            raise ConfigError(f"{self.key}: {error}") from error
        except Exceeded as error:
            raise ConfigError(f"{self.key}: the template takes {error} for two questions; give another") from error
        if len(ends := sorted(set(written.ends))) > 1:
            raise ConfigError(f"{self.key}: replies end with {' or '.join(ends)}; give a template that ends all alike")
        self.end: int = tokenizer.convert_tokens_to_ids(ends[0])

    def write(self, conversation: Conversation, name: str) -> Written:
        """The text of a conversation, with the place of each reply; one that ends with the user's words up to the reply to them.

        Raises DataError, in which the conversation has its ``name``, where the template does not take it, and ConfigError.
        """
        roles = conversation.roles
        words = [self._plain(role, said) for role, said in zip(roles, conversation.turns, strict=True)]
        is_open = conversation.reply is None
        if is_open:
            roles, words = (*roles, ASSISTANT), [*words, ""]
        marks = [f"{MARK}{number}{MARK}" for number in range(len(roles))]
        hidden = [mark if role == ASSISTANT else said for role, said, mark in zip(roles, words, marks, strict=True)]
        rest, text, prompt = self._render(roles, hidden, name), "", 0
        said, ends = list[tuple[int, int]](), list[str]()
        for number in (number for number, role in enumerate(roles) if role == ASSISTANT):
            before, mark, rest = rest.partition(marks[number])
            if not mark or marks[number] in rest:
                raise ConfigError(
                    f"{self.key}: the template writes {'again' if mark else 'nothing of'} what the assistant says; give another"
                )
            text += before
            prompt = len(text.rstrip(" "))  # a space belongs to the token behind it
            text += words[number]
            if (end := self._end.match(rest)) is None:
                raise ConfigError(
                    f"{self.key}: the template puts no special token behind what the assistant says ({rest[:20]!r}), so that a "
                    "reply has no end; give one that ends each reply by a special token of the tokenizer"
                )
            said.append((prompt, len(text) + end.end()))
            ends.append(end.group(1))
        text += rest
        if is_open:
            return _without_pictures(Written(text[:prompt], said[:-1], ends[:-1], prompt, []), conversation, name)
        if text != self._render(roles, words, name):
            raise DataError(
                f"the chat template changes what the assistant says in the conversation {name}; correct or remove it"
            )
        return _without_pictures(Written(text, said, ends, prompt, []), conversation, name)

    def spell(self, conversations: Sequence[tuple[Any, Conversation]], max_length: int) -> list[Spelt]:
        """Each conversation, with its id, in at most ``max_length`` tokens.

        A longer one is cut behind the last whole reply that fits, or else within its first reply. Its prompt loses the oldest
        turns instead, and where the last question alone is too long, the beginning of that.
        """
        written = [self.write(conversation, str(name)) for name, conversation in conversations]
        if not written:
            return []
        encoded = self.tokenizer(
            [each.text for each in written], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        rows = []
        for row, (each, (name, conversation)) in enumerate(zip(written, conversations, strict=True)):
            ids, places = encoded["input_ids"][row], encoded["offset_mapping"][row]
            is_said = said_tokens(places, each.said)
            first = next(
                (at for at, (start, stop) in enumerate(places) if start >= each.prompt or stop > each.prompt), len(ids)
            )
            length = len(ids) if len(ids) <= max_length else _whole_replies(places, each.said, max_length)
            targets = [token if said else IGNORE for token, said in zip(ids, is_said, strict=True)]
            words = [-1 if word is None else word for word in encoded.word_ids(row)]
            seen = FIRST if not each.places else list(enumerate(first_tokens(places, each.places)))
            prompt = ids[:first], [place for place in seen if place[1] <= first]
            if first > max_length:
                prompt = self._shortened(conversation, name, max_length)
            kept = [place for place in seen if place[1] < length]
            rows.append(
                Spelt(ids[:length], targets[:length], words[:length], prompt[0], length < len(ids), kept, prompt[1])
            )
        return rows

    def rows(self, spelt: Sequence[Spelt], pad: int) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``word_index`` and ``targets`` (T, L), ``prompt_ids`` and ``prompt_mask`` (T, P),
        and ``end`` (T,), the token that a reply ends with."""
        return {
            "input_ids": _padded((each.ids for each in spelt), pad),
            "attention_mask": _padded(([1] * len(each.ids) for each in spelt), 0),
            "word_index": _padded((each.words for each in spelt), -1),
            "targets": _padded((each.targets for each in spelt), IGNORE),
            "prompt_ids": _padded((each.prompt for each in spelt), pad),
            "prompt_mask": _padded(([1] * len(each.prompt) for each in spelt), 0),
            "end": torch.full((len(spelt),), self.end),
        }

    def _shortened(self, conversation: Conversation, name: Any, max_length: int) -> tuple[list[int], list[Place]]:
        """The tokens of what the last reply is to, without as many of the oldest turns as do not fit, and their pictures."""
        history = conversation.before_reply
        while True:
            written = self.write(history, str(name))
            encoded = self.tokenizer(written.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            ids: list[int] = encoded["input_ids"]
            shorter = history.without_oldest()
            if len(ids) <= max_length or shorter == history:
                break
            history = shorter
        cut, left_out = max(0, len(ids) - max_length), conversation.before_reply.places - len(written.places)
        seen = enumerate(first_tokens(encoded["offset_mapping"], written.places), start=left_out)
        places = [(number, max(0, token - cut)) for number, token in seen]
        return ids[cut:], places if conversation.places else FIRST

    def _render(self, roles: Sequence[str], words: Sequence[str], name: str) -> str:
        messages = [{"role": role, "content": said} for role, said in zip(roles, words, strict=True)]
        try:
            with on_one_day():  # what a model was trained on does not change with the calendar
                text = self.tokenizer.apply_chat_template(messages, chat_template=self.template, tokenize=False)
        except MemoryError:  # of which there is a bound
            raise
        except Exception as error:  # whatever a template makes of its messages
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"the chat template does not take the conversation {name} ({reason}); correct or remove it"
            ) from error
        if len(text) > LONGEST + sum(map(len, words)):
            raise ConfigError(
                f"{self.key}: the template makes {len(text):,} characters of a conversation; give another"
            )
        return str(text)

    def _plain(self, role: str, said: str) -> str:
        """What somebody says without special tokens; PICTURE in the place of the user's pictures, a space before it or none."""
        if role != USER:
            return self._without_special(said.replace(PICTURE, ""))
        text, *parts = map(self._without_special, parts_of(said.replace(PICTURE, "")))
        waiting = ""
        for part in parts:
            waiting += PICTURE
            if part:
                text, waiting = f"{text}{' ' * bool(text)}{waiting}{part}", ""
        return text + waiting

    def _without_special(self, said: str) -> str:
        return self._special.sub(
            lambda found: f"{found.group()[0]} {found.group()[1:]}", said.replace(MARK, "")
        ).strip()


def _without_pictures(written: Written, conversation: Conversation, name: str) -> Written:
    """The text without the marks of pictures, whose places are told instead. Raises DataError."""
    marks = [found.start() for found in re.finditer(PICTURE, written.text)]
    if len(marks) != conversation.places:
        raise DataError(
            f"the chat template writes {len(marks)} of the {conversation.places} pictures of the conversation {name}; correct or "
            "remove it"
        )
    said = [(start - bisect_left(marks, start), stop - bisect_left(marks, stop)) for start, stop in written.said]
    places = [mark - number for number, mark in enumerate(marks)]
    prompt = written.prompt - bisect_left(marks, written.prompt)
    return Written(written.text.replace(PICTURE, ""), said, written.ends, prompt, places)


def first_tokens(spans: Sequence[tuple[int, int]], places: Sequence[int]) -> list[int]:
    """The number of the first token, of those from a character to another, that has one behind each place; else their count."""
    return [next((at for at, (_, stop) in enumerate(spans) if stop > place), len(spans)) for place in places]


def place_tensor(places: Sequence[Sequence[Place]], images: Sequence[Sequence[int]]) -> Tensor:
    """(T, K, 2), the ``image_index`` of texts whose pictures have places, of the image rows of each text's pictures."""
    rows = [[(own[number], token) for number, token in each] for each, own in zip(places, images, strict=True)]
    most = max(1, *(len(row) for row in rows))
    return torch.tensor([[*row, *[(-1, 0)] * (most - len(row))] for row in rows])


def said_tokens(places: Sequence[tuple[int, int]], said: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each token, from a character to another, has a character of the spans that are said; these are in order."""
    starts, stops = [start for start, _ in said], [stop for _, stop in said]
    found = []
    for start, stop in places:
        at = bisect_right(stops, start)  # the first span that ends behind the token's start
        found.append(at < len(said) and (stop > starts[at] or start >= starts[at]))
    return found


def _whole_replies(places: Sequence[tuple[int, int]], said: Sequence[tuple[int, int]], most: int) -> int:
    """How many of at most ``most`` first tokens end with a whole reply; all of them where none does."""
    ends = {stop for _, stop in said}
    return next((length for length in range(most, 0, -1) if places[length - 1][1] in ends), most)


def _padded(rows: Iterable[Sequence[int]], value: int) -> Tensor:
    """Rows (T, L) of numbers at the length of the longest, (0, 1) of none."""
    kept = [torch.tensor(row, dtype=torch.long) for row in rows]
    if not kept:
        return torch.zeros(0, 1, dtype=torch.long)
    return torch.nn.utils.rnn.pad_sequence(kept, batch_first=True, padding_value=value)
