"""W processes have the gradients and weights of one on the joint batch, whatever number of images and texts each has."""

import json

import pytest

from tests.distributed.global_batch import cases, run_module, table
from tests.toys import choices

PLAIN = "^[^,]*$"  # each task and balancer as it is: two processes try these in fp32 as well, and four try them
NONE = "$^"


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_ranks_are_those_of_one_process(world, tmp_path):
    twice, *tried = [NONE, PLAIN] if world == 4 else [PLAIN]
    run_module("tests.distributed.global_batch", str(world), twice, str(tmp_path / "found"), *tried)
    found = json.loads((tmp_path / "found").read_text())
    tasks, balancers = choices("task"), [f"balance={name}" for name in choices("balance")]
    assert cases().keys() >= {*tasks, *(f"{name}, a rank without texts" for name in tasks), *balancers}
    assert found.keys() == {name for name in cases() if world == 2 or "," not in name}
    assert all(len(found[name]) == (2 if world == 2 else 1) for name in (*tasks, *balancers))
    wrong = [line for line, numbers in zip(table(found), found.values(), strict=True) if not is_equal(*numbers)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_weights_of_ranks_are_those_of_one_process_after_twenty_steps(tmp_path):
    run_module("tests.distributed.twenty_steps", "4", f"{PLAIN}|, queue|, taught$", str(tmp_path / "found"))
    found = json.loads((tmp_path / "found").read_text())
    balancers = {f"balance={name}" for name in choices("balance")}
    assert found.keys() >= {
        *choices("task"),
        *balancers,
        "itc, queue",
        "itc, queue, taught",
        "in chunks, queue, taught",
    }
    assert {name: far for name, far in found.items() if not far < 1e-5} == {}


def is_equal(double: float, single: float = 0.0) -> bool:
    return double < 1e-9 and single < 5e-6
