"""Two streams into each of whose layers the states of both encoders are led by a bridge (BridgeTower)."""

from collections.abc import Callable, Set
from typing import NamedTuple

from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.co_attention import ImageSide, SelfThenCross
from fusionkit.fusion.input_projection import InputProjection, TypedProjection
from fusionkit.fusion.layers import Attention, Grouping, stack
from fusionkit.fusion.pooling import DenseBoth, Pooling, Streams
from fusionkit.types import Fused, Tokens


class BridgedImage(NamedTuple):
    """What is made of an image before the text: its side of the first layer, and what the later bridges lead in."""

    first: ImageSide
    later: list[Tensor]  # by layer, (I, N, D)


class Bridge(nn.Module):
    """METER's layers; before each, a stream is normalised together with the encoder's states that its bridge leads in.

    ``bridged``  how many layers' states stand side by side in the width of the tokens (the encoders' ``top_layers``): as many
                 as there are layers, of which each is led its own, or 1, led to all.
    ``block``    makes a layer, as in ``CoAttention``.
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
        bridge_eps: float = 1e-5,
        bridged: int = 1,
        block: Callable[..., nn.Module] = SelfThenCross,
        entry: Callable[..., InputProjection] = TypedProjection,
        pool: Callable[..., Pooling] = DenseBoth,
    ) -> None:
        super().__init__()
        if bridged not in (1, num_layers):
            raise ConfigError(f"fusion.bridged is {bridged}; give 1, or as many as fusion.num_layers, {num_layers}")
        self.bridged = bridged
        self.hidden_size = size = hidden_size or text_size // bridged
        self.entry = entry(image_size // bridged, text_size // bridged, size)
        self.image_types = self.entry.image_types
        width = intermediate_size or 4 * size
        self.layers = stack(num_layers, lambda _: block(size, num_heads, width, dropout, eps))
        self.text_norms = nn.ModuleList(nn.LayerNorm(size, eps=bridge_eps) for _ in range(num_layers))
        self.image_norms = nn.ModuleList(nn.LayerNorm(size, eps=bridge_eps) for _ in range(num_layers))
        self.pool = pool(size)
        self.pooled_size = self.pool.size

    def prepare(self, image: Tokens, place: int = 0) -> BridgedImage:
        led = [self.entry.image(image._replace(embeds=part), place).embeds for part in self._parts(image.embeds)]
        return BridgedImage(self.layers[0].read_image(self.image_norms[0](led[0]), image.mask), self._each(led)[1:])

    def forward(self, memory: BridgedImage, text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        side, later = memory
        grouping: Grouping | None = Grouping.of(image_index, images=side.states.shape[0])
        image_mask = None if side.mask is None else side.mask[image_index]
        side = side._replace(states=side.states[image_index], mask=image_mask)
        led = self._each([self.entry.text(part) for part in self._parts(text.embeds)])
        states, seen = self.text_norms[0](led[0]), side.states
        for number, layer in enumerate(self.layers):
            if number:
                states = self.text_norms[number](led[number] + states)
                seen = self.image_norms[number](later[number - 1][image_index] + seen)
                side, grouping = layer.read_image(seen, image_mask), None
            states, seen = layer(states, text.mask, side, grouping)
        return Fused(pooled=self.pool(Streams(states, seen, text.mask, image_mask)), text=states, image=seen)

    def _parts(self, embeds: Tensor) -> tuple[Tensor, ...]:
        """The encoder's layers apart."""
        return embeds.chunk(self.bridged, dim=2)

    def _each(self, led: list[Tensor]) -> list[Tensor]:
        """What each layer is led."""
        return led if self.bridged > 1 else led * len(self.layers)

    def cross_attentions(self) -> list[Attention]:
        return [layer.text_attention for layer in self.layers]

    def freeze_unused(self, needs: Set[str]) -> None:
        """The last layer's streams end in what is read of them."""
        if "pooled" not in needs:
            self.get_submodule("pool").requires_grad_(False)
        for stream in {"text", "image"} - needs - (self.pool.reads if "pooled" in needs else set()):
            getattr(self.layers[-1], stream).requires_grad_(False)
