"""Every file of the training groups composes and builds what it names."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import OmegaConf

from fusionkit.assembly.precision import resolve_precision
from fusionkit.balance import Step
from fusionkit.internals import own_timeout
from fusionkit.training.callbacks import StopAfter
from fusionkit.training.processes.life import RankWatch
from fusionkit.training.stages import Stages
from fusionkit.training.trainer import bare_trainer
from tests.toys import CONF, choices


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=["+name=toy", "+output_dir=unused", *overrides])
    return OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize("choice", choices("trainer"))
def test_trainer(choice, tmp_path):
    config = composed(f"+trainer={choice}")["trainer"]
    resolved = resolve_precision(config["precision"], config["accelerator"])
    config |= {"precision": resolved, "default_root_dir": str(tmp_path)}
    if config["accelerator"] == "gpu" and not torch.cuda.is_available():
        config |= {"accelerator": "cpu", "devices": 1}
    trainer = bare_trainer(OmegaConf.create({"trainer": config}))
    assert isinstance(trainer, Trainer)
    assert trainer.progress_bar_callback is None


@pytest.mark.parametrize(
    ("strategy", "given", "seconds"),
    [
        ("ddp", 300, 300.0),
        ({"timeout": {"_target_": "datetime.timedelta", "seconds": 15}}, 1800, 15.0),  # the strategy's own is shorter
        ({"timeout": {"_target_": "datetime.timedelta", "seconds": 900}}, 300, 300.0),
        ({"process_group_backend": "gloo"}, 7200, 7200.0),
    ],
)
def test_ranks_are_waited_for_no_longer_than_either_says(strategy, given, seconds):
    config = composed("+trainer=ddp_cpu")["trainer"] | {"timeout": given, "precision": "32-true"}
    config["strategy"] = (
        strategy if strategy == "ddp" else {"_target_": f"{DDPStrategy.__module__}.DDPStrategy"} | strategy
    )
    trainer = bare_trainer(OmegaConf.create({"trainer": config}))
    (watch,) = [callback for callback in trainer.callbacks if isinstance(callback, RankWatch)]
    assert watch.seconds == seconds
    assert own_timeout(trainer) == 1.25 * seconds + 10
    alone = bare_trainer(OmegaConf.create({"trainer": composed("+trainer=cpu")["trainer"] | {"precision": "32-true"}}))
    assert not [callback for callback in alone.callbacks if isinstance(callback, RankWatch)]


@pytest.mark.parametrize("choice", choices("optimizer"))
@pytest.mark.parametrize("schedule", choices("scheduler"))
def test_optimizer_and_scheduler(choice, schedule):
    config = composed(
        "+trainer=cpu", f"+optimizer={choice}", f"+scheduler={schedule}", "optimizer.rules=[['x',2,null]]"
    )
    optimizer = instantiate(config["optimizer"])([("layers.0.x", torch.nn.Parameter(torch.ones(2, 2)))])
    scheduler = instantiate(config["scheduler"])(optimizer, total_steps=100)
    first = scheduler.get_last_lr()[0]
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr_scale"] == 2 * config["optimizer"].get("matrix_scale", 1)
    assert 0 < scheduler.get_last_lr()[0] <= 4 * config["optimizer"]["lr"]
    assert first > 0 or schedule == "counted_linear"  # whose first step learns nothing


@pytest.mark.parametrize("choice", [name for name in choices("callbacks") if name != "none"])
def test_callbacks(choice):
    overrides = ["+trainer=cpu", "+scheduler=cosine", "scheduler.max_minutes=7", f"+callbacks={choice}"]
    built = instantiate(composed(*overrides)["callbacks"])
    assert built
    assert all(isinstance(callback, Callback) for callback in built.values())
    if choice in ("default", "stop_after"):
        assert isinstance(built["stop_after"], StopAfter)
        assert built["stop_after"].minutes == 7


def test_the_default_has_every_callback_and_one_can_be_left_out():
    overrides = ["+trainer=cpu", "+scheduler=constant", "+callbacks=default"]
    alone = {name for name in choices("callbacks") if name not in ("default", "none")}
    assert set(composed(*overrides)["callbacks"]) == alone
    assert set(composed(*overrides, "~callbacks.progress")["callbacks"]) == alone - {"progress"}


def test_loggers_are_chosen_together_or_not_at_all(tmp_path, monkeypatch):
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    config = composed(f"output_dir={tmp_path}", f"+logger=[{','.join(set(choices('logger')) - {'none'})}]")["logger"]
    built = instantiate(config)
    assert {"csv", "tensorboard", "wandb"} == set(built)
    assert all(isinstance(logger, Logger) for logger in built.values())
    assert not composed("+logger=none").get("logger")
    assert not composed("+logger=[]").get("logger")


@pytest.mark.parametrize("choice", choices("balance"))
def test_balance(choice):
    balancer = instantiate(composed(f"+balance={choice}")["balance"])
    balancer.start(["a/b"])
    point = torch.nn.Parameter(torch.tensor(2.0))
    step = Step(number=0, total=10, is_first=True, parameters={"model.x": point})
    assert balancer({"a/b": point * 1}, {"a/b": 3.0}, step).loss == 6


@pytest.mark.parametrize("choice", [name for name in choices("stages") if name != "none"])
def test_stages(choice):
    names = ("tasks.a", "model.fusion.x", "model.image_projection.x", "model.temperature", "model.image_encoder.x")
    names += ("model.text_encoder.x.lora_A.default.weight", "model.text_encoder.x.base_layer.weight")
    parameters = [(name, torch.nn.Parameter(torch.ones(1))) for name in names]
    stages = Stages(instantiate(composed(f"+stages={choice}")["stages"], _convert_="all"), parameters)
    assert stages.enter(0)
    assert set(stages.training) < set(names)
    assert stages.enter(10**9)
    rests = {"model.image_encoder.x"} if choice == "language_model" else set()
    assert set(stages.training) == set(names) - rests
