"""ARO, relations and attributes (Yuksekgonul et al. 2023): `visual_genome_{relation,attribution}.json`, as published.

The layout is that read in https://github.com/mertyg/vision-language-models-are-bows (`dataset_zoo/aro_datasets.py`): a list of
entries with the fields `image_path`, `bbox_x`, `bbox_y`, `bbox_w`, `bbox_h` in pixels, `true_caption`, `false_caption`, and
`relation_name` or the two `attributes`.
"""

from math import isfinite
from pathlib import Path
from typing import Any

from fusionkit.data.files import annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.pixels.crops import crop
from fusionkit.data.sample import Sample
from fusionkit.data.texts.foils import PHOTO, Foiled, foiled, samples_of
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json

LAYOUT = "ARO json"
SIDES = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
Box = tuple[int, int, int, int]


class Aro:
    """Reader of "captions" in pairs (`data.texts.foils`), whose `subset` is the relation, or the attributes: "white_brown".

    An image is the part of a photo that its box says, as the authors' code cuts it; the photo is the fact `photo`. A pair's id is
    the number of its entry, from 0.
    """

    def __init__(self, annotations: str, images: str | None) -> None:
        self.annotations, self.images = str(annotations), images

    def read(self, split: str) -> list[Sample]:
        """The parts of photos that have pairs. Raises DataError."""
        path = annotation_file(self.annotations, split)
        content = read_json(path)
        if not isinstance(content, list) or not content:
            raise DataError(f"{path} is not a list with at least one entry; expected the {LAYOUT} layout")
        pairs: list[Foiled] = []
        parts: dict[str, tuple[str, Box]] = {}
        with expecting(path, LAYOUT):
            for number, row in enumerate(content):
                photo, box = row["image_path"], _box(row, number, path)
                part = f"{photo}@{','.join(map(str, box))}"
                parts[part] = photo, box
                said = row["true_caption"], row["false_caption"]
                pairs.append(foiled(str(number), part, *said, _subset(row), **{PHOTO: photo}))
            names: dict[int | str, list[str]] = {photo: image_places(photo, photo) for photo, _ in parts.values()}
        files = find_images(folder_of(self.images, split), names, path)
        places: dict[int | str, Path] = {
            part: files[photo] if self.images is None else crop(files[photo], box)
            for part, (photo, box) in parts.items()
        }
        return samples_of(pairs, places)


def _subset(row: Any) -> str:
    """The relation, or both attributes."""
    return str(row["relation_name"]) if "relation_name" in row else "_".join(row["attributes"][:2])


def _box(row: Any, number: int, path: Path) -> Box:
    """Left, top, right and bottom in whole pixels; DataError where they hold nothing."""
    x, y, width, height = (float(row[side]) for side in SIDES)
    if not (all(map(isfinite, (x, y, width, height))) and round(x + width) > round(x) and round(y + height) > round(y)):
        raise DataError(
            f"entry {number} of {path} has the box {[x, y, width, height]}, which holds no pixel; correct or remove it"
        )
    return round(x), round(y), round(x + width), round(y + height)
