"""Losses as pure functions of tensors. Everything is computed in fp32, whatever the precision of the run."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of -sum_j targets_ij log softmax(logits)_ij; logits and targets (R, C), target rows sum to 1.

    0 for no row at all. Columns with a logit of -inf are allowed where the target is 0.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)
    return -(targets * log_probs.masked_fill(targets == 0, 0.0)).sum() / max(len(targets), 1)


def contrastive_targets(row_keys: Tensor, column_keys: Tensor) -> Tensor:
    """Uniform distribution over the columns that show the row's own image, (R, C) from image keys (R,) and (C,)."""
    positives = (row_keys[:, None] == column_keys[None, :]).float()
    return positives / positives.sum(dim=1, keepdim=True).clamp(min=1)


def masked_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy over rows, (R, C) and (R,); 0 (with a gradient of 0) for no row at all."""
    return F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(targets), 1)


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy against soft answer scores (T, A): summed over answers, mean over questions (UNITER, ViLT, METER)."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")
    return loss / max(len(targets), 1)


def to_corners(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def generalized_iou(boxes: Tensor, others: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU row by row, IoU - (C - U) / C (Rezatofighi et al. 2019); boxes (R, 4) cxcywh -> (R,).

    A degenerate box only spoils its own row.
    """
    a, b = to_corners(boxes.float()), to_corners(others.float())
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    union = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - overlap
    return overlap / union.clamp(min=eps) - (hull - union) / hull.clamp(min=eps)


def box_loss(boxes: Tensor, targets: Tensor, all_or_none: bool = False) -> tuple[Tensor, Tensor]:
    """(L1, 1 - GIoU), each summed over a box and averaged over the R boxes, for cxcywh in 0..1 (X-VLM).

    ``all_or_none``  for parity with X-VLM: one box of negative size, and the second loss is 0 for all boxes.
    """
    count = max(len(targets), 1)
    l1 = F.l1_loss(boxes.float(), targets.float(), reduction="sum") / count
    giou = (1 - generalized_iou(boxes, targets)).sum() / count
    if all_or_none:
        giou = giou * (torch.cat([boxes, targets])[:, 2:] >= 0).all()
    return l1, giou
