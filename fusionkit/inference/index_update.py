"""Making and updating an index of images: what is new is embedded, what is known by its bytes kept, what is gone left out."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionkit.data.requests import kind_of, pictures_of
from fusionkit.data.stores import stamp_of
from fusionkit.data.tables.place import locked
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.atomic import remove_leftovers
from fusionkit.files.tensors import read_tensors, save_tensors
from fusionkit.inference.image_index import (
    ADVICE,
    CONTENT,
    PARTS,
    ROWS,
    ImageIndex,
    Maker,
    Row,
    content_of,
    is_index,
    write_index,
)
from fusionkit.inference.progress import Bar, show_progress
from fusionkit.scoring.records import require_writable

SECONDS, MOST = 30.0, 4096  # between two times that vectors are kept, and how many they may become
OWN = (PARTS, "features-", "table-", ".")  # what the names of its files begin with
FEW = 32  # pictures, of which no progress is shown
Embed = Callable[[Sequence[Path]], Iterator[tuple[list[int], Tensor, dict[int, str]]]]
"""Of some files, batch by batch: the places of those that can be read, their vectors, and what is wrong with the others."""


@dataclass(frozen=True)
class Update:
    """What an update did, in numbers of images."""

    embedded: int = 0
    kept: int = 0
    renamed: int = 0
    copied: int = 0  # of the bytes of another image, or known from an update that was interrupted
    dropped: int = 0
    outside: int = 0
    faults: dict[str, str] = field(default_factory=dict)  # by the path in the folder

    def __str__(self) -> str:
        links = f", {self.outside:,} links that lead out of the folder left out" if self.outside else ""
        return (
            f"{self.embedded:,} embedded, {self.kept:,} as they were, {self.renamed:,} renamed, {self.copied:,} of known bytes, "
            f"{self.dropped:,} dropped, {len(self.faults):,} could not be read{links}"
        )


class Seen(NamedTuple):
    """A file as it was when its bytes were hashed."""

    path: Path
    stamp: tuple[int, int] | None  # size and time of change
    row: Row


def update_index(
    folder: Path, images: Path, reads: str, maker: Maker, width: int, embed: Embed, quiet: bool = True
) -> Update:
    """Have the index in ``folder`` hold all pictures of ``images`` and of the folders in it, in the order of their paths.

    ``reads`` is the image encoder's, ``width`` the size of a vector. A picture is known by its bytes: under another name it is
    not embedded again. What was embedded is kept at the latest half a minute later, for the next time. Raises DataError where
    there is no picture that can be read, and ConfigError for an index of another folder that is still there, or of another
    maker.
    """
    if not images.is_dir():
        raise DataError(f"images={images} is no folder; give one that holds pictures")
    files, outside = _files_of(images, reads)
    faults = dict[str, str]()  # by the path in the folder
    if not files:
        raise DataError(f"images={images} holds no {kind_of(reads)}; give another folder")
    _require_own_folder(folder)
    require_writable(folder, "index")
    with locked(folder, ["index"]):
        before = ImageIndex(folder, maker, width) if is_index(folder) else None
        if before is not None:
            _require_same_folder(before, images)
        parts = Parts(folder / PARTS, maker, width)
        with show_progress(quiet or len(files) <= FEW) as progress:
            found = _contents(files, faults, Bar(progress, "reading"))
            known = {} if before is None else {content: row for row, content in enumerate(before.contents())}
            todo = dict[bytes, Seen]()
            for seen in found.values():
                if seen.row.content not in known and seen.row.content not in parts.places:
                    todo.setdefault(seen.row.content, seen)
            _embed(embed, list(todo.values()), parts, faults, Bar(progress, "embedding"))
        for name, seen in found.items():  # other files with the bytes of one that could not be read
            if seen.row.content not in known and seen.row.content not in parts.places:
                faults.setdefault(name, faults[todo[seen.row.content].row.image])
        rows = [seen.row for name, seen in found.items() if name not in faults]
        if not rows:
            raise DataError(
                f"images={images}: of its {len(files):,} pictures none can be read: {next(iter(faults.values()))}"
            )
        old = [] if before is None else before.rows()
        if before is None or rows != old or before.images != Path(os.path.abspath(images)):
            write_index(folder, images, maker, rows, width, _vectors(rows, known, before, parts))
        parts.remove()
    return Update(**_counts(old, rows, set(todo)), outside=outside, faults=faults)


class Parts:
    """Vectors that were embedded and stand in no index yet, in files of their own: a later run finds those of a killed one."""

    def __init__(self, folder: Path, maker: Maker, width: int) -> None:
        self.folder, self.maker, self.width = folder, maker, width
        self.features: list[Tensor] = []  # (R, E) of each file, mapped
        self.places: dict[bytes, tuple[int, int]] = {}  # by content: file and row
        self._new: list[tuple[bytes, Tensor]] = []
        self._kept = time.monotonic()
        self._number = 0
        if folder.is_dir():
            remove_leftovers(folder)
        for path in self._files():
            self._number = int(path.stem) + 1
            self._open(path)

    def add(self, contents: Sequence[bytes], features: Tensor) -> None:
        """Keep vectors (R, E) of some contents, on the disk some seconds later or with ``write``."""
        self._new += zip(contents, features.float(), strict=True)
        if time.monotonic() - self._kept >= SECONDS or len(self._new) >= MOST:
            self.write()

    def write(self) -> None:
        """Write what is not on the disk yet."""
        if self._new:
            contents = torch.tensor([list(content) for content, _ in self._new], dtype=torch.uint8)
            features = torch.stack([vector for _, vector in self._new])
            path = self.folder / f"{self._number:06}.pt"
            save_tensors({"maker": asdict(self.maker), "contents": contents, "features": features}, path, advice=ADVICE)
            self._number += 1
            self._open(path)
        self._new, self._kept = [], time.monotonic()

    def remove(self) -> None:
        """Remove the files, which an index has taken the place of."""
        for path in self._files():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # not empty, or not there
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.pt") if path.stem.isdecimal())

    def _open(self, path: Path) -> None:
        """Map a file; one that is damaged is removed, and what was in it embedded again."""
        try:
            content = read_tensors(path, mmap=True)
            maker, contents, features = Maker(**content["maker"]), content["contents"], content["features"]
            is_right = contents.shape == (len(features), CONTENT) and features.shape[1:] == (self.width,)
            is_right &= (contents.dtype, features.dtype) == (torch.uint8, torch.float32)
        except (DataError, LookupError, TypeError, AttributeError):
            is_right = False
        if not is_right:
            print(f"{path} is damaged; what was in it is embedded again", flush=True)
            return path.unlink(missing_ok=True)
        self.maker.require_same(maker, self.folder.parent)
        self.places |= {bytes(row): (len(self.features), place) for place, row in enumerate(contents.tolist())}
        self.features.append(features)


def _files_of(images: Path, reads: str) -> tuple[dict[str, Path], int]:
    """The pictures by their path in the folder, but for links that lead out of it, and how many these are."""
    home, files, outside = os.path.realpath(images), dict[str, Path](), 0
    for path in pictures_of(images, reads, is_deep=True):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
            outside += 1
        else:
            files[path.relative_to(images).as_posix()] = path
    return files, outside


def _require_own_folder(folder: Path) -> None:
    """ConfigError for a folder that holds something else: an index replaces what is in its own."""
    if folder.is_dir() and not is_index(folder):
        others = [path.name for path in folder.iterdir() if not path.name.startswith(("index.", *OWN))]
        if others:
            raise ConfigError(f"index={folder} holds other files ({others[0]!a}); name a new folder as index=DIR")


def _require_same_folder(before: ImageIndex, images: Path) -> None:
    """ConfigError for an index of another folder, unless that is gone: it may have been moved."""
    if before.images.is_dir() and os.path.realpath(before.images) != os.path.realpath(images):
        raise ConfigError(
            f"index={before.folder} is of the images of {before.images}, and not of {images}; name another folder as index=DIR"
        )


def _contents(files: dict[str, Path], faults: dict[str, str], bar: Bar) -> dict[str, Seen]:
    """What each file holds; ``faults`` gets those that cannot be read."""
    found = {}
    bar.begin(len(files), 0)
    for name, path in files.items():
        try:
            found[name] = _look(name, path)
        except OSError as error:
            faults[name] = f"{path} cannot be read ({error.strerror or error})"
        bar.advance(1)
    return found


def _look(name: str, path: Path) -> Seen:
    """Raises OSError, also for what is no file: a pipe is never opened."""
    if not path.is_file():
        raise OSError("it is no file, or a link to nothing")
    stamp = stamp_of(path)
    return Seen(path, stamp, Row(name, content_of(path)))


def _embed(embed: Embed, todo: Sequence[Seen], parts: Parts, faults: dict[str, str], bar: Bar) -> None:
    """Embed pictures, each of other bytes."""
    bar.begin(len(todo), 0)
    try:
        for places, features, wrong in embed([seen.path for seen in todo]):
            faults |= {todo[place].row.image: fault for place, fault in wrong.items()}
            kept = [row for row, place in enumerate(places) if stamp_of(todo[place].path) == todo[place].stamp]
            for place in set(places) - {places[row] for row in kept}:  # no vector of other bytes
                faults[todo[place].row.image] = f"{todo[place].path} changed while it was read; run the command again"
            parts.add([todo[places[row]].row.content for row in kept], features[kept])
            bar.advance(len(places) + len(wrong))
    finally:
        parts.write()


def _counts(old: list[Row], rows: list[Row], todo: set[bytes]) -> dict[str, int]:
    """How many rows are of each kind that an update tells; ``todo`` are the contents that were embedded."""
    before, now = {row.image: row.content for row in old}, {row.image for row in rows}
    gone, counts = Counter(row.content for row in old if row.image not in now), Counter[str]()
    for row in rows:
        if before.get(row.image) == row.content:
            counts["kept"] += 1
        elif row.content in todo:
            todo.discard(row.content)
            counts["embedded"] += 1
        elif row.image not in before and gone[row.content]:
            gone[row.content] -= 1
            counts["renamed"] += 1
        else:
            counts["copied"] += 1
    return counts | {"dropped": gone.total()}


def _vectors(
    rows: list[Row], known: dict[bytes, int], before: ImageIndex | None, parts: Parts
) -> Iterator[NDArray[np.float32]]:
    """The vectors of the rows, some at a time, from the index of before and from the parts."""
    for start in range(0, len(rows), ROWS):
        chosen = rows[start : start + ROWS]
        found = np.empty((len(chosen), parts.width), dtype=np.float32)
        for place, row in enumerate(chosen):
            if before is not None and row.content in known:
                found[place] = before.features[known[row.content]]
            else:
                file, number = parts.places[row.content]
                found[place] = parts.features[file][number].numpy()
        yield found
