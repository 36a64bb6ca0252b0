"""The private parts of libraries that fusionkit touches, all of them: a release that moves one is mended here.

``tests/test_internals.py`` tries each with the versions at hand and names the range that it was seen with.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import _muon
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAKE_TENSORS = FakeTensorMode  # torch: tensors that have shapes and no numbers
NEEDS_NUMBERS = DataDependentOutputException  # what a shape that depends on numbers raises among them

DISPATCH_MODE = TorchDispatchMode  # torch: sees each operation within, with its results

DATE = datetime(2024, 7, 26)  # what the templates of Llama 3 write where nobody tells them the date


def lerp_all(ours: Sequence[Tensor], theirs: Sequence[Tensor], weight: float) -> None:
    """torch: move each tensor of ours in place towards theirs by this share of the way, in few kernels."""
    torch._foreach_lerp_(list(ours), list(theirs), weight)


def copy_all(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """torch: copy each of theirs into ours, in few kernels."""
    torch._foreach_copy_(list(ours), list(theirs))


def leaves_of(values: Any) -> list[Any]:
    """torch: what stands in nested lists, tuples and dictionaries, one after the other."""
    return tree_leaves(values)


def uses_metrics(trainer: Any) -> bool:
    """Lightning: whether what is logged at this step goes anywhere."""
    is_used: bool = trainer._logger_connector.should_update_logs
    return is_used


def training_batches(trainer: Any) -> Any:
    """Lightning: the iterable of training batches that the fit loop reads, or None before there is one."""
    return trainer.fit_loop._data_fetcher


def at_each_batch(trainer: Any, check: Callable[[], None]) -> None:
    """Lightning: call this before each training batch is asked for, when all of the one before is done, logged and validated.

    Its own handling of signals, and what it tells the ranks of them at each batch, is left out.
    """
    loop = trainer.fit_loop.epoch_loop
    advance = loop.advance

    def advance_checked(data_fetcher: Any) -> None:
        check()
        advance(data_fetcher)

    loop.advance = advance_checked
    loop._broadcast_sigterm_tensor = lambda: None
    trainer._signal_connector.register_signal_handlers = lambda: None


def keep_buckets(trainer: Any) -> None:
    """Lightning, torch: let DDP on CPUs sum gradients in one order at each step, so that a run that goes on is bit-equal.

    After its first step DDP lays gradients into other buckets, unless it looks for unused parameters; and a ring of more than two
    ranks sums a number in an order that depends on its place. On two it does not, and on GPUs steps are not bit-equal anyway.
    """
    options = getattr(trainer.strategy, "_ddp_kwargs", None)
    if options is not None and trainer.world_size > 2 and trainer.strategy.root_device.type == "cpu":
        options.setdefault("find_unused_parameters", True)


def uses_multiprocessing(trainer: Any) -> bool:
    """Lightning: whether the strategy hands a run to processes of Python's multiprocessing, and starts none by a command."""
    return getattr(trainer.strategy, "_start_method", "popen") != "popen"


def own_timeout(trainer: Any) -> float | None:
    """Lightning: the seconds that a strategy of the user's own waits in a collective; None where it says nothing of them."""
    own = getattr(trainer.strategy, "_timeout", None)
    return None if own in (None, default_pg_timeout) else own.total_seconds()


def set_timeout(trainer: Any, seconds: float) -> None:
    """Lightning: how long a rank waits in a collective before it fails, where the strategy has ranks."""
    if hasattr(trainer.strategy, "_timeout"):
        trainer.strategy._timeout = timedelta(seconds=seconds)


