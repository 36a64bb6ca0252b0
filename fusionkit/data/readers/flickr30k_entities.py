"""Flickr30k Entities, the phrases of captions with their boxes: `Sentences/`, `Annotations/` and `{split}.txt`, as published."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.boxes import Box, image_size, usable
from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError

LAYOUT = "Flickr30k Entities"
PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]+)\]")  # [/EN#1234/people two young guys]


class Flickr30kEntities:
    """Reader of "expressions", the phrases that have boxes, with the facts `box` (xywh in pixels) and `entity_id`.

    A phrase of several things has the smallest box around them all (Plummer et al. 2017, "merged boxes"). `annotations` is the
    folder of the published files. A phrase's id is `<image>/<sentence from 0>/<phrase of the sentence from 0>`.
    """

    def __init__(self, annotations: str, images: str | None, collection: str = "flickr30k") -> None:
        self.annotations, self.images, self.collection = Path(annotations), images, collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have phrases with boxes. Raises DataError."""
        listed = annotation_file(f"{self.annotations}/{{split}}.txt", split)
        ids: set[Any] = set()
        with expecting(listed, "list of Flickr30k's image numbers"):
            names = [name.removesuffix(".jpg") for name in listed.read_text(encoding="utf-8-sig").split()]
            for name in names:
                add_new(ids, int(name), "the image", listed)
        samples = []
        files = find_images(folder_of(self.images, split), {int(name): [f"{name}.jpg"] for name in names}, listed)
        found = [_read_boxes(annotation_file(f"{self.annotations}/Annotations/{name}.xml", split)) for name in names]
        boxes = _by_entity(names, found, self.annotations / "Annotations")
        for name, known, (_, size) in zip(names, boxes, found, strict=True):
            path = annotation_file(f"{self.annotations}/Sentences/{name}.txt", split)
            with expecting(path, LAYOUT):
                texts = tuple(_phrases(name, path.read_text(encoding="utf-8-sig"), known))
            if texts:
                samples.append(Sample(int(name), files[int(name)], {"expressions": texts}, size, self.collection))
        return samples


def _phrases(name: str, sentences: str, boxes: Mapping[str, Box]) -> Iterator[Text]:
    for number, sentence in enumerate(sentences.split("\n")):
        for place, (entity, phrase) in enumerate(PHRASE.findall(sentence)):
            if entity in boxes:
                yield Text(f"{name}/{number}/{place}", phrase, {"box": boxes[entity], "entity_id": int(entity)})


def _read_boxes(path: Path) -> tuple[list[tuple[str, Box]], tuple[int, int]]:
    """The entities and their boxes, one for each thing, and the size of the image."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} is not complete XML ({error}); download it again") from error
    boxes: list[tuple[str, Box]] = []
    with expecting(path, LAYOUT):
        about = Path(root.findtext("filename") or path.name).stem
        if about != path.stem:
            raise DataError(f"{path} is about image {about}, not {path.stem}; download it again")
        width, height = (float(root.find(f"size/{side}").text) for side in ("width", "height"))  # type: ignore[union-attr,arg-type]
        for thing in root.iter("object"):
            for box in thing.iter("bndbox"):
                x, y, right, low = (float(box.find(end).text) for end in ("xmin", "ymin", "xmax", "ymax"))  # type: ignore[union-attr,arg-type]
                boxes += [(str(entity.text), (x, y, right - x, low - y)) for entity in thing.iter("name")]
    return boxes, image_size(width, height, path.stem, path)


def _by_entity(
    names: Sequence[str], found: Sequence[tuple[list[tuple[str, Box]], tuple[int, int]]], folder: Path
) -> list[dict[str, Box]]:
    """For each image the box around all things of each entity, but for those whose boxes are wrong."""
    rows = [
        (name, entity, box, size) for name, (boxes, size) in zip(names, found, strict=True) for entity, box in boxes
    ]
    told = [f"entity {entity} of image {name}" for name, entity, _, _ in rows]
    good = usable([box for _, _, box, _ in rows], [size for _, _, _, size in rows], told, folder)
    wrong = {(name, entity) for (name, entity, _, _), box in zip(rows, good, strict=True) if box is None}
    joined: dict[str, dict[str, Box]] = {name: {} for name in names}
    for name, entity, (x, y, wide, high), _ in rows:
        if (name, entity) not in wrong:
            left, top, width, height = joined[name].get(entity, (x, y, wide, high))
            right, low = max(left + width, x + wide), max(top + height, y + high)
            left, top = min(left, x), min(top, y)
            joined[name][entity] = (left, top, right - left, low - top)
    return list(joined.values())
