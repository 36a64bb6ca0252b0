"""``fusionkit plan``: what a step of a configuration will need of each device's memory, and of time on many, without training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from fusionkit.assembly.precision import resolve_precision
from fusionkit.cli.schemas import check
from fusionkit.commands.train import build
from fusionkit.errors import ConfigError
from fusionkit.training.memory.plan import MemoryPlan, plan_memory
from fusionkit.training.memory.table import WEIGHTS, divided, of_module, rows
from fusionkit.training.scaling.measured import Passes, told
from fusionkit.training.scaling.step_time import BROADCAST, Exchange, Work
from fusionkit.training.scaling.table import Scaling, lines
from fusionkit.training.trainer import quieten_libraries

UNCOUNTED = 2  # processes, where all GPUs are asked for and there are none here


def plan(config: DictConfig) -> None:
    """Build what the configuration trains, make steps on small batches, print the table; writes nothing."""
    check(config, "PlanConfig")
    section: Any = OmegaConf.to_container(config, resolve=True)
    scaling = Scaling(section["scaling"]) if section["scaling"] else None
    quieten_libraries()
    trainer = config.trainer
    accumulate = trainer.accumulate_grad_batches
    if type(accumulate) is not int or accumulate < 1:
        raise ConfigError(f"trainer.accumulate_grad_batches is {accumulate!r}; give a whole number from 1")
    split, processes = divided(trainer.strategy), processes_of(config)
    seed_everything(config.seed, workers=True, verbose=False)
    is_for_gpu = on_gpu(trainer.accelerator)
    precision = resolve_precision(trainer.precision, trainer.accelerator)
    if trainer.precision == "auto" and is_for_gpu and not torch.cuda.is_available():
        precision = "bf16-mixed"
    device = torch.device("cuda" if is_for_gpu and torch.cuda.is_available() else "cpu")
    parts, module = build(config, None)
    is_ddp = processes > 1 and not split
    cached, module.gradient_cache = (
        module.gradient_cache,
        None,
    )  # chunks do not grow with a batch as what is drawn on does
    found = plan_memory(parts, module, precision, device, accumulate, is_ddp)
    module.gradient_cache = cached
    stage = f", stage '{found.stage}', which needs most" if found.stage else ""
    print(
        f"memory of a training step, MB a process ({processes} of them, precision {precision}, {found.images} images each{stage})"
    )
    for name, size in rows(found, processes, of_module(split, module)):
        print(f"  {name:<54}{size / 2**20:>10,.1f}")
    tokens = module.image_tokens is not None
    for sentence in [*notes(found, str(device), is_for_gpu, split, tokens, cached), *assumed(config)]:
        print(sentence)
    if scaling and scaling.ranks:
        if found.stage:
            module.stages.enter(module.stages.starts[found.stage])
        passes = Passes(parts, module, precision, device)
        gathered = 0.5 if is_for_gpu and precision == "bf16-mixed" else 1.0  # there they travel in bf16
        weights = gathered * found.weights if WEIGHTS in split else 0.0
        for sentence in step_times(scaling, passes, found, weights, accumulate, config.data.num_workers):
            print(sentence)


def step_times(
    scaling: Scaling, passes: Passes, found: MemoryPlan, weights: float, accumulate: int, workers: Any
) -> list[str]:
    """The table of step times by number of ranks, and what it was made of; ``weights``: bytes of them that are split."""
    how = "as given" if scaling.step_seconds else f"measured on {passes.device}"
    exchanges = passes.exchanges()
    work = Work(
        scaling.step_seconds or passes.seconds(),
        found.gradients,
        [*exchanges, Exchange(BROADCAST, passes.buffers / accumulate)],  # once a step
        weights=weights,
        passes=accumulate,
        backward=scaling.backward,
        bucket=scaling.bucket,
    )
    work = scaling.with_data(work, workers)
    batches = f"{accumulate} batches of " if accumulate > 1 else ""
    return [
        "",
        f"time of a step in seconds, {batches}{passes.images} images a rank (a pass takes {work.compute:.4f} s {how})",
        *lines(work, scaling.cluster, scaling.ranks, passes.images),
        f"exchanged a step: {work.gradients / 2**20:,.1f} MB of gradients{', and split weights' * bool(weights)}; "
        f"in a pass: {told(work.exchanges)}",
        "simulated, not measured: what that takes for granted stands in docs/scaling.md",
    ]


def on_gpu(accelerator: str) -> bool:
    """Whether a run with this accelerator would be on GPUs."""
    return accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())


def processes_of(config: DictConfig) -> int:
    """How many processes the trainer is to start on all nodes, counted as Lightning does for the accelerator.

    ``UNCOUNTED`` on a node where all GPUs are asked for and this machine has none.
    """
    trainer = config.trainer
    devices, is_for_gpu = trainer.devices, on_gpu(trainer.accelerator)
    if isinstance(devices, str) and devices.strip().lstrip("-").isdigit():
        devices = int(devices)
    if devices == "auto" and not is_for_gpu:
        count = 1
    elif devices in (-1, "auto") and is_for_gpu:
        count = torch.cuda.device_count() or UNCOUNTED
    elif isinstance(devices, int):
        count = devices
    elif is_for_gpu:
        count = len([device for device in str(devices).strip("[]").split(",") if device.strip()])
    else:
        count = 0
    if count < 1:
        where = "" if is_for_gpu else " without a GPU, where trainer.accelerator=gpu plans for one"
        raise ConfigError(f"trainer.devices is {trainer.devices!r}{where}; give a number above 0, or auto")
    return count * int(trainer.get("num_nodes", 1))


def assumed(config: DictConfig) -> list[str]:
    """What the plan of a run on GPUs takes for granted on a machine that has none."""
    trainer = config.trainer
    told: list[str] = []
    if not on_gpu(trainer.accelerator) or torch.cuda.is_available():
        return told
    if str(trainer.devices) in ("-1", "auto"):
        told.append(f"there are no GPUs here to count: {UNCOUNTED} a machine are assumed; give trainer.devices=N")
    if trainer.precision == "auto":
        told.append(
            "there is no GPU here to ask: one that is fast at bf16 is assumed; give trainer.precision=32-true else"
        )
    return told


def notes(
    found: MemoryPlan, device: str, is_for_gpu: bool, split: Sequence[str], tokens: bool, cached: int | None = None
) -> list[str]:
    """How it was found, and what it leaves out."""
    batches = " and ".join(str(count) for count in found.measured)
    sentences = [
        f"measured on {device} with {batches} images, by the tensors alive; kernels, libraries and workers come on top"
    ]
    if is_for_gpu and device == "cpu":
        sentences.append(
            "a GPU has other kernels, which may keep more or less for the backward pass (attention above all)"
        )
    if WEIGHTS in split:
        sentences.append(
            "a process also holds the whole of a wrapped part, or of an unwrapped model, while that computes"
        )
    elif split:
        sentences.append("a process also holds the buckets in which deepspeed gathers gradients and weights")
    if tokens:
        sentences.append(
            "image_tokens.folder is not planned: the image encoder computes in each step here, so a run needs less"
        )
    if cached is not None:
        sentences.append(
            f"gradient_cache={cached} is not planned: a batch is read at once here, so a run of more rows needs less"
        )
    return sentences
