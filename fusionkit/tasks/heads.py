"""What stands between a fused vector and the classes: small networks (size, outputs) -> module."""

from collections.abc import Callable

from torch import nn

Head = Callable[[int, int], nn.Module]


def gelu_head(size: int, outputs: int) -> nn.Sequential:
    """Linear, GELU, norm, linear (UNITER, ViLT, METER)."""
    return nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Linear(size, outputs))


def relu_head(size: int, outputs: int) -> nn.Sequential:
    """Linear, ReLU, linear (ALBEF)."""
    return nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, outputs))


def wide_head(size: int, outputs: int) -> nn.Sequential:
    """Linear to twice the width, norm, GELU, linear (X-VLM)."""
    return nn.Sequential(nn.Linear(size, 2 * size), nn.LayerNorm(2 * size), nn.GELU(), nn.Linear(2 * size, outputs))
