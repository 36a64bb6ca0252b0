"""transformers' models as text towers: how they are built, loaded, padded and read on; their inner names stand here alone."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    DynamicCache,
    FlavaTextModel,
    PreTrainedModel,
    Siglip2TextModel,
    SiglipTextModel,
)
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as transformers_logging

from fusionkit.encoders.probe import first_line
from fusionkit.errors import ConfigError, DataError
from fusionkit.internals import build_from_config
from fusionkit.types import TextFormat

UNLISTED = {  # towers that AutoModel does not know
    "flava_text_model": FlavaTextModel,
    "siglip_text_model": SiglipTextModel,
    "siglip2_text_model": Siglip2TextModel,
}
OWN = ("_remove_final_layer_norm",)  # of OPT: what decides of parts although its name is private
CODE = (  # what a configuration names that transformers or timm would fetch, or run
    "auto_map",
    "attn_implementation",
    "experts_implementation",
    "use_kernels",
    "kernel_config",
    "quantization_config",
    "architecture",
    "backbone",
    "backbone_kwargs",
)
CHOOSE = "choose another model_type, such as bert or roberta"
CACHES = ("cache", "past_key_values")  # what the argument is called from transformers 5.24 on, and before
LINEAR = (nn.Linear, Conv1D)  # the linear layers of a tower; the weight of the latter, GPT-2's, is (in, out)
BEFORE = "before_layer"  # the argument of a call that goes through the library's own to each layer
KeysValues = list[tuple[Tensor, Tensor]]  # of each layer, (T, heads, tokens, width)
BeforeLayer = Callable[
    [int, Tensor], Tensor
]  # the number of a layer, and the states (T, L, D) that it is about to read


def build_tower(config: Mapping[str, Any], vocab_size: int, words: TextFormat | None) -> PreTrainedModel:
    """A tower without trained weights; its padding token is the tokenizer's, where ``config`` names none."""
    given = without_code(config)
    fields = {"vocab_size": vocab_size} | ({"pad_token_id": words.pad} if words else {}) | given
    try:
        built = AutoConfig.for_model(**fields)
    except Exception as error:  # unknown kinds, and fields that a kind does not have, each with an error of its own
        raise ConfigError(
            f"text_encoder.config: needs a known 'model_type' such as bert or roberta, and its fields ({first_line(error)})"
        ) from error
    try:
        tower = _from_config(built)
    except Exception as error:  # a library's own checks of sizes, and what follows from them
        reason = first_line(error)
        if reason.startswith("Unrecognized configuration class"):  # names classes, and tables of them
            reason = f"transformers has no text encoder of model_type '{built.model_type}'; {CHOOSE}"
        raise ConfigError(f"text_encoder.config: {reason}") from error
    word_table(tower)
    if words is not None:
        pad_as(tower, words, is_given="pad_token_id" in config)
    return tower


def without_code(node: Any) -> Any:
    """A configuration, with those of its parts, that fetches nothing; what is private to the library, but OWN, is left out."""
    if isinstance(node, Mapping):
        return {
            key: without_code(value)
            for key, value in node.items()
            if key not in CODE and (key in OWN or not str(key).startswith("_"))
        }
    return [without_code(value) for value in node] if isinstance(node, list) else node


def _from_config(config: Any) -> PreTrainedModel:
    if config.model_type in UNLISTED:
        build = partial(build_from_config, UNLISTED[config.model_type])
    else:
        build = partial(_auto(config).from_config, trust_remote_code=False)
    try:
        tower: PreTrainedModel = build(config, **_plain(config))
    except ValueError as error:
        if "attn_implementation" not in str(error):
            raise
        tower = build(config, **_plain(config) | {"attn_implementation": "eager"})  # one that knows no other
    return tower


def load_tower(pretrained: str, overrides: Mapping[str, Any], words: TextFormat | None) -> PreTrainedModel:
    """A tower with the weights of a hub id or a local directory."""
    is_path = pretrained.startswith((".", "/", "~")) or Path(pretrained).exists()
    if is_path and not (Path(pretrained).expanduser() / "config.json").is_file():
        raise DataError(
            f"text_encoder.pretrained: {pretrained} holds no config.json; give a transformers model directory or a hub id"
        )
    try:
        config = AutoConfig.from_pretrained(pretrained, trust_remote_code=False, **overrides)
        kind: Any = UNLISTED.get(config.model_type) or _auto(config)
        tower: PreTrainedModel
        with quiet():
            tower, report = kind.from_pretrained(
                pretrained,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
                **_plain(config),
            )
    except (OSError, ValueError) as error:
        raise DataError(
            f"text_encoder.pretrained: '{pretrained}' could not be loaded ({first_line(error)}); give a directory or a hub id"
        ) from error
    kind_of = f"{config.model_type} encoder"
    require_whole(f"text_encoder.pretrained: '{pretrained}'", report, kind_of, "the directory of a whole model")
    if words is not None:
        pad_as(tower, words, is_given=True)
    return tower


