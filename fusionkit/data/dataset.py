"""The two torch data sets: samples for training (drawn, augmented) and for evaluation (all of it, as it is)."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fusionkit.data.frames import framed, require_fit
from fusionkit.data.images import CorruptImage, Decoded
from fusionkit.data.pixels.stored import StoredImage
from fusionkit.data.regions import UNKNOWN, Found
from fusionkit.data.sample import Sample, Text
from fusionkit.data.sampler import Draw
from fusionkit.data.streams.base import StreamFiles
from fusionkit.data.tables.samples import OtherPlaces
from fusionkit.errors import DataError

MAX_CORRUPT = 0.01  # the part of a source's images that may be corrupt in training


class Images(Protocol):
    """Where the pixels come from: files or a cache of those that `ImagePaths` lists."""

    def load(self, index: int) -> Decoded: ...


class Augmentation(Protocol):
    """Changes a training image and the boxes on it without making a text false; see `transforms.Augment`."""

    def decode_side(self, size: int) -> int: ...

    def __call__(
        self, image: Image.Image, boxes: Tensor, words: Sequence[str], size: int, rng: random.Random
    ) -> tuple[Image.Image, Tensor]: ...


Finishing = Callable[[Any, Tensor], tuple[Any, Tensor]]


TextKey = tuple[str, int | str]  # kind and id
NO_BOXES = torch.zeros(0, 4)


class Item(NamedTuple):
    """One image of a batch with the texts that were chosen."""

    sample: Sample
    pixel_values: Any  # (3, H, W), or the regions or the stream in their place (Found, Streamed)
    texts: dict[str, Sequence[Text]]  # by kind
    size: tuple[int, int]  # width and height in pixels that the annotations' boxes refer to
    boxes: dict[TextKey, Tensor]  # of the texts that have one, (4,) cxcywh in 0..1
    others: Sequence[Any] = ()  # the sample's other images


class EvalData(Dataset[Item]):
    """Every text of every image. A corrupt image is a DataError: a score over the others would be another number."""

    def __init__(self, samples: Sequence[Sample], images: Images, kinds: Sequence[str], finish: Finishing) -> None:
        self.samples, self.images, self.kinds, self.finish = samples, images, kinds, finish
        self.places = OtherPlaces(samples)

    def __getitem__(self, index: int) -> Item:
        try:
            return self.item(index)
        except CorruptImage as error:
            raise DataError(f"{error}; evaluation needs every image: download the file again") from error

    def item(self, index: int) -> Item:
        """As indexing, but raises CorruptImage where an image cannot be decoded."""
        sample = self.samples[index]
        found, *others = load_framed(self.images, sample, (index, *self.places[index]))
        texts: dict[str, Sequence[Text]] = {kind: sample.texts.get(kind, ()) for kind in self.kinds}
        image, size, keys, boxes = place_boxes(found, sample, texts)
        pixel_values, boxes = self.finish(image, boxes)
        more = [self.finish(other.image, NO_BOXES)[0] for other in others]
        return Item(sample, pixel_values, texts, size, dict(zip(keys, boxes, strict=True)), more)

    def __getitems__(self, indices: Sequence[int]) -> list[Item] | DataError:
        """A whole batch, as the loader asks for it; see `Loader` for why an error is returned."""
        try:
            return [self[index] for index in indices]
        except DataError as error:
            return error

    def __len__(self) -> int:
        return len(self.samples)


class TrainData(Dataset[Item]):
    """As many texts of an image as `texts_per_image` says, and the image augmented; all of it a function of the draw.

    A corrupt image is replaced by another one that the draw names, and counted in `corrupt`, which all workers share. Samples
    whose `weights` (N,) are 0 are never drawn.
    """

    def __init__(
        self,
        source: str,
        samples: Sequence[Sample],
        images: Images,
        texts_per_image: Mapping[str, int],
        finish: Finishing,
        side: int,
        augment: Augmentation | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self.source, self.samples, self.images, self.texts_per_image = source, samples, images, texts_per_image
        self.finish, self.side, self.augment = finish, side, augment
        self.places = OtherPlaces(samples)
        self.drawn: Sequence[int] | NDArray[np.int64] = range(len(samples))
        if weights is not None:
            self.drawn = np.flatnonzero(weights)
        self.corrupt = torch.zeros(len(samples), dtype=torch.uint8).share_memory_()

    def __getitem__(self, draw: Draw) -> Item:
        rng = random.Random(draw.seed)
        index, (found, *others) = self._load(draw.sample_index, rng)
        sample = self.samples[index]
        texts = {kind: choose(sample.texts.get(kind, ()), count, rng) for kind, count in self.texts_per_image.items()}
        image, size, keys, boxes = place_boxes(found, sample, texts)
        more = [other.image for other in others]
        if self.augment is not None:
            words = list(words_of(texts))
            with torch_seeded(draw.seed):
                image, boxes = self.augment(image, boxes, words, self.side, rng)
                more = [self.augment(other, NO_BOXES, words, self.side, rng)[0] for other in more]
        pixel_values, boxes = self.finish(image, boxes)
        finished = [self.finish(other, NO_BOXES)[0] for other in more]
        return Item(sample, pixel_values, texts, size, dict(zip(keys, boxes, strict=True)), finished)

    def __getitems__(self, draws: Sequence[Draw]) -> list[Item] | DataError:
        """A whole batch, as the loader asks for it; see `Loader` for why an error is returned."""
        try:
            return [self[draw] for draw in draws]
        except DataError as error:
            return error

    def __len__(self) -> int:
        return len(self.samples)

    def _load(self, index: int, rng: random.Random) -> tuple[int, list[Decoded]]:
        """A sample's own image and its others, all of them in one piece."""
        while True:
            if not self.corrupt[index]:
                try:
                    return index, load_framed(self.images, self.samples[index], (index, *self.places[index]), rng)
                except CorruptImage as error:
                    self.corrupt[index] = 1
                    self._stop_at_too_many(error)
            index = int(self.drawn[rng.randrange(len(self.drawn))])

    def _stop_at_too_many(self, error: CorruptImage) -> None:
        count, total = int(self.corrupt.sum()), len(self.drawn)
        if count > MAX_CORRUPT * total:
            first = self.samples[int(self.corrupt.argmax())].image
            raise DataError(
                f"{count} of the {total} training images of source '{self.source}' cannot be decoded, more than "
                f"{MAX_CORRUPT:.0%}; the first is {first}: download the images again"
            ) from error


