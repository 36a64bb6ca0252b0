"""What the training module and the evaluation expect of an objective."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from fusionkit.types import Batch, Encoded, TaskOutput

if TYPE_CHECKING:
    from fusionkit.model.model import VisionLanguageModel
    from fusionkit.model.momentum import Teacher

B = TypeVar("B", bound=Batch)
Records = list[dict[str, Any]]
Scorer = Callable[[Records, Sequence[Any]], dict[str, float]]


class Task(nn.Module, Generic[B]):
    """One objective: a head, a loss and a prediction, over a model it is handed at each call.

    ``needs``   what it reads, of {"pooled", "text", "image", "causal", "attention"} (the fusion must provide them) and "feats"
                (the contrastive projections of the model); checked when the run is built. "text" beside "pooled" asks for a
                fusion in which the tokens of both have met, even if only the pooled vector is read.
    ``reads``   the text kind of a batch it is about: "captions", "questions", "expressions" or a kind of one's own.
    ``encodes`` False where the task encodes a changed text itself (MLM), so that the plain text need not be encoded for it; it
                may still read one that another task had encoded (captioning, over a text encoder that is causal by itself).
    ``uses_teacher`` whether it listens to a momentum teacher.
    ``replies_to`` what of one's own inputs it answers: a "question", a "phrase", a "text" or, without words, "caption"; or None.
    ``ranks``   whether its records are features (``feats``) of images and captions, which rank one by the other.
    ``matches`` whether it has ``score_pairs``, the logits of any captions with any images: it ranks again what others rank.
                It is given encoded captions or, with ``encodes`` False, the rows of their token ids.
    ``init_from`` the task whose weights it starts from, where a checkpoint has none of its own (ranking: matching's).
    ``distribution`` "softmax" or "sigmoid" where each row of ``TaskOutput.logits`` says how likely each class, or next word, of
                one text is, whatever else the batch holds: so a changed model is compared with what it was. Else None.
    ``draws_texts`` whether it trains on texts that the model itself says, so that the losses of two batches do not compare.
    ``reads_images`` whether it reads the images themselves, and not their tokens alone (to hide parts of them).
    ``scorer``  a Scorer (fusionkit.scoring.base) or a pure function of (records, samples) that gives the metrics, or None where
                there is nothing to score.
    ``metrics`` what is measured while it trains, torchmetrics by the name that ``TaskOutput.metrics`` has what each is updated
                with under; the training has a copy for each source, and logs it as ``train/<source>/<task>_<name>``.
    """

    needs: ClassVar[frozenset[str]]
    reads: ClassVar[str]
    encodes: ClassVar[bool] = True
    uses_teacher: ClassVar[bool] = False
    distribution: ClassVar[str | None] = None
    draws_texts: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False
    ranks: ClassVar[bool] = False
    matches: ClassVar[bool] = False
    init_from: ClassVar[str | None] = None
    replies_to: ClassVar[str | None] = None
    scorer: Scorer | None

    def __init__(self, scorer: Scorer | None = None) -> None:
        super().__init__()
        self.scorer = scorer
        self.metrics = MetricCollection({})

    def forward(
        self, model: "VisionLanguageModel", batch: B, encoded: Encoded, teacher: "Teacher | None" = None
    ) -> TaskOutput:
        """The objective's loss on one batch."""
        raise NotImplementedError

    def begin(self, training: Mapping[str, Sequence[Any]]) -> None:
        """Before a training: the samples that it trains on, by source, for what a task has to know of all of them."""

    def columns(self) -> tuple[str, Any] | None:
        """What its logits are of, in a word and as a value that another model's task has to have too (``TaskOutput.asked``).

        None: it asks nothing that another could be asked.
        """
        return None

    def check(self, model: "VisionLanguageModel") -> None:
        """Raise ConfigError where the model lacks what the task wants of it beyond ``needs``."""

    def partners(self, images: int, ranks: int) -> int | None:
        """How many other images each of a batch is set against, for so many in a batch and rank; None: it is not about others."""
        return None

    def longest(self, length: int) -> int:
        """How many tokens a text of at most ``length`` of them grows to by what the task says."""
        return length

    def prompted(self, length: int) -> int:
        """How many tokens stand before what the task says, where a text has at most ``length``: all of the text."""
        return length

    def predict(self, model: "VisionLanguageModel", batch: B, encoded: Encoded) -> Records:
        """The benchmark's own records for one batch, plain Python values that can be written as JSON lines."""
        raise NotImplementedError

    def reply(self, model: "VisionLanguageModel", batch: B, encoded: Encoded, top: int) -> Records:
        """What a person is told, one record for each text (for "caption", each image): the prediction without the ids.

        ``top`` is how many answers to name where the task knows several. A task whose prediction hangs on one number of each
        fused pair also has ``evidence(fused) -> (T,)``, which gives it: GradCAM explains it.
        """
        records = self.predict(model, batch, encoded)
        return [{name: value for name, value in row.items() if not name.endswith("_id")} for row in records]


@dataclass(frozen=True)
class Meaning:
    """What a row of a task's numbers says, in plain values, for whoever computes them without us.

    ``reply``       the key that ``Task.reply`` gives what they say under.
    ``labels``      the name of each number.
    ``activation``  "softmax" or "sigmoid" makes probabilities of them; None: they are no logits.
    ``says``        the rest, in a sentence.
    """

    reply: str
    labels: tuple[str, ...]
    activation: str | None
    says: str


@runtime_checkable
class SupportsPairScores(Protocol):
    """A task whose reply is read off numbers of each (image, text) pair alone, whatever else the batch holds."""

    def pair_scores(self, model: "VisionLanguageModel", batch: Any, encoded: Encoded) -> Tensor:
        """The numbers (T, C) of the texts that the task reads."""
        ...

    def meaning(self) -> Meaning:
        """What they say."""
        ...


def leading_rows(image_index: Tensor, count: int | None) -> Tensor:
    """Numbers of the first ``count`` rows of each image (all for None), for image_index (T,) with an image's rows together."""
    rows = torch.arange(len(image_index), device=image_index.device)
    if count is None or not len(rows):
        return rows
    starts = torch.ones_like(image_index, dtype=torch.bool)
    starts[1:] = image_index[1:] != image_index[:-1]
    first = torch.where(starts, rows, torch.zeros_like(rows)).cummax(dim=0).values
    return rows[rows - first < count]
