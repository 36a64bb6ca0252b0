"""What the fusions share that have a causal language model, the model's text encoder, read on."""

from typing import Any

import torch
from torch import Tensor

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import ReadsOn
from fusionkit.types import Tokens, no_later, own_places

CHOOSE = "text_encoder=tiny_llama, smollm2_135m or another fusionkit.encoders.language.LanguageModel"


def check_reads_on(fusion: object, language_model: Any, where: str, member: str) -> None:
    """ConfigError for a text encoder without the ``member`` that the fusion needs of it, to read on ``where`` the image is."""
    if not hasattr(language_model, member):
        raise ConfigError(
            f"fusion: {type(fusion).__name__} has a causal language model read on {where} the image, which "
            f"{type(language_model).__name__} is not; choose {CHOOSE}, or another fusion=NAME"
        )
    if kind := language_model.changing_positions:
        raise ConfigError(
            f"text_encoder: its positions hang on how long the whole text is (rope_type {kind}), but a text is read piece by "
            "piece; choose a language model without, such as llama, qwen3 or gemma2"
        )


def unjoined(fusion: object) -> ConfigError:
    """The error of a fusion that is used before it has a language model."""
    return ConfigError(f"fusion: {type(fusion).__name__} has no language model to read on with; choose {CHOOSE}")


def given_mask(text: Tokens) -> Tensor:
    """The text's mask as bool (T, L, P + L), after P earlier tokens."""
    mask, length = text.mask, text.embeds.shape[1]
    assert mask is not None
    return (mask[:, None].expand(-1, length, -1) if mask.dim() == 2 else mask).bool()


def causal_mask(text: Tokens) -> Tensor:
    """The text's mask as bool (T, L, P + L) in which no token sees later ones, whatever it says."""
    seen = given_mask(text)
    length, total = seen.shape[1:]
    return seen & no_later(length, total, seen.device)


def positions_of(real: Tensor) -> Tensor:
    """(B, N) from bool (B, N): the number of each real token among them."""
    return (real.cumsum(dim=1) - 1).clamp(min=0)


def text_positions(mask: Tensor) -> Tensor:
    """(T, L) from a mask (T, L, P + L): the number of each token of its text, the P earlier ones counted where one is seen."""
    earlier, real = mask.shape[2] - mask.shape[1], own_places(mask)
    before = mask[:, :, :earlier].any(dim=1).sum(dim=1, keepdim=True)
    return before + positions_of(real)


def last_token(states: Tensor, mask: Tensor) -> Tensor:
    """The last real token's state of each text, (T, D)."""
    real = mask if mask.dim() == 2 else mask.diagonal(dim1=1, dim2=2)
    last = (real.sum(dim=1) - 1).clamp(min=0)
    return states[torch.arange(last.shape[0], device=last.device), last]


def read_alone(language_model: ReadsOn, text: Tokens, mask: Tensor) -> Tokens:
    """Texts that see no image, under a mask (T, L, L); pooled is their last token."""
    assert text.mask is not None
    states = language_model.read(text.embeds, mask, text_positions(mask))
    return Tokens(states, text.mask, last_token(states, text.mask))


def freeze_head(language_model: ReadsOn, needs: frozenset[str]) -> None:
    """The head has no gradient where no task predicts words."""
    if "causal" not in needs and language_model.head is not None:
        language_model.head.requires_grad_(False)
