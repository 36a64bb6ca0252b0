"""One stream: text and image tokens side by side in one transformer (UNITER, ViLT, VisualBERT)."""

from collections.abc import Callable, Sequence, Set

import torch
from torch import Tensor, nn

from fusionkit.fusion.input_projection import NORMED, InputProjection
from fusionkit.fusion.layers import Attention, KeyValue, PreNormBlock, stack
from fusionkit.fusion.pooling import FirstText, Pooling, Streams
from fusionkit.types import Fused, Tokens


def joint_mask(text: Tokens, image: Tokens) -> Tensor:
    """The mask over [image; text] tokens: (T, N + L), or (T, N + L, N + L) where the text mask is causal.

    An image token sees the text that the first text token sees, and nothing more: a later caption token that it read
    would reach the earlier ones through it.
    """
    assert text.mask is not None
    size = image.embeds.shape[1]
    if text.mask.dim() == 2:
        return torch.cat([image_mask(text.mask, image), text.mask], dim=1)
    text_columns = torch.cat([text.mask[:, :1].expand(-1, size, -1), text.mask], dim=1)  # (T, N + L, L)
    image_columns = image_mask(text.mask, image)[:, None].expand(-1, text_columns.shape[1], -1)
    return torch.cat([image_columns, text_columns], dim=2)


def image_mask(like: Tensor, image: Tokens) -> Tensor:
    """The image's mask (T, N), of ones where it has none, in the type of another mask."""
    return like.new_ones(image.embeds.shape[:2]) if image.mask is None else image.mask.to(like.dtype)


class MergedAttention(nn.Module):
    """A transformer over the concatenated tokens.

    ``entry`` (fusionkit.fusion.input_projection) brings the tokens in, ``pool`` (fusionkit.fusion.pooling) reads one vector off.
    ``block`` makes a layer of (hidden_size, num_heads, dropout): ``PreNormBlock`` as in ViLT, or as in UNITER and VisualBERT
    ``fusionkit.fusion.bert.PostNormBlock``, which ends normalised and needs no further norm (``norm_eps`` null).
    """

    provides = frozenset({"pooled", "text", "image", "causal", "attention"})

    def __init__(
        self,
        image_size: int,
        text_size: int,
        num_layers: int = 6,
        num_heads: int = 12,
        hidden_size: int | None = None,
        dropout: float = 0.1,
        block: Callable[..., nn.Module] = PreNormBlock,
        norm_eps: float | None = 1e-5,
        entry: Callable[..., InputProjection] = NORMED,
        pool: Callable[..., Pooling] = FirstText,
    ) -> None:
        super().__init__()
        self.hidden_size = size = hidden_size or text_size
        self.entry = entry(image_size, text_size, size)
        self.image_types = self.entry.image_types
        self.blocks = stack(num_layers, lambda _: block(size, num_heads, dropout))
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(size, eps=norm_eps)
        self.pool = pool(size)
        self.pooled_size = self.pool.size

    def prepare(self, image: Tokens, place: int = 0) -> Tokens:
        return self.entry.image(image, place)

    def forward(self, memory: Tokens, text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        states, _ = self._run_both(memory, text, image_index)
        seen, told = states.tensor_split([memory.embeds.shape[1]], dim=1)
        mask = None if memory.mask is None else memory.mask[image_index]
        pooled = self.pool(Streams(told, seen, text.mask, mask))
        return Fused(pooled=pooled, text=told, image=seen[:, self.entry.own_tokens :])

    def cross_attentions(self) -> list[Attention]:
        """Each block's one attention, of which text to image is a part."""
        return [next(part for part in block.modules() if isinstance(part, Attention)) for block in self.blocks]

    def freeze_unused(self, needs: Set[str]) -> None:
        """The pooling serves the pooled vector alone."""
        if "pooled" not in needs:
            self.get_submodule("pool").requires_grad_(False)

    def extend(
        self, memory: Tokens, text: Tokens, image_index: Tensor, past: list[KeyValue] | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """The image tokens run with the first text tokens and stay as they are: they see nothing of what comes later."""
        if past is None:
            states, kept = self._run_both(memory, text, image_index)
            return states[:, memory.embeds.shape[1] :], kept
        assert text.mask is not None
        image_columns = image_mask(text.mask, memory.take(image_index))[:, None].expand(-1, text.embeds.shape[1], -1)
        return self._run(self.entry.text(text.embeds), torch.cat([image_columns, text.mask], dim=2), past)

    def _run_both(self, memory: Tokens, text: Tokens, image_index: Tensor) -> tuple[Tensor, list[KeyValue]]:
        image = memory.take(image_index)
        return self._run(torch.cat([image.embeds, self.entry.text(text.embeds)], dim=1), joint_mask(text, image), None)

    def _run(self, states: Tensor, mask: Tensor, past: list[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
        """States (T, M, D) after the blocks and the norm, and the keys and values of each block."""
        kept: list[KeyValue] = []
        pasts: Sequence[KeyValue | None] = past or [None] * len(self.blocks)
        for block, earlier in zip(self.blocks, pasts, strict=True):
            states, own = block.extend(states, mask, earlier)
            kept.append(own)
        return self.norm(states), kept
