import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from fusionkit.data.sample import Sample, Text
from fusionkit.inference.candidates import Candidates, best, on_top
from fusionkit.inference.rankings import Pairing, list_records
from fusionkit.scoring.scorers import RETRIEVAL
from fusionkit.visual.recall_curves import draw_curve, recall_curve, rerank_fewer, write_curve

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
        expected = RETRIEVAL(records(sim, truth, int(point["k"]))[1], SAMPLES)
        assert point == {"k": point["k"]} | {name: expected[name] for name in point if name != "k"}
    itc = RETRIEVAL(first, SAMPLES)
    assert curve[0] == {"k": 0} | {name: itc[name] for name in curve[0] if name != "k"}
    assert len({point["text_to_image_r1"] for point in curve}) > 3  # it is a curve


def test_perfect_rankings_score_exactly_100_at_every_k():
    sim = torch.nn.functional.one_hot(Pairing.of(SAMPLES).owner, len(SAMPLES)).float()
    for point in recall_curve(*records(sim, sim.double(), 8), SAMPLES, 8):
        assert set(point.values()) == {point["k"], 100.0}


def test_a_curve_is_written_as_numbers_and_as_a_picture(matrices, tmp_path):
    curve = recall_curve(*records(*matrices, 4), SAMPLES, 4)
    write_curve(curve, "toy · test", tmp_path / "curves" / "toy_itc")
    assert (tmp_path / "curves" / "toy_itc.json").read_text() == json.dumps(curve, indent=1) + "\n"
    assert Image.open(tmp_path / "curves" / "toy_itc.png").size == (1080, 432)


def test_a_list_as_if_fewer_had_been_reranked():
    first = {"caption_id": 3, "image_ids": [5, 6, 7, 8], "scores": [0.9, 0.8, 0.6, 0.5]}
    again = {"caption_id": 3, "image_ids": [7, 6, 5, 8], "scores": [4.0, 3.0, 2.0, 1.0]}
    fewer = rerank_fewer(first, again, 2)
    assert fewer == {"caption_id": 3, "image_ids": [6, 5, 7, 8], "scores": [3, 2, 1, pytest.approx(0.9)]}
    assert rerank_fewer(first, again, 0) == first
    long = {"image_id": 1, "caption_ids": list(range(40)), "scores": [float(-at) for at in range(40)]}
    for count in (0, 1, 4):
        cut = rerank_fewer(long, long, count)
        assert cut["caption_ids"] == list(range(32))  # as many as are listed
        assert cut["scores"] == [float(-at) for at in range(32)]


def test_a_list_that_shares_nothing_with_another_is_an_error():
    first = {"caption_id": 3, "image_ids": [5, 6], "scores": [0.9]}
    with pytest.raises(ValueError, match="shorter"):
        rerank_fewer(first, first, 1)
    with pytest.raises(ValueError, match="shorter"):
        rerank_fewer(first, first, 0)
    with pytest.raises(ValueError, match="shorter"):
        recall_curve([first], [], SAMPLES, 1)


def test_what_the_picture_of_a_curve_shows():
    ways = {"text_to_image": "text to image", "image_to_text": "image to text"}
    names = [f"{way}_r{cut}" for way in ways for cut in (1, 5, 10)]
    curve = [{"k": k, **{name: 10.0 * at + k for at, name in enumerate(names)}} for k in (0, 1, 128)]
    figure = draw_curve(curve, "toy · test")
    assert figure.get_suptitle() == "toy · test · recall by number of re-ranked candidates"
    assert figure.get_size_inches().tolist() == [9, 3.6]
    left, right = figure.axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("%", "")
    assert left.get_shared_y_axes().joined(left, right)
    for axes, (way, words) in zip((left, right), ways.items(), strict=True):
        assert (axes.get_title(), axes.get_xlabel()) == (words, "candidates re-ranked")
        assert axes.get_xticks().tolist() == [0, 1, 2]
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "128"]
        shown = {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.lines}
        assert shown == {f"R@{cut}": ([0, 1, 2], [p[f"{way}_r{cut}"] for p in curve]) for cut in (1, 5, 10)}
        assert [line.get_color() for line in axes.lines] == ["#1a7f37", "#0550ae", "#8250df"]
        assert {line.get_marker() for line in axes.lines} == {"o"}
        assert {line.get_alpha() for line in axes.get_xgridlines()} == {0.3}
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["R@1", "R@5", "R@10"]
