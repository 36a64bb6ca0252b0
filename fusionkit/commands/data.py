"""``fusionkit data``: make NAME in the public formats, convert NAME, or look at FILE, a table of your own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.config_checks import check_arguments
from fusionkit.cli.app import run_app
from fusionkit.cli.main import DATA_VERBS, LOOK, Command
from fusionkit.config import group_choices
from fusionkit.errors import ConfigError, suggest

FILES = ("root", "tsv", "lmdb")  # the keys whose values are files
LOOKS_AT = ("files", "root", "images", "output")


def run(arguments: Sequence[str]) -> int:
    """The ``data`` command."""
    verb, name, *overrides = [*arguments, "", ""][: max(len(arguments), 2)]
    if verb == LOOK:
        command = Command(
            "look at a table",
            "fusionkit.commands.look:look",
            (),
            "data_look",
            paths=LOOKS_AT,
            texts=("label_question",),
        )
        is_file = name and (Path(name).exists() or "=" not in name) and not name.startswith("-")
        words = [f"files={name}", *overrides] if is_file else arguments[1:]
        # what is said of tables names their keys as a training has them
        return run_app("data look", command, [word.removeprefix("data.") if "=" in word else word for word in words])
    if verb not in DATA_VERBS:
        raise ConfigError(f"fusionkit data cannot '{verb}'; {suggest(verb, (*DATA_VERBS, LOOK))}")
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
