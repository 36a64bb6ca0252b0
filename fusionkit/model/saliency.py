"""Where a text looks in an image: attention, and GradCAM on it (ALBEF). For weak grounding and for pictures.

Put the model in evaluation mode first. Any fusion that provides "attention" will do; ``layer`` counts the layers in which its
text attends to the image from 0, None is the middle one (of six the third, ALBEF's choice).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.encoders.base import SupportsGrids
from fusionkit.errors import ConfigError
from fusionkit.fusion.base import SupportsAttentionMaps
from fusionkit.fusion.layers import Attention, attention_weights
from fusionkit.model.model import VisionLanguageModel
from fusionkit.types import Fused, Images, Tokens

FINE = 32  # cells a side between which the edges of a box may lie
NOTHING = 1e-30  # far below any map's values, and more on a large area than on a small one
Score = Callable[[Fused], Tensor]  # of T fused pairs, (T,): what GradCAM explains, such as the logit of a match


@torch.no_grad()
def attention_maps(
    model: VisionLanguageModel, image: Tokens, text: Tokens, image_index: Tensor, layer: int | None = None
) -> Tensor:
    """What each text token gives to each token of its image in one layer, (T, L, N), mean over the heads.

    Sums are 1 in cross-attention, and at most 1 where one attention also reads the text.
    """
    _, (weights,) = _watched_fusion(model, image, text, image_index, [find_layer(model, layer)])
    return _to_image(weights, text, image).float().mean(dim=1)


@torch.no_grad()
def attention_weights_of(model: VisionLanguageModel, image: Tokens, text: Tokens, image_index: Tensor) -> Tensor:
    """What each text token gives to each token of its image, by layer and head: (layers, T, H, L, N).

    Of the layers in which the text attends to the image, from the first. ConfigError where the fusion has none.
    """
    _, seen = _watched_fusion(model, image, text, image_index, attention_layers(model))
    return torch.stack([_to_image(weights, text, image).float() for weights in seen])


def gradcam(
    model: VisionLanguageModel,
    score: Score,
    image: Tokens,
    text: Tokens,
    image_index: Tensor,
    layer: int | None = None,
) -> Tensor:
    """How much each attention of a text token to an image token speaks for the score, (T, L, N), 0 at padding (ALBEF).

    Attention times the positive part of the score's gradient with respect to it, mean over the heads.
    """
    assert text.mask is not None
    with torch.inference_mode(False), torch.enable_grad():
        fused, (weights,) = _watched_fusion(model, image, text, image_index, [find_layer(model, layer)])
        (gradient,) = torch.autograd.grad(score(fused).sum(), weights)
    cam = weights.detach().float() * gradient.float().clamp(min=0)
    return _to_image(cam, text, image).mean(dim=1) * text.mask[..., None]


def over_words(maps: Tensor, text_mask: Tensor) -> Tensor:
    """One map a phrase (T, N): the mean of (T, L, N) over its tokens."""
    weights = text_mask.to(maps.dtype)[..., None]
    return (maps * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def pictures(model: VisionLanguageModel, images: Images, image_index: Tensor, maps: Tensor) -> Tensor | None:
    """Maps (T, N) over the tokens of one image as pictures (T, rows, columns); None where its tokens make none (regions)."""
    encoder = model.image_encoder
    return torch.stack(encoder.grids(images, image_index, maps)) if isinstance(encoder, SupportsGrids) else None


def best_rectangles(maps: Sequence[Tensor], alpha: float) -> Tensor:
    """The rectangle with most of each of T maps (rows, columns) by sum / area ** alpha: corners (T, 4) in 0..1.

    Where a map is coarser than ``FINE`` cells a side, its edges lie between the cells too: it is made finer first, as ALBEF
    does. A map of zeros, which speaks for no place, gives the whole image.
    """
    if len({map.shape for map in maps}) > 1:
        return torch.cat([best_rectangles([map], alpha) for map in maps])
    factor = max(1, FINE // max(maps[0].shape))
    stacked = torch.stack(list(maps))[:, None].double()
    fine = F.interpolate(stacked, scale_factor=factor, mode="bicubic")[:, 0].clamp(min=0)
    high, wide = fine.shape[1:]
    sums = F.pad((fine + NOTHING).cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))  # (T, high + 1, wide + 1)
    top, bottom = _spans(high, fine.device)
    left, right = _spans(wide, fine.device)
    rows = sums[:, bottom] - sums[:, top]  # (T, spans, wide + 1)
    inside = rows[:, :, right] - rows[:, :, left]  # (T, spans of rows, spans of columns)
    areas = (bottom - top).double()[:, None] * (right - left).double()
    best = (inside / areas**alpha).flatten(1).argmax(dim=1)
    down, across = best // len(left), best % len(left)
    corners = [left[across] / wide, top[down] / high, right[across] / wide, bottom[down] / high]
    return torch.stack(corners, dim=1).to(maps[0].dtype)


def _spans(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each span of cells begins, and where it ends."""
    first, last = torch.triu_indices(side + 1, side + 1, offset=1, device=device)
    return first, last


