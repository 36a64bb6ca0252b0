"""What one of two ranks does in the tests here: ``python ranks.py CASE FOLDER``; each writes what it found."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning import Callback
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.assembly.evaluation_options import EvaluationOptions, Reranking
from fusionkit.balance import DWA, Fixed, GradNorm, PCGrad, Step, Uncertainty
from fusionkit.distributed import (
    from_rank_zero,
    gather,
    gather_objects,
    gather_with_grad,
    join,
    mean_by_name,
    rank,
    world_size,
)
from fusionkit.negatives import AllRanks, Drawn, HardNegatives
from fusionkit.tasks.itm import ITM
from fusionkit.training.recompute import recompute_parts
from fusionkit.training.stages import Stage
from tests.toys import choices, toy_batch, toy_dims, toy_model

ROWS = 6


class Contrast(nn.Module):
    """InfoNCE of this rank's rows against the columns of all ranks; with one rank it is the full batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(5, 3), nn.Linear(4, 3)

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        image, text = F.normalize(self.image(image), dim=1), F.normalize(self.text(text), dim=1)
        place = torch.arange(len(image)) + rank() * len(image)
        i2t = F.cross_entropy(image @ gather_with_grad(text).T / 0.1, place)
        return (i2t + F.cross_entropy(text @ gather_with_grad(image).T / 0.1, place)) / 2


def contrast_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 5, generator=generator), torch.randn(ROWS, 4, generator=generator)


