"""The contract of a fusion, and of what it may support beside it: any nn.Module of this shape is one, no inheritance needed."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.layers import Attention
from fusionkit.types import Fused, Instructions, Memory, Past, Tokens

KeysValues = list[tuple[Tensor, Tensor]]
"""Of each layer of a language model, (T, heads, tokens, width)."""
BeforeLayer = Callable[[int, Tensor], Tensor]
"""What a layer of a language model, by its number, reads in place of the states (T, L, D) that come to it."""


class Fusion(Protocol):
    """Brings the tokens of images and texts together.

    Built as ``fusion(image_size=..., text_size=...)`` with the widths of the two encoders; what else it takes is its config.
    """

    pooled_size: int
    """Width of ``Fused.pooled``."""
    hidden_size: int
    """Width of ``Fused.text``."""
    provides: frozenset[str]
    """Of {"pooled", "text", "image", "causal", "attention", "pair", "images"}: the parts of ``Fused`` it fills, whether it
    obeys a causal text mask, whether text tokens attend to image tokens (``SupportsAttentionMaps``), whether ``image_index``
    may be (T, 2), naming two images a text, and whether it may be (T, K, 2), naming up to K images and their places.

    "text" says that image and text met as tokens: a fusion of two pooled vectors provides "pooled" alone.
    """

    def prepare(self, image: Tokens) -> Memory:
        """What can be computed once for an image, whatever the text: keys and values, projections, or the tokens as they are."""
        ...

    def __call__(self, memory: Memory, text: Tokens, image_index: Tensor) -> Fused:
        """Fuse T texts, each with the image row that ``image_index`` (T,) names in the prepared ``memory``.

        A text mask is (T, L) or, causal, (T, L, L). An image token may see only what the first text token sees.

        Where ``image_index`` is (T, K, 2), [..., 0] are rows of images in the order of their places, -1 behind the last, and
        [..., 1] the numbers of the tokens (columns of the mask) that see them first; no token before does.
        """
        ...


@runtime_checkable
class SupportsExtend(Protocol):
    """A causal fusion that need not fuse a text anew for each token it grows by; the others are asked for the whole text."""

    def extend(self, memory: Memory, text: Tokens, image_index: Tensor, past: Past) -> tuple[Tensor, Past]:
        """Text states (T, L, hidden_size) of L tokens after P earlier ones of each text, and what to pass as ``past`` next.

        The text mask is (T, L, P + L), over the earlier tokens too. With ``past`` None these are the first tokens, and their
        mask says what an image token may see (the contract above), once and for all. Images that have places stand within the
        first tokens, or right behind them.
        """
        ...


class LentLayers(Protocol):
    """What a decoder has of its own where it borrows the rest of a fusion (BLIP): a module, with parameters of its own."""

    def within(self, fusion: Fusion) -> Fusion:
        """The fusion with these parts in place of its own."""
        ...


@runtime_checkable
class SupportsUnimodal(Protocol):
    """A fusion whose layers also read a text that sees no image (BLIP, a language model)."""

    def encode_unimodal(self, text: Tokens) -> Tokens:
        """Its tokens; the model projects their pooled vectors for contrast, in place of the text encoder's."""
        ...


@runtime_checkable
class SupportsNoImage(Protocol):
    """A fusion that can be given a text without any image, and still says what follows it."""

    def without_image(self, like: Tensor) -> Memory:
        """What stands for one image of which there is nothing to read, on the device of ``like``."""
        ...


@runtime_checkable
class SupportsInstructions(Protocol):
    """A fusion whose image tokens hang on what is asked of the image (InstructBLIP): an image is read once, and asked often."""

    @property
    def instruction_size(self) -> int:
        """How many words it knows."""
        ...

    def instruct(self, memory: Memory, asked: Instructions, image_index: Tensor) -> Memory:
        """The memory of R (image, instruction) pairs, a row each, of prepared images; ``image_index`` (R,) names each pair's.

        ``forward`` and ``extend`` take it in place of that of images, of which nothing is asked.
        """
        ...


@runtime_checkable
class SupportsTwoImages(Protocol):
    """A fusion that may tell the second of two images apart (NLVR2): it does where ``image_types`` is 2."""

    image_types: int

    def prepare(self, image: Tokens, place: int = 0) -> Memory:
        """As of any fusion; ``place`` 1 prepares second images."""
        ...


@runtime_checkable
class SupportsAttentionMaps(Protocol):
    """A fusion whose text tokens attend to image tokens (it provides "attention")."""

    def cross_attentions(self) -> Sequence[Attention]:
        """The layers in which they do: over the image alone, or over [own tokens; image; text]."""
        ...


@runtime_checkable
class SupportsTextLayers(Protocol):
    """A fusion that can start from layers of a text encoder."""

    def start_from(self, text_layers: Sequence[nn.Module]) -> None:
        """Copy the upper layers that a text encoder left over."""
        ...


