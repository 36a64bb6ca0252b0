"""Lists of captioned images in the layout of ALBEF, X-VLM and BLIP: json of {"image": path, "caption": text or texts}."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionkit.data.files import annotation_file, expecting, read_json
from fusionkit.data.images import find_images
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError, suggest

LAYOUT = 'list of {"image": path, "caption": text or list of texts}'
NO_FACTS: dict[str, Any] = {}


class CaptionLists:
    """Reader of "captions" from the json files that ``files`` names for each split: {split: [paths]}.

    Rows about one image are joined. An image that is COCO's by its name (``COCO_train2014_000000000042.jpg``) has COCO's id,
    so that it is known where other sources show it; any other is known by its path below ``images``.
    """

    def __init__(self, files: Mapping[str, Sequence[str]], images: str, collection: str = "web") -> None:
        self.files, self.images, self.collection = files, Path(images), collection

    def read(self, split: str) -> list[Sample]:
        """The images of a split. Raises DataError."""
        if split not in self.files:
            raise DataError(f"the reader's 'files' name none for the split '{split}'; {suggest(split, self.files)}")
        return [sample for path in self.files[split] for sample in self._read(annotation_file(path, split))]

    def _read(self, path: Path) -> list[Sample]:
        rows = read_json(path)
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} holds no rows; expected a {LAYOUT}")
        captions: dict[int | str, list[Text]] = {}
        with expecting(path, LAYOUT):
            for number, row in enumerate(rows):
                said = [row["caption"]] if isinstance(row["caption"], str) else row["caption"]
                texts = captions.setdefault(row["image"], [])
                texts += [Text(f"{path.stem}/{number}/{place}", text, NO_FACTS) for place, text in enumerate(said)]
        files = find_images(self.images, {name: [str(name)] for name in captions}, path)
        return [self._sample(str(name), files[name], tuple(texts)) for name, texts in captions.items()]

    def _sample(self, name: str, file: Path, texts: tuple[Text, ...]) -> Sample:
        number = file.stem.rpartition("_")[2]
        if file.name.startswith("COCO_") and number.isdigit():
            return Sample(int(number), file, {"captions": texts}, collection="coco")
        return Sample(name, file, {"captions": texts}, collection=self.collection)
