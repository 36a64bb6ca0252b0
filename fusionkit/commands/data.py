"""``fusionkit data make|convert NAME [key=value ...]``: write a data set in the public formats, or convert a published one."""

from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.config_checks import check_arguments
from fusionkit.cli.app import run_app
from fusionkit.cli.main import DATA_VERBS, Command
from fusionkit.config import group_choices
from fusionkit.errors import ConfigError, suggest

FILES = ("root", "tsv", "lmdb")  # the keys whose values are files


def run(arguments: Sequence[str]) -> int:
    """The ``data`` command."""
    verb, name, *overrides = [*arguments, "", ""][: max(len(arguments), 2)]
    if verb not in DATA_VERBS:
        raise ConfigError(f"fusionkit data cannot '{verb}'; {suggest(verb, DATA_VERBS)}")
    if name not in group_choices(verb):
        raise ConfigError(f"fusionkit data {verb} knows no data set '{name}'; {suggest(name, group_choices(verb))}")
    command = Command(f"{verb} a data set", "fusionkit.commands.data:write", (), f"data_{verb}", paths=FILES)
    return run_app(f"data {verb}", command, [f"{verb}={name}", *overrides])


def write(config: DictConfig) -> Any:
    """Call the maker or converter that the configuration names, and say where its files are."""
    for key in map(str, config):
        if OmegaConf.is_missing(config, key):
            raise ConfigError(f"'{key}' has no value yet; give it as {key}=VALUE")
    check_arguments(config)
    count: int | None = instantiate(config)
    print(f"wrote {'' if count is None else f'{count} files to '}{config.root}")
