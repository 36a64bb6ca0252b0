"""BridgeTower's text encoder."""

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
        self, vocab_size: int, top_layers: int = 1, text_format: TextFormat | None = None, **options: Any
    ) -> None:
        self.top_layers = top_layers
        super().__init__(vocab_size, text_format=text_format, **options)
        self.hidden_size = top_layers * self.hidden_size

    def states(self, layers: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, Tensor]:
        joined = torch.cat(layers[-self.top_layers :], dim=2)
        return joined, joined
