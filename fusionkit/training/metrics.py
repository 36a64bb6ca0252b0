"""torchmetrics and our scorers, both ways: a scorer as a metric of anybody's module, and a metric as a task's scorer."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.scoring.base import FunctionScorer, Scorer, as_scorer
from fusionkit.scoring.record_schema import RecordSchema, is_anything, one_of
from fusionkit.scoring.records import Record, merge_records
from fusionkit.scoring.sample_scores import SampleScores

LENGTH = 8  # bytes that say how many follow


class ScorerMetric(Metric):
    """A scorer as a torchmetrics Metric: ``update(records, samples)`` by batches or at once, ``compute()`` gives all scores.

    Records and samples of all steps and ranks are put together first, each once, so the scores are those of the whole split.
    ``kind`` are the texts that a plain function is about.
    """

    full_state_update = False

    def __init__(self, scorer: Scorer | Any, kind: str = "captions", **options: Any) -> None:
        super().__init__(**options)
        self.scorer = as_scorer(scorer, kind)
        self.seen: list[Tensor]
        self.add_state("seen", [], dist_reduce_fx="cat")  # bytes: what torchmetrics gathers are tensors
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        super().reset()
        self.seen.append(
            torch.zeros(0, dtype=torch.uint8, device=self.device)
        )  # else a rank that sees nothing sends floats

    def update(self, records: Sequence[Record], samples: Sequence[Sample]) -> None:
        """Take the records of a batch, and the samples that they are about."""
        plain = [{field.name: getattr(sample, field.name) for field in fields(Sample)} for sample in samples]
        for sample in plain:
            sample["image"], sample["others"] = str(sample["image"]), [str(path) for path in sample["others"]]
            texts = {
                kind: [(text.id, text.text, dict(text.facts)) for text in some]
                for kind, some in sample["texts"].items()
            }
            sample["texts"] = texts
        self.seen.append(_packed((list(records), plain)).to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """The scores by name."""
        parts = list(_unpacked(self.seen))
        samples = _merged(_sample(plain) for _, some in parts for plain in some)
        scores = self.scorer(merge_records(records for records, _ in parts), samples)
        return {name: torch.tensor(value) for name, value in scores.items()}


class MetricScorer(FunctionScorer):
    """Any torchmetrics metric as a scorer: of a record's ``prediction`` against a fact of the text that it is about.

    ``metric``     e.g. {_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 3}; it starts anew at each score.
    ``target``     the name of the fact; "text" is the text itself. A record of an image has the targets of all its texts.
    ``key``        what the record is about, e.g. "question_id" or "image_id"; ``kind`` are the texts.
    ``labels``     where predictions and targets are names of classes, these in the order of their numbers.
    ``name``       of the score; else that of the metric's class ("multiclass_f1_score").
    ``scale``      what it is multiplied by: 100 makes percentages of shares, as most scores are.

    Texts without a record or without that fact are left out. A metric that is a mean over texts or images has a row for each,
    and so an interval; any other one is a score of the whole split.
    """

    def __init__(
        self,
        metric: Metric,
        prediction: str,
        target: str,
        key: str = "caption_id",
        kind: str = "captions",
        labels: Sequence[str] | None = None,
        name: str | None = None,
        scale: float = 1.0,
    ) -> None:
        if not isinstance(metric, Metric):
            raise ConfigError(
                f"scorer.metric is {metric!r}, but has to be a metric of torchmetrics; give its class as _target_, such as "
                "torchmetrics.classification.MulticlassAccuracy"
            )
        super().__init__(self._measure, kind)
        self.metric, self.prediction, self.target, self.key = metric, prediction, target, key
        self.labels, self.scale = None if labels is None else [str(label) for label in labels], scale
        self.name = (
            name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(metric).__name__).lower()
        )
        self.metrics = {} if metric.higher_is_better is None else {self.name: bool(metric.higher_is_better)}
        expected = "anything" if self.labels is None else f"one of {', '.join(self.labels)}"
        is_valid = is_anything if self.labels is None else one_of(*self.labels)
        self.schema = (RecordSchema(kind, key, prediction, expected, is_valid, of_images=key == "image_id"),)
        metric.set_dtype(torch.float64)  # so that a mean is seen to be one
        for part in metric.modules():
            if isinstance(part, Metric):  # whoever scores has the records of all ranks, and may be one of them alone
                part.distributed_available_fn = _never

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> SampleScores:
        """One row a text or an image, where the metric is a mean over them."""
        judged = super().rows(records, samples)
        missing = len(dict(self._targets(samples)).keys() - {record.get(self.key) for record in records})
        told = {"missing": f"{missing} without a prediction are left out, and not counted as wrong"} if missing else {}
        return replace(judged, notes=judged.notes | told)

    def _schema_of(self, records: Sequence[Record], samples: Sequence[Sample]) -> RecordSchema:
        return self.schema[0]

    def _measure(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
        predictions, targets = [], []
        known = dict(self._targets(samples))
        for record in records:
            if (key := record.get(self.key)) in known:
                if self.prediction not in record:
                    raise ConfigError(
                        f"scorer.prediction is '{self.prediction}', which no record has; {suggest(self.prediction, record)}"
                    )
                predictions.append(record[self.prediction])
                targets.append(known[key])
        if not predictions:
            return {}
        given, true = self._batch(predictions), self._batch(targets)
        self.metric.reset()
        try:
            self.metric.update(given, true)
            return dict(self._named(self.metric.compute()))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"scorer.metric: {type(self.metric).__name__} makes no scores of these predictions and targets ({reason}); its "
                "arguments, such as num_classes, have to fit them, and it has to give a number, a map or a list of numbers"
            ) from error
        finally:
            self.metric.reset()

    def _targets(self, samples: Sequence[Sample]) -> Iterator[tuple[Any, Any]]:
        """What is true, by the id that records have."""
        for sample in samples:
            texts = [
                text for text in sample.texts.get(self.kind, ()) if self.target == "text" or self.target in text.facts
            ]
            values = [text.text if self.target == "text" else text.facts[self.target] for text in texts]
            if self.key != "image_id":
                yield from zip((text.id for text in texts), values, strict=True)
            elif values:
                yield sample.image_id, values

    def _batch(self, values: Sequence[Any]) -> Any:
        """What a metric is updated with: texts as they are, numbers and numbers of classes as a tensor."""
        if self.labels is not None:
            if unknown := [value for value in values if str(value) not in self.labels]:
                known = ", ".join(self.labels)
                raise DataError(
                    f"scorer.labels are {known}, but there is {unknown[0]!r}; name every class that there is"
                )
            return torch.tensor([self.labels.index(str(value)) for value in values])
        if _has_text(values[0]):
            return list(values)
        try:
            numbers = torch.tensor(list(values))
            return numbers.double() if numbers.is_floating_point() else numbers
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"scorer: {values[0]!r} is neither a text nor a number that {type(self.metric).__name__} reads ({error}); give "
                "scorer.labels where it is the name of a class, else another scorer.prediction or scorer.target"
            ) from error

    def _named(self, found: Any) -> Iterator[tuple[str, float]]:
        if isinstance(found, Mapping):
            yield from ((f"{self.name}/{name}", self.scale * float(value)) for name, value in found.items())
        elif found.dim():
            names = self.labels or [str(number) for number in range(len(found))]
            yield from (
                (f"{self.name}/{name}", self.scale * value) for name, value in zip(names, found.tolist(), strict=True)
            )
        else:
            yield self.name, self.scale * float(found)


def _never() -> bool:
    return False


def _has_text(value: Any) -> bool:
    return isinstance(value[0] if isinstance(value, list | tuple) and value else value, str)


def _packed(value: Any) -> Tensor:
    """Plain values and tensors as bytes (N,) that say how many they are, so that they can stand one behind the other."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    data = buffer.getvalue()
    return torch.frombuffer(bytearray(len(data).to_bytes(LENGTH, "little") + data), dtype=torch.uint8)


