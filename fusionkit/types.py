"""The values that cross the borders between data, model, tasks and training. Imports torch only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, NotRequired, TypeAlias, TypedDict

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32 whatever the precision of the run is, as losses and similarities need; fp64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def own_places(mask: Tensor) -> Tensor:
    """Of a mask (T, L, P + L), after P earlier tokens: whether each token sees itself, (T, L), as all but padding do."""
    earlier = mask.shape[2] - mask.shape[1]
    return mask[:, :, earlier:].diagonal(dim1=1, dim2=2)


def no_later(length: int, total: int, device: torch.device) -> Tensor:
    """Bool (L, P + L): the tokens that each of L, behind P earlier ones, may see where none sees later ones."""
    places = torch.arange(total, device=device)
    return places <= places[total - length :, None]


class Tokens(NamedTuple):
    """The states of one modality."""

    embeds: Tensor  # (B, N, D)
    mask: Tensor | None  # (B, N) or, for text that must be causal, (B, N, N); 1 = may be attended; None: all may
    pooled: Tensor  # (B, D), one vector a row, by the encoder's own rule ([CLS] or mean)

    def take(self, rows: Tensor) -> "Tokens":
        """The states of the given rows, in their order; a row may come often or never."""
        return Tokens(self.embeds[rows], None if self.mask is None else self.mask[rows], self.pooled[rows])


class Pixels(NamedTuple):
    """Images of different shapes, each at the left top of its canvas."""

    values: Tensor  # (I, 3, H, W), zeros beside an image
    mask: Tensor  # (I, H, W) bool, True = of the image


class Regions(NamedTuple):
    """What a detector found in I images, given in place of their pixels; the rows behind an image's own are zeros."""

    features: Tensor  # (I, N, F)
    positions: (
        Tensor  # (I, N, 7): left, top, right, bottom, width, height in parts of the image, and width * height (UNITER)
    )
    mask: Tensor  # (I, N) int64, 1 = a region
    class_scores: Tensor | None = None  # (I, N, C), the detector's probability of each class, the background's first


class Frames(NamedTuple):
    """Streams of I texts' pictures in place of single ones: frames of a film in their order, or several images of one text."""

    values: Tensor  # (I, F, 3, H, W), zeros behind a stream's own
    mask: Tensor  # (I, F) int64, 1 = a frame


class Sounds(NamedTuple):
    """What is heard in I recordings, given in place of pixels: log-mel spectrograms, zeros behind a recording's own steps."""

    values: Tensor  # (I, M, S), M bands of S steps in time
    mask: Tensor  # (I, S) int64, 1 = a step of the recording


class Stored(NamedTuple):
    """What the frozen tower of an image encoder made of I images before the run, given in place of their pixels."""

    states: tuple[Tensor, ...]  # (I, ...) each


class Instructions(NamedTuple):
    """What is asked of images, in the words of the part that looks at them."""

    input_ids: Tensor  # (R, Q) int64
    attention_mask: Tensor  # (R, Q) int64, 1 = token


class Fused(NamedTuple):
    """What a fusion returns for P (image, text) pairs; a part the fusion does not provide is None."""

    pooled: Tensor | None  # (P, pooled_size)
    text: Tensor | None  # (P, L, D), text states that have seen the image
    image: Tensor | None = None  # (P, N, D), image states that have seen the text


class TextRows(TypedDict, total=False):
    """All texts of one kind in a batch; a row points at its image. Targets of the kind stand beside these keys."""

    input_ids: Tensor  # (T, L) int64
    attention_mask: Tensor  # (T, L) int64, 1 = token
    word_index: Tensor  # (T, L) int64, number of the word a token belongs to; -1 for special tokens and padding
    image_index: Tensor  # (T,) int64, row of the text's image
    other_index: Tensor  # (T,) int64, row of its second image; only where the texts of a source are about two
    images: Tensor  # (T, K, 2) int64, rows of images, -1 behind the last, and the numbers of the tokens that see them first; only
    # where texts hold their images at places, of a batch not all of whose texts have one before all
    ids: list[Any]  # (T,) the data set's own caption, question or sentence ids
    instruction_ids: Tensor  # (T, Q) int64, the text by the tokenizer of what looks at images, where that is another
    instruction_mask: Tensor  # (T, Q) int64, 1 = token


class ViewRows(TypedDict):
    """V views of the images of a batch: regions that are treated as if each were an image."""

    image_index: Tensor  # (V,) int64, row of the view's image in pixel_values
    mask: Tensor  # (V, 1 + N) int64, 1 = first token, and patch in the region


class Batch(TypedDict):
    """I images and the texts that go with them; each text kind that the source has is a further key.

    Where samples have a second image, its row comes after the first ones of all samples. Where a batch has views, these
    are its images: image keys, ids and sizes have a row for each of them, and texts point at them.

    A task declares its own TypedDict with the kinds it reads, e.g. ``questions: QuestionRows``.
    """

    source: str
    image_ids: list[Any]  # (I,) the data set's own image ids
    image_keys: Tensor  # (I,) int64, equal where two rows show the same image, within a source and across ranks
    image_sizes: Tensor  # (I, 2) float, width and height in pixels that the annotations' boxes refer to
    pixel_values: NotRequired[Tensor]  # (I, 3, H, W)
    pixel_mask: NotRequired[Tensor]  # (I, H, W) bool, True = of the image; where the images of a batch differ in shape
    regions: NotRequired[Regions]  # of I images, where the source has them in place of pixels
    frames: NotRequired[Frames]  # of I streams of pictures, in place of pixels
    sounds: NotRequired[Sounds]  # of I recordings, in place of pixels
    stored: NotRequired[Stored]  # of I images, where their states are kept (assembly.image_tokens)
    views: NotRequired[ViewRows]


