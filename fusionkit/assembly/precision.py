"""Which number format this machine trains fastest in without giving up accuracy, and what of a batch it is meant for."""

import os
import time
from functools import partial
from typing import Any

import torch

from fusionkit.types import Frames, Regions, Sounds

PROBED = "FUSIONKIT_CPU_BF16"  # the answer of the probe, "0" or "1": ranks inherit it, so that all compute alike
GAIN = 1.5  # how many times faster bf16 has to be: a layer is more than its matrix products


def resolve_precision(requested: str, accelerator: str = "auto") -> str:
    """Lightning's name for the precision: "auto" is bf16-mixed where the device is fast at bf16, else 32-true.

    Never 16-mixed: on a CPU it would silently be bf16, and its gradient scaler cannot clip a fused optimiser step.
    """
    if requested != "auto":
        return requested
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
        is_fast = on_cpu and cpu_is_fast_at_bf16()
    return "bf16-mixed" if is_fast else "32-true"


def cpu_is_fast_at_bf16() -> bool:
    """Whether matrix products in bf16 are worth it on this CPU: measured once, in about a tenth of a second.

    What a CPU says of itself does not tell: without matrix units bf16 is several times slower than fp32, with them faster.
    """
    if PROBED not in os.environ:
        os.environ[PROBED] = str(int(bf16_gain() >= GAIN))
    return os.environ[PROBED] == "1"


def bf16_gain(rounds: int = 5) -> float:
    """How many times faster than fp32 a linear layer's forward and backward products are in bf16; the best of so many rounds."""
    pairs = [
        (torch.ones(256, 256, dtype=kind), torch.ones(256, 1024, dtype=kind))
        for kind in (torch.float32, torch.bfloat16)
    ]
    best = [float("inf"), float("inf")]
    for _ in range(rounds + 1):  # the first round also warms up
        for index, (rows, weight) in enumerate(pairs):
            start = time.perf_counter()
            out = rows @ weight
            out @ weight.T, rows.T @ out
            best[index] = min(best[index], time.perf_counter() - start)
    return best[0] / best[1]


def exact_inputs(plugin: Any, reads: str) -> None:
    """Let a precision of Lightning's convert of a batch what the image encoder ``reads`` alone, in place.

    By itself it converts every float: bf16 makes a width of 641 pixels 640, and moves boxes, positions and answers' scores.
    """
    convert = partial(type(plugin).convert_input, plugin)
    if plugin.precision != "64-true":  # which rounds nothing
        plugin.convert_input = partial(_convert_images, convert, reads)


def _convert_images(convert: Any, reads: str, data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    return {
        key: _images(convert, value) if key == reads else _convert_images(convert, reads, value)
        for key, value in data.items()
    }


def _images(convert: Any, images: Any) -> Any:
    if isinstance(images, Frames | Sounds):
        return images._replace(values=convert(images.values))
    return images._replace(features=convert(images.features)) if isinstance(images, Regions) else convert(images)
