"""Frozen weights beside the checkpoints: kept once, checked when they are read, and never looked for elsewhere."""

import shutil
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.frozen import KEY, FrozenWeights, content_hash, with_frozen
from fusionkit.checkpoints.load import read_checkpoint
from fusionkit.checkpoints.save import WholeCheckpoints
from fusionkit.errors import ConfigError, DataError
from fusionkit.files.tensors import read_tensors, save_tensors
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.training.callbacks import LastCheckpoint
from fusionkit.training.stages import Stage
from tests.training.fakes import FakeData, fake_module
from tests.training.test_module import Interrupt, fit

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b.scale": torch.tensor(2.0), "c.weight": torch.ones(3)}
ARTIFACTS = {"config": "seed: 1", "text_encoder": "{}", "answers": None, "tokenizer": None}


def content(**changes: torch.Tensor) -> dict:
    return {"state_dict": {**STATE, **changes}, KEY: ["a.weight", "b.scale"], "fusionkit": ARTIFACTS}


def written(folder: Path, name: str = "last.ckpt", **changes: torch.Tensor) -> Path:
    WholeCheckpoints().save_checkpoint(content(**changes), folder / name)
    return folder / name


def frozen_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("frozen-*.pt"))


def test_a_checkpoint_is_read_back_whole_and_holds_the_rest(tmp_path):
    given, writer = content(), WholeCheckpoints()
    writer.save_checkpoint(given, tmp_path / "last.ckpt")
    assert given["state_dict"].keys() == STATE.keys()  # the caller's own stays
    (file,) = frozen_files(tmp_path)
    before, inside = file.stat(), read_tensors(tmp_path / "last.ckpt")
    assert inside["state_dict"].keys() == {"c.weight"}
    assert inside[KEY] == {"file": file.name, "hash": file.stem.removeprefix("frozen-")}
    writer.save_checkpoint(content(**{"c.weight": torch.zeros(3)}), tmp_path / "best.ckpt")
    written(tmp_path, "other.ckpt")  # another process
    assert frozen_files(tmp_path) == [file]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)  # not written again
    for found in (read_checkpoint(tmp_path / "last.ckpt"), writer.load_checkpoint(tmp_path / "last.ckpt")):
        assert KEY not in found
        assert all(torch.equal(found["state_dict"][name], tensor) for name, tensor in STATE.items())
    assert not read_checkpoint(tmp_path / "best.ckpt")["state_dict"]["c.weight"].any()


def test_what_has_changed_after_all_is_another_file(tmp_path):
    first, second = written(tmp_path), written(tmp_path, "best.ckpt", **{"b.scale": torch.tensor(3.0)})
    assert len(frozen_files(tmp_path)) == 2
    assert read_checkpoint(first)["state_dict"]["b.scale"] == 2
    assert read_checkpoint(second)["state_dict"]["b.scale"] == 3


