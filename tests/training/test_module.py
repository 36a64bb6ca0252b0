"""One step over several objectives, validation, the teacher, and what a checkpoint carries."""

import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import SingleDeviceStrategy

from fusionkit.balance import DWA, Fixed, GradNorm, PCGrad, Schedule, Uncertainty
from fusionkit.checkpoints.match import require_fit
from fusionkit.errors import ConfigError, DataError, UserError
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.training.callbacks import LastCheckpoint, StopAfter
from fusionkit.training.muon import build_muon
from fusionkit.training.optim import build_optimizer
from fusionkit.training.schedule import constant, warmup_cosine, warmup_linear
from fusionkit.training.stages import Stage
from fusionkit.training.steps import beginning
from fusionkit.training.steps.beginning import require_gradients
from tests.training.fakes import FakeData, FakeTask, ListLoader, count_records, fake_module

TWO = {"coco": {"a": 1.0, "b": 2.0}, "vqa": {"a": 0.5}}


def trainer(path: Path, **options) -> Trainer:
    defaults = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    defaults |= {"log_every_n_steps": 1}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=path, use_distributed_sampler=False, **defaults | quiet | options)


def fit(path: Path, module, data=None, ckpt_path=None, **options) -> Trainer:
    run = trainer(path, **options)
    run.fit(module, datamodule=data or FakeData(), ckpt_path=ckpt_path)
    return run


def test_encodes_each_source_once_a_step_whatever_the_number_of_tasks(tmp_path):
    module = fake_module(TWO, tasks={"a": FakeTask(), "b": FakeTask()}, teacher=True)
    fit(tmp_path, module, FakeData(("coco", "vqa")), max_steps=3, limit_val_batches=0)
    assert module.model.encoded == [("coco", ["captions"]), ("vqa", ["captions"])] * 3
    assert module.teacher.encoded == 2 * 3
    assert module.teacher.alphas == [step for step in range(3) for _ in range(3)]  # three objectives a step


def test_logs_every_loss_by_objective_with_the_weighted_total(tmp_path):
    module = fake_module(TWO, tasks={"a": FakeTask(), "b": FakeTask()}, optimizer=partial(build_optimizer, lr=0.2))
    run = fit(tmp_path, module, FakeData(("coco", "vqa")), max_steps=2, limit_val_batches=0)
    logged = {name: float(value) for name, value in run.callback_metrics.items()}
    total = logged["train/coco/a_loss"] + 2 * logged["train/coco/b_loss"] + 0.5 * logged["train/vqa/a_loss"]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-6)
    assert logged["train/lr"] == pytest.approx(0.2)  # the second of two warm-up steps
    assert logged["train/temperature"] == pytest.approx(0.07)
    assert "train/coco/a_spread" in logged


def test_the_logged_rate_is_that_of_the_stage(tmp_path):
    optimizer, stages = partial(build_optimizer, lr=0.2), {"slow": Stage(None, lr_scale=0.25)}
    module = fake_module(optimizer=optimizer, stages=stages, scheduler=constant)
    run = fit(tmp_path, module, max_steps=2, limit_val_batches=0)
    assert float(run.callback_metrics["train/lr"]) == pytest.approx(0.05)


def test_what_was_loaded_in_evaluation_mode_trains_in_training_mode(tmp_path):
    """transformers' from_pretrained gives models whose dropout is off, and Lightning leaves modes as they are."""
    module, modes = fake_module(), []
    module.model.eval()
    task = module.tasks["a"]
    task.register_forward_pre_hook(lambda *_: modes.append((module.model.training, task.training)))
    fit(tmp_path, module, max_steps=2, limit_val_batches=0)
    assert modes[:2] == [(True, True)] * 2


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_teacher_advances_once_an_optimiser_step(tmp_path, accumulate):
    module = fake_module(teacher=True)
    run = fit(tmp_path, module, accumulate_grad_batches=accumulate, max_epochs=1, limit_val_batches=0)
    assert run.global_step == module.teacher.updates == 6 // accumulate


