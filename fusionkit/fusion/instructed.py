"""Image tokens that hang on what is asked of the image, before a language model (InstructBLIP, Dai et al. 2023)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.cross_attention import CrossAttentionLayer
from fusionkit.fusion.encoder_decoder import EncoderDecoder
from fusionkit.fusion.layers import FeedForward, Grouping, KeyValue
from fusionkit.fusion.prefix import Prefix
from fusionkit.fusion.projectors import QFormer
from fusionkit.types import Fused, Instructions, Memory, Past, Tokens


class Looked(NamedTuple):
    """What was made of I images before anything is asked of them."""

    keys: list[KeyValue]  # of each layer that reads the image


class WordLayer(nn.Module):
    """What a layer does to words behind the self-attention that they share with the queries."""

    def __init__(
        self, width: int, intermediate_size: int, dropout: float, eps: float, activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.feed_forward = FeedForward(width, intermediate_size, activation)
        self.norm_feed_forward = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """Words (R, Q, D) -> (R, Q, D)."""
        out: Tensor = self.norm_feed_forward(states + self.dropout(self.feed_forward(states)))
        return out


class InstructedQFormer(QFormer):
    """A Q-Former whose queries and the words of an instruction read one another; the queries alone read the image.

    ``vocab_size``    of the words, in a table of their own; None: the language model's.
    ``max_positions`` words of an instruction that are read; those behind are left out.
    ``no_words``      what is read where nothing is asked: the ids of a text without words, such as [CLS] [SEP].
    The other options are those of ``QFormer``.
    """

    def __init__(
        self,
        image_size: int,
        hidden_size: int,
        num_queries: int = 32,
        num_layers: int = 2,
        num_heads: int = 4,
        width: int | None = None,
        dropout: float = 0.0,
        eps: float = 1e-12,
        cross_every: int = 1,
        intermediate_size: int | None = None,
        activation: Callable[[], nn.Module] = nn.GELU,
        vocab_size: int | None = None,
        max_positions: int = 512,
        no_words: Sequence[int] = (0,),
    ) -> None:
        sizes = (num_queries, num_layers, num_heads, width, dropout, eps, cross_every, intermediate_size, activation)
        super().__init__(image_size, hidden_size, *sizes)
        self.width, self.no_words = width or hidden_size, list(no_words)
        between = intermediate_size or 4 * self.width
        # of the last layer the queries alone are read
        self.word_layers = nn.ModuleList(
            WordLayer(self.width, between, dropout, eps, activation) for _ in range(num_layers - 1)
        )
        self.positions = nn.Embedding(max_positions, self.width)
        if vocab_size is not None:
            self.know(vocab_size)

    def know(self, vocab_size: int) -> None:
        """Make the table of as many words, where there is none yet."""
        if hasattr(self, "words"):
            return
        if not self.no_words or not all(0 <= word < vocab_size for word in self.no_words):
            raise ConfigError(
                f"fusion.projector.no_words is {self.no_words}, but has to name one or more of the {vocab_size} words"
            )
        self.words = nn.Embedding(vocab_size, self.width)

    def look(self, image: Tokens) -> Looked:
        """What is the same whatever is asked."""
        readers = [layer for layer in self.layers if isinstance(layer, CrossAttentionLayer)]
        return Looked([layer.cross_attention.project(image.embeds, image.mask) for layer in readers])

    def read(self, looked: Looked, asked: Instructions, image_index: Tensor) -> Tensor:
        """Vectors (R, n, hidden_size) of R instructions, each about the image that ``image_index`` (R,) names."""
        ids, mask = (part[:, : self.positions.num_embeddings] for part in asked)
        count, keys = len(self.queries), iter(looked.keys)
        words = self.words(ids) + self.positions.weight[: ids.shape[1]]
        states = self.norm(torch.cat([self.queries.expand(len(ids), -1, -1), words], dim=1))
        seen, grouping = F.pad(mask, (count, 0), value=1), Grouping.of(image_index, len(looked.keys[0].key))
        for layer, of_words in zip(self.layers, [*self.word_layers, None], strict=True):
            states = layer.attend_self(states, layer.self_attention.project(states, seen))
            queries, words = states[:, :count], states[:, count:]
            if isinstance(layer, CrossAttentionLayer):
                queries = layer.attend_memory(queries, next(keys), grouping)
            else:
                queries = layer.feed_forward_block(queries)
            states = queries if of_words is None else torch.cat([queries, of_words(words)], dim=1)
        out: Tensor = self.map(states)
        return out

    def read_unasked(self, looked: Looked) -> Tensor:
        """Vectors (I, n, hidden_size) of images of which nothing is asked."""
        images = torch.arange(len(looked.keys[0].key), device=self.queries.device)
        ids = torch.tensor(self.no_words, device=images.device).expand(len(images), -1)
        return self.read(looked, Instructions(ids, torch.ones_like(ids)), images)

    def forward(self, image: Tokens) -> tuple[Tensor, Tensor | None]:
        return self.read_unasked(self.look(image)), None


class Instructed(nn.Module):
    """What makes a fusion hang on what is asked of an image, by its ``projector``: a base before one that reads on behind it.

    Its memory is what every instruction reads of an image; ``instruct`` makes of it that of (image, instruction) pairs.
    """

    projector: InstructedQFormer
    read_first: Callable[[Tensor, None], Memory]

    def join(self, language_model: Any) -> None:
        """As of the fusion; the words of instructions are the language model's where no ``vocab_size`` is given."""
        super().join(language_model)  # type: ignore[misc]  # of the class behind it
        if not hasattr(self.projector, "know"):
            raise ConfigError(
                f"fusion.projector is {type(self.projector).__name__}, which reads no instruction; choose "
                "fusionkit.fusion.instructed.InstructedQFormer, or fusion=prefix or encoder_decoder"
            )
        self.projector.know(language_model.word_embeddings.num_embeddings)

    @property
    def instruction_size(self) -> int:
        """How many words of instructions it knows."""
        return self.projector.words.num_embeddings

    def prepare(self, image: Tokens) -> Looked:
        """What is read of an image whatever is asked."""
        return self.projector.look(image)

    def instruct(self, memory: Looked, asked: Instructions, image_index: Tensor) -> Memory:
        """The memory of R pairs; see ``SupportsInstructions``."""
        return self.read_first(self.projector.read(memory, asked, image_index), None)

    def forward(self, memory: Memory, text: Tokens, image_index: Tensor) -> Fused:
        fused: Fused = super().forward(self._asked(memory), text, image_index)
        return fused

    def extend(self, memory: Memory, text: Tokens, image_index: Tensor, past: Past) -> tuple[Tensor, Past]:
        """As of the fusion."""
        out: tuple[Tensor, Past] = super().extend(self._asked(memory), text, image_index, past)  # type: ignore[misc]
        return out

    def _asked(self, memory: Memory) -> Memory:
        return self.read_first(self.projector.read_unasked(memory), None) if isinstance(memory, Looked) else memory


class InstructedPrefix(Instructed, Prefix):  # type: ignore[misc]  # it takes images of which nothing is asked too
    """As ``Prefix``, behind image tokens that hang on what is asked of the image."""


class InstructedEncoderDecoder(Instructed, EncoderDecoder):  # type: ignore[misc]  # likewise
    """As ``EncoderDecoder``, whose encoder reads image tokens that hang on what is asked of the image."""
