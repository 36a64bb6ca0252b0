"""What validation collects, and how it becomes scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.distributed import gather_objects
from fusionkit.scoring.base import as_scorer
from fusionkit.scoring.records import merge_records
from fusionkit.tasks.base import Records, Scorer


class Validation:
    """The records of one validation epoch, by (source, task), and the images that they are about."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], Records] = {}
        self._images: dict[str, list[Any]] = {}
        self.answers: dict[tuple[str, str], tuple[Records, Sequence[Sample]]] = {}  # what was scored, of all ranks
        self.directions: dict[str, bool] = {}  # by log key, whether more is better, where that is known

    def clear(self) -> None:
        """Forget the last epoch."""
        self._records, self._images, self.answers = {}, {}, {}

    def add(self, source: str, image_ids: Sequence[Any], records: Mapping[str, Records]) -> None:
        """Keep a batch's records by task."""
        self._images.setdefault(source, []).extend(image_ids)
        for task, new in records.items():
            self._records.setdefault((source, task), []).extend(new)

    def score(
        self,
        scorers: Mapping[str, Mapping[str, Scorer]],
        samples_of: Callable[[str], Sequence[Sample]],
        is_partial: bool,
    ) -> dict[str, float]:
        """``val/<source>/<metric>`` over all ranks' records, and ``val/mean`` over each scorer's first metric, an error negative.

        So more of ``val/mean`` is better. A scorer says with ``metrics``, {name: more is better}, which are errors, also a plain
        function (``score.metrics = {"age_off_by": False}``); else a name such as "age_mae" tells (``sample_scores.ERRORS``).
        ``is_partial``: validation was limited, so only the images that were seen are scored.
        """
        scores: dict[str, float] = {}
        headlines = []
        for source, by_task in scorers.items():
            seen = set(gather_objects(self._images.get(source, [])))
            if not seen:  # a source that is only trained on
                continue
            samples = samples_of(source)
            if is_partial:
                samples = [sample for sample in samples if sample.image_id in seen]
            for task, scorer in by_task.items():
                records = merge_records([gather_objects(self._records.get((source, task), []))])
                self.answers[source, task] = records, samples
                metrics = as_scorer(scorer)(records, samples)
                scores |= {f"val/{source}/{name}": value for name, value in metrics.items()}
                known = as_scorer(scorer).directions(list(metrics))
                self.directions |= {f"val/{source}/{name}": up for name, up in known.items()}
                headlines += [value if known.get(name, True) else -value for name, value in list(metrics.items())[:1]]
        if not headlines:
            return scores
        self.directions["val/mean"] = True
        return scores | {"val/mean": sum(headlines) / len(headlines)}
