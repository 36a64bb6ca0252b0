"""Schedules against their closed forms, and the one that follows the clock."""

import math

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from fusionkit.errors import ConfigError
from fusionkit.training.schedule import (
    TimedFactor,
    constant,
    counted_linear,
    epoch_cosine,
    epoch_decay,
    warmup_cosine,
    warmup_linear,
)

BASE = 0.2


def rates(factory, steps: int, **options) -> list[float]:
    """The rate of each step, for two groups of which the second learns ten times slower."""
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": BASE / 10}]
    optimizer = torch.optim.SGD(groups, lr=BASE)
    schedule = factory(optimizer, total_steps=steps, **options)
    seen = []
    for _ in range(steps):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(first / 10)
        seen.append(first)
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("warmup", [4, 0.2])
def test_cosine(warmup):
    expected = [BASE * (s + 1) / 4 for s in range(4)]
    expected += [BASE * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (s - 4) / 16))) for s in range(4, 20)]
    assert rates(warmup_cosine, 20, warmup_steps=warmup, min_lr_ratio=0.1) == pytest.approx(expected)


def test_a_single_step_behind_the_warm_up_is_the_whole_cosine():
    weight = torch.nn.Parameter(torch.zeros(1))
    schedule = warmup_cosine(torch.optim.SGD([weight], lr=1.0), total_steps=3, warmup_steps=2, min_lr_ratio=0.1)
    assert [schedule.lr_lambdas[0](step) for step in range(4)] == pytest.approx([0.5, 1.0, 1.0, 0.1])


def test_linear_and_constant():
    line = [BASE * (s + 1) / 2 for s in range(2)] + [BASE * (10 - s) / 8 for s in range(2, 10)]
    assert rates(warmup_linear, 10, warmup_steps=2) == pytest.approx(line)
    assert rates(constant, 5, warmup_steps=2) == pytest.approx([BASE / 2, *[BASE] * 4])
    assert rates(constant, 3) == pytest.approx([BASE] * 3)


def test_counted_linear_is_transformers():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=BASE)
    theirs = get_linear_schedule_with_warmup(optimizer, 3, 12).lr_lambdas[0]
    assert rates(counted_linear, 12, warmup_steps=3) == pytest.approx([BASE * theirs(n) for n in range(12)])
    assert rates(counted_linear, 12, warmup_steps=3, first=1) == pytest.approx(
        [BASE * theirs(n + 1) for n in range(12)]
    )


def test_albefs_cosine_stands_still_within_an_epoch_after_stairs():
    """`Pretrain.py` with a step_size of 2: lr 1e-4 -> 1e-5 over 3 epochs of 10, warm-up 4 iterations from 1e-5."""
    found = rates(epoch_cosine, 30, epochs=3, min_lr_ratio=0.1, warmup_steps=4, warmup_lr_ratio=0.1, warmup_every=2)
    stairs = [0.1] * 3 + [0.55] * 2 + [1.0] * 5  # told after iterations 0, 2 and 4
    later = [0.1 + 0.9 * (1 + math.cos(math.pi * e / 3)) / 2 for e in (1, 2) for _ in range(10)]
    assert found == pytest.approx([BASE * factor for factor in stairs + later])


def test_a_warm_up_longer_than_the_first_epoch_ends_with_it():
    assert rates(epoch_cosine, 4, epochs=2, warmup_steps=40, warmup_lr_ratio=0.1)[:3] == pytest.approx(
        [BASE * 0.1, BASE * 0.1, BASE * 0.5]
    )


def test_blips_decay():
    found = rates(epoch_decay, 12, epochs=4, decay=0.5, min_lr_ratio=0.2, warmup_steps=2, warmup_lr_ratio=0.1)
    assert found == pytest.approx([BASE * f for f in [0.1, 0.55, 1.0] + [0.5] * 3 + [0.25] * 3 + [0.2] * 3])
    with pytest.raises(ConfigError, match=r"scheduler.epochs is -1, .* give the run trainer.max_epochs"):
        rates(epoch_decay, 12, epochs=-1)


def test_a_slow_machine_reaches_the_floor_when_the_time_is_over():
    now = [100.0]
    factor = TimedFactor(lambda step: 1 - step / 50, total=50, seconds=60, clock=lambda: now[0])
    seen = []
    for step in range(10):
        seen.append(factor(step))
        assert factor(step) == seen[-1]  # the next group of the same step
        now[0] += 6 if step else 0.5
    assert seen[1] == pytest.approx(1 - 1 / 50)  # here the step is ahead of the clock
    assert seen[-1] == pytest.approx(1 - 48.5 / 60)  # here the clock is
    assert seen == sorted(seen, reverse=True)


def test_the_time_spent_survives_a_checkpoint():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1)
    state = warmup_cosine(optimizer, 100, max_minutes=1).state_dict()
    (saved,) = state["lr_lambdas"]
    assert list(saved) == ["spent"]
    saved["spent"] = 60.0
    resumed = warmup_cosine(optimizer, 200, min_lr_ratio=0.25, max_minutes=1)
    resumed.load_state_dict(state)
    optimizer.step()
    resumed.step()
    assert resumed.get_last_lr() == [0.25]


def test_impossible_lengths_are_refused():
    with pytest.raises(ConfigError, match=r"set trainer.max_steps or trainer.max_epochs"):
        rates(warmup_cosine, math.inf)
    with pytest.raises(ConfigError, match=r"scheduler.warmup_steps: .* got 1.5"):
        rates(warmup_cosine, 10, warmup_steps=1.5)
    with pytest.warns(UserWarning, match="the full rate is not reached"):
        assert max(rates(warmup_cosine, 10, warmup_steps=20)) == BASE / 2
