"""Split weights (trainer=fsdp) on two processes of the CPU: the gradients, steps and checkpoints of DDP."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from fusionkit.checkpoints.load import read_checkpoint
from fusionkit.checkpoints.split import KEY
from fusionkit.cli.main import run
from fusionkit.errors import ConfigError
from fusionkit.files.tensors import read_tensors
from fusionkit.internals import forget_sharding
from fusionkit.training.memory.table import divided, of_module
from fusionkit.training.processes.sharding import FullySharded
from fusionkit.training.processes.splittable import require_split
from fusionkit.training.stages import Stage, Stages
from fusionkit.training.trainer import bare_trainer, build_trainer
from tests.commands.test_image_tokens import losses
from tests.commands.test_train import SMALL
from tests.distributed.global_batch import run_module
from tests.toys import CONF

pytestmark = pytest.mark.usefixtures("warm")


@pytest.mark.slow
def test_gradients_of_split_weights_are_those_of_ddp(tmp_path: Path) -> None:
    run_module("tests.distributed.split_steps", str(tmp_path))
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert len(first["found"]) == 12 + 3 + 1
    assert max({**first["found"], **second["found"]}.values()) < 1e-12, first["found"]
    assert first["groups"] > 2  # blocks are gathered each for itself
    assert first["share"] + second["share"] == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_three_processes_save_uneven_parts_and_all_are_told_where_one_cannot(tmp_path: Path) -> None:
    run_module("tests.distributed.split_saves", str(tmp_path))
    assert len(list((tmp_path / "checkpoints").glob("split-*"))) == 2 * 3


OPTIONS = [
    "scheduler=constant",
    "optimizer=adamw",
    "teacher=momentum",
    "task=[itc,itm,mlm,vqa,grounding,captioning]",
    "++objectives.shapes.captioning=1.0",
    "data.sources.shapes.batch_size=4",
    "trainer.max_epochs=-1",
    "trainer.limit_val_batches=1",
    "evaluation.roles=[test]",
    "evaluation.checkpoint=last",
    "evaluation.options.gallery=false",
]


def trainer_in(folder: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Trains, by the name of a run in a folder, a trainer, steps and what else is asked for."""

    def train(name: str, trainer: str, steps: int, *more: str) -> None:
        chosen = [f"trainer={trainer}", f"trainer.max_steps={steps}", f"output_dir={folder}/{name}", *more]
        assert run(["train", *SMALL, *OPTIONS, f"data.root={folder}/shapes", *chosen]) == 0, capfd.readouterr().err

    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=20"]) == 0
    return train


def assert_same_run(expected: Path, found: Path, steps: int) -> None:
    """The weights, the optimiser's state and the losses of one run are those of the other."""
    one, two = (read_checkpoint(folder / "checkpoints/last.ckpt") for folder in (expected, found))
    assert list(one["state_dict"]) == list(two["state_dict"])
    for name, tensor in one["state_dict"].items():
        if not is_noise(name):
            atol = 5e-4 if "running" in name else 1e-5  # statistics of sums over many weights
            torch.testing.assert_close(two["state_dict"][name], tensor, atol=atol, rtol=1e-5, msg=name)
    moments = [state_by_name(checkpoint) for checkpoint in (one, two)]
    assert moments[0].keys() == moments[1].keys()
    for name, tensor in moments[0].items():
        torch.testing.assert_close(moments[1][name], tensor, atol=1e-5, rtol=1e-3, msg=name)
    ours, theirs = losses(found), losses(expected)
    assert len(theirs) >= steps
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert ours[step] == pytest.approx(values, abs=1e-5)


