"""The contract of a fusion: any nn.Module of this shape is one, no inheritance needed."""

from typing import Any, Protocol

from torch import Tensor

from fusionkit.types import Fused, Tokens


class Fusion(Protocol):
    """Brings the tokens of images and texts together.

    Built as ``fusion(image_size=..., text_size=...)`` with the widths of the two encoders; what else it takes is its config.

    It may also have
    ``freeze_unused(needs)``    freeze the parameters that get no gradient where tasks read only these parts, as plain DDP wants;
    ``encode_unimodal(text)``           the states (T, L, D) of texts that see no image, whose first ones the model projects for
                                contrast in place of the text encoder's pooled vectors;
    ``metrics()``               scalars by name, detached, that are logged at each step as ``train/fusion_<name>``;
    ``start_from(text_layers)`` copy the upper layers that a text encoder left over.
    """

    pooled_size: int
    """Width of ``Fused.pooled``."""
    hidden_size: int
    """Width of ``Fused.text``."""
    provides: frozenset[str]
    """Of {"pooled", "text", "image", "causal", "attention", "pair"}: the parts of ``Fused`` it fills, whether it obeys a causal
    text mask, whether text tokens attend to image tokens, in the layers that ``cross_attentions()`` then lists (of the image
    alone, or of [own tokens; image; text]), and whether ``image_index`` may be (T, 2), naming two images a text.

    "text" says that image and text met as tokens: a fusion of two pooled vectors provides "pooled" alone.
    """

    def prepare(self, image: Tokens) -> Any:
        """What can be computed once for an image, whatever the text: keys and values, projections, or the tokens as they are.

        A fusion that tells the second of two images apart has ``image_types`` 2, and prepares it with ``place=1``.
        """
        ...

    def __call__(self, memory: Any, text: Tokens, image_index: Tensor) -> Fused:
        """Fuse T texts, each with the image row that ``image_index`` (T,) names in the prepared ``memory``.

        A text mask is (T, L) or, causal, (T, L, L). An image token may see only what the first text token sees.
        """
        ...


class IncrementalFusion(Fusion, Protocol):
    """A causal fusion that need not fuse a text anew for each token it grows by; the others are asked for the whole text."""

    def extend(self, memory: Any, text: Tokens, image_index: Tensor, past: Any | None) -> tuple[Tensor, Any]:
        """Text states (T, L, hidden_size) of L tokens after P earlier ones of each text, and what to pass as ``past`` next.

        The text mask is (T, L, P + L), over the earlier tokens too. Without a ``past`` these are the first tokens, and their
        mask says what an image token may see (the contract above), once and for all. A ``past`` is made of lists, tuples
        and tensors that have one row a text, so that texts can be reordered, repeated and dropped.
        """
        ...
