"""Steps of split weights (trainer=fsdp) beside DDP's, each on two processes of the CPU: run by test_sharding.py.

python -m tests.distributed.split_steps FOLDER: each rank writes what it found into FOLDER.
"""

import copy
import json
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from fusionkit.checkpoints.match import whole
from fusionkit.distributed import rank
from fusionkit.training.processes.sharding import average_whole, gather_all, make_whole, shard, split_all
from fusionkit.training.recompute import recompute_parts
from tests.distributed.global_batch import Case, Run, cases, rank_batch, run_ranks, single

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


if __name__ == "__main__":
    run_ranks(2, partial(compare, folder=Path(sys.argv[1])))
