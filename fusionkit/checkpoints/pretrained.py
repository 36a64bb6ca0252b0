"""``from_pretrained``: a checkpoint of ours as a network that is ready to use, without its data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionkit.checkpoints.build import Network, build_network
from fusionkit.errors import DataError
from fusionkit.training.artifacts import tokenizer_from
from fusionkit.training.restore import forget_files, load_weights, read_checkpoint


@dataclass(frozen=True)
class Pretrained(Network):
    """A network with its weights, in evaluation mode, and what it was made of."""

    config: DictConfig
    tokenizer: Any | None  # None: the configuration names one on the hub
    origin: dict[str, Any] | None  # of an imported checkpoint


def from_pretrained(path: str | Path) -> Pretrained:
    """Load what ``fusionkit import`` or ``export`` wrote, or a checkpoint of a run; weights load strictly, no code is run."""
    checkpoint = read_checkpoint(path)
    artifacts = checkpoint["fusionkit"]
    config = OmegaConf.create(artifacts["config"])
    assert isinstance(config, DictConfig)
    forget_files(config, json.loads(artifacts["text_encoder"]))
    files = artifacts["tokenizer"]
    tokenizer = tokenizer_from(files) if files else None
    words = tokenizer if tokenizer is not None else artifacts.get("ids")
    if words is None:
        raise DataError(f"checkpoint {path} has neither a tokenizer nor the ids of its special tokens; export it again")
    network = build_network(config, words, artifacts["answers"] or ())
    load_weights(network.module.eval(), checkpoint, path)
    return Pretrained(network.model, network.tasks, network.teacher, config, tokenizer, artifacts.get("origin"))
