"""An encoder-decoder language model of transformers as the text half (T5, BART): its encoder reads, its decoder says.

The one file that touches the caches and heads of transformers' encoder-decoders (``language.py`` has those of causal models).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, DynamicCache, EncoderDecoderCache

from fusionkit.encoders.frozen import ADAPTER, BASE
from fusionkit.encoders.language_files import (
    build_language_model,
    check_vocabulary,
    forget_noise,
    listed_ends,
    load_language_model,
)
from fusionkit.encoders.probe import TextAbilities, first_line, freeze, undisturbed, unreached_parameters
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.encoders.seq2seq_probe import fault_of, made_up_texts
from fusionkit.encoders.tower import CACHES, KeysValues, pad_as, quiet, word_table
from fusionkit.errors import ConfigError
from fusionkit.types import TextFormat, Tokens

CHOOSE = "choose a family of plain attention, such as t5, mt5 or bart"
SAYING = ("decoder.", "head.")  # the names of what says


class EncoderDecoderLM(nn.Module):
    """An encoder-decoder language model: a text encoder of its encoder's states, or what a fusion reads and says texts with.

    ``pretrained``    a hub id or a local directory with config.json and weights; None builds from ``config``.
    ``config``        the transformers configuration, {"model_type": "t5", "d_model": ...}; with ``pretrained``: overrides.
                      ``tie_word_embeddings`` False gives a model that is built a head of its own (T5 v1.1).
    ``frozen``        its weights do not train, and nothing in it is drawn; gradients still pass through it to what stands before.
    ``checkpointing`` computes its layers anew in the backward pass (less memory, more time).
    ``vocab_size``    of the tokenizer, which has to be the one that a pretrained model was made for.
    ``text_format``   what the tokenizer wraps texts in.
    ``reads_start``   whether the encoder reads the first token of a text; None: not where the tokenizer has no start of
                      its own, so that the end stands there too (T5).

    What it can do is tried out when it is built: one that ignores its masks or its cache, or whose decoder sees later words, is
    refused.
    """

    def __init__(
        self,
        vocab_size: int,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        frozen: bool = False,
        checkpointing: bool = False,
        text_format: TextFormat | None = None,
        reads_start: bool | None = None,
    ) -> None:
        super().__init__()
        given, kind = dict(config or {}), AutoModelForSeq2SeqLM
        if pretrained:
            whole = load_language_model(kind, pretrained, given)
        else:
            whole = build_language_model(kind, given, vocab_size, text_format, CHOOSE)
        self.config = whole.config
        self.words = word_table(whole)
        self.encoder, self.decoder = whole.get_encoder(), whole.get_decoder()
        self.hidden_size: int = self.words.embedding_dim
        self.is_frozen, self.is_read_on = frozen, False
        has_start = text_format is None or text_format.start != text_format.end
        self.reads_start = has_start if reads_start is None else reads_start
        if text_format is not None:
            pad_as(whole, text_format, is_given=bool(pretrained) or "pad_token_id" in given)
        check_vocabulary(self.config, self.words.num_embeddings, vocab_size, text_format, pretrained)
        self.start_id = _start_of(whole, text_format)
        head = whole.get_output_embeddings()
        is_untied = pretrained is None and given.get("tie_word_embeddings") is False
        if is_untied and head.weight is self.words.weight:  # from 5.0 on transformers ties those of every T5
            head = nn.Linear(self.hidden_size, self.words.num_embeddings, bias=False)
            nn.init.normal_(head.weight, std=self.hidden_size**-0.5)
            whole.set_output_embeddings(head)
        # Marian and Pegasus: their decoder multiplies embeddings that it is given, their encoder does not
        self.scale: float = 1.0 if hasattr(self.words, "embed_scale") else getattr(self.encoder, "embed_scale", 1.0)
        self.head: nn.Module | None = None if head.weight is self.words.weight else head
        bias = getattr(whole, "final_logits_bias", None)  # BART, Marian, Pegasus
        self.head_bias: Tensor | None
        self.register_buffer("head_bias", None if bias is None else bias[0].clone())
        if frozen:
            self.requires_grad_(False)
            forget_noise(self)
        if checkpointing and not self.recompute():
            raise ConfigError(
                f"text_encoder.checkpointing: {self.config.model_type} has no layers one by one; set it to false"
            )
        if getattr(self.config, "attention_type", None) == "block_sparse":  # of BigBird, drawn at random in long texts
            raise ConfigError(
                f"text_encoder: {self.config.model_type} reads long texts otherwise than short ones; set "
                f"text_encoder.config.attention_type=original_full, or {CHOOSE}"
            )
        self._abilities: TextAbilities | None = None
        self._cache_name = CACHES[0]
        if self.words.weight.device.type != "meta":  # there are numbers
            self._try_out(whole)
        for part in (self.encoder, self.decoder):  # both are given embeddings: the table stands once, as ``words``
            part.embed_tokens = None
        trained = (name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self._saying = {name for name in trained if name.startswith(SAYING)}
        self.set_saying(False)

    def recompute(self) -> int:
        """From now on compute the layers of both halves anew in the backward pass."""
        return recompute([block for half in (self.encoder, self.decoder) for block in blocks_of(half, outermost=True)])

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table of both halves, which a tied head is the transpose of."""
        return self.words

    @property
    def max_length(self) -> int | None:
        """The most tokens that either half reads, in the encoder those of an image included; None for relative positions (T5)."""
        most: int | None = getattr(self.config, "max_position_embeddings", None)
        return most

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end what it says, where its configuration has a list of them."""
        return listed_ends(self.config, self.words.num_embeddings)

    @property
    def abilities(self) -> TextAbilities:
        """What it can do."""
        if self._abilities is None:
            self._try_out(None)
        assert self._abilities is not None
        not_causal = (
            None if self.is_read_on else "its encoder reads both ways; with fusion=encoder_decoder its decoder says"
        )
        return self._abilities._replace(not_causal=not_causal)

    @property
    def is_incremental(self) -> bool:
        """Whether texts grow: words are then only embedded here."""
        return self.is_read_on

    @property
    def predicts_words(self) -> bool:
        """Whether the fused states are the decoder's last ones, over which its head predicts."""
        return self.is_read_on

    def start_reading_on(self) -> None:
        """From now on texts are embedded alone: a fusion has the encoder read and the decoder say them."""
        self.is_read_on = True
        self.set_saying(True)

    def set_saying(self, trains: bool) -> None:
        """Whether decoder and head train: they get no gradient where nothing is said."""
        for name, parameter in self.named_parameters():
            is_new = name.startswith(SAYING) and ADAPTER in name  # adapters came since
            if is_new or name.replace(BASE, ".") in self._saying:
                parameter.requires_grad_(trains)

    def sizes(self) -> dict[str, Any]:
        """The transformers configuration, with the token that begins what the decoder says."""
        sizes: dict[str, Any] = self.config.to_dict()
        return sizes | {"tie_word_embeddings": self.head is None, "decoder_start_token_id": self.start_id}

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Built from ``config`` in place of ``pretrained``."""
        if config.get("pretrained"):
            return {**config, "_convert_": "all", "pretrained": None, "config": dict(sizes)}
        return dict(config)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Ids (T, L) -> what either half reads of them, (T, L, D)."""
        embeds: Tensor = self.words(input_ids) * self.scale
        return embeds

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), mask (T, L) or (T, L, L) -> embeddings where a fusion reads, else states; pooled: their mean."""
        embeds = self.embed(input_ids)
        real = attention_mask if attention_mask.dim() == 2 else attention_mask.diagonal(dim1=1, dim2=2)
        if not self.is_read_on:
            embeds = self.encode(embeds, real)
        return Tokens(embeds, attention_mask, self.pool(embeds, real))

    def extend(self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: Any) -> tuple[Tokens, tuple[()]]:
        """The embeddings of further words, which hang on no earlier ones; where a fusion reads."""
        embeds = self.embed(input_ids)
        return Tokens(embeds, mask, embeds[:, -1]), ()

    def encode(self, embeds: Tensor, mask: Tensor) -> Tensor:
        """The encoder's states (T, N, D) of embeddings (T, N, D) with mask (T, N), padding behind the others."""
        states: Tensor = self.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state
        return states

    def begin(self, embeds: Tensor) -> Tensor:
        """What the decoder reads first, (T, 1, D), for as many texts as ``embeds`` has rows."""
        start = torch.full((embeds.shape[0], 1), self.start_id, device=embeds.device)
        return self.embed(start)

    def decode(self, embeds: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """The decoder's states (T, L, D) of what is said, (T, L, D), each seeing those before it and the memory (T, N, D)."""
        states: Tensor = self.decoder(
            inputs_embeds=embeds / self.scale,
            encoder_hidden_states=memory,
            encoder_attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
        return states

    def decode_on(
        self, embeds: Tensor, memory: Tensor, mask: Tensor, past: tuple[KeysValues, KeysValues] | None
    ) -> tuple[Tensor, tuple[KeysValues, KeysValues]]:
        """As ``decode``, behind earlier words whose keys and values, their own and the memory's, are given; and those of all."""
        own, seen = past or (None, None)
        cache: Any = EncoderDecoderCache(DynamicCache(own), DynamicCache(seen))
        arguments: dict[str, Any] = {self._cache_name: cache, "use_cache": True}
        states = self.decoder(
            inputs_embeds=embeds / self.scale, encoder_hidden_states=memory, encoder_attention_mask=mask, **arguments
        ).last_hidden_state
        own, seen = (
            [(layer.keys, layer.values) for layer in part.layers]
            for part in (cache.self_attention_cache, cache.cross_attention_cache)
        )
        return states, (own, seen)

    def pool(self, states: Tensor, real: Tensor) -> Tensor:
        """The mean (T, D) of the real (T, N) of the encoder's states (T, N, D), as for sentences of T5 (Ni et al. 2021)."""
        weights = real.to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)

    def predict_words(self, states: Tensor) -> Tensor:
        """The decoder's states (..., D) -> logits (..., V), by the model's own head."""
        if getattr(self.config, "scale_decoder_outputs", False):  # the first T5
            states = states * self.hidden_size**-0.5
        logits: Tensor = F.linear(states, self.words.weight) if self.head is None else self.head(states)
        return logits if self.head_bias is None else logits + self.head_bias

    def _try_out(self, whole: Any) -> None:
        """Find the name of the cache; ConfigError where it reads or says otherwise than it is asked to."""
        reasons = list[str]()
        with quiet(), undisturbed(self):
            texts = made_up_texts(self.words)
            for name in CACHES:
                self._cache_name = name
                try:
                    with torch.no_grad():
                        fault = fault_of(self, texts, None if whole is None else _logits_of(whole))
                except Exception as error:  # whatever a model makes of arguments that it does not have
                    fault = first_line(error)
                if fault is None:
                    break
                reasons.append(fault)
            else:
                raise ConfigError(
                    f"text_encoder: {self.config.model_type} cannot be used as an encoder and a decoder ({reasons[0]}); {CHOOSE}"
                )
            with torch.enable_grad():
                embeds, real = self.embed(texts), torch.ones_like(texts)
                said = self.predict_words(self.decode(embeds, self.encode(embeds, real), real))
            unreached = unreached_parameters(self, [said])
        freeze(self, unreached)
        self._abilities = TextAbilities(pools_text=True, reads_padding=False, not_causal=None, unreached=unreached)


def _start_of(whole: Any, words: TextFormat | None) -> int:
    """The token that the decoder reads first; T5's rule is the padding."""
    for config in (whole.config, whole.generation_config):
        if isinstance(start := getattr(config, "decoder_start_token_id", None), int):
            return start
    return words.start if words is not None else int(whole.config.pad_token_id or 0)


def _logits_of(whole: Any) -> Any:
    return lambda ids, said: whole(input_ids=ids, decoder_input_ids=said, use_cache=False).logits
