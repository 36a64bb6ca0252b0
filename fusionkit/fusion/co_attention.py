"""Two streams that attend to each other's previous state (METER, LXMERT)."""

from collections.abc import Callable, Set
from typing import NamedTuple

from torch import Tensor, nn

from fusionkit.fusion.bert import PostNormBlock
from fusionkit.fusion.cross_attention import CrossAttentionLayer
from fusionkit.fusion.input_projection import InputProjection, TypedProjection
from fusionkit.fusion.layers import Attention, Grouping, KeyValue, seen_by_image, stack
from fusionkit.fusion.pooling import DenseBoth, Pooling, Streams
from fusionkit.types import Fused, Tokens


class ImageSide(NamedTuple):
    """What a layer makes of its image states before it looks at the text; in the first layer it is made once an image."""

    states: Tensor  # (B, N, D), as far as they come without the text
    mask: Tensor | None  # (B, N)
    keys_values: KeyValue  # of the previous image states, for the text


class SelfThenCross(nn.Module):
    """METER's layer: each stream attends to itself, then to the other's previous state, then feed-forward; post-norm."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        eps: float,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        sizes = (hidden_size, hidden_size, num_heads, intermediate_size, dropout, eps, activation)
        self.text, self.image = CrossAttentionLayer(*sizes), CrossAttentionLayer(*sizes)

    @property
    def text_attention(self) -> Attention:
        """The attention of the text to the image."""
        return self.text.cross_attention

    def read_image(self, image: Tensor, mask: Tensor | None) -> ImageSide:
        keys_values = self.text.cross_attention.project(image, mask)
        own = self.image.self_attention.project(image, mask)
        return ImageSide(self.image.attend_self(image, own), mask, keys_values)

    def forward(
        self, text: Tensor, mask: Tensor, image: ImageSide, grouping: Grouping | None = None
    ) -> tuple[Tensor, Tensor]:
        """Text (T, L, D) and image states (T, N, D) after the layer."""
        told = self.image.cross_attention.project(text, seen_by_image(mask))
        own = self.text.self_attention.project(text, mask)
        return self.text(text, own, image.keys_values, grouping), self.image.attend_memory(image.states, told)


class CrossThenSelf(nn.Module):
    """LXMERT's layer: one cross-attention, with the same weights for both directions, then self-attention and feed-forward."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        dropout: float,
        eps: float,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.cross_attention = Attention(hidden_size, num_heads, dropout=dropout)
        self.norm_cross = nn.LayerNorm(hidden_size, eps=eps)
        sizes = (hidden_size, num_heads, dropout, eps, intermediate_size, activation)
        self.text, self.image = PostNormBlock(*sizes), PostNormBlock(*sizes)
        self.dropout = nn.Dropout(dropout)

    @property
    def text_attention(self) -> Attention:
        """The attention of the text to the image; it serves the image afterwards."""
        return self.cross_attention

    def read_image(self, image: Tensor, mask: Tensor | None) -> ImageSide:
        return ImageSide(image, mask, self.cross_attention.project(image, mask))

    def forward(
        self, text: Tensor, mask: Tensor, image: ImageSide, grouping: Grouping | None = None
    ) -> tuple[Tensor, Tensor]:
        """Text (T, L, D) and image states (T, N, D) after the layer."""
        told = self.cross_attention.project(text, seen_by_image(mask))
        text = self.norm_cross(text + self.dropout(self.cross_attention(text, image.keys_values, grouping)))
        seen = self.norm_cross(image.states + self.dropout(self.cross_attention(image.states, told)))
        return self.text(text, mask), self.image(seen, image.mask)


class CoAttention(nn.Module):
    """``num_layers`` layers over two streams of width ``hidden_size``.

    ``block`` makes a layer of (hidden_size, num_heads, intermediate_size, dropout, eps): ``SelfThenCross``, ``CrossThenSelf``.
    ``entry`` (``input_projection``) brings the tokens in, ``pool`` (``pooling``) reads one vector off: by default METER-Swin,
    [first text state; mean image state], each through a linear layer and tanh.
    """

    provides = frozenset({"pooled", "text", "image", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        eps: float = 1e-5,
        block: Callable[..., nn.Module] = SelfThenCross,
        entry: Callable[..., InputProjection] = TypedProjection,
        pool: Callable[..., Pooling] = DenseBoth,
    ) -> None:
        super().__init__()
        self.hidden_size = size = hidden_size or text_size
        self.entry = entry(image_size, text_size, size)
        self.image_types = self.entry.image_types
        width = intermediate_size or 4 * size
        self.layers = stack(num_layers, lambda _: block(size, num_heads, width, dropout, eps))
        self.pool = pool(size)
        self.pooled_size = self.pool.size

    def prepare(self, image: Tokens, place: int = 0) -> ImageSide:
        entered = self.entry.image(image, place)
        side: ImageSide = self.layers[0].read_image(entered.embeds, entered.mask)
        return side

    def forward(self, memory: ImageSide, text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        grouping: Grouping | None = Grouping.of(image_index, images=memory.states.shape[0])
        image_mask = None if memory.mask is None else memory.mask[image_index]
        side = memory._replace(states=memory.states[image_index], mask=image_mask)
        states, seen = self.entry.text(text.embeds), side.states
        for number, layer in enumerate(self.layers):
            if number:  # from here on the image states belong to a text, and so do their keys and values
                side, grouping = layer.read_image(seen, image_mask), None
            states, seen = layer(states, text.mask, side, grouping)
        return Fused(pooled=self.pool(Streams(states, seen, text.mask, image_mask)), text=states, image=seen)

    def cross_attentions(self) -> list[Attention]:
        return [layer.text_attention for layer in self.layers]

    def freeze_unused(self, needs: Set[str]) -> None:
        """The last layer's streams end in what is read of them."""
        if "pooled" not in needs:
            self.get_submodule("pool").requires_grad_(False)
        for stream in {"text", "image"} - needs - (self.pool.reads if "pooled" in needs else set()):
            getattr(self.layers[-1], stream).requires_grad_(False)
