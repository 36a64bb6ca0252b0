"""From an image and its boxes to what the model reads: augmentation that keeps texts true, then size and scale."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

from fusionkit.data.pixels.bitmap import Bitmap
from fusionkit.data.randaugment import STYLES, rand_augment
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.unicode import readable

BICUBIC = InterpolationMode.BICUBIC
RESAMPLES = {name: InterpolationMode(name) for name in ("bicubic", "bilinear", "lanczos")}
FITS = ("squash", "crop", "keep")
LONGEST = 1333 / 800  # of the longer side to the shorter one, at most (ViLT, after object detectors)
UNSCALED = 2**31  # pixels: an image is decoded at its own size, since its proportions decide
SIDES = (
    *("left", "right", "lft", "rght", "rgt"),
    *("trái", "phải"),  # Vietnamese
    *("左", "右", "왼", "오른"),  # Chinese, Japanese, Korean
    *("links", "rechts", "linke", "rechte"),  # German, Dutch
    *(
        "gauche",
        "droite",
        "izquierd",
        "derech",
        "esquerd",
        "direit",
        "sinistr",
        "destra",
        "destro",
    ),  # French to Italian
    *("слева", "справа", "левы", "правы", "лева", "права", "левой", "правой"),  # Russian
    *("kiri", "kanan", "ซ้าย", "ขวา", "يسار", "يمين", "बाएं", "बाईं", "दाएं", "दाईं"),  # Indonesian, Thai, Arabic, Hindi
    *("बाएँ", "दाएँ", "बायें", "दायें", "बायीं", "दायीं", "বাম", "ডান"),  # Hindi as others spell it, Bengali
    *("چپ", "راست", "שמאל", "ימין", "αριστερ", "δεξι"),  # Persian, Hebrew, Greek
    *("lewej", "lewo", "lewy", "lewa", "prawej", "prawo", "prawy", "prawa"),  # Polish
    *("vänster", "höger", "venstre", "højre", "høyre"),  # Swedish, Danish, Norwegian
    *("solda", "sol taraf", "sağ", "ліворуч", "праворуч", "лівий", "правий"),  # Turkish, Ukrainian
)
"""A mirror image makes these words false. Looked for inside words too ("leftmost", "rowleft"); "bright" is no loss."""


class Finish:
    """The last step of training and evaluation: a square of `size` pixels (antialiased, by `resample`), normalised.

    `mean` and `std` are those that the image encoder was trained with, for values in 0..1. `fit` "squash" shows all of the
    image (ALBEF), "crop" its middle in true proportions (CLIP, METER), which boxes would not survive; "keep" all of it in its
    proportions, `size` pixels the shorter side, and both sides a `multiple` of pixels, as large as a patch (ViLT).
    """

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        fit: str = "squash",
        multiple: int = 32,
        resample: str = "bicubic",
    ) -> None:
        if fit not in FITS:
            raise ConfigError(f"data.fit is '{fit}'; {suggest(fit, FITS)}")
        if resample not in RESAMPLES:
            raise ConfigError(f"data.resample is '{resample}'; {suggest(resample, RESAMPLES)}")
        if fit == "keep" and not 1 <= multiple <= size:
            raise ConfigError(f"data.multiple is {multiple}, but has to be between 1 and data.image_size, {size}")
        for name, values, is_possible in (
            ("mean", mean, all(0 <= value <= 1 for value in mean)),
            ("std", std, all(0 < value <= 1 for value in std)),
        ):
            if len(values) != 3:
                raise ConfigError(
                    f"data.{name} is {list(values)}, but has to be three numbers, for red, green and blue"
                )
            if not is_possible:
                raise ConfigError(
                    f"data.{name} is {list(values)}, but is of pixels from 0 to 1; give numbers in this range, those of "
                    "pixels from 0 to 255 divided by 255"
                )
        self.size, self.fit, self.multiple, self.resample = size, fit, multiple, RESAMPLES[resample]
        self.decode_side = UNSCALED if fit == "keep" else size
        deviation = np.asarray(std, dtype=np.float32).reshape(3, 1, 1)
        self.scale: np.ndarray = 1 / (255 * deviation)
        self.shift: np.ndarray = -np.asarray(mean, dtype=np.float32).reshape(3, 1, 1) / deviation

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(3, size, size) float32, or (3, H, W), and boxes (N, 4) from xyxy in pixels of `image` to cxcywh in 0..1 of it."""
        resized, boxes = self.resize(image, boxes)
        # numpy, because torch would start threads for each single image
        pixel_values = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
        pixel_values *= self.scale
        pixel_values += self.shift
        return torch.from_numpy(pixel_values), boxes

    def raw(self, image: Image.Image, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """As a call gives them, but the pixels in uint8, a quarter as large, for ``normalize``."""
        resized, boxes = self.resize(image, boxes)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1))), boxes

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """Pixels (I, 3, H, W) uint8 on any device -> float32, by the numbers that a call computes with."""
        scale, shift = (torch.from_numpy(part).to(pixel_values.device) for part in (self.scale, self.shift))
        return pixel_values.float().mul_(scale).add_(shift)

    def resize(self, image: Image.Image, boxes: Tensor) -> tuple[np.ndarray, Tensor]:
        """The pixels (H, W, 3) uint8 at their last size, and the boxes on them, cxcywh in 0..1."""
        if self.fit == "crop":
            image = _middle(image, boxes)
        boxes = relative_boxes(boxes, image.size)
        width, height = kept_size(image.size, self.size, self.multiple) if self.fit == "keep" else (self.size,) * 2
        return np.asarray(F.resize(image, [height, width], interpolation=self.resample, antialias=True)), boxes


