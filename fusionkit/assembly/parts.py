"""A configuration becomes parts: data, encoders, fusion, model, tasks, teacher."""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fusionkit.assembly.checks import (
    check_answers,
    check_budget,
    check_chat,
    check_contract,
    check_image_size,
    check_images,
    check_length,
    check_needs,
    check_pictures,
    check_reads,
    check_roles,
    check_template,
    check_text,
    freeze_unreached,
)
from fusionkit.assembly.evaluation_options import EvaluationOptions
from fusionkit.assembly.precision import resolve_precision
from fusionkit.assembly.signatures import signature_of
from fusionkit.data.datamodule import DataModule
from fusionkit.data.texts.conversations import CONVERSATIONS
from fusionkit.data.tokenizer import COMPANION, companion_of, text_format
from fusionkit.encoders.base import ImageEncoder, SupportsMasking, TextEncoder
from fusionkit.encoders.probe import abilities_of, probe_text
from fusionkit.errors import ConfigError, refusals
from fusionkit.fusion.base import Fusion, SupportsInstructions
from fusionkit.model.base_weights import count_parameters
from fusionkit.model.int8 import Quantised
from fusionkit.model.model import VisionLanguageModel
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.tasks.base import Task
from fusionkit.types import Dims, InstructionWords, TextFormat

CHECKPOINT_TEACHER = "fusionkit.training.distillation.teacher.CheckpointTeacher"
# what a model is built from, beside the vocabulary
RECIPE = ("image_encoder", "text_encoder", "fusion", "model", "adapters", "task")


@dataclass(frozen=True)
class Parts:
    """What training and evaluation share."""

    config: DictConfig
    datamodule: DataModule
    model: VisionLanguageModel
    tasks: dict[str, Task[Any]]
    int8: Quantised | None = None  # what was rounded to 8 bits; such a model does not train
    trainable: list[nn.Parameter] = field(init=False, repr=False)  # those that were when it was built

    def __post_init__(self) -> None:
        trainable = [p for module in self._modules for p in module.parameters() if p.requires_grad]
        object.__setattr__(self, "trainable", trainable)

    def thaw(self) -> None:
        """Have all train again that a module over these parts keeps for a later stage."""
        for parameter in self.trainable:
            parameter.requires_grad_(True)

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return (self.model, *self.tasks.values())

    @property
    def objectives(self) -> dict[str, dict[str, float]]:
        """Weight by source and task, as configured."""
        return OmegaConf.to_container(self.config.objectives, resolve=True)  # type: ignore[return-value]

    @property
    def parameters(self) -> int:
        """How many numbers model and heads have; what they share counts once."""
        return sum(count_parameters(self._modules).values())


def build_parts(config: DictConfig, has_data: bool = True, **data: Any) -> Parts:
    """Data, model and tasks; ``data`` replaces arguments of the data module (a restored tokenizer, answers).

    Without ``has_data`` no folder is looked for, and none is made: the data module says how inputs are read, and holds none.
    """
    evaluation_options(config)  # a mistake in them should not wait for the end of the training
    datamodule: DataModule = instantiate(config.data, **data)
    check_roles(config, {role for source in datamodule.sources.values() for role in source.splits})
    if has_data:
        datamodule.prepare_data()
        datamodule.setup()
    words = text_format(datamodule.tokenizer)
    model = build_model(config, len(datamodule.tokenizer), words)
    for source in config.objectives:
        check_images(str(source), datamodule, model.image_encoder)
        check_length(str(source), datamodule, model.text_encoder.max_length)
        check_chat(str(source), datamodule, has_data)
    dims = dims_of(model, datamodule.tokenizer, datamodule.answers.answers if datamodule.answers else ())
    tasks = build_tasks(config, dims, model.fusion)
    image_tokens = None
    if model.image_encoder.reads == "pixel_values":
        image_tokens = check_image_size(model.get_submodule("image_encoder"), datamodule.finish.size)
    abilities = abilities_of(model.text_encoder, words.pad)
    for source, weights in config.objectives.items():
        for name, weight in weights.items():
            if weight > 0:
                check_text(str(name), tasks[name], model, abilities)
                tasks[name].check(model)
            check_reads(f"objectives.{source}.{name}", tasks[name], datamodule.sources[str(source)].kinds)
            check_answers(f"objectives.{source}.{name}", tasks[name], dims)
            check_template(f"data.sources.{source}.template", str(name), tasks[name], datamodule.sources[str(source)])
        is_chat = has_data and any(tasks[str(name)].reads == CONVERSATIONS for name in weights)
        images = check_pictures(str(source), datamodule, model.fusion) if is_chat else 1
        regions = datamodule.sources[str(source)].regions
        if (count := image_tokens if regions is None else regions.max_regions) is not None:
            check_budget(str(source), datamodule, model, [tasks[str(name)] for name in weights], count, images)
    return Parts(config, datamodule, model, tasks)


