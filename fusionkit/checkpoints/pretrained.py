"""``from_pretrained``: a checkpoint of ours as a network that is ready to use, without its data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.artifacts import tokenizer_from
from fusionkit.assembly.config_checks import check_arguments
from fusionkit.assembly.trust import NETWORK, may_look_up, read_stored, require_trusted
from fusionkit.checkpoints.build import Network, build_network
from fusionkit.checkpoints.load import (
    forget_files,
    forget_proposals,
    load_weights,
    read_checkpoint,
    sizes_of,
    told_of,
)
from fusionkit.checkpoints.possible import require_possible_parts
from fusionkit.checkpoints.source import local
from fusionkit.errors import DataError
from fusionkit.model.adapters import merge
from fusionkit.model.int8 import restore_int8


@dataclass(frozen=True)
class Pretrained(Network):
    """A network with its weights, in evaluation mode, and what it was made of."""

    config: DictConfig
    tokenizer: Any | None  # None: the configuration names one on the hub
    artifacts: dict[str, Any]  # what the checkpoint carries beside its weights

    @property
    def origin(self) -> dict[str, Any] | None:
        """Where an imported checkpoint came from."""
        return self.artifacts.get("origin")


def from_pretrained(path: str | Path, trust: Sequence[str] = ()) -> Pretrained:
    """Load what ``fusionkit import`` or ``export`` wrote, or a checkpoint of a run; weights load strictly.

    ``path`` may also name a model on the Hugging Face hub that ``export`` uploaded, OWNER/NAME. What its configuration
    names is built where it is fusionkit's own, or of a package in ``trust``; ConfigError names what is neither.
    """
    path = local(path)
    with told_of(path):
        return _pretrained(path, trust)


def _pretrained(path: Path, trust: Sequence[str]) -> Pretrained:
    checkpoint = read_checkpoint(path)
    artifacts = checkpoint["fusionkit"]
    config = read_stored(artifacts["config"], path, trust)
    forget_files(config, sizes_of(artifacts, path), partial(may_look_up, trust=trust))
    forget_proposals(config)
    built = (*NETWORK, "teacher")
    require_trusted(config, built, f"checkpoint {path}", trust)
    check_arguments(OmegaConf.masked_copy(config, list(built)))
    require_possible_parts(config, checkpoint["state_dict"], path)
    files = artifacts["tokenizer"]
    tokenizer = tokenizer_from(files) if files else None
    words = tokenizer if tokenizer is not None else artifacts.get("ids")
    if words is None:
        raise DataError(f"checkpoint {path} has neither a tokenizer nor the ids of its special tokens; export it again")
    network = build_network(config, words, artifacts["answers"] or ())
    load_weights(network.module.eval(), checkpoint, path, is_own=True)
    restore_int8(network.module, checkpoint.get("int8") or {})
    return Pretrained(network.model, network.tasks, network.teacher, config, tokenizer, artifacts)


def with_merged_adapters(pretrained: Pretrained) -> Pretrained:
    """The network without its adapters, which become part of the weights they stand beside; itself where it has none."""
    if not merge(pretrained.module):
        return pretrained
    stored = OmegaConf.create(pretrained.artifacts["config"])
    config = pretrained.config.copy()
    for each in (stored, config):
        each.adapters = None
    return replace(pretrained, config=config, artifacts=pretrained.artifacts | {"config": OmegaConf.to_yaml(stored)})


def rounded_in_training(pretrained: Pretrained) -> str | None:
    """To what the weights beside its adapters were rounded when these were trained, as the checkpoint's configuration says it."""
    stored = read_stored(pretrained.artifacts["config"], "the checkpoint")
    kind: str | None = (stored.get("adapters") or {}).get("base_weights")
    return kind