def kept_size(size: tuple[int, int], shorter: int, multiple: int) -> tuple[int, int]:
    """Width and height in the proportions of `size`, with that shorter side where the longer one then is not too long.

    Rounded to a pixel, then down to a multiple, one at least: as ViLT does (MinMaxResize).
    """
    longer = int(LONGEST * shorter)
    scale = shorter / min(size)
    sides = [float(shorter) if side == min(size) else scale * side for side in size]
    if max(sides) > longer:
        sides = [side * (longer / max(sides)) for side in sides]
    width, height = (max(int(side + 0.5) // multiple, 1) * multiple for side in sides)
    return width, height


def _middle(image: Image.Image, boxes: Tensor) -> Image.Image:
    """The largest square in the middle of an image."""
    if len(boxes):
        raise ConfigError("data.fit=crop would cut off what boxes are about; set data.fit=squash")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def relative_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) from xyxy on an image of that width and height to cxcywh in 0..1 of it."""
    if not len(boxes):  # a fifth of a millisecond, an image
        return boxes
    boxes = boxes / torch.tensor([*size, *size])
    converted: Tensor = F.convert_bounding_box_format(boxes, old_format="XYXY", new_format="CXCYWH")
    return converted


@dataclass(frozen=True)
class Augment:
    """Random crop, mirror image and RandAugment, as ALBEF and X-VLM train with.

    `crop_scale`, `crop_ratio`   area of the crop in parts of the image, and its width to height; a crop holds every box
                                 of the drawn texts (as in X-VLM), and there is none where ten draws find no such crop.
                                 With a `crop_scale` of None the image stays whole, and is fitted after all else.
    `flip`                       probability of a mirror image; 0 wherever a text or an answer names a side.
    `sides`                      the words for them, for texts in other languages than those of ``SIDES``.
    `num_ops`, `magnitude`       RandAugment: so many operations of a `style` (`randaugment.STYLES`), of this strength.
                                 With boxes, of those on colours only: a turned box is no box, and the box around it no
                                 longer fits its object.
    A crop can still falsify a count or "in the middle": leave `augment` out for sources that live on these.
    """

    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    num_ops: int = 2
    magnitude: float = 7
    style: str = "albef"
    sides: Sequence[str] = SIDES

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(f"augment.style: there is no RandAugment '{self.style}'; {suggest(self.style, STYLES)}")
        if isinstance(self.sides, str) or not all(isinstance(side, str) and side.strip() for side in self.sides):
            raise ConfigError(f"augment.sides is {self.sides!r}, but has to be a list of words, such as [left, right]")

    def decode_side(self, size: int) -> int:
        """No decoded side may be smaller than this, or crops would be blurred."""
        if self.crop_scale is None:
            return size
        return math.ceil(size / math.sqrt(self.crop_scale[0] * min(self.crop_ratio)))

    def __call__(
        self, image: Image.Image | Bitmap, boxes: Tensor, words: Sequence[str], size: int, rng: random.Random
    ) -> tuple[Image.Image, Tensor]:
        """A square of `size` pixels, or the whole image, and the boxes (N, 4) in it, xyxy in pixels.

        `words` are all texts and answers.
        """
        picture: Any = image.pil() if isinstance(image, Bitmap) and self.crop_scale is None else image
        placed = BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)) if len(boxes) else None
        if self.crop_scale is not None:
            place = choose_crop(image.size, enclose(boxes), self.crop_scale, self.crop_ratio, rng)
            left, top, width, height = place
            crop = {"top": top, "left": left, "height": height, "width": width, "size": [size, size], "antialias": True}
            if isinstance(image, Bitmap):
                picture = image.crop_resized(place, size)
            else:
                picture = F.resized_crop(image, **crop, interpolation=BICUBIC)
            placed = None if placed is None else F.resized_crop(placed, **crop)
        if rng.random() < self.flip and not names_side(words, self.sides):
            picture = F.horizontal_flip(picture)
            placed = None if placed is None else F.horizontal_flip(placed)
        picture = rand_augment(picture, STYLES[self.style], self.num_ops, self.magnitude, placed is None, rng)
        return picture, boxes if placed is None else placed.as_subclass(Tensor)


def names_side(words: Sequence[str], sides: Sequence[str] = SIDES) -> bool:
    """Whether a mirror image would make one of the texts false: one of ``sides`` is in it, in small or capital letters."""
    spoken = [readable(text).casefold() for text in words]
    return any(side in text for text in spoken for side in _folded(tuple(sides)))


@lru_cache
def _folded(sides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(readable(side).casefold() for side in sides)


def enclose(boxes: Tensor) -> tuple[float, float, float, float] | None:
    """The smallest xyxy box around all boxes (N, 4); None for no boxes."""
    if not len(boxes):
        return None
    x0, y0 = boxes[:, :2].amin(0).tolist()
    x1, y1 = boxes[:, 2:].amax(0).tolist()
    return x0, y0, x1, y1


def choose_crop(
    size: tuple[int, int],
    keep: tuple[float, float, float, float] | None,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> tuple[int, int, int, int]:
    """Left, top, width, height of a random crop (as Inception's) that holds `keep` (xyxy), else of the whole image."""
    x0, y0, x1, y1 = keep or (size[0], size[1], 0, 0)
    for _ in range(10):
        area = size[0] * size[1] * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        lefts = max(0, math.ceil(x1) - width), min(size[0] - width, math.floor(x0))
        tops = max(0, math.ceil(y1) - height), min(size[1] - height, math.floor(y0))
        if width and height and lefts[0] <= lefts[1] and tops[0] <= tops[1]:
            return rng.randint(*lefts), rng.randint(*tops), width, height
    return 0, 0, *size
