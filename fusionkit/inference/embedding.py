"""One's own images and texts in the space that contrast trained, read as those of the checkpoint's own data were."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fusionkit.data.images import CorruptImage
from fusionkit.data.requests import Request, own_collate, own_data, require_image
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.answering import Predictor
from fusionkit.inference.prediction import evaluating, moved
from fusionkit.types import Batch, Tokens


class ReadImages(NamedTuple):
    """Those images of some requests that can be read, and what is wrong with the others, by their places."""

    batch: Batch | None  # None: there are none
    places: list[int]  # of the rows of the batch
    faults: dict[int, str]


class Embedder:
    """What a predictor's encoders make of images and texts, ``batch_size`` images at a time.

    They are read as those of the first source with a contrastive objective, if there is one.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.model = predictor, predictor.model
        sources = predictor.sources
        contrastive = [source for source, names in sources.items() if any(map(self._trains_features, names))]
        self.has_contrast = bool(contrastive)
        self.source = contrastive[0] if contrastive else next(iter(sources))

    def require_contrast(self, name: str) -> None:
        """Raise ConfigError where no objective trained the vectors; ``name`` is what the user calls the model."""
        if not self.has_contrast:
            trained = [task for task in self.predictor.tasks if not task.endswith("_gradcam")]
            raise ConfigError(
                f"{name} was trained without contrast, so that its embeddings say nothing; it was trained by "
                f"{', '.join(trained)}: use match, or train with task itc"
            )

    def images(self, requests: Sequence[Request]) -> Iterator[tuple[list[int], Tensor, dict[int, str]]]:
        """Batch by batch the places of those that can be read, their vectors (I, E), and what is wrong with the others."""
        for start, read in self._read_all(requests):
            features = torch.zeros(0, self.model.embed_size)
            if read.batch is not None:
                features = self.compute(read.batch, self.project_images)
            faults = {start + place: fault for place, fault in read.faults.items()}
            yield [start + place for place in read.places], features, faults

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (T, E) of texts, each within the template of captions where the checkpoint's data have one."""
        rows = self.map_texts(texts, self.model.project_text, is_caption=True)
        return require_finite(torch.cat(list(rows)))

    def project_images(self, batch: Batch) -> Tensor:
        """Vectors (I, E) of a batch. Raises DataError for weights that are no numbers."""
        return require_finite(self.model.project_image(self.image_tokens(batch)))

    def image_tokens(self, batch: Batch) -> Tokens:
        """The image encoder's states of a batch."""
        return self.model.encode_image(self.model.images_of(batch))

    def map_images(self, requests: Sequence[Request], compute: Callable[[Batch], Any]) -> Iterator[Any]:
        """What is computed of the images, batch by batch, on the CPU. Raises DataError for one that cannot be read."""
        for _, read in self._read_all(requests):
            if read.faults:
                raise DataError(next(iter(read.faults.values())))
            assert read.batch is not None
            yield self.compute(read.batch, compute)

    def map_texts(
        self, texts: Sequence[str], compute: Callable[[Tokens], Any], is_caption: bool = False
    ) -> Iterator[Any]:
        """What is computed of the text encoder's states, batch by batch, on the CPU."""
        for start in range(0, len(texts), at_once := 4 * self.predictor.batch_size):
            rows = self.tokenize(texts[start : start + at_once], self.source, is_caption)
            yield self.compute(rows, lambda rows: compute(self.encode_text(rows)))

    def tokenize(self, texts: Sequence[str], source: str, is_caption: bool = True) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` (T, L) of texts as those of a source are read."""
        collate = own_collate(self.predictor.datamodule, source)
        return collate.tokenize(texts, collate.templates.get("text") if is_caption else None)

    def encode_text(self, rows: dict[str, Any]) -> Tokens:
        """The text encoder's states of token ids."""
        return self.model.encode_text(rows["input_ids"], rows["attention_mask"])

    def compute(self, inputs: Any, compute: Callable[[Any], Any]) -> Any:
        """What is computed of tensors, on the model's device and as it is evaluated; the result is on the CPU."""
        predictor = self.predictor
        with evaluating(predictor.model, predictor.tasks.values(), predictor.device, predictor.options):
            return moved(compute(moved(inputs, predictor.device)), torch.device("cpu"))

    def read(self, requests: Sequence[Request], source: str) -> ReadImages:
        """The images of some requests as one batch."""
        data, collate = own_data(self.predictor.datamodule, source, requests, (), is_grouped=False)
        items, places, faults = [], [], {}
        for place, request in enumerate(requests):
            try:
                require_image(request, self.model.image_encoder.reads)
                items.append(data.item(place))
                places.append(place)
            except (CorruptImage, DataError) as error:
                faults[place] = str(error)
        batch = collate(items) if items else None
        if isinstance(batch, DataError):
            raise batch
        return ReadImages(batch, places, faults)

    def _read_all(self, requests: Sequence[Request]) -> Iterator[tuple[int, ReadImages]]:
        for start in range(0, len(requests), at_once := self.predictor.batch_size):
            yield start, self.read(requests[start : start + at_once], self.source)

    def _trains_features(self, name: str) -> bool:
        return "feats" in self.predictor.tasks[name].needs


def require_finite(values: Tensor) -> Tensor:
    """The values; DataError where one is not finite."""
    if not values.isfinite().all():
        raise DataError("the checkpoint gives numbers that are not finite: its training has diverged; choose another")
    return values
