"""Classification heads of two linear layers, by what stands between them. Built as ``head(size, outputs)``."""

from torch import nn


def gelu_norm(size: int, outputs: int, hidden_size: int | None = None, eps: float = 1e-5) -> nn.Sequential:
    """Linear, GELU, norm, linear (UNITER, LXMERT: eps 1e-12); ``hidden_size`` null: the size of what comes in."""
    inner = hidden_size or size
    return nn.Sequential(nn.Linear(size, inner), nn.GELU(), nn.LayerNorm(inner, eps=eps), nn.Linear(inner, outputs))


def norm_gelu(size: int, outputs: int, hidden_size: int | None = None, eps: float = 1e-5) -> nn.Sequential:
    """Linear, norm, GELU, linear (ViLT, METER)."""
    inner = hidden_size or size
    return nn.Sequential(nn.Linear(size, inner), nn.LayerNorm(inner, eps=eps), nn.GELU(), nn.Linear(inner, outputs))


def relu(size: int, outputs: int, hidden_size: int | None = None) -> nn.Sequential:
    """Linear, ReLU, linear (ALBEF, X-VLM, BLIP)."""
    inner = hidden_size or size
    return nn.Sequential(nn.Linear(size, inner), nn.ReLU(), nn.Linear(inner, outputs))
