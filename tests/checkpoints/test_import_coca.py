"""open_clip's CoCa from the command line: imported with the sizes of its file, scored, asked, and trained on."""

import json

import pytest
import torch

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.data.tokenizer import load_tokenizer
from tests.checkpoints.worlds import coco_world
from tests.parity.published import DATA

PARTS = ("embed_dim", "vision_cfg", "text_cfg", "multimodal_cfg")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return coco_world(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def theirs(world, tmp_path_factory):
    """A file of weights with the world's words, and the file of their sizes."""
    folder = tmp_path_factory.mktemp("open_clip")
    count = len(load_tokenizer(world / "words"))
    state = torch.load(DATA / "coca_tiny.pth", weights_only=True)
    torch.manual_seed(0)
    state["text.token_embedding.weight"] = torch.randn(count, 16)
    state["text_decoder.text_projection"] = torch.randn(16, count)
    state["text.positional_embedding"] = torch.randn(41, 16)
    state["text.attn_mask"] = torch.zeros(41, 41)  # as older versions of open_clip saved it
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, folder / "weights.bin")
    sizes = json.loads((DATA / "coca_tiny.json").read_text())
    model = {name: sizes[name] for name in PARTS}
    model["text_cfg"] |= {"vocab_size": count, "context_length": 40}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    return folder / "weights.bin"


@pytest.mark.slow
def test_from_the_command_line(theirs, world, tmp_path, capsys):
    ours, quick = tmp_path / "ours", ["data.num_workers=0", f"data.root={world}"]
    words = load_tokenizer(world / "words")
    ids = {"cls": words.cls_token_id, "sep": words.sep_token_id, "pad": words.pad_token_id, "mask": words.mask_token_id}
    options = [f"ids.{name}={number}" for name, number in ids.items()]
    line = ["import", f"coca={theirs}", f"output={ours}", f"tokenizer={world}/words", *options]
    assert run(line) == 0, capsys.readouterr().err
    assert "every published tensor is accounted for" in capsys.readouterr().out
    config = from_pretrained(ours).config
    assert config.objectives.coco == {"itc": 1.0, "captioning": 2.0}
    assert (config.data.fit, config.data.image_size) == ("crop", 16)

    line = ["evaluate", f"checkpoint={ours}", f"output_dir={tmp_path}/scores", "trainer.accelerator=cpu", "split=test"]
    assert run([*line, *quick]) == 0, capsys.readouterr().err
    scores = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert {"coco/text_to_image_r1", "coco/caption_bleu4"} <= scores.keys()

    image = next((world / "images").glob("*.jpg"))
    line = ["predict", f"checkpoint={ours}", f"image={image}", "trainer.accelerator=cpu", f"output={tmp_path}/r.jsonl"]
    assert run([*line, "caption=true", f"output_dir={tmp_path}/asked"]) == 0, capsys.readouterr().err
    (reply,) = [json.loads(text) for text in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert reply["caption"]

    line = ["train", "--config-dir", str(ours), "experiment=imported", "trainer=cpu", "trainer.fast_dev_run=2"]
    sizes = ["data.sources.coco.batch_size=4", f"output_dir={tmp_path}/run"]
    assert run([*line, *quick, *sizes]) == 0, capsys.readouterr().err
