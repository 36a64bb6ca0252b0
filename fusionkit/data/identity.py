"""Which photo an image file shows, and ids that stand for one thing each."""

import os
import re
from collections.abc import Hashable, Sequence
from functools import lru_cache
from pathlib import Path

from fusionkit.errors import DataError

Id = int | str
COCO = re.compile(
    r"(?:COCO_[a-z]+(?:\d{4})?_)?(0{5}\d{7})", re.IGNORECASE
)  # of 2014, of 2017, and UNITER's in small letters
FLICKR = re.compile(r"(?:flickr30k_0*)?(\d+)", re.IGNORECASE)  # Flickr30k's, and UNITER's
FLICKR8K = re.compile(r"(\d+)_[0-9a-f]{10}", re.IGNORECASE)  # whose photos Flickr30k has too, by the number alone


def coco_number(name: str) -> int | None:
    """COCO's number of a photo, where a file's name is one of COCO's (``COCO_val2014_000000000042.jpg``)."""
    found = COCO.fullmatch(_stem(name)) if "00000" in name else None  # nearly none of millions is looked at closely
    return int(found.group(1)) if found else None


def _stem(name: str) -> str:
    """As ``Path(name).stem``, of which there can be millions."""
    base = name.rstrip("/").rpartition("/")[2]
    start, dot, ending = base.rpartition(".")
    return start if dot and start.strip(".") and ending else base


def photo_by_name(path: Path | str) -> str | None:
    """COCO's or Flickr30k's name of a photo, where its file's name tells; a bare number is Flickr's in a folder named so."""
    name = str(path)
    if (number := coco_number(name)) is not None:
        return f"coco/{number}"
    stem = _stem(name)
    found = FLICKR8K.fullmatch(stem) or (FLICKR.fullmatch(stem) if "flickr" in name.lower() else None)
    return f"flickr30k/{int(found.group(1))}" if found else None


def photo_of(collection: str | None, image_id: Id, path: Path) -> str:
    """A photo's name, equal wherever it is shown: its id in a ``collection`` that is said, else what its file's name tells,
    else the file itself, wherever links to it lie."""
    if collection is not None:
        return f"{collection}/{image_id}"
    name = str(path)
    if name in ("", "."):  # nothing but annotations is there
        return f"/{image_id}"
    return photo_by_name(name) or _real_path(name)


def _real_path(path: str) -> str:
    """As ``os.path.realpath``, which looks at each folder of each path anew."""
    folder, found, name = path.rpartition("/")
    if not found or name in ("", ".", "..") or os.path.islink(path):
        return os.path.realpath(path)
    return os.path.join(_real_folder(folder if folder[:1] == "/" else f"{os.getcwd()}/{folder}"), name)


_real_folder = lru_cache(maxsize=64)(os.path.realpath)


def check_id(value: object, what: str, path: Path) -> None:
    """Raise DataError for an id that is neither a whole number nor a text."""
    if type(value) not in (int, str):
        raise DataError(f"{path} has {what} with the id {value!r}, but ids are whole numbers or texts; correct it")


def apart(what: str, groups: Sequence[str], ids: Sequence[Id], things: Sequence[Hashable]) -> list[Id]:
    """Ids that are of one thing each: as they are where they are so, else each behind the name of its group.

    All are columns of one length. Raises DataError, which begins with ``what``, where one group has an id twice.
    """
    if _clash(ids, things) is None:
        return list(ids)
    longer: list[Id] = [f"{group}/{id}" for group, id in zip(groups, ids, strict=True)]
    if (row := _clash(longer, things)) is not None:
        raise DataError(
            f"{what} has the id {ids[row]!r} twice in {groups[row]}; ids must be unique: change one of the two"
        )
    return longer


def _clash(ids: Sequence[Id], things: Sequence[Hashable]) -> int | None:
    """The first row whose id is of another thing in a row before it; 7 and "7" are one id, as the keys of JSON are texts."""
    owners: dict[str, Hashable] = {}
    return next((row for row, id in enumerate(ids) if owners.setdefault(str(id), things[row]) != things[row]), None)


def short_names(paths: Sequence[Path]) -> list[str]:
    """A file's name without its ending, behind as many of its folders as tell all of the files apart."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.with_suffix("").parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    twice = next(path for path in paths if paths.count(path) > 1)
    raise DataError(f"{twice} is listed twice for one split; leave one of the two out")
