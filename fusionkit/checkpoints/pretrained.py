"""``from_pretrained``: a checkpoint of ours as a network that is ready to use, without its data."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fusionkit.checkpoints.build import Network, build_network
from fusionkit.checkpoints.directory import CONFIG, WEIGHTS
from fusionkit.errors import DataError
from fusionkit.training.artifacts import tokenizer_from
from fusionkit.training.restore import forget_weights, load_weights, read_checkpoint


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


def from_pretrained(path: str | Path) -> Pretrained:
    """Load what ``fusionkit import`` or ``export`` wrote, or a checkpoint of a run; weights load strictly, no code is run.

    ``path`` may also name a model on the Hugging Face hub that ``export`` uploaded, OWNER/NAME.
    """
    path = _downloaded(str(path)) if _is_on_hub(str(path)) else path
    checkpoint = read_checkpoint(path)
    artifacts = checkpoint["fusionkit"]
    config = OmegaConf.create(artifacts["config"])
    assert isinstance(config, DictConfig)
    forget_weights(config, json.loads(artifacts["text_encoder"]))
    files = artifacts["tokenizer"]
    tokenizer = tokenizer_from(files) if files else None
    words = tokenizer if tokenizer is not None else artifacts.get("ids")
    if words is None:
        raise DataError(f"checkpoint {path} has neither a tokenizer nor the ids of its special tokens; export it again")
    network = build_network(config, words, artifacts["answers"] or ())
    load_weights(network.module.eval(), checkpoint, path)
    return Pretrained(network.model, network.tasks, network.teacher, config, tokenizer, artifacts)


def _is_on_hub(path: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not Path(path).exists() and not Path(path).suffix


def _downloaded(repository: str) -> Path:
    """The folder of a model on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"checkpoint {repository} is no folder here, and the hub does not give it ({reason})"
        ) from error
