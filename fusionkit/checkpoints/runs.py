"""The run that the heads of a checkpoint ask for, and other parts of a plan that many families share."""

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fusionkit.assembly.config_checks import TYPE_NAMES
from fusionkit.checkpoints.base import Key, constant
from fusionkit.checkpoints.classes import saved_labels
from fusionkit.checkpoints.directory import CONFIG
from fusionkit.checkpoints.families.bert import word_head
from fusionkit.checkpoints.source import Source
from fusionkit.config import conf_dir
from fusionkit.data import source as data_source
from fusionkit.data.answers import read_answers
from fusionkit.data.texts.word_labels import TAGGED
from fusionkit.errors import ConfigError, DataError, suggest

EMBEDDINGS = "model.text_encoder.backbone.embeddings."
WORDS = f"{EMBEDDINGS}word_embeddings.weight"
SOURCES = {  # by task: the file in conf/data, and its source
    "itc": ("coco_captions", "coco"),
    "itm": ("coco_captions", "coco"),
    "mlm": ("coco_captions", "coco"),
    "mrm": ("coco_captions", "coco"),
    "vqa": ("vqa_v2", "vqa"),
    "nlvr2": ("nlvr2", "nlvr2"),
    "nlvr2_paired": ("nlvr2", "nlvr2"),
    "entailment": ("snli_ve", "snli_ve"),
    "grounding_regions": ("refcoco", "refcoco"),
    "grounding": ("refcoco_plus", "refcoco_plus"),
    "captioning": ("coco_captions", "coco"),
    "vqa_decoder": ("vqa_v2", "vqa"),
    "vqa_generative": ("vqa_v2", "vqa"),
    "token_classification": ("table", "table"),
}


ACTIVATIONS: dict[str, tuple[dict[str, Any], str]] = {  # by transformers' name: as a target, and by timm's name
    "gelu": ({"_target_": "torch.nn.GELU"}, "gelu"),
    "gelu_new": ({"_target_": "torch.nn.GELU", "approximate": "tanh"}, "gelu_tanh"),
    "gelu_pytorch_tanh": ({"_target_": "torch.nn.GELU", "approximate": "tanh"}, "gelu_tanh"),
    "quick_gelu": ({"_target_": "timm.layers.activations.QuickGELU"}, "quick_gelu"),
    "relu": ({"_target_": "torch.nn.ReLU"}, "relu"),
    "silu": ({"_target_": "torch.nn.SiLU"}, "silu"),
    "swish": ({"_target_": "torch.nn.SiLU"}, "silu"),
}
NO_MROPE = "turns its positions by row, column and time (M-RoPE), where a language model here has one position a token"
NO_PART_HERE = {  # by class: why no family can import it
    "Siglip2Model": "reads images of any proportions as lists of patches (NaFlex), which no image encoder here does; take a "
    "checkpoint of SigLIP 2 for images of one size, a SiglipModel",
    "Qwen2VLForConditionalGeneration": NO_MROPE,
    "Qwen2_5_VLForConditionalGeneration": NO_MROPE,
    "Qwen3VLForConditionalGeneration": NO_MROPE,
}
CLEAN = {"_target_": "fusionkit.data.cleaning.Clean"}  # as ALBEF and X-VLM read texts
OWN_WORD_HEAD = word_head("mlm_score.", "tasks.mlm.head.", "tasks.mlm.head.decoder")  # of METER and its heirs


def groups_of(tasks: Sequence[str]) -> list[str]:
    """The choices of the groups of conf/train.yaml: these tasks, and the data of the first."""
    return [f"data={SOURCES[tasks[0]][0]}", "objectives=none", f"task=[{','.join(tasks)}]"]


def run_of(
    tasks: Sequence[str],
    max_length: int,
    is_of_regions: bool = False,
    clean: Mapping[str, Any] | None = None,
    **data: Any,
) -> dict[str, Any]:
    """What lies over these choices: each task's objective and source, the sources in one data.root; ``data`` as given.

    Images of regions lie in data.root/regions, with class scores where a task tells classes. Texts are read as ``clean``
    changes them, and cut at ``max_length`` tokens, what the checkpoint has positions for, where the source does not cut them
    shorter. Sources that split the same photos in different ways do not train on what another holds out.
    """
    objectives: dict[str, Any] = {}
    regions = {"_target_": "fusionkit.data.regions.Detections", "class_scores": "mrm" in tasks}
    for task in tasks:
        file, source = SOURCES[task]
        config = yaml.safe_load((conf_dir() / "data" / f"{file}.yaml").read_text())
        sources = config["sources"]
        for own in sources.values():
            own["max_length"] = min(max_length, own.get("max_length", data_source.Source.max_length))
            own |= {"clean": clean} if clean else {}
            if task == "token_classification":  # a table has what it has
                own["texts_per_image"] = dict.fromkeys(own["texts_per_image"], 0) | {TAGGED: 1}
            if is_of_regions:
                own |= {"augment": None, "regions": regions}
                own["reader"]["images"] = "${data.root}/regions" + ("/{split}" if source == "nlvr2" else "")
        data["sources"] = data.get("sources", {}) | sources
        data |= {key: config[key] for key in ("answers", "allow_overlap") if key in config}
        objectives.setdefault(source, {})[task] = 1.0
    if len(data["sources"]) > 1:
        data |= {"drop_overlap": list(data["sources"]), "allow_overlap": [["*/val", "*/test*"]]}
    return {"objectives": objectives, "data": data}


