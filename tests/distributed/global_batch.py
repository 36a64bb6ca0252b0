"""Gradients and metrics of W processes against one on the joint batch: every task, teacher and balancer, with uneven counts.

``python -m tests.distributed.global_batch 2 .`` prints the relative L2 difference of each case with two processes, in fp64
and, of the cases that the regex finds, in fp32; a third argument is a json file to write them to.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fusionkit.balance import Balancer, Fixed, Step
from fusionkit.contracts.toys import TEXT_KINDS
from fusionkit.distributed import gather_objects, mean_over_ranks, world_size
from fusionkit.fusion.mixed_cross_attention import SelfAttentionLayers
from fusionkit.model.chunks import in_chunks
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.negatives import AllRanks
from fusionkit.tasks import mrm
from fusionkit.tasks.alignment import Alignment
from fusionkit.tasks.base import Task
from fusionkit.tasks.captioning_shared import SharedCaptioning
from fusionkit.tasks.generation import DecoderState, Generated, GenerationConfig, Greedy, Sampling
from fusionkit.tasks.grounding import Grounding
from fusionkit.tasks.grounding_regions import GroundingRegions
from fusionkit.tasks.itc import ITC
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.mlm import MLM
from fusionkit.tasks.mrm import MRM
from fusionkit.tasks.nlvr2 import JointNLVR2
from fusionkit.tasks.ranking import Ranking
from fusionkit.tasks.region_grounding import RegionGrounding
from fusionkit.training.distillation.student import PAIR, Distillation, FrozenTeacher, Weights
from fusionkit.training.gradient_cache import parts_read
from fusionkit.training.window import MetricWindow
from fusionkit.types import Dims, Regions
from tests.distributed.ranks import Hardest
from tests.toys import (
    CLASSES,
    CONF,
    choices,
    toy_batch,
    toy_dims,
    toy_model,
    toy_no_rows,
    toy_placed_images,
    toy_task,
)

IMAGES, TEXTS = (5, 2, 3, 4), (1, 3, 2, 1)  # of each rank, texts by image
PADS = {"word_index": -1, "targets": -100, "images": -1, "prompt_images": -1}  # what pads a text; else 0
OBJECTIVES = {"mlm": 1.0, "captioning": 0.5, "vqa": 2.0, "grounding": 1.0}


class Case(NamedTuple):
    """What is trained, and on what."""

    tasks: Callable[[Dims], dict[str, Task[Any]]]
    fusion: str | None = None  # None: the first that can feed the tasks
    regions: bool = False
    teacher: bool = False
    features: Sequence[str] | None = None  # with them another checkpoint teaches, logits and these parts' states
    empty: bool = False  # the last rank has images, and no text at all
    several: bool = False  # conversations hold several images
    balance: Callable[[], Balancer] = Fixed
    steps: int = 1  # the gradients are those of the last one
    rows: int | None = None  # the ranks read so many at a time (gradient_cache), and the one process all at once


def every_third_word(self: Any, input_ids: Tensor, word_index: Tensor) -> tuple[Tensor, Tensor]:
    """Masks by the tokens alone: no draw, so that ranks and one process mask alike, and texts have uneven numbers."""
    chosen = (word_index >= 0) & ((input_ids + word_index) % 3 == 0)
    return input_ids.masked_fill(chosen, self.dims.mask_token_id), input_ids.masked_fill(~chosen, -100)


def some_places(draw: Tensor, probability: float, can: Tensor, images: Tensor) -> Tensor:
    """As ``mrm.choose``, by the numbers of the images alone; a third of the places or so."""
    return can & ((torch.arange(can.shape[1]) * images[:, None]) % 3 == 1)


@dataclass(frozen=True)
class Ranked(Sampling):
    """No draw: the samples of an image begin with its likeliest token, the second and so on, and go on by the likeliest."""

    count: int = 1

    def __call__(self, steps: DecoderState, rules: GenerationConfig) -> Generated:
        logits, _ = steps.start()
        place = torch.arange(len(logits)) % self.count
        first = rules.restrict(logits, place[:, None][:, :0]).argsort(dim=1, descending=True).gather(1, place[:, None])
        rest = Greedy()(steps, replace(rules, max_length=rules.max_length - 1))
        return Generated(torch.cat([first, rest.tokens], dim=1), rest.scores)


def single(name: str) -> Callable[[Dims], dict[str, Task[Any]]]:
    """The task of conf/task/NAME.yaml; wrong partners come from all ranks, the most similar ones."""

    def build(dims: Dims) -> dict[str, Task[Any]]:
        task = toy_task(name, dims)
        if hasattr(task, "negatives"):
            task.negatives = Hardest(AllRanks(), k=2)
        if task.draws_texts:
            task.sampling = Ranked(count=task.samples)
        return {name: task}

    return build


def cases() -> dict[str, Case]:
    """Every file of conf/task, plain and with an empty rank, those that listen to a teacher with one; options; every balancer."""
    names = choices("task")
    found = {name: Case(single(name)) for name in names}
    found |= {f"{name}, a rank without texts": Case(single(name), empty=True) for name in names}
    found |= {f"{name}, taught": Case(single(name), teacher=True) for name in ("mlm", "itc", "nlvr2", "entailment")}
    found |= {f"{name}, taught": Case(single(name), teacher=True) for name in ("vqa_decoder",)}
    taught = Case(lambda dims: {"mlm": MLM(dims)}, teacher=True, empty=True)
    mined = partial(Hardest, AllRanks(), k=2)
    found |= {
        "mlm, taught, a rank without texts": taught,
        "itc, queue": Case(lambda dims: {"itc": ITC(dims, queue_size=9)}, steps=2),
        "itc, queue, taught": Case(lambda dims: {"itc": ITC(dims, queue_size=9)}, teacher=True, steps=2),
        "itm, alignment": Case(lambda dims: {"itm": ITM(dims, mined(), alignment=Alignment())}),
        "itm, one text an image": Case(lambda dims: {"itm": ITM(dims, mined(), texts_per_image=1)}),
        "ranking, margin": Case(lambda dims: {"ranking": Ranking(dims, mined(), margin=0.2, hardest=1)}),
        "mrm, classes": Case(lambda dims: {"mrm": MRM(dims, num_classes=CLASSES)}, regions=True),
        "mrm, one class": Case(lambda dims: {"mrm": MRM(dims, num_classes=CLASSES, is_soft=False)}, regions=True),
        "grounding_regions, regions": Case(single("grounding_regions"), regions=True),
        "grounding_regions, ranking": Case(
            lambda dims: {"g": GroundingRegions(dims, loss="ranking", margin=2.0, hard_share=1.1)}, regions=True
        ),
        "grounding, all or nothing": Case(lambda dims: {"grounding": Grounding(dims, giou_all_or_nothing=True)}),
        "region_grounding": Case(lambda dims: {"region_grounding": RegionGrounding(dims)}),
        "nlvr2, joint": Case(lambda dims: {"nlvr2": JointNLVR2(dims)}, "alternating_cross_attention"),
        "captioning_shared": Case(shared_captioning, "mixed_cross_attention"),
        "captioning, a language model": Case(single("captioning"), "prefix"),
        "vqa_open, a language model": Case(single("vqa_open"), "prefix_qformer"),
        "vqa_open, a language model, a rank without texts": Case(single("vqa_open"), "prefix", empty=True),
        "captioning_scst, a language model": Case(single("captioning_scst"), "prefix"),
        "chat, a language model": Case(single("chat"), "prefix"),
        "chat, a language model, a rank without texts": Case(single("chat"), "prefix_qformer", empty=True),
        "itc, a language model, a rank without texts": Case(single("itc"), "prefix", empty=True),
        "vqa_open, a language model that looks": Case(single("vqa_open"), "interleaved"),
        "chat, a language model that looks, a rank without texts": Case(
            single("chat"), "interleaved_resampled", empty=True
        ),
        "chat, several images, a language model": Case(single("chat"), "prefix", several=True),
        "chat, several images, a language model that looks": Case(single("chat"), "interleaved", several=True),
        "itc, a language model that looks, a rank without texts": Case(single("itc"), "interleaved", empty=True),
    }
    for name in names:
        if name not in ("captioning_scst", "likelihood", "mrm", "ranking"):  # which ask nothing of a teacher
            found[f"{name}, distilled, a rank without texts"] = Case(single(name), features=(), empty=True)
    parts = Case(single("itm"), features=("image", "text", "pair"))
    found |= {
        "itc, distilled": Case(single("itc"), features=()),
        "itm, distilled": Case(single("itm"), features=()),
        "itc, queue, distilled": Case(lambda dims: {"itc": ITC(dims, queue_size=9)}, features=(), steps=2),
        "itm, features": parts,
        "itm, features, a rank without texts": parts._replace(empty=True),
    }
    several = Case(lambda dims: {name: toy_task(name, dims) for name in OBJECTIVES}, steps=3)
    found |= {f"in chunks, {name}": case for name, case in in_parts().items()}
    for name in choices("balance"):
        config = OmegaConf.load(CONF / "balance" / f"{name}.yaml")
        if "window" in config:
            config.window = 1
        if "gradients_every_n_steps" in config:
            config.gradients_every_n_steps = 1
        found[f"balance={name}"] = several._replace(balance=partial(instantiate, config))
    return found


def in_parts() -> dict[str, Case]:
    """What ``gradient_cache`` is to leave as it is: contrasts and negatives of all ranks beside other tasks, uneven chunks."""

    def build(*names: str, queue: int = 0) -> Callable[[Dims], dict[str, Task[Any]]]:
        def tasks(dims: Dims) -> dict[str, Task[Any]]:
            made = {name: single(name)(dims)[name] for name in names}
            return made | ({"itc": ITC(dims, queue_size=queue)} if queue else {})

        return tasks

    every = Case(build("itc", "itm", "mlm", "vqa", "grounding"), rows=2)
    return {
        "all": every,
        "one row": every._replace(rows=1),
        "more than a batch": every._replace(rows=64),
        "a rank without texts": every._replace(empty=True),
        "queue, taught": Case(build("itm", "mlm", queue=9), teacher=True, steps=2, rows=2),
        "regions": Case(build("itc", "itm", "mlm"), regions=True, rows=3),
        "bottleneck": Case(build("itc", "mlm"), "bottleneck", rows=3),
    }


def shared_captioning(dims: Dims) -> dict[str, Task[Any]]:
    layers = partial(SelfAttentionLayers, num_layers=2, num_heads=4, dropout=0.0)
    return {
        "captioning_shared": SharedCaptioning(dims, layers),
        "mlm": MLM(dims),
    }  # each has a self-attention of its own


class Run(nn.Module):
    """A model, tasks and a balancer, stepped by plain gradient descent."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        for fusion in [case.fusion] if case.fusion else choices("fusion"):
            self.model = toy_model(fusion, case.regions)
            self.tasks = nn.ModuleDict(case.tasks(toy_dims(self.model)))
            needs = frozenset().union(*(task.needs for task in self.tasks.values()))
            if needs - {"feats"} <= self.model.fusion.provides:
                break
        else:
            raise AssertionError(f"no fusion feeds {list(self.tasks)}")
        self.model.freeze_unused(needs)
        self.window = MetricWindow({"toy": dict.fromkeys(self.tasks, 1.0)}, self.tasks)
        self.balance = case.balance()
        self.balance.start([f"toy/{name}" for name in self.tasks])
        self.distillation = None if case.features is None else self._distillation(case, fusion, dtype)
        self.to(dtype)
        self.rows = case.rows
        self.teacher = None
        if case.teacher:
            teacher = MomentumTeacher(self.model, self.tasks)
            for parameter in teacher.parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            self.__dict__["teacher"] = teacher  # not a part of the module: DDP need not know it

    def _distillation(self, case: Case, fusion: str, dtype: torch.dtype) -> Distillation:
        """By a network of other weights; features of its pairs are learnt through a map."""
        model = toy_model(fusion, case.regions)
        tasks = case.tasks(toy_dims(model))
        for part in (model, *tasks.values()):
            part.to(dtype)
        teacher = FrozenTeacher(model, tasks, {}, lambda batch: batch)
        own, other = self.model.fusion, model.fusion
        widths = {
            part: (own.pooled_size, other.pooled_size) if part == PAIR else (32, 32) for part in case.features or ()
        }
        found = Distillation(teacher, list(tasks), widths, Weights())
        if PAIR in widths:
            found.maps[PAIR] = nn.Linear(*widths[PAIR])
        return found

    def forward(self, batch: dict[str, Any], number: int) -> Tensor:
        with in_chunks(self.rows, parts_read(self.tasks.values())):  # type: ignore[arg-type]
            return self._loss(batch, number)

    def _loss(self, batch: dict[str, Any], number: int) -> Tensor:
        kinds = sorted({task.reads for task in self.tasks.values() if task.encodes})
        encoded = self.model.encode(batch, kinds)
        taught = self.teacher.encode(batch, kinds) if self.teacher else None
        places = partial(some_places, images=batch["image_keys"])
        with patch("fusionkit.tasks.mlm.RandomMasking.__call__", every_third_word), patch.object(mrm, "choose", places):
            found = {
                name: task(self.model, batch, encoded, self.teacher.view(name, taught, 0.4) if self.teacher else None)
                for name, task in self.tasks.items()
            }
        features: dict[str, Tensor] = {}
        if self.distillation is not None:
            found, features = self.distillation(batch, self.model, encoded, found)
        outputs = {f"toy/{name}": output for name, output in found.items()}
        losses = {name: output.loss for name, output in outputs.items()}
        weights = {f"toy/{name}": OBJECTIVES.get(name, 1.0) for name in self.tasks}
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        loss = self.balance(losses, weights, Step(number, 10, is_first=True, parameters=trained)).loss
        loss = sum(features.values(), loss)
        self.window.note(outputs)
        means = mean_over_ranks(torch.stack([*losses.values(), loss])), mean_over_ranks(self.window.rows)
        self.window.count(*(numbers.tolist() for numbers in means))
        return loss


