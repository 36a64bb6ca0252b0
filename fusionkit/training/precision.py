"""Which number format this machine trains fastest in without giving up accuracy."""

import torch


def resolve_precision(requested: str, accelerator: str = "auto") -> str:
    """Lightning's name for the precision: "auto" is bf16-mixed where the device computes in bf16, else 32-true.

    Never 16-mixed: on a CPU it would silently be bf16, and its gradient scaler cannot clip a fused optimiser step.
    """
    if requested != "auto":
        return requested
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
        has_bf16 = on_cpu and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return "bf16-mixed" if has_bf16 else "32-true"