def sizes_of(options: Mapping[str, Any], source: Source, part: str | None = None, file: str = CONFIG) -> dict[str, Any]:
    """The sizes as given, or those that a folder brings that transformers saved: the names are transformers'.

    ``part`` is the section of its configuration that they stand in, such as text_config, and ``file`` its name. Raises DataError
    for a value of another kind than the one given here, and for more layers than there are tensors.
    """
    config, place = source.config or {}, f"{source.path / file}: "
    given = config if part is None else config.get(part, {})
    if not isinstance(given, dict):
        raise DataError(f"{place}{part} is {shown(given)}, but has to be an object with sizes")
    found = {name: given.get(name, value) for name, value in options.items()}
    for name, value in found.items():
        key = name if part is None else f"{part}.{name}"
        kind = type(options[name])
        is_right = type(value) is kind or (kind is float and type(value) is int)
        is_right &= "${" not in str(value)  # which a configuration would look up
        if not is_right or (kind is float and not math.isfinite(value)):
            raise DataError(
                f"{place}{key} is {shown(value)}, but has to be {TYPE_NAMES[kind]}, such as {options[name]}"
            )
        if name.endswith("layers") and value > len(source.state):
            raise DataError(f"{place}{key} is {value}, but the checkpoint has {len(source.state)} tensors; correct it")
    return found


def shown(value: Any) -> str:
    """A value of a foreign file as a short word of a sentence."""
    return reprlib.repr(value)


def activation(name: str, key: str = "hidden_act") -> dict[str, Any]:
    """The argument ``activation`` of a layer or head by transformers' name of it, at ``key``; none for GELU, their own."""
    return {} if name == "gelu" else {"activation": _known_activation(name, key)[0] | {"_partial_": True}}


def tower_activation(name: str, key: str = "hidden_act") -> dict[str, str]:
    """The same for a tower of timm's."""
    return {} if name == "gelu" else {"act_layer": _known_activation(name, key)[1]}


