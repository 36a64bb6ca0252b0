"""A small student of another checkpoint through the commands: what is told, what is kept, what goes on exactly."""

import shutil
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.files.tensors import read_tensors
from tests.commands.test_train import SMALL

RUN = [*SMALL, "trainer.max_epochs=1", "evaluation.roles=[test]", "evaluation.checkpoint=last", "scheduler=constant"]
STUDENT = [
    "task=[itc,itm,vqa]",
    "text_encoder.config.hidden_size=16",
    "text_encoder.config.num_attention_heads=2",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, and a run on it that is to teach."""
    folder = tmp_path_factory.mktemp("distillation")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=40"]) == 0
    assert train(folder, "teacher", "task=[itc,itm,vqa,mlm]") == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *RUN, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def taught(world: Path, *more: str, name: str = "teacher") -> list[str]:
    return ["teacher=checkpoint", f"teacher.checkpoint={last(world, name)}", *more]


def last(world: Path, name: str) -> Path:
    return world / name / "checkpoints/last.ckpt"


def test_what_a_student_was_taught_by_is_no_part_of_it(world, capsys):
    assert (
        train(world, "taught", *STUDENT, *taught(world, "teacher.features=[image,text,pair]", "teacher.weight=4")) == 0
    )
    assert "cannot teach" not in capsys.readouterr().out
    state = read_tensors(last(world, "taught"))
    assert state["progress"]["taught_by"]["checkpoint"] == str(last(world, "teacher"))
    assert {name.partition(".")[0] for name in state["state_dict"]} == {"model", "tasks", "distillation"}
    assert run(["export", f"checkpoint={last(world, 'taught')}", f"output={world}/exported"]) == 0
    assert from_pretrained(world / "exported").teacher is None
    assert from_pretrained(last(world, "taught")).teacher is None


def test_a_run_that_was_cut_goes_on_bit_for_bit_and_another_teacher_is_refused(world, capsys):
    shutil.copytree(world / "teacher", world / "other")
    teach = taught(world, "teacher.features=[pair]", name="other")
    few = ["task=[itc,vqa]", "text_encoder.config.hidden_size=16", "text_encoder.config.num_attention_heads=2"]
    assert train(world, "cut", *few, *teach) == 0
    assert train(world, "cut", *few, *teach, "trainer.max_epochs=2", "resume=true") == 0
    assert train(world, "whole", *few, *teach, "trainer.max_epochs=2") == 0
    one, other = (read_tensors(last(world, name))["state_dict"] for name in ("cut", "whole"))
    for name, tensor in other.items():
        assert torch.equal(tensor, one[name]), name
    capsys.readouterr()
    assert train(world, "cut", *few, *taught(world, "teacher.features=[pair]", name="whole"), "resume=true") == 2
    assert "is not what the run was taught by, which was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["teacher=checkpoint"], "teacher.checkpoint is missing"),
        (
            ["T", "teacher.tasks=[grounding]"],
            "cannot teach task.grounding (it has no such task); leave it out of teacher.tasks",
        ),
        (["T", "teacher.tasks=[mrm]"], "teacher.tasks names 'mrm', which the run does not train"),
        (["T", "task=[grounding]"], "cannot teach task.grounding (it has no such task); nothing is left to learn"),
        (["T", "task=[itc]", "teacher.features=[pair]"], "pair cannot be learnt"),
        (["T", "data.image_size=40", "image_encoder.grid_size=5"], "last.ckpt: image_encoder.grid_size squared is 64"),
    ],
)
def test_what_cannot_be_taught_is_one_sentence(world, capsys, options, told):
    line = [option for each in options for option in (taught(world) if each == "T" else [each])]
    assert train(world, "wrong", *line) == 2
    errors = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert not (world / "wrong").exists()


def test_what_is_left_out_is_told(world, capsys):
    assert train(world, "less", *taught(world)) == 0
    assert "cannot teach task.grounding (it has no such task)" in capsys.readouterr().out
    assert run(["data", "make", "shapes", f"root={world}/others", "scenes=12", "seed=9"]) == 0
    line = [*taught(world), "task=[vqa]", f"data.root={world}/others"]
    capsys.readouterr()
    assert train(world, "words", *line) == 2
    assert "cannot teach task.vqa (its" in capsys.readouterr().err
