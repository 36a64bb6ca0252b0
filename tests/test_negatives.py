"""The law of hard negatives, and what happens at its edges."""

import torch

from fusionkit.negatives import HardNegatives, RandomNegatives


def draw_often(negatives, similarity, same, times=20_000):
    row = similarity.expand(times, -1), same.expand(times, -1)
    index, is_valid = negatives(*row)
    assert is_valid.all()
    return torch.bincount(index, minlength=similarity.shape[1]) / times


def test_hard_negatives_follow_the_softmax_over_other_images():
    torch.manual_seed(0)
    similarity = torch.tensor([[1.0, 0.0, 2.0, -1.0]])
    same = torch.tensor([[False, False, True, False]])
    law = similarity.masked_fill(same, -torch.inf).softmax(dim=1)[0]
    torch.testing.assert_close(draw_often(HardNegatives(), similarity, same), law, atol=0.015, rtol=0)


def test_random_negatives_are_uniform_over_other_images():
    torch.manual_seed(0)
    frequencies = draw_often(RandomNegatives(), torch.tensor([[9.0, 0.0, 5.0]]), torch.tensor([[False, True, False]]))
    torch.testing.assert_close(frequencies, torch.tensor([0.5, 0.0, 0.5]), atol=0.015, rtol=0)


def test_a_row_without_another_image_is_invalid_and_low_temperatures_do_not_crash():
    similarity = torch.tensor([[300.0, 0.0], [0.0, -9000.0], [5.0, 4.0]])
    same = torch.tensor([[True, False], [False, True], [True, True]])
    index, is_valid = HardNegatives()(similarity, same)
    assert is_valid.tolist() == [True, True, False]
    assert index[:2].tolist() == [1, 0]
