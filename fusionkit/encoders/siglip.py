"""SigLIP's text encoder, which reads the padding behind a text too."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionkit.encoders.text import HFTextEncoder
from fusionkit.types import TextFormat, Tokens


class SigLIPTextEncoder(HFTextEncoder):
    """SigLIP's text tower: each text is padded to all its positions, which see one another, and the last one is pooled.

    A tokenizer's start, which SigLIP's texts do not have, is left out. The linear map behind the last position is the model's own
    projection. Options are those of ``HFTextEncoder``.
    """

    def __init__(
        self,
        vocab_size: int,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        frozen: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        self._start = None if text_format is None else text_format.start
        super().__init__(vocab_size, pretrained, config, pool="last", frozen=frozen, text_format=text_format)

    def build(
        self, vocab_size: int, pretrained: str | None, config: Mapping[str, Any], text_format: TextFormat | None
    ) -> PreTrainedModel:
        tower = super().build(vocab_size, pretrained, config, text_format)
        tower.head = nn.Identity()
        self._padding: int = tower.config.pad_token_id if text_format is None else text_format.pad
        return tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), attention_mask (T, L), or (T, L, L), of which the last row counts -> tokens (T, L, hidden_size)."""
        self._require_room(attention_mask)
        mask = attention_mask if attention_mask.dim() == 2 else attention_mask[:, -1]
        ids = input_ids.where(mask.bool(), self._padding)
        begins = torch.zeros_like(ids[:, :1], dtype=torch.bool) if self._start is None else ids[:, :1] == self._start
        room = self.config.max_position_embeddings + 1 - ids.shape[1]
        ids = F.pad(ids, (0, room), value=self._padding)
        ids = ids[:, 1:].where(begins, ids[:, :-1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            states: Tensor = self.backbone(input_ids=ids).last_hidden_state
        moved = torch.cat([states[:, -1:], states], dim=1)  # a start has the state of the whole text
        embeds = moved[:, :-1].where(begins[..., None], states)[:, : input_ids.shape[1]]
        return Tokens(embeds, attention_mask, states[:, -1])

    @property
    def max_length(self) -> int | None:
        return int(self.config.max_position_embeddings) + (self._start is not None)
