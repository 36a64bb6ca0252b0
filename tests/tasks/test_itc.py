"""Contrast: positives by image, the queue, the teacher."""

import copy
import re
from dataclasses import replace

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.losses import soft_cross_entropy
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.reporting.measure_cost import kept_bytes
from fusionkit.tasks.itc import EMPTY, ITC, FeatureQueue, modality_gap
from tests.toys import measured, toy_batch, toy_dims, toy_model


def build(**options):
    torch.manual_seed(0)
    model = toy_model()
    return model, ITC(toy_dims(model), **options)


def test_loss_is_the_two_way_cross_entropy_with_shared_positives():
    model, itc = build()
    batch = toy_batch(images=3, texts_per_image=2)
    batch["image_keys"][2] = batch["image_keys"][0]  # the same photo twice
    encoded = model.encode(batch, ["captions"])
    sim = encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature
    owner = batch["image_keys"][batch["captions"]["image_index"]]
    positive = (batch["image_keys"][:, None] == owner[None]).float()
    expected = (
        soft_cross_entropy(sim, positive / positive.sum(1, keepdim=True))
        + soft_cross_entropy(sim.T, positive.T / positive.T.sum(1, keepdim=True))
    ) / 2
    torch.testing.assert_close(itc(model, batch, encoded).loss, expected)


def test_an_empty_queue_changes_nothing_and_a_filled_one_adds_columns():
    model, itc = build(queue_size=5)
    batch = toy_batch(images=4)
    encoded = model.encode(batch, ["captions"])
    plain = ITC(toy_dims(model))(model, batch, encoded).loss
    torch.testing.assert_close(itc(model, batch, encoded).loss, plain)
    batch["image_keys"] += 100  # other images than the queue now holds
    assert itc(model, batch, encoded).loss > plain


@pytest.mark.parametrize("size", [3, 5, 8, 13])
def test_queue_keeps_the_newest_whatever_its_length(size):
    queue = FeatureQueue(size, 2)
    for first in range(0, 20, 4):
        keys = torch.arange(first, first + 4)
        queue.push(keys[:, None].float().expand(-1, 2), keys)
    assert sorted(queue.keys.tolist()) == list(range(20 - size, 20))
    assert torch.equal(queue.feats[:, 0].long(), queue.keys)


def test_queue_starts_empty_and_evaluation_leaves_it_alone():
    model, itc = build(queue_size=6)
    batch = toy_batch(images=4)
    itc.eval()(model, batch, model.encode(batch, ["captions"]))
    assert (itc.text_queue.keys == EMPTY).all()


def test_teacher_targets_are_mixed_in_by_alpha():
    model, itc = build()
    batch = toy_batch(images=4)
    teacher = MomentumTeacher(model, {"itc": itc})
    with torch.no_grad():
        model.image_projection.weight.add_(torch.randn_like(model.image_projection.weight) * 0.1)
    encoded, seen = model.encode(batch, ["captions"]), teacher.encode(batch, ["captions"])
    hard, half, soft = (itc(model, batch, encoded, teacher.view("itc", seen, a)).loss for a in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (hard + soft) / 2)
    assert not torch.isclose(hard, soft)


def test_the_age_of_a_queue_is_the_steps_since_its_entries_were_written():
    model, itc = build(queue_size=10)
    written: list[int] = []  # the step of each entry, the oldest first
    for step in range(5):
        batch = toy_batch(images=4)
        metrics = measured(itc, itc(model, batch, model.encode(batch, ["captions"])))
        ages = [step - at for at in written]
        assert metrics["queue_age"] == pytest.approx(sum(ages) / len(ages) if ages else 0)
        assert metrics["queue_age_max"] == max(ages, default=0)
        written = [*written, *[step] * 4][-10:]
    assert build()[1](model, batch, model.encode(batch, ["captions"])).metrics.keys() == {
        "image_to_text_r1",
        "text_to_image_r1",
        "modality_gap",
    }


def test_the_modality_gap_is_the_distance_of_the_means_of_what_the_batch_shows():
    for queue_size in (0, 6):
        model, itc = build(queue_size=queue_size)
        batch = toy_batch(images=4)
        encoded = model.encode(batch, ["captions"])
        gap = (encoded.image_feats.mean(dim=0) - encoded.text_feats["captions"].mean(dim=0)).norm()
        assert measured(itc, itc(model, batch, encoded))["modality_gap"] == pytest.approx(float(gap), rel=1e-5)
    assert modality_gap(torch.ones(2, 3), torch.ones(0, 3)) == (0, 0)


def test_a_queue_of_features_takes_none_where_one_is_not_finite():
    queue = FeatureQueue(4, 2)
    queue.push(torch.ones(2, 2), torch.tensor([1, 2]))
    queue.push(torch.tensor([[3.0, 3.0], [3.0, torch.nan]]), torch.tensor([3, 4]))
    assert queue.keys.tolist() == [1, 2, EMPTY, EMPTY]
    assert queue.feats.tolist() == [[1, 1], [1, 1], [0, 0], [0, 0]]
    queue.push(torch.full((1, 2), 5.0), torch.tensor([5]))
    assert queue.keys.tolist() == [1, 2, 5, EMPTY]


