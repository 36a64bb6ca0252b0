"""What is trained on, what chooses a checkpoint and what scores it show different images, whichever source they belong to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.joint import require_one_photo
from fusionkit.data.sample import Sample
from fusionkit.data.tables.samples import Samples, as_samples
from fusionkit.errors import ConfigError, DataError, suggest

NONE = np.zeros(0, dtype=np.int64)
SIDES = ("train", "val")
"""Every other role (test, testA, compositional, ...) tests, and may share images with any other that does."""


class Shown(Mapping[int, Sample]):
    """The samples of some splits by the keys of all their images; the last that shows one."""

    def __init__(self, splits: Iterable[Sequence[Sample]]) -> None:
        self.splits = [as_samples(samples) for samples in splits]
        found = [samples.photos for samples in self.splits] or [(NONE, NONE)]
        keys, self._rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
        self._splits = np.repeat(np.arange(len(found)), [len(keys) for keys, _ in found])
        self.photos, last = np.unique(keys[::-1], return_index=True)
        self._places = len(keys) - 1 - last

    def __getitem__(self, key: int) -> Sample:
        place = int(np.searchsorted(self.photos, key))
        if place == len(self.photos) or self.photos[place] != key:
            raise KeyError(key)
        row = self._places[place]
        return self.splits[int(self._splits[row])][int(self._rows[row])]

    def __iter__(self) -> Iterator[int]:
        return iter(self.photos.tolist())

    def __len__(self) -> int:
        return len(self.photos)

    def among(self, photos: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some keys are these, (N,)."""
        if not len(self.photos):
            return np.zeros(len(photos), dtype=bool)
        places = np.searchsorted(self.photos, photos).clip(max=len(self.photos) - 1)
        found: NDArray[np.bool_] = self.photos[places] == photos
        return found


def by_photo(splits: Iterable[Sequence[Sample]]) -> Shown:
    """The samples of some splits by the keys of all their images."""
    return Shown(splits)


def without(samples: Sequence[Sample], shown: Shown) -> Samples:
    """The samples none of whose images is shown by the others.

    Raises DataError for one that would be left out for its name alone, where the two files differ.
    """
    samples = as_samples(samples)
    keys, rows = samples.photos
    is_kept, is_by_name = np.ones(len(samples), dtype=bool), samples.is_by_name
    for place in np.flatnonzero(shown.among(keys)).tolist():
        if is_kept[rows[place]] and is_by_name[rows[place]]:
            require_one_photo(samples[int(rows[place])], shown[int(keys[place])])
        is_kept[rows[place]] = False
    return samples.where(is_kept)


def require_apart(streams: Mapping[str, Sequence[Sample]], allowed: Sequence[Sequence[str]]) -> None:
    """Raise DataError where two streams ("source/role") of different sides show one image, unless the pair is allowed.

    ``allowed`` holds pairs of streams, in which * stands for anything.
    """
    images = {stream: by_photo([found]) for stream, found in streams.items()}
    for one, other in combinations(sorted(images, key=_side), 2):
        if _side(one) == _side(other) or any(_names(pair, one, other) for pair in allowed):
            continue
        both = images[one].photos[images[other].among(images[one].photos)]
        if len(both):
            example = int(both[0])
            require_one_photo(images[one][example], images[other][example])
            raise DataError(_describe(one, other, len(both), images[one][example].image_id))


def check_allowed(allowed: Sequence[Sequence[str]], streams: Sequence[str]) -> None:
    """Raise ConfigError for a pair that is none, or that names no stream."""
    for pair in allowed:
        if isinstance(pair, str) or len(pair) != 2:
            raise ConfigError(f"data.allow_overlap: expected pairs such as [a/train, b/test], got {pair!r}")
        for name in pair:
            if not any(fnmatchcase(stream, name) for stream in streams):
                raise ConfigError(
                    f"data.allow_overlap names '{name}', which is no source/role; {suggest(name, streams)}"
                )


def _side(stream: str) -> int:
    """0 for training, 1 for validation, 2 for tests."""
    role = stream.partition("/")[2]
    return SIDES.index(role) if role in SIDES else len(SIDES)


def _names(pair: Sequence[str], one: str, other: str) -> bool:
    return any(fnmatchcase(one, a) and fnmatchcase(other, b) for a, b in (pair, pair[::-1]))


def _describe(one: str, other: str, count: int, example: int | str) -> str:
    source = one.partition("/")[0]
    drop = f"leave them out of training with ++data.drop_overlap=[{source}], " if not _side(one) else ""
    return (
        f"{one} and {other} share {count} of their images, such as image {example}: a score on them would say little; correct "
        f"data.sources.{source}.splits, {drop}or allow this pair by name with ++data.allow_overlap=[[{one},{other}]]"
    )