def test_freezes_what_no_objective_reaches():
    module = fake_module({"coco": {"a": 1.0, "b": 0.0}}, tasks={"a": FakeTask(), "b": FakeTask()}, teacher=True)
    frozen = {
        name.split(".weight")[0] for name, p in module.named_parameters() if not p.requires_grad and "bias" not in name
    }
    assert frozen == {"model.projections", "model.temperature", "tasks.b.head", "teacher.mean"}
    assert module.weights == {"coco/a": 1.0}


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"coco": {"aa": 1}}, r"objectives.coco.aa: no such task is configured; did you mean 'a'\? known: a"),
        ({"coco": {"a": -1}}, r"objectives.coco.a: the weight -1"),
        ({"coco": {"a": 0}}, r"nothing to train"),
    ],
)
def test_refuses_objectives_that_cannot_be_trained(objectives, message):
    with pytest.raises(ConfigError, match=message):
        fake_module(objectives)


def test_a_loss_that_is_not_finite_names_its_objective_and_step(tmp_path):
    module = fake_module(TWO, tasks={"a": FakeTask(), "b": FakeTask(value=float("nan"))}, max_skipped_steps=1)
    with pytest.raises(
        UserError, match=r"^step 0: the loss of coco/b is not finite \(images 0, 1, 2, 3 of coco\); lower opt"
    ):
        fit(tmp_path, module, FakeData(("coco", "vqa")), max_steps=1, limit_val_batches=0)


def test_scores_each_sample_once_and_logs_the_mean(tmp_path):
    module = fake_module(TWO, tasks={"a": FakeTask(count_records), "b": FakeTask()})
    data = FakeData(("coco", "vqa"))
    data.val_dataloader = lambda: [ListLoader(x.batches[:1] * 2) for x in FakeData.val_dataloader(data)]
    run = trainer(tmp_path)
    scores = run.validate(module, datamodule=data, verbose=False)[0]
    assert scores["val/coco/records"] == 4  # one batch of four, seen twice
    assert scores["val/coco/coverage"] == scores["val/mean"] == 50  # of the eight samples
    assert trainer(tmp_path, limit_val_batches=1).validate(module, datamodule=data, verbose=False)[0]["val/mean"] == 100


def test_checkpoints_load_with_weights_only_and_refuse_another_architecture(tmp_path):
    module = fake_module(
        teacher=True, artifacts={"config": "seed: 1", "answers": ["yes"], "tokenizer": {"vocab.txt": "a"}}
    )
    run = fit(tmp_path, module, max_steps=1, limit_val_batches=0)
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert checkpoint["fusionkit"] == module.artifacts
    assert torch.equal(checkpoint["state_dict"]["teacher.mean"], module.teacher.mean)
    other = {**checkpoint["state_dict"], "model.projections.weight": torch.zeros(3, 4)}
    with pytest.raises(
        DataError,
        match=r"x.ckpt is of another architecture: model.projections.weight is \(3, 4\) there and \(2, 4\) here",
    ):
        require_fit(module.state_dict(), other, "x.ckpt")
    with pytest.raises(DataError, match=r"teacher.mean is unknown here"):
        fit(tmp_path, fake_module(), ckpt_path=tmp_path / "x.ckpt", max_steps=2)


