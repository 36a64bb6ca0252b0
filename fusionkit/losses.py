"""Losses as functions of tensors, each this rank's share of the mean over the global batch (``global_mean``).

Everything is computed in fp32 at least, whatever the precision of the run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionkit.distributed import mean_over_ranks
from fusionkit.types import CHOICE, NUMBERS, at_least_fp32

IGNORE = -100  # the target of a row that teaches nothing


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """A rank's sum over its own rows, divided by the mean number of rows of the ranks; 0 where no rank has any.

    DDP averages gradients, so W ranks together have the mean over all rows, as one process has, however many rows each has.
    With gradient accumulation each micro-batch is a mean of its own. A collective: every rank calls it, rows or not.
    """
    rows = count.to(total.dtype) if isinstance(count, Tensor) else torch.full_like(total.detach(), count)
    rows = mean_over_ranks(rows)
    return total / rows.masked_fill(rows == 0, 1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of -sum_j targets_ij log softmax(logits)_ij; logits and targets (R, C), target rows sum to 1.

    0 for no row at all. Columns with a logit of -inf are allowed where the target is 0.
    """
    log_probs = F.log_softmax(at_least_fp32(logits), dim=-1)
    return global_mean(-(targets * log_probs.masked_fill(targets == 0, 0.0)).sum(), len(targets))


def contrastive_targets(row_keys: Tensor, column_keys: Tensor) -> Tensor:
    """Uniform distribution over the columns that show the row's own image, (R, C) from image keys (R,) and (C,)."""
    positives = (row_keys[:, None] == column_keys[None, :]).float()
    return positives / positives.sum(dim=1, keepdim=True).clamp(min=1)


def masked_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over rows, (R, C) and (R,), that are not IGNORE; 0 (with a gradient of 0) for no row at all."""
    total = F.cross_entropy(at_least_fp32(logits), targets, reduction="sum", label_smoothing=label_smoothing)
    return global_mean(total, (targets != IGNORE).sum())


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy against soft answer scores (T, A): summed over answers, mean over questions (UNITER, ViLT, METER)."""
    logits = at_least_fp32(logits)
    return global_mean(F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum"), len(targets))


def distillation_loss(logits: Tensor, taught: Tensor, temperature: float, kind: str = CHOICE) -> Tensor:
    """T^2 KL(p || q), mean over rows, of the softmax p of taught (R, C) over T to that of logits (R, C) (Hinton et al. 2015).

    The factor keeps gradients as large whatever T is (their section 2); the cross entropy that they write has the same gradient,
    but is not 0 where both agree. Columns of -inf in taught count nothing. Of MARKS each column is a distribution of two, by
    sigmoids, summed; NUMBERS have their squared distance instead. 0 for no row at all.
    """
    logits, taught = at_least_fp32(logits), at_least_fp32(taught)
    if kind == NUMBERS:
        return global_mean((logits - taught).square().sum(), len(logits))
    logits, taught = logits / temperature, taught / temperature
    if kind == CHOICE:
        wanted, said = F.log_softmax(taught, dim=-1), F.log_softmax(logits, dim=-1)
        apart = wanted.exp() * (wanted - said).masked_fill(taught.isneginf(), 0.0)
    else:
        wanted = taught.sigmoid()
        apart = wanted * (F.logsigmoid(taught) - F.logsigmoid(logits))
        apart = apart + (1 - wanted) * (F.logsigmoid(-taught) - F.logsigmoid(-logits))
    return temperature**2 * global_mean(apart.sum(), len(logits))


def feature_loss(features: Tensor, taught: Tensor, kind: str) -> Tensor:
    """Mean over rows of 1 - cosine ("cosine"), or of the mean squared difference ("mse"), of features (R, D) to those taught."""
    features, taught = at_least_fp32(features), at_least_fp32(taught)
    is_cosine = kind == "cosine"
    rows = 1 - F.cosine_similarity(features, taught) if is_cosine else (features - taught).square().mean(dim=1)
    return global_mean(rows.sum(), len(rows))


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def iou_and_giou(boxes: Tensor, others: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """IoU, and generalised IoU, IoU - (C - U) / C (Rezatofighi et al. 2019), row by row; boxes (R, 4) cxcywh -> (R,) each.

    A degenerate box only spoils its own row.
    """
    a, b = to_corners(at_least_fp32(boxes)), to_corners(at_least_fp32(others))
    shared = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - shared
    iou = shared / union.clamp(min=eps)
    return iou, iou - (hull - union) / hull.clamp(min=eps)


def box_loss(boxes: Tensor, targets: Tensor, giou_all_or_nothing: bool = False) -> tuple[Tensor, Tensor]:
    """(L1, 1 - GIoU), each summed over a box and averaged over the R boxes, for cxcywh in 0..1 (X-VLM).

    ``giou_all_or_nothing`` drops the GIoU of the whole batch where one box is degenerate, as X-VLM does by mistake.
    """
    boxes = at_least_fp32(boxes)
    targets = targets.to(boxes)
    l1 = global_mean(F.l1_loss(boxes, targets, reduction="sum"), len(targets))
    giou = global_mean((1 - iou_and_giou(boxes, targets)[1]).sum(), len(targets))
    if giou_all_or_nothing:
        is_whole = (torch.cat([boxes, targets])[:, 2:] >= 0).all()
        giou = giou * (mean_over_ranks(is_whole.to(giou)) == 1)
    return l1, giou
