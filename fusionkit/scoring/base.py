"""What a scorer is. A task, a published benchmark and ``fusionkit score`` name the same ones; a plain function is one too."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isclose, isfinite
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from fusionkit.data.sample import Sample
from fusionkit.scoring.examples import Example, examples_of, gallery_of
from fusionkit.scoring.record_schema import RecordSchema, is_anything
from fusionkit.scoring.records import Record
from fusionkit.scoring.sample_scores import Row, SampleScores, known_direction, scores_of
from fusionkit.scoring.sheet import Sheet

Tokenize = Callable[[str], list[str]]
"""A text's tokens at their places in `input_ids`; those that begin, end and separate are ''."""
Function = Callable[[Sequence[Record], Sequence[Sample]], dict[str, float]]


class Scorer(Protocol):
    """What has to be said of records: how they look, what is measured, and what each sample scores.

    Metrics, intervals, tests and galleries are computed from the rows. Samples whose truth is not known have none; a missing
    prediction scores 0.
    """

    @property
    def schema(self) -> Sequence[RecordSchema]:
        """The kinds of records that it reads."""
        ...

    @property
    def metrics(self) -> Mapping[str, bool]:
        """The metrics of the rows, and whether more is better; "accuracy" stands for "accuracy/yes_no" too."""
        ...

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a sample (``sample_scores``)."""
        ...


class BaseScorer:
    """A scorer with what is optional: derive from it and replace what you know better.

    ``prefix``    what its metrics begin with among those of a run's other tasks; in a benchmark they stand alone.
    ``headlines`` the metrics that a comparison shows unasked; none: the first.
    ``decimals``  that its scores are rounded to, so that the last bits of a sum are not seen; None: as they come.
    """

    schema: Sequence[RecordSchema] = ()
    metrics: Mapping[str, bool] = MappingProxyType({})
    prefix: str = ""
    headlines: Sequence[str] = ()
    decimals: int | None = 10

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a sample."""
        raise NotImplementedError

    def summary(self, scores: dict[str, float], samples: Sequence[Sample]) -> dict[str, float]:
        """Those of all the scores that a run lists, what tells most first."""
        return scores

    def scores(self, judged: SampleScores, samples: Sequence[Sample]) -> dict[str, float]:
        """The scores that a run lists, of all those of the rows."""
        found = scores_of(judged.rows, self.decimals) if judged.scores is None else judged.scores
        return self.summary(found, samples)

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
        """The scores that a run lists, by the names that they have there."""
        scores = self.scores(self.rows(records, samples), samples)
        return {self.own_name(metric): value for metric, value in scores.items()}

    def headlines_of_run(self) -> set[str]:
        """The headlines, and what they are called in a run."""
        shown = self.headlines or list(self.metrics)[:1]
        return {name for metric in shown for name in (metric, self.own_name(metric))}

    def own_name(self, metric: str) -> str:
        """What a metric is called in a run."""
        return self.prefix + metric.replace("/", "_")

    def directions(self, names: Sequence[str]) -> dict[str, bool]:
        """By metric of a run or of the rows, whether more is better, as far as that is declared."""
        found = {name: known_direction(name, self._declared(name)) for name in names}
        return {name: up for name, up in found.items() if up is not None}

    def _declared(self, name: str) -> Mapping[str, bool]:
        """The declared directions, and that of the metric which a run's name begins with ("vqa_accuracy_yes_no")."""
        of_run = {self.own_name(metric): up for metric, up in self.metrics.items()}
        begun = max((own for own in of_run if f"{name}_".startswith(f"{own}_")), key=len, default=None)
        return {**self.metrics, **({} if begun is None else {name: of_run[begun]})}

    def baselines(
        self,
        train: Sequence[Sample],
        samples: Sequence[Sample],
        records: Sequence[Record],
        tokenize: Tokenize,
        score: Function,
    ) -> dict[str, float]:
        """What guessers score that never see the image: ``<metric>_baseline`` reads the text, ``<metric>_chance`` not.

        train     what they learn from; without it only what needs none is returned
        records   the model's, which may say what was asked, e.g. the masked places
        score     gives the scores of the guessers' records
        """
        return {}

    def notes(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """What the samples, whoever answers, are scored less well by."""
        return {}

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """At most ``limit`` single answers, evenly over the rows: the same ones in every run on these samples."""
        return examples_of(self.schema, records, samples, rows, limit)

    def sheet(self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row]) -> Sheet:
        """The gallery: each text with its image, what was given and what is true, the worst first."""
        return gallery_of(self.examples(records, samples, rows, None))


class Part(NamedTuple):
    """A part of a split that is scored alone: some records and what they are about."""

    id: Any
    image_id: Any
    records: list[Record]
    samples: list[Sample]


