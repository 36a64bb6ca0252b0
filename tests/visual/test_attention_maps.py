"""Where a text and each of its words look: means over tokens, and which maps are shown."""

from types import SimpleNamespace

import numpy as np
import torch

from fusionkit.model import saliency
from fusionkit.types import Tokens
from fusionkit.visual import attention_maps as looks
from fusionkit.visual.attention_maps import Look, look

MAPS = torch.tensor([[[9.0, 9], [1, 2], [3, 4], [8, 6]], [[7, 5], [6, 4], [9, 9], [9, 9]]])  # (T, L, N)
ROWS = {
    "word_index": torch.tensor([[-1, 0, 0, 1], [0, -1, -1, -1]]),
    "image_index": torch.tensor([1, 0]),
    "input_ids": torch.tensor([[5, 6, 7, 8], [9, 0, 0, 0]]),
}
TEXT = Tokens(torch.zeros(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.zeros(2, 3))
WANTED = [[[5.25, 5.25], [2, 3], [8, 6]], [[6.5, 4.5], [7, 5]]]  # of the whole text, then of each word


def model(reads, grids=None):
    return SimpleNamespace(image_encoder=SimpleNamespace(reads=reads, grids=grids))


def test_a_map_is_the_mean_over_all_tokens_and_over_those_of_each_word():
    found = looks._by_word(model("regions"), MAPS, None, TEXT, ROWS)
    assert [each.tolist() for each in found] == WANTED


def test_maps_of_pixels_are_laid_out_as_their_image():
    asked = []

    def grids(images, index, maps):
        asked.append((images, index.tolist()))
        return [each.reshape(1, 2) for each in maps]

    found = looks._by_word(model("pixel_values", grids), MAPS, "the images", TEXT, ROWS)
    assert [each.tolist() for each in found] == [[[row] for row in rows] for rows in WANTED]
    assert asked == [("the images", [1, 1, 1]), ("the images", [0, 0])]


def test_gradcam_stands_beside_attention_where_there_is_evidence(monkeypatch):
    asked = []
    monkeypatch.setattr(saliency, "attention_maps", lambda *parts: asked.append(parts) or MAPS)
    monkeypatch.setattr(saliency, "gradcam", lambda *parts: asked.append(parts) or -MAPS)
    tokenizer = SimpleNamespace(decode=lambda ids: f" {ids} ")
    image, watched = object(), model("regions")
    plain = look(watched, None, None, image, TEXT, ROWS, tokenizer, 3)
    assert [each.words for each in plain] == [["[6, 7]", "[8]"], ["[9]"]]
    assert [each.best.tolist() for each in plain] == WANTED
    assert [each.gradcam for each in plain] == [None, None]
    both = look(watched, max, None, image, TEXT, ROWS, tokenizer, 3)
    assert [each.best.tolist() for each in both] == [(-np.array(rows)).tolist() for rows in WANTED]
    assert [each.attention.tolist() for each in both] == WANTED
    shared = (image, TEXT, ROWS["image_index"], 3)
    assert asked == [(watched, *shared), (watched, *shared), (watched, max, *shared)]


def test_an_array_file_has_what_there_is(tmp_path):
    for gradcam in (None, np.ones((2, 3))):
        Look(["é"], np.zeros((2, 3)), gradcam).write(tmp_path / "x.npz")
        with np.load(tmp_path / "x.npz") as file:
            assert file["words"].tolist() == ["é"]
            assert set(file) == {"words", "attention"} | ({"gradcam"} if gradcam is not None else set())
            assert not file["attention"].any()
