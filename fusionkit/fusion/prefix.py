"""The image as the first tokens of a causal language model (LLaVA, Idefics3, GIT, PaliGemma), read once for all its texts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.fusion.base import KeysValues, ReadsOn
from fusionkit.fusion.layers import Grouping, is_row_by_row, seen_by_image
from fusionkit.fusion.placed_images import PlacedImages, is_placed
from fusionkit.fusion.projectors import Projector
from fusionkit.fusion.reading import (
    causal_mask,
    check_reads_on,
    freeze_head,
    given_mask,
    last_token,
    positions_of,
    read_alone,
    text_positions,
    unjoined,
)
from fusionkit.types import Fused, Tokens

SEES = ("earlier", "image", "text")
PACKED = 8  # most texts of an image that are packed behind one prefix: a mask grows with their square


class Prefix(nn.Module):
    """A ``projector`` makes of the image what the language model, which is the model's text encoder, reads before each text.

    ``sees``      who sees whom. "earlier": every token those before it (LLaVA, Idefics3). "image": the image's tokens one another
                  too (GIT). "text": the image and those first tokens of a text that see one another, such as a question, are one
                  prefix in which all see all (PaliGemma).
    ``cache_mb``  what the keys and values that a text has of its image may weigh in training, in MB.

    The image is first, so that it hangs on no text (but for "text"): it is read once, and its keys and values are the memory.
    Where those weigh too much, or the language model recomputes its layers (activation checkpointing), which keeps no keys and
    values, the texts of an image are instead packed behind one prefix, none of which sees another's; with ``sees`` "text" each
    text is read with its image. All give the same numbers.

    A text with several images is read with all of them, each at its place: before the tokens that see it (not with ``sees``
    "text").
    """

    provides = frozenset({"pooled", "text", "causal", "images"})
    encodes_prompts = False

    def __init__(
        self,
        image_size: int,
        text_size: int,
        projector: Callable[[int, int], Projector],
        sees: str = "earlier",
        cache_mb: float = 32.0,
    ) -> None:
        super().__init__()
        if sees not in SEES:
            raise ConfigError(f"fusion.sees is '{sees}'; {suggest(sees, SEES)}")
        self.hidden_size = self.pooled_size = text_size
        self.projector = projector(image_size, text_size)
        self.sees, self.cache_mb = sees, cache_mb
        if sees == "text":
            self.provides = self.provides - {"images"}
        self._joined: tuple[ReadsOn, ...] = ()  # in a tuple: its parameters are the text encoder's
        self._norms: tuple[Tensor, Tensor] | None = None

    def join(self, language_model: ReadsOn) -> None:
        """Take the language model to read on with."""
        check_reads_on(self, language_model, "behind", "read_on")
        language_model.start_reading_on()
        self._joined = (language_model,)

    @property
    def language_model(self) -> ReadsOn:
        """What reads; ConfigError before ``join``."""
        if not self._joined:
            raise unjoined(self)
        return self._joined[0]

    @property
    def sees_prefix(self) -> bool:
        return self.sees == "text"

    def prefix_length(self, image_tokens: int) -> int:
        return self.projector.count(image_tokens)

    def prepare(self, image: Tokens) -> "Prefilled":
        return self.read_first(*self.projector(image))

    def read_first(self, embeds: Tensor, mask: Tensor | None) -> "Prefilled":
        """The memory of what stands before texts, (I, N, D), of which those of mask (I, N) are real; None: all."""
        real = torch.ones_like(embeds[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        past = None
        if self.sees != "text" and not self.language_model.is_recomputed and self._fits(embeds):
            _, past = self.language_model.read_on(embeds, self._among_image(real), positions_of(real), None)
        self._norms = (embeds.detach().float().norm(dim=-1).mean(), torch.zeros(()))
        return Prefilled(embeds, real, past)

    def forward(self, memory: "Prefilled", text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        self._note(text)
        if is_placed(image_index):
            whole = self._among_images(memory, text, image_index)
            states = self.language_model.read(*whole)[:, -text.embeds.shape[1] :]
        elif memory.past is not None:
            states, _ = self.extend(memory, text, image_index, None)
        elif self.sees == "text" or is_row_by_row():
            whole = self._with_image(memory, text, image_index)
            states = self.language_model.read(*whole)[:, memory.tokens :]
        else:
            states = self._packed(memory, text, image_index)
        return Fused(pooled=last_token(states, text.mask), text=states)

    def extend(
        self, memory: "Prefilled", text: Tokens, image_index: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        if past is None and (memory.past is None or is_placed(image_index)):
            read_with = self._among_images if is_placed(image_index) else self._with_image
            states, past = self.language_model.read_on(*read_with(memory, text, image_index), None)
            return states[:, -text.embeds.shape[1] :], past
        if past is None:
            assert memory.past is not None
            past = [(key[image_index], value[image_index]) for key, value in memory.past]
        image, own = _tokens_of(memory, image_index).flatten(1), self._text_mask(text)
        mask = torch.cat([image[:, None].expand(-1, own.shape[1], -1), own], dim=2)
        positions = image.sum(dim=1, keepdim=True) + text_positions(own)
        return self.language_model.read_on(text.embeds, mask, positions, past)

    def encode_unimodal(self, text: Tokens) -> Tokens:
        """Texts that see no image; pooled is their last token."""
        return read_alone(self.language_model, text, self._text_mask(text))

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Without an image the projector has no gradient, and the head none where no task predicts words."""
        if not needs - {"feats"}:
            self.get_submodule("projector").requires_grad_(False)
        freeze_head(self.language_model, needs)

    def metrics(self) -> dict[str, Tensor]:
        """``norm_ratio``: how long the image's vectors are, in mean lengths of the words' embeddings of the latest pass."""
        if self._norms is None or not self._norms[1]:
            return {}
        return {"norm_ratio": self._norms[0] / self._norms[1]}

    def _note(self, text: Tokens) -> None:
        if self._norms is not None:
            self._norms = (self._norms[0], text.embeds.detach().float().norm(dim=-1).mean())

    def _fits(self, embeds: Tensor) -> bool:
        numbers = embeds.shape[1] * self.language_model.key_size
        return numbers * embeds.element_size() <= self.cache_mb * 2**20

    def _among_image(self, real: Tensor) -> Tensor:
        """(I, N, N) from (I, N): what the image's tokens see of one another."""
        square = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device)
        return (square.tril() if self.sees == "earlier" else square) & real[:, None]

    def _text_mask(self, text: Tokens) -> Tensor:
        """The text's mask as bool (T, L, P + L); but for ``sees`` "text", no token sees later ones, whatever it says."""
        return given_mask(text) if self.sees == "text" else causal_mask(text)

    def _with_image(self, memory: "Prefilled", text: Tokens, image_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings, mask and positions of each text behind its image."""
        own, image = self._text_mask(text), memory.mask[image_index]
        length = own.shape[1]
        behind = torch.zeros_like(own[:, :1])  # what the image sees of the text
        if self.sees == "text":
            assert text.mask is not None
            behind = seen_by_image(text.mask).bool()[:, None]
        above = torch.cat([self._among_image(image), behind.expand(-1, memory.tokens, -1)], dim=2)
        below = torch.cat([image[:, None].expand(-1, length, -1), own], dim=2)
        positions = torch.cat([positions_of(image), image.sum(dim=1, keepdim=True) + text_positions(own)], dim=1)
        embeds = torch.cat([memory.embeds[image_index].to(text.embeds.dtype), text.embeds], dim=1)
        return embeds, torch.cat([above, below], dim=1), positions

    def _among_images(self, memory: "Prefilled", text: Tokens, image_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As ``_with_image``, of texts with several images (T, K, 2): all of these first, at the positions of their places."""
        own, images = self._text_mask(text), PlacedImages.of(image_index)
        image = _tokens_of(memory, image_index)  # (T, K, N)
        (rows, count, tokens), length = image.shape, own.shape[1]
        self._require_room(count * tokens + length, count)
        before = images.before(0, length)
        real = own.diagonal(dim1=1, dim2=2)  # (T, L)
        behind = ~before.transpose(1, 2) & real[:, None]  # (T, K, L): the tokens that an image sees
        within = self._among_image(image.flatten(0, 1)).view(rows, count, tokens, tokens)
        square = torch.ones(count, count, dtype=torch.bool, device=own.device).tril(-1)
        among = (square[:, None, :, None] & image[:, None, None]).expand(-1, -1, tokens, -1, -1).clone()
        places = torch.arange(count, device=own.device)
        among[:, places, :, places] = within.transpose(0, 1)
        above = torch.cat([among.flatten(3).flatten(1, 2), behind.repeat_interleave(tokens, dim=1)], dim=2)
        below = torch.cat([(before[..., None] & image[:, None]).flatten(2), own], dim=2)
        sizes = image.sum(dim=2)  # (T, K)
        earlier = sizes.cumsum(dim=1) - sizes + behind.sum(dim=2)
        positions = torch.cat(
            [
                (earlier[..., None] + positions_of(image.flatten(0, 1)).view_as(image)).flatten(1),
                (before * sizes[:, None]).sum(dim=2) + text_positions(own),
            ],
            dim=1,
        )
        embeds = torch.cat([memory.embeds[images.rows].flatten(1, 2).to(text.embeds.dtype), text.embeds], dim=1)
        return embeds, torch.cat([above, below], dim=1), positions

    def _require_room(self, length: int, count: int) -> None:
        most = self.language_model.max_length
        if most is not None and length > most:
            raise ConfigError(
                f"fusion: a text with {count} images takes {length} positions, but the language model reads {most} at once; give "
                "fewer images, or choose a text_encoder that reads more"
            )

    def _packed(self, memory: "Prefilled", text: Tokens, image_index: Tensor) -> Tensor:
        """States (T, L, D) of texts read side by side behind their image, up to ``PACKED`` a row; none sees another."""
        own = self._text_mask(text)
        images, group = _rows(image_index, len(memory.mask))
        length, slots = own.shape[1], group.slots
        table = torch.zeros(len(images) * slots, length, length, dtype=torch.bool, device=own.device)
        table[group.place] = own
        block = torch.zeros(len(images), slots, length, slots, length, dtype=torch.bool, device=own.device)
        slot = torch.arange(slots, device=own.device)
        block[:, slot, :, slot] = table.view(-1, slots, length, length).transpose(0, 1)
        places = torch.zeros_like(table[:, 0], dtype=torch.long)
        places[group.place] = text_positions(own)
        image = memory.mask[images]
        beside = image[:, None].expand(-1, slots * length, -1)
        mask = torch.cat(
            [
                nn.functional.pad(self._among_image(image), (0, slots * length)),
                torch.cat([beside, block.flatten(3).flatten(1, 2)], dim=2),
            ],
            dim=1,
        )
        positions = torch.cat(
            [positions_of(image), image.sum(dim=1, keepdim=True) + places.view(len(images), -1)], dim=1
        )
        packed = group.gather(text.embeds[:, None])[:, 0]
        embeds = torch.cat([memory.embeds[images].to(packed.dtype), packed], dim=1)
        states = self.language_model.read(embeds, mask, positions)[:, memory.tokens :]
        return group.scatter(states[:, None])[:, 0]


class Prefilled(NamedTuple):
    """What was made of I images."""

    embeds: Tensor  # (I, N, D) what the language model reads in their place
    mask: Tensor  # (I, N) bool, True = real
    past: (
        KeysValues | None
    )  # its keys and values of them, by layer (I, heads, N, d); None: they are read with each text

    @property
    def tokens(self) -> int:
        """N."""
        return self.mask.shape[1]


def _tokens_of(memory: "Prefilled", image_index: Tensor) -> Tensor:
    """Which tokens of each text's image (T, N), or of its images (T, K, N), are real."""
    if not is_placed(image_index):
        return memory.mask[image_index]
    images = PlacedImages.of(image_index)
    return memory.mask[images.rows] & images.real[..., None]


def _rows(image_index: Tensor, images: int) -> tuple[Tensor, Grouping]:
    """Which image is in front of each row (R,), and where the T texts stand in these rows, at most ``PACKED`` in one."""
    whole = Grouping.of(image_index, images)
    slot = whole.place - image_index * whole.slots
    parts = -(-whole.slots // PACKED)
    rows, row_of_text = (image_index * parts + slot // PACKED).unique(return_inverse=True)
    return rows // parts, Grouping.of(row_of_text, len(rows))