@pytest.mark.parametrize("size", [3, 7, 40])
def test_a_gradient_is_that_of_the_queue_as_it_was_however_often_it_moves_on(size):
    """Pushes that come round, that are refused, and that are larger than the queue, before the backward pass."""
    torch.manual_seed(0)
    queue = FeatureQueue(size, 4)
    queue.push(torch.randn(size, 4), torch.arange(size))
    rows, weights = torch.randn(2, 4, requires_grad=True), torch.randn(2, size)
    as_it_was = queue.feats.clone()
    cosines = queue.cosines(rows)
    for pushed in (2, 3, 3, 5):
        queue.push(torch.randn(pushed, 4), torch.arange(pushed))
    queue.push(torch.full((2, 4), torch.nan), torch.arange(2))
    assert not torch.equal(queue.feats, as_it_was)
    torch.testing.assert_close(cosines, rows @ as_it_was.T)
    (found,) = torch.autograd.grad((cosines * weights).sum(), [rows])
    torch.testing.assert_close(found, weights @ as_it_was)


def test_two_losses_over_one_queue_have_their_gradients_together():
    """As where two sources contrast: the second pushes before the first has gone backwards."""
    model, itc = build(queue_size=6)
    batches = [toy_batch(images=4) for _ in range(3)]
    for number, batch in enumerate(batches):
        batch["image_keys"] += 10 * number
    itc(model, batches[0], model.encode(batches[0], ["captions"]))
    alone, together = copy.deepcopy(itc), []
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in parameters]
    for batch in batches[1:]:
        loss = alone(model, batch, model.encode(batch, ["captions"])).loss
        together.append(itc(model, batch, model.encode(batch, ["captions"])).loss)
        torch.testing.assert_close(together[-1], loss)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        expected = [e if f is None else e + f for e, f in zip(expected, found, strict=True)]
    found = torch.autograd.grad(sum(together), parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(list(found), expected)


def test_a_queue_is_not_copied_for_the_backward_pass():
    model = toy_model(embed_size=256)
    itc, batch = ITC(toy_dims(model), queue_size=5000), toy_batch(images=4)
    encoded = model.encode(batch, ["captions"])
    kept = kept_bytes(lambda: itc(model, batch, encoded).loss, itc)
    assert 0 < kept < itc.get_buffer("image_queue.feats").nbytes  # of either queue: not one copy


def test_how_many_others_an_image_is_set_against():
    assert build()[1].partners(1, 1) == 0
    assert build()[1].partners(2, 3) == 5
    assert build(queue_size=5)[1].partners(1, 1) == 5


def test_a_cosine_of_half_precision_features_is_computed_in_full():
    model = toy_model()
    batch = toy_batch(images=3)
    encoded = model.encode(batch, ["captions"])
    low = replace(
        encoded,
        image_feats=encoded.image_feats.bfloat16(),
        text_feats={"captions": encoded.text_feats["captions"].bfloat16()},
    )
    exact = (low.image_feats.double() * low.text_feats["captions"].double()).sum(dim=1)
    told = [row["cosine"] for row in ITC(toy_dims(model)).reply(model, batch, low, 1)]
    assert told == pytest.approx(exact.tolist(), abs=1e-6)


def test_pairs_told_alone_by_a_sigmoid_and_a_learnt_bias():
    """SigLIP's sum over all pairs, divided by the rows, where each image has one text; with shared images all of theirs."""
    model, itc = build(loss="sigmoid", bias=-3.0)
    batch = toy_batch(images=4)
    encoded = model.encode(batch, ["captions"])
    logits = encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature - 3.0
    signs = 2 * torch.eye(4) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 4
    torch.testing.assert_close(itc(model, batch, encoded).loss, expected)
    itc(model, batch, encoded).loss.backward()
    assert itc.bias.grad != 0
    batch["image_keys"][1] = batch["image_keys"][0]
    assert itc(model, batch, encoded).targets.sum() == 6


def test_a_teacher_softens_the_targets_of_pairs():
    model, itc = build(loss="sigmoid")
    teacher = MomentumTeacher(model, {"itc": itc})
    batch = toy_batch(images=3)
    encoded, seen = model.encode(batch, ["captions"]), teacher.encode(batch, ["captions"])
    out = itc(model, batch, encoded, teacher.view("itc", seen, 0.25))
    soft = (encoded.image_feats @ encoded.text_feats["captions"].T / model.temperature + itc.bias).sigmoid()
    torch.testing.assert_close(out.targets, 0.75 * torch.eye(3) + 0.25 * soft.detach())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "sigmiod"}, "task.itc.loss is 'sigmiod'; did you mean 'sigmoid'?"),
        (
            {"loss": "sigmoid", "queue_size": 4},
            "task.itc.queue_size is 4, but the sigmoid loss has the pairs of the batch",
        ),
    ],
)
def test_a_loss_that_cannot_be(options, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(**options)
