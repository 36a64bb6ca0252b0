"""Matching by likelihood: plain sums of log-softmax, a prior that takes generic texts back, and choices among texts."""

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.tasks.captioning import Captioning
from fusionkit.tasks.likelihood import Likelihood
from fusionkit.types import Tokens
from tests.toys import CLS, SEP, WIDTH, choices, toy_batch, toy_dims, toy_fusion, toy_model

CAUSAL = [name for name in choices("fusion") if "causal" in toy_fusion(name).func.provides]


def built(fusion="cross_attention", **options):
    torch.manual_seed(0)
    model = toy_model(fusion).eval()
    return model, Likelihood(toy_dims(model), **options).eval()


def words_of(model, task, states):
    """Logits, written plainly."""
    if task.head is None:
        return (
            model.predict_words(states)
            if model.encodes_prompts
            else F.linear(states, model.text_encoder.word_embeddings.weight)
        )
    return task.head(states, model.text_encoder.word_embeddings.weight)


def plain(model, task, ids, memory, index):
    """The sum of log-softmax over the tokens behind the first of one text (1, L), in the causal mask written plainly."""
    first = 1
    if model.encodes_prompts:  # the encoder reads an empty text, the decoder says this one
        ids, first = torch.cat([torch.tensor([[CLS, SEP]]), ids[:, 1:]], dim=1), 2
    length = ids.shape[1]
    mask = torch.ones(1, length, length).tril()
    mask[:, :first, :first] = 1
    text = model.encode_text(ids, mask.long())
    states = model.fuse(memory, text, torch.tensor([index])).text[0] if memory is not None else None
    if states is None:  # the language model alone, by the library
        states = model.text_encoder.backbone(inputs_embeds=model.text_encoder.word_embeddings(ids)).last_hidden_state[0]
    logits = words_of(model, task, states[first - 1 : -1])
    return logits.log_softmax(dim=1)[range(length - first), ids[0, first:]].sum()


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("fusion", CAUSAL)
def test_a_score_is_a_plain_sum_of_log_softmax_whatever_stands_beside_it(fusion, per_token):
    """Each text alone, without padding, against all of them in one batch; the prior of a language model is the library's."""
    model, task = built(fusion, prior=0.7, per_token=per_token)
    batch = toy_batch(images=3, texts_per_image=2)
    rows, memory = batch["captions"], model.encode(batch, []).memory
    images = torch.tensor([2, 0, 1, 1, 0, 2])
    blank = None
    if model.encodes_prompts:
        blank = model.fusion.without_image(torch.zeros(1))
    elif not fusion.startswith(("prefix", "interleaved")):
        blank = model.fusion.prepare(Tokens(torch.zeros(1, 1, WIDTH), None, torch.zeros(1, WIDTH)))
    with torch.no_grad():
        found = task.score_pairs(model, memory, rows, images)
        wanted = []
        for row, image in enumerate(images.tolist()):
            length = int(rows["attention_mask"][row].sum())
            ids = rows["input_ids"][row : row + 1, :length]
            score = plain(model, task, ids, memory, image) - 0.7 * plain(model, task, ids, blank, 0)
            wanted.append(score / (length - 1 if per_token else 1))
    torch.testing.assert_close(found[:, 1], torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert (found[:, 0] == 0).all()
    assert len(found[:, 1].unique()) == 6


def test_a_prompt_is_read_and_not_scored():
    model, task = built("prefix", prior=0.0, prompt="t7 t9")
    batch = toy_batch(images=2)
    rows, memory = batch["captions"], model.encode(batch, []).memory
    length = int(rows["attention_mask"][1].sum())
    ids = torch.cat([torch.tensor([[CLS, 7, 9]]), rows["input_ids"][1:2, 1:length]], dim=1)
    size = ids.shape[1]
    text = model.encode_text(ids, torch.ones(1, size, size).tril().long())
    states = model.fuse(memory, text, torch.tensor([1])).text[0]
    wanted = words_of(model, task, states[2:-1]).log_softmax(dim=1)[range(size - 3), ids[0, 3:]].sum()
    torch.testing.assert_close(
        task.score_pairs(model, memory, rows, torch.arange(2))[1, 1], wanted, rtol=1e-4, atol=1e-4
    )


def test_it_trains_as_captioning_does_and_without_the_image_too():
    model, task = built("cross_attention", learn_prior=0.5)
    other = Captioning(toy_dims(model), label_smoothing=0.0).eval()
    other.load_state_dict(task.state_dict())
    batch = toy_batch(images=3, texts_per_image=2)
    encoded = model.encode(batch, [])
    rows = batch["captions"]
    blank = model.fusion.prepare(Tokens(torch.zeros(1, 1, WIDTH), None, torch.zeros(1, WIDTH)))
    count = int(rows["attention_mask"].sum()) - 6
    total = 0.0
    for row, length in enumerate(rows["attention_mask"].sum(dim=1).tolist()):
        total -= plain(model, task, rows["input_ids"][row : row + 1, :length], blank, 0)
    out = task(model, batch, encoded)
    torch.testing.assert_close(out.loss, other(model, batch, encoded).loss + 0.5 * total / count)
    said, number = out.metrics["prior_loss"]
    assert number == count
    torch.testing.assert_close(said, total.detach())
    task.learn_prior = 0.0
    assert torch.equal(task(model, batch, encoded).loss, other(model, batch, encoded).loss)


def test_a_language_model_adds_no_parameters_and_others_have_captioning_s():
    model, task = built("prefix")
    assert not task.state_dict()
    model, task = built()
    assert task.state_dict().keys() == Captioning(toy_dims(model)).state_dict().keys()
    assert task.init_from == "captioning"


@pytest.mark.parametrize("fusion", ["merged_attention", "prefix"])
def test_a_generic_text_wins_until_its_prior_is_taken_off(fusion):
    """Learnt: three of four captions of every image are the same short one, the fourth is the image's own."""
    torch.manual_seed(0)
    model = toy_model(fusion)
    task = Likelihood(toy_dims(model))
    batch = toy_batch(images=3, texts_per_image=4)
    ids = torch.zeros(12, 6, dtype=torch.long)
    own = torch.tensor([[CLS, 11, 12, 13, 14, SEP], [CLS, 21, 22, 23, 24, SEP], [CLS, 31, 32, 33, 34, SEP]])
    for row in range(12):
        ids[row, :3] = torch.tensor([CLS, 5, SEP])
        if row % 4 == 3:
            ids[row] = own[row // 4]
    batch["captions"] |= {"input_ids": ids, "attention_mask": (ids > 0).long()}
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=3e-3, weight_decay=0.0)
    for _ in range(100):
        loss = task(model, batch, model.encode(batch, [])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    task.eval()
    texts = {"input_ids": torch.cat([ids[:1], own]), "attention_mask": (torch.cat([ids[:1], own]) > 0).long()}
    pairs = {name: part.repeat(3, 1) for name, part in texts.items()}
    with torch.inference_mode():
        memory = model.encode(batch, []).memory
        index = torch.arange(3).repeat_interleave(4)
        best = {}
        for prior in (0.0, 1.0):
            task.prior = prior
            best[prior] = task.score_pairs(model, memory, pairs, index)[:, 1].view(3, 4).argmax(dim=1).tolist()
    assert best[0.0] == [0, 0, 0]  # the generic one
    assert best[1.0] == [1, 2, 3]  # each image's own


def test_texts_of_an_image_are_choices():
    model, task = built(prior=0.5)
    batch = toy_batch(images=2, texts_per_image=3)
    encoded = model.encode(batch, [])
    index = batch["captions"]["image_index"]
    replies = task.reply(model, batch, encoded, top=1)
    scores = task.score_pairs(model, encoded.memory, batch["captions"], index)[:, 1]
    shares = torch.tensor([reply["share"] for reply in replies]).view(2, 3)
    torch.testing.assert_close(shares, scores.view(2, 3).softmax(dim=1))
    torch.testing.assert_close(torch.tensor([reply["match"] for reply in replies]), scores.sigmoid())
    likely = torch.tensor([reply["log_likelihood"] for reply in replies])
    torch.testing.assert_close(likely, scores + 0.5 * task.log_priors(model, batch["captions"]))


@pytest.mark.parametrize("option", ["prior", "learn_prior"])
def test_mistakes_are_one_sentence(option):
    with pytest.raises(ConfigError, match=f"task.likelihood.{option} is -1; give 0 or more"):
        built(**{option: -1})
