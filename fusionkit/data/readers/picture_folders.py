"""Folders of pictures as rows: what they show is the name of their folder, or stands in a file beside each."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit.data.readers.rows import RowFile
from fusionkit.errors import DataError
from fusionkit.files.depends import FOLDER, note
from fusionkit.files.plain import read_json
from fusionkit.files.unicode import MAX_CHARACTERS

METADATA = "metadata"  # Hugging Face's name of the table beside pictures
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"))
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
LOOKED_AT = 20  # pictures, to see whether anything lies beside them
SIDECARS = ("caption", "text", "label", "question", "answer")  # of the json beside a picture


def picture_files(folder: Path) -> list[Path]:
    """All pictures below a folder, in order; hidden ones are left out."""
    found = []
    for place, folders, names in os.walk(folder):
        note(Path(place), FOLDER)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            Path(place, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES
        ]
    return found


@dataclass(frozen=True)
class Pictures(RowFile):
    """Pictures below a folder: rows of ``image``, and of ``caption`` and the like, or of ``label``."""

    files: tuple[Path, ...] = field(default=(), repr=False)
    has_labels: bool = False

    def rows(self, columns: Iterable[str] | None = None) -> Iterator[dict[str, Any]]:
        for file in self.files:
            row: dict[str, Any] = {"image": file.relative_to(self.path).as_posix()}
            yield row | ({"label": file.parent.name.replace("_", " ")} if self.has_labels else _beside(file))


def open_pictures(folder: Path, pictures: Sequence[Path]) -> list[tuple[Pictures, str | None]]:
    """The pictures of each split, which are folders of their names, or of a folder without such.

    DataError where nothing is said of them, and where one lies beside the folders of the classes.
    """
    by_split: dict[str | None, list[Path]] = {}
    for path in pictures:
        first = path.relative_to(folder).parts[0].lower()
        by_split.setdefault(first if first in SPLITS and path.parent != folder else None, []).append(path)
    beside = dict.fromkeys(key for path in pictures[:LOOKED_AT] for key in _beside(path))
    depth = 2 if None not in by_split else 1
    labels = {path.parent.name for path in pictures if len(path.relative_to(folder).parts) > depth}
    if not beside and len(labels) < 2:
        raise DataError(
            f"the {len(pictures)} pictures in {folder} have no texts; put each class into a folder of its name, a text beside "
            f"each picture (a.jpg, a.txt), or a {METADATA}.jsonl into the folder"
        )
    stray = [path.name for path in pictures if not beside and len(path.relative_to(folder).parts) <= depth]
    if stray:
        raise DataError(
            f"{len(stray)} of the pictures in {folder} are in no folder of a class, such as {stray[0]}; move them into that of "
            "their class, or out"
        )
    columns = ("image", *(beside or ("label",)))
    return [(Pictures(folder, columns, {}, tuple(files), not beside), split) for split, files in by_split.items()]


def _beside(picture: Path) -> dict[str, Any]:
    """What img2dataset's json or a text beside a picture says; of a text each line is a caption."""
    about, text = picture.with_suffix(".json"), picture.with_suffix(".txt")
    if about.is_file():
        said = read_json(about)
        found = {key: said[key] for key in SIDECARS if said.get(key) is not None} if isinstance(said, dict) else {}
        if found:
            return found
    if text.is_file():
        note(text)
        try:
            content = text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{text} is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
        if lines := [line.strip() for line in content[:MAX_CHARACTERS].splitlines() if line.strip()]:
            return {"caption": lines}
    return {}
