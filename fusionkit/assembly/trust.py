"""What a stored configuration may build. One that the user composes is his own; one that came in a file is data.

Every ``_target_``, and every ``path`` that ``hydra.utils.get_object`` and its like look up, is checked by its name before
anything is imported, then as the object that the name leads to. What is not in the table needs ``trust=[PACKAGE]``.
"""

import importlib.util
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusionkit.assembly.renames import renamed, today
from fusionkit.config import leaves, target_blocks
from fusionkit.errors import ConfigError, DataError

METRICS = (  # those of torchmetrics that only reckon: others fetch a network, as BERTScore and FID do, or a tokenizer
    "torchmetrics.aggregation.",
    "torchmetrics.classification.",
    "torchmetrics.regression.",
    "torchmetrics.retrieval.",
    *(
        f"torchmetrics.text.{name}"
        for name in ("BLEUScore", "CharErrorRate", "CHRFScore", "EditDistance", "MatchErrorRate", "TranslationEditRate")
    ),
    *(f"torchmetrics.text.{name}" for name in ("WordErrorRate", "WordInfoLost", "WordInfoPreserved")),
)
LAYERS = ("torch.nn.", "timm.layers.", "transformers.activations.")
SCORERS = [
    "VQA",
    "GROUNDING",
    "WEAK_GROUNDING",
    "RETRIEVAL",
    "MATCHING",
    "MASKED",
    "HIDDEN",
    "CAPTIONING",
    "ENTAILMENT",
    "NLVR2",
    "REPLIES",
    "WORD_LABELS",
]
TABLE: Mapping[str, tuple[str, ...]] = {
    # by section of a configuration: what it may build. An entry that ends in "." is a module or package, of which classes,
    # functions and constants that are defined in it are parts; any other is one name. No part that a command builds of a stored
    # configuration writes, deletes, fetches or starts; loggers and the like are those of a run, which its user composes.
    "image_encoder": ("fusionkit.encoders.", "fusionkit.fusion.", *LAYERS),
    "text_encoder": ("fusionkit.encoders.", *LAYERS),
    "fusion": ("fusionkit.fusion.", *LAYERS),
    "model": ("fusionkit.model.model.VisionLanguageModel", "fusionkit.model.model.assemble"),
    "adapters": ("fusionkit.model.adapters.Adapters", "fusionkit.model.adapters.Rule"),
    "teacher": (
        "fusionkit.model.momentum.MomentumTeacher",
        "fusionkit.training.distillation.teacher.CheckpointTeacher",  # which is built where a run trains alone
    ),
    "negatives": ("fusionkit.negatives.",),
    "task": (
        "fusionkit.tasks.",
        "fusionkit.fusion.",
        "fusionkit.negatives.",
        "fusionkit.model.model.text_decoder",
        *(f"fusionkit.scoring.scorers.{name}" for name in SCORERS),
        "fusionkit.scoring.captioning.Bleu",
        "fusionkit.scoring.captioning.Captions",
        "fusionkit.scoring.classification.Entailment",
        "fusionkit.scoring.classification.NLVR2",
        "fusionkit.scoring.classification.WordLabels",
        "fusionkit.scoring.grounding.Grounding",
        "fusionkit.scoring.masked.HiddenFeatures",
        "fusionkit.scoring.masked.MaskedTokens",
        "fusionkit.scoring.matching.Matching",
        "fusionkit.scoring.replies.Replies",
        "fusionkit.scoring.retrieval.Retrieval",
        "fusionkit.scoring.vqa.VQA",
        "fusionkit.training.metrics.MetricScorer",
        "fusionkit.training.rewards.CiderReward",
        *METRICS,
        *LAYERS,
    ),
    "data": (
        "fusionkit.data.answers.AnswerVocabulary",
        "fusionkit.data.answers.AnswerVocabulary.build",
        "fusionkit.data.readers.aro.",
        "fusionkit.data.readers.caption_lists.",
        "fusionkit.data.readers.class_folders.",
        "fusionkit.data.cleaning.",
        "fusionkit.data.readers.coco.",
        "fusionkit.data.readers.coco_objects.",
        "fusionkit.data.readers.dialogues.",
        "fusionkit.data.datamodule.DataModule",
        "fusionkit.data.readers.flickr30k_entities.",
        "fusionkit.data.joint.",
        "fusionkit.data.readers.mmmu.",
        "fusionkit.data.readers.nlvr2.",
        "fusionkit.data.readers.pope.",
        "fusionkit.data.readers.refcoco.",
        "fusionkit.data.regions.Detections",
        "fusionkit.data.readers.snli_ve.",
        "fusionkit.data.readers.sugarcrepe.",
        "fusionkit.data.readers.table.Table",
        "fusionkit.data.readers.table_data.TableData",
        "fusionkit.data.readers.text_questions.",
        "fusionkit.data.source.Source",
        "fusionkit.data.streams.clips.Clips",
        "fusionkit.data.streams.recordings.Recordings",
        "fusionkit.data.transforms.Augment",
        "fusionkit.data.readers.valse.",
        "fusionkit.data.readers.visual_genome.",
        "fusionkit.data.readers.vqa.",
        "fusionkit.data.readers.winoground.",
    ),
    "evaluation": (
        "fusionkit.assembly.evaluation_options.EvaluationOptions",
        "fusionkit.assembly.evaluation_options.Reranking",
    ),
    "trainer": (
        "fusionkit.training.processes.sharding.FullySharded",
        "fusionkit.training.processes.slurm_job.Slurm",
        "lightning.Trainer",
        "lightning.pytorch.Trainer",
        "lightning.pytorch.strategies.",
    ),
    "balance": ("fusionkit.balance.",),
    "optimizer": ("fusionkit.training.optim.build_optimizer", "fusionkit.training.muon.build_muon", "torch.optim."),
    "scheduler": ("fusionkit.training.schedule.", "torch.optim.lr_scheduler."),
    "stages": ("fusionkit.training.stages.Stage",),
    "callbacks": (
        "fusionkit.training.callbacks.",
        "fusionkit.training.diagnostics.",
        "fusionkit.training.image_gain.ImageGain",
        "fusionkit.training.progress.",
    ),
    "logger": ("fusionkit.training.loggers.ScoreWandbLogger", "lightning.pytorch.loggers."),
}
BASES = {  # of these modules only the classes below one
    "fusionkit.encoders.": "torch.nn.modules.module.Module",
    "torch.nn.": "torch.nn.modules.module.Module",
    "timm.layers.": "torch.nn.modules.module.Module",
    "transformers.activations.": "torch.nn.modules.module.Module",
    "torch.optim.": "torch.optim.optimizer.Optimizer",
    "torch.optim.lr_scheduler.": "torch.optim.lr_scheduler.LRScheduler",
    "lightning.pytorch.strategies.": "lightning.pytorch.strategies.strategy.Strategy",
    "lightning.pytorch.loggers.": "lightning.pytorch.loggers.logger.Logger",
    **dict.fromkeys((entry for entry in METRICS if entry.endswith(".")), "torchmetrics.metric.Metric"),
}
NETWORK = ("image_encoder", "text_encoder", "fusion", "model", "adapters", "task")  # what is built of any checkpoint
WEIGHTS = ("pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "file")
"""Arguments of our own parts by which networks read files, or fetch them."""
GETTERS = tuple(f"hydra.utils.get_{kind}" for kind in ("object", "class", "method"))
RESOLVERS = ("package_file", "first_of", "oc.select")  # of ${name:...}, those that read nothing of this machine
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ESCAPED = re.compile(r"\\*\$\{")
DEEPEST = 60  # levels of a configuration


def read_stored(text: Any, origin: str | Path, trust: object = ()) -> DictConfig:
    """A configuration as it stands in a file, ``origin``; raises DataError where it is none.

    What asks for anything of this machine (``${oc.env:...}``) stays text, unless ``trust`` names its resolver.
    """
    trusted = packages(trust)
    if fault := fault_of_yaml(text):
        raise DataError(f"{origin}: its configuration {fault}; it was not written by fusionkit")
    try:
        config = OmegaConf.create(text)
        plain = OmegaConf.to_container(config, resolve=False)
        config = OmegaConf.create(as_texts(plain, trusted))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{origin}: its configuration cannot be read ({reason})") from error
    if not isinstance(config, DictConfig):
        raise DataError(f"{origin}: its configuration is no mapping of keys; it was not written by fusionkit")
    return config


def fault_of_yaml(text: Any) -> str | None:
    """Why a text is no stored configuration, if it is none.

    It is no yaml, or has aliases, by which a few lines become millions, or is nested more deeply than any of ours.
    """
    if not isinstance(text, str):
        return f"is no text but {type(text).__name__}"
    depth = 0
    try:
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                return f"has aliases (*{event.anchor}), which no configuration of ours has"
            if depth > DEEPEST:
                return f"is more than {DEEPEST} levels deep"
    except (yaml.YAMLError, ValueError) as error:
        return f"is not valid yaml ({' '.join(str(error).split())[:200]})"
    return None


def as_texts(node: Any, trusted: Sequence[str] = ()) -> Any:
    """A plain configuration in which texts that call a resolver which is not ours, nor trusted, are texts and no calls.

    Names of our parts that were moved since are today's; what is looked up and built is checked under these.
    """
    if isinstance(node, dict):
        return {key: as_texts(child, trusted) for key, child in today(node).items()}
    if isinstance(node, list):
        return [as_texts(child, trusted) for child in node]
    if isinstance(node, str) and foreign_resolver(node, trusted):
        return ESCAPED.sub(
            r"\\${", node
        )  # of two backslashes the first would escape the second, and the call be one again
    return renamed(node) if isinstance(node, str) else node


def foreign_resolver(text: str, trusted: Sequence[str] = ()) -> str | None:
    """The first resolver that a text calls which is not one of ours, nor trusted, if there is one."""
    for start in re.finditer(r"\$\{", text):
        called = re.match(r"\s*([^{}\[\]]*?)\s*([:${}\[]|$)", text[start.end() :])
        name, end = called.groups() if called else ("", "")
        if end == "$":  # a name that is itself looked up can become any
            return "${"
        if end == ":" and name not in (*RESOLVERS, *trusted):
            return name
    return None


def packages(trust: object) -> tuple[str, ...]:
    """``trust`` as names of packages; raises ConfigError for what is none."""
    names = [trust] if isinstance(trust, str) else list(trust) if isinstance(trust, Iterable) else [trust]
    if names == [None]:
        return ()
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise ConfigError(f"trust names {name!r}, but takes names of packages: trust=[my_package]")
    return tuple(names)


def inert(config: DictConfig) -> DictConfig:
    """A copy that asks this machine nothing, to be compared with what ``read_stored`` gives."""
    plain: DictConfig = OmegaConf.create(as_texts(OmegaConf.to_container(config, resolve=False)))
    return plain


def require_trusted(
    config: DictConfig,
    sections: Iterable[str],
    origin: str | Path,
    trust: object = (),
    own: Mapping[str, Any] | None = None,
) -> None:
    """Raise ConfigError unless these sections of a stored configuration build what the table lets them, or ``trust`` names.

    ``own`` is what the user laid over it, and is not asked about.
    """
    given = {place for place, _ in leaves(OmegaConf.to_container(OmegaConf.create(dict(own or {})), resolve=False))}
    trusted, stored = packages(trust), OmegaConf.to_container(config, resolve=False)
    assert isinstance(stored, dict)
    for section in sections:
        for place, value in leaves(stored.get(section), section):
            name = foreign_resolver(value, trusted) if isinstance(value, str) else None
            if place not in given and name is not None:
                _refuse_call(place, value, name, origin)
        node = config.get(section)
        if node is None:
            continue
        if not OmegaConf.is_config(node):
            raise DataError(f"{origin}: {section} is {_short(node)}, but has to be a section of a configuration")
        resolved = OmegaConf.to_container(node, resolve=True)
        require_trusted_block(resolved, section, section, origin, trust, given)


def require_trusted_block(
    block: Any, section: str, place: str, origin: str | Path, trust: object = (), given: Container[str] = ()
) -> None:
    """The same for one plain block of the kind of a section, which was found at ``place``, its references filled in.

    A text in it that would be a reference is refused: Hydra fills in once more. ``given`` are places that are the user's.
    """
    trusted = packages(trust)
    for inner, value in leaves(block, place):
        if isinstance(value, str) and "${" in value and inner not in given:
            _refuse_call(inner, value, foreign_resolver(value, trusted) or "${", origin)
    for inner, name in targets(block, place):
        if inner not in given:
            require_part(inner, name, origin, TABLE[section], trusted)
    for key, part in target_blocks(block, place):
        if str(part["_target_"]).startswith("fusionkit."):
            unnamed = ["_args_"] if part.get("_args_") else []  # which could be any of them
            for argument in unnamed + [name for name in WEIGHTS if section in NETWORK and part.get(name)]:
                if f"{key}.{argument}" not in given:
                    raise ConfigError(
                        f"{origin}: {key}.{argument} is {_short(part[argument])}, but a stored configuration reads no files for "
                        "a network and names all arguments; its weights are those that lie beside it"
                    )


def _refuse_call(place: str, value: str, name: str, origin: str | Path) -> NoReturn:
    fix = "write its value there" if name == "${" else f"add trust=[{name}] if you trust who wrote it"
    raise ConfigError(
        f"{origin}: {place} is {_short(ESCAPED.sub('${', value))}, which a stored configuration does not get from this "
        f"machine; {fix}"
    )


def targets(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All that a plain configuration names to be built or looked up, each with the key that names it."""
    for key, block in target_blocks(node, place):
        yield f"{key}._target_", block["_target_"]
        if block["_target_"] in GETTERS:
            # without a path of its own it would look up what it is called with
            is_plain = "_args_" not in block and not block.get("_partial_")
            yield f"{key}.path", block.get("path") if is_plain else None


def require_part(place: str, name: Any, origin: str | Path, allowed: Sequence[str], trusted: Sequence[str]) -> None:
    """Raise ConfigError unless a name is one of the ``allowed`` entries, or of a trusted package; imports nothing else."""
    if name in GETTERS and place.endswith("._target_"):
        return
    if isinstance(name, str) and NAME.fullmatch(name) and "._" not in name:
        top = name.partition(".")[0]
        if top != "fusionkit" and any(f"{name}.".startswith(f"{package}.") for package in trusted):
            return
        if any(_is_part(name, entry) for entry in allowed):
            return
        if top != "fusionkit":
            raise ConfigError(
                f"{origin}: {place} is {_short(name)}, which a stored configuration does not build by itself: it would run "
                f"code of {top}; add trust=[{top}] if you trust who wrote it"
            )
    raise ConfigError(
        f"{origin}: {place} is {_short(name)}, which is no part that fusionkit builds there; the file was not written by "
        "fusionkit, or not by this version"
    )


def may_look_up(section: str, name: Any, trust: object) -> bool:
    """Whether a stored configuration may have what it names in a section looked up, before it is asked whether to build it."""
    try:
        require_part(section, name, "", TABLE[section], packages(trust))
    except ConfigError:
        return False
    return True


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_part(name: str, entry: str) -> bool:
    """Whether a name is that of an entry, and leads to what is defined there."""
    if not (name.startswith(entry) if entry.endswith(".") else name == entry):
        return False
    module, rest = _module_of(name)
    found: Any = module
    for part in rest:
        found = vars(found).get(part) if isinstance(found, ModuleType) else getattr(found, part, None)
    if not entry.endswith("."):
        return found is not None and not isinstance(found, ModuleType)
    if len(rest) != 1 or module is None:
        return False
    base = BASES.get(entry, "builtins.object" if entry.startswith("fusionkit.data.") else None)
    if base and not (isinstance(found, type) and base in {f"{c.__module__}.{c.__qualname__}" for c in found.__mro__}):
        return False
    home = found if isinstance(found, type | FunctionType) else type(found)
    return f"{home.__module__}.".startswith(entry)


def _module_of(name: str) -> tuple[ModuleType | None, list[str]]:
    """The innermost module of a dotted name, each imported by its own name, and what is left of the name."""
    parts, module = name.split("."), None
    for count in range(1, len(parts) + 1):
        if module is not None and not hasattr(module, "__path__"):
            return module, parts[count - 1 :]
        if module is not None and not _is_module(module, parts[count - 1]):
            return module, parts[count - 1 :]
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            return module, parts[count - 1 :]
    return module, []


def _is_module(package: ModuleType, name: str) -> bool:
    """Whether a package's name is a module; what it defines under the name comes first, as in ``hydra.utils``."""
    found = vars(package).get(name)
    if found is None:
        return importlib.util.find_spec(f"{package.__name__}.{name}") is not None
    return isinstance(found, ModuleType) and found.__name__ == f"{package.__name__}.{name}"
