"""Whether the parts of a run fit together, which can only be seen once they are there: ConfigError where they do not."""

import reprlib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig
from torch import nn

from fusionkit.data.datamodule import DataModule
from fusionkit.data.source import Source
from fusionkit.data.tables.samples import as_samples
from fusionkit.data.texts.chat import ChatTemplate
from fusionkit.data.texts.conversations import CONVERSATIONS, IMAGE_TOKEN, Conversation
from fusionkit.encoders.base import ImageEncoder
from fusionkit.encoders.frozen import ADAPTER, BASE
from fusionkit.encoders.probe import TextAbilities, first_line, freeze, rehearse, unreached_parameters
from fusionkit.errors import ConfigError, UserError, suggest
from fusionkit.fusion.base import Fusion, SupportsLanguageModel, SupportsUnimodal, require_several_images
from fusionkit.losses import IGNORE
from fusionkit.model.adapters import adapted_layers
from fusionkit.model.model import VisionLanguageModel
from fusionkit.tasks.base import Task
from fusionkit.types import Dims

FIRST = 100  # images whose conversations are looked at when a run is built
PARTS = {
    "pooled": "a pooled vector of each pair",
    "text": "text tokens that have seen the image's",
    "image": "image tokens that have seen the text's",
    "causal": "text that does not see what follows",
    "attention": "attention of the text's tokens to the image's",
    "pair": "a text fused with two images at once",
    "images": "texts with several images at places",
}


def check_roles(config: DictConfig, known: set[str]) -> None:
    """The roles to evaluate are a list of those that a source has, and the checkpoint to evaluate is one that is kept."""
    roles = config.evaluation.roles
    if not isinstance(roles, ListConfig):
        told = roles if isinstance(roles, str) else "test"
        raise ConfigError(f"evaluation.roles is {reprlib.repr(roles)}, but has to be a list: [{told}]")
    for role in roles:
        if role not in known:
            raise ConfigError(f"evaluation.roles: no source has a split for the role '{role}'; {suggest(role, known)}")
    if config.evaluation.checkpoint not in ("best", "last"):
        hint = suggest(config.evaluation.checkpoint, ("best", "last"))
        raise ConfigError(f"evaluation.checkpoint is '{config.evaluation.checkpoint}'; {hint}")


def check_contract(key: str, part: object, contract: type) -> None:
    """What was built for a key has the members of its contract, so that none is missed in the middle of a run."""
    members = [*contract.__annotations__, *(name for name in vars(contract) if not name.startswith("_"))]
    lacks = [name for name in dict.fromkeys(members) if not hasattr(part, name)]
    if lacks or not isinstance(part, nn.Module):
        fault = f"has no {' and no '.join(lacks)}" if lacks else "is no torch.nn.Module"
        raise ConfigError(
            f"{key}: {type(part).__name__} {fault}, which {contract.__name__} needs; {contract.__module__} says what one is"
        )


def lacking(needs: frozenset[str], provides: frozenset[str]) -> list[str]:
    """The parts that a task needs and a fusion does not provide; "feats" are the model's own."""
    return sorted(needs - {"feats"} - provides)


def check_needs(name: str, task: Task[Any], fusion: Fusion) -> None:
    """The fusion provides what the task needs."""
    if missing := lacking(task.needs, fusion.provides):
        wanted = " and ".join(f"'{part}' ({PARTS[part]})" if part in PARTS else f"'{part}'" for part in missing)
        raise ConfigError(
            f"task '{name}' needs {wanted} from the fusion, but {type(fusion).__name__} provides "
            f"{', '.join(sorted(fusion.provides))}; choose another fusion=NAME or leave {name} out of task=[...]"
        )


def check_images(source: str, datamodule: DataModule, encoder: ImageEncoder) -> None:
    """The image encoder reads what the source has of its images."""
    has = datamodule.sources[source].images
    if encoder.reads != has:
        raise ConfigError(
            f"image_encoder: {type(encoder).__name__} reads {encoder.reads}, but source '{source}' has {has}; choose "
            f"another image_encoder=NAME, or data with {encoder.reads}"
        )
    stream = datamodule.sources[source].stream
    most = getattr(encoder, "max_length", None)
    if stream is not None and most is not None and stream.length > most:
        raise ConfigError(
            f"data.sources.{source}.stream gives streams of up to {stream.length} {has if has == 'frames' else 'steps'}, but "
            f"image_encoder.max_length is {most}; raise it, or shorten the streams"
        )
    bands, known = getattr(stream, "mels", None), getattr(encoder, "mels", None)
    if None not in (bands, known) and bands != known:
        raise ConfigError(
            f"data.sources.{source}.stream.mels is {bands}, but image_encoder.mels is {known}; set both to one number"
        )
    if has == "frames" and datamodule.finish.fit == "keep":
        raise ConfigError(
            "data.fit=keep gives frames of different shapes, which are not read together; set data.fit=squash"
        )
    if has == "pixel_values" and datamodule.finish.fit == "keep" and not getattr(encoder, "reads_canvases", False):
        raise ConfigError(
            f"data.fit=keep gives images of different shapes, which {type(encoder).__name__} does not read; set "
            "data.fit=squash, or choose image_encoder=patches"
        )


