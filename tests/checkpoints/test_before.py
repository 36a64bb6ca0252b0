"""A checkpoint that an earlier fusionkit wrote: three steps on 40 drawn scenes. It scores as it did there, and goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusionkit.assembly.composition import training_config
from fusionkit.assembly.trust import inert
from fusionkit.checkpoints.before import take_later_settings
from fusionkit.checkpoints.load import load_parts
from fusionkit.cli.main import run
from fusionkit.commands.run_folder import check_folder
from fusionkit.commands.train import train
from fusionkit.errors import ConfigError

HERE = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    assert run(["data", "make", "shapes", f"root={folder}/data", "scenes=40"]) == 0
    return folder


@pytest.fixture
def earlier(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of the earlier run beside its data; gives its configuration with what a command of today adds."""
    monkeypatch.chdir(drawn)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(HERE / "before.ckpt", tmp_path / "checkpoints/last.ckpt")
    kept = torch.load(HERE / "before.ckpt", weights_only=True)["fusionkit"]["config"]
    (tmp_path / "config.yaml").write_text(kept)
    today = training_config()
    new = ("max_skipped_steps", "activation_checkpointing", "compile")
    added = {**{key: today[key] for key in new}, "callbacks": {"cut_texts": today.callbacks.cut_texts}}
    changes = {"output_dir": str(tmp_path), "resume": "auto", "callbacks": {"best": {"mode": "auto"}}}
    return OmegaConf.merge(inert(OmegaConf.create(kept)), added, changes)


def test_it_scores_as_it_did(earlier: Any) -> None:
    folder = Path(earlier.output_dir)
    assert run(["evaluate", f"checkpoint={folder}/checkpoints/last.ckpt", f"output_dir={folder}/scores"]) == 0
    before = json.loads((HERE / "before.json").read_text())
    now = json.loads((folder / "scores/metrics.json").read_text())
    assert len(before) > 40
    assert {name: now.get(name) for name in before} == pytest.approx(before, rel=1e-6)


def test_settings_of_sources_that_came_later_can_be_set(earlier: Any) -> None:
    file = Path(earlier.output_dir) / "checkpoints/last.ckpt"
    assert {"shots", "shuffle_window"}.isdisjoint(earlier.data.sources.shapes)

    def settings(**changed: Any) -> Any:
        parts = load_parts(file, {"data": {"sources": {"shapes": changed}}}, has_data=False)
        return parts.datamodule.sources["shapes"]

    assert [settings(**window).shuffle_window for window in ({}, {"shuffle_window": 5})] == [None, 5]
    assert [settings(**shots).shots for shots in ({}, {"shots": 0})] == [0, 0]
    more = settings(texts_per_image={"captions": 3, "conversations": 2})
    assert more.texts_per_image == {**settings().texts_per_image, "captions": 3, "conversations": 2}
    with pytest.raises(ConfigError, match=r"data.sources.shapes.shots is 2, but has to be a number of conversations"):
        settings(shots=2)
    with pytest.raises(OmegaConfBaseException, match=r"Key 'shot' is not in struct"):
        settings(shot=2)
    with pytest.raises(OmegaConfBaseException, match=r"Key 'shape' is not in struct"):
        load_parts(file, {"data": {"sources": {"shape": {"shots": 2}}}}, has_data=False)


def test_kinds_of_texts_are_no_settings_and_further_ones_can_be_named() -> None:
    own = {"template": {"questions": "{text}?"}, "texts_per_image": {"captions": 1}}
    stored = OmegaConf.create({"data": {"sources": {"a": own, "b": {"texts_per_image": {}}}}})
    more = {
        "template": {"captions": "a {text}", "questions": "b"},
        "texts_per_image": {"tagged": 2},
        "splits": {"c": []},
    }
    take_later_settings(stored, {"data": {"sources": {"a": more}}})
    assert stored.data.sources == {
        "a": {
            "template": {"questions": "{text}?", "captions": None},
            "texts_per_image": {"captions": 1, "tagged": None},
            "splits": None,
        },
        "b": {"texts_per_image": {}},
    }


def test_it_goes_on(earlier: Any) -> None:
    check_folder(earlier)
    earlier.trainer.max_steps = 4
    with pytest.raises(ConfigError, match=r"trainer.max_steps was 3, is 4"):
        check_folder(earlier)
    earlier.resume, earlier.evaluation.roles = True, []
    train(earlier)
    last = torch.load(Path(earlier.output_dir) / "checkpoints/last.ckpt", weights_only=True)
    before = torch.load(HERE / "before.ckpt", weights_only=True)
    assert (before["global_step"], last["global_step"]) == (3, 4)
    moved = [name for name, tensor in before["state_dict"].items() if not tensor.equal(last["state_dict"][name])]
    assert "model.text_encoder.backbone.embeddings.word_embeddings.weight" in moved
    assert max((last["state_dict"][n] - before["state_dict"][n]).abs().max() for n in moved) < 0.1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("max_skipped_steps=4", "max_skipped_steps was None, is 4"),
        ("callbacks.best.mode=min", "callbacks.best.mode was max, is min"),
        ("image_encoder.in_chans=4", "image_encoder.in_chans was None, is 4"),
        ("callbacks.throughput=null", r"callbacks.throughput(._target_)? was"),
        ("callbacks.cut_texts._target_=a.B", "callbacks.cut_texts._target_ was None, is a.B"),
    ],
)
def test_what_is_another_run_for_all_that(earlier: Any, change: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_folder(OmegaConf.merge(earlier, OmegaConf.from_dotlist([change])))
