"""The image and a text through the encoder of an encoder-decoder, whose decoder says what follows (VL-T5, OFA, PaLI, BLIP-2)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError
from fusionkit.fusion.base import EncodesAndDecodes, KeysValues
from fusionkit.fusion.layers import is_row_by_row
from fusionkit.fusion.projectors import Projector
from fusionkit.types import Fused, Tokens, own_places

LM = "text_encoder=tiny_t5, tiny_bart or another fusionkit.encoders.seq2seq.EncoderDecoderLM"


class EncoderDecoder(nn.Module):
    """A ``projector`` makes of the image what the encoder of the text encoder reads before each text; all see one another.

    Under a causal mask those first tokens that see one another are what the encoder reads: a prompt, such as a question. The
    decoder says the others, from its own start token on, and attends to all that the encoder read. So the state of the last
    token of a prompt is the decoder's first, which predicts what follows it; those of the tokens before are the encoder's.

    Tokens are put side by side before they are read, padding behind them: a model that counts columns (T5) then counts tokens.
    """

    provides = frozenset({"pooled", "text", "causal"})
    encodes_prompts = sees_prefix = True

    def __init__(self, image_size: int, text_size: int, projector: Callable[[int, int], Projector]) -> None:
        super().__init__()
        self.hidden_size = self.pooled_size = text_size
        self.projector = projector(image_size, text_size)
        self._joined: tuple[EncodesAndDecodes, ...] = ()  # in a tuple: its parameters are the text encoder's

    def join(self, language_model: EncodesAndDecodes) -> None:
        """Take the language model to read and say with."""
        if not hasattr(language_model, "decode_on"):
            raise ConfigError(
                f"fusion: {type(self).__name__} has an encoder read and a decoder say texts, but {type(language_model).__name__} "
                f"is no such pair; choose {LM}, or another fusion=NAME"
            )
        language_model.start_reading_on()
        self._joined = (language_model,)

    @property
    def language_model(self) -> EncodesAndDecodes:
        """What reads and says; ConfigError before ``join``."""
        if not self._joined:
            raise ConfigError(f"fusion: {type(self).__name__} has no language model to read with; choose {LM}")
        return self._joined[0]

    def prefix_length(self, image_tokens: int) -> int:
        return self.projector.count(image_tokens)

    def prepare(self, image: Tokens) -> "Projected":
        return self.read_first(*self.projector(image))

    def read_first(self, embeds: Tensor, mask: Tensor | None) -> "Projected":
        """The memory of what stands before texts, (I, N, D), of which those of mask (I, N) are real; None: all."""
        return Projected(embeds, torch.ones_like(embeds[..., 0], dtype=torch.bool) if mask is None else mask.bool())

    def forward(self, memory: "Projected", text: Tokens, image_index: Tensor) -> Fused:
        assert text.mask is not None
        if text.mask.dim() == 2:
            real = self._read_by_encoder(text.mask.bool())
            states = self._encode(memory, text.embeds, real, image_index).text
            return Fused(self.language_model.pool(states, real), states)
        asked, said = _halves(text.mask)
        read = self._encode(memory, text.embeds, self._read_by_encoder(asked), image_index)
        words = self._said(text.embeds, said)
        states = self.language_model.decode(words.embeds, read.memory, read.mask)
        states = _joint(states, read.text, asked, said)
        last = ((asked | said).sum(dim=1) - 1).clamp(min=0)
        return Fused(states[torch.arange(last.shape[0], device=last.device), last], states)

    def extend(
        self, memory: "Projected", text: Tokens, image_index: Tensor, past: "Said | None"
    ) -> tuple[Tensor, "Said"]:
        """As the contract says. What texts of different lengths have said is decoded anew, as keys stand in columns."""
        assert text.mask is not None
        if past is None:
            asked, said = _halves(text.mask)
            read = self._encode(memory, text.embeds, self._read_by_encoder(asked), image_index)
            now = self._said(text.embeds, said)
            begun = Said(read.memory, read.mask, None, None, None)
            if not is_row_by_row():
                begun = begun._replace(embeds=now.embeds[:, :0], length=now.length * 0)
            states, past = self._decode_on(begun, now)
            return _joint(states, read.text, asked, said), past
        real = own_places(text.mask).bool()
        row = _side_by_side(text.embeds, real)
        states, past = self._decode_on(past, Words(row.embeds, real.sum(dim=1)))
        return row.back(states), past

    def without_image(self, like: Tensor) -> "Projected":
        """What stands for one image of which there is nothing to read, on the device of ``like``."""
        return Projected(like.new_zeros(1, 0, self.hidden_size), like.new_zeros(1, 0, dtype=torch.bool))

    def encode_unimodal(self, text: Tokens) -> Tokens:
        """Texts that see no image, by the encoder; pooled is their mean."""
        assert text.mask is not None
        whole = text.mask.bool() if text.mask.dim() == 2 else _halves(text.mask)[0]
        real = self._read_by_encoder(whole)
        row = _side_by_side(text.embeds, real)
        states = row.back(self.language_model.encode(row.embeds, row.mask))
        return Tokens(states, text.mask, self.language_model.pool(states, real))

    def freeze_unused(self, needs: frozenset[str]) -> None:
        """Without an image the projector has no gradient, and the decoder none where nothing is said."""
        if not needs - {"feats"}:
            self.get_submodule("projector").requires_grad_(False)
        if "causal" not in needs:
            self.language_model.set_saying(False)

    def _read_by_encoder(self, real: Tensor) -> Tensor:
        """Bool (T, L) without the first token where the tokenizer has no start of its own."""
        if self.language_model.reads_start:
            return real
        return torch.cat([torch.zeros_like(real[:, :1]), real[:, 1:]], dim=1)

    def _encode(self, memory: "Projected", embeds: Tensor, real: Tensor, image_index: Tensor) -> "Read":
        """What the encoder makes of the real tokens (T, L) of texts, each behind its image."""
        image = memory.embeds[image_index].to(embeds.dtype)
        row = _side_by_side(torch.cat([image, embeds], dim=1), torch.cat([memory.mask[image_index], real], dim=1))
        full = row.mask.shape[1]
        longest = full if is_row_by_row() else int(row.mask.sum(dim=1).max())  # behind that there is nothing to read
        mask = row.mask[:, :longest]
        states = self.language_model.encode(row.embeds[:, :longest], mask)
        return Read(states, mask, row.back(F.pad(states, (0, 0, 0, full - longest)))[:, image.shape[1] :])

    def _said(self, embeds: Tensor, said: Tensor) -> "Words":
        """The decoder's start, which stands for the prompt's last token, and behind it the tokens that are said."""
        length = said.sum(dim=1)
        if is_row_by_row():  # nothing is said yet
            return Words(self.language_model.begin(embeds).to(embeds.dtype), length + 1)
        tokens = _side_by_side(embeds, said).embeds[:, : int(length.max())]
        return Words(torch.cat([self.language_model.begin(embeds).to(embeds.dtype), tokens], dim=1), length + 1)

    def _decode_on(self, past: "Said", now: "Words") -> tuple[Tensor, "Said"]:
        """States (T, L, D) of further words, and what to keep of all."""
        if is_row_by_row():  # all have said as much
            states, keys = self.language_model.decode_on(now.embeds, past.memory, past.mask, past.keys)
            return states, past._replace(keys=keys)
        assert past.embeds is not None
        assert past.length is not None
        before, length = past.length, now.embeds.shape[1]
        places = before[:, None] + torch.arange(length, device=before.device)
        room = torch.zeros_like(now.embeds)
        index = places[..., None].expand(-1, -1, room.shape[2])
        embeds = torch.cat([past.embeds, room], dim=1).scatter(1, index, now.embeds)
        is_even = bool((before == before[:1]).all())
        if is_even and (past.keys is not None or not past.embeds.shape[1]):
            states, keys = self.language_model.decode_on(now.embeds, past.memory, past.mask, past.keys)
            still = bool((now.length == length).all())
            return states, Said(past.memory, past.mask, embeds, before + now.length, keys if still else None)
        states = self.language_model.decode(embeds, past.memory, past.mask).gather(1, index)
        return states, Said(past.memory, past.mask, embeds, before + now.length, None)


class Projected(NamedTuple):
    """What was made of I images."""

    embeds: Tensor  # (I, N, D) what the encoder reads in their place
    mask: Tensor  # (I, N) bool, True = real


class Read(NamedTuple):
    """What the encoder made of T texts behind their images."""

    memory: Tensor  # (T, S, D) states, side by side
    mask: Tensor  # (T, S) int64, 1 = real
    text: Tensor  # (T, L, D) those of the text's tokens, at their places


class Words(NamedTuple):
    """What the decoder reads of T texts, padding behind."""

    embeds: Tensor  # (T, M, D)
    length: Tensor  # (T,) how many are real


class Said(NamedTuple):
    """What is kept of T texts that grow."""

    memory: Tensor  # (T, S, D) what the encoder read
    mask: Tensor  # (T, S)
    embeds: Tensor | None  # (T, M, D) what the decoder read, padding behind; None: it is never decoded anew
    length: Tensor | None  # (T,) how many of them are real
    keys: tuple[KeysValues, KeysValues] | None  # its keys and values, of them and of the memory; None: decoded anew


class Row(NamedTuple):
    """Tokens side by side, padding behind."""

    embeds: Tensor  # (T, N, D)
    mask: Tensor  # (T, N) int64, 1 = real
    place: Tensor  # (T, N) where each token now stands

    def back(self, states: Tensor) -> Tensor:
        """States (T, N, D) at the places that their tokens came from; zeros in the others."""
        states = states * self.mask[..., None].to(states.dtype)
        return states.gather(1, self.place[..., None].expand(-1, -1, states.shape[2]))


def _side_by_side(embeds: Tensor, real: Tensor) -> Row:
    """The real (T, N) of tokens (T, N, D), in their order, before the others."""
    count = real.sum(dim=1, keepdim=True)
    place = torch.where(real, real.cumsum(dim=1), count + (~real).cumsum(dim=1)) - 1
    moved = torch.zeros_like(embeds).scatter(1, place[..., None].expand_as(embeds), embeds)
    columns = torch.arange(real.shape[1], device=real.device)
    return Row(moved, (columns < count).long(), place)


def _halves(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Of a causal mask (T, L, L): the first tokens that see one another, and the real ones behind them, bool (T, L) each."""
    real, places = mask.diagonal(dim1=1, dim2=2).bool(), torch.arange(mask.shape[1], device=mask.device)
    prompt = mask[:, 0].sum(dim=1, keepdim=True).clamp(min=1)
    asked = places < prompt
    return asked, real & ~asked


def _joint(spoken: Tensor, read: Tensor, asked: Tensor, said: Tensor) -> Tensor:
    """States (T, L, D) of whole texts: the encoder's (T, L, D), and from the end of a prompt on the decoder's (T, M, D)."""
    index = said.cumsum(dim=1)[..., None].expand(-1, -1, spoken.shape[2])
    ends = asked.cumsum(dim=1) == asked.sum(dim=1, keepdim=True)  # the last token of a prompt, and all behind it
    return torch.where(ends[..., None], spoken.gather(1, index), read.to(spoken.dtype))