def build_model(config: DictConfig, vocab_size: int, words: TextFormat | None = None) -> VisionLanguageModel:
    """Encoders, fusion, model and adapters; vocabulary and text format are the tokenizer's.

    A text encoder that takes no format pads as it will.
    """
    with refusals("image_encoder"):
        image_encoder = instantiate(config.image_encoder)
    check_contract("image_encoder", image_encoder, ImageEncoder)
    takes_format = words is not None and "text_format" in signature_of(config.text_encoder._target_)
    with refusals("text_encoder"):
        build = instantiate(config.text_encoder, _partial_=True)  # Hydra would take a TextFormat apart
        text_encoder = build(vocab_size=vocab_size, **({"text_format": words} if takes_format else {}))
    check_contract("text_encoder", text_encoder, TextEncoder)
    with refusals("model or fusion"):
        model: VisionLanguageModel = instantiate(config.model)(
            image_encoder=image_encoder, text_encoder=text_encoder, fusion=instantiate(config.fusion)
        )
    check_contract("fusion", model.fusion, Fusion)
    if config.get("adapters"):
        with refusals("adapters"):
            instantiate(config.adapters)(model)
        if words is not None and not model.predicts_words:  # else all of it is read
            encoder = model.get_submodule("text_encoder")
            pad = words.pad
            freeze_unreached("text_encoder", encoder, lambda: probe_text(model.text_encoder, pad).unreached)
    return model


def build_tasks(config: DictConfig, dims: Dims, fusion: Fusion) -> dict[str, Task[Any]]:
    """The configured tasks, each built from the plain values of the run; those of weight 0 need nothing of the fusion."""
    tasks = {str(name): instantiate(block)(dims=dims) for name, block in config.task.items()}
    for name, task in tasks.items():
        scorer = getattr(task, "scorer", None)
        if not (scorer is None or callable(scorer) or hasattr(scorer, "rows")):
            raise ConfigError(
                f"task.{name}.scorer is {reprlib.repr(scorer)}, but has to be a function that gives the scores, or a Scorer, as "
                "in conf/task, or null"
            )
    weights = [(name, weight) for row in config.objectives.values() for name, weight in row.items()]
    for name in dict.fromkeys(name for name, weight in weights if weight > 0):
        check_needs(name, tasks[name], fusion)
    return tasks


def build_teacher(
    config: DictConfig, model: VisionLanguageModel, tasks: Mapping[str, Task[Any]]
) -> MomentumTeacher | None:
    """The momentum teacher, if the run has one. A checkpoint that teaches is read for a training alone, and not from here."""
    if not config.teacher or is_checkpoint_teacher(config.teacher):
        return None
    teacher: MomentumTeacher = instantiate(config.teacher)(model, tasks)
    return teacher


def is_checkpoint_teacher(section: Any) -> bool:
    """Whether a section ``teacher`` names another checkpoint; by its name, so that nothing is built to know it."""
    return bool(section) and section.get("_target_") == CHECKPOINT_TEACHER


