"""FLAVA's text encoder."""

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
        self, vocab_size: int, before_norm: bool = True, text_format: TextFormat | None = None, **options: Any
    ) -> None:
        self.before_norm = before_norm
        super().__init__(vocab_size, text_format=text_format, **options)

    def states(self, layers: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, Tensor]:
        return layers[-1] if self.before_norm else last, last