def gradients(
    case: Case, dtype: torch.dtype, batches: Sequence[dict[str, Any]], wrap: Callable[[nn.Module], nn.Module]
) -> tuple[Tensor, dict[str, float]]:
    """The gradient of the last step, flat, and the metrics of all steps, each on a batch of its own."""
    run = Run(case, dtype)
    wrapped = wrap(run)
    trained = [parameter for parameter in run.parameters() if parameter.requires_grad]
    for number, batch in enumerate(batches):
        for parameter in trained:
            if parameter.grad is not None:
                parameter.data -= 0.05 * parameter.grad
        run.zero_grad()
        wrapped(copy.copy(batch), number).backward()
    missing = [name for name, p in run.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, (case, missing)
    return torch.cat([parameter.grad.flatten() for parameter in trained]), run.window.compute()


def rank_batch(case: Case, step: int, number: int, world: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a rank has at a step: a number of images and texts of its own."""
    torch.manual_seed(100 + number + 10 * step)
    images = IMAGES[number]
    batch = toy_batch(images, TEXTS[number])
    texts = images * TEXTS[number]
    batch["image_keys"] += 100 * number + 1000 * step
    batch["captions"] |= {"boxes": torch.rand(texts, 4) * 0.2 + 0.3, "is_image": torch.arange(texts) % 3 == 0}
    if number == 0:
        batch["statements"]["label"][0] = -100  # of an unlabelled one
        batch["expressions"]["boxes"][0] = torch.tensor([0.001, 0.001, 1e-4, 1e-4])  # next to nothing overlaps it
    if case.several:
        batch["conversations"] |= toy_placed_images(batch["conversations"], images, 3)
    if case.empty and number == world - 1:
        batch |= {kind: toy_no_rows(kind) for kind in TEXT_KINDS}
        batch["captions"] |= {"boxes": torch.zeros(0, 4), "is_image": torch.zeros(0, dtype=torch.bool)}
    del batch["regions" if not case.regions else "pixel_values"]
    return cast(batch, dtype)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Every float of a batch in this format."""
    if isinstance(value, Regions):
        return Regions(*(cast(part, dtype) for part in value))
    if isinstance(value, dict):
        return {name: cast(part, dtype) for name, part in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch of one process that has what all ranks have."""
    starts = [sum(len(batch["image_keys"]) for batch in batches[:number]) for number in range(len(batches))]
    whole: dict[str, Any] = {"source": "toy", "image_ids": [i for batch in batches for i in batch["image_ids"]]}
    for name in ("image_keys", "image_sizes", "pixel_values"):
        if name in batches[0]:
            whole[name] = torch.cat([batch[name] for batch in batches])
    if "regions" in batches[0]:
        whole["regions"] = Regions(*map(padded, zip(*(batch["regions"] for batch in batches), strict=True)))
    for kind in TEXT_KINDS:
        rows = [batch[kind] for batch in batches]
        whole[kind] = {}
        for name in rows[0]:
            if isinstance(rows[0][name], list):  # ids, labels of words
                whole[kind][name] = [value for part in rows for value in part[name]]
                continue
            more = starts if name in ("image_index", "other_index") else [0] * len(rows)
            parts = [part[name] + start if start else part[name] for part, start in zip(rows, more, strict=True)]
            if name in ("images", "prompt_images"):  # rows of images, where there is one, and places
                parts = [
                    part + (part[..., :1] >= 0) * torch.tensor([start, 0])
                    for part, start in zip(parts, starts, strict=True)
                ]
            whole[kind][name] = padded(parts, PADS.get(name, 0))
    return whole


def padded(parts: Any, value: int = 0) -> Tensor:
    """Parts (N_r, L_r, ...) one below the other, at the longest length."""
    if parts[0].dim() == 1:
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    filled = [part.new_full((len(part), longest, *part.shape[2:]), value) for part in parts]
    for whole, part in zip(filled, parts, strict=True):
        whole[:, : part.shape[1]] = part
    return torch.cat(filled)


def work(number: int, world: int, folder: str, formats: Mapping[str, Sequence[torch.dtype]]) -> None:
    """One rank; the cases are first done alone, each by one of the ranks. Rank 0 writes the differences."""
    torch.set_num_threads(1)
    known = cases()
    todo = [(name, dtype) for name, dtypes in formats.items() for dtype in dtypes]
    parts = [
        [[rank_batch(known[name], step, r, world, dtype) for r in range(world)] for step in range(known[name].steps)]
        for name, dtype in todo
    ]
    alone = {
        place: gradients(
            known[name]._replace(rows=None), dtype, [joined(step) for step in parts[place]], lambda run: run
        )
        for place, (name, dtype) in enumerate(todo)
        if place % world == number
    }
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=world)
    assert world_size() == world
    expected = {place: gradient for one in gather_objects([alone]) for place, gradient in one.items()}
    found: dict[str, list[float]] = {}
    for place, (name, dtype) in enumerate(todo):
        one, measured = expected[place]
        many, together = gradients(known[name], dtype, [step[number] for step in parts[place]], DistributedDataParallel)
        assert one.norm() > 0, name
        found.setdefault(name, []).append(float((many - one).double().norm() / one.double().norm()))
        assert len(measured) > 2, (name, measured)  # more than the losses
        assert together == pytest.approx(measured, rel=1e-4, abs=1e-5), name
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def differences(world: int, formats: Mapping[str, Sequence[torch.dtype]]) -> dict[str, list[float]]:
    """Relative L2 differences by case, the largest of the ranks, in the number formats that each case is to be tried in.

    The ranks are forked once for all cases.
    """
    with TemporaryDirectory() as folder:
        run_ranks(world, partial(work, world=world, folder=folder, formats=formats))
        found = [torch.load(f"{folder}/{number}.pt") for number in range(world)]
    return {name: [max(numbers) for numbers in zip(*(one[name] for one in found), strict=True)] for name in formats}


def run_module(name: str, *arguments: str) -> None:
    """Run a module that forks its ranks, in a process that has done nothing else."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONF.parent)}
    command = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(command, cwd=CONF.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run_ranks(world: int, job: Callable[[int], None]) -> None:
    """Do a job in as many processes, each given its rank; once one fails, the others are ended.

    They are forked from this process, which must have made no backward pass yet: torch refuses one in its fork.
    """
    ranks = [fork(partial(job, number)) for number in range(world)]
    for _ in ranks:
        _, status = os.wait()
        if status:  # its trace stands above, and the others would wait for it
            for process in ranks:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            raise SystemExit(1)


def fork(job: Callable[[], None]) -> int:
    """Do a job in a process of its own; gives its number."""
    if process := os.fork():
        return process
    try:
        job()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def table(found: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """A line a case."""
    for name, numbers in found.items():
        told = (f"{form} {number:.1e}" for form, number in zip(("fp64", "fp32"), numbers, strict=False))
        yield f"{name:36} {'  '.join(told)}"


if __name__ == "__main__":
    world, twice, file = int(sys.argv[1]), re.compile(sys.argv[2]), sys.argv[3:4]
    (tried,) = sys.argv[4:] or [""]
    names = {name: 2 if twice.search(name) else 1 for name in cases() if re.search(tried, name)}
    found = differences(world, {name: (torch.float64, torch.float32)[:count] for name, count in names.items()})
    print(f"{world} processes against one", *table(found), sep="\n")
    for path in file:
        Path(path).write_text(json.dumps(found))
