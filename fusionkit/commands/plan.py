"""``fusionkit plan``: what a training step of a configuration will need of each device's memory, measured without training."""

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from fusionkit.assembly.precision import resolve_precision
from fusionkit.cli.schemas import check
from fusionkit.commands.train import build
from fusionkit.training.memory_plan import MemoryPlan, plan_memory
from fusionkit.training.trainer import quieten_libraries

SPLITTING = ("fsdp", "deepspeed")  # strategies that give each process a part of what is trained


def plan(config: DictConfig) -> None:
    """Build what the configuration trains, make steps on small batches, print the table; writes nothing."""
    check(config, "TrainConfig")
    quieten_libraries()
    trainer = config.trainer
    seed_everything(config.seed, workers=True, verbose=False)
    precision = resolve_precision(trainer.precision, trainer.accelerator)
    wants_gpu = trainer.accelerator in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")
    parts, module = build(config, None)
    processes = processes_of(config)
    splits = any(name in str(trainer.strategy).lower() for name in SPLITTING)
    is_ddp = processes > 1 and not splits
    found = plan_memory(parts, module, precision, device, trainer.accumulate_grad_batches, is_ddp)
    print(
        f"memory of a training step, MB a process ({processes} of them, precision {precision}, {found.images} images each)"
    )
    for name, size in rows(found, processes if splits else 1):
        print(f"  {name:<54}{size / 2**20:>10,.1f}")
    for sentence in notes(found, str(device), trainer.accelerator in ("gpu", "cuda"), splits):
        print(sentence)


def processes_of(config: DictConfig) -> int:
    """How many processes the trainer is to start on all nodes; those of this machine's GPUs where it says all."""
    devices = config.trainer.devices
    if isinstance(devices, int) and devices > 0:
        count = devices
    elif devices in (-1, "-1", "auto"):
        count = max(1, torch.cuda.device_count())
    else:
        count = len([device for device in str(devices).strip("[]").split(",") if device.strip()])
    return count * int(config.trainer.get("num_nodes", 1))


def rows(found: MemoryPlan, split: int = 1) -> list[tuple[str, float]]:
    """The table; what is trained divided among so many processes."""
    table = [
        ("weights", found.weights / split),
        ("momentum teacher", float(found.teacher)),
        ("moving average of the weights", float(found.averages)),
        ("gradients", found.gradients / split),
        ("gradients once more, in DDP's buckets", float(found.buckets)),
        ("state of the optimiser", found.optimizer / split),
        ("batch", float(found.batch)),
        ("kept for the backward pass, and all else at the peak", float(found.rest)),
    ]
    shown = [(name, size) for name, size in table if size]
    return [*shown, ("in all", sum(size for _, size in shown))]


def notes(found: MemoryPlan, device: str, is_for_gpu: bool, splits: bool) -> list[str]:
    """How it was found, and what it leaves out."""
    batches = " and ".join(str(count) for count in found.measured)
    sentences = [
        f"measured on {device} with {batches} images, by the tensors alive; kernels, libraries and workers come on top"
    ]
    if is_for_gpu and device == "cpu":
        sentences.append(
            "a GPU has other kernels, which may keep more or less for the backward pass (attention above all)"
        )
    if splits:
        sentences.append(
            "a process also holds the whole of a wrapped part, or of an unwrapped model, while that computes"
        )
    return sentences
