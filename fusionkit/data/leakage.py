"""No image is trained on that any held-out split of the run shows, whichever source either belongs to."""

from collections.abc import Iterable, Sequence

from fusionkit.data.images import image_key
from fusionkit.data.sample import Sample


def held_out_keys(splits: Iterable[Sequence[Sample]]) -> set[int]:
    """The keys of all images of some held-out splits."""
    return {image_key(sample) for samples in splits for sample in samples}


def without(samples: Sequence[Sample], keys: set[int]) -> list[Sample]:
    """The samples whose image is not among the keys."""
    return [sample for sample in samples if image_key(sample) not in keys]
