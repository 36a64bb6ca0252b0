from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError
from fusionkit.evaluation.reranking import ImageWindow, Reranker, Reranking, Rows
from fusionkit.evaluation.retrieval import Pairing
from fusionkit.types import Encoded, Tokens

CPU = torch.device("cpu")
SAMPLES = [
    Sample(key, Path("x.png"), {"captions": tuple(Text(10 * key + i, "a") for i in range(key % 3))}) for key in range(9)
]


class Fusion:
    """Its memory is the tokens; remembers how many images it was given."""

    def __init__(self):
        self.prepared = []

    def prepare(self, image):
        self.prepared.append(len(image.embeds))
        return image


class Matcher:
    """A match logit that depends on all unmasked states of both sides."""

    reads = "captions"

    def score_pairs(self, model, memory, text, image_index):
        image = memory.embeds.sum(dim=(1, 2))[image_index]
        words = (text.embeds.sum(dim=2) * text.mask).sum(dim=1)
        return torch.stack([image - words, (image * words).sin()], dim=1)


@pytest.fixture
def batches():
    """Three images at a time, with captions padded to another length in each batch."""
    torch.manual_seed(0)
    made = []
    for start in range(0, 9, 3):
        images = SAMPLES[start : start + 3]
        ids = [text.id for sample in images for text in sample.texts["captions"]]
        mask = torch.ones(len(ids), 2 + start)
        mask[:, 2 + start // 3 :] = 0
        text = Tokens(torch.randn(len(ids), 2 + start, 4), mask, torch.zeros(len(ids), 4))
        image = Tokens(torch.randn(3, 5, 4), None, torch.zeros(3, 4))
        batch = {"image_ids": [sample.image_id for sample in images], "captions": {"ids": ids}}
        made.append((batch, Encoded(image, None, torch.zeros(3, 2), {"captions": text}, {})))
    return made


def expected_scores(batches):
    image = torch.cat([encoded.image.embeds.sum(dim=(1, 2)) for _, encoded in batches])
    has_captions = torch.tensor([bool(sample.texts["captions"]) for sample in SAMPLES])
    words = [(e.text["captions"].embeds.sum(dim=2) * e.text["captions"].mask).sum(dim=1) for _, e in batches]
    return (torch.cat(words)[:, None] * image[has_captions]).sin().double()


def expected_mismatch(batches):
    """(T, I) logits of "no match" in the same order."""
    image = torch.cat([e.image.embeds.sum(dim=(1, 2)) for _, e in batches])
    has_captions = torch.tensor([bool(sample.texts["captions"]) for sample in SAMPLES])
    words = [(e.text["captions"].embeds.sum(dim=2) * e.text["captions"].mask).sum(dim=1) for _, e in batches]
    return (image[has_captions] - torch.cat(words)[:, None]).double()


@pytest.mark.parametrize("memory_bytes", [2**20, 500, 0], ids=["kept", "dropped on the way", "never kept"])
@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_scores_do_not_depend_on_what_is_kept_and_how_it_is_cut(batches, memory_bytes, chunk):
    model, pairs = SimpleNamespace(fusion=Fusion()), []
    reranker = Reranker(
        model, Matcher(), Pairing.of(SAMPLES), Reranking(k=99, rule="itm", chunk=chunk, memory_bytes=memory_bytes), CPU
    )
    for batch, encoded in batches:
        reranker.keep(batch, encoded)
    assert len(reranker.images) == (3 if memory_bytes == 2**20 else 0)
    again = ((batch, encoded.image) for batch, encoded in batches)
    text_to_image, image_to_text = reranker(torch.randn(9, 6), again, pairs.append)
    torch.testing.assert_close(text_to_image, expected_scores(batches), atol=1e-5, rtol=0)
    assert image_to_text.equal(text_to_image.T)
    assert sum(pairs) == 54
    if chunk == 1000:
        assert model.fusion.prepared == [6]  # keys and values once an image


def test_the_rules_combine_logits_and_cosines_as_published(batches):
    scores = {}
    sim = torch.randn(9, 6)
    for rule in ("itm", "itm+cosine", "density_ratio"):
        settings = Reranking(k=99, rule=rule)
        model = SimpleNamespace(fusion=Fusion(), temperature=torch.tensor(0.25))
        reranker = Reranker(model, Matcher(), Pairing.of(SAMPLES), settings, CPU)
        for batch, encoded in batches:
            reranker.keep(batch, encoded)
        scores[rule], _ = reranker(sim, [], lambda count: None)
    torch.testing.assert_close(scores["itm+cosine"] - scores["itm"], sim.double(), atol=1e-6, rtol=0)
    mismatch = scores["itm"] + sim.double() / 0.25 - scores["density_ratio"]  # the logit of "no match"
    torch.testing.assert_close(mismatch, expected_mismatch(batches), atol=1e-4, rtol=0)


def test_a_matching_head_that_knows_nothing_leaves_the_contrastive_ranking(batches):
    sim, blind = torch.randn(9, 6), Matcher()
    blind.score_pairs = lambda model, memory, text, image_index: torch.tensor([[0.7, 0.1]]).expand(len(image_index), 2)
    model = SimpleNamespace(fusion=Fusion(), temperature=torch.tensor(0.07))
    reranker = Reranker(model, blind, Pairing.of(SAMPLES), Reranking(k=99), CPU)
    for batch, encoded in batches:
        reranker.keep(batch, encoded)
    scores, _ = reranker(sim, [], lambda count: None)
    assert scores.argsort(dim=1).equal(sim.argsort(dim=1))


def test_the_window_holds_only_what_is_asked_for():
    tokens = torch.arange(12.0).reshape(12, 1, 1)
    stream = iter(
        [Rows(torch.arange(i, i + 3), Tokens(tokens[i : i + 3], None, tokens[i : i + 3, 0])) for i in (0, 3, 6, 9)]
    )
    window = ImageWindow(stream)
    for wanted in ([0], [1, 4], [4], [4, 5, 8]):
        assert window.take(torch.tensor(wanted)).embeds.flatten().tolist() == wanted
    assert [part.rows.tolist() for part in window.parts] == [[3, 4, 5], [6, 7, 8]]
    assert len(list(stream)) == 1


@pytest.mark.parametrize("bad", [{"rule": "itm+"}, {"k": -1}, {"chunk": 0}])
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        Reranking(**bad)
