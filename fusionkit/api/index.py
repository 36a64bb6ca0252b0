"""Images of a folder that can be searched in Python."""

from collections.abc import Sequence

from fusionkit.api.inputs import Picture, image_requests, several
from fusionkit.api.mistakes import sentences
from fusionkit.data.requests import readable_text
from fusionkit.errors import ConfigError
from fusionkit.inference.image_search import ImageSearch, Query, Ways
from fusionkit.inference.index_update import Update
from fusionkit.scoring.records import Record


class Index:
    """The images of a folder in the space that contrast trained, as ``Model.index`` gives them.

    ``update`` is what making it, or bringing it up to date, did: numbers of images, and ``faults``, those that cannot be read.
    """

    def __init__(self, images: ImageSearch) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images.index)

    def __repr__(self) -> str:
        index = self._images.index
        return f"Index({len(index):,} images of {index.images}; {index.folder})"

    @property
    def update(self) -> Update | None:
        """What the call that gave it did; None where it was only opened."""
        return self._images.update

    def search(
        self,
        query: str | Sequence[str] | None = None,
        image: Picture | None = None,
        top: int = 10,
        k: int = 64,
        weight: float = 0.5,
    ) -> list[Record] | list[list[Record]]:
        """The best images, {"rank", "image", "score", "cosine"}, of a text, an image or both; of several texts a list each.

        ``k`` nearest of a text are ranked again by matching, where a task matches, and have ``match``, a probability; one that
        cannot be read any more stands behind all others, with its ``error``. ``weight`` is the image's part in both.
        """
        texts, is_one = ([None], True) if query is None else several(query, "text")
        if query is None and image is None:
            raise ConfigError("search: nothing is looked for; give a text, image=... or both")
        request = None if image is None else image_requests([image])[0]
        words = [None if text is None else readable_text(text, "query") for text in texts]
        with sentences():
            found = self._images.search([Query(text, request) for text in words], Ways(top, k, weight))
        return found[0] if is_one else found

    def duplicates(self, threshold: float = 0.95) -> list[list[Record]]:
        """Groups of images that look alike, {"image", "cosine", "same_bytes"}: each said with the first of its group."""
        with sentences():
            return self._images.duplicates(threshold)
