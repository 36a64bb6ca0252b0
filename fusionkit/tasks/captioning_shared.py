"""Captioning by a decoder that is the model's own fusion but for its self-attention (BLIP's pre-training)."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from fusionkit.encoders.base import SupportsFirstToken
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import LentLayers
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task
from fusionkit.tasks.captioning import CaptionWriter
from fusionkit.tasks.decoding import DecoderInputs
from fusionkit.tasks.generation import GenerationConfig, Search
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import means
from fusionkit.tasks.mlm import MaskedLMHead
from fusionkit.types import Dims, Encoded, TaskOutput


class SharedDecoder(nn.Module):
    """What the decoder has for itself: self-attention and prediction head."""

    def __init__(self, layers: LentLayers, words: MaskedLMHead) -> None:
        super().__init__()
        self.layers, self.words = layers, words


class SharedCaptioning(Task[CaptionBatch]):
    """Captioning in which embeddings, cross-attention and feed-forward are the model's; its memory of the images is shared.

    ``decoder``        builds the self-attentions from (hidden_size=), such as ``SelfAttentionLayers`` of the fusion's number.
    ``first_token_id`` begins each text in place of [CLS] (BLIP's [DEC]).
    The other options are those of ``Captioning``.
    """

    needs = frozenset({"text", "causal"})
    reads = "captions"
    distribution = "softmax"
    replies_to = "caption"
    encodes = False

    def __init__(
        self,
        dims: Dims,
        decoder: Callable[..., LentLayers],
        first_token_id: int | None = None,
        prompt: str = "",
        label_smoothing: float = 0.1,
        texts_per_image: int | None = None,
        search: Search | None = None,
        max_length: int = 20,
        min_length: int = 5,
        no_repeat_ngram: int = 0,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        prefix: str | None = None,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        generation = (search, max_length, min_length, no_repeat_ngram, prefix)
        self.writer = CaptionWriter.of(dims, prompt, label_smoothing, texts_per_image, *generation)
        self.first_token_id = first_token_id
        self.head = SharedDecoder(
            decoder(hidden_size=dims.hidden_size), MaskedLMHead(dims.hidden_size, dims.text_size, dims.vocab_size, eps)
        )

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        return self.writer.loss(self._reader(model), self.head.words, batch, encoded, self.training)

    def said(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> DecoderInputs:
        """What the caption of each image follows."""
        return self.writer.inputs(self._reader(model), self.head.words, batch, encoded)

    def saying(self) -> GenerationConfig:
        return self.writer.rules

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """COCO's own records, one an image: {"image_id", "caption"}."""
        return self.writer.predict(self._reader(model), self.head.words, batch, encoded)

    def columns(self) -> tuple[str, Any]:
        return "words", self.writer.vocab_size

    def spoken_by(self, model: VisionLanguageModel) -> tuple[Reader, nn.Module]:
        """What reads a caption, and the head that says its words."""
        return self._reader(model), self.head.words

    def reply(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, top: int) -> Records:
        """As Captioning."""
        return self.writer.reply(self._reader(model), self.head.words, batch, encoded)

    def check(self, model: VisionLanguageModel) -> None:
        """Raise ConfigError for a text encoder or a fusion that cannot be shared."""
        self._reader(model)

    def _reader(self, model: VisionLanguageModel) -> Reader:
        text_encoder = copy.copy(model.text_encoder)  # the same parameters, but another first token
        if isinstance(text_encoder, SupportsFirstToken):
            text_encoder.first_token_id = self.first_token_id
        elif self.first_token_id is not None:
            raise ConfigError(
                f"text_encoder: {type(text_encoder).__name__} has no first_token_id, by which a decoder that shares it begins a "
                "text; choose task captioning, which begins as the encoder does"
            )
        return Reader(text_encoder, self.head.layers.within(model.fusion))
