"""Word-region alignment by optimal transport (UNITER), an option of image-text matching."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.errors import ConfigError
from fusionkit.types import Fused, at_least_fp32

FAR = 1e4  # added to a denominator, so that padding has next to no mass (UNITER)


@dataclass(frozen=True)
class Alignment:
    """``weight`` times the cost of transporting the words of a pair to its image tokens, less for true pairs, more for false.

    (sum over true pairs - sum over false pairs) / pairs, by cosine distances between fused states.
    ``image_prefix``  null: every token takes part (UNITER); else [CLS], [SEP] and so many first image tokens do not (ViLT: 1).
    """

    weight: float = 0.1
    beta: float = 0.5
    iterations: int = 50
    image_prefix: int | None = None

    def __post_init__(self) -> None:
        if self.beta <= 0 or self.iterations < 1:
            raise ConfigError(
                f"alignment.beta is {self.beta} and alignment.iterations {self.iterations}; give a beta above 0 and at least 1"
            )

    def __call__(self, fused: Fused, text_mask: Tensor, image_mask: Tensor | None, targets: Tensor) -> Tensor:
        """The weighted loss (P,) of each of P pairs with targets (P,), 1 for a true one; masks (P, L) and (P, N)."""
        assert fused.text is not None
        assert fused.image is not None
        if image_mask is None:
            image_mask = torch.ones_like(fused.image[..., 0])
        if self.image_prefix is not None:
            text_mask, image_mask = words_alone(text_mask), image_mask.clone()
            image_mask[:, : self.image_prefix] = 0
        cost = cosine_cost(at_least_fp32(fused.text), at_least_fp32(fused.image), text_mask.bool(), image_mask.bool())
        plan = transport_plan(cost.detach(), text_mask.bool(), image_mask.bool(), self.beta, self.iterations)
        distances = (cost * plan).sum(dim=(1, 2))
        return self.weight * distances * (2 * targets - 1)


def words_alone(mask: Tensor) -> Tensor:
    """A text mask (P, L) without the first and the last real token."""
    inner = mask.clone()
    inner[:, 0] = 0
    inner[torch.arange(len(mask), device=mask.device), mask.sum(dim=1) - 1] = 0
    return inner


def cosine_cost(words: Tensor, regions: Tensor, word_mask: Tensor, region_mask: Tensor) -> Tensor:
    """1 - cosine of states (P, L, D) and (P, N, D), 0 at padding: (P, L, N). Masks are bool, (P, L) and (P, N)."""
    words, regions = F.normalize(words, dim=-1, eps=1e-5), F.normalize(regions, dim=-1, eps=1e-5)
    cost = 1 - words @ regions.transpose(1, 2)
    return cost.masked_fill(~(word_mask[:, :, None] & region_mask[:, None]), 0.0)


@torch.no_grad()
def transport_plan(cost: Tensor, word_mask: Tensor, region_mask: Tensor, beta: float, iterations: int) -> Tensor:
    """IPOT (Xie et al. 2018, arXiv 1802.04307, one inner step): the plan (P, L, N) between two uniform distributions.

    Exact for many iterations; ``beta`` is the strength of the proximal term.
    """
    both = (word_mask[:, :, None] & region_mask[:, None]).to(cost.dtype)
    word_count, region_count = (mask.sum(dim=1)[:, None].to(cost.dtype) for mask in (word_mask, region_mask))
    kernel, plan = torch.exp(-cost / beta) * both, both
    word_scale = word_mask.to(cost.dtype) / word_count  # (P, L)
    for _ in range(iterations):
        mixed = kernel * plan
        region_scale = 1 / (region_count * (word_scale[:, None] @ mixed).squeeze(1) + FAR * ~region_mask)  # (P, N)
        word_scale = 1 / (word_count * (mixed @ region_scale[..., None]).squeeze(2) + FAR * ~word_mask)
        plan = word_scale[..., None] * mixed * region_scale[:, None]
    return plan
