"""A causal language model of transformers as the text half: it embeds words, a fusion has it read on, its own head predicts.

The one file that touches the caches, masks and heads of transformers' language models (``tower.py`` has those of encoders).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fusionkit.encoders.causal_probe import Whole, fault_of, fault_of_layers, gap_texts, size_of_keys
from fusionkit.encoders.language_files import (
    build_language_model,
    check_vocabulary,
    forget_noise,
    listed_ends,
    load_language_model,
)
from fusionkit.encoders.probe import TextAbilities, first_line, freeze, undisturbed, unreached_parameters
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.encoders.tower import (
    BEFORE,
    CACHES,
    BeforeLayer,
    KeysValues,
    layers_of,
    open_layers,
    pad_as,
    quiet,
    read_on,
    word_table,
)
from fusionkit.errors import ConfigError
from fusionkit.types import TextFormat, Tokens, no_later, own_places

CHOOSE = "choose a family of plain attention, such as llama, qwen3, gemma2, gpt2 or opt"


class LanguageModel(nn.Module):
    """A causal language model, cut at its embeddings where a fusion reads on with it, else a text encoder of its states.

    ``pretrained``    a hub id or a local directory with config.json and weights; None builds from ``config``.
    ``config``        the transformers configuration, {"model_type": "llama", "hidden_size": ...}; with ``pretrained``: overrides.
    ``gguf``          a .gguf file in place of ``pretrained``; unpacked to fp32 (needs the packages gguf and accelerate).
    ``frozen``        its weights do not train, and nothing in it is drawn; gradients still pass through it to what stands before.
    ``checkpointing`` computes its layers anew in the backward pass (less memory, more time); no cache is kept meanwhile.
    ``vocab_size``    of the tokenizer, which has to be the one that a pretrained model was made for.
    ``text_format``   what the tokenizer wraps texts in.

    What it can do is tried out when it is built: one that ignores the mask, the positions or the cache that it is given (ALiBi,
    recurrent layers), or whose head does more than ``predict_words``, is refused.
    """

    is_incremental = True
    is_causal = True

    def __init__(
        self,
        vocab_size: int,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        gguf: str | None = None,
        frozen: bool = False,
        checkpointing: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        super().__init__()
        if gguf and pretrained:
            raise ConfigError("text_encoder.gguf stands in place of text_encoder.pretrained; give one of them")
        whole = (
            load_language_model(AutoModelForCausalLM, pretrained or "", config or {}, gguf)
            if pretrained or gguf
            else build_language_model(AutoModelForCausalLM, config or {}, vocab_size, text_format, CHOOSE)
        )
        self.backbone, head = self.parts(whole)
        self.config = self.backbone.config
        table = word_table(self.backbone)
        self.head: nn.Module | None = head
        self.hidden_size: int = table.embedding_dim
        self.is_frozen, self.is_read_on, self.is_open = frozen, False, False
        self.checkpointing = False
        if text_format is not None:
            pad_as(self.backbone, text_format, is_given=bool(pretrained or gguf) or "pad_token_id" in (config or {}))
        check_vocabulary(self.config, table.num_embeddings, vocab_size, text_format, pretrained or gguf)
        if frozen:
            self.requires_grad_(False)
            forget_noise(self.backbone)
        if self.head is not None:
            self.head.requires_grad_(False)  # until a fusion reads on and words are predicted
        if checkpointing and not self.recompute():
            raise ConfigError(
                f"text_encoder.checkpointing: {self.config.model_type} has no layers one by one; set it to false"
            )
        self._abilities: TextAbilities | None = None
        self._cache_name = CACHES[0]
        self._key_size = 0
        if table.weight.device.type != "meta":  # there are numbers
            self._try_out(whole)

    def parts(self, whole: Any) -> tuple[Any, nn.Module | None]:
        """What reads on, and what predicts words from its states; None where that is the table of embeddings."""
        backbone = whole.get_decoder() if hasattr(whole, "get_decoder") else whole.base_model
        head = whole.get_output_embeddings()
        is_tied = not isinstance(head, nn.Linear) or head.weight is word_table(backbone).weight
        return backbone, None if is_tied else head

    def embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Ids (T, L) of words at positions (T, L) of their texts -> what is read of them, (T, L, D)."""
        embeds: Tensor = self.word_embeddings(input_ids)
        return embeds

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that a tied head is the transpose of."""
        return word_table(self.backbone)

    @property
    def max_length(self) -> int | None:
        """The most tokens that it reads at once, those of an image included: positions, or the window that a layer sees."""
        return most_tokens(self.config)

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end what it says, where its configuration has a list of them."""
        return listed_ends(self.config, self.word_embeddings.num_embeddings)

    @property
    def changing_positions(self) -> str | None:
        """The kind of its rotary positions where they hang on how long the whole text is, so that none can be read on."""
        found = getattr(self.config, "rope_parameters", None) or {}
        kinds = [
            found,
            *(part for part in found.values() if isinstance(part, dict)),
        ]  # of all layers, or by kind of layer
        return next((part["rope_type"] for part in kinds if part.get("rope_type") in ("dynamic", "longrope")), None)

    @property
    def key_size(self) -> int:
        """How many numbers the keys and values of one token are, over all layers."""
        assert self.abilities
        return self._key_size

    @property
    def abilities(self) -> TextAbilities:
        """What it can do."""
        if self._abilities is None:
            self._try_out(None)
        assert self._abilities is not None
        return self._abilities

    @property
    def is_recomputed(self) -> bool:
        """Whether the layers are computed anew in the backward pass, so that no keys and values are kept."""
        return self.checkpointing and self.backbone.training and torch.is_grad_enabled()

    @property
    def predicts_words(self) -> bool:
        """Whether the fused states are the model's own last ones, over which its head predicts."""
        return self.is_read_on

    def start_reading_on(self) -> None:
        """From now on texts are embedded alone: a fusion has the layers read them, behind its image."""
        self.is_read_on = True
        if self.head is not None:
            self.head.requires_grad_(not self.is_frozen)

    def recompute(self) -> int:
        """From now on compute the layers anew in the backward pass."""
        self.checkpointing = True
        return recompute(blocks_of(self.backbone, outermost=True))

    def open_layers(self) -> tuple[int, int]:
        """From now on ``read`` and ``read_on`` may be given what is done before each layer: how many there are, and their width.

        ConfigError where what a call brings does not reach them.
        """
        layers, width = layers_of(self.backbone), int(self.config.hidden_size)
        if not self.is_open:
            open_layers(layers)
            self.is_open = True
            if self.word_embeddings.weight.device.type != "meta":
                self._try_out_layers(len(layers), width)
        return len(layers), width

    def sizes(self) -> dict[str, Any]:
        """The transformers configuration."""
        sizes: dict[str, Any] = self.config.to_dict()
        return sizes | {"tie_word_embeddings": self.head is None}

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Built from ``config`` in place of ``pretrained`` or ``gguf``."""
        if config.get("pretrained") or config.get("gguf"):
            return {**config, "_convert_": "all", "pretrained": None, "gguf": None, "config": dict(sizes)}
        return dict(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), mask (T, L) or (T, L, L) -> embeddings where a fusion reads on, else states; pooled: the last one.

        No token sees later ones, whatever the mask says.
        """
        tokens, _ = self._read_ids(input_ids, attention_mask, None, None)
        return tokens

    def extend(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | tuple[()] | None
    ) -> tuple[Tokens, KeysValues | tuple[()]]:
        """As ``forward``, of ids (T, L) at positions (T, L) after P earlier ones of each text; the mask is (T, L, P + L)."""
        return self._read_ids(input_ids, mask, positions, past or [])

    def _read_ids(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor | None, past: KeysValues | tuple[()] | None
    ) -> tuple[Tokens, KeysValues | tuple[()]]:
        kept: KeysValues | tuple[()] = ()
        real = mask if mask.dim() == 2 else own_places(mask)
        if positions is None:
            positions = (real.cumsum(dim=1) - 1).clamp(min=0)
        states = self.embed(input_ids, positions)
        if not self.is_read_on:
            length, total = input_ids.shape[1], mask.shape[-1]
            square = no_later(length, total, mask.device)
            seen = square & (mask[:, None] if mask.dim() == 2 else mask).bool()
            if past is None:
                states = self.read(states, seen, positions)
            else:
                states, kept = self.read_on(states, seen, positions, list(past) or None)
        last = real.sum(dim=1) - 1
        return Tokens(states, mask, states[torch.arange(last.shape[0], device=last.device), last]), kept

    def read(self, embeds: Tensor, mask: Tensor, positions: Tensor, before_layer: BeforeLayer | None = None) -> Tensor:
        """The last states (T, L, D) of embeddings (T, L, D) at positions (T, L); bool mask (T, L, L), True = is seen.

        ``before_layer`` gives what a layer reads in place of the states that come to it (only after ``open_layers``).
        """
        inputs = _inputs(embeds, mask, positions, before_layer)
        states: Tensor = self.backbone(use_cache=False, **inputs).last_hidden_state
        return states

    def read_on(
        self,
        embeds: Tensor,
        mask: Tensor,
        positions: Tensor,
        past: KeysValues | None,
        before_layer: BeforeLayer | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """As ``read``, after P earlier tokens with their keys and values, mask (T, L, P + L); and those of all P + L."""
        inputs = _inputs(embeds, mask, positions, before_layer)
        return read_on(self.backbone, self._cache_name, past, use_cache=True, **inputs)

    def predict_words(self, states: Tensor) -> Tensor:
        """Last states (..., D) -> logits (..., V), by the model's own head."""
        logits: Tensor = F.linear(states, self.word_embeddings.weight) if self.head is None else self.head(states)
        if scale := getattr(self.config, "logit_scale", None):  # Cohere
            logits = logits * scale
        if scaling := getattr(self.config, "logits_scaling", None):  # Granite
            logits = logits / scaling
        if cap := getattr(self.config, "final_logit_softcapping", None):  # Gemma 2
            logits = (logits / cap).tanh() * cap
        return logits

    def _try_out(self, whole: Any) -> None:
        """Find the name of the cache; ConfigError where it reads otherwise than its masks and positions say."""
        kind, reasons = self.config.model_type, list[str]()
        with quiet(), undisturbed(self):
            embeds = self.word_embeddings(gap_texts(self.word_embeddings))
            for name in CACHES:
                self._cache_name = name
                try:
                    with torch.no_grad():
                        fault = fault_of(self, embeds, None if whole is None else _logits_of(whole))
                        self._key_size = size_of_keys(self, embeds)
                except Exception as error:  # whatever a model makes of arguments that it does not have
                    fault = first_line(error)
                if fault is None:
                    break
                reasons.append(fault)
            else:
                if (window := _window(self.config)) is not None and window < embeds.shape[1]:
                    raise ConfigError(
                        f"text_encoder: sliding_window is {window} tokens, too few to read on; give a longer one"
                    )
                raise ConfigError(
                    f"text_encoder: {kind} cannot be read on as a language model ({reasons[0]}); {CHOOSE}"
                )
            states = self.read(*Whole.of(embeds))
            unreached = unreached_parameters(self, [self.predict_words(states)])
        freeze(self, unreached)
        self._abilities = TextAbilities(True, reads_padding=False, not_causal=None, unreached=unreached, is_causal=True)

    def _try_out_layers(self, count: int, width: int) -> None:
        """ConfigError where what a call brings to the layers does not come to each of them."""
        with quiet(), undisturbed(self), torch.no_grad():
            try:
                fault = fault_of_layers(self, self.word_embeddings(gap_texts(self.word_embeddings)), count, width)
            except Exception as error:  # whatever a model makes of an argument that it does not have
                fault = first_line(error)
        if fault is not None:
            raise ConfigError(
                f"text_encoder: nothing can stand between the layers of {self.config.model_type} ({fault}); choose another "
                "model_type, such as llama, qwen3 or gpt2, or fusion=prefix"
            )


def _inputs(embeds: Tensor, mask: Tensor, positions: Tensor, before_layer: BeforeLayer | None) -> dict[str, Any]:
    inputs = {"inputs_embeds": embeds, "attention_mask": _added(mask, embeds.dtype), "position_ids": positions}
    return inputs if before_layer is None else {**inputs, BEFORE: before_layer}


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask (T, L, N) as transformers takes a 4-d one: it adds it to the scores as it is."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)[:, None]


def _logits_of(whole: Any) -> Any:
    return lambda embeds: whole(inputs_embeds=embeds, use_cache=False).logits


def most_tokens(config: Any) -> int | None:
    """The most tokens that a language model of this configuration reads at once."""
    bounds = [_window(config), getattr(config, "max_position_embeddings", None)]
    return min((bound for bound in bounds if bound is not None and bound > 0), default=None)


def _window(config: Any) -> int | None:
    """How many tokens the layers of the shortest view see; None where all see everything."""
    layers = getattr(config, "layer_types", None)
    is_local = any("sliding" in kind for kind in layers) if layers else getattr(config, "use_sliding_window", True)
    window: int | None = getattr(config, "sliding_window", None) if is_local else None
    return window