def _unpacked(parts: Tensor | Iterable[Tensor]) -> Iterator[Any]:
    """What was packed; executes no code that stands there."""
    for part in [parts] if isinstance(parts, Tensor) else parts:
        data = part.cpu().numpy().tobytes()
        while data:
            end = LENGTH + int.from_bytes(data[:LENGTH], "little")
            yield torch.load(io.BytesIO(data[LENGTH:end]), weights_only=True, map_location="cpu")
            data = data[end:]


def _sample(plain: dict[str, Any]) -> Sample:
    texts = {kind: tuple(Text(*text) for text in some) for kind, some in plain["texts"].items()}
    others = tuple(map(Path, plain["others"]))
    return Sample(**{**plain, "image": Path(plain["image"]), "others": others, "texts": texts})


def _merged(samples: Iterable[Sample]) -> list[Sample]:
    """Each image once, with all the texts that came with it."""
    found: dict[Any, Sample] = {}
    for sample in samples:
        known = found.setdefault(sample.image_id, sample)
        if known is not sample:
            both = {kind: (*known.texts.get(kind, ()), *texts) for kind, texts in sample.texts.items()}
            once = {kind: tuple({text.id: text for text in texts}.values()) for kind, texts in both.items()}
            found[sample.image_id] = replace(known, texts={**known.texts, **once})
    return list(found.values())
