"""Which number format "auto" is."""

import pytest
import torch

from fusionkit.training.precision import resolve_precision


@pytest.mark.parametrize(
    ("accelerator", "cuda", "amx", "avx", "expected"),
    [
        ("cpu", False, False, False, "32-true"),
        ("cpu", False, True, False, "bf16-mixed"),
        ("auto", False, False, True, "bf16-mixed"),
        ("auto", True, False, False, "bf16-mixed"),
        ("gpu", True, False, False, "bf16-mixed"),
        ("cpu", True, False, False, "32-true"),
    ],
)
def test_bf16_where_the_chosen_device_has_it(monkeypatch, accelerator, cuda, amx, avx, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_precision("auto", accelerator) == expected
    assert resolve_precision("64-true", accelerator) == "64-true"
