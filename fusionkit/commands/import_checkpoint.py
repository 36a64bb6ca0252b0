"""``fusionkit import FAMILY=PATH [key=value ...]``: a published checkpoint as one of ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.config_checks import TYPE_NAMES, check_arguments
from fusionkit.cli.app import run_app
from fusionkit.cli.main import Command
from fusionkit.config import conf_dir, group_choices
from fusionkit.errors import ConfigError, suggest

FILES = ("path", "output", "tokenizer", "answers")
OWN = ("path", "output", "tokenizer")  # the other keys are the family's


def run(arguments: Sequence[str]) -> int:
    """The ``import`` command."""
    families = group_choices("import")
    named = [text for text in arguments if text.partition("=")[0] in families]
    if len(named) != 1:
        first = next((text.partition("=")[0] for text in arguments if not text.startswith("-")), "")
        raise ConfigError(f"fusionkit import needs one FAMILY=PATH, not '{first}'; {suggest(first, families)}")
    family, _, path = named[0].partition("=")
    if not path:
        raise ConfigError(f"'{family}' has no value yet; give it as {family}=PATH")
    others = [text for text in arguments if text not in named]
    command = Command(
        "import a checkpoint", "fusionkit.commands.import_checkpoint:import_checkpoint", (), "import", paths=FILES
    )
    return run_app("import", command, [f"import={family}", f"path={path}", f"output=outputs/{family}", *others])


def import_checkpoint(config: DictConfig) -> None:
    """Write the folder ``config.output`` from ``config.path``, and say what is in it."""
    options = OmegaConf.masked_copy(config, [str(key) for key in config if key not in OWN])
    check_arguments(options)
    published = OmegaConf.load(conf_dir() / f"import/{str(config._target_).split('.')[-2]}.yaml")
    check_kinds(OmegaConf.to_container(options), OmegaConf.to_container(published))
    from fusionkit.checkpoints.write import import_into

    print(import_into(Path(config.output), config.path, instantiate(options), config.tokenizer))


def check_kinds(given: Any, published: Any, key: str = "") -> None:
    """Raise ConfigError for an option that is of another kind than its published value."""
    kinds = (int, float) if type(published) is float else (type(published),)
    if published is None or (type(given) in kinds and not isinstance(published, dict)):
        return
    if not isinstance(published, dict):
        raise ConfigError(f"{key} is {given!r}, but has to be {TYPE_NAMES[type(published)]}, such as {published}")
    if not isinstance(given, dict):
        first = next(iter(published))
        raise ConfigError(f"{key} is {given!r}, but is a section; give e.g. {key}.{first}={published[first]}")
    for name, value in published.items():
        check_kinds(given.get(name), value, f"{key}.{name}".lstrip("."))