class Interrupt(Callback):
    """Stops as a killed process does, after ``step`` optimiser steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyError("interrupted")


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2, "check_val_every_n_epoch": None, "val_check_interval": 2},  # saved in the middle of an epoch
        {"max_epochs": 4, "limit_val_batches": 0},  # saved at its end
        {"max_epochs": 4, "accumulate_grad_batches": 2},
        {"max_steps": 6, "max_epochs": -1},
        {
            "max_steps": 8,
            "max_epochs": -1,
            "limit_val_batches": 0,
        },  # saved at an epoch's end, of a run that counts steps
        {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0, "accumulate_grad_batches": 3},
        {"max_steps": 6, "max_epochs": -1, "optimizer": partial(build_muon, lr=0.05, matrices="image_encoder")},
        {
            "max_epochs": 4,
            "limit_val_batches": 0,
            "teacher": MomentumTeacher,
        },  # which has the frozen encoder of the student
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, options):
    options = dict(options)
    teacher = options.pop("teacher", True)
    optimizer = options.pop("optimizer", None)
    fake = partial(fake_module, teacher=teacher, freeze_encoder=teacher is MomentumTeacher, optimizer=optimizer)
    batches = {2: 6, 4: 3, -1: 3}[options["max_epochs"]]
    callbacks = lambda place: [LastCheckpoint(str(tmp_path / place)), StopAfter()]  # noqa: E731
    options = {"enable_checkpointing": True, **options}
    whole = fake()
    whole_run = fit(tmp_path, whole, FakeData(batches=batches), callbacks=callbacks("whole"), **options)

    with pytest.raises(KeyError, match="interrupted"):
        fit(
            tmp_path,
            fake(),
            FakeData(batches=batches),
            callbacks=[*callbacks("half"), Interrupt(5)],
            **options,
        )
    torch.manual_seed(99)  # a new process has another state
    resumed = fake()
    torch.manual_seed(77)
    run = fit(
        tmp_path,
        resumed,
        FakeData(batches=batches),
        tmp_path / "half" / "last.ckpt",
        callbacks=callbacks("half"),
        **options,
    )
    assert run.global_step == whole_run.global_step > 5
    assert run.current_epoch == whole_run.current_epoch
    assert len(resumed.model.encoded) < len(whole.model.encoded)  # it did resume
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert resumed.model.image_encoder[1].p > 0  # dropout was on


BALANCERS = {
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "dwa": partial(DWA, window=2),
    "schedule": partial(Schedule, {"coco": {"b": [[0, 0], [4, 1]]}}),
}


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_balances_bit_for_bit(tmp_path, name, accumulate):
    def fake():
        torch.manual_seed(0)
        tasks = {"a": FakeTask(), "b": FakeTask(value=0.5)}
        return fake_module({"coco": {"a": 1.0, "b": 2.0}}, tasks=tasks, balance=BALANCERS[name]())

    options = {"max_epochs": 7, "limit_val_batches": 0, "enable_checkpointing": True}
    options["accumulate_grad_batches"] = accumulate
    run = lambda module, place, *more, **also: fit(  # noqa: E731
        tmp_path,
        module,
        FakeData(batches=accumulate),
        callbacks=[LastCheckpoint(str(tmp_path / place)), *more],
        **options,
        **also,
    )
    whole, resumed = fake(), fake()
    run(whole, "whole")
    with pytest.raises(KeyError, match="interrupted"):
        run(fake(), "half", Interrupt(4))
    run(resumed, "half", ckpt_path=tmp_path / "half" / "last.ckpt")
    assert 0 < len(resumed.model.encoded) < len(whole.model.encoded)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    start, kept = fake().balance.state_dict(), whole.balance.state_dict()
    assert not kept or any(not torch.equal(value, kept[key]) for key, value in start.items())
    assert float(whole.step_metrics["train/coco/b_weight"]) > 0


@pytest.mark.parametrize("balance", [Fixed, partial(DWA, window=2), GradNorm])
@pytest.mark.parametrize("every", [1, 2, 4, 7])
def test_a_checkpoint_between_two_steps_goes_on_from_the_first_bit_for_bit(tmp_path, balance, every):
    """With batch-norm statistics, a teacher and balancers that have seen the micro-batches that are seen again."""

    def fake():
        torch.manual_seed(0)
        tasks = {"a": FakeTask(), "b": FakeTask(value=0.5)}
        return fake_module({"coco": {"a": 1.0, "b": 2.0}}, tasks=tasks, balance=balance(), teacher=True, with_norm=True)

    options = {"max_epochs": 3, "accumulate_grad_batches": 3, "val_check_interval": every, "enable_checkpointing": True}
    options["check_val_every_n_epoch"] = None
    last = tmp_path / "half" / "last.ckpt"
    run = lambda module, place, *more, **also: fit(  # noqa: E731
        tmp_path,
        module,
        FakeData(batches=5),
        callbacks=[LastCheckpoint(str(tmp_path / place)), *more],
        **options,
        **also,
    )
    whole, resumed = fake(), fake()
    run(whole, "whole")
    with pytest.raises(KeyError, match="interrupted"):
        run(fake(), "half", Interrupt(5))
    progress = torch.load(last, weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert progress["current"]["processed"] in (0, 3, 5)  # where a step has just been made
    steps = run(resumed, "half", ckpt_path=last).fit_loop.epoch_loop._batches_that_stepped
    assert steps == 6
    assert 0 < len(resumed.model.encoded) < len(whole.model.encoded)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


class Rows(Logger):
    """Keeps what is logged: the step, and the learning rate."""

    name, version = "rows", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *args, **options):
        """Nothing."""

    def log_metrics(self, metrics, step=None):
        if "train/lr" in metrics:
            self.rows.append((step, metrics["train/lr"]))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends", [(3,), (4,), (3, 6), (4, 6, 7)])
def test_what_a_resumed_run_logs_stands_where_it_would_in_one_that_went_through(tmp_path, ends, accumulate):
    """Epochs have three steps: from the end of one Lightning's own count goes on one too late, at each resume."""

    def run(end, place):
        logger, last = Rows(), tmp_path / place / "last.ckpt"
        fit(
            tmp_path,
            fake_module(scheduler=warmup_cosine),
            FakeData(batches=3 * accumulate),
            last if last.exists() else None,
            callbacks=[LastCheckpoint(str(last.parent)), StopAfter()],
            logger=logger,
            max_steps=end,
            max_epochs=-1,
            enable_checkpointing=True,
            accumulate_grad_batches=accumulate,
        )
        return logger.rows

    whole = run(9, "whole")
    assert [step for step, _ in whole] == list(range(9))
    for end in ends:
        run(end, "parts")
    assert run(9, "parts") == whole[ends[-1] :]


