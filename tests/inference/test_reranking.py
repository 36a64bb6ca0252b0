"""Re-ranking gives what scoring every pair alone gives, however it is cut, interrupted or repeated."""

from pathlib import Path

import pytest
import torch

from fusionkit.assembly.evaluation_options import Reranking
from fusionkit.data.sample import Sample, Text
from fusionkit.errors import ConfigError, DataError
from fusionkit.inference.candidates import best
from fusionkit.inference.encoding_cache import Encodings
from fusionkit.inference.rankings import Pairing
from fusionkit.inference.reranking import Images, Reranker, Texts, _bytes, _join
from fusionkit.tasks.itm import ITM
from fusionkit.tasks.likelihood import Likelihood
from fusionkit.types import Encoded, Tokens
from tests.toys import toy_batch, toy_dims, toy_model

CPU = torch.device("cpu")
COUNTS = (2, 0, 5, 1, 0, 3, 4)  # captions of each image
BATCHES = ((0, 1, 2), (3, 4), (5, 6))


def samples() -> list[Sample]:
    return [
        Sample(key, Path("x.png"), {"captions": tuple(Text(10 * key + i, "a") for i in range(count))})
        for key, count in enumerate(COUNTS)
    ]


def toy_matching(fusion: str = "cross_attention"):
    """A model and a matching task with weights that differ from image to image."""
    torch.manual_seed(0)
    model = toy_model(fusion).eval()
    return model, ITM(toy_dims(model)).eval()


@torch.inference_mode()
def keep(model, folder: Path) -> tuple[Encodings, torch.Tensor]:
    """Encoded batches of the samples, captions of one batch cut to another length, and the cosines (T, I)."""
    torch.manual_seed(1)
    encodings, images, texts = Encodings(folder), [], []
    for number, keys in enumerate(BATCHES):
        batch = toy_batch(images=len(keys), texts_per_image=max(COUNTS))
        rows = [max(COUNTS) * at + i for at, key in enumerate(keys) for i in range(COUNTS[key])]
        captions = batch["captions"]
        mask = captions["attention_mask"][rows, : 9 - number].clone()
        batch["image_ids"] = list(keys)
        batch["captions"] = {
            "input_ids": captions["input_ids"][rows, : 9 - number],
            "attention_mask": mask,
            "ids": [10 * key + i for key in keys for i in range(COUNTS[key])],
        }
        encoded = model.encode(batch, ["captions"])
        encodings.save(number, batch, encoded)
        images += [row for key, row in zip(keys, encoded.image_feats, strict=True) if COUNTS[key]]
        texts.append(encoded.text_feats["captions"])
    return encodings, torch.cat(texts) @ torch.stack(images).T


@torch.inference_mode()
def exhaustive(model, matcher, encodings: Encodings) -> torch.Tensor:
    """(T, I, 2) logits of every caption with every image that has any, each pair alone."""
    kept = [encodings.load(number) for number in range(len(BATCHES))]
    images = [
        Tokens(encoded.image.embeds[at : at + 1], None, encoded.image.pooled[at : at + 1])
        for batch, encoded in kept
        for at, key in enumerate(batch["image_ids"])
        if COUNTS[key]
    ]
    texts = [
        Tokens(*(part[at : at + 1] for part in encoded.text["captions"]))
        for batch, encoded in kept
        for at in range(len(batch["captions"]["ids"]))
    ]
    one = torch.zeros(1, dtype=torch.int64)
    rows = [
        [matcher.score_pairs(model, model.fusion.prepare(image), text, one)[0] for image in images] for text in texts
    ]
    return torch.stack([torch.stack(row) for row in rows])


class Progress:
    """What a bar was told."""

    def begin(self, total: int, done: int) -> None:
        self.total, self.found, self.done = total, done, 0

    def advance(self, count: int) -> None:
        self.done += count


