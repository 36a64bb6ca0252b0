"""BLIP's text encoder, and the embeddings of its decoders."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionkit.encoders.text import HFTextEncoder
from fusionkit.encoders.tower import word_table
from fusionkit.types import TextFormat, Tokens


class BLIPTextEncoder(HFTextEncoder):
    """A BERT that begins each text with a token of BLIP's, and may have no token types.

    ``token_types``    False leaves BERT's token type embeddings out.
    ``first_token_id`` is read in place of the first token of each text ([ENC] and [DEC] for [CLS]).
    ``added_tokens``   so many new embeddings behind those of the tokenizer or the pretrained model, for such first tokens.
    A BERT of 0 layers gives the embeddings of the tokens alone; its pooled vector is that of the first token as it is written.
    Other options are those of ``HFTextEncoder``.
    """

    def __init__(
        self,
        vocab_size: int,
        token_types: bool = True,
        first_token_id: int | None = None,
        added_tokens: int = 0,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_layers: int | None = None,
        give_upper_layers: bool = False,
        pool: str = "cls",
        frozen: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        self.first_token_id, self.token_types, self.added_tokens = first_token_id, token_types, added_tokens
        super().__init__(vocab_size, pretrained, config, num_layers, give_upper_layers, pool, frozen, text_format)

    def build(
        self, vocab_size: int, pretrained: str | None, config: Mapping[str, Any], text_format: TextFormat | None
    ) -> PreTrainedModel:
        if pretrained is None:
            vocab_size += self.added_tokens
        tower = super().build(vocab_size, pretrained, config, text_format)
        if pretrained is not None and self.added_tokens:
            words = word_table(tower).num_embeddings + self.added_tokens
            tower.resize_token_embeddings(words, mean_resizing=False)
        if not self.token_types:
            embeddings: Any = tower.get_submodule("embeddings")
            embeddings.token_type_embeddings = NoTokenTypes()
        return tower

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        tokens = super().forward(input_ids, attention_mask)
        if self.first_token_id is None or self.config.num_hidden_layers:
            return tokens
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            return tokens._replace(pooled=self.backbone(input_ids=input_ids[:, :1]).last_hidden_state[:, 0])

    def read(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        if self.first_token_id is None:
            return input_ids
        places = torch.arange(input_ids.shape[1], device=input_ids.device) if positions is None else positions
        return input_ids.masked_fill(places == 0, self.first_token_id)


class NoTokenTypes(nn.Module):
    """Stands for a table of token types where there is none."""

    def forward(self, token_type_ids: Tensor) -> Tensor:
        return torch.zeros((), device=token_type_ids.device)
