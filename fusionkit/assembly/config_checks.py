"""Checks of a run's configuration that need no model: its sections, keys, types, objectives and arguments."""

import inspect
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ValidationError

from fusionkit.assembly.signatures import signature_of
from fusionkit.config import first_cause, group_choices, leaves, target_blocks
from fusionkit.errors import ConfigError, suggest
from fusionkit.files.names import is_file_name

BUILT = ("image_encoder", "text_encoder", "fusion", "model", "data", "optimizer", "trainer")
"""Sections with a ``_target_``, without which nothing is built."""
OPTIONAL = ("adapters", "scheduler", "teacher", "balance")  # also None
HOLDERS = ("task", "data.sources")  # of sections that are built
NAMED = ("logger", "callbacks", "stages")  # of sections that are built, or None
TRAINING = (
    "optimizer",
    "scheduler",
    "teacher",
    "balance",
    "logger",
    "callbacks",
    "stages",
)  # what an evaluation builds not
PLAIN = ("objectives", "evaluation", "evaluation.options")


def check_sections(plain: Mapping[Any, Any]) -> None:
    """Raise ConfigError, with the key, for a section that is none, or that is to be built and does not say of what class."""
    for key in (*BUILT, *OPTIONAL, *HOLDERS, *NAMED, *PLAIN):
        value = _at(plain, key)
        is_left_out = value is None and (key in (*OPTIONAL, *NAMED) or key.partition(".")[0] not in plain)
        if is_left_out or (isinstance(value, str) and "${" in value):
            continue
        _require_section(key, value)
        if key in BUILT or (key in OPTIONAL and value):
            _require_target(key, value)
    for key, value in _inner(plain):
        is_of_another = value is None or (isinstance(value, Mapping) and "_target_" not in value)
        if key.startswith("data.sources.") and is_of_another:
            continue  # settings of a source that this data has not: ``check_objectives`` says so
        _require_section(key, value)
        _require_target(key, value)
    for key, value in (_at(plain, "objectives") or {}).items():
        if value is not None:
            _require_section(f"objectives.{key}", value)


def _inner(plain: Any) -> Iterator[tuple[str, Any]]:
    """The sections within others, but those that are left out as they may be."""
    for holder in (*HOLDERS, *NAMED):
        for name, value in (_at(plain, holder) or {}).items():
            if not (value is None and holder in NAMED):
                yield f"{holder}.{name}", value


def _at(plain: Any, key: str) -> Any:
    for name in key.split("."):
        plain = plain.get(name) if isinstance(plain, dict) else None
    return plain


def _require_section(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} is {_short(value)}, but has to be a section of keys; choose or write one")


def _require_target(key: str, value: Mapping[Any, Any]) -> None:
    name = value.get("_target_")
    if not isinstance(name, str) or not name:
        told = f"is {_short(name)}" if "_target_" in value else "is not there"
        raise ConfigError(f"{key}._target_ {told}, but has to be the name of the class that {key} is built from")


def _short(value: Any) -> str:
    text = "null" if value is None else ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_top_level(config: DictConfig, schema: type) -> None:
    """Every key of the top level is one of the schema's, of its type, and no value is left open.

    Of a group that was set to null Hydra leaves no key: where the schema lets it be None, it is.
    """
    with open_dict(config):
        for field in fields(schema):
            if field.name not in config and field.default is not MISSING:
                config[field.name] = field.default
    known = [field.name for field in fields(schema)]
    for key in map(str, config):
        if key not in known:
            raise ConfigError(f"unknown key '{key}' at the top level of the configuration; {suggest(key, known)}")
    try:
        OmegaConf.merge(OmegaConf.structured(schema), config)
    except ValidationError as error:
        wanted = next((TYPE_NAMES.get(field.type) for field in fields(schema) if field.name == error.full_key), None)  # type: ignore[arg-type]
        reason = (
            f" is {config[str(error.full_key)]}, but has to be {wanted}"
            if wanted
            else f": {str(error).splitlines()[0]}"
        )
        raise ConfigError(f"{error.full_key}{reason}") from error
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for field in fields(schema):
        if field.name not in plain:
            raise ConfigError(f"'{field.name}' has no value yet; {_choose(field.name)}")
        if field.default is MISSING and plain[field.name] is None:
            raise ConfigError(f"{field.name} is null, but nothing works without it; {_choose(field.name)}")
    for key, value in leaves(plain):
        if value == "???":
            raise ConfigError(f"'{key}' has no value yet; give it as {key}=VALUE")
    OmegaConf.to_container(config, resolve=True)  # a reference to nothing is told before any data are read


def _choose(key: str) -> str:
    """How to give a value of the top level."""
    choices = group_choices(key)
    return f"give it as {key}=NAME, {suggest('', choices)}" if choices else f"give it as {key}=VALUE"