class FunctionScorer(BaseScorer):
    """A plain function ``(records, samples) -> {metric: score}``; ``function.metrics`` may say which way is better.

    It has rows for the metrics that turn out to be means over its records, or over the images: each is scored alone to see.
    ``kind`` are the texts that its task reads.
    """

    def __init__(self, function: Function, kind: str = "captions") -> None:
        self.function, self.kind = function, kind
        declared = getattr(function, "metrics", None)
        self.metrics = declared if isinstance(declared, Mapping) else {}

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
        """What the function gives."""
        return self.function(records, samples)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a record, else one an image, else none: of what the function gives for it alone."""
        scores = self.function(records, samples)
        if not scores or any("feats" in record for record in records):
            return SampleScores([], scores=scores)
        for ways in (self._by_text, self._by_image):
            parts = list(ways(records, samples))
            alone = self._alone(parts)
            means = [name for name, score in scores.items() if _is_mean(score, [each.get(name) for each in alone])]
            if means:
                others = [name for name in scores if name not in means]
                return SampleScores(self._made(parts, alone, means), _missing(others), scores)
        return SampleScores([], _missing(list(scores)), scores)

    def examples(
        self, records: Sequence[Record], samples: Sequence[Sample], rows: Sequence[Row], limit: int | None
    ) -> list[Example]:
        """As of any scorer, with what the records themselves tell of how they look."""
        schema = self._schema_of(records, samples)
        return examples_of([] if schema is None else [schema], records, samples, rows, limit)

    def _schema_of(self, records: Sequence[Record], samples: Sequence[Sample]) -> RecordSchema | None:
        """What the first record tells: the id of a text or an image, and what is said of it."""
        texts = {text.id for sample in samples for text in sample.texts.get(self.kind, ())}
        first = records[0] if records else {}
        value = next((name for name in first if not name.endswith("_id")), "")
        key = next((name for name, given in first.items() if name.endswith("_id") and given in texts), "image_id")
        if key not in first:
            return None
        return RecordSchema(self.kind, key, value, "anything", is_anything, of_images=first[key] not in texts)

    def _by_text(self, records: Sequence[Record], samples: Sequence[Sample]) -> Iterator[Part]:
        """Each record that is about a text of its kind or an image, with a sample that has nothing else."""
        schema = self._schema_of(records, samples)
        if schema is None:
            return
        owners = {text.id: (sample, text) for sample in samples for text in sample.texts.get(self.kind, ())}
        images = {sample.image_id: sample for sample in samples}
        counts: Counter[Any] = Counter()
        for record in records:
            key = record.get(schema.key)
            if schema.of_images and key in images:
                about, image_id = [images[key]], key
            elif not schema.of_images and key in owners:
                sample, text = owners[key]
                about, image_id = [replace(sample, texts={self.kind: (text,)})], sample.image_id
                other = images.get(record.get("image_id", image_id), sample)
                about += [replace(other, texts={})] if other is not sample else []
            else:
                continue
            counts[key] += 1
            yield Part(key if counts[key] == 1 else f"{counts[key]}/{key}", image_id, [record], about)

    def _by_image(self, records: Sequence[Record], samples: Sequence[Sample]) -> Iterator[Part]:
        """The records of each image, with its sample."""
        schema = self._schema_of(records, samples)
        if schema is None:
            return
        own: dict[Any, list[Record]] = {}
        for record in records:
            own.setdefault(record.get(schema.key), []).append(record)
        for sample in samples:
            ids = [sample.image_id] if schema.of_images else [text.id for text in sample.texts.get(self.kind, ())]
            said = [record for key in ids for record in own.get(key, ())]
            yield Part(sample.image_id, sample.image_id, said, [sample])

    def _alone(self, parts: Sequence[Part]) -> list[dict[str, float]]:
        """What the function gives for each part; nothing at all where it cannot do with so few."""
        try:
            found = [self.function(part.records, part.samples) for part in parts]
        except Exception:
            return []
        return [{name: float(score) for name, score in scores.items() if isfinite(score)} for scores in found]

    def _made(self, parts: Sequence[Part], alone: Sequence[Mapping[str, float]], means: Sequence[str]) -> list[Row]:
        is_error = known_direction(means[0], self.metrics) is False
        rows = []
        for part, scores in zip(parts, alone, strict=True):
            values = {name: scores[name] for name in means if name in scores}
            if values:
                score = min(100.0, max(0.0, next(iter(values.values()))))
                row = {"id": part.id, "score": 100 - score if is_error else score, "image_id": part.image_id}
                rows.append({**row, "values": values})
        return rows


class _Adopted(BaseScorer):
    """A class of one's own with the three members of a ``Scorer``, and whatever else it has."""

    def __init__(self, scorer: Any) -> None:
        self.schema, self.metrics = scorer.schema, scorer.metrics
        for name in vars(BaseScorer):
            if hasattr(scorer, name) and not name.startswith("__"):
                setattr(self, name, getattr(scorer, name))


def as_scorer(given: Any, kind: str = "captions") -> BaseScorer:
    """A scorer with all members, of one that has the needed ones, or of a function for records about texts of ``kind``."""
    if isinstance(given, BaseScorer):
        return given
    if all(hasattr(given, name) for name in ("schema", "metrics", "rows")):
        return _Adopted(given)
    return FunctionScorer(given, kind)


def _is_mean(score: float, parts: Sequence[float | None]) -> bool:
    known = [part for part in parts if part is not None]
    return bool(known) and isclose(sum(known) / len(known), score, rel_tol=1e-6, abs_tol=1e-9)


def _missing(metrics: Sequence[str]) -> dict[str, str]:
    """Why metrics have neither rows nor intervals."""
    names = ", ".join(metrics)
    told = f"{names}: no mean over records or images, which alone has an interval; a Scorer with rows has one"
    return {"intervals": told} if names else {}
