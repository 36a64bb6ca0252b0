"""What is trained on, what chooses a checkpoint and what scores it show different images, whichever source they belong to."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations

from fusionkit.data.images import photo_keys
from fusionkit.data.joint import require_one_photo
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, DataError, suggest

SIDES = ("train", "val")
"""Every other role (test, testA, compositional, ...) tests, and may share images with any other that does."""


def by_photo(splits: Iterable[Sequence[Sample]]) -> dict[int, Sample]:
    """The samples of some splits by the keys of all their images."""
    return {key: sample for samples in splits for sample in samples for key in photo_keys(sample)}


def without(samples: Sequence[Sample], shown: Mapping[int, Sample]) -> list[Sample]:
    """The samples none of whose images is shown by the others.

    Raises DataError for one that would be left out for its name alone, where the two files differ.
    """
    kept = []
    for sample in samples:
        other = next((shown[key] for key in photo_keys(sample) if key in shown), None)
        if other is None:
            kept.append(sample)
        else:
            require_one_photo(sample, other)
    return kept


def require_apart(streams: Mapping[str, Sequence[Sample]], allowed: Sequence[Sequence[str]]) -> None:
    """Raise DataError where two streams ("source/role") of different sides show one image, unless the pair is allowed.

    ``allowed`` holds pairs of streams, in which * stands for anything.
    """
    images = {stream: by_photo([found]) for stream, found in streams.items()}
    for one, other in combinations(sorted(images, key=_side), 2):
        both = images[one].keys() & images[other].keys() if _side(one) != _side(other) else set()
        if both and not any(_names(pair, one, other) for pair in allowed):
            example = min(both)
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
