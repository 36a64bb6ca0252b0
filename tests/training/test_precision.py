"""Which number format "auto" is."""

import os
import subprocess
import sys

import pytest
import torch

from fusionkit.training import precision
from fusionkit.training.precision import PROBED, bf16_gain, resolve_precision


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "gain", "expected"),
    [
        ("cpu", False, False, 0.2, "32-true"),
        ("cpu", False, False, 1.4, "32-true"),
        ("cpu", False, False, 1.5, "bf16-mixed"),
        ("auto", False, False, 8.0, "bf16-mixed"),
        ("auto", False, True, 8.0, "32-true"),
        ("cpu", False, True, 8.0, "bf16-mixed"),
        ("auto", True, False, 0.2, "bf16-mixed"),
        ("gpu", True, False, 0.2, "bf16-mixed"),
        ("cpu", True, False, 0.2, "32-true"),
    ],
)
def test_bf16_where_the_chosen_device_is_fast_at_it(monkeypatch, accelerator, cuda, mps, gain, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(precision, "bf16_gain", lambda: gain)
    monkeypatch.setenv(PROBED, "")  # so that what the probe writes is taken back
    monkeypatch.delenv(PROBED)
    assert resolve_precision("auto", accelerator) == expected
    assert resolve_precision("64-true", accelerator) == "64-true"


def test_a_machine_is_measured_once_and_ranks_take_over_what_was_found(monkeypatch):
    found = []
    monkeypatch.setattr(precision, "bf16_gain", lambda: found.append(1) or 2.0)
    monkeypatch.setenv(PROBED, "")
    monkeypatch.delenv(PROBED)
    assert [resolve_precision("auto", "cpu") for _ in range(2)] == ["bf16-mixed", "bf16-mixed"]
    assert found == [1]
    ask = "from fusionkit.training.precision import resolve_precision as r; print(r('auto', 'cpu'))"
    for said, expected in (("1", "bf16-mixed"), ("0", "32-true")):
        environment = {**os.environ, PROBED: said, "PYTHONPATH": os.pathsep.join(sys.path)}
        told = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == expected


def test_the_gain_is_that_of_bf16_over_fp32(monkeypatch):
    """On a clock that runs four times as long over products of fp32."""
    now = [0.0]
    product = torch.Tensor.__matmul__

    def timed(left, right):
        now[0] += 4.0 if left.dtype == torch.float32 else 1.0
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", timed)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: now[0])
    assert bf16_gain(2) == 4.0
