"""The images of a split as pixels in a few views each, once and in order, for what is computed from them before a run."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusionkit.data.dataset import (
    NO_BOXES,
    Augmentation,
    Finishing,
    Images,
    place_boxes,
    torch_seeded,
    words_of,
)
from fusionkit.data.frames import framed
from fusionkit.data.images import CorruptImage
from fusionkit.data.pixels.stored import boxed_texts
from fusionkit.data.sample import Sample
from fusionkit.data.stores import stamp_of
from fusionkit.data.tables.samples import ImagePaths, OtherPlaces
from fusionkit.distributed import rank, world_size
from fusionkit.errors import ConfigError, DataError


class Views(NamedTuple):
    """The views of one image."""

    place: int  # of the image in ``ImagePaths``
    pixel_values: Tensor  # (V, 3, H, W)
    boxes: Tensor  # (N, V, 4) cxcywh in 0..1, of all boxed texts of the sample whose own image it is
    size: tuple[int, int]  # width and height of the file


class ViewsData(Dataset[list[Views]]):
    """Each image of the samples in ``count`` augmented views, or in one where nothing is augmented.

    A view is a function of (name, place of the image, number of the view); it is true of every text of its sample, as
    what it holds and whether it is mirrored hangs on all of them.
    """

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        images: Images,
        kinds: Sequence[str],
        finish: Finishing,
        side: int,
        augment: Augmentation | None = None,
        count: int = 1,
    ) -> None:
        self.name, self.samples, self.images, self.kinds = name, samples, images, list(kinds)
        self.finish, self.side, self.augment = finish, side, augment
        self.count = count if augment is not None else 1
        places = OtherPlaces(samples)
        owners = {place: row for row, others in enumerate(places) for place in others}
        self.owners = [*range(len(samples)), *(owners[place] for place in sorted(owners))]

    def __len__(self) -> int:
        return len(self.owners)

    def __getitems__(self, places: Sequence[int]) -> list[Views] | DataError:
        """A whole batch, as the loader asks for it; see ``loader.Loader`` for why an error is returned."""
        try:
            return [self.views(place) for place in places]
        except CorruptImage as error:
            return DataError(
                f"{error}; image_tokens needs every image: download the file again, or set data.missing=skip"
            )
        except DataError as error:
            return error

    def views(self, place: int) -> Views:
        """All views of one image; raises CorruptImage."""
        sample, is_own = self.samples[self.owners[place]], place < len(self.samples)
        found = framed(self.images.load(place), sample.size if is_own else None, sample.upright)
        texts = {kind: sample.texts.get(kind, ()) for kind in self.kinds}
        image, boxes = found.image, NO_BOXES
        if is_own:
            image, _, _, boxes = place_boxes(found, sample, texts)
        seen = [self._view(image, boxes, list(words_of(texts)), place, number) for number in range(self.count)]
        pixel_values, placed = zip(*seen, strict=True)
        return Views(place, torch.stack(pixel_values), torch.stack(placed, dim=1), found.size)

    def _view(self, image: Any, boxes: Tensor, words: Sequence[str], place: int, number: int) -> tuple[Tensor, Tensor]:
        if self.augment is not None:
            digest = hashlib.blake2b(f"{self.name}/view/{place}/{number}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "little") >> 1
            with torch_seeded(seed):
                image, boxes = self.augment(image, boxes, words, self.side, random.Random(seed))
        return self.finish(image, boxes)


def identity(
    name: str, samples: Sequence[Sample], kinds: Sequence[str], augment: Augmentation | None, count: int
) -> Iterator[str]:
    """What the views are a function of, in words: image files, the sizes and boxes of annotations, the augmentation.

    Raises ConfigError for an augmentation that does not say its options.
    """
    if augment is not None and type(augment).__repr__ is object.__repr__:
        raise ConfigError(
            f"image_tokens: {type(augment).__name__} does not say its options, by which its views are known again; give it a "
            "__repr__, as a dataclass has, or set image_tokens.folder=null"
        )
    yield f"{list(kinds)} {f'{count} {name} {augment}' if augment is not None else ''}"
    for sample in samples:
        boxes = [(kind, text.id, text.facts["box"]) for kind, text in boxed_texts(sample, kinds)]
        yield f"{sample.size} {sample.upright} {boxes}"
        if augment is not None:
            yield str(list(words_of({kind: sample.texts.get(kind, ()) for kind in kinds})))
    for path in ImagePaths(samples):
        yield f"{path} {stamp_of(path)}"


def unchanged(batch: Any) -> Any:
    """What a loader collates with where items are to stay apart."""
    return batch


def own_batches(count: int, size: int) -> list[list[int]]:
    """This rank's share of the places 0 to count - 1, ``size`` at a time: the ranks take turns."""
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)][rank() :: world_size()]
