"""Masked language modelling with the image in view (BERT, ALBEF, UNITER)."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.losses import IGNORE, masked_cross_entropy
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import Teacher
from fusionkit.tasks.base import Records, Scorer, Task, leading_rows
from fusionkit.tasks.distillation import distil
from fusionkit.tasks.itc import CaptionBatch
from fusionkit.tasks.metrics import hits, means
from fusionkit.types import Asked, Dims, Encoded, TaskOutput


class Masking(Protocol):
    """Chooses and corrupts the tokens to predict."""

    def __call__(self, input_ids: Tensor, word_index: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids and word_index (T, L) -> corrupted ids (T, L) and targets (T, L), -100 where nothing is predicted."""
        ...


@dataclass(frozen=True)
class RandomMasking:
    """BERT's rule: a token is chosen with ``probability``; of the chosen 80% become [MASK], 10% a random token, 10% stay.

    ``whole_word``    chooses words, and with a word all its pieces. [CLS] and padding are never chosen.
    ``at_least_one``  where chance would choose none, the one with the lowest draw is (UNITER; there it is the first one).
    ``mask_sep``      [SEP] may be chosen too, as in ALBEF's published code.
    ``most``          exactly round(probability * (1 + tokens)) tokens are chosen, from 1 to this many (X-VLM, 8 at .25).
    """

    dims: Dims
    probability: float = 0.15
    whole_word: bool = False
    at_least_one: bool = False
    mask_sep: bool = False
    most: int | None = None

    def __call__(self, input_ids: Tensor, word_index: Tensor) -> tuple[Tensor, Tensor]:
        if (
            self.mask_sep
        ):  # a word of its own, the place behind the last one: its token may be the start and padding too
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            is_sep = places == (places * (word_index >= 0)).amax(dim=1, keepdim=True) + 1
            word_index = torch.where(is_sep, word_index.amax(dim=1, keepdim=True) + 1, word_index)
        draw = torch.rand(input_ids.shape, device=input_ids.device)
        if self.whole_word:
            draw = draw.gather(1, word_index.clamp(min=0))  # every piece of a word reads its word's draw
        chosen = self._choose(draw.masked_fill(word_index < 0, 1.0), word_index >= 0)
        targets = input_ids.masked_fill(~chosen, IGNORE)
        fate = torch.rand(input_ids.shape, device=input_ids.device)
        noise = torch.randint_like(input_ids, self.dims.vocab_size)
        corrupted = input_ids.masked_fill(chosen & (fate < 0.8), mask_of(self.dims))
        return torch.where(chosen & (fate >= 0.9), noise, corrupted), targets

    def _choose(self, draw: Tensor, is_word: Tensor) -> Tensor:
        """Which tokens (T, L) are chosen, from a draw in 0..1 each."""
        if self.most is not None:
            count = ((1 + is_word.sum(dim=1, keepdim=True)) * self.probability).round().clamp(1, self.most)
            return (draw.argsort(dim=1).argsort(dim=1) < count) & is_word
        chosen = draw < self.probability
        if self.at_least_one:
            chosen = chosen | ((draw == draw.amin(dim=1, keepdim=True)) & is_word)
        return chosen


