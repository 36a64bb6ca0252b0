"""What an evaluation tells the loggers: its scores by name, and single answers where a logger can show them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.evaluation.examples import examples_of
from fusionkit.evaluation.judging import Measure, Row
from fusionkit.evaluation.records import Record


class Watch:
    """Passes on what is found out under names that begin with ``prefix``, as of an optimiser step (None: of no training).

    A logger shows answers if it has ``log_examples(name, examples, step)`` and says with ``tables`` how many.
    """

    def __init__(self, loggers: Iterable[Any], prefix: str, step: int | None = None) -> None:
        self.loggers, self.prefix, self.step = list(loggers), prefix, step

    def log_scores(self, metrics: Mapping[str, float]) -> None:
        """``<prefix>/<source>/<metric>``."""
        for logger in self.loggers:
            logger.log_metrics({f"{self.prefix}/{name}": value for name, value in metrics.items()}, self.step)
            logger.save()  # what is logged after a training would not reach the csv file

    def log_answers(
        self,
        label: str,
        measure: Measure | None,
        records: Sequence[Record],
        samples: Sequence[Sample],
        rows: Sequence[Row],
    ) -> None:
        """Some of the records, with what ``measure`` says of them in ``rows``."""
        for logger in self.loggers:
            if measure is not None and hasattr(logger, "log_examples"):
                shown = examples_of(measure, records, samples, rows, logger.tables)
                logger.log_examples(f"{self.prefix}/{label}", shown, self.step)
