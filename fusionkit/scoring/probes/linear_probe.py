"""The linear probe: of which class does a classifier of the image encoder's states say that a picture is?"""

from collections import Counter
from collections.abc import Sequence
from types import MappingProxyType

from fusionkit.data.images import has_pixels
from fusionkit.data.sample import Sample
from fusionkit.files.unicode import metric_words
from fusionkit.scoring.base import BaseScorer, Function, Tokenize
from fusionkit.scoring.examples import Example, evenly
from fusionkit.scoring.probes.zero_shot import CLASS, own_texts
from fusionkit.scoring.record_schema import RecordSchema, is_text
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores
from fusionkit.scoring.text_only_models import guesses

SCHEMA = RecordSchema(
    "captions", "image_id", "predicted", "the folder of a class", is_text, of_images=True, fitted=True
)


class LinearProbeScores(BaseScorer):
    """Percentage of pictures whose predicted class is their own, and the mean over classes of it (``mean_per_class``).

    Each class's stands as ``accuracy/class/<class>``; a picture weighs in the mean by the size of its class.
    """

    metrics = MappingProxyType({"accuracy": True, "mean_per_class": True})
    schema = (SCHEMA,)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a picture."""
        given = {record["image_id"]: record["predicted"] for record in records}
        own = [(sample, text.facts[CLASS]) for sample, text in own_texts(samples)]
        sizes = Counter(name for _, name in own)
        words = metric_words(sizes)
        rows: list[Row] = []
        for sample, name in own:
            right = 100.0 * (given.get(sample.image_id) == name)
            values = {"accuracy": right, "mean_per_class": right * len(own) / (len(sizes) * sizes[name])}
            values[f"accuracy/class/{words[name]}"] = right
            rows.append({"id": sample.image_id, "score": right, "image_id": sample.image_id, "values": values})
        return SampleScores(rows)

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """Always the commonest class of the training pictures, of equal ones the first by name; and any class."""
        common = Counter(text.facts[CLASS] for _, text in own_texts(train))
        if not common:
            return {}
        majority = min(common, key=lambda name: (-common[name], name))
        by_label = score(
            [{"image_id": sample.image_id, "predicted": majority} for sample, _ in own_texts(samples)], samples
        )
        return guesses(by_label, dict.fromkeys(by_label, 100.0 / len(common)))

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """Each picture with the class that was predicted."""
        given = {record["image_id"]: record["predicted"] for record in records}
        own = {sample.image_id: (sample, text) for sample, text in own_texts(samples)}
        found = []
        for row in evenly(rows, limit):
            sample, text = own[row["id"]]
            image, key = sample.image if has_pixels(sample.image) else None, sample.image_id
            said, true = given.get(key, ""), text.facts[CLASS]
            found.append(Example(key, key, image, "", said, true, row["score"], sample.size, upright=sample.upright))
        return found
