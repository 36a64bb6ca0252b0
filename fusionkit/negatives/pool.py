"""Where wrong partners come from: the own batch, the batches of all ranks, or a queue of what went before."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.distributed import gather, gather_with_grad, largest_of_ranks, rank, world_size
from fusionkit.errors import ConfigError
from fusionkit.types import Encoded, Memory, Tokens

EMPTY = torch.iinfo(torch.int64).min  # image key of a queue slot that was never filled


class Candidates(NamedTuple):
    """The images and texts that may be drawn; the batch's own stand among them, from ``first_image`` and ``first_text`` on."""

    image: Tokens  # (C_i, N, D)
    memory: Memory  # the images as the fusion wants them, where the pool is the own batch; else None
    image_feats: Tensor  # (C_i, E), constants
    image_keys: Tensor  # (C_i,)
    text: Tokens  # (C_t, L, D)
    text_feats: Tensor  # (C_t, E), constants
    text_keys: Tensor  # (C_t,) of the texts' images
    first_image: int = 0
    first_text: int = 0
    metrics: Mapping[str, Tensor] = MappingProxyType({})  # scalars to log of the pool


class Pool(nn.Module):
    """Base of all: hands out the candidates of a step. ``has_teacher``: whether ``columns`` can give the teacher's features."""

    has_teacher = True

    def forward(self, encoded: Encoded, kind: str, image_keys: Tensor, text_keys: Tensor) -> Candidates:
        """The candidates beside a batch's images (keys (I,)) and its texts of a kind (keys (T,) of their images)."""
        raise NotImplementedError

    def columns(self, feats: Tensor) -> Tensor:
        """Features of the own images or texts -> those of all candidates."""
        return feats

    def partners(self, images: int, ranks: int) -> int:
        """How many other images there are to draw from, for so many in the batch of each rank."""
        return images - 1


class OwnBatch(Pool):
    """The batch of this rank."""

    def forward(self, encoded: Encoded, kind: str, image_keys: Tensor, text_keys: Tensor) -> Candidates:
        return Candidates(
            encoded.image,
            encoded.memory,
            encoded.image_feats.detach(),
            image_keys,
            encoded.text[kind],
            encoded.text_feats[kind].detach(),
            text_keys,
        )


class AllRanks(Pool):
    """The batches of all ranks: as if one process had drawn from the joint batch, gradients included.

    Costs gathering the token states of all images and texts (and their gradients), and preparing the foreign images that are
    drawn. One process alone is OwnBatch.
    """

    def forward(self, encoded: Encoded, kind: str, image_keys: Tensor, text_keys: Tensor) -> Candidates:
        if world_size() == 1:
            own: Candidates = OwnBatch()(encoded, kind, image_keys, text_keys)
            return own
        text = encoded.text[kind]
        image, longest = encoded.image, largest_of_ranks(text.embeds.shape[1], text.embeds.device)
        if image.mask is not None:  # regions, of which every image has its own number
            image = lengthen(image, largest_of_ranks(image.embeds.shape[1], image.embeds.device))
        counts = gather(torch.tensor([[len(image_keys), len(text_keys)]], device=image_keys.device))
        before = counts[: rank()].sum(dim=0).tolist()
        return Candidates(
            _gathered(image),
            None,
            gather(encoded.image_feats),
            gather(image_keys),
            _gathered(lengthen(text, longest)),
            gather(encoded.text_feats[kind]),
            gather(text_keys),
            *before,
        )

    def columns(self, feats: Tensor) -> Tensor:
        return gather(feats)

    def partners(self, images: int, ranks: int) -> int:
        return images * ranks - 1


