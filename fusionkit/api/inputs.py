"""What a notebook gives: images in any form, one or several, with texts, and what it gets: one or several."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.data.requests import Request
from fusionkit.errors import ConfigError
from fusionkit.types import Tokens

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""A file, a PIL image, or uint8 numbers: an array (H, W) or (H, W, 3), a tensor (3, H, W)."""


def several(given: Any, what: str) -> tuple[list[Any], bool]:
    """A list of what was given, and whether it was one."""
    is_batch = isinstance(given, np.ndarray | Tensor) and given.ndim == 4
    is_conversation = isinstance(given, list | tuple) and any(isinstance(each, dict) for each in given)
    if is_conversation or not (is_batch or isinstance(given, list | tuple)):
        return [given], True
    if not len(given):
        raise ConfigError(f"no {what} is given; give one, or a list of at least one")
    return list(given), False


def paired(requests: Sequence[Request], texts: Sequence[str], word: str) -> Iterator[tuple[Request, str]]:
    """Each text with its image; one of either goes with all of the other."""
    if len(requests) != len(texts) and 1 not in (len(requests), len(texts)):
        raise ConfigError(
            f"{len(requests)} images and {len(texts)} texts ({word}) are given; give as many of one as of the other, or one"
        )
    count = max(len(requests), len(texts))
    yield from zip(_repeated(requests, count), _repeated(texts, count), strict=True)


def _repeated(values: Sequence[Any], count: int) -> Sequence[Any]:
    return list(values) * count if len(values) == 1 else values


def image_requests(images: Sequence[Any], may_be_several: bool = False) -> list[Request]:
    """Requests without words, one an image, or, where there may be, a list of several that one conversation is about."""
    found = []
    for number, given in enumerate(images):
        is_several = may_be_several and isinstance(given, list | tuple) and len(given)
        files = [
            Path(each).expanduser() if isinstance(each, str | Path) else _picture(each, number)
            for each in (given if is_several else [given])
        ]
        named, picture = (files[0], None) if isinstance(files[0], Path) else (Path(f"image {number}"), files[0])
        found.append(Request(named, {}, picture=picture, others=tuple(files[1:])))
    return found


def _picture(image: Any, number: int) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Tensor):
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).cpu().numpy()
    is_picture = isinstance(image, np.ndarray) and image.dtype == np.uint8 and min(image.shape, default=0) > 0
    if not is_picture or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        shown = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ConfigError(
            f"image {number} is {shown}; give a path, a PIL image, or uint8 numbers: an array (H, W) or (H, W, 3), or a "
            "tensor (3, H, W)"
        )
    return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)


def padded(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of several batches as one; masks are left out where no batch has one."""
    embeds = [row for part in parts for row in part.embeds]
    masks = [
        torch.ones(len(row), dtype=torch.long) if part.mask is None else part.mask[place]
        for part in parts
        for place, row in enumerate(part.embeds)
    ]
    has_mask = any(part.mask is not None for part in parts) or len({len(row) for row in embeds}) > 1
    mask = pad_sequence(masks, batch_first=True) if has_mask else None
    return Tokens(pad_sequence(embeds, batch_first=True), mask, torch.cat([part.pooled for part in parts]))


def first_row(tokens: Tokens) -> Tokens:
    return Tokens(tokens.embeds[0], None if tokens.mask is None else tokens.mask[0], tokens.pooled[0])


def joined(parts: Iterable[Tensor], is_one: bool) -> Tensor:
    """All rows of the parts, or the only one."""
    rows = torch.cat(list(parts))
    return rows[0] if is_one else rows


def device_named(name: str | torch.device | None) -> torch.device:
    """The device of a name; None: the first GPU, else the CPU. Raises ConfigError for one that cannot be used."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name} cannot be used ({str(error).splitlines()[0]}); give cpu, or cuda:NUMBER"
        ) from None
    return device