def resumed_with(tmp_path, before, after, steps=6):
    """A module that has made three steps with one set of options, and the others with another."""
    options = {"max_epochs": -1, "limit_val_batches": 0}
    run = fit(tmp_path, fake_module(**before), max_steps=3, **options)
    run.save_checkpoint(tmp_path / "x.ckpt")
    module = fake_module(**after)
    return module, fit(tmp_path, module, ckpt_path=tmp_path / "x.ckpt", max_steps=steps, **options)


@pytest.mark.parametrize("kind", [build_optimizer, partial(build_muon, matrices="image_encoder")])
def test_a_resumed_run_has_the_options_of_its_command_line(tmp_path, kind):
    options = {"lr": 0.002, "weight_decay": 0.0, "betas": (0.5, 0.7), "rules": [["tasks", 3, None]], "eps": 1e-6}
    after = {"optimizer": partial(kind, **options), "scheduler": constant}
    module, run = resumed_with(tmp_path, {"optimizer": partial(kind, lr=0.05)}, after)
    fresh = fake_module(**after).build_optimizer().param_groups
    found = run.optimizers[0].param_groups
    assert len(found) == len(fresh) > 1
    for group, new in zip(found, fresh, strict=True):
        assert {key: group[key] for key in new if key != "params"} == {k: v for k, v in new.items() if k != "params"}
        assert [p.shape for p in group["params"]] == [p.shape for p in new["params"]]
    assert module.step_metrics["train/lr"] == pytest.approx(0.002)
    assert all(state for state in run.optimizers[0].state.values()) or kind is not build_optimizer


def test_a_resumed_run_with_the_same_options_is_as_if_they_were_not_applied(tmp_path):
    """Only the rate differs, from the step on at which it is changed."""
    module, _ = resumed_with(tmp_path, {}, {})
    same, run = resumed_with(tmp_path, {}, {"optimizer": partial(build_optimizer, lr=0.05)})
    other, _ = resumed_with(tmp_path, {}, {"optimizer": partial(build_optimizer, lr=0.025)})
    key = "model.image_encoder.0.weight"
    assert torch.equal(module.state_dict()[key], same.state_dict()[key])
    assert not torch.equal(module.state_dict()[key], other.state_dict()[key])
    assert other.step_metrics["train/lr"] == pytest.approx(same.step_metrics["train/lr"] / 2)
    moments = [state["step"].item() for state in run.optimizers[0].state.values()]
    assert moments == [6.0] * len(moments)


