"""Batch norms of several processes: timm's keep their activation where statistics are shared, and plain ones are told of."""

from typing import Any

import pytest
import timm
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins import TorchCheckpointIO
from timm.layers import BatchNormAct2d
from torch import nn

from fusionkit.assembly.composition import training_config
from fusionkit.errors import ConfigError
from fusionkit.training.processes.batch_norms import SharedStatistics, told_own_rows
from fusionkit.training.trainer import build_trainer


def test_shared_statistics_leave_the_network_as_it_was() -> None:
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_lite0", num_classes=0).eval()
    assert any(isinstance(part, BatchNormAct2d) for part in model.modules())
    images = torch.rand(1, 3, 64, 64)
    before, weights = model(images), dict(model.named_parameters())
    converted = SharedStatistics().apply(model)
    assert not any(type(part) in (nn.BatchNorm2d, BatchNormAct2d) for part in converted.modules())
    assert all(parameter is weights[name] for name, parameter in converted.named_parameters())
    torch.testing.assert_close(converted(images), before)
    assert SharedStatistics().revert(converted) is converted


def test_norms_that_nobody_knows_are_refused() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match=r"^trainer.sync_batchnorm: 1 is a Own, and what it does"):
        SharedStatistics().apply(nn.Sequential(nn.BatchNorm2d(2), Own(2)))


def test_statistics_are_shared_by_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["trainer.sync_batchnorm=true", "logger=csv", "trainer.fast_dev_run=true"]
    with pytest.raises(ConfigError, match=r"^trainer.sync_batchnorm: torch shares .* between GPUs alone"):
        build_trainer(training_config("trainer=ddp_cpu", *given))
    options: dict[str, Any] = {}

    def seen(node: Any, **more: Any) -> Any:
        options.update(more)
        return instantiate(node, **more)

    monkeypatch.setattr("fusionkit.training.trainer.instantiate", seen)
    plugins = "+trainer.plugins=[{_target_: lightning.pytorch.plugins.TorchCheckpointIO}]"
    for more, kinds in (([], []), ([plugins], [TorchCheckpointIO])):
        assert build_trainer(training_config("trainer=cpu", *given, *more)).world_size == 1
        assert [type(plugin) for plugin in options["plugins"]] == [*kinds, SharedStatistics]


def test_norms_of_each_process_are_told_of() -> None:
    model = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False)
    )
    (told,) = told_own_rows(model, [8, 4], 2)
    assert told.startswith(
        "batch norms (1, ...) take their statistics from the 4 images of each of 2 processes, not from the 8"
    )
    assert not told_own_rows(model, [8, 4], 1)
    assert told_own_rows(nn.BatchNorm1d(2, affine=False), [8], 2)
    assert not told_own_rows(model[0], [8, 4], 2)
    assert not told_own_rows(SharedStatistics().apply(model), [8, 4], 2)
