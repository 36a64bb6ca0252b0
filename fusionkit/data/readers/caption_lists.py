"""Lists of captioned images in the layout of ALBEF, X-VLM and BLIP: json of {"image": path, "caption": text or texts}."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any

from fusionkit.data.files import annotation_file, expecting
from fusionkit.data.identity import coco_number, short_names
from fusionkit.data.images import find_images
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError, suggest
from fusionkit.files.plain import read_json

LAYOUT = 'list of {"image": path, "caption": text or list of texts}'
NO_FACTS: dict[str, Any] = {}


class CaptionLists:
    """Reader of "captions" from the json files that ``files`` names for each split: {split: [paths]}.

    Rows about one image are joined. An image that is COCO's by its name (``COCO_train2014_000000000042.jpg``) has COCO's id,
    so that it is known where other sources show it; any other is known by its path below ``images``. A text's id is
    ``<list>/<row from 0>/<its text from 0>``, in which lists of one name are told apart by their folders.
    """

    def __init__(self, files: Mapping[str, Sequence[str]], images: str, collection: str | None = None) -> None:
        self.files, self.images, self.collection = files, Path(images), collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split. Raises DataError."""
        if split not in self.files:
            raise DataError(f"the reader's 'files' name none for the split '{split}'; {suggest(split, self.files)}")
        paths = [annotation_file(path, split) for path in self.files[split]]
        named = zip(short_names(paths), paths, strict=True) if paths else ()
        return [sample for name, path in named for sample in self._read(name, path)]

    def _read(self, name: str, path: Path) -> list[Sample]:
        rows = read_json(path)
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} holds no rows; expected a {LAYOUT}")
        captions: dict[int | str, list[Text]] = {}
        with expecting(path, LAYOUT):
            for number, row in enumerate(rows):
                said = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
                if not (isinstance(row["image"], str) and row["image"] and isinstance(said, list)):
                    raise TypeError(f"row {number + 1} is {str(row)[:80]}")
                texts = captions.setdefault(normpath(row["image"]), [])
                texts += [Text(f"{name}/{number}/{place}", text, NO_FACTS) for place, text in enumerate(said)]
        files = find_images(self.images, {image: [str(image)] for image in captions}, path)
        return [self._sample(str(image), files[image], tuple(texts)) for image, texts in captions.items()]

    def _sample(self, name: str, file: Path, texts: tuple[Text, ...]) -> Sample:
        number = coco_number(name)
        if number is not None and (self.collection is None or file.name.startswith("COCO_")):
            return Sample(number, file, {"captions": texts}, collection="coco")
        return Sample(name, file, {"captions": texts}, collection=self.collection)
