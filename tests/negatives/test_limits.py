"""Defaults, ages and lengths of pools, exactly."""

import inspect

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.negatives import HardNegatives, OfflineNegatives, Queue, RandomNegatives
from fusionkit.negatives.pool import (
    EMPTY,
    AllRanks,
    Candidates,
    OwnBatch,
    Pool,
    _gathered,
    _joined,
    lengthen,
    queue_ages,
)
from fusionkit.negatives.sampling import _entropy
from fusionkit.types import Tokens


def test_defaults():
    def defaults(made):
        parameters = inspect.signature(made).parameters.values()
        return {p.name: p.default for p in parameters if isinstance(p.default, int | float)}

    distribution = {"k": 1, "by_teacher": False}
    assert (defaults(HardNegatives), defaults(RandomNegatives)) == (distribution | {"floor": 0.0}, distribution)
    assert defaults(OfflineNegatives) == {"k": 1}
    assert [Candidates._field_defaults[name] for name in ("first_image", "first_text")] == [0, 0]
    assert (Pool.has_teacher, OwnBatch.has_teacher, AllRanks.has_teacher, Queue.has_teacher) == (
        True,
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("filled", "mean", "oldest"),
    [(0, 0, 0), (2, 1, 1), (3, 1, 1), (4, (3 + 2) / 4, 2), (6, 1.5, 2), (7, (3 + 6 + 3) / 7, 3)],
)
def test_ages_of_a_queue_of_seven_to_which_three_are_added(filled, mean, oldest):
    ages = queue_ages(torch.tensor([5] * filled + [EMPTY] * (7 - filled)), 3)
    assert torch.stack([ages["queue_age"], ages["queue_age_max"]]).tolist() == pytest.approx([mean, oldest])
    assert ages["queue_age_max"].is_floating_point()  # one mean over ranks is taken of all that is measured


def test_shorter_tokens_are_lengthened():
    tokens = Tokens(torch.ones(1, 2, 3), torch.ones(1, 2), torch.ones(1, 3))
    longer = lengthen(tokens, 4)
    assert longer.embeds[0, :, 0].tolist() == longer.mask[0].tolist() == [1, 1, 0, 0]
    assert lengthen(tokens, 1).embeds.shape == (1, 2, 3)


def test_rows_of_a_batch_and_of_a_queue_keep_their_own_masks():
    mask = torch.tensor([[1, 1, 0]])
    padded = Tokens(torch.ones(1, 3, 2), mask, torch.ones(1, 2))
    real = Tokens(torch.ones(1, 3, 2), None, torch.ones(1, 2))
    for own, others, expected in (
        (padded, real, [[1, 1, 0], [1, 1, 1]]),
        (real, padded, [[1, 1, 1], [1, 1, 0]]),
    ):
        assert _joined(own, others).mask.tolist() == expected
    assert _gathered(padded).mask.tolist() == mask.tolist()
    assert _gathered(real).mask is None


def test_entropy_is_the_mean_over_rows_that_have_a_partner():
    distribution = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
    assert _entropy(distribution, torch.tensor([True, True, False])).item() == pytest.approx(0.6931 / 2, abs=1e-4)
    assert _entropy(distribution, torch.zeros(3, dtype=torch.bool)) == 0


def test_a_floor_is_added_before_the_logarithm():
    distribution = HardNegatives(floor=0.25).distribution(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert distribution.tolist() == [[0.5, 0.5]]
    uneven = torch.tensor([[0.0, 1.0986]])  # .25 and .75
    found = HardNegatives(floor=0.25).distribution(uneven, torch.zeros(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0]]) / 1.5, rtol=1e-4, atol=1e-4)


def test_limits():
    assert RandomNegatives(k=1).k == 1
    with pytest.raises(ConfigError, match=r"negatives\.k is 0"):
        RandomNegatives(k=0)
    shapes = {"image_shape": (2, 3), "text_shape": (4, 5), "embed_size": 6}
    queue = Queue(1, **shapes)
    assert {name: tuple(buffer.shape) for name, buffer in queue.named_buffers()} == {
        "image_embeds": (1, 2, 3), "image_mask": (1, 2), "image_pooled": (1, 3), "image_feats": (1, 6),
        "image_keys": (1,), "image_pointer": (),
        "text_embeds": (1, 4, 5), "text_mask": (1, 4), "text_pooled": (1, 5), "text_feats": (1, 6),
        "text_keys": (1,), "text_pointer": (),
    }  # fmt: skip
    assert not any(buffer.any() for name, buffer in queue.named_buffers() if not name.endswith("keys"))
    assert queue.image_keys.tolist() == queue.text_keys.tolist() == [EMPTY]
    with pytest.raises(ConfigError, match=r"negatives\.pool\.size is 0"):
        Queue(0, **shapes)
    for unable in ({"by_teacher": True}, {"teacher_threshold": 0.0}):
        with pytest.raises(ConfigError, match="Queue keeps no states of the teacher"):
            HardNegatives(queue, **unable)
        assert HardNegatives(**unable)
    none = HardNegatives(k=3)(torch.zeros(0, 0), torch.zeros(2, 0, dtype=torch.bool))
    assert (none.columns.tolist(), none.is_valid.tolist(), none.entropy.item()) == ([[0], [0]], [[False], [False]], 0.0)
