"""What tests share: the toy parts of fusionkit/contracts/toys.py, the choices of a group, and numbers without a generator."""

from pathlib import Path
from typing import Any

import torch

from fusionkit.contracts.toys import (  # noqa: F401  (the tests' own)
    ANSWER_TOKENS,
    ANSWERS,
    CLASSES,
    CLS,
    FEATURES,
    MASK,
    PAD,
    SEP,
    VOCABULARY,
    WIDTH,
    joined,
    of_size,
    reads_on,
    toy_batch,
    toy_dims,
    toy_encoder_decoder,
    toy_fusion,
    toy_language_model,
    toy_model,
    toy_no_rows,
    toy_placed_images,
    toy_regions,
    toy_rows,
    toy_task,
    toy_text_half,
)
from fusionkit.tasks.base import Task
from fusionkit.types import TaskOutput

CONF = Path(__file__).parents[1] / "conf"


def scattered(*shape: int, seed: int) -> torch.Tensor:
    """Numbers from -1 to 1, as if drawn, that hang on no generator."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return ((torch.sin(12.9898 * places + seed) * 43758.5453) % 2 - 1).float().view(shape)


def scatter_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that a formula gives, those of norms around 1; single numbers (a temperature) stay."""
    for place, (name, parameter) in enumerate(sorted(module.named_parameters())):
        if parameter.numel() > 1:
            centre = 1.0 if name.endswith("weight") and parameter.dim() == 1 else 0.05
            parameter.data = 0.4 * scattered(*parameter.shape, seed=seed + place) + centre
    return module


def number_of(tensor: torch.Tensor) -> float:
    """One number that depends on each entry of a tensor and on its place."""
    flat = tensor.detach().double().flatten()
    return round((flat * torch.sin(1.0 + torch.arange(len(flat)))).sum().item(), 4) + 0.0


def choices(group: str) -> list[str]:
    """Names of the files in a config group; a group without files is a broken test, not an empty one."""
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    assert names, f"no file in conf/{group}"
    return names


def measured(task: Task[Any], output: TaskOutput) -> dict[str, float]:
    """What a task's metrics make of one output alone."""
    found = {}
    for name, value in output.metrics.items():
        if isinstance(value, tuple):
            metric = task.metrics[name].clone()
            metric.update(*value)
            value = metric.compute()
        found[name] = float(value)
    return found
