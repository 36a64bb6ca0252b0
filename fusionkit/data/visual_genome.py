"""Visual Genome as published: `question_answers.json`, `region_descriptions.json` and `image_data.json`.

Half of its images are COCO's; by the `coco_id` of image_data.json they are known where other sources show them.
"""

from pathlib import Path
from typing import Any

from fusionkit.data.files import annotation_file, expecting, read_json
from fusionkit.data.images import find_images
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.unicode import readable

IMAGES, QUESTIONS, REGIONS = (
    f"Visual Genome {name}" for name in ("image_data", "question_answers", "region_descriptions")
)
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
        for file, layout, kind, rows in (
            (self.questions, QUESTIONS, "questions", _questions),
            (self.regions, REGIONS, self.kind, _regions),
        ):
            if file is not None:
                path = annotation_file(file, split)
                with expecting(path, layout):
                    for image_id, found in (pair for image in read_json(path) for pair in rows(image)):
                        _require_known(image_id, known, path, self.image_data)
                        texts.setdefault(image_id, {}).setdefault(kind, []).append(found)
        files = find_images(
            Path(self.images), {image_id: [f"{image_id}.jpg"] for image_id in texts}, Path(self.image_data)
        )
        return [
            self._sample(known[image_id], files[image_id], {kind: tuple(said) for kind, said in kinds.items()})
            for image_id, kinds in texts.items()
        ]

    def _known(self) -> dict[int, dict[str, Any]]:
        path = annotation_file(self.image_data, ALL)
        with expecting(path, IMAGES):
            return {row["image_id"]: row for row in read_json(path)}

    def _sample(self, row: dict[str, Any], file: Path, texts: dict[str, tuple[Text, ...]]) -> Sample:
        size, coco_id = (row["width"], row["height"]), row.get("coco_id")
        if coco_id is None:
            return Sample(row["image_id"], file, texts, size, collection="visual_genome")
        return Sample(coco_id, file, texts, size, collection="coco")


def _questions(image: dict[str, Any]) -> list[tuple[int, Text]]:
    return [
        (
            row["image_id"],
            Text(f"vg{row['qa_id']}", row["question"], {"answers": [readable(row["answer"]).rstrip(".")]}),
        )
        for row in image["qas"]
    ]


def _regions(image: dict[str, Any]) -> list[tuple[int, Text]]:
    return [
        (row["image_id"], Text(f"vg{row['region_id']}", row["phrase"], {"box": tuple(map(float, box_of(row)))}))
        for row in image["regions"]
        if row["width"] > 0 and row["height"] > 0  # some published boxes are empty
    ]


def box_of(row: dict[str, Any]) -> tuple[int, int, int, int]:
    """Left, top, width, height of a region."""
    return row["x"], row["y"], row["width"], row["height"]


def _require_known(image_id: int, known: dict[int, dict[str, Any]], path: Path, image_data: str) -> None:
    if image_id not in known:
        raise DataError(f"{path} is about image {image_id}, which {image_data} lacks; take both from one release")
