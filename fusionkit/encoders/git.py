"""GIT's words: layers of BERT whose positions are those of the text alone."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fusionkit.encoders.language import LanguageModel
from fusionkit.types import TextFormat


class GITEmbeddings(nn.Module):
    """Words and their positions, added and normalised; what BERT's layers then read is given to them as it is."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """(T, L) each -> (T, L, D)."""
        states: Tensor = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        normed: Tensor = self.dropout(self.LayerNorm(states))
        return normed

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


class GITLanguageModel(LanguageModel):
    """A causal language model of BERT's layers, behind an image whose tokens have no positions (GIT, Wang et al. 2022).

    ``config`` is BERT's, ``tied`` says whether the head, which has a bias, is the table of embeddings; the rest as in
    ``LanguageModel``.
    """

    def __init__(
        self,
        vocab_size: int,
        config: Mapping[str, Any],
        tied: bool = False,
        frozen: bool = False,
        checkpointing: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        self.tied = tied
        bert = {**config, "model_type": "bert", "is_decoder": True}
        super().__init__(vocab_size, config=bert, frozen=frozen, checkpointing=checkpointing, text_format=text_format)

    def parts(self, whole: Any) -> tuple[Any, nn.Module | None]:
        backbone = whole.base_model
        backbone.embeddings = GITEmbeddings(backbone.config)
        head = nn.Linear(backbone.config.hidden_size, backbone.config.vocab_size)
        if self.tied:
            head.weight = backbone.embeddings.word_embeddings.weight
        return backbone, head

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        embeds: Tensor = self.backbone.embeddings.embed(input_ids, positions)
        return embeds

    def _try_out(self, whole: Any) -> None:
        super()._try_out(None)  # the head is not the library's
