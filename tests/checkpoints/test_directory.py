"""A checkpoint as a folder: whole, or told."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fusionkit.checkpoints import directory
from fusionkit.checkpoints.directory import is_directory, read_directory, read_json, write_directory
from fusionkit.errors import ConfigError, DataError

STATE = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(2)}
CONFIG = {"fusionkit": {"answers": ("no", "yes"), "ids": {2: "cls"}, "rate": 0.1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_directory(tmp_path / "deep" / "model", STATE, CONFIG, {"experiment/imported.yaml": "a: 1\n"})
    return tmp_path / "deep" / "model"


def test_it_is_read_as_it_was_written(folder):
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    config, state = read_directory(folder)
    assert config == {"fusionkit": {"answers": ["no", "yes"], "ids": {"2": "cls"}, "rate": 0.1}}
    assert all(state[name].equal(tensor) for name, tensor in STATE.items())
    assert (folder / "experiment" / "imported.yaml").read_text() == "a: 1\n"


def test_a_configuration_may_hold_infinity_as_transformers_writes_it(tmp_path):
    (tmp_path / "config.json").write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(tmp_path / "config.json") == {"time_step_limit": [0.0, float("inf")]}


def test_one_of_an_earlier_version_is_read(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["sha256"]["config.json"]
    (folder / "config.json").write_text(json.dumps(content))
    assert read_directory(folder)[0]["fusionkit"]["rate"] == 0.1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_no_bit_may_differ(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(
            DataError, match=r"is not the file that was written|is not complete JSON|was not written by"
        ):
            read_directory(folder)


@pytest.mark.parametrize(
    ("sha256", "name"),
    [
        ([], "config.json"),
        (None, "config.json"),
        ({"model.safetensors": "0"}, "model.safetensors"),
        ({}, "config.json"),
    ],
)
def test_what_was_changed_is_named(folder, sha256, name):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"sha256": sha256}))
    with pytest.raises(DataError, match=rf"model/{name} is not the file that was written \(another sha256\)"):
        read_directory(folder)


def test_a_changed_number_of_the_configuration_is_told(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("0.1", "0.3"))
    with pytest.raises(DataError, match=r"model/config\.json is not the file"):
        read_directory(folder)


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "No space left on device")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(tensors, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(directory, "save_file", fail)
    with pytest.raises(
        DataError, match=r"model cannot be written \(No space left on device\).* choose another output=FOLDER"
    ):
        write_directory(tmp_path / "model", STATE, CONFIG)
    assert not list(tmp_path.iterdir())


def killed(self, place):
    raise KeyboardInterrupt


def test_a_killed_export_is_no_checkpoint(tmp_path, monkeypatch):
    """What is there at every moment, until the very end, does not read as a whole."""
    seen = []
    sha256 = directory.sha256
    monkeypatch.setattr(directory, "sha256", lambda path: seen.append(is_directory(tmp_path / "model")) or sha256(path))
    monkeypatch.setattr("shutil.rmtree", lambda *args, **more: None)  # as if there were no time for it
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_directory(tmp_path / "model", STATE, CONFIG)
    assert seen == [False]
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_something_is_left_alone(folder):
    with pytest.raises(ConfigError, match="is there already"):
        write_directory(folder, STATE, CONFIG)
    (folder.parent / "file").touch()
    with pytest.raises(ConfigError, match="is there already"):
        write_directory(folder.parent / "file", STATE, CONFIG)
    (folder.parent / "empty").mkdir()
    write_directory(folder.parent / "empty", STATE, CONFIG)
    assert is_directory(folder.parent / "empty")
