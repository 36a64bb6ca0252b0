"""The tree of a run, to the letter."""

from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from fusionkit.commands import run_summary as summary
from fusionkit.commands.run_summary import _count, _length, _short, print_run


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder, self.text_encoder, self.fusion = (
            nn.Linear(99, 100),
            nn.Linear(2, 1),
            nn.Linear(1, 1, bias=False),
        )
        self.image_projection, self.text_projection = nn.Linear(1, 2), nn.Linear(1, 3)
        self.text_encoder.requires_grad_(False)
        self.image_projection.bias.requires_grad_(False)


def parts_of(dropped=0, missing=(), stages=None, scheduler=None, **splits):
    source = SimpleNamespace(batch_size=16, splits=splits or {"train": "x"})
    data = SimpleNamespace(
        samples=lambda source, role: range(1234 if role == "train" else 5),
        dropped={"coco": dropped},
        sources={"coco": source},
        told_missing=lambda source, role: [f"{role} lacks some"] if role in missing else [],
        steps=7,
    )
    config = {"name": "run", "seed": 3, "output_dir": "out", "balance": {"_target_": "fusionkit.balance.Fixed"}}
    config["evaluation"] = {"roles": ["test"]}
    config |= {"scheduler": scheduler} | ({"stages": stages} if stages else {})
    head = nn.Linear(4, 1)
    return SimpleNamespace(
        model=Model(),
        tasks={"itm": head},
        objectives={"coco": {"itm": 1.0, "mlm": 0.25}},
        datamodule=data,
        config=OmegaConf.create(config),
    )


def trainer_of(**changed):
    values = {
        "world_size": 1,
        "precision": "bf16-mixed",
        "max_epochs": 2,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
    }
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), **values | changed)


def printed(parts, trainer, memory=(), width=200):
    console = Console(soft_wrap=True, width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_run(parts, trainer, memory, console)
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_run_in_lines():
    assert printed(parts_of(), trainer_of()) == [
        "run  seed 3  ->  out",
        "├── model       0.01 M (5 frozen) parameters",
        "│   ├── image_encoder   0.01 M  Linear",
        "│   ├── text_encoder         3 frozen  Linear",
        "│   ├── fusion               1  Linear",
        "│   ├── projections         10 (2 frozen)  Linear",
        "│   └── task itm             5  Linear",
        "├── objectives",
        "│   └── coco: 1,234 images, 16 a step",
        "│       └── itm x 1  mlm x 0.25",
        "├── balance    Fixed",
        "├── steps      2 epochs of 7",
        "└── device     cpu, precision bf16-mixed",
    ]


def test_the_memory_stands_last():
    assert printed(parts_of(), trainer_of(), [("weights", 2**20), ("gradients", 2**19), ("in all", 3 * 2**30)])[
        -4:
    ] == [
        "├── device     cpu, precision bf16-mixed",
        "└── memory     3,072.0 MB a process, batches aside (fusionkit plan measures them)",
        "    ├── weights                                      1.0",
        "    └── gradients                                    0.5",
    ]


def test_no_row_is_cut_off():
    lines = printed(parts_of(dropped=2, missing=("train",)), trainer_of(), width=40)
    assert "2 dropped that held-out splits show, train lacks some" in " ".join(line.strip("│├└─ ") for line in lines)


def test_what_some_runs_have_more(monkeypatch):
    stages = {"warm": {"steps": 5}, "all": {"steps": None}}
    stages = {name: OmegaConf.create(stage) for name, stage in stages.items()}
    told = {}
    monkeypatch.setattr(
        summary, "notes_of", lambda tasks, samples: told.setdefault(tuple(tasks), {"itm": f"of [{len(samples)}]"})
    )
    splits = {"train": "x", "val": "y", "test": "z", "other": "z"}
    parts = parts_of(dropped=2, missing=("train", "test", "val", "other"), stages=stages, **splits)
    parts.tasks["mlm"] = nn.Linear(1, 1)
    lines = printed(parts, trainer_of(world_size=2))
    assert "│   └── coco: 1,234 images, 16 a step, 2 dropped that held-out splits show, train lacks some" in lines
    assert "├── stages     warm (5 steps), then all (to the end)" in lines
    assert "├── steps      2 epochs of 4" in lines
    assert "└── device     cpu, 2 ranks, precision bf16-mixed" in lines
    assert lines[-3:] == [
        "coco, test: test lacks some",
        "coco, val: val lacks some",
        "validation on coco, itm: of [5]",
    ]
    assert list(told) == [("itm", "mlm")]


@pytest.mark.parametrize(
    ("trainer", "scheduler", "words"),
    [
        ({"max_epochs": -1, "max_steps": -1}, None, "no end"),
        ({"max_epochs": None, "max_steps": 1}, None, "1 steps"),
        ({"max_epochs": 0, "max_steps": 0}, None, "no end"),
        ({"max_epochs": 1, "max_steps": 9}, {"max_minutes": 1.5}, "1 epochs of 7, or 9 steps, or 1.5 minutes"),
        ({"accumulate_grad_batches": 2}, {}, "2 epochs of 7, each optimiser step over 2"),
    ],
)
def test_the_length_of_a_run(trainer, scheduler, words):
    assert _length(parts_of(scheduler=scheduler), trainer_of(**trainer)) == words


def test_parameters_are_counted_once_and_shortly():
    layer = nn.Linear(3, 1)
    assert _count([layer, layer]) == "      4"
    assert [_short(number) for number in (9_999, 10_000, 2_345_678)] == ["9999", "0.01 M", "2.35 M"]
