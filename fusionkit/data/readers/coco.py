"""COCO captions: the official `captions_*.json` and Karpathy's `dataset_*.json` (COCO, Flickr30k, Flickr8k)."""

from collections import Counter
from pathlib import Path
from typing import Any

from fusionkit.data.boxes import size_or_none
from fusionkit.data.files import add_new, annotation_file, expecting, require_split, table
from fusionkit.data.identity import check_id
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError
from fusionkit.files.depends import parsed_once
from fusionkit.files.plain import read_json

NO_FACTS: dict[str, Any] = {}  # one for all captions, of which there can be 600,000
OFFICIAL, KARPATHY = "official COCO captions", "Karpathy dataset_coco.json"
NUMBER = "filename"  # as a number is the id


class CocoCaptions:
    """Reader of "captions"; the two layouts are told apart by what is in the file.

    `annotations` and `images` may contain `{split}`. Karpathy's file has splits of its own: train, restval, val, test.
    `collection` is where image ids are unique; None: COCO's and Flickr30k's photos are known by the names of their files.
    """

    def __init__(self, annotations: str, images: str | None, collection: str | None = None) -> None:
        self.annotations, self.images, self.collection = str(annotations), images, collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split that have captions. Raises DataError."""
        path = annotation_file(self.annotations, split)
        content = parsed_once(path, read_json)
        rows = table(content, "images", path, f"{OFFICIAL} or {KARPATHY}")
        if isinstance(rows[0], dict) and "sentences" in rows[0]:
            names, captions, photos = _read_karpathy(rows, split, path)
            sizes: dict[int | str, Any] = {}
        else:
            if self.images is None:  # scored alone: BLIP's ground truth has ids and no names
                rows = [{"file_name": "", **row} if isinstance(row, dict) else row for row in rows]
            names, captions = _read_official(rows, table(content, "annotations", path, OFFICIAL), split, path)
            sizes, photos = {row["id"]: size_or_none(row) for row in rows}, {}
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(
                *(image_id, files[image_id], {"captions": tuple(texts)}, sizes.get(image_id), self.collection),
                photo=photos.get(image_id) if self.collection is None else None,
            )
            for image_id, texts in captions.items()
        ]


Names = dict[int | str, list[str]]  # by image id, the places to look for the file
Captions = dict[int | str, list[Text]]  # by image id


def _read_karpathy(rows: list[Any], split: str, path: Path) -> tuple[Names, Captions, dict[int | str, str]]:
    """Names and captions of a split, and of the photos that COCO's ids are given for what COCO calls them."""
    names: Names = {}
    photos: dict[int | str, str] = {}
    captions: Captions = {}
    image_ids: set[Any] = set()
    ids: set[Any] = set()
    with expecting(path, KARPATHY):
        require_split(split, Counter(row["split"] for row in rows), path)
        key = _id_key(rows)
        for row in rows:
            image_id = int(Path(row["filename"]).stem) if key == NUMBER else row[key]
            add_new(image_ids, image_id, "the image", path)
            if row["split"] != split:
                continue
            if "cocoid" in row:
                photos[image_id] = f"coco/{row['cocoid']}"
            file_name = "/".join(part for part in (row.get("filepath"), row["filename"]) if part)
            names[image_id] = image_places(image_id, file_name)
            captions[image_id] = [Text(said["sentid"], said["raw"], NO_FACTS) for said in row["sentences"]]
            for text in captions[image_id]:
                add_new(ids, text.id, "the sentence", path)
    return names, captions, photos


def _id_key(rows: list[Any]) -> str:
    """COCO's id; of Flickr30k the number that its files are called by, as in SNLI-VE; else the json's own. One for all rows."""
    if all("cocoid" in row for row in rows):
        return "cocoid"
    return NUMBER if all(Path(row["filename"]).stem.isdecimal() for row in rows) else "imgid"


def _read_official(rows: list[Any], annotations: list[Any], split: str, path: Path) -> tuple[Names, Captions]:
    captions: Captions = {}
    image_ids: set[Any] = set()
    ids: set[Any] = set()
    with expecting(path, OFFICIAL):
        for row in rows:
            add_new(image_ids, row["id"], "the image", path)
        for said in annotations:
            add_new(ids, said["id"], "the caption", path)
            check_id(said["image_id"], "a caption's image", path)
            captions.setdefault(said["image_id"], []).append(Text(said["id"], said["caption"], NO_FACTS))
        _check_images(captions, image_ids, path)
        names = {row["id"]: image_places(row["id"], row["file_name"], split) for row in rows if row["id"] in captions}
    return names, captions


def _check_images(captions: Captions, image_ids: set[Any], path: Path) -> None:
    unknown = next((image_id for image_id in captions if image_id not in image_ids), None)
    if unknown is not None:
        raise DataError(
            f"caption {captions[unknown][0].id} of {path} is about image {unknown!r}, which its 'images' list lacks; "
            "add the image or remove the caption"
        )
