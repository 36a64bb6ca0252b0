"""Tasks that draw in training, as prefixes and captions of their own: an interrupted run goes on exactly."""

from functools import partial

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader

from fusionkit.balance import Fixed
from fusionkit.training.callbacks import LastCheckpoint, StopAfter
from fusionkit.training.image_gain import image_gains
from fusionkit.training.module import TrainingModule
from fusionkit.training.optim import build_optimizer
from tests.toys import toy_batch, toy_dims, toy_model, toy_task
from tests.training.fakes import FakeData, FakeLoader
from tests.training.test_module import Interrupt, fit


def toy(batch):
    """A toy batch that is a function of another's number."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batch["image_ids"][0])
        return toy_batch(images=3) | {"source": "toy"}


class Batches(FakeLoader):
    """Toy batches in place of its numbers."""

    def __iter__(self):
        return map(toy, super().__iter__())


class Data(FakeData):
    def train_dataloader(self):
        return CombinedLoader({"toy": Batches("toy", self.batches, self)}, "min_size")


def module(name, option):
    torch.manual_seed(0)
    model = toy_model("merged_attention")
    task = toy_task(name, toy_dims(model))
    if option is not None:
        task.writer.prefix = option
    return TrainingModule(
        model, {"captioning": task}, {"toy": {"captioning": 1.0}}, Fixed(), partial(build_optimizer, lr=1e-3), None
    )


@pytest.mark.parametrize(("name", "option"), [("captioning", "random"), ("captioning_scst", None)])
def test_a_resumed_run_draws_what_the_uninterrupted_one_does(tmp_path, name, option):
    options = {"max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": True}
    data = partial(Data, ("toy",), batches=2)
    whole, other = module(name, option), module(name, option)
    fit(tmp_path, whole, data(), callbacks=[LastCheckpoint(str(tmp_path / "whole")), StopAfter()], **options)
    half = tmp_path / "half"
    with pytest.raises(KeyError, match="interrupted"):
        fit(tmp_path, other, data(), callbacks=[LastCheckpoint(str(half)), StopAfter(), Interrupt(3)], **options)
    resumed = module(name, option)
    torch.manual_seed(77)
    callbacks = [LastCheckpoint(str(half)), StopAfter()]
    assert fit(tmp_path, resumed, data(), half / "last.ckpt", callbacks=callbacks, **options).global_step == 6
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())


def test_the_gain_by_the_image_is_not_measured_of_what_the_model_says_itself():
    torch.manual_seed(0)
    batch = toy_batch(images=3)
    assert image_gains(module("captioning_scst", None), "toy", batch) == {}
    assert image_gains(module("captioning", None), "toy", batch).keys() == {"toy/captioning"}
