"""RefCOCO, RefCOCO+ and RefCOCOg: `refs(unc).p` or `refs(umd).p` with `instances.json`, as published."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting, read_json, read_pickle, require_split, table
from fusionkit.data.images import coco_names, find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError

REFS, INSTANCES = "RefCOCO refs", "RefCOCO instances.json"
TOLERANCE = 1.0  # pixels by which a published box may leave its image

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class RefCOCO:
    """Reader of "expressions", with the facts `box` (xywh in pixels of `Sample.size`), `ref_id` and `ann_id`.

    Splits are the file's own: train, val, testA, testB (RefCOCOg: test). The paths may contain `{split}`. `also_captions`
    gives them a second time, as "captions", for tasks that read these.
    """

    def __init__(
        self, refs: str, instances: str, images: str | None, collection: str = "coco", also_captions: bool = False
    ) -> None:
        self.refs, self.instances, self.images = str(refs), str(instances), images
        self.collection, self.also_captions = collection, also_captions

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have expressions. Raises DataError."""
        path, boxes_path = annotation_file(self.refs, split), annotation_file(self.instances, split)
        refs = _select(read_pickle(path), split, path)
        content = read_json(boxes_path)
        with expecting(boxes_path, INSTANCES):
            images = {row["id"]: row for row in table(content, "images", boxes_path, INSTANCES)}
            objects = {row["id"]: row for row in table(content, "annotations", boxes_path, INSTANCES)}
        with expecting(path, REFS):
            expressions = _group(refs, path)
            _require_known(refs, images, objects, path, boxes_path)
        with expecting(boxes_path, INSTANCES):
            boxes = {ref["ann_id"]: _box(objects[ref["ann_id"]], images[ref["image_id"]], boxes_path) for ref in refs}
            names = {key: coco_names(key, images[key]["file_name"]) for key in expressions}
            files = find_images(folder_of(self.images, split), names, boxes_path)
            return [
                Sample(
                    key,
                    files[key],
                    self._kinds(_texts(group, boxes)),
                    (images[key]["width"], images[key]["height"]),
                    self.collection,
                )
                for key, group in expressions.items()
            ]

    def _kinds(self, texts: list[Text]) -> dict[str, tuple[Text, ...]]:
        kinds = {"expressions": tuple(texts)}
        return kinds | {"captions": tuple(Text(text.id, text.text) for text in texts)} if self.also_captions else kinds


def _select(refs: Any, split: str, path: Path) -> list[dict[str, Any]]:
    if not isinstance(refs, list):
        raise DataError(
            f"{path} holds a {type(refs).__name__}; expected a list of referring expressions, the {REFS} layout"
        )
    with expecting(path, REFS):
        require_split(split, Counter(ref["split"] for ref in refs), path)
        return [ref for ref in refs if ref["split"] == split]


def _group(refs: Sequence[dict[str, Any]], path: Path) -> dict[Any, list[dict[str, Any]]]:
    """The references by image id; their ids and those of their sentences have to be unique."""
    ref_ids: set[Any] = set()
    sent_ids: set[Any] = set()
    groups: dict[Any, list[dict[str, Any]]] = {}
    for ref in refs:
        add_new(ref_ids, ref["ref_id"], "the reference", path)
        for said in ref["sentences"]:
            add_new(sent_ids, said["sent_id"], "the sentence", path)
        groups.setdefault(ref["image_id"], []).append(ref)
    return groups


def _texts(refs: Sequence[dict[str, Any]], boxes: dict[Any, Box]) -> list[Text]:
    return [
        Text(
            said["sent_id"],
            said["sent"],
            {"box": boxes[ref["ann_id"]], "ref_id": ref["ref_id"], "ann_id": ref["ann_id"]},
        )
        for ref in refs
        for said in ref["sentences"]
    ]


def _require_known(
    refs: Sequence[dict[str, Any]], images: dict[Any, Any], objects: dict[Any, Any], path: Path, boxes_path: Path
) -> None:
    """Raise DataError where a reference's box or image is not in instances.json."""
    for ref in refs:
        for what, number, known in (("box", ref["ann_id"], objects), ("image", ref["image_id"], images)):
            if number not in known:
                raise DataError(
                    f"reference {ref['ref_id']} of {path} names {what} {number}, which {boxes_path} lacks; "
                    "take both files from the same data set"
                )


def _box(row: dict[str, Any], image: dict[str, Any], path: Path) -> Box:
    """The box of one object, inside its image."""
    x, y, width, height = (float(number) for number in row["bbox"])
    inside = x >= -TOLERANCE and y >= -TOLERANCE
    inside = inside and x + width <= image["width"] + TOLERANCE and y + height <= image["height"] + TOLERANCE
    if not (inside and width > 0 and height > 0):
        wrong = "does not lie inside its image" if width > 0 and height > 0 else "has a side that is not positive"
        raise DataError(
            f"box {row['bbox']} of ann_id {row['id']} in {path} {wrong} ({image['width']} x {image['height']} pixels, "
            f"image {image['id']}); boxes are [x, y, width, height] in pixels: correct or remove it"
        )
    return x, y, width, height
