"""What happens to a step whose losses or gradient are not finite, on one rank; on two: tests/distributed."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback
from torch import nn

from fusionkit.balance import DWA, GradNorm, PCGrad
from fusionkit.checkpoints.match import not_finite
from fusionkit.errors import ConfigError, UserError
from fusionkit.training.callbacks import LastCheckpoint
from fusionkit.training.finite import FiniteSteps, damaged_images
from fusionkit.training.muon import build_muon
from fusionkit.training.optim import build_optimizer
from fusionkit.types import TaskOutput
from tests.toys import toy_batch
from tests.training.fakes import FakeData, FakeTask, fake_module
from tests.training.test_module import fit

RUN = {"max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 1}


class Spoil(Callback):
    """Makes the gradient NaN (or whatever) at some steps; keeps what the module was before them and after each step."""

    def __init__(self, *steps: int, value: float = float("nan"), of: str = "gradient") -> None:
        self.steps, self.value, self.of = steps, value, of
        self.before, self.after, self.optimizer = {}, {}, {}

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        step = trainer.global_step
        self.before.setdefault(step, copy.deepcopy(module.state_dict()))
        self.optimizer.setdefault(step, copy.deepcopy(trainer.optimizers[0].state_dict()))
        if self.of == "pixels" and step in self.steps and batch_idx % trainer.accumulate_grad_batches == 0:
            batch["coco"]["pixel_values"][1] = self.value

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if self.of == "gradient" and trainer.global_step in self.steps:
            next(p for p in module.parameters() if p.grad is not None).grad[0] = self.value

    def on_train_batch_end(self, trainer, module, *args):
        self.after.setdefault(trainer.global_step, copy.deepcopy(module.state_dict()))


def with_norm(**options):
    """A module whose image encoder and head have batch norms."""
    module = fake_module(**options)
    module.model.image_encoder.append(nn.BatchNorm1d(4))
    module.tasks["a"].head = nn.Sequential(nn.BatchNorm1d(4), module.tasks["a"].head)
    return module


def moments(state) -> list[torch.Tensor]:
    return [value for part in state.get("parts", [state]) for row in part["state"].values() for value in row.values()]


@pytest.mark.parametrize("optimizer", [build_optimizer, partial(build_muon, matrices="image_encoder")])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])  # the square of the last is infinite
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path, capsys, optimizer, value):
    module, spoil = fake_module(optimizer=partial(optimizer, lr=0.05)), Spoil(2, value=value)
    run = fit(tmp_path, module, callbacks=[spoil], max_steps=5, gradient_clip_val=1.0, **RUN)
    for name, tensor in spoil.before[2].items():
        assert torch.equal(spoil.after[3][name], tensor), name
    before, after = moments(spoil.optimizer[2]), moments(spoil.optimizer[3])
    assert before
    assert all(map(torch.equal, before, after))
    assert any(not torch.equal(a, b) for a, b in zip(moments(spoil.optimizer[4]), after, strict=True))
    assert run.global_step == 5
    assert (module.finite.count, module.finite.in_a_row) == (1, 0)
    assert run.callback_metrics["train/skipped_steps"] == 1
    warning = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    images = "images 8, 9, 10, 11 of coco"
    assert warning == [f"warning: step 2: the gradient is not finite ({images}); the step is left out (1 so far)"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_statistics_of_batch_norms_are_those_of_before_the_step(tmp_path, capsys, accumulate):
    module, spoil = with_norm(), Spoil(1, of="pixels")
    options = RUN | {"accumulate_grad_batches": accumulate, "max_steps": 3}
    fit(tmp_path, module, callbacks=[spoil], **options)
    assert module.finite.count == 1
    statistics = [name for name in spoil.before[1] if "running" in name or "batches_tracked" in name]
    assert len(statistics) == 6
    for name in statistics:
        assert torch.equal(spoil.after[2][name], spoil.before[1][name]), name
        assert not torch.equal(spoil.after[3][name], spoil.before[1][name]), name
    # of the first of two micro-batches the pixels are gone by then
    damaged = "pixels or features that are not finite in images 5" if accumulate == 1 else "images 8, 9, 10, 11"
    assert f"the loss of coco/a is not finite ({damaged} of coco)" in capsys.readouterr().out


@pytest.mark.parametrize("balance", [partial(DWA, window=1), GradNorm, PCGrad])
def test_a_balancer_keeps_the_state_of_before(tmp_path, balance):
    tasks = {"a": FakeTask(), "b": FakeTask(value=0.5)}
    module = fake_module({"coco": {"a": 1.0, "b": 2.0}}, tasks=tasks, balance=balance(), teacher=True)
    spoil = Spoil(2, of="pixels")
    fit(tmp_path, module, callbacks=[spoil], max_steps=5, **RUN)
    assert module.finite.count == 1
    assert not not_finite(module)
    for name, tensor in spoil.before[2].items():
        assert name.startswith("teacher") or torch.equal(spoil.after[3][name], tensor), name
    assert all(torch.isfinite(torch.as_tensor(value)) for value in module.step_metrics.values())


def test_losses_that_stay_so_end_the_run_and_one_now_and_then_does_not(tmp_path):
    module = fake_module(max_skipped_steps=2)
    fit(tmp_path, module, callbacks=[Spoil(0, 2, 4)], max_steps=6, **RUN)
    assert (module.finite.count, module.finite.in_a_row) == (3, 0)
    with pytest.raises(
        UserError, match=r"^step 3: the gradient .*, as at the 1 before it; lower optimizer.lr, clip with"
    ):
        fit(tmp_path, fake_module(max_skipped_steps=2), callbacks=[Spoil(0, 2, 3)], max_steps=6, **RUN)


def test_the_count_goes_on_with_the_run(tmp_path):
    last = LastCheckpoint(str(tmp_path / "run"))
    options = RUN | {"max_epochs": 1, "enable_checkpointing": True}
    fit(tmp_path, fake_module(max_skipped_steps=3), callbacks=[last, Spoil(4, 5)], **options)
    resumed = fake_module(max_skipped_steps=3)
    with pytest.raises(UserError, match=r"^step 6: .* as at the 2 before it"):
        fit(tmp_path, resumed, None, tmp_path / "run" / "last.ckpt", callbacks=[Spoil(6)], **RUN | {"max_epochs": 2})
    assert (resumed.finite.count, resumed.finite.in_a_row) == (3, 3)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    del checkpoint["progress"]["skipped_steps"]  # of an earlier version
    torch.save(checkpoint, tmp_path / "older.ckpt")
    older = fake_module()
    fit(tmp_path, older, None, tmp_path / "older.ckpt", **RUN | {"max_epochs": 2})
    assert older.finite.count == 0


class Overflow(Callback):
    """An optimiser step that makes a weight infinite, though the gradient was finite."""

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == 3:
            module.model.image_encoder[0].weight.data[0, 0] = float("inf")


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    options = RUN | {"max_epochs": 3, "enable_checkpointing": True}
    callbacks = [LastCheckpoint(str(tmp_path / "run")), Overflow()]
    data = FakeData(batches=2)
    with pytest.raises(
        UserError, match=r"not finite at step 4 \(model.image_encoder.0.weight\), so none are saved; lower"
    ):
        fit(tmp_path, fake_module(), data, callbacks=callbacks, **options)
    kept = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


@pytest.mark.parametrize("sanity", [0, 1])
def test_weights_that_are_not_finite_at_the_start_are_told(tmp_path, sanity):
    module = fake_module()
    module.model.projections.bias.data[0] = module.tasks["a"].head.bias.data[0] = float("nan")
    with pytest.raises(
        UserError, match=r"at step 0 \(model.projections.bias and 1 more tensors\): the checkpoint or the pre"
    ):
        fit(tmp_path, module, max_steps=1, num_sanity_val_steps=sanity)


def test_a_mask_may_be_infinite_and_a_statistic_not():
    part = nn.Linear(2, 2)
    part.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    part.register_buffer("number", torch.tensor(1))
    assert not_finite(part) == []
    part.register_buffer("mean", torch.tensor([0.0, torch.nan]))
    part.register_buffer("var", torch.tensor([1.0, torch.inf]))
    assert not_finite(part) == ["mean", "var"]


class Scaler:
    def __init__(self, scale: float) -> None:
        self.scale = scale

    def get_scale(self) -> float:
        return self.scale


@pytest.mark.parametrize(("scale", "loss", "counted"), [(2.0, 1.0, 0), (1.0, 1.0, 1), (2.0, float("nan"), 1)])
def test_what_a_scaler_leaves_out_to_lower_its_scale_is_not_counted(scale, loss, counted):
    module = fake_module()
    module.trainer = SimpleNamespace(
        precision="16-mixed",
        precision_plugin=SimpleNamespace(scaler=Scaler(scale)),
        is_global_zero=False,
        global_step=7,
    )
    optimizer = module.build_optimizer()
    weight = optimizer.param_groups[0]["params"][0]
    weight.grad = torch.full_like(weight, torch.nan)
    module.finite.begin()
    module.window.note({"coco/a": TaskOutput(torch.tensor(loss), torch.zeros(3), torch.zeros(3))})
    module.finite.add(torch.tensor([loss, loss]), {"coco": {"image_ids": [1], "pixel_values": torch.zeros(1, 3)}})
    module.configure_gradient_clipping(optimizer, 1.0)
    assert module.finite.count == counted
    assert weight.grad.isnan().all()  # the scaler looks at it itself


def test_the_loss_says_so_where_the_gradient_does_not():
    steps, rows = FiniteSteps(1, ["coco/a"]), torch.tensor([5.0])
    batches = {"coco": {"image_ids": [1], "pixel_values": torch.zeros(1, 3)}}
    assert steps.add(torch.tensor([1.0, 2.0]), batches) == 1
    assert steps.add(torch.tensor([1.0, torch.inf]), batches).isnan()
    assert not steps.end(torch.tensor(1.0), rows)[2]
    steps.begin()
    steps.add(torch.tensor([1.0, 2.0]), batches)
    steps.add(torch.tensor([3.0, 4.0]), batches)
    assert steps.end(torch.tensor(1.0), rows) == ([2.0, 3.0], [5.0], True)
    assert not steps.end(torch.tensor(torch.inf), rows)[2]


def test_only_so_many_images_are_named():
    steps = FiniteSteps(1, ["coco/a", "vqa/a"])
    many = {"image_ids": list(range(23)), "pixel_values": torch.zeros(23, 3)}
    steps.add(
        torch.tensor([1.0, torch.nan, torch.nan]), {"coco": many, "vqa": many | {"image_ids": list(range(50, 73))}}
    )
    with pytest.raises(UserError, match=r"loss of vqa/a is not finite \(images 50, .*, 69 and 3 more of vqa\); lower"):
        steps.leave_out(0)


def test_damaged_images_are_those_with_such_features_too():
    batch = toy_batch(3)
    assert damaged_images(batch) == []
    batch["regions"].features[1, 0, 0] = torch.inf
    assert damaged_images(batch) == [101]
    del batch["regions"]
    batch["pixel_values"][2, 0, 0, 0] = torch.nan
    assert damaged_images(batch) == [102]
    assert damaged_images(batch | {"image_ids": [1, 2]}) == []  # views of these
    del batch["pixel_values"]
    assert damaged_images(batch) == []


@pytest.mark.parametrize("most", [0, -1, 1.5, True, "many", None])
def test_how_many_is_a_whole_number_from_one_on(most):
    with pytest.raises(ConfigError, match=f"max_skipped_steps is {most}; give a whole number from 1"):
        FiniteSteps(most, [])