def freeze_unreached(key: str, part: nn.Module, find: Callable[[], Iterable[str]]) -> None:
    """Freeze the parameters that ``find`` names, those on which nothing depends.

    ConfigError for an adapter on which nothing depends beside a weight on which something does: it would change nothing.
    """
    layers = adapted_layers(part)
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)  # so that the graph shows it
        unreached = find()
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)
    names = set(unreached)
    for name in layers:
        if f"{name}{ADAPTER}B.default.weight" in names and f"{name}{BASE}weight" not in names:
            parent = type(part.get_submodule(name.rpartition(".")[0])).__name__
            raise ConfigError(
                f"adapters: they would have no effect beside {key}.{name}, whose weight {parent} reads itself; leave it out of "
                "what adapters.rules find"
            )
    freeze(part, names)


def check_image_size(encoder: nn.Module, size: int) -> int | None:
    """The encoder reads images of the data's size; what none of its tokens depends on is frozen.

    Gives the number of an image's tokens; None where that hangs on what is in it.
    """
    found = None

    def unreached() -> list[str]:
        nonlocal found
        found = rehearse(encoder, lambda twin, pixels: twin(pixels), 1, 3, size, size)
        return [] if found is None else unreached_parameters(found[1], [found[0].embeds, found[0].pooled])

    try:
        freeze_unreached("image_encoder", encoder, unreached)
    except UserError:
        raise
    except Exception as error:  # whatever a model makes of images of another size
        raise ConfigError(
            f"data.image_size is {size}, but the image encoder does not read such images ({first_line(error)}); set "
            "data.image_size to its own size, or image_encoder.img_size or image_encoder.dynamic_img_size where it takes them"
        ) from error
    return None if found is None else int(found[0].embeds.shape[1])


def check_text(name: str, task: Task[Any], model: VisionLanguageModel, abilities: TextAbilities) -> None:
    """The text encoder reads texts as the task needs them read."""
    kind = getattr(getattr(model.text_encoder, "config", None), "model_type", type(model.text_encoder).__name__)
    if "causal" in task.needs and abilities.not_causal is not None:
        raise ConfigError(
            f"task '{name}' needs {PARTS['causal']}, but the text encoder {kind} cannot read so ({abilities.not_causal}); choose "
            f"another text_encoder.config.model_type, such as bert or roberta, or leave {name} out of task=[...]"
        )
    if "feats" in task.needs and not abilities.pools_text and not isinstance(model.fusion, SupportsUnimodal):
        raise ConfigError(
            f"task '{name}' compares texts by a vector each, but of the text encoder {kind} all texts have the same; set "
            f"text_encoder.pool=mean, or leave {name} out of task=[...]"
        )


def check_length(source: str, datamodule: DataModule, most: int | None) -> None:
    """The text encoder has positions for the longest texts of a source."""
    length = datamodule.sources[source].max_length
    if most is not None and length > most:
        key = f"data.sources.{source}.max_length"
        raise ConfigError(f"{key} is {length}, but the text encoder reads {most} tokens at most; set {key}={most}")


def check_budget(
    source: str,
    datamodule: DataModule,
    model: VisionLanguageModel,
    tasks: Iterable[Task[Any]],
    image_tokens: int,
    images: int = 1,
) -> None:
    """A language model has positions for a text and its images, and for what the tasks say: behind them, or in a decoder."""
    fusion, most = model.fusion, model.text_encoder.max_length
    if not isinstance(fusion, SupportsLanguageModel) or most is None:
        return
    tasks, length = list(tasks), datamodule.sources[source].max_length
    prefix = images * fusion.prefix_length(image_tokens)
    longest = max((task.longest(length) for task in tasks), default=length)
    if fusion.encodes_prompts and longest > most:
        raise ConfigError(
            f"fusion: the decoder says up to {longest} tokens of a text of source '{source}', but the language model has "
            f"positions for {most}; set data.sources.{source}.max_length or the tasks' own max_length lower"
        )
    text = max((task.prompted(length) for task in tasks), default=length) if fusion.encodes_prompts else longest
    if (over := prefix + text - most) <= 0:
        return
    takes, fix = f"a text of source '{source}' takes", "choose a text_encoder that reads more"
    if prefix:
        shown = f"{images} images take" if images > 1 else "an image takes"
        takes = f"{shown} {prefix} positions, and a text of source '{source}'"
        fix = "make the prefix shorter (fusion=prefix_shuffle, prefix_qformer or prefix_perceiver)"
    if fusion.encodes_prompts:
        fix = "have fewer image tokens (fusion.projector._target_=fusionkit.fusion.projectors.QFormer)"
    if length - over > 2:
        fix = f"set data.sources.{source}.max_length={length - over}, or {fix}"
    said = "" if fusion.encodes_prompts else " with what is said behind it"
    raise ConfigError(f"fusion: {takes} up to {text}{said}, but the language model reads {most} at once; {fix}")


