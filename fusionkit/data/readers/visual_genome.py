"""Visual Genome as published: `question_answers.json`, `region_descriptions.json` and `image_data.json`.

Half of its images are COCO's; by the `coco_id` of image_data.json they are known where other sources show them.
"""

import warnings
from pathlib import Path
from typing import Any

from fusionkit.data.boxes import image_size, usable
from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.identity import check_id
from fusionkit.data.images import find_images
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import readable

IMAGES, QUESTIONS, REGIONS = (
    f"Visual Genome {name}" for name in ("image_data", "question_answers", "region_descriptions")
)
ROWS, IDS = {QUESTIONS: "qas", REGIONS: "regions"}, {QUESTIONS: "qa_id", REGIONS: "region_id"}
ALL = "train"  # Visual Genome has no splits


class VisualGenome:
    """Reader of "questions" (fact `answers`, one) or of "expressions" (fact `box`, xywh in pixels), by which file is named.

    ``as_captions`` gives the region descriptions as "captions" of the whole image (ALBEF, UNITER). Images: `<image_id>.jpg`.
    """

    def __init__(
        self,
        images: str,
        image_data: str,
        questions: str | None = None,
        regions: str | None = None,
        as_captions: bool = False,
    ) -> None:
        self.images, self.image_data = images, image_data
        self.questions, self.regions, self.kind = questions, regions, "captions" if as_captions else "expressions"

    def read(self, split: str) -> list[Sample]:
        """All images that have questions or region descriptions; the split is "train". Raises DataError."""
        if split != ALL:
            raise DataError(f"Visual Genome has no split '{split}'; all of it is '{ALL}'")
        known = self._known()
        texts: dict[int, dict[str, list[Text]]] = {}
        for file, layout, kind in ((self.questions, QUESTIONS, "questions"), (self.regions, REGIONS, self.kind)):
            if file is not None:
                path = annotation_file(file, split)
                with expecting(path, layout):
                    rows = [(image, row) for image in read_json(path) for row in image[ROWS[layout]]]
                    for image, row in rows:
                        check_id(row[IDS[layout]], f"a row of image {row['image_id']}", path)
                        _require_known(image, row["image_id"], known, path, self.image_data)
                    rows = _distinct(rows, IDS[layout], path)
                    found = _questions(rows) if layout == QUESTIONS else _regions(rows, known, path)
                    for image_id, text in found:
                        texts.setdefault(image_id, {}).setdefault(kind, []).append(text)
        files = find_images(
            Path(self.images), {image_id: [f"{image_id}.jpg"] for image_id in texts}, Path(self.image_data)
        )
        return [
            _sample(known[image_id], files[image_id], {kind: tuple(said) for kind, said in kinds.items()})
            for image_id, kinds in texts.items()
        ]

    def _known(self) -> dict[int, dict[str, Any]]:
        """What is known of each image, its size among it."""
        path = annotation_file(self.image_data, ALL)
        ids: set[Any] = set()
        with expecting(path, IMAGES):
            rows = read_json(path)
            for row in rows:
                add_new(ids, row["image_id"], "the image", path)
                image_size(row["width"], row["height"], row["image_id"], path)
            return {row["image_id"]: row for row in rows}


def _sample(row: dict[str, Any], file: Path, texts: dict[str, tuple[Text, ...]]) -> Sample:
    photo = None if row.get("coco_id") is None else f"coco/{row['coco_id']}"
    return Sample(row["image_id"], file, texts, _size(row), "visual_genome", photo=photo)


def _size(row: dict[str, Any]) -> tuple[int, int]:
    return int(row["width"]), int(row["height"])


def _distinct(rows: list[tuple[Any, Any]], key: str, path: Path) -> list[tuple[Any, Any]]:
    """The rows without those that stand there already, word for word, which are told."""
    first: dict[Any, Any] = {}
    kept = [(image, row) for image, row in rows if (seen := first.setdefault(row[key], row)) is row or seen != row]
    if len(kept) < len(rows):
        warnings.warn(
            f"{path} has {len(rows) - len(kept):,} of its {len(rows):,} rows twice; each is read once", stacklevel=2
        )
    return kept


def _questions(rows: list[tuple[Any, Any]]) -> list[tuple[int, Text]]:
    return [
        (
            row["image_id"],
            Text(f"vg{row['qa_id']}", row["question"], {"answers": [readable(row["answer"]).rstrip(".")]}),
        )
        for _, row in rows
    ]


def _regions(rows: list[tuple[Any, Any]], known: dict[int, Any], path: Path) -> list[tuple[int, Text]]:
    """The regions whose boxes can be used: some published ones are empty, and some leave their image."""
    values = [(row["x"], row["y"], row["width"], row["height"]) for _, row in rows]
    sizes = [_size(known[row["image_id"]]) for _, row in rows]
    boxes = usable(values, sizes, [f"region {row['region_id']}" for _, row in rows], path, cut=True)
    return [
        (row["image_id"], Text(f"vg{row['region_id']}", row["phrase"], {"box": box}))
        for (_, row), box in zip(rows, boxes, strict=True)
        if box is not None
    ]


def _require_known(image: dict[str, Any], image_id: int, known: dict[int, Any], path: Path, image_data: str) -> None:
    if image_id not in known:
        raise DataError(f"{path} is about image {image_id}, which {image_data} lacks; take both from one release")
    if image.get("id", image_id) != image_id:
        raise DataError(
            f"{path} has a row about image {image_id} among those of image {image['id']}; correct its image_id"
        )
