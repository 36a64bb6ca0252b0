"""What a run scores on its own data: a scorer, what guessers reach, how records are shown. A task's ``scorer`` may be one.

Benchmarks with published annotations, splits and protocols are another matter (``published``). A task of one's own needs no
entry here: a plain function is a scorer too, without baselines and pictures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.scoring.baselines import (
    Baseline,
    caption_baselines,
    entailment_baselines,
    grounding_baselines,
    hidden_baselines,
    masked_baselines,
    matching_baselines,
    nlvr2_baselines,
    retrieval_baselines,
    vqa_baselines,
)
from fusionkit.scoring.captioning import caption_notes, score_captions
from fusionkit.scoring.classification import EntailmentMeasure, NLVR2Measure, score_entailment, score_nlvr2
from fusionkit.scoring.galleries import grounding_sheet, retrieval_sheet, vqa_sheet
from fusionkit.scoring.grounding import GroundingMeasure, score_grounding
from fusionkit.scoring.masked import score_hidden, score_masked
from fusionkit.scoring.matching import score_matching
from fusionkit.scoring.ranked_retrieval import RetrievalMeasure
from fusionkit.scoring.records import Record
from fusionkit.scoring.retrieval import score_retrieval
from fusionkit.scoring.sample_scores import Measure, Row
from fusionkit.scoring.sheet import Sheet
from fusionkit.scoring.vqa import VQAMeasure, question_notes, score_vqa
from fusionkit.tasks.base import Task


@dataclass(frozen=True)
class Benchmark:
    """Calling it scores records: ``(records, samples) -> metrics``, percentages 0..100.

    ``measure`` says what each sample scores; its metrics are here called ``prefix`` and their name. ``notes`` says what the
    samples are scored less well by.
    """

    score: Callable[[Sequence[Record], Sequence[Sample]], dict[str, float]]
    baseline: Baseline | None = None
    sheet: Callable[[Sequence[Record], Sequence[Sample]], Sheet] | None = None
    measure: Measure | None = None
    prefix: str = ""
    notes: Callable[[Sequence[Sample]], Mapping[str, str]] | None = None

    def __call__(self, records: Sequence[Record], samples: Sequence[Sample]) -> dict[str, float]:
        return self.score(records, samples)

    def rows(self, records: Sequence[Record], samples: Sequence[Sample]) -> list[Row]:
        """What each sample scores (``judging``), under the names of the metrics; nothing without a measure."""
        judged = self.measure(records, samples).rows if self.measure else []
        for row in judged:
            row["values"] = {self.prefix + name.replace("/", "_"): value for name, value in row["values"].items()}
        return judged


def named(prefix: str, score: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """The same scores under other names, where two tasks of a run share a benchmark."""

    def renamed(*arguments: Any) -> dict[str, float]:
        return {f"{prefix}_{name}": value for name, value in score(*arguments).items()}

    return renamed


VQA = Benchmark(score_vqa, vqa_baselines, vqa_sheet, VQAMeasure(), "vqa_", question_notes)
GROUNDING = Benchmark(score_grounding, grounding_baselines, grounding_sheet, GroundingMeasure(), "grounding_")
WEAK_GROUNDING = Benchmark(
    named("weak", score_grounding),
    grounding_baselines,
    grounding_sheet,
    GroundingMeasure(),
    "weak_grounding_",
)
RETRIEVAL = Benchmark(score_retrieval, retrieval_baselines, retrieval_sheet, RetrievalMeasure())
MATCHING = Benchmark(score_matching, matching_baselines)
MASKED = Benchmark(score_masked, masked_baselines)
HIDDEN = Benchmark(score_hidden, hidden_baselines)
CAPTIONING = Benchmark(score_captions, caption_baselines, notes=caption_notes)
ENTAILMENT = Benchmark(score_entailment, entailment_baselines, measure=EntailmentMeasure(), prefix="entailment_")
NLVR2 = Benchmark(score_nlvr2, nlvr2_baselines, measure=NLVR2Measure(), prefix="nlvr2_")


def notes_of(tasks: Mapping[str, Task[Any]], samples: Sequence[Sample]) -> dict[str, str]:
    """What has to be said beside the scores of the samples, by "<task>, <what>"; nothing of a scorer without ``notes``."""
    found = {name: getattr(task.scorer, "notes", None) for name, task in tasks.items()}
    return {f"{name}, {what}": note for name, notes in found.items() if notes for what, note in notes(samples).items()}
