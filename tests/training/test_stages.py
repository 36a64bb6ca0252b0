"""Stages: what trains, for how long, how fast, and that an interrupted run goes on in its stage."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning import Callback

from fusionkit.balance import Uncertainty
from fusionkit.errors import ConfigError
from fusionkit.training.callbacks import LastCheckpoint, StageEnds
from fusionkit.training.optim import build_optimizer
from fusionkit.training.stages import Stage
from tests.training.fakes import FakeData, fake_module
from tests.training.test_module import Interrupt, fit

HEADS_FIRST = {"heads": Stage(3, [r"^tasks\."], lr_scale=2.0), "all": Stage(None, lr_scale=0.5)}


class Watch(Callback):
    """Keeps the weights before each step, the rate that is logged, and what has a gradient."""

    def __init__(self) -> None:
        self.weights, self.rates, self.trained = [], [], []

    def on_train_batch_start(self, trainer, module, *args):
        self.weights.append((module.model.image_encoder[0].weight.clone(), module.tasks["a"].head.weight.clone()))

    def on_train_batch_end(self, trainer, module, *args):
        self.rates.append(module.step_metrics["train/lr"])
        self.trained.append({name for name, p in module.named_parameters() if p.grad is not None})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_stage_trains_its_part_at_its_rate(tmp_path, accumulate):
    watch, module = Watch(), fake_module(stages=HEADS_FIRST, scheduler=None)
    data = FakeData(batches=6 * accumulate)
    options = {"max_steps": 6, "limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    fit(tmp_path, module, data, callbacks=[watch], **options)
    encoders, heads = (part[::accumulate] for part in map(list, zip(*watch.weights, strict=True)))
    assert all(torch.equal(encoders[0], later) for later in encoders[:4])
    assert not any(torch.equal(one, other) for one, other in pairwise(encoders[3:]))
    assert not any(torch.equal(one, other) for one, other in pairwise(heads))
    assert watch.rates[::accumulate] == pytest.approx([0.1] * 3 + [0.025] * 3)
    assert watch.trained[0] == {"tasks.a.head.weight", "tasks.a.head.bias"}
    assert "model.image_encoder.0.weight" in watch.trained[-1]
    # AdamW's first step moves every weight by its rate
    moved = (heads[1] - heads[0]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), atol=1e-3, rtol=0)


def test_the_schedule_runs_on_under_the_stages(tmp_path):
    plain, staged = Watch(), Watch()
    fit(tmp_path, fake_module(), callbacks=[plain], max_steps=6, limit_val_batches=0)
    fit(tmp_path, fake_module(stages=HEADS_FIRST), callbacks=[staged], max_steps=6, limit_val_batches=0)
    scales = [2.0] * 3 + [0.5] * 3
    assert staged.rates == pytest.approx([rate * scale for rate, scale in zip(plain.rates, scales, strict=True)])


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_resumed_in_a_stage_is_the_uninterrupted_one(tmp_path, at):
    fake = partial(fake_module, teacher=True, stages=HEADS_FIRST, optimizer=partial(build_optimizer, lr=0.05))
    options = {"max_epochs": 8, "limit_val_batches": 0, "enable_checkpointing": True}
    run = lambda module, place, *more, **also: fit(  # noqa: E731
        tmp_path,
        module,
        FakeData(batches=1),
        callbacks=[LastCheckpoint(str(tmp_path / place)), *more],
        **options,
        **also,
    )
    whole, resumed = fake(), fake()
    run(whole, "whole")
    with pytest.raises(KeyError, match="interrupted"):
        run(fake(), "half", Interrupt(at))
    run(resumed, "half", ckpt_path=tmp_path / "half" / "last.ckpt")
    assert 0 < len(resumed.model.encoded) < len(whole.model.encoded)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_is_frozen_from_the_start_stays_frozen_and_balancers_always_train():
    module = fake_module(stages=HEADS_FIRST, balance=Uncertainty())
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == {"tasks.a.head.weight", "tasks.a.head.bias", "balance.log_variances"}
    module.stages.enter(3)
    assert not module.model.projections.weight.requires_grad  # no task reads it
    assert module.model.image_encoder[0].weight.requires_grad


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"a": Stage(2, ["vision"]), "b": Stage(None)}, "stages.a.trains: 'vision' matches none of the parameters"),
        ({"a": Stage(None, ["("])}, "stages.a.trains: '(' is no regular expression (missing )"),
        ({"a": Stage(None), "b": Stage(None)}, "stages.a.steps is None; give a number above 0, as only the last stage"),
        ({"a": Stage(0), "b": Stage(None)}, "stages.a.steps is 0"),
        ({"a": Stage(3)}, "stages.a.steps: the last stage lasts to the end of the run; set it to null"),
        ({"a": Stage(None, [])}, "stages.a.trains is empty"),
        ({"a": Stage(None, lr_scale=0.0)}, "stages.a.lr_scale is 0.0; give a number above 0"),
    ],
)
def test_mistakes_are_named(stages, words):
    with pytest.raises(ConfigError) as caught:
        fake_module(stages=stages)
    assert words in str(caught.value)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_weights_at_the_end_of_each_stage_are_kept(tmp_path, accumulate):
    stages = {"first": Stage(2, [r"^tasks\."]), "second": Stage(1), "last": Stage(None)}
    watch, module = Watch(), fake_module(stages=stages, scheduler=None)
    options = {"max_steps": 5, "limit_val_batches": 0, "accumulate_grad_batches": accumulate}
    data = FakeData(batches=5 * accumulate)
    fit(tmp_path, module, data, callbacks=[watch, StageEnds(str(tmp_path / "kept"))], **options)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["after_first.ckpt", "after_second.ckpt"]
    before = watch.weights[::accumulate]
    for name, step in (("first", 2), ("second", 3)):
        kept = torch.load(tmp_path / f"kept/after_{name}.ckpt", weights_only=False)
        assert kept["global_step"] == step
        assert torch.equal(kept["state_dict"]["tasks.a.head.weight"], before[step][1])
    fit(tmp_path, fake_module(), callbacks=[StageEnds(str(tmp_path / "none"))], max_steps=2, limit_val_batches=0)
    assert not (tmp_path / "none").exists()
