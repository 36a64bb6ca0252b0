"""Checkpoints whose tensors are split among files beside them: put together when they are read, whatever wrote them."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from fusionkit.checkpoints.load import read_checkpoint
from fusionkit.checkpoints.save import WholeCheckpoints
from fusionkit.checkpoints.split import KEY, change_leaves, is_readable, remove_unnamed, save_part
from fusionkit.commands.run_folder import last_checkpoint, prepare_folder
from fusionkit.errors import DataError
from fusionkit.files.tensors import glance, read_tensors, save_tensors

ARTIFACTS = {"config": "seed: 1", "text_encoder": "{}", "answers": None, "tokenizer": None}
WEIGHTS = {
    "b.weight": torch.arange(15.0).view(5, 3),  # 5 rows: no number of files has as many in each
    "a.scale": torch.tensor(2.0),
    "c.one": torch.ones(1, 2),
    "d.half": torch.arange(7.0).to(torch.bfloat16),
}


def content(step: int = 8, shift: float = 0.0) -> dict:
    """A whole checkpoint, its tensors moved by a number."""
    weights = {name: tensor + shift for name, tensor in WEIGHTS.items()}
    moments = {number: {"step": torch.tensor(3.0), "exp_avg": t * 2} for number, t in enumerate(weights.values())}
    state = {"state": moments, "param_groups": [{"params": [0, 1, 2, 3], "betas": (0.9, 0.98)}]}
    return {
        "global_step": step,
        "fusionkit": ARTIFACTS,
        "state_dict": weights,
        "optimizer_states": [{"parts": [state]}],
    }


def written(path: Path, ranks: int = 2, dim: int = 0, **options) -> Path:
    """A checkpoint as so many processes write it."""
    given = content(**options)
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    table = {}

    def take(place, value):
        if not isinstance(value, Tensor) or value.dim() <= dim:
            return value
        chunks = list(value.chunk(ranks, dim))
        chunks += [value.narrow(dim, 0, 0)] * (ranks - len(chunks))
        for part, chunk in zip(parts, chunks, strict=True):
            part[place] = chunk.clone()
        table[place] = {"shape": list(value.shape), "dim": dim}
        return None

    for key in ("state_dict", "optimizer_states"):
        given[key] = change_leaves(given[key], take, key)
    files = []
    for rank, part in enumerate(parts):
        file, digest, _ = save_part(part, path.parent, f"{given['global_step']}-{rank}of{ranks}", "")
        files.append({"file": file.name, "hash": digest})
    WholeCheckpoints().save_checkpoint({**given, KEY: {"files": files, "tensors": table}}, path)
    return path


def part_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("split-*.pt"))


def assert_same(found: dict, expected: dict) -> None:
    assert list(found["state_dict"]) == list(expected["state_dict"])
    ours, theirs = ({}, {})
    for name, value, into in (("", found, ours), ("", expected, theirs)):
        change_leaves(value, lambda place, leaf, into=into: into.__setitem__(place, leaf), name)
    assert list(ours) == list(theirs)
    for place, leaf in theirs.items():
        if isinstance(leaf, Tensor):
            assert leaf.dtype == ours[place].dtype, place
            assert torch.equal(leaf, ours[place]), place
        else:
            assert leaf == ours[place], place


@pytest.mark.parametrize(("ranks", "dim"), [(1, 0), (2, 0), (3, 0), (4, 0), (7, 0), (2, 1)])
def test_any_number_of_parts_gives_the_whole_in_its_order(tmp_path, ranks, dim):
    path = written(tmp_path / "last.ckpt", ranks, dim)
    assert len(part_files(tmp_path)) == ranks
    inside = read_tensors(path)
    assert inside["state_dict"]["b.weight"] is None
    assert inside["state_dict"]["a.scale"] == 2  # a number without a dimension cannot be split
    assert_same(read_checkpoint(path), content())
    assert_same(WholeCheckpoints().load_checkpoint(path), content())
    assert is_readable(path)


def test_a_part_that_is_missing_is_named_with_what_to_copy(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path = written(tmp_path / "last.ckpt")
    moved = Path(shutil.copy(path, tmp_path / "elsewhere"))
    first, second = part_files(tmp_path)
    sentence = (
        r"elsewhere/last.ckpt has its split weights in files of their own \(2: split-8-\*\), of which {} is not there"
    )
    with pytest.raises(DataError, match=sentence.format(first.name)):
        read_checkpoint(moved)
    shutil.copy(first, moved.parent)
    with pytest.raises(DataError, match=sentence.format(second.name)):
        WholeCheckpoints().load_checkpoint(moved)
    assert not is_readable(moved)
    shutil.copy(second, moved.parent)
    assert_same(read_checkpoint(moved), content())


def test_a_damaged_part_or_that_of_another_checkpoint_is_refused(tmp_path):
    path, other = written(tmp_path / "last.ckpt"), written(tmp_path / "best.ckpt", shift=1.0)
    ours, theirs = ([each["file"] for each in read_tensors(file)[KEY]["files"]] for file in (path, other))
    place = tmp_path / ours[1]
    whole = place.read_bytes()
    for foreign in (tmp_path / theirs[1], tmp_path / ours[0]):
        shutil.copy(foreign, place)
        with pytest.raises(
            DataError, match=rf"{place.name} does not hold the split weights of checkpoint .*last.ckpt \(another"
        ):
            read_checkpoint(path)
        assert not is_readable(path)
    place.write_bytes(whole[:-40])
    with pytest.raises(DataError, match=rf"{place.name} cannot be read"):
        read_checkpoint(path)
    assert not is_readable(path)
    for wrong in ([1], {"state_dict/b.weight": 1}, {"state_dict/b.weight": torch.ones(2, 3).to_sparse()}):
        save_tensors(wrong, place)
        with pytest.raises(DataError, match="does not hold the split weights"):
            read_checkpoint(path)
    place.write_bytes(whole)
    assert_same(read_checkpoint(path), content())


@pytest.mark.parametrize("name", ["../split.pt", "/etc/passwd", "a/b.pt", "..", ".hidden", "", None, 5, ["x"]])
def test_a_checkpoint_leads_to_no_part_elsewhere(tmp_path, name):
    (tmp_path / "inner").mkdir()
    path = written(tmp_path / "inner/last.ckpt")
    inside = read_tensors(path)
    shutil.copy(part_files(path.parent)[1], tmp_path / "split.pt")
    inside[KEY]["files"][1]["file"] = name
    save_tensors(inside, path)
    with pytest.raises(DataError, match=r"last.ckpt is damaged: .* they are in .*, which is no name of a file"):
        read_checkpoint(path)


def forged(kept: dict, how: str) -> object:
    table = kept["tensors"]
    if how == "shape":
        table["state_dict/b.weight"]["shape"] = [3, 5]
    elif how == "order":
        kept["files"].reverse()
        table["state_dict/b.weight"]["dim"] = 1
    elif how == "unknown":
        table["state_dict/d.weight"] = {"shape": [2], "dim": 0}
    elif how == "absent":
        table["state_dict/e"] = {"shape": [2], "dim": 0}
    elif how == "no files":
        kept["files"] = []
    elif how == "no tensors":
        kept["tensors"] = 5
    elif how == "no shape":
        table["state_dict/b.weight"] = {"dim": 0}
    elif how == "nothing":
        return 5
    return kept


@pytest.mark.parametrize(
    "how", ["held", "shape", "order", "unknown", "absent", "no files", "no tensors", "no shape", "nothing"]
)
def test_a_checkpoint_that_contradicts_its_parts_is_damaged(tmp_path, how):
    path = written(tmp_path / "last.ckpt")
    inside = read_tensors(path)
    if how == "unknown":
        inside["state_dict"]["d.weight"] = None
    if how == "held":
        inside["state_dict"]["b.weight"] = torch.zeros(5, 3)
    save_tensors({**inside, KEY: forged(inside[KEY], how)}, path)
    with pytest.raises(DataError, match=r"last.ckpt is damaged: of its split weights"):
        read_checkpoint(path)


def test_parts_that_no_checkpoint_names_are_removed_after_a_save(tmp_path):
    def names() -> set[str]:
        return {path.name.split("-")[1] for path in part_files(tmp_path)}

    mine = tmp_path / "split-of-my-own.pt"
    mine.touch()
    (tmp_path / ".fusionkit-0.tmp").write_bytes(b"PK")
    mine.with_name("notes.txt").write_text("bad")
    written(tmp_path / "best.ckpt", step=1)
    for step in (1, 2, 3, 4):
        written(tmp_path / "last.ckpt", step=step)
        assert_same(read_checkpoint(tmp_path / "last.ckpt"), content(step))
        assert_same(read_checkpoint(tmp_path / "best.ckpt"), content(1))
    assert names() == {"1", "3", "4", "of"}  # of the best, the one before the last, and the last
    assert len(part_files(tmp_path)) == 7
    written(tmp_path / "best.ckpt", step=4)
    assert names() == {"3", "4", "of"}
    assert len(part_files(tmp_path)) == 5  # of one content, best and last have the same
    for step in (5, 6):  # another strategy goes on
        WholeCheckpoints().save_checkpoint(content(step), tmp_path / "last.ckpt")
    assert names() == {"4", "of"}
    assert_same(read_checkpoint(tmp_path / "best.ckpt"), content(4))
    WholeCheckpoints().remove_checkpoint(tmp_path / "best.ckpt")
    assert part_files(tmp_path) == [mine]


def test_of_a_checkpoint_that_cannot_be_asked_nothing_is_removed(tmp_path, monkeypatch):
    written(tmp_path / "last.ckpt", step=1)
    save_part({"x": torch.ones(2)}, tmp_path, "2-0of1", "")
    with monkeypatch.context() as patch:
        patch.setattr("fusionkit.checkpoints.split.glance", lambda path: glance(tmp_path / "nowhere"))
        remove_unnamed(tmp_path)
    assert len(part_files(tmp_path)) == 3
    remove_unnamed(tmp_path)
    assert len(part_files(tmp_path)) == 2
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[:300])  # which nobody will read again
    remove_unnamed(tmp_path)
    assert not part_files(tmp_path)


def config(folder: Path, **changes):
    return OmegaConf.create({"output_dir": str(folder), "overwrite": False, "resume": True, **changes})


def test_a_run_goes_on_from_the_newest_whose_parts_are_there(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (4, 8):
        written(folder / "last.ckpt", step=step)
    written(folder / "best.ckpt", step=2)
    assert last_checkpoint(config(tmp_path)).name == "last.ckpt"
    gone = {step: next(folder.glob(f"split-{step}-1of2-*")) for step in (2, 4, 8)}
    gone[8].unlink()
    assert last_checkpoint(config(tmp_path)).name == "previous.ckpt"
    gone[4].write_bytes(gone[4].read_bytes()[:-1])
    assert last_checkpoint(config(tmp_path)).name == "best.ckpt"
    gone[2].unlink()
    with pytest.raises(DataError, match=rf"last.ckpt has its split weights in .* of which {gone[8].name} is not there"):
        last_checkpoint(config(tmp_path))


class Killed(BaseException):
    """What ends a process that is killed: nothing is done behind it."""


def killed_at(moment: int, monkeypatch: pytest.MonkeyPatch, path: Path, step: int) -> bool:
    """Save a checkpoint by a process that is killed before it changes the folder for so many times; whether it was."""
    left = iter(range(moment))

    def until_then(change: Callable) -> Callable:
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return change(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("link", "replace", "unlink"):
            patch.setattr(os, name, until_then(getattr(os, name)))
        try:
            written(path, step=step)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("name", ["last", "best"])
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path, monkeypatch, name):
    begun = tmp_path / "begun"
    for file, step in (("best", 1), ("last", 2), ("last", 3)):
        written(begun / f"{file}.ckpt", step=step)
    old, found, is_killed = {"best": 1, "last": 3}[name], set(), True
    for moment in count():
        folder = Path(shutil.copytree(begun, tmp_path / str(moment) / "checkpoints"))
        is_killed = killed_at(moment, monkeypatch, folder / f"{name}.ckpt", 4)
        for path in folder.glob("*.ckpt"):
            step = read_tensors(path)["global_step"]
            assert_same(read_checkpoint(path), content(step))
            if path.stem == name:
                found.add(step)
        last = last_checkpoint(config(folder.parent))
        assert last.name == "last.ckpt"
        prepare_folder(config(folder.parent), last)
        written(folder / f"{name}.ckpt", step=5)
        named = {row["file"] for path in folder.glob("*.ckpt") for row in read_tensors(path)[KEY]["files"]}
        assert {path.name for path in folder.iterdir() if path.suffix != ".ckpt"} == named
        if not is_killed:
            break
    assert found == {old, 4}
    assert moment > 5


def test_a_new_start_removes_parts_of_a_save_that_was_killed(tmp_path):
    folder = tmp_path / "checkpoints"
    save_part({"x": torch.ones(2)}, folder, "2-0of1", "")  # before the first checkpoint was there
    prepare_folder(config(tmp_path, resume=False))
    assert not part_files(folder)
    written(folder / "last.ckpt")
    save_part({"x": torch.ones(2)}, folder, "9-0of1", "")
    prepare_folder(config(tmp_path), folder / "last.ckpt")
    assert len(part_files(folder)) == 2
    prepare_folder(config(tmp_path, resume=False, overwrite=True))
    assert not folder.exists()
