"""Any BERT-like transformers encoder as a tower that gives text tokens."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.types import Tokens

KeysValues = list[tuple[Tensor, Tensor]]  # of each layer, (T, heads, tokens, width)


class TextEncoder(nn.Module):
    """Text tokens from a transformers encoder (BERT, RoBERTa, MiniLM, ...).

    ``pretrained``  a hub id or a local directory with config.json and weights; None builds from ``config``.
    ``config``      the transformers configuration, {"model_type": "bert", "hidden_size": ...}; with ``pretrained``: overrides.
    ``num_layers``  keeps the lower layers only, as ALBEF does; None keeps all.
    ``give_upper_layers`` hands the layers above to the fusion to start from (``upper_layers``).
    ``pool``        "cls" reads the first token, "mean" averages the real tokens (sentence encoders).
    ``vocab_size``  of the tokenizer; must agree with a pretrained model's embeddings.
    ``token_types`` False leaves BERT's token type embeddings out (BLIP).
    ``first_token_id`` is read in place of the first token of each text (BLIP's [ENC] and [DEC] for [CLS]).

    A BERT of 0 layers gives the embeddings of the tokens alone, for fusions that have all the layers; its pooled vector is
    that of the first token as it is written.
    """

    def __init__(
        self,
        vocab_size: int,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_layers: int | None = None,
        give_upper_layers: bool = False,
        pool: str = "cls",
        frozen: bool = False,
        token_types: bool = True,
        first_token_id: int | None = None,
    ) -> None:
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ConfigError(f"text_encoder.pool is '{pool}'; {suggest(pool, ['cls', 'mean'])}")
        self.backbone = _load(pretrained, config or {}) if pretrained else _from_config(config or {}, vocab_size)
        self.config = self.backbone.config
        self.hidden_size: int = self.config.hidden_size
        self.pool, self.is_frozen, self.first_token_id = pool, frozen, first_token_id
        if not token_types:
            embeddings: Any = self.backbone.get_submodule("embeddings")
            embeddings.token_type_embeddings = NoTokenTypes()
        size = self.word_embeddings.num_embeddings
        if size < vocab_size:
            raise ConfigError(
                f"tokenizer: has {vocab_size} tokens, but the text encoder embeds {size}; give the tokenizer that belongs to "
                f"{pretrained or 'it'}"
            )
        upper = self._cut(num_layers)
        self.upper_layers = tuple(upper) if give_upper_layers else ()  # a tuple: not ours to train or save
        if frozen:
            self.backbone.requires_grad_(False)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that the MLM decoder is tied to."""
        table = self.backbone.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    def _cut(self, num_layers: int | None) -> list[nn.Module]:
        total = self.config.num_hidden_layers
        if num_layers is None:
            return []
        if not 0 < num_layers <= total:
            raise ConfigError(
                f"text_encoder.num_layers is {num_layers}, but the encoder has {total}; give 1 to {total}"
            )
        layers = next(m for m in self.backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == total)
        upper = list(layers[num_layers:])
        del layers[num_layers:]
        self.config.num_hidden_layers = num_layers
        return upper

    def train(self, mode: bool = True) -> "TextEncoder":
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), attention_mask (T, L), or (T, L, L) for a causal text -> tokens (T, L, hidden_size)."""
        mask = attention_mask if attention_mask.dim() == 2 else self._added(attention_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            states = self.backbone(input_ids=self._opened(input_ids), attention_mask=mask).last_hidden_state
            if self.first_token_id is not None and not self.config.num_hidden_layers:
                return Tokens(states, attention_mask, self.backbone(input_ids=input_ids[:, :1]).last_hidden_state[:, 0])
        return Tokens(states, attention_mask, self._pool(states, attention_mask))

    @property
    def is_incremental(self) -> bool:
        """Whether ``extend`` works: the backbone has to take earlier keys and values, and to be told positions."""
        return {"past_key_values", "position_ids"} <= inspect.signature(self.backbone.forward).parameters.keys()

    def extend(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        """Tokens of L ids (T, L) at positions (T, L), after P earlier ones of each text, and the keys and values of all.

        The mask is (T, L, P + L), over the earlier tokens too; ``past`` is what the earlier call returned, None for none.
        """
        embeddings: Any = self.backbone.get_submodule("embeddings")
        first = getattr(embeddings, "padding_idx", -1) + 1  # RoBERTa counts from there
        cache: Any = DynamicCache(past)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            states = self.backbone(
                input_ids=self._opened(input_ids, positions),
                attention_mask=self._added(mask),
                position_ids=positions + first,
                past_key_values=cache,
            ).last_hidden_state
        return Tokens(states, mask, states[:, 0]), [(layer.keys, layer.values) for layer in cache.layers]

    def _opened(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The ids (T, L), at positions (T, L) or from 0 on, with the first token of each text replaced if so configured."""
        if self.first_token_id is None:
            return input_ids
        places = torch.arange(input_ids.shape[1], device=input_ids.device) if positions is None else positions
        return input_ids.masked_fill(places == 0, self.first_token_id)

    def _added(self, mask: Tensor) -> Tensor:
        """A mask (T, L, N) as transformers takes a 4-d one: it adds it to the scores as it is."""
        return (1.0 - mask[:, None].to(self.word_embeddings.weight.dtype)) * torch.finfo(torch.float32).min

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pool == "cls":
            return states[:, 0]
        weights = (mask if mask.dim() == 2 else mask[:, -1]).to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class NoTokenTypes(nn.Module):
    """Stands for a table of token types where there is none."""

    def forward(self, token_type_ids: Tensor) -> Tensor:
        return torch.zeros((), device=token_type_ids.device)


def _plain_tower(config: Any) -> dict[str, Any]:
    """What makes the tower a plain encoder: no pooler, and plain attention where it trains faster (CPU, see benchmarks)."""
    options: dict[str, Any] = {"attn_implementation": "sdpa" if torch.cuda.is_available() else "eager"}
    if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert"):
        options["add_pooling_layer"] = False
    return options


def _from_config(config: Mapping[str, Any], vocab_size: int) -> PreTrainedModel:
    fields = {"vocab_size": vocab_size} | dict(config)
    try:
        built = AutoConfig.for_model(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"text_encoder.config: needs a known 'model_type' such as bert or roberta ({error})"
        ) from error
    try:
        return AutoModel.from_config(built, **_plain_tower(built))
    except ValueError as error:
        raise ConfigError(f"text_encoder.config: {str(error).splitlines()[0]}") from error


def _load(pretrained: str, overrides: Mapping[str, Any]) -> PreTrainedModel:
    is_path = pretrained.startswith((".", "/", "~")) or Path(pretrained).exists()
    if is_path and not (Path(pretrained).expanduser() / "config.json").is_file():
        raise DataError(
            f"text_encoder.pretrained: {pretrained} holds no config.json; give a transformers model directory or a hub id"
        )
    try:
        config = AutoConfig.from_pretrained(pretrained, **overrides)
        with _quiet_loading():
            tower, report = AutoModel.from_pretrained(
                pretrained, config=config, dtype=torch.float32, output_loading_info=True, **_plain_tower(config)
            )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"text_encoder.pretrained: '{pretrained}' could not be loaded ({reason}); give a directory or a hub id"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise DataError(
            f"text_encoder.pretrained: '{pretrained}' lacks {len(missing)} weights of a {config.model_type} encoder, among them "
            f"{missing[0]}; give the directory of a whole model"
        )
    return tower


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' progress bar and its report on heads that an encoder does not have."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
