"""``fusionkit import`` of folders of several files, of unusual layers, and of options that cannot be; and what its run reads."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    FlavaMultimodalConfig,
    FlavaMultimodalModel,
    PreTrainedModel,
    ViltConfig,
    ViltForMaskedLM,
    ViltForQuestionAnswering,
)

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.checkpoints.runs import sizes_of
from fusionkit.checkpoints.source import Source
from fusionkit.cli.main import run
from fusionkit.errors import DataError
from fusionkit.types import Tokens
from tests.parity.imported import close

SIZES = {"hidden_size": 20, "num_attention_heads": 2, "intermediate_size": 28, "num_hidden_layers": 2}
VILT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 11, "image_size": 24, "patch_size": 8}


def saved(model: PreTrainedModel, folder: Path, **options: str) -> PreTrainedModel:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.eval().save_pretrained(folder, **options)
    return model


def pickled(folder: Path, parts: int) -> None:
    """Weights as transformers once saved them, in one file or in several with an index."""
    state = ViltForMaskedLM.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    names = ["pytorch_model.bin"] if parts == 1 else [f"pytorch_model-{n}-of-{parts}.bin" for n in range(parts)]
    places = {tensor: names[number % parts] for number, tensor in enumerate(state)}
    for name in names:
        torch.save({tensor: state[tensor] for tensor in state if places[tensor] == name}, folder / name)
    if parts > 1:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@torch.no_grad()
@pytest.mark.parametrize("layout", ["sharded", "pickled", "pickled in two"])
def test_every_layout_of_a_folder(layout, tmp_path):
    config = ViltConfig(**VILT, hidden_act="relu", layer_norm_eps=1e-3, hidden_dropout_prob=0.0)
    theirs = saved(ViltForMaskedLM(config), tmp_path / "theirs", max_shard_size="8KB" if layout == "sharded" else "1GB")
    if layout != "sharded":
        pickled(tmp_path / "theirs", 2 if "two" in layout else 1)
    assert run(["import", f"vilt={tmp_path}/theirs", f"output={tmp_path}/ours"]) == 0
    ours = from_pretrained(tmp_path / "ours")
    pixels, ids, mask = torch.randn(2, 3, 24, 24), torch.randint(5, 60, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    memory = ours.model.fusion.prepare(ours.model.encode_image(pixels))
    fused = ours.model.fuse(memory, ours.model.encode_text(ids, mask), torch.arange(2))
    logits = ours.tasks["mlm"].head(fused.text, ours.model.text_encoder.word_embeddings.weight)
    close(logits, theirs(ids, mask, pixel_values=pixels).logits)


@torch.no_grad()
def test_a_multimodal_encoder_alone(tmp_path):
    """It reads what it is given: the maps before it change nothing, and the embeddings before those are new."""
    theirs = saved(FlavaMultimodalModel(FlavaMultimodalConfig(**SIZES, hidden_dropout_prob=0.0)), tmp_path / "theirs")
    assert run(["import", f"flava={tmp_path}/theirs", f"output={tmp_path}/ours", "image.image_size=32"]) == 0
    model = from_pretrained(tmp_path / "ours").model
    seen, told, mask = torch.randn(2, 5, 20), torch.randn(2, 3, 20), torch.ones(2, 3, dtype=torch.long)
    memory = model.fusion.prepare(Tokens(seen, None, seen[:, 0]))
    fused = model.fuse(memory, Tokens(told, mask, told[:, 0]), torch.arange(2))
    out = theirs(torch.cat([seen, told], dim=1))
    close(torch.cat([fused.image, fused.text], dim=1), out.last_hidden_state[:, 1:])
    close(fused.pooled, out.pooler_output)


def test_the_run_of_a_checkpoint(tmp_path):
    """Texts end where its positions end, and it goes on with the answers that it was given, in their order."""
    saved(ViltForQuestionAnswering(ViltConfig(**VILT, num_labels=3)), tmp_path / "theirs")
    (tmp_path / "answers.json").write_text(json.dumps({"no": 1, "yes": 0, "two": 2}))
    line = ["import", f"vilt={tmp_path}/theirs", f"output={tmp_path}/ours", f"answers={tmp_path}/answers.json"]
    assert run(line) == 0
    experiment = yaml.safe_load((tmp_path / "ours/experiment/imported.yaml").read_text())
    assert experiment["data"]["sources"]["vqa"]["max_length"] == 11
    assert json.loads(Path(experiment["data"]["answers"]).read_text()) == ["yes", "no", "two"]


@pytest.mark.parametrize(
    ("option", "words", "code"),
    [
        (
            "sizes.hidden_dropout_prob=none",
            "sizes.hidden_dropout_prob is 'none', but has to be a number, such as 0.1",
            2,
        ),
        ("sizes=3", "sizes is 3, but is a section; give e.g. sizes.hidden_size=768", 2),
        ("ids.pad=null", "ids.pad is None, but has to be a whole number, such as 0", 2),
    ],
)
def test_options_of_another_kind(option, words, code, tmp_path, capsys):
    refuse(["vilt=nowhere.pth", option], words, code, tmp_path, capsys)


def test_sizes_that_no_network_has(tmp_path, capsys):
    config = ViltConfig(**VILT | {"patch_size": 24})
    saved(ViltForMaskedLM(config), tmp_path / "theirs")
    content = json.loads((tmp_path / "theirs/config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps(content | {"patch_size": 0}))
    refuse([f"vilt={tmp_path}/theirs"], "no network can be built of these options", 2, tmp_path, capsys)


def test_an_unknown_activation(tmp_path, capsys):
    saved(ViltForMaskedLM(ViltConfig(**VILT, hidden_act="mish")), tmp_path / "theirs")
    refuse([f"vilt={tmp_path}/theirs"], "hidden_act is 'mish'; did you mean 'swish'?", 2, tmp_path, capsys)


def test_a_class_of_another_kind(folder, tmp_path, capsys):
    refuse([f"blip={folder}"], "config.json names the class ViltForMaskedLM", 1, tmp_path, capsys)


def test_a_part_that_is_missing(tmp_path, capsys):
    saved(ViltForMaskedLM(ViltConfig(**VILT)), tmp_path / "theirs", max_shard_size="8KB")
    part = min((tmp_path / "theirs").glob("model-*.safetensors"))
    part.unlink()
    capsys.readouterr()
    refuse(
        [f"vilt={tmp_path}/theirs"], f"lacks {part.name}, which model.safetensors.index.json names", 1, tmp_path, capsys
    )


def refuse(line: list[str], words: str, code: int, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    assert run(["import", *line, f"output={tmp_path}/out/ours"]) == code
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vilt")
    saved(ViltForMaskedLM(ViltConfig(**VILT)), place)
    return place


DEEP: list = [1]
for _ in range(400):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("hidden_size", "20", "hidden_size is '20', but has to be a whole number, such as 768"),
        ("hidden_size", 20.0, "hidden_size is 20.0, but has to be a whole number"),
        ("hidden_size", True, "hidden_size is True, but has to be a whole number"),
        ("max_position_embeddings", DEEP, "max_position_embeddings is [[[[[[[...]]]]]]], but has to be a whole number"),
        ("layer_norm_eps", [1], "layer_norm_eps is [1], but has to be a number, such as 1e-06"),
        ("layer_norm_eps", float("inf"), "layer_norm_eps is inf, but has to be a number"),
        ("hidden_act", 3, "hidden_act is 3, but has to be a text, such as gelu"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000, but the checkpoint has"),
        ("architectures", 3, "config.json names the class 3; what can be imported is"),
        ("architectures", [["x"]], "config.json names the class [['x']]; what can be imported is"),
        ("num_attention_heads", 3, "fusion.num_heads is 3, which does not divide"),
    ],
)
def test_a_size_of_another_kind_names_its_file(key, value, words, folder, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    for file in folder.iterdir():
        (tmp_path / "theirs" / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps(content | {key: value}))
    capsys.readouterr()
    assert run(["import", f"vilt={tmp_path}/theirs", f"output={tmp_path}/ours"]) in (1, 2)
    (sentence,) = capsys.readouterr().err.splitlines()
    assert words in sentence
    assert f"{tmp_path}/theirs" in sentence


def test_whole_numbers_are_numbers_and_the_limit_of_layers_is_that_of_tensors():
    source = Source(Path("x"), dict.fromkeys("abc", torch.ones(1)), {"eps": 1, "num_layers": 3}, "")
    assert sizes_of({"eps": 0.1, "num_layers": 12}, source) == {"eps": 1, "num_layers": 3}
    for config, words in (
        ({"text": [1]}, r"x/config.json: text is \[1\], but has to be an object with sizes"),
        ({"text": {"num_layers": 4}}, r"text\.num_layers is 4, but the checkpoint has 3 tensors"),
    ):
        with pytest.raises(DataError, match=words):
            sizes_of({"num_layers": 12}, Source(Path("x"), source.state, config, ""), "text")


@pytest.mark.parametrize("damage", ["[" * 20000, "{", "[]", "\ufeff{}x"])
def test_a_damaged_configuration(damage, folder, tmp_path, capsys):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text(damage)
    (tmp_path / "theirs/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    refuse([f"vilt={tmp_path}/theirs"], f"{tmp_path}/theirs/config.json", 1, tmp_path, capsys)
