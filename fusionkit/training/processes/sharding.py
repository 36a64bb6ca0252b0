"""Weights split among the processes (FSDP2): each holds a part of every tensor, and gathers whole ones while it needs them."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from fusionkit.checkpoints.save import ADVICE
from fusionkit.distributed import mean_over_ranks
from fusionkit.encoders.recompute import blocks_of, public_methods
from fusionkit.encoders.tower import kept_in
from fusionkit.errors import ConfigError, suggest
from fusionkit.internals import forget_sharding
from fusionkit.training.processes.split_files import set_apart
from fusionkit.training.processes.split_state import change_tensors, kept, split_as, split_state

if TYPE_CHECKING:
    from fusionkit.training.module import TrainingModule

PARTS = ("image_encoder", "text_encoder", "fusion", "task")
WHOLE, SPLIT = "whole", "split"  # how checkpoints are saved
GATHERED = "gathered_methods"  # of a block, those that are its own for the sake of the hooks


class FullySharded(ModelParallelStrategy):
    """Lightning's strategy over one row of processes, whose checkpoints any other strategy reads, and which reads theirs.

    ``whole``  parts (``PARTS``) whose blocks are not gathered one by one, but with the rest for the whole of a step.
    ``save``   "whole": weights and the optimiser's state are put together on rank 0, tensor by tensor, in DDP's file.
               "split": each rank writes its parts into a file beside the checkpoint, and none holds the whole.
    """

    def __init__(self, whole: Sequence[str] = (), save: str = WHOLE) -> None:
        super().__init__(save_distributed_checkpoint=False)
        if save not in (WHOLE, SPLIT):
            raise ConfigError(f"trainer.strategy.save is '{save}'; {suggest(str(save), (WHOLE, SPLIT))}")
        self.save = save
        self.whole = (whole,) if isinstance(whole, str) else tuple(whole)
        for name in self.whole:
            if name not in PARTS:
                raise ConfigError(f"trainer.strategy.whole is '{name}'; {suggest(str(name), PARTS)}")

    def setup_environment(self) -> None:
        """All processes are of one row."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning reads a checkpoint as it does under DDP."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights on rank 0, and none on others; where they are saved split, this rank's parts."""
        assert self.lightning_module is not None
        return self._saved(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The optimiser's state, as it numbers its parameters, put together as the weights are."""
        return self._saved(getattr(optimizer, "optimizer", optimizer).state_dict())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write it on rank 0, once all ranks have written their parts."""
        if self.save == SPLIT:
            checkpoint = set_apart(checkpoint, Path(self.broadcast(filepath)).parent, ADVICE)
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The file, as other strategies read it."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's part of each weight."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: split_as(own.get(name), tensor) for name, tensor in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's part of what the optimiser knows of each weight."""
        states = [
            split_state(optimizer, state)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    def _saved(self, state: dict[str, Any]) -> dict[str, Any]:
        if self.save == SPLIT:
            return state
        found: dict[str, Any] = change_tensors(state, lambda x: kept(x, self.is_global_zero))
        return found if self.is_global_zero else {}


def shard(module: "TrainingModule", mesh: Any, precision: str, whole_parts: Iterable[str] = ()) -> None:
    """Split all weights of a module among the processes of a mesh, those of each block of layers as one group.

    A block's are whole while it is called, forwards and backwards; the rest, the root's group, is whole within each call of the
    module. Numbers without a dimension cannot be split: each rank has them, and ``average_whole`` averages their gradients.
    """
    start_alike(module, mesh.device_type)
    is_mixed = precision == "bf16-mixed" and mesh.device_type != "cpu"  # whose norms take no numbers of two formats
    bf16 = torch.bfloat16 if is_mixed else None
    inside = MixedPrecisionPolicy(bf16, reduce_dtype=bf16 and torch.float32, cast_forward_inputs=False)
    outside = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in _blocks(module, set(whole_parts)):
        _show_written(block)
        methods = {part: list(public_methods(type(part))) for part in block.modules()}
        policy = outside if any(isinstance(part, _BatchNorm) for part in block.modules()) else inside
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=_scalars(block))
        block.register_forward_hook(_output_of)
        _gather_for(block, methods)
    fully_shard(module, mesh=mesh, mp_policy=outside, reshard_after_forward=False, ignored_params=_scalars(module))


def gather_all(module: "TrainingModule") -> None:
    """Put the weights together until ``split_all``, a teacher's apart: ranks may then call what they like, as often as they like.

    What a task derives in between, as GradCAM does, leaves them together.
    """
    taught = set() if module.teacher is None else set(module.teacher.modules())
    parts = [part for part in _sharded(module) if part not in taught]
    if parts:
        module(lambda: None)  # the root begins, and finds the others
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.set_reshard_after_backward(False, recurse=False)
        part.unshard()
    share_buffers(module)


def share_buffers(module: nn.Module) -> None:
    """Take over the buffers of rank 0, statistics of batch norms above all, as DDP does before each step and validation."""
    if not is_sharded(module):
        return
    alike: dict[torch.dtype, list[Tensor]] = {}
    for buffer in module.buffers():
        alike.setdefault(buffer.dtype, []).append(buffer)
    for buffers in alike.values():
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        dist.broadcast(flat, 0)
        if not dist.get_rank():
            continue
        for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(values.view_as(buffer))


def split_all(module: nn.Module) -> None:
    """Give up what the other ranks hold."""
    for part in _sharded(module):
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.set_reshard_after_backward(True, recurse=False)
        part.reshard()


def make_whole(module: nn.Module) -> None:
    """Put all weights together for good on rank 0, where the module is then a plain one; every rank calls it."""
    if not is_sharded(module):
        return
    split_all(module)
    is_kept = not dist.get_rank()
    tensors = {id(p): kept(p.detach(), is_kept) for p in module.parameters()}
    if not is_kept:
        return
    split = [(part, name, p) for part in module.modules() for name, p in part.named_parameters(recurse=False)]
    plain = {id(p): nn.Parameter(tensors[id(p)].to(p.device), requires_grad=p.requires_grad) for _, _, p in split}
    for part in module.modules():
        for name in dict.fromkeys(vars(part).pop(GATHERED, ())):
            delattr(part, name)
    forget_sharding(module)
    for part, name, parameter in split:
        if isinstance(parameter, DTensor):
            setattr(part, name, plain[id(parameter)])


def average_whole(parameters: Iterable[Tensor]) -> None:
    """Of what each rank has whole, beside what is split, average the gradients over the ranks."""
    parameters = list(parameters)
    if any(isinstance(p, DTensor) for p in parameters):
        grads = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
        if grads:
            means = mean_over_ranks(torch.cat([grad.flatten() for grad in grads]))
            for grad, mean in zip(grads, means.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))


