"""CIDEr-D with document frequencies of another corpus than the one that is scored, and as the reward of drawn captions."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.errors import DataError
from fusionkit.files.unicode import readable
from fusionkit.scoring.ptb_tokenizer import tokenize

LONGEST, WIDTH = (
    4,
    6.0,
)  # n-grams up to this length, and the width of the penalty of another length, as in pycocoevalcap
END = "</s>"
NGram = tuple[str, ...]


class CiderD:
    """CIDEr-D (Vedantam et al. 2015) as pycocoevalcap 1.2 computes it; 1.0 is what our scorers call 100%.

    ``documents`` are the tokenized captions of each image of a corpus, which say how much an n-gram counts: the logarithm of
    the number of images over the number of those that have it. pycocoevalcap knows no other corpus than the one it scores.
    """

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        self.images = 0
        self.frequencies: Counter[NGram] = Counter()
        for captions in documents:
            self.images += 1
            self.frequencies.update({ngram for caption in captions for ngram in counts_of(caption)})

    def __call__(self, said: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
        """The score of each tokenized caption against its own references; 0 where it has none."""
        known: dict[str, _Vector] = {}

        def vector(caption: str) -> _Vector:
            if caption not in known:
                known[caption] = _Vector(self, caption)
            return known[caption]

        return [
            10 * sum(vector(caption).likeness(vector(text)) for text in references) / max(len(references), 1)
            for caption, references in zip(said, wanted, strict=True)
        ]

    def weight(self, ngram: NGram) -> float:
        """How much one more of an n-gram counts."""
        return math.log(self.images) - math.log(max(1, self.frequencies[ngram]))


class _Vector:
    """The n-grams of a caption, weighted, by their length."""

    def __init__(self, cider: CiderD, caption: str) -> None:
        self.weights: list[dict[NGram, float]] = [{} for _ in range(LONGEST)]
        self.length = 0  # in pairs of words
        for ngram, count in counts_of(caption).items():
            self.weights[len(ngram) - 1][ngram] = count * cider.weight(ngram)
            self.length += count if len(ngram) == 2 else 0
        self.norms = [math.sqrt(sum(weight**2 for weight in weights.values())) for weights in self.weights]

    def likeness(self, reference: "_Vector") -> float:
        """The mean over lengths of the clipped cosine, less for another length."""
        cosines = []
        for own, other, norm, other_norm in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            shared = sum(min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other)
            cosines.append(shared / (norm * other_norm) if norm and other_norm else shared)
        return math.exp(-((self.length - reference.length) ** 2) / (2 * WIDTH**2)) * sum(cosines) / LONGEST


def counts_of(caption: str) -> Counter[NGram]:
    """How often each n-gram of up to four words is in a tokenized caption."""
    words = caption.split()
    return Counter(
        tuple(words[start : start + size]) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1)
    )


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
