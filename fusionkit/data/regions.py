"""Region features in place of pixels: npz files, one an image, in a folder or as the values of an lmdb (UNITER's layout).

A file holds ``features`` (N, F) and ``norm_bb`` (N, 6), the boxes' left, top, right, bottom, width and height in parts of the
image; it may hold ``conf`` (N,), the detector's confidence, by which rows descend, ``soft_labels`` (N, C), its probabilities of
the classes, background first, and ``size`` (2,), the image's width and height in pixels.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fusionkit.data.images import CorruptImage, Decoded
from fusionkit.data.stores import stored_bytes
from fusionkit.data.transforms import relative_boxes
from fusionkit.errors import ConfigError, DataError, UserError
from fusionkit.types import Regions

NEEDED, LAYOUT = ("features", "norm_bb"), "features (N, F) and norm_bb (N, 6) in parts of the image"
UNKNOWN = (0, 0)


@dataclass(frozen=True)
class Detections:
    """Which of an image's regions are read, by UNITER's rule and numbers: the first n, n = as many as have a confidence
    above ``confidence``, but at least ``min_regions`` and at most ``max_regions``; without confidences ``max_regions``.

    ``class_scores``  read the detector's class probabilities too, for task mrm with classes.
    """

    confidence: float = 0.2
    min_regions: int = 10
    max_regions: int = 100
    class_scores: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.min_regions <= self.max_regions:
            raise ConfigError(
                f"regions.min_regions is {self.min_regions} and max_regions {self.max_regions}; "
                "give at least 1, and min_regions no larger than max_regions"
            )


class Found(NamedTuple):
    """The regions of one image, which stand where pixels would; boxes on it are in parts of it, so its sides are 1."""

    features: Tensor  # (N, F)
    positions: Tensor  # (N, 7), see types.Regions
    class_scores: Tensor | None  # (N, C)
    width: int = 1
    height: int = 1


class RegionFiles:
    """Regions read anew each time they are asked for; the paths are those of npz files or ``LMDB_FOLDER/key``."""

    def __init__(self, paths: Iterable[Path], detections: Detections) -> None:
        self.paths = paths if isinstance(paths, Sequence) else list(paths)
        self.detections = detections

    def load(self, index: int) -> Decoded:
        """The regions as the image of ``Decoded``, whose size is (0, 0) where the file has none; raises CorruptImage."""
        return read_regions(self.paths[index], self.detections)


def read_regions(path: Path, detections: Detections) -> Decoded:
    """The regions of one image. CorruptImage where the file is broken, DataError where it has another layout."""
    wanted = ("features", "norm_bb", "conf", "size", *(["soft_labels"] * detections.class_scores))
    try:
        with NpzFile(io.BytesIO(stored_bytes(path))) as file:
            arrays = {name: file[name] for name in wanted if name in file.files}
            has = ", ".join(file.files)
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises nearly anything
        raise CorruptImage(f"{path} cannot be read ({str(error) or type(error).__name__})") from error
    for name in (*NEEDED, *(["soft_labels"] * detections.class_scores)):
        if name not in arrays:
            raise DataError(f"{path} has no '{name}' (it has {has}); expected {LAYOUT}" + _hint(name))
    _check(arrays, path)
    count = _count(arrays.get("conf"), detections)
    places = torch.from_numpy(arrays["norm_bb"][:count].astype(np.float32))
    found = Found(
        torch.from_numpy(arrays["features"][:count].astype(np.float32)),
        torch.cat([places, places[:, 4:5] * places[:, 5:]], dim=1),
        torch.from_numpy(arrays["soft_labels"][:count].astype(np.float32)) if detections.class_scores else None,
    )
    width, height = arrays.get("size", UNKNOWN)
    return Decoded(found, (int(width), int(height)))


def _check(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise DataError unless all are finite numbers of the shapes that belong together."""
    features, boxes = arrays["features"], arrays["norm_bb"]
    if features.ndim != 2 or boxes.shape != (len(features), 6) or not len(features):
        raise DataError(f"{path} has features {features.shape} and norm_bb {boxes.shape}; expected {LAYOUT}, N above 0")
    rows = {"conf": (len(features),), "size": (2,)}
    for name, array in arrays.items():
        expected = rows.get(name, (len(features), *array.shape[1:2]))
        if array.shape != expected:
            raise DataError(f"{path} has {name} {array.shape}, beside features {features.shape}; expected {expected}")
        if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
            raise DataError(f"the {name} of {path} are not all finite numbers; extract this image's features again")
    if "size" in arrays and not (arrays["size"] >= 0).all():
        raise DataError(
            f"the size of {path} is {arrays['size'].tolist()}; expected the image's width and height in pixels"
        )


def _hint(name: str) -> str:
    return "; or set class_scores of the source's regions to false" if name == "soft_labels" else ""


def _count(confidences: np.ndarray | None, detections: Detections) -> int:
    if confidences is None:
        return detections.max_regions
    sure = int((confidences > detections.confidence).sum())
    return min(max(sure, detections.min_regions), detections.max_regions)


def as_found(image: Found, boxes: Tensor) -> tuple[Found, Tensor]:
    """What ``transforms.Finish`` is to pixels: nothing is left to do but to the boxes, (N, 4) xyxy -> cxcywh."""
    return image, relative_boxes(boxes, (image.width, image.height))


def pad_regions(images: Sequence[Found]) -> Regions:
    """One batch, padded to the image with most regions; DataError where the widths of their features differ."""
    widths = {found.features.shape[1] for found in images}
    if len(widths) > 1:
        raise DataError(
            f"region features are {' and '.join(map(str, sorted(widths)))} wide in one data set; take all from one detector"
        )
    scores = [found.class_scores for found in images if found.class_scores is not None]
    return Regions(
        pad_sequence([found.features for found in images], batch_first=True),
        pad_sequence([found.positions for found in images], batch_first=True),
        pad_sequence([torch.ones(len(found.features), dtype=torch.long) for found in images], batch_first=True),
        pad_sequence(scores, batch_first=True) if scores else None,
    )