Images: TypeAlias = Tensor | Pixels | Regions | Frames | Sounds | Stored
"""What an image encoder reads of I images."""
Nested: TypeAlias = "Tensor | Sequence[Nested] | None"
"""Tensors with one row an image or a text, in lists and (named) tuples: rows are taken of all of them at once."""
Memory: TypeAlias = Nested
"""What a fusion made of images (``prepare``); only the fusion that made it looks inside."""
Past: TypeAlias = Nested
"""What was kept of earlier tokens of texts, such as keys and values; None before the first one."""


class Whole(NamedTuple):
    """The whole images of a batch whose images are views."""

    image: Tokens  # (I, N, Dv)
    memory: Memory


@dataclass(frozen=True)
class Encoded:
    """One batch after the two encoders: made once, read by every task of the source."""

    image: Tokens  # (I, N, Dv)
    memory: Memory  # the image as the fusion wants it, e.g. keys and values of every layer: computed once for all texts
    image_feats: Tensor  # (I, E), projected and L2-normalised
    text: dict[str, Tokens]  # by text kind
    text_feats: dict[str, Tensor]  # by text kind, (T, E)
    whole: Whole | None = None  # where the images are views


CHOICE, MARKS, NUMBERS = "choice", "marks", "numbers"


class Asked(NamedTuple):
    """What a task was asked of a batch, so that another model can be asked the very same."""

    logits: Tensor  # (R, C), what was answered, with its graph
    # (the other model, its task, the batch as it encodes it) -> its logits (R, C), of the same rows and columns
    read: Callable[[Any, Any, Encoded], Tensor]
    # of a row: one of its columns is right (CHOICE); each column is or is not (MARKS); they are no logits (NUMBERS)
    kind: str = CHOICE


class TaskOutput(NamedTuple):
    """What a task returns for training."""

    loss: Tensor  # scalar, unweighted; of several ranks each has its share: their mean is the loss of the global batch
    logits: Tensor
    targets: Tensor
    # detached, never optimised: what the task's metric of that name is updated with, or a number to take the mean over rows of
    metrics: Mapping[str, Tensor | tuple[Any, ...]] = MappingProxyType({})
    asked: tuple[Asked, ...] = ()  # what a teacher can be asked too; of several each counts as much


@dataclass(frozen=True)
class TextFormat:
    """Ids of the tokens that every text is wrapped in, and of those that stand for something else than words."""

    start: int
    end: int
    pad: int  # may be the end or the unknown word: an attention mask hides it
    mask: int | None = None  # None: the tokenizer has none, so that no word can be hidden
    unknown: int | None = None  # None: every text can be spelt

    @property
    def pads_alone(self) -> bool:
        """Whether padding has a token of its own."""
        return self.pad not in (self.start, self.end, self.unknown)


@dataclass(frozen=True)
class InstructionWords:
    """How a part that looks at images spells what is asked of them."""

    tokens: tuple[str, ...]  # the vocabulary by id
    start: int
    end: int


@dataclass(frozen=True)
class Dims:
    """The plain values that tasks are built from."""

    hidden_size: int  # width of the fused text states
    pooled_size: int  # width of the fused pooled vector
    image_size: int  # width of the image tokens
    text_size: int  # width of the text encoder's embeddings (the MLM decoder is tied to them)
    embed_size: int  # width E of the contrastive space
    vocab_size: int  # rows of the text encoder's embedding table, at least len(tokens)
    cls_token_id: int
    sep_token_id: int
    pad_token_id: int
    mask_token_id: int | None  # None: the tokenizer has none
    feature_size: int = 0  # width of what is to be told of a hidden image token (task mrm)
    mask_token_size: int = 0  # width of what stands in its place
    tokens: tuple[str, ...] = ()  # the tokenizer's vocabulary by id
    answers: tuple[str, ...] = ()  # the answer vocabulary by id; empty where the run has none
    predicts_words: bool = False  # the model is a language model with a head of its own, so that tasks need none
    encodes_prompts: bool = False  # an encoder reads prompts as whole texts, and a decoder says what follows them
    answer_tokens: tuple[tuple[int, ...], ...] = ()  # of each answer; none where the tokenizer cannot spell it
    other_ends: tuple[int, ...] = ()  # tokens that end a text too, where a language model has several
    instruction_words: InstructionWords | None = None  # where image tokens hang on what is asked

    @property
    def special_ids(self) -> frozenset[int]:
        """The tokens that are not part of a text."""
        ids = (self.cls_token_id, self.sep_token_id, self.pad_token_id, self.mask_token_id)
        return frozenset(token for token in ids if token is not None)
