"""NLVR2, sentences about two photos: `train.json`, `dev.json`, `test1.json`, as published (an object a line)."""

from pathlib import Path
from typing import Any

from fusionkit.data.files import add_new, annotation_file, expecting
from fusionkit.data.images import find_images, folder_of
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError, suggest
from fusionkit.files.plain import read_json_lines

LAYOUT = "NLVR2 json"
LABELS = {"True": 1, "False": 0}


class NLVR2:
    """Reader of "statements", with the fact `label` (1 = true), one sample an image pair: the right image is its other one.

    The paths may contain `{split}`. Images lie below `images` as published, `<directory>/<pair>-img0.png` for the training
    split, or without the directory.
    """

    def __init__(self, annotations: str, images: str | None, collection: str | None = None) -> None:
        self.annotations, self.images, self.collection = str(annotations), images, collection

    def read(self, split: str) -> list[Sample]:
        """The image pairs of a split. Raises DataError."""
        path = annotation_file(self.annotations, split)
        texts: dict[str, list[Text]] = {}
        names: dict[int | str, list[str]] = {}
        ids: set[Any] = set()
        with expecting(path, LAYOUT):
            for row in read_json_lines(path):
                add_new(ids, row["identifier"], "the statement", path)
                pair = str(row["identifier"]).rpartition("-")[0]
                texts.setdefault(pair, []).append(Text(row["identifier"], row["sentence"], _facts(row, path)))
                for side in ("img0", "img1"):
                    file = f"{pair}-{side}.png"
                    names[f"{pair}-{side}"] = [f"{row['directory']}/{file}", file] if "directory" in row else [file]
        files = find_images(folder_of(self.images, split), names, path)
        return [
            Sample(
                pair,
                files[f"{pair}-img0"],
                {"statements": tuple(said)},
                collection=self.collection,
                others=(files[f"{pair}-img1"],),
            )
            for pair, said in texts.items()
        ]


def _facts(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """None where the labels are secret."""
    if "label" not in row:
        return {}
    said = str(row["label"])
    if said not in LABELS:
        raise DataError(f"statement {row['identifier']} of {path} has the label '{said}'; {suggest(said, LABELS)}")
    return {"label": LABELS[said]}
