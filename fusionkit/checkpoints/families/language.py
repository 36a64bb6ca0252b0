"""Language models inside published vision-language models: their configuration here, their names, and the run they ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.source import Source
from fusionkit.encoders.tower import without_code
from fusionkit.errors import DataError

TEXT = "model.text_encoder."
TASKS = ("captioning", "vqa_generative")
SETTINGS: Mapping[str, Mapping[str, Any]] = {task: {"label_smoothing": 0.0} for task in TASKS}
NO_POSITIONS = {r".*\.rotary_emb\.inv_freq": "frequencies of positions, which are not learnt"}
UNTIED = "the words' own head, which is the table of embeddings"


def language_model(source: Source) -> dict[str, Any]:
    """The configuration of the text half, a causal language model; ``source`` is ``completed``."""
    config = source.config or {}
    text = config.get("text_config")
    if not isinstance(text, dict) or not isinstance(text.get("model_type"), str):
        raise DataError(f"{source.path / CONFIG}: text_config names no model_type; is it a vision-language model?")
    layers = text.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(source.state):
        raise DataError(
            f"{source.path / CONFIG}: text_config.num_hidden_layers is {layers}, but the checkpoint has {len(source.state)} "
            "tensors; correct it"
        )
    sizes = without_code({name: value for name, value in text.items() if name not in ("architectures", "dtype")})
    return {
        "_target_": "fusionkit.encoders.language.LanguageModel",
        "_convert_": "all",
        "config": sizes | {"tie_word_embeddings": is_tied(source)},
    }


def is_tied(source: Source) -> bool:
    """Whether the head that predicts words is the table of their embeddings."""
    return bool((source.config or {}).get("tie_word_embeddings"))


def language_keys(source: Source, bodies: Sequence[str], heads: Sequence[str]) -> list[Key]:
    """The names of the language model; beginnings of its body and its head in folders of older and newer versions."""
    inner = f"{TEXT}backbone."
    head = f"{inner}embed_tokens." if is_tied(source) else f"{TEXT}head."
    return [*(Key(body, inner) for body in bodies), *(Key(name, head) for name in heads)]


def special_ids(source: Source) -> dict[str, Any]:
    """The special tokens by their ids, as the language model's configuration names them; a start or padding is else the end."""
    text: Mapping[str, Any] = (source.config or {}).get("text_config") or source.config or {}
    end = text.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int):
        raise DataError(
            f"{source.path / CONFIG}: eos_token_id is {runs.shown(end)}, but has to be the number of the token that ends a text"
        )
    start, pad = text.get("bos_token_id"), text.get("pad_token_id")
    ids = {"cls": start if isinstance(start, int) else end, "sep": end, "pad": pad if isinstance(pad, int) else end}
    return ids | {"mask": None}


def run_of(source: Source, tasks: Sequence[str], image_tokens: int, images: Mapping[str, Any]) -> dict[str, Any]:
    """The run of a language model that says captions or answers, with room for the tokens of an image before each text."""
    text = (source.config or {}).get("text_config") or source.config or {}
    room = text.get("max_position_embeddings")
    left = (room if isinstance(room, int) else 512) - image_tokens
    run = runs.run_of(tasks, max(left, 3), **images)
    return run | {"task": {task: dict(SETTINGS[task]) for task in tasks}}


def require_tasks(tasks: Sequence[str]) -> list[str]:
    """The tasks of the run that the checkpoint is imported for; ConfigError for others than a language model has."""
    from fusionkit.errors import ConfigError, suggest

    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"tasks: there is no '{task}' here; {suggest(task, TASKS)}")
    if not tasks:
        raise ConfigError(f"tasks is empty; give some of {', '.join(TASKS)}")
    return list(tasks)
