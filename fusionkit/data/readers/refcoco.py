"""RefCOCO, RefCOCO+ and RefCOCOg: `refs(unc).p`, `refs(umd).p` or `refs(google).p` with `instances.json`, as published.

gRefCOCO's `grefs(unc).json`, and references as json of any split, are read too.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.boxes import Box, image_size, require_boxes
from fusionkit.data.files import add_new, annotation_file, expecting, read_pickle, require_split, table
from fusionkit.data.identity import check_id
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.files.depends import parsed_once
from fusionkit.files.plain import read_json

REFS, INSTANCES = "RefCOCO refs", "RefCOCO instances.json"


class RefCOCO:
    """Reader of "expressions", with the facts `box` (xywh in pixels of `Sample.size`), `ref_id` and `ann_id`.

    Splits are the file's own: train, val, testA, testB (RefCOCOg: test). The paths may contain `{split}`. `also_captions`
    gives them a second time, as "captions", for tasks that read these. Of gRefCOCO's expressions those of one thing are read;
    those of several and of none are left out, and counted in a warning.
    """

    def __init__(
        self, refs: str, instances: str, images: str | None, collection: str | None = None, also_captions: bool = False
    ) -> None:
        self.refs, self.instances, self.images = str(refs), str(instances), images
        self.collection, self.also_captions = collection, also_captions

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have expressions. Raises DataError."""
        path, boxes_path = annotation_file(self.refs, split), annotation_file(self.instances, split)
        refs = _of_one_thing(_select(parsed_once(path, _read_refs), split, path), path)
        content = parsed_once(boxes_path, read_json)
        with expecting(boxes_path, INSTANCES):
            images = {row["id"]: row for row in table(content, "images", boxes_path, INSTANCES)}
            objects = {row["id"]: row for row in table(content, "annotations", boxes_path, INSTANCES)}
        with expecting(path, REFS):
            expressions = _group(refs, path)
            _require_known(refs, images, objects, path, boxes_path)
        with expecting(boxes_path, INSTANCES):
            sizes = {
                key: image_size(images[key]["width"], images[key]["height"], key, boxes_path) for key in expressions
            }
            boxes = _boxes(refs, objects, sizes, boxes_path)
        with expecting(path, REFS):
            texts = {key: _texts(group, boxes) for key, group in expressions.items()}
        with expecting(boxes_path, INSTANCES):
            names = {key: image_places(key, images[key]["file_name"]) for key in expressions}
            files = find_images(folder_of(self.images, split), names, boxes_path)
            return [
                Sample(key, files[key], self._kinds(said), sizes[key], self.collection) for key, said in texts.items()
            ]

    def _kinds(self, texts: list[Text]) -> dict[str, tuple[Text, ...]]:
        kinds = {"expressions": tuple(texts)}
        return kinds | {"captions": tuple(Text(text.id, text.text) for text in texts)} if self.also_captions else kinds


def _read_refs(path: Path) -> Any:
    return read_json(path) if path.suffix == ".json" else read_pickle(path)


def _of_one_thing(refs: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """The references to one box. gRefCOCO lists the boxes of each, [-1] where there is none."""
    with expecting(path, REFS):
        kept = []
        for ref in refs:
            ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
            if len(ids) == 1 and not ref.get("no_target"):
                kept.append({**ref, "ann_id": ids[0]} if isinstance(ref["ann_id"], list) else ref)
    if len(kept) < len(refs):
        warnings.warn(
            f"{len(refs) - len(kept):,} of {len(refs):,} references of {path} are to several things or to none, and left out",
            stacklevel=2,
        )
    return kept


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
        check_id(ref["image_id"], f"reference {ref['ref_id']} about an image", path)
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
    """Raise DataError where a reference's box or image is not in instances.json, or the box is of another image there."""
    for ref in refs:
        for what, number, known in (("box", ref["ann_id"], objects), ("image", ref["image_id"], images)):
            if number not in known:
                raise DataError(
                    f"reference {ref['ref_id']} of {path} names {what} {number}, which {boxes_path} lacks; "
                    "take both files from the same data set"
                )
        on = objects[ref["ann_id"]]["image_id"]
        if on != ref["image_id"]:
            raise DataError(
                f"reference {ref['ref_id']} of {path} is about image {ref['image_id']}, but its box {ref['ann_id']} lies on "
                f"image {on} in {boxes_path}; take both files from the same data set"
            )


def _boxes(
    refs: Sequence[dict[str, Any]], objects: dict[Any, Any], sizes: dict[Any, tuple[int, int]], path: Path
) -> dict[Any, Box]:
    """The boxes of the references by ann_id, each inside the image of its reference."""
    rows = [objects[ref["ann_id"]] for ref in refs]
    names = [f"ann_id {row['id']} of image {ref['image_id']}" for row, ref in zip(rows, refs, strict=True)]
    require_boxes([row["bbox"] for row in rows], [sizes[ref["image_id"]] for ref in refs], names, path)
    return {row["id"]: (float(x), float(y), float(w), float(h)) for row in rows for x, y, w, h in [row["bbox"]]}