@runtime_checkable
class SupportsMetrics(Protocol):
    """A fusion that reports numbers of its latest pass."""

    def metrics(self) -> dict[str, Tensor]:
        """Scalars by name, detached, that are logged at each step as ``train/fusion_<name>``."""
        ...


@runtime_checkable
class SupportsFreezing(Protocol):
    """A fusion of which some parameters serve some of its outputs alone."""

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Freeze the parameters that get no gradient where tasks read only these parts, as plain DDP wants."""
        ...


class ReadsOn(Protocol):
    """A causal language model that reads embeddings: words, or what stands in their place."""

    @property
    def max_length(self) -> int | None:
        """The most tokens that it reads at once; None where there is no bound."""
        ...

    @property
    def key_size(self) -> int:
        """How many numbers the keys and values of one token are, over all layers."""
        ...

    @property
    def is_recomputed(self) -> bool:
        """Whether its layers are computed anew in the backward pass, so that nothing can be read once for several texts."""
        ...

    @property
    def head(self) -> nn.Module | None:
        """What predicts words from its states, where that is not the transpose of its embeddings."""
        ...

    @property
    def changing_positions(self) -> str | None:
        """What its positions are called where they hang on the length of the whole text, so that it cannot be read on."""
        ...

    def start_reading_on(self) -> None:
        """From now on texts are only embedded by it: the fusion has it read them."""
        ...

    def read(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """The last states (T, L, D) of embeddings (T, L, D) at positions (T, L); bool mask (T, L, L), True = is seen."""
        ...

    def read_on(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """As ``read``, after P earlier tokens with their keys and values, mask (T, L, P + L); and those of all P + L."""
        ...


class ReadsBetween(ReadsOn, Protocol):
    """A causal language model whose states a fusion may change before each of its layers."""

    def open_layers(self) -> tuple[int, int]:
        """From now on calls may bring a ``before_layer``: how many layers there are, and the width of the states between them."""
        ...

    def read(
        self, embeds: Tensor, mask: Tensor, positions: Tensor, before_layer: BeforeLayer | None = None
    ) -> Tensor: ...

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        past: KeysValues | None,
        before_layer: BeforeLayer | None = None,
    ) -> tuple[Tensor, KeysValues]: ...


class EncodesAndDecodes(Protocol):
    """An encoder-decoder language model over embeddings: words, or what stands in their place."""

    reads_start: bool
    """Whether its encoder reads the first token of a text: not where the tokenizer has no start of its own."""

    def start_reading_on(self) -> None:
        """From now on texts are only embedded by it: the fusion has it read and say them."""
        ...

    def set_saying(self, trains: bool) -> None:
        """Whether decoder and head train."""
        ...

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """The encoder's states (T, N, D) of embeddings (T, N, D) with mask (T, N), padding behind the others."""
        ...

    def pool(self, states: Tensor, real: Tensor) -> Tensor:
        """One vector (T, D) of the encoder's states (T, N, D), of which those of ``real`` (T, N) count."""
        ...

    def begin(self, embeds: Tensor) -> Tensor:
        """What the decoder reads first, (T, 1, D), for as many texts as ``embeds`` has rows."""
        ...

    def decode(self, embeds: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The decoder's states (T, L, D) of what is said, each seeing those before it and the memory (T, N, D), mask (T, N)."""
        ...

    def decode_on(
        self, embeds: Tensor, memory: Tensor, mask: Tensor, past: tuple[KeysValues, KeysValues] | None
    ) -> tuple[Tensor, tuple[KeysValues, KeysValues]]:
        """As ``decode``, behind earlier words whose keys and values, their own and the memory's, are given; and those of all."""
        ...


@runtime_checkable
class SupportsLanguageModel(Protocol):
    """A fusion that has a language model read on, behind or beside what the image became, or looking at it between its layers."""

    encodes_prompts: bool
    """Whether a prompt is a whole text, which an encoder reads, and what follows it another, which a decoder says."""

    @property
    def sees_prefix(self) -> bool:
        """Whether the tokens of a text see later ones where its mask lets them, as a prefix language model's do."""
        ...

    def join(self, language_model: Any) -> None:
        """Take the text encoder to read on with, ``ReadsOn`` or ``EncodesAndDecodes``; its parameters stay its own."""
        ...

    def prefix_length(self, image_tokens: int) -> int:
        """How many positions of the language model so many image tokens take, maybe 0; ConfigError where they cannot be read."""
        ...


def require_several_images(fusion: Fusion, where: str = "a conversation") -> None:
    """Raise ConfigError for a fusion that takes one image a text, where there is a text that holds its images otherwise."""
    if "images" not in fusion.provides:
        raise ConfigError(
            f"fusion: {type(fusion).__name__} takes one image a text, before all of it, but {where} has several, or one behind "
            "the first turn of the user; choose fusion=interleaved, interleaved_resampled or prefix, or leave such rows out"
        )
