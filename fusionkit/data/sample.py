"""What a reader makes of the files on disk: images with their texts, and the facts known about each text."""

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fusionkit.files.unicode import BadText, readable

WEIGHT = "sample_weight"  # the fact of a text that says how often its image is drawn, in proportion


@dataclass(frozen=True, slots=True)
class Text:
    """One caption, question or referring expression, with the data set's own facts about it."""

    id: int | str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """By name: ``answers`` (ten strings), ``answer_type``, ``box`` (x, y, w, h in pixels of ``Sample.size``), ``label``..."""

    def __post_init__(self) -> None:
        """Keep the text as ``readable`` gives it. Raises BadText, such as for the null of a caption that was never written."""
        if not isinstance(self.text, str):
            shown = reprlib.repr(self.text)
            raise BadText(f"text {self.id} is {shown}, but has to be a string; correct or remove it")
        try:
            object.__setattr__(self, "text", readable(self.text))
        except BadText as error:
            raise BadText(f"text {self.id}: {error}") from None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and its texts by kind ("captions", "questions", "expressions", or a kind of one's own)."""

    image_id: int | str
    image: Path
    texts: Mapping[str, tuple[Text, ...]]
    size: tuple[int, int] | None = None
    """Width and height that boxes refer to; None: the size of the image file itself."""
    collection: str | None = None
    """Where image ids are unique: two samples with the same (collection, image_id) show the same photo. None: the name of the
    file tells that it is COCO's or Flickr30k's, and the file itself is the photo where it does not."""
    others: tuple[Path, ...] = ()
    """Further images that all the texts are about, besides `image` (NLVR2: the right one of a pair)."""
    photo: str | None = None
    """What `collection` calls by an id of its own, as others call it ("coco/42")."""
    upright: bool = False
    """Turned by its EXIF orientation, where no `size` says how the image was annotated."""


class Reader(Protocol):
    """Reads one split of a data set."""

    def read(self, split: str) -> list[Sample]: ...


@runtime_checkable
class SupportsParts(Protocol):
    """A reader that gives a split in parts with names, of which one is in memory at a time."""

    def read_in_parts(self, split: str) -> Iterator[tuple[str, list[Sample]]]: ...
