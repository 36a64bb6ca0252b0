"""How a model is evaluated: precision, cache and re-ranking."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from fusionkit.errors import ConfigError, suggest

PRECISIONS = {
    **dict.fromkeys(("32-true", "32", "64-true"), None),
    **dict.fromkeys(("bf16-mixed", "bf16-true"), torch.bfloat16),
    **dict.fromkeys(("16-mixed", "16-true"), torch.float16),
}


RULES = MATCH, MATCH_AND_COSINE, DENSITY_RATIO = ("itm", "itm+cosine", "density_ratio")


@dataclass(frozen=True)
class Reranking:
    """How captions and images are matched again after the contrastive ranking.

    ``k``            candidates a query; 0: no re-ranking.
    ``rule``         "itm": the logit of a match (ALBEF, X-VLM); "itm+cosine": plus the cosine, without temperature (BLIP);
                     "density_ratio": the log-odds of a match plus the cosine over the temperature (ours, the default).
    ``chunk``        pairs scored at a time, at most.
    ``memory_bytes`` bounds the prepared images that are held at a time, and (by an estimate, ``WIDTHS``) what a fusion
                     computes with the pairs scored at a time: both are fewer where states are large.

    Why "density_ratio": a classifier of matches against negatives has the log-odds log p(match) / q(negative) (noise
    contrastive estimation, Gutmann and Hyvärinen 2010). Hard negatives are drawn from the contrastive softmax, so q itself
    grows with exp(cosine / temperature), and what ranks candidates is the sum of both. "itm" alone forgets what the
    contrastive stage knew, and a matching head that has not learnt yet ranks at random.
    """

    k: int = 32
    rule: str = "density_ratio"
    chunk: int = 256
    memory_bytes: int = 2 * 2**30

    WIDTHS = (
        8  # of a token's state, that a layer holds for a pair: itself, query, key, value and a feed-forward of four
    )

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ConfigError(f"unknown re-ranking rule '{self.rule}': {suggest(self.rule, RULES)}")
        if self.k < 0 or self.chunk < 1:
            raise ConfigError("re-ranking needs k >= 0 (0 switches it off) and chunk >= 1")


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    ``precision`` is spelt as Lightning spells it; ``quiet`` means no progress bar.
    ``cache``   a folder in which the encoded batches of a split that is re-ranked stay, and the logits of its pairs, so that
                a second or an interrupted evaluation of the same weights on the same data need not compute them again;
                None: they are kept in a temporary one.
    ``recipe``  what else than weights and data the encodings are a function of, such as the number of heads.
    """

    reranking: Reranking = field(default_factory=Reranking)
    precision: str = "32-true"
    gallery: bool = True
    quiet: bool = False
    cache: Path | str | None = None
    recipe: str = ""

    def __post_init__(self) -> None:
        if str(self.precision) not in PRECISIONS:
            hint = suggest(self.precision, PRECISIONS)
            raise ConfigError(f"unknown precision '{self.precision}' for the evaluation: {hint}")
