"""Rebuilds model, tasks and data from a checkpoint alone; the files of pretrained weights are not needed again."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from fusionkit.assembly.artifacts import check_content, tokenizer_from
from fusionkit.assembly.config_checks import check_arguments, check_objectives, require_seed
from fusionkit.assembly.parts import Parts, build_parts
from fusionkit.assembly.trust import NETWORK, may_look_up, read_stored, require_trusted, targets
from fusionkit.assembly.vocabulary import carry_answers
from fusionkit.checkpoints.adapters import require_same_adapters
from fusionkit.checkpoints.before import take_later_settings
from fusionkit.checkpoints.classes import require_ordered
from fusionkit.checkpoints.directory import is_directory, read_directory
from fusionkit.checkpoints.match import require_finite, require_fit
from fusionkit.checkpoints.possible import require_possible_parts
from fusionkit.checkpoints.save import read_whole
from fusionkit.config import first_cause, leaves
from fusionkit.data.answers import AnswerVocabulary
from fusionkit.data.tokenizer import PUBLISHED
from fusionkit.errors import ConfigError, DataError, UserError, is_named
from fusionkit.model.adapters import with_adapters
from fusionkit.model.int8 import restore_int8, split_int8, to_int8

BUILT = (*NETWORK, "data", "evaluation", "trainer")  # of a stored configuration, to evaluate and predict
ENCODERS = ("image_encoder", "text_encoder")
Checkpoint = dict[str, Any]
Sizes = Mapping[str, Mapping[str, Any]]  # by encoder


def read_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint of ours, a file of ``train`` or a folder of ``import`` and ``export``, its tensors on the CPU.

    Raises DataError for any other file. Executes no code of the file. Weights that a folder has in 8 bits are multiplied out, and
    stand under "int8" as they are there.
    """
    if str(path) == "":
        raise ConfigError("checkpoint is empty; give it as checkpoint=PATH")
    path = Path(path)
    if is_directory(path):
        config, tensors = read_directory(path)
        state, int8 = split_int8(tensors)
        folder = {"fusionkit": config["fusionkit"], "state_dict": state, "int8": int8}
        check_content(path, folder)
        require_ordered(path, config["fusionkit"], state)
        return folder
    if not path.is_file():
        place, fault = (path, "is a folder") if path.is_dir() else (path.parent, "does not exist")
        if path.exists():  # a pipe, a device
            fault = fault if path.is_dir() else "is no plain file"
        found = (each for pattern in ("*.ckpt", "checkpoints/*.ckpt") for each in place.glob(pattern))
        near = sorted(str(each) for each in found if each.is_file())
        hint = f"there are: {', '.join(near)}" if near else "checkpoints lie in OUTPUT_DIR/checkpoints"
        raise DataError(f"checkpoint {path} {fault}; {hint}")
    content = read_whole(path)
    if not isinstance(content, dict) or not {"fusionkit", "state_dict"} <= content.keys():
        keys = ", ".join(list(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"checkpoint {path} was not written by fusionkit train: it holds {keys}")
    check_content(path, content)
    return content


def load_parts(
    path: str | Path, overrides: Mapping[str, Any], has_data: bool = True, trust: object = (), int8: Any = False
) -> Parts:
    """The data, model and tasks of a checkpoint, with its weights; ``overrides`` change keys that its configuration has.

    Without ``has_data`` the checkpoint is enough: none of the files that the run read are looked for. What its
    configuration names is built where it is ours, or of a package in ``trust``. ``int8`` chooses parts whose linear layers have
    weights of 8 bits, as has all that a checkpoint has so.
    """
    with told_of(path):
        return _parts(path, overrides, has_data, trust, int8)


@contextmanager
def told_of(path: str | Path) -> Iterator[None]:
    """Where a checkpoint's own configuration cannot be built, or a part of it is refused, name the checkpoint."""
    try:
        yield
    except OmegaConfBaseException as error:  # told as everywhere, by its key
        error.add_note(f"checkpoint {path}")
        raise
    except (UserError, InstantiationException, TypeError, AttributeError, KeyError, RecursionError) as error:
        link: BaseException | None = error
        while link is not None and not isinstance(link, UserError):
            link = link.__cause__
        if link is None:
            said = f"its configuration cannot be built ({first_cause(error)}); is it damaged?"
            raise DataError(f"checkpoint {path}: {said}") from error
        if is_named(path, link):
            raise
        raise type(link)(f"checkpoint {path}: {link}") from error


def _parts(path: str | Path, overrides: Mapping[str, Any], has_data: bool, trust: object, int8: Any) -> Parts:
    checkpoint = read_checkpoint(path)
    artifacts = checkpoint["fusionkit"]
    stored = read_stored(artifacts["config"], path, trust)
    take_later_settings(stored, overrides)
    OmegaConf.set_struct(stored, True)
    config = OmegaConf.merge(stored, overrides)
    assert isinstance(config, DictConfig)
    forget_writing(config, overrides)
    if config.get("seed") is not None:
        require_seed(config.seed)
    check_objectives(config, is_trained=False)
    forget_files(config, sizes_of(artifacts, path), partial(may_look_up, trust=trust))
    answers, tokenizer = artifacts["answers"], artifacts["tokenizer"]
    require_own(config, artifacts, overrides, path)
    if answers:  # the rule that made them has nothing left to do
        OmegaConf.update(config, "data.answers", None, force_add=True)
    if not has_data:
        forget_data(config, artifacts["answers"])
    require_trusted(config, BUILT, f"checkpoint {path}", trust, overrides)
    check_arguments(OmegaConf.masked_copy(config, list(BUILT)))
    require_possible_parts(config, checkpoint["state_dict"], path)
    restored: dict[str, Any] = {"answers": AnswerVocabulary(answers)} if answers else {}
    if tokenizer is not None:
        restored["tokenizer"] = tokenizer_from(tokenizer)
    parts = build_parts(config, has_data, **restored)
    module = nn.ModuleDict({"model": parts.model, "tasks": nn.ModuleDict(parts.tasks)})
    load_weights(module, checkpoint, path, is_own=True)
    as_stored = restore_int8(module, checkpoint.get("int8") or {})
    return replace(parts, int8=to_int8(module, int8) or as_stored)


def sizes_of(artifacts: Mapping[str, Any], path: str | Path) -> Sizes:
    """What a checkpoint says of the sizes of its encoders, values alone; DataError where it is anything else.

    One of before image encoders had any says nothing of them.
    """
    return {key: _plain_values(artifacts.get(key, "{}"), key, path) for key in ENCODERS}


def _plain_values(text: Any, key: str, path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"checkpoint {path}: its {key} is no json ({error})") from error
    named = [place for place, _ in targets(found, key)]
    named += [place for place, value in leaves(found, key) if isinstance(value, str) and "${" in value]
    if named or not isinstance(found, dict):
        raise DataError(f"checkpoint {path}: {(named or [key])[0]} is no plain value of an encoder's sizes")
    return found


def forget_writing(config: DictConfig, overrides: Mapping[str, Any]) -> None:
    """A stored configuration makes no data and says not where files are written: the command line does."""
    OmegaConf.update(config, "data.prepare", None, force_add=True)
    options = (overrides.get("evaluation") or {}).get("options") or {}
    if "cache" not in options and OmegaConf.select(config, "evaluation.options") is not None:
        OmegaConf.update(config, "evaluation.options.cache", None, force_add=True)


def require_own(
    config: DictConfig, artifacts: Mapping[str, Any], overrides: Mapping[str, Any], path: str | Path
) -> None:
    """Raise ConfigError where words or answers would be read from a file that only the checkpoint names.

    It carries both. An import without a tokenizer names a published one.
    """
    for key, is_known in (
        ("tokenizer", artifacts["tokenizer"] is not None or config.data.get("tokenizer") in PUBLISHED),
        ("answers", bool(artifacts["answers"])),
    ):
        name = config.data.get(key)
        if isinstance(name, str) and not is_known and (overrides.get("data") or {}).get(key) is None:
            raise ConfigError(
                f"checkpoint {path} carries no {key}, but names {name!a}, which is no part of it; give what it was trained with "
                f"yourself, as data.{key}=PLACE"
            )


def forget_files(config: DictConfig, sizes: Sizes, is_known: Callable[[str, Any], bool]) -> None:
    """Build without the files that the training started from: the weights are in the checkpoint, and no negative is drawn.

    Nor are weights rounded that were in training: a checkpoint has what they were rounded to.
    """
    forget_weights(config, sizes, is_known)
    with open_dict(config):
        if (config.get("adapters") or {}).get("base_weights"):
            config.adapters.base_weights = None
        for task in config.task.values():
            if "file" in (task.get("negatives") or {}):
                task.negatives = None


def forget_weights(
    config: DictConfig, sizes: Sizes, is_known: Callable[[str, Any], bool] = lambda section, name: True
) -> None:
    """Build the encoders without pretrained weights, since those of a checkpoint with these ``sizes`` follow.

    An encoder says itself how (``weightless``); one that says nothing is built as configured.
    """
    with open_dict(config):
        for key in ENCODERS:
            name = config[key].get("_target_")
            weightless = getattr(get_object(name), "weightless", None) if is_known(key, name) else None
            if weightless is not None:
                given = OmegaConf.to_container(config[key], resolve=False)
                config[key] = weightless(given, sizes.get(key, {}))


def start_from(config: DictConfig, checkpoint: Checkpoint, path: str | Path) -> None:
    """Make a run's configuration one that begins with a checkpoint's weights, whose pretrained files are then not needed.

    Raises ConfigError for one that was imported for images of another size.
    """
    artifacts = checkpoint["fusionkit"]
    own = read_stored(artifacts["config"], path)
    there, here = (
        stored.image_encoder.get("img_size", stored.image_encoder.get("image_size")) for stored in (own, config)
    )
    if artifacts.get("origin") and there != here:
        raise ConfigError(
            f"checkpoint={path} was imported for images of {there} pixels, but the run's have {here}; import it again with "
            f"image_size={here}, which resizes its positions"
        )
    forget_weights(config, sizes_of(artifacts, path))


def forget_data(config: DictConfig, answers: Any) -> None:
    """Build without the data's own files: any place for its folder, no reader, and no boxes of a detector.

    ConfigError where answers would be read off training questions; a list that the configuration names is another file.
    """
    OmegaConf.update(config, "data.root", ".")
    asks = any((source.get("texts_per_image") or {}).get("questions") for source in config.data.sources.values())
    if asks and not answers and not isinstance(config.data.get("answers"), str):
        raise ConfigError(
            "the checkpoint carries no list of answers to choose from; give the one that it was trained with, a .json file, "
            "as data.answers=FILE"
        )
    for source in config.data.sources.values():
        source.update({key: None for key in ("reader", "augment") if key in source})
    forget_proposals(config)


def forget_proposals(config: DictConfig) -> None:
    """Build tasks without a detector's boxes, which only a benchmark's images have."""
    for task in config.task.values():
        if "proposals" in task:
            task.proposals = None


def load_weights(module: nn.Module, checkpoint: Checkpoint, path: str | Path, is_own: bool = False) -> None:
    """Load the tensors that the module has, all of them; raises DataError with the first that do not fit.

    ``is_own`` where the module was built of the checkpoint's own configuration; those that hold NaN are then refused too.
    """
    expected = module.state_dict()
    parts = {name.partition(".")[0] for name in expected}
    found = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name.partition(".")[0] in parts}
    require_fit(expected, found, path, is_own)
    module.load_state_dict(found)
    if is_own:
        require_finite(module, path)