def forget_sharding(module: Any) -> None:
    """torch: take from a module, and all within, what ``fully_shard`` made of them; their parameters are left as they are."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            state = part._get_fsdp_state()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            part.__class__ = type(part).__mro__[2]
        for name in list(vars(part)):
            if "__composable_api" in name or name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                del vars(part)[name]
        for hooks in (part._state_dict_pre_hooks, part._load_state_dict_pre_hooks, part._load_state_dict_post_hooks):
            for number, hook in list(hooks.items()):
                if getattr(hook, "hook", hook).__module__.startswith("torch.distributed.fsdp"):
                    del hooks[number]


def is_between_steps(trainer: Any) -> bool:
    """Lightning: whether no batch that is done waits for others of its optimiser step."""
    done: int = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return done % int(trainer.accumulate_grad_batches) == 0


def log_at_step_made(trainer: Any) -> None:
    """Lightning: let what is logged next stand at the number of steps made.

    It counts apart for its loggers, and takes what a checkpoint of an epoch's end says of that for one step more.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def save_now(checkpoint: Any, trainer: Any) -> None:
    """Lightning: let a ModelCheckpoint save at this moment, where the trainer saves at all (no sanity check, no dry run)."""
    if not checkpoint._should_skip_saving_checkpoint(trainer):
        checkpoint._save_topk_checkpoint(trainer, checkpoint._monitor_candidates(trainer))


def wandb_options(logger: Any) -> dict[str, Any]:
    """Lightning: what a WandbLogger will start its run with; may be changed until then."""
    options: dict[str, Any] = logger._wandb_init
    return options


def wandb_run(logger: Any) -> Any:
    """Lightning: the run of a WandbLogger, or None before it has begun (``experiment`` would begin it)."""
    return logger._experiment


def replace_run(logger: Any, run: Any) -> None:
    """Lightning: let a WandbLogger log to something else from now on."""
    logger._experiment = run


def build_from_config(network: Any, config: Any, **options: Any) -> Any:
    """transformers: a model of this class with random weights, for those that no Auto class lists."""
    return network._from_config(config, **options)


class _OneDay(datetime):
    """Any now is DATE."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return DATE


@contextmanager
def on_one_day() -> Iterator[None]:
    """transformers: a chat template that writes today's date writes DATE within."""
    templates, place = import_module("transformers.utils.chat_template_utils"), "datetime"  # few who are here need it
    setattr(templates, place, _OneDay)
    try:
        yield
    finally:
        setattr(templates, place, datetime)


def with_positions(tower: Any, patches: Tensor) -> Tensor:
    """timm: patches (I, N, D) of a vision transformer with its class token and position embeddings."""
    tokens: Tensor = tower._pos_embed(patches)
    return tokens


@contextmanager
def newton_schulz_in_fp32() -> Iterator[None]:
    """torch's Muon orthogonalises in fp32 within, where it does so in bf16."""
    place = "_zeropower_via_newtonschulz"
    original = getattr(_muon, place)
    setattr(_muon, place, _newton_schulz)
    try:
        yield
    finally:
        setattr(_muon, place, original)


@contextmanager
def newton_schulz_of_whole_matrices() -> Iterator[None]:
    """torch's Muon orthogonalises matrices that a strategy has split as whole ones within, which each rank puts together."""
    place = "_zeropower_via_newtonschulz"
    original = getattr(_muon, place)

    def of_whole(grad: Tensor, *options: Any) -> Tensor:
        whole = grad.full_tensor() if isinstance(grad, DTensor) else grad
        found: Tensor = original(whole, *options)
        if isinstance(grad, DTensor):
            return distribute_tensor(found, grad.device_mesh, grad.placements, src_data_rank=None)
        return found

    setattr(_muon, place, of_whole)
    try:
        yield
    finally:
        setattr(_muon, place, original)


def _newton_schulz(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """torch.optim._muon's iteration of a matrix, in its own precision."""
    a, b, c = coefficients
    is_tall = grad.size(0) > grad.size(1)
    states = grad.T if is_tall else grad
    states = states / states.norm().clamp(min=eps)
    for _ in range(steps):
        gram = states @ states.T
        states = torch.addmm(states, torch.addmm(gram, gram, gram, beta=b, alpha=c), states, beta=a)
    return states.T if is_tall else states


def allow_recompiling(variants: int = 64) -> None:
    """torch.compile: let one piece of code be compiled so often, since all blocks of layers share the code that calls a module.

    Beyond that it would run uncompiled. Its own division of graphs for DDP, which knows no sizes that change, is switched off.
    """
    config = import_module("torch._dynamo").config  # which takes a second to import
    config.recompile_limit = max(config.recompile_limit, variants)
    config.optimize_ddp = False
