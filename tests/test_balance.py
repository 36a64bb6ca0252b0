"""The weighted sum of losses."""

import pytest
import torch

from fusionkit.balance import Fixed


def gradients(weights: dict[str, float]) -> list[float]:
    x = torch.tensor([1.0, 1.0], requires_grad=True)
    Fixed()({"coco/itc": 3 * x[0], "coco/itm": 5 * x[1]}, weights).backward()
    assert x.grad is not None
    return x.grad.tolist()


def test_doubling_a_weight_doubles_its_own_gradient_only():
    assert gradients({"coco/itc": 1.0, "coco/itm": 0.5}) == pytest.approx([3.0, 2.5])
    assert gradients({"coco/itc": 2.0, "coco/itm": 0.5}) == pytest.approx([6.0, 2.5])
