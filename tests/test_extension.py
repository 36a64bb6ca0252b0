"""A new fusion and a new task, defined in this file, train, evaluate and predict without an edit of the package.

Each is what docs/extending.md asks of it: a class, and a yaml that names it, in a folder of the user's own (``--config-dir``).
"""

import json
import re

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.regression import MeanAbsoluteError

from fusionkit.checkpoints.pretrained import from_pretrained
from fusionkit.cli.main import run
from fusionkit.errors import ConfigError
from fusionkit.fusion.layers import Attention
from fusionkit.scoring.record_schema import RecordSchema, is_number
from fusionkit.scoring.sample_scores import SampleScores
from fusionkit.tasks.base import Task
from fusionkit.types import Fused, TaskOutput

MODULE = "tests.test_extension"


class ToyFusion(nn.Module):
    """The text, plus what one attention over the image adds."""

    provides = frozenset({"pooled", "text"})

    def __init__(self, image_size, text_size, num_heads=2):
        super().__init__()
        self.pooled_size = self.hidden_size = text_size
        self.attention = Attention(text_size, num_heads, context_size=image_size)

    def prepare(self, image):
        return image

    def forward(self, memory, text, image_index):
        keys_values = self.attention.project(memory.embeds[image_index], None)
        states = text.embeds + self.attention(text.embeds, keys_values)
        return Fused(pooled=states[:, 0], text=states)


class CaptionLength(Task):
    """Regress the number of tokens of a caption: an objective on data that exists."""

    needs = frozenset({"pooled"})
    reads = "captions"

    def __init__(self, dims, scorer=None):
        super().__init__(scorer)
        self.metrics = MetricCollection({"off_by": MeanAbsoluteError()})
        self.head = nn.Linear(dims.pooled_size, 1)

    def _lengths(self, model, batch, encoded):
        fused = model.fuse(encoded.memory, encoded.text[self.reads], batch["captions"]["image_index"])
        return self.head(fused.pooled).squeeze(1).float()

    def forward(self, model, batch, encoded, teacher=None):
        lengths, targets = self._lengths(model, batch, encoded), batch["captions"]["attention_mask"].sum(1) / 10
        told = {"off_by": (lengths, targets), "longest": targets.max()}
        return TaskOutput(nn.functional.mse_loss(lengths, targets), lengths, targets, told)

    def predict(self, model, batch, encoded):
        lengths = self._lengths(model, batch, encoded).tolist()
        return [{"caption_id": i, "length": n} for i, n in zip(batch["captions"]["ids"], lengths, strict=True)]


def count_records(records, samples):
    """A scorer of one's own: a plain function."""
    return {"length_mean": sum(record["length"] for record in records) / len(records)}


class LengthError:
    """A scorer of one's own, with rows: how many words the length is off by."""

    schema = (RecordSchema("captions", "caption_id", "length", "a number", is_number),)
    metrics = {"words_off": False}  # noqa: RUF012

    def rows(self, records, samples):
        said = {record["caption_id"]: record["length"] for record in records}
        rows = []
        for sample in samples:
            for text in sample.texts["captions"]:
                off = abs(10 * said[text.id] - len(text.text.split()))
                row = {"id": text.id, "score": max(0.0, 100 - 10 * off), "image_id": sample.image_id}
                rows.append({**row, "values": {"words_off": off}})
        return SampleScores(rows)


def write_config(folder):
    (folder / "fusion").mkdir(parents=True)
    (folder / "task").mkdir()
    (folder / "fusion" / "toy.yaml").write_text(f"_target_: {MODULE}.ToyFusion\n_partial_: true\nnum_heads: 4\n")
    (folder / "task" / "caption_length.yaml").write_text(
        f"# @package task.caption_length\n_target_: {MODULE}.CaptionLength\n_partial_: true\n"
        f"scorer:\n  _target_: hydra.utils.get_object\n  path: {MODULE}.count_records\n"
    )
    (folder / "task" / "caption_error.yaml").write_text(
        f"# @package task.caption_error\n_target_: {MODULE}.CaptionLength\n_partial_: true\n"
        f"scorer:\n  _target_: {MODULE}.LengthError\n"
    )
    (folder / "task" / "box_error.yaml").write_text(
        "# @package task.box_error\n_target_: fusionkit.tasks.grounding.Grounding\n_partial_: true\n"
        "scorer:\n  _target_: fusionkit.training.metrics.MetricScorer\n  prediction: bbox\n  target: box\n  key: sent_id\n"
        "  kind: expressions\n  name: box_error\n"
        "  metric: {_target_: torchmetrics.regression.MeanAbsoluteError}\n"
    )