def initialise(module: nn.Module, checkpoint: Checkpoint, path: str | Path) -> list[str]:
    """Start from a checkpoint's weights: the model's must all fit, a task's are taken where they do.

    A task that the checkpoint has not takes those of the one it ``init_from``, and one that chooses among other answers those
    of the answers that the checkpoint knows. Returns what is new: names of tensors, and how many answers of a task.
    """
    with told_of(path):
        require_same_adapters(module.get_submodule("model"), checkpoint, path)
    state = with_adapters(module, checkpoint["state_dict"])
    checkpoint = {**checkpoint, "state_dict": state}
    load_weights(nn.ModuleDict({"model": module.get_submodule("model")}), checkpoint, path)
    tasks = nn.ModuleDict({"tasks": module.get_submodule("tasks")})
    state, new = carry_answers(module, state, checkpoint["fusionkit"]["answers"] or ())
    own, found = tasks.state_dict(), inherited(module.get_submodule("tasks"), state)
    fitting = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    tasks.load_state_dict(own | fitting)
    require_finite(nn.ModuleDict({name: module.get_submodule(name) for name in ("model", "tasks")}), path)
    _initialise_teacher(module, {**checkpoint, "state_dict": state})
    return [name for name in own if name not in fitting] + new


def inherited(tasks: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, and, under the name of a task that has none there, those of the task it init_from."""
    more: dict[str, Tensor] = {}
    for name, task in tasks.named_children():
        places = f"tasks.{name}.", f"tasks.{getattr(task, 'init_from', None)}."
        if not any(key.startswith(places[0]) for key in found):
            more |= {
                places[0] + key.removeprefix(places[1]): t for key, t in found.items() if key.startswith(places[1])
            }
    return {**found, **more}


def _initialise_teacher(module: nn.Module, checkpoint: Checkpoint) -> None:
    """The teacher starts from the checkpoint's own where that fits, and else, tensor by tensor, from the student.

    It was built as the student's copy before that had its weights.
    """
    teacher = getattr(module, "teacher", None)
    if teacher is None:
        return
    student, found = module.state_dict(), checkpoint["state_dict"]
    started = {}
    for name, tensor in teacher.state_dict().items():
        part, _, rest = name.partition(".")  # "model.X", or "heads.TASK.X" of the student's "tasks.TASK.head.X"
        task, _, inner = rest.partition(".")
        own = student[name if part == "model" else f"tasks.{task}.head.{inner}"]
        kept = found.get(f"teacher.{name}", own)
        started[name] = kept if kept.shape == tensor.shape else own
    teacher.load_state_dict(started)