@torch.inference_mode()
def rerank(model, matcher, encodings, sim, bar=None, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Text-to-image (T, I) and image-to-text (I, T) scores by place."""
    reranker = Reranker(model, matcher, encodings, len(BATCHES), Pairing.of(samples()), Reranking(**settings), CPU)
    rankings = reranker(sim, best(sim, 99), best(sim.T, 99), bar or Progress())
    first, second = (torch.empty(ranking.items.shape, dtype=torch.float64) for ranking in rankings)
    for scores, ranking in zip((first, second), rankings, strict=True):
        scores.scatter_(1, ranking.items, ranking.scores)
    return first, second


@pytest.mark.parametrize("fusion", ["cross_attention", "merged_attention", "late"])
@pytest.mark.parametrize("settings", [{"chunk": n} for n in (1, 2, 7, 75)] + [{"memory_bytes": 0}], ids=str)
def test_scores_equal_those_of_each_pair_alone(fusion, settings, tmp_path):
    model, matcher = toy_matching(fusion)
    encodings, sim = keep(model, tmp_path)
    expected = exhaustive(model, matcher, encodings)
    text_to_image, image_to_text = rerank(model, matcher, encodings, sim, k=99, rule="itm", **settings)
    torch.testing.assert_close(text_to_image, expected[:, :, 1].double(), atol=1e-5, rtol=0)
    assert image_to_text.equal(text_to_image.T)
    assert len(text_to_image.unique()) == 75  # the scores tell the pairs apart


@pytest.mark.parametrize("fusion", ["cross_attention", "prefix"])
@pytest.mark.parametrize("settings", [{"chunk": 75}, {"chunk": 2}, {"memory_bytes": 0}], ids=str)
def test_a_task_that_encodes_texts_itself_is_given_their_token_ids(fusion, settings, tmp_path):
    """Every caption with every image alone, in one row without padding."""
    torch.manual_seed(0)
    model = toy_model(fusion).eval()
    matcher = Likelihood(toy_dims(model), prior=0.6).eval()
    encodings, sim = keep(model, tmp_path)
    kept = [encodings.load(number) for number in range(len(BATCHES))]
    expected = torch.empty(15, 5)
    with torch.inference_mode():
        rows = [(ids["captions"], at) for ids, _ in kept for at in range(len(ids["captions"]["ids"]))]
        images = [(encoded, at) for ids, encoded in kept for at, key in enumerate(ids["image_ids"]) if COUNTS[key]]
        for row, (captions, at) in enumerate(rows):
            length = int(captions["attention_mask"][at].sum())
            text = {name: captions[name][at : at + 1, :length] for name in ("input_ids", "attention_mask")}
            for column, (encoded, place) in enumerate(images):
                memory = model.fusion.prepare(encoded.image.take(torch.tensor([place])))
                expected[row, column] = matcher.score_pairs(model, memory, text, torch.tensor([0]))[0, 1]
    text_to_image, image_to_text = rerank(model, matcher, encodings, sim, k=99, rule="itm", **settings)
    torch.testing.assert_close(text_to_image, expected.double(), atol=1e-4, rtol=0)
    assert image_to_text.equal(text_to_image.T)


def test_an_image_is_prepared_once_and_the_memory_bounds_how_many_at_a_time(tmp_path, monkeypatch):
    model, matcher = toy_matching()
    encodings, sim = keep(model, tmp_path)
    prepare, prepared = model.fusion.prepare, []
    monkeypatch.setattr(model.fusion, "prepare", lambda image: prepared.append(len(image.embeds)) or prepare(image))
    rerank(model, matcher, encodings, sim, k=99, chunk=2)
    assert prepared == [1] + 5 * [1]  # the first is measured
    prepared.clear()
    (tmp_path / next(path.name for path in tmp_path.glob("logits_*"))).unlink()
    one_image = sum(part.nbytes for layer in prepare(encodings.load(1)[1].image) for part in layer[:2]) // 2
    rerank(model, matcher, encodings, sim, k=99, memory_bytes=2 * one_image, chunk=1000)
    assert max(prepared) <= 2


def test_the_rules_combine_logits_and_cosines_as_published(tmp_path):
    model, matcher = toy_matching()
    encodings, sim = keep(model, tmp_path)
    logits = exhaustive(model, matcher, encodings).double()
    ratio = logits[..., 1] - logits[..., 0] + sim / model.temperature.item()
    for rule, expected in (("itm+cosine", logits[..., 1] + sim), ("density_ratio", ratio)):
        scores, _ = rerank(model, matcher, encodings, sim, k=99, rule=rule)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_a_matching_head_that_knows_nothing_leaves_the_contrastive_ranking(tmp_path):
    model, matcher = toy_matching()
    torch.nn.init.zeros_(matcher.head.weight)
    encodings, sim = keep(model, tmp_path)
    scores, _ = rerank(model, matcher, encodings, sim, k=3)
    assert scores.argsort(dim=1).equal(sim.argsort(dim=1))


def test_an_interrupted_reranking_goes_on(tmp_path, monkeypatch):
    model, matcher = toy_matching()
    encodings, sim = keep(model, tmp_path)
    whole, bar = rerank(model, matcher, encodings, sim, k=4, chunk=6), Progress()
    next(tmp_path.glob("logits_*")).unlink()
    score_pairs, calls = matcher.score_pairs, []

    def stumble(*pairs):
        calls.append(len(pairs[3]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return score_pairs(*pairs)

    monkeypatch.setattr(matcher, "score_pairs", stumble)
    with pytest.raises(KeyboardInterrupt):
        rerank(model, matcher, encodings, sim, k=4, chunk=6)
    again = rerank(model, matcher, encodings, sim, bar, k=4, chunk=6)
    assert 0 < bar.found < bar.total
    assert bar.found + bar.done == bar.total == sum(calls) - calls[3]
    assert all(new.equal(old) for new, old in zip(again, whole, strict=True))
    rerank(model, matcher, encodings, sim, bar, k=4, rule="itm")  # another rule needs no logits
    assert (bar.found, bar.done) == (bar.total, 0)


def test_other_candidates_are_not_mistaken_for_these(tmp_path):
    model, matcher = toy_matching()
    encodings, sim = keep(model, tmp_path)
    first, bar = rerank(model, matcher, encodings, sim, k=2), Progress()
    again = rerank(model, matcher, encodings, -sim, bar, k=2)
    assert bar.found == 0
    assert not first[0].equal(again[0])


def test_a_batch_that_is_damaged_is_named_and_made_anew(tmp_path, capsys):
    model, _ = toy_matching()
    encodings, _ = keep(model, tmp_path)
    path = encodings.path(1)
    whole = path.read_bytes()
    for damaged in (whole[:99], whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"batch_000001\.pt cannot be read: it is truncated, damaged"):
            encodings.load(1)
        assert not encodings.has(1)
        assert capsys.readouterr().out == f"{path} is damaged; it is made anew\n"
    assert encodings.has(0)
    assert not encodings.has(1000)
    assert not capsys.readouterr().out


def test_a_full_disk_names_the_option(tmp_path, monkeypatch):
    def fail(content, file):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    image = Tokens(torch.zeros(1, 2, 3), None, torch.zeros(1, 3))
    batch = {"image_ids": [1]}
    with pytest.raises(DataError, match=r"no space left on device.*evaluation\.options\.cache=FOLDER"):
        Encodings(tmp_path).save(0, batch, Encoded(image, None, torch.zeros(1, 2), {}, {}))


@pytest.mark.parametrize("bad", [{"rule": "itm+"}, {"k": -1}, {"chunk": 0}])
def test_bad_settings(bad):
    with pytest.raises(ConfigError):
        Reranking(**bad)


def test_the_least_that_reranking_can_be_told():
    assert Reranking(k=0, chunk=1).k == 0
    with pytest.raises(ConfigError, match="did you mean 'itm'"):
        Reranking(rule="itn")


def reranker(model, matcher, encodings, **settings):
    return Reranker(model, matcher, encodings, len(BATCHES), Pairing.of(samples()), Reranking(**settings), CPU)


def test_the_memory_bounds_the_pairs_at_a_time_and_what_is_moved(tmp_path, monkeypatch):
    """A layer holds eight widths of each state of a pair: of the largest image and the longest caption."""
    model, matcher = toy_matching()
    encodings, _ = keep(model, tmp_path)
    kept = [encodings.load(number) for number in range(len(BATCHES))]
    image = kept[0][1].image.embeds[0].nbytes
    longest = max(int(encoded.text["captions"].mask.sum(dim=1).max()) for _, encoded in kept)
    share = 8 * (image + longest * 4 * kept[0][1].image.embeds.shape[2])
    for memory, chunk in ((5 * share, 5), (5 * share - 1, 4), (0, 1), (2**40, 256)):
        assert reranker(model, matcher, encodings, memory_bytes=memory).chunk == chunk
    assert reranker(model, matcher, encodings, chunk=3).chunk == 3
    moved = []
    monkeypatch.setattr(Texts, "to", lambda texts, device: moved.append(texts.embeds.nbytes))
    reranker(model, matcher, encodings)
    reranker(model, matcher, encodings, memory_bytes=moved[0])
    reranker(model, matcher, encodings, memory_bytes=moved[0] - 1)
    assert len(moved) == 2
    ranks = reranker(model, matcher, encodings, memory_bytes=1000)
    for prepared, count in ((torch.zeros(25), 10), (torch.zeros(1000), 1), ({}, 1000)):
        monkeypatch.setattr(model.fusion, "prepare", lambda image, prepared=prepared: prepared)
        assert ranks.images_at_once() == count


def test_bytes_of_all_that_is_nested():
    four = torch.zeros(1)
    assert _bytes({"a": [four, (four, four)], "b": None, "c": {"d": four}, "e": "text"}) == 16
    assert _bytes(Tokens(four, None, four)) == 8


def test_states_of_several_batches_are_padded_out_of_sight():
    def tokens(rows, length, mask=None):
        return Tokens(torch.ones(rows, length, 2), mask, torch.full((rows, 2), float(length)))

    mask = torch.tensor([[1, 1], [1, 0]])
    joined = _join([tokens(1, 3), tokens(2, 2, mask)])
    assert joined.embeds[:, :, 0].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert joined.embeds.shape == (3, 3, 2)
    assert joined.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert joined.pooled.tolist() == [[3, 3], [2, 2], [2, 2]]
    assert _join([tokens(1, 3), tokens(1, 2)]).mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert _join([tokens(1, 3), tokens(2, 3)]).mask is None
    assert _join([tokens(2, 2), tokens(2, 2, mask)]).mask.tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]


def test_logits_are_kept_under_a_name_of_their_candidates(tmp_path):
    model, matcher = toy_matching()
    encodings, sim = keep(model, tmp_path)
    rerank(model, matcher, encodings, sim, k=2)
    (file,) = tmp_path.glob("logits_*")
    assert len(file.name) == len("logits_") + 20
    assert file.stat().st_size % 12 == 0


def test_an_image_is_its_samples_own_and_none_of_its_others():
    def states(*numbers: float) -> Tokens:
        return Tokens(torch.tensor(numbers)[:, None, None], None, torch.tensor(numbers)[:, None])

    parts = [([7, 8, 7, 8], states(0, 1, 2, 3)), ([9, 9], states(4, 5))]  # further images bear the id of their sample
    images = Images(parts, {7: 0, 9: 1, 8: 2})
    assert images.take(torch.tensor([0, 1, 2])).embeds.flatten().tolist() == [0, 4, 1]
