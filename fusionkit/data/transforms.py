"""From an image and its boxes to what the model reads: augmentation that keeps texts true, then size and scale."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import BoundingBoxes

BICUBIC = InterpolationMode.BICUBIC
SIDES = ("left", "right")
"""A mirror image makes these words false. Looked for inside words too ("leftmost", "rowleft"); "bright" is no loss."""


class Finish:
    """The last step of training and evaluation: a square of `size` pixels (bicubic, antialiased), normalised.

    `mean` and `std` are those that the image encoder was trained with, for values in 0..1.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        self.size = size
        deviation = np.asarray(std, dtype=np.float32).reshape(3, 1, 1)
        self.scale: np.ndarray = 1 / (255 * deviation)
        self.shift: np.ndarray = -np.asarray(mean, dtype=np.float32).reshape(3, 1, 1) / deviation

    def __call__(self, image: Image.Image, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(3, size, size) float32, and boxes (N, 4) from xyxy in pixels of `image` to cxcywh in 0..1 of it."""
        boxes = relative_boxes(boxes, image.size)
        square = F.resize(image, [self.size, self.size], interpolation=BICUBIC, antialias=True)
        # numpy, because torch would start threads for each single image
        pixel_values = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1), dtype=np.float32)
        pixel_values *= self.scale
        pixel_values += self.shift
        return torch.from_numpy(pixel_values), boxes


def relative_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (N, 4) from xyxy on an image of that width and height to cxcywh in 0..1 of it."""
    boxes = boxes / torch.tensor([*size, *size])
    return F.convert_bounding_box_format(boxes, old_format="XYXY", new_format="CXCYWH")


@dataclass(frozen=True)
class Augment:
    """Random crop, mirror image and RandAugment, as ALBEF and X-VLM train with.

    `crop_scale`, `crop_ratio`   area of the crop in parts of the image, and its width to height; a crop holds every box
                                 of the drawn texts (as in X-VLM), and there is none where ten draws find no such crop.
    `flip`                       probability of a mirror image; 0 wherever a text or an answer says "left" or "right".
    `num_ops`, `magnitude`       RandAugment: so many operations of `COLOR_OPS` and `GEOMETRIC_OPS`, each done with
                                 probability 1/2, 0 <= magnitude <= 10. With boxes, of `COLOR_OPS` only: a turned box
                                 is no box, and the box around it no longer fits its object.
    A crop can still falsify a count or "in the middle": leave `augment` out for sources that live on these.
    """

    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    num_ops: int = 2
    magnitude: float = 7

    def decode_side(self, size: int) -> int:
        """No decoded side may be smaller than this, or crops would be blurred."""
        return math.ceil(size / math.sqrt(self.crop_scale[0] * min(self.crop_ratio)))

    def __call__(
        self, image: Image.Image, boxes: Tensor, words: Sequence[str], size: int, rng: random.Random
    ) -> tuple[Image.Image, Tensor]:
        """A square of `size` pixels and the boxes (N, 4) in it, xyxy in pixels; `words` are all texts and answers."""
        left, top, width, height = choose_crop(image.size, enclose(boxes), self.crop_scale, self.crop_ratio, rng)
        boxes = BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width))
        crop = {"top": top, "left": left, "height": height, "width": width, "size": [size, size], "antialias": True}
        image = F.resized_crop(image, **crop, interpolation=BICUBIC)
        boxes = F.resized_crop(boxes, **crop)
        if rng.random() < self.flip and not names_side(words):
            image, boxes = F.horizontal_flip(image), F.horizontal_flip(boxes)
        ops = COLOR_OPS if len(boxes) else COLOR_OPS + GEOMETRIC_OPS
        for op in rng.choices(ops, k=self.num_ops):
            if rng.random() < 0.5:
                image = op(image, self.magnitude, rng)
        return image, boxes.as_subclass(Tensor)


def names_side(words: Sequence[str]) -> bool:
    """Whether a mirror image would make one of the texts false."""
    return any(side in text.lower() for text in words for side in SIDES)


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
    """Left, top, width, height of a random crop (Inception's law) that holds `keep` (xyxy), else of the whole image."""
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


# RandAugment's operations with ALBEF's levels (dataset/randaugment.py): (image, magnitude 0..10, rng) -> image


def _identity(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return F.autocontrast(image)


def _equalize(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return F.equalize(image)


def _brightness(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return F.adjust_brightness(image, 1.8 * magnitude / 10 + 0.1)


def _sharpness(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return F.adjust_sharpness(image, 1.8 * magnitude / 10 + 0.1)


def _shear_x(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return _affine(image, shear=[_shear_angle(magnitude, rng), 0.0])


def _shear_y(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return _affine(image, shear=[0.0, _shear_angle(magnitude, rng)])


def _translate_x(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return _affine(image, translate=[round(_signed(magnitude, rng)), 0])


def _translate_y(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return _affine(image, translate=[0, round(_signed(magnitude, rng))])


def _rotate(image: Image.Image, magnitude: float, rng: random.Random) -> Image.Image:
    return _affine(image, angle=_signed(30 * magnitude / 10, rng))


COLOR_OPS = (_identity, _auto_contrast, _equalize, _brightness, _sharpness)
GEOMETRIC_OPS = (_shear_x, _shear_y, _translate_x, _translate_y, _rotate)


def _signed(value: float, rng: random.Random) -> float:
    return rng.choice((-value, value))


def _shear_angle(magnitude: float, rng: random.Random) -> float:
    return math.degrees(math.atan(_signed(0.3 * magnitude / 10, rng)))


def _affine(
    image: Image.Image, angle: float = 0.0, translate: Sequence[int] = (0, 0), shear: Sequence[float] = (0.0, 0.0)
) -> Image.Image:
    bilinear, grey = InterpolationMode.BILINEAR, [128.0, 128.0, 128.0]
    return F.affine(image, angle, list(translate), 1.0, list(shear), interpolation=bilinear, fill=grey)
