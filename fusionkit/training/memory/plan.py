"""What a training step will need of a device's memory, measured on small batches before the run."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, Precision
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit.assembly.parts import Parts
from fusionkit.assembly.precision import exact_inputs
from fusionkit.balance import Step
from fusionkit.internals import leaves_of
from fusionkit.losses import IGNORE
from fusionkit.model.int8 import plain_state
from fusionkit.training.memory.live import LiveMemory
from fusionkit.training.module import TrainingModule

SMALL = 8  # images of the largest source in the larger of the two batches that are measured
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WHOLE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
PLUGINS: Mapping[str, Callable[[], Precision]] = {
    "bf16-true": partial(HalfPrecision, "bf16-true"),
    "16-true": partial(HalfPrecision, "16-true"),
    "64-true": DoublePrecision,
}
PADDING = {"input_ids": 0, "attention_mask": 0, "word_index": -1, "targets": IGNORE}  # of a batch's texts
Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What was alive in a stage's step with one batch."""

    curve: Curve  # bytes at each operation
    gradients: int
    optimizer: int


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process, by what they are for; where the parameters are split among processes, those of the whole."""

    weights: int  # parameters and buffers of model and heads
    teacher: int  # those of a momentum teacher, or of a checkpoint that teaches
    gradients: int
    optimizer: int  # its state
    batch: int
    # what else is alive at the highest point of a step: what is kept for the backward pass, for the most part
    rest: int
    buckets: int = 0  # DDP's copy of the gradients
    averages: int = 0  # the moving average of the weights
    images: int = 0  # of a step
    measured: tuple[int, ...] = ()  # images of the batches that were measured
    stage: str = ""  # the one that needs most, where the run has several

    @property
    def total(self) -> int:
        """All of it."""
        of_weights = self.weights + self.teacher + self.averages
        return of_weights + self.gradients + self.optimizer + self.batch + self.rest + self.buckets


def plan_memory(
    parts: Parts,
    module: TrainingModule,
    precision: str,
    device: torch.device,
    accumulate: int = 1,
    is_ddp: bool = False,
) -> MemoryPlan:
    """Make two steps on a small batch, and on one of half its size, and draw what is alive at each operation on to the whole one.

    In each stage of the run, one after the other, and plans the one that needs most. Trains the module a little: build another
    one for the run. A batch of at most ``SMALL`` images is measured as it is; smaller ones have their texts padded as the whole
    one has. It sees tensors (``LiveMemory``), so neither what kernels need for themselves nor what the allocator and the
    libraries hold.
    """
    module.to(device, WHOLE.get(precision)).train()
    plugin: Any = PLUGINS.get(precision, Precision)()
    exact_inputs(plugin, getattr(module.model.image_encoder, "reads", "pixel_values"))
    sizes = {name: parts.datamodule.sources[name].batch_size for name in module.objectives}
    images, batches, runs = [], [], []
    lengths = {name: _lengths(rows) for name, rows in batch_of(parts, sizes).items()}
    for share in _shares(max(sizes.values())):
        small = {name: max(1, round(size * share)) for name, size in sizes.items()}
        drawn = {name: _padded(rows, lengths[name]) for name, rows in batch_of(parts, small).items()}
        batch = plugin.convert_input(move_data_to_device(drawn, device))
        images.append(sum(small.values()))
        batches.append(np.array([_bytes(leaves_of(batch))], dtype=np.float64))
        runs.append(_measure(module, batch, partial(context_of, precision, device, plugin), accumulate))
    whole = sum(sizes.values())
    shared = _held(module, module.stages.parameters, WHOLE.get(precision)) | {
        "batch": int(_drawn_on(batches, images, whole).max())
    }
    plans = []
    for stage in module.stages.starts:
        last = runs[-1][stage]
        peak = int(_drawn_on([run[stage].curve for run in runs], images, whole).max())
        plans.append(
            MemoryPlan(
                **shared,
                gradients=last.gradients,
                optimizer=last.optimizer,
                rest=max(0, peak - last.gradients - last.optimizer),
                buckets=last.gradients if is_ddp else 0,
                images=whole,
                measured=tuple(images),
                stage=stage if len(module.stages) > 1 else "",
            )
        )
    return max(plans, key=lambda each: each.total)


def fixed_memory(module: TrainingModule, precision: str, is_ddp: bool = False) -> MemoryPlan | None:
    """What a run holds whatever is in its batches: a plan without ``batch`` and ``rest``, by arithmetic alone.

    The optimiser makes a step on shapes without numbers (the meta device) in each stage. None for one that cannot.
    """
    dtype, trained = WHOLE.get(precision), module.stages.parameters
    twins = {name: _shape_of(p, dtype, name in trained) for name, p in module.named_parameters()}
    held = _held(module, {name: twins[name] for name in trained}, dtype)
    try:
        optimizer = module.build_optimizer(twins.items())
    except Exception:  # whatever an optimiser of one's own does with numbers; the run itself tells its mistakes
        return None
    for group in optimizer.param_groups:
        group["fused"] = False  # which the meta device has not
    plans = []
    for stage, names in module.stages.trained.items():
        for key, twin in twins.items():
            twin.grad = torch.empty_like(twin) if key in names else None
        try:
            optimizer.step()
        except Exception:  # likewise
            return None
        gradients = _numbers([twins[key] for key in names])
        plans.append(
            MemoryPlan(
                **held,
                gradients=gradients,
                optimizer=_numbers(leaves_of(optimizer.state_dict())),
                batch=0,
                rest=0,
                buckets=gradients if is_ddp else 0,
                measured=(),
                stage=stage if len(module.stages) > 1 else "",
            )
        )
    return max(plans, key=lambda each: each.total)


def _shape_of(parameter: nn.Parameter, dtype: torch.dtype | None, is_trained: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta", dtype=dtype), requires_grad=is_trained)


def _held(
    module: TrainingModule, trained: Mapping[str, nn.Parameter], dtype: torch.dtype | None = None
) -> dict[str, int]:
    """The bytes of what is there before a step, with floating point numbers of this type where one is given."""
    distillation = [] if module.distillation is None else [module.distillation]
    teachers = [each.teacher.module for each in distillation]
    weights = _tensors([module.model, module.tasks, module.balance, *distillation])
    teacher = _tensors([*teachers, *([module.teacher] if isinstance(module.teacher, nn.Module) else [])])
    return {
        "weights": _bytes(weights, dtype),
        # what is frozen is the student's own
        "teacher": _bytes([*weights, *teacher], dtype) - _bytes(weights, dtype),
        "averages": 0 if module.average is None else module.average.size(trained),
    }


def _shares(largest: int) -> tuple[float, ...]:
    return (1.0,) if largest <= SMALL else (SMALL / 2 / largest, SMALL / largest)


def batch_of(parts: Parts, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The first training batch, of so many images of each source."""
    sources = parts.datamodule.sources
    whole = dict(sources)
    sources.update({name: replace(sources[name], batch_size=size) for name, size in sizes.items()})
    try:
        batch, *_ = next(iter(parts.datamodule.train_dataloader()))
    finally:
        sources.update(whole)
    found: dict[str, Any] = batch
    return found


