"""Texts with several images, one of them with fewer than the other: transformers' own logits and greedy words."""

import pytest
import torch
from transformers.models.idefics.processing_idefics import incremental_to_binary_attention_mask

from fusionkit.tasks.decoding import CachedDecoderState, DecoderInputs, Prompts, RecomputedDecoderState, fuse_causal
from fusionkit.tasks.generation import GenerationConfig, Greedy
from tests.parity.test_language_models import CASES, END, IMAGE, LENGTH, Pair

FAMILIES = {name: name.split(",")[0].split()[0] for name in CASES}
NAMES = [name for name, family in FAMILIES.items() if family in ("idefics", "idefics3", "llava")]
SEEING_ALL = [name for name in NAMES if FAMILIES[name] == "idefics"]
assert {FAMILIES[name] for name in NAMES} == {"idefics", "idefics3", "llava"}
PLACES = ([(1, 1), (0, 3)], [(1, 2)])  # of each text, the rows of images and the tokens that see them first
INDEX = torch.tensor([[*places, *[(-1, 0)] * (2 - len(places))] for places in PLACES])


class Several(Pair):
    """A pair whose texts hold images at places."""

    def texts(self) -> Prompts:
        return Prompts(self.ids, torch.ones_like(self.ids), INDEX, torch.ones(2, dtype=torch.long))

    def text(self, row: int) -> dict[str, torch.Tensor]:
        """What theirs is given of one text."""
        images, firsts = zip(*PLACES[row], strict=True)
        pixels, ids = self.pixels[list(images)], self.ids[row : row + 1]
        if self.family == "idefics":
            count = (torch.arange(LENGTH)[:, None] >= torch.tensor(firsts)).sum(dim=1)
            sees = incremental_to_binary_attention_mask((count - 1)[None], "pt", num_classes=len(images))
            whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_attention_mask": sees}
            return whole | {"pixel_values": pixels[None]}
        parts, start = list[torch.Tensor](), 0
        for first in firsts:
            parts += [ids[:, start:first], torch.full((1, self.tokens), IMAGE)]
            start = first
        ids = torch.cat([*parts, ids[:, start:]], dim=1)
        pixels = pixels[None] if self.family == "idefics3" else pixels
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    with torch.no_grad():
        return Several(request.param, tmp_path_factory.mktemp("theirs"))


@torch.no_grad()
def test_logits(pair):
    model = pair.network.model
    ours = model.predict_words(fuse_causal(model, pair.memory, pair.texts()))
    for row in range(2):
        given = pair.text(row)
        theirs = pair.theirs(**given).logits[0]
        theirs = theirs[given["input_ids"][0] != IMAGE]
        torch.testing.assert_close(ours[row], theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("pair", SEEING_ALL, indirect=True)
@torch.no_grad()
def test_all_images_so_far_are_seen_where_the_fusion_says_so(pair, monkeypatch):
    model = pair.network.model
    monkeypatch.setattr(model.fusion, "sees", "all")
    ours = model.predict_words(fuse_causal(model, pair.memory, pair.texts()))
    sees = (torch.arange(LENGTH)[:, None] >= torch.tensor([first for _, first in PLACES[0]])).long()[None]
    theirs = pair.theirs(**pair.text(0) | {"image_attention_mask": sees}).logits[0]
    torch.testing.assert_close(ours[0], theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    latest = pair.theirs(**pair.text(0)).logits[0]
    assert (theirs - latest)[3:].abs().amax(dim=1).min() > 1e-4


@torch.no_grad()
def test_an_image_elsewhere_gives_other_numbers(pair):
    """Each token from an image's place on, up to the next where the latest image alone is seen, is another."""
    model, texts = pair.network.model, pair.texts()
    ours = model.predict_words(fuse_causal(model, pair.memory, texts))
    moved = texts.image_index.clone()
    moved[0, 0] = torch.tensor([1, 0])
    other = model.predict_words(fuse_causal(model, pair.memory, texts._replace(image_index=moved)))
    assert (ours - other)[0, :3].abs().amax(dim=1).min() > 1e-4
    assert torch.equal(ours[1], other[1])


@pytest.mark.parametrize("way", [CachedDecoderState, RecomputedDecoderState])
@torch.no_grad()
def test_greedy_words(pair, way):
    steps = way(DecoderInputs(pair.network.model, None, pair.memory, pair.texts()))
    found = Greedy()(steps, GenerationConfig(END, max_length=7)).tokens
    for row in range(2):
        given = pair.text(row)
        said = pair.theirs.generate(**given, do_sample=False, max_new_tokens=7, pad_token_id=END)
        said = said[0, given["input_ids"].shape[1] :].tolist()
        assert found[row].tolist() == said + [END] * (found.shape[1] - len(said))