def dims_of(model: VisionLanguageModel, tokenizer: Any, answers: Sequence[str]) -> Dims:
    """The plain values of a model, its tokenizer and the answers."""
    words = text_format(tokenizer)
    last = max(tokenizer.get_vocab().items(), key=itemgetter(1))
    known = model.text_encoder.word_embeddings.num_embeddings
    if last[1] >= known:
        raise ConfigError(
            f"tokenizer: its token {last[0]!a} has the number {last[1]}, but the text encoder has words for {known}; give one "
            "whose tokens are numbered from 0 on without gaps, or another text_encoder"
        )
    ids = {"cls": words.start, "sep": words.end, "pad": words.pad, "mask": words.mask}
    return replace(
        plain_dims(model, ids, answers),
        answer_tokens=spell(tokenizer, answers, within_text=model.predicts_words and not model.encodes_prompts),
        tokens=tuple(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))),
        instruction_words=instruction_words(model.fusion, tokenizer),
    )


def instruction_words(fusion: Fusion, tokenizer: Any) -> InstructionWords | None:
    """How a fusion that reads instructions spells them: by the tokenizer's companion, else by the tokenizer itself.

    ConfigError where it knows fewer words than that has.
    """
    if not isinstance(fusion, SupportsInstructions):
        return None
    companion = companion_of(tokenizer)
    own: Any = tokenizer if companion is None else companion
    if len(own) > fusion.instruction_size:
        raise ConfigError(
            f"fusion.projector.vocab_size is {fusion.instruction_size}, but the tokenizer that instructions are read by has "
            f"{len(own)} tokens; give the one that belongs to it as {COMPANION}/ in the folder of tokenizer=FOLDER, or set "
            f"fusion.projector.vocab_size={len(own)}"
        )
    form = text_format(own)
    return InstructionWords(tuple(own.convert_ids_to_tokens(range(len(own)))), form.start, form.end)


def plain_dims(model: VisionLanguageModel, ids: Mapping[str, Any], answers: Sequence[str]) -> Dims:
    """The plain values of a model without a tokenizer, from the ids of the special tokens: no task can spell with them."""
    words, encoder = model.text_encoder.word_embeddings, model.image_encoder
    maskable = encoder if isinstance(encoder, SupportsMasking) else None
    return Dims(
        hidden_size=model.fusion.hidden_size,
        pooled_size=model.fusion.pooled_size,
        image_size=encoder.hidden_size,
        feature_size=maskable.feature_size if maskable else 0,
        mask_token_size=maskable.mask_token_size if maskable else 0,
        text_size=words.embedding_dim,
        embed_size=model.embed_size,
        vocab_size=words.num_embeddings,
        predicts_words=model.predicts_words,
        encodes_prompts=model.encodes_prompts,
        other_ends=tuple(end for end in getattr(model.text_encoder, "ends", ()) if end != ids["sep"]),
        answers=tuple(answers),
        cls_token_id=ids["cls"],
        sep_token_id=ids["sep"],
        pad_token_id=ids["pad"],
        mask_token_id=ids["mask"],
    )


def spell(tokenizer: Any, answers: Sequence[str], within_text: bool = False) -> tuple[tuple[int, ...], ...]:
    """The tokens of each answer, without special ones; none for an answer with a word that the tokenizer does not know.

    ``within_text`` spells them as after other words, where a tokenizer of bytes (GPT-2's) marks the space between them.
    """
    space = " " if within_text and tokenizer.tokenize(" a")[0].startswith("\u0120") else ""
    rows = tokenizer([space + answer for answer in answers], add_special_tokens=False)["input_ids"] if answers else []
    return tuple(() if tokenizer.unk_token_id in row else tuple(row) for row in rows)


def evaluation_options(config: DictConfig) -> EvaluationOptions:
    """The options of ``evaluation.options``, with a precision that the device computes in, and the recipe of the model."""
    precision = resolve_precision(config.evaluation.options.precision, config.trainer.accelerator)
    recipe = {name: OmegaConf.to_container(config[name], resolve=True) for name in RECIPE if config.get(name)}
    options: EvaluationOptions = instantiate(config.evaluation.options, precision=precision, recipe=str(recipe))
    return options
