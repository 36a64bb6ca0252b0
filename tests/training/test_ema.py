"""The moving average of the weights: its numbers, when it is used, and that a run with it goes on exactly."""

import copy
from functools import partial

import pytest
import torch
from lightning import Callback
from torch import nn

from fusionkit.errors import ConfigError
from fusionkit.training.callbacks import BestCheckpoint, LastCheckpoint, StopAfter
from fusionkit.training.ema import WeightAverage, average_of, put_back
from fusionkit.training.stages import Stage
from fusionkit.training.steps.state import all_names
from tests.training.fakes import FakeData, fake_module
from tests.training.test_finite import Spoil
from tests.training.test_module import Interrupt, fit, trainer

WEIGHT = "model.image_encoder.0.weight"
RUN = {"max_epochs": -1, "limit_val_batches": 0}


class Follow(Callback):
    """The weights after each optimiser step, and what validation saw of them."""

    def __init__(self) -> None:
        self.weights: list[dict] = []
        self.step = 0
        self.validated: list[dict] = []

    def on_train_start(self, trainer, module):
        self.weights, self.step = [copy.deepcopy(module.state_dict())], trainer.global_step

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.weights.append(copy.deepcopy(module.state_dict()))

    def on_validation_batch_start(self, trainer, module, *args):
        self.validated.append(copy.deepcopy(module.state_dict()))


def averaged(decay: float, warmup: bool = False, **options):
    return fake_module(average=WeightAverage(decay, warmup=warmup), **options)


def last_in(folder) -> list[Callback]:
    return [LastCheckpoint(str(folder)), StopAfter()]


def means(module) -> dict[str, torch.Tensor]:
    """What a checkpoint of now would have for weights."""
    state = module.state_dict()
    module.average.save(state, module.named_parameters(remove_duplicate=False))
    return state


def expected(weights: list[dict], decays: list[float], name: str = WEIGHT) -> torch.Tensor:
    mean = weights[0][name].double()
    for state, decay in zip(weights[1:], decays, strict=True):
        mean = decay * mean + (1 - decay) * state[name].double()
    return mean.float()


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    ("average", "decays"),
    [
        (WeightAverage(0.8), [0.8] * 4),
        (WeightAverage(0.25, warmup=True), [1 / 10, 2 / 11, 3 / 12, 0.25]),
    ],
)
def test_it_follows_each_optimiser_step(tmp_path, average, decays, accumulate):
    module, follow = fake_module(average=copy.deepcopy(average), with_norm=True), Follow()
    options = RUN | {"max_steps": 4, "accumulate_grad_batches": accumulate, "callbacks": [follow]}
    fit(tmp_path, module, **options)
    assert len(follow.weights) == 5
    found = means(module)
    for name in (WEIGHT, "tasks.a.head.bias", "model.image_encoder.2.weight"):
        torch.testing.assert_close(found[name], expected(follow.weights, decays, name))
        assert not torch.equal(found[name], module.state_dict()[name])
    for name, buffer in module.named_buffers():  # as they are, whole numbers among them
        assert torch.equal(found[name], buffer), name
    assert torch.equal(found["model.projections.weight"], module.model.projections.weight)  # no objective trains it


def test_a_step_that_is_left_out_moves_nothing(tmp_path):
    module, follow = fake_module(average=WeightAverage(0.8, warmup=True)), Follow()
    fit(tmp_path, module, callbacks=[follow, Spoil(2)], max_steps=5, **RUN)
    assert module.finite.count == 1
    assert module.average.updates == 4
    made = [state for step, state in enumerate(follow.weights) if step != 3]
    torch.testing.assert_close(means(module)[WEIGHT], expected(made, [1 / 10, 2 / 11, 3 / 12, 4 / 13]))


