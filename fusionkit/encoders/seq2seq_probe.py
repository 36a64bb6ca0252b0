"""Whether an encoder-decoder reads and says as its masks and cache say, tried out on made-up texts when it is built."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fusionkit.encoders.probe import differ

LENGTH, PADDING = 6, 2  # tokens of a made-up text, and of padding behind it
ROUNDING = 1e-4  # of the largest state: what is nearer than that is equal


class Says(Protocol):
    """What is tried out."""

    def embed(self, input_ids: Tensor) -> Tensor: ...

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor: ...

    def decode(self, embeds: Tensor, memory: Tensor, mask: Tensor) -> Tensor: ...

    def decode_on(self, embeds: Tensor, memory: Tensor, mask: Tensor, past: Any) -> tuple[Tensor, Any]: ...

    def predict_words(self, states: Tensor) -> Tensor: ...


def made_up_texts(table: nn.Embedding) -> Tensor:
    """Three texts (3, L): one, and others that differ from it in the last, in the first token."""
    words = torch.arange(2, LENGTH + 2, device=table.weight.device)
    texts = words.expand(3, -1).clone()
    texts[1, -1] += 1
    texts[2, 0] += 1
    return texts % table.num_embeddings


def fault_of(model: Says, texts: Tensor, logits: Callable[[Tensor, Tensor], Tensor] | None) -> str | None:
    """What is wrong with how a model reads and says texts; ``logits`` are the library's own of two texts, if they are known."""
    embeds, real = model.embed(texts), torch.ones_like(texts)
    memory = model.encode(embeds, real)
    if memory.shape != embeds.shape or not memory.isfinite().all():
        return "its states are no numbers, or of another width than its embeddings"
    if not (differ(memory[1, 0], memory[0, 0], 0.0) and differ(memory[2, -1], memory[0, -1], 0.0)):
        return "a token of the encoder does not see the others"
    padded, mask = _padded(embeds), _padded(real)
    if differ(model.encode(padded, mask)[:, :LENGTH], memory, ROUNDING):
        return "its encoder reads padding"
    text, other, first, seen = embeds[:1], embeds[1:2], embeds[2:], real[:1]
    said = model.decode(text, memory[:1], seen)
    if said.shape != text.shape or not said.isfinite().all():
        return "its decoder's states are no numbers, or of another width"
    if differ(said[:, :-1], model.decode(other, memory[:1], seen)[:, :-1], ROUNDING):
        return "a token of the decoder sees those after it"
    if not differ(said[:, -1], model.decode(first, memory[:1], seen)[:, -1], 0.0):
        return "a token of the decoder does not see those before it"
    if not differ(said, model.decode(text, memory[2:], seen), 0.0):
        return "its decoder does not see what the encoder has read"
    if differ(model.decode(text, _padded(memory[:1]) + _behind(memory[:1]), mask[:1]), said, ROUNDING):
        return "its decoder reads the encoder's padding"
    one, past = model.decode_on(text[:, :2], memory[:1], seen, None)
    two, past = model.decode_on(text[:, 2:3], memory[:1], seen, past)
    three, _ = model.decode_on(text[:, 3:], memory[:1], seen, past)
    if differ(torch.cat([one, two, three], dim=1), said, ROUNDING):
        return "it ignores the cache of earlier keys and values"
    if logits is not None and differ(model.predict_words(said), logits(texts[:1], texts[:1]), ROUNDING):
        return "it is more than an encoder, a decoder and a head over one table of words"
    return None


def _padded(rows: Tensor) -> Tensor:
    """Rows (T, L, ...) with zeros behind each."""
    return torch.cat([rows, torch.zeros_like(rows[:, :PADDING])], dim=1)


def _behind(rows: Tensor) -> Tensor:
    """What stands in the padding of ``_padded``: the rows' first states, and zeros elsewhere."""
    return torch.cat([torch.zeros_like(rows), rows[:, :PADDING]], dim=1)
