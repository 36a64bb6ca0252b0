"""Several readers about the same images, read as one source."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fusionkit.data.identity import apart
from fusionkit.data.images import has_pixels, photo_keys
from fusionkit.data.sample import Reader, Sample, Text
from fusionkit.errors import DataError, suggest

HEAD = 4096  # bytes of a picture file, in which two photos differ


class Joint:
    """Merges the samples of several readers by image: captions, questions and expressions in one sample.

    Where two readers use one id for two things, all such ids come behind the number of their reader, from 1: "2/42".
    """

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = list(readers)

    def read(self, split: str) -> list[Sample]:
        """All images of any of the readers. Raises DataError."""
        return merge_samples([(str(number), each.read(split)) for number, each in enumerate(self.readers, start=1)])


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


def merge_samples(groups: Sequence[tuple[str, Sequence[Sample]]]) -> list[Sample]:
    """One sample a photo, in order of first appearance, of groups that have a name; texts of a kind one after the other.

    Ids of two groups that would be of two things are told apart by the groups' names; what one group has under two ids stays
    two samples. Raises DataError where one group uses an id twice, where two samples of an image disagree about the size that
    their boxes refer to, and where two files that differ are named as one photo.
    """
    rows = [(group, sample) for group, samples in groups for sample in samples]
    keys = [photo_keys(sample) for _, sample in rows]
    names = [group for group, _ in rows]
    image_ids = apart("an image", names, [sample.image_id for _, sample in rows], keys)
    texts = _texts_apart(rows)
    merged: dict[object, Sample] = {}
    first_ids: dict[object, object] = {}  # under which a group has a photo first
    for row, (group, sample) in enumerate(rows):
        is_first = first_ids.setdefault((group, keys[row]), sample.image_id) == sample.image_id
        slot = keys[row] if is_first else (keys[row], image_ids[row])
        new = _with(sample, image_ids[row], texts[row])
        merged[slot] = _merge(merged[slot], new) if slot in merged else new
    return list(merged.values())


def _texts_apart(rows: Sequence[tuple[str, Sample]]) -> list[Mapping[str, tuple[Text, ...]]]:
    """The texts of each row, whose ids are unique within their kind."""
    found: list[Mapping[str, tuple[Text, ...]]] = [sample.texts for _, sample in rows]
    for kind in dict.fromkeys(kind for texts in found for kind in texts):
        column = [(group, text) for group, sample in rows for text in sample.texts.get(kind, ())]
        ids = [text.id for _, text in column]
        named = apart(f"one of the {kind}", [group for group, _ in column], ids, range(len(ids)))
        if named != ids:
            new = (Text(id, text.text, text.facts) for id, (_, text) in zip(named, column, strict=True))
            found = [
                {**texts, kind: tuple(next(new) for _ in texts[kind])} if kind in texts else texts for texts in found
            ]
    return found


def _with(sample: Sample, image_id: int | str, texts: Mapping[str, tuple[Text, ...]]) -> Sample:
    if image_id == sample.image_id and texts is sample.texts:
        return sample
    photo = sample.photo or (f"{sample.collection}/{sample.image_id}" if sample.collection is not None else None)
    return Sample(image_id, sample.image, texts, sample.size, sample.collection, sample.others, photo, sample.upright)


def _merge(first: Sample, second: Sample) -> Sample:
    if first.size and second.size and first.size != second.size:
        raise DataError(
            f"image {first.image_id} is {first.size[0]} x {first.size[1]} pixels in one annotation file and "
            f"{second.size[0]} x {second.size[1]} in another ({first.image}); correct its size in one of them"
        )
    require_one_photo(first, second)
    texts: dict[str, tuple[Text, ...]] = dict(first.texts)
    for kind, more in second.texts.items():
        texts[kind] = texts.get(kind, ()) + more
    size, others = first.size or second.size, first.others or second.others
    return Sample(first.image_id, first.image, texts, size, first.collection, others, first.photo, first.upright)


def require_one_photo(first: Sample, second: Sample) -> None:
    """Raise DataError where two samples are one photo by their files' names alone, and the files differ."""
    by_name = all(each.collection is None and each.photo is None and has_pixels(each.image) for each in (first, second))
    if by_name and first.image != second.image and _head(first.image) != _head(second.image):
        raise DataError(
            f"{first.image} and {second.image} have names of one photo, but are not one file; where they are two photos, give "
            "one of their readers a name of its own (reader.collection=mine), where they are one, both the same name"
        )


def _head(path: Path) -> tuple[int, bytes]:
    """The size of a file and its first bytes; of none, nothing."""
    if not path.is_file():
        return 0, b""
    with path.open("rb") as file:
        return path.stat().st_size, file.read(HEAD)