@pytest.mark.slow
def test_gathered_gradients_and_adapters_beside_frozen_weights_are_those_of_ddp(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = trainer_in(tmp_path, capfd)
    more = ["trainer.accumulate_grad_batches=2", "adapters=lora", "+text_encoder.frozen=true", "evaluation.roles=[]"]
    train("ddp", "ddp_cpu", 3, *more)
    train("split", "fsdp_cpu", 3, *more)
    assert_same_run(tmp_path / "ddp", tmp_path / "split", steps=3)
    trained = state_by_name(read_tensors(tmp_path / "split/checkpoints/last.ckpt"))
    assert any("lora" in name or "adapter" in name for name in trained)
    assert not any("text_encoder.backbone.embeddings" in name for name in trained)


@pytest.mark.slow
def test_a_run_with_split_weights_is_that_of_ddp_goes_on_and_is_read_by_one_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = trainer_in(tmp_path, capfd)
    train("ddp", "ddp_cpu", 4)
    train("split", "fsdp_cpu", 2, "evaluation.roles=[]", "trainer.strategy.save=split")
    train("split", "fsdp_cpu", 4, "resume=true", "trainer.strategy.save=split")
    path = tmp_path / "split/checkpoints/last.ckpt"
    require_parts(path)
    assert_same_run(tmp_path / "ddp", tmp_path / "split", steps=4)
    metrics = json.loads((tmp_path / "split/metrics.json").read_text())
    assert metrics == pytest.approx(json.loads((tmp_path / "ddp/metrics.json").read_text()), abs=1e-4)
    assert (
        run(
            [
                "evaluate",
                f"checkpoint={path}",
                "evaluation.roles=[test]",
                "evaluation.options.gallery=false",
                f"output_dir={tmp_path}/alone",
            ]
        )
        == 0
    )
    alone = json.loads((tmp_path / "alone/metrics.json").read_text())
    assert {name: alone[name] for name in metrics} == pytest.approx(metrics, abs=1e-4)
    assert run(["export", f"checkpoint={path}", f"output={tmp_path}/export"]) == 0
    assert not list((tmp_path / "export").glob("split-*"))
    train("split", "cpu", 5, "resume=true", "evaluation.roles=[]")  # one process goes on
    train("split", "fsdp_cpu", 6, "resume=true", "evaluation.roles=[]")  # and both, who save it whole
    for name in ("last", "previous"):
        inside = read_tensors(path.with_name(f"{name}.ckpt"))
        assert KEY not in inside
        assert all(isinstance(tensor, torch.Tensor) for tensor in inside["state_dict"].values())


def require_parts(path: Path) -> None:
    """Each rank has written its part, uneven ones too, and nothing that no checkpoint names is left."""
    inside = read_tensors(path)
    files = [path.with_name(each["file"]) for each in inside[KEY]["files"]]
    assert [file.name.split("-")[2] for file in files] == ["0of2", "1of2"]
    first, second = (read_tensors(file) for file in files)
    assert first.keys() == second.keys() == inside[KEY]["tensors"].keys()
    lengths = {(len(first[place]), len(second[place])) for place in first}
    assert any(b == 0 for _, b in lengths)
    assert any(a > b > 0 for a, b in lengths)
    places = {place.split("/")[0] for place in first}
    assert places == {"state_dict", "optimizer_states"}
    sizes = [sum(file.stat().st_size for file in chosen) for chosen in (files, files[:1], [path])]
    assert sizes[1] < 0.6 * sizes[0]
    assert sizes[2] < 0.3 * sizes[0]  # buffers, numbers, and what is no tensor
    named = {each["file"] for other in path.parent.glob("*.ckpt") for each in read_tensors(other)[KEY]["files"]}
    assert {file.name for file in path.parent.glob("split-*")} == named


def is_noise(name: str) -> bool:
    """Whether gradients are rounding errors, which Adam makes steps of: a key's bias moves all logits of a row alike."""
    return name.endswith("key.bias")


def state_by_name(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The optimiser's tensors by parameter: in another order where groups are others."""
    state = checkpoint["optimizer_states"][0]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    names = dict(zip(numbers, checkpoint["progress"]["parameters"], strict=True))
    return {f"{names[n]} {key}": value for n, values in state["state"].items() for key, value in values.items()}


@contextmanager
def one_process(folder: Path) -> Iterator[Any]:
    """A process group of one."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_sharding_is_forgotten(tmp_path: Path) -> None:
    with one_process(tmp_path) as mesh:
        layer = nn.Sequential(nn.Linear(3, 2))
        torch.distributed.fsdp.fully_shard(layer, mesh=mesh)
        forget_sharding(layer)
    assert type(layer) is nn.Sequential
    layer[0].weight, layer[0].bias = (nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (2,)))
    layer.load_state_dict(layer.state_dict())
    assert layer(torch.ones(1, 3)).tolist() == [[4, 4]]


def test_what_cannot_be_split_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.load(CONF / "trainer/auto.yaml")
    for name in ("fsdp", "fsdp_cpu"):
        config = OmegaConf.merge(config, OmegaConf.load(CONF / f"trainer/{name}.yaml"))
    del config["defaults"]
    config = OmegaConf.merge(config, {"precision": "32-true", "default_root_dir": None})
    assert isinstance(bare_trainer(OmegaConf.create({"trainer": config})).strategy, FullySharded)
    for changed, sentence in (
        ({"trainer": {"devices": 1}}, "trainer.devices is 1, but trainer=fsdp splits"),
        ({"trainer": {"precision": "16-mixed"}}, "trainer.precision=16-mixed has not been seen"),
        ({"trainer": {"sync_batchnorm": True}}, "trainer.sync_batchnorm: batch norms of split weights"),
        ({"compile": {"parts": ["fusion"]}}, "compile.parts: compiled blocks"),
    ):
        merged = OmegaConf.merge({"trainer": config, "logger": None, "callbacks": None}, changed)
        with pytest.raises(ConfigError, match=sentence):
            build_trainer(merged)  # type: ignore[arg-type]
    layer = nn.Linear(2, 2)
    for stages, tokens, sentence in (
        ({"slow": Stage(None, lr_scale=0.1)}, None, "stages: split weights"),
        ({}, object(), r"image_tokens\.folder: the encoder"),
    ):
        module = SimpleNamespace(tasks={}, stages=Stages(stages, layer.named_parameters()), image_tokens=tokens)
        with pytest.raises(ConfigError, match=sentence):
            require_split(module)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"trainer\.strategy\.whole is 'head'"):
        FullySharded(whole=["head"])
    with pytest.raises(ConfigError, match=r"trainer\.strategy\.save is 'splitt'; did you mean 'split'"):
        FullySharded(save="splitt")
    assert "teacher" in divided(config.strategy)
    assert "teacher" not in of_module(divided(config.strategy), Taught())  # type: ignore[arg-type]


class Taught:
    """What another checkpoint teaches, whole in each process."""

    distillation = True
