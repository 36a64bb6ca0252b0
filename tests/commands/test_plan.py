"""``fusionkit plan``: what it says a step will need is what a run then has alive, to 5%; and what the table says."""

import inspect
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, seed_everything
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, StrategyRegistry
from omegaconf import OmegaConf

from fusionkit.assembly.composition import training_config
from fusionkit.cli.main import run
from fusionkit.commands.plan import assumed, notes, processes_of
from fusionkit.commands.train import build
from fusionkit.errors import ConfigError
from fusionkit.model.adapters import adapted_layers
from fusionkit.training.distillation.student import Distillation, Weights
from fusionkit.training.memory.live import LiveMemory
from fusionkit.training.memory.plan import MemoryPlan, _bytes, _drawn_on, _padded, _tensors, fixed_memory, plan_memory
from fusionkit.training.memory.table import divided, fixed_rows, rows
from fusionkit.training.scaling.measured import Passes
from fusionkit.training.trainer import bare_trainer, build_module
from tests.commands.test_train import SMALL

Capture = pytest.CaptureFixture[str]
CPU = torch.device("cpu")
LANGUAGE_MODEL = [
    "text_encoder=tiny_llama",
    "fusion=prefix",
    "task=[itc,captioning]",
    "+objectives.shapes.captioning=1",
]
STAGES = ["adapters=lora", "stages=language_model", "stages.project.steps=2", "stages.adapt.steps=2"]


class Watch(Callback):
    """What is alive during a training beside the module."""

    def __init__(self) -> None:
        self.memory = LiveMemory()

    def on_train_start(self, *_: Any) -> None:
        self.memory.__enter__()

    def on_train_end(self, *_: Any) -> None:
        self.memory.__exit__(None, None, None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=48"]) == 0
    return folder


def configuration(world: Path, *options: str) -> Any:
    is_small = [option for option in SMALL if not option.startswith(("fusion", "text_encoder", "logger"))]
    few = ["trainer.max_steps=3", "trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0", "data.num_workers=0"]
    return training_config(*is_small, *few, f"data.root={world}/shapes", f"output_dir={world}/run", *options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["data.sources.shapes.batch_size=24", "task=[itc,itm,mlm]", "fusion.num_layers=2"],
        ["data.sources.shapes.batch_size=20", *LANGUAGE_MODEL, "activation_checkpointing=true", "optimizer=muon"],
        ["data.sources.shapes.batch_size=12", "fusion=merged_attention", "teacher=momentum", "trainer.precision=bf16-mixed",
         "trainer.accumulate_grad_batches=2", "task=[itc,vqa]"],
        ["data.sources.shapes.batch_size=2", "fusion=merged_attention", "ema.decay=0.9", "trainer.precision=bf16-true",
         "task=[itc]"],
        ["data.sources.shapes.batch_size=4", *LANGUAGE_MODEL, *STAGES, "trainer.max_steps=6"],
    ],
    ids=["several tasks", "a language model computed anew", "a teacher in bf16", "an average in bf16", "the last stage"],
)  # fmt: skip
def test_a_run_needs_what_was_planned(world: Path, options: list[str]) -> None:
    config = configuration(world, *options)
    trainer = config.trainer
    seed_everything(config.seed, verbose=False)
    parts, module = build(config, None)
    planned = plan_memory(parts, module, trainer.precision, CPU, trainer.accumulate_grad_batches)
    assert planned.measured == ((4, 8) if planned.images > 8 else (planned.images,))
    assert planned.images == config.data.sources.shapes.batch_size
    seed_everything(config.seed, verbose=False)
    parts, module = build(config, None)
    watch = Watch()
    bare_trainer(config, callbacks=[watch]).fit(module, datamodule=parts.datamodule)
    found = _bytes(_tensors([module])) + watch.memory.peak
    assert planned.total == pytest.approx(found, rel=0.05)
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.grad is not None)
    assert planned.gradients == trained
    assert planned.stage == ("unfreeze" if "stages=language_model" in options else "")
    assert (planned.teacher > 0) == ("teacher=momentum" in options)
    assert planned.averages == (_bytes(list(module.average._means.values())) if module.average else 0)


@pytest.mark.slow
def test_base_weights_count_as_they_are_kept(world: Path) -> None:
    options = [*LANGUAGE_MODEL, "adapters=lora", "++text_encoder.frozen=true"]
    plain, rounded = planned(world, *options), planned(world, *options, "adapters.base_weights=nf4")
    _, module = build(configuration(world, *options), None)
    numbers = sum(layer.get_base_layer().weight.numel() for layer in adapted_layers(module.model).values())
    assert numbers > 100_000
    assert plain.weights - rounded.weights == numbers * 4 - numbers // 2 - numbers // 64 * 4
    assert (rounded.gradients, rounded.optimizer) == (plain.gradients, plain.optimizer)


