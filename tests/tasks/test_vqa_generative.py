"""The loss over weighted answers, ranking against whole texts' likelihoods, and that learnt answers are given."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fusionkit.errors import ConfigError
from fusionkit.tasks.answering import GenerateAnswer, RankAnswers
from fusionkit.tasks.decoding import DecoderInputs, Prompts, decoder_state_of, fuse_causal
from fusionkit.tasks.generation import BeamSearch
from fusionkit.tasks.vqa_generative import GenerativeVQA, followed_by, good_pairs
from tests.toys import ANSWER_TOKENS, ANSWERS, SEP, toy_batch, toy_dims, toy_model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = toy_model().eval()
    model.text_encoder.word_embeddings.weight.data.mul_(30)  # scores that depend on what came before
    return model


def whole_text_losses(model, task, batch, encoded, smoothing):
    """(T, A) losses of each answer after each question, from one text a pair and no cache."""
    rows, questions = [], batch["questions"]
    for row, mask in zip(questions["input_ids"], questions["attention_mask"], strict=True):
        length = int(mask.sum())
        for tokens in ANSWER_TOKENS:
            ids = torch.cat([row[:length], torch.tensor([*tokens, SEP])])[None]
            at = questions["image_index"][len(rows) // len(ANSWERS)][None]
            text = Prompts(ids, torch.ones_like(ids), at, torch.tensor([length]))
            states = fuse_causal(model, encoded.memory, text)[0, length - 1 : -1]
            logits = task.head(states, model.text_encoder.word_embeddings.weight)
            rows.append(F.cross_entropy(logits, ids[0, length:], reduction="sum", label_smoothing=smoothing))
    return torch.stack(rows).view(-1, len(ANSWERS))


def test_loss_weighs_the_answers_of_a_question(model):
    batch, task = toy_batch(images=3), GenerativeVQA(toy_dims(model), label_smoothing=0.1).eval()
    batch["questions"]["answer_scores"] = torch.tensor([[0.9, 0.3, 0, 0], [0, 0, 0, 0], [0, 0, 0.3, 0.3]])
    encoded = model.encode(batch, [])
    losses = whole_text_losses(model, task, batch, encoded, 0.1)
    weights = torch.tensor([[0.75, 0.25, 0, 0], [0, 0, 0, 0], [0, 0, 0.5, 0.5]])
    torch.testing.assert_close(task(model, batch, encoded).loss, (weights * losses).sum() / 3, rtol=1e-5, atol=1e-4)
    assert not len(good_pairs(torch.zeros(2, 4)).weights)


@pytest.mark.parametrize("score", ["albef", "blip"])
def test_ranking_is_the_published_score(model, score):
    batch, task = toy_batch(images=4, texts_per_image=2), GenerativeVQA(toy_dims(model)).eval()
    encoded = model.encode(batch, [])
    steps = decoder_state_of(DecoderInputs(model, task.head, encoded.memory, task._prompts(batch)))
    scores, candidates = RankAnswers(4, score).scores(steps, task.decoding.known)
    expected = -whole_text_losses(model, task, batch, encoded, 0.1 if score == "blip" else 0.0)
    if score == "albef":
        first = steps.start()[0].log_softmax(dim=1)
        expected = expected + first[:, [tokens[0] for tokens in ANSWER_TOKENS]]
    torch.testing.assert_close(scores, expected.gather(1, candidates), rtol=1e-5, atol=1e-3)
    best = [ANSWERS[i] for i in expected.argmax(dim=1).tolist()]
    task.decoding.answering = RankAnswers(4, score)
    assert [record["answer"] for record in task.predict(model, batch, encoded)] == best
    assert expected.std(dim=0).min() > 0.1  # the scores hang on the question


def test_only_the_likeliest_first_tokens_are_scored(model):
    batch, task = toy_batch(images=4), GenerativeVQA(toy_dims(model)).eval()
    steps = decoder_state_of(DecoderInputs(model, task.head, model.encode(batch, []).memory, task._prompts(batch)))
    answers = task.decoding.known
    _, candidates = RankAnswers(1).scores(steps, answers)
    first = steps.start()[0][:, [tokens[0] for tokens in ANSWER_TOKENS]]
    assert torch.equal(first.gather(1, candidates), first.max(dim=1, keepdim=True).values)


def test_an_answer_follows_its_question_directly():
    questions = Prompts(
        torch.tensor([[2, 8, 3], [2, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]), None, torch.tensor([3, 2])
    )
    text = followed_by(questions, torch.tensor([[9, 3], [7, 3]]), torch.tensor([[1, 1], [1, 1]]), 6)
    assert text.input_ids.tolist() == [[2, 8, 3, 9, 3], [2, 3, 7, 3, 6]]
    assert text.attention_mask.tolist() == [[1] * 5, [1] * 4 + [0]]


def test_answers_are_padded_as_texts_are(model):
    task = GenerativeVQA(replace(toy_dims(model), pad_token_id=7))
    assert task.decoding.ids[task.decoding.mask == 0].unique().tolist() == [7]


@pytest.mark.parametrize("answering", [RankAnswers(score="blip"), GenerateAnswer(BeamSearch(2))], ids=["rank", "say"])
def test_learnt_answers_are_given(answering):
    torch.manual_seed(0)
    model, batch = toy_model(), toy_batch(images=4)
    task = GenerativeVQA(toy_dims(model), label_smoothing=0.0, answering=answering)
    optimizer = torch.optim.AdamW([*model.parameters(), *task.parameters()], lr=2e-3, weight_decay=0.0)
    for _ in range(60):
        loss = task(model, batch, model.encode(batch, [])).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        records = task.predict(model, batch, model.encode(batch, []))
    best = batch["questions"]["answer_scores"].argmax(dim=1).tolist()
    assert [record["answer"] for record in records] == [ANSWERS[i] for i in best]


def test_what_cannot_be_spelt_or_scored_is_one_sentence(model):
    dims = toy_dims(model)
    with pytest.raises(ConfigError, match=r"cannot spell the answer 'yes'; set data\.spell_answers=true"):
        GenerativeVQA(replace(dims, answer_tokens=((5,), (), (6,), (9,))))
    with pytest.raises(ConfigError, match="did you mean 'blip'"):
        RankAnswers(score="blipp")
    with pytest.raises(ConfigError, match=r"answering\.k is 0"):
        RankAnswers(k=0)


def test_a_language_model_says_the_answer_by_its_own_head_with_no_end_before_it():
    """The library's logits of [image; [CLS] question answer [SEP]]: the loss is that of the answer and its end alone."""
    torch.manual_seed(0)
    model = toy_model("prefix").eval()
    task = GenerativeVQA(toy_dims(model), label_smoothing=0.0).eval()
    assert task.head is None
    assert not list(task.parameters())
    batch = toy_batch(images=3)
    batch["questions"]["answer_scores"] = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
    encoded = model.encode(batch, [])
    losses = []
    for row, answer in ((0, 0), (1, 1), (2, 3)):
        length = int(batch["questions"]["attention_mask"][row].sum()) - 1  # without its [SEP]
        ids = torch.cat([batch["questions"]["input_ids"][row, :length], torch.tensor([*ANSWER_TOKENS[answer], SEP])])
        words = model.text_encoder.word_embeddings(ids)
        whole = torch.cat([encoded.memory.embeds[row], words])[None]
        states = model.text_encoder.backbone(inputs_embeds=whole).last_hidden_state[0]
        logits = F.linear(states, model.text_encoder.word_embeddings.weight)
        said = logits[len(whole[0]) - len(ANSWER_TOKENS[answer]) - 2 : -1]
        losses.append(F.cross_entropy(said, ids[length:], reduction="sum"))
    out = task(model, batch, encoded)
    torch.testing.assert_close(out.loss, sum(losses) / 3, rtol=1e-5, atol=1e-5)
    assert out.targets.tolist() == [5, SEP, 6, 7, SEP, 9, 10, 11, SEP]


def test_the_longest_answer_counts_towards_the_positions(model):
    for answering, longest in (
        (RankAnswers(), 4),
        (GenerateAnswer(max_length=7), 7),
        (GenerateAnswer(max_length=2), 4),
    ):
        assert GenerativeVQA(toy_dims(model), answering=answering).longest(10) == 10 + longest
