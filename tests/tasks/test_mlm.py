"""Masking statistics and the tied decoder."""

from dataclasses import replace

import pytest
import torch

from fusionkit.errors import ConfigError
from fusionkit.tasks.mlm import IGNORE, MLM, RandomMasking
from tests.toys import CLS, MASK, PAD, SEP, toy_batch, toy_dims, toy_model, toy_rows


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.mark.parametrize("probability", [0, -0.1, 1.01, 2**63])
def test_a_probability_that_is_none(probability):
    with pytest.raises(ConfigError, match=rf"task.mlm.probability is {probability}; give a number above 0, up to 1"):
        MLM(toy_dims(toy_model()), probability=probability)
    MLM(toy_dims(toy_model()), probability=1)


def test_fifteen_percent_by_eighty_ten_ten(model):
    torch.manual_seed(0)
    rows = toy_rows(images=6000, texts_per_image=1)
    corrupted, targets = RandomMasking(toy_dims(model), 0.15)(rows["input_ids"], rows["word_index"])
    chosen = targets != IGNORE
    assert torch.equal(corrupted[~chosen], rows["input_ids"][~chosen])
    assert not chosen[torch.isin(rows["input_ids"], torch.tensor([CLS, SEP, PAD]))].any()
    assert chosen.sum() / (rows["word_index"] >= 0).sum() == pytest.approx(0.15, abs=0.01)
    masked = (corrupted[chosen] == MASK).float().mean()
    kept = (corrupted[chosen] == targets[chosen]).float().mean()
    assert masked == pytest.approx(0.8, abs=0.03)
    assert kept == pytest.approx(0.1 + 0.1 / 60, abs=0.02)  # a random token is sometimes the right one


def test_whole_words_are_masked_with_all_their_pieces(model):
    torch.manual_seed(0)
    word_index = torch.tensor([[-1, 0, 0, 0, 1, 2, 2, -1]]).expand(500, -1)
    _, targets = RandomMasking(toy_dims(model), 0.3, whole_word=True)(torch.full_like(word_index, 9), word_index)
    chosen = targets != IGNORE
    assert torch.equal(chosen[:, 1], chosen[:, 2])
    assert torch.equal(chosen[:, 1], chosen[:, 3])
    assert torch.equal(chosen[:, 5], chosen[:, 6])
    assert not torch.equal(chosen[:, 1], chosen[:, 4])


def test_published_variants_of_the_choice(model):
    """X-VLM: min(8, max(1, round(.25 n))) with n counting [CLS]; UNITER: never none; ALBEF: [SEP] like any other."""
    torch.manual_seed(0)
    dims, rows = toy_dims(model), toy_rows(images=3000, texts_per_image=1)
    words = (rows["word_index"] >= 0).sum(dim=1)

    def chosen(**options):
        return RandomMasking(dims, **options)(rows["input_ids"], rows["word_index"])[1] != IGNORE

    counts = chosen(probability=0.25, most=2, whole_word=True).sum(dim=1)
    assert torch.equal(counts, ((1 + words) * 0.25).round().clamp(1, 2).long())
    never_none = chosen(probability=0.05, at_least_one=True)
    assert never_none.any(dim=1).all()
    none = (1 - 0.05) ** words.float()
    assert never_none.sum() / len(words) == pytest.approx((0.05 * words + none).mean().item(), abs=0.02)
    with_sep = chosen(probability=0.15, mask_sep=True)
    assert with_sep[rows["input_ids"] == SEP].float().mean() == pytest.approx(0.15, abs=0.02)
    assert not with_sep[torch.isin(rows["input_ids"], torch.tensor([CLS, PAD]))].any()


def test_decoder_is_tied_to_the_word_embeddings(model):
    task, batch = MLM(toy_dims(model), probability=0.5), toy_batch(images=4)
    assert not [n for n, p in task.named_parameters() if p.shape == model.text_encoder.word_embeddings.weight.shape]
    model.zero_grad()
    task(model, batch, model.encode(batch, [])).loss.backward()
    unseen = sorted(set(range(60)) - set(batch["captions"]["input_ids"].flatten().tolist()))
    assert model.text_encoder.word_embeddings.weight.grad[unseen].abs().sum() > 0  # only the decoder reaches these


def test_predictions_do_not_depend_on_the_batch(model):
    task, batch = MLM(toy_dims(model), probability=0.4).eval(), toy_batch(images=4)
    model.eval()
    records = task.predict(model, batch, model.encode(batch, []))
    for key in ("input_ids", "attention_mask", "word_index", "image_index"):
        batch["captions"][key] = batch["captions"][key][2:]
    batch["captions"]["ids"] = batch["captions"]["ids"][2:]
    assert task.predict(model, batch, model.encode(batch, [])) == [r for r in records if r["caption_id"] >= 2]


def test_the_end_is_a_place_where_its_token_is_the_start_and_padding_too(model):
    torch.manual_seed(0)
    rows, end = toy_rows(images=4000, texts_per_image=1), CLS
    is_end = rows["input_ids"] == SEP
    input_ids = rows["input_ids"].masked_fill(torch.isin(rows["input_ids"], torch.tensor([SEP, PAD])), end)
    dims = replace(toy_dims(model), sep_token_id=end, pad_token_id=end)
    chosen = RandomMasking(dims, 0.15, mask_sep=True)(input_ids, rows["word_index"])[1] != IGNORE
    assert chosen[is_end].float().mean() == pytest.approx(0.15, abs=0.02)
    assert not chosen[(rows["word_index"] < 0) & ~is_end].any()
    blank = torch.tensor([[CLS, end, end]])
    assert (RandomMasking(dims, 1.0, mask_sep=True)(blank, torch.full_like(blank, -1))[1] != IGNORE).tolist() == [
        [False, True, False]
    ]


def test_without_a_mask_no_word_can_be_hidden(model):
    dims = replace(toy_dims(model), mask_token_id=None)
    with pytest.raises(ConfigError, match=r"task.mlm: the tokenizer has no mask token of its own; leave mlm out"):
        MLM(dims)
    assert MLM(replace(dims, tokens=())).head  # weights alone
    with pytest.raises(ConfigError, match="no mask token"):
        RandomMasking(dims)(torch.ones(1, 3).long(), torch.tensor([[-1, 0, -1]]))
