"""COCO captions: the official `captions_*.json` and Karpathy's `dataset_*.json` (COCO, Flickr30k, Flickr8k)."""

from collections import Counter
from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting, read_json, require_split, table
from fusionkit.data.images import coco_names, find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError

NO_FACTS: dict[str, Any] = {}  # one for all captions, of which there can be 600,000
OFFICIAL, KARPATHY = "official COCO captions", "Karpathy dataset_coco.json"


class CocoCaptions:
    """Reader of "captions"; the two layouts are told apart by what is in the file.

    `annotations` and `images` may contain `{split}`. Karpathy's file has splits of its own: train, restval, val, test.
    """

    def __init__(self, annotations: str, images: str | None, collection: str = "coco") -> None:
        self.annotations, self.images, self.collection = str(annotations), images, collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have captions. Raises DataError."""
        path = annotation_file(self.annotations, split)
        content = read_json(path)
        rows = table(content, "images", path, f"{OFFICIAL} or {KARPATHY}")
        if isinstance(rows[0], dict) and "sentences" in rows[0]:
            names, captions = _read_karpathy(rows, split, path)
        else:
            if self.images is None:  # scored alone: BLIP's ground truth has ids and no names
                rows = [{"file_name": "", **row} if isinstance(row, dict) else row for row in rows]
            names, captions = _read_official(rows, table(content, "annotations", path, OFFICIAL), split, path)
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(image_id, files[image_id], {"captions": tuple(texts)}, collection=self.collection)
            for image_id, texts in captions.items()
        ]


Names = dict[int | str, list[str]]  # by image id, the places to look for the file
Captions = dict[int | str, list[Text]]  # by image id


def _read_karpathy(rows: list[Any], split: str, path: Path) -> tuple[Names, Captions]:
    names: Names = {}
    captions: Captions = {}
    image_ids: set[Any] = set()
    ids: set[Any] = set()
    with expecting(path, KARPATHY):
        require_split(split, Counter(row["split"] for row in rows), path)
        for row in rows:
            if row["split"] != split:
                continue
            image_id = _image_id(row)
            add_new(image_ids, image_id, "the image", path)
            file_name = "/".join(part for part in (row.get("filepath"), row["filename"]) if part)
            names[image_id] = coco_names(image_id, file_name)
            captions[image_id] = [Text(said["sentid"], said["raw"], NO_FACTS) for said in row["sentences"]]
            for text in captions[image_id]:
                add_new(ids, text.id, "the sentence", path)
    return names, captions


def _image_id(row: dict[str, Any]) -> int | str:
    """COCO's id; of Flickr30k the number that its files are called by, as in SNLI-VE; else the json's own."""
    stem = Path(row["filename"]).stem
    return row["cocoid"] if "cocoid" in row else int(stem) if stem.isdigit() else row["imgid"]


def _read_official(rows: list[Any], annotations: list[Any], split: str, path: Path) -> tuple[Names, Captions]:
    captions: Captions = {}
    image_ids: set[Any] = set()
    ids: set[Any] = set()
    with expecting(path, OFFICIAL):
        for row in rows:
            add_new(image_ids, row["id"], "the image", path)
        for said in annotations:
            add_new(ids, said["id"], "the caption", path)
            captions.setdefault(said["image_id"], []).append(Text(said["id"], said["caption"], NO_FACTS))
        _check_images(captions, image_ids, path)
        names = {row["id"]: coco_names(row["id"], row["file_name"], split) for row in rows if row["id"] in captions}
    return names, captions


def _check_images(captions: Captions, image_ids: set[Any], path: Path) -> None:
    unknown = next((image_id for image_id in captions if image_id not in image_ids), None)
    if unknown is not None:
        raise DataError(
            f"caption {captions[unknown][0].id} of {path} is about image {unknown}, which its 'images' list lacks; "
            "add the image or remove the caption"
        )
