"""Question answering by a language model: the answer is said after the question (ALBEF, BLIP)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.losses import global_mean
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.answering import AnswerDecoding, Answering
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.decoding import (
    DecoderInputs,
    Prompts,
    asked_of,
    decoder_state_of,
    fuse_causal,
    select,
    word_logits,
)
from fusionkit.tasks.generation import DecoderState, GenerationConfig
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import word_head
from fusionkit.tasks.vqa import QuestionBatch
from fusionkit.types import Asked, Dims, Encoded, TaskOutput, at_least_fp32


class Pairs(NamedTuple):
    """R (question, answer) pairs, each answer with its share of its question's loss."""

    questions: Tensor  # (R,) rows of the batch
    answers: Tensor  # (R,) numbers of answers
    weights: Tensor  # (R,), of a question they sum to 1


class GenerativeVQA(Task[QuestionBatch]):
    """The tokens of every good answer, from the question, the answer so far and the image; weighted by its soft score.

    One text, [CLS] question [SEP] answer [SEP], through one fusion: the tokens of the question see one another, those of
    the answer see what is before them (a prefix language model, where ALBEF and BLIP add a decoder). A model that is a
    causal language model reads no [SEP] before the answer, by its own head says it, and sees no later token of the question;
    the encoder of an encoder-decoder reads the question with its [SEP], its decoder says the answer.

    ``answering`` says an answer, or ranks those that the run knows.
    ``head``      builds what says words from (hidden_size, vocab_size); None: BERT's, tied to the word embeddings.
    """

    needs = frozenset({"text", "causal"})
    reads = "questions"
    distribution = "softmax"
    replies_to = "question"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        label_smoothing: float = 0.1,
        answering: Answering | None = None,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        self.label_smoothing, self.pad, self.vocab_size = label_smoothing, dims.pad_token_id, dims.vocab_size
        self.decoding = AnswerDecoding(dims, answering)
        self.head = word_head(dims, eps, head)
        self.leaves_end = self.head is None and not dims.encodes_prompts

    def forward(
        self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        pairs = good_pairs(batch["questions"]["answer_scores"])
        questions: Prompts = select(self._prompts(batch), pairs.questions)
        known = self.decoding.known
        ids, mask = known.ids[pairs.answers], known.mask[pairs.answers]
        whole = followed_by(questions, ids, mask, self.pad)
        places = questions.prefix[:, None] - 1 + torch.arange(ids.shape[1], device=ids.device)  # before each token

        def read(reader: VisionLanguageModel, task: GenerativeVQA, seen: Encoded) -> Tensor:
            states = fuse_causal(reader, seen.memory, whole)
            said = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))[mask.bool()]
            return word_logits(reader, task.head, said)

        logits, targets = read(model, self, encoded), ids[mask.bool()]
        smoothing = self.label_smoothing
        losses = F.cross_entropy(at_least_fp32(logits), targets, reduction="none", label_smoothing=smoothing)
        weights = pairs.weights[:, None].expand_as(mask)[mask.bool()]
        loss = global_mean((weights * losses).sum(), len(batch["questions"]["input_ids"]))
        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)}, (Asked(logits, read),))

    def columns(self) -> tuple[str, Any]:
        return "words", self.vocab_size

    def _prompts(self, batch: QuestionBatch) -> Prompts:
        rows = batch["questions"]
        mask = rows["attention_mask"]
        if self.leaves_end:  # the end ends a text of the language model, and its answer is still to come
            mask = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        return Prompts(rows["input_ids"], mask, rows["image_index"], mask.sum(dim=1), asked_of(rows))

    def longest(self, length: int) -> int:
        """A question with the longest answer, of those that the run knows or may say."""
        return length + self.decoding.longest

    def predict(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Records:
        """VQA v2's own records: {"question_id", "answer"}."""
        return self.decoding.predict(batch["questions"]["ids"], lambda: self.steps(model, batch, encoded))

    def reply(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, top: int) -> Records:
        """{"answer"}, and where answers are ranked {"answers"}: the likeliest, with their shares among the candidates."""
        found = self.decoding.reply(lambda: self.steps(model, batch, encoded), top)
        return super().reply(model, batch, encoded, top) if found is None else found

    def steps(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> DecoderState:
        """What is said after each question, token by token."""
        return decoder_state_of(self.said(model, batch, encoded))

    def said(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> DecoderInputs:
        """What the answer to each question follows."""
        return DecoderInputs(model, self.head, encoded.memory, self._prompts(batch))

    def saying(self) -> GenerationConfig:
        return self.decoding.rules


def good_pairs(scores: Tensor) -> Pairs:
    """The pairs of soft answer scores (T, A) above 0."""
    questions, answers = scores.nonzero(as_tuple=True)
    return Pairs(questions, answers, scores[questions, answers] / scores.sum(dim=1)[questions])


def followed_by(questions: Prompts, ids: Tensor, mask: Tensor, pad: int) -> Prompts:
    """Each question with the tokens (R, L) of an answer directly after it, and ``pad`` behind both."""
    places = questions.prefix[:, None] + torch.arange(ids.shape[1], device=ids.device)
    return questions._replace(
        input_ids=F.pad(questions.input_ids, (0, ids.shape[1]), value=pad).scatter(1, places, ids),
        attention_mask=F.pad(questions.attention_mask, (0, ids.shape[1])).scatter(1, places, mask),
    )
