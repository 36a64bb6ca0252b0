"""Weights of few bits through the commands: what they lose is told, exports say the same, and training beside them goes on."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import fusionkit as fk
from fusionkit.checkpoints.directory import read_safetensors
from fusionkit.cli.main import run
from fusionkit.commands import rounding
from fusionkit.files.tensors import read_tensors
from fusionkit.model.base_weights import RoundedLinear
from fusionkit.model.int8 import Quantised
from tests.commands.test_adapters import TOY

NF4 = ["adapters=lora", "adapters.base_weights=nf4", "++text_encoder.frozen=true", "frozen_weights=beside"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small data set, and a run on it, evaluated."""
    folder = tmp_path_factory.mktemp("rounding")
    assert run(["data", "make", "shapes", f"root={folder}/shapes", "scenes=24"]) == 0
    assert train(folder, "plain", "trainer.max_steps=2") == 0
    return folder


def train(world: Path, name: str, *overrides: str) -> int:
    return run(["train", *TOY, f"data.root={world}/shapes", f"output_dir={world}/{name}", *overrides])


def scores(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_what_int8_loses_is_told_and_an_export_says_the_same(world, capsys):
    checkpoint = f"checkpoint={world}/plain/checkpoints/best.ckpt"
    before = scores(world / "plain")
    assert run(["evaluate", checkpoint, "int8=true"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "int8: the weights of" in said
    assert "shapes_captioning: KL(before || int8)" in said
    assert "plain/evaluation" in said  # beside the run, with its interval
    folder = world / "plain/evaluation"
    assert scores(world / "plain") == before
    told = json.loads((folder / "int8.json").read_text())
    assert told["bytes"]["after"] < told["bytes"]["before"]
    assert set(told["kl"]) == {"shapes_captioning", "shapes_vqa_generative"}
    assert all(0 < each["kl"] < 0.01 and each["agreement"] > 0.9 and each["rows"] for each in told["kl"].values())
    assert yaml.safe_load((folder / "evaluation.yaml").read_text())["run"]["int8"] is True

    assert run(["export", checkpoint, "int8=true", f"output={world}/int8"]) == 0
    assert run(["export", checkpoint, f"output={world}/fp32"]) == 0
    sizes = {name: (world / name / "model.safetensors").stat().st_size for name in ("int8", "fp32")}
    assert sizes["fp32"] - sizes["int8"] > 0.9 * (told["bytes"]["before"] - told["bytes"]["after"])
    assert torch.int8 in {tensor.dtype for tensor in read_safetensors(world / "int8/model.safetensors").values()}
    capsys.readouterr()
    assert run(["evaluate", f"checkpoint={world}/int8", f"output_dir={world}/again"]) == 0
    assert "int8: the weights of" in capsys.readouterr().out
    assert scores(world / "again") == scores(folder)
    assert run(["evaluate", f"checkpoint={world}/int8", f"output_dir={world}/twice", "int8=true"]) == 2
    assert "has weights of 8 bits already; leave int8 out" in capsys.readouterr().err
    assert run(["export", checkpoint, "int8=true", "layout=albef", f"output={world}/a.pth"]) == 2
    for layout in ("albef", "peft"):
        assert run(["export", f"checkpoint={world}/int8", f"layout={layout}", f"output={world}/a.pth"]) == 2
        assert "which has no weights of 8 bits, as the checkpoint has; leave out layout" in capsys.readouterr().err
    # it begins with what they were rounded to, and is taught by them
    taught = ["teacher=checkpoint", f"teacher.checkpoint={world}/int8"]
    assert train(world, "on", f"checkpoint={world}/int8", *taught, "trainer.max_steps=1") == 0


def test_before_is_read_as_the_command_reads_the_checkpoint(tmp_path, monkeypatch):
    asked = []
    parts = SimpleNamespace(int8=Quantised(("model.a",), 4, 1), model=None, tasks={}, config={})
    monkeypatch.setattr(rounding, "load_parts", lambda *given, **options: asked.append((given, options)) or parts)
    monkeypatch.setattr(rounding, "divergences", lambda *given: {})
    monkeypatch.setattr(rounding, "evaluation_options", lambda config: None)
    monkeypatch.setattr(rounding, "print_beside", lambda *given: None)
    stored = {"data": {"tokenizer": "mine"}, "evaluation": {}, "trainer": {"accelerator": "cpu"}}
    config = OmegaConf.create({"checkpoint": "a", "int8": True, "trust": [], **stored})
    rounding.measure_rounding(config, parts, [], None, tmp_path, torch.device("cpu"))
    assert asked == [(("a", stored), {"has_data": False, "trust": []})]


def test_in_python_too(world):
    path = world / "plain/checkpoints/best.ckpt"
    plain, model, part = fk.load(path), fk.load(path, int8=True), fk.load(path, int8="fusion")
    assert plain.parts.int8 is None
    assert len(model.parts.int8.layers) > len(part.parts.int8.layers) > 0
    picture = next((world / "shapes/images").glob("*.jpg"))
    assert isinstance(model.caption(str(picture)), str)
    before, after = (each.encode_image(str(picture)).embeds for each in (plain, model))
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.05)


def test_beside_base_weights_of_four_bits_adapters_train_and_resume_bit_for_bit(world, capsys):
    start = f"checkpoint={world}/plain/checkpoints/best.ckpt"
    assert train(world, "whole", *NF4, start, "trainer.max_steps=3") == 0
    assert train(world, "cut", *NF4, start, "trainer.max_steps=2") == 0
    assert train(world, "cut", *NF4, start, "trainer.max_steps=3", "resume=true") == 0
    states = [read_tensors(world / name / "checkpoints/last.ckpt") for name in ("whole", "cut")]
    assert states[0]["frozen"]["hash"] == states[1]["frozen"]["hash"]
    whole, cut = (each["state_dict"] for each in states)
    assert any(".lora_B." in name and tensor.any() for name, tensor in whole.items())
    assert not any(".base_layer.weight" in name for name in whole)  # kept once, beside
    assert whole.keys() == cut.keys()
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())

    base = read_tensors(world / "whole/checkpoints" / states[0]["frozen"]["file"])
    model = fk.load(world / "whole/checkpoints/last.ckpt").parts.model  # without rounding again
    assert not any(isinstance(part, RoundedLinear) for part in model.modules())
    own = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(own[name], tensor) for name, tensor in base.items() if "base_layer.weight" in name)
    plain = read_tensors(world / "plain/checkpoints/best.ckpt")["state_dict"]
    name = next(name for name in base if name.endswith("base_layer.weight"))
    assert not torch.equal(base[name], plain[name.replace(".base_layer", "")])

    export = ["export", f"checkpoint={world}/whole/checkpoints/last.ckpt"]
    capsys.readouterr()
    assert run([*export, f"output={world}/merged"]) == 0
    assert (
        "rounded to nf4 in training: the file has what they were rounded to, at 4 bytes a num"
        in capsys.readouterr().out
    )
    assert run([*export, f"output={world}/eight", "int8=true"]) == 0
    told = capsys.readouterr().out
    assert (
        "the file has what they were rounded to, and no more of what they were\n" in told
    )  # and not at 4 bytes a number
    assert run([*export, f"output={world}/small", "int8=true", "merge_adapters=false"]) == 2
    assert "add them to the weights first" in capsys.readouterr().err


def test_a_stage_that_would_train_what_is_rounded_is_one_sentence(world, capsys):
    options = ["stages=language_model", "stages.project.steps=2", "stages.adapt.steps=2"]
    assert train(world, "refused", *NF4, *options) == 2
    *_, sentence = capsys.readouterr().err.splitlines()  # behind what drawing the data says
    assert "stages.unfreeze.trains finds model.text_encoder" in sentence
