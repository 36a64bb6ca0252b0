"""``fusionkit export``: the same bits again, and ALBEF's own layout."""

import pytest
import torch

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from tests.checkpoints.test_import import ALBEF, SIZES


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import") / "albef"
    assert run(["import", f"albef={ALBEF}", f"output={folder}", *SIZES]) == 0
    return folder


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_an_export_is_bit_equal(imported, tmp_path):
    assert run(["export", f"checkpoint={imported}", f"output={tmp_path}/again"]) == 0
    first, again = from_pretrained(imported), from_pretrained(tmp_path / "again")
    assert same(first.module.state_dict(), again.module.state_dict())
    assert again.config == first.config
    assert again.origin == first.origin


def test_albef_gets_its_own_file_back(imported, tmp_path):
    assert run(["export", f"checkpoint={imported}", "layout=albef", f"output={tmp_path}/albef.pth"]) == 0
    again = torch.load(tmp_path / "albef.pth", weights_only=True)["model"]
    assert same(again, torch.load(ALBEF, weights_only=True)["model"])


def test_a_folder_is_uploaded_if_asked(imported, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, name, exist_ok):
            calls.append((name, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            return "https://hub/me/mine"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert run(["export", f"checkpoint={imported}", f"output={tmp_path}/again", "hub=me/mine"]) == 0
    assert calls == [("me/mine", True), ("me/mine", ["README.md", "config.json", "model.safetensors"])]
    assert "uploaded to https://hub/me/mine" in capsys.readouterr().out


def test_a_model_of_the_hub_is_loaded_by_its_name(imported, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: asked.append(name) or imported
    )
    assert from_pretrained("me/mine").origin["family"] == "albef"
    assert asked == ["me/mine"]


@pytest.mark.parametrize(
    ("line", "words", "code"),
    [
        (["checkpoint=nowhere.ckpt", "output=out"], "nowhere.ckpt does not exist", 1),
        (["checkpoint={imported}", "output={imported}"], "is there already", 2),
        (
            ["checkpoint={imported}", "output=out", "layout=albf"],
            "layout=albf cannot be written; known: albef, peft, onnx, torch",
            2,
        ),
        (["checkpoint={imported}", "output=out", "layout=peft"], "the checkpoint has no adapters", 2),
        (["checkpoint={imported}", "output=out", "layuot=albef"], "did you mean 'layout'?", 2),
    ],
)
def test_a_mistake_is_one_sentence(line, words, code, imported, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["export", *(text.format(imported=imported) for text in line)]) == code
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence
    assert not list(tmp_path.iterdir())
