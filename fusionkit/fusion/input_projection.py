"""How the tokens of both modalities enter a fusion: each mapped its own way, and told apart by type embeddings."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.types import Tokens


class InputProjection(Protocol):
    """Built as ``entry(image_size, text_size, hidden_size)``."""

    image_types: int
    """2 gives the second of two images an embedding of its own (NLVR2)."""
    own_tokens: int
    """How many tokens it puts before an image's."""

    def text(self, embeds: Tensor) -> Tensor:
        """(T, L, text_size) -> (T, L, hidden_size)."""
        ...

    def image(self, tokens: Tokens, place: int = 0) -> Tokens:
        """Tokens (I, N, image_size) -> (I, own_tokens + N, hidden_size); ``place`` 1 for second images."""
        ...


def unchanged(size: int, hidden_size: int) -> nn.Module:
    """No map at all, where the tokens have the fusion's width already."""
    if size != hidden_size:
        raise ConfigError(
            f"fusion.entry: tokens of width {size} cannot enter a fusion of width {hidden_size} unchanged; give both encoders "
            "its width, or choose a project that maps them, such as torch.nn.Linear"
        )
    return nn.Identity()


def normed_linear(size: int, hidden_size: int) -> nn.Module:
    """A linear map and a norm."""
    return nn.Sequential(nn.Linear(size, hidden_size), nn.LayerNorm(hidden_size))


class TypedProjection(nn.Module):
    """A map of each modality, ``project(size, hidden_size)``, and its type embedding; METER maps linearly, ViLT not at all."""

    own_tokens = 0

    def __init__(
        self,
        image_size: int,
        text_size: int,
        hidden_size: int,
        image_types: int = 1,
        project: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.image_types = image_types
        self.project_image, self.project_text = project(image_size, hidden_size), project(text_size, hidden_size)
        self.types = nn.Parameter(torch.randn(1 + image_types, hidden_size) * 0.02)

    def text(self, embeds: Tensor) -> Tensor:
        entered: Tensor = self.project_text(embeds) + self.types[0]
        return entered

    def image(self, tokens: Tokens, place: int = 0) -> Tokens:
        return tokens._replace(embeds=self.project_image(tokens.embeds) + self.types[1 + place])


NORMED = partial(TypedProjection, project=normed_linear)  # our own merged attention's


class TypedImage(nn.Module):
    """Text as it comes, with all its embeddings; images with their type embedding, then a norm (UNITER, VisualBERT)."""

    own_tokens = 0

    def __init__(
        self,
        image_size: int,
        text_size: int,
        hidden_size: int,
        image_types: int = 1,
        eps: float = 1e-12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_types = image_types
        unchanged(image_size, hidden_size)
        unchanged(text_size, hidden_size)
        self.types = nn.Parameter(torch.randn(image_types, hidden_size) * 0.02)
        self.norm, self.dropout = nn.LayerNorm(hidden_size, eps=eps), nn.Dropout(dropout)

    def text(self, embeds: Tensor) -> Tensor:
        return embeds

    def image(self, tokens: Tokens, place: int = 0) -> Tokens:
        return tokens._replace(embeds=self.dropout(self.norm(tokens.embeds + self.types[place])))


class Projection(nn.Module):
    """A map of each modality and nothing else: LXMERT's with ``unchanged``."""

    image_types = 1
    own_tokens = 0

    def __init__(
        self, image_size: int, text_size: int, hidden_size: int, project: Callable[[int, int], nn.Module] = unchanged
    ) -> None:
        super().__init__()
        self.project_image, self.project_text = project(image_size, hidden_size), project(text_size, hidden_size)

    def text(self, embeds: Tensor) -> Tensor:
        entered: Tensor = self.project_text(embeds)
        return entered

    def image(self, tokens: Tokens, place: int = 0) -> Tokens:
        return tokens._replace(embeds=self.project_image(tokens.embeds))


class ClassToken(Projection):
    """A linear map of each modality, and before the image tokens one of the fusion's own, which its pooling reads (FLAVA)."""

    own_tokens = 1

    def __init__(self, image_size: int, text_size: int, hidden_size: int) -> None:
        super().__init__(image_size, text_size, hidden_size, nn.Linear)
        self.class_token = nn.Parameter(torch.randn(1, 1, hidden_size) * 0.02)

    def image(self, tokens: Tokens, place: int = 0) -> Tokens:
        embeds = torch.cat(
            [self.class_token.expand(tokens.embeds.shape[0], -1, -1), self.project_image(tokens.embeds)], 1
        )
        mask = None if tokens.mask is None else torch.cat([torch.ones_like(tokens.mask[:, :1]), tokens.mask], dim=1)
        return tokens._replace(embeds=embeds, mask=mask)