def start_alike(module: nn.Module, device: str) -> None:
    """Let all ranks begin with the weights and buffers of rank 0, as DDP does; rows of weights that are split stand together."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    for tensor in (*module.parameters(), *module.buffers()):
        there = tensor.detach().to(device)
        dist.broadcast(there, 0)
        tensor.data.copy_(there)


def _blocks(module: "TrainingModule", whole_parts: set[str]) -> list[nn.Module]:
    """The blocks of layers of all parts, student's and teacher's, that share no weight with anything outside."""
    models: list[nn.Module] = [module.model]
    if module.teacher is not None:
        models.append(module.teacher.model)
    parts: list[nn.Module] = [] if "task" in whole_parts else list(module.tasks.values())
    for model in models:
        parts += [model.get_submodule(name) for name in PARTS[:3] if name not in whole_parts]
    found = list(dict.fromkeys(block for part in parts for block in blocks_of(part)))
    within = {id(part) for block in found for part in block.modules()}
    holders = Counter(id(p) for block in found for p in block.parameters())
    holders.update(id(p) for part in module.modules() if id(part) not in within for p in part.parameters(recurse=False))
    return [block for block in found if all(holders[id(p)] == 1 for p in block.parameters())]


class _Found(NamedTuple):
    """What a block gives, and what it has written into a cache: backwards, the hooks wait for gradients of either."""

    output: Any
    written: list[Tensor]


def _output_of(block: nn.Module, given: Any, found: Any) -> Any:
    return found.output if isinstance(found, _Found) else found


def _show_written(block: Any) -> None:
    """Let the hooks of a block see what a call writes into a cache, from where gradients come as well."""
    plain = block.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        given = (*args, *kwargs.values())
        before = kept_in(given)
        output = plain(*args, **kwargs)
        written = [each for each in kept_in(given) if not any(each is other for other in before)]
        return _Found(output, written) if written else output

    block.forward = forward
    vars(block)[GATHERED] = ["forward"]


def _gather_for(block: Any, methods: Mapping[nn.Module, Sequence[str]]) -> None:
    """Let a block be whole within all that may be called of it and of what it consists of, as ``project`` of its attention is.

    The library's hooks run where the block itself is called. What is called within such a call finds it whole.
    """
    holder, weight = next(
        (part, name) for part in methods for name, p in part.named_parameters(recurse=False) if p.dim()
    )

    def gathering(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    def entered(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if isinstance(getattr(holder, weight), DTensor):
                return block.gathering(method, *args, **kwargs)
            return method(*args, **kwargs)

        return call

    block.gathering = gathering
    register_fsdp_forward_method(block, "gathering")
    vars(block)[GATHERED].append("gathering")
    for part, names in methods.items():
        names = [name for name in names if part is not block or name != "forward"]
        for name in names:
            setattr(part, name, entered(getattr(part, name)))
        vars(part)[GATHERED] = vars(part).get(GATHERED, []) + names


def _scalars(module: nn.Module) -> set[nn.Parameter]:
    return {p for p in module.parameters() if not p.dim()}


def _sharded(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def is_sharded(module: nn.Module) -> bool:
    """Whether its weights are split."""
    return isinstance(module, FSDPModule)
