"""``fusionkit data make NAME [key=value ...]``: write a data set in the public formats."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from fusionkit.app import run_app
from fusionkit.cli import Command
from fusionkit.config import check_arguments, group_choices
from fusionkit.errors import ConfigError, suggest


def run(arguments: Sequence[str]) -> int:
    """The ``data`` command."""
    verb, name, *overrides = [*arguments, "", ""][: max(len(arguments), 2)]
    if verb != "make":
        raise ConfigError(f"fusionkit data cannot '{verb}'; {suggest(verb, ['make'])}")
    if name not in group_choices("make"):
        raise ConfigError(f"fusionkit data make knows no data set '{name}'; {suggest(name, group_choices('make'))}")
    command = Command("make a data set", "fusionkit.datasets:make", (), "data_make")
    return run_app("data make", command, [f"make={name}", *overrides])


def make(config: DictConfig) -> Any:
    """Call the maker that the configuration names, and say where its files are."""
    check_arguments(config)
    instantiate(config)
    print(f"wrote {config.root}")