def test_validation_and_the_checkpoints_have_it_and_training_goes_on_without(tmp_path):
    plain, module = fake_module(), fake_module(average=WeightAverage(0.8))
    follow, alone = Follow(), Follow()
    best = BestCheckpoint(str(tmp_path), "val/coco/records")
    options = {"max_epochs": 1, "val_check_interval": 3, "enable_checkpointing": True}
    fit(tmp_path, plain, callbacks=[alone], **options | {"enable_checkpointing": False})
    fit(tmp_path, module, callbacks=[best, LastCheckpoint(str(tmp_path)), follow], **options)
    for after, before in zip(follow.weights, alone.weights, strict=True):
        assert all(torch.equal(after[name], before[name]) for name in after)
    mean = expected(follow.weights[:4], [0.8] * 3)
    torch.testing.assert_close(follow.validated[0][WEIGHT], mean)
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    assert checkpoint["global_step"] == 3
    torch.testing.assert_close(checkpoint["state_dict"][WEIGHT], mean)
    assert torch.equal(checkpoint["progress"]["average"]["weights"][WEIGHT], follow.weights[3][WEIGHT])
    scored = Follow()
    run = trainer(tmp_path, callbacks=[scored])
    run.validate(module, datamodule=FakeData(), verbose=False)  # in inference mode
    assert torch.equal(scored.validated[0][WEIGHT], means(module)[WEIGHT])
    assert torch.equal(module.state_dict()[WEIGHT], follow.weights[-1][WEIGHT])
    fit(tmp_path, module, max_steps=1, **RUN)
    assert not torch.equal(module.state_dict()[WEIGHT], follow.weights[-1][WEIGHT])  # it trains after that


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 8, "check_val_every_n_epoch": None, "val_check_interval": 2},
        {"max_epochs": 4, "limit_val_batches": 0},
        {"max_epochs": 6, "accumulate_grad_batches": 3, "check_val_every_n_epoch": None, "val_check_interval": 4},
        {"max_epochs": 3, "limit_val_batches": 0, "stages": {"heads": Stage(4, ["^tasks"]), "all": Stage(None)}},
    ],
)
def test_a_run_goes_on_with_its_weights_and_their_average_bit_for_bit(tmp_path, options):
    options = {"max_epochs": -1, "enable_checkpointing": True, **options}
    new = partial(averaged, 0.9, warmup=True, with_norm=True, stages=options.pop("stages", None))

    def run(module, place, *more, **also):
        callbacks = [*last_in(tmp_path / place), *more]
        fit(tmp_path, module, FakeData(batches=3), callbacks=callbacks, **options, **also)

    whole, resumed = new(), new()
    run(whole, "whole")
    with pytest.raises(KeyError, match="interrupted"):
        run(new(), "half", Interrupt(5))
    run(resumed, "half", ckpt_path=tmp_path / "half/last.ckpt")
    assert 0 < len(resumed.model.encoded) < len(whole.model.encoded)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
        assert torch.equal(means(whole)[name], means(resumed)[name]), name
    assert whole.average.updates == resumed.average.updates
    assert not torch.equal(means(whole)[WEIGHT], whole.state_dict()[WEIGHT])


def test_a_run_that_had_ended_goes_on_exactly_too(tmp_path):
    new = partial(averaged, 0.9, scheduler=None)
    options, half = RUN | {"enable_checkpointing": True}, tmp_path / "half"
    whole, resumed = new(), new()
    fit(tmp_path, whole, callbacks=last_in(tmp_path / "whole"), max_steps=6, **options)
    fit(tmp_path, new(), callbacks=last_in(half), max_steps=3, **options)
    fit(tmp_path, resumed, None, half / "last.ckpt", callbacks=last_in(half), max_steps=6, **options)
    assert torch.equal(whole.state_dict()[WEIGHT], resumed.state_dict()[WEIGHT])
    assert torch.equal(means(whole)[WEIGHT], means(resumed)[WEIGHT])


@pytest.mark.parametrize("begins_with", [True, False])
def test_it_may_be_switched_on_and_off_where_a_run_goes_on(tmp_path, begins_with):
    new = [partial(fake_module, scheduler=None), partial(averaged, 0.5, scheduler=None)]
    options = RUN | {"enable_checkpointing": True}
    plain, resumed, follow = new[False](), new[not begins_with](), Follow()
    fit(tmp_path, plain, max_steps=6, **options | {"enable_checkpointing": False})
    fit(tmp_path, new[begins_with](), callbacks=last_in(tmp_path), max_steps=4, **options)
    fit(tmp_path, resumed, None, tmp_path / "last.ckpt", callbacks=[follow], max_steps=6, **options)
    assert torch.equal(plain.state_dict()[WEIGHT], resumed.state_dict()[WEIGHT])
    if not begins_with:
        assert resumed.average.updates == 2
        torch.testing.assert_close(means(resumed)[WEIGHT], expected(follow.weights, [0.5, 0.5]))


class Break(Callback):
    """Breaks off the first validation of a step that was made, on its last batch."""

    def on_validation_batch_end(self, trainer, *args):
        if trainer.global_step:
            raise KeyError("broken off")


