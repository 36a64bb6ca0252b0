"""Where the time of a step goes: labels, nesting, the wait for data; seconds of a clock that the test moves."""

from types import SimpleNamespace

import pytest
from torch import nn

from fusionkit.training import step_clock
from fusionkit.training.step_clock import DATA, LOOP, CountedSteps, StepClock, label_of


@pytest.fixture
def now(monkeypatch):
    time = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(step_clock.time, "perf_counter", lambda: time.seconds)
    return time


@pytest.mark.parametrize(
    ("action", "label"),
    [
        ("[Strategy]SingleDeviceStrategy.backward", "backward pass"),
        ("[Strategy]DDPStrategy.training_step", "rest of the forward pass"),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", "to the device"),
        ("[LightningModule]TrainingModule.optimizer_step", "optimizer"),
        ("[LightningModule]TrainingModule.configure_gradient_clipping", "optimizer"),
        ("[Callback]LastCheckpoint{'monitor': None}.on_train_batch_end", "callback LastCheckpoint"),
        ("[LightningModule]TrainingModule.on_train_batch_end", None),
        ("run_training_batch", None),
    ],
)
def test_actions_have_the_names_of_a_reader(action, label):
    assert label_of(action) == label


def test_time_is_counted_once_where_it_was_spent(now):
    clock, fusion = StepClock(), nn.Identity()
    inner = fusion.forward

    def slow(x):
        now.seconds += 4
        return inner(x)

    fusion.forward = slow
    clock.watch(fusion, "forward", "fusion")
    clock.reset()
    now.seconds += 1
    with clock.profile("run_training_batch"):  # a part of the loop
        now.seconds += 2
        with clock.profile("[Strategy]SingleDeviceStrategy.training_step"):
            now.seconds += 8
            assert fusion(5) == 5
            now.seconds += 16
            with clock.profile(
                "[LightningModule]TrainingModule.on_before_backward"
            ):  # named by nobody: as what it is in
                now.seconds += 32
    assert clock.read() == {LOOP: 3, "rest of the forward pass": 56, "fusion": 4}


def test_a_call_that_fails_is_over(now):
    clock, owner = StepClock(), SimpleNamespace(work=lambda: 1 / 0)
    clock.watch(owner, "work", "work")
    with pytest.raises(ZeroDivisionError):
        owner.work()
    clock.reset()
    now.seconds += 1
    assert clock.read() == {LOOP: 1}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_so_many_steps_are_counted_behind_the_first_and_then_the_training_ends(now, accumulate):
    clock, data = StepClock(), SimpleNamespace(waited=0.0)
    datamodule = SimpleNamespace(seconds_waited=lambda: data.waited)
    trainer = SimpleNamespace(
        accumulate_grad_batches=accumulate, global_step=0, datamodule=datamodule, should_stop=False
    )
    counted = CountedSteps(clock, warmup=2, steps=3)
    for batch in range(5 * accumulate):
        assert not trainer.should_stop
        now.seconds += 1000 if batch < 2 * accumulate else 6  # the first steps are slow
        data.waited += 500 if batch < 2 * accumulate else 2
        trainer.global_step = (batch + 1) // accumulate
        counted.on_train_batch_end(trainer, None, None, None, batch)
    assert trainer.should_stop
    assert counted.found == {LOOP: 3 * accumulate * 4, DATA: 3 * accumulate * 2}