def check_objectives(config: DictConfig, is_trained: bool = True) -> None:
    """Sources and tasks of the objectives exist, the weights are numbers from 0 up, and every configured task is used.

    What only a training builds is not looked at where there ``is_trained`` nothing.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    check_sections({key: value for key, value in plain.items() if is_trained or key not in TRAINING})
    sources, tasks = list(config.data.sources), list(config.task)
    for name, source in config.data.sources.items():
        if not isinstance(source, DictConfig) or "_target_" not in source:
            raise ConfigError(
                f"data.sources.{name} has no _target_, as the settings of a source that data=NAME has not; leave it out with "
                f"~data.sources.{name}, or give it all that a source has"
            )
    roles = [role for source in config.data.sources.values() for role in source.get("splits") or ()]
    for what, names in (("task", tasks), ("data.sources", sources), ("data.sources.SOURCE.splits", roles)):
        for name in names:
            if not is_file_name(name):  # it is a part of the names of files that are written
                raise ConfigError(f"{what}: {name!a} cannot be a part of a file's name; give it a plain one")
    if not config.objectives:
        whose = f" for {' and '.join(f'task {name!r}' for name in tasks)}" if tasks else ""
        raise ConfigError(
            f"objectives has nothing{whose}, so there is nothing to train; add {_add(sources, *tasks)}, or choose objectives=NAME"
        )
    for source, weights in config.objectives.items():
        if source not in sources:
            raise ConfigError(f"objectives.{source}: data.sources has no source '{source}'; {suggest(source, sources)}")
        for task, weight in (weights or {}).items():
            _check_weight(f"objectives.{source}.{task}", weight)
            if task not in tasks:
                raise ConfigError(
                    f"objectives.{source}.{task}: no task '{task}' is configured; {suggest(task, tasks)} "
                    f"(choose it with task=[{','.join([*tasks, task])}])"
                )
    used = {task for weights in config.objectives.values() for task in weights or {}}
    for task in tasks:
        if task not in used:
            raise ConfigError(
                f"task '{task}' is configured but no objective uses it; leave it out of task=[...] or add {_add(sources, task)}"
            )


def _add(sources: Sequence[str], *tasks: str) -> str:
    return f"+objectives.{(*sources, 'SOURCE')[0]}.{(*tasks, 'TASK')[0]}=1"


def _check_weight(key: str, weight: Any) -> None:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise ConfigError(f"{key} is {weight!r}, but a weight is a number from 0 up")


def check_arguments(config: DictConfig) -> None:
    """Every key of a ``_target_`` block is an argument of its target, also where the target is called much later.

    Where the argument is annotated as a number, a text or a truth value, the value is one.
    """
    for place, block in target_blocks(OmegaConf.to_container(config, resolve=False)):
        name = block["_target_"]
        for key, kind in (("_target_", str), ("_partial_", bool)):
            if not isinstance(value := block.get(key, kind()), kind):
                raise ConfigError(f"{place}.{key} is {value!r}, but has to be {TYPE_NAMES[kind]}")
        try:
            accepted = signature_of(name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{place}._target_: '{name}' cannot be imported ({first_cause(error)})") from error
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        for key, value in block.items():
            if str(key).startswith("_") or f"{place}.{key}" in OURS:
                continue
            if key in accepted:
                _check_type(f"{place}.{key}".lstrip("."), value, accepted[key])
            elif not is_open:
                raise ConfigError(
                    f"{place}: {name} takes no '{key}'; {suggest(str(key), accepted)} (leave it out with ~{place}.{key})"
                )


OURS = ("trainer.timeout", "trainer.slurm")  # which Lightning's trainer does not get
NUMBERS = {int: "whole numbers", float: "numbers"}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _check_type(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise ConfigError for a value of another type than a plain annotation says; other annotations say nothing here."""
    if typing.get_origin(parameter.annotation) in (tuple, list, Sequence) and type(value) in (int, float, bool, str):
        if "${" not in str(value):
            raise ConfigError(f"{key} is {value!r}, but has to be a list, such as [{value}]")
        return
    if isinstance(value, list):
        _check_numbers(key, value, parameter.annotation)
    is_union = typing.get_origin(parameter.annotation) in (types.UnionType, typing.Union)
    members = set(typing.get_args(parameter.annotation)) if is_union else {parameter.annotation}
    if parameter.default is None:
        members.add(type(None))
    is_open = isinstance(value, dict) or (isinstance(value, str) and ("${" in value or value == "???"))
    if is_open or not members <= TYPE_NAMES.keys():
        return
    fitting = members | ({int} if float in members else set())
    if type(value) not in fitting:
        expected = " or ".join(words for kind, words in TYPE_NAMES.items() if kind in members)
        raise ConfigError(f"{key} is {value!r}, but has to be {expected}")


def _check_numbers(key: str, values: Sequence[Any], annotation: Any) -> None:
    """Raise ConfigError where one of a list that is annotated as one of numbers is none."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    is_one_kind = origin in (list, Sequence) or (origin is tuple and inner[1:] == (...,))
    kinds = {float: (float, int), int: (int,)}.get(inner[0], ()) if is_one_kind and inner else ()
    for value in values:
        if kinds and type(value) not in kinds and "${" not in str(value):
            raise ConfigError(f"{key} holds {reprlib.repr(value)}, but has to be a list of {NUMBERS[inner[0]]}")


def require_seed(seed: Any) -> None:
    """Raise ConfigError for what is no seed of numpy's."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {reprlib.repr(seed)}, but has to be a whole number from 0 to {2**32 - 1}")
