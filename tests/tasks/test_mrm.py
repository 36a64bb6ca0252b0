"""Masked region modelling: what is hidden, what must be told, what is refused."""

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.scoring.scorers import HIDDEN
from fusionkit.tasks.mrm import MRM, can_hide, choose
from fusionkit.types import Tokens
from tests.toys import CLASSES, measured, toy_batch, toy_dims, toy_model, toy_no_rows


def build(regions=True, **options):
    torch.manual_seed(0)
    model = toy_model("merged_attention", regions)
    return model, MRM(toy_dims(model), **options)


def run(model, task, batch):
    return task(model, batch, model.encode(batch, ["captions"]))


def test_every_image_hides_something_and_never_padding():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    can = can_hide(Tokens(torch.zeros(2, 4, 3), mask, torch.zeros(2, 3)), prefix=0)
    for seed in range(20):
        torch.manual_seed(seed)
        chosen = choose(torch.rand(2, 4), 0.15, can)
        assert chosen.any(dim=1).all()
        assert not (chosen & ~mask.bool()).any()
    assert can_hide(Tokens(torch.zeros(1, 3, 2), None, torch.zeros(1, 2)), prefix=1).tolist() == [[False, True, True]]


@pytest.mark.parametrize("regions", [True, False], ids=["regions", "pixels"])
def test_what_is_hidden_is_not_seen(regions):
    """Other contents of the hidden places change nothing that the encoder gives."""
    model, task = build(regions)
    encoder = model.image_encoder
    batch = toy_batch(images=3)
    images, tokens = model.images_of(batch), model.encode(batch, []).image
    chosen = choose(torch.rand(tokens.embeds.shape[:2]), 0.4, can_hide(tokens, encoder.num_prefix_tokens))
    other = model.images_of(toy_batch(images=3))
    if regions:
        features = torch.where(chosen[..., None], other.features, images.features)
        changed = images._replace(features=features)
    else:
        painted = encoder.hide(images, chosen, torch.full((3,), 9.0)) == 9.0
        assert painted.float().mean() == pytest.approx(chosen[:, 1:].float().mean().item())
        changed = torch.where(painted, other, images)
    first, second = (encoder(encoder.hide(each, chosen, task.filling)).embeds for each in (images, changed))
    assert torch.equal(first, second)
    assert not torch.equal(encoder(images).embeds, encoder(changed).embeds)


def test_the_loss_is_the_mean_squared_error_of_the_detector_s_features():
    model, task = build(probability=0.3)
    torch.manual_seed(1)
    out = run(model, task, toy_batch(images=4))
    assert out.loss.item() == pytest.approx((out.logits - out.targets).square().mean().item())
    assert out.targets.shape[1] == model.image_encoder.feature_size


@pytest.mark.parametrize("is_soft", [True, False])
def test_classes_are_told_where_there_are_some(is_soft):
    model, task = build(num_classes=CLASSES, is_soft=is_soft)
    batch = toy_batch(images=4)
    out = run(model, task, batch)
    assert out.loss.item() == pytest.approx(sum(measured(task, out).values()))
    assert measured(task, out)["class_loss"] > 0
    out.loss.backward()
    assert not [n for n, p in task.named_parameters() if p.grad is None]
    nothing = run(model, task, batch | {"captions": toy_no_rows("captions")})
    assert nothing.loss.item() == 0


def test_the_hard_class_is_never_the_background():
    _, task = build(num_classes=3, is_soft=False)
    logits = torch.tensor([[9.0, 0.0, 0.0]])
    background, count = task.class_loss(logits, torch.tensor([[0.9, 0.0, 0.1]]))
    assert count == 1
    assert background.item() == pytest.approx(torch.logsumexp(logits, dim=1).item())


def test_missing_class_scores_are_one_sentence():
    model, task = build(num_classes=7)
    batch = toy_batch(images=2)
    with pytest.raises(ConfigError, match=r"num_classes is 7, .* scores of 5 classes; set task\.mrm\.num_classes=null"):
        run(model, task, batch)
    with pytest.raises(ConfigError, match="no class scores"):
        run(model, task, batch | {"regions": batch["regions"]._replace(class_scores=None)})
    for probability in (0, 1):
        with pytest.raises(ConfigError, match=rf"task\.mrm\.probability is {probability}"):
            build(probability=probability)


def test_the_score_is_the_share_that_a_mean_would_leave():
    sample = type("Sample", (), {"image_id": 1})
    assert HIDDEN([{"image_id": 1, "error": 1.0, "mean_error": 4.0}], [sample]) == {"mrm_explained": 75.0}
    assert HIDDEN([], []) == {}
