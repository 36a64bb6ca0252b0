"""What one of two ranks does in the tests here: ``python ranks.py CASE FOLDER``; each writes what it found."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.distributed import from_rank_zero, gather, gather_objects, gather_with_grad, rank, world_size

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
        "world": (rank(), world_size()),
    }


def training(folder: Path, artifacts: dict) -> dict:
    """Three steps of plain DDP, and a validation in which both ranks see the first batch."""
    from lightning import Trainer

    from tests.training.fakes import FakeData, ListLoader, fake_batch, fake_module

    module = fake_module(teacher=True, artifacts=artifacts)
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
        accelerator="cpu", devices=2, strategy="ddp", max_steps=3, max_epochs=-1, num_sanity_val_steps=1,
        use_distributed_sampler=False, default_root_dir=folder, **quiet,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    scores = trainer.validate(module, datamodule=data, verbose=False)[0]
    return {"state": module.state_dict(), "scores": scores, "updates": module.teacher.updates, "world": world_size()}


if __name__ == "__main__":
    case, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    number = os.environ["RANK"]
    config = {"config": f"lr: {number if case == 'unequal' else 1}"}
    found = collectives() if case == "collectives" else training(folder, config)
    torch.save(found, folder / f"{number}.pt")