def planned(world: Path, *options: str) -> MemoryPlan:
    config = configuration(world, "data.sources.shapes.batch_size=2", *options)
    return plan_memory(*build(config, None), "32-true", CPU)


def test_the_stage_that_needs_most_is_planned(world: Path) -> None:
    kind = "_target_=fusionkit.training.stages.Stage"
    first = [f"++stages.all.{kind}", "++stages.all.steps=1"]
    stages = [*first, f"++stages.heads.{kind}", "++stages.heads.steps=null", "++stages.heads.trains=['^tasks']"]
    whole, found = planned(world, "task=[itc,itm]"), planned(world, "task=[itc,itm]", *stages)
    assert (whole.stage, found.stage) == ("", "all")
    assert (found.gradients, found.optimizer) == (whole.gradients, whole.optimizer)


def test_a_second_module_over_the_same_parts_is_as_the_first(world: Path) -> None:
    parts, first = build(configuration(world, "stages=heads_first", "stages.heads.steps=2", "teacher=momentum"), None)
    names = [set(first.stages.parameters), set(first.stages.training)]
    second = build_module(parts)
    assert [set(second.stages.parameters), set(second.stages.training)] == names
    assert names[1] < names[0]


HEADS_LAST = [f"++stages.{name}._target_=fusionkit.training.stages.Stage" for name in ("fusion", "heads")] + [
    *("++stages.fusion.steps=1", "++stages.fusion.trains=['fusion']"),
    *("++stages.heads.steps=null", "++stages.heads.trains=['^tasks']"),
]


@pytest.mark.parametrize(
    "options",
    [
        ["task=[itm]", "++image_encoder.frozen=true", "teacher=momentum", "trainer.precision=bf16-true"],
        ["task=[itm]", "optimizer=muon", "ema.decay=0.9", "trainer.precision=bf16-true", *HEADS_LAST],
    ],
    ids=["a teacher of a frozen encoder", "stages of an average"],
)
def test_what_batches_do_not_change_is_known_without_a_step(world: Path, options: list[str]) -> None:
    config = configuration(world, "data.sources.shapes.batch_size=2", *options)
    parts, module = build(config, None)
    before = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    found = fixed_memory(module, config.trainer.precision, is_ddp=True)
    assert {name: parameter.requires_grad for name, parameter in module.named_parameters()} == before
    assert not any(parameter.is_meta or parameter.grad is not None for parameter in module.parameters())
    measured = plan_memory(parts, module, config.trainer.precision, CPU, is_ddp=True)
    assert found == replace(measured, batch=0, rest=0, images=0, measured=())
    assert found.stage == ("fusion" if HEADS_LAST[0] in options else "")


class Asking(torch.optim.SGD):
    """Looks at a number."""

    def step(self, closure: Any = None) -> Any:
        if self.param_groups[0]["params"][0].sum().item() > 0:
            return super().step(closure)
        return None


def test_what_a_training_tells_of_its_memory(world: Path) -> None:
    def told(strategy: str = "auto", ranks: int = 1) -> dict[str, float]:
        trainer: Any = SimpleNamespace(precision="32-true", world_size=ranks)
        return dict(fixed_rows(module, trainer, strategy))

    _, module = build(configuration(world, "task=[itm]"), None)
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) * 4
    names = ["weights", "gradients", "state of the optimiser"]
    alone = told()
    assert list(alone) == [*names, "in all"]
    assert alone["gradients"] == trained
    assert list(told("ddp", 2)) == [*names[:2], "gradients once more, in DDP's buckets", names[2], "in all"]
    assert told("fsdp", 2) == {name: size / 2 for name, size in alone.items()}
    assert told("fsdp_cpu_offload", 2) == {}
    teacher: Any = SimpleNamespace(module=torch.nn.Linear(8, 16, bias=False), origin={})
    module.distillation = Distillation(teacher, [], {"image": (4, 8)}, Weights())
    taught = told()
    assert taught["teacher"] == 8 * 16 * 4
    assert taught["weights"] == alone["weights"] + (4 * 8 + 8) * 4
    module._build_optimizer = lambda named: Asking([parameter for _, parameter in named], lr=0.1)
    assert told() == {}
    module._build_optimizer = lambda named: named[0][1].sum().item()
    assert told() == {}


