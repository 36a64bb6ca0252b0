"""Checkpoints on the disk, and which of them a run goes on from."""

import errno
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from fusionkit.checkpoints.save import WholeCheckpoints
from fusionkit.commands.run_folder import last_checkpoint, prepare_folder, resume_from
from fusionkit.errors import DataError
from fusionkit.files import tensors as tensor_files
from fusionkit.files.tensors import read_tensors, save_tensors
from fusionkit.training.callbacks import BestCheckpoint, LastCheckpoint, StopAfter
from tests.training.fakes import fake_module
from tests.training.test_module import fit


def config(folder: Path, **changes) -> DictConfig:
    return OmegaConf.create({"output_dir": str(folder), "overwrite": False, "resume": True, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of three checkpoints: the best of step 6, the one before the last of step 4."""
    for name, step in (("best", 6), ("previous", 4), ("last", 8)):
        content = {"global_step": step, "fusionkit": {}, "state_dict": {"x": torch.zeros(9)}}
        save_tensors(content, tmp_path / "checkpoints" / f"{name}.ckpt")
    return tmp_path


def damage(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / "checkpoints" / f"{name}.ckpt"
        path.write_bytes(path.read_bytes()[:-1])


def test_last_keeps_the_one_before_and_best_does_not(tmp_path):
    folder = tmp_path / "checkpoints"
    callbacks = [BestCheckpoint(str(folder), "val/mean"), LastCheckpoint(str(folder)), StopAfter()]
    options = {"enable_checkpointing": True, "max_epochs": 1, "val_check_interval": 2, "plugins": [WholeCheckpoints()]}
    fit(tmp_path, fake_module(), callbacks=callbacks, **options)
    steps = {path.name: read_tensors(path)["global_step"] for path in folder.iterdir()}
    assert steps == {"best.ckpt": 2, "previous.ckpt": 4, "last.ckpt": 6}


def test_a_run_goes_on_from_the_newest_that_reads(folder):
    assert last_checkpoint(config(folder)).name == "last.ckpt"
    damage(folder, "last")
    assert last_checkpoint(config(folder)).name == "best.ckpt"
    damage(folder, "best")
    assert resume_from(config(folder)).name == "previous.ckpt"
    assert resume_from(config(folder, resume=False)) is None
    damage(folder, "previous")
    with pytest.raises(DataError, match=r"last\.ckpt cannot be read: it is truncated"):
        last_checkpoint(config(folder))
    (folder / "checkpoints" / "last.ckpt").unlink()
    with pytest.raises(DataError, match=r"previous\.ckpt cannot be read: it is truncated"):
        last_checkpoint(config(folder))


def test_the_one_before_is_gone_on_from_where_the_last_is_gone(folder):
    for name, found in (("last", "best"), ("best", "previous")):
        (folder / "checkpoints" / f"{name}.ckpt").unlink()
        assert last_checkpoint(config(folder)).name == f"{found}.ckpt"
    (folder / "checkpoints" / "previous.ckpt").unlink()
    assert last_checkpoint(config(folder)) is None


def test_of_two_of_one_step_the_one_before_the_last_counts(folder):
    best, previous = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "previous"))
    best.write_bytes(previous.read_bytes())
    damage(folder, "last")
    assert last_checkpoint(config(folder)) == previous


def test_a_checkpoint_without_a_hash_is_gone_on_from(folder):
    content = read_tensors(folder / "checkpoints" / "last.ckpt")
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    assert last_checkpoint(config(folder)).name == "last.ckpt"


def test_a_new_start_removes_what_a_killed_one_left(folder):
    (folder / "checkpoints" / ".fusionkit-0.tmp").touch()
    prepare_folder(config(folder))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]


def test_a_full_disk_says_how_to_go_on(tmp_path, monkeypatch):
    io, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    io.save_checkpoint({"global_step": 1}, path)

    def fail(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files._Hashed, "_put", fail)
    with pytest.raises(
        DataError, match="the one before is whole; make room, then give the same command with resume=auto"
    ):
        io.save_checkpoint({"global_step": 2}, path)
    assert io.load_checkpoint(path)["global_step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_not_loaded(folder):
    damage(folder, "last")
    with pytest.raises(DataError, match="cannot be read"):
        WholeCheckpoints().load_checkpoint(folder / "checkpoints" / "last.ckpt")
