"""Where a text looks: maps of every fusion that has them, GradCAM as its definition says, and the boxes that come of it."""

import itertools
import json

import pytest
import torch

from fusionkit.errors import ConfigError, DataError
from fusionkit.model import saliency
from fusionkit.tasks.grounding_gradcam import GradCAMGrounding
from tests.toys import choices, toy_batch, toy_dims, toy_fusion, toy_model

JOINT = ("merged_attention", "co_embedding")
LOOKING = [name for name in choices("fusion") if "attention" in toy_fusion(name).func.provides]


def build(name="cross_attention", regions=False, **options):
    torch.manual_seed(0)
    model = toy_model(name, regions).eval()
    task = GradCAMGrounding(toy_dims(model), **options).eval()
    batch = toy_batch(images=3, texts_per_image=2)
    encoded = model.encode(batch, ["expressions"])
    return (
        model,
        task,
        batch,
        encoded,
        (encoded.image, encoded.text["expressions"], batch["expressions"]["image_index"]),
    )


@pytest.mark.parametrize("name", LOOKING)
def test_maps_are_distributions_over_the_image_and_leave_the_fusion_as_it_was(name):
    model, task, batch, encoded, parts = build(name)
    before = model.fuse(encoded.memory, *parts[1:]).pooled
    for layer in range(len(model.fusion.cross_attentions())):
        maps = saliency.attention_maps(model, *parts, layer=layer)
        real = parts[1].mask.bool()
        assert maps.shape == (*real.shape, encoded.image.embeds.shape[1])
        sums = maps.sum(dim=2)[real]
        if name in JOINT:  # the rest of the attention is the text's
            assert ((sums > 0) & (sums < 1)).all()
        else:
            torch.testing.assert_close(sums, torch.ones(int(real.sum())))
    with torch.inference_mode():
        cam = saliency.gradcam(model, task.evidence, *model_parts(model, batch))
    assert cam.shape == maps.shape
    assert cam.min() == 0 < cam.max()
    assert not cam[~real].any()
    torch.testing.assert_close(model.fuse(encoded.memory, *parts[1:]).pooled, before)
    grids = model.image_encoder.grids(None, torch.arange(6), saliency.over_words(cam, real))
    assert [grid.shape for grid in grids] == [(4, 4)] * 6


def model_parts(model, batch):
    """Encoded where gradients are forbidden, as in an evaluation."""
    encoded = model.encode(batch, ["expressions"])
    return encoded.image, encoded.text["expressions"], batch["expressions"]["image_index"]


@pytest.mark.parametrize("name", JOINT)
def test_of_one_attention_over_both_the_maps_are_from_the_text_to_the_image(name):
    """An image token that is hidden from all is given nothing, and its neighbours are; so the corner is the right one."""
    model, _, _, _, (image, text, index) = build(name)
    mask = torch.ones(image.embeds.shape[:2], dtype=torch.long)
    mask[:, 3] = 0
    maps = saliency.attention_maps(model, image._replace(mask=mask), text, index, layer=0)
    real = maps[text.mask.bool()]
    assert (real[:, 3] == 0).all()
    assert (real[:, [0, 2, 4, -1]] > 0).all()


def test_a_model_in_half_precision_and_inference_gives_the_same_maps():
    model, task, batch, _, parts = build()
    exact = saliency.gradcam(model, task.evidence, *parts)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = saliency.gradcam(model, task.evidence, *model_parts(model, batch))
    assert rough.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact.flatten(), rough.flatten()]))[0, 1] > 0.95


def test_the_gradient_is_that_of_the_score_with_respect_to_the_attention():
    """By finite differences: a little more attention to one token changes the match logit as much as GradCAM says."""
    model, task, _, _, parts = build()
    cam = saliency.gradcam(model, task.evidence, *parts, layer=1)
    attention = model.fusion.cross_attentions()[1]
    row, word, place, step = 0, 0, 3, 1e-2

    def score(more):
        def attend(query, key, value, mask, dropout=0.0):
            weights = saliency.attention_weights(query, key, mask)
            seen.append(weights)
            added = torch.zeros_like(weights)
            added[row, head, word, place] = more
            return (weights + added) @ value

        attention.attend = attend
        single = saliency._copied(parts[0].take(parts[2]))
        fused = model.fuse(model.fusion.prepare(single), parts[1], torch.arange(len(parts[2])))
        return task.evidence(fused)[row].item()

    expected = 0.0
    with torch.no_grad():
        for head in range(attention.num_heads):
            seen = []
            slope = (score(step) - score(-step)) / (2 * step)
            expected += max(slope, 0.0) * seen[0][row, head, word, place].item() / attention.num_heads
    assert cam[row, word, place].item() == pytest.approx(expected, rel=2e-2, abs=1e-7)


