import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.evaluation.candidates import Candidates, best, on_top
from fusionkit.evaluation.curves import recall_curve, write_curve
from fusionkit.evaluation.retrieval import Pairing, list_records, score_ranking

SAMPLES = [
    Sample(key, Path("x.png"), {"captions": tuple(Text(100 * key + i, "a") for i in range(1 + key % 3))})
    for key in range(40)
]


def records(sim, truth, k):
    """The contrastive ranking, and the one in which the k nearest are scored by ``truth`` (T, I)."""
    rankings = best(sim, 100), best(sim.T, 100)
    wanted = Candidates.of(*rankings, k)
    scores = wanted.spread(truth[wanted.text_rows, wanted.image_rows])
    again = on_top(rankings[0], scores[0]), on_top(rankings[1], scores[1])
    return [list_records(*both, Pairing.of(SAMPLES)) for both in (rankings, again)]


@pytest.fixture
def matrices():
    """Cosines that know a little, and match scores that know more, some of them equal."""
    torch.manual_seed(0)
    pairing = Pairing.of(SAMPLES)
    right = torch.nn.functional.one_hot(pairing.owner, len(SAMPLES))
    sim = torch.randn(right.shape) + 2 * right
    return sim, (torch.randn(right.shape) + 3 * right).mul(2).round().double()


def test_each_point_is_what_reranking_so_many_scores(matrices):
    sim, truth = matrices
    first, again = records(sim, truth, 20)
    curve = recall_curve(first, again, SAMPLES, 20)
    assert [point["k"] for point in curve] == [0, 1, 2, 5, 10, 20]
    for point in curve[1:]:
        expected = score_ranking(records(sim, truth, int(point["k"]))[1], SAMPLES)
        assert point == {"k": point["k"]} | {name: expected[name] for name in point if name != "k"}
    itc = score_ranking(first, SAMPLES)
    assert curve[0] == {"k": 0} | {name: itc[name] for name in curve[0] if name != "k"}
    assert len({point["text_to_image_r1"] for point in curve}) > 3  # it is a curve


def test_perfect_rankings_score_exactly_100_at_every_k():
    sim = torch.nn.functional.one_hot(Pairing.of(SAMPLES).owner, len(SAMPLES)).float()
    for point in recall_curve(*records(sim, sim.double(), 8), SAMPLES, 8):
        assert set(point.values()) == {point["k"], 100.0}


def test_a_curve_is_written_as_numbers_and_as_a_picture(matrices, tmp_path):
    curve = recall_curve(*records(*matrices, 4), SAMPLES, 4)
    write_curve(curve, "toy · test", tmp_path / "curves" / "toy_itc")
    assert json.loads((tmp_path / "curves" / "toy_itc.json").read_text()) == curve
    assert Image.open(tmp_path / "curves" / "toy_itc.png").size[0] > 800
