"""Language models inside published vision-language models: their configuration here, their names, and the run they ask for."""

import math
import warnings
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from fusionkit.checkpoints import runs
from fusionkit.checkpoints.base import Key
from fusionkit.checkpoints.directory import CONFIG, read_json
from fusionkit.checkpoints.folder import own_tokenizer, require_possible
from fusionkit.checkpoints.source import Source
from fusionkit.data.tokenizer import load_tokenizer, text_format
from fusionkit.encoders.language import most_tokens
from fusionkit.encoders.tower import without_code
from fusionkit.errors import ConfigError, DataError, suggest

TEXT = "model.text_encoder."
TASKS = ("captioning", "vqa_generative")
GENERATION = "generation_config.json"
RULES = {"no_repeat_ngram_size": "no_repeat_ngram", "max_new_tokens": "max_length", "min_new_tokens": "min_length"}
LONGEST = 20  # tokens of a caption, where nothing is said: conf/task/captioning.yaml
UNUSED: Mapping[str, Any] = {  # when off; max_length counts the prompt and the image too, and is left to these
    "repetition_penalty": 1.0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "force_words_ids": [],
    "sequence_bias": {},
    "do_sample": False,
    "min_length": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "penalty_alpha": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {task: {"label_smoothing": 0.0} for task in TASKS}
NO_POSITIONS = {r".*\.rotary_emb\.inv_freq": "frequencies of positions, which are not learnt"}
PLAIN = {
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "final_logit_softcapping": None,
}  # what a head does beside its product


def language_model(source: Source, kept: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration of the text half, a causal language model; ``source`` is ``completed``.

    The published classes predict words by a matrix alone: what the language model by itself does to its logits is off, but
    for what is ``kept``.
    """
    config = source.config or {}
    text = config.get("text_config")
    if not isinstance(text, dict) or not isinstance(text.get("model_type"), str):
        raise DataError(f"{source.path / CONFIG}: text_config names no model_type; is it a vision-language model?")
    ends = ends_of(source)
    require_possible(source, "text_config", least=None)  # which some kinds turn off by 0 or -1
    sizes = without_code({name: value for name, value in text.items() if name not in ("architectures", "dtype")})
    sizes |= {name: value for name, value in PLAIN.items() if name in sizes and name not in kept}
    return {
        "_target_": "fusionkit.encoders.language.LanguageModel",
        "_convert_": "all",
        "config": sizes | {"tie_word_embeddings": is_tied(source), "eos_token_id": ends},
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
    text, end = _text(source), ends_of(source)[0]
    start, pad = (token_of(source, CONFIG, text, name) for name in ("bos_token_id", "pad_token_id"))
    ids = {"cls": start if isinstance(start, int) else end, "sep": end, "pad": pad if isinstance(pad, int) else end}
    return ids | {"mask": None}


def token_of(source: Source, file: str, place: Mapping[str, Any], name: str) -> Any:
    """What a place of a file names as a token; DataError for one that the vocabulary does not have."""
    token, count = place.get(name), _text(source).get("vocab_size")
    lowest = -1 if name == "pad_token_id" else 0  # Llama's first folders have no padding so
    if type(token) is int and type(count) is int and not lowest <= token < count:
        raise DataError(
            f"{source.path / file}: {name} is {runs.shown(token)}, but the language model has {count} words; correct it"
        )
    return token


def ends_of(source: Source) -> list[int]:
    """The tokens that end a text: those of generation, else of the configuration, else the tokenizer's; DataError without any."""
    text, config = _text(source), source.config or {}
    places = ((GENERATION, generation_of(source)), (CONFIG, text), (CONFIG, config))
    place, ends = next(
        ((file, own["eos_token_id"]) for file, own in places if own.get("eos_token_id") is not None), (CONFIG, None)
    )
    if ends is None and (folder := own_tokenizer(source.path)):
        ends = text_format(load_tokenizer(folder)).end
    found: list[Any] = ends if isinstance(ends, list) else [ends]
    if not found or not all(type(end) is int and 0 <= end < text.get("vocab_size", end + 1) for end in found):
        raise DataError(
            f"{source.path / place}: eos_token_id is {runs.shown(ends)}, but has to be the number of the token that ends a text"
        )
    return found


def generation_of(source: Source) -> dict[str, Any]:
    """What the folder says of how texts are generated."""
    file = source.path / GENERATION
    return read_json(file) if file.is_file() else {}


def _text(source: Source) -> Mapping[str, Any]:
    return (source.config or {}).get("text_config") or source.config or {}


def saying(source: Source, room: int) -> dict[str, Any]:
    """Options of captioning as the folder generates, in ``room`` tokens; what no option gives is told in one warning."""
    found, options = generation_of(source), dict[str, Any]()
    for name, option in RULES.items():
        if type(count := found.get(name)) is int and count > 0:
            options[option] = count
    if "max_length" in options:
        options = {"min_length": 0} | options | {"max_length": min(options["max_length"], room)}
    unused = dict(UNUSED)
    if options.get("min_length", 0) >= options.get("max_length", LONGEST):
        del options["min_length"]
        unused["min_new_tokens"] = 0
    if type(beams := found.get("num_beams")) is int and beams > 0:
        options["search"] = {"beams": beams}
        penalty, stops = found.get("length_penalty"), found.get("early_stopping")
        if beams > 1 and penalty is not None:  # one beam has none
            options["search"]["length_penalty"] = _number("length_penalty", penalty, source)
        if beams > 1 and stops is True:
            options["search"]["early_stopping"] = True
        elif beams > 1:  # "never"
            unused["early_stopping"] = False
    if found.get("do_sample"):
        unused |= {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    told = [f"{name} {runs.shown(found[name])}" for name, off in unused.items() if found.get(name) not in (None, off)]
    if told:
        warnings.warn(f"{source.path / GENERATION}: {', '.join(told)}: texts are generated without", stacklevel=2)
    return options


def _number(name: str, value: Any, source: Source) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DataError(
            f"{source.path / GENERATION}: {name} is {runs.shown(value)}, but has to be a number; correct it"
        )
    return float(value)


def run_of(source: Source, tasks: Sequence[str], image_tokens: int, images: Mapping[str, Any]) -> dict[str, Any]:
    """The run of a language model that says captions or answers, with room for the tokens of an image before each text."""
    left = max((most_tokens(SimpleNamespace(**_text(source))) or 512) - image_tokens, 3)
    run = runs.run_of(tasks, left, **images)
    options = {"captioning": saying(source, left)}
    return run | {"task": {task: {**SETTINGS[task], **options.get(task, {})} for task in tasks}}


def require_tasks(tasks: Sequence[str]) -> list[str]:
    """The tasks of the run that the checkpoint is imported for; ConfigError for others than a language model has."""
    for task in tasks:
        if task not in TASKS:
            raise ConfigError(f"tasks: there is no '{task}' here; {suggest(task, TASKS)}")
    if not tasks:
        raise ConfigError(f"tasks is empty; give some of {', '.join(TASKS)}")
    return list(tasks)
