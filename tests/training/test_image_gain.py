"""What an objective gains by its images, and the alarm of one that ignores them."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader

from fusionkit.tasks.base import Task
from fusionkit.training.image_gain import ImageGain, image_gains, rows_by_sample, with_other_images
from fusionkit.types import Regions, Stored, TaskOutput
from tests.training.fakes import FakeData, FakeLoader, FakeTask, fake_batch, fake_module
from tests.training.test_diagnostics import Sink
from tests.training.test_module import fit


class Blind(FakeTask):
    """Learns from nothing of the image."""

    def forward(self, model, batch, encoded, teacher=None):
        constant = self.head(torch.ones_like(encoded.image.pooled)).squeeze(1)
        return TaskOutput(F.mse_loss(constant, batch["targets"]) + torch.rand(()), constant, batch["targets"])


def test_the_gain_is_the_loss_of_moved_images_less_the_loss():
    module, batch = fake_module(tasks={"a": FakeTask()}), fake_batch("coco", 0)
    module.eval()
    with torch.no_grad():
        found = image_gains(module, "coco", batch)["coco/a"]
        losses = [
            F.mse_loss(module.tasks["a"].head(module.model.image_encoder(pixels)).squeeze(1), batch["targets"])
            for pixels in (batch["pixel_values"], batch["pixel_values"][[3, 0, 1, 2]])
        ]
    assert float(found) == pytest.approx(float(losses[1] - losses[0]))
    assert float(found) != 0
    assert image_gains(module, "coco", fake_batch("coco", 0, images=1)) is None


def test_the_gain_is_measured_against_the_targets_of_the_data():
    module = fake_module(tasks={"a": FakeTask()}, teacher=True)
    module.eval()
    with torch.no_grad():
        image_gains(module, "coco", fake_batch("coco", 0))
    assert module.teacher.alphas == [0.0, 0.0]  # whose weight of this step is not asked for


def test_where_another_rank_has_one_image_none_is_measured(monkeypatch):
    monkeypatch.setattr("fusionkit.training.image_gain.largest_of_ranks", lambda value, device: max(value, -1))
    assert image_gains(fake_module(tasks={"a": FakeTask()}), "coco", fake_batch("coco", 0)) is None


class SingleLoader(FakeLoader):
    def __iter__(self):
        return ({**batch, **fake_batch("coco", number, images=1)} for number, batch in enumerate(super().__iter__()))


class SingleData(FakeData):
    def train_dataloader(self):
        return CombinedLoader({"coco": SingleLoader("coco", self.batches, self)}, "min_size")


def test_a_source_of_one_image_a_step_is_told_once(tmp_path, recwarn):
    fit(tmp_path, fake_module(), SingleData(), callbacks=[ImageGain(1)], max_epochs=1, log_every_n_steps=1)
    told = [str(each.message) for each in recwarn if "image_gain" in str(each.message)]
    assert len(told) == 1
    assert told[0].startswith("callbacks.image_gain: source coco has one sample a step, but whether it is looked at")


def test_images_of_every_kind_change_places_and_nothing_else_does():
    rows = torch.arange(3)
    regions = Regions(rows[:, None, None].float(), rows[:, None, None].float(), rows[:, None])
    batch = {
        "image_ids": [1, 2, 3],
        "image_keys": rows,
        "regions": regions,
        "stored": Stored((rows, rows + 5)),
        "pixel_mask": rows,
    }
    moved = with_other_images(batch)
    assert moved["image_keys"] is rows
    assert moved["pixel_mask"].tolist() == [2, 0, 1]
    assert [part.tolist() for part in moved["stored"].states] == [[2, 0, 1], [7, 5, 6]]
    assert moved["regions"].mask.tolist() == [[2], [0], [1]]
    assert moved["regions"].class_scores is None
    assert batch["regions"] is regions


def test_a_sample_with_several_images_gets_none_of_its_own():
    seen = torch.tensor([[[3, 0], [0, 4]], [[4, 0], [2, 5]], [[5, 0], [-1, 0]], [[1, 0], [-1, 0]]])
    chats = {"image_index": torch.tensor([0, 2, 2, 1]), "images": seen}
    captions = {"image_index": torch.tensor([1])}
    batch = {"image_ids": list("abcABC"), "pixel_values": torch.arange(6), "captions": captions, "conversations": chats}
    assert rows_by_sample(batch) == [[0, 3], [1], [2, 4, 5]]
    assert with_other_images(batch)["pixel_values"].tolist() == [2, 0, 1, 4, 1, 1]
    pairs = {"image_index": torch.tensor([0, 0, 1]), "other_index": torch.tensor([2, 2, 3])}
    batch = {"image_ids": list("abAB"), "pixel_values": torch.arange(4), "statements": pairs}
    assert with_other_images(batch)["pixel_values"].tolist() == [1, 0, 3, 2]


def test_one_sample_of_two_images_has_no_other_to_exchange():
    chats = {"image_index": torch.tensor([0]), "images": torch.tensor([[[0, 0], [1, 2]]])}
    batch = fake_batch("coco", 0, images=2) | {"conversations": chats}
    assert image_gains(fake_module(tasks={"a": FakeTask()}), "coco", batch) is None


def gains(tmp_path, capsys, task: Task, steps: int = 8, **options):
    sink = Sink(tmp_path)
    more = {"max_steps": steps, "max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 1}
    module = fake_module(tasks={"a": task})
    fit(tmp_path, module, callbacks=[ImageGain(2, window=3, **options)], logger=sink, **more)
    lines = [line for line in capsys.readouterr().out.splitlines() if "ignores" in line]
    return module, [row for row in sink.rows if "train/coco/a_image_gain" in row], sink.alerts, lines


def test_a_task_that_ignores_the_image_is_told_once(tmp_path, capsys):
    _, rows, alerts, lines = gains(tmp_path, capsys, Blind(), 10)
    assert {1, 3, 5, 7, 9} <= {row["step"] for row in rows}  # Lightning tells a number again until there is a new one
    assert {row["train/coco/a_image_gain"] for row in rows} == {0.0}
    assert [title for title, _ in alerts] == ["coco/a ignores the image"]
    assert len(lines) == 1
    assert (
        "with another one its loss is 0.0000 nats higher, the mean of the last 3 times it was measured (step 6)"
        in lines[0]
    )


def test_a_task_that_looks_is_not_told_and_measuring_changes_no_weight(tmp_path, capsys):
    torch.manual_seed(1)
    module, rows, alerts, lines = gains(tmp_path, capsys, FakeTask(), tolerance=-9.0)
    assert len({row["train/coco/a_image_gain"] for row in rows}) == 4
    assert (alerts, lines) == ([], [])
    torch.manual_seed(1)
    other = fake_module(tasks={"a": FakeTask()})
    fit(tmp_path, other, max_steps=8, max_epochs=-1, limit_val_batches=0)
    for name, value in other.state_dict().items():
        assert torch.equal(value, module.state_dict()[name]), name
    assert module.training


def test_the_window_goes_on_where_it_was():
    first = ImageGain(window=3)
    first._gains["a/b"] = deque([0.1, 0.2], maxlen=3)
    first._ignored = {"a/c"}
    second = ImageGain(window=3)
    second.load_state_dict(first.state_dict())
    assert list(second._gains["a/b"]) == [0.1, 0.2]
    assert second._gains["a/b"].maxlen == 3
    assert second._ignored == {"a/c"}


class Broken(FakeTask):
    """Its loss is not finite where images have changed places."""

    def forward(self, model, batch, encoded, teacher=None):
        output = super().forward(model, batch, encoded, teacher)
        return output if self.training else output._replace(loss=output.loss * torch.nan)


def test_what_is_not_finite_is_no_judgement(tmp_path, capsys):
    _, _, alerts, lines = gains(tmp_path, capsys, Broken(), 10)
    assert (alerts, lines) == ([], [])
