"""Matching by what a caption model says of a text: log p(text | image), less what it says of the text without the image."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import SupportsLanguageModel, SupportsNoImage, SupportsUnimodal
from fusionkit.losses import masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.captioning import CaptionWriter, log_likelihoods
from fusionkit.tasks.decoding import Prompts, fuse_causal, prefix_mask, word_logits
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import means
from fusionkit.tasks.mlm import word_head
from fusionkit.types import Dims, Encoded, Memory, TaskOutput, TextRows, Tokens, at_least_fp32


class Likelihood(Task[CaptionBatch]):
    """Trained as ``Captioning``; it scores any text with any image by

        log p(text | image) - prior * log p(text),

    summed over the tokens of the text and its end. ``prior`` 0 is the likelihood itself, by which the commonest texts come
    first whatever the image shows; 1 is how much likelier the image makes the text, their pointwise mutual information (Lin et
    al. 2024, whose alpha it is). Its weights are those of captioning, and of a language model it has none.

    ``per_token``    divides both by the number of tokens, so that long texts are not less likely for it.
    ``learn_prior``  the weight in the loss of the cross entropy without the image. With 0 log p(text) is what a model that has
                     never read without an image says: of a pretrained language model still what it knew before.
    The other options are those of ``Captioning``.

    Without an image a language model reads the text alone (``encode_unimodal``, ``without_image``). Any other fusion is given a
    blank image: one token of zeros, whatever the size of its images.
    """

    needs = frozenset({"text", "causal"})
    reads = "captions"
    matches = True
    replies_to = "text"
    encodes = False
    init_from = "captioning"

    def __init__(
        self,
        dims: Dims,
        prior: float = 1.0,
        per_token: bool = False,
        learn_prior: float = 1.0,
        prompt: str = "",
        label_smoothing: float = 0.0,
        texts_per_image: int | None = None,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__(scorer)
        for name, value in (("prior", prior), ("learn_prior", learn_prior)):
            if value < 0:
                raise ConfigError(f"task.likelihood.{name} is {value}; give 0 or more")
        self.metrics = means("token_accuracy", "prior_loss")
        self.prior, self.per_token, self.learn_prior = prior, per_token, learn_prior
        self.writer = CaptionWriter.of(dims, prompt, label_smoothing, texts_per_image, None, 20, 0, 0)
        self.head = word_head(dims, eps, head)
        self.image_size = dims.image_size

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        out = self.writer.loss(model, self.head, batch, encoded)
        if not self.learn_prior:
            return out
        logits, targets = self._alone(model, batch["captions"])
        loss = masked_cross_entropy(logits, targets, self.writer.label_smoothing)
        told = F.cross_entropy(at_least_fp32(logits.detach()), targets, reduction="sum"), len(targets)
        return out._replace(loss=out.loss + self.learn_prior * loss, metrics={**out.metrics, "prior_loss": told})

    def longest(self, length: int) -> int:
        """A caption behind the prompt."""
        return len(self.writer.prompt_ids) + length - 1

    def prompted(self, length: int) -> int:
        """The prompt."""
        return self.writer.prompted(length)

    def score_pairs(self, model: VisionLanguageModel, memory: Memory, text: TextRows, image_index: Tensor) -> Tensor:
        """Logits (P, 2), [:, 1] the score and [:, 0] zeros, of P captions with the image rows that image_index (P,) names."""
        score = self.log_likelihoods(model, memory, text, image_index)
        if self.prior:
            score = score - self.prior * self.log_priors(model, text)
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def log_likelihoods(
        self, model: VisionLanguageModel, memory: Memory, text: TextRows, image_index: Tensor
    ) -> Tensor:
        """log p(text | image) (P,), in nats, of P captions with the image rows that image_index (P,) names."""
        whole, is_scored = self.writer.texts(text["input_ids"], text["attention_mask"], image_index, self.head)
        return self._summed(model, fuse_causal(model, memory, whole), whole, is_scored)

    def log_priors(self, model: VisionLanguageModel, text: TextRows) -> Tensor:
        """log p(text) (P,), in nats."""
        whole, is_scored = self._texts_alone(text)
        return self._summed(model, self._states_alone(model, whole), whole, is_scored)

    def _summed(self, model: VisionLanguageModel, states: Tensor, text: Prompts, is_scored: Tensor) -> Tensor:
        total = log_likelihoods(model, self.head, states, text, is_scored)
        return total / is_scored.sum(dim=1).clamp(min=1) if self.per_token else total

    def _alone(self, model: VisionLanguageModel, text: TextRows) -> tuple[Tensor, Tensor]:
        """Logits (M, V) and targets (M,) of the scored tokens of captions that see no image."""
        whole, is_scored = self._texts_alone(text)
        states = self._states_alone(model, whole)
        return word_logits(model, self.head, states[is_scored]), whole.input_ids[:, 1:][is_scored[:, :-1]]

    def _texts_alone(self, text: TextRows) -> tuple[Prompts, Tensor]:
        index = torch.zeros_like(text["input_ids"][:, 0])
        return self.writer.texts(text["input_ids"], text["attention_mask"], index, self.head)

    def _states_alone(self, model: VisionLanguageModel, text: Prompts) -> Tensor:
        if not len(text.input_ids):  # as in ``Reader.fuse``: every rank reads as often as the others
            ids, mask = (F.pad(part, (0, 0, 0, 1), value=1) for part in (text.input_ids, text.attention_mask))
            one = Prompts(ids, mask, text.image_index.new_zeros(1), text.prefix.new_ones(1))
            return self._states_alone(model, one)[:0]
        fusion = model.fusion
        reads_alone = isinstance(fusion, SupportsLanguageModel) and not fusion.encodes_prompts
        if reads_alone and isinstance(fusion, SupportsUnimodal):
            encoded = model.encode_text(text.input_ids, prefix_mask(text.attention_mask, text.prefix))
            return fusion.encode_unimodal(encoded).embeds
        weight = model.text_encoder.word_embeddings.weight
        if isinstance(fusion, SupportsNoImage):
            return fuse_causal(model, fusion.without_image(weight), text)
        blank = Tokens(weight.new_zeros(1, 1, self.image_size), None, weight.new_zeros(1, self.image_size))
        return fuse_causal(model, fusion.prepare(blank), text)

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """As ITM: each caption with its own image (label 1) and with the next other image of the batch (label 0).

        A score is a probability, by the logit that ranks: above a half where the image makes the text likelier (``prior`` 1).
        """
        captions, count = batch["captions"], len(batch["image_ids"])
        index, records = captions["image_index"], []
        for label, images in ((1, index), (0, (index + 1) % count)):
            scores = self.score_pairs(model, encoded.memory, captions, images)[:, 1].sigmoid().tolist()
            records += [
                {"caption_id": caption_id, "image_id": batch["image_ids"][image], "score": score, "label": label}
                for caption_id, image, score in zip(captions["ids"], images.tolist(), scores, strict=True)
            ]
        return records if count > 1 else records[: len(index)]

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """{"match", "log_likelihood", "share"}: the last is each text's among those asked of its image, by their scores.

        So several texts of one image are a multiple choice.
        """
        captions = batch["captions"]
        index = captions["image_index"]
        scores = self.score_pairs(model, encoded.memory, captions, index)[:, 1]
        likely = self.log_likelihoods(model, encoded.memory, captions, index)
        others = (index[:, None] == index[None, :]).to(scores).log()  # 0 beside those of its image, else -inf
        shares = (scores - (scores[None] + others).logsumexp(dim=1)).exp()
        columns = (scores.sigmoid().tolist(), likely.tolist(), shares.tolist())
        return [{"match": m, "log_likelihood": p, "share": s} for m, p, s in zip(*columns, strict=True)]
