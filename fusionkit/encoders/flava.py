"""FLAVA's text encoder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fusionkit.encoders.text import HFTextEncoder
from fusionkit.types import TextFormat


class FLAVATextEncoder(HFTextEncoder):
    """Tokens as they are before the tower's last norm where ``before_norm`` is set, pooled after it.

    Other options are those of ``HFTextEncoder``.
    """

    reads_layers = True

    def __init__(
        self,
        vocab_size: int,
        before_norm: bool = True,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_layers: int | None = None,
        give_upper_layers: bool = False,
        pool: str = "cls",
        frozen: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        self.before_norm = before_norm
        super().__init__(vocab_size, pretrained, config, num_layers, give_upper_layers, pool, frozen, text_format)

    def states(self, layers: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, Tensor]:
        return layers[-1] if self.before_norm else last, last
