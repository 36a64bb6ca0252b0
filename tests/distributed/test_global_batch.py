"""W processes have the gradient of one on the joint batch, whatever number of images and texts each has."""

import pytest
import torch

from tests.distributed.global_batch import cases, differences, table
from tests.toys import choices

TASKS, BALANCERS = choices("task"), choices("balance")


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_ranks_are_those_of_one_process(world):
    """Each case in fp64; each task and balancer, or with four ranks each case, in fp32 too."""
    names = cases()
    assert names.keys() >= {*TASKS, *(f"{name}, a rank without texts" for name in TASKS)}
    assert names.keys() >= {f"balance={name}" for name in BALANCERS}
    twice = [name for name in names if world > 2 or "," not in name]
    found = differences(world, dict.fromkeys(names, (torch.float64,)) | dict.fromkeys(twice, (torch.float64, torch.float32)))
    wrong = [line for line, numbers in zip(table(found), found.values(), strict=True) if not is_equal(*numbers)]
    assert not wrong, "\n".join(wrong)


def is_equal(double: float, single: float = 0.0) -> bool:
    return double < 1e-9 and single < 5e-6
