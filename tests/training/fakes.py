"""A tiny model, task, teacher and data module: the real contracts, in a few numbers, with dropout."""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from fusionkit.balance import Fixed
from fusionkit.data.sample import Sample
from fusionkit.tasks.base import Task
from fusionkit.training.module import TrainingModule
from fusionkit.training.optim import build_optimizer
from fusionkit.training.schedule import warmup_cosine
from fusionkit.types import Encoded, TaskOutput, Tokens

WIDTH = 4


class FakeModel(nn.Module):
    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.image_encoder = nn.Sequential(nn.Linear(3, WIDTH), nn.Dropout(dropout))
        self.projections = nn.Linear(WIDTH, 2)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.encoded: list[tuple[str, list[str]]] = []

    def encode(self, batch, kinds) -> Encoded:
        self.encoded.append((batch["source"], list(kinds)))
        states = self.image_encoder(batch["pixel_values"])
        return Encoded(Tokens(states[:, None], None, states), None, self.projections(states), {}, {})

    def clamp_temperature(self) -> None:
        self.temperature.data.clamp_(0.001, 0.5)

    def metrics(self) -> dict[str, torch.Tensor]:
        return {"temperature": self.temperature.detach().clone()}

    def freeze_unused(self, needs) -> None:
        if "feats" not in needs:
            self.projections.requires_grad_(False)
            self.temperature.requires_grad_(False)


class FakeTask(Task):
    needs = frozenset({"pooled"})
    reads = "captions"
    uses_teacher = True

    def __init__(self, scorer=None, value: float = 0.0) -> None:
        super().__init__(scorer)
        self.head = nn.Linear(WIDTH, 1)
        self.value = value

    def forward(self, model, batch, encoded, teacher=None) -> TaskOutput:
        logits = self.head(encoded.image.pooled).squeeze(1)
        loss = F.mse_loss(logits, batch["targets"]) + self.value
        return TaskOutput(loss, logits, batch["targets"], {"spread": logits.std().detach()})

    def predict(self, model, batch, encoded) -> list[dict]:
        return [{"image_id": image_id} for image_id in batch["image_ids"]]


class FakeTeacher(nn.Module):
    """Counts; a momentum of .5 on the weights, as the real one."""

    def __init__(self, model) -> None:
        super().__init__()
        self.mean = nn.Parameter(model.image_encoder[0].weight.detach().clone(), requires_grad=False)
        self.updates, self.encoded, self.alphas = 0, 0, []

    def update(self, model, tasks) -> None:
        self.updates += 1
        self.mean.lerp_(model.image_encoder[0].weight.detach(), 0.5)

    def encode(self, batch, kinds) -> str:
        self.encoded += 1
        return "taught"

    def alpha(self, step: int, total_steps: float) -> float:
        return float(step)

    def view(self, task, encoded, alpha):
        self.alphas.append(alpha)
        return encoded


def fake_batch(source: str, number: int, images: int = 4) -> dict:
    """The batch of a number: the same in every process."""
    pixels = torch.rand(images, 3, generator=torch.Generator().manual_seed(number))
    ids = [number * images + row for row in range(images)]
    return {"source": source, "image_ids": ids, "pixel_values": pixels, "targets": pixels.sum(1)}


class FakeLoader:
    """Goes on after the batches that were trained on, which Lightning counts and restores."""

    def __init__(self, source: str, batches: int, data: LightningDataModule) -> None:
        self.source, self.batches, self.data = source, batches, data

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        progress = self.data.trainer.fit_loop.epoch_loop.batch_progress
        first, left = progress.total.processed, self.batches - progress.current.processed % self.batches
        return (fake_batch(self.source, number) for number in range(first, first + left))


class ListLoader:
    """The given batches (a plain list would be taken for a list of loaders)."""

    def __init__(self, batches: list[dict]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class FakeData(LightningDataModule):
    def __init__(self, sources=("coco",), batches: int = 6) -> None:
        super().__init__()
        self.sources, self.batches = sources, batches

    def samples(self, source, role) -> list[Sample]:
        assert role == "val"
        return [Sample(image_id, Path("x.jpg"), {}) for image_id in range(8)]

    def train_dataloader(self):
        return CombinedLoader({s: FakeLoader(s, self.batches, self) for s in self.sources}, "min_size")

    def val_dataloader(self):
        return [ListLoader([fake_batch(source, n) for n in range(2)]) for source in self.sources]

    def skipped(self) -> dict[str, int]:
        return dict.fromkeys(self.sources, 0)

    def seconds_waited(self) -> float:
        return 0.0


def count_records(records, samples) -> dict[str, float]:
    """A scorer: the percentage of the samples that have a record, and how many records there are."""
    return {"coverage": 100 * len(records) / len(samples), "records": float(len(records))}


def fake_module(
    objectives=None,
    *,
    teacher=False,
    optimizer=None,
    scheduler=warmup_cosine,
    tasks=None,
    balance=None,
    with_norm: bool = False,
    freeze_encoder: bool = False,
    **options,
) -> TrainingModule:
    """``teacher`` may be what builds one from model and tasks."""
    torch.manual_seed(0)
    model = FakeModel()
    model.image_encoder.requires_grad_(not freeze_encoder)
    if with_norm:
        model.image_encoder.append(nn.BatchNorm1d(WIDTH))
    tasks = tasks or {"a": FakeTask(count_records)}
    build_teacher = teacher if callable(teacher) else lambda model, tasks: FakeTeacher(model) if teacher else None
    return TrainingModule(
        model,
        tasks,
        objectives or {"coco": {"a": 1.0}},
        balance or Fixed(),
        optimizer or partial(build_optimizer, lr=0.05),
        partial(scheduler, warmup_steps=2) if scheduler else None,
        build_teacher(model, tasks),
        **options,
    )