class Queue(Pool):
    """The own batch and the last ``size`` images and texts of all ranks, as constants.

    Their token states were made by the weights of some steps ago. They are state (saved in checkpoints) of
    size * (N * D + L * D_text) numbers; give ``image_shape`` (N, D) of the image tokens, ``text_shape`` (L, D) with the
    longest text, and ``embed_size`` of the contrastive space: a run that has others says which.
    """

    has_teacher = False

    def __init__(self, size: int, image_shape: Sequence[int], text_shape: Sequence[int], embed_size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"negatives.pool.size is {size}; give at least 1, or use negatives=in_batch")
        self.shapes = {"image": tuple(image_shape), "text": tuple(text_shape)}
        for name, shape in self.shapes.items():
            self.register_buffer(f"{name}_embeds", torch.zeros(size, *shape))
            self.register_buffer(f"{name}_mask", torch.zeros(size, shape[0], dtype=torch.int64))
            self.register_buffer(f"{name}_pooled", torch.zeros(size, shape[1]))
            self.register_buffer(f"{name}_feats", torch.zeros(size, embed_size))
            self.register_buffer(f"{name}_keys", torch.full((size,), EMPTY, dtype=torch.int64))
            self.register_buffer(f"{name}_pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, encoded: Encoded, kind: str, image_keys: Tensor, text_keys: Tensor) -> Candidates:
        image, text = encoded.image, lengthen(encoded.text[kind], self.shapes["text"][0])
        if image.mask is not None:
            image = lengthen(image, self.shapes["image"][0])
        parts = {
            "image": (image, encoded.image_feats.detach(), image_keys),
            "text": (text, encoded.text_feats[kind].detach(), text_keys),
        }
        ages = queue_ages(self.get_buffer("image_keys"), len(image_keys) * world_size())
        joined: list[Any] = []
        for name, (tokens, feats, keys) in parts.items():
            self._require_shape(name, tokens, feats)
            queued = Tokens(*(self.get_buffer(f"{name}_{part}") for part in ("embeds", "mask", "pooled")))
            joined += [
                _joined(tokens, queued),
                torch.cat([feats, self.get_buffer(f"{name}_feats")]),
                torch.cat([keys, self.get_buffer(f"{name}_keys")]),
            ]
        if self.training:
            for name, (tokens, feats, keys) in parts.items():
                self._push(name, tokens, feats, keys)
        image, image_feats, image_keys, text, text_feats, text_keys = joined
        return Candidates(image, None, image_feats, image_keys, text, text_feats, text_keys, metrics=ages)

    def partners(self, images: int, ranks: int) -> int:
        return images - 1 + len(self.get_buffer("image_keys"))

    def _push(self, name: str, tokens: Tokens, feats: Tensor, keys: Tensor) -> None:
        """Append the rows of all ranks, overwriting the oldest, so that each has the same queue; none if one is not finite."""
        values = {"embeds": tokens.embeds, "mask": _mask(tokens), "pooled": tokens.pooled, "feats": feats, "keys": keys}
        buffers = {key: self.get_buffer(f"{name}_{key}") for key in values}
        gathered = {key: gather(value) for key, value in values.items()}
        overwrite_oldest(buffers, self.get_buffer(f"{name}_pointer"), gathered)

    def _require_shape(self, name: str, tokens: Tokens, feats: Tensor) -> None:
        found, expected = tuple(tokens.embeds.shape[1:]), self.shapes[name]
        if found != expected:
            raise ConfigError(
                f"negatives.pool.{name}_shape is {list(expected)}, but the {name} states of this run are {list(found)}; "
                f"set negatives.pool.{name}_shape=[{found[0]},{found[1]}]"
            )
        if feats.shape[1] != self.get_buffer(f"{name}_feats").shape[1]:
            raise ConfigError(f"negatives.pool.embed_size: the model's is {feats.shape[1]}; set it to that")


def due(pointer: Tensor, rows: int, size: int) -> Tensor:
    """The places of a queue of some size that so many rows are written to next; the newest ones alone where they are more."""
    return (pointer + torch.arange(min(rows, size), device=pointer.device)) % size


@torch.no_grad()
def overwrite_oldest(buffers: Mapping[str, Tensor], pointer: Tensor, rows: Mapping[str, Tensor]) -> None:
    """Put rows (B, ...) into buffers (Q, ...) of the same names from the pointer on, and move it; none if one is not finite."""
    size = len(next(iter(buffers.values())))
    kept = {name: part[-size:] for name, part in rows.items()}
    is_finite = torch.stack([part.isfinite().all() for part in kept.values()]).all()
    count = len(next(iter(kept.values())))
    places = due(pointer, count, size)
    for name, part in kept.items():
        buffers[name][places] = torch.where(is_finite, part.to(buffers[name].dtype), buffers[name][places])
    pointer.copy_((pointer + count * is_finite) % size)


def queue_ages(keys: Tensor, pushed: int) -> dict[str, Tensor]:
    """How many steps ago the entries of a queue were written, their mean and the oldest's; 0 while it is empty.

    Read off how many of its keys (Q,) are not EMPTY, at a step that adds ``pushed`` rows as those before it did: so it needs
    no state, and waits for no device.
    """
    filled = (keys != EMPTY).sum()
    whole = filled // pushed  # steps whose rows are all there
    rest = filled - whole * pushed
    total = pushed * whole * (whole + 1) / 2 + rest * (whole + 1)
    return {"queue_age": total / filled.clamp(min=1), "queue_age_max": (whole + (rest > 0)).float()}


def lengthen(tokens: Tokens, length: int) -> Tokens:
    """Tokens with a mask padded to a length; those that are longer stay as they are."""
    assert tokens.mask is not None
    more = max(0, length - tokens.embeds.shape[1])
    return Tokens(F.pad(tokens.embeds, (0, 0, 0, more)), F.pad(tokens.mask, (0, more)), tokens.pooled)


def _mask(tokens: Tokens) -> Tensor:
    return tokens.embeds.new_ones(tokens.embeds.shape[:2], dtype=torch.int64) if tokens.mask is None else tokens.mask


def _joined(own: Tokens, others: Tokens) -> Tokens:
    """Own rows, then constants, in new memory: the queue moves on before the backward pass."""
    return Tokens(
        torch.cat([own.embeds, others.embeds.to(own.embeds.dtype)]),
        torch.cat([_mask(own), _mask(others).to(_mask(own).dtype)]),
        torch.cat([own.pooled, others.pooled.to(own.pooled.dtype)]),
    )


def _gathered(tokens: Tokens) -> Tokens:
    mask = None if tokens.mask is None else gather(tokens.mask)
    return Tokens(gather_with_grad(tokens.embeds), mask, gather_with_grad(tokens.pooled))
