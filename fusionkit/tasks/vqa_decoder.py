"""Question answering by a decoder of its own, which reads the fused question and says the answer (ALBEF, BLIP)."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.losses import global_mean
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.answering import AnswerDecoding, Answering
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal
from fusionkit.tasks.distillation import distil
from fusionkit.tasks.generation import DecoderState, GenerationConfig
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import MaskedLMHead
from fusionkit.tasks.vqa import QuestionBatch, fuse_questions
from fusionkit.tasks.vqa_generative import good_pairs
from fusionkit.types import Asked, Dims, Encoded, Memory, TaskOutput, Tokens, at_least_fp32


class Decoder(nn.Module):
    """A language model that attends to fused questions, and the prediction head over its states."""

    def __init__(self, reader: Reader, words: MaskedLMHead) -> None:
        super().__init__()
        self.reader, self.words = reader, words

    def prepare(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Memory:
        """The memory that answers are read from: keys and values of the fused questions, one row each (a blank for none)."""
        states = fuse_questions(model, batch, encoded).text
        mask = batch["questions"]["attention_mask"]
        assert states is not None
        if states.shape[0] == 0:
            states, mask = torch.cat([states, states.new_ones(1, *states.shape[1:])]), mask.new_ones(1, *mask.shape[1:])
        return self.reader.fusion.prepare(Tokens(states, mask, states[:, 0]))

    def forward(self, memory: Memory, text: Prompts) -> Tensor:
        """Logits (R, L, V) of what follows each token of the texts; ``image_index`` names the question of each."""
        logits: Tensor = self.words(
            fuse_causal(self.reader, memory, text), self.reader.text_encoder.word_embeddings.weight
        )
        return logits


class DecoderVQA(Task[QuestionBatch]):
    """The tokens of every good answer from the answer so far and the question that has seen the image; weighted by its score.

    ``decoder``  builds the language model from (vocab_size=, hidden_size=).
    ``share``    the answers of a question share a weight of 1 by their scores; False: their scores are the weights (answers
                 of a second data set, counted half).
    With a teacher, each token partly against its distribution (ALBEF).
    """

    needs = frozenset({"text"})
    reads = "questions"
    distribution = "softmax"
    replies_to = "question"
    uses_teacher = True

    def __init__(
        self,
        dims: Dims,
        decoder: Callable[..., Reader],
        label_smoothing: float = 0.0,
        share: bool = True,
        answering: Answering | None = None,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        self.label_smoothing, self.share, self.start = label_smoothing, share, dims.cls_token_id
        self.decoding = AnswerDecoding(dims, answering)
        reader = decoder(vocab_size=dims.vocab_size, hidden_size=dims.hidden_size)
        self.head = Decoder(reader, MaskedLMHead(dims.hidden_size, dims.hidden_size, dims.vocab_size, eps))

    def forward(
        self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        scores = batch["questions"]["answer_scores"]
        pairs = good_pairs(scores)
        weights = pairs.weights if self.share else scores[pairs.questions, pairs.answers]
        known = self.decoding.known
        ids, mask = known.ids[pairs.answers], known.mask[pairs.answers].bool()
        text = self._said_before(ids, pairs.questions)

        def logits_of(model: VisionLanguageModel, head: nn.Module, encoded: Encoded) -> Tensor:
            assert isinstance(head, Decoder)
            said: Tensor = head(head.prepare(model, batch, encoded), text)[mask]
            return said

        logits, targets = logits_of(model, self.head, encoded), ids[mask]
        smoothing = self.label_smoothing
        losses = F.cross_entropy(at_least_fp32(logits), targets, reduction="none", label_smoothing=smoothing)
        losses = distil(
            losses, logits, teacher, lambda t: logits_of(t.model, t.own_head, t.encoded), cross_entropy=row_losses
        )
        loss = global_mean((weights[:, None].expand_as(mask)[mask] * losses).sum(), len(scores))
        asked = Asked(logits, lambda m, task, seen: logits_of(m, task.head, seen))
        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)}, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "words", self.head.words.bias.shape[0]

    def _said_before(self, ids: Tensor, questions: Tensor) -> Prompts:
        """Answers (R, L) as the decoder reads them: behind the start token, and without their last one."""
        start = ids.new_full((ids.shape[0], 1), self.start)
        said = torch.cat([start, ids[:, :-1]], dim=1)
        return Prompts(said, torch.ones_like(said), questions, torch.ones_like(questions))

    def predict(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> Records:
        """VQA v2's own records: {"question_id", "answer"}."""
        return self.decoding.predict(batch["questions"]["ids"], lambda: self.steps(model, batch, encoded))

    def reply(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded, top: int) -> Records:
        """As GenerativeVQA."""
        found = self.decoding.reply(lambda: self.steps(model, batch, encoded), top)
        return super().reply(model, batch, encoded, top) if found is None else found

    def steps(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> DecoderState:
        return decoder_state_of(self.said(model, batch, encoded))

    def said(self, model: VisionLanguageModel, batch: QuestionBatch, encoded: Encoded) -> DecoderInputs:
        """What the answer to each question follows; its memory are the fused questions."""
        ids = batch["questions"]["input_ids"]
        start = self._said_before(ids[:, :1], torch.arange(ids.shape[0], device=ids.device))
        return DecoderInputs(self.head.reader, self.head.words, self.head.prepare(model, batch, encoded), start)

    def saying(self) -> GenerationConfig:
        return self.decoding.rules


def row_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy (R,) of logits (R, V) against distributions (R, V)."""
    return -(targets * F.log_softmax(at_least_fp32(logits), dim=-1)).sum(dim=-1)
