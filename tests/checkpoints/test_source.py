"""A foreign checkpoint is read whatever its trainer wrote around the weights, and none of its code is run."""

import argparse
import collections
import enum
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from fusionkit.checkpoints.pickled import read_pickled
from fusionkit.checkpoints.source import read_source
from fusionkit.errors import DataError

STATE = {"visual_encoder.blocks.0.weight": torch.ones(2), "itm_head.bias": torch.arange(3.0)}


class Colour(enum.Enum):
    RED = 1


class Settings(dict[str, Any]):
    """A dict with attributes, as many trainers have one."""

    def __init__(self, **values: Any) -> None:
        super().__init__(values)
        self.__dict__ = self


def ran(path: str) -> None:
    Path(path).touch()


class Bomb:
    def __init__(self, call: Any, path: Path) -> None:
        self.call, self.path = call, path

    def __reduce__(self) -> Any:
        return self.call, (str(self.path),)


def saved(folder: Path, content: Any, is_zip: bool = True) -> Path:
    torch.save(content, folder / "x.pth", _use_new_zipfile_serialization=is_zip)
    return folder / "x.pth"


def same(path: Path) -> bool:
    state = read_source(path).state
    return state.keys() == STATE.keys() and all(state[name].equal(tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, folder=Path("x"), kind=Colour.RED),
        Settings(lr=1, inner=Settings(steps=2)),
        OmegaConf.create({"a": [1, {"b": "c"}]}),
        np.float64(0.5),
        np.int64(7),
        np.arange(4),
        np.str_("x"),
        collections.defaultdict(list, a=[1]),
        frozenset([1]),
        torch.float16,
        {"steps": 3, "rng": np.random.RandomState(0).get_state()},
    ],
    ids=lambda beside: type(beside).__name__,
)
def test_what_lies_beside_the_weights_is_no_hindrance(beside: Any, is_zip: bool, tmp_path: Path) -> None:
    assert same(saved(tmp_path, {"model": STATE, "epoch": 3, "args": beside}, is_zip))
    assert same(saved(tmp_path, {**STATE, "args": beside}, is_zip))


def test_numpy_keeps_its_numbers_and_a_class_of_others_is_an_empty_dict(tmp_path: Path) -> None:
    content = read_pickled(saved(tmp_path, {"best": np.float32(0.25), "table": np.arange(3), "args": Colour.RED}))
    assert content["best"] == 0.25
    assert content["table"].tolist() == [0, 1, 2]
    assert content["args"] == {}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("place", ["beside", "weight"])
@pytest.mark.parametrize("call", [ran, os.mkdir, eval, exec])
def test_nothing_of_it_is_run(call: Any, place: str, is_zip: bool, tmp_path: Path) -> None:
    bomb = Bomb(call, tmp_path / "harm")
    content = {"model": STATE, "args": bomb} if place == "beside" else {"model": {"itm_head.bias": bomb}}
    path = saved(tmp_path, content, is_zip)
    if place == "beside" and call is not os.mkdir:  # modules of the system torch refuses by itself
        assert same(path)
    else:
        with pytest.raises(DataError, match=r"x\.pth"):
            read_source(path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_other_bytes_than_were_written_are_told(is_zip: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, STATE, is_zip)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(path)
    content = path.read_bytes()
    at = content.index(STATE["itm_head.bias"].numpy().tobytes())
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    with pytest.warns(UserWarning, match=r"x\.pth: the checksum of .*/data/1 is not") if is_zip else nullcontext():
        assert not same(path)


def test_a_stand_in_does_not_stay_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE, "args": argparse.Namespace()})
    before = set(torch.serialization.get_safe_globals())
    read_source(path)
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module", "model_state_dict", None])
@pytest.mark.parametrize(
    "naming",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "model.{}",
        "model.module.{}",
        "net.{}",
        "network._orig_mod.{}",
    ],
)
def test_prefixes_of_wrappers(wrapper: str | None, naming: str, tmp_path: Path) -> None:
    state = {naming.format(name): tensor for name, tensor in STATE.items()}
    assert same(saved(tmp_path, {wrapper: state, "epoch": 1} if wrapper else state))
    assert same(saved(tmp_path, {"state_dict": {"model": state}}))
    save_file(state, tmp_path / "x.safetensors")
    assert same(tmp_path / "x.safetensors")


@pytest.mark.parametrize("part", ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts(part: str, tmp_path: Path) -> None:
    names = {f"visual_encoder.{part}.blocks.0.{part}.weight": STATE["visual_encoder.blocks.0.weight"]}
    assert same(saved(tmp_path, names | {"itm_head.bias": STATE["itm_head.bias"]}))


def test_a_holder_that_only_some_names_have_stays(tmp_path: Path) -> None:
    names = read_source(saved(tmp_path, {"model.a": torch.ones(1), "loss.b": torch.ones(1)})).state
    assert list(names) == ["model.a", "loss.b"]


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a.weight": torch.ones(1), "module.a.weight": torch.ones(1)})
    with pytest.raises(DataError, match=r"x\.pth holds a\.weight twice, once as module\.a\.weight"):
        read_source(path)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "quantized"),
        (torch.eye(2).to_sparse(), "of the layout torch.sparse_coo"),
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.ones(2, device="meta"), "without numbers"),
    ],
)
def test_a_tensor_of_another_kind_is_named(tensor: Any, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": STATE | {"temp": tensor}})
    with pytest.raises(DataError, match=rf"x\.pth: temp is {words}"):
        read_source(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, "it holds epoch"),
        ({"model": {"a": [torch.ones(1)]}}, "it holds a"),
        (torch.nn.Linear(2, 2), r"it holds nothing, or a model as an object: save its state_dict\(\)"),
        (np.float64(3), "it holds float64"),
    ],
)
def test_without_tensors(content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_source(saved(tmp_path, content))
