"""RandAugment as published: ALBEF's, the same with its two bugs, and ViLT's. An operation is (image, strength, rng) -> image."""

import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Operation = Callable[[Image.Image, float, random.Random], Image.Image]


class Style(NamedTuple):
    """Operations on colours, those that move pixels, how likely each that is drawn is done, and the largest magnitude."""

    colors: tuple[Operation, ...]
    geometry: tuple[Operation, ...]
    probability: float
    largest: float


def rand_augment(
    image: Image.Image, style: Style, num_ops: int, magnitude: float, may_move: bool, rng: random.Random
) -> Image.Image:
    """``num_ops`` operations drawn with repetition, at a strength of ``magnitude`` in parts of the style's largest one."""
    for op in rng.choices(style.colors + (style.geometry if may_move else ()), k=num_ops):
        if rng.random() < style.probability:
            image = op(image, magnitude / style.largest, rng)
    return image


def identity(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return image


def auto_contrast(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.autocontrast(image)
    return changed


def equalize(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.equalize(image)
    return changed


def brightness(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.adjust_brightness(image, _factor(strength))
    return changed


def sharpness(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.adjust_sharpness(image, _factor(strength))
    return changed


def color(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.adjust_saturation(image, _factor(strength))
    return changed


def contrast(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.adjust_contrast(image, _factor(strength))
    return changed


def posterize(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.posterize(image, max(1, int(4 * strength)))
    return changed


def solarize(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    changed: Image.Image = F.solarize(image, 256 * strength)
    return changed


def solarize_add(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    return ImageOps.solarize(image.point(lambda value: min(255, value + int(110 * strength))), 128)


def shear_x(image: Image.Image, strength: float, rng: random.Random, fill: int) -> Image.Image:
    return _affine(image, fill, shear=[_shear_angle(strength, rng), 0.0])


def shear_y(image: Image.Image, strength: float, rng: random.Random, fill: int) -> Image.Image:
    return _affine(image, fill, shear=[0.0, _shear_angle(strength, rng)])


def translate_x(image: Image.Image, strength: float, rng: random.Random, fill: int, pixels: float) -> Image.Image:
    return _affine(image, fill, translate=[round(_signed(pixels * strength, rng)), 0])


def translate_y(image: Image.Image, strength: float, rng: random.Random, fill: int, pixels: float) -> Image.Image:
    return _affine(image, fill, translate=[0, round(_signed(pixels * strength, rng))])


def rotate(image: Image.Image, strength: float, rng: random.Random, fill: int) -> Image.Image:
    return _affine(image, fill, angle=_signed(30 * strength, rng))


def overflowing_auto_contrast(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """ALBEF's: minus the darkest value is taken in uint8, 256 minus it, so that any channel without a 0 turns nearly white."""
    return Image.merge("RGB", [_overflowing_stretch(channel) for channel in image.split()])


def _overflowing_stretch(channel: Image.Image) -> Image.Image:
    low, high = channel.getextrema()
    assert isinstance(low, int)
    assert isinstance(high, int)
    if high <= low:
        return channel
    scale = 255 / (high - low)
    return channel.point([int(min(255.0, (value + -low % 256) * scale)) for value in range(256)])


def overflowing_sharpness(image: Image.Image, strength: float, rng: random.Random) -> Image.Image:
    """ALBEF's: sharpened values above 255 or below 0 are not clipped but taken modulo 256; the border stays as it is."""
    smooth, pixels = (np.asarray(part, dtype=np.float32) for part in (image.filter(ImageFilter.SMOOTH), image))
    sharp = smooth + np.float32(_factor(strength)) * (pixels - smooth)
    sharp[[0, -1]], sharp[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
    return Image.fromarray(sharp.astype(np.int32).astype(np.uint8))


def _factor(strength: float) -> float:
    return 1.8 * strength + 0.1


def _signed(value: float, rng: random.Random) -> float:
    return rng.choice((-value, value))


def _shear_angle(strength: float, rng: random.Random) -> float:
    return math.degrees(math.atan(_signed(0.3 * strength, rng)))


def _affine(
    image: Image.Image,
    fill: int,
    angle: float = 0.0,
    translate: Sequence[int] = (0, 0),
    shear: Sequence[float] = (0.0, 0.0),
) -> Image.Image:
    bilinear, filling = InterpolationMode.BILINEAR, [float(fill)] * 3
    changed: Image.Image = F.affine(
        image, angle, list(translate), 1.0, list(shear), interpolation=bilinear, fill=filling
    )
    return changed


def _geometry(fill: int, pixels: float) -> tuple[Operation, ...]:
    """Moves by up to 0.3 of shear, ``pixels`` and 30 degrees; what comes in from outside is of the grey ``fill``."""
    moves = (partial(move, fill=fill, pixels=pixels) for move in (translate_x, translate_y))
    return (*(partial(turn, fill=fill) for turn in (shear_x, shear_y, rotate)), *moves)


ALBEF = Style((identity, auto_contrast, equalize, brightness, sharpness), _geometry(fill=128, pixels=10), 0.5, 10)
STYLES = {
    # ALBEF dataset/randaugment.py (X-VLM, BLIP): magnitude 7 (BLIP 5) of 10
    "albef": ALBEF,
    # the same, bugs included, for parity
    "albef_published": ALBEF._replace(
        colors=(identity, overflowing_auto_contrast, equalize, brightness, overflowing_sharpness)
    ),
    # ViLT vilt/transforms/randaug.py (METER): magnitude 9 of 30
    "vilt": Style(
        (auto_contrast, equalize, posterize, solarize, solarize_add, color, contrast, brightness, sharpness),
        _geometry(fill=0, pixels=100),
        1.0,
        30,
    ),
}