class MaskedLMHead(nn.Module):
    """BERT's prediction head: dense, GELU, norm, and a decoder: the word embeddings it is handed, or where not tied its own."""

    def __init__(
        self,
        hidden_size: int,
        embed_size: int,
        vocab_size: int,
        eps: float = 1e-12,
        tied: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.activation = activation()
        self.dense = nn.Linear(hidden_size, embed_size)
        self.norm = nn.LayerNorm(embed_size, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = None if tied else nn.Parameter(torch.randn(vocab_size, embed_size) * 0.02)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """states (M, hidden_size), word_embeddings (V, embed_size) -> logits (M, V)."""
        decoder = word_embeddings if self.decoder is None else self.decoder
        return F.linear(self.norm(self.activation(self.dense(states))), decoder, self.bias)


class WordProjection(nn.Module):
    """One linear map to the vocabulary, tied to nothing and without a bias (CoCa), behind a fusion that ends in a norm."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab_size, hidden_size) * hidden_size**-0.5)

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """States (M, hidden_size) -> logits (M, V); the word embeddings are not read."""
        return F.linear(states, self.weight)


def word_head(dims: Dims, eps: float, make: Callable[[int, int], nn.Module] | None = None) -> nn.Module | None:
    """A head over the vocabulary for a task that says words, BERT's or what ``make`` builds; None where the model has its own."""
    if dims.predicts_words:
        if make is not None:
            raise ConfigError(
                "a task's head is given, but the language model says words by its own; leave it out (head=null)"
            )
        return None
    if make is not None:
        return make(dims.hidden_size, dims.vocab_size)
    return MaskedLMHead(dims.hidden_size, dims.text_size, dims.vocab_size, eps)


class MLM(Task[CaptionBatch]):
    """Predict masked caption tokens from the rest of the caption and the image; only masked positions reach the decoder.

    ``masking`` says which, by default ``RandomMasking`` with the options of the same names. ``tied`` shares the decoder with
    the word embeddings; ViLT and METER have one of its own, of the fusion's width.
    With a teacher: (1 - alpha) * cross entropy + alpha * cross entropy to its distribution for the same masked text.
    """

    needs = frozenset({"text"})
    reads = "captions"
    distribution = "softmax"
    uses_teacher = True
    encodes = False

    def __init__(
        self,
        dims: Dims,
        probability: float = 0.15,
        whole_word: bool = False,
        texts_per_image: int | None = None,
        masking: Masking | None = None,
        at_least_one: bool = False,
        mask_sep: bool = False,
        most: int | None = None,
        scorer: Scorer | None = None,
        eps: float = 1e-12,
        tied: bool = True,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__(scorer)
        self.metrics = means("token_accuracy")
        if dims.tokens:  # else weights alone are wanted
            mask_of(dims)
        if not 0 < probability <= 1:
            raise ConfigError(f"task.mlm.probability is {probability}; give a number above 0, up to 1")
        self.dims, self.texts_per_image, self.probability = dims, texts_per_image, probability
        self.masking = masking or RandomMasking(dims, probability, whole_word, at_least_one, mask_sep, most)
        width = dims.text_size if tied else dims.hidden_size
        self.head = MaskedLMHead(dims.hidden_size, width, dims.vocab_size, eps, tied, activation)

    def forward(
        self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded, teacher: Teacher | None = None
    ) -> TaskOutput:
        captions = batch["captions"]
        rows = leading_rows(captions["image_index"], self.texts_per_image)
        input_ids, targets = self.masking(captions["input_ids"][rows], captions["word_index"][rows])
        masked = (input_ids, captions["attention_mask"][rows], captions["image_index"][rows], targets != IGNORE)
        logits, targets = self._logits(model, self.head, encoded, *masked), targets[targets != IGNORE]
        loss = masked_cross_entropy(logits, targets)
        loss = distil(loss, logits, teacher, lambda t: self._logits(t.model, t.own_head, t.encoded, *masked))
        asked = Asked(logits, lambda m, task, seen: task._logits(m, task.head, seen, *masked))
        return TaskOutput(loss, logits, targets, {"token_accuracy": hits(logits, targets)}, (asked,))

    def columns(self) -> tuple[str, Any]:
        return "words", self.dims.vocab_size

    def _logits(
        self,
        model: VisionLanguageModel,
        head: nn.Module,
        encoded: Encoded,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_index: Tensor,
        is_masked: Tensor,
    ) -> Tensor:
        """Logits (M, V) at the M masked positions."""
        fused = model.fuse(encoded.memory, model.encode_text(input_ids, attention_mask), image_index)
        assert fused.text is not None
        logits: Tensor = head(fused.text[is_masked], model.text_encoder.word_embeddings.weight)
        return logits

    def predict(self, model: VisionLanguageModel, batch: CaptionBatch, encoded: Encoded) -> Records:
        """One record a masked token; the choice hangs on caption id and place only, so that every run asks the same."""
        captions = batch["captions"]
        input_ids = captions["input_ids"]
        is_masked = fixed_choice(captions["ids"], input_ids.shape[1], self.probability).to(input_ids.device)
        is_masked &= captions["word_index"] >= 0
        corrupted = input_ids.masked_fill(is_masked, mask_of(self.dims))
        masked = (corrupted, captions["attention_mask"], captions["image_index"], is_masked)
        tokens = self.dims.tokens
        logits = self._logits(model, self.head, encoded, *masked)
        predicted = logits[:, : len(tokens)].argmax(dim=-1)  # the table may have more rows than the tokenizer tokens
        return [
            {"caption_id": captions["ids"][row], "position": place, "token": tokens[token], "target": tokens[target]}
            for (row, place), token, target in zip(
                is_masked.nonzero().tolist(), predicted.tolist(), input_ids[is_masked].tolist(), strict=True
            )
        ]


def mask_of(dims: Dims) -> int:
    """The token that stands for a hidden word."""
    if dims.mask_token_id is None:
        raise ConfigError(
            "task.mlm: the tokenizer has no mask token of its own; leave mlm out of task=[...], or choose a tokenizer with one, "
            "such as bert-base-uncased"
        )
    return dims.mask_token_id


def fixed_choice(ids: list[Any], length: int, probability: float) -> Tensor:
    """Bool (T, length): a pseudo-random choice that is a function of caption id and place."""
    limit = int(probability * 2**32)
    chosen = [zlib.crc32(f"{i}/{place}".encode()) < limit for i in ids for place in range(length)]
    return torch.tensor(chosen, dtype=torch.bool).view(len(ids), length)
