"""Losses against closed forms and torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou

from fusionkit.losses import (
    IGNORE,
    box_loss,
    contrastive_targets,
    global_mean,
    iou_and_giou,
    masked_cross_entropy,
    soft_binary_cross_entropy,
    soft_cross_entropy,
)
from fusionkit.tasks.metrics import hits


def test_soft_cross_entropy_is_torchs_for_probabilities():
    logits, targets = torch.randn(5, 7), torch.rand(5, 7).softmax(dim=1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), F.cross_entropy(logits, targets))


def test_soft_cross_entropy_survives_columns_that_are_out():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.isfinite(logits.grad).all()


def test_contrastive_targets_share_one_image_between_its_captions():
    targets = contrastive_targets(torch.tensor([7, 8]), torch.tensor([7, 8, 7, 9]))
    assert targets.tolist() == [[0.5, 0.0, 0.5, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_masked_cross_entropy_of_nothing_is_zero_with_a_gradient():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_binary_cross_entropy_is_the_published_mean_times_answers():
    logits, targets = torch.randn(4, 9), torch.rand(4, 9)
    published = F.binary_cross_entropy_with_logits(logits, targets) * 9  # UNITER: mean * number of answers
    torch.testing.assert_close(soft_binary_cross_entropy(logits, targets), published)


def test_generalized_iou_is_torchvisions():
    boxes, others = (torch.cat([torch.rand(20, 2), torch.rand(20, 2) * 0.5 + 0.05], dim=1) for _ in range(2))
    corners = [box_convert(b, "cxcywh", "xyxy") for b in (boxes, others)]
    torch.testing.assert_close(iou_and_giou(boxes, others)[1], generalized_box_iou(*corners).diagonal())


def test_a_degenerate_box_spoils_its_own_row_only():
    good = torch.tensor([0.5, 0.5, 0.2, 0.2])
    boxes = torch.stack([good, torch.tensor([0.5, 0.5, 0.0, 0.0])])
    assert torch.isfinite(iou_and_giou(boxes, boxes)[1]).all()
    assert iou_and_giou(boxes, boxes)[1][0] == pytest.approx(1.0)
    l1, giou = box_loss(boxes, torch.stack([good, good]))
    assert l1.item() == pytest.approx(0.2)  # (0 + 0.4) / 2
    assert giou.item() == pytest.approx(0.5)  # the empty box covers none of the other: IoU 0, hull = union


def test_losses_are_computed_in_fp32_whatever_the_precision():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 50) * 4, torch.randn(6, 50).softmax(dim=1)
    low, labels = logits.to(torch.bfloat16), torch.randint(50, (6,))
    for loss, wanted in (
        (soft_cross_entropy(low, targets), F.cross_entropy(low.float(), targets)),
        (masked_cross_entropy(low, labels), F.cross_entropy(low.float(), labels)),
        (soft_binary_cross_entropy(low, targets), F.binary_cross_entropy_with_logits(low.float(), targets) * 50),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted)
    boxes = torch.rand(4, 4).to(torch.bfloat16)
    assert {part.dtype for part in box_loss(boxes, boxes)} == {torch.float32}


def test_one_degenerate_box_drops_the_overlap_of_all_where_xvlms_mistake_is_asked_for():
    good, inside_out = torch.tensor([0.5, 0.5, 0.2, 0.2]), torch.tensor([0.5, 0.5, -0.1, 0.2])
    both, shifted = torch.stack([good, good]), torch.stack([good + 0.05, good])
    assert box_loss(both, shifted, True)[1] == box_loss(both, shifted)[1] > 0
    assert box_loss(torch.stack([good, inside_out]), both, True)[1] == 0
    assert box_loss(torch.stack([good, inside_out]), both)[1] > 0


def test_no_row_has_no_loss():
    nothing = torch.zeros(0, 4)
    assert soft_cross_entropy(nothing, nothing) == soft_binary_cross_entropy(nothing, nothing) == 0
    assert [part.item() for part in box_loss(nothing, nothing)] == [0.0, 0.0]


def test_rows_to_ignore_teach_nothing_and_are_not_counted():
    logits, targets = torch.randn(4, 3), torch.tensor([0, IGNORE, 2, IGNORE])
    expected = F.cross_entropy(logits[[0, 2]], targets[[0, 2]], label_smoothing=0.1)
    torch.testing.assert_close(masked_cross_entropy(logits, targets, label_smoothing=0.1), expected)
    assert masked_cross_entropy(logits, torch.full((4,), IGNORE)) == 0
    best = logits.argmax(dim=1)
    assert hits(logits, torch.tensor([best[0], IGNORE, (best[2] + 1) % 3, IGNORE])) == (1, 2)
    assert hits(logits, torch.full((4,), IGNORE)) == hits(logits[:0], targets[:0]) == (0, 0)


@pytest.mark.parametrize("count", [4, torch.tensor(4)])
def test_alone_a_mean_is_the_sum_over_the_count(count):
    assert global_mean(torch.tensor(6.0), count) == 1.5
    assert global_mean(torch.tensor(0.0), 0 * count) == 0


def test_losses_are_in_fp32_at_least():
    double, low = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.bfloat16)
    soft, boxes = torch.rand(3, 4), torch.rand(3, 4)
    losses = (soft_cross_entropy, soft_binary_cross_entropy, lambda x, y: sum(box_loss(x.sigmoid(), y)))
    for loss, targets in zip(losses, (soft, soft, boxes), strict=True):
        assert loss(double, targets).dtype == torch.float64
        assert loss(low, targets).dtype == torch.float32
