"""Image tokens from what a detector found: region features and the geometry of their boxes (UNITER)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.types import Regions, Tokens

POSITION_SIZE = 7


class RegionEncoder(nn.Module):
    """UNITER's image embedder: norm(norm(linear(features)) + norm(linear(positions)) + type embedding), one token a region.

    ``feature_size``  width of the detector's features: 2,048 of bottom-up attention.
    ``position_size`` how many of the seven numbers of a box are read; LXMERT reads the first four, VisualBERT none (0): its
                      features are not normalised either.
    ``is_finished``   false: without type embedding and last norm, which the fusion's entry gives then (TypedImage), or nobody.
    ``layers``        layers over an image's regions, such as LXMERT's: made of hidden_size, each called with states and mask.
    The pooled vector is the mean over an image's regions.
    """

    reads = "regions"
    num_prefix_tokens = 0

    def __init__(
        self,
        feature_size: int = 2048,
        hidden_size: int = 768,
        dropout: float = 0.1,
        eps: float = 1e-12,
        position_size: int = POSITION_SIZE,
        is_finished: bool = True,
        layers: Sequence[Callable[[int], nn.Module]] = (),
    ) -> None:
        super().__init__()
        self.feature_size = self.mask_token_size = feature_size
        self.hidden_size, self.position_size, self.is_finished = hidden_size, position_size, is_finished
        self.project = nn.Linear(feature_size, hidden_size)
        if position_size:
            self.norm_features = nn.LayerNorm(hidden_size, eps=eps)
            self.place = nn.Linear(position_size, hidden_size)
            self.norm_positions = nn.LayerNorm(hidden_size, eps=eps)
        if is_finished:
            self.type_embedding = nn.Parameter(torch.randn(hidden_size) * 0.02)
            self.norm = nn.LayerNorm(hidden_size, eps=eps)
        self.layers = nn.ModuleList(layer(hidden_size) for layer in layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, regions: Regions) -> Tokens:
        """Tokens (I, N, hidden_size), with the regions' mask."""
        require_width(regions.features.shape[2], self.feature_size)
        states = self.project(regions.features)
        if self.position_size:
            places = self.place(regions.positions[..., : self.position_size].to(regions.features.dtype))
            states = self.norm_features(states) + self.norm_positions(places)
        if self.is_finished:
            states = self.norm(states + self.type_embedding)
        states = self.dropout(states)
        for layer in self.layers:
            states = layer(states, regions.mask)
        weights = regions.mask.to(states.dtype)[..., None]
        pooled = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return Tokens(states, regions.mask, pooled)

    def hide(self, regions: Regions, chosen: Tensor, filling: Tensor) -> Regions:
        """The regions with ``filling`` (feature_size,) in place of the chosen features, bool (I, N)."""
        return regions._replace(features=torch.where(chosen[..., None], filling.to(regions.features), regions.features))

    def features(self, regions: Regions, tokens: Tokens) -> Tensor:
        """What is to be told of a hidden region (I, N, feature_size): the detector's features."""
        return regions.features

    def corners(self, regions: Regions, tokens: Tokens) -> Tensor:
        """Where the regions lie, (I, N, 4): left, top, right, bottom in parts of the image; zeros for padding."""
        return regions.positions[..., :4] * regions.mask[..., None]

    def decode(self, states: Tensor) -> Tensor:
        """States (M, hidden_size) -> features (M, feature_size), by the weights that read them (UNITER)."""
        return states @ self.project.weight


def require_width(found: int, expected: int) -> None:
    """ConfigError where region features are not as wide as the encoder expects."""
    if found != expected:
        raise ConfigError(
            f"image_encoder.feature_size is {expected}, but the data's region features are {found} wide; "
            f"set image_encoder.feature_size={found}"
        )
