"""The contracts of the two encoders: any nn.Module of this shape is one, no inheritance needed."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.types import Images, Past, Stored, Tokens


class ImageEncoder(Protocol):
    """Image tokens of what a batch has of its images."""

    hidden_size: int
    """Width of the tokens."""
    reads: str
    """"pixel_values", "regions", "frames" or "sounds": the key of a batch. With "pixel_values" images of
    different shapes come as ``Pixels``, to an encoder whose ``reads_canvases`` is True."""

    def __call__(self, images: Images) -> Tokens:
        """Tokens (I, N, hidden_size) of I images."""
        ...


class TextEncoder(Protocol):
    """Text tokens of token ids. Built with ``vocab_size=`` and, where it takes one, ``text_format=`` of the tokenizer."""

    hidden_size: int
    """Width of the tokens."""

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text that there are positions for; None where there is no bound."""
        ...

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that decoders are tied to."""
        ...

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), attention_mask (T, L), or (T, L, L) for a causal text -> tokens (T, L, hidden_size)."""
        ...


@runtime_checkable
class SupportsWeightless(Protocol):
    """An encoder that starts from files, and can be built without them for a checkpoint that brings its weights."""

    def sizes(self) -> dict[str, Any]:
        """What its files said of the architecture: plain values that a checkpoint keeps as json, for ``weightless``."""
        ...

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with which the same architecture is built of no file; ``sizes`` may be empty."""
        ...


@runtime_checkable
class SupportsMasking(Protocol):
    """An image encoder whose tokens can be hidden, and tell what was there (task mrm)."""

    num_prefix_tokens: int
    """Tokens before those that stand for a place."""
    mask_token_size: int
    """Width of what is put in a hidden token's place."""

    @property
    def feature_size(self) -> int:
        """Width of what is to be told of a hidden token."""
        ...

    def hide(self, images: Any, chosen: Tensor, filling: Tensor) -> Images:
        """The images with ``filling`` (mask_token_size,) in place of the chosen tokens, bool (I, N)."""
        ...

    def features(self, images: Any, tokens: Tokens) -> Tensor:
        """What is to be told of each token, (I, N, feature_size)."""
        ...

    def decode(self, states: Tensor) -> Tensor:
        """States (M, hidden_size) -> features (M, feature_size)."""
        ...


@runtime_checkable
class SupportsCorners(Protocol):
    """An image encoder that knows where its tokens lie."""

    def corners(self, images: Any, tokens: Tokens) -> Tensor:
        """(I, N, 4): left, top, right, bottom in parts of the image; zeros for a token that has no place."""
        ...


@runtime_checkable
class SupportsGrids(Protocol):
    """An image encoder whose tokens make a picture."""

    def grids(self, images: Any, image_index: Tensor, maps: Tensor) -> list[Tensor]:
        """Maps (T, N) over the tokens of the images that image_index (T,) names, as pictures (rows, columns)."""
        ...


@runtime_checkable
class SupportsViews(Protocol):
    """An image encoder that also encodes regions of an image as if each were one (X-VLM)."""

    def views(self, pixel_values: Tensor, image_index: Tensor, mask: Tensor) -> tuple[Tokens, Tokens]:
        """Tokens of I whole images, and of V views of the images that image_index (V,) names, with mask (V, 1 + N)."""
        ...


@runtime_checkable
class SupportsStates(Protocol):
    """An image encoder in two halves: a tower that may be frozen, and what may train behind it."""

    tower: nn.Module
    """The first half: what ``states`` are computed with."""

    def states(self, images: Images) -> Tensor:
        """What the tower makes of I images, (I, ...)."""
        ...

    def tokens(self, states: Tensor) -> Tokens:
        """The tokens that the whole encoder makes of the images of these states."""
        ...


@runtime_checkable
class SupportsExtendText(Protocol):
    """A text encoder that may keep keys and values, so that a text can grow: it does where ``is_incremental`` is True."""

    @property
    def is_incremental(self) -> bool: ...

    def extend(self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: Past) -> tuple[Tokens, Past]:
        """Tokens of L ids (T, L) at positions (T, L), after P earlier ones of each text; the mask is (T, L, P + L)."""
        ...


@runtime_checkable
class SupportsCausal(Protocol):
    """A text encoder that may be causal by itself: where ``is_causal`` is True no token sees later ones, whatever the mask says.

    Its states of a text are then those of the text under a causal mask, so that one reading serves contrast and captions (CoCa).
    """

    @property
    def is_causal(self) -> bool: ...


@runtime_checkable
class SupportsPooling(Protocol):
    """A text encoder with parameters that its pooled vector alone depends on, such as a token of its own behind the words."""

    def freeze_pooling(self) -> None:
        """Freeze them, as plain DDP wants where nothing reads that vector."""
        ...


@runtime_checkable
class SupportsPredictWords(Protocol):
    """A text encoder that is a language model with a head of its own: it has one to give where ``predicts_words`` is True."""

    @property
    def predicts_words(self) -> bool: ...

    def predict_words(self, states: Tensor) -> Tensor:
        """Last states (..., hidden_size) -> logits (..., V)."""
        ...


@runtime_checkable
class SupportsRecompute(Protocol):
    """An encoder that itself knows which of its layers can be computed anew in the backward pass."""

    def recompute(self) -> int:
        """Do so from now on; gives how many they are, 0 where none can."""
        ...


@runtime_checkable
class SupportsUpperLayers(Protocol):
    """A text encoder that may leave its upper layers to the fusion."""

    upper_layers: Sequence[nn.Module]


@runtime_checkable
class SupportsFirstToken(Protocol):
    """A text encoder that may read another token in place of each text's first one (BLIP's [ENC] and [DEC])."""

    first_token_id: int | None


def tower_of(encoder: ImageEncoder) -> nn.Module:
    """The part of an image encoder whose states can be kept where it is frozen: its tower, or all of it."""
    part = encoder.tower if isinstance(encoder, SupportsStates) else encoder
    assert isinstance(part, nn.Module)
    return part


def states_of(encoder: ImageEncoder, images: Images) -> tuple[Tensor, ...]:
    """What the tower of an image encoder makes of I images, a row of each tensor an image."""
    if isinstance(encoder, SupportsStates):
        return (encoder.states(images),)
    return tuple(part for part in encoder(images) if part is not None)


def tokens_of(encoder: ImageEncoder, images: Stored) -> Tokens:
    """The tokens of images whose states were kept."""
    if isinstance(encoder, SupportsStates):
        return encoder.tokens(*images.states)
    embeds, *mask, pooled = images.states
    return Tokens(embeds, mask[0] if mask else None, pooled)


def unsupported(encoder: ImageEncoder, members: str, purpose: str) -> ConfigError:
    """The error of an encoder without the optional members that a purpose needs."""
    return ConfigError(
        f"image_encoder: {type(encoder).__name__} has no {members}, which {purpose} needs; choose another image_encoder=NAME, or "
        "give it what fusionkit.encoders.base describes"
    )