def test_what_a_teacher_shares_counts_once(world: Path) -> None:
    options = ["task=[itc]", "teacher=momentum"]
    whole, shared = planned(world, *options), planned(world, *options, "++image_encoder.frozen=true")
    assert shared.weights == whole.weights
    assert whole.teacher - shared.teacher == whole.gradients - shared.gradients > 0  # of the encoder


def test_curves_are_drawn_on_point_by_point() -> None:
    small, large = np.array([1.0, 10.0, 4.0]), np.array([2.0, 10.0, 8.0])
    assert _drawn_on([large], [2], 9).tolist() == [2, 10, 8]
    assert _drawn_on([small, large], [1, 2], 4).tolist() == [4, 10, 16]
    assert _drawn_on([np.array([1.0, 4.0]), large], [1, 2], 3).tolist() == [3, 17.5, 12]
    assert _drawn_on([large, large], [1, 1], 3).tolist() == [2, 10, 8]  # two sources of which each gives an image


def test_texts_are_as_long_as_in_the_whole_batch() -> None:
    ids = torch.ones(2, 3, dtype=torch.long)
    rows = {"input_ids": ids, "attention_mask": ids, "word_index": ids, "targets": ids, "ids": [1, 2]}
    padded = _padded({"source": "a", "captions": rows}, {"captions": 4})
    assert padded["source"] == "a"
    assert padded["captions"]["ids"] == [1, 2]
    last = {
        name: padded["captions"][name][:, 3].tolist()
        for name in ("input_ids", "attention_mask", "word_index", "targets")
    }
    assert last == {"input_ids": [0, 0], "attention_mask": [0, 0], "word_index": [-1, -1], "targets": [-100, -100]}
    assert _padded({"captions": rows}, {"captions": 2})["captions"]["input_ids"].shape == (2, 3)


def test_live_memory_counts_what_is_alive() -> None:
    x, weight = torch.randn(10, 10), torch.randn(10, 10, requires_grad=True)
    with LiveMemory() as memory:
        states = x @ weight
        assert memory.bytes == 400
        states.add_(1).view(-1)
        assert memory.bytes == 400
        out = states.relu()
        assert memory.bytes == 800
        del states
        assert memory.bytes == 400
        loss = out.square().sum()
        del out  # which the graph holds
        assert memory.bytes == 404
        loss.backward()
        assert memory.bytes == 404  # the gradient, and the loss
        assert weight.grad is not None
        weight.grad = None
        assert memory.bytes == 4
    assert memory.peak == max(memory.curve) > 800
    assert torch.ones(3).sum() == 3
    assert memory.bytes == 4


def test_the_table_divides_what_a_strategy_splits() -> None:
    found = MemoryPlan(weights=8, teacher=0, gradients=6, optimizer=4, batch=3, rest=5, buckets=6, averages=7)
    assert found.total == 39
    table = dict(rows(found))
    assert "teacher" not in table
    assert table["in all"] == 39
    assert dict(rows(found, 2, divided("ddp")))["in all"] == 39
    assert dict(rows(found, 2, divided("deepspeed_stage_1")))["in all"] == 39 - 2
    assert dict(rows(found, 2, divided("deepspeed_stage_2")))["in all"] == 39 - 2 - 3
    assert dict(rows(found, 2, divided("deepspeed_stage_3")))["in all"] == 39 - 2 - 3 - 4


def test_strategies_are_known_by_name() -> None:
    assert StrategyRegistry["deepspeed"]["init_params"] == {}
    assert inspect.signature(DeepSpeedStrategy).parameters["stage"].default == 2
    assert inspect.signature(FSDPStrategy).parameters["sharding_strategy"].default == "FULL_SHARD"
    assert divided("deepspeed") == divided("deepspeed_stage_2")
    assert divided("fsdp") == divided("deepspeed_stage_3")
    assert divided("auto") == divided("ddp_find_unused_parameters_true") == divided("single_device") == ()
    shard = {"_target_": "lightning.pytorch.strategies.FSDPStrategy", "sharding_strategy": "SHARD_GRAD_OP"}
    assert divided(OmegaConf.create({"_target_": "lightning.pytorch.strategies.DDPStrategy"})) == ()
    for other in ("fsdp_cpu_offload", "deepspeed_stage_3_offload", shard):
        with pytest.raises(ConfigError, match=r"trainer\.strategy="):
            divided(other)


