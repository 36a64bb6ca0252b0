"""How many training images a core decodes and augments, beside ALBEF's own pipeline on the same JPEGs, crops and operations.

The rival is written after ALBEF's published code (dataset/__init__.py, dataset/randaugment.py): Pillow, RandomResizedCrop, a
mirror image, RandomAugment in OpenCV and numpy, ToTensor and Normalize. Ours gives uint8 pixels; its normalisation, done on the
device, is counted here too. Needs OpenCV: pip install opencv-python-headless.
Run: python -m benchmarks.data_pipeline [--images FOLDER] [--size 256] [--count 48] [--rounds 9] [--decoder auto]
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from benchmarks.timing import report
from fusionkit.data.images import ImageFiles
from fusionkit.data.pixels.bitmap import FastImages, chosen_decoder
from fusionkit.data.transforms import Augment, Finish, choose_crop
from fusionkit.reporting.measure_cost import race

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = (128, 128, 128)
Operation = Callable[[np.ndarray, float, random.Random], np.ndarray]


def identity(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    return image


def autocontrast(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    def tune(channel: np.ndarray) -> np.ndarray:
        high, low = int(channel.max()), int(channel.min())
        table = np.arange(256) if high <= low else np.arange(256) * (255 / (high - low)) - low * (255 / (high - low))
        return table.clip(0, 255).astype(np.uint8)[channel]

    return cv2.merge([tune(channel) for channel in cv2.split(image)])


def equalize(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    def tune(channel: np.ndarray) -> np.ndarray:
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256])
        step = np.sum(counts[counts != 0].reshape(-1)[:-1]) // 255
        if step == 0:
            return channel
        shifted = np.empty_like(counts)
        shifted[0], shifted[1:] = step // 2, counts[:-1]
        return (np.cumsum(shifted) // step).clip(0, 255).astype(np.uint8)[channel]

    return cv2.merge([tune(channel) for channel in cv2.split(image)])


def brightness(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    table = np.arange(256, dtype=np.float32) * (1.8 * strength + 0.1)
    return table.clip(0, 255).astype(np.uint8)[image]


def sharpness(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    kernel = np.ones((3, 3), dtype=np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(image, -1, kernel / 13).astype(np.float32)[1:-1, 1:-1]
    out = image.astype(np.float32)
    out[1:-1, 1:-1] = smooth + (1.8 * strength + 0.1) * (out[1:-1, 1:-1] - smooth)
    return out.astype(np.uint8)


def warp(image: np.ndarray, matrix: Any) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(image, np.float32(matrix), (width, height), borderValue=GREY, flags=cv2.INTER_LINEAR)


def signed(value: float, rng: random.Random) -> float:
    return rng.choice((-value, value))


def shear_x(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    return warp(image, [[1, signed(0.3 * strength, rng), 0], [0, 1, 0]])


def shear_y(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    return warp(image, [[1, 0, 0], [signed(0.3 * strength, rng), 1, 0]])


def rotate(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    height, width = image.shape[:2]
    return warp(image, cv2.getRotationMatrix2D((width / 2, height / 2), signed(30 * strength, rng), 1))


def translate_x(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    return warp(image, [[1, 0, -signed(10 * strength, rng)], [0, 1, 0]])


def translate_y(image: np.ndarray, strength: float, rng: random.Random) -> np.ndarray:
    return warp(image, [[1, 0, 0], [0, 1, -signed(10 * strength, rng)]])


OPERATIONS: tuple[Operation, ...] = (  # in the order of ours, so that one generator draws the same of both
    *(identity, autocontrast, equalize, brightness, sharpness),
    *(shear_x, shear_y, rotate, translate_x, translate_y),
)


def albef(paths: Sequence[Path], size: int, scale: tuple[float, float]) -> torch.Tensor:
    """A batch as ALBEF's pre-training transform makes it."""
    finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = []
    for number, path in enumerate(paths):
        rng = random.Random(number)
        image = Image.open(path).convert("RGB")
        left, top, width, height = choose_crop(image.size, None, scale, (3 / 4, 4 / 3), rng)
        image = F.resized_crop(image, top, left, height, width, [size, size], InterpolationMode.BICUBIC)
        if rng.random() < 0.5:
            image = F.hflip(image)
        pixels = np.array(image)
        for operation in rng.choices(OPERATIONS, k=2):
            if rng.random() < 0.5:
                pixels = operation(pixels, 0.7, rng)
        images.append(finish(pixels))
    return torch.stack(images)


def ours(images: Any, count: int, finish: Finish, augment: Augment) -> torch.Tensor:
    """A batch as fusionkit makes it, normalised as the device would."""
    pixels = []
    for number in range(count):
        image, boxes = augment(images.load(number).image, torch.zeros(0, 4), (), finish.size, random.Random(number))
        pixels.append(finish.raw(image, boxes)[0].numpy())
    return finish.normalize(torch.from_numpy(np.stack(pixels)))


def draw_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 640 x 480 pixels that are about as large as COCO's: soft shapes under a little noise."""
    paths = []
    for number in range(count):
        generator = np.random.default_rng(number)
        soft = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (640, 480), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(soft, dtype=np.float32) + generator.normal(0, 12, (480, 640, 1))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def main() -> None:
    """Time both on one thread, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs; without it some are drawn")
    parser.add_argument("--decoder", default="auto")
    for name, default in {"size": 256, "count": 48, "rounds": 9}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        found = sorted(options.images.rglob("*.jpg")) if options.images else draw_photos(Path(folder), options.count)
        paths = found[:: max(1, len(found) // options.count)][: options.count]
        augment, finish = Augment(crop_scale=(0.2, 1.0)), Finish(options.size, MEAN, STD)
        side, decoder = augment.decode_side(options.size), chosen_decoder(options.decoder)
        files: Any = ImageFiles(paths, side) if decoder == "pillow" else FastImages(paths, side, decoder)
        rivals = {
            "ALBEF's pipeline": partial(albef, paths, options.size, (0.2, 1.0)),
            f"fusionkit ({decoder})": partial(ours, files, len(paths), finish, augment),
        }
        first, second = (run() for run in rivals.values())
        print(
            f"{len(paths)} images; mean difference of the pixels {(first - second).abs().mean():.3f} of a standard deviation"
        )
        medians = {
            name: seconds / len(paths) for name, seconds in race(rivals, options.rounds, time.process_time).items()
        }
        report(f"{options.size} px, one thread, a training image:", medians, "ALBEF's pipeline")


if __name__ == "__main__":
    main()
