import pytest
import torch

from fusionkit.inference import candidates
from fusionkit.inference.candidates import Candidates, TopK, best, blocks, on_top


def test_the_best_come_in_order_and_equal_ones_as_they_stand(monkeypatch):
    monkeypatch.setattr(candidates, "ROWS", 2)
    ranking = best(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [5.0, 4.0, 6.0]]), 2)
    assert ranking.items.tolist() == [[1, 2], [0, 1], [2, 0]]
    assert ranking.scores.tolist() == [[3, 3], [2, 2], [6, 5]]


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_candidates_are_scored_once_and_put_on_top(k):
    torch.manual_seed(2)
    sim, truth = torch.randn(9, 7), torch.randn(9, 7).double()
    rankings = best(sim, 100), best(sim.T, 100)
    wanted = Candidates.of(*rankings, k)
    assert wanted.image_rows.equal(wanted.image_rows.sort().values)
    pairs = set(zip(wanted.text_rows.tolist(), wanted.image_rows.tolist(), strict=True))
    nearest = {(t, i) for t in range(9) for i in sim[t].argsort(descending=True)[:k].tolist()}
    nearest |= {(t, i) for i in range(7) for t in sim[:, i].argsort(descending=True)[:k].tolist()}
    assert pairs == nearest
    assert len(wanted.pairs) == len(pairs)
    scores = wanted.spread(truth[wanted.text_rows, wanted.image_rows])
    for ranking, new, first, second in zip(rankings, scores, (sim, sim.T), (truth, truth.T), strict=True):
        again = on_top(ranking, new)
        assert (again.scores.diff(dim=1) <= 0).all()
        for row in range(len(first)):
            order = first[row].argsort(descending=True).tolist()
            near = sorted(order[:k], key=lambda item: -second[row, item].item())
            assert again.items[row].tolist() == near + order[k:]
            assert again.scores[row, : len(near)].equal(second[row, near])


@pytest.mark.parametrize(
    ("pairs", "images", "expected"),
    [
        (1, 9, [(0, 3), (3, 4), (4, 6), (6, 7)]),
        (4, 9, [(0, 4), (4, 7)]),
        (4, 1, [(0, 3), (3, 4), (4, 6), (6, 7)]),
        (99, 9, [(0, 7)]),
        (99, 3, [(0, 6), (6, 7)]),
    ],
)
def test_blocks_hold_whole_images(pairs, images, expected):
    rows = torch.tensor([2, 2, 2, 5, 6, 6, 8])
    assert [(block.start, block.stop) for block in blocks(rows, pairs, images)] == expected


def test_a_list_with_its_first_scored_anew():
    first = TopK(torch.tensor([[4, 7, 2, 9], [1, 2, 3, 4]]), torch.tensor([[0.5, 0.25, 0.0, -1.0], [4.0, 3, 2, 1]]))
    again = on_top(first, torch.tensor([[1.0, 2.0], [5.0, 5.0]], dtype=torch.float64))
    assert again.items.tolist() == [[7, 4, 2, 9], [1, 2, 3, 4]]
    assert again.scores.tolist() == [[2, 1, 0, -1], [5, 5, 4, 3]]
    whole = on_top(first, torch.arange(8.0, dtype=torch.float64).reshape(2, 4))
    assert whole.items.tolist() == [[9, 2, 7, 4], [4, 3, 2, 1]]
    assert whole.scores.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
    assert [part.tolist() for part in again.first(1)] == [[[7], [1]], [[2], [5]]]


def test_many_equal_scores_stay_in_their_order():
    ranking = best(torch.zeros(3, 500), 400)
    assert ranking.items.equal(torch.arange(400).expand(3, 400))
    assert on_top(ranking, torch.zeros(3, 300, dtype=torch.float64)).items.equal(ranking.items)


def test_pairs_are_numbered_image_by_image():
    to_image = TopK(torch.tensor([[1, 0], [0, 1], [1, 0]]), torch.zeros(3, 2))
    to_text = TopK(torch.tensor([[2, 0, 1], [0, 1, 2]]), torch.zeros(2, 3))
    wanted = Candidates.of(to_image, to_text, 1)
    assert (wanted.image_rows.tolist(), wanted.text_rows.tolist()) == ([0, 0, 1, 1], [1, 2, 0, 2])
    assert [part.tolist() for part in wanted.spread(torch.tensor([10, 11, 12, 13]))] == [
        [[12], [10], [13]],
        [[11], [12]],
    ]


def test_no_pairs_are_no_blocks_of_pairs():
    assert [(block.start, block.stop) for block in blocks(torch.tensor([4]), 1, 1)] == [(0, 1)]
    rows = torch.tensor([0, 0, 1, 1, 2])
    assert [(block.start, block.stop) for block in blocks(rows, 2, 9)] == [(0, 2), (2, 4), (4, 5)]
    assert [(block.start, block.stop) for block in blocks(rows, 3, 9)] == [(0, 2), (2, 5)]
