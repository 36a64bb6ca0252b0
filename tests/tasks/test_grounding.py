"""Attention-weighted pooling of the image tokens."""

import pytest
import torch

from fusionkit.tasks.grounding import Grounding, ImagePooling
from fusionkit.tasks.region_grounding import RegionGrounding
from fusionkit.types import Tokens
from tests.toys import toy_batch, toy_dims, toy_model


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
