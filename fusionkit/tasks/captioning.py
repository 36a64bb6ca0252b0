"""Captioning: causal language modelling over the fusion (BLIP); what is causal is the mask of the text."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusionkit.losses import masked_cross_entropy
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, leading_rows
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal
from fusionkit.tasks.generation import BeamSearch, GenerationConfig, Search
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import hits, means
from fusionkit.tasks.mlm import MaskedLMHead
from fusionkit.tasks.words import Words
from fusionkit.types import Dims, Encoded, TaskOutput


class CaptionTargets(NamedTuple):
    """Texts as a causal model reads them, and the tokens that it is to say."""

    text: Prompts
    loss_mask: Tensor  # (R, L) bool, where the next token is to be predicted
    targets: Tensor  # (M,) the tokens after those places


class Captioning(Task[CaptionBatch]):
    """Predict each token of a caption from those before it and the image; the tokenizer's end (BERT's [SEP]) ends it.

    ``prompt``          words that every caption starts with, as "a picture of"; they are read and not scored.
    ``label_smoothing`` share of the target probability that is spread over the vocabulary.
    ``texts_per_image`` how many captions of an image are trained on; None: all in the batch.
    ``search``          how a caption is found; ``max_length`` and the like say which may be (``GenerationConfig``).
    """

    needs = frozenset({"text", "causal"})
    reads = "captions"
    replies_to = "caption"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        prompt: str = "",
        label_smoothing: float = 0.1,
        texts_per_image: int | None = None,
        search: Search | None = None,
        max_length: int = 20,
        min_length: int = 5,
        no_repeat_ngram: int = 0,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        self.texts_per_image, self.label_smoothing = texts_per_image, label_smoothing
        self.search: Search = search or BeamSearch()
        special = dims.special_ids
        self.words = Words(dims.tokens, special)
        self.prompt_ids = [dims.cls_token_id, *self.words.spell(prompt, "task.captioning.prompt")]
        self.rules = GenerationConfig(
            dims.sep_token_id, max_length, min_length, no_repeat_ngram, tuple(special), tuple(self.prompt_ids)
        )
        self.head: nn.Module = MaskedLMHead(dims.hidden_size, dims.text_size, dims.vocab_size, eps)

    def reader(self, model: VisionLanguageModel) -> Reader:
        """What reads a caption as far as it goes."""
        return model

    @property
    def predictor(self) -> nn.Module:
        """What predicts the next token from a state."""
        return self.head

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        caption_targets, reader = self._caption_targets(batch), self.reader(model)
        states = fuse_causal(reader, encoded.memory, caption_targets.text)[caption_targets.loss_mask]
        logits, targets = self.predictor(states, reader.text_encoder.word_embeddings.weight), caption_targets.targets
        loss = masked_cross_entropy(logits, targets, self.label_smoothing)
        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)})

    def _caption_targets(self, batch: CaptionBatch) -> CaptionTargets:
        captions = batch["captions"]
        rows = leading_rows(captions["image_index"], self.texts_per_image)
        caption, mask = captions["input_ids"][rows, 1:], captions["attention_mask"][rows, 1:]  # without [CLS]
        prompt_ids = self._prompt_ids(len(rows), caption.device)
        mask = torch.cat([torch.ones_like(prompt_ids), mask], dim=1)
        text = Prompts(
            torch.cat([prompt_ids, caption], dim=1), mask, captions["image_index"][rows], torch.ones_like(rows)
        )
        loss_mask = torch.zeros_like(mask, dtype=torch.bool)
        first = len(self.prompt_ids)
        loss_mask[:, first - 1 : -1] = mask[:, first:].bool()  # from the last token of the prompt on
        return CaptionTargets(text, loss_mask, text.input_ids[:, 1:][loss_mask[:, :-1]])

    def _prompt_ids(self, rows: int, device: torch.device) -> Tensor:
        return torch.tensor(self.prompt_ids, device=device).expand(rows, -1)  # (rows, P)

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """COCO's own records, one an image: {"image_id", "caption"}."""
        images = torch.arange(len(batch["image_ids"]), device=batch["image_keys"].device)
        prompt_ids = self._prompt_ids(len(images), images.device)
        prompts = Prompts(prompt_ids, torch.ones_like(prompt_ids), images, torch.ones_like(images))
        found = self.search(
            decoder_state_of(DecoderInputs(self.reader(model), self.predictor, encoded.memory, prompts)), self.rules
        )
        return [
            {"image_id": image_id, "caption": self.words.text(tokens)}
            for image_id, tokens in zip(batch["image_ids"], found.tokens.tolist(), strict=True)
        ]
