"""Images that are missing or damaged, found before anything is trained on them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fusionkit.data.images import CorruptImage, decode, has_pixels
from fusionkit.data.sample import Sample
from fusionkit.data.stores import is_lmdb, stored_bytes
from fusionkit.data.streams.clips import frames_of, require_pictures
from fusionkit.data.streams.recordings import ENDINGS
from fusionkit.data.streams.wav import read_wav
from fusionkit.data.tables.samples import Samples
from fusionkit.errors import ConfigError, DataError, suggest

RULES = ("error", "skip")
HEADS = {
    b"\xff\xd8\xff": b"\xff\xd9",
    b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82",
}  # of JPEG and PNG: how a file begins and ends
TAIL = 64  # bytes in which the end is looked for: some writers put a few behind it
LOOKED_AT = (
    20_000  # training images at most that are looked at, evenly spaced: training itself meets and counts the others
)
RATE = 16000  # samples a second by which a recording is tried
HEARD = {False: 0.1, True: 30.0}  # seconds of it, by whether the check is thorough
SMALL = 16  # pixels of the smaller side: a JPEG is read to its end, but only an eighth of it computed


def fault_of(path: Path, is_thorough: bool) -> str | None:
    """What is wrong with an image file; None where nothing is.

    What begins and ends as JPEG or PNG does is taken for whole unless the check ``is_thorough``, which decodes it; all other
    files are decoded. Of region features it is seen whether they are there, of a folder whether it holds frames, and of a
    recording whether it begins as one; thoroughly, whether each frame of a folder seems whole, and half a minute of a recording.
    """
    if path == Path():  # a reader without a folder: only annotations are read
        return None
    if not has_pixels(path):
        return None if path.is_file() or is_lmdb(path.parent) else f"{path} is missing"
    if path.is_dir():
        return _fault_of_frames(path, is_thorough)
    if not _is_there(path):
        return f"{path} is missing"
    require_pictures(path)
    if not is_thorough and _seems_whole(path):
        return None
    try:
        read_wav(path, RATE, HEARD[is_thorough]) if path.suffix.lower() in ENDINGS else decode(path, SMALL)
    except CorruptImage as error:
        return str(error)
    return None


def _fault_of_frames(folder: Path, is_thorough: bool) -> str | None:
    try:
        frames = frames_of(folder)
    except CorruptImage as error:
        return str(error)
    faults = (fault_of(file, False) for file, _ in frames) if is_thorough else iter(())
    return next(filter(None, faults), None)


def _is_there(path: Path) -> bool:
    """Whether there is such a file, or such a picture in a table."""
    try:
        return path.is_file() or bool(stored_bytes(path))
    except OSError:
        return False


def _seems_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            tail = file.read()
    except NotADirectoryError:  # in a table or a tar
        content = stored_bytes(path)
        head, tail = content[:8], content[-TAIL:]
    except OSError:
        return False  # decoding it will say why
    return any(head.startswith(begin) and end in tail for begin, end in HEADS.items())


class Damage:
    """What is done about missing and damaged images: an error, or they are left out, at most ``share`` of a split.

    ``rule``  "error" or "skip".
    """

    def __init__(self, rule: str = "error", share: float = 0.01) -> None:
        if rule not in RULES:
            raise ConfigError(f"data.missing is {rule!r}; {suggest(str(rule), RULES)}")
        if type(share) not in (int, float) or not 0 <= share < 1:
            raise ConfigError(f"data.max_missing is {share!r}, but has to be a share of the images, from 0 to below 1")
        self.rule, self.share = rule, share
        self._known: dict[tuple[Path, bool], str | None] = {}

    def faults(self, samples: Sequence[Sample], is_thorough: bool) -> dict[int, str]:
        """What is wrong with images of the samples, by their places; each file is looked at once a run.

        Of very many, where the check is not thorough, LOOKED_AT are looked at.
        """
        step = 1 if is_thorough else -(-len(samples) // LOOKED_AT) or 1
        looked_at = {place: samples[place] for place in range(0, len(samples), step)}
        wanted = {path for sample in looked_at.values() for path in (sample.image, *sample.others)}
        new = [path for path in sorted(wanted) if (path, is_thorough) not in self._known]
        with ThreadPoolExecutor(min(32, 2 * (os.cpu_count() or 1))) as pool:
            for path, fault in zip(new, pool.map(lambda path: fault_of(path, is_thorough), new), strict=True):
                self._known[path, is_thorough] = fault
        found = {}
        for place, sample in looked_at.items():
            faults = (self._known[path, is_thorough] for path in (sample.image, *sample.others))
            if fault := next(filter(None, faults), None):
                found[place] = fault
        return found

    def without(self, samples: Samples, name: str, is_thorough: bool) -> Samples:
        """The samples whose images are whole. DataError where too many are not."""
        faults = self.faults(samples, is_thorough)
        if len(faults) > self.share * len(samples):
            raise DataError(
                f"{len(faults)} of the {len(samples)} images of {name} are missing or damaged, more than data.max_missing="
                f"{self.share:g} lets pass; the first: {next(iter(faults.values()))}"
            )
        is_kept = np.ones(len(samples), dtype=bool)
        is_kept[list(faults)] = False
        return samples.where(is_kept)

    def require_none(self, samples: Sequence[Sample], name: str, is_thorough: bool) -> None:
        """DataError where an image is missing or damaged."""
        if faults := self.faults(samples, is_thorough):
            more = (
                f", and {len(faults) - 1} more of its {len(samples)} images are missing or damaged"
                if len(faults) > 1
                else ""
            )
            raise DataError(
                f"{name}: {next(iter(faults.values()))}{more}; download the images again, or set data.missing=skip to leave "
                "them out"
            )