def choose(texts: Sequence[Text], count: int, rng: random.Random) -> Sequence[Text]:
    """`count` of the texts without repetition, all of them where there are fewer."""
    return texts if len(texts) <= count else rng.sample(texts, count)


def words_of(texts: Mapping[str, Sequence[Text]]) -> Iterator[str]:
    """All that is said about an image: the texts, and every answer to them."""
    for rows in texts.values():
        for row in rows:
            yield row.text
            yield from row.facts.get("answers", ())


def load_framed(
    images: Images, sample: Sample, places: Sequence[int], rng: random.Random | None = None
) -> list[Decoded]:
    """A sample's own image and its others, in the frames that the annotations are about; raises CorruptImage.

    A stream is one image, which in training ``rng`` may choose from what the files hold.
    """
    if isinstance(images, StreamFiles):
        return [images.of(sample, rng)]
    sizes = [sample.size] + [None] * (len(places) - 1)
    return [framed(images.load(place), size, sample.upright) for place, size in zip(places, sizes, strict=True)]


def place_boxes(
    found: Decoded, sample: Sample, texts: Mapping[str, Sequence[Text]]
) -> tuple[Any, tuple[int, int], list[TextKey], Tensor]:
    """The image, the size that its annotations refer to, and ``boxes_on`` it.

    Of an image whose states are kept, the boxes are those on each of its views, (N, V, 4) cxcywh in 0..1.

    Raises DataError where there are boxes and the size is not that of this image at any scale.
    """
    size = sample.size or found.size
    if isinstance(found.image, StoredImage):
        keys = [(kind, text.id) for kind, rows in texts.items() for text in rows if "box" in text.facts]
        return found.image, size, keys, found.image.boxes_of(keys)
    keys, boxes = boxes_on(found.image, size, texts)
    if keys:
        require_fit(found.size, sample.size, sample.image)
    return found.image, size, keys, boxes


def boxes_on(
    image: Image.Image | Found, size: tuple[int, int], texts: Mapping[str, Sequence[Text]]
) -> tuple[list[TextKey], Tensor]:
    """The kinds and ids of the texts with a box, and their boxes (N, 4) as xyxy in pixels of `image`, inside it.

    The facts say xywh in pixels of `size`, which differs from the image's own where it was stored or decoded smaller.
    """
    keys: list[TextKey] = []
    boxes: list[list[float]] = []
    across, down = (0.0, 0.0) if size == UNKNOWN else (image.width / size[0], image.height / size[1])
    for kind, rows in texts.items():
        for row in rows:
            if "box" in row.facts:
                if size == UNKNOWN:
                    raise DataError(
                        f"the {kind} {row.id} have a box, but the size of its image is not known (of a stream none is); have the "
                        "reader give Sample.size, or put the image's `size` into its npz file"
                    )
                x, y, width, height = row.facts["box"]
                keys.append((kind, row.id))
                boxes.append([x * across, y * down, (x + width) * across, (y + height) * down])
    limit = torch.tensor([image.width, image.height, image.width, image.height])
    return keys, torch.tensor(boxes).view(-1, 4).clamp(min=0).minimum(limit)


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """torch's global generator, which torchvision's own transforms draw from, seeded here and put back afterwards.

    Of the CPU only: `torch.manual_seed` would also reset the dropout of a GPU that trains in this process.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
