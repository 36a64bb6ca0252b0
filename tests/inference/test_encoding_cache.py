"""Encoded batches on disk: what is kept of them, where, and when they count as others."""

import pytest
import torch
from torch import nn

from fusionkit.assembly.digests import digest, weights_digest
from fusionkit.inference.encoding_cache import Encodings, encodings_in
from fusionkit.types import Encoded, Tokens

TEXTS = {"ids": ["a"], "input_ids": torch.ones(1, 2)}
BATCH = {"image_ids": [1, 2], "captions": TEXTS | {"word_index": torch.ones(1, 2)}, "pixel_values": torch.ones(9)}


def encoded():
    whole = torch.arange(1000.0, requires_grad=True)
    image = Tokens(whole[:12].reshape(2, 2, 3), None, whole[:6].reshape(2, 3))
    text = Tokens(whole[20:26].reshape(1, 2, 3), torch.ones(1, 2), whole[:3].reshape(1, 3))
    return Encoded(image, ["a memory"], whole[:4].reshape(2, 2), {"captions": text}, {"captions": whole[4:6][None]})


def test_a_batch_is_read_back_without_its_memory(tmp_path):
    encodings = Encodings(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "other").touch()
    assert Encodings(tmp_path / "a" / "b").path(7) == tmp_path / "a" / "b" / "batch_000007.pt"
    assert not encodings.has(7)
    encodings.save(7, BATCH, encoded())
    assert encodings.has(7)
    assert encodings.path(7).stat().st_size < 4000  # of a view only what it shows
    ids, kept = encodings.load(7)
    assert ids.keys() == {"image_ids", "captions"}
    assert ids["image_ids"] == [1, 2]
    assert ids["captions"].keys() == TEXTS.keys()  # and not what no task that matches reads
    assert ids["captions"]["ids"] == ["a"]
    assert ids["captions"]["input_ids"].equal(TEXTS["input_ids"])
    assert kept.memory is None
    wanted = encoded()
    for found, one in zip(
        (*kept.image, *kept.text["captions"]), (*wanted.image, *wanted.text["captions"]), strict=True
    ):
        assert (found is None) if one is None else found.equal(one)
    assert kept.image_feats.equal(wanted.image_feats)
    assert kept.text_feats["captions"].equal(wanted.text_feats["captions"])
    assert not kept.image.embeds.requires_grad


def test_a_folder_that_is_named_stays_and_another_does_not(tmp_path):
    with encodings_in(tmp_path / "kept") as encodings:
        assert encodings.folder == tmp_path / "kept"
    assert (tmp_path / "kept").is_dir()
    with encodings_in(None) as encodings:
        folder = encodings.folder
        assert folder.is_dir()
        assert folder.name.startswith("fusionkit_")
    assert not folder.exists()


def test_digests_tell_apart_what_differs():
    found = [digest(*parts) for parts in ((["a", "b"],), (["ab"],), (["b", "a"],), (["a"], [1]), ([],))]
    assert len(set(found)) == 5
    assert {len(each) for each in found} == {20}
    assert digest(["a"], ["b"]) == digest(["a", "b"])


@pytest.mark.parametrize("change", ["weight", "type", "name", "module"])
def test_other_weights_have_another_digest(change):
    def made():
        layer = nn.Linear(2, 2)
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        return layer

    first, other = weights_digest(made()), made()
    assert first == weights_digest(made())
    assert len(first) == 20
    if change == "weight":
        other.bias.data[1] = 1e-9
    elif change == "type":
        other = other.double()
    elif change == "name":
        other = nn.Sequential(other)
    assert weights_digest(*([other, made()] if change == "module" else [other])) != first
