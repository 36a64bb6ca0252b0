"""An imported ViLT reads pictures in their proportions, alone and in batches, as transformers' own processor does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViltConfig, ViltForImageAndTextRetrieval, ViltForTokenClassification
from transformers.models.vilt import ViltImageProcessor

from fusionkit.checkpoints.load import load_parts
from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.data.requests import Request, own_data
from fusionkit.data.tokenizer import build_tokenizer
from tests.parity.imported import close

SIZES = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 28, "num_hidden_layers": 2}
VILT = {**SIZES, "vocab_size": 60, "max_position_embeddings": 11, "image_size": 32, "patch_size": 8}
SHAPES = [(64, 64), (90, 40), (31, 120)]  # width and height


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``theirs``, ``ours``, a tokenizer and pictures."""
    root = tmp_path_factory.mktemp("vilt")
    torch.manual_seed(0)
    theirs = ViltForImageAndTextRetrieval(ViltConfig(**VILT, hidden_dropout_prob=0.0)).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(std=0.3)
    theirs.save_pretrained(root / "theirs")
    build_tokenizer(["a red circle left of a blue square"], root / "words")
    line = ["import", f"vilt={root}/theirs", f"output={root}/ours", f"tokenizer={root}/words"]
    assert run(line) == 0
    (root / "pictures").mkdir()
    for number, (width, height) in enumerate(SHAPES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"pictures/{number}.png")
    return root


@torch.no_grad()
def test_a_batch_is_read_as_the_published_code_reads_it(folder: Path) -> None:
    parts = load_parts(folder / "ours", {}, has_data=False)
    requests = [Request(path, {"text": "a red circle"}) for path in sorted((folder / "pictures").iterdir())]
    source = next(iter(parts.datamodule.sources))
    data, collate = own_data(parts.datamodule, source, requests, ["text"])
    batch = collate([data.item(number) for number in range(len(requests))])
    processor = ViltImageProcessor(size={"shortest_edge": 32}, size_divisor=8)
    expected = processor([Image.open(request.image) for request in requests], return_tensors="pt")
    assert batch["pixel_mask"].int().equal(expected["pixel_mask"].int())
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"], rtol=0, atol=0.03)  # of rounded pixels
    theirs = ViltForImageAndTextRetrieval.from_pretrained(folder / "theirs").eval()
    rows = batch["text"]
    inputs = {"pixel_values": batch["pixel_values"], "pixel_mask": batch["pixel_mask"].long()}
    logits = theirs(rows["input_ids"], rows["attention_mask"], **inputs).logits
    network = from_pretrained(folder / "ours")
    encoded = network.model.encode(batch, ["text"])
    fused = network.model.fuse(encoded.memory, encoded.text["text"], rows["image_index"])
    close(network.tasks["itm"].head(fused.pooled)[:, 1:], logits)


def asked(folder: Path, image: Path, output: Path, *options: str) -> list[dict]:
    line = ["predict", f"checkpoint={folder}/ours", f"image={image}", "text=a red circle", f"output={output}/r.jsonl"]
    assert run([*line, "trainer.accelerator=cpu", "trainer.precision=32-true", f"output_dir={output}", *options]) == 0
    return [json.loads(text) for text in (output / "r.jsonl").read_text().splitlines()]


def test_a_picture_in_a_batch_is_answered_as_alone(folder: Path, tmp_path: Path) -> None:
    together = asked(folder, folder / "pictures", tmp_path / "all", "attention=true")
    for number, reply in enumerate(together):
        (alone,) = asked(folder, folder / f"pictures/{number}.png", tmp_path / str(number))
        assert reply["match"] == pytest.approx(alone["match"], abs=1e-5)
        (maps,) = [path for path in reply["files"] if path.endswith(".npz")]
        width, height = ((4, 4), (6, 3), (1, 6))[number]
        assert np.load(maps)["attention"].shape[1:] == (height, width)


def test_weak_grounding_on_canvases(folder: Path, tmp_path: Path) -> None:
    """A phrase is found by matching, inside the picture."""
    line = ["predict", f"checkpoint={folder}/ours", f"image={folder}/pictures", "phrase=a red circle"]
    assert (
        run(
            [
                *line,
                "trainer.accelerator=cpu",
                "trainer.precision=32-true",
                f"output_dir={tmp_path}",
                f"output={tmp_path}/r.jsonl",
            ]
        )
        == 0
    )
    for text, (width, height) in zip((tmp_path / "r.jsonl").read_text().splitlines(), SHAPES, strict=True):
        x, y, w, h = json.loads(text)["bbox"]
        assert w > 0 < h
        assert x >= 0 <= y
        assert x + w <= width + 1e-3
        assert y + h <= height + 1e-3


def test_labels_of_words_are_read_from_a_table_scored_and_trained(folder: Path, tmp_path: Path, capsys) -> None:
    """As the posts of multimodal named entity recognition are."""
    names = {0: "O", 1: "B-SHAPE"}
    ViltForTokenClassification(ViltConfig(**VILT, id2label=names)).save_pretrained(tmp_path / "theirs")
    line = ["import", f"vilt={tmp_path}/theirs", f"output={tmp_path}/ours", f"tokenizer={folder}/words"]
    assert run(line) == 0, capsys.readouterr().err
    words, tags = ["a", "red", "circle"], ["O", "O", "B-SHAPE"]
    pictures = [str(path) for path in sorted((folder / "pictures").iterdir())]
    posts = [
        {"image": path, "id": number, "split": split, "tokens": words, "ner_tags": tags}
        for number, (path, split) in enumerate(zip(pictures, ("train", "val", "test"), strict=True))
    ]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
    given = [f"data.root={tmp_path}", "data.files=posts.jsonl", "data.columns.caption=tokens", "data.images=/"]
    line = ["evaluate", f"checkpoint={tmp_path}/ours", *given, "split=test", "trainer.accelerator=cpu"]
    assert run([*line, f"output_dir={tmp_path}/scores"]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "scores/metrics.json").read_text()).keys() >= {
        "table/words_accuracy",
        "table/words_f1",
    }
    (record,) = map(json.loads, next((tmp_path / "scores/predictions").glob("*.jsonl")).read_text().splitlines())
    assert record["text_id"] == 2
    assert [("a red circle"[each["start"] : each["end"]]) for each in record["labels"]] == words
    assert {each["label"] for each in record["labels"]} <= set(names.values())
    line = ["train", "--config-dir", f"{tmp_path}/ours", "experiment=imported", *given, "trainer=cpu"]
    small = [
        "trainer.fast_dev_run=2",
        "data.sources.table.batch_size=1",
        "data.num_workers=0",
        f"output_dir={tmp_path}/run",
    ]
    assert run([*line, *small]) == 0, capsys.readouterr().err
