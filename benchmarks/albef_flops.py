"""What a step of ALBEF needs in floating-point operations, counted by hand from its mathematics: matrix products alone.

No padding; an image's keys and values once a layer for all its texts; words told at masked positions only; the last fusion
layer only where its states are read. A product that is trained through counts three times (forward, gradient of its input
and of its weights). What is done besides (``done``) is counted by torch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.albef_published import Given, Shape


def done(step: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions of a step, as torch counts them."""
    # the fused attention of CPUs is not among what torch counts: its parts are
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    return int(counter.get_total_flops())


def needed(shape: Shape, queue: int, mask: Tensor, given: Given) -> int:
    """Operations of a step with texts of these masks (B, L)."""
    size, lengths = len(mask), mask.sum(dim=1)
    plain = torch.cat([lengths, lengths, lengths[given.texts.cpu()]])  # of the pairs that are matched
    masked = (given.labels.cpu() != -100).sum(dim=1)
    patches = (shape.image_size // shape.patch) ** 2
    stem = 2 * size * patches * 3 * shape.patch**2 * shape.image_width
    vision = _vision(shape, size, 1 + patches)
    text = _text(shape, lengths)
    memory = shape.fusion_layers * 4 * size * (1 + patches) * shape.image_width * shape.text_width
    matching = _fusion(shape, plain, torch.ones_like(plain), 1 + patches)
    telling = _fusion(shape, lengths, masked, 1 + patches) + _words(shape, int(masked.sum()))
    heads = 2 * size * shape.embed_size * (shape.image_width + shape.text_width) + 4 * len(plain) * shape.text_width
    contrast = 4 * size * (size + queue) * shape.embed_size  # both directions
    student = 2 * stem + 3 * (vision + 2 * text + memory + matching + telling + heads) + 2 * contrast
    teacher = stem + vision + 2 * text + memory + telling + heads + contrast
    return student + teacher


def _vision(shape: Shape, size: int, tokens: int) -> int:
    width = shape.image_width
    return shape.depth * (size * tokens * 24 * width**2 + 4 * size * tokens**2 * width)


def _text(shape: Shape, lengths: Tensor) -> int:
    width = shape.text_width
    return shape.text_layers * int(24 * width**2 * lengths.sum() + 4 * width * lengths.square().sum())


def _fusion(shape: Shape, lengths: Tensor, read: Tensor, tokens: int) -> int:
    """Passes of texts with an image of so many tokens each, of whose last states ``read`` (T,) are wanted."""
    width, total = shape.text_width, 0
    for layer in range(shape.fusion_layers):
        rows = read if layer == shape.fusion_layers - 1 else lengths
        total += int(4 * width**2 * lengths.sum() + 4 * width * (rows * lengths).sum())  # keys, values; self-attention
        total += int((8 + 16) * width**2 * rows.sum() + 4 * width * tokens * rows.sum())
    return total


def _words(shape: Shape, masked: int) -> int:
    return 2 * masked * shape.text_width * (shape.text_width + shape.words)