def assert_shown_unasked(output, page, records, capsys):
    """Rows, intervals, galleries, directions and a place in the comparison, of a plain function and of a class."""
    metrics = json.loads((output / "metrics.json").read_text())
    details = json.loads((output / "details.json").read_text())
    for task, metric in (("caption_length", "length_mean"), ("caption_error", "words_off")):
        rows = (output / "samples" / f"shapes_{task}.jsonl").read_text().splitlines()
        assert len(rows) == len(records)
        low, high = details[f"shapes_{task}"]["intervals"][metric]
        assert low < metrics[f"shapes/{metric}"] < high
        assert (output / "gallery" / f"shapes_{task}.png").exists()
    directions = json.loads((output / "directions.json").read_text())
    assert directions["shapes/words_off"] is False
    assert "shapes/length_mean" not in directions
    assert run(["compare", str(output), f"output_dir={page}", "resamples=50", "examples=2"]) == 0, (
        capsys.readouterr().err
    )
    table = (page / "table.md").read_text()
    for metric in ("length_mean", "words_off", "text_to_image_r1"):
        assert f"`shapes/{metric}`" in table
    assert len(re.findall(r"\d \(-?[\d.]+ to -?[\d.]+\)", table)) >= 3
    html = (page / "index.html").read_text()
    assert html.count("<summary>shapes_caption_error</summary>") == 1
    assert '<p dir="auto" class="asked">' in html


def test_a_toy_fusion_and_a_toy_task_train_without_a_package_edit(tmp_path, capsys):
    conf, output = tmp_path / "conf", tmp_path / "run"
    write_config(conf)
    data = [f"data.root={tmp_path}/shapes", "data.prepare.scenes=40", "data.sources.shapes.batch_size=8"]
    small = [
        "text_encoder.config.num_hidden_layers=1",
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=2",
        "logger=csv",
    ]
    chosen = [
        "fusion=toy",
        "task=[itc,caption_length,caption_error,box_error]",
        "objectives=none",
        "trainer.accelerator=cpu",
    ]
    weights = ["+objectives.shapes.itc=1", "+objectives.shapes.caption_length=0.5", f"output_dir={output}"]
    weights += ["+objectives.shapes.caption_error=0.5", "+objectives.shapes.box_error=1"]
    code = run(["train", "--config-dir", str(conf), *chosen, *weights, *data, *small])
    assert code == 0, capsys.readouterr().err
    metrics = json.loads((output / "metrics.json").read_text())
    assert {"shapes/length_mean", "shapes/text_to_image_r1"} <= set(metrics)
    rows = [json.loads(line) for line in (output / "samples" / "shapes_box_error.jsonl").read_text().splitlines()]
    assert metrics["shapes/box_error"] == pytest.approx(sum(row["values"]["box_error"] for row in rows) / len(rows))
    assert json.loads((output / "directions.json").read_text())["shapes/box_error"] is False
    logged = (output / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {f"train/shapes/caption_length_{name}" for name in ("off_by", "longest", "loss")} <= set(logged)
    checkpoint = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert "tasks.caption_length.head.weight" in checkpoint["state_dict"]
    assert "model.fusion.attention.query.weight" in checkpoint["state_dict"]
    lines = (output / "predictions" / "shapes_caption_length.jsonl").read_text().splitlines()
    assert set(json.loads(lines[0])) == {"caption_id", "length"}
    assert_shown_unasked(output, tmp_path / "page", lines, capsys)
    capsys.readouterr()

    # to others, and to the user another day, its configuration is data
    ask = ["predict", f"checkpoint={output}/checkpoints/last.ckpt", f"image={tmp_path}/shapes/images", "text=a star"]
    assert run([*ask, "by=itc"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"fusion._target_ is '{MODULE}.ToyFusion'" in told
    assert "add trust=[tests]" in told
    assert run([*ask, "by=itc", "trust=[tests]"]) == 0, capsys.readouterr().err
    assert run(["export", ask[1], f"output={tmp_path}/exported", f"trust={MODULE}"]) == 0, capsys.readouterr().err
    assert from_pretrained(tmp_path / "exported", trust=["tests"]).model.fusion.hidden_size
    with pytest.raises(ConfigError, match=r"add trust=\[tests\]"):
        from_pretrained(tmp_path / "exported")
