"""A loss partly against the teacher's distribution."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionkit.model.momentum import Teacher
from fusionkit.tasks.distillation import distil


def teacher(alpha: float, head: nn.Module | None = None) -> Teacher:
    return Teacher(None, head, None, alpha)  # type: ignore[arg-type]


def test_the_teacher_has_its_share_and_no_gradient() -> None:
    torch.manual_seed(0)
    logits, own = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    found = distil(torch.tensor(2.0), logits, teacher(0.25), lambda _: own)
    expected = 0.75 * 2.0 + 0.25 * F.cross_entropy(logits, own.softmax(dim=1))
    torch.testing.assert_close(found, expected)
    found.backward()
    assert logits.grad is not None
    assert own.grad is None


def test_losses_by_row_are_mixed_by_row() -> None:
    losses, logits = torch.tensor([1.0, 3.0]), torch.zeros(2, 4)
    found = distil(losses, logits, teacher(0.5), lambda _: torch.randn(2, 4), lambda _, soft: soft.sum(dim=1) * 7)
    torch.testing.assert_close(found, torch.tensor([4.0, 5.0]))


@pytest.mark.parametrize("who", [None, teacher(0.0)])
def test_nobody_is_asked_where_nobody_has_a_share(who: Teacher | None) -> None:
    def read(_: Teacher) -> Tensor:
        raise AssertionError

    loss = torch.tensor(2.0)
    assert distil(loss, torch.zeros(1, 2), who, read) is loss


def test_a_mixture_and_a_task_without_a_head() -> None:
    hard, soft = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    assert teacher(0.4).mix(hard, soft).tolist() == pytest.approx([0.8, 0.2])
    head = nn.Identity()
    assert teacher(0.4, head).own_head is head
    with pytest.raises(AssertionError):
        teacher(0.4).own_head  # noqa: B018