def _known_activation(name: str, key: str) -> tuple[dict[str, Any], str]:
    if name not in ACTIVATIONS:
        raise ConfigError(f"{key} is '{name}'; {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


def renamed(table: Mapping[str, str | tuple[str, ...]], theirs: str = "", ours: str = "") -> list[Key]:
    """Keys from a table of names, theirs to ours, behind beginnings that they share."""
    return [
        Key(theirs + name, ours + target if isinstance(target, str) else tuple(ours + part for part in target))
        for name, target in table.items()
    ]


def layers(table: Mapping[str, str | tuple[str, ...]], count: int, theirs: str, ours: str) -> list[Key]:
    """The same for ``count`` layers; {} in the beginnings stands for their number."""
    return [key for number in range(count) for key in renamed(table, theirs.format(number), ours.format(number))]


def of_class(source: Source, heads: Mapping[str, Any]) -> Any:
    """The entry of the class that transformers saved; raises DataError for one that has none."""
    named = (source.config or {}).get("architectures") or ["none"]
    name = named[0] if isinstance(named, list) and isinstance(named[0], str) else shown(named)
    if name in NO_PART_HERE:
        raise DataError(f"{source.path}: {name} {NO_PART_HERE[name]}")
    if name not in heads:
        raise DataError(
            f"{source.path}: config.json names the class {name}; what can be imported is {', '.join(heads)}"
        )
    return heads[name]


def rows(source: Source, name: str) -> int:
    """The first dimension of a published tensor; raises DataError where there is none of this name."""
    if name not in source.state:
        raise DataError(f"{source.path} holds no {name}; is it truncated, or of another family?")
    return len(source.state[name])


def require_start(source: Source, start: str, shown: str, starts: Sequence[str]) -> str:
    """The kind of checkpoint that one of pre-training is turned into; raises ConfigError where it cannot be."""
    if start not in starts:
        raise ConfigError(f"start={start}: {suggest(start, starts)}; all else starts from the import as it is")
    if shown != "pretrain":
        raise ConfigError(f"start={start} is for checkpoints of pre-training, but {source.path} is one of {shown}")
    return start


def as_match(row: Tensor, shape: torch.Size) -> Tensor:
    """The one logit of a ranking as that of a match beside a constant 0."""
    return torch.cat([torch.zeros_like(row), row])


RANKING = Key("rank_output.", "tasks.itm.head.", change=as_match)


def before_ranking(source: Source, theirs: str) -> dict[str, str]:
    """What is left out of a checkpoint of retrieval: the matching head with names that begin so, by a regular expression.

    UNITER, ViLT and METER start ``rank_output`` from its row for a match, and train and score by that alone.
    """
    reason = "the matching head of pre-training, in whose place retrieval trained a row of its own"
    return {rf"{theirs}.*": reason} if source.has(RANKING.theirs) else {}


def heads_of(source: Source, heads: Mapping[str, str]) -> dict[str, str]:
    """Of the beginnings of the names of heads, by task, those that are there; retrieval's row is a matching head."""
    is_ranking = source.has(RANKING.theirs)
    return {task: name for task, name in heads.items() if source.has(name) or (task == "itm" and is_ranking)}


def image_types(source: Source, table: str, start: str | None) -> int:
    """How many images a checkpoint tells apart: as its table of types does, the text's aside; two where NLVR2 starts from it."""
    if start not in (None, "nlvr2"):
        raise ConfigError(f"start={start}: {suggest(start, ['nlvr2'])}; all else starts from the import as it is")
    return rows(source, table) - 1 if start is None else 2


def repeated(table: Tensor, shape: torch.Size) -> Tensor:
    """Types (T, D) for more images: a further one starts as the last."""
    return torch.cat([table, *[table[-1:]] * (shape[0] - len(table))])


def classifier(kind: str, source: Source, beginning: str, eps: float = 1e-5) -> dict[str, Any]:
    """The configuration of a head of fusionkit.tasks.heads, as wide as the published one with names that begin so."""
    target = f"fusionkit.tasks.heads.{kind}"
    return {
        "head": {"_target_": target, "_partial_": True, "hidden_size": rows(source, f"{beginning}0.weight"), "eps": eps}
    }


def answers_of(source: Source, path: str | None, count: int) -> tuple[str, ...]:
    """The answers by id of a head that chooses among ``count``; 0 where there is no such head.

    From a file as ``read_answers`` reads it, of the labels that transformers saved, or numbers as text. Raises ConfigError
    for a list of another length.
    """
    labels = saved_labels(source)
    if path is not None:
        answers = listed_answers(source, path, can_say=count > 0)
        if len(answers) != count:
            raise ConfigError(f"answers={path} holds {len(answers)} answers, but the checkpoint chooses among {count}")
        return answers
    numbers = [str(number) for number in range(count)]
    return tuple(str(labels[number]) for number in numbers) if sorted(labels) == sorted(numbers) else tuple(numbers)


def listed_answers(source: Source, path: str | None, can_say: bool = True) -> tuple[str, ...]:
    """The answers that a decoder ranks, from a file; none without one. Raises ConfigError where it ``can_say`` none."""
    if path is None:
        return ()
    if not can_say:
        raise ConfigError(f"answers={path}: the checkpoint {source.path} answers no questions; leave it out")
    if not Path(path).is_file():
        raise DataError(f"answers={path} does not exist; give the json file of the checkpoint's answers")
    return tuple(read_answers(Path(path)))


def started(shape: torch.Size) -> Tensor:
    """A new matrix, the same at each import: normal, of BERT's spread."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def inverse(scale: Tensor, shape: torch.Size) -> Tensor:
    """The temperature that divides, from the logarithm of a scale that multiplies."""
    return (-scale).exp().reshape(shape)


def no_contrast(*models: str) -> dict[str, Callable[[torch.Size], Tensor]]:
    """Projections and a temperature for checkpoints of models that have none."""
    parts: dict[str, Callable[[torch.Size], Tensor]] = {"temperature": constant(0.07)}
    for side in ("image", "text"):
        parts |= {f"{side}_projection.weight": started, f"{side}_projection.bias": torch.zeros}
    return {f"{model}.{name}": make for model in models for name, make in parts.items()}


NO_CONTRAST = no_contrast("model")
NO_HEAD: Mapping[str, Callable[[torch.Size], Tensor]] = {  # a bare network is given a matching head to train
    "tasks.itm.head.weight": started,
    "tasks.itm.head.bias": torch.zeros,
    **NO_CONTRAST,
}