def test_a_resumed_run_takes_a_schedule_up_at_its_step(tmp_path):
    """A longer one spans the new end; another, or the first one, begins where the run is; none is constant."""
    linear = warmup_linear  # after two steps of warm-up
    longer, _ = resumed_with(tmp_path, {"scheduler": linear}, {"scheduler": linear}, steps=12)
    assert longer.step_metrics["train/lr"] == pytest.approx(0.05 / 10)
    for before, after, rate in ((None, linear, 0.05 / 4), (warmup_cosine, linear, 0.05 / 4), (linear, None, 0.05)):
        module, _ = resumed_with(tmp_path, {"scheduler": before}, {"scheduler": after})
        assert module.step_metrics["train/lr"] == pytest.approx(rate)


def one_cycle(optimizer, total_steps, warmup_steps):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total_steps)


def test_a_schedule_of_ones_own_goes_on_as_it_was_stored_and_does_not_replace_another(tmp_path):
    module, _ = resumed_with(tmp_path, {"scheduler": one_cycle}, {"scheduler": one_cycle}, steps=3)
    assert module.global_step == 3
    with pytest.raises(ConfigError, match=r"scheduler: OneCycleLR cannot go on where a schedule of factors stopped"):
        resumed_with(tmp_path, {}, {"scheduler": one_cycle})


def test_balancers_that_read_gradients_refuse_scaled_ones(tmp_path):
    for balance in (PCGrad(), GradNorm(), Fixed(gradients_every_n_steps=5)):
        module = fake_module(balance=balance)
        module.trainer = SimpleNamespace(precision="16-mixed", strategy=SingleDeviceStrategy())
        with pytest.raises(ConfigError, match=r"use bf16-mixed or 32-true, or balance=fixed"):
            require_gradients(module)
        module.trainer.strategy = object()
        with pytest.raises(
            ConfigError, match=r"use trainer.strategy=ddp, or balance=fixed, stages=none, ema.decay=null"
        ):
            require_gradients(module)
    fake = fake_module(balance=Uncertainty())
    fake.trainer = SimpleNamespace(precision="16-mixed", strategy=object())
    require_gradients(fake)


@pytest.mark.parametrize(("precision", "told"), [("32-true", 0), ("bf16-mixed", 1)])
def test_a_run_that_goes_on_in_another_precision_says_so(tmp_path, precision, told):
    options = {"limit_val_batches": 0, "max_epochs": -1}
    run = fit(tmp_path, fake_module(), max_steps=1, **options)
    run.save_checkpoint(tmp_path / "x.ckpt")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(tmp_path, fake_module(), ckpt_path=tmp_path / "x.ckpt", max_steps=2, precision=precision, **options)
    words = "the run goes on in bf16-mixed, but began in 32-true; trainer.precision=32-true goes on exactly"
    assert [str(warning.message) for warning in seen].count(words) == told


def test_surgery_on_one_objective_is_plain_training(tmp_path):
    """With accumulation, a schedule and clipping: what the optimiser sees is the objective's own gradient."""
    options = {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, "accumulate_grad_batches": 2}
    plain, operated = fake_module(), fake_module(balance=PCGrad())
    for module in (plain, operated):
        fit(tmp_path, module, FakeData(batches=8), gradient_clip_val=0.1, **options)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(operated.state_dict()[key], value)


def test_without_a_schedule_the_rate_is_constant(tmp_path):
    run = fit(tmp_path, fake_module(scheduler=None), max_steps=3, limit_val_batches=0)
    assert run.lr_scheduler_configs == []
    assert run.optimizers[0].param_groups[0]["lr"] == 0.05


def test_ranks_that_found_other_checkpoints_are_refused(monkeypatch):
    """As where the disk of one lags behind: only the weights would be made equal."""
    found = [{"config": "seed: 1", "goes on after": step} for step in (200, 200, 150)]
    monkeypatch.setattr(beginning, "gather_objects", lambda own: [*own, "other"] if isinstance(own[0], str) else found)
    with pytest.raises(ConfigError, match=r"goes on after is 200 on rank 0, and 150 on rank 2"):
        beginning.require_same_on_ranks(found[0])


def test_what_ranks_compare_has_the_step_that_they_go_on_after(monkeypatch):
    seen = []
    monkeypatch.setattr("fusionkit.training.module.require_same_on_ranks", seen.append)
    module = fake_module()
    module.goes_on_after = 7
    module.trainer = SimpleNamespace(precision_plugin=None)
    with suppress(AttributeError):
        module.setup("fit")
    assert seen[0]["the step that resume goes on after"] == 7