def best_proposal(map: Tensor, proposals: Tensor, size: tuple[int, int], alpha: float) -> int:
    """The number of the proposal (P, 4), xywh in pixels of an image of that width and height, that holds most of a map.

    By the sum of the map (side, side), made as large as the image, over area ** alpha (ALBEF's grounding evaluation).
    """
    width, height = size
    large = F.interpolate(map[None, None].float(), size=(height, width), mode="bicubic")[0, 0]
    scores = []
    for x, y, w, h in proposals.tolist():
        rows, columns = (slice(max(int(low), 0), max(int(low + size), 0)) for low, size in ((y, h), (x, w)))
        scores.append(large[rows, columns].sum() / max(w * h, 1) ** alpha)
    return int(torch.stack(scores).argmax())


def _watched_fusion(
    model: VisionLanguageModel, image: Tokens, text: Tokens, image_index: Tensor, layers: Sequence[Attention]
) -> tuple[Fused, list[Tensor]]:
    """The fused texts and all weights (T, H, queries, keys) of some layers.

    Each text has an image row of its own, so that rows agree.
    """
    image, text = _copied(image.take(image_index)), _copied(text)
    if torch.is_grad_enabled():
        image.embeds.requires_grad_()  # so that a frozen fusion has gradients too
    with ExitStack() as stack:
        seen = [stack.enter_context(_watching(layer)) for layer in layers]
        fused = model.fuse(model.fusion.prepare(image), text, torch.arange(len(text.embeds), device=image_index.device))
    return fused, [weights[0] for weights in seen]


def _to_image(weights: Tensor, text: Tokens, image: Tokens) -> Tensor:
    """Of weights (T, H, queries, keys) those of text tokens to image tokens, (T, H, L, N).

    Where one attention reads [own tokens; image; text], both as queries and as keys, they are a corner of the matrix; in
    cross-attention they are all but the keys that a fusion puts before the image.
    """
    length, size = text.embeds.shape[1], image.embeds.shape[1]
    queries, keys = weights.shape[2:]
    last = keys if queries == length else keys - length
    return weights[:, :, queries - length :, last - size : last]


def _copied(tokens: Tokens) -> Tokens:
    """Tokens that may have gradients: what was made in inference mode may not."""
    mask = None if tokens.mask is None else tokens.mask.clone()
    return Tokens(tokens.embeds.clone(), mask, tokens.pooled.clone())


def attention_layers(model: VisionLanguageModel) -> Sequence[Attention]:
    """The layers in which the text attends to the image; ConfigError where the fusion has none."""
    if not isinstance(model.fusion, SupportsAttentionMaps):
        raise ConfigError(
            f"{type(model.fusion).__name__} has no attention of the text to the image to look at; "
            "cross_attention, co_attention and merged_attention are fusions that have"
        )
    return model.fusion.cross_attentions()


def find_layer(model: VisionLanguageModel, layer: int | None) -> Attention:
    """The attention of that number; ConfigError where the fusion has none, or not so many."""
    layers = attention_layers(model)
    number = (len(layers) - 1) // 2 if layer is None else layer
    if not 0 <= number < len(layers):
        raise ConfigError(
            f"layer is {layer}, but {type(model.fusion).__name__} has {len(layers)} layers that look at the image; give 0 to "
            f"{len(layers) - 1}, or null for the middle one"
        )
    return layers[number]


@contextmanager
def _watching(attention: Attention) -> Iterator[list[Tensor]]:
    """Collects the weights (B, H, L, N) that a layer computes, call by call."""
    seen: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
        seen.append(attention_weights(query, key, mask))
        return seen[-1].to(value.dtype) @ value

    usual, attention.attend = attention.attend, attend
    try:
        yield seen
    finally:
        attention.attend = usual