def collectives() -> dict:
    """DDP gradients of the contrast, and the collectives over parts of unequal length."""
    dist.init_process_group("gloo")
    own = slice(rank() * ROWS // 2, (rank() + 1) * ROWS // 2)
    model = DistributedDataParallel(Contrast())
    model(*(part[own] for part in contrast_inputs())).backward()
    ragged = (torch.arange(1.0 + 2 * rank())[:, None] + 10 * rank()).requires_grad_()  # one row, and three
    gathered = gather_with_grad(ragged)
    (gathered * torch.arange(1.0, 5)[:, None]).sum().backward()
    return {
        "gradients": [parameter.grad for parameter in model.parameters()],
        "ragged": gathered.detach(),
        "ragged gradient": ragged.grad,
        "constant": gather(ragged),
        "nothing from rank 0": gather(torch.ones(rank(), 2, dtype=torch.int64)),
        "objects": gather_objects([f"{rank()}{letter}" for letter in "ab"[: rank() + 1]]),
        "from rank zero": from_rank_zero(rank() + 7.0),
        "by name": mean_by_name({"both": rank() + 1, "one": torch.tensor(5.0)} if rank() else {"both": 0}),
        "world": (rank(), world_size()),
    }


def training(folder: Path, artifacts: dict, callbacks: list | None = None, steps: int = 3, **options: Any) -> dict:
    """Three steps of plain DDP, and a validation in which both ranks see the first batch."""
    from lightning import Trainer

    from tests.training.fakes import FakeData, ListLoader, fake_batch, fake_module

    module = fake_module(teacher=True, artifacts=artifacts, **options)
    data = FakeData()
    batches = [fake_batch("coco", 0), *([fake_batch("coco", 1)] if os.environ["RANK"] == "1" else [])]
    data.val_dataloader = lambda: [ListLoader(batches)]  # ragged, too: Lightning pads nothing itself
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=steps, max_epochs=-1, num_sanity_val_steps=1,
        use_distributed_sampler=False, default_root_dir=folder, callbacks=callbacks or [], **quiet,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    scores = trainer.validate(module, datamodule=data, verbose=False)[0]
    found = {"state": module.state_dict(), "scores": scores, "updates": module.teacher.updates, "world": world_size()}
    return found | {"skipped": module.finite.count}


class SpoilOneRank(Callback):
    """One image of rank 1 at step 1, and rank 0's gradient at step 2, once the ranks have shared it, are not finite."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: dict, batch_idx: int) -> None:
        if (trainer.global_step, rank()) == (1, 1):
            batch["coco"]["pixel_values"][2] = float("nan")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if (trainer.global_step, rank()) == (2, 0):
            next(p for p in module.parameters() if p.grad is not None).grad.fill_(float("inf"))


BALANCERS = {
    "fixed": partial(Fixed, gradients_every_n_steps=1),
    "uncertainty": Uncertainty,
    "gradnorm": GradNorm,
    "pcgrad": PCGrad,
    "dwa": partial(DWA, window=1),
}
OBJECTIVES = ("coco/a", "coco/b")


class TwoObjectives(nn.Module):
    """Two regressions on a shared layer that pull against each other, joined by a balancer."""

    def __init__(self, balance: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Linear(5, 3)
        self.tasks = nn.ModuleDict({"a": nn.Linear(3, 1), "b": nn.Linear(3, 1)})
        self.balance = BALANCERS[balance]()
        self.balance.start(OBJECTIVES)

    def forward(self, x: torch.Tensor, number: int) -> torch.Tensor:
        states = self.model(x).tanh()
        losses = {
            "coco/a": (self.tasks["a"](states) - 1).square().mean(),
            "coco/b": self.tasks["b"](states).exp().mean(),
        }
        step = Step(number, total=4, is_first=True, parameters=dict(self.named_parameters()))
        balanced = self.balance(losses, dict(zip(OBJECTIVES, (1.0, 2.0), strict=True)), step)
        self.metrics = {name: float(value) for name, value in balanced.metrics.items()}
        return balanced.loss


def balance_in_steps(module: nn.Module, x: torch.Tensor) -> None:
    """Four steps of gradient descent."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for number in range(4):
        optimizer.zero_grad()
        module(x, number).backward()
        optimizer.step()


def balancing() -> dict:
    """Every balancer under DDP, each rank with its half of the rows."""
    dist.init_process_group("gloo")
    own = slice(rank() * ROWS // 2, (rank() + 1) * ROWS // 2)
    found = {}
    for name in BALANCERS:
        module = TwoObjectives(name)
        balance_in_steps(DistributedDataParallel(module), contrast_inputs()[0][own])
        found[name] = {"state": module.state_dict(), "metrics": module.metrics}
    return found


class Hardest(HardNegatives):
    """Takes the most similar partner: nothing is drawn, so that ranks and one process choose alike."""

    def forward(self, similarity: torch.Tensor, is_excluded: torch.Tensor, listed: torch.Tensor | None = None) -> Drawn:
        best = similarity.masked_fill(is_excluded, -torch.inf).topk(self.k, dim=1).indices
        return Drawn(best, ~is_excluded.gather(1, best), torch.zeros(()))


class Matching(nn.Module):
    """Matching with two negatives a side from the whole joint batch, on the toy model."""

    def __init__(self, fusion: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = toy_model(fusion)
        self.itm = ITM(toy_dims(self.model), Hardest(AllRanks(), k=2))
        self.model.freeze_unused(self.itm.needs)

    def forward(self, batch: dict) -> torch.Tensor:
        return self.itm(self.model, batch, self.model.encode(batch, ["captions"])).loss


def matching_batch(rows: slice) -> dict:
    """Some images of the joint batch with their two captions, cut to the longest, as a loader's ranks have them."""
    torch.manual_seed(1)
    batch = toy_batch(images=4, texts_per_image=2)
    captions = batch["captions"]
    captions["attention_mask"][:4, 6:] = 0  # the first rank's texts are short
    texts = slice(2 * rows.start, 2 * rows.stop)
    length = int(captions["attention_mask"][texts].sum(dim=1).max())
    cut = {name: captions[name][texts, :length] for name in ("input_ids", "attention_mask", "word_index")}
    return {
        "image_keys": batch["image_keys"][rows],
        "pixel_values": batch["pixel_values"][rows],
        "captions": cut | {"image_index": captions["image_index"][texts] - rows.start},
    }


def matching(is_anew: bool = False) -> dict:
    """DDP gradients of matching, by fusion; ``is_anew`` computes blocks anew in the backward pass."""
    dist.init_process_group("gloo")
    found = {}
    for fusion in choices("fusion"):
        module = Matching(fusion)
        recompute_parts(is_anew, module.model, {})
        ranked = DistributedDataParallel(module)  # named: once it is collected, nothing averages the gradients
        ranked(matching_batch(slice(2 * rank(), 2 * rank() + 2))).backward()
        found[fusion] = {name: parameter.grad for name, parameter in module.named_parameters()}
    return found


def scoring() -> dict:
    """A scorer as a metric, of records that one rank has more of, and then of some that only the other has."""
    from fusionkit.scoring.classification import Entailment
    from fusionkit.training.metrics import ScorerMetric
    from tests.training.test_metrics import answers, samples

    dist.init_process_group("gloo")
    metric, some, found = ScorerMetric(Entailment()), samples(), []
    for owners in ((0, 0, 1, 0, 1, 0), (1,) * 6):
        for sample in some:
            if owners[sample.image_id] == rank():
                metric.update([r for r in answers(some) if r["pair_id"] // 10 == sample.image_id], [sample])
        found.append({name: value.item() for name, value in metric.compute().items()})
        metric.reset()
    return {"scores": found}


def evaluating(folder: Path) -> dict:
    """A whole evaluation, of three batches, with re-ranking; the world is that of tests/inference/test_evaluate.py."""
    from tests.inference.test_evaluate import CPU, FakeData, FakeModel, all_tasks, evaluate_run

    join()
    (folder / "images").mkdir(exist_ok=True)
    options = EvaluationOptions(Reranking(k=4, chunk=3), quiet=True, gallery=False, cache=folder / "cache")
    sources = {"toy": ["itc", "itm", "vqa", "mine"]}
    metrics = evaluate_run(FakeModel(), all_tasks(), FakeData(folder / "images"), sources, folder / "out", CPU, options)
    return {"metrics": metrics, "world": (rank(), world_size())}


if __name__ == "__main__":
    case, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    number = os.environ["RANK"]
    config = {"config": f"lr: {number if case == 'unequal' else 1}"}
    stages = {"heads": Stage(2, ["^tasks"]), "all": Stage(None)}
    cases = {
        "collectives": collectives,
        "balancing": balancing,
        "matching": matching,
        "matching anew": lambda: matching(True),
        "scoring": scoring,
        "evaluating": lambda: evaluating(folder),
        "spoilt": lambda: training(folder, config, [SpoilOneRank()], steps=5),
        "stages": lambda: training(folder, config, stages=stages),
    }
    found = cases.get(case, lambda: training(folder, config))()
    torch.save(found, folder / f"{number}.pt")
