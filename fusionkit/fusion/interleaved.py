"""Cross-attention to the image before layers of a causal language model, which stay as they are (Flamingo, Idefics)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionkit.errors import ConfigError, suggest
from fusionkit.fusion.base import BeforeLayer, KeysValues, ReadsBetween
from fusionkit.fusion.gated_cross_attention import GatedCrossAttentionBlock, mean_gate
from fusionkit.fusion.layers import Attention, Grouping, KeyValue, Packing
from fusionkit.fusion.placed_images import PlacedImages, is_placed
from fusionkit.fusion.projectors import Projector
from fusionkit.fusion.reading import (
    causal_mask,
    check_reads_on,
    freeze_head,
    last_token,
    read_alone,
    text_positions,
    unjoined,
)
from fusionkit.types import Fused, Tokens

SEES = ("latest", "all")


class Interleaved(nn.Module):
    """Before each ``cross_every``-th layer of the language model, the first included, its states see the image in a gated block.

    ``cross_every``        1: before each layer; 4: before the first, the fifth, ... (Idefics' ``cross_layer_interval``).
    ``num_heads``          of the blocks; it divides the width of the language model's layers.
    ``intermediate_size``  of the blocks' feed-forward; None: 4 times that width.
    ``gate``               what the blocks' gates start from: at 0 the model is at first the language model, to the last bit, so
                           that one that stays frozen loses nothing. None: plain blocks without gates.
    ``qk_norm``            whether the queries and keys of each head are normalised (Idefics' ``qk_layer_norms``).
    ``sees``               what a token sees of a text with several images, none of which it sees before their places: the
                           "latest" one (Flamingo, Idefics), or "all" so far.

    The image takes no positions of the language model. It enters as an argument of each call (``before_layer``): nothing is
    kept between calls, and the language model's layers keep their names and may be computed anew in the backward pass.
    """

    provides = frozenset({"pooled", "text", "causal", "attention", "images"})
    encodes_prompts = sees_prefix = False

    def __init__(
        self,
        image_size: int,
        text_size: int,
        cross_every: int = 1,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        gate: float | None = 0.0,
        eps: float = 1e-6,
        qk_norm: bool = False,
        sees: str = "latest",
    ) -> None:
        super().__init__()
        if sees not in SEES:
            raise ConfigError(f"fusion.sees is '{sees}'; {suggest(sees, SEES)}")
        self.hidden_size = self.pooled_size = text_size
        self.image_size, self.num_heads, self.intermediate_size = image_size, num_heads, intermediate_size
        self.dropout, self.gate, self.eps, self.qk_norm = dropout, gate, eps, qk_norm
        self.cross_every, self.sees = cross_every, sees
        self.cross_layers: Any = nn.ModuleList()  # as many as the language model has places for
        self._joined: tuple[ReadsBetween, ...] = ()  # in a tuple: its parameters are the text encoder's

    def join(self, language_model: ReadsBetween) -> None:
        """Take the language model to read on with, and build the blocks that its layers need."""
        check_reads_on(self, language_model, "while it looks at", "open_layers")
        count, width = language_model.open_layers()
        if not 0 < self.cross_every <= count:
            raise ConfigError(
                f"fusion.cross_every is {self.cross_every}; give 1 to {count}, the layers of the language model"
            )
        sizes = (width, self.image_size, self.num_heads, self.intermediate_size or 4 * width)
        self.cross_layers = nn.ModuleList(
            GatedCrossAttentionBlock(*sizes, self.dropout, self.gate, self.eps, self.qk_norm)
            for _ in range(0, count, self.cross_every)
        )
        language_model.start_reading_on()
        self._joined = (language_model,)

    @property
    def language_model(self) -> ReadsBetween:
        """What reads; ConfigError before ``join``."""
        if not self._joined:
            raise unjoined(self)
        return self._joined[0]

    def prefix_length(self, image_tokens: int) -> int:
        return 0

    def prepare(self, image: Tokens) -> list[KeyValue]:
        if not self._joined:
            raise unjoined(self)
        return [layer.cross_attention.project(image.embeds, image.mask) for layer in self.cross_layers]

    def forward(self, memory: list[KeyValue], text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        mask, looking = causal_mask(text), self._looking(memory, text.mask, image_index)
        states = self.language_model.read(text.embeds, mask, text_positions(mask), looking)
        return Fused(pooled=last_token(states, text.mask), text=states)

    def extend(
        self, memory: list[KeyValue], text: Tokens, image_index: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        assert text.mask is not None
        mask, looking = causal_mask(text), self._looking(memory, text.mask, image_index)
        return self.language_model.read_on(text.embeds, mask, text_positions(mask), past, looking)

    def encode_unimodal(self, text: Tokens) -> Tokens:
        """Texts that see no image: the language model alone; pooled is their last token."""
        return read_alone(self.language_model, text, causal_mask(text))

    def cross_attentions(self) -> list[Attention]:
        return [layer.cross_attention for layer in self.cross_layers]

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Without an image the blocks have no gradient, and the head none where no task predicts words."""
        if not needs - {"feats"}:
            self.requires_grad_(False)
        freeze_head(self.language_model, needs)

    def metrics(self) -> dict[str, Tensor]:
        """``gate``: how far the image is let in (``mean_gate``); none without gates."""
        return mean_gate(self.cross_layers)

    def _looking(self, memory: list[KeyValue], mask: Tensor, image_index: Tensor) -> BeforeLayer:
        """What each layer reads of texts under a mask (T, L) or (T, L, P + L), each with its image, or its images."""
        packing = Packing.of(mask)
        placed = _Placed.of(image_index, mask, packing, self.sees) if is_placed(image_index) else None
        grouping = None if placed else Grouping.of(image_index, images=memory[0].key.shape[0])
        is_recomputed = self.language_model.is_recomputed

        def before_layer(number: int, states: Tensor) -> Tensor:
            place, others = divmod(number, self.cross_every)
            if others:
                return states
            seen = memory[place] if placed is None else placed.side_by_side(memory[place])
            given = (packing.pack(states), seen, grouping, packing, placed and placed.blind)
            block = self.cross_layers[place]
            is_plain = type(block) is GatedCrossAttentionBlock  # else its class computes it anew by itself
            found: Tensor = (
                checkpoint(block, *given, use_reentrant=False) if is_recomputed and is_plain else block(*given)
            )
            return packing.unpack(found).to(states.dtype)

        return before_layer


class _Placed(NamedTuple):
    """What the tokens of T texts see of the K images of each."""

    rows: Tensor  # (T, K)
    seen: Tensor  # (T, L, K) bool
    blind: Tensor  # (M,) bool, the real tokens that see none

    @classmethod
    def of(cls, image_index: Tensor, mask: Tensor, packing: Packing, sees: str) -> "_Placed":
        images, length = PlacedImages.of(image_index), packing.length
        start = mask.shape[-1] - length
        seen = images.before(start, length) if sees == "all" else images.latest(start, length)
        return cls(images.rows, seen, packing.pack(~seen.any(dim=2, keepdim=True))[:, 0])

    def side_by_side(self, memory: KeyValue) -> KeyValue:
        """The keys and values of each text's images, (T, H, K * N, d), and which of them each token sees, (T, L, K * N)."""
        key, value = (part[self.rows].transpose(1, 2).flatten(2, 3) for part in (memory.key, memory.value))
        count = memory.key.shape[2]
        real = self.seen.repeat_interleave(count, dim=2)
        if memory.mask is not None:
            real = real & memory.mask.bool()[self.rows].flatten(1)[:, None]
        return KeyValue(key, value, real | ~real.any(dim=2, keepdim=True))  # no softmax over nothing


class InterleavedResampled(Interleaved):
    """As ``Interleaved``, whose blocks see the few vectors that a ``resampler`` makes of an image (Flamingo's Perceiver).

    The resampler is built as ``resampler(image_size, image_size)``. What a text looks at are no longer places in the image, so
    that there are no attention maps.
    """

    provides = frozenset({"pooled", "text", "causal", "images"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        resampler: Callable[[int, int], Projector],
        cross_every: int = 1,
        num_heads: int = 12,
        intermediate_size: int | None = None,
        dropout: float = 0.1,
        gate: float | None = 0.0,
        eps: float = 1e-6,
        qk_norm: bool = False,
        sees: str = "latest",
    ) -> None:
        blocks = (cross_every, num_heads, intermediate_size, dropout, gate, eps, qk_norm)
        super().__init__(image_size, text_size, *blocks, sees)
        self.resampler = resampler(image_size, image_size)

    def prefix_length(self, image_tokens: int) -> int:
        self.resampler.count(image_tokens)  # it refuses what it cannot read
        return 0

    def prepare(self, image: Tokens) -> list[KeyValue]:
        embeds, mask = self.resampler(image)
        return super().prepare(Tokens(embeds, mask, image.pooled))

    def cross_attentions(self) -> list[Attention]:
        return []
