"""Flickr30k Entities, the phrases of captions with their boxes: `Sentences/`, `Annotations/` and `{split}.txt`, as published."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

from fusionkit.data.files import annotation_file, expecting
from fusionkit.data.images import find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError

LAYOUT = "Flickr30k Entities"
PHRASE = re.compile(r"\[/EN#(\d+)/\S+ ([^\]]+)\]")  # [/EN#1234/people two young guys]

Box = tuple[float, float, float, float]


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
        names = listed.read_text(encoding="utf-8").split()
        samples = []
        files = find_images(folder_of(self.images, split), {int(name): [f"{name}.jpg"] for name in names}, listed)
        for name in names:
            boxes, size = _read_boxes(annotation_file(f"{self.annotations}/Annotations/{name}.xml", split))
            sentences = annotation_file(f"{self.annotations}/Sentences/{name}.txt", split)
            texts = tuple(_phrases(name, sentences.read_text(encoding="utf-8"), boxes))
            if texts:
                samples.append(Sample(int(name), files[int(name)], {"expressions": texts}, size, self.collection))
        return samples


def _phrases(name: str, sentences: str, boxes: Mapping[str, Box]) -> Iterator[Text]:
    for number, sentence in enumerate(sentences.split("\n")):
        for place, (entity, phrase) in enumerate(PHRASE.findall(sentence)):
            if entity in boxes:
                yield Text(f"{name}/{number}/{place}", phrase, {"box": boxes[entity], "entity_id": int(entity)})


def _read_boxes(path: Path) -> tuple[dict[str, Box], tuple[int, int]]:
    """The box around all things of each entity, and the size of the image."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{path} is not complete XML ({error}); download it again") from error
    corners: dict[str, list[float]] = {}
    with expecting(path, LAYOUT):
        width, height = (int(root.find(f"size/{side}").text) for side in ("width", "height"))  # type: ignore[union-attr,arg-type]
        for thing in root.iter("object"):
            for box in thing.iter("bndbox"):
                ends = [float(box.find(end).text) for end in ("xmin", "ymin", "xmax", "ymax")]  # type: ignore[union-attr,arg-type]
                for entity in thing.iter("name"):
                    known = corners.setdefault(str(entity.text), ends)
                    corners[str(entity.text)] = [*map(min, known[:2], ends[:2]), *map(max, known[2:], ends[2:])]
    return {entity: (x, y, right - x, low - y) for entity, (x, y, right, low) in corners.items()}, (width, height)
