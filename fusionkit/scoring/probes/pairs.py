"""What scorers of captions beside foils share: the pairs of a split, what is said of them, and a guesser that only reads."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, FOIL, LABEL, PAIR, PHOTO, SUBSET, TOPIC
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.record_schema import RecordSchema, is_number
from fusionkit.scoring.records import Record, index_records
from fusionkit.scoring.text_only_models import ridge

LOG_ODDS, COSINE, LIKELIHOOD = "log_odds", "cosine", "log_likelihood"  # what tasks say of a text and its image
HOW = {
    LOG_ODDS: "log-odds of a match by the matching head",
    COSINE: "cosine of the contrastive features",
    LIKELIHOOD: "log-likelihood of the text, less task.likelihood.prior times that without the image",
}
FOLDS = 5
COIN = 1e-9  # what draws equal guesses apart
TEXT_ONLY = f"a regression from the words and word pairs of the benchmark's texts about other images (in {FOLDS} parts)"


class Foiled(NamedTuple):
    """A caption of an image and its foil."""

    sample: Sample
    caption: Text
    foil: Text

    @property
    def photo(self) -> int | str:
        """What is resampled as a whole: the image, or the photo that it is a part of."""
        photo: int | str = self.caption.facts.get(PHOTO, self.sample.image_id)
        return photo

    @property
    def subset(self) -> str:
        """What the pair is counted under."""
        return str(self.caption.facts[SUBSET])


def pair_schema(value: str) -> RecordSchema:
    """One record a text: how well it suits its own image."""
    return RecordSchema(
        "captions", "caption_id", value, "a number, more for what suits better", is_number, of_pairs=True
    )


def pairs_of(samples: Sequence[Sample]) -> list[Foiled]:
    """The captions that have a foil, with it."""
    found = []
    for sample in samples:
        by_pair: dict[Any, dict[str, Text]] = {}
        for text in captions_of(sample):
            by_pair.setdefault(text.facts[PAIR], {})[text.facts[LABEL]] = text
        found += [Foiled(sample, texts[CAPTION], texts[FOIL]) for texts in by_pair.values() if len(texts) == 2]
    return found


def captions_of(sample: Sample) -> list[Text]:
    """The captions and foils of an image."""
    return [text for text in sample.texts.get("captions", ()) if PAIR in text.facts]


def given_scores(records: Sequence[Record], samples: Sequence[Sample], value: str) -> dict[Any, float]:
    """What the records say of each text, by its id."""
    known = {text.id for sample in samples for text in sample.texts.get("captions", ())}
    return {key: record[value] for key, record in index_records(records, "caption_id", known).items()}


def subset_words(pairs: Sequence[Foiled]) -> dict[str, str]:
    """By subset its part of a metric's name."""
    return metric_words(pair.subset for pair in pairs if pair.subset)


def folds(samples: Sequence[Sample]) -> Iterator[tuple[list[Sample], list[Sample]]]:
    """Some of the images, and all the others, from which a guesser may learn what texts are like; each image once."""
    for part in range(min(FOLDS, len(samples))):
        own = [sample for number, sample in enumerate(samples) if number % FOLDS == part]
        yield own, [sample for number, sample in enumerate(samples) if number % FOLDS != part]


def guessed_scores(samples: Sequence[Sample]) -> dict[Any, float]:
    """By text, how far its words alone speak for a caption (above 0) or a foil; where nothing does, a coin decides.

    What the words tell is learnt from the texts of other images, or where texts have a topic, of other topics.
    """
    rng = np.random.default_rng(0)
    parts: dict[Any, int] = {}
    texts = [
        (text, parts.setdefault(text.facts.get(TOPIC, sample.image_id), len(parts) % FOLDS))
        for sample in samples
        for text in captions_of(sample)
    ]
    found: dict[Any, float] = {}
    for part in range(FOLDS):
        known = [text for text, own in texts if own != part]
        labels = np.array([[float(text.facts[LABEL] == CAPTION)] for text in known])
        regress = ridge([_words(text.text) for text in known], labels) if known else None
        for text in (text for text, own in texts if own == part):
            told = 0.0 if regress is None else regress(_words(text.text))[0] - labels.mean()
            found[text.id] = float(told + COIN * rng.standard_normal())
    return found


def _words(text: str) -> str:
    """Words, and each with the next, which tell the order of the same words."""
    words = text.lower().replace(".", " ").replace(",", " ").split()
    return " ".join([*words, *(f"{one}_{other}" for one, other in pairwise(words))])


def records_of(scores: Mapping[Any, float], value: str) -> list[Record]:
    """Records of what is said of each text."""
    return [{"caption_id": key, value: score} for key, score in scores.items()]
