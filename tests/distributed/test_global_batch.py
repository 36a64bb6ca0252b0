"""W processes have the gradient of one on the joint batch, whatever number of images and texts each has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.global_batch import cases, table
from tests.toys import choices

ROOT = Path(__file__).parents[2]
PLAIN = "^[^,]*$"  # each task and balancer as it is: these are tried in fp32 as well, and by four processes


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_ranks_are_those_of_one_process(world, tmp_path):
    command = [
        sys.executable,
        "-m",
        "tests.distributed.global_batch",
        str(world),
        PLAIN,
        str(tmp_path / "found"),
        *([PLAIN] if world == 4 else []),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found").read_text())
    tasks, balancers = choices("task"), [f"balance={name}" for name in choices("balance")]
    assert cases().keys() >= {*tasks, *(f"{name}, a rank without texts" for name in tasks), *balancers}
    assert found.keys() == {name for name in cases() if world == 2 or "," not in name}
    assert all(len(found[name]) == 2 for name in (*tasks, *balancers))
    wrong = [line for line, numbers in zip(table(found), found.values(), strict=True) if not is_equal(*numbers)]
    assert not wrong, "\n".join(wrong)


def is_equal(double: float, single: float = 0.0) -> bool:
    return double < 1e-9 and single < 5e-6
