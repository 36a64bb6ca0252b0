"""The scorers of our own tasks, as conf/task names them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.data.sample import Sample
from fusionkit.scoring import (
    captioning,
    classification,
    grounding,
    masked,
    matching,
    replies,
    retrieval,
    vqa,
)
from fusionkit.scoring.base import BaseScorer, as_scorer
from fusionkit.scoring.probes import docvqa, foils, linear_probe, mmmu, pope, winoground, zero_shot

VQA = vqa.VQA()
GROUNDING = grounding.Grounding()
WEAK_GROUNDING = grounding.Grounding(prefix="weak_grounding_")
RETRIEVAL = retrieval.Retrieval()
MATCHING = matching.Matching()
MASKED = masked.MaskedTokens()
HIDDEN = masked.HiddenFeatures()
CAPTIONING = captioning.Bleu()
ENTAILMENT = classification.Entailment()
NLVR2 = classification.NLVR2()
REPLIES = replies.Replies()
WORD_LABELS = classification.WordLabels()
OURS: Sequence[BaseScorer] = [
    *(
        VQA,
        GROUNDING,
        WEAK_GROUNDING,
        RETRIEVAL,
        MATCHING,
        MASKED,
        HIDDEN,
        CAPTIONING,
        ENTAILMENT,
        NLVR2,
        REPLIES,
        WORD_LABELS,
    ),
    foils.Foils(metric="acc_r", averages={"average": None, "macro": None}, threshold=0.0),
    *(pope.Pope(), winoground.Winoground(), zero_shot.ZeroShot(), linear_probe.LinearProbeScores()),
    *(docvqa.DocVQA(), mmmu.MMMU(), vqa.VQA("textvqa")),
    *(captioning.Captions(), vqa.VQA("evalai")),
]


def scorers_of(tasks: Mapping[str, Any]) -> dict[str, BaseScorer]:
    """The scorers of the tasks that have one."""
    return {name: as_scorer(task.scorer, task.reads) for name, task in tasks.items() if task.scorer is not None}


def notes_of(tasks: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, str]:
    """What has to be said beside the scores of the samples, by "<task>, <what>"."""
    found = {name: scorer.notes(samples) for name, scorer in scorers_of(tasks).items()}
    return {f"{name}, {what}": note for name, notes in found.items() for what, note in notes.items()}
