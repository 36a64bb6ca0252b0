"""``fusionkit import`` as a user runs it: what it writes is scored and trained on, and what does not fit leaves nothing."""

import json
import os
from pathlib import Path

import pytest
import torch

from fusionkit.checkpoints.base import Key, Plan, convert, resize_positions
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.checkpoints.source import Source, read_source
from fusionkit.checkpoints.write import impossible_sizes
from fusionkit.cli.main import run
from fusionkit.errors import ConfigError, DataError
from tests.checkpoints.worlds import coco_world
from tests.parity.published import DATA

ALBEF = DATA / "albef_tiny.pth"
SIZES = [
    "image_size=64", "vit.embed_dim=64", "vit.depth=3", "vit.num_heads=4", "bert.vocab_size=500", "bert.hidden_size=64",
    "bert.intermediate_size=256", "bert.num_attention_heads=4", "bert.num_hidden_layers=4", "bert.fusion_layer=2",
    "bert.max_position_embeddings=32", "embed_dim=32", "queue_size=64",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return coco_world(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def imported(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("import") / "albef"
    assert run(["import", f"albef={ALBEF}", f"output={folder}", f"tokenizer={world}/words", *SIZES]) == 0
    return folder


def test_a_checkpoint_says_where_it_is_from_and_what_was_left_out(imported):
    origin = from_pretrained(imported).origin
    assert origin["family"] == "albef"
    assert origin["file"] == "albef_tiny.pth"
    assert origin["sha256"] == read_source(ALBEF).sha256
    assert all(origin["left_out"].values())


def test_an_imported_checkpoint_is_scored(imported, world, tmp_path):
    line = ["evaluate", f"checkpoint={imported}", f"data.root={world}", f"output_dir={tmp_path}", "data.num_workers=0"]
    assert run([*line, "trainer.accelerator=cpu", "split=test"]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= metrics["coco/text_to_image_r1"] <= 100


def test_an_imported_checkpoint_is_asked_about_one_s_own_image(imported, world, tmp_path):
    image = next((world / "images").glob("*.jpg"))
    line = ["predict", f"checkpoint={imported}", f"image={image}", "text=a red circle", "phrase=a red circle"]
    options = ["trainer.accelerator=cpu", "attention=true", f"output_dir={tmp_path}", f"output={tmp_path}/r.jsonl"]
    assert run([*line, *options]) == 0
    (reply,) = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert 0 <= reply["match"] <= 1
    assert -1 <= reply["cosine"] <= 1
    assert len(reply["bbox"]) == 4  # found by matching
    assert len(reply["files"]) == 4


def test_training_goes_on_from_it_with_its_teacher(imported, world, tmp_path, capsys):
    line = [
        "train",
        "--config-dir",
        str(imported),
        "experiment=imported",
        f"data.root={world}",
        "data.num_workers=0",
    ]
    small = ["data.sources.coco.batch_size=4", "trainer=cpu", "trainer.fast_dev_run=1", f"output_dir={tmp_path}/run"]
    assert run([*line, *small]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert f"started from {imported}\n" in out  # and nothing was new


def refuse(path: Path, words: str, capsys, tmp_path: Path, *options: str, code: int = 1) -> None:
    """The import says one sentence with these words, and writes nothing."""
    folder = tmp_path / "out" / "ours"
    assert run(["import", f"albef={path}", f"output={folder}", *SIZES, *options]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not folder.parent.exists()


def changed(tmp_path: Path, change) -> Path:
    state = dict(torch.load(ALBEF, weights_only=True)["model"])
    change(state)
    path = tmp_path / "changed.pth"
    torch.save({"model": state}, path)
    return path


def test_a_truncated_file(tmp_path, capsys):
    (tmp_path / "half.pth").write_bytes(ALBEF.read_bytes()[:200_000])
    refuse(tmp_path / "half.pth", "it is truncated, no checkpoint", capsys, tmp_path)


def test_a_truncated_safetensors_file(imported, tmp_path, capsys):
    (tmp_path / "half.safetensors").write_bytes((imported / "model.safetensors").read_bytes()[:200_000])
    refuse(tmp_path / "half.safetensors", "it is truncated or no safetensors file", capsys, tmp_path)


def test_a_file_that_would_run_code(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    torch.save({"model": {"temp": Bomb()}}, tmp_path / "bomb.pth")
    refuse(tmp_path / "bomb.pth", "which would run its code", capsys, tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_renamed_tensor(tmp_path, capsys):
    path = changed(tmp_path, lambda state: state.update(itm_haed=state.pop("itm_head.weight")))
    refuse(path, "itm_haed is no part of such a checkpoint", capsys, tmp_path)


def test_a_missing_tensor(tmp_path, capsys):
    path = changed(tmp_path, lambda state: state.pop("text_encoder.bert.encoder.layer.3.crossattention.self.key.bias"))
    refuse(path, "holds nothing for model.fusion.layers.1.cross_attention.key.bias", capsys, tmp_path)


def test_positions_without_a_grid(tmp_path, capsys):
    path = changed(tmp_path, lambda state: state.update({"visual_encoder.pos_embed": torch.zeros(7)}))
    refuse(path, "pos_embed is (7,) there and (1, 17, 64) here", capsys, tmp_path)


def test_tensors_that_should_be_one(tmp_path, capsys):
    name = "text_encoder.cls.predictions.decoder.weight"
    path = changed(tmp_path, lambda state: state.update({name: state[name] + 1}))
    refuse(path, "differ, but are one tensor in the published model", capsys, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": {"a.weight": torch.zeros(1)}}, "a.weight is no part"),
        ({"epoch": 3}, "it holds epoch"),
        ([1], "holds list"),
        ({0: torch.zeros(1)}, "it holds 0"),
    ],
)
def test_a_foreign_file(content, words, tmp_path, capsys):
    torch.save(content, tmp_path / "foreign.pth")
    refuse(tmp_path / "foreign.pth", words, capsys, tmp_path)


@pytest.mark.parametrize(
    ("option", "words", "code"),
    [
        ("embed_dim=16", "model.image_projection.weight is (32, 64) there and (16, 64) here", 1),
        ("vit.depth=2", "holds more than the options say: model.image_encoder.backbone.blocks.2", 1),
        ("bert.num_hidden_layers=2", "bert.num_hidden_layers is 2, which leaves no layer with cross-attention", 2),
        ("bert.hidden_act=relu", "bert.hidden_act is relu, but the layers with cross-attention have gelu alone", 2),
        ("vit.deph=2", "did you mean 'depth'?", 2),
        ("tokenizer=nowhere", "tokenizer: 'nowhere' is neither", 2),
    ],
)
def test_options_that_do_not_fit(option, words, code, tmp_path, capsys):
    refuse(ALBEF, words, capsys, tmp_path, option, code=code)


def test_an_unknown_family(capsys):
    assert run(["import", "albff=x.pth"]) == 2
    assert "did you mean 'albef'?" in capsys.readouterr().err


def test_a_folder_is_not_replaced(imported, capsys):
    assert run(["import", f"albef={ALBEF}", f"output={imported}", *SIZES]) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_changed_file_of_ours_is_refused(imported, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((imported / name).read_bytes())
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="is not the file that was written"):
        from_pretrained(tmp_path)


def test_positions_of_another_size_are_resized():
    positions = torch.cat([torch.full((1, 1, 2), 9.0), torch.arange(16.0).reshape(1, 16, 1).expand(1, 16, 2)], dim=1)
    resized = resize_positions(positions, torch.Size([1, 65, 2]))
    assert resized[0, 0].eq(9).all()
    grid = resized[0, 1:, 0].unflatten(0, (8, 8))
    # the middle keeps its mean, and a step from row to row is still four times one from column to column
    torch.testing.assert_close(grid[3:5, 3:5].mean(), torch.tensor(7.5))
    torch.testing.assert_close(grid[4] - grid[3], 4 * (grid[:, 4] - grid[:, 3]))
    assert resize_positions(positions, positions.shape) is positions


def test_positions_of_sizes_that_no_image_has_are_not_made():
    positions = torch.zeros(1, 17, 1)
    assert resize_positions(positions, torch.Size([1, 1 + 256**2, 1])).shape[1] == 1 + 256**2
    with pytest.raises(DataError, match="images are 257 patches wide by its options, but were 4 when"):
        resize_positions(positions, torch.Size([1, 1 + 257**2, 1]))


def test_a_refused_network_names_its_file_once():
    with pytest.raises(ConfigError, match=r"^v: a negative number$"), impossible_sizes(Path("v")):
        raise ConfigError("a negative number")
    with pytest.raises(ConfigError, match=r"^v/config\.json: a is 0$"), impossible_sizes(Path("v")):
        raise ConfigError("v/config.json: a is 0")


def test_parts_that_do_not_fit_together():
    source = Source(Path("x.pth"), {"q": torch.zeros(1, 2), "k": torch.ones(3)}, None, "")
    plan = Plan("x", "x", [], {}, [Key("q", "qk", part=0), Key("k", "qk", part=1)], {}, {})
    with pytest.raises(DataError, match=r"q \(1, 2\) and k \(3,\) do not fit together"):
        convert(source, plan, {"qk": torch.zeros(2, 2)})


def test_parts_are_joined_and_cut():
    state = {"q": torch.zeros(1, 2), "k": torch.ones(1, 2), "kv.weight": torch.arange(4.0)}
    keys = [Key("k", "qk", part=1), Key("q", "qk", part=0), Key("kv.", ("key.", "value."))]
    plan = Plan("x", "x", [], {}, keys, {}, {})
    expected = {"qk": torch.zeros(2, 2), "key.weight": torch.zeros(2), "value.weight": torch.zeros(2)}
    found = convert(Source(Path("x"), state, None, ""), plan, expected)
    assert found["qk"].tolist() == [[0, 0], [1, 1]]
    assert found["value.weight"].tolist() == [2, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path, capsys):
    def spoil(state):
        state["itm_head.weight"] = state["itm_head.weight"].index_fill(1, torch.tensor([3]), value)

    path = changed(tmp_path, spoil)
    refuse(
        path, "holds NaN or infinite numbers, in itm_head. (tasks.itm.head.weight of ours) and 1 more", capsys, tmp_path
    )


def test_numbers_that_are_too_large_here(tmp_path, capsys):
    path = changed(tmp_path, lambda state: state.update(temp=torch.tensor(1e300, dtype=torch.float64)))
    refuse(path, "holds NaN or infinite numbers, in temp (model.temperature of ours) and 1 more", capsys, tmp_path)


def test_whole_numbers_for_weights(tmp_path, capsys):
    path = changed(tmp_path, lambda state: state.update({"itm_head.weight": state["itm_head.weight"].to(torch.int8)}))
    refuse(path, "tasks.itm.head.weight is torch.int8 there and torch.float32 here", capsys, tmp_path)


def test_half_precision_is_read(tmp_path):
    source = Source(Path("x"), {"a": torch.ones(2, dtype=torch.float16)}, None, "")
    found = convert(source, Plan("x", "x", [], {}, [Key("a", "b")], {}, {}), {"b": torch.zeros(2)})
    assert found["b"].dtype == torch.float32