def check_answers(key: str, task: Task[Any], dims: Dims) -> None:
    """A task of questions needs answers where it runs; its weights alone can be loaded without."""
    if task.reads == "questions" and not dims.answers:
        raise ConfigError(f"{key}: the run has no answers; its data must hold questions with answers")


def check_reads(key: str, task: Task[Any], kinds: list[str]) -> None:
    """The source has the texts that the task reads."""
    if task.reads not in kinds:
        raise ConfigError(f"{key}: the task reads {task.reads}, but the source has none; {suggest(task.reads, kinds)}")


def check_template(key: str, name: str, task: Task[Any], source: Source) -> None:
    """A task that says captions is not taught to say what a template puts around them."""
    if task.replies_to == "caption" and task.reads in (source.template or {}):
        raise ConfigError(
            f"{key}.{task.reads}: task '{name}' would learn to say the template's words too; give those before a caption as "
            f"task.{name}.prompt, and leave {task.reads} out of the template"
        )


def check_chat(source: str, datamodule: DataModule, has_data: bool) -> None:
    """The conversations of a source can be written, end, and have something to learn within its length."""
    settings = datamodule.sources[source]
    if CONVERSATIONS not in settings.kinds:
        return
    key = f"data.sources.{source}"
    chat = ChatTemplate(datamodule.tokenizer, settings.chat_template, f"{key}.chat_template")
    if not has_data or "train" not in settings.splits:
        return
    texts = [
        text
        for sample in islice(datamodule.samples(source, "train"), FIRST)
        for text in sample.texts.get(CONVERSATIONS, ())
    ]
    spelt = chat.spell([(text.id, Conversation.of(text)) for text in texts], settings.max_length)
    if texts and all(target == IGNORE for each in spelt for target in each.targets):
        are_cut = any(each.is_cut for each in spelt)
        fix = f"set {key}.max_length higher" if are_cut else "give conversations in which the assistant says something"
        raise ConfigError(
            f"{key}: of the first {len(texts)} conversations no token is learnt"
            f"{f', which are cut at {settings.max_length} tokens before the assistant says anything' if are_cut else ''}; {fix}"
        )


def check_pictures(source: str, datamodule: DataModule, fusion: Fusion) -> int:
    """The fusion takes the pictures of a source's conversations as they stand; gives how many one has at most."""
    most, shots = 1, datamodule.sources[source].shots
    if shots:
        require_several_images(fusion, f"a conversation behind data.sources.{source}.shots={shots} others")
    for role in datamodule.sources[source].splits:
        samples = as_samples(datamodule.samples(source, role))
        most = max([most, *(1 + np.diff(samples.other_ends, prepend=0)).tolist()])
        if "images" not in fusion.provides and any(IMAGE_TOKEN in said for said in samples.strings(CONVERSATIONS)):
            for text in (text for sample in samples for text in sample.texts.get(CONVERSATIONS, ())):
                if Conversation.of(text).places:
                    require_several_images(fusion, f"the conversation {text.id} (data.sources.{source}, {role})")
    return most + shots


def check_temperature(model: VisionLanguageModel) -> None:
    """A training starts at a temperature within its range, where the first step would move it otherwise."""
    start, bounds = model.temperature.detach(), model.temperature_range
    if start.clamp(*bounds) != start:
        raise ConfigError(
            f"model.temperature is {start:.4g}, outside of model.temperature_range {list(bounds)}; start within it, or widen it"
        )


def lonely(
    objectives: Mapping[str, Mapping[str, float]],
    tasks: Mapping[str, Task[Any]],
    batches: Mapping[str, int],
    ranks: int,
) -> list[str]:
    """What to say of objectives that compare an image with others, where a source's batch (images a rank) holds none."""
    return [
        f"objectives.{source}.{name}: with data.sources.{source}.batch_size={batches[source]} there is no other image to compare "
        f"one with, so that only true pairs are trained; set it to 2 at least (more is better, and micro-batches do not add up)"
        for source, row in objectives.items()
        for name in row
        if tasks[name].partners(batches[source], ranks) == 0
    ]
