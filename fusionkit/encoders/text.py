"""Any BERT-like transformers encoder as a tower that gives text tokens."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, DynamicCache, FlavaTextModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fusionkit.errors import ConfigError, DataError, suggest
from fusionkit.types import Tokens

UNLISTED = {"flava_text_model": FlavaTextModel}  # towers that AutoModel does not know
CODE = (  # what a configuration names that transformers would fetch and run
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "use_kernels",
    "quantization_config",
)
POOLS = ("cls", "last", "mean")
KeysValues = list[tuple[Tensor, Tensor]]  # of each layer, (T, heads, tokens, width)


class TextEncoder(nn.Module):
    """Text tokens from a transformers encoder (BERT, RoBERTa, MiniLM, ...).

    ``pretrained``  a hub id or a local directory with config.json and weights; None builds from ``config``.
    ``config``      the transformers configuration, {"model_type": "bert", "hidden_size": ...}; with ``pretrained``: overrides.
    ``num_layers``  keeps the lower layers only, as ALBEF does, 0 the embeddings alone, as ViLT and UNITER do; None keeps all.
    ``give_upper_layers`` hands the layers above to the fusion to start from (``upper_layers``).
    ``pool``        "cls" reads the first token, "last" the last real one (CLIP), "mean" averages the real ones.
    ``top_layers``  the states of so many last layers, side by side in the width, for a fusion that reads them all (BridgeTower).
    ``before_norm`` tokens as they are before the tower's last norm, pooled after it (FLAVA).
    ``vocab_size``  of the tokenizer; must agree with a pretrained model's embeddings.
    ``token_types`` False leaves BERT's token type embeddings out (BLIP).
    ``first_token_id`` is read in place of the first token of each text (BLIP's [ENC] and [DEC] for [CLS]).
    ``added_tokens`` so many new embeddings behind those of the tokenizer or the pretrained model, for such first tokens.

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
        added_tokens: int = 0,
        before_norm: bool = False,
        top_layers: int = 1,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"text_encoder.pool is '{pool}'; {suggest(pool, POOLS)}")
        if pretrained:
            self.backbone = _load(pretrained, config or {})
            if added_tokens:
                words = self.word_embeddings.num_embeddings + added_tokens
                self.backbone.resize_token_embeddings(words, mean_resizing=False)
        else:
            self.backbone = _from_config(config or {}, vocab_size + added_tokens)
        self.config = self.backbone.config
        self.hidden_size: int = top_layers * self.config.hidden_size
        self.pool, self.is_frozen, self.before_norm, self.top_layers = pool, frozen, before_norm, top_layers
        self.first_token_id = first_token_id
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

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text that there are positions for; None where the backbone needs none."""
        positions: int | None = getattr(self.config, "max_position_embeddings", None)
        return None if positions is None else positions - self._first_position

    @property
    def _first_position(self) -> int:
        """RoBERTa counts from behind its padding."""
        return int(getattr(getattr(self.backbone, "embeddings", None), "padding_idx", -1)) + 1

    def _cut(self, num_layers: int | None) -> list[nn.Module]:
        total = self.config.num_hidden_layers
        if num_layers is None:
            return []
        if not 0 <= num_layers <= total:
            raise ConfigError(
                f"text_encoder.num_layers is {num_layers}, but the encoder has {total}; give 0 to {total}"
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
            given = {"output_hidden_states": True} if self.before_norm or self.top_layers > 1 else {}
            out = self.backbone(input_ids=self._opened(input_ids), attention_mask=mask, **given)
            if self.first_token_id is not None and not self.config.num_hidden_layers:
                first = self.backbone(input_ids=input_ids[:, :1]).last_hidden_state[:, 0]
                return Tokens(out.last_hidden_state, attention_mask, first)
        last = out.last_hidden_state
        if self.top_layers > 1:
            last = torch.cat(out.hidden_states[-self.top_layers :], dim=2)
        states = out.hidden_states[-1] if self.before_norm else last
        return Tokens(states, attention_mask, self._pool(last, attention_mask))

    @property
    def is_incremental(self) -> bool:
        """Whether ``extend`` works: the backbone has to take earlier keys and values, and to be told positions."""
        if self.before_norm or self.top_layers > 1:
            return False
        return {"past_key_values", "position_ids"} <= inspect.signature(self.backbone.forward).parameters.keys()

    def extend(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        """Tokens of L ids (T, L) at positions (T, L), after P earlier ones of each text, and the keys and values of all.

        The mask is (T, L, P + L), over the earlier tokens too; ``past`` is what the earlier call returned, None for none.
        """
        cache: Any = DynamicCache(past)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            states = self.backbone(
                input_ids=self._opened(input_ids, positions),
                attention_mask=self._added(mask),
                position_ids=positions + self._first_position,
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
        real = mask if mask.dim() == 2 else mask[:, -1]
        if self.pool == "last":
            return states[torch.arange(len(real), device=real.device), (real.sum(dim=1) - 1).clamp(min=0)]
        weights = real.to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class NoTokenTypes(nn.Module):
    """Stands for a table of token types where there is none."""

    def forward(self, token_type_ids: Tensor) -> Tensor:
        return torch.zeros((), device=token_type_ids.device)


def _plain_tower(config: Any) -> dict[str, Any]:
    """What makes the tower a plain encoder: no pooler, and plain attention where it trains faster (CPU, see benchmarks)."""
    options: dict[str, Any] = {"attn_implementation": "sdpa" if torch.cuda.is_available() else "eager"}
    if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert", *UNLISTED):
        options["add_pooling_layer"] = False
    return options


def _from_config(config: Mapping[str, Any], vocab_size: int) -> PreTrainedModel:
    fields = {"vocab_size": vocab_size} | {key: value for key, value in config.items() if key not in CODE}
    try:
        built = AutoConfig.for_model(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"text_encoder.config: needs a known 'model_type' such as bert or roberta ({error})"
        ) from error
    try:
        if built.model_type in UNLISTED:
            return UNLISTED[built.model_type]._from_config(built, **_plain_tower(built))
        return AutoModel.from_config(built, trust_remote_code=False, **_plain_tower(built))
    except ValueError as error:
        raise ConfigError(f"text_encoder.config: {str(error).splitlines()[0]}") from error


def _load(pretrained: str, overrides: Mapping[str, Any]) -> PreTrainedModel:
    is_path = pretrained.startswith((".", "/", "~")) or Path(pretrained).exists()
    if is_path and not (Path(pretrained).expanduser() / "config.json").is_file():
        raise DataError(
            f"text_encoder.pretrained: {pretrained} holds no config.json; give a transformers model directory or a hub id"
        )
    try:
        config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False, **overrides)
        with _quiet_loading():
            tower, report = AutoModel.from_pretrained(
                pretrained,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **_plain_tower(config),
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
