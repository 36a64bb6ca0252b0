"""Captions beside foils, which say something false of the same image in nearly the same words."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import DataError

CAPTION, FOIL = "caption", "foil"  # the fact "label" of a text
PAIR, LABEL, SUBSET = "pair", "label", "subset"
PHOTO = "photo"  # of what the image is a part, where it is one
TOPIC = "topic"  # texts of one topic are captions of some images and foils of others, as often


class Foiled(NamedTuple):
    """A caption of an image and its foil, as texts of kind "captions" with the facts `pair`, `label` and `subset`."""

    image_id: str
    caption: Text
    foil: Text


def foiled(pair: str, image_id: str, caption: str, foil: str, subset: str, **facts: Any) -> Foiled:
    """The two texts of a pair, ``<pair>/caption`` and ``<pair>/foil``, with further facts. Raises BadText."""
    texts = [
        Text(f"{pair}/{label}", said, {PAIR: pair, LABEL: label, SUBSET: subset, **facts})
        for label, said in ((CAPTION, caption), (FOIL, foil))
    ]
    return Foiled(image_id, *texts)


def samples_of(
    pairs: Iterable[Foiled], files: Mapping[int | str, Path], sizes: Mapping[str, tuple[int, int]] | None = None
) -> list[Sample]:
    """One sample an image, with the captions and foils of all its pairs; ``sizes`` are those that were annotated."""
    known = sizes or {}
    texts: dict[str, list[Text]] = {}
    for pair in pairs:
        texts.setdefault(pair.image_id, []).extend((pair.caption, pair.foil))
    return [
        Sample(image_id, files[image_id], {"captions": tuple(said)}, known.get(image_id))
        for image_id, said in texts.items()
    ]


def entries(content: Any, path: Path, layout: str) -> dict[str, Any]:
    """The entries of a file by their names; DataError where the file is no object, or has none."""
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} is not an object with at least one entry; expected the {layout} layout")
    return content
