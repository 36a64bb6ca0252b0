"""Frozen weights beside which adapters train, kept in 8 or 4 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.errors import ConfigError, suggest
from fusionkit.model.rounding import rounding_library

KEY = "adapters.base_weights"
INT8, NF4 = "int8", "nf4"
BLOCK = 64  # numbers of a weight, one after the other, that share a scale in nf4
MOST = 127  # of an int8


class RoundedLinear(nn.Module):
    """A frozen linear layer whose weight is kept in 8 or 4 bits, and multiplied out at each call, forward and backward.

    ``int8`` has a scale a row (absmax), ``nf4`` one for 64 numbers: 0.56 bytes a number. ``weight`` holds the codes. In a state
    the weight is multiplied out, fp32 under its own name: checkpoints are those of the plain layer, and what is read is rounded
    to the very codes again.
    """

    def __init__(self, linear: nn.Linear, kind: str) -> None:
        super().__init__()
        self.kind, self.in_features, self.out_features = kind, linear.in_features, linear.out_features
        self.bias = linear.bias
        codes, scales = self._rounded(linear.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)  # which a teacher shares, as it does the codes

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out); the gradient is of ``x`` alone."""
        kind = x.device.type
        x = x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
        out: Tensor = _Product.apply(x, self)
        return out

    def matrix(self) -> Tensor:
        """The weight (out, in), multiplied out, fp32."""
        if self.kind == NF4:
            functional = _functional()
            shape, code = (
                (self.out_features, self.in_features),
                functional.get_4bit_type(NF4, device=self.weight.device),
            )
            state = functional.QuantState(
                absmax=self.scales.data,
                shape=torch.Size(shape),
                code=code,
                blocksize=BLOCK,
                quant_type=NF4,
                dtype=torch.float32,
            )
            matrix: Tensor = functional.dequantize_4bit(self.weight.data, state)
            return matrix
        # a scale is a half-precision number, and so the largest of a row is that number again when it is rounded anew
        return self.weight.data.float() * (self.scales.data[:, None] / MOST)

    def plain(self) -> nn.Linear:
        """A linear layer with what the weight was rounded to."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight, linear.bias = nn.Parameter(self.matrix(), requires_grad=False), self.bias
        return linear.train(self.training)

    def _rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight (out, in)."""
        functional, weight = _functional(), weight.to(torch.float32).contiguous()
        if self.kind == NF4:
            codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, compress_statistics=False, quant_type=NF4)
            return codes, state.absmax
        codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
        return codes, scales.float()

    def _apply(self, fn: Any, recurse: bool = True) -> "RoundedLinear":
        scales = self.scales.data  # fp32 in whatever precision a run is
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales.data = scales.to(self.weight.device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.matrix()
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, _: Any, strict: bool, missing: Any, *more: Any
    ) -> None:
        for name, own in (("weight", self.weight), ("bias", self.bias)):
            found = state_dict.get(prefix + name)
            if found is None:
                missing += [prefix + name] if strict and own is not None else []
            elif name == "bias":
                own.data.copy_(found)
            elif found.is_floating_point():  # else these codes themselves, which a teacher is given of its student
                codes, scales = self._rounded(found.to(own.device))
                self.weight.data, self.scales.data = codes, scales


class _Product(torch.autograd.Function):
    """x W^T + b, which keeps neither x nor what W is multiplied out to for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: RoundedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return F.linear(x, layer.matrix().to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.matrix().to(grad.dtype), None


def round_base(layers: dict[str, Any], kind: Any, decomposed: bool) -> None:
    """Keep the weights beside which adapters stand in 8 or 4 bits; ``layers`` are ``adapted_layers``.

    Raises ConfigError for a weight that trains or is no plain linear layer's, for DoRA, whose lengths are of the weights
    themselves, and without bitsandbytes. What has no numbers (meta) stays.
    """
    if kind not in (INT8, NF4):
        raise ConfigError(f"{KEY} is '{kind}'; give null or one of them: {suggest(str(kind), (INT8, NF4))}")
    if decomposed:
        raise ConfigError(f"{KEY}={kind} goes with adapters=lora: DoRA reads the lengths of the weights at each step")
    for name, layer in layers.items():
        linear = layer.get_base_layer()
        if not isinstance(linear, nn.Linear):
            raise ConfigError(
                f"{KEY}={kind}: {name} is a {type(linear).__name__}, whose weight cannot be rounded; choose another model_type "
                f"(not GPT-2), or {KEY}=null"
            )
        if any(parameter.requires_grad for parameter in linear.parameters()):
            part = name.partition(".")[0]
            raise ConfigError(
                f"{KEY}={kind} rounds {name}, which trains; freeze it: {part}.frozen=true, where {part} can be, or leave it "
                "out of what adapters.rules find"
            )
    for layer in layers.values():
        if layer.get_base_layer().weight.device.type != "meta":
            layer.base_layer = RoundedLinear(layer.get_base_layer(), kind)


def count_parameters(modules: Iterable[nn.Module]) -> dict[int, int]:
    """How many numbers each parameter of some modules stands for, by its id: codes for those of the weight, scales for none."""
    modules = list(modules)
    counts = {id(p): p.numel() for module in modules for p in module.parameters()}
    for part in (part for module in modules for part in module.modules() if isinstance(part, RoundedLinear)):
        counts |= {id(part.weight): part.in_features * part.out_features, id(part.scales): 0}
    return counts


def _functional() -> Any:
    return rounding_library(KEY, "bitsandbytes.functional", f"or set {KEY}=null")
