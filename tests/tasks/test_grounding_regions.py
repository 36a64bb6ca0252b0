"""Choosing among the regions of an image."""

import pytest
import torch
from torch import nn
from torchvision.ops import box_convert, box_iou

from fusionkit.errors import ConfigError
from fusionkit.tasks.grounding_regions import NONE, GroundingRegions, overlap
from tests.toys import measured, toy_batch, toy_dims, toy_model


def build(**options):
    torch.manual_seed(0)
    model = toy_model("merged_attention", regions=True).eval()
    return model, GroundingRegions(toy_dims(model), **options).eval()


def test_overlaps_are_torchvisions():
    torch.manual_seed(0)
    boxes = torch.cat([torch.rand(5, 2), torch.rand(5, 2) * 0.4 + 0.1], dim=1)
    corners = box_convert(torch.cat([torch.rand(20, 2), torch.rand(20, 2) * 0.4 + 0.1], dim=1), "cxcywh", "xyxy")
    expected = box_iou(box_convert(boxes, "cxcywh", "xyxy"), corners)
    torch.testing.assert_close(overlap(corners.expand(5, -1, -1), boxes), expected)
    apart = torch.tensor([[[0.0, 0.0, 0.1, 0.1]]])
    assert overlap(apart, torch.tensor([[0.5, 0.5, 0.2, 0.2]])) == 0


def test_the_true_token_has_to_score_above_the_other_by_a_margin():
    _, task = build(loss="ranking", margin=0.2)
    scores = torch.tensor([[0.0, 0.0, -1.0], [2.0, -2.0, 0.0]])
    found = task.losses(scores, torch.tensor([0, 0]), others=torch.tensor([1, 1]))
    assert found.tolist() == pytest.approx([0.2, 0.0])
    found = task.losses(scores, torch.tensor([1, 1]), others=torch.tensor([0, 0]))
    wrong, right = torch.tensor([2.0, -2.0]).sigmoid().tolist()
    assert found.tolist() == pytest.approx([0.2, 0.2 + wrong - right])


def test_the_choice_is_a_cross_entropy_over_the_tokens():
    _, task = build()
    scores, targets = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    expected = nn.functional.cross_entropy(scores, targets, reduction="none")
    torch.testing.assert_close(task.losses(scores, targets), expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_often_is_the_other_the_highest_false_one(share):
    _, task = build(loss="ranking", hard_share=share)
    torch.manual_seed(0)
    scores = torch.tensor([[5.0, 4.0, 1.0, 0.0, NONE]]).expand(20_000, -1)  # the first is true, the last padding
    drawn = torch.bincount(task.draw(scores, torch.zeros(20_000, dtype=torch.long)), minlength=5) / 20_000
    assert drawn[0] == drawn[4] == 0
    assert drawn[1].item() == pytest.approx(share + (1 - share) / 3, abs=0.015)
    assert drawn[2].item() == pytest.approx((1 - share) / 3, abs=0.015)


def test_a_predicted_box_is_the_best_regions_in_pixels():
    model, task = build()
    batch = toy_batch(images=2)
    batch["image_sizes"] = torch.tensor([[200.0, 100.0], [50.0, 400.0]])
    encoded = model.encode(batch, ["expressions"])
    scores, corners = task.score_tokens(model, batch, encoded)
    records = task.predict(model, batch, encoded)
    for row, record in enumerate(records):
        left, top, right, bottom = corners[row, scores[row].argmax()].tolist()
        width, height = batch["image_sizes"][row].tolist()
        expected = [left * width, top * height, (right - left) * width, (bottom - top) * height]
        assert record["bbox"] == pytest.approx(expected, rel=1e-5)
        assert min(expected[2:]) > 0


def test_padding_is_never_chosen_and_what_no_region_overlaps_teaches_nothing():
    model, task = build()
    batch = toy_batch(images=4)
    encoded = model.encode(batch, ["expressions"])
    scores, corners = task.score_tokens(model, batch, encoded)
    is_padding = corners.sum(dim=2) == 0
    assert is_padding.any()
    assert (scores[is_padding] == NONE).all()
    assert (scores[~is_padding] > NONE).all()
    batch["expressions"]["boxes"][1:] = torch.tensor([5.0, 5.0, 0.1, 0.1])  # far from all
    out = task(model, batch, encoded)
    best = overlap(corners, batch["expressions"]["boxes"]).argmax(dim=1)
    torch.testing.assert_close(out.loss, nn.functional.cross_entropy(scores[:1], best[:1]))
    assert measured(task, out)["accuracy"] == float(scores[0].argmax() == best[0])


def test_an_unknown_loss_is_told():
    with pytest.raises(ConfigError, match=r"task\.grounding_regions\.loss is 'chioce'; did you mean 'choice'"):
        build(loss="chioce")
