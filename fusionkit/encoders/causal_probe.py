"""Whether a causal language model reads as its masks, positions and cache say, tried out on made-up texts when it is built."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fusionkit.encoders.probe import differ

LENGTH, GAP = 6, 3  # tokens of a made-up text, and the place of one that is masked
ROUNDING = 1e-4  # of the largest state: what is nearer than that is equal


class Reads(Protocol):
    """What is tried out."""

    def read(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor: ...

    def read_on(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, past: list[tuple[Tensor, Tensor]] | None
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]: ...

    def predict_words(self, states: Tensor) -> Tensor: ...


class ReadsBetween(Protocol):
    """What is tried out of one whose states may be changed before each of its layers."""

    def read(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        before_layer: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor: ...

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        past: list[tuple[Tensor, Tensor]] | None,
        before_layer: Callable[[int, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]: ...


class Whole(NamedTuple):
    """Arguments of ``read``: whole texts, each token of which sees itself and those before it."""

    embeds: Tensor  # (T, L, D)
    mask: Tensor  # (T, L, L) bool
    positions: Tensor  # (T, L)

    @classmethod
    def of(cls, embeds: Tensor) -> "Whole":
        texts, length = embeds.shape[:2]
        square = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()
        places = torch.arange(length, device=embeds.device)
        return cls(embeds, square.expand(texts, -1, -1), places.expand(texts, -1))


def gap_texts(table: nn.Embedding) -> Tensor:
    """Three texts (3, L): one, and others that differ from it in the last, in the first token."""
    words = torch.arange(2, LENGTH + 2, device=table.weight.device)
    texts = words.expand(3, -1).clone()
    texts[1, -1] += 1
    texts[2, 0] += 1
    return texts % table.num_embeddings


def fault_of(model: Reads, embeds: Tensor, logits: Callable[[Tensor], Tensor] | None) -> str | None:
    """What is wrong with how a model reads ``gap_texts``; ``logits`` are the library's own of embeddings, if they are known."""
    text, later, first = (Whole.of(row[None]) for row in embeds)
    states = model.read(*text)
    if states.shape != text.embeds.shape or not states.isfinite().all():
        return "its states are no numbers, or of another width than its embeddings"
    if differ(states[:, :-1], model.read(*later)[:, :-1]):
        return "a token sees those after it"
    if not differ(states[:, -1], model.read(*first)[:, -1]):
        return "a token does not see those before it"
    if not differ(model.read(*_seen_by_all(text))[:, 0], model.read(*_seen_by_all(later))[:, 0]):
        return "it takes no mask that lets a token see later ones"
    if differ(model.read(*_with_gap(text))[:, _kept()], states):
        return "it ignores the mask or the positions that it is given"
    if differ(_in_pieces(model, text), states):
        return "it ignores the cache of earlier keys and values"
    if logits is not None and differ(model.predict_words(states), logits(text.embeds)):
        return "its head does more than a product with the last states"
    return None


def fault_of_layers(model: ReadsBetween, embeds: Tensor, count: int, width: int) -> str | None:
    """What is wrong with how a model lets a call change the states before each of its ``count`` layers of this width."""
    text, met = Whole.of(embeds[:1]), list[tuple[int, tuple[int, ...]]]()

    def leave(number: int, states: Tensor) -> Tensor:
        met.append((number, tuple(states.shape)))
        return states

    plain, left = model.read(*text), model.read(*text, leave)
    if not met:
        return "a call brings nothing to its layers"
    if met != [(number, (1, LENGTH, width)) for number in range(count)]:
        return f"its {count} layers do not take states of width {width} in turn"
    if differ(left, plain):
        return "it reads otherwise where a call brings something to its layers"
    for place in range(count):
        turned = _turned_before(place)
        states = model.read(*text, turned)
        if not differ(states, plain) or differ(model.read_on(*text, None, turned)[0], states):
            return f"it ignores what is done before its layer {place}"
    return None


def _turned_before(place: int) -> Callable[[int, Tensor], Tensor]:
    """Each state with its numbers moved on by one before this layer."""
    return lambda number, states: states.roll(1, dims=2) if number == place else states


def size_of_keys(model: Reads, embeds: Tensor) -> int:
    """How many numbers the keys and values of one token are, over all layers."""
    _, past = model.read_on(*Whole.of(embeds[:1]), None)
    return sum(part.numel() for layer in past for part in layer) // embeds.shape[1]


def _seen_by_all(text: Whole) -> Whole:
    return text._replace(mask=torch.ones_like(text.mask))


def _kept() -> list[int]:
    """Where the tokens of a text stand once another was put at the gap."""
    return [place for place in range(LENGTH + 1) if place != GAP]


def _with_gap(text: Whole) -> Whole:
    """The text with its first token once more at the gap, which none sees and no position counts."""
    order = [*range(GAP), 0, *range(GAP, LENGTH)]
    wider = Whole.of(text.embeds[:, order])
    mask = wider.mask.clone()
    mask[:, :, GAP] = False
    return wider._replace(mask=mask, positions=text.positions[:, [*range(GAP), GAP, *range(GAP, LENGTH)]])


def _in_pieces(model: Reads, text: Whole) -> Tensor:
    """The states of a text with a gap, read in two pieces."""
    wide, cut = _with_gap(text), GAP + 2
    one, past = model.read_on(wide.embeds[:, :cut], wide.mask[:, :cut, :cut], wide.positions[:, :cut], None)
    two, _ = model.read_on(wide.embeds[:, cut:], wide.mask[:, cut:], wide.positions[:, cut:], past)
    return torch.cat([one, two], dim=1)[:, _kept()]
