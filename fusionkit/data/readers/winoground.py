"""Winoground, two images and two captions of the same words (Thrush et al. 2022): `examples.jsonl`, as published.

The layout is that of https://huggingface.co/datasets/facebook/winoground (`data/examples.jsonl`, `data/images.zip`): an object a
line with the fields `id`, `caption_0`, `caption_1` and `image_0`, `image_1`, names of files without their ending; `collapsed_tag`
(Object, Relation, Both) is what was swapped, where it is said.
"""

from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of, image_places
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, FOIL, LABEL, PAIR, SUBSET
from fusionkit.files.plain import read_json_lines

LAYOUT = "Winoground jsonl"
SIDES = (0, 1)


class Winoground:
    """Reader of "captions": both captions of an example stand with each of its images.

    A text's id is `<example>/<image>/<caption>`, each 0 or 1, an image's `<example>/<image>`. Facts are the example (`pair`),
    the `label` ("caption" of its own image, "foil" of the other) and the collapsed tag (`subset`, "" where there is none).
    """

    def __init__(self, annotations: str, images: str | None) -> None:
        self.annotations, self.images = str(annotations), images

    def read(self, split: str) -> list[Sample]:
        """The images, those of an example one after the other. Raises DataError."""
        path = annotation_file(self.annotations, split)
        texts: dict[str, tuple[Text, ...]] = {}
        names: dict[int | str, list[str]] = {}
        ids: set[Any] = set()
        with expecting(path, LAYOUT):
            for row in read_json_lines(path):
                add_new(ids, row["id"], "the example", path)
                for image in SIDES:
                    key = f"{row['id']}/{image}"
                    texts[key] = tuple(_text(row, key, image, caption) for caption in SIDES)
                    names[key] = _names(row[f"image_{image}"])
        files: dict[int | str, Path] = find_images(folder_of(self.images, split), names, path)
        return [Sample(key, files[key], {"captions": said}) for key, said in texts.items()]


def _text(row: dict[str, Any], key: str, image: int, caption: int) -> Text:
    label = CAPTION if image == caption else FOIL
    facts = {PAIR: str(row["id"]), LABEL: label, SUBSET: row.get("collapsed_tag") or ""}
    return Text(f"{key}/{caption}", row[f"caption_{caption}"], facts)


def _names(name: Any) -> list[str]:
    """The names of files that an image may have; TypeError where it is no text."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is no name of an image")
    return image_places(name)
