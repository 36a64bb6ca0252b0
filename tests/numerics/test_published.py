"""Numbers and formulas of the published code that no other test holds.

Elsewhere: masking (tests/tasks/test_mlm.py), answer ranking (test_vqa_generative.py), soft targets and the vocabulary rule
(tests/data/test_answers.py), RandAugment (test_randaugment.py), schedules (tests/training/test_schedule.py), re-ranking and
retrieval (tests/evaluation), gradients over ranks (tests/distributed).
"""

import math

import pytest
import torch
import torch.nn.functional as F

from fusionkit.checkpoints.base import resize_positions
from fusionkit.losses import box_loss, iou_and_giou, soft_binary_cross_entropy
from fusionkit.model.momentum import MomentumTeacher
from fusionkit.negatives import HardNegatives
from fusionkit.scoring.vqa import always_normalized_accuracy, official_accuracy
from fusionkit.tasks.itc import ITC
from tests.toys import toy_batch, toy_dims, toy_model

ALPHA = 0.4


def moved(model):
    """A model that has left the one its teacher was copied from."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def contrast():
    """A model, its contrast task with a queue that holds two earlier pairs, a teacher, and a batch of four."""
    torch.manual_seed(0)
    model = toy_model()
    itc = ITC(toy_dims(model), queue_size=2)
    teacher = MomentumTeacher(model, {"itc": itc}, alpha=ALPHA)
    earlier = toy_batch(images=2)
    with torch.no_grad():
        itc(model, earlier, model.encode(earlier, ["captions"]))
    batch = toy_batch(images=4)
    batch["image_keys"] += 100
    return moved(model), itc, teacher, batch


def test_contrast_with_momentum_soft_targets(contrast):
    """ALBEF model_pretrain.py: y = alpha softmax(s_m) + (1 - alpha) onehot, s = f . [f_m; queue] / tau, one tau for both."""
    model, itc, teacher, batch = contrast
    queues = {"image": itc.image_queue.feats.clone(), "text": itc.text_queue.feats.clone()}
    encoded, seen = model.encode(batch, ["captions"]), teacher.encode(batch, ["captions"])
    student = {"image": encoded.image_feats, "text": encoded.text_feats["captions"]}
    theirs = {"image": seen.image_feats, "text": seen.text_feats["captions"]}
    loss = 0
    for query, key in (("image", "text"), ("text", "image")):
        columns = torch.cat([theirs[key], queues[key]])
        soft = (theirs[query] @ columns.T / model.temperature.detach()).softmax(dim=1)
        targets = ALPHA * soft + (1 - ALPHA) * F.pad(torch.eye(4), (0, 2))
        loss = loss - (targets * (student[query] @ columns.T / model.temperature).log_softmax(dim=1)).sum(1).mean() / 2
    found = itc(model, batch, encoded, teacher.view("itc", seen, ALPHA)).loss
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    assert torch.equal(itc.text_queue.feats, theirs["text"][-2:])  # enqueued after the loss: the teacher's


def test_contrast_trains_the_query_side_and_the_temperature_only(contrast):
    model, itc, teacher, batch = contrast
    feats = {"image": torch.randn(4, 16), "text": torch.randn(4, 16)}
    feats = {side: F.normalize(value, dim=1).requires_grad_() for side, value in feats.items()}
    encoded = model.encode(batch, ["captions"])
    replaced = type(encoded)(encoded.image, encoded.memory, feats["image"], encoded.text, {"captions": feats["text"]})
    seen = teacher.encode(batch, ["captions"])
    itc(model, batch, replaced, teacher.view("itc", seen, 0.0)).loss.backward()
    assert all(value.grad.abs().sum() > 0 for value in feats.values())
    assert model.temperature.grad is not None
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_temperature_stays_within_its_published_range():
    model = toy_model(temperature=0.07, temperature_range=(0.001, 0.5))
    assert model.temperature.item() == pytest.approx(0.07)
    for wild, kept in ((-1.0, 0.001), (3.0, 0.5)):
        model.temperature.data.fill_(wild)
        model.clamp_temperature()
        assert model.temperature.item() == pytest.approx(kept)


@pytest.mark.parametrize("floor", [1e-4, 1e-5], ids=["BLIP", "X-VLM"])
def test_the_published_floor_is_added_after_the_softmax_over_all(floor):
    torch.manual_seed(0)
    similarity, own = torch.randn(6, 6) * 8, torch.eye(6, dtype=torch.bool)
    published = (similarity.softmax(dim=1) + floor).masked_fill(own, 0)
    published = published / published.sum(dim=1, keepdim=True)
    law = HardNegatives(floor=floor).logits(similarity, None).masked_fill(own, -math.inf).softmax(dim=1)
    torch.testing.assert_close(law, published, rtol=1e-5, atol=1e-7)
    drawn = HardNegatives(floor=floor)(similarity[:1].expand(20_000, -1), own[:1].expand(20_000, -1)).columns
    shares = torch.bincount(drawn.flatten(), minlength=6) / 20_000
    torch.testing.assert_close(shares, published[0], atol=0.015, rtol=0)


def test_a_floor_distorts_a_large_batch_and_the_right_law_survives_low_temperatures():
    torch.manual_seed(0)
    feats = F.normalize(torch.randn(512, 64), dim=1)
    cosine, own = feats @ feats.T, torch.eye(512, dtype=torch.bool)
    laws = [
        negatives.logits(cosine / 0.05, None).masked_fill(own, -math.inf).softmax(dim=1)
        for negatives in (HardNegatives(), HardNegatives(floor=1e-4))
    ]
    assert (laws[0] - laws[1]).abs().sum(dim=1).mean() / 2 > 0.3  # total variation
    cold = HardNegatives()(cosine / 0.001, own)  # ALBEF's order, softmax first, has rows of only zeros here
    assert ((cosine / 0.001).softmax(dim=1).masked_fill(own, 0).sum(dim=1) == 0).any()
    assert cold.is_valid.all()
    assert (cold.columns.squeeze(1) != torch.arange(512)).all()


def test_matching_that_has_collapsed_costs_the_entropy_of_one_third():
    prior = torch.tensor([[2 / 3, 1 / 3]]).log().expand(3, -1)
    assert F.cross_entropy(prior, torch.tensor([1, 0, 0])).item() == pytest.approx(0.63651, abs=1e-5)


def test_vqa_loss_is_the_mean_times_3129():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 3129), (torch.rand(2, 3129) > 0.999).float() * 0.9
    published = F.binary_cross_entropy_with_logits(logits, targets) * 3129
    torch.testing.assert_close(soft_binary_cross_entropy(logits, targets), published)


@pytest.mark.parametrize(
    ("answer", "humans", "official", "normalized"),
    [
        ("t-shirt", ["t-shirt"] * 10, 1, 1),
        ("two", ["two"] * 10, 1, 1),
        ("the beach", ["the beach"] * 8 + ["sea", "sand"], 1, 1),
        ("no", ["No"] * 10, 0, 1),
        ("2", ["two"] * 10, 0, 1),
    ],
)
def test_the_official_accuracy_where_published_copies_differ(answer, humans, official, normalized):
    assert official_accuracy(answer, humans) == official
    assert always_normalized_accuracy(answer, humans) == normalized


def test_box_losses_by_hand_and_the_published_zero_for_a_whole_batch():
    boxes = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.2, 0.2]], requires_grad=True)
    targets = torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.5, 0.5, 0.4, 0.4]])
    # overlap 1/4 x 1/2, union 3/8, hull 3/8: IoU 1/3 = GIoU; the second is inside: 0.04 / 0.16
    torch.testing.assert_close(iou_and_giou(boxes, targets)[1], torch.tensor([1 / 3, 1 / 4]))
    l1, giou = box_loss(boxes, targets)
    assert l1.item() == pytest.approx((0.25 + 0.4) / 2)
    assert giou.item() == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert box_loss(boxes, targets, giou_all_or_nothing=True)[1].item() == giou.item()
    targets[1, 2] = -0.4
    assert box_loss(boxes, targets)[1] > 0.5
    l1, giou = box_loss(boxes, targets, giou_all_or_nothing=True)
    assert l1 > 0
    assert giou.item() == 0
    (l1 + giou).backward()
    assert boxes.grad.isfinite().all()


def test_position_embeddings_are_resized_bicubically_without_their_prefix():
    table = torch.arange(1, 21).float().reshape(1, 10, 2).sin()
    resized = resize_positions(table, torch.Size([1, 17, 2]))
    golden = [0.8414710, 0.1990190, -0.7467185, -0.4870110, 0.7909792, 0.3800097, -0.6965012, -0.5804039, 0.6446343]
    torch.testing.assert_close(resized[0, :9, 0], torch.tensor(golden), rtol=0, atol=1e-6)
    assert torch.equal(resized[:, :1], table[:, :1])
    assert resize_positions(table, table.shape) is table
    flat = torch.ones(1, 11, 2)
    torch.testing.assert_close(resize_positions(flat, torch.Size([1, 51, 2]), 2), torch.ones(1, 51, 2))
