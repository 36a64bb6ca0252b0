"""What is trained on, what chooses a checkpoint and what scores it show different images, whichever source they belong to."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations

from fusionkit.data.images import image_key
from fusionkit.data.sample import Sample
from fusionkit.errors import ConfigError, DataError, suggest

SIDES = ("train", "val")
"""Every other role (test, testA, compositional, ...) tests, and may share images with any other that does."""


def held_out_keys(splits: Iterable[Sequence[Sample]]) -> set[int]:
    """The keys of all images of some held-out splits."""
    return {image_key(sample) for samples in splits for sample in samples}


def without(samples: Sequence[Sample], keys: set[int]) -> list[Sample]:
    """The samples whose image is not among the keys."""
    return [sample for sample in samples if image_key(sample) not in keys]


def require_apart(streams: Mapping[str, Sequence[Sample]], allowed: Sequence[Sequence[str]]) -> None:
    """Raise DataError where two streams ("source/role") of different sides show one image, unless the pair is allowed.

    ``allowed`` holds pairs of streams, in which * stands for anything.
    """
    images = {stream: {image_key(sample): sample.image_id for sample in found} for stream, found in streams.items()}
    for one, other in combinations(sorted(images, key=_side), 2):
        both = images[one].keys() & images[other].keys() if _side(one) != _side(other) else set()
        if both and not any(_names(pair, one, other) for pair in allowed):
            raise DataError(_describe(one, other, len(both), images[one][min(both)]))


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
