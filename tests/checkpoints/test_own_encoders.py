"""A checkpoint that was trained with encoders of one's own, which start from files, is used without those files."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fusionkit.assembly.artifacts import sizes_of
from fusionkit.checkpoints.load import forget_weights, read_checkpoint
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.errors import DataError
from fusionkit.types import Tokens

MODULE = __name__ if __name__.startswith("tests.") else f"tests.checkpoints.{__name__}"


class OwnImageEncoder(nn.Module):
    """What the contract asks, and no more: pixels to one token a patch; ``file`` holds the weights it starts from."""

    reads = "pixel_values"

    def __init__(self, width: int, file: str | None = None) -> None:
        super().__init__()
        self.hidden_size = width
        self.patches = nn.Conv2d(3, width, 16, 16)
        if file is not None:
            self.patches.load_state_dict(torch.load(file, weights_only=True))

    def forward(self, images: torch.Tensor) -> Tokens:
        embeds = self.patches(images).flatten(2).transpose(1, 2)
        return Tokens(embeds, None, embeds.mean(dim=1))

    def sizes(self) -> dict[str, Any]:
        return {}

    @staticmethod
    def weightless(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
        return {**config, "file": None}


class OwnTextEncoder(nn.Module):
    """A table of words whose width stands in the folder that it starts from."""

    max_length = None

    def __init__(self, vocab_size: int, pretrained: str | None = None, width: int | None = None) -> None:
        super().__init__()
        if pretrained is not None:
            width = json.loads((Path(pretrained) / "config.json").read_text())["width"]
        assert width is not None
        self.hidden_size = width
        self.word_embeddings = nn.Embedding(vocab_size, width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Tokens:
        embeds = self.word_embeddings(input_ids)
        return Tokens(embeds, attention_mask, embeds.mean(dim=1))

    def sizes(self) -> dict[str, Any]:
        return {"width": self.hidden_size}

    @staticmethod
    def weightless(config: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
        return {**config, "pretrained": None, "width": sizes["width"]}


class SilentTextEncoder(OwnTextEncoder):
    """One that says nothing of how to build it without files."""

    weightless = None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of a short training, and the data's folder; the files that it started from are gone."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    torch.save(nn.Conv2d(3, 24, 16, 16).state_dict(), folder / "conv.pt")
    (folder / "words").mkdir()
    (folder / "words" / "config.json").write_text('{"width": 32}')
    for group, lines in {
        "image_encoder": f"_target_: {MODULE}.OwnImageEncoder\nwidth: 24\nfile: {folder}/conv.pt\n",
        "text_encoder": f"_target_: {MODULE}.OwnTextEncoder\npretrained: {folder}/words\n",
    }.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "own.yaml").write_text(lines)
    parts = ["image_encoder=own", "text_encoder=own", "fusion=late", "task=[itc,itm]"]
    data = [f"data.root={folder}/shapes", "data.prepare.scenes=40", "data.sources.shapes.batch_size=8"]
    weights = ["objectives=none", "+objectives.shapes.itc=1", "+objectives.shapes.itm=1"]
    short = ["trainer.max_epochs=1", "trainer.limit_val_batches=1", "logger=csv", "trainer.accelerator=cpu"]
    written = ["--config-dir", f"{folder}/conf", f"output_dir={folder}/run", "evaluation.roles=[val]"]
    assert run(["train", *written, *parts, *data, *weights, *short]) == 0
    (folder / "conv.pt").unlink()
    (folder / "words" / "config.json").unlink()
    return folder / "run" / "checkpoints" / "last.ckpt", folder / "shapes"


def test_it_is_evaluated_and_predicts(checkpoint: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path, shapes = checkpoint
    ask = ["evaluate", f"checkpoint={path}", f"data.root={shapes}", f"output_dir={path.parent}/scores"]
    assert run(ask) == 2
    assert "add trust=[tests]" in capsys.readouterr().err
    assert run([*ask, "trust=[tests]"]) == 0, capsys.readouterr().err
    assert "shapes/text_to_image_r1" in json.loads((path.parent / "scores" / "metrics.json").read_text())
    told = ["predict", f"checkpoint={path}", f"image={shapes}/images", "text=a star", "by=itm", "trust=[tests]"]
    assert run(told) == 0, capsys.readouterr().err


def test_its_weights_are_those_of_the_checkpoint(checkpoint: tuple[Path, Path]) -> None:
    model = from_pretrained(checkpoint[0], trust=["tests"]).model
    state = read_checkpoint(checkpoint[0])["state_dict"]
    assert type(model.text_encoder).__name__ == "OwnTextEncoder"
    for name in ("image_encoder.patches.weight", "text_encoder.word_embeddings.weight"):
        assert model.state_dict()[name].equal(state[f"model.{name}"])


def test_what_an_encoder_says_of_its_sizes_is_kept_and_handed_back() -> None:
    assert sizes_of(OwnTextEncoder(9, width=8)) == {"width": 8}
    assert sizes_of(SilentTextEncoder(9, width=8)) == {}
    assert sizes_of(nn.Linear(1, 1)) == {}  # type: ignore[arg-type]
    own = {"_target_": f"{MODULE}.OwnTextEncoder", "pretrained": "${package_file:words}"}
    silent = {"_target_": f"{MODULE}.SilentTextEncoder", "pretrained": "folder"}
    image = {"_target_": f"{MODULE}.OwnImageEncoder", "width": 4, "file": "gone"}
    config = OmegaConf.create({"image_encoder": image, "text_encoder": own})
    forget_weights(config, {"text_encoder": {"width": 8}})
    assert config.image_encoder == image | {"file": None}
    assert config.text_encoder == own | {"pretrained": None, "width": 8}
    config = OmegaConf.create({"image_encoder": image, "text_encoder": silent})
    forget_weights(config, {})
    assert config.text_encoder == silent
    untrusted = OmegaConf.create({"image_encoder": image, "text_encoder": own})
    forget_weights(untrusted, {}, lambda section, name: False)
    assert untrusted == {"image_encoder": image, "text_encoder": own}


@pytest.mark.parametrize("text", ["[", "[1]", '{"_target_": "os.getcwd"}', '{"width": "${oc.env:HOME}"}'])
def test_sizes_that_are_no_plain_values_are_refused(text: str) -> None:
    from fusionkit.checkpoints.load import sizes_of as read_sizes

    with pytest.raises(DataError, match=r"its image_encoder is no json|no plain value of an encoder's sizes"):
        read_sizes({"text_encoder": "{}", "image_encoder": text}, "a.ckpt")
    assert read_sizes({"text_encoder": '{"width": 2}'}, "a") == {"text_encoder": {"width": 2}, "image_encoder": {}}