def test_a_fusion_without_cross_attention_and_a_layer_that_is_not_there_say_so():
    model, task, _, _, parts = build("gated")
    with pytest.raises(ConfigError, match="Gated has no attention of the text to the image"):
        saliency.gradcam(model, task.evidence, *parts)
    model, task, _, _, parts = build()
    with pytest.raises(
        ConfigError, match=r"layer is 2, but CrossAttention has 2 layers that look at the image; give 0 to 1"
    ):
        saliency.attention_maps(model, *parts, layer=2)


def test_the_best_rectangle_is_the_best_of_all(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(saliency, "FINE", 4)
    maps = torch.rand(3, 4, 4) ** 4
    spans = list(itertools.combinations(range(5), 2))
    for map, box in zip(maps, saliency.best_rectangles(maps, alpha=0.5), strict=True):
        scores = {
            (x0 / 4, y0 / 4, x1 / 4, y1 / 4): map[y0:y1, x0:x1].sum().item() / ((y1 - y0) * (x1 - x0)) ** 0.5
            for y0, y1 in spans
            for x0, x1 in spans
        }
        assert tuple(box.tolist()) == max(scores, key=scores.get)


def test_a_spot_is_boxed_between_the_cells_too_and_chosen_among_proposals():
    map = torch.zeros(8, 8)
    map[2:4, 4:7] = 1.0
    found, spot = saliency.best_rectangles(map[None], 0.5)[0], torch.tensor([4 / 8, 2 / 8, 7 / 8, 4 / 8])
    torch.testing.assert_close(found, spot, rtol=0, atol=1 / 32)
    soft = map.clone()
    soft[2:4, 6] = 0.5  # half of this cell is the spot's
    assert 6 / 8 < saliency.best_rectangles(soft[None], 0.5)[0, 2] < 7 / 8
    proposals = torch.tensor([[0.0, 0.0, 80.0, 40.0], [40.0, 10.0, 30.0, 10.0], [0.0, 20.0, 30.0, 20.0]])
    assert saliency.best_proposal(map, proposals, (80, 40), 0.5) == 1


def test_a_map_that_speaks_for_no_place_gives_the_whole_image():
    assert saliency.best_rectangles(torch.zeros(1, 8, 8), 0.5).tolist() == [[0, 0, 1, 1]]


def test_a_proposal_beyond_the_edge_counts_by_what_is_inside():
    map = torch.zeros(8, 8)
    map[:, 0] = 1.0
    proposals = torch.tensor([[30.0, 0.0, 20.0, 40.0], [-5.0, 0.0, 20.0, 40.0]])
    assert saliency.best_proposal(map, proposals, (80, 40), 0.5) == 1


def test_records_are_boxes_in_pixels_and_need_no_box_label(tmp_path):
    model, task, batch, encoded, _ = build()
    del batch["expressions"]["boxes"]
    assert task(model, batch, encoded).loss > 0
    for record in task.predict(model, batch, encoded):
        x, y, w, h = record["bbox"]
        assert 0 <= x < x + w <= 64
        assert 0 <= y < y + h <= 48
    file = tmp_path / "proposals.json"
    file.write_text(json.dumps({image_id: [[1, 2, 3, 4], [5, 6, 7, 8]] for image_id in batch["image_ids"]}))
    _, task, *_ = build(proposals=str(file))
    given = [record["bbox"] for record in task.predict(model, batch, encoded)]
    assert {tuple(box) for box in given} <= {(1, 2, 3, 4), (5, 6, 7, 8)}
    file.write_text("{}")
    with pytest.raises(DataError, match="no box for image 100"):
        build(proposals=str(file))[1].predict(model, batch, encoded)
    with pytest.raises(ConfigError, match="no such file"):
        build(proposals="nowhere.json")


def test_regions_bring_their_own_boxes():
    model, task, batch, encoded, _ = build(regions=True)
    for record, image in zip(task.predict(model, batch, encoded), batch["expressions"]["image_index"], strict=True):
        positions = batch["regions"].positions[image][batch["regions"].mask[image].bool()]
        own = torch.cat([positions[:, :2], positions[:, 4:6]], dim=1) * torch.tensor([64, 48, 64, 48])
        assert (own - torch.tensor(record["bbox"])).abs().amax(dim=1).min() < 1e-3


def test_maps_of_different_shapes_have_their_rectangles_each(monkeypatch):
    monkeypatch.setattr(saliency, "FINE", 1)
    wide, high = torch.zeros(2, 4), torch.zeros(5, 1)
    wide[1, 1:3], high[3:] = 1.0, 1.0
    found = saliency.best_rectangles([wide, high], 0.5)
    assert found[0].tolist() == [0.25, 0.5, 0.75, 1.0]
    torch.testing.assert_close(found[1], torch.tensor([0, 0.6, 1, 1]))
    assert saliency.best_rectangles([wide, wide], 0.5).equal(found[[0, 0]])
