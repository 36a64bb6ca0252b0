"""Data sets of the hub, by a stand-in for the package ``datasets``: no test goes to the network."""

import sys
import types
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.hub_data import fetch, is_hub_name
from fusionkit.errors import ConfigError, DataError
from tests.data.worlds import write_photo


class Split:
    def __init__(self, *paths: str) -> None:
        self.cache_files = [{"filename": path} for path in paths]


def stand_in(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.parametrize(
    ("files", "is_one"),
    [
        ("owner/name", True),
        ("owner/na-me.1", True),
        ("name", False),
        ("a/b/c", False),
        ("{train: x}", False),
        (None, False),
        ("here/t.csv", False),
    ],
)
def test_a_name_of_the_hub_is_owner_and_name_and_no_file(files, is_one, tmp_path):
    (tmp_path / "here").mkdir()
    assert is_hub_name(files, tmp_path) is is_one


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"data.files=owner/name is no file; .* run: pip install datasets"):
        fetch("owner/name")


def test_what_cannot_be_fetched_is_one_sentence(monkeypatch):
    def refuse(name: str) -> None:
        raise ConnectionError("no network\nfor you")

    stand_in(monkeypatch, refuse)
    with pytest.raises(DataError, match=r"that can be fetched \(no network\)$"):
        fetch("owner/name")
    stand_in(monkeypatch, lambda name: {"train": Split()})
    with pytest.raises(DataError, match="keeps no files of it"):
        fetch("owner/name")


def test_a_training_names_the_files_that_were_fetched(monkeypatch, tmp_path):
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    paths = {}
    for split, count in (("train", 30), ("test", 4), ("validation", 4)):
        values = [{"bytes": write_photo(tmp_path / "x.png", n).read_bytes(), "path": None} for n in range(count)]
        content = pyarrow.table({"image": pyarrow.array(values, kind), "text": [f"c{n}" for n in range(count)]})
        paths[split] = str(tmp_path / f"the {split}, o'clock.arrow")
        with pyarrow.OSFile(paths[split], "wb") as file, ipc.new_stream(file, content.schema) as out:
            out.write_table(content)
    stand_in(
        monkeypatch, lambda name: {split: Split(path) for split, path in paths.items()} if name == "owner/name" else {}
    )
    config = training_config("data=table", "data.files=owner/name", f"data.root={Path(tmp_path)}")
    assert config.data.files == {split: [path] for split, path in paths.items()}
    assert set(config.task) == {"itc", "itm", "mlm"}
