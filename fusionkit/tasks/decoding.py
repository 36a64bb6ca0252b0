"""A model with a prediction head as the steps of a generation: with a cache of keys and values, or by recomputation."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fusionkit.fusion.base import SupportsInstructions
from fusionkit.model.model import Reader, VisionLanguageModel
from fusionkit.tasks.generation import DecoderState, GenerationConfig
from fusionkit.types import Encoded, Instructions, Memory, Nested, TextRows, Tokens


def prefix_mask(attention_mask: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Causal mask (T, L, L) of texts with a mask (T, L): a token sees itself and those before it.

    The first ``prefix`` (T,) tokens of a text, if given, also see one another (a prefix language model, T5 and UniLM).
    """
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    visible = places[None, None, :] <= places[None, :, None]
    if prefix is not None:
        visible = visible | ((places < prefix[:, None])[:, None] & (places < prefix[:, None])[:, :, None])
    return visible.to(attention_mask.dtype) * attention_mask[:, None]


class Prompts(NamedTuple):
    """What R texts start with, padded on the right."""

    input_ids: Tensor  # (R, P) int64
    attention_mask: Tensor  # (R, P) int64, 1 = token
    image_index: Tensor  # (R,) the image row of each
    prefix: Tensor  # (R,) how many of the first tokens see one another; 1 for a plain causal text
    asked: Instructions | None = None  # what is asked of each image, of a fusion that reads such


class DecoderInputs(NamedTuple):
    """What both ways share: the model, the head over its fused states (None: the model's own), and the images."""

    model: Reader
    head: nn.Module | None
    memory: Memory
    prompts: Prompts

    def logits(self, states: Tensor) -> Tensor:
        """Fused states (R, D) -> (R, V)."""
        return word_logits(self.model, self.head, states)


@runtime_checkable
class SupportsSaying(Protocol):
    """A task whose reply is words, said token by token."""

    def said(self, model: VisionLanguageModel, batch: Any, encoded: Encoded) -> DecoderInputs:
        """What the reply to each text, or to each image, follows."""
        ...

    def saying(self) -> GenerationConfig:
        """What may be said."""
        ...


class CachedDecoderState:
    """Each token is encoded and fused once; the state holds the keys and values of those before it, of all layers.

    Padding between a prompt and what follows it is masked, and positions count without it.
    """

    def __init__(self, shared: DecoderInputs) -> None:
        self.shared = shared

    def start(self) -> tuple[Tensor, Any]:
        prompts = self.shared.prompts
        lengths = prompts.attention_mask.sum(dim=1)
        places = torch.arange(prompts.input_ids.shape[1], device=lengths.device).expand_as(prompts.input_ids)
        mask = prefix_mask(prompts.attention_mask, prompts.prefix)
        states, past = self.shared.model.extend(
            self.shared.memory, prompts.input_ids, mask, places, prompts.image_index, None
        )
        last = states[torch.arange(lengths.shape[0], device=lengths.device), lengths - 1]
        return self.shared.logits(last), (past, prompts.attention_mask, lengths, prompts.image_index)

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        past, seen, lengths, image_index = state
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        states, past = self.shared.model.extend(
            self.shared.memory, tokens[:, None], seen[:, None], lengths[:, None], image_index, past
        )
        return self.shared.logits(states[:, 0]), (past, seen, lengths + 1, image_index)

    def select(self, state: Any, rows: Tensor) -> Any:
        return select(state, rows)


class RecomputedDecoderState:
    """The whole text is encoded and fused anew at each step, for fusions and encoders that keep no keys and values."""

    def __init__(self, shared: DecoderInputs) -> None:
        self.shared = shared

    def start(self) -> tuple[Tensor, Any]:
        prompts = self.shared.prompts
        return self._last_logits(prompts), prompts

    def advance(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        lengths = state.attention_mask.sum(dim=1, keepdim=True)
        room = torch.zeros_like(state.input_ids[:, :1])
        grown = Prompts(
            torch.cat([state.input_ids, room], dim=1).scatter(1, lengths, tokens[:, None]),
            torch.cat([state.attention_mask, room], dim=1).scatter(1, lengths, 1),
            state.image_index,
            state.prefix,
            state.asked,
        )
        return self._last_logits(grown), grown

    def select(self, state: Any, rows: Tensor) -> Any:
        return select(state, rows)

    def _last_logits(self, text: Prompts) -> Tensor:
        last = text.attention_mask.sum(dim=1) - 1
        states = fuse_causal(self.shared.model, self.shared.memory, text)
        return self.shared.logits(states[torch.arange(last.shape[0], device=last.device), last])


def decoder_state_of(shared: DecoderInputs) -> DecoderState:
    """The quicker way that the model allows."""
    memory, prompts = instructed(shared.model, shared.memory, shared.prompts)
    shared = shared._replace(memory=memory, prompts=prompts)
    return CachedDecoderState(shared) if shared.model.is_incremental else RecomputedDecoderState(shared)


def fuse_causal(model: Reader, memory: Memory, text: Prompts, encoded: Tokens | None = None) -> Tensor:
    """Fused states (R, P, D) of whole texts, each token of which has seen none after it but those of its prefix.

    ``encoded`` are their tokens where a text encoder that is causal by itself has read them already.
    """
    memory, text = instructed(model, memory, text)
    mask = prefix_mask(text.attention_mask, text.prefix)
    tokens = model.encode_text(text.input_ids, mask) if encoded is None else encoded._replace(mask=mask)
    fused = model.fuse(memory, tokens, text.image_index)
    assert fused.text is not None
    return fused.text


def asked_of(rows: TextRows) -> Instructions:
    """Texts as instructions, by a tokenizer of their own where there is one."""
    ids, mask = rows["input_ids"], rows["attention_mask"]
    return Instructions(rows.get("instruction_ids", ids), rows.get("instruction_mask", mask))


def instructed(model: Reader, memory: Memory, text: Prompts) -> tuple[Memory, Prompts]:
    """Where image tokens hang on what is asked: the memory of each (image, instruction) pair, and texts that name theirs."""
    if text.asked is None:
        return memory, text
    memory, index = ask(model, memory, text.image_index, text.asked)
    return memory, text._replace(image_index=index, asked=None)


def ask(model: Reader, memory: Memory, image_index: Tensor, asked: Instructions) -> tuple[Memory, Tensor]:
    """The memory of each different pair of an image and what is asked of it, and which pair (R,) each of R texts has.

    Of a fusion that reads no instructions both are what they were.
    """
    if not isinstance(model.fusion, SupportsInstructions):
        return memory, image_index
    rows = torch.cat([image_index[:, None], *asked], dim=1)
    if not len(rows):  # as in ``Reader.fuse``: a blank row, which no text names
        rows = rows.new_zeros(1, rows.shape[1])
    pairs, place = rows.unique(dim=0, return_inverse=True)
    memory = model.fusion.instruct(memory, Instructions(*pairs[:, 1:].chunk(2, dim=1)), pairs[:, 0])
    return memory, place[: len(image_index)]


def word_logits(model: Reader, head: nn.Module | None, states: Tensor) -> Tensor:
    """Fused states (..., D) -> logits (..., V), by a task's head, which is tied to the embeddings, or the model's own."""
    if head is None:
        return model.predict_words(states)
    logits: Tensor = head(states, model.text_encoder.word_embeddings.weight)
    return logits


def select(state: Nested, rows: Tensor) -> Any:
    """The given rows of all tensors in a state."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, list | tuple):
        parts = [select(part, rows) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state
