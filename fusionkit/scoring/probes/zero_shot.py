"""Zero-shot classification: of texts that name a class each, which suits an image best?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample, Text
from fusionkit.data.texts.foils import CAPTION, LABEL
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.pairs import COSINE, HOW, given_scores, pair_schema, records_of
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import guesses

CLASS = "class"
CUTS = (1, 5)


class ZeroShot(BaseScorer):
    """Percentage of images whose own class is the best (``top1``) or among the best five (``top5``, of more than five classes).

    ``mean_per_class`` is the mean over classes of their top1, which stand as ``top1/class/<class>``; an image weighs in it by
    the size of its class, which an interval leaves as it is. Equal scores count against us, as does an own class without one.
    """

    metrics = MappingProxyType({"top1": True, "mean_per_class": True, "top5": True})

    def __init__(self, value: str = COSINE) -> None:
        if value not in HOW:
            raise ConfigError(f"value of the scorer of classes is '{value}'; {suggest(value, HOW)}")
        self.value, self.schema = value, (pair_schema(value),)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row an image, called as the text of its own class."""
        given, own = given_scores(records, samples, self.value), own_texts(samples)
        sizes = Counter(text.facts[CLASS] for _, text in own)
        words = metric_words(sizes)
        rows: list[Row] = []
        for sample, text in own:
            rank = self._rank(sample, text, given)
            name, top1 = text.facts[CLASS], 100.0 * (rank < 1)
            values = {"top1": top1, "mean_per_class": top1 * len(own) / (len(sizes) * sizes[name])}
            if len(sample.texts["captions"]) > max(CUTS):
                values["top5"] = 100.0 * (rank < max(CUTS))
            values[f"top1/class/{words[name]}"] = top1
            rows.append({"id": text.id, "score": top1, "image_id": sample.image_id, "values": values})
        text_only = "always the commonest class, by the labels"
        return SampleScores(rows, {"scored by": HOW[self.value], "text only": text_only} if rows else {})

    def _rank(self, sample: Sample, own: Text, given: Mapping[Any, float]) -> int:
        """How many other classes score as high as the own one or higher."""
        others = [text.id for text in sample.texts["captions"] if text.id != own.id]
        if own.id not in given:
            return len(others)
        return sum(given.get(other, float("-inf")) >= given[own.id] for other in others)

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """The classes always in the order of how common they are; and in any order."""
        common = Counter(text.facts[CLASS] for _, text in own_texts(samples))
        places = {name: -float(place) for place, (name, _) in enumerate(common.most_common())}
        said = [text for sample in samples for text in sample.texts.get("captions", ()) if CLASS in text.facts]
        last = -float(len(places))
        by_text = score(
            records_of({text.id: places.get(text.facts[CLASS], last) for text in said}, self.value), samples
        )
        count = max(1, len({text.facts[CLASS] for text in said}))
        chance = {name: 100.0 * min(1.0, (max(CUTS) if name == "top5" else 1) / count) for name in by_text}
        return guesses(by_text, chance)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each image with the class that suits it best."""
        given = given_scores(records, samples, self.value)
        own = {text.id: (sample, text) for sample, text in own_texts(samples)}
        found = []
        for row in evenly(rows, limit):
            sample, text = own[row["id"]]
            best = max(sample.texts["captions"], key=lambda each: given.get(each.id, float("-inf")))
            image, said = sample.image if has_pixels(sample.image) else None, best.facts[CLASS]
            true = text.facts[CLASS]
            found.append(
                Example(
                    text.id,
                    sample.image_id,
                    image,
                    text.text,
                    said,
                    true,
                    row["score"],
                    sample.size,
                    upright=sample.upright,
                )
            )
        return found


def own_texts(samples: Sequence[Sample]) -> list[tuple[Sample, Text]]:
    """The images whose class is known, with the text that names it."""
    return [
        (sample, text)
        for sample in samples
        for text in sample.texts.get("captions", ())
        if CLASS in text.facts and text.facts[LABEL] == CAPTION
    ]
