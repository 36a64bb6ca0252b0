"""Question answering by a language model: the answer is said after the question (ALBEF, BLIP)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fusionkit.errors import ConfigError
from fusionkit.losses import global_mean
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.answering import Answering, Answers, RankAnswers
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal
from fusionkit.tasks.generation import DecoderState
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import MaskedLMHead
from fusionkit.tasks.vqa import QuestionBatch, named
from fusionkit.tasks.words import Words
from fusionkit.types import Dims, Encoded, TaskOutput, at_least_fp32


class Pairs(NamedTuple):
    """R (question, answer) pairs, each answer with its share of its question's loss."""

    questions: Tensor  # (R,) rows of the batch
    answers: Tensor  # (R,) numbers of answers
    weights: Tensor  # (R,), of a question they sum to 1


class GenerativeVQA(Task[QuestionBatch]):
    """The tokens of every good answer, from the question, the answer so far and the image; weighted by its soft score.

    One text, [CLS] question [SEP] answer [SEP], through one fusion: the tokens of the question see one another, those of
    the answer see what is before them (a prefix language model, where ALBEF and BLIP add a decoder).

    ``answering`` says an answer, or ranks those that the run knows.
    """

    needs = frozenset({"text", "causal"})
    reads = "questions"
    replies_to = "question"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        label_smoothing: float = 0.1,
        answering: Answering | None = None,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        self.label_smoothing, self.start, self.end = label_smoothing, dims.cls_token_id, dims.sep_token_id
        self.pad = dims.pad_token_id
        self.answering: Answering = answering or RankAnswers()
        self.words = Words(dims.tokens, dims.special_ids)
        self.answer_ids: Tensor
        self.answer_mask: Tensor
        if dims.tokens:  # else weights alone are wanted: without a tokenizer nothing can be said
            _check_spelling(dims)
        self.set_answers(dims.answers, dims.answer_tokens)
        self.head: nn.Module = MaskedLMHead(dims.hidden_size, dims.text_size, dims.vocab_size, eps)

    def set_answers(self, texts: Sequence[str], tokens: Sequence[Sequence[int]]) -> None:
        """The answers that are trained and ranked, with the tokens of each (without special ones)."""
        self.texts = tuple(texts)
        rows = [torch.tensor([*answer, self.end]) for answer in tokens] or [torch.zeros(0, dtype=torch.int64)]
        masks = [torch.ones_like(row) for row in rows]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad)  # (A, L)
        self.register_buffer("answer_ids", ids, persistent=False)
        self.register_buffer("answer_mask", pad_sequence(masks, batch_first=True), persistent=False)

    def forward(
        self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        pairs = good_pairs(batch["questions"]["answer_scores"])
        questions = _take(self._prompts(batch), pairs.questions)
        ids, mask = self.answer_ids[pairs.answers], self.answer_mask[pairs.answers]
        states = fuse_causal(model, encoded.memory, followed_by(questions, ids, mask, self.pad))
        places = questions.prefix[:, None] - 1 + torch.arange(ids.shape[1], device=ids.device)  # before each token
        said = states.gather(1, places[..., None].expand(-1, -1, states.shape[2]))[mask.bool()]
        logits, targets = self.head(said, model.text_encoder.word_embeddings.weight), ids[mask.bool()]
        smoothing = self.label_smoothing
        losses = F.cross_entropy(at_least_fp32(logits), targets, reduction="none", label_smoothing=smoothing)
        weights = pairs.weights[:, None].expand_as(mask)[mask.bool()]
        loss = global_mean((weights * losses).sum(), len(batch["questions"]["input_ids"]))
        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)})

    def _prompts(self, batch: QuestionBatch) -> Prompts:
        rows = batch["questions"]
        mask = rows["attention_mask"]
        return Prompts(rows["input_ids"], mask, rows["image_index"], mask.sum(dim=1))

    def predict(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Records:
        """VQA v2's own records: {"question_id", "answer"}."""
        if not batch["questions"]["ids"]:
            return []
        steps = self.steps(model, batch, encoded)
        answers = Answers(self.texts, self.answer_ids, self.answer_mask)
        said = self.answering(steps, answers, self.words, self.end)
        return [{"question_id": i, "answer": answer} for i, answer in zip(batch["questions"]["ids"], said, strict=True)]

    def reply(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, top: int) -> Records:
        """{"answer"}, and where answers are ranked {"answers"}: the likeliest, with their shares among the candidates."""
        if not isinstance(self.answering, RankAnswers):
            return super().reply(model, batch, encoded, top)
        answers = Answers(self.texts, self.answer_ids, self.answer_mask)
        scores, candidates = self.answering.scores(self.steps(model, batch, encoded), answers)
        best = scores.softmax(dim=1).topk(min(top, scores.shape[1]), dim=1)
        numbers = candidates.gather(1, best.indices).tolist()
        return [named([self.texts[n] for n in row], p) for row, p in zip(numbers, best.values.tolist(), strict=True)]

    def steps(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> DecoderState:
        """What is said after each question, token by token."""
        return decoder_state_of(DecoderInputs(model, self.head, encoded.memory, self._prompts(batch)))


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


def _take(prompts: Prompts, rows: Tensor) -> Prompts:
    return Prompts(*(part[rows] for part in prompts))


def _check_spelling(dims: Dims) -> None:
    for answer, tokens in zip(dims.answers, dims.answer_tokens, strict=True):
        if not tokens:
            raise ConfigError(
                f"task.vqa_generative: the tokenizer cannot spell the answer '{answer}'; set data.spell_answers=true, or give "
                "a tokenizer that knows it"
            )
