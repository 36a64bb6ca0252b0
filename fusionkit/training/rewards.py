"""What captions that are drawn in training are worth."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from fusionkit.files.unicode import readable
from fusionkit.scoring.corpus_metrics import CiderD
from fusionkit.scoring.ptb_tokenizer import tokenize

END = "</s>"


class CiderReward:
    """The CIDEr-D of captions of training images, by the document frequencies of all training captions of their source.

    ``score_end`` has the end of a caption count as a word of it, of the references too, so that a caption that stops in the
    middle ("a red ball on a") loses its ends; it is then no longer the score of our scorers (Hu et al. 2023 on both).

    It keeps the counts of all n-grams, some hundred bytes each: for COCO's 3 million half a gigabyte a process. The same data
    gives every process the same ones. The words are those of our own tokenizer: no Java runs in training.
    """

    def __init__(self, score_end: bool = False) -> None:
        self.score_end = score_end
        self._ciders: dict[str, CiderD] = {}
        self._samples: dict[str, tuple[Sequence[Sample], dict[Any, int]]] = {}

    def begin(self, training: Mapping[str, Sequence[Sample]]) -> None:
        """Count the n-grams of the captions of each source."""
        for source, samples in training.items():
            rows: dict[Any, int] = {}

            def documents(samples: Sequence[Sample] = samples, rows: dict[Any, int] = rows) -> Iterable[Sequence[str]]:
                for row, sample in enumerate(samples):
                    if sample.texts.get("captions"):
                        rows[sample.image_id] = row
                        yield self._references(sample)

            self._ciders[source] = CiderD(documents())
            self._samples[source] = samples, rows

    def __call__(
        self, source: str, image_ids: Sequence[Any], captions: Sequence[str], has_ended: Sequence[bool]
    ) -> list[float]:
        """The reward of each caption of the image whose id stands at its place; ``has_ended``: it was not cut."""
        wanted = {image_id: self._wanted(source, image_id) for image_id in dict.fromkeys(image_ids)}
        said = tokenize([readable(caption) for caption in captions])
        if self.score_end:
            said = [_ended(text) if is_whole else text for text, is_whole in zip(said, has_ended, strict=True)]
        return self._ciders[source](said, [wanted[image_id] for image_id in image_ids])

    def _wanted(self, source: str, image_id: Any) -> list[str]:
        samples, rows = self._samples.get(source, ((), {}))
        if image_id not in rows:
            raise DataError(
                f"image {image_id} has no captions among those that source '{source}' trains on, so that none of it can be "
                "rewarded; train on data with captions"
            )
        return self._references(samples[rows[image_id]])

    def _references(self, sample: Sample) -> list[str]:
        texts = tokenize([text.text for text in sample.texts["captions"]])
        return [_ended(text) for text in texts] if self.score_end else texts


def _ended(caption: str) -> str:
    return f"{caption} {END}"
