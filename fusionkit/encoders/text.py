"""Any BERT-like transformers encoder as a tower that gives text tokens."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fusionkit.encoders.frozen import rest
from fusionkit.encoders.probe import (
    TextAbilities,
    causal_mask,
    differ,
    first_line,
    freeze,
    made_up_texts,
    probe_text,
    undisturbed,
)
from fusionkit.encoders.recompute import blocks_of, recompute
from fusionkit.encoders.tower import (
    CACHES,
    CHOOSE,
    KeysValues,
    build_tower,
    first_position,
    load_tower,
    quiet,
    read_on,
    word_table,
)
from fusionkit.errors import ConfigError, suggest
from fusionkit.types import TextFormat, Tokens

POOLS = ("cls", "last", "mean")


class HFTextEncoder(nn.Module):
    """Text tokens from a transformers encoder (BERT, RoBERTa, MiniLM, ...).

    ``pretrained``  a hub id or a local directory with config.json and weights; None builds from ``config``.
    ``config``      the transformers configuration, {"model_type": "bert", "hidden_size": ...}; with ``pretrained``: overrides.
    ``num_layers``  keeps the lower layers only, as ALBEF does, 0 the embeddings alone, as ViLT and UNITER do; None keeps all.
    ``give_upper_layers`` hands the layers above to the fusion to start from (``upper_layers``).
    ``pool``        "cls" reads the first token, "last" the last real one (CLIP), "mean" averages the real ones.
    ``vocab_size``  of the tokenizer; must agree with a pretrained model's embeddings.
    ``text_format`` what the tokenizer wraps texts in; the tower pads as it does.

    A BERT of 0 layers gives the embeddings of the tokens alone, for fusions that have all the layers.
    What the tower can do is tried out when it is built (``abilities``, ``is_incremental``): what it cannot do at all is refused,
    and what no state depends on (a pooler) is frozen. What only one family does is a class of its own, in its own file.
    """

    reads_layers = False  # whether ``states`` wants the states of all layers

    def __init__(
        self,
        vocab_size: int,
        pretrained: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_layers: int | None = None,
        give_upper_layers: bool = False,
        pool: str = "cls",
        frozen: bool = False,
        text_format: TextFormat | None = None,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ConfigError(f"text_encoder.pool is '{pool}'; {suggest(pool, POOLS)}")
        self.backbone = self.build(vocab_size, pretrained or None, config or {}, text_format)
        self.config = self.backbone.config
        if not hasattr(self.config, "hidden_size"):  # of parts that have one each (ModernVBERT)
            raise ConfigError(f"text_encoder: {self.config.model_type} is no text encoder alone; {CHOOSE}")
        self.hidden_size: int = self.config.hidden_size
        self.pool, self.is_frozen = pool, frozen
        self.takes_gradients = not frozen  # adapters within a frozen one need them
        size = self.word_embeddings.num_embeddings
        if size < vocab_size:
            raise ConfigError(
                f"tokenizer: has {vocab_size} tokens, but the text encoder embeds {size}; give the tokenizer that belongs to "
                f"{pretrained or 'it'}"
            )
        upper = self._cut(num_layers)
        self.upper_layers = tuple(upper) if give_upper_layers else ()  # a tuple: not ours to train or save
        if frozen:
            self.backbone.requires_grad_(False).eval()
        self._pad = text_format.pad if text_format else self.word_embeddings.padding_idx or 0
        self._abilities: TextAbilities | None = None
        self._cache_name: str | None = None
        if self.word_embeddings.weight.device.type != "meta":  # there are numbers
            self._try_out()

    def build(
        self, vocab_size: int, pretrained: str | None, config: Mapping[str, Any], text_format: TextFormat | None
    ) -> PreTrainedModel:
        """The transformers model."""
        if pretrained is None:
            return build_tower(config, vocab_size, text_format)
        return load_tower(pretrained, config, text_format)

    def states(self, layers: tuple[Tensor, ...], last: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens' states, and those that are pooled, (T, L, hidden_size) each.

        ``last`` are the tower's own; ``layers`` those before and after each of its layers, where the class ``reads_layers``.
        """
        return last, last

    def read(self, input_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The ids (T, L), at positions (T, L) or from 0 on, as the tower reads them."""
        return input_ids

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table that the MLM decoder is tied to."""
        return word_table(self.backbone)

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text that there are positions for; None where the backbone needs none."""
        positions: int | None = getattr(self.config, "max_position_embeddings", None)
        return None if positions is None or positions < 1 else positions - first_position(self.backbone)

    @property
    def abilities(self) -> TextAbilities:
        """What it can do."""
        if self._abilities is None:
            self._try_out()
        assert self._abilities is not None
        return self._abilities

    def sizes(self) -> dict[str, Any]:
        """The transformers configuration."""
        sizes: dict[str, Any] = self.config.to_dict()
        return sizes

    @staticmethod
    def weightless(config: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Built from ``config`` in place of ``pretrained``: the whole one, of which no layers are left to cut or give away."""
        if config.get("pretrained"):
            whole = {"pretrained": None, "config": dict(sizes), "num_layers": None, "give_upper_layers": False}
            return {**config, "_convert_": "all", **whole}
        if config.get("config") and sizes.get("pad_token_id") is not None:  # RoBERTa counts positions from it
            return {**config, "config": {"pad_token_id": sizes["pad_token_id"], **config["config"]}}
        return dict(config)

    def _try_out(self) -> None:
        """Find the abilities, and the name by which the tower takes earlier keys and values; ConfigError where it cannot work."""
        kind = self.config.model_type
        with quiet():
            try:
                self._abilities = probe_text(self, self._pad)
            except Exception as error:  # whatever a model makes of plain texts that it is not for
                raise ConfigError(
                    f"text_encoder: {kind} cannot read plain texts ({first_line(error)}); {CHOOSE}"
                ) from error
            self._cache_name = next((name for name in CACHES if self._caches(name)), None)
        freeze(self, self._abilities.unreached)
        if not self._abilities.pools_text and self.config.num_hidden_layers:
            others, place = ("last or mean", "first") if self.pool == "cls" else ("mean", "last")
            raise ConfigError(
                f"text_encoder.pool is '{self.pool}', but the {place} token of {kind} sees no "
                f"other, so that all texts would have the same vector; set text_encoder.pool to {others}"
            )
        if self._abilities.reads_padding:
            warnings.warn(
                f"text_encoder: {kind} reads the padding beside a text, so that scores depend a little on which texts share a "
                f"batch; {CHOOSE}, if they must not",
                stacklevel=2,
            )

    def _cut(self, num_layers: int | None) -> list[nn.Module]:
        total = self.config.num_hidden_layers
        if num_layers is None:
            return []
        if not 0 <= num_layers <= total:
            raise ConfigError(
                f"text_encoder.num_layers is {num_layers}, but the encoder has {total}; give 0 to {total}"
            )
        lists = (part for part in self.backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == total)
        if (layers := next(lists, None)) is None:
            raise ConfigError(
                f"text_encoder.num_layers: {self.config.model_type} does not keep its layers one by one; leave it out"
            )
        upper = list(layers[num_layers:])
        del layers[num_layers:]
        self.config.num_hidden_layers = num_layers
        return upper

    def recompute(self) -> int:
        """From now on compute the layers anew in the backward pass."""
        return recompute(blocks_of(self.backbone, outermost=True))

    def train(self, mode: bool = True) -> "HFTextEncoder":
        super().train(mode)
        if self.is_frozen:
            rest(self.backbone, mode)
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tokens:
        """input_ids (T, L), attention_mask (T, L), or (T, L, L) for a causal text -> tokens (T, L, hidden_size)."""
        self._require_room(attention_mask)
        mask = attention_mask if attention_mask.dim() == 2 else self._added(attention_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            given = {"output_hidden_states": True} if self.reads_layers else {}
            out = self.backbone(input_ids=self.read(input_ids), attention_mask=mask, **given)
        states, pooled = self.states(out.hidden_states if self.reads_layers else (), out.last_hidden_state)
        return Tokens(states, attention_mask, self._pool(pooled, attention_mask))

    @property
    def is_incremental(self) -> bool:
        """Whether ``extend`` works."""
        assert self.abilities
        return self._cache_name is not None

    @property
    def is_causal(self) -> bool:
        """Whether no token sees later ones under a plain mask either (CLIP's text tower, GPT-2)."""
        return self.abilities.is_causal

    def _caches(self, name: str) -> bool:
        """Whether two texts, the second padded, come out the same in two pieces, by this name of the argument, and as wholes."""
        if self.reads_layers or self.abilities.not_causal:
            return False
        texts = made_up_texts(self, self._pad)[:1].expand(2, -1)
        last = texts.shape[1] - 1
        places = torch.arange(last, device=texts.device).expand(2, -1)
        lengths = torch.tensor([[last], [last - 1]], device=texts.device)
        is_there = (places < lengths).long()
        with undisturbed(self), torch.no_grad():
            whole = self(texts, causal_mask(texts)).embeds
            try:
                first, past = self._extend(
                    name, texts[:, :last], causal_mask(texts[:, :last]) * is_there[:, None], places, None
                )
                seen = torch.cat([is_there, torch.ones_like(lengths)], dim=1)
                second, _ = self._extend(name, texts.gather(1, lengths), seen[:, None], lengths, past)
            except Exception:  # whatever a model makes of an argument that it does not have
                return False
        ends = whole[torch.arange(2), lengths[:, 0]]
        return not differ(whole[0, :last], first.embeds[0], 1e-4) and not differ(ends, second.embeds[:, 0], 1e-4)

    def extend(
        self, input_ids: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        """Tokens of L ids (T, L) at positions (T, L), after P earlier ones of each text, and the keys and values of all.

        The mask is (T, L, P + L), over the earlier tokens too; ``past`` is what the earlier call returned, None for none.
        """
        assert self.is_incremental
        assert self._cache_name is not None
        return self._extend(self._cache_name, input_ids, mask, positions, past)

    def _extend(
        self, cache_name: str, input_ids: Tensor, mask: Tensor, positions: Tensor, past: KeysValues | None
    ) -> tuple[Tokens, KeysValues]:
        self._require_room(mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.takes_gradients):
            states, past = read_on(
                self.backbone,
                cache_name,
                past,
                input_ids=self.read(input_ids, positions),
                attention_mask=self._added(mask),
                position_ids=positions + first_position(self.backbone),
            )
        return Tokens(states, mask, states[:, 0]), past

    def _require_room(self, mask: Tensor) -> None:
        """Raise ConfigError for texts that there are no positions for: what a task says comes behind what was given."""
        if self.max_length is not None and mask.shape[-1] > self.max_length:
            raise ConfigError(
                f"text_encoder: a text has come to {mask.shape[-1]} tokens with what a task says, but the encoder reads "
                f"{self.max_length} at most; lower the max_length of the data's sources or of the task, or raise "
                "text_encoder.config.max_position_embeddings"
            )

    def _added(self, mask: Tensor) -> Tensor:
        """A mask (T, L, N) as transformers takes a 4-d one: it adds it to the scores as it is."""
        return (1.0 - mask[:, None].to(self.word_embeddings.weight.dtype)) * torch.finfo(torch.float32).min

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        if self.pool == "cls":
            return states[:, 0]
        real = mask if mask.dim() == 2 else mask[:, -1]
        if self.pool == "last":
            return states[torch.arange(real.shape[0], device=real.device), (real.sum(dim=1) - 1).clamp(min=0)]
        weights = real.to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
