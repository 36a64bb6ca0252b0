"""What a training checks and prepares before its first step."""

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from fusionkit.assembly.image_tokens import ImageTokens
from fusionkit.config import leaves
from fusionkit.distributed import gather_objects
from fusionkit.errors import ConfigError
from fusionkit.training.steps.state import BESIDE

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule


def require_same_on_ranks(artifacts: Mapping[str, Any]) -> None:
    """All ranks must train the same; a launcher that replays a sweep in every rank gives each its own config."""
    digest = hashlib.sha256(json.dumps(artifacts, sort_keys=True, default=str).encode()).hexdigest()
    if len(set(gather_objects([digest]))) > 1:
        told = _difference(gather_objects([artifacts]))
        raise ConfigError(
            f"the ranks hold different configurations ({told}); start all of them with the same command, one run at a time"
        )


def _difference(artifacts: Sequence[Mapping[str, Any]]) -> str:
    """The first of the values that two ranks have not in common, in words."""
    all_values = [dict(leaves({**found, "config": yaml.safe_load(str(found.get("config")))})) for found in artifacts]
    first = all_values[0]
    for number, values in enumerate(all_values):
        for key in {**first, **values}:
            if first.get(key) != values.get(key):
                a, b = (reprlib.repr(them.get(key)) for them in (first, values))
                return f"{key.removeprefix('config.')} is {a} on rank 0, and {b} on rank {number}"
    return "in what was read from files"


def require_gradients(module: "TrainingModule") -> None:
    """What takes single objectives' gradients, or freezes on the way, needs whole parameters and unscaled gradients."""
    takes, trainer = module.balance.reads_gradients, module.trainer
    needs_whole = takes or len(module.stages) > 1 or module.average is not None or module.frozen_weights == BESIDE
    if needs_whole and not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer.strategy: {type(trainer.strategy).__name__} splits parameters, so neither balancers that read gradients "
            "nor stages nor averages nor frozen_weights=beside can work; use trainer.strategy=ddp, or balance=fixed, "
            "stages=none, ema.decay=null and frozen_weights=stored"
        )
    if takes and trainer.precision == "16-mixed":
        raise ConfigError(
            "trainer.precision=16-mixed: single objectives' gradients are not scaled and may vanish in fp16; use bf16-mixed "
            "or 32-true, or balance=fixed"
        )


def keep_image_tokens(module: "TrainingModule", image_tokens: ImageTokens) -> None:
    """Here, where the weights are those that the run goes on from, the ranks know each other, and no batch was asked for."""
    plugin, sources = module.trainer.precision_plugin, module.trainer.datamodule.sources  # type: ignore[attr-defined]
    places = [(name, role) for name in module.objectives for role in ("train", "val") if role in sources[name].splits]

    def convert(pixels: Tensor) -> Tensor:
        converted: Tensor = plugin.convert_input({"pixel_values": pixels})["pixel_values"]
        return converted

    image_tokens.fill(places, module.device, str(module.trainer.precision), convert, plugin.forward_context)
