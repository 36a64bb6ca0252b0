"""Attention-weighted pooling of the image tokens."""

import pytest
import torch
from torchvision.ops import box_iou

from fusionkit.losses import box_loss, to_corners
from fusionkit.tasks.grounding import Grounding, ImagePooling
from fusionkit.tasks.region_grounding import RegionGrounding
from fusionkit.types import Tokens
from tests.toys import measured, toy_batch, toy_dims, toy_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return toy_model()


def test_pooling_is_an_average_of_values_by_its_weights(model):
    dims = toy_dims(model)
    pooling, embeds = ImagePooling(dims), torch.randn(3, 7, dims.image_size)
    image = Tokens(embeds, torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 7]), embeds[:, 0])
    pooled, index = torch.randn(4, dims.pooled_size), torch.tensor([2, 1, 0, 1])
    weights = pooling.weights(pooled, image, index)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert (weights[[1, 3], 4:] == 0).all()
    assert weights[0].std() > 0
    expected = pooled + torch.stack([w @ pooling.value(embeds[i]) for w, i in zip(weights, index, strict=True)])
    torch.testing.assert_close(pooling(pooled, image, index), expected)


def test_it_trains_with_the_task(model):
    batch = toy_batch(images=3, texts_per_image=2)
    task = Grounding(toy_dims(model), pooling=ImagePooling)
    task(model, batch, model.encode(batch, ["expressions"])).loss.backward()
    assert not [n for n, p in task.named_parameters() if p.grad is None]
    assert task.pooling.value.weight.grad.abs().sum() > 0
    assert len(task.predict(model, batch, model.encode(batch, ["expressions"]))) == 6


def test_grounding_of_regions_predicts_in_images_without_views_as_grounding_does(model):
    batch = toy_batch(images=3, texts_per_image=2)
    phrases, captions = Grounding(toy_dims(model)).eval(), RegionGrounding(toy_dims(model)).eval()
    captions.load_state_dict(phrases.state_dict())
    expected = phrases.predict(model, batch, model.encode(batch, ["expressions"]))
    same = batch | {"captions": batch["expressions"]}
    assert captions.predict(model, same, model.encode(same, ["captions"])) == expected


def test_a_predicted_box_is_left_top_width_and_height_in_pixels_of_its_image(model):
    batch = toy_batch(images=2, texts_per_image=1)
    batch["image_sizes"] = torch.tensor([[200.0, 100.0], [50.0, 400.0]])  # width, height
    task = Grounding(toy_dims(model)).eval()
    task.head = torch.nn.Sequential(torch.nn.Linear(task.head[0].in_features, 4), torch.nn.Sigmoid())
    box = torch.tensor([0.5, 0.25, 0.2, 0.3])  # centre, size
    with torch.no_grad():
        task.head[0].weight.zero_()
        task.head[0].bias.copy_(box.logit())
    found = [record["bbox"] for record in task.predict(model, batch, model.encode(batch, ["expressions"]))]
    assert found[0] == pytest.approx([80.0, 10.0, 40.0, 30.0], abs=1e-3)
    assert found[1] == pytest.approx([20.0, 40.0, 10.0, 120.0], abs=1e-3)


def test_a_predicted_box_ends_at_the_border(model):
    batch = toy_batch(images=1)
    batch["image_sizes"] = torch.tensor([[100.0, 100.0]])
    task = Grounding(toy_dims(model)).eval()
    task.head = torch.nn.Sequential(torch.nn.Linear(task.head[0].in_features, 4), torch.nn.Sigmoid())
    with torch.no_grad():
        task.head[0].weight.zero_()
        task.head[0].bias.copy_(torch.tensor([0.9, 0.1, 0.4, 0.4]).logit())
    (record,) = task.predict(model, batch, model.encode(batch, ["expressions"]))
    assert record["bbox"] == pytest.approx([70.0, 0.0, 30.0, 30.0], abs=1e-3)


def test_the_loss_is_the_distance_plus_one_minus_the_overlap(model):
    batch = toy_batch(images=3)
    task = Grounding(toy_dims(model)).eval()
    out = task(model, batch, model.encode(batch, ["expressions"]))
    l1, giou = box_loss(out.logits, batch["expressions"]["boxes"])
    torch.testing.assert_close(out.loss, l1 + giou)
    found = measured(task, out)
    assert [found["l1"], found["giou"]] == pytest.approx([l1.item(), giou.item()])
    corners = [to_corners(boxes) for boxes in (out.logits, batch["expressions"]["boxes"])]
    assert found["iou"] == pytest.approx(box_iou(*corners).diagonal().mean().item(), abs=1e-6)
