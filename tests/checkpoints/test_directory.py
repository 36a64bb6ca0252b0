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


def test_many_bytes_are_several_files_and_an_index(tmp_path):
    state = {f"layer{number}": torch.full((4, 5), float(number)) for number in range(5)}  # 80 bytes each
    write_directory(tmp_path / "model", state, CONFIG, max_shard_size=160)
    files = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert files == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 400}
    assert index["weight_map"]["layer1"] == files[0]
    assert index["weight_map"]["layer2"] == files[1]
    assert is_directory(tmp_path / "model")
    _, found = read_directory(tmp_path / "model")
    assert found.keys() == state.keys()
    assert all(found[name].equal(tensor) for name, tensor in state.items())


def test_a_tensor_beyond_the_size_has_a_file_of_its_own(tmp_path):
    assert directory.shards_of({"a": torch.ones(9), "b": torch.ones(1), "c": torch.ones(1)}, 8) == {
        "model-00001-of-00002.safetensors": ["a"],
        "model-00002-of-00002.safetensors": ["b", "c"],
    }
    assert directory.shards_of({"a": torch.ones(2)}, 8) == {"model.safetensors": ["a"]}
    assert directory.shards_of({"a": torch.ones(2), "b": torch.ones(2)}, None) == {"model.safetensors": ["a", "b"]}


def damaged(folder: Path, name: str, **changes: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"][name] = changes["to"]
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("../config.json", "names '../config.json', which is no file of the folder"),
        ("model-00009-of-00002.safetensors", "names 'model-00009-of-00002.safetensors', which is no file"),
        (3, "has no weight_map"),
        ("model-00002-of-00002.safetensors", "index.json is not the file that was written"),
    ],
)
def test_an_index_that_was_changed_is_told(tmp_path, to, words):
    write_directory(tmp_path / "model", STATE, CONFIG, max_shard_size=1)
    damaged(tmp_path / "model", "a", to=to)
    with pytest.raises(DataError, match=words):
        read_directory(tmp_path / "model")


def test_a_changed_shard_is_named(tmp_path):
    write_directory(tmp_path / "model", STATE, CONFIG, max_shard_size=1)
    path = tmp_path / "model" / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataError, match=r"model-00002-of-00002\.safetensors is not the file"):
        read_directory(tmp_path / "model")


@pytest.mark.parametrize(("size", "count"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("20KB", 20_000), (None, None)])
def test_a_size_is_read_as_bytes(size, count):
    assert directory.bytes_of(size) == count


@pytest.mark.parametrize("size", ["5", 7, "0GB", "GB", "5 TB", "-1GB", "0.0001KB", True])
def test_what_is_no_size_is_told(size):
    with pytest.raises(ConfigError, match="max_shard_size is"):
        directory.bytes_of(size)