def _lengths(batch: Mapping[str, Any]) -> dict[str, int]:
    """How long the texts of each kind are."""
    rows = {
        kind: texts["input_ids"] for kind, texts in batch.items() if isinstance(texts, Mapping) and "input_ids" in texts
    }
    return {kind: ids.shape[1] for kind, ids in rows.items()}


def _padded(batch: Mapping[str, Any], lengths: Mapping[str, int]) -> dict[str, Any]:
    """The batch with its texts as long as these."""
    found = dict(batch)
    for kind, length in lengths.items():
        more = max(0, length - batch[kind]["input_ids"].shape[1])
        found[kind] = batch[kind] | {
            name: F.pad(batch[kind][name], (0, more), value=value)
            for name, value in PADDING.items()
            if name in batch[kind]
        }
    return found


def _measure(
    module: TrainingModule,
    batch: Mapping[str, Any],
    context: Callable[[], AbstractContextManager[Any]],
    accumulate: int,
) -> dict[str, Measured]:
    """What is alive at each operation of a second step of each stage, by the stage's name.

    The gradients and the state are there from its first step, and the state of what earlier stages trained too.
    """
    module.zero_grad()
    if module.average is not None:
        module.average.begin(module.stages.parameters)
    found = {}
    with LiveMemory() as memory:
        optimizer = module.build_optimizer()
        for stage, start in module.stages.starts.items():
            module.stages.enter(start)
            for number in range(2):
                memory.curve.clear()
                with context():
                    step = Step(number=number, total=2, is_first=True, parameters=module.stages.training)
                    loss = module.balance(losses_of(module, batch), module.weights, step).loss
                if accumulate == 1:
                    optimizer.zero_grad()  # as Lightning does, between the passes
                loss.backward()
                optimizer.step()
                del loss
                if module.average is not None:
                    module.average.update()
            found[stage] = Measured(
                np.array(memory.curve, dtype=np.float64),
                gradients=_bytes([parameter.grad for parameter in module.parameters()]),
                optimizer=_bytes(leaves_of(optimizer.state_dict())),
            )
    return found


def losses_of(module: TrainingModule, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    outputs = {source: module.outputs(source, batch[source], 0.5) for source in module.objectives}
    return {f"{source}/{name}": output.loss for source, row in outputs.items() for name, output in row.items()}


def _drawn_on(curves: Sequence[Curve], images: Sequence[int], whole: int) -> Curve:
    """Two curves of batches of so many images, point by point on to the whole batch along straight lines."""
    if len(curves) == 1:
        return curves[0]
    small, large = curves
    if len(small) != len(large):  # operations that hang on what is in a batch
        small = np.interp(np.linspace(0, 1, len(large)), np.linspace(0, 1, len(small)), small)
    return large + (large - small) * (whole - images[1]) / max(1, images[1] - images[0])


def context_of(precision: str, device: torch.device, plugin: Any) -> AbstractContextManager[Any]:
    """What the run computes losses in."""
    found: AbstractContextManager[Any] = plugin.forward_context()
    return torch.autocast(device.type, MIXED[precision]) if precision in MIXED else found


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


def _bytes(values: Sequence[Any], dtype: torch.dtype | None = None) -> int:
    """Of all tensors among the values, if floating point as this type; what they share counts once."""
    found = {}
    for tensor in [value for value in values if isinstance(value, Tensor)]:
        for value in plain_state({"": tensor}).values():  # of a teacher with weights of 8 bits, these and their scales
            storage = value.untyped_storage()
            size = dtype.itemsize if dtype and value.is_floating_point() else value.element_size()
            found[storage.data_ptr()] = storage.nbytes() // value.element_size() * size
    return sum(found.values())


def _numbers(values: Sequence[Any]) -> int:
    """The bytes of the numbers of all tensors among the values, which need no storage."""
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))
