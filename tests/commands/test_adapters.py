"""Adapters through the commands: phases, resume, export with and without them, and a start from what has none."""

import json
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.directory import read_safetensors
from fusionkit.cli.main import run
from fusionkit.files.tensors import read_tensors

TOY = [
    "experiment=llava_tiny",
    "trainer=cpu",
    "trainer.precision=32-true",  # auto measures, and a busy machine may be slower at the one and then at the other
    "logger=csv",
    "text_encoder.config.num_hidden_layers=1",
    "data.answers.min_count=1",
    "data.sources.shapes.batch_size=4",
    "data.sources.shapes.texts_per_image.questions=1",
    "scheduler=constant",  # whatever the number of steps
    "scheduler.warmup_steps=0",
    "trainer.check_val_every_n_epoch=10",
    "task.captioning.max_length=6",
    "evaluation.roles=[test]",
]
PHASES = ["adapters=lora", "stages=language_model", "stages.project.steps=2", "stages.adapt.steps=2"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, and a run of six steps on it, two in each phase."""
    folder = tmp_path_factory.mktemp("adapters")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    assert train(folder, "whole", *PHASES, "trainer.max_steps=6") == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *TOY, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def state(world: Path, name: str) -> dict:
    return read_tensors(world / name / "checkpoints/last.ckpt")["state_dict"]


@pytest.mark.parametrize("step", [1, 3, 5])  # within each phase
def test_a_run_goes_on_in_each_phase_bit_for_bit(step, world):
    name = f"cut{step}"
    assert train(world, name, *PHASES, f"trainer.max_steps={step}") == 0
    assert train(world, name, *PHASES, "trainer.max_steps=6", "resume=true") == 0
    whole, again = state(world, "whole"), state(world, name)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_run_goes_on_with_adapters_of_its_own_share_alone(world, capsys):
    before = state(world, "whole")
    for options, told in (
        (["adapters.rules.text.alpha=64"], "and this run of rank 16 and alpha 64; choose them as there"),
        (["adapters=dora"], "and this run of rank 16 and alpha 32 (decomposed); choose them as there"),
    ):
        capsys.readouterr()
        assert train(world, "whole", *PHASES, *options, "trainer.max_steps=8", "resume=true") == 2
        assert told in capsys.readouterr().err
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(world, "whole").items())


def test_each_phase_trains_what_it_names(world):
    assert train(world, "first", *PHASES, "trainer.max_steps=2") == 0
    assert train(world, "second", *PHASES, "trainer.max_steps=4") == 0
    first, second, last = (state(world, name) for name in ("first", "second", "whole"))
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    moved -= {name for name in moved if "running" in name or "tracked" in name}  # of batch norms, which no stage stops
    assert any(".lora_B." in name for name in moved)
    assert not any(".base_layer." in name or "image_encoder" in name for name in moved)
    assert all(".lora_B." not in name or not first[name].any() for name in first)  # not begun in the first
    assert any(".base_layer." in name for name in second if not torch.equal(second[name], last[name]))


def test_an_export_has_them_in_its_weights_and_says_the_same(world, capsys):
    checkpoint = f"checkpoint={world}/whole/checkpoints/last.ckpt"
    assert run(["export", checkpoint, f"output={world}/merged"]) == 0
    assert run(["export", checkpoint, f"output={world}/apart", "merge_adapters=false"]) == 0
    capsys.readouterr()
    assert run(["export", checkpoint, f"output={world}/peft", "layout=peft"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "the folder holds the adapters alone, and nothing of temperature, fusion, image_projection, text_projection"
        in said
    )
    assert (
        "; the weights beside them were trained too, so beside those that the run began with" in said
    )  # in the last phase
    scores = {}
    for name in ("merged", "apart"):
        assert run(["evaluate", f"checkpoint={world}/{name}", f"output_dir={world}/{name}_scores"]) == 0
        scores[name] = json.loads((world / f"{name}_scores/metrics.json").read_text())
    assert scores["merged"] == scores["apart"]
    assert train(world, "on", f"checkpoint={world}/merged", "trainer.max_steps=1") == 0
    assert not any("lora" in name for name in state(world, "on"))
    assert train(world, "again", f"checkpoint={world}/merged", "adapters=dora", "trainer.max_steps=1") == 0
    assert any("lora_magnitude_vector" in name for name in state(world, "again"))
    capsys.readouterr()
    assert train(world, "none", f"checkpoint={world}/apart", "trainer.max_steps=1") == 2
    assert "apart has adapters, and this run none; choose them as there" in capsys.readouterr().err
    assert not (world / "none").exists()


def test_two_processes_go_on_in_each_phase_with_an_average_bit_for_bit(world):
    """In the middle of an epoch, and at its end; the weights themselves and their average."""
    both = [*PHASES, "trainer=ddp_cpu", "ema.decay=0.9", "trainer.limit_val_batches=1", "evaluation.roles=[]"]
    assert train(world, "both", *both, "trainer.max_steps=6") == 0
    for step in (3, 5, 6):  # the epoch has three; one run that is cut twice
        assert train(world, "twice_cut", *both, f"trainer.max_steps={step}", f"resume={step > 3}") == 0
    whole, again = (read_tensors(world / name / "checkpoints/last.ckpt") for name in ("both", "twice_cut"))
    for one, other in (
        (whole["state_dict"], again["state_dict"]),
        (whole["progress"]["average"]["weights"], again["progress"]["average"]["weights"]),
    ):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_frozen_weights_beside_the_checkpoints_are_the_same_run(world, capsys):
    frozen = ["adapters=lora", "++text_encoder.frozen=true", "trainer.max_steps=2"]
    assert train(world, "stored", *frozen) == 0
    assert train(world, "beside", *frozen, "frozen_weights=beside") == 0
    stored, beside = (world / name / "checkpoints/last.ckpt" for name in ("stored", "beside"))
    (file,) = beside.parent.glob("frozen-*.pt")
    saved = stored.stat().st_size - beside.stat().st_size
    assert saved > 0.9 * file.stat().st_size > 1e6  # the text encoder's numbers
    assert (world / "beside/metrics.json").read_text() == (world / "stored/metrics.json").read_text()
    for name in ("stored", "beside"):
        assert run(["export", f"checkpoint={world}/{name}/checkpoints/last.ckpt", f"output={world}/{name}_out"]) == 0
    one, other = (read_safetensors(world / f"{name}_out/model.safetensors") for name in ("stored", "beside"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert train(world, "beside", *frozen[:2], "trainer.max_steps=3", "frozen_weights=beside", "resume=true") == 0
    (world / "moved").mkdir()
    beside.rename(world / "moved/last.ckpt")
    capsys.readouterr()
    assert run(["evaluate", f"checkpoint={world}/moved/last.ckpt"]) == 1
    assert f"has its frozen weights in a file of their own, {file.name}, which is not there" in capsys.readouterr().err


def test_two_processes_train_them(world):
    options = ["trainer=ddp_cpu", "adapters=lora", "++text_encoder.frozen=true", "trainer.max_steps=2"]
    assert train(world, "two", *options) == 0
    found = state(world, "two")
    assert any(tensor.any() for name, tensor in found.items() if ".lora_B." in name)