def require_whole(place: str, report: Mapping[str, Any], kind: str, wanted: str) -> None:
    """Raise DataError where what was loaded at a place lacks weights of its kind, by transformers' report."""
    if missing := sorted(report["missing_keys"]):
        raise DataError(f"{place} lacks {len(missing)} weights of a {kind}, among them {missing[0]}; give {wanted}")


def _auto(config: Any) -> Any:
    """Which of transformers' tables has the model: of one that is an encoder with a decoder, the encoder alone (T5)."""
    return AutoModelForTextEncoding if config.is_encoder_decoder else AutoModel


def _plain(config: Any) -> dict[str, Any]:
    """What makes the tower a plain encoder: no pooler, and plain attention where it trains faster (CPU, see benchmarks)."""
    options: dict[str, Any] = {"attn_implementation": "sdpa" if torch.cuda.is_available() else "eager"}
    if config.model_type in ("bert", "roberta", "xlm-roberta", "camembert", "flava_text_model"):
        options["add_pooling_layer"] = False
    return options


def word_table(tower: Any) -> nn.Embedding:
    """The table of word embeddings."""
    try:
        table = tower.get_input_embeddings()
    except NotImplementedError:  # CANINE, which hashes letters
        table = None
    if not isinstance(table, nn.Embedding):
        raise ConfigError(f"text_encoder: {tower.config.model_type} has no plain table of word embeddings; {CHOOSE}")
    return table


def first_position(tower: nn.Module) -> int:
    """The position of a text's first token: RoBERTa and its like count from behind the number of their padding token."""
    embeddings = getattr(tower, "embeddings", None)
    return 0 if isinstance(embeddings, nn.Embedding) else int(getattr(embeddings, "padding_idx", -1)) + 1


def pad_as(tower: Any, words: TextFormat, is_given: bool) -> None:
    """Make the tokenizer's padding token the tower's: the one whose embedding does not learn, and that has no position.

    A token that is a word, a start or an end too has to learn. A tower whose padding is ``is_given``, by its weights or its
    configuration, keeps its positions.
    """
    old, counts = word_table(tower).padding_idx, first_position(tower) > 0
    if counts and (not words.pads_alone or (is_given and tower.config.pad_token_id != words.pad)):
        other = "is a word, the start or the end of texts too" if not words.pads_alone else f"has the id {words.pad}"
        raise ConfigError(
            f"text_encoder: {tower.config.model_type} counts positions from its padding token, which has the id "
            f"{tower.config.pad_token_id}, but the tokenizer's {other}; give it the tokenizer that it was made for, or {CHOOSE}"
        )
    for part in tower.modules():
        if old is not None and getattr(part, "padding_idx", None) == old:
            part.padding_idx = words.pad if words.pads_alone else None


def read_on(tower: Any, cache_name: str, past: KeysValues | None, **inputs: Any) -> tuple[Tensor, KeysValues]:
    """The states of further tokens, and the keys and values of all; ``cache_name`` is one of ``CACHES``."""
    cache: Any = DynamicCache(past)
    states = tower(**inputs, **{cache_name: cache}).last_hidden_state
    return states, [(layer.keys, layer.values) for layer in cache.layers]


def kept_in(arguments: Iterable[Any]) -> list[Tensor]:
    """The keys and values in the caches that are among the arguments of a layer."""
    caches = [each for each in arguments if hasattr(each, "get_seq_length")]
    plain = [getattr(each, part, None) for each in caches for part in ("self_attention_cache", "cross_attention_cache")]
    rows = [row for each in (*caches, *plain) for row in getattr(each, "layers", ())]
    found = (getattr(row, name, None) for row in rows for name in ("keys", "values"))
    return [tensor for tensor in found if isinstance(tensor, Tensor)]


def layers_of(backbone: Any) -> Sequence[nn.Module]:
    """The layers that states pass through in turn: the outermost list of as many as the configuration counts."""
    count = backbone.config.num_hidden_layers
    lists = (part for part in backbone.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    return next(lists, ())  # type: ignore[arg-type]  # a ModuleList is a sequence in all but name


def open_layers(layers: Sequence[nn.Module]) -> None:
    """Let a call bring what is done with the states before each layer, a ``BeforeLayer`` as its argument ``BEFORE``.

    Nothing is kept on a layer: the library hands the argument on to it, and a hook takes it out again, also where the layer
    is computed anew in the backward pass.
    """
    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(partial(_before_layer, number), with_kwargs=True)


def _before_layer(number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if BEFORE not in kwargs:
        return None
    others = {name: value for name, value in kwargs.items() if name != BEFORE}
    if args:
        return (kwargs[BEFORE](number, args[0]), *args[1:]), others
    return args, others | {"hidden_states": kwargs[BEFORE](number, kwargs["hidden_states"])}


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bar, its report on heads that an encoder does not have, and what it says of old names."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()
