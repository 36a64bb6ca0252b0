"""BridgeTower's text encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fusionkit.encoders.text import HFTextEncoder
from fusionkit.types import TextFormat


class BridgeTowerTextEncoder(HFTextEncoder):
    """The states of the ``top_layers`` last layers side by side in the width, for a fusion that reads them all.

    Other options are those of ``HFTextEncoder``.
    """

    reads_layers = True

    def __init__(
        self,
        vocab_size: int,
        top_layers: int = 1,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_layers: int | None = None,
        give_upper_layers: bool = False,
        pool: str = "cls",
        frozen: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        self.top_layers = top_layers
        super().__init__(vocab_size, pretrained, config, num_layers, give_upper_layers, pool, frozen, text_format)
        self.hidden_size = top_layers * self.hidden_size

    def states(self, layers: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat(layers[-self.top_layers :], dim=2)
        return joined, joined
