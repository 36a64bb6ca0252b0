"""Visual question answering as classification over an answer vocabulary (UNITER, ViLT, METER)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.losses import soft_binary_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Meaning, Records, Scorer, Task
from fusionkit.tasks.decoding import ask, asked_of
from fusionkit.tasks.heads import gelu_norm
from fusionkit.tasks.metrics import means
from fusionkit.types import MARKS, Asked, Batch, Dims, Encoded, Fused, TaskOutput, TextRows


class QuestionRows(TextRows):
    answer_scores: Tensor  # (T, A), soft targets


class QuestionBatch(Batch):
    questions: QuestionRows


class VQA(Task[QuestionBatch]):
    """Binary cross entropy of every answer against its soft score; the highest logit answers.

    ``head`` makes the classifier of (pooled_size, answers), fusionkit.tasks.heads; null: UNITER's, of twice the pooled size.
    """

    needs = frozenset({"pooled"})
    reads = "questions"
    distribution = "sigmoid"
    replies_to = "question"

    def __init__(
        self, dims: Dims, scorer: Scorer | None = None, head: Callable[[int, int], nn.Module] | None = None
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("accuracy")
        if not dims.answers:
            raise ConfigError("task.vqa: the run has no answer vocabulary; its data must hold questions with answers")
        self.answers = dims.answers
        head = head or partial(gelu_norm, hidden_size=2 * dims.pooled_size)
        self.head = head(dims.pooled_size, len(dims.answers))

    def forward(
        self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        targets = batch["questions"]["answer_scores"]
        logits = self.pair_scores(model, batch, encoded)
        correct = targets.gather(1, logits.detach().argmax(dim=1, keepdim=True))
        metrics = {"accuracy": (correct.sum(), len(correct))}
        asked = Asked(logits, lambda m, task, seen: task.pair_scores(m, batch, seen), MARKS)
        return TaskOutput(soft_binary_cross_entropy(logits, targets), logits, targets, metrics, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "answers", self.answers

    def meaning(self) -> Meaning:
        return Meaning("answer", tuple(self.answers), "sigmoid", "the answer is that of the highest number")

    def pair_scores(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Tensor:
        """Logits (T, A) of the answers to each question."""
        logits: Tensor = self.head(fuse_questions(model, batch, encoded).pooled)  # (T, A)
        return logits

    def predict(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Records:
        """VQA v2's own records: {"question_id", "answer"}."""
        best = self.pair_scores(model, batch, encoded).argmax(dim=1).tolist()
        ids = batch["questions"]["ids"]
        return [{"question_id": i, "answer": self.answers[a]} for i, a in zip(ids, best, strict=True)]

    def reply(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, top: int) -> Records:
        """{"answer", "answers"}: the likeliest, each with its own probability (of its logit alone: together they sum to any)."""
        best = self.pair_scores(model, batch, encoded).float().sigmoid().topk(min(top, len(self.answers)), dim=1)
        return [
            named([self.answers[number] for number in numbers], probabilities)
            for numbers, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def evidence(self, fused: Fused) -> Tensor:
        """The logit of the answer that is given, (T,)."""
        logits: Tensor = self.head(fused.pooled)
        return logits.amax(dim=1)


def fuse_questions(model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Fused:
    """Each question with its image, of which it is asked where the fusion reads instructions."""
    rows = batch["questions"]
    memory, index = ask(model, encoded.memory, rows["image_index"], asked_of(rows))
    return model.fuse(memory, encoded.text["questions"], index)


def named(answers: Sequence[str], probabilities: Sequence[float]) -> dict[str, Any]:
    """The reply to one question: its likeliest answers, the first of them on its own too."""
    pairs = zip(answers, probabilities, strict=True)
    return {"answer": answers[0], "answers": [{"answer": answer, "probability": p} for answer, p in pairs]}