@pytest.mark.parametrize("resumes", [True, False])
def test_after_a_validation_that_was_broken_off_the_same_module_trains_on_with_its_own_weights(tmp_path, resumes):
    new = partial(averaged, 0.8, scheduler=None)
    options = {"max_epochs": -1, "enable_checkpointing": True, "val_check_interval": 3, "max_steps": 6}
    whole, module, other = new(), new(), new()
    fit(tmp_path, whole, callbacks=[StopAfter()], **options | {"enable_checkpointing": False})
    fit(tmp_path, other, callbacks=[LastCheckpoint(str(tmp_path))], **options | {"max_steps": 3})
    with pytest.raises(KeyError, match="broken off"):
        fit(tmp_path, module, callbacks=[Break()], **options | {"enable_checkpointing": False})
    weight, mean = other.state_dict()[WEIGHT], means(other)[WEIGHT]
    assert torch.equal(module.state_dict()[WEIGHT], mean)
    state = module.state_dict()
    assert torch.equal(module.average.save(state, all_names(module))["weights"][WEIGHT], weight)
    assert torch.equal(state[WEIGHT], mean)
    if resumes:
        fit(tmp_path, module, None, tmp_path / "last.ckpt", callbacks=[StopAfter()], **options)
        assert torch.equal(module.state_dict()[WEIGHT], whole.state_dict()[WEIGHT])
        assert torch.equal(means(module)[WEIGHT], means(whole)[WEIGHT])
    else:
        follow = Follow()
        fit(tmp_path, module, callbacks=[follow], max_steps=2, **RUN)
        assert torch.equal(follow.weights[0][WEIGHT], weight)
        found = 0.8**2 * mean + 0.2 * (0.8 * follow.weights[1][WEIGHT] + follow.weights[2][WEIGHT])
        torch.testing.assert_close(means(module)[WEIGHT], found)


def tied() -> nn.ModuleDict:
    one = nn.Linear(2, 2, bias=False)
    return nn.ModuleDict({"first": one, "second": one, "third": nn.Linear(2, 2, bias=False)})


def test_tied_weights_have_one_average_under_all_their_names():
    module, average = tied(), WeightAverage(0.5)
    average.begin(dict(module.named_parameters()))
    start = module["first"].weight.detach().clone()
    with torch.no_grad():
        module["first"].weight.add_(2.0)
    average.update()
    state, named = module.state_dict(), lambda: module.named_parameters(remove_duplicate=False)
    kept = average.save(state, named())
    torch.testing.assert_close(state["first.weight"], start + 1)
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert kept["weights"].keys() == {"first.weight", "third.weight"}
    put_back(state, kept, named())
    assert torch.equal(state["second.weight"], start + 2)
    assert torch.equal(state["first.weight"], start + 2)


def test_while_it_is_in_use_a_checkpoint_is_the_same_and_putting_it_in_twice_loses_nothing():
    module, average = tied(), WeightAverage(0.5)
    average.begin(dict(module.named_parameters()))
    with torch.no_grad():
        module["third"].weight.add_(2.0)
    average.update()
    raw, named = module["third"].weight.detach().clone(), list(module.named_parameters(remove_duplicate=False))
    before, state = module.state_dict(), None
    kept = average.save(before, named)
    average.put_in()
    average.put_in()
    torch.testing.assert_close(module["third"].weight.detach(), raw - 1)
    state = module.state_dict()
    again = average.save(state, named)
    assert torch.equal(again["weights"]["third.weight"], kept["weights"]["third.weight"])
    assert torch.equal(state["third.weight"], before["third.weight"])
    average.take_out()
    average.take_out()
    assert torch.equal(module["third"].weight.detach(), raw)


def test_in_low_precision_the_average_is_kept_in_fp32():
    module, average = tied().to(torch.bfloat16), WeightAverage(0.999)
    with torch.no_grad():
        module["third"].weight.fill_(1.0)
    average.begin(dict(module.named_parameters()))
    with torch.no_grad():
        module["third"].weight.fill_(2.0)
    average.update()
    state = module.state_dict()
    average.save(state, module.named_parameters(remove_duplicate=False))
    torch.testing.assert_close(state["third.weight"], torch.full((2, 2), 1.001))
    average.put_in()
    assert module["third"].weight.dtype == torch.bfloat16
    assert module["third"].weight.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    average.take_out()
    assert module["third"].weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]


@pytest.mark.parametrize("section", [None, {}, {"decay": None}, {"decay": None, "warmup": True}])
def test_without_a_decay_there_is_none(section):
    assert average_of(section) is None


def test_the_section_says_what_it_is():
    average = average_of({"decay": 0.9})
    assert (average.decay, average.warmup) == (0.9, False)
    assert average_of({"decay": 0.9, "warmup": True}).warmup


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (0.9, "ema is 0.9, but has to be a section of keys: ema.decay=0.999"),
        ({"decai": 0.9}, "ema.decai: there is no such key; did you mean 'decay'"),
        *(({"decay": value}, f"ema.decay is {value!r}; give a number between") for value in (0, 1, 1.5, -1, True, "x")),
        ({"decay": float("nan")}, "ema.decay is nan; give a number between"),
        ({"warmup": 5}, "ema.warmup is 5, but has to be true or false"),
    ],
)
def test_mistakes_are_named(section, told):
    with pytest.raises(ConfigError, match=told):
        average_of(section)