@pytest.mark.parametrize("is_same_run", [True, False])
def test_a_file_that_is_gone_or_damaged_is_written_anew(tmp_path, is_same_run):
    writer = WholeCheckpoints()
    writer.save_checkpoint(content(), tmp_path / "last.ckpt")
    (file,) = frozen_files(tmp_path)
    file.unlink() if is_same_run else file.write_bytes(file.read_bytes()[:-40])
    (writer if is_same_run else WholeCheckpoints()).save_checkpoint(content(), tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["state_dict"].keys() == STATE.keys()


def test_without_its_file_a_checkpoint_says_what_to_copy(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(written(tmp_path), tmp_path / "elsewhere"))
    (file,) = frozen_files(tmp_path)
    with pytest.raises(
        DataError, match=rf"elsewhere/last.ckpt has its frozen weights in .*{file.name}.*; copy it from"
    ):
        read_checkpoint(moved)
    shutil.copy(file, moved.parent)
    assert read_checkpoint(moved)["state_dict"].keys() == STATE.keys()


def test_another_file_in_its_place_is_refused(tmp_path):
    path = written(tmp_path)
    (file,) = frozen_files(tmp_path)
    for other in (
        {**STATE, "a.weight": STATE["a.weight"] + 1},
        {"a.weight": STATE["a.weight"].view(3, 2), "b.scale": STATE["b.scale"]},
        {"a.weight": STATE["a.weight"].to(torch.float64), "b.scale": STATE["b.scale"]},
        {"a.weigth": STATE["a.weight"], "b.scale": STATE["b.scale"]},
        {"a.weight": STATE["a.weight"].to_sparse(), "b.scale": STATE["b.scale"]},
        {"a.weight": 1},
        [1],
    ):
        save_tensors(other, file)
        with pytest.raises(DataError, match=r"frozen-.*.pt does not hold the frozen weights of checkpoint .*last.ckpt"):
            read_checkpoint(path)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"frozen-.*.pt cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["../frozen.pt", "/etc/passwd", "a/b.pt", "..", ".hidden", "", None, 5, ["x"]])
def test_a_checkpoint_leads_to_no_file_elsewhere(tmp_path, name):
    (tmp_path / "inner").mkdir()
    save_tensors(STATE, tmp_path / "frozen.pt")
    foreign = content() | {KEY: {"file": name, "hash": content_hash(STATE)}}
    save_tensors(foreign, tmp_path / "inner/foreign.ckpt")
    with pytest.raises(
        DataError, match=r"foreign.ckpt is damaged: its frozen weights are in .*, which is no name of a"
    ):
        read_checkpoint(tmp_path / "inner/foreign.ckpt")


@pytest.mark.parametrize("kept", [None, 5, "x", ["a.weight"], []])
def test_what_names_no_file_has_all_its_weights(kept):
    assert with_frozen({"state_dict": STATE, KEY: kept}, Path("x.ckpt"))["state_dict"] is STATE
    assert with_frozen([1], Path("x.ckpt")) == [1]
    assert with_frozen({"state_dict": 3, KEY: {}}, Path("x.ckpt"))["state_dict"] == 3


def test_where_nothing_is_frozen_no_file_is_written(tmp_path):
    given = {"state_dict": STATE, KEY: []}
    assert FrozenWeights().set_apart(given, tmp_path, "") is given
    assert not frozen_files(tmp_path)


def module(**options):
    return fake_module(teacher=MomentumTeacher, freeze_encoder=True, frozen_weights="beside", **options)


def test_a_run_goes_on_bit_for_bit_and_its_teachers_names_are_apart_too(tmp_path):
    options = {"max_epochs": 4, "limit_val_batches": 0, "enable_checkpointing": True}
    run = lambda module, place, *more, **also: fit(  # noqa: E731
        tmp_path,
        module,
        FakeData(batches=3),
        callbacks=[LastCheckpoint(str(tmp_path / place)), *more],
        plugins=[WholeCheckpoints()],
        **options,
        **also,
    )
    whole, resumed = module(artifacts=ARTIFACTS), module(artifacts=ARTIFACTS)
    run(whole, "whole")
    with pytest.raises(KeyError, match="interrupted"):
        run(module(artifacts=ARTIFACTS), "half", Interrupt(5))
    last = tmp_path / "half/last.ckpt"
    inside = read_tensors(last)["state_dict"]
    assert "tasks.a.head.weight" in inside
    assert "teacher.heads.a.weight" in inside  # it moves
    frozen = {f"{place}image_encoder.0.{kind}" for place in ("model.", "teacher.model.") for kind in ("weight", "bias")}
    assert not frozen & inside.keys()
    assert frozen < read_checkpoint(last)["state_dict"].keys()
    run(resumed, "half", ckpt_path=last)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_a_later_stage_trains_stays_in_the_checkpoint(tmp_path):
    stages = {"heads": Stage(4, ["^tasks"]), "all": Stage(None)}
    staged = fake_module(stages=stages, frozen_weights="beside", artifacts=ARTIFACTS)
    run = fit(tmp_path, staged, max_steps=2, limit_val_batches=0, plugins=[WholeCheckpoints()])
    run.save_checkpoint(tmp_path / "x.ckpt")
    inside = read_tensors(tmp_path / "x.ckpt")["state_dict"]
    assert "model.image_encoder.0.weight" in inside
    assert not staged.model.image_encoder[0].weight.requires_grad  # not yet
    assert "model.projections.weight" not in inside  # no objective trains it


def test_a_word_that_is_none_is_named():
    with pytest.raises(ConfigError, match=r"frozen_weights is 'besides'; did you mean 'beside'"):
        fake_module(frozen_weights="besides")
