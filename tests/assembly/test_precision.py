"""Which number format "auto" is, and what of a batch a low one rounds."""

import os
import subprocess
import sys

import pytest
import torch
from lightning import Callback
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision

from fusionkit.assembly import precision
from fusionkit.assembly.precision import PROBED, bf16_gain, exact_inputs, resolve_precision
from tests.toys import toy_batch, toy_model
from tests.training.fakes import fake_module
from tests.training.test_module import fit


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
    ask = "from fusionkit.assembly.precision import resolve_precision as r; print(r('auto', 'cpu'))"
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


@pytest.mark.parametrize("name", ["bf16-true", "16-true"])
def test_a_low_precision_rounds_images_alone(name):
    plugin = HalfPrecision(name)
    exact_inputs(plugin, "pixel_values")
    exact_inputs(plugin, "pixel_values")  # once more, for another stage
    batch = toy_batch(2)
    batch["image_sizes"][0] = torch.tensor([641.0, 479.0])
    found = plugin.convert_input({"toy": batch})["toy"]
    low = {"bf16-true": torch.bfloat16, "16-true": torch.float16}[name]
    assert found["pixel_values"].dtype == low
    assert found["image_sizes"][0].tolist() == [641, 479]
    for kind, fact in (("expressions", "boxes"), ("questions", "answer_scores"), ("hypotheses", "neutral")):
        assert torch.equal(found[kind][fact], batch[kind][fact])
    assert torch.equal(found["regions"].features, batch["regions"].features)
    assert plugin.convert_input(3) == 3
    exact_inputs(plugin, "regions")
    found = plugin.convert_input(batch)
    assert found["regions"].features.dtype == low
    assert torch.equal(found["regions"].positions, batch["regions"].positions)
    assert torch.equal(found["regions"].class_scores, batch["regions"].class_scores)
    assert found["pixel_values"].dtype == torch.float32


def test_double_precision_is_for_all_of_a_batch():
    plugin = DoublePrecision()
    exact_inputs(plugin, "pixel_values")
    assert plugin.convert_input(toy_batch(2))["image_sizes"].dtype == torch.float64


def test_a_module_has_its_precision_leave_exact_numbers_alone(tmp_path):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            seen.extend((batch["coco"]["pixel_values"].dtype, batch["coco"]["targets"].dtype))

    fit(tmp_path, fake_module(), callbacks=[Look()], precision="bf16-true", max_steps=1, limit_val_batches=0)
    assert seen == [torch.bfloat16, torch.float32]


def test_regions_are_read_in_a_low_precision_with_exact_positions():
    model, batch = toy_model(regions=True).to(torch.bfloat16), toy_batch(2)
    regions = batch["regions"]._replace(features=batch["regions"].features.bfloat16())
    assert model.encode_image(regions).embeds.dtype == torch.bfloat16
