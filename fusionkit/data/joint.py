"""Several readers about the same images, read as one source."""

from collections.abc import Iterable, Mapping, Sequence

from fusionkit.data.images import image_key
from fusionkit.data.sample import Reader, Sample, Text
from fusionkit.errors import DataError, suggest


class Joint:
    """Merges the samples of several readers by image: captions, questions and expressions in one sample."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = list(readers)

    def read(self, split: str) -> list[Sample]:
        """All images of any of the readers. Raises DataError."""
        return merge_samples(sample for reader in self.readers for sample in reader.read(split))


class Named:
    """Several readers whose splits are asked for as "name/split": of some, one source may train, of others be validated."""

    def __init__(self, readers: Mapping[str, Reader]) -> None:
        self.readers = dict(readers)

    def read(self, split: str) -> list[Sample]:
        """One split of one reader. Raises DataError."""
        name, _, part = split.partition("/")
        if name not in self.readers or not part:
            raise DataError(f"the split '{split}' is no reader/split; {suggest(name, self.readers)}")
        return self.readers[name].read(part)


def merge_samples(samples: Iterable[Sample]) -> list[Sample]:
    """One sample an image, in order of first appearance; the texts of equal kind are put one after the other.

    Raises DataError where two samples of an image disagree about the size that their boxes refer to.
    """
    merged: dict[int, Sample] = {}
    for sample in samples:
        key = image_key(sample)
        merged[key] = _merge(merged[key], sample) if key in merged else sample
    return list(merged.values())


def _merge(first: Sample, second: Sample) -> Sample:
    if first.size and second.size and first.size != second.size:
        raise DataError(
            f"image {first.image_id} is {first.size[0]} x {first.size[1]} pixels in one annotation file and "
            f"{second.size[0]} x {second.size[1]} in another ({first.image}); correct its size in one of them"
        )
    texts: dict[str, tuple[Text, ...]] = dict(first.texts)
    for kind, more in second.texts.items():
        texts[kind] = texts.get(kind, ()) + more
    size, others = first.size or second.size, first.others or second.others
    return Sample(first.image_id, first.image, texts, size, first.collection, others)
