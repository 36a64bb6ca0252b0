"""Split weights (trainer=fsdp) on two processes of the CPU: the gradients, steps and checkpoints of DDP."""

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from fusionkit.checkpoints.match import whole
from fusionkit.cli.main import run
from fusionkit.commands.memory_table import divided, of_module
from fusionkit.distributed import rank
from fusionkit.errors import ConfigError
from fusionkit.files.tensors import read_tensors
from fusionkit.internals import forget_sharding
from fusionkit.training.processes.sharding import (
    FullySharded,
    average_whole,
    gather_all,
    make_whole,
    require_split,
    shard,
    split_all,
)
from fusionkit.training.recompute import recompute_parts
from fusionkit.training.stages import Stage, Stages
from fusionkit.training.trainer import bare_trainer, build_trainer
from tests.commands.test_image_tokens import losses
from tests.commands.test_train import SMALL
from tests.distributed.global_batch import Case, Run, cases, fork, rank_batch, single
from tests.toys import CONF

FP64 = torch.float64


def chosen() -> dict[str, Case]:
    """Each fusion with a task of each kind, and what calls parts in ways of its own."""
    known = cases()
    kinds = {
        "itc": "late",
        "itm": "cross_attention",
        "mlm": "merged_attention",
        "vqa": "bottleneck",
        "entailment": "co_attention",
    }
    found = {f"{task}, {fusion}": Case(single(task), fusion) for task, fusion in kinds.items()}
    names = (
        "captioning, a language model",
        "captioning_shared",
        "vqa_decoder, taught",
        "likelihood, a rank without texts",
        "itc, queue, taught",
        "vqa_open, a language model that looks",
        "chat, a language model, a rank without texts",
    )
    return found | {name: known[name] for name in names}


class Splittable(Run):
    """Steps, and whatever else is to be done with whole weights, as a training module does it."""

    def forward(self, batch: Any, number: int = 0) -> Any:
        return batch() if callable(batch) else super().forward(batch, number)


def built(case: Case, is_split: bool, is_anew: bool = False) -> tuple[Run, nn.Module]:
    """What is trained, and what its steps are made by."""
    run = Splittable(case, FP64)
    if case.teacher:  # a part of the module, as in a training
        run.teacher = run.__dict__.pop("teacher")
    if is_anew:
        recompute_parts(True, run.model, dict(run.tasks.items()))
    if not is_split:
        return run, DistributedDataParallel(run)
    shard(run, init_device_mesh("cpu", (2,)), "64-true")  # type: ignore[arg-type]
    return run, run


def steps(case: Case, is_split: bool, is_anew: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the last step and the weights behind it, flat."""
    run, wrapped = built(case, is_split, is_anew)
    trained = [parameter for parameter in run.parameters() if parameter.requires_grad]
    for step in range(case.steps):
        run.zero_grad()
        wrapped(copy.copy(rank_batch(case, step, rank(), 2, FP64)), step).backward()
        average_whole(trained)
        for parameter in trained:
            parameter.data -= 0.05 * parameter.grad
    flat = [torch.cat([whole(x).flatten() for x in them]) for them in ([p.grad for p in trained], trained)]
    return flat[0], flat[1]


def compare(number: int, folder: Path) -> None:
    """One rank: the differences by case."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2, timeout=timedelta(seconds=100)
    )
    found = {}
    for name, case in chosen().items():
        for is_anew in (False, True) if "model" in name else (False,):
            pairs = zip(steps(case, False, is_anew), steps(case, True, is_anew), strict=True)
            found[f"{name}, {is_anew}"] = max(float((a - b).norm() / a.norm()) for a, b in pairs)
    run, _ = built(chosen()["itm, cross_attention"], is_split=True)
    groups = sum(hasattr(part, "unshard") for part in run.modules())
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in run.parameters())
    size = sum(p.numel() for p in run.parameters())
    batch = rank_batch(chosen()["itm, cross_attention"], 0, number, 2, FP64)
    gather_all(run)
    seen = run.model.encode(batch, ["captions"]).text["captions"].embeds
    torch.autograd.grad(seen.sum(), next(run.model.text_encoder.parameters()))  # as GradCAM does
    with torch.no_grad():
        states = run.model.encode(batch, ["captions"]).text["captions"].embeds
    split_all(run)
    make_whole(run)
    if not number:  # alone, with no process to gather from
        with torch.no_grad():
            again = run.model.encode(batch, ["captions"]).text["captions"].embeds
        found["alone"] = float((again - states).abs().max())
        run.load_state_dict(copy.deepcopy(run).state_dict())
        assert not any(hasattr(part, "unshard") or "forward" in vars(part) for part in run.modules())
    (folder / f"{number}.json").write_text(json.dumps({"found": found, "groups": groups, "share": local / size}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_gradients_of_split_weights_are_those_of_ddp(tmp_path: Path) -> None:
    for number in range(2):
        fork(lambda number=number: compare(number, tmp_path))
    assert [os.wait()[1] for _ in range(2)] == [0, 0]
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in range(2))
    assert len(first["found"]) == 12 + 3 + 1
    assert max({**first["found"], **second["found"]}.values()) < 1e-12, first["found"]
    assert first["groups"] > 2  # blocks are gathered each for itself
    assert first["share"] + second["share"] == pytest.approx(1, abs=0.01)


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


@pytest.mark.slow
def test_a_run_with_split_weights_is_that_of_ddp_goes_on_and_is_read_by_one_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(name: str, trainer: str, steps: int, *more: str) -> None:
        chosen = [f"trainer={trainer}", f"trainer.max_steps={steps}", f"output_dir={tmp_path}/{name}", *more]
        assert run(["train", *SMALL, *OPTIONS, f"data.root={tmp_path}/shapes", *chosen]) == 0, capfd.readouterr().err

    assert run(["data", "make", "shapes", f"root={tmp_path}/shapes", "scenes=20"]) == 0
    train("ddp", "ddp_cpu", 4)
    train("split", "fsdp_cpu", 2, "evaluation.roles=[]")
    train("split", "fsdp_cpu", 4, "resume=true")
    one, two = (read_tensors(tmp_path / name / "checkpoints/last.ckpt") for name in ("ddp", "split"))
    assert list(one["state_dict"]) == list(two["state_dict"])
    for name, tensor in one["state_dict"].items():
        if not is_noise(name):
            atol = 5e-4 if "running" in name else 1e-5  # statistics of sums over many weights
            torch.testing.assert_close(two["state_dict"][name], tensor, atol=atol, rtol=1e-5, msg=name)
    moments = [state_by_name(checkpoint) for checkpoint in (one, two)]
    assert moments[0].keys() == moments[1].keys()
    for name, tensor in moments[0].items():
        torch.testing.assert_close(moments[1][name], tensor, atol=1e-5, rtol=1e-3, msg=name)
    expected = losses(tmp_path / "ddp")
    assert len(expected) >= 4
    found = losses(tmp_path / "split")
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, abs=1e-5)
    metrics = json.loads((tmp_path / "split/metrics.json").read_text())
    assert metrics == pytest.approx(json.loads((tmp_path / "ddp/metrics.json").read_text()), abs=1e-4)
    path = tmp_path / "split/checkpoints/last.ckpt"
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
    train("split", "cpu", 5, "resume=true")  # one process goes on


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
    assert "teacher" in divided(config.strategy)
    assert "teacher" not in of_module(divided(config.strategy), Taught())  # type: ignore[arg-type]


class Taught:
    """What another checkpoint teaches, whole in each process."""

    distillation = True
