"""Counts and places of things in COCO's photos, as captions beside foils made of the boxes of `instances_val2017.json`.

The layout is that of https://cocodataset.org/#format-data: lists `images` (`id`, `file_name`, `width`, `height`), `categories`
(`id`, `name`) and `annotations` (`id`, `image_id`, `category_id`, `bbox`, and `iscrowd` where it is a crowd).

Each foil is the caption of another photo, whose foil is this one's caption: a text says nothing of which of the two is true.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fusionkit.data.boxes import Box, Size, image_size, usable
from fusionkit.data.files import add_new, annotation_file, expecting, table
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample
from fusionkit.data.texts.foils import TOPIC, Foiled, foiled, samples_of
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.files.plain import read_json

LAYOUT = "COCO instances"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLURALS = {"person": "people", "mouse": "mice", "knife": "knives"} | {
    name: name for name in ("sheep", "skis", "scissors", "broccoli")
}
ABOUT = ("counting", "left_right")


class Photo(NamedTuple):
    """A photo with the boxes of its things by category; None where some of them cannot be counted on."""

    id: int | str
    name: str
    size: Size
    things: dict[str, list[Box] | None]


class Said(NamedTuple):
    """What is true of a photo, as a caption, and which others contradict it."""

    photo: Photo
    topic: str  # two photos of one topic have captions that can be exchanged
    subset: str
    caption: str


class CocoObjects:
    """Reader of "captions" in pairs (`data.texts.foils`) about the things in a photo.

    ``about``   "counting": "a photo of three dogs", of up to ``most`` things, whose `subset` is their number in words; or
                "left_right": "a dog to the left of a cat", of things of which a photo has one each and whose boxes stand apart,
                whose `subset` is "left" or "right".
    ``min_area`` the part of the photo that every thing of the category has to fill, so that none is too small to be seen.
    ``per_topic`` the pairs of photos that a category, or two of them, have at most; drawn by ``seed``.
    Photos with a crowd of a category are not asked about it.
    """

    def __init__(
        self,
        annotations: str,
        images: str | None,
        about: str = "counting",
        most: int = 6,
        min_area: float = 0.005,
        per_topic: int = 20,
        seed: int = 0,
    ) -> None:
        if about not in ABOUT:
            raise ConfigError(f"reader.about of COCO's things is '{about}'; {suggest(about, ABOUT)}")
        if not 2 <= most < len(NUMBERS):
            raise ConfigError(f"reader.most is {most}, but has to be a number from 2 to {len(NUMBERS) - 1}")
        self.annotations, self.images, self.about, self.most = str(annotations), images, about, most
        self.min_area, self.per_topic, self.seed = min_area, per_topic, seed

    def read(self, split: str) -> list[Sample]:
        """The photos that have pairs. Raises DataError."""
        path = annotation_file(self.annotations, split)
        with expecting(path, LAYOUT):
            photos = _photos(read_json(path), path, self.min_area)
            said = [each for photo in photos for each in self._said(photo)]
            pairs = [pair for both in self._exchanged(said) for pair in _pairs(*both)]
            sizes = {str(photo.id): photo.size for photo in photos}
            names = {str(photo.id): image_places(photo.id, photo.name) for photo in photos}
        if not pairs:
            raise DataError(f"{path} has no two photos whose captions could be exchanged; lower reader.min_area")
        asked: dict[int | str, list[str]] = {pair.image_id: names[pair.image_id] for pair in pairs}
        return samples_of(pairs, find_images(folder_of(self.images, split), asked, path), sizes=sizes)

    def _said(self, photo: Photo) -> Iterable[Said]:
        """The captions that are true of a photo."""
        if self.about == "counting":
            for name, boxes in photo.things.items():
                if boxes is not None and len(boxes) <= self.most:
                    yield Said(photo, name, NUMBERS[len(boxes)], f"a photo of {counted(len(boxes), name)}")
            return
        single = sorted(
            (name, boxes[0]) for name, boxes in photo.things.items() if boxes is not None and len(boxes) == 1
        )
        for number, (name, box) in enumerate(single):
            for other, place in single[number + 1 :]:
                if side := _side(box, place):
                    caption = f"{with_article(name)} to the {side} of {with_article(other)}"
                    yield Said(photo, f"{name}, {other}", side, caption)

    def _exchanged(self, said: Sequence[Said]) -> Iterable[tuple[Said, Said]]:
        """Two photos of a topic with other captions, each photo once in a topic."""
        topics: dict[str, dict[str, list[Said]]] = {}
        for each in said:
            topics.setdefault(each.topic, {}).setdefault(each.subset, []).append(each)
        for topic in sorted(topics):
            groups = [topics[topic][subset] for subset in sorted(topics[topic])]
            rng = random.Random(f"{self.seed} {topic}")
            for group in groups:
                rng.shuffle(group)
            for _ in range(self.per_topic):
                groups.sort(key=len, reverse=True)  # the two largest, so that few are left alone
                if len(groups) < 2 or not groups[1]:
                    break
                yield groups[0].pop(), groups[1].pop()


def counted(number: int, name: str) -> str:
    """A number of things in words."""
    return f"{NUMBERS[number]} {name if number == 1 else plural(name)}"


def plural(name: str) -> str:
    """The plural of a category of COCO."""
    before, space, last = name.rpartition(" ")
    if last in PLURALS:
        return before + space + PLURALS[last]
    return name + ("es" if last.endswith(("s", "x", "ch", "sh")) else "s")


def with_article(name: str) -> str:
    """A thing with its article."""
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"


def _side(box: Box, other: Box) -> str | None:
    """On which side of the other box a box stands, None where one does not stand apart from the other."""
    if box[0] + box[2] <= other[0]:
        return "left"
    return "right" if other[0] + other[2] <= box[0] else None


def _pairs(one: Said, other: Said) -> Iterable[Foiled]:
    for own, wrong in ((one, other), (other, one)):
        texts = own.caption, wrong.caption, own.subset
        yield foiled(f"{own.topic}/{own.photo.id}", str(own.photo.id), *texts, **{TOPIC: own.topic})


def _photos(content: Any, path: Path, min_area: float) -> list[Photo]:
    """The photos with their things, in the order of the file. DataError where a thing is of no known photo or category."""
    names: dict[Any, str] = {row["id"]: str(row["name"]) for row in table(content, "categories", path, LAYOUT)}
    photos: dict[Any, Photo] = {}
    ids: set[Any] = set()
    for row in table(content, "images", path, LAYOUT):
        add_new(ids, row["id"], "the image", path)
        size = image_size(row["width"], row["height"], row["id"], path)
        photos[row["id"]] = Photo(row["id"], row["file_name"], size, {})
    rows = table(content, "annotations", path, LAYOUT)
    for row in rows:
        _check_known(row, photos, names, path)
    sizes, told = [photos[row["image_id"]].size for row in rows], [f"annotation {row['id']}" for row in rows]
    for row, box in zip(rows, usable([row["bbox"] for row in rows], sizes, told, path), strict=True):
        photo, name = photos[row["image_id"]], names[row["category_id"]]
        width, height = photo.size
        boxes = photo.things.setdefault(name, [])
        if box is None or row.get("iscrowd") or box[2] * box[3] < min_area * width * height:
            photo.things[name] = None
        elif boxes is not None:
            boxes.append(box)
    return list(photos.values())


def _check_known(row: Mapping[str, Any], photos: Mapping[Any, Photo], names: Mapping[Any, str], path: Path) -> None:
    for key, known, kind in (("image_id", photos, "images"), ("category_id", names, "categories")):
        if row[key] not in known:
            raise DataError(
                f"annotation {row['id']} of {path} has the {key} {row[key]!r}, which is not among its {kind}; download it again"
            )