def test_the_notes_say_what_is_left_out() -> None:
    found = MemoryPlan(weights=8, teacher=0, gradients=6, optimizer=4, batch=3, rest=5)
    assert len(notes(found, "cpu", is_for_gpu=False, split=(), tokens=False)) == 1
    assert len(notes(found, "cuda", is_for_gpu=True, split=(), tokens=False)) == 1
    assert "a GPU has other kernels" in notes(found, "cpu", is_for_gpu=True, split=(), tokens=False)[1]
    assert "the whole of a wrapped part" in notes(found, "cpu", False, divided("fsdp"), tokens=False)[1]
    assert "the buckets in which deepspeed" in notes(found, "cpu", False, divided("deepspeed"), tokens=False)[1]
    assert "image_tokens.folder is not planned" in notes(found, "cpu", False, (), tokens=True)[1]
    assert "gradient_cache=3 is not planned: a batch is read" in notes(found, "cpu", False, (), False, cached=3)[1]


def on(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)


@pytest.mark.parametrize(
    ("trainer", "gpus", "count"),
    [
        ({"accelerator": "gpu", "devices": 4}, 0, 4),
        ({"accelerator": "cpu", "devices": 2, "num_nodes": 3}, 0, 6),
        ({"accelerator": "gpu", "devices": "0,2"}, 4, 2),
        ({"accelerator": "cuda", "devices": [1, 3, 5]}, 0, 3),
        ({"accelerator": "gpu", "devices": "3"}, 4, 3),
        ({"accelerator": "cpu", "devices": "3"}, 4, 3),
        *[({"accelerator": "gpu", "devices": every}, 4, 4) for every in (-1, "-1", "auto")],
        *[({"accelerator": "gpu", "devices": every, "num_nodes": 2}, 0, 4) for every in (-1, "-1", "auto")],
        ({"accelerator": "auto", "devices": -1}, 4, 4),
        ({"accelerator": "auto", "devices": "auto"}, 0, 1),
        ({"accelerator": "cpu", "devices": "auto"}, 4, 1),
    ],
)
def test_processes_are_counted(trainer: dict[str, Any], gpus: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    on(gpus, monkeypatch)
    assert processes_of(OmegaConf.create({"trainer": trainer})) == count


@pytest.mark.parametrize(("accelerator", "devices"), [("cpu", -1), ("cpu", [1, 2]), ("gpu", 0), ("gpu", [])])
def test_no_devices_are_refused(accelerator: str, devices: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(4, monkeypatch)
    with pytest.raises(ConfigError, match=r"trainer\.devices is ") as error:
        processes_of(OmegaConf.create({"trainer": {"accelerator": accelerator, "devices": devices}}))
    assert ("trainer.accelerator=gpu" in str(error.value)) == (accelerator == "cpu")


def test_what_is_assumed_of_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(accelerator: str, devices: Any, precision: str) -> list[str]:
        trainer = {"accelerator": accelerator, "devices": devices, "precision": precision}
        return assumed(OmegaConf.create({"trainer": trainer}))

    on(0, monkeypatch)
    count, precision = told("gpu", -1, "auto")
    assert "2 a machine are assumed" in count
    assert "fast at bf16 is assumed" in precision
    assert told("cuda", "auto", "32-true") == [count]
    assert told("gpu", 2, "auto") == [precision]
    assert told("auto", "auto", "auto") == told("gpu", 2, "32-true") == []
    on(4, monkeypatch)
    assert told("gpu", -1, "auto") == []


def test_a_run_on_gpus_is_planned_without_one(world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    on(0, monkeypatch)
    line = [*(option for option in SMALL if not option.startswith(("logger", "trainer.precision"))), "task=[itc]"]
    line += [f"data.root={world}/shapes", f"output_dir={world}/none", "data.sources.shapes.batch_size=2"]
    assert run(["plan", *line, "trainer=ddp", "++image_encoder.frozen=true", f"image_tokens.folder={world}/no"]) == 0
    out = capsys.readouterr().out
    assert "(2 of them, precision bf16-mixed, 2 images each)" in out
    for said in ("DDP's buckets", "a GPU has other kernels", "2 a machine", "image_tokens.folder is not planned"):
        assert said in out
    for wrong in ("accumulate_grad_batches=0", "accumulate_grad_batches=1.5", "strategy=fsdp_cpu_offload"):
        assert run(["plan", *line, f"trainer.{wrong}"]) == 2
        assert f"trainer.{wrong.partition('=')[0]}" in capsys.readouterr().err


def test_the_command_prints_and_writes_nothing(world: Path, capsys: Capture) -> None:
    line = [
        *(option for option in SMALL if not option.startswith("logger")),
        f"data.root={world}/shapes",
        "task=[itc,itm]",
    ]
    given = [f"output_dir={world}/none", "trainer=ddp_cpu", "data.sources.shapes.batch_size=4", "scaling=null"]
    assert run(["plan", *line, *given]) == 0
    out = capsys.readouterr().out
    assert "MB a process (2 of them, precision 32-true, 4 images each)" in out
    assert "gradients once more, in DDP's buckets" in out
    assert "measured on cpu with 4 images" in out
    assert "gradient_cache" not in out
    cached = ["gradient_cache=1", "seed=1"]
    assert run(["plan", *line, *given, *cached]) == 0
    cached_out = capsys.readouterr().out.splitlines()
    assert "gradient_cache=1 is not planned" in cached_out[-1]
    assert [text for text in cached_out if not text.startswith("gradient_cache")] == out.splitlines()
    assert not os.path.exists(world / "none")
    assert run(["plan", *line, "trainer.accelerator=cpu", "fusion.num_heads=5"]) == 2


def test_step_times_are_printed_by_number_of_ranks(world: Path, capsys: Capture) -> None:
    line = [*(option for option in SMALL if not option.startswith("logger")), f"data.root={world}/shapes", "task=[itc]"]
    line += [f"output_dir={world}/none", "trainer=ddp_cpu", "data.sources.shapes.batch_size=12", "data.num_workers=2"]
    given = ["scaling.step_seconds=2.0", "scaling.data_seconds=6.0", "scaling=ethernet"]
    assert run(["plan", *line, *given, "scaling.ranks=[1,16]", "trainer.accumulate_grad_batches=2"]) == 0
    *_, title, head, one, many, exchanged, last = capsys.readouterr().out.splitlines()
    assert title == "time of a step in seconds, 2 batches of 12 images a rank (a pass takes 2.0000 s as given)"
    assert head.split()[0] == "ranks"
    assert one.split() == ["1", "24", "4.0000", *3 * ["0.0000"], "2.0000", "6.0000", "4", "66.7%"]
    assert many.split()[:3] == ["16", "384", "4.0000"]
    assert float(many.split()[7]) == 6.0  # the workers are what is waited for
    embed = 4 * 12 * composed_embed_size(world)
    # images' and texts' features and keys, and how many there are of each, which is asked before
    assert f"8 all_gather ({(2 * embed + 2 * 12 * 8 + 4 * 8) / 2**20:,.3f} MB)" in exchanged
    assert f"2 all_reduce_rows ({2 * embed / 2**20:,.3f} MB)" in exchanged
    assert "docs/scaling.md" in last
    line[line.index("trainer=ddp_cpu")] = "trainer=fsdp_cpu"
    few = ["scaling.gigabytes_per_second=[0.01,0.01]", "scaling.microseconds=[0,0]", "scaling.step_seconds=0.001"]
    assert run(["plan", *line, *few, "scaling.ranks=[2]"]) == 0
    *_, _head, two, exchanged, _ = capsys.readouterr().out.splitlines()
    assert "MB of gradients, and split weights; in a pass: " in exchanged
    gradients = float(exchanged.split()[3]) * 2**20 / 0.01e9  # seconds of all of them over the link
    assert float(two.split()[3]) == pytest.approx(1.5 * gradients, rel=0.05)  # half of them travels; weights do twice
    assert run(["plan", *line, "scaling.ranks=[12]"]) == 2
    assert "scaling.ranks has 12, which is no multiple of scaling.ranks_per_node=8" in capsys.readouterr().err


def composed_embed_size(world: Path) -> int:
    return int(configuration(world).model.embed_size)


def test_a_pass_is_timed_and_what_it_exchanges_is_drawn_on(world: Path) -> None:
    parts, module = build(
        configuration(world, "data.sources.shapes.batch_size=12", "task=[itc,itm]", "negatives=all_rank"), None
    )
    passes = Passes(parts, module, "32-true", CPU)
    assert passes.images == 12
    assert passes.seconds() > 0
    exchanges = passes.exchanges()
    assert [one.size for one in exchanges] == sorted(one.size for one in exchanges)
    kinds = {one.kind for one in exchanges}
    assert kinds == {"all_gather", "all_reduce", "all_reduce_rows"}
    images = module.model.image_encoder.hidden_size * 12 * 4  # of a token, in bytes; there are many an image
    assert max(one.size for one in exchanges if one.kind == "all_reduce_rows") > 4 * images
