"""Text layers that attend to two images in turn (ALBEF's NLVR2 model)."""

from torch import Tensor

from fusionkit.errors import ConfigError
from fusionkit.fusion.cross_attention import CrossAttention
from fusionkit.fusion.layers import Grouping, KeyValue
from fusionkit.types import Tokens


class AlternatingCrossAttention(CrossAttention):
    """Cross-attention layers in pairs: the first of a pair reads the left image, the second the right one.

    ``image_index`` is (T, 2) with a left and a right image a text, or (T,) where both are the same. The keys and values of
    a pair are one projection, so that an image is projected once for each pair, left or right.
    """

    provides = CrossAttention.provides | {"pair"}

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 12,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-12,
    ) -> None:
        super().__init__(image_size, text_size, num_layers, num_heads, intermediate_size, dropout, eps)
        if num_layers % 2:
            raise ConfigError(
                f"fusion.num_layers is {num_layers}, but layers read two images in turn; give an even number"
            )
        for left, right in zip(self.layers[::2], self.layers[1::2], strict=True):
            right.cross_attention.key, right.cross_attention.value = (
                left.cross_attention.key,
                left.cross_attention.value,
            )

    def prepare(self, image: Tokens) -> list[KeyValue]:
        pairs = [layer.cross_attention.project(image.embeds, image.mask) for layer in self.layers[::2]]
        return [keys_values for keys_values in pairs for _ in range(2)]

    def groupings(self, image_index: Tensor, images: int) -> list[Grouping]:
        left, right = image_index.T if image_index.dim() == 2 else (image_index, image_index)
        return [Grouping.of(left, images), Grouping.of(right, images)] * (len(self.layers) // 2)
